# SPDX-License-Identifier: GPL-3.0-or-later
"""A mirror: one copy of the trees that is kept in step with them."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from datetime import datetime, timezone
from typing import Callable, Iterator, Optional, Sequence

from ..host import durable
from ..host.errors import BusyError, StillpointError
from ..trees import Tree
from .mirror_record import MirrorRecord
from .rsync import algorithm, command, copy_files, ends
from .rsync_options import check_options
from .transfer import Copied, Manner, no_progress, no_watch, transfer


def mirror(
    trees: Sequence[Tree],
    dest: str,
    *,
    time: Optional[datetime] = None,
    bwlimit: Optional[str] = None,
    options: Sequence[str] = (),
    checksum: bool = False,
    on_progress: Callable[[int], None] = no_progress,
    watch: Callable[[], None] = no_watch,
) -> Copied:
    """Bring DEST/mysql, DEST/files/opt/…, one directory for each tree, in step with their sources: what is not there is deleted.

    Called by whoever has it `alone`.

    :param time: the point in time of the trees; default: now
    :raises CommandError: as `copy_tree`; the mirror is then half way between two states
    """
    check_options(options)
    total = Copied(0, 0, 0)
    manner = Manner(algorithm(), bwlimit, options, checksum, watch=watch)
    try:
        for tree in trees:
            os.makedirs(os.path.dirname(os.path.join(dest, tree.name)), mode=0o700, exist_ok=True)
            before = total.bytes_transferred
            with MirrorRecord(dest, tree, time or datetime.now(timezone.utc)) as record:
                copied = _in_step(tree, dest, record, replace(manner, on_progress=lambda done, before=before: on_progress(before + done)))  # type: ignore[misc]
            total = Copied(*(getattr(total, field.name) + getattr(copied, field.name) for field in fields(Copied)))
    except OSError as error:
        raise StillpointError("the mirror %s can't be written: %s" % (dest, error.strerror)) from error
    return total


def _in_step(tree: Tree, dest: str, record: MirrorRecord, manner: Manner) -> Copied:
    """Bring one tree in step and return what that came to."""
    path = os.path.join(dest, tree.name)
    source, target, _links = ends(tree.path, path, ())
    by_contents = manner.checksum or record.is_missing
    record.begin()
    argv = [*command(tree, manner.algorithm, manner.bwlimit, manner.options), "--delete", *(["--checksum"] if by_contents else []), source, target]
    copied = transfer(argv, tree.source, record.note, manner.on_progress, manner.watch)
    record.wait(manner.watch)
    paths = None if by_contents else record.to_compare()
    if paths:
        compared = copy_files(
            tree,
            path,
            paths,
            algorithm=manner.algorithm,
            bwlimit=manner.bwlimit,
            options=manner.options,
            checksum=True,
            watch=manner.watch,
        )
        copied = replace(copied, bytes_transferred=copied.bytes_transferred + compared.bytes_transferred, changes=copied.changes + compared.changes)
    record.finish()
    return copied


@contextmanager
def alone(dest: str) -> Iterator[None]:
    """Be the only one that writes to a mirror.

    :raises BusyError: another run is
    :raises StillpointError: it can't be written
    """
    with ExitStack() as stack:
        try:
            os.makedirs(dest, mode=0o700, exist_ok=True)
            held = stack.enter_context(durable.lock(dest))
        except OSError as error:
            raise StillpointError("the mirror %s can't be written: %s" % (dest, error.strerror)) from error
        if held is None:
            raise BusyError("another run is writing to the mirror %s" % dest)
        yield
