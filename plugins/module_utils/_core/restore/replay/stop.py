# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in the logs a recovery stops, and which transactions nobody can place before or after it."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, List, Optional, Sequence, Tuple

from ...archive.line import Piece
from ...binlog import events, gtid
from ...binlog.events import Facts, Transaction
from ...binlog.gtid import Gtid
from ...host.errors import StillpointError
from .moment import Moment

_ANSWER = 1.0  # seconds in which a server says at which position it is


def holds(piece: Piece, flavour: str, one: Gtid) -> bool:
    if piece.before is not None and piece.after is not None:
        return one in gtid.state(piece.after, flavour) and one not in gtid.state(piece.before, flavour)
    seen: List[bool] = []

    def visit(each: Transaction) -> bool:
        if each.gtid == one:
            seen.append(True)
        return not seen

    read_piece(piece, visit)
    return bool(seen)


def read_piece(piece: Piece, visit: Callable[[Transaction], bool]) -> Facts:
    """Return the Facts of a log, as `events.read` does.

    :raises StillpointError: it is not right any more as far as it was
    """
    facts = events.read(piece.path, visit)
    if facts.fault and facts.complete < piece.usable:
        raise StillpointError("the archived log %s is damaged: %s; put it back, or choose a moment before it" % (piece.path, facts.fault))
    return facts


class Clock:
    """When the transactions of a log were committed, as far as that is known.

    :param marks: ``(position, time)``, in order: what is before the position had been committed by then, and what is behind it had not
    """

    def __init__(self, marks: Sequence[Tuple[int, float]]) -> None:
        self._marks = marks
        self._next = 0  # the first mark that is not before the transaction in question
        self._latest = 0.0

    def reaches(self, moment: float) -> bool:
        return bool(self._marks) and self._marks[-1][1] >= moment

    def later_from(self, moment: float) -> Optional[int]:
        """Return a position behind which everything was certainly committed at a moment or later."""
        return next((position for position, time in self._marks if time >= moment), None)

    def time(self, each: Transaction) -> float:
        """Return the latest time that is known for a transaction and those before it; to be asked in the order of the log."""
        while self._next < len(self._marks) and self._marks[self._next][0] <= each.start:
            self._latest = max(self._latest, self._marks[self._next][1])
            self._next += 1
        limits = self._marks[self._next : self._next + 2]  # a mark may lie within the transaction
        limit = next((time for at, time in limits if at >= each.end), None)
        if limit is None or each.time <= limit + _ANSWER:
            self._latest = max(self._latest, each.time)
        return self._latest


def may_stop_in(piece: Piece, wanted: Moment, flavour: str, clock: Clock) -> bool:
    """Tell whether the place to stop may be in a log; cheaply."""
    if wanted.time is not None:
        return not piece.archived or (piece.last_time is not None and piece.last_time >= wanted.time) or clock.reaches(wanted.time)
    if wanted.position is not None:
        return piece.file == wanted.position.file
    return wanted.gtid is not None and holds(piece, flavour, wanted.gtid)


def stop_in(piece: Piece, wanted: Moment, start: int, clock: Clock) -> Tuple[int, Optional[str], Optional[Transaction], bool]:
    """Return where to stop in a log, the GTIDs there, the first transaction that is left out, and whether that is the place:
    a time that the log ends before may be in the next one.

    :param start: transactions before it are part of the generation
    """
    seen: List[Transaction] = []
    left_out: List[Transaction] = []

    def visit(each: Transaction) -> bool:
        if each.end > piece.usable:
            return False
        stop = False
        if wanted.time is not None:
            each = replace(each, time=clock.time(each))
        if each.start >= start:
            if wanted.time is not None:
                stop = each.time >= wanted.time
            elif wanted.position is not None:
                stop = each.end > wanted.position.position
            else:
                stop = bool(seen) or (wanted.before and each.gtid == wanted.gtid)
        if stop:
            left_out.append(each)
            return False
        if wanted.gtid is not None and each.gtid == wanted.gtid:
            seen.append(each)
        return True

    facts = read_piece(piece, visit)
    stop = left_out[0].start if left_out else min(facts.complete, piece.usable)
    there = bool(left_out) or bool(seen) or wanted.position is not None
    return max(stop, start), None if facts.after is None else str(facts.after), left_out[0] if left_out else None, there


def left_in_doubt(piece: Piece, moment: float, stop: Transaction, clock: Clock) -> Tuple[int, Optional[Transaction]]:
    """Return how many transactions of a log behind the stop say that they are from before the moment, without the archive knowing that
    they are not, and the first of them."""
    later = clock.later_from(moment)
    found: List[Transaction] = []
    number = 0

    def visit(each: Transaction) -> bool:
        nonlocal number
        if later is not None and each.start >= later:
            return False
        if each.start > stop.start and each.time < moment:
            number += 1
            found.extend([each] if not found else [])
        return True

    read_piece(piece, visit)
    return number, found[0] if found else None
