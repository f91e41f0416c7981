# SPDX-License-Identifier: GPL-3.0-or-later
"""The pipe of a dump: the program that writes it, zstd, and files whose checksum is known when their last byte is."""

from __future__ import annotations

import hashlib
import os
import re
import select
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType
from typing import Any, Callable, Deque, Dict, Iterator, Optional, Sequence, Type

from ..host.errors import CommandError, NotNowError
from ..host.process import LOW_PRIORITY, end, start

ALGORITHM = "md5"  # what every rsync can verify, and the standard library can compute while bytes go by

CHUNK = 1 << 18
_TICK = 0.5
_END = 10.0  # seconds that a program gets to end after SIGTERM

# After a difference the output becomes the same again within a few MiB, so that a copy on another machine that finds parts again (restic, borg, rsync) stores
# these alone, at 0.05 % more bytes and a fifth more of zstd's processor time; by default it may be different to its end. zstd >= 1.3.8.
_ZSTD = ("zstd", "-q", "-c", "-3", "--rsyncable", "-B1M")

# What a client says that the server will take at another time: see mysql/connection.py.
_NO_CONNECTION = re.compile(r"(1040|1041|1053|1135|1203|1226|2002|2003|3032)\b.*when trying to connect")


class Source:
    """A program whose output is read, for as long as its context lasts.

    :param begun: what it says on stderr when it has taken its snapshot
    """

    def __init__(self, argv: Sequence[str], begun: Optional["re.Pattern[bytes]"] = None) -> None:
        self.argv = list(argv)
        self._begun_mark = begun
        self._said: Deque[bytes] = deque(maxlen=100)
        self._begun = threading.Event()
        self._silent = False  # it says nothing any more

    def __enter__(self) -> "Source":
        self._process = start(self.argv, dies_with_us=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, _type: Optional[Type[BaseException]], _error: Optional[BaseException], _trace: Optional[TracebackType]) -> None:
        end(self._process)
        self._listener.join(_END)
        self._process.stdout.close()  # type: ignore[union-attr]

    def _listen(self) -> None:
        with self._process.stderr as stderr:  # type: ignore[union-attr]
            for line in stderr:
                if self._begun_mark and self._begun_mark.match(line):
                    self._begun.set()
                elif not line.startswith(b"-- "):
                    self._said.append(line)
        self._silent = True
        self._begun.set()

    def wait_begun(self, timeout: float) -> None:
        """Return when the program has taken its snapshot, or has ended.

        :raises NotNowError: it does neither in time, or got no connection
        """
        name = os.path.basename(self.argv[0])
        if not self._begun.wait(timeout):
            raise NotNowError("%s did not begin within %d s (has the server connections and time to spare?): nothing was backed up" % (name, timeout))
        if self._silent and _NO_CONNECTION.match(self.complaint()):
            raise NotNowError("%s got no connection (%s): nothing was backed up; try again later" % (name, self.complaint()))

    def give_way(self) -> None:
        """Let everything else on the host go first: not before a lock that it holds up is given back."""
        with suppress(OSError):  # it has ended
            os.setpriority(os.PRIO_PROCESS, self._process.pid, LOW_PRIORITY)

    def chunks(self, limit: Optional[float] = None, watch: Callable[[], None] = lambda: None) -> Iterator[bytes]:
        """Return the output, and find out at its end how the program ended.

        :param limit: bytes per second
        :param watch: called about twice a second; what it raises ends the program
        :raises CommandError: the program failed
        """
        descriptor = self._process.stdout.fileno()  # type: ignore[union-attr]
        began, read, seen = time.monotonic(), 0, 0.0
        while True:
            if time.monotonic() - seen >= _TICK:
                watch()
                seen = time.monotonic()
            if not select.select([descriptor], [], [], _TICK)[0]:
                continue
            chunk = os.read(descriptor, CHUNK)
            if not chunk:
                break
            read += len(chunk)
            yield chunk
            if limit:
                ahead = read / limit - (time.monotonic() - began)
                while ahead > 0:
                    time.sleep(min(ahead, _TICK))
                    watch()
                    ahead -= _TICK
        code = self._process.wait()
        self._listener.join(_END)
        if code != 0:
            raise CommandError("%s failed: %s" % (os.path.basename(self.argv[0]), self.complaint() or _ended(code)), self.argv, code, self.said)

    @property
    def said(self) -> str:
        """What it wrote to stderr and is no report of how far it is."""
        return b"".join(self._said).decode("utf-8", "replace")

    def complaint(self) -> str:
        """Return the last line of that which says what is wrong."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        own = [line for line in lines if re.match(r"[\w./-]*(?:mysqldump|mariadb-dump|zstd|ERROR)\b", line)]
        return re.sub(r"^[\w./-]*(?:mysqldump|mariadb-dump): (?:Got error: )?", "", (own or lines or [""])[-1])


def _ended(code: int) -> str:
    return "it was ended by signal %d" % -code if code < 0 else "exit status %d" % code


class Compressed:
    """A new file that gets what is written to it compressed, in as many frames as it is opened for.

    :ivar bytes: in the file so far
    :ivar text_bytes: of what was compressed
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.bytes = 0
        self.text_bytes = 0
        self._sum = hashlib.new(ALGORITHM)
        self._process: Optional["subprocess.Popen[Any]"] = None
        self._error: Optional[BaseException] = None
        self._file = -1

    @property
    def checksum(self) -> str:
        return self._sum.hexdigest()

    def write(self, data: bytes) -> None:
        """Write; a frame is begun where none is open.

        :raises OSError: the file can't be written
        :raises CommandError: zstd has ended
        """
        if self._process is None:
            self._begin()
        self.text_bytes += len(data)
        try:
            self._process.stdin.write(data)  # type: ignore[union-attr]
        except BrokenPipeError:
            self.finish()
            raise CommandError("zstd ended before everything was written to %s" % self.path, ["zstd"]) from None

    def _begin(self) -> None:
        pipes: Dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._process = start(_ZSTD, dies_with_us=True, gives_way=True, **pipes)
        self._writer = threading.Thread(target=self._drain, args=(self._process,), daemon=True)
        self._writer.start()

    def _drain(self, process: "subprocess.Popen[Any]") -> None:
        try:
            while True:
                chunk = os.read(process.stdout.fileno(), CHUNK)  # type: ignore[union-attr]
                if not chunk:
                    return
                self._sum.update(chunk)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
                self.bytes += len(chunk)
        except Exception as error:  # pylint: disable=broad-exception-caught  # told to whoever finishes the frame
            self._error = error
            process.kill()

    def finish(self) -> None:
        """End the frame that is open; there may be more.

        :raises OSError: the file can't be written
        :raises CommandError: zstd failed
        """
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]
            code = process.wait()
            self._writer.join()
            said = process.stderr.read().decode("utf-8", "replace").strip()  # type: ignore[union-attr]
            os.close(self._file)
            if self._error is not None:
                raise self._error
            if code != 0:
                raise CommandError("zstd failed: %s" % (said or _ended(code)), ["zstd"], code, said)
        finally:
            end(process)
            for stream in (process.stdout, process.stderr):
                stream.close()  # type: ignore[union-attr]

    def abandon(self) -> None:
        """End zstd, whatever became of the file."""
        process, self._process = self._process, None
        if process is not None:
            end(process)
            with suppress(OSError):  # what it was not given any more
                process.stdin.close()  # type: ignore[union-attr]
            self._writer.join(_END)
            os.close(self._file)


