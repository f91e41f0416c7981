# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of a run or a restore, told by name as they are reached: --debug shows when, and tests end a run there."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Callable, Iterator, List, Tuple

_listeners: List[Callable[[str, str], None]] = []


@contextmanager
def listening(listener: Callable[[str, str], None]) -> Iterator[None]:
    """Have a function called with each step that the body reaches, and with what the step is about (a volume, a path), where that is known.

    It is called under locks too: it must neither wait nor write to anything that may.
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def reached(step: str, about: object = "") -> None:
    """Tell those who listen."""
    for listener in _listeners:
        listener(step, str(about))


class Log:
    """The steps with their times, kept in memory until somebody asks."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._steps: List[Tuple[float, str, str]] = []

    def note(self, step: str, about: str) -> None:
        self._steps.append((time.monotonic() - self._began, step, about))

    def lines(self) -> List[str]:
        """Return one line a step: the seconds since the beginning, and its name."""
        return [("%9.3f s  %s %s" % each).rstrip() for each in self._steps]
