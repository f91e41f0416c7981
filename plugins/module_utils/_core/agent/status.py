# SPDX-License-Identifier: GPL-3.0-or-later
"""How the jobs of this host stand, held against their own schedules."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..archive import timeline
from ..archive.archive import Archive
from ..host import timers
from ..host.errors import StillpointError
from ..host.timers import Unit
from ..job.names import host_name
from ..job.options import Job
from ..observe import metrics, overdue
from ..observe.overdue import Clock, Last
from ..repository import identity
from ..repository.generation import BAD, Generation
from ..repository.job_directory import JobDirectory
from . import show
from .output import job_directory, now, warn

BACKUP, VERIFICATION, ARCHIVE = "stillpoint@%s", "stillpoint-verify@%s", "stillpoint-archive@%s"


@dataclass(frozen=True)
class JobStatus:
    """How a job stands.

    :ivar overdue: in a sentence; "" where nothing is
    :ivar wrong: every sentence on something that somebody has to see to, what is overdue first
    :ivar notes: what somebody should know
    :ivar facts: what `list` says of the newest backup that is not bad; None without one
    :ivar copies: how each copy stands, by what was seen there last
    :ivar clocks: ``{backup, verify}``, each ``{schedule, due, overdue}``; those that have a schedule
    """

    job: str
    overdue: str
    wrong: Tuple[str, ...]
    notes: Tuple[str, ...] = ()
    facts: Optional[Dict[str, Any]] = None
    clocks: Tuple[Tuple[str, Dict[str, Any]], ...] = ()
    copies: Tuple[Dict[str, Any], ...] = ()

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        facts = {"job": self.job, "host": host_name(), "overdue": self.overdue or None, "wrong": list(self.wrong), "notes": list(self.notes)}
        return {**facts, "newest": self.facts, "copies": list(self.copies), **dict.fromkeys(("backup", "verify")), **dict(self.clocks)}

    def lines(self) -> List[str]:
        """Return what is wrong, and what should be known, for people."""
        return ["%s: %s" % (self.job, each) for each in (*self.wrong, *self.notes)]


def of_job(job: Job, directory: JobDirectory, generations: Sequence[Generation]) -> JobStatus:
    """Return how a job of this host stands.

    :param generations: those of the directory, newest first
    """
    moment = now()
    seconds = moment.timestamp()
    wrong: List[str] = []
    notes: List[str] = []
    clocks = []
    late = ""
    try:
        for name, clock, last in _clocks(job, generations):
            wrong += overdue.wrong(clock, last, seconds)
            clocks.append((name, overdue.as_dict(clock, last, seconds)))
            late = late or overdue.overdue(clock, last, seconds)
    except StillpointError as error:
        notes.append(str(error))
    newest = next((each for each in generations if each.state != BAD), None)
    if not generations:
        wrong.append("there is no backup yet")
    elif generations[0] is not newest:
        wrong.append("the newest backup, %s, is bad: %s" % (generations[0].name, generations[0].reason))
    wrong += _of_archive(job, Archive(directory.path), generations, moment)
    try:
        notes += [str(former) for former in identity.check(directory, identity.here())]
    except StillpointError as error:
        wrong.append(str(error))
    facts = show.listed(job.name, host_name(), newest, moment) if newest else None
    stand = _copies(job, generations, moment, wrong, notes) if job.copies else ()
    return JobStatus(job.name, late, tuple(wrong), tuple(notes), facts, tuple(clocks), stand)


def _copies(job: Job, generations: Sequence[Generation], moment: datetime, wrong: List[str], notes: List[str]) -> Tuple[Dict[str, Any], ...]:
    """Return how the copies of a job stand, and add what is wrong with them, and how far behind others are."""
    from . import copies  # pylint: disable=import-outside-toplevel  # only where a job has some

    found = copies.of_job(job, generations, moment)
    wrong += [each.line(moment) for each in found if each.late]
    notes += [each.line(moment) for each in found if not each.late]
    return tuple(each.as_dict() for each in found)


def late(job: Job, generations: Sequence[Generation]) -> List[str]:
    """Return in sentences what of a job is overdue, failed, or will not be done by itself; [] where nothing is, or where it can't be told here."""
    try:
        return [sentence for _name, clock, last in _clocks(job, generations) for sentence in overdue.wrong(clock, last, now().timestamp())]
    except StillpointError:
        return []


def count(job: Job) -> None:
    """Have the metrics of a job say what backups there are now, and until when the next ones have to be there."""
    if not job.notify.metrics:
        return
    try:
        generations = job_directory(job, None).generations()
    except StillpointError as error:
        warn("notify.metrics: %s" % error)
        return
    samples = metrics.backups(job.name, generations)
    try:
        samples += metrics.due(job.name, {name: overdue.due(clock, last) for name, clock, last in _clocks(job, generations)})
    except StillpointError as error:
        warn("notify.metrics: %s" % error)
    if job.copies:
        from . import copies  # pylint: disable=import-outside-toplevel  # only where a job has some

        samples += copies.samples(job, generations, now())
    metrics.write(job.notify.metrics, job.name, metrics.BACKUPS, samples, warn)


def _clocks(job: Job, generations: Sequence[Generation]) -> List[Tuple[str, Clock, Last]]:
    """Return the schedules of a job, by name, each with what was done last.

    :raises StillpointError: this host can't tell when a schedule elapses
    """
    since = os.stat(job.where).st_mtime if os.path.exists(job.where) else now().timestamp()
    wanted: List[Tuple[str, str, Optional[str], Optional[Last]]] = [("backup", BACKUP, job.schedule, overdue.last_backup(generations, since))]
    wanted.append(("verify", VERIFICATION, job.verify.schedule, overdue.last_verification(generations, since)))
    asked = [(name, unit % job.name, schedule, last) for name, unit, schedule, last in wanted if schedule and last]
    known = timers.units([unit + suffix for _name, unit, _schedule, _last in asked for suffix in (".timer", ".service")])
    return [
        (name, Clock(schedule, timers.next_elapse(schedule, last.time), _of(known, unit + ".timer"), _of(known, unit + ".service"), timers.booted()), last)
        for name, unit, schedule, last in asked
    ]


def _of(known: Dict[str, Unit], name: str) -> Optional[Unit]:
    return known.get(name)


def _of_archive(job: Job, archive: Archive, generations: Sequence[Generation], moment: datetime) -> List[str]:
    """Return what is wrong with the archive of binary logs."""
    if job.binlog is None:
        return []
    unit = ARCHIVE % job.name + ".service"
    found = []
    known = timeline.health(archive.status(), moment)
    if not known["running"]:
        until = known["complete_until"]
        found.append("binary logs are not archived%s: systemctl status %s" % (", the last commit that is was before %s" % until if until else "", unit))
    elif known["error"]:
        found.append("binary logs are not archived: %s" % known["error"])
    try:
        gap = timeline.open_gap(archive.lines(), generations)
    except StillpointError as error:
        return [*found, str(error)]
    return found + (["binary logs are missing: %s; take a backup now" % gap.text] if gap else [])
