# SPDX-License-Identifier: GPL-3.0-or-later
"""Logical volumes: read through LVM's JSON reports, changed through its commands."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from ..host.errors import CommandError, StillpointError, UsageError
from ..host.process import Result, run
from ..host.steps import reached

_FIELDS = (
    "vg_name,lv_name,lv_uuid,lv_path,lv_dm_path,lv_attr,lv_size,lv_layout,lv_role,lv_tags,lv_kernel_major,lv_kernel_minor,"
    "origin,pool_lv,data_percent,metadata_percent,vg_free,vg_extent_size,vg_missing_pv_count"
)

# No dmeventd on a volume that lives for minutes and is watched by us; no copy of the metadata under /etc/lvm, which may
# lie on the very origin that is suspended. The next LVM command of anybody writes that copy.
SHORT_LIVED = ("--config", "activation { monitoring=0 } backup { archive=0 backup=0 }")

_REPORT_TIMEOUT = 60.0
_CHANGE_TIMEOUT = 120.0
_MERGE_TIMEOUT = 600.0


@dataclass(frozen=True)
class LogicalVolume:
    """One logical volume as LVM reports it; sizes in bytes."""

    vg: str
    name: str
    uuid: str
    device: str
    dm_name: str
    attr: str
    size: int
    layout: Tuple[str, ...]
    role: Tuple[str, ...]
    tags: Tuple[str, ...]
    major: int
    minor: int
    origin: str
    pool: str
    data_percent: Optional[float]
    metadata_percent: Optional[float]
    vg_free: int
    extent: int
    vg_missing_pvs: int

    @property
    def full_name(self) -> str:
        """``vg00/root``"""
        return "%s/%s" % (self.vg, self.name)

    @property
    def thin(self) -> bool:
        return "thin" in self.layout and bool(self.pool)

    @property
    def pool_name(self) -> str:
        """The pool that a thin volume lies in: ``vg00/pool``; "" for other volumes."""
        return "%s/%s" % (self.vg, self.pool) if self.thin else ""

    @property
    def is_snapshot(self) -> bool:
        return "snapshot" in self.role

    @property
    def active(self) -> bool:
        return self.major >= 0


def volumes() -> List[LogicalVolume]:
    """Return every logical volume of the host, hidden ones left out."""
    result = lvm(["lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", _FIELDS], timeout=_REPORT_TIMEOUT)
    return parse_report(result.stdout)


def parse_report(text: str) -> List[LogicalVolume]:
    """Return the volumes in the JSON that ``lvs --reportformat json --units b --nosuffix`` prints."""
    try:
        rows = json.loads(text)["report"][0]["lv"]
    except (ValueError, KeyError, IndexError) as error:
        raise StillpointError("the answer of lvs is not the JSON that was asked for: is lvm2 older than 2.02.158?") from error
    return [_volume(row) for row in rows]


def _volume(row: Dict[str, Any]) -> LogicalVolume:
    def percent(key: str) -> Optional[float]:
        return float(row[key]) if row.get(key) else None

    def words(key: str) -> Tuple[str, ...]:
        return tuple(word for word in row.get(key, "").split(",") if word)

    return LogicalVolume(
        vg=row["vg_name"],
        name=row["lv_name"],
        uuid=row["lv_uuid"],
        device=row["lv_path"],
        dm_name=row["lv_dm_path"].rsplit("/", 1)[-1],
        attr=row["lv_attr"],
        size=int(row["lv_size"]),
        layout=words("lv_layout"),
        role=words("lv_role"),
        tags=words("lv_tags"),
        major=int(row["lv_kernel_major"]),
        minor=int(row["lv_kernel_minor"]),
        origin=row["origin"],
        pool=row["pool_lv"],
        data_percent=percent("data_percent"),
        metadata_percent=percent("metadata_percent"),
        vg_free=int(row["vg_free"]),
        extent=int(row["vg_extent_size"]),
        vg_missing_pvs=int(row["vg_missing_pv_count"]),
    )


def by_device(known: Iterable[LogicalVolume], major: int, minor: int) -> Optional[LogicalVolume]:
    """Return the volume with this device number, or None."""
    return next((volume for volume in known if (volume.major, volume.minor) == (major, minor)), None)


def by_name(known: Iterable[LogicalVolume], full_name: str) -> Optional[LogicalVolume]:
    """Return the volume called ``vg/lv``, or None."""
    return next((volume for volume in known if volume.full_name == full_name), None)


def named(known: Sequence[LogicalVolume], text: str) -> Optional[LogicalVolume]:
    """Return the volume that ``vg00/root``, ``/dev/vg00/root`` or ``/dev/mapper/vg00-root`` names; None where the text is a path of another kind.

    :raises UsageError: it has the form of a volume's name and there is no such volume
    """
    for volume in known:
        if text in (volume.full_name, volume.device, "/dev/mapper/" + volume.dm_name):
            return volume
    if text.startswith("/dev/") or re.fullmatch(r"[A-Za-z0-9+_.][A-Za-z0-9+_.-]*/[A-Za-z0-9+_.][A-Za-z0-9+_.-]*", text):
        raise UsageError("there is no logical volume %s: `lvs` lists those of this host" % text)
    return None


def lvm(argv: Sequence[str], *, timeout: float = _CHANGE_TIMEOUT) -> Result:
    """Run an LVM command."""
    return run(argv, timeout=timeout)


def create_plain(vg: str, name: str, size: int, tags: Sequence[str]) -> None:
    """Create a linear volume whose start is zeroed, active."""
    lvm(["lvcreate", *SHORT_LIVED, "-y", "-q", "-Zy", "-Wn", "-L", "%db" % size, *_tags(tags), "-n", name, vg])


def create_thin_snapshot_argv(origin: str, name: str, tags: Sequence[str]) -> List[str]:
    """Return the command that snapshots a thin volume: active now, skipped at the next boot. No size: with one, LVM would
    make a thick snapshot (drbd-utils#32)."""
    return ["lvcreate", *SHORT_LIVED, "-y", "-q", "-s", "-ky", "-K", "-ay", *_tags(tags), "-n", name, origin]


def convert_argv(origin: str, cow: str) -> List[str]:
    """Return the command that turns a prepared volume into a thick snapshot of an origin. Its start was zeroed before."""
    return ["lvconvert", *SHORT_LIVED, "-y", "-q", "-Zn", "--type", "snapshot", origin, cow]


def deactivate(full_name: str) -> None:
    lvm(["lvchange", *SHORT_LIVED, "-y", "-q", "-an", full_name])


def activate(full_name: str) -> None:
    """Activate a volume, also one that is skipped at boot, and have LVM finish a merge into it in the background."""
    lvm(["lvchange", "-y", "-q", "-ay", "-K", "--poll", "y", full_name])


def merge(full_name: str) -> None:
    """Let a snapshot's contents become its origin's: at once where nothing has either open, else at the origin's next activation.

    A thick one is copied back in the background, and looks merged from the beginning.
    """
    reached("merge", full_name)
    lvm(["lvconvert", "-y", "-q", "--merge", "--background", full_name], timeout=_MERGE_TIMEOUT)


def do_not_skip(full_name: str) -> None:
    """Have a thin snapshot activated at boot as any volume is: it is about to become one."""
    lvm(["lvchange", *SHORT_LIVED, "-y", "-q", "-kn", full_name])


def extend(full_name: str, size: int) -> None:
    """Extend a volume to a size in bytes."""
    lvm(["lvextend", *SHORT_LIVED, "-y", "-q", "-L", "%db" % size, full_name])


def retag(full_name: str, *, add: Sequence[str] = (), remove: Sequence[str] = ()) -> None:
    """Add and remove tags of a volume."""
    changes = [word for tag in add for word in ("--addtag", tag)] + [word for tag in remove for word in ("--deltag", tag)]
    lvm(["lvchange", *SHORT_LIVED, "-q", *changes, full_name])


def remove(full_name: str) -> None:
    """Remove a volume; one try, bounded (an lvremove can hang on udev: systemd#13976)."""
    lvm(["lvremove", "-y", "-q", "-f", full_name], timeout=30)


def settle() -> None:
    """Wait, for a bounded time, until udev has let go of the devices it looked at."""
    try:
        run(["udevadm", "settle", "--timeout=10"], timeout=15, check=False)
    except CommandError:
        pass  # no udev here: nothing holds a device


def _tags(tags: Sequence[str]) -> List[str]:
    return [word for tag in tags for word in ("--addtag", tag)]
