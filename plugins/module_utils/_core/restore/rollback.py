# SPDX-License-Identifier: GPL-3.0-or-later
"""Going back to an undo point: the snapshots that a playbook kept are merged into their volumes. Seconds, whatever the size.

Everything that was written to those volumes since is lost, for good. A journal on another file system, and LVM's own metadata, say how
far it has come: the same command finishes what a kill has interrupted.

A volume that holds the running system does not go back. LVM would merge it when it is activated at the next boot, in the initramfs. Debian 12's was
seen to end LVM there while it finished the merge, with the root volume still suspended: the boot hung.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from .. import durable, service
from .. import job as jobs
from ..binlog import onward
from ..binlog.aside import Logs
from ..errors import CommandError, StillpointError, UsageError
from ..observe.progress import Reporter
from ..process import run, undisturbed
from ..storage import dm, layout, lvm, mounts, points
from ..storage.holders import Holder, holders
from ..storage.mounts import Mount, is_below
from . import journal as journals
from .plan import REPLICAS

_JOURNAL = "rollback.json"

# A file system with one of these can't be unmounted under a running system, or holds what the way back is led by.
_SYSTEM = ("/usr/bin", "/etc", "/var/lib/stillpoint", "/run")
_TRIES = 3
_PATIENCE = 15  # looks, a second apart
_MOST_NAMED = 5


@dataclass(frozen=True)
class Volume:
    """A volume that goes back, and where it is mounted ("" where it is not)."""

    vg: str
    origin: str
    snapshot: str
    thin: bool
    mount_point: str = ""
    fs_type: str = ""
    options: str = ""

    @property
    def name(self) -> str:
        return "%s/%s" % (self.vg, self.origin)

    @property
    def snapshot_name(self) -> str:
        return "%s/%s" % (self.vg, self.snapshot)


@dataclass(frozen=True)
class RollbackPlan:
    """A rollback that nothing is known to be against.

    :ivar time: of the undo point, for people
    :ivar resumes: an earlier run was interrupted
    :ivar gtids: the last that a MariaDB server gave out, which it goes on from where its binary logs are set aside; None where it does not
    :ivar merging: the snapshots whose merge was begun: LVM removes what is merged, and so can anybody else; None where the journal, of an earlier
        version, does not say
    :ivar merged: the volumes have gone back, and the server may have been started since
    :ivar kept: what was set aside
    """

    run_id: str
    time: str
    volumes: Tuple[Volume, ...]
    unit: Optional[str]
    triggers: Tuple[str, ...]
    about: points.About
    resumes: bool
    warnings: Tuple[str, ...] = ()
    gtids: Optional[str] = None
    merging: Optional[Tuple[str, ...]] = ()
    merged: bool = False
    kept: Tuple[str, ...] = ()

    @property
    def logs(self) -> Optional[Logs]:
        """The server's binary logs, where they stay as they are on a volume that does not go back."""
        if not self.about.log:
            return None
        replaced = tuple(os.path.realpath(volume.mount_point) for volume in self.volumes if volume.mount_point)
        logs = Logs(self.about.log, self.about.index, self.about.datadir, replaced, self.run_id)
        return logs if logs.outside(logs.basename) else None

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {
            "run_id": self.run_id,
            "volumes": [{"vg": each.vg, "origin": each.origin, "snapshot": each.snapshot, "mount_point": each.mount_point or None} for each in self.volumes],
            "service": self.unit,
            "resumes": self.resumes,
            "warnings": list(self.warnings),
        }

    def lines(self) -> List[str]:
        """Return it for people."""
        lines = ["%s to the undo point %s of %s:" % ("finish going back" if self.resumes else "go back", self.run_id, self.time)]
        for each in self.volumes:
            at = ", mounted at %s" % each.mount_point if each.mount_point else ""
            lines.append("  %s%s: everything that was written to it since is lost, and can't be had back" % (each.name, at))
        if self.unit:
            lines.append("  %s is stopped for it, and started after that" % " and ".join([self.unit, *self.triggers]))
        if self.logs:
            lines.append("  the server's binary logs %s.* are set aside: they do not follow on what it goes back to" % self.logs.basename)
        return lines + ["  warning: " + warning for warning in self.warnings]


# -- planning


