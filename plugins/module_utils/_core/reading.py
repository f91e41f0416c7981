# SPDX-License-Identifier: GPL-3.0-or-later
"""The snapshots of a point in time, mounted for this process alone."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Callable, Dict, Iterator, Sequence

from .errors import StillpointError
from .storage.leftovers import Owner
from .storage.mounts import Tree, enter_private_namespace, mounted_read_only, mounted_writable
from .storage.snapshots import Snapshot


@contextmanager
def mounted(snapshots: Sequence[Snapshot], owner: Owner, *, writable: bool = False) -> Iterator[Callable[[Tree], Tree]]:
    """Mount the snapshots read-only, or to be written to while nobody reads them, and give a function that returns a live tree as it is to
    be read from them."""
    enter_private_namespace()
    mount = mounted_writable if writable else mounted_read_only
    roots: Dict[str, str] = {}
    with ExitStack() as stack:
        for number, snapshot in enumerate(snapshots):
            name = "mount-%d-%d-%d" % (owner.pid, owner.start, number)
            roots[snapshot.full_name] = stack.enter_context(mount(snapshot.device, snapshot.fs_type, name))
        yield lambda tree: _in_snapshot(tree, snapshots, roots)


def _in_snapshot(tree: Tree, snapshots: Sequence[Snapshot], roots: Dict[str, str]) -> Tree:
    """Return a live tree with the path where the snapshots hold it."""
    for snapshot in snapshots:
        for hold in snapshot.holds:
            below = os.path.relpath(tree.source, hold.path)
            if below == "." or not below.startswith(".."):
                path = os.path.normpath(os.path.join(roots[snapshot.full_name], hold.below, below))
                if not os.path.isdir(path):
                    raise StillpointError("%s is not a directory in the snapshot %s" % (tree.source, snapshot.full_name))
                return replace(tree, path=path)
    raise StillpointError("none of the snapshots holds %s: name it in volumes when they are taken" % tree.source)
