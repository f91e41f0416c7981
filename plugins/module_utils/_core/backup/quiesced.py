# SPDX-License-Identifier: GPL-3.0-or-later
"""A quiesced snapshot by itself, for a playbook: the module mysql_quiesce_snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..host.process import require
from ..host.processes import this_process
from ..host.reporter import Reporter
from ..lvm import ownership, sizes, undo_points
from ..lvm import volumes as lvm
from ..lvm.targets import Target
from ..lvm.volumes import LogicalVolume
from ..mysql.connection import Login, Session
from ..mysql.locks import LockOptions
from . import checks, leftovers
from .point import Quiesce, new_run_id, point_in_time
from .sources import Sources, find, quiescing, target_facts

MODULE_JOB = "playbook"


@dataclass(frozen=True)
class QuiesceRequest(LockOptions, Login):
    """The module's options, by their names."""

    volumes: Tuple[str, ...] = ()
    exclude: Tuple[str, ...] = ()
    snapshot_size: str = "auto"


def quiesce_snapshot(request: QuiesceRequest, reporter: Reporter) -> Dict[str, Any]:
    """Take the snapshots, leave them in place, and return the point in time as the module does.

    :raises StillpointError: nothing was left behind
    """
    checks.refuse_half_done()
    leftovers.clear(reporter, Login.of(request))
    sources, quiesce, targets = _prepare(request)
    owner = this_process(new_run_id(), MODULE_JOB)
    about = _about(quiesce)
    doubts = sources.doubts()
    with point_in_time(targets, owner, quiesce, reporter.note, hand_over=True) as point:
        for snapshot in point.snapshots:
            lvm.retag(snapshot.full_name, add=undo_points.tags(len(point.snapshots), about))
    return {**point.as_dict(), "warnings": [*doubts, *point.warnings]}


def _about(quiesce: Quiesce) -> undo_points.About:
    """Return what a rollback to the snapshots has to know of the server."""
    server = quiesce.server
    basename = (server.log_bin_basename or "") if server.log_bin else ""
    index = ""
    if basename:
        with Session(quiesce.login) as session:
            rows = session.rows("SHOW GLOBAL VARIABLES LIKE 'log_bin_index'")
        index = str(rows[0]["Value"]) if rows else basename + ".index"
    return undo_points.About(server.unit or "", server.datadir, basename, index)


def quiesce_plan(request: QuiesceRequest) -> Dict[str, Any]:
    """Return what `quiesce_snapshot` would do, as far as it can be known: no run_id, no time, no coordinates."""
    checks.refuse_half_done()
    sources, quiesce, targets = _prepare(request)
    return {
        "run_id": None,
        "time": None,
        "snapshots": [target_facts(target) for target in targets],
        "lock": {"method": quiesce.choice.name, "reason": quiesce.choice.reason},
        "coordinates": None,
        "server": quiesce.server.summary(),
        "warnings": sources.doubts(),
    }


def removable(run_id: Optional[str]) -> List[Dict[str, Any]]:
    """Return the snapshots that state=absent would remove, as ``{vg, name, origin}``."""
    return [{"vg": volume.vg, "name": volume.name, "origin": volume.origin} for volume in ownership.find(lvm.volumes(), run_id=run_id, kept=True)]


def _prepare(request: QuiesceRequest) -> Tuple[Sources, Quiesce, List[Target]]:
    require("lvs", "sync")
    size = sizes.parse(request.snapshot_size)
    quiesce = quiescing(request)
    known = lvm.volumes()
    by_name, paths = split(request.volumes, known)
    sources = find(quiesce, paths, request.exclude, known, by_name)
    return sources, sources.quiesce or quiesce, sources.targets(size, {})


def split(asked: Sequence[str], known: Sequence[LogicalVolume]) -> "tuple[List[LogicalVolume], List[str]]":
    """Return the volumes and the paths among what was asked for by ``vg00/root``, ``/dev/vg00/root`` or ``/opt/tree``."""
    volumes: List[LogicalVolume] = []
    paths: List[str] = []
    for text in asked:
        volume = lvm.named(known, text)
        if volume is None:
            paths.append(text)
        else:
            volumes.append(volume)
    return volumes, paths
