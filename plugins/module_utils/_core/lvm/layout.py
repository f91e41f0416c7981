# SPDX-License-Identifier: GPL-3.0-or-later
"""Which logical volumes hold the paths of a backup, and every reason why a snapshot of them would not do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import StillpointError
from ..host.mounts import Mount, Place, hidden_below, is_below, place, table
from ..trees import LeftOut
from . import dm, sizes
from . import volumes as lvm
from .ownership import KEPT, owner
from .targets import Hold, Target, snapshot_name
from .volumes import LogicalVolume

FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs")
FILES = "files"


@dataclass(frozen=True)
class Located:
    """A path of the backup with the volume that it lies on."""

    role: str
    path: str
    place: Place
    volume: LogicalVolume
    left_out: Tuple[str, ...] = ()  # rsync's patterns


def locate(wanted: Sequence[Tuple[str, str]], known: Sequence[LogicalVolume], left_out: Optional[Mapping[str, LeftOut]] = None) -> List[Located]:
    """Return where each ``(role, path)`` lies.

    :param left_out: path -> what is not to be copied of it
    :raises StillpointError: one does not lie on a logical volume that can be snapshotted, or another file system is
        mounted inside it, which the snapshot would lack
    """
    mounts = table()
    left_out = left_out or {}
    found = [replace(_located(role, path, known, mounts), left_out=left_out.get(path, LeftOut()).patterns) for role, path in wanted]
    covered = [one.place.path for one in found]
    for one in found:
        for point in hidden_below(one.place.path, mounts):
            if point not in covered and point not in left_out.get(one.path, LeftOut()).mount_points:
                raise StillpointError(
                    "%s is a file system of its own inside %s, and a snapshot would leave it out: %s"
                    % (
                        point,
                        one.path,
                        "name it too, beside %s, and it is copied with it, or name it in exclude" % one.path
                        if one.role == FILES
                        else "the server's directories must lie on one file system each",
                    )
                )
    return found


def _located(role: str, path: str, known: Sequence[LogicalVolume], mounts: List[Mount]) -> Located:
    where = place(path, mounts)
    what = "the path" if role == FILES else "the server's %s directory" % role if role != "datadir" else "the data directory"
    if where.mount.fs_type == "btrfs":
        raise StillpointError("%s %s lies on btrfs, and a snapshot of its volume can't be mounted beside it: use btrfs' own snapshots" % (what, path))
    volume = lvm.by_device(known, where.mount.major, where.mount.minor)
    if volume is None:
        raise StillpointError(
            "%s %s lies on %s (%s), which is not a logical volume of LVM: no snapshot can be taken of it; move it to a logical volume"
            % (what, path, where.mount.source, where.mount.fs_type)
        )
    return Located(role, path, where, volume)


def check_volume(volume: LogicalVolume) -> None:
    """Raise StillpointError where a volume can't be snapshotted, or should not be now."""
    if volume.is_snapshot and not volume.thin:
        raise StillpointError(
            "%s is itself a snapshot (of %s), and LVM takes none of a snapshot: back up its origin" % (volume.full_name, volume.origin)
        )
    if volume.vg_missing_pvs:
        raise StillpointError(
            "volume group %s lacks %d of its physical volumes: repair it first (vgs -o+vg_missing_pv_count)" % (volume.vg, volume.vg_missing_pvs)
        )
    snapshot_name(volume.vg, "", 0)
    # LVM puts a layer of this name below the origin of a thick snapshot
    if not volume.thin and len(dm.name(volume.vg, volume.name, "real")) > dm.NAME_LIMIT:
        raise StillpointError(
            "the name of %s is too long: device-mapper has no room left for the layer that LVM puts below the origin of a snapshot; "
            "rename the volume (lvrename)" % volume.full_name
        )


def volumes_of(located: Sequence[Located], extra: Sequence[LogicalVolume] = ()) -> List[LogicalVolume]:
    """Return each volume that holds something, or that was asked for by name, once."""
    volumes: Dict[str, LogicalVolume] = {}
    for volume in [one.volume for one in located] + list(extra):
        volumes.setdefault(volume.full_name, volume)
    return list(volumes.values())


