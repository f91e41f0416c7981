# SPDX-License-Identifier: GPL-3.0-or-later
"""One client that reads logs, and another one that has a scratch server execute what they say.

Some statements have to fail: the server logs one that failed half way, with the number of its error, for MyISAM and the like keep what it had
done. It is judged as a replica judges it (Query_log_event::do_apply_event): the same error is none, and every other one is, as is
none where there should be one. As a replica does by default (slave_ddl_exec_mode), a DROP is let pass that names something which is not there.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from contextlib import ExitStack
from typing import Any, BinaryIO, Callable, List, Optional, Sequence, Set, Tuple

from ...host.errors import StillpointError
from ...host.process import kill, sentence, start
from ...host.processes import io_counter
from ...mysql.acceptance import init_command
from ...mysql.scratch import Pulse, Scratch
from .outside import Filter
from .plan import Recovery

_POLL = 0.25

_ERROR = re.compile(rb"ERROR(?: (\d+))? ?(?:\(\w+\) )?(?:at line (\d+))?")
_HEADER = re.compile(rb"#\d{6} [ \d]\d:\d\d:\d\d server id \d+  end_log_pos (\d+) (?:.*\terror_code=(\d+))?")
_NEXT_LOG = b"\tStart: binlog v "
_NOT_THERE = (1051, 4091, 4092)  # ER_BAD_TABLE_ERROR, ER_UNKNOWN_SEQUENCES, ER_UNKNOWN_VIEW


def feed(
    recovery: Recovery,
    programs: Tuple[str, str],
    paths: Sequence[str],
    descriptors: Sequence[int],
    scratch: Scratch,
    option_file: str,
    room: str,
    accepted: Sequence[str],
    outside: Filter,
    look: Callable[[int], None],
) -> None:
    """Execute the logs of a Recovery.

    :param programs: the reader's and the client's
    :param paths: of the logs; descriptors: those of them that are open and have to be handed on
    :param option_file: with which the client logs in
    :param room: for the files of LOAD DATA statements, which are in the logs
    :param accepted: assignments for the client's session
    :param outside: what the client is given passes through it
    :param look: is called all the time, with the bytes that have been read; what it raises ends the replay
    :raises StillpointError: one of the clients failed, or a statement did not do what it did on the server
    """
    reading = [
        programs[0],
        "--no-defaults",
        "--verify-binlog-checksum",
        "--local-load=%s" % room,
        "--start-position=%d" % recovery.start,
        "--stop-position=%d" % recovery.stop,
        *paths,
    ]
    executing = [
        programs[1],
        "--defaults-file=%s" % option_file,
        "--socket=%s" % scratch.socket,
        "--binary-mode",
        "--batch",
        "--force",  # which errors count is decided here
        "--skip-reconnect",
        "--max-allowed-packet=1G",
        "--local-infile=1",
        init_command(accepted),
    ]
    with ExitStack() as stack:
        said = [stack.enter_context(open(os.path.join(scratch.directory, name), "w+b")) for name in ("reader", "client")]
        reader = start(reading, dies_with_us=True, pass_fds=list(descriptors), stdout=subprocess.PIPE, stderr=said[0])
        stack.callback(kill, reader)
        given = subprocess.PIPE if outside.needed else reader.stdout
        client = start(executing, dies_with_us=True, stdin=given, stdout=subprocess.DEVNULL, stderr=said[1])
        stack.callback(kill, client)
        if outside.needed:
            outside.start(reader.stdout, client.stdin)  # type: ignore[arg-type]
        elif reader.stdout is not None:
            reader.stdout.close()  # the client's alone, so that the reader notices when it ends
        witness = _Witness(recovery, reading, descriptors)
        stack.callback(witness.close)
        judge = _Judge(recovery, witness, stack.enter_context(open(said[1].name, "rb")))
        working = Pulse(reader.pid), Pulse(client.pid)  # an event may be large, and the server waits for the whole of it
        while client.poll() is None:
            scratch.check(*working)
            judge.look()
            look(io_counter(reader.pid, "rchar") or 0)
            time.sleep(_POLL)
        scratch.check(*working)
        judge.look()
        try:
            reader.wait(60)
        except subprocess.TimeoutExpired:
            pass
        # a client that was to ignore errors may say at the end that there were some
        if client.returncode not in (0, 1 if judge.forgiven else 0) or reader.returncode != 0:
            raise StillpointError("the replay failed: %s" % _why(client.returncode, reader.returncode, *(_text(file) for file in said)))
        outside.end()
        judge.end()


class _Judge:
    """Reads what the client says of errors, and tells those that have to be from the others."""

    def __init__(self, recovery: Recovery, witness: "_Witness", said: BinaryIO) -> None:
        self._recovery = recovery
        self._witness = witness
        self._said = said
        self._left = b""
        self._failed: Set[Tuple[str, int]] = set()
        self.forgiven = 0

    def look(self) -> None:
        """Judge what was said since the last time.

        :raises StillpointError: a statement failed that should not have
        """
        *lines, self._left = (self._left + self._said.read()).split(b"\n")
        for text in lines:
            match = _ERROR.match(text)
            if match:
                self._judge(text, int(match.group(1) or 0), int(match.group(2) or 0))

    def _judge(self, text: bytes, number: int, line: int) -> None:
        said = text.decode("utf-8", "replace")
        if not number or not line:
            raise StillpointError("the replay failed: %s" % said)
        event = self._witness.at(line)
        if event.error and number == event.error:
            self._failed.add((event.file, event.end))
        elif not (number in _NOT_THERE and event.text.lstrip().upper().startswith(b"DROP")):
            there = "with error %d" % event.error if event.error else "without one"
            raise StillpointError(
                "the replay failed, in the statement that ends at %s:%d, which the server executed %s: %s" % (event.file, event.end, there, said)
            )
        self.forgiven += 1

    def end(self) -> None:
        """Make sure that everything failed that had to.

        :raises StillpointError: something did not
        """
        for each in self._recovery.failed:
            if (each.file, each.end) not in self._failed:
                raise StillpointError(
                    "the replay failed: the statement that ends at %s:%d failed half way on the server, with error %d, and did not fail here, so that the "
                    "data would not be what it was" % (each.file, each.end, each.error)
                )


class _Event:
    """What the reader says of the event that a line of its output is of.

    :ivar end: where it ends in its log
    :ivar error: the number that it had on the server; 0: none
    :ivar text: the line
    """

    def __init__(self, file: str, end: int, error: int, text: bytes) -> None:
        self.file, self.end, self.error, self.text = file, end, error, text


class _Witness:
    """Tells what a line of the reader's output is of, by having the logs read once more as far as that. The lines asked for go up."""

    def __init__(self, recovery: Recovery, reading: List[str], descriptors: Sequence[int]) -> None:
        self._files = [piece.file for piece in recovery.pieces]
        self._reading = reading
        self._descriptors = list(descriptors)
        self._process: Optional["subprocess.Popen[Any]"] = None
        self._number = 0
        self._log = 0
        self._end = self._error = 0
        self._text = b""

    def at(self, line: int) -> _Event:
        if self._process is None:
            self._process = start(
                self._reading, dies_with_us=True, pass_fds=self._descriptors, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
        output = self._process.stdout
        while output is not None and self._number < line:
            text = output.readline()
            if not text:
                break
            self._number += 1
            self._text = text
            match = _HEADER.match(text)
            if match:
                self._log += _NEXT_LOG in text
                self._end, self._error = int(match.group(1)), int(match.group(2) or 0)
        # the reader says of the first log how it describes itself, wherever it is to begin
        return _Event(self._files[min(max(self._log, 1), len(self._files)) - 1], self._end, self._error, self._text)

    def close(self) -> None:
        if self._process is not None:
            kill(self._process)
            if self._process.stdout is not None:
                self._process.stdout.close()


def _text(file: Any) -> str:
    file.seek(0)
    return str(file.read(1 << 20).decode("utf-8", "replace"))


def _why(client: Optional[int], reader: Optional[int], reader_said: str, client_said: str) -> str:
    """Return why a replay failed. Where the client failed, the reader did so too, for there was nobody to write to."""
    if client != 0:
        return sentence(client_said) or "the client ended with exit status %s" % client
    return sentence(reader_said) or "the reader of the logs ended with exit status %s" % reader
