# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshots of a point in time, mounted for this process alone."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Dict, Iterator, Optional, Sequence

from .errors import StillpointError
from .storage.leftovers import Owner
from .storage.mounts import Tree, enter_private_namespace, mounted_read_only, mounted_writable, place
from .storage.snapshots import Snapshot, Target


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
            raise StillpointError("none of the snapshots holds %s: name it in volumes when they are taken" % source)
        if not os.path.isdir(path):
            raise StillpointError("%s is not a directory in its snapshot" % source)
        return path

    def find(self, source: str) -> Optional[str]:
        """Return where a live path that the snapshots were asked to hold lies on them; None where it does on none."""
        for snapshot in self._snapshots:
            for hold in snapshot.holds:
                below = os.path.relpath(source, hold.path)
                if below == "." or not below.startswith(".."):
                    return os.path.normpath(os.path.join(self._roots[snapshot.full_name], hold.below, below))
        return None

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
        yield Mounted(snapshots, roots)
