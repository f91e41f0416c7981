# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told how a run gets on, and the small file for whoever polls."""

from __future__ import annotations

import json
import os
import time
from typing import Callable, Optional, Protocol

from .steps import reached

FILE_EVERY = 1.0  # seconds


class Reporter(Protocol):
    """Who is told how a backup, a verification or a restore gets on. No method of a reporter ever fails."""

    def stage(self, name: str) -> None:
        """Begin the stage of this name; the one before it has ended."""

    def progress(self, done: int, total: Optional[int] = None) -> None:
        """Say how many bytes of this stage are done, and of how many, where that is known."""

    def note(self, text: str) -> None:
        """Say something that is worth a line."""

    def warn(self, text: str) -> None:
        """Say something that somebody has to look at."""

    def close(self) -> None:
        """End the last stage; nothing is said after that."""


class ProgressFile:
    """A JSON object ``{stage, done, total, time}`` in a file, replaced as a whole at most once a second, gone when the run is."""

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._written = 0.0

    def write(self, stage: str, done: int, total: Optional[int], *, now: bool = False) -> None:
        """Write the file, unless that was done a moment ago and ``now`` does not ask for it."""
        time_now = self._clock()
        if not now and abs(time_now - self._written) < FILE_EVERY:
            return
        self._written = time_now
        new = "%s.%d" % (self._path, os.getpid())
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            with open(new, "w", encoding="ascii") as file:
                json.dump({"stage": stage, "done": done, "total": total, "time": time_now}, file)
            os.replace(new, self._path)
        except OSError:
            pass  # who polls sees an old state; the run goes on

    def remove(self) -> None:
        try:
            os.unlink(self._path)
        except OSError:
            pass


class Silent:
    """Says nothing, and keeps the progress file where there is one."""

    def __init__(self, file: Optional[ProgressFile] = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._stage = ""
        self._began = clock()
        self._done = 0
        self._total: Optional[int] = None
        self._closed = False

    def stage(self, name: str) -> None:
        reached(name)
        self._stage, self._began, self._done, self._total = name, self._clock(), 0, None
        if self._file:
            self._file.write(name, 0, None, now=True)
        self._show_stage()

    def progress(self, done: int, total: Optional[int] = None) -> None:
        self._done, self._total = done, total
        if self._file:
            self._file.write(self._stage, done, total)
        self._show_progress()

    def note(self, text: str) -> None:
        self._show_line(text, urgent=False)

    def warn(self, text: str) -> None:
        self._show_line("warning: " + text, urgent=True)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._show_end()
            if self._file:
                self._file.remove()

    def _show_stage(self) -> None:
        pass

    def _show_progress(self) -> None:
        pass

    def _show_line(self, text: str, *, urgent: bool) -> None:
        pass

    def _show_end(self) -> None:
        pass
