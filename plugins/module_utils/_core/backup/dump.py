# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup by dump: the databases as SQL, and files from a snapshot where the job has some."""

from __future__ import annotations

import time
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any, ContextManager

from ..dump import take
from ..dump.plan import DumpPlan
from ..host.errors import StillpointError
from ..host.processes import Owner
from ..host.reporter import Reporter
from ..lvm.mounted import mounted
from ..mysql import settings
from ..mysql.connection import Session
from ..mysql.scratch import scratch_server
from ..repository.partial import Partial
from ..trees import Tree
from .pipeline import Backup, CopyOptions, Taking, taken
from .plan import Plan
from .point import Point, point_in_time

# A scratch server for a dump: accounts count, as its events can be seen by no other way, and the job's own is one of them.
_SCRATCH_OPTIONS = ("--skip-grant-tables=0", "--event-scheduler=OFF")


def dump_backup(plan: Plan, owner: Owner, partial: Partial, reporter: Reporter) -> Backup:
    """Dump into a generation that is being made, copy the files, and return what was taken."""
    dump = _of(plan)
    reporter.stage("snapshot")
    return (_from_server if dump.live else _from_snapshot)(plan, dump, owner, partial, reporter)


def _from_server(plan: Plan, dump: DumpPlan, owner: Owner, partial: Partial, reporter: Reporter) -> Backup:
    """Dump the running server. The files' snapshot is taken right after the dump's, so that a file that a row names is there, unless it
    was removed in between."""
    with ExitStack() as stack:
        began = stack.enter_context(take.begun(dump, dump.login, reporter.note))
        files: ContextManager[Point] = nullcontext(Point(owner.run_id, began.time, []))
        if plan.targets:
            files = point_in_time(plan.targets, owner, None, reporter.note)
        taking = stack.enter_context(taken(files, owner, reporter))
        started = time.monotonic()
        reporter.stage("dump")
        with taking.lost_first():
            facts = take.read(began, partial, reporter, plan.job.bwlimit, taking.watch)
        _copy_files(plan, dump, taking, partial)
        copied_s = time.monotonic() - started
    # once the snapshots are gone, as it is told then if one could not be removed
    point = Point(owner.run_id, began.time, taking.point.snapshots, began.lock, facts.coordinates, dump.server.summary(), taking.point.warnings)
    if plan.targets:
        apart = (taking.point.time - began.time).total_seconds()
        point.warnings.insert(
            0, "dump and files are not one point in time: the files are of %.1f s after the dump; mysql.source: snapshot takes both from one" % apart
        )
    return _backup(plan, taking, point, facts, copied_s)


def _from_snapshot(plan: Plan, dump: DumpPlan, owner: Owner, partial: Partial, reporter: Reporter) -> Backup:
    """Dump a scratch server on a snapshot, and copy the files from the same one: one point in time."""
    with Session(dump.login) as session:
        described = settings.read(session, dump.server)
    with taken(point_in_time(plan.targets, owner, plan.quiesce, reporter.note), owner, reporter) as taking:
        reporter.stage("dump")
        started = time.monotonic()
        with taking.lost_first(), mounted(taking.point.snapshots, owner, writable=True) as to_snapshot:
            where = {path: to_snapshot(Tree(role, path, path)).path for role, path in described.paths}
            with scratch_server(described, where, discard=True, options=_SCRATCH_OPTIONS, tick=taking.watch) as scratch:

                def check() -> None:
                    taking.watch()
                    scratch.check()

                login = replace(dump.login, login_unix_socket=scratch.socket, login_host=None, login_port=None)
                with take.begun(dump, login, reporter.note) as began:
                    facts = take.read(began, partial, reporter, plan.job.bwlimit, check)
        _copy_files(plan, dump, taking, partial)
        copied_s = time.monotonic() - started
    return _backup(plan, taking, taking.point, facts, copied_s)


def _copy_files(plan: Plan, dump: DumpPlan, taking: Taking, partial: Partial) -> None:
    if plan.trees:
        how = CopyOptions(plan.job.bwlimit, checksum=plan.job.checksum)
        taking.copy(plan.trees, partial, how, plan.bytes_total - dump.bytes_expected)


def _backup(plan: Plan, taking: Taking, point: Point, facts: take.Dumped, copied_s: float) -> Backup:
    more: Any = {"told": plan.warnings, "settings": plan.settings, "events": plan.events, "dump": facts.as_dict()}
    return replace(Backup.of(plan.job.name, taking, **more), point=point, copied_s=copied_s)


def _of(plan: Plan) -> DumpPlan:
    if plan.dump is None:
        raise StillpointError("%s is no dump: this is a fault in stillpoint" % plan.job.name)
    return plan.dump
