# SPDX-License-Identifier: GPL-3.0-or-later
"""Which copies of a host are kept, by their arrival.

The times that a client claims play no part, nor does how many copies it sends: of each period the first sound arrival stays, and nothing that
comes later can take its place.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Callable, Dict, List, Tuple

from .ledger import Copy, Ledger
from .settings import Keep

_PERIODS: Tuple[Tuple[str, Callable[[datetime], Tuple[int, ...]]], ...] = (
    ("daily", lambda time: (time.year, time.month, time.day)),
    ("weekly", lambda time: tuple(time.isocalendar()[:2])),
    ("monthly", lambda time: (time.year, time.month)),
)


def decide(ledger: Ledger, keep: Keep, now: float) -> Dict[str, List[str]]:
    """Return for each copy that is there the reasons why it stays, by id; none: it goes."""
    present = ledger.present()
    reasons: Dict[str, List[str]] = {each.id: [] for each in present}
    for each in present:
        if each.arrived > now - keep.within:
            reasons[each.id].append("arrived within %d d" % (keep.within // 86400) if keep.within >= 86400 else "arrived lately")
        if each.id not in ledger.sound or each.foreign:
            reasons[each.id].append("not found sound")
    for newest in ledger.newest_sound():
        reasons[newest.id].append("newest that is sound")
    sound = [each for each in present if each.id in ledger.sound and not each.foreign and each.state != "bad"]
    for job in {each.job for each in sound}:
        for name, period in _PERIODS:
            for copy, why in _firsts([each for each in sound if each.job == job], name, period, getattr(keep, name)):
                reasons[copy.id].append(why)
        last = [each for each in sound if each.job == job][-1]
        reasons[last.id].append("newest that is not damaged")
    return reasons


def _firsts(copies: List[Copy], name: str, period: Callable[[datetime], Tuple[int, ...]], number: int) -> List[Tuple[Copy, str]]:
    """Return the first arrival of each of the last periods that have one."""
    first: Dict[Tuple[int, ...], Copy] = {}
    for each in copies:
        first.setdefault(period(datetime.fromtimestamp(each.arrived, timezone.utc)), each)
    kept = list(first.values())[-number:] if number else []
    return [(each, "%s %d of %d" % (name, at, number)) for at, each in enumerate(reversed(kept), 1)]