def make(run_id: Optional[str] = None) -> RollbackPlan:
    """Return the plan for going back. Nothing is changed.

    :param run_id: as mysql_quiesce_snapshot returned it; default: the only one that there is
    :raises UsageError: there is no such point
    :raises StillpointError: it is not whole, a repository lies on it, or something else is against it
    """
    pending = journals.pending()
    if pending:
        raise journals.refuse_another(pending, "this asks for something else")
    going = begun()
    if going is not None:
        if run_id not in (None, going.run_id):
            raise UsageError("going back to %s was interrupted: finish that first, with stillpoint rollback %s" % (going.run_id, going.run_id))
        return going
    known = lvm.volumes()
    point = points.find(known, run_id)
    points.check(point)
    volumes = tuple(_volume(each, known) for each in point.snapshots)
    _refuse_repositories(volumes, known)
    _refuse_system(volumes)
    unit = point.about.unit if point.about.unit and service.exists(point.about.unit) else None
    for volume in volumes:
        _refuse_inside(volume)
    triggers = service.triggers(unit) if unit else ()
    return RollbackPlan(point.run_id, point.time, volumes, unit, triggers, point.about, False, tuple(_warnings(point, known)))


def _volume(snapshot: lvm.LogicalVolume, known: Sequence[lvm.LogicalVolume]) -> Volume:
    origin = lvm.by_name(known, "%s/%s" % (snapshot.vg, snapshot.origin))
    if origin is None:
        raise StillpointError("the origin of %s is gone: there is nothing to merge it into" % snapshot.full_name)
    found = [mount for mount in mounts.table() if (mount.major, mount.minor) == (origin.major, origin.minor)]
    own = Volume(snapshot.vg, snapshot.origin, snapshot.name, snapshot.thin)
    if not found:
        return own
    whole = [mount for mount in found if mount.root == "/"]
    first = whole[0] if whole else found[0]
    if len(found) > 1 and first.mount_point != "/":
        raise StillpointError(
            "%s is mounted at %s: unmount it at all places but one first" % (origin.full_name, " and ".join(mount.mount_point for mount in found))
        )
    return Volume(own.vg, own.origin, own.snapshot, own.thin, first.mount_point, first.fs_type, _options(first))


def _options(mount: Mount) -> str:
    return ",".join(mount.options) or "rw"


def _refuse_system(volumes: Sequence[Volume]) -> None:
    """Refuse a volume that holds what the running system can't be without."""
    for volume in volumes:
        if volume.mount_point and any(is_below(path, volume.mount_point) for path in _SYSTEM):
            commands = "; ".join("lvconvert --merge %s" % each.snapshot_name for each in volumes)
            raise StillpointError(
                "%s, mounted at %s, holds the running system and can't go back while that runs: boot a rescue system from another disk and say there: %s"
                % (volume.name, volume.mount_point, commands)
            )


def _refuse_inside(volume: Volume) -> None:
    inside = mounts.mounted_below(volume.mount_point) if volume.mount_point else []
    if inside:
        raise StillpointError("%s can't be unmounted: %s is mounted inside it; unmount that first" % (volume.mount_point, inside[0]))


def _refuse_repositories(volumes: Sequence[Volume], known: Sequence[lvm.LogicalVolume]) -> None:
    """Refuse to take back a repository of one of this host's jobs."""
    names = {volume.name for volume in volumes}
    for path in sorted({job.repository for job in _jobs()}):
        if not os.path.isdir(path):
            continue
        lies_on = layout.volume_of(path, known)
        if lies_on is not None and lies_on.full_name in names:
            raise StillpointError(
                "the repository %s lies on %s, and the backups that were taken since would be lost with it: move it to another volume first"
                % (path, lies_on.full_name)
            )


def _jobs() -> List[jobs.Job]:
    found = []
    for name in jobs.names():
        try:
            found.append(jobs.load(name))
        except StillpointError:
            continue  # it backs nothing up as long as it can't be read
    return found


def _warnings(point: points.UndoPoint, known: Sequence[lvm.LogicalVolume]) -> List[str]:
    found = [REPLICAS] if point.about.log else []
    origins = {(each.vg, each.origin) for each in point.snapshots}
    others = [
        each.full_name
        for each in known
        if each.is_snapshot and (each.vg, each.origin) in origins and each.name not in {own.name for own in point.snapshots} and not each.thin
    ]
    if others:
        found.append("%s are snapshots of the same volumes: what is merged is kept for them too, and may make them overflow" % ", ".join(others))
    return found


# -- executing


