# SPDX-License-Identifier: GPL-3.0-or-later
"""A run: plan, guard, quiesce, snapshot, release, mount, copy, prove, publish, prune, report."""

from __future__ import annotations

import time
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import Any, Callable, Dict, List, Optional, Tuple

from ..archive import service
from ..host.errors import StillpointError
from ..host.machine import this_machine
from ..host.processes import Owner, this_process
from ..host.reporter import Reporter
from ..host.text import iso
from ..host.version import VERSION
from ..job.names import host_name
from ..job.options import Job
from ..lvm import dm, ownership
from ..lvm.mounted import mounted
from ..lvm.watch import Watch
from ..mysql import topology
from ..mysql.connection import Login
from ..mysql.locks import COMMITS_STOPPED
from ..proof import known_faults
from ..proof.prove import Claim, Proof, ProofFailed, prove
from ..repository import rsync
from ..repository.job_directory import JobDirectory
from ..repository.partial import Partial
from . import plan as planning
from .copy import copy_trees
from .dump import copy_dump
from .plan import Plan
from .point import Point, new_run_id, point_in_time


def run(job: Job, reporter: Reporter) -> Dict[str, Any]:
    """Back a job up and return the summary of the new generation's manifest, with its path.

    :raises ProofFailed: it was published, marked as bad; or unproven, where the proof could not be done
    :raises StillpointError: nothing was published, and what was opened is closed
    """
    started = time.monotonic()
    planning.refuse_half_done()
    directory = JobDirectory.open(job.repository, host_name(), job.name, to_write=True)
    with directory.lock():
        owner = this_process(new_run_id(), job.name)
        reporter.stage("clean")

        def warn(error: StillpointError) -> None:  # somebody has to see to it, and a backup is none the worse for it
            reporter.warn(str(error))

        for left in ownership.clean(on_trouble=warn):
            reporter.note("removed the snapshot %s/%s that the run %s left behind" % (left["vg"], left["name"], left["run_id"]))
        for name in directory.clean(warn):
            reporter.note("removed %s, which an earlier run left unfinished" % name)
        try:
            for text in topology.put_back_leftovers(Login.of(job.mysql) if job.mysql else None):
                reporter.note(text)
        except StillpointError as error:
            warn(error)
        reporter.stage("plan")
        plan = planning.make(job)
        for warning in plan.warnings:
            reporter.warn(warning)
        directory.sequence = plan.sequence
        with Partial(directory, owner.run_id, plan.algorithm) as partial:
            point, copied = _way(plan)(plan, owner, partial, reporter)
            proof: Optional[Proof] = copied.get("proof")
            reporter.stage("publish")
            summary = {
                "job": job.name,
                "host": host_name(),
                "machine": this_machine().as_dict(),
                "time": iso(point.time),
                "run_id": point.run_id,
                "stillpoint": VERSION,
                "server": point.server,
                "settings": plan.settings.as_dict() if plan.settings else None,
                "events": list(plan.events),
                "lock": point.lock,
                "coordinates": _coordinates(point, proof),
                "snapshots": copied["snapshots"],
                "copy": {"duration_s": copied["duration_s"], "rsync": rsync.version()},
                **({"dump": copied["dump"]} if "dump" in copied else {}),
                "proof": proof.as_dict() if proof else None,
                "warnings": [*plan.warnings, *point.warnings, *copied["warnings"], *known_faults.warnings(proof.known if proof else ())],
                "duration_s": round(time.monotonic() - started, 1),
            }
            generation = partial.publish(point.time, summary)
            if partial.trouble:
                reporter.warn(partial.trouble)
        removed = _prune(directory, job, reporter)
    if proof and proof.reason and not proof.refuted:
        raise ProofFailed(
            "the backup %s was taken and counts as unproven, as its proof could not be done: %s; `stillpoint verify %s %s --server` does it later, on a copy"
            % (generation.path, proof.reason, job.name, generation.name)
        )
    if proof and proof.reason:
        raise ProofFailed(
            "the backup %s was taken, but its proof failed and it is marked as bad: %s; it stays for whoever can use a part of it, "
            "and `stillpoint show %s %s` has the evidence" % (generation.path, proof.reason, job.name, generation.name)
        )
    return {**generation.summary, "path": generation.path, "removed": removed}


def _way(plan: Plan) -> Callable[[Plan, Owner, Partial, Reporter], Tuple[Point, Dict[str, Any]]]:
    return copy_dump if plan.dump else _copy_point


def _copy_point(plan: Plan, owner: Owner, partial: Partial, reporter: Reporter) -> Tuple[Point, Dict[str, Any]]:
    """Take the point in time, copy it into the partial generation, and return it with what the copy was like."""
    reporter.stage("snapshot")
    with ExitStack() as stack:
        point = stack.enter_context(point_in_time(plan.targets, owner, plan.quiesce, reporter.note))
        watch = Watch(list(point.snapshots), stack.enter_context(dm.Control()))
        with mounted(point.snapshots, owner) as to_snapshot:
            reporter.stage("copy")
            copy_started = time.monotonic()
            copy_trees([to_snapshot(tree) for tree in plan.trees], partial, plan.job, watch, reporter, plan.bytes_total)
            duration = round(time.monotonic() - copy_started, 1)
        proof = _prove(plan, point, owner, watch, reporter)
        reporter.stage("release")
        facts = watch.facts()
    return point, {"snapshots": facts, "duration_s": duration, "proof": proof, "warnings": watch.warnings}


def _prove(plan: Plan, point: Point, owner: Owner, watch: Watch, reporter: Reporter) -> Optional[Proof]:
    """Start a server on the snapshots, from which nothing is read any more, and return what it proves; None where the job asks for no proof."""
    if plan.settings is None or plan.quiesce is None or not plan.job.verify.server:
        return None
    reporter.stage("prove")
    watch.copied()
    lock = point.lock or {}
    claim = Claim(
        settings=plan.settings,
        coordinates=point.coordinates,
        commits_stopped=plan.quiesce.choice.name in COMMITS_STOPPED,
        tables=plan.job.verify.tables,
        before=plan.proven,
        between=lock.get("between"),
        login=plan.quiesce.login,
        accept=plan.job.verify.accept,
    )
    try:
        with mounted(point.snapshots, owner, writable=True) as on_snapshot:
            proof = prove(claim, on_snapshot, plan.targets, watch)
    except StillpointError as error:
        proof = Proof(reason="the snapshot can't be mounted to be written to, or unmounted: %s" % error, time=iso(datetime.now(timezone.utc)))
    for text in known_faults.warnings(proof.known):
        reporter.warn(text)
    if proof.reason:
        reporter.warn("the proof %s: %s" % ("failed" if proof.refuted else "could not be done", proof.reason))
    return proof


def _coordinates(point: Point, proof: Optional[Proof]) -> Optional[Dict[str, Any]]:
    """Return the coordinates that the proof gives, with what is known of a replica's sources, else those that were recorded."""
    if proof is None or not proof.given:
        return point.coordinates
    return {**proof.given, "replica": (point.coordinates or {}).get("replica")}


def _prune(directory: JobDirectory, job: Job, reporter: Reporter) -> List[str]:
    """Apply the retention and return the generations removed. The backup is published: nothing here can make it fail."""
    if job.keep is None:
        return []
    reporter.stage("prune")
    try:
        gone = [decision.name for decision in directory.prune(job.keep) if not decision.keep]
        service.prune(directory, reporter)
        return gone
    except (StillpointError, OSError) as error:
        reporter.warn("old generations were not removed: %s" % error)
        return []
