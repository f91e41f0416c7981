# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Dict, List, Optional, Sequence, Tuple

import pytest
from _core.job.options import Keep
from _core.repository import retention

NOW = datetime(2026, 11, 22, 2, 0, 5, tzinfo=timezone.utc)  # a Sunday


@dataclass(frozen=True)
class Made:
    name: str
    time: datetime
    state: str = "good"


def made(*hours_ago: float, bad: Sequence[float] = (), unproven: Sequence[float] = ()) -> List[Made]:
    """Return generations of so many hours ago, in the order given."""
    states = {**dict.fromkeys(bad, "bad"), **dict.fromkeys(unproven, "unproven")}
    return [Made("%g" % hours, NOW - timedelta(hours=hours), states.get(hours, "good")) for hours in hours_ago]


def kept(generations: Sequence[Made], keep: Optional[Keep]) -> List[str]:
    return [decision.name for decision in retention.decide(generations, keep) if decision.keep]


def reasons(generations: Sequence[Made], keep: Optional[Keep]) -> Dict[str, Tuple[str, ...]]:
    return {decision.name: decision.reasons for decision in retention.decide(generations, keep)}


def days(*numbers: float) -> Tuple[float, ...]:
    return tuple(24.0 * number for number in numbers)


def names(*hours: float) -> List[str]:
    return ["%g" % each for each in hours]


@pytest.mark.parametrize("keep", [None, Keep(), Keep(last=0, daily=0)])
def test_without_a_rule_everything_stays(keep):
    assert kept(made(0, 1, 2), keep) == names(0, 1, 2)
    assert reasons(made(0), keep) == {"0": ("no keep rule",)}


def test_nothing_is_decided_of_nothing():
    assert retention.decide([], Keep(last=3)) == []


def test_last_keeps_the_newest_ones():
    assert kept(made(0, 1, 2, 3, 4), Keep(last=3)) == names(0, 1, 2)


def test_every_generation_is_decided_on_in_the_order_given():
    assert [decision.name for decision in retention.decide(made(0, 1, 2), Keep(last=1))] == names(0, 1, 2)


def test_daily_keeps_the_newest_of_each_day():
    generations = made(0, 1, *days(1), 24 + 1, *days(2), *days(3))
    assert kept(generations, Keep(daily=3)) == names(0, 24, 48)


def test_a_day_ends_at_midnight_utc():
    late = Made("late", datetime(2026, 11, 21, 23, 59, 59, tzinfo=timezone.utc))
    early = Made("early", datetime(2026, 11, 22, 0, 0, 0, tzinfo=timezone.utc))
    assert kept([early, late, Made("before", NOW - timedelta(days=5))], Keep(daily=2)) == ["early", "late"]


def test_days_without_a_generation_do_not_count():
    assert kept(made(*days(0, 10, 20, 30)), Keep(daily=3)) == names(*days(0, 10, 20))


def test_hourly_keeps_the_newest_of_each_hour():
    generations = made(0, 0.01, 0.5, 1, 1.5, 2, 9)
    assert kept(generations, Keep(hourly=3)) == names(0, 0.01, 1.5)


def test_weeks_begin_on_monday_and_are_counted_over_the_end_of_a_year():
    times = [
        datetime(2027, 1, 4),
        datetime(2027, 1, 3),
        datetime(2026, 12, 31),
        datetime(2026, 12, 28),
        datetime(2026, 12, 27),
        datetime(2026, 12, 1),
    ]
    generations = [Made(time.strftime("%m-%d"), time.replace(tzinfo=timezone.utc)) for time in times]
    assert kept(generations, Keep(weekly=3)) == ["01-04", "01-03", "12-27"]


def test_monthly_and_yearly_keep_the_newest_of_each():
    times = [
        datetime(2026, 11, 22),
        datetime(2026, 11, 1),
        datetime(2026, 10, 31),
        datetime(2025, 12, 31),
        datetime(2025, 1, 1),
        datetime(2024, 6, 1),
    ]
    generations = [Made(time.strftime("%Y-%m-%d"), time.replace(tzinfo=timezone.utc)) for time in times]
    assert kept(generations, Keep(monthly=3)) == ["2026-11-22", "2026-10-31", "2025-12-31"]
    assert kept(generations, Keep(yearly=2)) == ["2026-11-22", "2025-12-31"]


