# SPDX-License-Identifier: GPL-3.0-or-later
"""What an archive holds: lines of logs without a gap, each from one server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence, Tuple

from ..binlog import gtid
from ..binlog.place import numbered, sequence

CUT = "cut"  # how a log ends of which only the beginning could be had; elsewhere as Facts.end has it, or `crash`

CRASH = "crash"


@dataclass(frozen=True)
class Log:
    """An archived log.

    :ivar size: bytes; of one that was cut, up to its last whole transaction
    :ivar end: ``rotate``, ``stop``, ``crash`` (its server's), ``cut`` (what came after is lost)
    :ivar before: GTIDs before it; after: behind it; None where the server does not say
    :ivar first_time: earliest commit in it, last_time: latest (seconds since the epoch); None without any
    :ivar failed: as Facts.failed; None where that was not looked at
    """

    line: int
    file: str
    size: int
    sha256: str
    end: str
    created: int
    before: Optional[str]
    after: Optional[str]
    first_time: Optional[float]
    last_time: Optional[float]
    transactions: int
    failed: Optional[Sequence[Sequence[int]]] = None


@dataclass(frozen=True)
class Line:
    """Logs that follow one another without a gap.

    :ivar reason: why it began: ``first``, ``gap``, ``reset``, ``other server``, ``restored``
    :ivar text: the same as a sentence
    :ivar time: when that was noticed, ISO 8601, UTC
    :ivar start: the log that it begins with
    :ivar server: ``{flavour, version, uuid, basename}``
    :ivar earlier_until: up to which moment the line before it was known to hold everything; None: no later than its last commit
    """

    number: int
    reason: str
    text: str
    time: str
    start: str
    server: Dict[str, Any]
    earlier_until: Optional[float] = None
    logs: Tuple[Log, ...] = ()

    @property
    def flavour(self) -> str:
        return str(self.server["flavour"])

    @property
    def directory(self) -> str:
        return "%04d" % self.number

    @property
    def next_number(self) -> int:
        """The number of the log that comes next."""
        return sequence(self.logs[-1].file) + 1 if self.logs else sequence(self.start)


@dataclass(frozen=True)
class Piece:
    """A log of a line as it can be read now, archived or still being written.

    :ivar usable: bytes up to its last whole transaction
    :ivar failed: as Facts.failed; None where that was not looked at
    """

    file: str
    path: str
    usable: int
    created: int
    before: Optional[str]
    after: Optional[str]
    first_time: Optional[float]
    last_time: Optional[float]
    archived: bool
    failed: Optional[Sequence[Sequence[int]]] = None


def next_name(line: Line) -> str:
    """Return the name of the log that comes next in a line."""
    return numbered(line.start, line.next_number)


def text_of(state: Optional[gtid.State]) -> Optional[str]:
    return None if state is None else str(state)
