# SPDX-License-Identifier: GPL-3.0-or-later
"""The point in time: guard, lock, snapshot, release."""

from __future__ import annotations

import subprocess
import time
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import CommandError, StillpointError
from ..host.process import in_memory, run, start, undisturbed, urgent
from ..host.processes import Owner
from ..host.text import iso
from ..lvm import dm, snapshots
from ..lvm.snapshots import Taking
from ..lvm.targets import Snapshot, Target
from ..mysql import coordinates as coords
from ..mysql.connection import Login, Session
from ..mysql.coordinates import Coordinates
from ..mysql.guard import Cleared
from ..mysql.lock_choice import Choice
from ..mysql.locks import Lock, LockFacts, LockOptions
from ..mysql.server import Server
from ..mysql.way_clear import way_cleared

# A try takes the lock while LVM stands still just before the suspend. Where LVM could not be stopped in time nothing has been
# locked, and the snapshot is dropped; the last try takes the lock before LVM starts, which can't be too late. Where no lock stops
# commits, a snapshot with commits around it is dropped too, for the sake of exact coordinates, but for the last.
_TRIES = 3

_SYNC_LIMIT = 5.0  # seconds


@dataclass(frozen=True)
class Quiesce:
    """The server to lock, by which lock, and how patiently."""

    login: Login
    server: Server
    choice: Choice
    options: LockOptions


@dataclass
class Point:
    """One point in time: the snapshots that hold it, and what is known of it.

    :ivar time: when the last of the origins was seen frozen (UTC)
    :ivar lock: None without a server
    :ivar coordinates: None where the server writes no binary log, or where commits went on: then `lock.between` has the two coordinates
        between which the point lies, if they are known
    :ivar server: what `Server.summary` says; None without one
    """

    run_id: str
    time: datetime
    snapshots: List[Snapshot]
    lock: Optional[LockFacts] = None
    coordinates: Optional[Coordinates] = None
    server: Optional[Mapping[str, Any]] = None
    warnings: List[str] = field(default_factory=list)
    again: bool = False  # another try may have exact coordinates
    left: List[str] = field(default_factory=list)  # full names of the snapshots that could not be removed at the end

    def as_dict(self) -> Dict[str, Any]:
        return {
            "run_id": self.run_id,
            "time": iso(self.time),
            "snapshots": [snapshot.as_dict() for snapshot in self.snapshots],
            "lock": self.lock.as_dict() if self.lock else None,
            "coordinates": self.coordinates.as_dict() if self.coordinates else None,
            "server": self.server,
            "warnings": self.warnings,
        }


def new_run_id() -> str:
    """Return an identifier for a run, good for names of volumes and directories: 20261122t020005-1a2b."""
    return time.strftime("%Y%m%dt%H%M%S", time.gmtime()) + "-%04x" % (time.monotonic_ns() & 0xFFFF)


@contextmanager
def point_in_time(
    targets: Sequence[Target], owner: Owner, quiesce: Optional[Quiesce], note: Callable[[str], None], *, hand_over: bool = False
) -> Iterator[Point]:
    """Take snapshots of the targets at one point in time and give the Point; remove them at the end.

    :param quiesce: the server whose data lies there; None for files alone
    :param hand_over: leave the snapshots in place at the end, unless the body raises
    """
    with dm.Control() as control:
        takings: List[Taking] = []
        point: Optional[Point] = None
        done = False
        try:
            for attempt in range(_TRIES):
                takings = [Taking(target, owner, number, control) for number, target in enumerate(targets)]
                for taking in takings:
                    taking.prepare()
                point = _take(takings, owner.run_id, quiesce, note, late=attempt < _TRIES - 1)
                if point is None:
                    note("LVM came to the snapshot before the lock; once more")
                elif attempt + 1 < _TRIES and point.again:
                    note("commits went on while the snapshot was taken; once more, for exact coordinates")
                else:
                    break
                _discard_all(takings)
            if point is None:
                raise StillpointError("the lock was not granted before the snapshot was taken; nothing was kept")
            yield point
            done = True
        finally:
            with undisturbed():
                if not done:
                    _discard_all(takings)
                elif not hand_over and point is not None:
                    left = _discard(takings)  # what was read is whole; the next run removes these
                    point.left += left
                    point.warnings += map(str, left.values())


def _discard(takings: Sequence[Taking]) -> Dict[str, StillpointError]:
    """Remove what was taken or prepared, and return what could not be, by its full name, and why."""
    left = {}
    for taking in takings:
        try:
            taking.discard()
        except StillpointError as error:
            left[taking.full_name] = error
    return left


def _discard_all(takings: Sequence[Taking]) -> None:
    """Remove what was taken or prepared, all of it, also when one of them fails."""
    for error in _discard(takings).values():
        raise error


def sync_file_systems(targets: Sequence[Target], limit: float = 600) -> None:
    """Write out what the file systems hold in memory: all that is written now need not be written while they are frozen.

    :raises CommandError: it took longer than the limit (s) for one of them
    """
    for target in targets:
        run(["sync", "-f", target.mount_point], timeout=limit)


def sync_shortly(targets: Sequence[Target]) -> None:
    """Do the same where somebody waits for it (LVM stands still and keeps others from the volume group, or DDL has to wait): for all of
    them together as far as it gets in a few seconds. What is in the kernel then can't be ended, and is not waited for."""
    end = time.monotonic() + _SYNC_LIMIT
    with suppress(CommandError):
        for process in [start(["sync", "-f", target.mount_point], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for target in targets]:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0))
            process.kill()


