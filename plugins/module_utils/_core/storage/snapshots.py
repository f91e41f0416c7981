# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots: prepared before any lock, taken at an instant that is observed and not assumed, watched, removed.

Device-mapper's point in time is the suspend of the origin: each later write waits until the resume, and then the old
contents are kept for the snapshot. The lock may go once the origin is seen suspended, or once its live table is the one
with the snapshot. A new slave in /sys/block/dm-N/slaves is no sign: it appears when the table is loaded, before the suspend.
"""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from ..errors import CommandError, StillpointError
from ..process import go_on_without_parent, sentence, start
from . import dm, lvm, sizes
from .leftovers import Owner, locked_memory, process_state, remove
from .lvm import LogicalVolume

# A lock is never held longer than this for the sake of a snapshot: an LVM command that hangs gives it back.
FREEZE_LIMIT = 15.0
_COMMAND_LIMIT = 300.0
_STOP_LIMIT = 1.0
_POLL = 0.0005


@dataclass(frozen=True)
class Hold:
    """Something of the backup that lies on a volume.

    :ivar role: what it is: ``datadir``, ``redo``, …; ``files`` for a path that was asked for
    :ivar below: where it lies below the root of the volume's file system
    """

    role: str
    path: str
    below: str


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
        holds = tuple(Hold(str(hold["role"]), str(hold["path"]), str(hold["below"])) for hold in facts["holds"])
        return Snapshot(
            **{key: str(facts[key]) for key in ("vg", "origin", "name", "device", "dm_name", "fs_type", "mount_point")},
            thin=bool(facts["thin"]),
            size_bytes=int(facts["size_bytes"]),
            holds=holds,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StillpointError("snapshots is not what mysql_quiesce_snapshot returned: %s of a snapshot is missing or wrong" % error) from error


class Taking:
    """One volume's snapshot on its way: `prepare`, `begin`, `stopped_before_suspend` where it `can_be_late`, `wait_frozen`, `finish`."""

    def __init__(self, target: Target, owner: Owner, number: int, control: dm.Control) -> None:
        self.target = target
        self._owner = owner
        self._control = control
        self.name = "stillpoint-%s-%d" % (owner.run_id, number)
        self.full_name = "%s/%s" % (target.volume.vg, self.name)
        self._origin = target.volume.dm_name
        self._dm_name = "%s-%s" % (target.volume.vg.replace("-", "--"), self.name.replace("-", "--"))
        self._before = self._state()
        self._process: Optional["subprocess.Popen[str]"] = None
        self._argv: List[str] = []
        self._suspended_at: Optional[float] = None
        self._resumed_at: Optional[float] = None
        self._last_seen_live = 0.0
        self._exit_checked = False

    def prepare(self) -> None:
        """Do all that needs no lock: for a thick snapshot, make and zero the volume that will hold the old contents."""
        if self.target.size is not None:
            lvm.create_plain(self.target.volume.vg, self.name, self.target.size, self._owner.tags())
            lvm.deactivate(self.full_name)

    def begin(self) -> None:
        """Start the LVM command that takes the snapshot."""
        origin = self.target.volume.full_name
        if self.target.size is None:
            self._argv = lvm.create_thin_snapshot_argv(origin, self.name, self._owner.tags())
        else:
            self._argv = lvm.convert_argv(origin, self.full_name)
        self._process = start(
            self._argv, in_child=go_on_without_parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True
        )
        self._last_seen_live = time.monotonic()

    @property
    def can_be_late(self) -> bool:
        """Tell whether the new table is loaded visibly before the suspend: a thick snapshot of a volume that has none yet."""
        return self.target.size is not None and self._before.target != "snapshot-origin" and not self._before.inactive

    @contextmanager
    def stopped_before_suspend(self) -> Iterator[bool]:
        """Stop LVM (SIGSTOP) just before it suspends the origin, for as long as the body lasts: the point in time can't come
        before the body's end. Give False when LVM was past that already.

        However the body ends, LVM goes on; the kernel sees to it where this process is killed (PR_SET_PDEATHSIG).
        """
        process = self._command
        try:
            yield self._wait_loaded() and self._stop()
        finally:
            process.send_signal(signal.SIGCONT)

    def _wait_loaded(self, limit: float = FREEZE_LIMIT) -> bool:
        """Wait until LVM is about to suspend the origin; False when the command ended or froze the origin first.

        The sign is the snapshot's own table, loaded and not live, when LVM begins to lock its memory: the origin's table is
        loaded by then, udev has been waited for, and the suspend comes next.
        """
        end = time.monotonic() + limit
        while time.monotonic() < end:
            snapshot = self._control.state(self._dm_name)
            if snapshot is not None and snapshot.inactive and locked_memory(self._command.pid):
                return self.still_before()
            if self._over(self._state()):
                return False
            time.sleep(_POLL)
        return False

    def _stop(self) -> bool:
        """Stop LVM; tell whether it stands still before the suspend. An origin that is suspended has to be let go at once."""
        self._command.send_signal(signal.SIGSTOP)
        end = time.monotonic() + _STOP_LIMIT
        while time.monotonic() < end and not self._over(self._state()):
            if process_state(self._command.pid) == "T":
                return self.still_before()
            time.sleep(_POLL)
        return False

    def still_before(self) -> bool:
        """Tell whether the point in time is certainly yet to come: the new table is loaded and not live, and writes go on."""
        state = self._state()
        if state.inactive and not state.suspended and state.target == self._before.target:
            self._last_seen_live = time.monotonic()
            return True
        return False

    def wait_frozen(self, limit: float = FREEZE_LIMIT) -> str:
        """Return how the point in time was seen to be reached: "suspended", "switched", or "exit" (the command ended well).

        :raises StillpointError: it was not reached within the limit, or the command failed
        """
        end = time.monotonic() + limit
        while time.monotonic() < end:
            state = self._state()
            now = time.monotonic()
            if state.suspended:
                self._suspended_at = now
                return "suspended"
            if self._before.target != "snapshot-origin" and state.target == "snapshot-origin":
                self._suspended_at, self._resumed_at = self._last_seen_live, now
                return "switched"
            if self._process is not None and self._process.poll() is not None:
                self._check_exit()
                return "exit"
            self._last_seen_live = now
            time.sleep(_POLL)
        raise StillpointError("LVM did not take the snapshot of %s within %g s; the lock was given back" % (self.target.volume.full_name, limit))

    def finish(self) -> Snapshot:
        """Wait for the command's end and return the Snapshot.

        :raises CommandError: it failed, or did not end in time
        """
        process = self._command
        end = time.monotonic() + _COMMAND_LIMIT
        while process.poll() is None:
            if self._resumed_at is None and not self._state().suspended:
                self._resumed_at = time.monotonic()
            if time.monotonic() > end:
                raise CommandError("%s did not end within %g s" % (self._argv[0], _COMMAND_LIMIT), self._argv)
            time.sleep(0.02 if self._resumed_at else _POLL)
        self._check_exit()
        target = self.target
        volume = target.volume
        device = "/dev/%s/%s" % (volume.vg, self.name)
        return Snapshot(
            volume.vg,
            volume.name,
            self.name,
            device,
            self._dm_name,
            target.size is None,
            target.size or volume.size,
            target.fs_type,
            target.mount_point,
            target.holds,
        )

    @property
    def frozen(self) -> Optional[float]:
        """Seconds from the suspend to the resume as they were seen; None when the freeze was too short to be seen."""
        if self._suspended_at is None or self._resumed_at is None:
            return None
        return max(0.0, self._resumed_at - self._suspended_at)

    def discard(self) -> None:
        """Wait until the command has ended, and remove what it made. Safe at any time, and when nothing was made."""
        if self._process is not None:
            try:
                self._process.wait(timeout=_COMMAND_LIMIT)
            except subprocess.TimeoutExpired:
                pass  # hung: the next run finds the volume by its tags
        if lvm.by_name(lvm.volumes(), self.full_name) is not None:
            remove(self.full_name)

    @property
    def _command(self) -> "subprocess.Popen[str]":
        if self._process is None:
            raise RuntimeError("the snapshot was not begun")
        return self._process

    def _state(self) -> dm.State:
        state = self._control.state(self._origin)
        if state is None:
            raise StillpointError("the logical volume %s is not active" % self.target.volume.full_name)
        return state

    def _over(self, state: dm.State) -> bool:
        """Tell whether it is too late to find the table loaded and not yet live."""
        ended = self._process is not None and self._process.poll() is not None
        return ended or state.suspended or state.target != self._before.target

    def _check_exit(self) -> None:
        if self._exit_checked:
            return
        self._exit_checked = True
        process = self._command
        _out, err = process.communicate()
        if process.returncode != 0:
            raise CommandError(
                "LVM can't snapshot %s: %s" % (self.target.volume.full_name, sentence(err or "") or "exit status %d" % process.returncode),
                self._argv,
                process.returncode,
                err or "",
            )


