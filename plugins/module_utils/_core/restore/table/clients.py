# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's own client programs, which copy a table from the scratch server into the live one."""

from __future__ import annotations

import fcntl
import re
import subprocess
import tempfile
import termios
import time
from contextlib import ExitStack
from typing import Any, Callable, List, Optional, Sequence, Tuple

from ...dump import client
from ...dump.contents import by_transaction
from ...host.errors import StillpointError
from ...host.process import kill, sentence, start
from ...host.reporter import Reporter
from ...mysql.acceptance import init_command
from ...mysql.connection import Session
from ...mysql.scratch import Scratch
from .plan import Key, TablePlan, named

_POLL = 0.25
_ERROR = re.compile(r"ERROR \d+|(?:mariadb|mysql)(?:-?dump)?: (?:Error|Got error)")  # a client quotes the statement, and with it data, after that
_LONGEST = 300

# Seconds that a statement waits in the live server for what somebody's transaction uses. Everybody else who wants the table queues behind it, and
# the server's own limit is a day on MariaDB and a year on MySQL.
LOCK_WAIT = 30
LOCK_WAIT_TIMEOUT = 1205
HELD = "is in use by somebody's transaction or lock, which did not end within %d s: end that one (SHOW FULL PROCESSLIST) and restore again" % LOCK_WAIT


class Clients:
    """The programs for one table.

    :ivar accepted: assignments that let the live server take what the backup's server took
    """

    def __init__(self, plan: TablePlan, scratch: Scratch, reporter: Reporter, tick: Callable[[], None]) -> None:
        """:param tick: called a few times a second while rows are on their way; may raise"""
        self._plan = plan
        self._scratch = scratch
        self._reporter = reporter
        self._tick = tick
        self.accepted: Tuple[str, ...] = ()

    def dumped(self, how: Sequence[str], table: Key) -> bytes:
        """Return what the dump program writes of a table of the scratch server.

        :param how: its options
        :raises StillpointError: it can't be read
        """
        with client.option_file(self._scratch.login) as options, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
            process = start(self._dump_command(options, how, table), dies_with_us=True, stdout=out, stderr=said)
            self._wait(process, process)
            if process.returncode != 0:
                raise StillpointError("the scratch server's table can't be read: %s" % (_text(said) or "exit status %d" % process.returncode))
            out.seek(0)
            return bytes(out.read())

    def pipe(self, table: Key) -> None:
        """Copy a table from the scratch server into the live one.

        :raises StillpointError: one of them fails
        """
        how = ["--single-transaction", "--skip-triggers", *self._history(table)]
        with ExitStack() as stack:
            source, target = (stack.enter_context(client.option_file(login)) for login in (self._scratch.login, self._plan.login))
            said = [stack.enter_context(tempfile.TemporaryFile()) for _each in range(2)]
            dump = start(self._dump_command(source, how, table), dies_with_us=True, stdout=subprocess.PIPE, stderr=said[0])
            stack.callback(kill, dump)
            load = self._load(target, dump.stdout, said[1])
            stack.callback(kill, load)
            self._wait(load, dump)
            if dump.stdout is not None:
                dump.stdout.close()  # or it would wait for ever for a loader that has failed
            dump.wait(60)
            if load.returncode != 0:
                text = _text(said[1]) or "exit status %d" % load.returncode
                if "ERROR 2006" in text or "ERROR 2013" in text:  # what the client says of it is a matter of who is first
                    text += " (as where a row is beyond its max_allowed_packet)"
                if "ERROR %d " % LOCK_WAIT_TIMEOUT in text:
                    text = "%s %s" % (named(table), HELD)
                raise StillpointError("the server does not take the table: %s" % text)
            if dump.returncode != 0:
                raise StillpointError("the scratch server's table can't be read: %s" % (_text(said[0]) or "exit status %d" % dump.returncode))

    def feed(self, sql: bytes) -> None:
        """Run the SQL of the triggers in the live server; what goes wrong is a warning, as the table is there."""
        with client.option_file(self._plan.login) as options, tempfile.TemporaryFile() as source, tempfile.TemporaryFile() as said:
            source.write(sql)
            source.flush()
            source.seek(0)
            load = self._load(options, source, said)
            self._wait(load)
            if load.returncode != 0:
                self._reporter.warn("%s is back, and not all of its triggers: %s" % (named(self._plan.into), _text(said)))

    def _dump_command(self, options: str, how: Sequence[str], table: Key) -> List[str]:
        program = self._plan.programs[0]
        argv = [
            program.path,
            "--defaults-file=" + options,
            "--quick",
            "--hex-blob",
            "--default-character-set=utf8mb4",
            "--max-allowed-packet=%d" % client.LARGEST_PACKET,
            *how,
        ]
        if not self._plan.settings.is_mariadb:
            argv += ["--set-gtid-purged=OFF", "--no-tablespaces"]
        return [*argv, "--", *table]

    def _history(self, table: Key) -> List[str]:
        """Return the option that brings a table's old rows too, where MariaDB keeps some and the program can; say where it can't for how they are kept."""
        if not self._plan.settings.is_mariadb:
            return []
        with Session(self._scratch.login) as session:
            rows = session.rows("SELECT TABLE_TYPE AS type FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", table)
            if not rows or rows[0]["type"] != "SYSTEM VERSIONED":
                return []
            if table not in by_transaction(session):
                return ["--dump-history"] if self._plan.programs[0].has_history else []
        self._reporter.warn("%s comes without its old rows, which it keeps by transaction: no program can dump these" % named(self._plan.into))
        return []

    def _load(self, options: str, source: Any, said: Any) -> "subprocess.Popen[Any]":
        session = (*self.accepted, "lock_wait_timeout=%d" % LOCK_WAIT)
        argv = [*client.load_command(self._plan.programs[1], options), init_command(session), self._plan.into[0]]
        return start(argv, dies_with_us=True, stdin=source, stdout=subprocess.DEVNULL, stderr=said)

    def _wait(self, process: "subprocess.Popen[Any]", dump: "Optional[subprocess.Popen[Any]]" = None) -> None:
        """Wait for the end of a program.

        :param dump: the one that reads from the scratch server, which has something to do only as long as that runs and is not the one that waits
        :raises ScratchFailed: the scratch server was needed, and failed
        """
        while process.poll() is None:
            if dump is not None:
                self._tick()
            if dump is not None and dump.poll() is None:
                if _unread(dump.stdout):
                    self._scratch.pulse.restart()
                self._scratch.check()
            time.sleep(_POLL)


def _unread(pipe: Any) -> bool:
    """Whether a pipe holds something that its reader has not read yet."""
    return pipe is not None and fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)) != bytes(4)


def _text(file: Any) -> str:
    """Return what a client complains of, without the rows that it quotes."""
    file.seek(0)
    said = file.read(1 << 20).decode("utf-8", "replace")
    errors = [line.strip() for line in said.splitlines() if _ERROR.match(line)]
    return (errors[0] if errors else sentence(said))[:_LONGEST]
