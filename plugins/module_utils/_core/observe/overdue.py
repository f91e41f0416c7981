# SPDX-License-Identifier: GPL-3.0-or-later
"""How a job stands against its own schedule: when its next backup and verification have to be there, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, List, Optional, Sequence

from ..host.errors import NotNowError
from ..host.timers import Unit
from ..repository.generation import BAD, Generation, moment

# Seconds. A backup that is refused as the server is busy is tried again for an hour, and a backup takes its time too.
RETRIES = 3600.0
_LEAST = 3600.0
_LONGEST_RUN = 86400.0
_SPREAD = 3600.0  # the role's own, where systemd can't be asked for the timer's


@dataclass(frozen=True)
class Clock:
    """A schedule, and what is known of it now.

    :ivar elapse: when it elapses next after the last that was done, seconds since the epoch; None: never
    :ivar timer: as systemd knows it; None where it can't be asked
    :ivar service: what the timer starts
    :ivar booted: when the host was; what a timer that runs missed before that is caught up with
    """

    schedule: str
    elapse: Optional[float]
    timer: Optional[Unit] = None
    service: Optional[Unit] = None
    booted: float = 0.0


@dataclass(frozen=True)
class Last:
    """What was done last on a schedule.

    :ivar time: when, seconds since the epoch; else since when it could have been
    :ivar what: the same in words
    :ivar took: seconds that it took
    """

    time: float
    what: str
    took: float = 0.0


def last_backup(generations: Sequence[Generation], since: float) -> Last:
    """Return the newest backup that is not bad.

    :param generations: newest first
    :param since: when the job came into being, for one that has none
    """
    newest = next((each for each in generations if each.state != BAD), None)
    if newest is not None:
        return Last(newest.time.timestamp(), "no backup since %s" % _text(newest.time.timestamp()), _took(newest))
    if generations:
        return Last(generations[-1].time.timestamp(), "no backup that is not bad", max(map(_took, generations)))
    return Last(since, "no backup yet")


def last_verification(generations: Sequence[Generation], since: float) -> Optional[Last]:
    """Return the last verification of any generation; None as long as there is nothing to verify."""
    if not generations:
        return None
    found = []
    for recorded in (each.recorded for each in generations):
        found += [(when, facts) for when, facts in ((moment(facts), facts) for facts in (recorded, recorded.get("sample") or {})) if when]
    if not found:
        return Last(max(since, generations[-1].time.timestamp()), "never verified")
    when, facts = max(found, key=lambda pair: pair[0])
    return Last(when.timestamp(), "not verified since %s" % _text(when.timestamp()), float(facts.get("duration_s") or 0))


def due(clock: Clock, last: Last) -> Optional[float]:
    """Return until when the next one has to be there, with catching up, spreading and its own time counted in; None: never."""
    if clock.elapse is None:
        return None
    spread = clock.timer.delay if clock.timer and clock.timer.loaded else _SPREAD
    catches_up = clock.timer is not None and clock.timer.active == "active"
    return max(clock.elapse, clock.booted if catches_up else 0) + spread + RETRIES + max(2 * last.took, _LEAST)


def overdue(clock: Clock, last: Last, now: float) -> str:
    """Return in a sentence why something is overdue; "" where it is not."""
    until = due(clock, last)
    running = clock.service is not None and clock.service.active in ("activating", "active")
    if until is None or clock.elapse is None or now <= until + (_LONGEST_RUN if running else 0):
        return ""
    return "overdue: %s, by schedule (%s) one was due on %s" % (last.what, clock.schedule, _text(clock.elapse))


def disabled(clock: Clock) -> str:
    """Return in a sentence why nothing will be done on a schedule; "" where it will."""
    timer = clock.timer
    if timer is None or not timer.loaded or timer.active == "active":
        return ""
    return "%s is %s and starts nothing: systemctl enable --now %s" % (timer.name, timer.enabled if timer.enabled == "disabled" else timer.active, timer.name)


def failed(clock: Clock, last: Last) -> str:
    """Return in a sentence that what was started on a schedule failed, and nothing came of it since; "" where it did not."""
    service = clock.service
    if service is None or service.status is None or service.ended <= last.time or service.status == NotNowError.exit_code:
        return ""
    return "the last run failed on %s with exit status %d: journalctl -u %s" % (_text(service.ended), service.status, service.name)


def wrong(clock: Clock, last: Last, now: float) -> List[str]:
    """Return all that is wrong on a schedule, what is overdue first."""
    return [each for each in (overdue(clock, last, now), disabled(clock), failed(clock, last)) if each]


def _took(generation: Generation) -> float:
    return float(generation.summary.get("duration_s") or 0)


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def as_dict(clock: Clock, last: Last, now: float) -> Dict[str, Any]:
    """Return it for programs."""
    until = due(clock, last)
    return {
        "schedule": clock.schedule,
        "due": datetime.fromtimestamp(until, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if until is not None else None,
        "overdue": overdue(clock, last, now) or None,
    }
