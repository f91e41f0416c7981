# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import io
import json
import os
from typing import Any, List

import pytest
from _core.agent import progress

GIB = 1024**3


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def drawn(stream: io.StringIO) -> List[str]:
    """Return the texts between the places where the terminal's line was erased."""
    return stream.getvalue().split("\r\x1b[K")


def test_a_line_has_share_bytes_rate_and_time_left() -> None:
    assert (
        progress.line("copy", GIB, 2 * GIB, 16, 100)
        == "copy  [############............]   50 %  1.0 GiB of 2.0 GiB  64.0 MiB/s  16.0 s left"
    )


def test_a_line_is_never_longer_than_the_terminal_is_wide() -> None:
    for columns in range(1, 100):
        assert len(progress.line("copy", GIB, 2 * GIB, 16, columns)) <= columns
    assert progress.line("copy", GIB, 2 * GIB, 16, 40) == "copy  [############............]   50 %"


def test_a_line_without_a_total_says_what_is_known() -> None:
    assert progress.line("copy", 0, None, 0, 80) == "copy"
    assert progress.line("copy", 0, None, 5, 80) == "copy  5.0 s"
    assert progress.line("copy", GIB, None, 4, 80) == "copy  1.0 GiB  256.0 MiB/s"


def test_a_total_that_was_too_small_does_not_lead_beyond_100_percent() -> None:
    assert "[########################]  100 %" in progress.line("copy", 3, 2, 1, 80)


def test_the_bar_is_drawn_at_most_ten_times_a_second_and_erased_at_the_end(clock: Clock) -> None:
    stream = io.StringIO()
    bar = progress.Bar(stream, clock=clock, columns=80)
    bar.stage("copy")
    for number in range(100):
        clock.now += 0.01
        bar.progress(number, 100)
    assert 8 <= len(drawn(stream)) <= 14
    bar.close()
    assert stream.getvalue().endswith("\r\x1b[K")


def test_a_note_takes_a_line_of_its_own_above_the_bar(clock: Clock) -> None:
    stream = io.StringIO()
    bar = progress.Bar(stream, clock=clock, columns=80)
    bar.stage("guard")
    bar.warn("the repository is on the same volume")
    assert drawn(stream)[-2:] == ["warning: the repository is on the same volume\n", "guard"]


def test_a_journal_gets_a_line_for_each_stage_and_every_30_seconds_how_far_it_is(clock: Clock) -> None:
    stream = io.StringIO()
    journal = progress.Journal(stream, clock=clock, priorities=False)
    journal.stage("plan")
    journal.stage("copy")
    for number in range(1, 61):
        clock.now += 1
        journal.progress(number * 1024, 60 * 1024)
    journal.note("a note")
    journal.warn("a warning")
    journal.close()
    assert stream.getvalue().splitlines() == [
        "plan",
        "copy",
        "copy:  50 %, 30.0 KiB of 60.0 KiB, 1.0 KiB/s, 30.0 s left",
        "copy: 100 %, 60.0 KiB of 60.0 KiB, 1.0 KiB/s",
        "a note",
        "warning: a warning",
    ]


def test_warnings_have_their_priority_in_the_journal_alone() -> None:
    stream = io.StringIO()
    progress.Journal(stream, priorities=True).warn("full")
    assert stream.getvalue() == "<4>warning: full\n"


def test_the_journal_is_recognised_by_its_descriptor(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(str(tmp_path / "stream"), "w") as stream:
        assert not progress.is_journal(stream)
        info = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", "%d:%d" % (info.st_dev, info.st_ino))
        assert progress.is_journal(stream)


class Gone(io.StringIO):
    def write(self, _text: str) -> int:
        raise BrokenPipeError()


@pytest.mark.parametrize("kind", [progress.Bar, progress.Journal])
def test_a_reader_who_has_gone_away_does_not_end_the_run(kind: Any) -> None:
    reporter = kind(Gone())
    reporter.stage("copy")
    reporter.progress(1, 2)
    reporter.warn("text")
    reporter.close()


def test_the_progress_file_is_whole_at_every_moment_and_gone_at_the_end(tmp_path: Any, clock: Clock) -> None:
    path = str(tmp_path / "run" / "etrial.progress")

    def read() -> Any:
        with open(path) as file:
            return json.load(file)

    reporter = progress.Silent(progress.ProgressFile(path, clock))
    reporter.stage("copy")
    with open(path) as before:
        assert json.load(before) == {"stage": "copy", "done": 0, "total": None, "time": 1000.0}
        reporter.progress(5, 10)
        assert read()["done"] == 0, "written again within a second"
        clock.now += 1
        reporter.progress(6, 10)
        assert read() == {"stage": "copy", "done": 6, "total": 10, "time": 1001.0}
        assert os.fstat(before.fileno()).st_ino != os.stat(path).st_ino, "replaced, not rewritten"
    reporter.close()
    reporter.close()
    assert os.listdir(str(tmp_path / "run")) == []


def test_a_progress_file_that_can_not_be_written_does_not_end_the_run(tmp_path: Any) -> None:
    (tmp_path / "file").write_text("")
    reporter = progress.Silent(progress.ProgressFile(str(tmp_path / "file" / "etrial.progress")))
    reporter.stage("copy")
    reporter.close()


def test_a_terminal_gets_a_bar_and_everything_else_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(progress.for_stream(Terminal()), progress.Bar)
    assert isinstance(progress.for_stream(io.StringIO()), progress.Journal)
    assert type(progress.for_stream(io.StringIO(), quiet=True)) is progress.Silent
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(progress.for_stream(Terminal()), progress.Journal)
