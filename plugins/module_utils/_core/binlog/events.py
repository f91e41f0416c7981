# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary log files, read event by event: whole or torn, right or damaged, and where their transactions begin and end.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO, Callable, List, Optional, Tuple

from ..host.errors import StillpointError
from .format import (
    EXECUTE_LOAD_QUERY,
    FORMAT,
    HEADER,
    HEADER_SIZE,
    IGNORABLE,
    IN_USE,
    MAGIC,
    MAGIC_ENCRYPTED,
    MARIA_GTID_LIST,
    MARIA_START_ENCRYPTION,
    MYSQL_GTID_TAGGED,
    MYSQL_PREVIOUS_GTIDS,
    QUERIES,
    ROTATE,
    STOP,
    has_checksums,
    uuid_text,
)
from .gtid import Gtid, MariaGtid, MariaState, MysqlState, State
from .transactions import Open, begins

_STATEMENTS = (*QUERIES, EXECUTE_LOAD_QUERY)

_HEAD = 64 * 1024  # so much of an event is looked into; the rest is only summed up
_PIECE = 1024 * 1024

_ENCRYPTED = "the binary log %s is encrypted by its server: it can only be archived as a stream (method: stream)"


@dataclass(frozen=True)
class Transaction:
    """A transaction, or a statement that is one by itself.

    :ivar start: where its first event begins; end: where its last one ends
    :ivar time: when it was committed, as far as the log tells (seconds since the epoch): MySQL says it to the microsecond; MariaDB
        notes by the session's own clock (SET TIMESTAMP) when its last statement began, and of one that is logged as text also when it ended
    """

    start: int
    end: int
    gtid: Optional[Gtid]
    time: float


@dataclass
class Facts:
    """What reading a log, or a part of it, has shown.

    :ivar size: bytes of whole, right events, the magic included
    :ivar complete: up to where whole transactions reach
    :ivar end: ``rotate``, ``stop``, or "" for one that is being written, or was when its server or this archive was stopped
    :ivar next_name: the log that a rotation names
    :ivar created: when the log was begun, seconds since the epoch
    :ivar fault: what is wrong behind `size`; "" where nothing is
    :ivar torn: what is wrong is only that something is missing at the end
    :ivar last_time: the latest that a transaction says, at most the time at which the file was written last
    :ivar failed: ``(end, error)`` of each statement that failed half way, and was logged because it had changed something nevertheless
    :ivar before: the GTIDs before the first event; after: behind the last whole transaction; None where the log does not say
    """

    size: int = 0
    complete: int = 0
    end: str = ""
    next_name: str = ""
    created: int = 0
    version: str = ""
    checksums: bool = False
    fault: str = ""
    torn: bool = False
    before: Optional[State] = None
    after: Optional[State] = None
    first_time: Optional[float] = None
    last_time: Optional[float] = None
    transactions: int = 0
    failed: List[Tuple[int, int]] = field(default_factory=list)
    events: int = 0
    sha256: str = ""
    head: bytes = field(default=b"", repr=False)

    @property
    def ended(self) -> bool:
        """Whether the server closed it: nothing comes after its last event."""
        return bool(self.end) and not self.fault


class NoLog(StillpointError):
    """A file is no binary log at all."""


class _Unreadable(Exception):
    """An event that is not whole, or not right.

    :ivar torn: the file ends before the event does
    """

    def __init__(self, text: str, torn: bool) -> None:
        super().__init__(text)
        self.torn = torn


def as_sent(beginning: bytes) -> bytes:
    """Return the beginning of a log without what its description of itself may have otherwise in the server's own file and as it is sent
    to a client: where it ends, its flags, the time at which the server was started, and with them its checksum."""
    if len(beginning) < 4 + HEADER_SIZE:
        return beginning[:17]
    end = 4 + HEADER.unpack_from(beginning, 4)[3]
    blank = bytearray(beginning)
    for first, last in ((17, 23), (4 + HEADER_SIZE + 52, 4 + HEADER_SIZE + 56), (end - 4, end)):
        blank[first:last] = bytes(len(blank[first:last]))
    return bytes(blank)


def in_use(path: str) -> bool:
    """Tell whether a server has a log open, or had when it crashed.

    :raises OSError: it can't be read
    """
    with open(path, "rb") as file:
        beginning = file.read(4 + HEADER_SIZE)
    return len(beginning) < 4 + HEADER_SIZE or bool(HEADER.unpack_from(beginning, 4)[5] & IN_USE)


