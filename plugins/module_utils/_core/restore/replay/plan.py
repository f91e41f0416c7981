# SPDX-License-Identifier: GPL-3.0-or-later
"""Which generation and which logs lead to a moment, and where exactly to stop.

The rule for a time: **everything that was committed before that second begins**, and nothing after it. ``--until 14:03:07`` undoes
a mistake that was made at 14:03:07. The order of the log is that of the commits, so what is replayed ends in front of the first
transaction that is known to have been committed at that moment or later; a transaction is never cut in half.

What a transaction says of its time is believed only as far as it can be true: MariaDB notes what the session's clock showed when its last
statement began, and a session may set its clock (SET TIMESTAMP). The archive has a better clock: at which time the server was at which
position. Who says to be later than that allows is not believed, and is as late as what stands before it; what stands behind
a position is later than the server was seen there, whatever it says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ...archive import timeline
from ...archive.archive import Archive
from ...archive.line import Line, Piece
from ...archive.timeline import Base, Stretch, Timeline
from ...binlog import events, gtid
from ...binlog.events import Transaction
from ...host.errors import StillpointError, UsageError
from ...host.text import human as size
from ...repository import recorded
from ...repository.generation import BAD, Generation
from .moment import Moment
from .stop import Clock, holds, left_in_doubt, may_stop_in, read_piece, stop_in

# Errors after which a replica stops (Query_log_event::check_expected_error): ER_SERVER_SHUTDOWN, ER_NET_READ_ERROR,
# ER_NET_ERROR_ON_WRITE, ER_NEW_ABORTING_CONNECTION, ER_QUERY_INTERRUPTED; and ER_CONNECTION_KILLED, ER_STATEMENT_TIMEOUT, of MariaDB.
_ABORTED = (1053, 1158, 1160, 1184, 1317, 1927, 1969)


@dataclass(frozen=True)
class Failed:
    """A statement that failed half way on the server, and what it had done by then stayed.

    :ivar end: where it ends in its log
    :ivar error: its number on the server
    """

    file: str
    end: int
    error: int


@dataclass(frozen=True)
class Recovery:
    """What has to be replayed onto which generation.

    :ivar pieces: the logs, in order; none when the generation is already what is wanted
    :ivar start: in the first of them; stop: in the last of them (bytes)
    :ivar next: the first transaction that is left out; None when nothing follows in the archive
    :ivar doubtful: transactions behind that which say that they were committed before the moment, and of which it is not known that
        they were not: their number, and the first of them
    :ivar failed: statements that have to fail again as they did on the server
    :ivar gtid: GTIDs as they are at the end, as the server writes them; None when it has none
    """

    target: Moment
    generation: Generation
    line: Line
    pieces: Tuple[Piece, ...]
    start: int
    stop: int
    next: Optional[Transaction]
    gtid: Optional[str]
    origin: Dict[str, Any]
    doubtful: Tuple[int, Optional[Transaction]] = (0, None)
    failed: Tuple[Failed, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of log that are replayed."""
        if not self.pieces:
            return 0
        return max(sum(piece.usable for piece in self.pieces[:-1]) + self.stop - self.start, 0)

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {
            "asked": self.target.text,
            "until": timeline.stamp(self.target.time),
            "from": "%s:%d" % (self.origin["file"], self.origin["position"]),
            "stops_at": "%s:%d" % (self.pieces[-1].file, self.stop) if self.pieces else None,
            "leaves_out_from": {"gtid": str(self.next.gtid) if self.next.gtid else None, "time": timeline.stamp(self.next.time)} if self.next else None,
            "doubtful": self.doubtful[0],
            "gtid": self.gtid,
            "logs": [piece.file for piece in self.pieces],
            "bytes": self.bytes,
        }

    def lines(self) -> List[str]:
        """Return it for people."""
        lines = []
        if self.target.time is not None:
            when = timeline.human(self.target.time)
            lines.append("recover it to %s UTC (asked for as %s): everything committed before that second" % (when, self.target.text))
        else:
            lines.append("recover it %s %s" % ("up to, and without," if self.target.before else "up to", self.target.text))
        lines.append("  from %s, which is %s" % (self.generation.name, self.generation.state))
        if self.pieces:
            lines.append(
                "  replay %s of binary log, %s:%d to %s:%d, on a server that nobody else can reach"
                % (size(self.bytes), self.origin["file"], self.origin["position"], self.pieces[-1].file, self.stop)
            )
        if self.next:
            lines.append(
                "  the first transaction that is left out: %s, committed %s UTC" % (self.next.gtid or "at %d" % self.next.start, timeline.human(self.next.time))
            )
        else:
            lines.append("  nothing in the archive comes after that")
        if self.failed:
            lines.append(
                "  %d statements failed half way on the server and kept what they had done, as the one that ends at %s:%d did with error %d: they have to fail "
                "here in the same way, or the replay ends" % (len(self.failed), self.failed[0].file, self.failed[0].end, self.failed[0].error)
            )
        number, first = self.doubtful
        if number and first:
            lines.append(
                "  %d transactions behind it say that they are from before that moment, and are left out too: the order of the log is that of the "
                "commits, and a statement may have taken long, or a session have set its clock; the first of them: %s, which says %s UTC"
                % (number, first.gtid or "at %d" % first.start, timeline.human(first.time))
            )
        return lines


