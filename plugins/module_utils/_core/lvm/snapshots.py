# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots: prepared before any lock, taken at an instant that is observed and not assumed, watched, removed.

Device-mapper's point in time is the suspend of the origin: each later write waits until the resume, and then the old
contents are kept for the snapshot. The lock may go once the origin is seen suspended, or once its live table is the one
with the snapshot. A new slave in /sys/block/dm-N/slaves is no sign: it appears when the table is loaded, before the suspend.

Several volumes are snapshotted by as many LVM commands, started together: those of one volume group wait for each other,
which is LVM's own doing, and those of different groups run side by side.
"""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional, Sequence, Tuple

from ..host.errors import CommandError, StillpointError
from ..host.process import go_on_without_parent, sentence, start, undisturbed
from ..host.processes import Owner, locked_memory, process_state
from ..host.steps import reached
from . import dm, volumes
from .ownership import remove
from .targets import Snapshot, Target, snapshot_name

# A lock is never held longer than this for the sake of a snapshot: an LVM command that hangs gives it back.
FREEZE_LIMIT = 15.0
_COMMAND_LIMIT = 300.0
_STOP_LIMIT = 1.0
_ORIGIN = "snapshot-origin"  # target type of a thick snapshot's origin
_POLL = 0.0005


class Taking:
    """One volume's snapshot on its way: `prepare`, `begin`, `stop` and `go_on`, and `look` until its command has ended."""

    def __init__(self, target: Target, owner: Owner, number: int, control: dm.Control) -> None:
        volume = target.volume
        self.target = target
        self._owner = owner
        self._control = control
        self.name = snapshot_name(volume.vg, owner.run_id, number)
        self.full_name = "%s/%s" % (volume.vg, self.name)
        self._origin = volume.dm_name
        self._dm_name = dm.name(volume.vg, self.name)
        self._pool = dm.name(volume.vg, volume.pool, "tpool") if target.size is None else None
        self._before = self._state()
        self._transaction = self._pool_transaction()
        self._process: Optional["subprocess.Popen[str]"] = None
        self.argv: List[str] = []
        self._seen: Optional[str] = None
        self._last_before = 0.0
        self._reached = 0.0
        self._resumed: Optional[float] = None
        self._exit_checked = False

    def prepare(self) -> None:
        """Do all that needs no lock: for a thick snapshot, make and zero the volume that will hold the old contents."""
        if self.target.size is not None:
            volumes.create_plain(self.target.volume.vg, self.name, self.target.size, self._owner.tags())
            volumes.deactivate(self.full_name)
        reached("snapshot prepared", self.full_name)

    def begin(self) -> None:
        """Start the LVM command that takes the snapshot."""
        origin = self.target.volume.full_name
        if self.target.size is None:
            self.argv = volumes.create_thin_snapshot_argv(origin, self.name, self._owner.tags())
        else:
            self.argv = volumes.convert_argv(origin, self.full_name)
        self._last_before = time.monotonic()
        self._process = start(self.argv, in_child=go_on_without_parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, universal_newlines=True)
        reached("snapshot begun", self.full_name)

    @property
    def can_be_late(self) -> bool:
        """Tell whether `still_before` can be certain: not for a thick snapshot of a volume that has one already, whose live
        table looks the same before and after."""
        return self._pool is not None or self._before.target != _ORIGIN

    @property
    def is_about(self) -> bool:
        """Tell whether LVM is about to suspend the origin: it begins to lock its memory. For a thick snapshot, its own table is
        loaded by then, the origin's as well, and udev has been waited for; a thin one gets its table later."""
        if self._pool is None:
            snapshot = self._control.state(self._dm_name)
            if snapshot is None or not snapshot.inactive:
                return False
        return locked_memory(self._command.pid) > 0

    def stop(self) -> bool:
        """Stop LVM (SIGSTOP); tell whether it stands still before the suspend. An origin that is suspended has to be let go at
        once."""
        self._command.send_signal(signal.SIGSTOP)
        end = time.monotonic() + _STOP_LIMIT
        while time.monotonic() < end and self.still_before():
            if process_state(self._command.pid) == "T":
                return self.still_before()
            time.sleep(_POLL)
        return False

    def go_on(self) -> None:
        """Let LVM go on, if it was stopped."""
        self._command.send_signal(signal.SIGCONT)

    def still_before(self) -> bool:
        """Tell whether the point in time is certainly yet to come: writes go on, and after that was seen, nothing of the
        snapshot is in effect. In this order, since LVM resumes the origin last."""
        ended = self._process is not None and self._process.poll() is not None
        state = self._state()
        return not ended and not state.suspended and self._certain(state)

    def _certain(self, state: dm.State) -> bool:
        """Tell whether nothing of the snapshot is in effect, for a State that was not suspended; False where that can't be known."""
        if self._pool is None:
            return self.can_be_late and state.target == self._before.target
        return self._transaction == self._pool_transaction()

    def look(self) -> Optional[str]:
        """Return how the point in time was seen to be reached; None while it was not.

        "suspended": the origin is frozen; "switched": the snapshot is in effect; "exit": the command ended well.

        :raises CommandError: the command failed
        """
        before = time.monotonic()
        ended = self._command.poll() is not None
        at_it = locked_memory(self._command.pid) > 0
        state = self._state()
        now = time.monotonic()
        if self._seen is None:
            self._seen = self._sign(state, ended, at_it)
            if self._seen is not None:
                self._reached = now
            elif self._certain(state):
                self._last_before = before
        if self._seen is not None and self._resumed is None and not state.suspended:
            self._resumed = now
        if ended:
            self._check_exit()
        return self._seen

    def _sign(self, state: dm.State, ended: bool, at_it: bool) -> Optional[str]:
        """Return the sign of the freeze that this command brings about. Another command may suspend the origin as well, for another
        snapshot's sake: never while this one has its memory locked, and with it the volume group."""
        if state.suspended and at_it:
            return "suspended"
        if self._pool is None:
            snapshot = self._control.state(self._dm_name)
            if state.target == _ORIGIN and self._before.target != _ORIGIN and snapshot is not None and snapshot.target == "snapshot":
                return "switched"
        elif self._control.state(self._dm_name) is not None:  # LVM makes the device when the pool has the snapshot
            return "switched"
        if ended:
            self._check_exit()
            return "exit"
        return None

    @property
    def resumed(self) -> bool:
        """Tell whether the origin was seen to take writes again."""
        return self._resumed is not None

    @property
    def ended(self) -> bool:
        """Tell whether the command has ended."""
        return self._command.poll() is not None

    @property
    def frozen(self) -> Optional[float]:
        """Seconds from the suspend to the resume as they were seen; None when the freeze was too short to be seen."""
        if self._seen == "suspended" and self._resumed is not None:
            return self._resumed - self._reached
        if self._seen == "switched" and self._pool is None:
            return self._reached - self._last_before
        return None

    @property
    def moment(self) -> Tuple[float, float]:
        """The monotonic times between which the origin was frozen."""
        return self._last_before, self._reached

    def snapshot(self) -> Snapshot:
        """Return the Snapshot that was taken."""
        target = self.target
        volume = target.volume
        return Snapshot(
            volume.vg,
            volume.name,
            self.name,
            "/dev/%s/%s" % (volume.vg, self.name),
            self._dm_name,
            target.size is None,
            target.size or volume.size,
            target.fs_type,
            target.mount_point,
            target.holds,
            volume.pool if target.size is None else None,
        )

    def discard(self) -> None:
        """Wait until the command has ended, and remove what it made. Safe at any time, and when nothing was made."""
        reached("discard", self.full_name)
        if self._process is not None:
            self.go_on()
            try:
                self._process.wait(timeout=_COMMAND_LIMIT)
            except subprocess.TimeoutExpired:
                pass  # hung: the next run finds the volume by its tags
        if volumes.by_name(volumes.volumes(), self.full_name) is not None:
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

    def _pool_transaction(self) -> Optional[int]:
        return dm.pool(self._control.state(self._pool)).transaction if self._pool else None

    def _check_exit(self) -> None:
        if self._exit_checked:
            return
        self._exit_checked = True
        process = self._command
        _out, err = process.communicate()
        if process.returncode != 0:
            raise CommandError(
                "LVM can't snapshot %s: %s" % (self.target.volume.full_name, sentence(err or "") or "exit status %d" % process.returncode),
                self.argv,
                process.returncode,
                err or "",
            )


