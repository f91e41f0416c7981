# SPDX-License-Identifier: GPL-3.0-or-later
"""What a command says while it goes on: a bar on a terminal, lines in a journal."""

from __future__ import annotations

import os
import shutil
import time
from typing import Callable, List, Optional, TextIO

from ..host.reporter import ProgressFile, Silent
from ..host.run_directory import RUN_DIRECTORY
from ..host.text import duration, size
from .output import is_journal

BAR_EVERY = 0.1  # seconds
JOURNAL_EVERY = 30.0

_BAR_CELLS = 24
_ERASE = "\r\x1b[K"


def for_stream(stream: TextIO, job: Optional[str] = None, *, quiet: bool = False) -> "Silent":
    """Return the Reporter that suits a stream: a bar on a terminal, lines elsewhere, nothing where that is asked for.

    :param job: keep ``/run/stillpoint/JOB.progress`` too
    """
    file = ProgressFile(os.path.join(RUN_DIRECTORY, job + ".progress")) if job else None
    if quiet:
        return Silent(file)
    if stream.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return Bar(stream, file)
    return Journal(stream, file)


class _Written(Silent):
    """A reporter that writes to a stream; one that has gone away does not end the run."""

    def __init__(self, stream: TextIO, file: Optional[ProgressFile] = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(file, clock)
        self._stream = stream

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            pass


class Bar(_Written):
    """One line at the bottom of a terminal that is drawn over and over, and erased at the end."""

    def __init__(
        self,
        stream: TextIO,
        file: Optional[ProgressFile] = None,
        clock: Callable[[], float] = time.monotonic,
        columns: Optional[int] = None,
    ) -> None:
        super().__init__(stream, file, clock)
        self._columns = columns
        self._drawn: Optional[float] = None

    def _show_stage(self) -> None:
        self._drawn = None
        self._show_progress()

    def _show_progress(self) -> None:
        now = self._clock()
        if self._closed or (self._drawn is not None and now - self._drawn < BAR_EVERY):
            return
        self._drawn = now
        columns = self._columns or shutil.get_terminal_size().columns
        self._write(_ERASE + line(self._stage, self._done, self._total, now - self._began, columns - 1))

    def _show_line(self, text: str, *, urgent: bool) -> None:
        self._write("%s%s\n" % (_ERASE, text))
        self._drawn = None
        if self._stage:
            self._show_progress()

    def _show_end(self) -> None:
        self._write(_ERASE)


class Journal(_Written):
    """A line for each stage, and now and then one that says how far it is: for a journal, a log or a pipe."""

    def __init__(
        self,
        stream: TextIO,
        file: Optional[ProgressFile] = None,
        clock: Callable[[], float] = time.monotonic,
        priorities: Optional[bool] = None,
    ) -> None:
        super().__init__(stream, file, clock)
        self._said = clock()
        self._priorities = is_journal(stream) if priorities is None else priorities

    def _show_stage(self) -> None:
        self._said = self._clock()
        self._show_line(self._stage, urgent=False)

    def _show_progress(self) -> None:
        now = self._clock()
        if now - self._said >= JOURNAL_EVERY:
            self._said = now
            self._show_line("%s: %s" % (self._stage, ", ".join(figures(self._done, self._total, now - self._began))), urgent=False)

    def _show_line(self, text: str, *, urgent: bool) -> None:
        # <4> is a warning to journald (sd-daemon(3)); elsewhere it would only be noise
        self._write("%s%s\n" % ("<4>" if urgent and self._priorities else "", text))


def figures(done: int, total: Optional[int], seconds: float) -> List[str]:
    """Return what there is to say of a stage: share, bytes, rate, time left; the most telling first."""
    parts = []
    if total:
        parts.append("%3d %%" % min(100, done * 100 // total))
    if done or total:
        parts.append("%s of %s" % (size(done), size(total)) if total else size(done))
    if done and seconds >= 1:
        parts.append("%s/s" % size(done / seconds))
        if total and done < total:
            parts.append("%s left" % duration((total - done) * seconds / done))
    return parts


def line(stage: str, done: int, total: Optional[int], seconds: float, columns: int) -> str:
    """Return the bar's line for a stage, no longer than ``columns``: what does not fit is left out from the right."""
    parts = [stage]
    if total:
        full = min(_BAR_CELLS, done * _BAR_CELLS // total)
        parts.append("[%s%s]" % ("#" * full, "." * (_BAR_CELLS - full)))
    parts += figures(done, total, seconds) or ([duration(seconds)] if seconds >= 1 else [])
    while len(parts) > 1 and len("  ".join(parts)) > columns:
        parts.pop()
    return "  ".join(parts)[: max(columns, 0)]