# -- how to get there


def resolve(archive: Archive, generations: Sequence[Generation], wanted: Moment, name: Optional[str] = None) -> Recovery:
    """Return the Recovery to a target, from the newest generation at or before it that is not known to be bad: what is replayed onto an
    older one is longer, and may fail where the newer one need not.

    :param generations: newest first
    :param name: of the generation to begin with, instead
    :raises StillpointError: it can't be had; the sentence says what can
    """
    found = timeline.read(archive, generations)
    if not found.stretches:
        raise StillpointError(
            "no binary logs have been archived in %s: only the backups themselves can be restored; binlog: {archive: true} in the job archives "
            "them from now on" % archive.path
        )
    if wanted.time is not None:
        stretch, base = _base_before(found, wanted.time, name)
    else:
        stretch, base = _base_for_place(found, wanted, name)
    _check_base(stretch, base)
    recovery = _up_to(archive, found, stretch, base, wanted)
    recovery = replace(recovery, failed=_failed(recovery))
    for each in recovery.failed:
        if each.error in _ABORTED:
            raise StillpointError(
                "a statement was aborted half way on the server (error %d, it ends at %s:%d), and nobody knows what it had done by then: recover up to "
                "before it, or begin with a backup that was taken after it" % (each.error, each.file, each.end)
            )
    for piece in recovery.pieces:
        if piece.archived and (not os.path.isfile(piece.path) or os.path.getsize(piece.path) != piece.usable):
            raise StillpointError("the archived log %s is missing or not as long as it was: put it back, or choose a moment before it" % piece.path)
    return recovery


def _failed(recovery: Recovery) -> Tuple[Failed, ...]:
    """Return the statements among what is replayed that failed half way on the server."""
    found = []
    for piece in recovery.pieces:
        known = piece.failed if piece.failed is not None else events.read(piece.path).failed
        first = recovery.start if piece is recovery.pieces[0] else 0
        last = recovery.stop if piece is recovery.pieces[-1] else piece.usable
        found += [Failed(piece.file, end, error) for end, error in known if first < end <= last]
    return tuple(found)


def _bases(found: Timeline, name: Optional[str]) -> List[Tuple[Stretch, Base]]:
    """Return the generations to choose from, the best first.

    :raises StillpointError: there is none
    """
    every = [(stretch, base) for stretch in reversed(found.stretches) for base in stretch.bases]
    if name is not None:
        every = [pair for pair in every if pair[1].generation.name == name]
        why = next((reason for generation, reason in found.outside if generation.name == name), "")
        if not every:
            raise StillpointError("nothing can be replayed onto %s: %s" % (name, why or "there is no such backup"))
        return _told_apart(every)
    return _told_apart([pair for pair in every if pair[1].generation.state != BAD])


def _told_apart(pairs: Sequence[Tuple[Stretch, Base]]) -> List[Tuple[Stretch, Base]]:
    """Return the pairs without those in which a generation is in the wrong line: taken within a second of a restore, it may by its time be in the line
    before or behind it, whose logs have the same names. What the logs hold tells."""
    names = [base.generation.name for _stretch, base in pairs]
    right = {id(base) for stretch, base in pairs if names.count(base.generation.name) > 1 and _stands_in(stretch, base)}
    decided = {base.generation.name for _stretch, base in pairs if id(base) in right}
    return [(stretch, base) for stretch, base in pairs if base.generation.name not in decided or id(base) in right]


def _base_before(found: Timeline, when: float, name: Optional[str]) -> Tuple[Stretch, Base]:
    bases = _bases(found, name)
    for stretch, base in bases:
        if base.generation.time.timestamp() <= when:
            return stretch, base
    if name is not None:
        raise StillpointError("the backup %s was taken after %s UTC: choose an earlier one" % (name, timeline.human(when)))
    raise StillpointError("%s UTC is before anything that can be recovered: %s" % (timeline.human(when), _what_can(found)))


