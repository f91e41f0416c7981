# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup by dump: the databases as SQL, and files from a snapshot where the job has some."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Dict, List, Optional, Tuple

from ..dump import take
from ..dump.plan import DumpPlan
from ..host.errors import StillpointError
from ..host.processes import Owner
from ..host.reporter import Reporter
from ..lvm import dm
from ..lvm.mounted import mounted
from ..lvm.watch import Watch
from ..mysql import settings
from ..mysql.connection import Session
from ..mysql.scratch import scratch_server
from ..repository.partial import Partial
from ..trees import Tree
from .copy import copy_trees
from .plan import Plan
from .point import Point, point_in_time

# A scratch server for a dump: accounts count, as its events can be seen by no other way, and the job's own is one of them.
_SCRATCH_OPTIONS = ("--skip-grant-tables=0", "--event-scheduler=OFF")


def copy_dump(plan: Plan, owner: Owner, partial: Partial, reporter: Reporter) -> Tuple[Point, Dict[str, Any]]:
    """Dump into a generation that is being made, copy the files, and return the point in time with what that was like."""
    dump = _of(plan)
    reporter.stage("snapshot")
    return (_from_server if dump.live else _from_snapshot)(plan, dump, owner, partial, reporter)


def _from_server(plan: Plan, dump: DumpPlan, owner: Owner, partial: Partial, reporter: Reporter) -> Tuple[Point, Dict[str, Any]]:
    """Dump the running server. The files' snapshot is taken right after the dump's, so that a file that a row names is there, unless it
    was removed in between."""
    with ExitStack() as stack:
        began = stack.enter_context(take.begun(dump, dump.login, reporter.note))
        point: Optional[Point] = None
        watch: Optional[Watch] = None
        if plan.targets:
            point = stack.enter_context(point_in_time(plan.targets, owner, None, reporter.note))
            watch = Watch(list(point.snapshots), stack.enter_context(dm.Control()))
        reporter.stage("dump")
        started = time.monotonic()
        facts = take.read(began, partial, reporter, plan.job.bwlimit, watch or (lambda: None))
        warnings: List[str] = []
        if point and watch:
            apart = (point.time - began.time).total_seconds()
            warnings.append(
                "dump and files are not one point in time: the files are of %.1f s after the dump; mysql.source: snapshot takes both from one" % apart
            )
            _copy_files(plan, dump, point, watch, owner, partial, reporter)
        taken = Point(
            owner.run_id, began.time, point.snapshots if point else [], began.lock, facts["coordinates"], dump.server.summary(), warnings
        )
        return taken, _facts(facts["dump"], watch, started)


def _from_snapshot(plan: Plan, dump: DumpPlan, owner: Owner, partial: Partial, reporter: Reporter) -> Tuple[Point, Dict[str, Any]]:
    """Dump a scratch server on a snapshot, and copy the files from the same one: one point in time."""
    with Session(dump.login) as session:
        described = settings.read(session, dump.server)
    with ExitStack() as stack:
        point = stack.enter_context(point_in_time(plan.targets, owner, plan.quiesce, reporter.note))
        watch = Watch(list(point.snapshots), stack.enter_context(dm.Control()))
        reporter.stage("dump")
        started = time.monotonic()
        with mounted(point.snapshots, owner, writable=True) as to_snapshot:
            where = {path: to_snapshot(Tree(role, path, path)).path for role, path in described.paths}
            with scratch_server(described, where, discard=True, options=_SCRATCH_OPTIONS, tick=watch) as scratch:

                def check() -> None:
                    watch()
                    scratch.check()

                login = replace(dump.login, login_unix_socket=scratch.socket, login_host=None, login_port=None)
                with take.begun(dump, login, reporter.note) as began:
                    facts = take.read(began, partial, reporter, plan.job.bwlimit, check)
        if plan.trees:
            _copy_files(plan, dump, point, watch, owner, partial, reporter)
        else:
            watch.check()
        return point, _facts(facts["dump"], watch, started)


def _copy_files(plan: Plan, dump: DumpPlan, point: Point, watch: Watch, owner: Owner, partial: Partial, reporter: Reporter) -> None:
    with mounted(point.snapshots, owner) as to_snapshot:
        reporter.stage("copy")
        copy_trees([to_snapshot(tree) for tree in plan.trees], partial, plan.job, watch, reporter, plan.bytes_total - dump.bytes_expected)
        reporter.stage("release")


def _facts(dump: Dict[str, Any], watch: Optional[Watch], started: float) -> Dict[str, Any]:
    return {
        "snapshots": watch.facts() if watch else [],
        "duration_s": round(time.monotonic() - started, 1),
        "warnings": watch.warnings if watch else [],
        "dump": dump,
    }


def _of(plan: Plan) -> DumpPlan:
    if plan.dump is None:
        raise StillpointError("%s is no dump: this is a fault in stillpoint" % plan.job.name)
    return plan.dump
