# SPDX-License-Identifier: GPL-3.0-or-later
"""Letting new and old data change places. Which of them lies under which name is told by the inode of each new tree, so that
what a kill has interrupted can be finished."""

from __future__ import annotations

import os

from .. import durable
from ..errors import StillpointError
from ..process import run
from .journal import STATE
from .places import INCOMPLETE, LOST_AND_FOUND, REPLACED, Target, is_own


def directories(target: Target, inode: int) -> None:
    """Let a staged tree and the live one change places, and give what was live the name under which it is kept."""
    if durable.inode(target.path) == inode:
        if os.path.lexists(target.staging):  # it holds what was live
            durable.rename_to_free_name(target.staging, target.kept)
        return
    if durable.inode(target.staging) != inode:
        raise _lost(target)
    if os.path.lexists(target.path):
        try:
            durable.exchange(target.staging, target.path)
        except durable.NotSupported:
            durable.rename_to_free_name(target.path, target.kept)
            durable.rename_to_free_name(target.staging, target.path)
        else:
            durable.rename_to_free_name(target.staging, target.kept)
    else:
        durable.rename_to_free_name(target.staging, target.path)


def contents(target: Target, inode: int) -> None:
    """Do that for a mount point: first everything live goes into one directory, then everything new comes out of one. Until the
    first is done the new data is complete in its directory, and after that the old data in its own."""
    incomplete = target.kept + INCOMPLETE
    if not os.path.lexists(target.staging):
        if not os.path.lexists(target.kept):
            raise _lost(target)
        return
    if durable.inode(target.staging) != inode:
        raise _lost(target)
    if not os.path.lexists(target.kept):
        if not os.path.lexists(incomplete):
            os.mkdir(incomplete, 0o700)
            _copy_attributes(target.path, incomplete)
        for name in sorted(os.listdir(target.path)):
            if not is_own(name):
                durable.rename_to_free_name(os.path.join(target.path, name), os.path.join(incomplete, name))
        durable.rename_to_free_name(incomplete, target.kept)
    for name in sorted(os.listdir(target.staging)):
        new = os.path.join(target.path, name)
        if name == LOST_AND_FOUND and os.path.lexists(new):  # the file system's own stays; what was found before gets another name
            if not os.listdir(os.path.join(target.staging, name)):
                os.rmdir(os.path.join(target.staging, name))
                continue
            new = "%s.%s" % (new, os.path.basename(target.kept)[len(REPLACED) :])
        durable.rename_to_free_name(os.path.join(target.staging, name), new)
    _copy_attributes(target.staging, target.path)
    os.rmdir(target.staging)
    durable.sync_directory(target.path)


def _copy_attributes(source: str, dest: str) -> None:
    """Give a directory the owner, mode, times, ACL and extended attributes of another one."""
    run(["rsync", "-dptgoAXX", "--numeric-ids", "--exclude=*", source.rstrip("/") + "/", dest.rstrip("/") + "/"])


def _lost(target: Target) -> StillpointError:
    return StillpointError(
        "the data that was prepared for %s is not at %s any more: look at %s and %s*; to start over, remove the journal below %s"
        % (target.path, target.staging, target.path, target.kept.rsplit("-", 1)[0], STATE)
    )
