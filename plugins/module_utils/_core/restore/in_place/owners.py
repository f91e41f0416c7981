# SPDX-License-Identifier: GPL-3.0-or-later
"""Who owns the server's files after a restore: the server's account, which may have another number on this host."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import replace
from typing import Callable, List, Optional, Sequence, Tuple

from ...repository.generation import Generation
from ...repository.manifest import Entry
from .targets import Target, datadir_of


def given(generation: Generation, targets: Sequence[Target]) -> Tuple[Target, ...]:
    """Return the targets with the owner that the server's files get: that of the data directory that is there now, else of the account and group
    of the names that the backup has, else the numbers that it has. Other files keep their numbers."""
    if all(target.tree.is_files for target in targets):
        return tuple(targets)
    datadir = datadir_of(targets)
    recorded = os.lstat(os.path.join(generation.path, datadir.tree.name))
    there = os.stat(datadir.path) if os.path.isdir(datadir.path) else None
    if there is not None and (there.st_uid or not recorded.st_uid):  # an empty mount point is root's
        uid, gid = there.st_uid, there.st_gid
    else:
        uid = _number(lambda: pwd.getpwnam(datadir.tree.user).pw_uid, recorded.st_uid)
        gid = _number(lambda: grp.getgrnam(datadir.tree.group).gr_gid, recorded.st_gid)
    users = (recorded.st_uid, uid) if uid != recorded.st_uid else None
    groups = (recorded.st_gid, gid) if gid != recorded.st_gid else None
    return tuple(target if target.tree.is_files else replace(target, users=users, groups=groups) for target in targets)


def _number(known: Callable[[], int], recorded: int) -> int:
    try:
        return known()
    except KeyError:
        return recorded


def options(target: Target) -> List[str]:
    """Return what tells rsync who gets a target's files."""
    pairs = (("--usermap", target.users), ("--groupmap", target.groups))
    return ["%s=%d:%d" % (name, *pair) for name, pair in pairs if pair]


def expected(entry: Entry, target: Target) -> Entry:
    """Return an entry of the manifest as it has to be found in a target."""
    return entry._replace(uid=_here(entry.uid, target.users), gid=_here(entry.gid, target.groups))


def _here(number: int, pair: Optional[Tuple[int, int]]) -> int:
    return pair[1] if pair and number == pair[0] else number


def text(target: Target) -> str:
    """Return in words who gets a target's files; "" where that is who has them in the backup."""
    if not target.users and not target.groups:
        return ""
    changes = []
    for what, name, pair in (("user", target.tree.user, target.users), ("group", target.tree.group, target.groups)):
        if pair:
            changes.append("%s %d%s get %s %d" % (what, pair[0], " (%s)" % name if name else "", what, pair[1]))
    return "files of %s, which the server has on this host" % ", of ".join(changes)
