# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
from pathlib import Path
from typing import List, Set, Tuple

import pytest
from _core.host import steps

PROJECT = Path(__file__).resolve().parents[3]


def test_who_listens_is_told_of_each_step_and_what_it_is_about_and_nobody_afterwards() -> None:
    told: List[Tuple[str, str]] = []
    with pytest.raises(KeyError), steps.listening(lambda step, about: told.append((step, about))):
        steps.reached("lock held", 12)
        steps.reached("frozen")
        raise KeyError
    steps.reached("snapshot taken")
    assert told == [("lock held", "12"), ("frozen", "")]


def test_what_a_listener_raises_ends_the_step() -> None:
    def end(_step: str, _about: str) -> None:
        raise InterruptedError

    with steps.listening(end), pytest.raises(InterruptedError):
        steps.reached("frozen")


def found(pattern: str, *folders: str) -> Set[str]:
    files = [path for folder in folders for path in (PROJECT / folder).rglob("*.py")]
    return {name for path in files for name in re.findall(pattern, path.read_text(encoding="utf-8"))}


def test_each_step_that_a_test_in_a_machine_names_is_one_that_the_agent_tells_of() -> None:
    told = found(r"""\b(?:reached|stage)\("([^"]+)\"""", "plugins/module_utils/_core")
    named = found(r"""\bat\('([^']+)'""", "tests/integration")
    (more,) = found(r"(?s)\nSTEPS = \((.*?)\n\)", "tests/integration")
    named |= set(re.findall(r'"(.*)"', more))
    assert len(named) > 15
    assert named - told == set()