@contextmanager
def stopped_before_suspend(takings: Sequence[Taking]) -> Iterator[bool]:
    """Stop LVM in each volume group just before it suspends the first origin there, for as long as the body lasts: no point in
    time can come before the body's end. Give False when LVM was past that already.

    However the body ends, LVM goes on; the kernel sees to it where this process is killed (PR_SET_PDEATHSIG).
    """
    try:
        yield _wait_stopped(takings)
    finally:
        with undisturbed():
            for taking in takings:
                taking.go_on()


def _wait_stopped(takings: Sequence[Taking]) -> bool:
    """Tell whether a command stands still in each volume group; the others in it wait for that one to leave the group.

    :raises CommandError: one has failed
    """
    groups = {taking.target.volume.vg for taking in takings}
    stopped: Dict[str, Taking] = {}
    end = time.monotonic() + FREEZE_LIMIT
    while time.monotonic() < end and still_before(takings):
        began = time.monotonic()
        for taking in takings:
            if taking not in stopped.values() and taking.is_about:
                if not taking.stop():
                    return False
                stopped[taking.target.volume.vg] = taking
        if len(stopped) == len(groups):
            return still_before(takings)
        _pause(began)
    for taking in takings:
        if taking.ended:
            taking.look()
    return False


def still_before(takings: Sequence[Taking]) -> bool:
    """Tell whether the point in time of every one is certainly yet to come."""
    return all(taking.still_before() for taking in takings)


