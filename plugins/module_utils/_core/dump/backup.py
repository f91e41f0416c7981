# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup by dump: the databases as SQL, and files from a snapshot where the job has some."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Dict, List, Optional, Tuple

from ..backup import copy_trees, snapshot_facts
from ..errors import StillpointError
from ..observe.progress import Reporter
from ..plan import Plan
from ..point import Point, point_in_time
from ..reading import mounted
from ..repository.generations import Partial
from ..storage import dm
from ..storage.leftovers import Owner
from ..storage.snapshots import Watch
from . import take
from .plan import DumpPlan


def copy_dump(plan: Plan, owner: Owner, partial: Partial, reporter: Reporter) -> Tuple[Point, Dict[str, Any]]:
    """Dump into a generation that is being made, copy the files, and return the point in time with what that was like.

    The files' snapshot is taken right after the dump's, so that a file that a row names is there, unless it was removed in between.
    """
    dump = _of(plan)
    reporter.stage("snapshot")
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
            to_snapshot = stack.enter_context(mounted(point.snapshots, owner))
            reporter.stage("copy")
            copy_trees([to_snapshot(tree) for tree in plan.trees], partial, plan.job, watch, reporter, plan.bytes_total - dump.bytes_expected)
            reporter.stage("release")
        taken = Point(
            owner.run_id, began.time, point.snapshots if point else [], began.lock, facts["coordinates"], dump.server.summary(), warnings
        )
        return taken, {
            "snapshots": [snapshot_facts(snapshot, watch) for snapshot in watch.snapshots] if watch else [],
            "duration_s": round(time.monotonic() - started, 1),
            "warnings": watch.warnings if watch else [],
            "dump": facts["dump"],
        }


def _of(plan: Plan) -> DumpPlan:
    if plan.dump is None:
        raise StillpointError("%s is no dump: this is a fault in stillpoint" % plan.job.name)
    return plan.dump
