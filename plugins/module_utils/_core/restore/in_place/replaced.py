# SPDX-License-Identifier: GPL-3.0-or-later
"""What restores in place have replaced and kept: recorded, listed, discarded."""

from __future__ import annotations

import os
import zlib
from dataclasses import asdict, dataclass
from typing import List, Optional, Sequence, Tuple

from ...host import durable
from ...host.errors import StillpointError
from ...host.mounts import is_below
from ...host.reporter import Reporter
from .. import journal as journals
from ..journal import Journal, KeptPath
from .targets import stamp_of


@dataclass(frozen=True)
class Replaced:
    """Data that a restore in place has replaced and kept.

    :ivar path: where it is
    :ivar target: where it was
    :ivar time: when it was replaced, ISO 8601, UTC
    """

    path: str
    target: str
    time: str
    job: str
    generation: str
    record: str
    identity: str


@dataclass(frozen=True)
class _Record:
    """What one restore has kept, as the file at `path` says."""

    path: str
    job: str
    generation: str
    time: str
    kept: Tuple[KeptPath, ...]


def record(state: str, journal: Journal) -> None:
    """Write down what a restore has kept, if anything."""
    if journal.kept:
        facts = {"job": journal.job, "generation": journal.generation, "time": journal.time, "kept": [asdict(each) for each in journal.kept]}
        durable.write_json(_path(state, journal), facts)


def forget_record(state: str, journal: Journal) -> None:
    """Remove what `record` has written: nothing of it is kept any more."""
    path = _path(state, journal)
    if os.path.lexists(path):
        os.unlink(path)
        durable.sync_directory(state)


def _path(state: str, journal: Journal) -> str:
    first = journal.targets[0]  # its path too: parts of several directories may be restored within a second
    return os.path.join(state, "kept-%s-%08x.json" % (stamp_of(first.kept), zlib.crc32(os.fsencode(first.path))))


def _read(path: str) -> Optional[_Record]:
    facts = durable.read_json(path)
    if not isinstance(facts, dict):
        return None
    return _Record(path, facts["job"], facts["generation"], facts["time"], tuple(KeptPath(**each) for each in facts["kept"]))


def replaced(job: Optional[str] = None, *, state: str = journals.STATE) -> List[Replaced]:
    """Return what restores in place have replaced and kept, oldest first.

    :param job: of this job; default: of any
    """
    names = [name for name in os.listdir(state) if name.startswith("kept-") and name.endswith(".json")] if os.path.isdir(state) else []
    paths = sorted((os.path.join(state, name) for name in names), key=lambda path: os.stat(path).st_mtime_ns)
    records = [each for each in map(_read, paths) if each is not None]
    found: List[Replaced] = []
    for number, own in enumerate(records):
        if job not in (None, own.job):
            continue
        for kept in own.kept:
            where = _now_at(kept, [moved for later in records[number + 1 :] for moved in later.kept])
            # Somebody may have moved it back, or removed it by hand, and something else may have its name.
            if kept.identity is not None and durable.identity(where) == kept.identity:
                found.append(Replaced(where, kept.target, own.time, own.job, own.generation, own.path, kept.identity))
    return found


def _now_at(kept: KeptPath, later: Sequence[KeptPath]) -> str:
    """Return where something that was kept is now: a later restore may have replaced a directory that it lies in.

    :param later: what later restores have kept, in their order
    """
    where = kept.path
    for moved in later:
        if is_below(where, moved.target) and durable.identity(where) != kept.identity:
            where = moved.path + where[len(moved.target) :]
    return where


def discard(kept: Sequence[Replaced], reporter: Reporter, *, state: str = journals.STATE) -> List[str]:
    """Delete what restores have kept, for good, and return the paths.

    :raises BusyError: a restore is running
    :raises StillpointError: one was interrupted, and may still need it
    """
    gone: List[str] = []
    with journals.alone(state):
        if journals.pending(state=state):
            raise StillpointError("a restore was interrupted while it replaced live data: finish or undo it before anything is discarded")
        reporter.stage("discard")
        for each in kept:
            if durable.identity(each.path) == each.identity:
                durable.remove_tree(each.path)
                gone.append(each.path)
        for path in {each.record for each in kept}:
            left = _read(path)
            if left is None or not any(durable.identity(one.path) == one.identity for one in left.kept):
                os.unlink(path)
    return gone
