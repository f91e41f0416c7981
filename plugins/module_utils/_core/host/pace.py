# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast bytes may go by, and before whom."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, suppress
from typing import Callable, Iterator, Optional

from .process import LOW_PRIORITY

_UNITS = {"": 1 << 10, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_TICK = 0.2  # seconds between two looks at what the work depends on


def rate(bwlimit: Optional[str]) -> Optional[float]:
    """Return the bytes per second of a limit as rsync takes it: ``5000`` (KiB), ``20M``, ``1.5G``; None for no limit.

    :raises ValueError: it has another form, of those that rsync takes besides
    """
    if bwlimit is None:
        return None
    unit = bwlimit[-1:].lower() if bwlimit[-1:].isalpha() else ""
    if unit not in _UNITS:
        raise ValueError("no rate: %r" % bwlimit)
    return float(bwlimit.rstrip("KMGkmg")) * _UNITS[unit] or None


class Pace:
    """Keeps work within a rate, and looks now and then at what the work depends on.

    :ivar done: bytes that have gone by
    """

    def __init__(self, limit: Optional[float], tick: Callable[[], None]) -> None:
        """:param tick: called several times a second; what it raises ends the work"""
        self._limit = limit
        self._tick = tick
        self._began = time.monotonic()
        self._seen = 0.0
        self.done = 0

    def went_by(self, number: int) -> None:
        """Count bytes, and wait where they were faster than they may be."""
        self.done += number
        while True:
            now = time.monotonic()
            if now - self._seen >= _TICK:
                self._tick()
                self._seen = now
            ahead = self.done / self._limit - (now - self._began) if self._limit else 0.0
            if ahead <= 0:
                return
            time.sleep(min(ahead, _TICK))


@contextmanager
def giving_way() -> Iterator[None]:
    """Let everything else on the host go first, in the body, where this process may take its priority back."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if os.geteuid() != 0 or before >= LOW_PRIORITY:
        yield
        return
    os.setpriority(os.PRIO_PROCESS, 0, LOW_PRIORITY)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)
