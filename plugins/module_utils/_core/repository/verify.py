# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a generation still is what was published: every file read again, and every name compared with the manifest."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, Iterator, List, Tuple

from .. import durable
from ..copy import rsync
from ..errors import StillpointError
from ..observe.progress import Reporter
from . import manifest
from .generations import Generation
from .manifest import Fault, Sums

# The first of them are kept; where everything is wrong, a list of everything says no more.
MOST_FAULTS = 100


@dataclass(frozen=True)
class Verdict:
    """What a verification found.

    :ivar time: when it ended, ISO 8601, UTC
    :ivar files: regular files that were read
    :ivar bytes: theirs
    :ivar faults: the first of them
    :ivar faults_total: how many there are
    """

    generation: str
    time: str
    files: int
    bytes: int
    faults: Tuple[Fault, ...]
    faults_total: int
    duration_s: float

    @property
    def ok(self) -> bool:
        return not self.faults_total

    def as_dict(self) -> Dict[str, Any]:
        """Return it as it is recorded and shown."""
        return {
            "generation": self.generation,
            "time": self.time,
            "ok": self.ok,
            "files": self.files,
            "bytes": self.bytes,
            "faults": [fault.text() for fault in self.faults],
            "faults_total": self.faults_total,
            "duration_s": self.duration_s,
        }


def verify(generation: Generation, reporter: Reporter) -> Verdict:
    """Read a generation, compare it with its manifest, record the Verdict beside it and return it.

    :raises UsageError: the generation is gone or being removed
    :raises StillpointError: it could not be read as a whole, so nothing is known
    """
    started = time.monotonic()
    faults: List[Fault] = []
    total = files = size = 0
    with generation.hold():
        reporter.stage("verify")
        try:
            manifest.check(generation.path)
            if generation.reason and not generation.summary:
                raise manifest.Damaged(generation.reason)
        except manifest.Damaged as error:
            # Without it nothing says what the files should be.
            faults, total = [Fault(manifest.NAME, str(error))], 1
        else:
            files, size = (sum(getattr(tree, what) for tree in generation.trees) for what in ("files", "bytes"))
            for fault in _faults(generation, size, reporter):
                total += 1
                if total <= MOST_FAULTS:
                    faults.append(fault)
        verdict = Verdict(generation.name, _now(), files, size, tuple(faults), total, round(time.monotonic() - started, 1))
        record(generation, verdict, reporter)
    return verdict


def record(generation: Generation, verdict: Verdict, reporter: Reporter) -> None:
    """Write a Verdict beside its generation; where that can't be done, say so."""
    try:
        durable.write_json(generation.verdict_path, verdict.as_dict())
    except OSError as error:
        reporter.warn("the result can't be recorded as %s: %s" % (generation.verdict_path, error.strerror))


def found_damaged(generation: Generation, faults: List[Fault], reporter: Reporter) -> None:
    """Record faults that came up while a generation was used."""
    total = sum(tree.files for tree in generation.trees)
    verdict = Verdict(generation.name, _now(), total, generation.size_bytes, tuple(faults[:MOST_FAULTS]), len(faults), 0.0)
    record(generation, verdict, reporter)


def _faults(generation: Generation, size: int, reporter: Reporter) -> Iterator[Fault]:
    root = os.fsencode(generation.path)
    sums = Sums()
    try:
        complaints = rsync.checksums(
            generation.path,
            algorithm=str(generation.summary["checksum"]),
            on_item=lambda item: sums.add(item.path, item.checksum),
            on_progress=lambda done: reporter.progress(min(done, size), size),
        )
        reporter.progress(size, size)
        for complaint in complaints:
            reporter.warn(complaint)
        found = (entry for entry, _allocated in manifest.walk(root, leave_out=(os.fsencode(manifest.NAME),)))
        yield from manifest.compare(manifest.entries(generation.path), found, sums)
    except OSError as error:
        raise StillpointError("%s can't be verified: %s" % (generation.path, error.strerror)) from error
    finally:
        sums.close()


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