def wait_frozen(takings: Sequence[Taking]) -> str:
    """Wait until every origin has been seen frozen, and return by which signs.

    :raises StillpointError: one was not within the limit, or a command failed
    """
    end = time.monotonic() + FREEZE_LIMIT
    while True:
        began = time.monotonic()
        signs = [taking.look() for taking in takings]
        if None not in signs:
            reached("frozen")
            return ", ".join(sorted({str(sign) for sign in signs}))
        if time.monotonic() > end:
            late = takings[signs.index(None)].target.volume.full_name
            raise StillpointError("LVM did not take the snapshot of %s within %g s; nothing is locked any more" % (late, FREEZE_LIMIT))
        _pause(began)


def _pause(began: float) -> None:
    """Sleep as long as looking took: whoever looks goes before everybody else, and must leave them a processor."""
    time.sleep(max(_POLL, time.monotonic() - began))


def finish(takings: Sequence[Taking]) -> List[Snapshot]:
    """Wait for the commands' ends and return the Snapshots.

    :raises CommandError: one failed, or did not end in time
    """
    end = time.monotonic() + _COMMAND_LIMIT
    while not all(taking.ended and taking.resumed for taking in takings):
        for taking in takings:
            taking.look()
            if time.monotonic() > end:
                raise CommandError("LVM did not end the snapshot of %s within %g s" % (taking.target.volume.full_name, _COMMAND_LIMIT), taking.argv)
        time.sleep(0.02 if all(taking.resumed for taking in takings) else _POLL)
    for taking in takings:
        taking.look()
    reached("snapshot taken")
    return [taking.snapshot() for taking in takings]


def skew(takings: Sequence[Taking]) -> float:
    """Return the seconds from the first freeze to the last, at most; 0 for one volume."""
    if len(takings) < 2:
        return 0.0
    return max(taking.moment[1] for taking in takings) - min(taking.moment[0] for taking in takings)
