# SPDX-License-Identifier: GPL-3.0-or-later
"""Going back to an undo point: the snapshots that a playbook kept are merged into their volumes. Seconds, whatever the size.

Everything that was written to those volumes since is lost, for good. A journal on another file system, and LVM's own metadata, say how
far it has come: the same command finishes what a kill has interrupted.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence

from ...host import mounts, service
from ...host.errors import CommandError, StillpointError
from ...host.process import run, undisturbed
from ...host.processes import Holder, holders
from ...host.reporter import Reporter
from ...job.names import host_name
from ...lvm import dm, undo_points, volumes
from .. import gtid_state, server_logs
from .. import journal as journals
from .plan import RollbackPlan, Volume, begun, forget, own_jobs, write

_TRIES = 3
_PATIENCE = 15  # looks, a second apart
_MOST_NAMED = 5


@dataclass(frozen=True)
class RollbackResult:
    """A rollback that has ended well.

    :ivar service: the unit that was stopped and started; None: none
    :ivar replaced: paths of the binary logs that were set aside
    """

    run_id: str
    volumes: List[str]
    service: Optional[str]
    replaced: List[str]
    warnings: List[str]

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return dict(vars(self))


def execute(plan: RollbackPlan, reporter: Reporter) -> RollbackResult:
    """Go back.

    :raises StillpointError: it says how far it came
    """
    with journals.alone():
        plan = _as_it_is_now(plan)
        if not plan.resumes:
            try:
                write(plan)
            except OSError as error:
                raise StillpointError("the journal of the rollback can't be kept: %s; nothing was stopped" % _reason(error)) from error
        if not plan.merged:
            try:
                plan = _go_back(plan, reporter)
            except OSError as error:
                raise StillpointError(
                    "going back was interrupted: %s; mend that, then finish it with stillpoint rollback %s: the server stays stopped until then"
                    % (_reason(error), plan.run_id)
                ) from error
        if plan.server:
            reporter.stage("start")
            plan.server.allow()
            plan.server.start()
        forget()
    return RollbackResult(plan.run_id, [each.name for each in plan.volumes], plan.unit, list(plan.kept), list(plan.warnings))


def _as_it_is_now(plan: RollbackPlan) -> RollbackPlan:
    """Return the plan as its journal is now: another run may have come while somebody was asked.

    :raises StillpointError: there is nothing left to go back to
    """
    going = begun()
    if going is not None and going.run_id == plan.run_id:
        return replace(going, warnings=plan.warnings)
    if plan.resumes:
        raise StillpointError("going back to %s, which was interrupted, has been ended by another run" % plan.run_id)
    if going is not None or journals.pending():
        raise StillpointError("another rollback or restore was interrupted meanwhile: run this again")
    known = volumes.volumes()
    for volume in plan.volumes:
        if volumes.by_name(known, volume.snapshot_name) is None:
            raise StillpointError("the snapshot %s has been merged or removed by somebody meanwhile; nothing was stopped" % volume.snapshot_name)
    return plan


def _reason(error: OSError) -> str:
    name = error.filename2 or error.filename
    return "%s%s" % (error.strerror or error, " (%s)" % name if name else "")


def _go_back(plan: RollbackPlan, reporter: Reporter) -> RollbackPlan:
    """Stop the server, merge the volumes and mount them; return the plan as it is then."""
    plan = _stop(plan, reporter)
    reporter.stage("merge")
    with undisturbed():
        known = volumes.volumes()
        for snapshot in filter(None, (volumes.by_name(known, volume.snapshot_name) for volume in plan.volumes)):
            _give_away(snapshot)  # all of them before the first is merged: nobody may clean up half of a set
        with dm.Control() as control:
            for volume in plan.volumes:
                plan = replace(plan, merging=tuple(sorted({*(plan.merging or ()), volume.snapshot_name})))
                write(plan)
                _merge(volume, control)
        for volume in plan.volumes:
            _mount(volume)
        if plan.about.datadir:
            gtid_state.renew(plan.about.datadir)
        _note(plan, reporter)
        plan = replace(plan, merged=True)
        write(plan)
    return plan


def _give_away(snapshot: volumes.LogicalVolume) -> None:
    """Let a snapshot be no leftover of ours any more: it is about to be the volume itself."""
    ours = undo_points.merge_tags(snapshot)
    if ours:
        volumes.retag(snapshot.full_name, remove=ours)
    if snapshot.thin:
        volumes.do_not_skip(snapshot.full_name)


def _stop(plan: RollbackPlan, reporter: Reporter) -> RollbackPlan:
    """Stop the server, note what it gave out last, unmount every volume, and set the logs aside; return the plan with that.

    :raises StillpointError: something else uses one, or a disk is full; where nothing was merged yet, all is as it was
    """
    reporter.stage("stop")
    try:
        if plan.server:
            plan.server.stop()
        if plan.logs and plan.gtids is None and os.path.isdir(plan.about.datadir):
            plan = replace(plan, gtids=gtid_state.ahead(plan.logs) or "")
            write(plan)
        for volume in plan.volumes:
            if volume.mount_point and os.path.ismount(volume.mount_point):
                _unmount(volume, "; nothing has gone back" if not plan.resumes else "")
        _look_again(plan)
        with undisturbed():
            plan = _set_aside(plan)
    except BaseException as error:
        if not plan.resumes or isinstance(error, _Lost):
            with undisturbed():
                for volume in plan.volumes:
                    _mount(volume)
                if plan.logs and plan.logs.way_back():
                    plan.logs.put_back()
                if plan.server:
                    plan.server.start_again(reporter, "nothing has gone back")
                forget()
            if isinstance(error, OSError):
                raise StillpointError("going back could not begin: %s; nothing has gone back" % _reason(error)) from error
        raise
    return plan


def _set_aside(plan: RollbackPlan) -> RollbackPlan:
    """Set the binary logs aside, with what the server is to go on from in their place; return the plan with what is kept."""
    logs = plan.logs
    if not logs:
        return plan
    kept = logs.set_aside()
    if plan.gtids:
        gtid_state.leave(logs.basename, plan.gtids, os.path.dirname(logs.basename))
    return replace(plan, kept=tuple(kept))


class _Lost(StillpointError):
    """A snapshot holds nothing any more, or is gone, and nothing has gone back yet."""


def _look_again(plan: RollbackPlan) -> None:
    """Make sure that the snapshots of all volumes still hold what they did, or are being merged, or were: a server that stops writes, and so does an
    unmount, and what a run that was interrupted has left is in reach of anybody.

    :raises StillpointError: one does not
    """
    known = volumes.volumes()
    snapshots = {volume.snapshot_name: volumes.by_name(known, volume.snapshot_name) for volume in plan.volumes}
    begun_with = {name for name, each in snapshots.items() if (undo_points.is_merging(each) if each is not None else name in (plan.merging or ()))}
    gone = [name for name, each in snapshots.items() if each is None and name not in begun_with]
    lost = [name for name, each in snapshots.items() if each is not None and name not in begun_with and undo_points.is_invalid(each)]
    if not gone and not lost:
        return
    if gone and plan.merging is None:
        _leave_stopped(plan, snapshots)
        raise StillpointError(
            "the snapshot %s is gone, and the journal, of an earlier version, does not say whether it was merged: the server stays stopped until a backup "
            "is put back, with stillpoint restore JOB, or until it is allowed to start on what there is%s"
            % (gone[0], ", by removing %s" % service.forbidding(plan.unit) if plan.unit else "")
        )
    if not begun_with:
        if gone:
            raise _Lost("the snapshot %s is gone and was never merged; nothing has gone back" % gone[0])
        raise _Lost("the snapshot %s overflowed while the server was stopped, and holds nothing any more; nothing has gone back" % lost[0])
    _leave_stopped(plan, snapshots)
    raise StillpointError(
        "the snapshot %s %s when another volume of the set had gone back, so that they are of two moments: the server stays stopped until a "
        "backup is put back, with stillpoint restore JOB" % ((gone + lost)[0], "was gone, and never merged," if gone else "overflowed")
    )


def _leave_stopped(plan: RollbackPlan, snapshots: Mapping[str, Optional[volumes.LogicalVolume]]) -> None:
    """End a rollback that can't be finished with every volume in its place, where a backup can be put back to it: no merge waits to undo that."""
    with undisturbed():
        with dm.Control() as control:
            for volume in plan.volumes:
                snapshot = snapshots[volume.snapshot_name]
                if snapshot is not None and undo_points.is_merging(snapshot):
                    _merge(volume, control)
        for volume in plan.volumes:
            _mount(volume)
        forget()