def execute(plan: RollbackPlan, reporter: Reporter) -> Dict[str, Any]:
    """Go back and return ``{run_id, volumes, service, replaced, warnings}``; `replaced` is what was set aside.

    :raises StillpointError: it says how far it came
    """
    with journals.alone():
        plan = _as_it_is_now(plan)
        if not plan.resumes:
            try:
                _write(plan)
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
        if plan.unit:
            reporter.stage("start")
            service.allow(plan.unit)
            service.start(plan.unit, plan.about.datadir, plan.triggers)
        _forget()
    return {
        "run_id": plan.run_id,
        "volumes": [each.name for each in plan.volumes],
        "service": plan.unit,
        "replaced": list(plan.kept),
        "warnings": list(plan.warnings),
    }


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
    known = lvm.volumes()
    for volume in plan.volumes:
        if lvm.by_name(known, volume.snapshot_name) is None:
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
        known = lvm.volumes()
        for snapshot in filter(None, (lvm.by_name(known, volume.snapshot_name) for volume in plan.volumes)):
            _give_away(snapshot)  # all of them before the first is merged: nobody may clean up half of a set
        with dm.Control() as control:
            for volume in plan.volumes:
                plan = replace(plan, merging=tuple(sorted({*(plan.merging or ()), volume.snapshot_name})))
                _write(plan)
                _merge(volume, control)
        for volume in plan.volumes:
            _mount(volume)
        if plan.about.datadir:
            onward.renew(plan.about.datadir)
        _note(plan, reporter)
        plan = replace(plan, merged=True)
        _write(plan)
    return plan


def _give_away(snapshot: lvm.LogicalVolume) -> None:
    """Let a snapshot be no leftover of ours any more: it is about to be the volume itself."""
    ours = points.merge_tags(snapshot)
    if ours:
        lvm.retag(snapshot.full_name, remove=ours)
    if snapshot.thin:
        lvm.do_not_skip(snapshot.full_name)


def _stop(plan: RollbackPlan, reporter: Reporter) -> RollbackPlan:
    """Stop the server, note what it gave out last, unmount every volume, and set the logs aside; return the plan with that.

    :raises StillpointError: something else uses one, or a disk is full; where nothing was merged yet, all is as it was
    """
    reporter.stage("stop")
    try:
        if plan.unit:
            service.stop(plan.unit, plan.triggers)
            service.forbid(plan.unit)
        if plan.logs and plan.gtids is None and os.path.isdir(plan.about.datadir):
            plan = replace(plan, gtids=onward.ahead(plan.logs) or "")
            _write(plan)
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
                if plan.unit:
                    _start_again(plan, plan.unit, reporter)
                _forget()
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
        onward.leave(logs.basename, plan.gtids, os.path.dirname(logs.basename))
    return replace(plan, kept=tuple(kept))


class _Lost(StillpointError):
    """A snapshot holds nothing any more, or is gone, and nothing has gone back yet."""


def _look_again(plan: RollbackPlan) -> None:
    """Make sure that the snapshots of all volumes still hold what they did, or are being merged, or were: a server that stops writes, and so does an
    unmount, and what a run that was interrupted has left is in reach of anybody.

    :raises StillpointError: one does not
    """
    known = lvm.volumes()
    snapshots = {volume.snapshot_name: lvm.by_name(known, volume.snapshot_name) for volume in plan.volumes}
    begun_with = {name for name, each in snapshots.items() if (points.is_merging(each) if each is not None else name in (plan.merging or ()))}
    gone = [name for name, each in snapshots.items() if each is None and name not in begun_with]
    lost = [name for name, each in snapshots.items() if each is not None and name not in begun_with and points.is_invalid(each)]
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


def _leave_stopped(plan: RollbackPlan, snapshots: Mapping[str, Optional[lvm.LogicalVolume]]) -> None:
    """End a rollback that can't be finished with every volume in its place, where a backup can be put back to it: no merge waits to undo that."""
    with undisturbed():
        with dm.Control() as control:
            for volume in plan.volumes:
                snapshot = snapshots[volume.snapshot_name]
                if snapshot is not None and points.is_merging(snapshot):
                    _merge(volume, control)
        for volume in plan.volumes:
            _mount(volume)
        _forget()