def clear_bytes(beginning: bytes) -> int:
    """Return how much of the beginning of a log, as it is in the file, is not encrypted: MariaDB's describe themselves in clear."""
    if beginning[:4] != MAGIC or len(beginning) < 4 + HEADER_SIZE:
        return 0 if beginning[:4] == MAGIC_ENCRYPTED else len(beginning)
    second = 4 + HEADER.unpack_from(beginning, 4)[3]
    if len(beginning) < second + HEADER_SIZE:
        return len(beginning)
    _time, kind, _server, _size, _end, flags = HEADER.unpack_from(beginning, second)
    return second if kind == MARIA_START_ENCRYPTION and not flags & IGNORABLE else len(beginning)


def read(
    path: str,
    visit: Callable[[Transaction], bool] = lambda _each: True,
    *,
    look: Callable[[int, int, bytes], None] = lambda _kind, _end, _body: None,
    digest: bool = False,
    beginning: bool = False,
) -> Facts:
    """Return the Facts of a log.

    :param visit: is called with each transaction that is whole; False ends the reading in front of that transaction, and
        the Facts are those up to there
    :param look: is called with each event that is right: its type, where it ends, and the beginning of its body
    :param digest: compute the checksum of the whole file too
    :param beginning: read only what comes before the first transaction
    :raises StillpointError: it can't be read, or is no binary log at all (NoLog)
    """
    try:
        with open(path, "rb") as file:
            return _Reader(path, file, visit, look, digest, beginning).read()
    except OSError as error:
        raise StillpointError("the binary log %s can't be read: %s" % (path, error.strerror)) from error


class _Reader:
    def __init__(
        self,
        path: str,
        file: BinaryIO,
        visit: Callable[[Transaction], bool],
        look: Callable[[int, int, bytes], None],
        digest: bool,
        beginning: bool,
    ) -> None:
        self._path = path
        self._file = file
        self._visit = visit
        self._look = look
        self._digest = hashlib.sha256() if digest else None
        self._beginning = beginning
        self._facts = Facts()
        self._mariadb = False
        self._begun: Optional[Open] = None

    def read(self) -> Facts:
        facts = self._facts
        magic = self._take(4)
        if magic == MAGIC_ENCRYPTED:
            raise StillpointError(_ENCRYPTED % self._path)
        if len(magic) < 4 or (not any(magic) and self._only_zeros()):
            facts.fault, facts.torn = "it has no beginning", True
            return facts
        if magic != MAGIC:
            raise NoLog("%s is not a binary log" % self._path)
        facts.size = facts.complete = 4
        try:
            while self._event():
                pass
        except _Unreadable as error:
            facts.fault, facts.torn = str(error), error.torn
        if facts.last_time is not None:  # a session may be ahead of the time, and a file is not
            facts.last_time = min(facts.last_time, os.fstat(self._file.fileno()).st_mtime)
        if self._digest is not None:
            while self._take(_PIECE):
                pass
            facts.sha256 = self._digest.hexdigest()
        return facts

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        if self._digest is not None:
            self._digest.update(data)
        return data

    def _only_zeros(self) -> bool:
        """Tell whether nothing follows: a file system that lost power may give a file its new length without the contents."""
        while True:
            piece = self._take(_PIECE)
            if not piece:
                return True
            if any(piece):
                return False

    def _event(self) -> bool:
        """Read one event; False: there is none, or `visit` has seen enough."""
        facts = self._facts
        at = facts.size
        header = self._take(HEADER_SIZE)
        if not header:
            return False
        if len(header) < HEADER_SIZE:
            raise _Unreadable("it ends in the middle of an event's header at %d" % at, True)
        time, kind, server, size, _end, flags = HEADER.unpack(header)
        if size < HEADER_SIZE:
            raise _Unreadable("the event at %d says that it has %d bytes" % (at, size), not any(header) and self._only_zeros())
        if facts.end:
            raise _Unreadable("there is an event at %d, behind the last one" % at, False)
        if self._beginning and begins(kind):
            return False
        body = self._body(at, header, kind, size - HEADER_SIZE, flags)
        if not facts.events and kind != FORMAT:
            raise _Unreadable("its first event is of type %d and does not describe the format" % kind, False)
        if kind == MARIA_START_ENCRYPTION and not flags & IGNORABLE:  # the server flags it where it sends what follows in clear
            raise StillpointError(_ENCRYPTED % self._path)
        self._look(kind, at + size, body)
        more = self._understand(at, at + size, time, kind, server, body)
        if more:
            facts.size = at + size
            facts.events += 1
            if kind in _STATEMENTS and _error(body):
                facts.failed.append((facts.size, _error(body)))
            if self._begun is None:
                facts.complete = facts.size
        return more

    def _body(self, at: int, header: bytes, kind: int, size: int, flags: int) -> bytes:
        """Return the beginning of an event's body without its checksum, which has been compared."""
        head = body = self._take(min(size, _HEAD))
        if kind == FORMAT:
            self._read_format(body)
            if flags & IN_USE:  # the server computes the sum without that flag
                header = header[:17] + struct.pack("<H", flags & ~IN_USE)
        summed = self._facts.checksums
        if summed and size < 4:
            raise _Unreadable("the event at %d is too small for its checksum" % at, False)
        left = size - len(body)
        crc = zlib.crc32(header)
        tail = b""
        while True:
            pending = tail + body
            if left <= 0 or not body:
                break
            crc = zlib.crc32(pending[:-4], crc)
            tail = pending[-4:]
            body = self._take(min(left, _PIECE))
            left -= len(body)
        if left > 0:
            raise _Unreadable("it ends in the middle of the event at %d" % at, True)
        if summed:
            crc = zlib.crc32(pending[:-4], crc)
            if crc != struct.unpack("<I", pending[-4:])[0]:
                raise _Unreadable("the checksum of the event at %d is wrong" % at, False)
            if len(head) == size:
                head = head[:-4]
        return head

    def _read_format(self, body: bytes) -> None:
        if len(body) < 57:
            raise _Unreadable("its first event is not whole", True)
        self._facts.version = body[2:52].rstrip(b"\0").decode("ascii", "replace")
        self._mariadb = "mariadb" in self._facts.version.lower()
        self._facts.checksums = has_checksums(body)
        self._facts.head = body

    def _understand(self, at: int, end: int, time: int, kind: int, server: int, body: bytes) -> bool:
        """Take in what an event says; False: it belongs to a transaction that `visit` did not want."""
        facts = self._facts
        if kind == FORMAT:
            facts.created = facts.created or time
        elif kind == MARIA_GTID_LIST and facts.before is None:
            facts.before = _gtid_list(body)
            facts.after = facts.before.copy()
        elif kind == MYSQL_PREVIOUS_GTIDS and facts.before is None:
            facts.before = _previous_gtids(body)
            facts.after = facts.before.copy() if facts.before is not None else None
        elif begins(kind):
            if self._begun is not None:
                raise _Unreadable("a transaction begins at %d within another one" % at, False)
            self._begun = Open(at, time, kind, server, body)
            if kind == MYSQL_GTID_TAGGED:
                facts.after = None  # sets have no room for a tag here
        elif kind == ROTATE:
            facts.end, facts.next_name = "rotate", body[8:].decode("utf-8", "replace").rstrip("\0")
        elif kind == STOP:
            facts.end = "stop"
        if self._begun is not None and self._begun.ends_with(end, kind, body):
            return self._finish(end, time, kind, body)
        return True

    def _finish(self, end: int, time: int, kind: int, body: bytes) -> bool:
        if self._begun is None:
            return True
        start, gtid, when = self._begun.start, self._begun.gtid, self._begun.time
        if kind in QUERIES and not self._begun.sized:
            when = float(time + _duration(body))
        elif not self._begun.sized:
            when = max(when, float(time))
        if not self._visit(Transaction(start, end, gtid, when)):
            self._facts.size = self._facts.complete = start
            return False
        facts = self._facts
        self._begun = None
        facts.transactions += 1
        facts.first_time = when if facts.first_time is None else min(when, facts.first_time)
        facts.last_time = when if facts.last_time is None else max(when, facts.last_time)
        if gtid is not None and facts.after is not None:
            facts.after.add(gtid)
        return True


