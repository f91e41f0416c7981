# SPDX-License-Identifier: GPL-3.0-or-later
"""When a job is overdue, by its own schedule."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, List, Optional

import pytest
from _core.host import timers
from _core.host.errors import StillpointError
from _core.host.timers import Unit
from _core.observe import overdue
from _core.observe.overdue import Clock, Last

HOUR, DAY = 3600.0, 86400.0
TAKEN = datetime(2026, 11, 1, 2, 20, tzinfo=timezone.utc).timestamp()
ELAPSE = datetime(2026, 11, 2, 2, 0, tzinfo=timezone.utc).timestamp()
LAST = Last(TAKEN, "no backup since 2026-11-01 02:20 UTC", 600)
TIMER = Unit("stillpoint@web.timer", True, "active", "enabled", delay=HOUR)
SERVICE = Unit("stillpoint@web.service", True, "inactive", "static")
CLOCK = Clock("02:00", ELAPSE, TIMER, SERVICE, booted=TAKEN - DAY)
LATE = "overdue: no backup since 2026-11-01 02:20 UTC, by schedule (02:00) one was due on 2026-11-02 02:00 UTC"


@pytest.mark.parametrize(
    "clock, last, hours, late",
    [
        (CLOCK, LAST, -1.0, False),  # before its time
        (CLOCK, LAST, 2.9, False),  # it is spread over an hour, tried again for one, and takes its time
        (CLOCK, LAST, 3.1, True),
        (CLOCK, replace(LAST, took=5 * HOUR), 11.9, False),  # the one before took five hours
        (CLOCK, replace(LAST, took=5 * HOUR), 12.1, True),
        (replace(CLOCK, timer=replace(TIMER, delay=6 * HOUR)), LAST, 7.9, False),
        (replace(CLOCK, timer=replace(TIMER, delay=0.0)), LAST, 2.1, True),
        (replace(CLOCK, timer=None, service=None), LAST, 2.9, False),  # systemd can't be asked: as the role spreads them
        (replace(CLOCK, timer=None, service=None), LAST, 3.1, True),
        (replace(CLOCK, booted=ELAPSE + 40 * HOUR), LAST, 42.9, False),  # the host was off, and catches up
        (replace(CLOCK, booted=ELAPSE + 40 * HOUR), LAST, 43.1, True),
        (replace(CLOCK, booted=ELAPSE + 40 * HOUR, timer=replace(TIMER, active="inactive")), LAST, 40.1, True),  # and does not
        (replace(CLOCK, booted=ELAPSE + 40 * HOUR, timer=None), LAST, 40.1, True),
        (replace(CLOCK, service=replace(SERVICE, active="activating")), LAST, 26.9, False),  # one is under way
        (replace(CLOCK, service=replace(SERVICE, active="activating")), LAST, 27.1, True),
        (replace(CLOCK, elapse=None), LAST, 10_000.0, False),  # a schedule that is over
        (CLOCK, LAST, 30 * 24.0, True),
    ],
)
def test_what_is_overdue_is_held_against_spreading_catching_up_and_its_own_time(clock: Clock, last: Last, hours: float, late: bool) -> None:
    assert overdue.overdue(clock, last, ELAPSE + hours * HOUR) == (LATE if late else "")


def test_a_timer_that_starts_nothing_is_told_before_anything_is_overdue() -> None:
    now = ELAPSE - HOUR
    assert overdue.wrong(CLOCK, LAST, now) == []
    for state, said in ((("inactive", "disabled"), "disabled"), (("inactive", "enabled"), "inactive"), (("failed", "enabled"), "failed")):
        timer = Unit("stillpoint@web.timer", True, *state)
        assert overdue.wrong(replace(CLOCK, timer=timer), LAST, now) == [
            "stillpoint@web.timer is %s and starts nothing: systemctl enable --now stillpoint@web.timer" % said
        ]
    by_cron = Unit("stillpoint@web.timer", False, "inactive", "")
    assert overdue.wrong(replace(CLOCK, timer=by_cron), LAST, now) == []


def test_what_is_overdue_is_said_first() -> None:
    timer = replace(TIMER, active="inactive", enabled="disabled")
    found = overdue.wrong(replace(CLOCK, timer=timer), LAST, ELAPSE + 30 * DAY)
    assert found[0] == LATE and len(found) == 2


@pytest.mark.parametrize("status, ended, said", [(1, DAY, True), (1, -DAY, False), (75, DAY, False), (None, DAY, False)])
def test_a_run_that_failed_is_told_until_a_backup_comes_after_it(status: Optional[int], ended: float, said: bool) -> None:
    clock = replace(CLOCK, service=replace(SERVICE, status=status, ended=TAKEN + ended))
    wanted = ["the last run failed on 2026-11-02 02:20 UTC with exit status 1: journalctl -u stillpoint@web.service"]
    assert overdue.wrong(clock, LAST, ELAPSE) == (wanted if said else [])


def generation(day: int, state: str = "good", **recorded: Any) -> Any:
    when = datetime(2026, 11, day, 2, tzinfo=timezone.utc)
    return SimpleNamespace(time=when, state=state, summary={"duration_s": 60.0}, recorded=recorded)


@pytest.mark.parametrize(
    "generations, day, what",
    [
        ([generation(9), generation(8)], 9, "no backup since 2026-11-09 02:00 UTC"),
        ([generation(9, "bad"), generation(8, "unproven")], 8, "no backup since 2026-11-08 02:00 UTC"),
        ([generation(9, "bad"), generation(8, "bad")], 8, "no backup that is not bad"),
        ([], 1, "no backup yet"),
    ],
)
def test_a_bad_backup_is_none(generations: List[Any], day: int, what: str) -> None:
    since = datetime(2026, 11, 1, 2, tzinfo=timezone.utc).timestamp()
    last = overdue.last_backup(generations, since)
    assert (datetime.fromtimestamp(last.time, timezone.utc).day, last.what) == (day, what)


def test_a_sample_counts_as_a_verification_and_what_was_never_verified_counts_from_the_first_backup() -> None:
    assert overdue.last_verification([], 0.0) is None
    never = overdue.last_verification([generation(9), generation(3)], 0.0)
    assert never is not None and never.what == "never verified" and datetime.fromtimestamp(never.time, timezone.utc).day == 3
    sampled = generation(9, sample={"time": "2026-11-12T03:00:00Z", "duration_s": 5.0})
    whole = generation(3, time="2026-11-10T03:00:00Z", duration_s=7.0)
    last = overdue.last_verification([sampled, whole], 0.0)
    assert last is not None and (last.what, last.took) == ("not verified since 2026-11-12 03:00 UTC", 5.0)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_says_when_a_schedule_elapses_in_whatever_zone_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert timers.next_elapse("02:00 UTC", TAKEN) == ELAPSE
    assert timers.next_elapse("2020-01-01", TAKEN) is None
    assert timers.next_elapse("Mon *-*-* 03:00 Europe/Berlin", TAKEN) == ELAPSE
    with pytest.raises(StillpointError, match="does not tell when 'soon' comes next"):
        timers.next_elapse("soon", TAKEN)


@pytest.mark.parametrize("text, seconds", [("1h", 3600), ("1h 30min", 5400), ("0", 0), ("", 0), ("1d 2h 3min 4.5s", 93784.5), ("500ms", 0.5)])
def test_lengths_of_time_are_read_as_systemd_prints_them(text: str, seconds: float) -> None:
    assert timers.seconds(text) == seconds