def targets(
    located: Sequence[Located], extra: Sequence[LogicalVolume], size: sizes.Size, own_writes: Mapping[str, int], known: Sequence[LogicalVolume]
) -> List[Target]:
    """Return a Target for each volume that holds something, or that was asked for by name; sizes fit the groups together.

    :param extra: volumes asked for by name
    :param own_writes: full name of a volume -> bytes that the copy itself will write to it
    :param known: every volume of the host
    :raises StillpointError: a volume can't be snapshotted, or its group or pool has no room
    """
    volumes = volumes_of(located, extra)
    check_pools(volumes, own_writes, known)
    found = []
    free = {volume.vg: volume.vg_free for volume in volumes}
    for volume in volumes:
        check_volume(volume)
        mount = _main_mount(volume, located)
        bytes_needed: Optional[int] = None
        if not volume.thin:
            bytes_needed = sizes.snapshot_size(
                size,
                name=volume.full_name,
                origin_size=volume.size,
                free=free[volume.vg],
                extent=volume.extent,
                own_writes=own_writes.get(volume.full_name, 0),
            )
            free[volume.vg] -= bytes_needed
        holds = tuple(Hold(one.role, one.path, one.place.below, one.left_out) for one in located if one.volume.full_name == volume.full_name)
        found.append(Target(volume, bytes_needed, mount.fs_type, mount.mount_point, holds))
    return found


def check_pools(volumes: Sequence[LogicalVolume], own_writes: Mapping[str, int], known: Sequence[LogicalVolume]) -> None:
    """Raise StillpointError where a thin pool has not the room that snapshots of its volumes may come to need.

    :param own_writes: full name of a volume -> bytes that the copy itself will write to it
    """
    expected: Dict[str, float] = {}
    for volume in volumes:
        if volume.thin:
            mapped = volume.size * (volume.data_percent or 0.0) / 100
            expected[volume.pool_name] = expected.get(volume.pool_name, 0.0) + sizes.expected_writes(mapped)
    for written_to, size in own_writes.items():
        target = lvm.by_name(known, written_to)
        if target is not None and target.pool_name in expected:
            expected[target.pool_name] += size
    for name, needed in expected.items():
        pool = lvm.by_name(known, name)
        if pool is None or pool.data_percent is None or pool.metadata_percent is None:
            raise StillpointError("lvs does not say how full the thin pool %s is, which a snapshot in it depends on" % name)
        sizes.check_pool(name, pool.size, pool.data_percent, pool.metadata_percent, needed)


def _main_mount(volume: LogicalVolume, located: Sequence[Located]) -> Mount:
    """Return the mount by which a volume is synced: the one its paths were found through, or any."""
    for one in located:
        if one.volume.full_name == volume.full_name:
            return _checked(volume, one.place.mount)
    for mount in table():
        if (mount.major, mount.minor) == (volume.major, volume.minor):
            return _checked(volume, mount)
    raise StillpointError("%s is not mounted: there is no file system to sync, and nothing of a server's on it" % volume.full_name)


def _checked(volume: LogicalVolume, mount: Mount) -> Mount:
    if mount.fs_type not in FILE_SYSTEMS:
        raise StillpointError(
            "%s carries %s: file systems that can be backed up from a snapshot here are %s"
            % (volume.full_name, mount.fs_type, ", ".join(FILE_SYSTEMS))
        )
    return mount


def kept_by_playbooks(known: Sequence[LogicalVolume]) -> List[str]:
    """Return the snapshots that a playbook was given and that still exist: they fill up as long as they are kept."""
    return [volume.full_name for volume in known if KEPT in volume.tags and owner(volume.tags) is not None]


def volume_of(path: str, known: Sequence[LogicalVolume]) -> Optional[LogicalVolume]:
    """Return the volume that a path lies on; None where it lies on none."""
    where = place(path)
    return lvm.by_device(known, where.mount.major, where.mount.minor)


def lies_in(path: str, directories: Sequence[str]) -> Optional[str]:
    """Return the first of the directories that a path is or lies in, symlinks followed; None where it lies in none."""
    real = place(path).path
    return next((directory for directory in directories if is_below(real, place(directory).path)), None)