def _base_for_place(found: Timeline, wanted: Moment, name: Optional[str]) -> Tuple[Stretch, Base]:
    """Return the generation for a GTID or a position. Both come again after a reset or a restore, so they may be ambiguous."""
    holding = [(stretch, index) for stretch in found.stretches for index in [_piece_with(stretch, wanted)] if index is not None]
    if name is not None:
        mine = [stretch for stretch, base in _bases(found, name)]
        holding = [pair for pair in holding if pair[0] in mine]
    if not holding:
        raise StillpointError("%s is not in the archive: %s" % (wanted.text, _what_can(found)))
    if len(holding) > 1:
        raise UsageError(
            "%s occurs %d times in the archive, since the server's logs were begun anew in between: name the backup to start from as well"
            % (wanted.text, len(holding))
        )
    stretch, index = holding[0]
    stop = stop_in(stretch.pieces[index], wanted, 0, Clock([]))[0]
    for _stretch, base in _bases(found, name):
        if _stretch is stretch and (base.index, base.position) <= (index, stop):
            return stretch, base
    raise StillpointError("no backup stands before %s: %s" % (wanted.text, _what_can(found)))


def _piece_with(stretch: Stretch, wanted: Moment) -> Optional[int]:
    """Return which log of a line holds a GTID or a position; None: none does."""
    for index, piece in enumerate(stretch.pieces):
        if wanted.position is not None:
            if piece.file == wanted.position.file:
                if wanted.position.position > piece.usable:
                    raise StillpointError("the archive has %s only up to %d: %s was asked for" % (piece.file, piece.usable, wanted.text))
                return index
        elif wanted.gtid is not None and holds(piece, stretch.line.flavour, wanted.gtid):
            return index
    return None


def _check_base(stretch: Stretch, base: Base) -> None:
    """Make sure that the archived log is the one in which the generation stands.

    :raises StillpointError: it is not
    """
    if not _stands_in(stretch, base):
        raise StillpointError(
            "%s in the archive is not the log in which the backup %s stands at %d: nothing can be replayed onto it"
            % (stretch.pieces[base.index].file, base.generation.name, base.position)
        )


def _stands_in(stretch: Stretch, base: Base) -> bool:
    """Tell by what the archived log says at the generation's place whether it stands there."""
    piece = stretch.pieces[base.index]
    straddled: List[Transaction] = []

    def visit(each: Transaction) -> bool:
        if each.start < base.position < each.end:
            straddled.append(each)
        return each.end <= base.position

    facts = read_piece(piece, visit)
    stood = recorded.coordinates(base.generation)
    return not straddled and not (stood and stood.gtid and facts.after is not None and not _agrees(stood.gtid, facts.after))


def _agrees(recorded: str, found: gtid.State) -> bool:
    if isinstance(found, gtid.MariaState):
        return gtid.MariaState.parse(recorded).position() == found.position()
    executed = gtid.MysqlState.parse(recorded)
    before = str(executed)
    for uuid, intervals in found.intervals.items():  # the server may have executed more than it has logged
        for first, last in intervals:
            executed.add_interval(uuid, first, last)
    return str(executed) == before


def _up_to(archive: Archive, found: Timeline, stretch: Stretch, base: Base, wanted: Moment) -> Recovery:
    """Return the Recovery from a generation to the target.

    :raises StillpointError: the archive does not reach it
    """
    origin = {"file": base.file, "position": base.position}
    pieces = stretch.pieces
    for index in range(base.index, len(pieces)):
        piece = pieces[index]
        start = base.position if index == base.index else 0
        clock = Clock(archive.marks(stretch.line, piece.file)) if wanted.time is not None else Clock([])
        if not may_stop_in(piece, wanted, stretch.line.flavour, clock):
            continue
        stop, state, after, there = stop_in(piece, wanted, start, clock)
        if there:
            doubtful = left_in_doubt(piece, wanted.time, after, clock) if wanted.time is not None and after else (0, None)
            taken = pieces[base.index : index + 1]
            return Recovery(wanted, base.generation, stretch.line, taken, base.position, stop, after, state, origin, doubtful)
    if wanted.time is None or stretch.until is None or stretch.until < wanted.time:
        raise StillpointError("the archive does not reach %s: %s" % (_asked(wanted), _what_can(found)))
    last = pieces[-1]
    return Recovery(wanted, base.generation, stretch.line, pieces[base.index :], base.position, last.usable, None, last.after, origin)


def _asked(wanted: Moment) -> str:
    return "%s UTC" % timeline.human(wanted.time) if wanted.time is not None else wanted.text


def _what_can(found: Timeline) -> str:
    """Return in words what can be recovered, newest first, with what lies between."""
    parts = []
    for number, each in reversed(list(enumerate(found.stretches))):
        if each.since is not None and each.until is not None:
            parts.append("%s to %s UTC (up to %s)" % (timeline.human(each.since), timeline.human(each.until), each.end))
        if number:
            parts.append("before that a gap: %s" % each.line.text)
    if all(each.since is None for each in found.stretches):
        return "nothing can be recovered, for no backup stands in the archived logs"
    return "what can be recovered is " + "; ".join(parts[:6])
