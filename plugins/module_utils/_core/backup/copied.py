# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy from snapshots by itself, for a playbook: the module lvm_snapshot_rsync."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import StillpointError, UsageError
from ..host.process import require, undisturbed
from ..host.processes import COLLECTION, Owner, this_process
from ..host.reporter import Reporter
from ..host.text import moment
from ..job.options import is_rate
from ..lvm import layout, ownership, sizes, targets, volumes
from ..lvm.layout import FILES
from ..lvm.mounted import NOT_HELD, holds_of
from ..lvm.ownership import KEPT
from ..lvm.targets import Snapshot, Target
from ..mysql.coordinates import Coordinates
from ..mysql.locks import LockFacts
from ..repository import identity
from ..repository.estimate import estimate
from ..repository.generation import Generation
from ..repository.job_directory import JobDirectory
from ..repository.mirror import alone, mirror
from ..repository.partial import Partial
from ..repository.rsync_options import check_options
from ..repository.storing import storing
from ..repository.transfer import Copied
from ..trees import LeftOut, Tree
from . import checks, leftovers
from .pipeline import Backup, CopyOptions, Taking, publish, taken, told_when_stopped
from .point import Point, new_run_id, point_in_time
from .quiesced import MODULE_JOB
from .sources import Sources, find, left_out_of, trees_for

GENERATIONS, MIRROR = "generations", "mirror"


@dataclass(frozen=True)
class CopyRequest:
    """The module's options, by their names."""

    dest: str
    snapshots: Tuple[Mapping[str, Any], ...] = ()
    src: Tuple[str, ...] = ()
    point: Optional[Mapping[str, Any]] = None
    layout: str = GENERATIONS
    rsync_opts: Tuple[str, ...] = ()
    exclude: Tuple[str, ...] = ()
    bwlimit: Optional[str] = None
    snapshot_size: str = "auto"
    keep_snapshot: bool = False
    checksum: bool = False

    @property
    def how(self) -> CopyOptions:
        return CopyOptions(self.bwlimit, self.rsync_opts, self.checksum)


