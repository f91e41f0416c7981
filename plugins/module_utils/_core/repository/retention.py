# SPDX-License-Identifier: GPL-3.0-or-later
"""Which generations a retention keeps, and why.

Each rule counts for itself, as in restic: ``daily: 7`` keeps the newest generation of each of the last seven days (UTC) that
have one; a generation stays as long as any rule wants it. Where there are fewer periods than a rule keeps, it keeps the
oldest generation too, which would otherwise be lost before it has become the last of its period.

Whatever the rules say, the newest generation that is not damaged stays, and so does the newest one that is proven. A damaged
one never takes a good one's place; it stays itself, for whoever can still use a part of it, until it would have gone undamaged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Callable, Dict, Generic, List, Optional, Protocol, Sequence, Set, Tuple, TypeVar

BAD, GOOD = "bad", "good"

NEWEST = "newest that is not damaged"
PROVEN = "newest proven"
NO_RULE = "no keep rule"
NONE_SOUND = "every generation is damaged"


class Dated(Protocol):
    """What the retention needs to know of a generation."""

    @property
    def name(self) -> str: ...

    @property
    def time(self) -> datetime: ...

    @property
    def state(self) -> str: ...


Kind = TypeVar("Kind", bound=Dated)


@dataclass(frozen=True)
class Decision(Generic[Kind]):
    """Whether a generation stays.

    :ivar reasons: why it stays; empty when it goes
    """

    generation: Kind
    reasons: Tuple[str, ...]

    @property
    def keep(self) -> bool:
        return bool(self.reasons)

    @property
    def name(self) -> str:
        return self.generation.name


def _week(time: datetime) -> Tuple[int, ...]:
    year, week, _day = time.isocalendar()
    return (year, week)


# The period that a time lies in; all times are UTC. `last` has no periods.
_RULES: Tuple[Tuple[str, Optional[Callable[[datetime], Tuple[int, ...]]]], ...] = (
    ("last", None),
    ("hourly", lambda time: (time.year, time.month, time.day, time.hour)),
    ("daily", lambda time: (time.year, time.month, time.day)),
    ("weekly", _week),
    ("monthly", lambda time: (time.year, time.month)),
    ("yearly", lambda time: (time.year,)),
)


def decide(generations: Sequence[Kind], keep: Any) -> List[Decision[Kind]]:
    """Return a Decision for each generation, in the order given.

    :param generations: newest first, in the order in which they were made, whatever their times say
    :param keep: an object with the numbers last, hourly, daily, weekly, monthly and yearly; None, or all zero: all stay
    """
    rules = [(name, period, int(getattr(keep, name, None) or 0)) for name, period in _RULES]
    if not any(number > 0 for _name, _period, number in rules):
        return [Decision(generation, (NO_RULE,)) for generation in generations]
    sound = [generation for generation in generations if generation.state != BAD]
    if not sound:
        return [Decision(generation, (NONE_SOUND,)) for generation in generations]
    reasons: Dict[str, List[str]] = {generation.name: [] for generation in generations}
    reasons[sound[0].name].append(NEWEST)
    for generation in [each for each in sound if each.state == GOOD][:1]:
        reasons[generation.name].append(PROVEN)
    for name, period, number in rules:
        for kept, why in _kept(sound, name, period, number):
            reasons[kept.name].append(why)
        for kept, why in _kept(generations, name, period, number):
            if kept.state == BAD:
                reasons[kept.name].append("damaged, and undamaged it would be " + why)
    return [Decision(generation, tuple(reasons[generation.name])) for generation in generations]


def _kept(
    generations: Sequence[Kind], name: str, period: Optional[Callable[[datetime], Tuple[int, ...]]], number: int
) -> List[Tuple[Kind, str]]:
    """Return what one rule keeps, each with the reason."""
    kept: List[Tuple[Kind, str]] = []
    seen: Set[Tuple[int, ...]] = set()
    for index, generation in enumerate(generations):
        if len(kept) >= number:
            break
        which = (index,) if period is None else period(generation.time)
        if which not in seen:
            seen.add(which)
            kept.append((generation, "%s %d of %d" % (name, len(kept) + 1, number)))
        elif index == len(generations) - 1:
            kept.append((generation, "oldest, for " + name))
    return kept