def _duration(body: bytes) -> int:
    """Return the seconds from the session's own clock at the beginning of a statement that a query event holds to the server's at its end:
    negative where the session is ahead of the time (SET TIMESTAMP)."""
    return int(struct.unpack_from("<i", body, 4)[0])


def _error(body: bytes) -> int:
    """Return the number of the error that a statement ended with on the server; 0: it ended well."""
    return int(struct.unpack_from("<H", body, 9)[0])


def _gtid_list(body: bytes) -> MariaState:
    state = MariaState()
    number = struct.unpack_from("<I", body)[0] & 0x0FFFFFFF  # the upper four bits are flags
    for index in range(number):
        domain, server, sequence = struct.unpack_from("<IIQ", body, 4 + 16 * index)
        state.add(MariaGtid(domain, server, sequence))
    return state


def _previous_gtids(body: bytes) -> Optional[MysqlState]:
    """Return the set; None where it has tags, which have another form."""
    state = MysqlState()
    (number,) = struct.unpack_from("<Q", body)
    if number >> 48:
        return None
    at = 8
    for _source in range(number):
        uuid = uuid_text(body[at : at + 16])
        (intervals,) = struct.unpack_from("<Q", body, at + 16)
        at += 24
        for _interval in range(intervals):
            first, behind = struct.unpack_from("<qq", body, at)
            state.add_interval(uuid, first, behind - 1)
            at += 16
    return state
