# SPDX-License-Identifier: GPL-3.0-or-later
"""A mirror: one copy of the trees that is kept in step with them."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import Callable, Iterator, Optional, Sequence

from ..host.errors import BusyError, StillpointError
from ..trees import Tree
from .rsync import algorithm, command, ends
from .rsync_options import check_options
from .transfer import Copied, no_item, no_progress, no_watch, transfer


def mirror(
    trees: Sequence[Tree],
    dest: str,
    *,
    bwlimit: Optional[str] = None,
    options: Sequence[str] = (),
    checksum: bool = False,
    on_progress: Callable[[int], None] = no_progress,
    watch: Callable[[], None] = no_watch,
) -> Copied:
    """Bring DEST/mysql, DEST/files/opt/…, one directory for each tree, in step with their sources: what is not there is deleted.

    Called by whoever has it `alone`.

    :raises CommandError: as `copy_tree`; the mirror is then half way between two states
    """
    check_options(options)
    checksum_algorithm = algorithm()
    total = Copied(0, 0, 0)
    for tree in trees:
        path = os.path.join(dest, tree.name)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        except OSError as error:
            raise StillpointError("the mirror %s can't be written: %s" % (dest, error.strerror)) from error
        source, target, _links = ends(tree.path, path, ())
        argv = [*command(tree, checksum_algorithm, bwlimit, options), "--delete", *(["--checksum"] if checksum else []), source, target]
        before = total.bytes_transferred
        copied = transfer(argv, tree.source, no_item, lambda done, before=before: on_progress(before + done), watch)  # type: ignore[misc]
        total = Copied(
            total.files + copied.files,
            total.bytes + copied.bytes,
            total.bytes_transferred + copied.bytes_transferred,
            total.changes + copied.changes,
        )
    return total


@contextmanager
def alone(dest: str) -> Iterator[None]:
    """Be the only one that writes to a mirror.

    :raises BusyError: another run is
    :raises StillpointError: it can't be written
    """
    try:
        os.makedirs(dest, mode=0o700, exist_ok=True)
        descriptor = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StillpointError("the mirror %s can't be written: %s" % (dest, error.strerror)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError("another run is writing to the mirror %s" % dest) from error
        yield
    finally:
        os.close(descriptor)
