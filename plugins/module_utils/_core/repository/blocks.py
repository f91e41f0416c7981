# SPDX-License-Identifier: GPL-3.0-or-later
"""Blocks that files share, on file systems that can do that: XFS with reflinks, btrfs and others."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from typing import Dict, Iterator, List, Tuple

_FICLONE = 0x40049409  # ioctl_ficlone(2)

# linux/fs.h: struct fsxattr, whose last word but the padding is the size in which XFS sets room aside for writes into shared blocks
_FSGETXATTR, _FSSETXATTR, _FSXATTR = 0x801C581F, 0x401C5820, struct.Struct("=LLLLL8x")
_XFLAG_COWEXTSIZE = 0x10000

# linux/fiemap.h
_FIEMAP = 0xC020660B
_HEAD, _EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQQQLLLL")
_LAST, _SHARED = 0x1, 0x2000
_SYNC = 0x1  # what was written but has no place yet gets one first
_EXTENTS = 1000  # that are asked for at a time

# How the ioctls fail where the file system, or one of two, or a kind of file can't do that.
_CANT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EPERM, errno.ETXTBSY)


class CantShare(Exception):
    """A file's blocks can't be shared here."""


def clone(source: int, dest: int) -> None:
    """Make an open file one of the blocks of another one: neither changes when the other is written to.

    :raises CantShare: not here
    :raises OSError: no room for what the file system has to note, or it fails
    """
    try:
        fcntl.ioctl(dest, _FICLONE, source)
    except OSError as error:
        if error.errno in _CANT:
            raise CantShare from error
        raise


def set_no_room_aside(descriptor: int) -> None:
    """Have XFS take for a write into shared blocks what it writes, not 128 KiB around it that it gives back at leisure; nothing elsewhere."""
    try:
        flags, extent, extents, project, _hint = _FSXATTR.unpack(fcntl.ioctl(descriptor, _FSGETXATTR, bytes(_FSXATTR.size)))
        block = os.fstatvfs(descriptor).f_bsize
        fcntl.ioctl(descriptor, _FSSETXATTR, _FSXATTR.pack(flags | _XFLAG_COWEXTSIZE, extent, extents, project, block))
    except OSError:
        return


def can_be_shared(directory: str) -> bool:
    """Tell by trying whether the file system of a directory can make a file of the blocks of another one."""
    import tempfile  # pylint: disable=import-outside-toplevel  # who only looks at generations needs none

    try:
        with tempfile.TemporaryFile(dir=directory) as one, tempfile.TemporaryFile(dir=directory) as other:
            one.write(b"x" * 4096)
            one.flush()
            clone(one.fileno(), other.fileno())
            return True
    except (CantShare, OSError):
        return False


def own_bytes(root: str) -> int:
    """Return the bytes on the disk that only the files below a directory have: what its removal would free. Blocks that two files in it share
    with each other alone count as shared.

    :raises OSError: something of it can't be read
    """
    total = 0
    linked: Dict[Tuple[int, int], List[int]] = {}  # inode -> names that are left to be found, its own bytes
    for path, status in _files(root):
        if status.st_nlink > 1:
            known = linked.setdefault((status.st_dev, status.st_ino), [status.st_nlink, 0])
            known[0] -= 1
            if known[0]:
                continue
        total += min(status.st_blocks * 512, _own(path)) if status.st_blocks else 0
    return total


def _files(root: str) -> Iterator[Tuple[str, os.stat_result]]:
    waiting = [root]
    while waiting:
        with os.scandir(waiting.pop()) as found:
            for entry in found:
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
                elif stat.S_ISREG(status.st_mode):
                    yield entry.path, status


def _own(path: str) -> int:
    """Return the bytes of a file's extents that no other file has."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return sum(length for length, flags in _extents(descriptor) if not flags & _SHARED)
    except CantShare:
        return os.fstat(descriptor).st_blocks * 512
    finally:
        os.close(descriptor)


def _extents(descriptor: int) -> Iterator[Tuple[int, int]]:
    """Return ``(bytes, flags)`` of each extent of a file."""
    start = 0
    buffer = bytearray(_HEAD.size + _EXTENTS * _EXTENT.size)
    while True:
        _HEAD.pack_into(buffer, 0, start, (1 << 64) - 1 - start, _SYNC, 0, _EXTENTS, 0)
        try:
            fcntl.ioctl(descriptor, _FIEMAP, buffer)
        except OSError as error:
            if error.errno in _CANT:
                raise CantShare from error
            raise
        found = _HEAD.unpack_from(buffer)[3]
        flags = _LAST
        for number in range(found):
            logical, _physical, length, _r1, _r2, flags, _r3, _r4, _r5 = _EXTENT.unpack_from(buffer, _HEAD.size + number * _EXTENT.size)
            yield length, flags
            start = logical + length
        if flags & _LAST:
            return