class Watch:
    """Keeps a set of thick snapshots valid while they are read: extends them while there is room, and says when one is lost.

    Call it often; it looks at most every `interval` seconds, which costs microseconds (a status ioctl, no LVM command).
    """

    threshold = 70.0  # percent full at which a snapshot is extended
    share = 0.5  # of its size that is added, but for the room there is

    def __init__(self, snapshots: List[Snapshot], control: dm.Control, *, interval: float = 0.25) -> None:
        self.snapshots = snapshots
        self._control = control
        self._interval = interval
        self._next = 0.0
        self._no_room: Dict[str, str] = {}
        self.used_percent: Dict[str, float] = {}
        self.warnings: List[str] = []

    def __call__(self) -> None:
        """Look, if it is time to.

        :raises StillpointError: a snapshot has been lost
        """
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._interval
            self.check()

    def check(self) -> None:
        """Look now.

        :raises StillpointError: a snapshot has been lost
        """
        for index, snapshot in enumerate(self.snapshots):
            if snapshot.thin:
                continue
            fill = dm.fill(self._control.state(snapshot.dm_name))
            if not fill.valid:
                raise StillpointError(self._lost(snapshot))
            self.used_percent[snapshot.full_name] = round(fill.percent, 1)
            if fill.percent >= self.threshold and snapshot.full_name not in self._no_room:
                self.snapshots[index] = self._extended(snapshot)

    def _extended(self, snapshot: Snapshot) -> Snapshot:
        volume = lvm.by_name(lvm.volumes(), snapshot.full_name)
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
            lvm.extend(snapshot.full_name, size)
        except CommandError as error:  # somebody else took the room, or it was lost meanwhile: the next look tells
            self._no_room[snapshot.full_name] = "it can't be extended (%s)" % error
            return snapshot
        return replace(snapshot, size_bytes=size)

    def _lost(self, snapshot: Snapshot) -> str:
        why = self._no_room.get(snapshot.full_name, "it filled faster than it could be extended")
        return (
            "the snapshot %s of %s/%s (%d MiB) was filled up by writes to its origin and is lost: %s; nothing was published. "
            "Set a larger snapshot_size, or free space in the volume group"
        ) % (snapshot.name, snapshot.vg, snapshot.origin, snapshot.size_bytes // sizes.MIB, why)