def _unmount(volume: Volume, so_far: str) -> None:
    busy = holders(os.stat(volume.mount_point).st_dev)
    if busy:
        raise StillpointError("%s is in use by %s: stop that, then run this again%s" % (volume.mount_point, _named(busy), so_far))
    try:
        mounts.unmount(volume.mount_point)
    except CommandError as error:
        busy = holders(os.stat(volume.mount_point).st_dev)
        raise StillpointError("%s can't be unmounted: %s" % (volume.mount_point, "it is in use by " + _named(busy) if busy else error)) from error


def _named(busy: Sequence[Holder]) -> str:
    more = " and %d more" % (len(busy) - _MOST_NAMED) if len(busy) > _MOST_NAMED else ""
    return ", ".join(map(str, busy[:_MOST_NAMED])) + more


def _merge(volume: Volume, control: dm.Control) -> None:
    """Merge a snapshot into its origin; idempotent.

    :raises StillpointError: LVM does not do it
    """
    for _attempt in range(_TRIES):
        volumes.settle()
        known = volumes.volumes()
        origin = volumes.by_name(known, volume.name)
        if origin is None:
            raise StillpointError("the volume %s is gone" % volume.name)
        snapshot = volumes.by_name(known, volume.snapshot_name)
        if snapshot is not None and not undo_points.is_merging(snapshot):
            volumes.merge(snapshot.full_name)
        elif not origin.active or not _is_merged(origin, control):  # LVM waits for the next activation
            if origin.active:
                volumes.deactivate(origin.full_name)
            volumes.activate(origin.full_name)
        if _wait_merged(volume, control):
            return
    raise StillpointError(
        "LVM has not merged %s into %s: `lvs -a %s` shows why; run this again then, the server stays stopped until it is done"
        % (volume.snapshot_name, volume.name, volume.vg)
    )


