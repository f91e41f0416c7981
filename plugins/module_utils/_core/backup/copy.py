# SPDX-License-Identifier: GPL-3.0-or-later
"""The trees of a backup, copied from snapshots that are watched meanwhile."""

from __future__ import annotations

from typing import Any, List, Sequence

from ..host.errors import StillpointError
from ..host.reporter import Reporter
from ..lvm.watch import Watch
from ..repository.partial import Partial
from ..repository.transfer import Copied


def copy_trees(trees: Sequence[Any], partial: Partial, options: Any, watch: Watch, reporter: Reporter, total: int) -> List[Copied]:
    """Copy the trees into a partial generation, with the snapshots watched to the last byte and looked at once after it.

    :param options: an object with bwlimit and checksum, and rsync_opts where there are any
    """
    done = 0
    copies: List[Copied] = []

    def progress(bytes_of_this_tree: int) -> None:
        reporter.progress(done + bytes_of_this_tree, total)

    for tree in trees:
        try:
            copied = partial.add(
                tree,
                bwlimit=options.bwlimit,
                options=getattr(options, "rsync_opts", ()),
                checksum=options.checksum,
                on_progress=progress,
                watch=watch,
            )
        except StillpointError:
            watch.check()  # a snapshot that was lost is the cause, and rsync's read error only what follows from it
            raise
        done += copied.bytes
        copies.append(copied)
    watch.check()
    return copies
