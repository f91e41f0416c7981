# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots while they are read: watched, extended, given up in time."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Dict, List, Optional, Protocol

from ..host.errors import CommandError, StillpointError
from . import dm, sizes, volumes
from .targets import Snapshot


class Devices(Protocol):
    """Who knows what state a device is in: `dm.Control`."""

    def state(self, dm_name: str) -> Optional[dm.State]:
        """Return the State of a device; None when there is no such device."""


class NoDevices:
    """In place of a Control where there is no snapshot to ask of."""

    def state(self, _dm_name: str) -> Optional[dm.State]:
        return None


class Watch:
    """Keeps a set of snapshots valid while they are read: extends thick ones while there is room and says when one is lost; and
    gives up in time when a thin pool, which live volumes need too, is about to fill up.

    Call it often; it looks at most every `interval` seconds, which costs microseconds (a status ioctl, no LVM command).
    """

    threshold = 70.0  # percent full at which a snapshot is extended
    share = 0.5  # of its size that is added, but for the room there is
    pool_limit = 95.0  # percent full, of data or metadata, at which a thin pool is given up for the sake of its other volumes

    def __init__(self, snapshots: List[Snapshot], control: Devices, *, interval: float = 0.25) -> None:
        self.snapshots = snapshots
        self._control = control
        self._interval = interval
        self._next = 0.0
        self._no_room: Dict[str, str] = {}
        self._while, self._outcome = "copied", "nothing was published"
        self.used_percent: Dict[str, float] = {}
        self.pool_percent: Dict[str, float] = {}
        self.warnings: List[str] = []

    def __call__(self) -> None:
        """Look, if it is time to.

        :raises StillpointError: as `check`
        """
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval
            self.check()

    def copied(self) -> None:
        """Tell that all was copied: what is lost from now on is the proof alone."""
        self._while, self._outcome = "proven", "the copy was complete before that, and is not proven"

    def facts(self) -> List[Dict[str, Any]]:
        """Return what a manifest says of each snapshot."""
        return [
            {
                "vg": snapshot.vg,
                "origin": snapshot.origin,
                "name": snapshot.name,
                "thin": snapshot.thin,
                "size_bytes": snapshot.size_bytes,
                "used_percent": self.used_percent.get(snapshot.full_name),
                "pool": snapshot.pool,
                "pool_percent": self.pool_percent.get(snapshot.full_name),
                "fs_type": snapshot.fs_type,
            }
            for snapshot in self.snapshots
        ]

    def check(self) -> None:
        """Look now.

        :raises StillpointError: a snapshot has been lost, or a thin pool is about to fill up
        """
        for index, snapshot in enumerate(self.snapshots):
            if snapshot.pool:
                self._check_pool(snapshot, snapshot.pool)
                continue
            fill = dm.fill(self._control.state(snapshot.dm_name))
            if not fill.valid:
                raise StillpointError(self._lost(snapshot))
            self.used_percent[snapshot.full_name] = round(fill.percent, 1)
            if fill.percent >= self.threshold and snapshot.full_name not in self._no_room:
                self.snapshots[index] = self._extended(snapshot)

    def _check_pool(self, snapshot: Snapshot, name: str) -> None:
        pool = dm.pool(self._control.state(dm.name(snapshot.vg, name, "tpool")))
        full = max(pool.data_percent, pool.metadata_percent)
        self.pool_percent[snapshot.full_name] = round(full, 1)
        if not pool.valid or full >= self.pool_limit:
            raise StillpointError(
                "the thin pool %s/%s has filled up to %.1f %% of its data and %.1f %% of its metadata while %s/%s was %s: the snapshot was given "
                "up, since a full pool stops every volume in it; %s. Extend the pool"
                % (snapshot.vg, name, pool.data_percent, pool.metadata_percent, snapshot.vg, snapshot.origin, self._while, self._outcome)
            )

    def _extended(self, snapshot: Snapshot) -> Snapshot:
        volume = volumes.by_name(volumes.volumes(), snapshot.full_name)
        if volume is None:
            raise StillpointError("the snapshot %s is gone: somebody removed it" % snapshot.full_name)
        room = volume.vg_free // volume.extent
        more = min(max(int(volume.size * self.share) // volume.extent, 1), room)
        if more < 1:
            self._no_room[snapshot.full_name] = "the volume group %s has no free extent to extend it" % snapshot.vg
            self.warnings.append("snapshot %s is %.0f %% full and %s" % (snapshot.full_name, self.threshold, self._no_room[snapshot.full_name]))
            return snapshot
        size = volume.size + more * volume.extent
        try:
            volumes.extend(snapshot.full_name, size)
        except CommandError as error:  # somebody else took the room, or it was lost meanwhile: the next look tells
            self._no_room[snapshot.full_name] = "it can't be extended (%s)" % error
            return snapshot
        return replace(snapshot, size_bytes=size)

    def _lost(self, snapshot: Snapshot) -> str:
        why = self._no_room.get(snapshot.full_name, "it filled faster than it could be extended")
        return (
            "the snapshot %s of %s/%s (%d MiB) was filled up by writes to %s and is lost: %s; %s. "
            "Set a larger snapshot_size, or free space in the volume group"
        ) % (snapshot.name, snapshot.vg, snapshot.origin, snapshot.size_bytes // sizes.MIB, self._writers, why, self._outcome)

    @property
    def _writers(self) -> str:
        return "its origin" if self._while == "copied" else "its origin and by the server that was started on it"
