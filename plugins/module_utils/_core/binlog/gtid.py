# SPDX-License-Identifier: GPL-3.0-or-later
"""Sets of GTIDs as binary logs carry them: MariaDB's ``domain-server-sequence`` and MySQL's ``uuid:intervals``.

A set answers three questions: what does it become with one more, does another one follow on it without a gap, and how does
the server write it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Tuple, Union

from ..host.errors import UsageError

_MARIADB = re.compile(r"(\d+)-(\d+)-(\d+)")
_MYSQL = re.compile(r"([0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}):([1-9]\d*)")

MariaKey = Tuple[int, int]  # domain, server


@dataclass(frozen=True)
class MariaGtid:
    """One transaction of MariaDB."""

    domain: int
    server: int
    sequence: int

    def __str__(self) -> str:
        return "%d-%d-%d" % (self.domain, self.server, self.sequence)


@dataclass(frozen=True)
class MysqlGtid:
    """One transaction of MySQL."""

    uuid: str
    number: int

    def __str__(self) -> str:
        return "%s:%d" % (self.uuid, self.number)


Gtid = Union[MariaGtid, MysqlGtid]


def parse(text: str) -> Gtid:
    """Return the GTID of one transaction.

    :raises UsageError: it is none
    """
    match = _MARIADB.fullmatch(text.strip())
    if match:
        return MariaGtid(*(int(part) for part in match.groups()))
    match = _MYSQL.fullmatch(text.strip())
    if match:
        return MysqlGtid(match.group(1).lower(), int(match.group(2)))
    raise UsageError(
        "%r is not the GTID of one transaction: it looks like 0-1-1234 (MariaDB) or 3e11fa47-71ca-11e1-9e33-c80aa9429562:23 (MySQL)" % text
    )


@dataclass
class MariaState:
    """The last transaction of each domain and server (``gtid_binlog_state``).

    :ivar last: domain -> the server whose transaction was the last one there
    """

    numbers: Dict[MariaKey, int] = field(default_factory=dict)
    last: Dict[int, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "MariaState":
        """Return the state that a comma-separated list of GTIDs describes, the last of each domain last."""
        state = cls()
        for part in text.replace("\n", "").split(","):
            if part.strip():
                state.add(parse(part))
        return state

    def add(self, gtid: Gtid) -> None:
        if isinstance(gtid, MariaGtid):
            self.numbers[gtid.domain, gtid.server] = gtid.sequence
            self.last[gtid.domain] = gtid.server

    def merge(self, other: "MariaState") -> None:
        """Take in what another state has that is later."""
        for key, number in other.numbers.items():
            self.numbers[key] = max(number, self.numbers.get(key, 0))
        for domain in {domain for domain, _server in self.numbers}:
            self.last[domain] = max((number, server) for (one, server), number in self.numbers.items() if one == domain)[1]

    def copy(self) -> "MariaState":
        return MariaState(dict(self.numbers), dict(self.last))

    def __contains__(self, gtid: Gtid) -> bool:
        return isinstance(gtid, MariaGtid) and self.numbers.get((gtid.domain, gtid.server), 0) >= gtid.sequence

    def position(self) -> str:
        """Return the last transaction of each domain, as ``gtid_binlog_pos`` has it."""
        return ",".join(
            str(MariaGtid(domain, server, self.numbers[domain, server])) for domain, server in sorted(self.last.items())
        )

    def __str__(self) -> str:
        """Return all of it, the last transaction of each domain at the domain's end."""
        keys = sorted(self.numbers, key=lambda key: (key[0], self.last.get(key[0]) == key[1], key[1]))
        return ",".join(str(MariaGtid(*key, self.numbers[key])) for key in keys)

    def continues(self, earlier: "MariaState") -> bool:
        """Tell whether a log that starts with this state may follow one that ended with the other. A domain that is gone was
        taken out of the state by its administrator (FLUSH BINARY LOGS DELETE_DOMAIN_ID), which loses no transaction."""
        if earlier.numbers and not self.numbers:
            return False
        return all(earlier.numbers.get(key) == number for key, number in self.numbers.items())


def later(one: str, other: str) -> str:
    """Return of two positions of MariaDB the later one in each domain."""
    found: Dict[int, MariaGtid] = {}
    for part in [*one.split(","), *other.split(",")]:
        each = parse(part) if part.strip() else None
        if isinstance(each, MariaGtid) and (each.domain not in found or each.sequence >= found[each.domain].sequence):
            found[each.domain] = each
    return ",".join(str(found[domain]) for domain in sorted(found))


@dataclass
class MysqlState:
    """A set of transactions: uuid -> intervals ``[first, last]``, sorted."""

    intervals: Dict[str, List[Tuple[int, int]]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "MysqlState":
        """Return the set that text like ``uuid:1-5:7,uuid:1`` describes; tags are not known here."""
        state = cls()
        for part in re.sub(r"\s", "", text).split(","):
            uuid, *intervals = part.split(":")
            for interval in intervals:
                first, _dash, last = interval.partition("-")
                if not first.isdigit():
                    continue
                state.add_interval(uuid, int(first), int(last or first))
        return state

    def add_interval(self, uuid: str, first: int, last: int) -> None:
        kept: List[Tuple[int, int]] = []
        for low, high in sorted([*self.intervals.get(uuid.lower(), []), (first, last)]):
            if kept and low <= kept[-1][1] + 1:
                kept[-1] = (kept[-1][0], max(high, kept[-1][1]))
            else:
                kept.append((low, high))
        self.intervals[uuid.lower()] = kept

    def add(self, gtid: Gtid) -> None:
        if isinstance(gtid, MysqlGtid):
            known = self.intervals.get(gtid.uuid)
            if known and known[-1][1] + 1 == gtid.number:  # nearly always
                known[-1] = (known[-1][0], gtid.number)
            else:
                self.add_interval(gtid.uuid, gtid.number, gtid.number)

    def copy(self) -> "MysqlState":
        return MysqlState({uuid: list(intervals) for uuid, intervals in self.intervals.items()})

    def __contains__(self, gtid: Gtid) -> bool:
        return isinstance(gtid, MysqlGtid) and any(low <= gtid.number <= high for low, high in self.intervals.get(gtid.uuid, ()))

    def position(self) -> str:
        return str(self)

    def __str__(self) -> str:
        """Return it as ``gtid_executed`` has it, on one line."""
        return ",".join(
            "%s:%s" % (uuid, ":".join("%d-%d" % each if each[0] != each[1] else str(each[0]) for each in intervals))
            for uuid, intervals in sorted(self.intervals.items())
            if intervals
        )

    def continues(self, earlier: "MysqlState") -> bool:
        """Tell whether a log that starts with this set may follow one that ended with the other."""
        return self.intervals == earlier.intervals


State = Union[MariaState, MysqlState]


def state(text: str, flavour: str) -> State:
    """Return the State that a server of this flavour has written as text."""
    return MariaState.parse(text) if flavour == "mariadb" else MysqlState.parse(text)


def continues(later: Optional[str], earlier: Optional[str], flavour: str) -> bool:
    """Tell whether a log that starts with one state may follow a log that ended with another; where one is not known, it may."""
    if later is None or earlier is None:
        return True
    if flavour == "mariadb":
        return MariaState.parse(later).continues(MariaState.parse(earlier))
    return MysqlState.parse(later).continues(MysqlState.parse(earlier))