def _start_again(plan: RollbackPlan, unit: str, reporter: Reporter) -> None:
    try:
        service.allow(unit)
        service.start(unit, plan.about.datadir, plan.triggers)
    except StillpointError as error:
        reporter.warn("%s; nothing has gone back" % error)


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
    """Merge a snapshot into its volume, whatever of that was done before.

    :raises StillpointError: LVM does not do it
    """
    for _attempt in range(_TRIES):
        lvm.settle()
        known = lvm.volumes()
        origin = lvm.by_name(known, volume.name)
        if origin is None:
            raise StillpointError("the volume %s is gone" % volume.name)
        snapshot = lvm.by_name(known, volume.snapshot_name)
        if snapshot is not None and not points.is_merging(snapshot):
            lvm.merge(snapshot.full_name)
        elif not origin.active or not _is_merged(origin, control):  # LVM waits for the next activation
            if origin.active:
                lvm.deactivate(origin.full_name)
            lvm.activate(origin.full_name)
        if _wait_merged(volume, control):
            return
    raise StillpointError(
        "LVM has not merged %s into %s: `lvs -a %s` shows why; run this again then, the server stays stopped until it is done"
        % (volume.snapshot_name, volume.name, volume.vg)
    )


def _wait_merged(volume: Volume, control: dm.Control) -> bool:
    """Tell whether a volume is what its snapshot was, waiting for LVM's own background process for a moment; it has no tags of ours then."""
    for attempt in range(_PATIENCE):
        known = lvm.volumes()
        origin, snapshot = lvm.by_name(known, volume.name), lvm.by_name(known, volume.snapshot_name)
        if origin is not None and origin.active and (snapshot is None or points.is_merging(snapshot)) and _is_merged(origin, control):
            _tidy(origin)
            return True
        if attempt + 1 < _PATIENCE:
            time.sleep(1)
    return False


def _is_merged(origin: lvm.LogicalVolume, control: dm.Control) -> bool:
    """Tell whether an active volume shows what its snapshot held: nothing waits to be merged into it, or that is going on and already
    seen in it."""
    state = control.state(origin.dm_name)
    return not points.waits_for_merge(origin) or (state is not None and state.target == "snapshot-merge")


def _tidy(origin: lvm.LogicalVolume) -> None:
    """Take our tags off a volume that was a thin snapshot."""
    ours = points.own_tags(origin)
    if ours:
        lvm.retag(origin.full_name, remove=ours)


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
    """Tell the archive of the server's binary logs that what comes does not follow on it. One that can't be told does not keep the server down."""
    from ..binlog.index import Archive  # pylint: disable=import-outside-toplevel  # only where there is one

    directory, stem = os.path.split(plan.about.log)
    for archive in (Archive(os.path.join(job.repository, jobs.host_name(), job.name)) for job in _jobs() if job.mysql and job.binlog):
        try:
            known = [str(line.server.get("basename") or "") for line in archive.lines()[-1:]] if archive.exists else []
            if not plan.about.log or known != [plan.about.log]:
                continue
            there = os.listdir(directory) if os.path.isdir(directory) else []
            archive.note_restore("the undo point %s" % plan.run_id, sorted(name for name in there if name.startswith(stem + ".")))
        except (OSError, StillpointError) as error:
            reporter.warn("the archive of binary logs in %s can't be told of it (%s): have it begin anew, by moving it away" % (archive.path, error))


# -- journal


def _write(plan: RollbackPlan) -> None:
    facts = {
        "run_id": plan.run_id,
        "time": plan.time,
        "volumes": [asdict(volume) for volume in plan.volumes],
        "unit": plan.unit,
        "triggers": list(plan.triggers),
        "about": asdict(plan.about),
        "gtids": plan.gtids,
        "merging": None if plan.merging is None else list(plan.merging),
        "merged": plan.merged,
        "kept": list(plan.kept),
    }
    durable.write_json(_path(), facts)


def begun(state: Optional[str] = None) -> Optional[RollbackPlan]:
    """Return the plan for finishing what was interrupted; None when nothing was."""
    facts = durable.read_json(os.path.join(state or journals.STATE, _JOURNAL))
    if not isinstance(facts, dict):
        return None
    volumes = tuple(Volume(**each) for each in facts["volumes"])
    about = points.About(**facts["about"])
    begun_with = RollbackPlan(facts["run_id"], facts["time"], volumes, facts["unit"], tuple(facts["triggers"]), about, True)
    merging = facts.get("merging")
    begun_with = replace(begun_with, merging=None if merging is None else tuple(merging))
    return replace(begun_with, gtids=facts.get("gtids"), merged=bool(facts.get("merged")), kept=tuple(facts.get("kept") or ()))


def _forget() -> None:
    if os.path.lexists(_path()):
        os.unlink(_path())
        durable.sync_directory(journals.STATE)


def _path() -> str:
    return os.path.join(journals.STATE, _JOURNAL)
