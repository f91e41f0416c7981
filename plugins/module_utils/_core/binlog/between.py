# SPDX-License-Identifier: GPL-3.0-or-later
"""What lies between two positions of a server's binary logs, as far as it matters to an engine that stands at the first of them.

An engine remembers the position of its own last commit. What came after it and is not transactional (rows of MyISAM and Aria
tables, DDL, rotations) is in the tables, and not the engine's to remember. Only the beginning and the end of an event are looked at, and
logs are begun anywhere: `binlog.events` reads them whole, with their checksums.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Tuple

from ..host.errors import StillpointError
from . import xa
from .format import (
    BEGINS,
    DDL,
    HEADER,
    MAGIC,
    MARIA_GTID,
    MARIA_START_ENCRYPTION,
    MYSQL_PAYLOAD,
    QUERIES,
    STANDALONE,
    TRANSACTIONAL,
    XA_COMPLETED,
    XA_PREPARE,
    XA_PREPARED,
    XID,
    gtid_flags,
    gtid_of,
    gtid_xid,
)

_TRANSACTION_ENDS = (XID, XA_PREPARE, MYSQL_PAYLOAD)
_ENDS = 192  # bytes of an event's body that are looked at, at its beginning and at its end; the name of an XA transaction has up to 128


class Unreadable(StillpointError):
    """The binary logs can't be read from here to there."""


class _Event(NamedTuple):
    position: int
    end: int
    kind: int
    head: bytes
    tail: bytes


@dataclass
class Group:
    """What was logged as one: a transaction, or a statement.

    :ivar gtid: of MySQL, as it writes it; "" where there is none, or one that is not read here (MySQL's with a tag)
    :ivar alone: MariaDB says that it is one statement, with no COMMIT after it
    :ivar xid: of an application's transaction, which it prepares, or ends where `ends` says so; MariaDB's InnoDB keeps no position of these
    """

    file: str
    position: int
    gtid: str = ""
    transactional: bool = False
    alone: bool = False
    of_mariadb: bool = False
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


def logs(directory: str, basename: str) -> Dict[str, int]:
    """Return name -> bytes of the binary logs in a directory, the oldest first; {} where there is no such directory.

    :param basename: their name without the number
    """
    pattern = re.compile(re.escape(basename) + r"\.\d+")
    try:
        found = [name for name in os.listdir(directory) if pattern.fullmatch(name)]
    except OSError:
        return {}
    return {name: os.path.getsize(os.path.join(directory, name)) for name in sorted(found, key=number)}


def number(name: str) -> int:
    """Return the number of a binary log."""
    digits = name.rpartition(".")[2]
    return int(digits) if digits.isdigit() else 0


def read(directory: str, basename: str, since: Tuple[str, int], until: Tuple[str, int]) -> Between:
    """Return what lies from one ``(file, position)`` to another.

    :raises Unreadable: a log is missing, encrypted or torn
    """
    found = Between()
    files = [name for name in logs(directory, basename) if number(since[0]) <= number(name) <= number(until[0])]
    if not files or (files[0], files[-1]) != (since[0], until[0]):
        raise Unreadable("the binary logs from %s to %s are not all in %s" % (since[0], until[0], directory))
    for name in files:
        with _opened(os.path.join(directory, name)) as file:
            group: Optional[Group] = None
            for event in _events(file, name, since[1] if name == since[0] else len(MAGIC), until[1] if name == until[0] else None):
                found.events += 1
                begun = _group(name, event)
                if begun or (event.kind in _TRANSACTION_ENDS and group is None):  # before MySQL 5.7, nothing marks where one begins
                    group = begun or Group(name, event.position)
                    found.groups.append(group)
                if event.kind in _TRANSACTION_ENDS and group:
                    group.transactional, group = True, None
    return found


def has(directory: str, place: Tuple[str, int]) -> bool:
    """Tell whether a ``(file, position)`` is where an event of a binary log begins, or the last one ends.

    :raises Unreadable: the log is encrypted, or is none
    """
    with _opened(os.path.join(directory, place[0])) as file:
        try:
            for _event in _events(file, place[0], len(MAGIC), place[1]):
                pass
            return place[1] >= len(MAGIC)
        except Unreadable:
            return False


def complete(path: str) -> int:
    """Return the position up to which a binary log holds whole transactions: one that was being written does not count.

    :raises Unreadable: it is encrypted, or is none
    """
    whole = len(MAGIC)
    group: Optional[Group] = None
    statements = 0
    with _opened(path) as file:
        try:
            for event in _events(file, path, whole, None):
                begun = _group(path, event)
                if begun:
                    group, statements = begun, 0
                elif event.kind in _TRANSACTION_ENDS:
                    group = None
                elif event.kind in QUERIES and group:
                    # MySQL's transactions begin with BEGIN, and what does not is a statement alone; MariaDB says which it is
                    alone = group.alone if group.of_mariadb else statements == 0 and b"BEGIN" not in event.tail
                    statements += 1
                    if alone or b"COMMIT" in event.tail or b"ROLLBACK" in event.tail:
                        group = None
                if group is None:
                    whole = event.end
        except Unreadable:
            pass  # torn: what is before it counts
    return whole


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    with open(path, "rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise Unreadable("the binary log %s is encrypted, or is none" % path)
        # the second event says so; those after it have their length in clear, and else nothing
        if any(event.kind == MARIA_START_ENCRYPTION for event in islice(_events(file, path, len(MAGIC), None), 2)):
            raise Unreadable("the binary log %s is encrypted" % path)
        yield file


def _group(name: str, event: _Event) -> Optional[Group]:
    """Return the Group that an event begins, None where it begins none."""
    if event.kind == MARIA_GTID:
        flags = gtid_flags(event.head)
        xid = xa.parse(gtid_xid(event.head)) if flags & (XA_PREPARED | XA_COMPLETED) else None
        transactional = bool(flags & TRANSACTIONAL) and not flags & DDL
        return Group(name, event.position, "", transactional, bool(flags & STANDALONE), True, xid, bool(flags & XA_COMPLETED))
    if event.kind in BEGINS:
        return Group(name, event.position, str(gtid_of(event.kind, 0, event.head) or ""))
    return None


def _events(file: BinaryIO, name: str, start: int, end: Optional[int]) -> Iterator[_Event]:
    """Return the events from one position to another, or to the end.

    :raises Unreadable: there is no whole event at some position
    """
    size = os.fstat(file.fileno()).st_size
    position = start
    while position < (size if end is None else end):
        file.seek(position)
        header = file.read(HEADER.size)
        length = HEADER.unpack(header)[3] if len(header) == HEADER.size else 0
        after = position + length
        if length < HEADER.size or after > (size if end is None else end):
            raise Unreadable("the binary log %s has no whole event at %d" % (name, position))
        body = length - HEADER.size
        head = file.read(min(body, _ENDS))
        file.seek(max(after - _ENDS, position + HEADER.size))
        yield _Event(position, after, header[4], head, file.read(min(body, _ENDS)))
        position = after
