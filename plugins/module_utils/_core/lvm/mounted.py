# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshots of a point in time, mounted for this process alone."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import StillpointError
from ..host.mounts import bound_over, enter_private_namespace, is_below, mounted_read_only, mounted_writable, place
from ..host.processes import Owner
from ..trees import Tree
from .layout import FILES
from .targets import Hold, Snapshot, Target

NOT_HELD = "none of the snapshots holds %s: name it in volumes when they are taken"


class Mounted:
    """Snapshots that are mounted: where what is live lies on them."""

    def __init__(self, snapshots: Sequence[Snapshot], roots: Dict[str, str]) -> None:
        self._snapshots = snapshots
        self._roots = roots

    def __call__(self, tree: Tree) -> Tree:
        """Return a live tree with the path where the snapshots hold it.

        :raises StillpointError: none does, or it is no directory there
        """
        return replace(tree, path=self.directory(tree.source))

    def directory(self, source: str) -> str:
        """Return where a live directory that the snapshots were asked to hold lies on them.

        :raises StillpointError: none holds it, or it is no directory there
        """
        path = self.find(source)
        if path is None:
            raise StillpointError(NOT_HELD % source)
        if not os.path.isdir(path):
            raise StillpointError("%s is not a directory in its snapshot" % source)
        return path

    def find(self, source: str) -> Optional[str]:
        """Return where a live path that the snapshots were asked to hold lies on them; None where it does on none."""
        holding = holds_of(source, self._snapshots)
        if not holding:
            return None
        # of /opt and of /opt/data, which is mounted in it, the latter: on the former's own volume there is an empty directory
        snapshot, hold = max(holding, key=lambda pair: len(_plain(pair[1])))
        return os.path.normpath(os.path.join(self._roots[snapshot.full_name], hold.below, os.path.relpath(source, hold.path)))

    def find_any(self, source: str, targets: Sequence[Target]) -> Optional[str]:
        """Return where a live path lies on the snapshots, also one that they were not asked to hold; None where it does on none.

        :param targets: what the snapshots were taken of
        """
        try:
            where = place(source)
        except StillpointError:
            return self.find(source)
        for target in targets:
            if (target.volume.major, target.volume.minor) == (where.mount.major, where.mount.minor):
                for snapshot in self._snapshots:
                    if (snapshot.vg, snapshot.origin) == (target.volume.vg, target.volume.name):
                        return os.path.join(self._roots[snapshot.full_name], where.below)
        return None


@contextmanager
def mounted(snapshots: Sequence[Snapshot], owner: Owner, *, writable: bool = False) -> Iterator[Mounted]:
    """Mount the snapshots read-only, or to be written to when nobody reads them any more, and give where what is live lies on them."""
    enter_private_namespace()
    mount = mounted_writable if writable else mounted_read_only
    roots: Dict[str, str] = {}
    with ExitStack() as stack:
        for number, snapshot in enumerate(snapshots):
            name = "mount-%d-%d-%d" % (owner.pid, owner.start, number)
            roots[snapshot.full_name] = stack.enter_context(mount(snapshot.device, snapshot.fs_type, name))
        if not writable:
            stack.enter_context(_mounted_in_each_other(snapshots, roots))
        yield Mounted(snapshots, roots)


@contextmanager
def _mounted_in_each_other(snapshots: Sequence[Snapshot], roots: Mapping[str, str]) -> Iterator[None]:
    """Mount files that lie in others' path in there, as they are on the live system, so that a copy of the outer path is of both.

    :param roots: full name of a snapshot -> where it is mounted
    """
    files = [(snapshot, hold) for snapshot in snapshots for hold in snapshot.holds if hold.role == FILES]
    with ExitStack() as stack:
        for snapshot, hold in sorted(files, key=lambda pair: len(_plain(pair[1]))):  # /opt/data before /opt/data/deep, which is then mounted in it
            for around, outer in files:
                if _plain(hold) == _plain(outer) or not is_below(_plain(hold), _plain(outer)):
                    continue
                inside = os.path.relpath(hold.path, outer.path)
                if around is snapshot and os.path.normpath(os.path.join(outer.below, inside)) == hold.below:
                    continue  # a directory like any other
                top = os.path.realpath(os.path.join(roots[around.full_name], outer.below))
                point = os.path.join(top, inside)
                if os.path.realpath(point) != point:
                    continue  # a symbolic link, there as here, which must not lead to the live system
                if not os.path.isdir(point):
                    raise StillpointError("%s is not a directory in the snapshot of %s" % (hold.path, outer.path))
                stack.enter_context(bound_over(os.path.join(roots[snapshot.full_name], hold.below), point))
        yield


def holds_of(source: str, snapshots: Sequence[Snapshot]) -> List[Tuple[Snapshot, Hold]]:
    """Return which of the snapshots hold a live path, each with what it was asked to hold."""
    return [(snapshot, hold) for snapshot in snapshots for hold in snapshot.holds if is_below(source, _plain(hold))]


def _plain(hold: Hold) -> str:
    """Return a path that was asked for without a slash at its end."""
    return hold.path.rstrip("/") or "/"
