# SPDX-License-Identifier: GPL-3.0-or-later
"""A run: plan, guard, quiesce, snapshot, release, mount, copy, prove, publish, prune, report."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Any, Dict, List, Optional

from ..archive import service
from ..host.errors import StillpointError
from ..host.processes import Owner, this_process
from ..host.reporter import Reporter
from ..host.text import iso
from ..job.names import host_name
from ..job.options import Job
from ..lvm.mounted import mounted
from ..mysql.connection import Login
from ..mysql.lock_choice import COMMITS_STOPPED
from ..proof import known_faults
from ..proof.prove import Claim, Proof, ProofFailed, prove
from ..repository.generation import Generation
from ..repository.job_directory import JobDirectory
from ..repository.partial import Partial
from . import checks, leftovers
from . import plan as planning
from .dump import dump_backup
from .pipeline import Backup, CopyOptions, Taking, publish, taken, told_when_stopped
from .plan import Plan
from .point import new_run_id, point_in_time


def run(job: Job, reporter: Reporter) -> Dict[str, Any]:
    """Back a job up and return the summary of the new generation's manifest, with its path.

    :raises ProofFailed: it was published, marked as bad; or unproven, where the proof could not be done
    :raises StillpointError: nothing was published, and what was opened is closed
    """
    started = time.monotonic()
    checks.refuse_half_done()
    directory = JobDirectory.open(job.repository, host_name(), job.name, to_write=True)
    with told_when_stopped("the backup") as complete, directory.lock():
        owner = this_process(new_run_id(), job.name)
        reporter.stage("clean")
        leftovers.clear(reporter, Login.of(job.mysql) if job.mysql else None, directory)
        reporter.stage("plan")
        plan = planning.make(job)
        for warning in plan.warnings:
            reporter.warn(warning)
        directory.sequence = plan.sequence
        with Partial(directory, owner.run_id, plan.algorithm) as partial:
            backup = dump_backup(plan, owner, partial, reporter) if plan.dump else _snapshot_backup(plan, owner, partial, reporter)
            generation = publish(backup, partial, started, reporter)
        complete(generation.path)
        removed = _prune(directory, job, reporter)
    if backup.proof:
        _refuse_unproven(job, generation, backup.proof)
    return {**generation.summary, "path": generation.path, "removed": removed}


def _refuse_unproven(job: Job, generation: Generation, proof: Proof) -> None:
    """Raise ProofFailed for a backup that was published, and is bad or unproven."""
    if proof.reason and not proof.refuted:
        raise ProofFailed(
            "the backup %s was taken and counts as unproven, as its proof could not be done: %s; `stillpoint verify %s %s --server` does it later, on a copy"
            % (generation.path, proof.reason, job.name, generation.name)
        )
    if proof.reason:
        raise ProofFailed(
            "the backup %s was taken, but its proof failed and it is marked as bad: %s; it stays for whoever can use a part of it, "
            "and `stillpoint show %s %s` has the evidence" % (generation.path, proof.reason, job.name, generation.name)
        )


def _snapshot_backup(plan: Plan, owner: Owner, partial: Partial, reporter: Reporter) -> Backup:
    """Take the point in time, copy it into the partial generation, and return what was taken."""
    reporter.stage("snapshot")
    with taken(point_in_time(plan.targets, owner, plan.quiesce, reporter.note), owner, reporter) as taking:
        taking.copy(plan.trees, partial, CopyOptions(plan.job.bwlimit, checksum=plan.job.checksum), plan.bytes_total)
        proof = _prove(plan, taking)
    return Backup.of(plan.job.name, taking, told=plan.warnings, settings=plan.settings, events=plan.events, proof=proof)


def _prove(plan: Plan, taking: Taking) -> Optional[Proof]:
    """Start a server on the snapshots, from which nothing is read any more, and return what it proves; None where the job asks for no proof."""
    if plan.settings is None or plan.quiesce is None or not plan.job.verify.server:
        return None
    point, reporter = taking.point, taking.reporter
    reporter.stage("prove")
    taking.watch.copied()
    claim = Claim(
        settings=plan.settings,
        coordinates=point.coordinates,
        commits_stopped=plan.quiesce.choice.name in COMMITS_STOPPED,
        tables=plan.job.verify.tables,
        before=plan.proven,
        between=point.lock.between if point.lock else None,
        login=plan.quiesce.login,
        accept=plan.job.verify.accept,
    )
    try:
        with mounted(point.snapshots, taking.owner, writable=True) as on_snapshot:
            proof = prove(claim, on_snapshot, plan.targets, taking.watch)
    except StillpointError as error:
        proof = Proof(reason="the snapshot can't be mounted to be written to, or unmounted: %s" % error, time=iso(datetime.now(timezone.utc)))
    for text in known_faults.warnings(proof.known):
        reporter.warn(text)
    if proof.reason:
        reporter.warn("the proof %s: %s" % ("failed" if proof.refuted else "could not be done", proof.reason))
    return proof


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