@dataclass(frozen=True)
class Handed:
    """What mysql_quiesce_snapshot returned besides its snapshots, made sure of; nothing of it where snapshots were given by themselves.

    :ivar warnings: what it warned of, which the manifest keeps
    """

    run_id: Optional[str]
    time: datetime
    lock: Optional[LockFacts] = None
    coordinates: Optional[Coordinates] = None
    server: Optional[Mapping[str, Any]] = None
    warnings: Tuple[str, ...] = ()

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Handed":
        """Return what the module's option has.

        :raises UsageError: it is not what mysql_quiesce_snapshot returned
        """
        when = _moment(facts.get("time"))
        lock, where, server = facts.get("lock"), facts.get("coordinates"), facts.get("server")
        try:
            return cls(
                str(facts["run_id"]) if facts.get("run_id") else None,
                when,
                LockFacts.from_dict(lock) if lock else None,
                Coordinates.from_dict(where) if where else None,
                dict(server) if server else None,
                tuple(map(str, facts.get("warnings") or ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError("point is not what mysql_quiesce_snapshot returned: %s is missing or wrong" % error) from error


def copy(request: CopyRequest, reporter: Reporter) -> Dict[str, Any]:
    """Copy from the snapshots and return what the module returns. Snapshots are removed at the end, also after a failure,
    unless keep_snapshot asks for them to stay.

    :raises UsageError: an argument is wrong; snapshots that were given are as they were
    :raises BusyError: another run is writing to `dest`; the same
    :raises StillpointError: nothing was published; a mirror may be half way
    """
    started = time.monotonic()
    handed = _check(request)
    owner = this_process(new_run_id(), MODULE_JOB)
    given = _checked(request) if request.snapshots else []
    trees = _trees(request, given) if request.snapshots else _file_trees(request)
    checks.check_repository(request.dest, [tree.source for tree in trees])
    directory = JobDirectory(request.dest)
    is_mirror = request.layout == MIRROR
    lock = alone(request.dest) if is_mirror else directory.lock()
    with lock, told_when_stopped("the copy") as complete:
        leftovers.clear(reporter, None, None if is_mirror else directory, needed=[snapshot.full_name for snapshot in given])
        total, new = _checked_size(request, handed, trees, directory)
        point = _given(request, handed, given, owner, reporter) if request.snapshots else _taken(request, new, owner, reporter)
        with taken(point, owner, reporter) as taking:
            for text in _doubts(request, [(snapshot.vg, snapshot.origin) for snapshot in taking.point.snapshots]):
                reporter.warn(text)
            generation = None
            if is_mirror:
                taking.copy(trees, _Mirror(request.dest, taking.point.time), request.how, total)
            else:
                generation = _published(request, handed, trees, total, directory, taking, started)
            complete(generation.path if generation else request.dest)
    for text in (*taking.point.warnings, *taking.watch.warnings):
        reporter.warn(text)
    changes = sum(copied.changes for copied in taking.copies)
    gone = [snapshot.full_name for snapshot in taking.point.snapshots if snapshot.full_name not in taking.point.left]
    return {
        # snapshots that were handed over and are removed are a change, and so are new ones that are kept
        "changed": not is_mirror or bool(changes) or bool(request.snapshots) != request.keep_snapshot,
        "changes": changes,
        "generation": generation.name if generation else None,
        "path": generation.path if generation else request.dest,
        "files": sum(copied.files for copied in taking.copies),
        "bytes": sum(copied.bytes for copied in taking.copies),
        "bytes_transferred": sum(copied.bytes_transferred for copied in taking.copies),
        "duration_s": round(time.monotonic() - started, 1),
        "snapshot_used_percent": max(taking.watch.used_percent.values(), default=None),
        "removed": [] if request.keep_snapshot else gone,
    }


def copy_plan(request: CopyRequest, reporter: Reporter) -> Dict[str, Any]:
    """Return what `copy` would do, as far as it can be known, with nothing changed. A destination that is not there may be what a task before this
    one has planned to make: that is a warning."""
    handed = _check(request)
    if any(facts.get("name") for facts in request.snapshots):
        given = _checked(request)
        origins = [(snapshot.vg, snapshot.origin) for snapshot in given]
        removed = [snapshot.full_name for snapshot in given]
    else:
        given = _planned(request)
        planned = _sources(request).targets(sizes.parse(request.snapshot_size), {}) if not request.snapshots else []
        origins = [(each.vg, each.origin) for each in given] + [(each.volume.vg, each.volume.name) for each in planned]
        removed = ["%s/(a new snapshot of %s)" % origin for origin in origins]
    trees = _trees(request, given) if request.snapshots else _file_trees(request)
    sources = [tree.source for tree in trees]
    if os.path.lexists(request.dest):
        checks.check_repository(request.dest, sources)
        total, new = _checked_size(request, handed, trees, JobDirectory(request.dest))
        if not request.snapshots:
            _targets(request, new)
        for text in _doubts(request, origins):
            reporter.warn(text)
    else:
        checks.check_apart(request.dest, sources)
        reporter.warn("%s does not exist: it has to be there by then" % request.dest)
        total, new = estimate(trees, {})
    return {
        "changed": True,
        "changes": None,
        "generation": None,
        "path": request.dest,
        "files": None,
        "bytes": total,
        "bytes_transferred": new,
        "duration_s": 0,
        "snapshot_used_percent": None,
        "removed": [] if request.keep_snapshot else removed,
    }


def _check(request: CopyRequest) -> Handed:
    """Return what came with the snapshots.

    :raises UsageError: an option is wrong in itself
    :raises StillpointError: the live data is half restored
    """
    checks.refuse_half_done()
    check_options(request.rsync_opts)
    if request.bwlimit is not None and not is_rate(request.bwlimit):
        raise UsageError("bwlimit %r is not a rate as rsync takes it: 5000 (KiB/s), 20M, 1.5G" % request.bwlimit)
    if not request.snapshots and not request.src:
        raise UsageError("give snapshots (what mysql_quiesce_snapshot returned) or src (paths to snapshot and copy)")
    sizes.parse(request.snapshot_size)
    return Handed.of(request.point or {})


def _checked_size(request: CopyRequest, handed: Handed, trees: Sequence[Tree], directory: JobDirectory) -> Tuple[int, int]:
    """Return ``(bytes to copy, bytes that have to be free for that)``.

    :raises StillpointError: there is no room for that, or what is there is another machine's
    """
    if request.layout == MIRROR:
        there = {tree.name: os.path.join(request.dest, tree.name) for tree in trees}
        total, needed = estimate(trees, {name: path for name, path in there.items() if os.path.isdir(path)})
    else:
        identity.check(directory, identity.here(handed.server))
        stored = storing(directory, trees, checks.newest_trees(directory), request.rsync_opts)
        total, needed = stored.sizes.total, stored.needed
    checks.check_room(request.dest, needed)
    return total, needed


def _doubts(request: CopyRequest, origins: Sequence[Tuple[str, str]]) -> List[str]:
    """Return what somebody should know of the destination of a copy from snapshots of these ``(vg, name)``."""
    inside = layout.volume_of(request.dest, volumes.volumes())
    return checks.beside_its_sources(request.dest, inside.full_name if inside else "", ["%s/%s" % each for each in origins])


def _sources(request: CopyRequest) -> Sources:
    """Return where `src` lies."""
    require("lvs", "rsync", "mount", "sync")
    return find(None, _paths(request.src), request.exclude, volumes.volumes())


def _targets(request: CopyRequest, new: int) -> List[Target]:
    """Return the volumes to snapshot for `src` alone.

    :param new: bytes that the copy will write to the destination
    """
    sources = _sources(request)
    inside = layout.volume_of(request.dest, sources.known)
    return sources.targets(sizes.parse(request.snapshot_size), {inside.full_name: new} if inside else {})


@dataclass(frozen=True)
class _Mirror:
    """A mirror as a destination of trees."""

    path: str
    time: datetime

    def add(self, tree: Tree, **how: Any) -> Copied:
        return mirror([tree], self.path, time=self.time, **how)


def _published(
    request: CopyRequest, handed: Handed, trees: Sequence[Tree], total: int, directory: JobDirectory, taking: Taking, started: float
) -> Generation:
    """Copy into a new generation and return that. It is published while the snapshots are there: what a playbook has handed over can't be taken again."""
    with Partial(directory, taking.owner.run_id) as partial:
        taking.copy(trees, partial, request.how, total)
        backup = Backup.of(os.path.basename(request.dest.rstrip("/")), taking, told=handed.warnings)
        generation = publish(backup, partial, started, taking.reporter)
    for text in partial.warnings:
        taking.reporter.warn(text)
    return generation


@contextmanager
def _taken(request: CopyRequest, new: int, owner: Owner, reporter: Reporter) -> Iterator[Point]:
    """Take snapshots for `src` alone: sync, snapshot; no server is asked."""
    reporter.stage("snapshot")
    with point_in_time(_targets(request, new), owner, None, reporter.note, hand_over=request.keep_snapshot) as point:
        yield point
        if request.keep_snapshot:
            for snapshot in point.snapshots:
                volumes.retag(snapshot.full_name, add=[KEPT])


@contextmanager
def _given(request: CopyRequest, handed: Handed, given: List[Snapshot], owner: Owner, reporter: Reporter) -> Iterator[Point]:
    """Make the snapshots that a playbook holds this process's own for as long as it lasts, and remove them at the end. That one can't be removed makes
    no copy worse: it is a warning."""
    for snapshot in given if not request.keep_snapshot else ():  # what is kept stays what it is: an undo point too
        _hand(snapshot, add=owner.tags())
    point = Point(handed.run_id or owner.run_id, handed.time, given, handed.lock, handed.coordinates, handed.server)
    try:
        yield point
    finally:
        if not request.keep_snapshot:
            with undisturbed():
                for snapshot in given:
                    try:
                        ownership.remove(snapshot.full_name)
                    except StillpointError as error:
                        point.left.append(snapshot.full_name)
                        reporter.warn(str(error))


def _hand(snapshot: Snapshot, *, add: Sequence[str]) -> None:
    """Replace the tags that name a snapshot's owner. It is never without one: a kill in between leaves it to be found."""
    volume = volumes.by_name(volumes.volumes(), snapshot.full_name)
    old = [tag for tag in (volume.tags if volume else ()) if tag.startswith(COLLECTION + ".") and tag not in add]
    volumes.retag(snapshot.full_name, add=add, remove=old)


def _checked(request: CopyRequest) -> List[Snapshot]:
    """Return the snapshots that were given, made sure of: each exists, is ours, and is of the origin that it should be of."""
    require("lvs", "rsync", "mount")
    known = volumes.volumes()
    given = [targets.from_dict(facts) for facts in request.snapshots]
    for snapshot in given:
        volume = volumes.by_name(known, snapshot.full_name)
        if volume is None:
            raise StillpointError("the snapshot %s does not exist any more" % snapshot.full_name)
        if ownership.owner(volume.tags) is None or volume.origin != snapshot.origin:
            raise StillpointError(
                "%s is not a snapshot of %s/%s that mysql_quiesce_snapshot made" % (snapshot.full_name, snapshot.vg, snapshot.origin)
            )
    return given


def _planned(request: CopyRequest) -> List[Snapshot]:
    """Return the snapshots that were given without names: mysql_quiesce_snapshot would make them, and was in check mode too."""
    require("rsync", "mount")
    unknown = {"name": "", "device": "", "dm_name": ""}
    return [targets.from_dict({**facts, **unknown, "size_bytes": facts.get("size_bytes") or 0}) for facts in request.snapshots]


def _trees(request: CopyRequest, given: Sequence[Snapshot]) -> List[Tree]:
    """Return the trees to copy: `src`, or all that the snapshots hold."""
    holds = {hold.path: hold for snapshot in given for hold in snapshot.holds}
    roles = {path: hold.role for path, hold in holds.items()}
    paths = _paths(request.src or tuple(roles))
    if not paths:
        raise UsageError("the snapshots hold no path that was asked for: name the paths to copy in src")
    wanted = [(roles.get(path, FILES), path) for path in paths]
    left = left_out_of([(role, path) for role, path in wanted if role == FILES], request.exclude)
    for path in paths:
        if path in holds:
            left[path] = LeftOut((*holds[path].left_out, *left.get(path, LeftOut()).patterns))
    trees = list(trees_for(wanted, left))
    for tree in trees:
        if not holds_of(tree.source, given):
            raise UsageError(NOT_HELD % tree.source)
    return trees


def _file_trees(request: CopyRequest) -> List[Tree]:
    """Return the trees to copy of `src` alone."""
    wanted = [(FILES, path) for path in _paths(request.src)]
    return list(trees_for(wanted, left_out_of(wanted, request.exclude)))


def _paths(given: Sequence[str]) -> List[str]:
    return [path.rstrip("/") or "/" for path in given]


def _moment(text: Any) -> datetime:
    """Return the moment that an ISO 8601 text names; now where there is none."""
    if not text:
        return datetime.now(timezone.utc)
    try:
        return moment(str(text))
    except ValueError as error:
        raise UsageError("point.time %r is not a time as mysql_quiesce_snapshot returns it" % text) from error
