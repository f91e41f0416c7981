# SPDX-License-Identifier: GPL-3.0-or-later
"""What is snapshotted, and the snapshots that came of it, as values."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any, Dict, Mapping, Optional, Tuple

from ..host.errors import StillpointError, UsageError
from ..host.processes import COLLECTION
from . import dm
from .volumes import LogicalVolume


@dataclass(frozen=True)
class Hold:
    """Something of the backup that lies on a volume.

    :ivar role: what it is: ``datadir``, ``redo``, …; ``files`` for a path that was asked for
    :ivar below: where it lies below the root of the volume's file system
    :ivar left_out: rsync's patterns for what is not to be copied
    """

    role: str
    path: str
    below: str
    left_out: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A volume that is to be snapshotted.

    :ivar size: bytes of the snapshot; None on a thin volume, whose snapshot has none of its own
    """

    volume: LogicalVolume
    size: Optional[int]
    fs_type: str
    mount_point: str
    holds: Tuple[Hold, ...]


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that exists."""

    vg: str
    origin: str
    name: str
    device: str
    dm_name: str
    thin: bool
    size_bytes: int
    fs_type: str
    mount_point: str
    holds: Tuple[Hold, ...]
    pool: Optional[str] = None  # the thin pool's name; None for a thick snapshot

    @property
    def full_name(self) -> str:
        return "%s/%s" % (self.vg, self.name)

    def as_dict(self) -> Dict[str, Any]:
        facts = asdict(self)
        facts["holds"] = [asdict(hold) for hold in self.holds]
        return facts


def from_dict(facts: Mapping[str, Any]) -> Snapshot:
    """Return the Snapshot that `Snapshot.as_dict` described.

    :raises StillpointError: a fact is missing
    """
    try:
        holds = tuple(
            Hold(str(hold["role"]), str(hold["path"]), str(hold["below"]), tuple(map(str, hold.get("left_out") or ()))) for hold in facts["holds"]
        )
        return Snapshot(
            **{key: str(facts[key]) for key in ("vg", "origin", "name", "device", "dm_name", "fs_type", "mount_point")},
            thin=bool(facts["thin"]),
            size_bytes=int(facts["size_bytes"]),
            holds=holds,
            pool=str(facts["pool"]) if facts.get("pool") else None,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StillpointError("snapshots is not what mysql_quiesce_snapshot returned: %s of a snapshot is missing or wrong" % error) from error


def snapshot_name(vg: str, run_id: str, number: int) -> str:
    """Return a name for a run's snapshot that device-mapper can hold, also for the layer ``cow`` of it: a volume group with a
    long name gets a short one. Each begins with "stillpoint", by which udev is told to make no links to its file system.

    :raises UsageError: even that is too long
    """
    for name in ("%s-%s-%d" % (COLLECTION, run_id, number), COLLECTION + hashlib.sha256(("%s-%d" % (run_id, number)).encode()).hexdigest()[:8]):
        if len(dm.name(vg, name, "cow")) <= dm.NAME_LIMIT:
            return name
    raise UsageError("the name of the volume group %s is too long: device-mapper has no room left for the name of a snapshot in it" % vg)
