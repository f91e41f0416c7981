# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd says of schedules, timers and the units that they start."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Dict, List, Optional, Sequence

from .errors import StillpointError
from .process import PATH, run
from .service import systemd_runs

_NEXT = re.compile(r"^\s*(\(in UTC\)|Next elapse): (.*)$", re.MULTILINE)
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "month": 2629800.0, "y": 31557600.0}
_SPAN = re.compile(r"([0-9.]+)(us|ms|s|min|h|d|w|month|y)")
_PROPERTIES = ("Id", "LoadState", "ActiveState", "UnitFileState", "RandomizedDelayUSec", "Result", "ExecMainStatus", "ExecMainExitTimestampMonotonic")


@dataclass(frozen=True)
class Unit:
    """A unit as systemd knows it now.

    :ivar loaded: there is such a unit
    :ivar active: as `systemctl` has it: ``active``, ``inactive``, ``failed``, ``activating``
    :ivar delay: seconds over which a timer spreads what it starts
    :ivar status: exit status of the service's last run that failed; None where none did since the boot
    :ivar ended: when that was, seconds since the epoch
    """

    name: str
    loaded: bool
    active: str
    enabled: str
    delay: float = 0.0
    status: Optional[int] = None
    ended: float = 0.0


def next_elapse(schedule: str, after: float) -> Optional[float]:
    """Return when an OnCalendar= expression elapses next after a moment, in seconds since the epoch; None: never.

    :raises StillpointError: that can't be asked here, or it is no such expression
    """
    if shutil.which("systemd-analyze", path=PATH) is None:
        raise StillpointError("schedules can't be looked at on this host: it has no systemd-analyze")
    found = run(["systemd-analyze", "calendar", "--iterations=1", "--base-time=@%d" % after, "--", schedule], check=False)
    if found.rc != 0:
        raise StillpointError("systemd-analyze does not tell when %r comes next: %s" % (schedule, " ".join(found.stderr.split())))
    texts = dict(_NEXT.findall(found.stdout))
    text = texts.get("(in UTC)") or texts.get("Next elapse") or "never"
    if text == "never":
        return None
    try:
        return datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=timezone.utc).timestamp()
    except ValueError as error:
        raise StillpointError("systemd-analyze says that %r comes next at %r, which is no time" % (schedule, text)) from error


def units(names: Sequence[str]) -> Dict[str, Unit]:
    """Return what systemd knows of units, by their names; {} where it does not run."""
    if not systemd_runs() or not names:
        return {}
    text = run(["systemctl", "show", "--property=" + ",".join(_PROPERTIES), "--", *names], check=False).stdout
    return {unit.name: unit for unit in (_unit(block) for block in text.split("\n\n")) if unit.name}


def _unit(block: str) -> Unit:
    facts = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
    failed = facts.get("Result", "success") != "success"
    ended = float(facts.get("ExecMainExitTimestampMonotonic") or 0) / 1e6
    return Unit(
        name=facts.get("Id", ""),
        loaded=facts.get("LoadState") == "loaded",
        active=facts.get("ActiveState", ""),
        enabled=facts.get("UnitFileState", ""),
        delay=seconds(facts.get("RandomizedDelayUSec", "")),
        status=int(facts.get("ExecMainStatus") or 0) if failed and ended else None,
        ended=time.time() - time.clock_gettime(time.CLOCK_MONOTONIC) + ended,
    )


def seconds(span: str) -> float:
    """Return a length of time that systemd prints, as ``1h 30min``, in seconds."""
    parts: List[float] = [float(number) * _UNITS[unit] for number, unit in _SPAN.findall(span)]
    return sum(parts)


def booted() -> float:
    """Return when this host was booted, seconds since the epoch."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