def test_each_rule_counts_for_itself_and_all_reasons_are_given():
    generations = made(0, 1, 2, *days(1, 2, 3, 40, 80))
    assert reasons(generations, Keep(last=2, daily=2, monthly=2)) == {
        "0": ("newest that is not damaged", "newest proven", "last 1 of 2", "daily 1 of 2", "monthly 1 of 2"),
        "1": ("last 2 of 2",),
        "2": (),
        "24": ("daily 2 of 2",),
        "48": (),
        "72": (),
        "960": ("monthly 2 of 2",),
        "1920": (),
    }


def test_where_a_rule_has_periods_left_the_oldest_stays_until_it_is_the_last_of_its_period():
    generations = made(0, 1, 2)
    assert reasons(generations, Keep(daily=7))["2"] == ("oldest, for daily",)
    assert kept(generations, Keep(daily=7)) == names(0, 2)


def test_a_year_of_daily_runs_ends_with_what_the_rules_ask_for():
    """Run after run, as a host does it: what one run removed the next one has not."""
    keep = Keep(last=3, daily=7, weekly=4, monthly=6)
    there: List[Made] = []
    for day in range(400):
        time = NOW + timedelta(days=day)
        there = [Made(time.strftime("%Y-%m-%d"), time), *there]
        there = [decision.generation for decision in retention.decide(there, keep) if decision.keep]
        assert there[0].time == time
    ages = [(NOW + timedelta(days=399) - each.time).days for each in there]
    assert ages[:7] == [0, 1, 2, 3, 4, 5, 6]
    assert len(there) <= 7 + 4 + 6 + 1
    assert len({each.time.strftime("%Y-%m") for each in there}) >= 6


def test_damaged_generations_take_no_place_of_a_good_one():
    generations = made(0, 1, 2, 3, bad=(0, 1))
    assert set(names(2, 3)) <= set(kept(generations, Keep(last=2)))


def test_a_damaged_generation_stays_as_long_as_it_would_have_undamaged():
    generations = made(0, 1, 2, 3, 4, bad=(1, 4))
    decided = reasons(generations, Keep(last=2))
    assert decided["1"] == ("damaged, and undamaged it would be last 2 of 2",)
    assert decided["4"] == ()
    assert [name for name, why in decided.items() if why] == names(0, 1, 2)


def test_the_newest_undamaged_generation_stays_whatever_the_rules_say():
    generations = made(*range(30), bad=tuple(range(29)))
    assert "29" in kept(generations, Keep(last=1))


def test_the_last_proven_generation_stays_behind_any_number_of_unproven_ones():
    generations = made(*days(*range(30)), unproven=days(*range(25)))
    decided = reasons(generations, Keep(last=2))
    assert decided["%g" % (25 * 24)] == ("newest proven",)
    assert [name for name, why in decided.items() if why] == names(*days(0, 1, 25))


def test_where_every_generation_is_damaged_all_stay():
    assert kept(made(0, 1, 2, 3, bad=(0, 1, 2, 3)), Keep(last=1)) == names(0, 1, 2, 3)


def test_a_clock_that_ran_ahead_once_does_not_make_an_old_generation_the_newest():
    # The last run but one was made with a clock three years ahead: the order is that of making.
    generations = made(0, -3 * 365 * 24, 24, 48)
    assert kept(generations, Keep(last=1)) == names(0)
    assert kept(generations, Keep(last=2)) == names(0, -3 * 365 * 24)


def test_a_clock_that_goes_back_and_forth_gives_each_day_one_place():
    generations = made(0, -1000, 1, -1001, 2, 24, 48)
    assert kept(generations, Keep(daily=3)) == names(0, -1000, 24)


def test_runs_in_the_same_second_are_told_apart():
    generations = [Made("2026-11-22T02-00-05Z-2", NOW), Made("2026-11-22T02-00-05Z", NOW), Made("old", NOW - timedelta(days=3))]
    assert kept(generations, Keep(last=1)) == ["2026-11-22T02-00-05Z-2"]
    assert kept(generations, Keep(daily=1)) == ["2026-11-22T02-00-05Z-2"]


def test_more_places_than_generations_keep_all_of_them_once():
    assert kept(made(0, 24, 48), Keep(last=10, daily=10, weekly=10, monthly=10, yearly=10)) == names(0, 24, 48)
