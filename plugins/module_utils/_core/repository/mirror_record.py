# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files of a mirror have to be compared by contents: a mirror has no manifest, so inode and change time of its sources are kept beside it.

The lists are made, sorted and compared by find, sort and comm, while rsync is at work: a mirror of 200,000 unchanged files takes four seconds.
"""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import datetime
from time import time_ns
from typing import IO, Any, Callable, Iterator, List, NamedTuple, Optional, Set

from ..host import durable
from ..host.errors import StillpointError
from ..host.process import kill, start
from ..trees import Tree
from .sums import Sums
from .transfer import Item, ended_by_nul
from .unchanged import doubtful_from

DIRECTORY = ".stillpoint-sources"

_FORMAT = r"%C@ %i %n %P\0"  # see _Line; the change time comes first, so that the list is in the order of these
_TICK = 0.2
_BLOCK = 1 << 16  # more than any line has


class _Line(NamedTuple):
    """A file of the source: its change time (seconds, with ten decimals), inode, how many names that has, and path."""

    changed: bytes
    inode: bytes
    names: bytes
    path: bytes


@dataclass(frozen=True)
class _State:
    """What is known of one tree of a mirror.

    :ivar record: name of the list of its sources
    :ivar doubtful_ns: a change time from here on does not prove that the mirror has the file as it was left
    :ivar done_ns: when the mirror had become what the list says, by the clock of its own file system
    :ivar begun: a run has begun to change the mirror since, and has not told of its end
    """

    record: str
    doubtful_ns: int
    done_ns: int
    begun: bool


class MirrorRecord:
    """The record of one tree of a mirror; `begin` before the mirror is changed, `finish` after it is in step.

    :param mirror: the directory of all trees
    :param time: the point in time of what is copied
    """

    def __init__(self, mirror: str, tree: Tree, time: datetime) -> None:
        self._tree = tree
        self._dest = os.fsencode(os.path.join(mirror, tree.name))
        self._directory = os.path.join(mirror, DIRECTORY)
        self._key = hashlib.sha256(os.fsencode(tree.name)).hexdigest()[:16]
        self._new = "%s-%d" % (self._key, time_ns())
        self._doubtful_ns = doubtful_from(time)
        self._old = self._read()
        self._programs: "List[subprocess.Popen[Any]]" = []
        self._told = Sums()

    @property
    def is_missing(self) -> bool:
        """Whether nothing is known of what the mirror has already, so that all of it has to be compared."""
        return os.path.lexists(self._dest) and (self._old is None or not os.path.isdir(self._dest))

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _read(self) -> Optional[_State]:
        try:
            facts = durable.read_json(self._path(self._key + ".json"))
            state = _State(str(facts["record"]), int(facts["doubtful_ns"]), int(facts["done_ns"]), bool(facts["begun"])) if facts else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return state if state and os.path.isfile(self._path(state.record)) else None

    def _write(self, state: _State) -> None:
        durable.write_json(self._path(self._key + ".json"), vars(state))

    def begin(self) -> None:
        """Have it known that the mirror is about to be changed, and begin to list the sources."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        if self._old is not None and not self._old.begun:
            self._write(_State(self._old.record, self._old.doubtful_ns, self._old.done_ns, True))
        argv = ["find", self._tree.path, "-type", "f", "-printf", _FORMAT]
        found = start(argv, dies_with_us=True, gives_way=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/")
        with open(self._path(self._new), "wb", opener=_private) as file:
            ordered = start(["sort", "-z"], dies_with_us=True, gives_way=True, stdin=found.stdout, stdout=file, stderr=subprocess.DEVNULL, cwd="/")
        found.stdout.close()  # type: ignore[union-attr]
        self._programs = [found, ordered]

    def note(self, item: Item) -> None:
        """Keep that rsync has read a file."""
        if item.checksum:
            self._told.add(item.path, item.checksum)

    def wait(self, watch: Callable[[], None]) -> None:
        """Wait until the sources are listed.

        :raises StillpointError: they can't be
        """
        for program in self._programs:
            while True:
                try:
                    program.wait(_TICK)
                    break
                except subprocess.TimeoutExpired:
                    watch()
            if program.returncode != 0:
                raise StillpointError("the files of %s can't be listed: find or sort ended with status %d" % (self._tree.source, program.returncode))

    def to_compare(self) -> Optional[str]:
        """Return the path of a list of the files that have to be compared by contents, each ended by NUL; None where there are none."""
        path = self._path(self._new + ".paths")
        with open(path, "wb", opener=_private) as file:
            for each in self._found():
                file.write(each + b"\0")
            return path if file.tell() else None

    def _found(self) -> Iterator[bytes]:
        """Return the paths of files that rsync took for unchanged by size and time, and whose record does not prove it."""
        if self._old is None:
            return
        crowd: Set[bytes] = set()
        for line in self._comm("-13", self._old):
            if line.names != b"1":
                crowd.add(line.inode)
            elif line.path not in self._told:
                yield from self._present(line)
        for line in _last_lines(self._path(self._new), b"%d.%09d" % divmod(self._old.doubtful_ns, 10**9)):
            yield from self._present(line)
        for line in self._comm("-12", self._old) if self._old.begun else ():
            if self._touched(line, self._old):
                yield from self._present(line)
        if crowd:  # names of one file are compared together, as rsync makes them one again
            with open(self._path(self._new), "rb") as file:
                for line in _lines(file):
                    if line.inode in crowd:
                        yield from self._present(line)

    def _comm(self, which: str, old: _State) -> "Iterator[_Line]":
        """Return the lines that are in the new list alone (-13), or in both (-12)."""
        with tempfile.TemporaryFile(dir=self._directory) as file:
            argv = ["comm", which, "-z", self._path(old.record), self._path(self._new)]
            if start(argv, dies_with_us=True, stdout=file, stderr=subprocess.DEVNULL, cwd="/").wait() != 0:
                raise StillpointError("the lists of the files of %s can't be compared" % self._tree.source)
            file.seek(0)
            yield from _lines(file)

    def _touched(self, line: "_Line", old: _State) -> bool:
        """Tell whether a file of the mirror was changed after the mirror had become what the last list says."""
        try:
            return os.lstat(os.path.join(self._dest, line.path)).st_ctime_ns >= old.done_ns
        except OSError:
            return False

    def _present(self, line: "_Line") -> Iterator[bytes]:
        """Return the path of a line if the mirror has it: what is excluded by now it has not, and rsync would bring it in by its name."""
        try:
            if stat.S_ISREG(os.lstat(os.path.join(self._dest, line.path)).st_mode):
                yield line.path
        except OSError:
            return

    def finish(self) -> None:
        """Have it known that the mirror is in step."""
        durable.sync_file_system(self._directory)
        os.utime(self._path(self._new))  # now, by the clock of the mirror's file system
        self._write(_State(self._new, self._doubtful_ns, os.stat(self._path(self._new)).st_ctime_ns, False))
        for name in os.listdir(self._directory):
            if name.startswith(self._key + "-") and name != self._new:
                os.unlink(self._path(name))

    def __enter__(self) -> "MirrorRecord":
        return self

    def __exit__(self, *_error: object) -> None:
        """End what is still running."""
        for program in self._programs:
            kill(program)
        self._told.close()


def _lines(file: IO[bytes]) -> Iterator[_Line]:
    return (_Line(*line.split(b" ", 3)) for line in ended_by_nul(file))


def _last_lines(path: str, since: bytes) -> Iterator[_Line]:
    """Return the lines of a list from a change time on. They are the last ones: only the end of the list is read."""
    with open(path, "rb") as file:
        start = file.seek(0, os.SEEK_END)
        while start:
            start = max(0, start - _BLOCK)
            file.seek(start)
            if start and b"\0" <= file.read(_BLOCK).partition(b"\0")[2] < since:
                break
        file.seek(start)
        if start:
            rest = file.read(_BLOCK).partition(b"\0")
            file.seek(start + len(rest[0]) + 1)
        yield from (line for line in _lines(file) if line.changed >= since)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