def _wait_merged(volume: Volume, control: dm.Control) -> bool:
    """Tell whether a volume is what its snapshot was, waiting for LVM's own background process for a moment; it has no tags of ours then."""
    for attempt in range(_PATIENCE):
        known = volumes.volumes()
        origin, snapshot = volumes.by_name(known, volume.name), volumes.by_name(known, volume.snapshot_name)
        if origin is not None and origin.active and (snapshot is None or undo_points.is_merging(snapshot)) and _is_merged(origin, control):
            _tidy(origin)
            return True
        if attempt + 1 < _PATIENCE:
            time.sleep(1)
    return False


def _is_merged(origin: volumes.LogicalVolume, control: dm.Control) -> bool:
    """Tell whether an active volume shows what its snapshot held: nothing waits to be merged into it, or that is going on and already
    seen in it."""
    state = control.state(origin.dm_name)
    return not undo_points.waits_for_merge(origin) or (state is not None and state.target == "snapshot-merge")


def _tidy(origin: volumes.LogicalVolume) -> None:
    """Take our tags off a volume that was a thin snapshot."""
    ours = undo_points.own_tags(origin)
    if ours:
        volumes.retag(origin.full_name, remove=ours)


def _mount(volume: Volume) -> None:
    if not volume.mount_point or os.path.ismount(volume.mount_point):
        return
    if run(["mount", volume.mount_point], timeout=300, check=False).rc == 0:  # as fstab has it
        return
    device = "/dev/%s/%s" % (volume.vg, volume.origin)
    try:
        run(["mount", "-t", volume.fs_type, "-o", volume.options, device, volume.mount_point], timeout=300)
    except CommandError as error:
        raise StillpointError(
            "%s can't be mounted at %s: %s; run this again when that is mended" % (volume.name, volume.mount_point, error)
        ) from error


def _note(plan: RollbackPlan, reporter: Reporter) -> None:
    """Tell the archive of the server's binary logs that what comes does not follow on it."""
    from ...archive.archive import Archive  # pylint: disable=import-outside-toplevel  # only where there is one

    if plan.about.log:
        directory, stem = os.path.split(plan.about.log)
        coming = [name for name in (os.listdir(directory) if os.path.isdir(directory) else []) if name.startswith(stem + ".")]
        archives = (Archive(os.path.join(job.repository, host_name(), job.name)) for job in own_jobs() if job.mysql and job.binlog)
        server_logs.tell(archives, "the undo point %s" % plan.run_id, sorted(coming), reporter, of=plan.about.log)
