# SPDX-License-Identifier: GPL-3.0-or-later
"""Where transactions of a binary log begin and end: one rule for all who read one."""

from __future__ import annotations

import struct
from typing import Optional, Tuple

from .format import (
    BEGINS,
    EXECUTE_LOAD_QUERY,
    INCIDENT,
    MARIA_GTID,
    MYSQL_ANONYMOUS,
    MYSQL_GTID,
    MYSQL_PAYLOAD,
    QUERIES,
    QUERY,
    STANDALONE,
    XA_PREPARE,
    XID,
    gtid_flags,
    gtid_of,
)
from .gtid import Gtid

#: Events that only a transaction of a transactional engine ends with.
COMMITS = (XID, XA_PREPARE, MYSQL_PAYLOAD)

_LAST = (b"COMMIT", b"ROLLBACK")
_ORIGINAL_TIME_FOLLOWS = 1 << 55


class Open:
    """The transaction that is open while a log is read.

    :ivar start: where its first event begins
    :ivar time: when it was committed, as far as its first event tells (seconds since the epoch)
    :ivar sized: its first event says how long it is, and when it was committed: MySQL's from 8.0.2 on
    """

    def __init__(self, at: int, time: int, kind: int, server: int, body: bytes) -> None:
        self.start = at
        self.gtid: Optional[Gtid] = gtid_of(kind, server, body)
        self.time, self._length = _commit_time(body, float(time)) if kind in (MYSQL_GTID, MYSQL_ANONYMOUS) else (float(time), 0)
        self._mariadb = kind == MARIA_GTID
        self._standalone = self._mariadb and bool(gtid_flags(body) & STANDALONE)
        self._first_query = True

    @property
    def sized(self) -> bool:
        return bool(self._length)

    def ends_with(self, end: int, kind: int, body: bytes) -> bool:
        """Tell whether an event is the last one of the transaction; each of its events is asked about once, in order.

        :param end: where the event ends
        :param body: its beginning, without the checksum
        """
        if self._length:
            return end >= self.start + self._length
        if kind in (*COMMITS, INCIDENT):
            return True
        if kind == EXECUTE_LOAD_QUERY:
            return self._standalone
        if kind not in QUERIES:
            return False
        text = _query(body) if kind == QUERY else b""
        first, self._first_query = self._first_query, False
        if self._mariadb:
            return self._standalone or text in _LAST or text.startswith((b"XA COMMIT", b"XA ROLLBAC"))
        # MySQL's transactions begin with BEGIN, and what does not is a statement alone
        return text in _LAST or (first and not text.startswith((b"BEGIN", b"XA START")))


def begins(kind: int) -> bool:
    """Tell whether an event is the first one of a transaction. Before MySQL 5.7 nothing marks it."""
    return kind in BEGINS


def _query(body: bytes) -> bytes:
    """Return the beginning of a query event's statement."""
    _thread, _seconds, schema, _error, variables = struct.unpack_from("<IIBHH", body)
    start = 13 + variables + schema + 1
    return bytes(body[start : start + 10])


def _commit_time(body: bytes, header_time: float) -> Tuple[float, int]:
    """Return when a transaction of MySQL was committed on its server, and its length in bytes; from 8.0.1 and 8.0.2 on its
    GTID event says both."""
    at = 1 + 16 + 8 + 1 + 16
    if len(body) < at + 7:
        return header_time, 0
    micros = int.from_bytes(body[at : at + 7], "little")
    at += 7
    if micros & _ORIGINAL_TIME_FOLLOWS:
        micros &= ~_ORIGINAL_TIME_FOLLOWS
        at += 7
    return micros / 1e6, _packed(body, at)


def _packed(body: bytes, at: int) -> int:
    """Return a length-encoded integer; 0 where there is none."""
    if at >= len(body):
        return 0
    first = body[at]
    if first < 251:
        return first
    width = {252: 2, 253: 3, 254: 8}.get(first, 0)
    return int.from_bytes(body[at + 1 : at + 1 + width], "little")