def _take(takings: Sequence[Taking], run_id: str, quiesce: Optional[Quiesce], note: Callable[[str], None], *, late: bool) -> Optional[Point]:
    """Return the Point, or None where the lock came too late to be proven in time."""
    targets = [taking.target for taking in takings]
    sync_file_systems(targets)
    if quiesce is None:
        return _files_alone(takings, run_id)
    if not quiesce.choice.stops_commits or quiesce.choice.method is None:
        return _while_commits_go_on(takings, run_id, quiesce, note)
    # pylint: disable-next=used-before-assignment  # it is not: the first context assigns it
    with _cleared(quiesce, note) as (session, cleared), Lock(session, quiesce.choice.method, quiesce.options.lock_wait_timeout) as lock:
        lock.prepare()
        sync_shortly(targets)
        late = late and all(taking.can_be_late for taking in takings)
        with in_memory(), lock, ExitStack() as hurry:
            if late:
                _begin(takings)
                hurry.enter_context(urgent())  # LVM is not: at work in a hurry, it would be what users wait for
                with snapshots.stopped_before_suspend(takings) as in_time:
                    if not in_time:
                        return None
                    sync_shortly(targets)
                    lock.take()
                    if not snapshots.still_before(takings):
                        return None
            else:
                hurry.enter_context(urgent())
                lock.take()
                _begin(takings)
            with lock.held_or_lost():
                position = coords.read(session, quiesce.server)
                seen = snapshots.wait_frozen(takings)
                moment = datetime.now(timezone.utc)
            lock.release()
    taken = snapshots.finish(takings)
    facts = replace(_facts(quiesce, takings, lock, cleared), released_at=seen)
    return Point(run_id, moment, taken, facts, position, quiesce.server.summary())


def _cleared(quiesce: Quiesce, note: Callable[[str], None]) -> ContextManager[Tuple[Session, Cleared]]:
    return way_cleared(quiesce.login, quiesce.server, quiesce.choice.name, quiesce.options, note)


def _while_commits_go_on(takings: Sequence[Taking], run_id: str, quiesce: Quiesce, note: Callable[[str], None]) -> Point:
    """Return the Point of a server whose lock, if there is one, keeps DDL out and lets commits go on."""
    with _cleared(quiesce, note) as (session, cleared), ExitStack() as stack:
        lock = None
        if quiesce.choice.method is not None:
            sync_file_systems([taking.target for taking in takings])
            lock = stack.enter_context(Lock(session, quiesce.choice.method, quiesce.options.lock_wait_timeout))
            lock.prepare()
            lock.take()
        around = coords.Around(session, quiesce.server)
        with in_memory(), lock.held_or_lost() if lock else nullcontext():
            moment = _freeze(takings, around)
        if lock:
            lock.release()
    taken = snapshots.finish(takings)
    facts = _facts(quiesce, takings, lock, cleared)
    point = Point(run_id, moment, taken, facts, None, quiesce.server.summary())
    if around.exact is not None:
        point.coordinates = around.exact
    elif quiesce.server.log_bin:
        point.lock = replace(facts, between=around.between())
        point.again = around.again
        point.warnings.append("commits went on while the snapshot was taken, so the exact coordinates are not known")
    return point


def _begin(takings: Sequence[Taking]) -> None:
    for taking in takings:
        taking.begin()


def _freeze(takings: Sequence[Taking], around: Optional[coords.Around] = None) -> datetime:
    """Take the snapshots, reading the coordinates as shortly before and after as can be, and return the moment of the last."""
    late = around is not None and all(taking.can_be_late for taking in takings)
    if around:
        around.before()
    _begin(takings)
    with urgent():
        if around and late:
            with snapshots.stopped_before_suspend(takings) as in_time:
                if in_time:
                    sync_shortly([taking.target for taking in takings])
                    around.before(lambda: snapshots.still_before(takings))
        snapshots.wait_frozen(takings)
        moment = datetime.now(timezone.utc)
    if around:
        around.after()
    return moment


def _files_alone(takings: Sequence[Taking], run_id: str) -> Point:
    with in_memory():
        moment = _freeze(takings)
    point = Point(run_id, moment, snapshots.finish(takings))
    if len(takings) > 1:
        point.warnings.append(
            "the files lie on %d volumes, whose snapshots are up to %d ms apart, with nothing that stops their writers in between"
            % (len(takings), round(snapshots.skew(takings) * 1000))
        )
    return point


def _facts(quiesce: Quiesce, takings: Sequence[Taking], lock: Optional[Lock], cleared: Cleared) -> LockFacts:
    """Return what is known of a lock that has been given back."""
    return LockFacts(
        method=quiesce.choice.name,
        reason=quiesce.choice.reason,
        waited_ms=_ms(lock.waited) if lock else 0,
        held_ms=_ms(lock.held) if lock else 0,
        frozen_ms=_frozen(takings),
        skew_ms=_ms(snapshots.skew(takings)),
        guard_waited_ms=cleared.waited_ms,
        killed=cleared.killed,
    )


def _frozen(takings: Sequence[Taking]) -> Optional[float]:
    times = [taking.frozen for taking in takings]
    return max((_ms(seconds) for seconds in times if seconds is not None), default=None)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
