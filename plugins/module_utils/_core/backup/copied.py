# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy from snapshots by itself, for a playbook: the module lvm_snapshot_rsync."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import StillpointError, Stopped, UsageError
from ..host.machine import this_machine
from ..host.process import require, undisturbed
from ..host.processes import COLLECTION, Owner, this_process
from ..host.reporter import Reporter
from ..host.text import iso, moment
from ..host.version import VERSION
from ..job.names import host_name
from ..lvm import dm, layout, ownership, sizes, targets, volumes
from ..lvm.layout import FILES
from ..lvm.mounted import NOT_HELD, holds_of, mounted
from ..lvm.ownership import KEPT
from ..lvm.targets import Snapshot, Target
from ..lvm.watch import Watch
from ..repository import identity, rsync
from ..repository.estimate import estimate
from ..repository.job_directory import JobDirectory
from ..repository.mirror import alone, mirror
from ..repository.partial import Partial
from ..repository.rsync_options import check_options
from ..repository.storing import storing
from ..trees import LeftOut, Tree
from . import checks
from . import plan as planning
from .copy import copy_trees
from .point import Point, new_run_id, point_in_time
from .quiesced import MODULE_JOB

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


def copy(request: CopyRequest, reporter: Reporter) -> Dict[str, Any]:
    """Copy from the snapshots and return what the module returns. Snapshots are removed at the end, also after a failure,
    unless keep_snapshot asks for them to stay.

    :raises UsageError: an argument is wrong; snapshots that were given are as they were
    :raises BusyError: another run is writing to `dest`; the same
    :raises StillpointError: nothing was published; a mirror may be half way
    """
    planning.refuse_half_done()
    started = time.monotonic()
    owner = this_process(new_run_id(), MODULE_JOB)
    given = _checked(request) if request.snapshots else []
    trees = _trees(request, given) if request.snapshots else _file_trees(request)
    checks.check_repository(request.dest, [tree.source for tree in trees])
    check_options(request.rsync_opts)
    complete: List[str] = []
    directory = JobDirectory(request.dest)
    total, _new = _checked_size(request, trees, directory)
    with _told_when_stopped(complete), ExitStack() as stack:
        stack.enter_context(alone(request.dest) if request.layout == MIRROR else directory.lock())
        point = stack.enter_context(_given(request, given, owner) if request.snapshots else _taken(request, owner, reporter))
        watch = Watch(list(point.snapshots), stack.enter_context(dm.Control()))
        if request.layout == MIRROR:
            with mounted(point.snapshots, owner) as to_snapshot:
                copied = mirror(
                    [to_snapshot(tree) for tree in trees],
                    request.dest,
                    time=point.time,
                    bwlimit=request.bwlimit,
                    options=request.rsync_opts,
                    checksum=request.checksum,
                    on_progress=lambda done: reporter.progress(done, total),
                    watch=watch,
                )
                watch.check()
            complete.append(request.dest)
            result = {
                # snapshots that were handed over and are removed are a change, and so are new ones that are kept
                "changed": bool(copied.changes) or bool(request.snapshots) != request.keep_snapshot,
                "changes": copied.changes,
                "generation": None,
                "path": request.dest,
                "files": copied.files,
                "bytes": copied.bytes,
                "bytes_transferred": copied.bytes_transferred,
            }
        else:
            directory.clean(lambda error: reporter.warn(str(error)))
            with Partial(directory, owner.run_id) as partial:
                with mounted(point.snapshots, owner) as to_snapshot:
                    copies = copy_trees([to_snapshot(tree) for tree in trees], partial, request, watch, reporter, total)
                generation = partial.publish(point.time, _summary(point, request, watch, started))
                complete.append(generation.path)
            for text in filter(None, (*partial.warnings, partial.trouble)):
                reporter.warn(text)
            result = {
                "changed": True,
                "changes": sum(copied.changes for copied in copies),
                "generation": generation.name,
                "path": generation.path,
                "files": sum(copied.files for copied in copies),
                "bytes": sum(copied.bytes for copied in copies),
                "bytes_transferred": sum(copied.bytes_transferred for copied in copies),
            }
    for text in (*point.warnings, *watch.warnings):
        reporter.warn(text)
    used = max(watch.used_percent.values(), default=None)
    removed = [] if request.keep_snapshot else [snapshot.full_name for snapshot in point.snapshots]
    return {**result, "duration_s": round(time.monotonic() - started, 1), "snapshot_used_percent": used, "removed": removed}


def copy_plan(request: CopyRequest, reporter: Reporter) -> Dict[str, Any]:
    """Return what `copy` would do, as far as it can be known, with nothing changed. A destination that is not there may be what a task before this
    one has planned to make: that is a warning."""
    planning.refuse_half_done()
    if any(facts.get("name") for facts in request.snapshots):
        given = _checked(request)
        trees = _trees(request, given)
        removed = [snapshot.full_name for snapshot in given]
    elif request.snapshots:
        planned = _planned(request)
        trees = _trees(request, planned)
        removed = ["%s/(a new snapshot of %s)" % (snapshot.vg, snapshot.origin) for snapshot in planned]
    else:
        targets = _targets(request)
        trees = _file_trees(request)
        removed = ["%s/(a new snapshot of %s)" % (target.volume.vg, target.volume.name) for target in targets]
    sources = [tree.source for tree in trees]
    if os.path.lexists(request.dest):
        checks.check_repository(request.dest, sources)
        total, new = _checked_size(request, trees, JobDirectory(request.dest))
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


