# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a restore puts things: each tree's target, the staging place beside it, and the name under which the old data is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Dict, List, Optional, Sequence, Set, Tuple

from ...host import service
from ...host.errors import StillpointError, UsageError
from ...host.mounts import is_below, mounted_below, table, unmounted
from ...repository.generation import Generation, RecordedTree

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
    :ivar users: a user's number in the backup, and the one that its files get here; None: the same
    :ivar groups: the same of a group
    """

    tree: RecordedTree
    path: str
    staging: str
    kept: str
    mount_point: bool
    users: Optional[Tuple[int, int]] = None
    groups: Optional[Tuple[int, int]] = None


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
        return Target(tree, path, os.path.join(path, PART_NEW), os.path.join(path, PART_REPLACED + stamp), True)
    short = os.fsencode(name)[:_LONGEST].decode("utf-8", "ignore")
    # the name last: a web server that has been told what to do with it by its extension goes on doing that
    return Target(tree, path, os.path.join(parent, PART_NEW + short), os.path.join(parent, "%s%s-%s" % (PART_REPLACED, stamp, short)), False)


def stamp_of(kept: str) -> str:
    """Return the time in the name under which something is kept."""
    name = os.path.basename(kept)
    return name[len(PART_REPLACED) :].split("-", 1)[0] if name.startswith(PART_REPLACED) else name.rsplit("-", 1)[1]


def occupied(target: Target) -> bool:
    """Tell whether there is something to be kept."""
    if not target.mount_point:
        return os.path.lexists(target.path)
    return any(not is_own(name) for name in os.listdir(target.path))


def facts(target: Target) -> Dict[str, Any]:
    """Return what goes where, for programs."""
    return {
        "name": target.tree.name,
        "path": target.path,
        "files": target.tree.files,
        "bytes": target.tree.bytes,
        "replaced": target.kept if occupied(target) else None,
        "users": list(target.users) if target.users else None,
        "groups": list(target.groups) if target.groups else None,
    }


def is_own(name: str) -> bool:
    return name == LOST_AND_FOUND or name.startswith((NEW, REPLACED, PART_NEW, PART_REPLACED))


def refuse_torn(generation: Generation, targets: Sequence[Target], state: str) -> None:
    """Refuse what an exchange of directories would tear apart, and what it would take the ground from under.

    :param state: where the journal is kept
    """
    elsewhere = "restore it into a directory with --to DIR and put it in place by hand"
    for target in targets:
        if is_below(os.path.realpath(generation.path), target.path):
            raise UsageError("the repository lies in %s, which would be replaced: %s" % (target.path, elsewhere))
        if is_below(target.path, os.path.realpath(os.path.dirname(generation.path))):
            raise UsageError("%s lies among the generations now, which nothing may change: %s" % (target.path, elsewhere))
        if is_below(os.path.realpath(state), target.path):
            raise UsageError("the journal of a restore, %s, lies in %s, which would be replaced: %s" % (state, target.path, elsewhere))
        server = service.running_below(target.path) if target.tree.is_files else None
        if server is not None:
            raise UsageError(
                "a server (%s, process %d) works in %s, which would be replaced under it: %s" % (server.program, server.pid, target.path, elsewhere)
            )
        root = os.path.join(generation.path, target.tree.name)
        if target.mount_point and not (os.path.isdir(root) and os.path.isdir(target.path) and not os.path.islink(root)):
            raise UsageError("%s is a mount point now, and is no directory in the backup: unmount it first, or %s" % (target.path, elsewhere))
        inside = mounted_below(target.path)
        if inside:
            raise UsageError("another file system is mounted in %s, at %s: unmount it first, or %s" % (target.path, inside[0], elsewhere))
        for other in targets:
            if other is not target and is_below(other.path, target.path):
                raise UsageError("%s lies in %s, which would be replaced as a whole: %s" % (other.path, target.path, elsewhere))
        for tree in generation.trees:
            left = os.path.realpath(tree.source)
            if tree.name not in {each.tree.name for each in targets} and is_below(left, target.path):
                raise UsageError("%s, which is not put back, lies in %s, which would be replaced as a whole: %s" % (left, target.path, elsewhere))


def refuse_unmounted(targets: Sequence[Target]) -> None:
    """Refuse to take the empty directory that a volume is mounted on for what lies on it."""
    for target in targets:
        point = unmounted(target.path, below=True)
        if point is not None:
            raise UsageError("%s lies on the file system of %s, which /etc/fstab names and which is not mounted now: mount it first" % (target.path, point))


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
