# SPDX-License-Identifier: GPL-3.0-or-later
"""The way of the data, once for jobs, dumps and playbooks: a point in time, its snapshots mounted, copied and let go, and a generation published."""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Optional, Protocol, Sequence, Tuple

from ..host.errors import StillpointError, Stopped
from ..host.machine import this_machine
from ..host.processes import Owner
from ..host.reporter import Reporter
from ..host.text import iso
from ..host.version import VERSION
from ..job.names import host_name
from ..lvm import dm
from ..lvm.mounted import mounted
from ..lvm.watch import NoDevices, Watch
from ..mysql.coordinates import Coordinates
from ..mysql.settings import Settings
from ..proof import known_faults
from ..proof.prove import Proof
from ..repository import rsync
from ..repository.generation import Generation
from ..repository.partial import Partial
from ..repository.transfer import Copied
from ..trees import Tree
from .point import Point


@dataclass(frozen=True)
class CopyOptions:
    """How rsync is to copy; see `Partial.add`."""

    bwlimit: Optional[str] = None
    options: Tuple[str, ...] = ()
    checksum: bool = False


class Destination(Protocol):
    """What trees are copied into: a generation that is being made, or a mirror."""

    def add(
        self,
        tree: Tree,
        *,
        bwlimit: Optional[str] = ...,
        options: Sequence[str] = ...,
        checksum: bool = ...,
        on_progress: Callable[[int], None] = ...,
        watch: Callable[[], None] = ...,
    ) -> Copied:
        """Copy a tree and return what that came to."""


@dataclass
class Taking:
    """A point in time whose snapshots are there, and what has been copied from them so far."""

    point: Point
    watch: Watch
    owner: Owner
    reporter: Reporter
    copies: List[Copied] = field(default_factory=list)
    copied_s: float = 0.0

    def copy(self, trees: Sequence[Tree], to: Destination, how: CopyOptions, total: int) -> None:
        """Mount the snapshots and copy trees from them, watched to the last byte and looked at once after it.

        :param total: bytes of all trees, as far as is known
        :raises StillpointError: it is not whole
        """
        done = 0
        started = time.monotonic()
        with self.lost_first(), mounted(self.point.snapshots, self.owner) as to_snapshot:
            self.reporter.stage("copy")
            for tree in [to_snapshot(tree) for tree in trees]:
                copied = to.add(
                    tree,
                    bwlimit=how.bwlimit,
                    options=how.options,
                    checksum=how.checksum,
                    on_progress=lambda bytes_of_this_tree, before=done: self.reporter.progress(before + bytes_of_this_tree, total),  # type: ignore[misc]
                    watch=self.watch,
                )
                done += copied.bytes
                self.copies.append(copied)
        self.copied_s += time.monotonic() - started

    @contextmanager
    def lost_first(self) -> Iterator[None]:
        """Look at the snapshots when the body has ended. One that was lost is the cause of whatever failed in it, and is what is told."""
        try:
            yield
        except StillpointError:
            self.watch.check()
            raise
        self.watch.check()


@contextmanager
def taken(point: ContextManager[Point], owner: Owner, reporter: Reporter) -> Iterator[Taking]:
    """Have the snapshots of a point in time taken, watched, and removed at the end, as `point` does it."""
    with ExitStack() as stack:
        found = stack.enter_context(point)
        # a dump without files has none, and asks nothing of the kernel
        watch = Watch(list(found.snapshots), stack.enter_context(dm.Control())) if found.snapshots else Watch([], NoDevices())
        watch.check()  # one that a playbook has held for a while may be lost by now
        yield Taking(found, watch, owner, reporter)
        if found.snapshots:
            reporter.stage("release")


@dataclass(frozen=True)
class Backup:
    """What was taken, its snapshots let go, before it is published.

    :ivar snapshots: what the manifest says of each
    :ivar told: warnings that the manifest has and nobody needs to be told again
    :ivar dump: what is known of a dump; None without one
    """

    job: str
    point: Point
    snapshots: Tuple[Dict[str, Any], ...]
    copied_s: float
    warnings: Tuple[str, ...]
    told: Tuple[str, ...] = ()
    settings: Optional[Settings] = None
    events: Tuple[str, ...] = ()
    dump: Optional[Dict[str, Any]] = None
    proof: Optional[Proof] = None

    @classmethod
    def of(cls, job: str, taking: Taking, **more: Any) -> "Backup":
        """Return the Backup that the copies of a Taking have become."""
        return cls(job, taking.point, tuple(taking.watch.facts()), taking.copied_s, tuple(taking.watch.warnings), **more)

    @property
    def coordinates(self) -> Optional[Coordinates]:
        """Those that the proof gives, with what is known of a replica's sources, else those that were recorded."""
        recorded = self.point.coordinates
        if self.proof is None or not self.proof.given:
            return recorded
        return replace(self.proof.given, replica=recorded.replica if recorded else None)

    def summary(self, duration_s: float) -> Dict[str, Any]:
        """Return it as the manifest has it."""
        point, proof = self.point, self.proof
        return {
            "job": self.job,
            "host": host_name(),
            "machine": this_machine().as_dict(),
            "time": iso(point.time),
            "run_id": point.run_id,
            "stillpoint": VERSION,
            "server": point.server,
            "settings": self.settings.as_dict() if self.settings else None,
            "events": list(self.events),
            "lock": point.lock.as_dict() if point.lock else None,
            "coordinates": self.coordinates.as_dict() if self.coordinates else None,
            "snapshots": list(self.snapshots),
            "copy": {"duration_s": round(self.copied_s, 1), "rsync": rsync.version()},
            **({"dump": self.dump} if self.dump is not None else {}),
            "proof": proof.as_dict() if proof else None,
            "warnings": [*self.told, *point.warnings, *self.warnings, *known_faults.warnings(proof.known if proof else ())],
            "duration_s": round(duration_s, 1),
        }


def publish(backup: Backup, partial: Partial, started: float, reporter: Reporter) -> Generation:
    """Make what was copied a generation, and return that.

    :param started: when the run began, by the monotonic clock
    :raises StillpointError: nothing was published
    """
    reporter.stage("publish")
    generation = partial.publish(backup.point.time, backup.summary(time.monotonic() - started))
    if partial.trouble:
        reporter.warn(partial.trouble)
    return generation


@contextmanager
def told_when_stopped(what: str) -> Iterator[Callable[[str], None]]:
    """Have a signal tell of what was complete by then; the body is given what takes the path.

    :param what: it is: "the backup", "the copy"
    """
    complete: List[str] = []
    try:
        yield complete.append
    except Stopped as stopped:
        if complete:
            stopped.outcome = "%s %s was complete by then, and stays" % (what, complete[0])
        raise
