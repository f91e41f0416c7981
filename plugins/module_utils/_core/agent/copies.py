# SPDX-License-Identifier: GPL-3.0-or-later
"""How the copies of a job stand: by what was seen there last, which dials nobody, and by a call at each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..copies.known import known
from ..host.errors import NotNowError, StillpointError
from ..host.text import age, moment
from ..job.names import host_name
from ..job.options import Job
from ..observe.metrics import Sample
from ..repository.generation import Generation

LATE = 86400.0  # seconds that a backup may be without a copy before somebody has to see to it


@dataclass(frozen=True)
class CopyStatus:
    """How a copy stands.

    :ivar seen: when somebody last looked there; "" before the first time
    :ivar newest: the newest generation that was there
    :ivar behind: the generations of this host that are to be sent and were not there, newest first
    :ivar waiting_s: seconds since the oldest was taken of those that are newer than all that is there; None without one
    """

    copy: str
    to: str
    seen: str
    newest: Optional[str]
    behind: Tuple[str, ...]
    waiting_s: Optional[float]

    def as_dict(self) -> Dict[str, Any]:
        return asdict(self)

    @property
    def late(self) -> bool:
        return self.waiting_s is not None and self.waiting_s > LATE

    def line(self, now: datetime) -> str:
        """Return it in words."""
        if not self.seen:
            return "copy %s: nothing was sent to it yet, and %d backups wait" % (self.copy, len(self.behind))
        since = "seen %s ago" % age((now - moment(self.seen)).total_seconds())
        if not self.behind:
            return "copy %s: it has every backup (%s)" % (self.copy, since)
        waits = ", the newest there is %s" % self.newest if self.newest else ""
        late = ", the oldest of them since %s" % age(self.waiting_s) if self.waiting_s is not None else ""
        return "copy %s: it lacks %d backup%s%s%s (%s)" % (self.copy, len(self.behind), "s"[len(self.behind) == 1 :], late, waits, since)


def of_job(job: Job, generations: Sequence[Generation], now: datetime) -> List[CopyStatus]:
    """Return how the copies of a job of this host stand, by what was seen there last.

    :param generations: newest first
    """
    found = []
    for copy in job.copies:
        state = known(job.name, copy.name)
        behind = state.behind(generations, copy.keep)
        newest = state.generations[0] if state.generations else None
        newer = [each for each in behind if newest is None or each.time > newest.moment]
        waiting = max((now - each.time).total_seconds() for each in newer) if newer else None
        found.append(CopyStatus(copy.name, copy.to, state.seen, newest.name if newest else None, tuple(each.name for each in behind), waiting))
    return found


def samples(job: Job, generations: Sequence[Generation], now: datetime) -> List[Sample]:
    """Return how the copies stand, as metrics."""
    found: List[Sample] = []
    for each in of_job(job, generations, now):
        labels = {"backup_job": job.name, "copy": each.copy}
        found.append(("copy_missing", labels, len(each.behind)))
        if each.seen:
            found.append(("copy_seen_timestamp_seconds", labels, moment(each.seen).timestamp()))
        newest = known(job.name, each.copy).generations[:1]
        found += [("copy_newest_timestamp_seconds", labels, copied.moment.timestamp()) for copied in newest]
    return found


@dataclass(frozen=True)
class Dialled:
    """What a call at a copy found.

    :ivar generations: how many of the job's are there
    :ivar error: why it can't be used now; None where it can
    """

    copy: str
    to: str
    restic: str
    generations: int
    error: Optional[StillpointError] = None

    def as_dict(self) -> Dict[str, Any]:
        return {**vars(self), "error": str(self.error) if self.error else None}

    def line(self) -> str:
        if self.error:
            return "copy %s: %s" % (self.copy, self.error)
        return "copy %s: %s answers, restic %s opens it, and %d generations of this job are there" % (self.copy, self.to, self.restic, self.generations)


def dial(job: Job) -> List[Dialled]:
    """Return what a call at each copy finds: reachable, and the repository that it has to be. Nothing is changed there."""
    from ..copies.destination import Destination  # pylint: disable=import-outside-toplevel  # not for who only looks at what is known

    found = []
    for copy in job.copies:
        try:
            destination = Destination.of(job, copy, host_name())
            destination.check()
            version = ".".join(str(part) for part in destination.restic.version())
            found.append(Dialled(copy.name, copy.to, version, len(destination.list())))
        except StillpointError as error:
            found.append(Dialled(copy.name, copy.to, "", 0, error))
    return found


def refuse_unusable(dialled: Sequence[Dialled]) -> None:
    """Raise StillpointError where a copy can't be used; NotNowError where all that can't may be usable later."""
    errors = [each.error for each in dialled if each.error]
    if errors:
        text = "; ".join(str(error) for error in errors)
        raise NotNowError(text) if all(isinstance(error, NotNowError) for error in errors) else StillpointError(text)
