# SPDX-License-Identifier: GPL-3.0-or-later
"""A run: plan, guard, quiesce, snapshot, release, mount, copy, publish, prune, report."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Callable, Dict, List, Sequence, Tuple

from . import plan as planning
from .binlog import archive
from .copy import rsync
from .copy.rsync import Copied
from .errors import StillpointError
from .job import Job, host_name
from .mysql import topology
from .mysql.connection import Login
from .observe.progress import Reporter
from .observe.text import iso
from .plan import Plan
from .point import Point, new_run_id, point_in_time
from .reading import mounted
from .repository.generations import JobDirectory, Partial
from .storage import dm, leftovers
from .storage.leftovers import Owner, this_process
from .storage.watch import Watch
from .version import VERSION


def run(job: Job, reporter: Reporter) -> Dict[str, Any]:
    """Back a job up and return the summary of the new generation's manifest, with its path.

    :raises StillpointError: nothing was published, and what was opened is closed
    """
    started = time.monotonic()
    directory = JobDirectory.open(job.repository, host_name(), job.name)
    with directory.lock():
        owner = this_process(new_run_id(), job.name)
        reporter.stage("clean")
        for left in leftovers.clean():
            reporter.note("removed the snapshot %s/%s that the run %s left behind" % (left["vg"], left["name"], left["run_id"]))
        for name in directory.clean():
            reporter.note("removed %s, which an earlier run left unfinished" % name)
        for text in topology.put_back_leftovers(Login.of(job.mysql) if job.mysql else None):
            reporter.note(text)
        reporter.stage("plan")
        plan = planning.make(job)
        for warning in plan.warnings:
            reporter.warn(warning)
        with directory.begin(owner.run_id, plan.algorithm) as partial:
            point, copied = _way(plan)(plan, owner, partial, reporter)
            reporter.stage("publish")
            summary = {
                "job": job.name,
                "host": host_name(),
                "time": iso(point.time),
                "run_id": point.run_id,
                "stillpoint": VERSION,
                "server": point.server,
                "settings": plan.settings.as_dict() if plan.settings else None,
                "lock": point.lock,
                "coordinates": point.coordinates,
                "snapshots": copied["snapshots"],
                "copy": {"duration_s": copied["duration_s"], "rsync": rsync.version()},
                **({"dump": copied["dump"]} if "dump" in copied else {}),
                "proof": None,
                "warnings": [*plan.warnings, *point.warnings, *copied["warnings"]],
                "duration_s": round(time.monotonic() - started, 1),
            }
            generation = partial.publish(point.time, summary)
        return {**generation.summary, "path": generation.path, "removed": _prune(directory, job, reporter)}


def _way(plan: Plan) -> Callable[[Plan, Owner, Partial, Reporter], Tuple[Point, Dict[str, Any]]]:
    if plan.dump is None:
        return _copy_point
    from .dump.backup import copy_dump  # pylint: disable=import-outside-toplevel  # it builds on this module

    return copy_dump


def _copy_point(plan: Plan, owner: Owner, partial: Partial, reporter: Reporter) -> Tuple[Point, Dict[str, Any]]:
    """Take the point in time, copy it into the partial generation, and return it with what the copy was like."""
    reporter.stage("snapshot")
    with ExitStack() as stack:
        point = stack.enter_context(point_in_time(plan.targets, owner, plan.quiesce, reporter.note))
        watch = Watch(list(point.snapshots), stack.enter_context(dm.Control()))
        to_snapshot = stack.enter_context(mounted(point.snapshots, owner))
        reporter.stage("copy")
        copy_started = time.monotonic()
        copy_trees([to_snapshot(tree) for tree in plan.trees], partial, plan.job, watch, reporter, plan.bytes_total)
        duration = round(time.monotonic() - copy_started, 1)
        reporter.stage("release")
        facts = [snapshot_facts(snapshot, watch) for snapshot in watch.snapshots]
    return point, {"snapshots": facts, "duration_s": duration, "warnings": watch.warnings}


def copy_trees(trees: Sequence[Any], partial: Partial, options: Any, watch: Watch, reporter: Reporter, total: int) -> List[Copied]:
    """Copy the trees into a partial generation, with the snapshots watched to the last byte and looked at once after it.

    :param options: an object with bwlimit and checksum, and rsync_opts where there are any
    """
    done = 0
    copies: List[Copied] = []

    def progress(bytes_of_this_tree: int) -> None:
        reporter.progress(done + bytes_of_this_tree, total)

    for tree in trees:
        try:
            copied = partial.add(
                tree,
                bwlimit=options.bwlimit,
                options=getattr(options, "rsync_opts", ()),
                checksum=options.checksum,
                on_progress=progress,
                watch=watch,
            )
        except StillpointError:
            watch.check()  # a snapshot that was lost is the cause, and rsync's read error only what follows from it
            raise
        done += copied.bytes
        copies.append(copied)
    watch.check()
    return copies


def snapshot_facts(snapshot: Any, watch: Watch) -> Dict[str, Any]:
    """Return what a manifest says of a snapshot."""
    return {
        "vg": snapshot.vg,
        "origin": snapshot.origin,
        "name": snapshot.name,
        "thin": snapshot.thin,
        "size_bytes": snapshot.size_bytes,
        "used_percent": watch.used_percent.get(snapshot.full_name),
        "pool": snapshot.pool,
        "pool_percent": watch.pool_percent.get(snapshot.full_name),
        "fs_type": snapshot.fs_type,
    }


def _prune(directory: JobDirectory, job: Job, reporter: Reporter) -> List[str]:
    """Apply the retention and return the generations removed. The backup is published: nothing here can make it fail."""
    if job.keep is None:
        return []
    reporter.stage("prune")
    try:
        gone = [decision.name for decision in directory.prune(job.keep) if not decision.keep]
        archive.prune(directory, reporter)
        return gone
    except (StillpointError, OSError) as error:
        reporter.warn("old generations were not removed: %s" % error)
        return []
