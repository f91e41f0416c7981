# SPDX-License-Identifier: GPL-3.0-or-later
"""A quiesced snapshot by itself, for a playbook: the module mysql_quiesce_snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..host.process import require
from ..host.processes import this_process
from ..host.reporter import Reporter
from ..lvm import layout, ownership, sizes, undo_points
from ..lvm import volumes as lvm
from ..lvm.layout import FILES
from ..lvm.targets import Target
from ..lvm.volumes import LogicalVolume
from ..mysql import topology
from ..mysql.connection import Login, Session
from . import plan as planning
from .point import Quiesce, new_run_id, point_in_time

MODULE_JOB = "playbook"


@dataclass(frozen=True)
class QuiesceRequest(Login):
    """The module's options, by their names."""

    volumes: Tuple[str, ...] = ()
    exclude: Tuple[str, ...] = ()
    snapshot_size: str = "auto"
    lock: str = "auto"
    lock_wait_timeout: int = 5
    long_query_threshold: int = 5
    long_query_timeout: int = 60
    long_query_action: str = "wait"
    stop_replica: bool = False
    desync: bool = False


def quiesce_snapshot(request: QuiesceRequest, reporter: Reporter) -> Dict[str, Any]:
    """Take the snapshots, leave them in place, and return the point in time as the module does.

    :raises StillpointError: nothing was left behind
    """
    for text in topology.put_back_leftovers(Login.of(request)):
        reporter.warn(text)
    quiesce, targets = _prepare(request)
    owner = this_process(new_run_id(), MODULE_JOB)
    about = _about(quiesce)
    doubts = planning.doubts(quiesce)
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
    quiesce, targets = _prepare(request)
    return {
        "run_id": None,
        "time": None,
        "snapshots": [planning.target_facts(target) for target in targets],
        "lock": {"method": quiesce.choice.name, "reason": quiesce.choice.reason},
        "coordinates": None,
        "server": quiesce.server.summary(),
        "warnings": planning.doubts(quiesce),
    }


def removable(run_id: Optional[str]) -> List[Dict[str, Any]]:
    """Return the snapshots that state=absent would remove, as ``{vg, name, origin}``."""
    return [{"vg": volume.vg, "name": volume.name, "origin": volume.origin} for volume in ownership.find(lvm.volumes(), run_id=run_id, kept=True)]


def _prepare(request: QuiesceRequest) -> "tuple[Quiesce, List[Target]]":
    require("lvs", "sync")
    quiesce = planning.quiescing(request)
    known = lvm.volumes()
    by_name, paths = split(request.volumes, known)
    planning.refuse_outside(quiesce.server, paths)
    wanted = planning.server_paths(quiesce.server) + [(FILES, path) for path in paths]
    located = layout.locate(wanted, known, planning.left_out_of(wanted, request.exclude, quiesce.server))
    quiesce = planning.for_volumes(quiesce, request.lock, {volume.full_name for volume in layout.volumes_of(located, by_name)})
    planning.check_one_point(located, by_name, quiesce)
    return quiesce, layout.targets(located, by_name, sizes.parse(request.snapshot_size), {}, known)


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
