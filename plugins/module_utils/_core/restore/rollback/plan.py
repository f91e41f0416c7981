# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollback is going to do, every reason not to, and its journal.

A volume that holds the running system does not go back. LVM would merge it when it is activated at the next boot, in the initramfs. Debian 12's was
seen to end LVM there while it finished the merge, with the root volume still suspended: the boot hung.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ...host import durable, mounts, service
from ...host.errors import StillpointError, UsageError
from ...host.mounts import Mount, is_below
from ...job import file as jobs
from ...job.names import job_names
from ...job.options import Job
from ...lvm import layout, undo_points
from ...lvm import volumes as lvm
from .. import journal as journals
from ..server_logs import Logs
from ..unit import Unit

_JOURNAL = "rollback.json"

REPLICAS = "replicas of this server have to be made anew: one that has what is taken back here may not be refused"

# A file system with one of these can't be unmounted under a running system, or holds what the way back is led by.
_SYSTEM = ("/usr/bin", "/etc", "/var/lib/stillpoint", "/run")


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
    about: undo_points.About
    resumes: bool
    warnings: Tuple[str, ...] = ()
    gtids: Optional[str] = None
    merging: Optional[Tuple[str, ...]] = ()
    merged: bool = False
    kept: Tuple[str, ...] = ()

    @property
    def server(self) -> Optional[Unit]:
        """The unit of the server whose volumes go back; None: none."""
        return Unit(self.unit, self.triggers, self.about.datadir) if self.unit else None

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

    @property
    def question(self) -> str:
        """What somebody has to agree to."""
        return "go back to %s and lose what was written since" % self.run_id

    def lines(self) -> List[str]:
        """Return it for people."""
        lines = ["%s to the undo point %s of %s:" % ("finish going back" if self.resumes else "go back", self.run_id, self.time)]
        for each in self.volumes:
            at = ", mounted at %s" % each.mount_point if each.mount_point else ""
            lines.append("  %s%s: everything that was written to it since is lost, and can't be had back" % (each.name, at))
        if self.server:
            lines.append("  %s is stopped for it, and started after that" % self.server)
        if self.logs:
            lines.append("  the server's binary logs %s.* are set aside: they do not follow on what it goes back to" % self.logs.basename)
        return lines + ["  warning: " + warning for warning in self.warnings]


def make(run_id: Optional[str] = None) -> RollbackPlan:
    """Return the plan for going back. Nothing is changed.

    :param run_id: as mysql_quiesce_snapshot returned it; default: the only one that there is
    :raises UsageError: there is no such point
    :raises StillpointError: it is not whole, a repository lies on it, or something else is against it
    """
    pending = journals.pending()
    if pending:
        raise pending.refusal("this asks for something else")
    going = begun()
    if going is not None:
        if run_id not in (None, going.run_id):
            raise UsageError("going back to %s was interrupted: finish that first, with stillpoint rollback %s" % (going.run_id, going.run_id))
        return going
    known = lvm.volumes()
    point = undo_points.find(known, run_id)
    undo_points.check(point)
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
    for path in sorted({job.repository for job in own_jobs()}):
        if not os.path.isdir(path):
            continue
        lies_on = layout.volume_of(path, known)
        if lies_on is not None and lies_on.full_name in names:
            raise StillpointError(
                "the repository %s lies on %s, and the backups that were taken since would be lost with it: move it to another volume first"
                % (path, lies_on.full_name)
            )


def own_jobs() -> List[Job]:
    """Return the jobs of this host that can be read."""
    found = []
    for name in job_names():
        try:
            found.append(jobs.load(name))
        except StillpointError:
            continue  # it backs nothing up as long as it can't be read
    return found


def _warnings(point: undo_points.UndoPoint, known: Sequence[lvm.LogicalVolume]) -> List[str]:
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


def write(plan: RollbackPlan) -> None:
    """Keep how far a rollback has come."""
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
    about = undo_points.About(**facts["about"])
    begun_with = RollbackPlan(facts["run_id"], facts["time"], volumes, facts["unit"], tuple(facts["triggers"]), about, True)
    merging = facts.get("merging")
    begun_with = replace(begun_with, merging=None if merging is None else tuple(merging))
    return replace(begun_with, gtids=facts.get("gtids"), merged=bool(facts.get("merged")), kept=tuple(facts.get("kept") or ()))


def refuse_going_back(state: Optional[str] = None) -> None:
    """Raise StillpointError where a rollback was interrupted: its volumes are not mounted, or about to be what they were."""
    going = begun(state)
    if going is not None:
        raise StillpointError("going back to %s was interrupted: finish it first, with stillpoint rollback %s" % (going.run_id, going.run_id))


def forget() -> None:
    """Remove the journal: the rollback has ended."""
    if os.path.lexists(_path()):
        os.unlink(_path())
        durable.sync_directory(journals.STATE)


def _path() -> str:
    return os.path.join(journals.STATE, _JOURNAL)
