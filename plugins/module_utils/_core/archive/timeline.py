# SPDX-License-Identifier: GPL-3.0-or-later
"""To which moments a job can be recovered: from which generations on, how far, and what lies between."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

from ..host.errors import StillpointError
from ..host.text import age, iso, moment
from ..repository import recorded
from ..repository.generation import BAD, Generation
from .archive import Archive
from .line import Line, Piece

# A log says in whole seconds when it was begun.
_CLOCK = 1.0

# Seconds after which a service that has said nothing is taken for gone: it says something every few seconds.
SILENT = 60.0
_SILENT_COPYING = 900.0


@dataclass(frozen=True)
class Base:
    """A generation that recovery can begin with, and where in its line it stands.

    :ivar index: of its log among the line's pieces
    """

    generation: Generation
    index: int
    file: str
    position: int


@dataclass(frozen=True)
class Stretch:
    """A line of logs with the generations that stand in it.

    :ivar since: seconds since the epoch from which on every moment can be had; None without a generation
    :ivar until: up to which: its latest commit, or the moment at which the service last saw that it had everything; None where that is
        not known
    :ivar bases: newest first
    """

    line: Line
    pieces: Tuple[Piece, ...]
    bases: Tuple[Base, ...]
    since: Optional[float]
    until: Optional[float]

    @property
    def end(self) -> str:
        """Where the archive ends: ``FILE:POSITION``."""
        return "%s:%d" % (self.pieces[-1].file, self.pieces[-1].usable) if self.pieces else "before " + self.line.start


@dataclass(frozen=True)
class Timeline:
    """What a job can be recovered to.

    :ivar stretches: oldest first
    :ivar outside: generations that no line holds, and why
    """

    stretches: Tuple[Stretch, ...]
    outside: Tuple[Tuple[Generation, str], ...]
    status: Dict[str, Any]

    def as_dict(self, now: datetime) -> Dict[str, Any]:
        """Return it for programs: ``restorable`` (spans of time), ``gaps`` and ``archive`` (how the service is)."""
        return {
            "restorable": [
                {
                    "from": stamp(each.since),
                    "to": stamp(each.until),
                    "line": each.line.number,
                    "generations": [base.generation.name for base in each.bases],
                    "ends_at": each.end,
                }
                for each in self.stretches
                if each.since is not None and each.until is not None and each.until >= each.since
            ],
            "gaps": [
                {"before_line": each.line.number, "reason": each.line.reason, "text": each.line.text, "noticed": each.line.time}
                for each in self.stretches[1:]
            ],
            "without_logs": [{"generation": generation.name, "reason": reason} for generation, reason in self.outside],
            "archive": self.health(now),
        }

    def health(self, now: datetime) -> Dict[str, Any]:
        """Return how the archiving goes: what the service last said, and where the archive ends."""
        return {**health(self.status, now), "ends_at": self.stretches[-1].end if self.stretches else None}

    def lines(self, now: datetime) -> List[str]:
        """Return it for people."""
        found: List[str] = []
        for number, each in enumerate(self.stretches):
            if number:
                found.append("gap          %s (noticed %s)" % (each.line.text, each.line.time))
            if each.since is None or each.until is None or each.until < each.since:
                found.append("not yet      logs up to %s, and no backup that stands in them" % each.end)
                continue
            found.append("restorable   %s to %s UTC" % (human(each.since), human(each.until)))
            found += ["             from %s (%s, at %s:%d)" % (base.generation.name, base.generation.state, base.file, base.position) for base in each.bases]
        found += ["itself only  %s: %s" % (generation.name, reason) for generation, reason in self.outside]
        return found + [summary(self.health(now), now)]


def health(status: Dict[str, Any], now: datetime) -> Dict[str, Any]:
    """Return how the archiving goes, by what the service last said."""
    said = status.get("time")
    silent = _SILENT_COPYING if status.get("method") == "copy" else SILENT
    running = bool(said) and now.timestamp() - float(said or 0) < silent and status.get("state") != "stopped"
    return {
        "running": running,
        "state": status.get("state") if running else "stopped",
        "method": status.get("method"),
        "error": status.get("error"),
        "lag_bytes": status.get("lag_bytes") if running else None,
        "complete_until": stamp(status.get("synced")),
    }


def brief(archive: Archive, generations: Sequence[Generation], now: datetime) -> List[str]:
    """Return in a line or two how a job's archive is, without reading any log: whether it is being written, and whether something
    is missing that no backup has made up for yet.

    :raises StillpointError: the index is damaged
    """
    lines = archive.lines()
    if not lines:
        return ["archive      nothing has been archived yet"]
    found = [summary(health(archive.status(), now), now)]
    gap = open_gap(lines, generations)
    if gap is not None:
        found.append("gap          %s; take a backup of the server's files: nothing after it can be recovered before there is one" % gap.text)
    return found


def open_gap(lines: Sequence[Line], generations: Sequence[Generation]) -> Optional[Line]:
    """Return the line behind a gap that no backup has made up for yet: none that recovery can begin with was taken since; None without such a gap."""
    if len(lines) < 2 or any(each.time > _moment(lines[-1].time) and each.state != BAD and _can_be_base(each) for each in generations):
        return None
    return lines[-1]


def summary(known: Dict[str, Any], now: datetime) -> str:
    """Return in one line how the archiving goes."""
    if not known["running"]:
        how = "NOT RUNNING: what is committed now is not archived"
    elif known["error"]:
        how = "FAILING: %s" % known["error"]
    else:
        how = "%s, %s bytes behind" % (known["state"], known["lag_bytes"] if known["lag_bytes"] is not None else "unknown")
    until = known["complete_until"]
    seconds = (now - _moment(until)).total_seconds() if until else 0.0
    reach = "complete until %s (%s)" % (until, age(seconds) + " ago" if age(seconds)[0].isdigit() else age(seconds)) if until else "never complete so far"
    return "archive      %s; %s" % (how, reach)


def read(archive: Archive, generations: Sequence[Generation]) -> Timeline:
    """Return the Timeline of a job.

    :param generations: newest first
    :raises StillpointError: the archive's index is damaged
    """
    lines = archive.lines()
    status = archive.status()
    stretches: List[Stretch] = []
    held: Set[str] = set()
    every = [tuple(archive.pieces(line, current=line is lines[-1])) for line in lines]
    for number, (line, pieces) in enumerate(zip(lines, every)):
        current = line is lines[-1]
        known = status.get("synced") if status.get("line") == line.number else None
        ended = None if current else _last([*(piece.last_time for piece in pieces), lines[number + 1].earlier_until])
        bases = tuple(base for base in (_base(generation, line, pieces, ended) for generation in generations) if base is not None)
        held.update(base.generation.name for base in bases)
        sound = [base for base in bases if base.generation.state != BAD]
        since = sound[-1].generation.time.timestamp() if sound else None
        until = _last([*(piece.last_time for piece in pieces), *(base.generation.time.timestamp() for base in bases), known if current else ended])
        stretches.append(Stretch(line, pieces, bases, since, until))
    outside = tuple((generation, _why_not(generation, bool(lines))) for generation in generations if generation.name not in held)
    return Timeline(tuple(stretches), outside, status)


def _base(generation: Generation, line: Line, pieces: Sequence[Piece], ended: Optional[float]) -> Optional[Base]:
    """Return where a generation stands in a line; None: not in this one. Names of logs come again after a reset, so the log
    must also be of the generation's time.

    :param ended: up to when a line that is not the current one is known to have been the server's: who stands there later, stands in
        another log of that name; None for the current one
    """
    if not _is_copy(generation):
        return None
    stood, server = recorded.in_its_log(generation), recorded.server(generation)
    if stood is None:
        return None
    # MariaDB's server_uid is no server's own: it is made of the host's network card and the port
    if line.flavour != "mariadb" and server and server.uuid and line.server.get("uuid") and server.uuid != line.server["uuid"]:
        return None
    when = generation.time.timestamp()
    for index, piece in enumerate(pieces):
        if piece.file != stood.file or piece.usable < stood.position:
            continue
        later: Optional[float] = pieces[index + 1].created if index + 1 < len(pieces) else ended
        if piece.created - _CLOCK <= when and (later is None or when <= later + _CLOCK):
            return Base(generation, index, piece.file, stood.position)
    return None


def _is_copy(generation: Generation) -> bool:
    """Tell whether a generation holds the server's own files: what is replayed needs every account, table and identifier as it was."""
    return any(tree.name == "mysql" for tree in generation.trees)


def _can_be_base(generation: Generation) -> bool:
    """Tell whether a generation is one that logs can be replayed onto, in whatever line it stands."""
    return _is_copy(generation) and recorded.in_its_log(generation) is not None


def _last(times: Iterable[Optional[float]]) -> Optional[float]:
    return max((time for time in times if time is not None), default=None)


def _why_not(generation: Generation, archived: bool) -> str:
    if recorded.server(generation) is None:
        return "it holds no database"
    if not _is_copy(generation):
        return "it is a dump, and binary logs can only be replayed onto a copy of the server's files"
    if recorded.in_its_log(generation) is None:
        return "it has no coordinates"
    return "the log that it stands in is not in the archive" if archived else "no binary log has been archived yet"


def stamp(seconds: Optional[float]) -> Optional[str]:
    """Return a moment as ISO 8601, UTC."""
    return None if seconds is None else iso(datetime.fromtimestamp(seconds, timezone.utc))


def human(seconds: float) -> str:
    """Return a moment as people read it, UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


def _moment(text: str) -> datetime:
    try:
        return moment(text)
    except ValueError as error:
        raise StillpointError("%r is not a time" % text) from error