class Files:
    """The compressed files that a dump is written to; zstd runs for one of them at a time."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._files: Dict[str, Compressed] = {}
        self._open: Optional[Compressed] = None

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, _type: Optional[Type[BaseException]], _error: Optional[BaseException], _trace: Optional[TracebackType]) -> None:
        for each in self._files.values():
            each.abandon()

    def write(self, name: str, data: bytes) -> None:
        """Write to the file of this name, relative to the directory."""
        file = self._files.get(name)
        if file is None:
            path = os.path.join(self._directory, name)
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            file = self._files[name] = Compressed(path)
        if self._open is not file:
            self.finish()
            self._open = file
        file.write(data)

    def finish(self) -> None:
        """End the frame that is open."""
        if self._open is not None:
            self._open.finish()
            self._open = None

    def written(self) -> Dict[str, Compressed]:
        """Return what was written, by name."""
        return dict(self._files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self._files.values())


def decompressed(path: str) -> Source:
    """Return the text of a file that was compressed, as the output of a program."""
    return Source(["zstd", "-q", "-d", "-c", "--", path])


def checksum(path: str, on_progress: Callable[[int], None] = lambda _done: None) -> str:
    """Return the checksum of a file's contents, as they are on the disk."""
    total = hashlib.new(ALGORITHM)
    done = 0
    with open(path, "rb") as file:
        while True:
            chunk = file.read(1 << 20)
            if not chunk:
                return total.hexdigest()
            total.update(chunk)
            done += len(chunk)
            on_progress(done)
