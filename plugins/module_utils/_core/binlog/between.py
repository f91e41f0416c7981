# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies between two positions of a server's binary logs, as far as it matters to an engine that stands at the first of them.

An engine remembers the position of its own last commit. What came after it and is not transactional (rows of MyISAM and Aria
tables, DDL, rotations) is in the tables, and not the engine's to remember. Rows are skipped, and logs are begun anywhere: `binlog.events`
reads them whole, with their checksums.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, Iterator, List, NamedTuple, Optional

from ..host.errors import StillpointError
from . import xa
from .format import (
    DDL,
    FORMAT,
    HEADER,
    MAGIC,
    MARIA_GTID,
    MARIA_START_ENCRYPTION,
    QUERIES,
    TRANSACTIONAL,
    XA_COMPLETED,
    XA_PREPARED,
    gtid_flags,
    gtid_of,
    gtid_xid,
    has_checksums,
)
from .place import Place, logs, sequence
from .transactions import COMMITS, Open, begins

_HEAD = 64 * 1024  # so much of an event that begins a transaction, or is a statement, is looked into


class Unreadable(StillpointError):
    """The binary logs can't be read from here to there."""


class _Event(NamedTuple):
    position: int
    end: int
    kind: int
    body: bytes


@dataclass
class Group:
    """What was logged as one: a transaction, or a statement.

    :ivar gtid: of MySQL, as it writes it; "" where there is none, or one that is not read here (MySQL's with a tag)
    :ivar xid: of an application's transaction, which it prepares, or ends where `ends` says so; MariaDB's InnoDB keeps no position of these
    """

    file: str
    position: int
    gtid: str = ""
    transactional: bool = False
    xid: Optional[xa.Xid] = None
    ends: bool = False


@dataclass
class Between:
    """What was found: how many events, and the groups among them."""

    events: int = 0
    groups: List[Group] = field(default_factory=list)

    @property
    def transactional(self) -> List[Group]:
        return [group for group in self.groups if group.transactional]


def read(directory: str, basename: str, since: Place, until: Place) -> Between:
    """Return what lies from one place to another.

    :raises Unreadable: a log is missing, encrypted or torn
    """
    found = Between()
    files = [name for name in logs(directory, basename) if since.order[0] <= sequence(name) <= until.order[0]]
    if not files or (files[0], files[-1]) != (since.file, until.file):
        raise Unreadable("the binary logs from %s to %s are not all in %s" % (since.file, until.file, directory))
    for name in files:
        with _opened(os.path.join(directory, name)) as log:
            group: Optional[Group] = None
            for event in log.events(since.position if name == since.file else len(MAGIC), until.position if name == until.file else None):
                found.events += 1
                begun = _group(name, event)
                if begun or (event.kind in COMMITS and group is None):  # before MySQL 5.7, nothing marks where one begins
                    group = begun or Group(name, event.position)
                    found.groups.append(group)
                if event.kind in COMMITS and group:
                    group.transactional, group = True, None
    return found


def has(directory: str, place: Place) -> bool:
    """Tell whether a place is where an event of a binary log begins, or the last one ends.

    :raises Unreadable: the log is encrypted, or is none
    """
    with _opened(os.path.join(directory, place.file)) as log:
        try:
            for _event in log.events(end=place.position):
                pass
            return place.position >= len(MAGIC)
        except Unreadable:
            return False


def complete(path: str) -> int:
    """Return the position up to which a binary log holds whole transactions: one that was being written does not count.

    :raises Unreadable: it is encrypted, or is none
    """
    whole = len(MAGIC)
    begun: Optional[Open] = None
    with _opened(path) as log:
        try:
            for event in log.events():
                if begins(event.kind):
                    begun = Open(event.position, 0, event.kind, 0, event.body)
                elif begun and begun.ends_with(event.end, event.kind, event.body):
                    begun = None
                if begun is None:
                    whole = event.end
        except Unreadable:
            pass  # torn: what is before it counts
    return whole


class _Log:
    """A log that is read.

    :ivar summed: its events end with a checksum
    """

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path = path
        self.summed = False
        self._file = file
        self._size = os.fstat(file.fileno()).st_size

    def events(self, start: int = len(MAGIC), end: Optional[int] = None) -> Iterator[_Event]:
        """Return the events from one position to another, or to the end.

        :raises Unreadable: there is no whole event at some position
        """
        limit = self._size if end is None else end
        while start < limit:
            self._file.seek(start)
            header = self._file.read(HEADER.size)
            length = HEADER.unpack(header)[3] if len(header) == HEADER.size else 0
            after = start + length
            if length < HEADER.size or after > limit:
                raise Unreadable("the binary log %s has no whole event at %d" % (self.path, start))
            yield _Event(start, after, header[4], self._body(header[4], length - HEADER.size))
            start = after

    def _body(self, kind: int, size: int) -> bytes:
        if not (begins(kind) or kind in QUERIES or kind == FORMAT):
            return b""
        body = self._file.read(min(size, _HEAD))
        return body[:-4] if self.summed and len(body) == size else body


@contextmanager
def _opened(path: str) -> Iterator[_Log]:
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise Unreadable("the binary log %s is encrypted, or is none" % path)
        log = _Log(path, file)
        for event in islice(log.events(), 2):
            if event.kind == FORMAT:
                log.summed = has_checksums(event.body)
            if event.kind == MARIA_START_ENCRYPTION:  # those after it have their length in clear, and else nothing
                raise Unreadable("the binary log %s is encrypted" % path)
        yield log


def _group(name: str, event: _Event) -> Optional[Group]:
    """Return the Group that an event begins, None where it begins none."""
    if event.kind == MARIA_GTID:
        flags = gtid_flags(event.body)
        xid = xa.parse(gtid_xid(event.body)) if flags & (XA_PREPARED | XA_COMPLETED) else None
        transactional = bool(flags & TRANSACTIONAL) and not flags & DDL
        return Group(name, event.position, "", transactional, xid, bool(flags & XA_COMPLETED))
    if begins(event.kind):
        return Group(name, event.position, str(gtid_of(event.kind, 0, event.body) or ""))
    return None
