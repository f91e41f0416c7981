# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a generation still is what was published: every file read again, and every name compared with the manifest."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import StillpointError, UsageError
from ..host.reporter import Reporter
from ..repository import compare, manifest, rsync
from ..repository.compare import Fault
from ..repository.generation import Generation, now
from ..repository.job_directory import JobDirectory
from ..repository.sums import Sums

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
    :ivar percent: of a sample, the share of the files that was to be read; None where all were
    :ivar of_files, of_bytes: all that the generation has
    """

    generation: str
    time: str
    files: int
    bytes: int
    faults: Tuple[Fault, ...]
    faults_total: int
    duration_s: float
    percent: Optional[float] = None
    of_files: int = 0
    of_bytes: int = 0

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
            "percent": self.percent,
            "of_files": self.of_files or self.files,
            "of_bytes": self.of_bytes or self.bytes,
        }


def verify(generation: Generation, reporter: Reporter, percent: Optional[float] = None) -> Verdict:
    """Read a generation, compare it with its manifest, record the Verdict beside it and return it.

    :param percent: read the contents of this share of the files alone, drawn at random; names, sizes, owners and times are compared of all
    :raises Gone: the generation is gone or being removed
    :raises StillpointError: it could not be read as a whole, so nothing is known
    """
    started = time.monotonic()
    faults: List[Fault] = []
    spoilt: List[Fault] = []
    total = files = size = 0
    of = (0, 0)
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
            of = files, size = generation.files, generation.size_bytes
            with tempfile.NamedTemporaryFile(dir="/var/tmp", prefix="stillpoint-") as paths:
                drawn = None
                if percent is not None:
                    drawn, files, size = _draw(generation, percent, paths)
                for fault in find_faults(generation, size, reporter, drawn, paths.name):
                    total += 1
                    if total <= MOST_FAULTS:
                        faults.append(fault)
                    if fault.contents:
                        spoilt.append(fault)
        verdict = Verdict(generation.name, now(), files, size, tuple(faults), total, round(time.monotonic() - started, 1), percent, *of)
        record(generation, verdict, reporter)
        _record_shared(generation, verdict, spoilt, reporter)
    return verdict


def record(generation: Generation, verdict: Verdict, reporter: Reporter) -> None:
    """Write a Verdict beside its generation; where that can't be done, say so. A sample without a fault says nothing of the rest: what is
    known of that stays."""
    known = generation.recorded
    if verdict.percent is not None and verdict.ok:
        _write(generation, {**known, "sample": verdict.as_dict()}, reporter)
    else:
        _write(generation, {**verdict.as_dict(), **{key: known[key] for key in ("proof",) if key in known}}, reporter)


def record_proof(generation: Generation, proof: Mapping[str, Any], reporter: Reporter) -> None:
    """Write what a proof on a copy found beside the generation."""
    _write(generation, {**generation.recorded, "proof": dict(proof)}, reporter)


def _write(generation: Generation, value: Mapping[str, Any], reporter: Reporter) -> None:
    try:
        JobDirectory(os.path.dirname(generation.path)).record(generation, value)
    except OSError as error:
        reporter.warn("the result can't be recorded as %s: %s" % (generation.verdict_path, error.strerror))
    except StillpointError as error:
        reporter.warn(str(error))


def found_damaged(generation: Generation, faults: List[Fault], reporter: Reporter) -> None:
    """Record faults that came up while a generation was used."""
    total = sum(tree.files for tree in generation.trees)
    verdict = Verdict(generation.name, now(), total, generation.size_bytes, tuple(faults[:MOST_FAULTS]), len(faults), 0.0)
    record(generation, verdict, reporter)
    _record_shared(generation, verdict, faults, reporter)


def _record_shared(generation: Generation, verdict: Verdict, faults: Sequence[Fault], reporter: Reporter) -> None:
    """Record wrong contents beside each other generation that has the same files: one that did not change is one file in all of them."""
    spoilt = [(fault, os.path.join(os.fsencode(generation.path), fault.contents)) for fault in faults if fault.contents]
    if not spoilt:
        return
    try:
        others = JobDirectory(os.path.dirname(generation.path)).generations()
    except StillpointError as error:
        reporter.warn(str(error))
        return
    for other in others:
        if other.name == generation.name or other.damage:
            continue
        same = [fault for fault, path in spoilt if _is_file(path, os.path.join(os.fsencode(other.path), fault.contents))]
        if same:
            known = (tuple(same[:MOST_FAULTS]), len(same), 0.0, None, other.files, other.size_bytes)
            with suppress(UsageError), other.hold():  # one that is about to go needs no record
                record(other, Verdict(other.name, verdict.time, 0, 0, *known), reporter)
                reporter.warn("%s is damaged too: it has the same file %s" % (other.name, same[0].path))


def _is_file(one: bytes, other: bytes) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def _draw(generation: Generation, percent: float, paths: IO[bytes]) -> Tuple[Callable[[bytes], bool], int, int]:
    """Draw files at random, each with the same chance and at least one; write their paths as rsync reads them. Return what tells of a path
    whether it was drawn, how many there are, and their bytes."""
    seed = os.urandom(16)

    def lot(path: bytes) -> int:
        return int.from_bytes(hashlib.sha256(seed + path).digest()[:8], "big")

    limit = int(percent / 100 * 2**64)
    lowest = min((lot(entry.path) for entry in manifest.entries(generation.path) if entry.type == manifest.FILE), default=0)
    limit = max(limit, lowest + 1)
    files = size = 0
    for entry in manifest.entries(generation.path):
        if entry.type == manifest.FILE and lot(entry.path) < limit:
            paths.write(entry.path + b"\0")
            files, size = files + 1, size + entry.size
    paths.flush()
    return lambda path: lot(path) < limit, files, size


def find_faults(
    generation: Generation, size: int, reporter: Reporter, drawn: Optional[Callable[[bytes], bool]] = None, paths: str = ""
) -> Iterator[Fault]:
    """Return what is wrong with a generation.

    :param drawn: tells of a path whether its contents are to be compared; None: those of all are
    :param paths: a file with those that are
    """
    root = os.fsencode(generation.path)
    sums = Sums()
    try:
        complaints = rsync.checksums(
            generation.path,
            algorithm=str(generation.summary["checksum"]),
            paths=paths if drawn else None,
            on_item=lambda item: sums.add(item.path, item.checksum),
            on_progress=lambda done: reporter.progress(min(done, size), size),
        )
        reporter.progress(size, size)
        for complaint in complaints:
            reporter.warn(complaint)
        found = (entry for entry, _allocated in manifest.walk(root, leave_out=(os.fsencode(manifest.NAME),)))
        expected = (entry if drawn is None or drawn(entry.path) else entry._replace(checksum="") for entry in manifest.entries(generation.path))
        yield from compare.compare(expected, found, sums)
    except OSError as error:
        raise StillpointError("%s can't be verified: %s" % (generation.path, error.strerror)) from error
    finally:
        sums.close()