def _checked_size(request: CopyRequest, trees: Sequence[Tree], directory: JobDirectory) -> Tuple[int, int]:
    """Return ``(bytes to copy, bytes of them that are not there yet)``.

    :raises StillpointError: there is no room for that, or what is there is another machine's
    """
    if request.layout == MIRROR:
        there = {tree.name: os.path.join(request.dest, tree.name) for tree in trees}
        base = {name: path for name, path in there.items() if os.path.isdir(path)}
    else:
        server = (request.point or {}).get("server")
        identity.check(directory, identity.here(server if isinstance(server, dict) else None))
        stored = storing(directory, trees, planning.newest_trees(directory), request.rsync_opts)
        checks.check_room(request.dest, stored.needed)
        return stored.sizes.total, stored.needed
    total, new = estimate(trees, base)
    checks.check_room(request.dest, new)
    return total, new


def _targets(request: CopyRequest) -> List[Target]:
    """Return the volumes to snapshot for `src` alone."""
    require("lvs", "rsync", "mount", "sync")
    if not request.src:
        raise UsageError("give snapshots (what mysql_quiesce_snapshot returned) or src (paths to snapshot and copy)")
    known = volumes.volumes()
    trees = _file_trees(request)
    wanted = [(FILES, path) for path in _paths(request.src)]
    located = layout.locate(wanted, known, planning.left_out_of(wanted, request.exclude))
    inside = layout.volume_of(request.dest, known) if os.path.isdir(request.dest) else None
    own_writes = {}
    if inside is not None:
        own_writes[inside.full_name] = _checked_size(request, trees, JobDirectory(request.dest))[1]
    return layout.targets(located, [], sizes.parse(request.snapshot_size), own_writes, known)


@contextmanager
def _told_when_stopped(complete: List[str]) -> Iterator[None]:
    """Have a signal tell of a copy that was complete by then."""
    try:
        yield
    except Stopped as stopped:
        if complete:
            stopped.outcome = "the copy %s was complete by then, and stays" % complete[0]
        raise


@contextmanager
def _taken(request: CopyRequest, owner: Owner, reporter: Reporter) -> Iterator[Point]:
    """Take snapshots for `src` alone: sync, snapshot; no server is asked."""
    targets = _targets(request)
    reporter.stage("snapshot")
    with point_in_time(targets, owner, None, reporter.note, hand_over=request.keep_snapshot) as point:
        yield point
        if request.keep_snapshot:
            for snapshot in point.snapshots:
                volumes.retag(snapshot.full_name, add=[KEPT])


@contextmanager
def _given(request: CopyRequest, given: List[Snapshot], owner: Owner) -> Iterator[Point]:
    """Make the snapshots that a playbook holds this process's own for as long as it lasts, and remove them at the end."""
    facts = request.point or {}
    moment = _moment(facts.get("time"))
    for snapshot in given if not request.keep_snapshot else ():  # what is kept stays what it is: an undo point too
        _hand(snapshot, add=owner.tags())
    try:
        yield Point(
            run_id=str(facts.get("run_id") or owner.run_id),
            time=moment,
            snapshots=given,
            lock=facts.get("lock"),
            coordinates=facts.get("coordinates"),
            server=facts.get("server"),
        )
    finally:
        if not request.keep_snapshot:
            with undisturbed():
                for snapshot in given:
                    ownership.remove(snapshot.full_name)


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
    left = planning.left_out_of([(role, path) for role, path in wanted if role == FILES], request.exclude)
    for path in paths:
        if path in holds:
            left[path] = LeftOut((*holds[path].left_out, *left.get(path, LeftOut()).patterns))
    trees = list(planning.trees_for(wanted, left))
    for tree in trees:
        if not holds_of(tree.source, given):
            raise UsageError(NOT_HELD % tree.source)
    return trees


def _file_trees(request: CopyRequest) -> List[Tree]:
    """Return the trees to copy of `src` alone."""
    wanted = [(FILES, path) for path in _paths(request.src)]
    return list(planning.trees_for(wanted, planning.left_out_of(wanted, request.exclude)))


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


def _summary(point: Point, request: CopyRequest, watch: Watch, started: float) -> Dict[str, Any]:
    return {
        "job": os.path.basename(request.dest.rstrip("/")),
        "host": host_name(),
        "machine": this_machine().as_dict(),
        "time": iso(point.time),
        "run_id": point.run_id,
        "stillpoint": VERSION,
        "server": point.server,
        "lock": point.lock,
        "coordinates": point.coordinates,
        "snapshots": watch.facts(),
        "copy": {"duration_s": round(time.monotonic() - started, 1), "rsync": rsync.version()},
        "proof": None,
        "warnings": [*point.warnings, *watch.warnings],
        "duration_s": round(time.monotonic() - started, 1),
    }
