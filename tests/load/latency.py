# SPDX-License-Identifier: GPL-3.0-or-later
"""What a writer noted: one line per finished step, and the figures made of them."""

from __future__ import annotations

import glob
import math
import os
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

KINDS = ("commit", "audit", "audit2", "file")


@dataclass(frozen=True)
class Step:
    """One acknowledged step of one writer. `started` is the guest's clock, `seconds` how long the writer waited."""

    writer: int
    kind: str
    seq: int
    started: float
    seconds: float

    @property
    def ended(self) -> float:
        return self.started + self.seconds


@dataclass(frozen=True)
class Figures:
    """How long the steps of one kind took, in milliseconds, and when the worst of them ran."""

    count: int
    median_ms: float
    p99_ms: float
    worst_ms: float
    worst_writer: int
    worst_seq: int
    worst_started: float
    worst_ended: float


def log_path(log_dir: str, writer: int) -> str:
    return os.path.join(log_dir, f"w{writer:02d}.log")


def note(log: TextIO, step: Step) -> None:
    """Append `step` to an open log; the log is line buffered, so that a killed writer has noted all it knew."""
    log.write(f"{step.kind}\t{step.seq}\t{step.started:.6f}\t{step.seconds:.6f}\n")


def read(log_dir: str) -> Iterator[Step]:
    """Yield every step that the logs below `log_dir` hold; an unfinished last line is left out."""
    for path in sorted(glob.glob(os.path.join(log_dir, "w[0-9][0-9].log"))):
        writer = int(re.findall(r"\d+", os.path.basename(path))[0])
        with open(path, encoding="ascii") as log:
            for line in log:
                if line.endswith("\n"):
                    kind, seq, started, seconds = line.split("\t")
                    yield Step(writer, kind, int(seq), float(started), float(seconds))


def within(steps: Sequence[Step], since: float, until: float) -> list[Step]:
    """Return the steps that ran at any moment of [since, until], those that began before or ended after included."""
    return [step for step in steps if step.ended >= since and step.started <= until]


def figures(steps: Sequence[Step]) -> dict[str, Figures]:
    """Return the figures of each kind that occurs in `steps`."""
    return {kind: _of_one_kind([s for s in steps if s.kind == kind]) for kind in KINDS if any(s.kind == kind for s in steps)}


def known(steps: Sequence[Step], at: float = math.inf) -> dict[int, int]:
    """Return writer → the last key whose commit the server had acknowledged at the time `at`."""
    last: dict[int, int] = {}
    for step in steps:
        if step.kind == "commit" and step.ended <= at:
            last[step.writer] = max(step.seq, last.get(step.writer, 0))
    return last


def _of_one_kind(steps: Sequence[Step]) -> Figures:
    took = sorted(step.seconds for step in steps)
    worst = max(steps, key=lambda step: step.seconds)
    p99 = took[math.ceil(0.99 * len(took)) - 1]
    return Figures(
        count=len(took),
        median_ms=_ms(statistics.median(took)),
        p99_ms=_ms(p99),
        worst_ms=_ms(worst.seconds),
        worst_writer=worst.writer,
        worst_seq=worst.seq,
        worst_started=worst.started,
        worst_ended=worst.ended,
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
