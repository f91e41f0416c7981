# SPDX-License-Identifier: GPL-3.0-or-later
"""Letting new and old data change places, and back. Which of them lies under which name is told by the identity of each tree's root,
so that what a kill has interrupted can be finished or undone.

What has come about meanwhile under a name that is needed is neither overwritten nor in the way: it goes into a directory beside
what is kept, ``….later``.
"""

from __future__ import annotations

import os
from typing import List, Optional

from ...host import durable
from ...host.errors import StillpointError
from ...host.process import run
from .targets import INCOMPLETE, LATER, LOST_AND_FOUND, Target, is_own, stamp_of

_MOST_NAMES = 100


def directories(target: Target, new: str, old: Optional[str]) -> None:
    """Let a staged tree and the live one change places, and give what was live the name under which it is kept.

    :param new: identity of the staged tree; old: of what was live, None when there was nothing
    :raises StillpointError: the staged tree is gone
    """
    if durable.identity(target.path) == new:
        if old is not None and durable.identity(target.staging) == old:
            _keep(target.staging, target)
        return
    if durable.identity(target.staging) != new:
        if old is not None and any(durable.identity(name) == old for name in _kept_names(target)):
            return  # it was exchanged, and somebody has replaced what came, as an editor does with a file
        raise _lost(target)
    now = durable.identity(target.path)
    if now is not None and now == old:
        try:
            durable.exchange(target.staging, target.path)
        except durable.NotSupported:
            _keep(target.path, target)
        else:
            _keep(target.staging, target)
            return
    elif now is not None:
        _out_of_the_way(target.path, target)
    durable.rename_to_free_name(target.staging, target.path)


def undo_directories(target: Target, new: str, old: Optional[str]) -> None:
    """Give the name back to what was live, and remove the new tree. For the same states as `directories`, and its own."""
    holder = _holder(target, old)
    if holder is not None:
        if durable.identity(target.path) == new:
            try:
                durable.exchange(holder, target.path)
            except durable.NotSupported:
                durable.rename_to_free_name(target.path, target.staging)
        elif os.path.lexists(target.path):
            _out_of_the_way(target.path, target)
        if not os.path.lexists(target.path):
            durable.rename_to_free_name(holder, target.path)
    elif old is None and durable.identity(target.path) == new:
        durable.rename_to_free_name(target.path, target.staging)
    left = _holder(target, new)
    if left is not None:
        durable.remove_tree(left)


def kept(target: Target, old: Optional[str]) -> Optional[str]:
    """Return where what was live is kept; None when there was nothing."""
    if target.mount_point:
        return target.kept if os.path.lexists(target.kept) else None
    return _holder(target, old)


def later(target: Target) -> Optional[str]:
    """Return the directory of what had come about under names that were needed; None when nothing had."""
    path = target.kept + LATER
    return path if os.path.lexists(path) else None


def contents(target: Target, new: str) -> None:
    """Do what `directories` does for a mount point: first everything live goes into one directory, then everything new comes out of
    one. Until the first is done the new data is complete in its directory, and after that the old data in its own."""
    incomplete = target.kept + INCOMPLETE
    if not os.path.lexists(target.staging):
        if not os.path.lexists(target.kept):
            raise _lost(target)
        return
    if durable.identity(target.staging) != new:
        raise _lost(target)
    if not os.path.lexists(target.kept):
        os.makedirs(incomplete, 0o700, exist_ok=True)
        if not os.listdir(incomplete):
            _copy_attributes(target.path, incomplete)
        for name in _names(target.path):
            if os.path.lexists(os.path.join(incomplete, name)):
                _out_of_the_way(os.path.join(target.path, name), target)
            else:
                durable.rename_to_free_name(os.path.join(target.path, name), os.path.join(incomplete, name))
        durable.rename_to_free_name(incomplete, target.kept)
    for name in sorted(os.listdir(target.staging)):
        place = os.path.join(target.path, name)
        if name == LOST_AND_FOUND and os.path.lexists(place):  # the file system's own stays; what was found before gets another name
            if not os.listdir(os.path.join(target.staging, name)):
                os.rmdir(os.path.join(target.staging, name))
                continue
            place = "%s.%s" % (place, stamp_of(target.kept))
        if os.path.lexists(place):
            _out_of_the_way(place, target)
        durable.rename_to_free_name(os.path.join(target.staging, name), place)
    _copy_attributes(target.staging, target.path)
    os.rmdir(target.staging)
    durable.sync_directory(target.path)


def undo_contents(target: Target) -> None:
    """Do what `undo_directories` does for a mount point. As long as what is kept has its name, everything beside it is new."""
    incomplete = target.kept + INCOMPLETE
    if os.path.lexists(target.kept):
        os.makedirs(target.staging, 0o700, exist_ok=True)
        for name in _names(target.path):
            place = os.path.join(target.staging, name)
            if os.path.lexists(place):
                _out_of_the_way(os.path.join(target.path, name), target)
            else:
                durable.rename_to_free_name(os.path.join(target.path, name), place)
        durable.rename_to_free_name(target.kept, incomplete)
    if os.path.lexists(incomplete):
        for name in sorted(os.listdir(incomplete)):
            place = os.path.join(target.path, name)
            if os.path.lexists(place):
                _out_of_the_way(place, target)
            durable.rename_to_free_name(os.path.join(incomplete, name), place)
        _copy_attributes(incomplete, target.path)
        os.rmdir(incomplete)
        durable.sync_directory(target.path)
    durable.remove_tree(target.staging)


def _names(path: str) -> List[str]:
    return [name for name in sorted(os.listdir(path)) if not is_own(name)]


def _keep(path: str, target: Target) -> None:
    """Give what was live the name under which it is kept, or where somebody took that, one like it."""
    for name in _kept_names(target):
        try:
            durable.rename_to_free_name(path, name)
            return
        except FileExistsError:
            continue
    durable.rename_to_free_name(path, target.kept)


def _holder(target: Target, identity: Optional[str]) -> Optional[str]:
    """Return the name beside the target that a tree has; None when it has none."""
    if identity is None:
        return None
    return next((name for name in (target.staging, *_kept_names(target)) if durable.identity(name) == identity), None)


def _kept_names(target: Target) -> List[str]:
    return [target.kept, *("%s.%d" % (target.kept, number) for number in range(2, _MOST_NAMES))]


def _out_of_the_way(path: str, target: Target) -> None:
    directory = target.kept + LATER
    if not os.path.isdir(directory):
        os.mkdir(directory, 0o700)
        durable.sync_directory(os.path.dirname(directory))
    place = first = os.path.join(directory, os.path.basename(path))
    number = 1
    while os.path.lexists(place):
        number += 1
        place = "%s.%d" % (first, number)
    durable.rename_to_free_name(path, place)


def _copy_attributes(source: str, dest: str) -> None:
    """Give a directory the owner, mode, times, ACL and extended attributes of another one."""
    run(["rsync", "-dptgoAXX", "--numeric-ids", "--exclude=*", source.rstrip("/") + "/", dest.rstrip("/") + "/"])


def _lost(target: Target) -> StillpointError:
    return StillpointError(
        "the data prepared for %s is no longer at %s, so the restore can't be finished: undo it, with stillpoint undo" % (target.path, target.staging)
    )
