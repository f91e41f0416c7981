# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a restore puts things: each tree's target, the staging place beside it, and the name under which the old data is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import List, Optional, Sequence, Set, Tuple

from .. import service
from ..errors import StillpointError, UsageError
from ..repository.generation import Generation, RecordedTree
from ..storage.mounts import is_below, mounted_below, table, unmounted

# How names are made; rsync.OWN_NAMES keeps those inside a tree out of backups.
NEW, REPLACED, INCOMPLETE, LATER = ".stillpoint-new", ".stillpoint-replaced-", ".incomplete", ".later"
PART_NEW, PART_REPLACED = ".stillpoint-part-new-", ".stillpoint-part-replaced-"
LOST_AND_FOUND = "lost+found"
_LONGEST = 150  # bytes of a name that are repeated in another one, of which a file system allows 255
SINGLE, ROOM = ".file", ".tmp"  # added to a staging place's name: around a single file, and for temporary files of a scratch server


@dataclass(frozen=True)
class Target:
    """A tree of a generation and the place that it is put to.

    :ivar path: what is replaced, symlinks resolved
    :ivar staging: where it is copied to first
    :ivar kept: where what is there now will be kept
    :ivar mount_point: `path` is one, so its contents are exchanged, not itself
    """

    tree: RecordedTree
    path: str
    staging: str
    kept: str
    mount_point: bool


def targets_of(trees: Sequence[RecordedTree], *, part: bool = False) -> Tuple[Target, ...]:
    """Return where trees go, with names for what is kept that nothing has yet.

    :param part: they lie in trees that are backed up: what is kept there gets a name that no backup takes
    """
    mount_points = {mount.mount_point for mount in table()}
    first = stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    number = 1
    while True:
        targets = tuple((_part_target if part else _target)(tree, stamp, mount_points) for tree in trees)
        if not any(os.path.lexists(target.kept) or os.path.lexists(target.kept + INCOMPLETE) for target in targets):
            return targets
        number += 1
        stamp = "%s.%d" % (first, number)


def _target(tree: RecordedTree, stamp: str, mount_points: Set[str]) -> Target:
    path = os.path.realpath(tree.source)
    if path in mount_points:
        return Target(tree, path, os.path.join(path, NEW), os.path.join(path, REPLACED + stamp), True)
    parent, name = os.path.split(path)
    return Target(tree, path, os.path.join(parent, ".%s%s" % (name, NEW)), "%s.replaced-%s" % (path, stamp), False)


def _part_target(tree: RecordedTree, stamp: str, mount_points: Set[str]) -> Target:
    parent, name = os.path.split(tree.source)
    parent = os.path.realpath(parent)
    path = os.path.join(parent, name)  # a symlink is put back as one
    if path in mount_points:
        return _target(tree, stamp, mount_points)
    short = os.fsdecode(os.fsencode(name)[:_LONGEST])
    return Target(tree, path, os.path.join(parent, PART_NEW + short), os.path.join(parent, "%s%s-%s" % (PART_REPLACED, short, stamp)), False)


def occupied(target: Target) -> bool:
    """Tell whether there is something to be kept."""
    if not target.mount_point:
        return os.path.lexists(target.path)
    return any(not is_own(name) for name in os.listdir(target.path))


def is_own(name: str) -> bool:
    return name == LOST_AND_FOUND or name.startswith((NEW, REPLACED))


def refuse_torn(generation: Generation, targets: Sequence[Target]) -> None:
    """Refuse what an exchange of directories would tear apart."""
    elsewhere = "restore it into a directory with --to DIR and put it in place by hand"
    for target in targets:
        if is_below(os.path.realpath(generation.path), target.path):
            raise UsageError("the repository lies in %s, which would be replaced: %s" % (target.path, elsewhere))
        inside = mounted_below(target.path)
        if inside:
            raise UsageError("another file system is mounted in %s, at %s: %s" % (target.path, inside[0], elsewhere))
        for other in targets:
            if other is not target and is_below(other.path, target.path):
                raise UsageError("%s lies in %s, which would be replaced as a whole: %s" % (other.path, target.path, elsewhere))


def refuse_unmounted(targets: Sequence[Target]) -> None:
    """Refuse to take the empty directory that a volume is mounted on for what lies on it."""
    for target in targets:
        point = unmounted(target.path)
        if point is not None:
            raise UsageError("%s lies on the file system of %s, which /etc/fstab names and which is not mounted now: mount it first" % (target.path, point))


def refuse_homeless(targets: Sequence[Target]) -> None:
    """Refuse what lies in a directory that is gone: the backup holds that one too, with its owner and mode."""
    for target in targets:
        missing = ""
        directory = os.path.dirname(target.path)
        while not os.path.isdir(directory):
            missing, directory = directory, os.path.dirname(directory)
        if missing:
            raise UsageError("%s, in which %s lies, does not exist any more: put that one back, with --path %s" % (missing, target.path, missing))


def databases(targets: Sequence[Target]) -> List[str]:
    return [target.path for target in targets if not target.tree.is_files]


def datadir(targets: Sequence[Target]) -> str:
    """Return where the server works."""
    return datadir_of(targets).path


def datadir_of(targets: Sequence[Target]) -> Target:
    """Return the target of the tree of the data directory, not that of the redo log or the like."""
    return min((target for target in targets if not target.tree.is_files), key=lambda target: len(target.tree.name))


def refuse_running(targets: Sequence[Target]) -> None:
    """Raise StillpointError where a server works on what is about to be replaced."""
    found = running(targets)
    if found is not None:
        path, server = found
        raise StillpointError(
            "a server (%s, process %d) still runs in %s: stop it, then run this again" % (server.program, server.pid, path)
        )


def running(targets: Sequence[Target]) -> Optional[Tuple[str, service.Running]]:
    """Return the server that works in one of the directories to be replaced."""
    for path in databases(targets):
        server = service.running_in(path)
        if server is not None:
            return path, server
    return None
