# SPDX-License-Identifier: GPL-3.0-or-later
"""What restic does not bring back, put right from the manifest: sockets, and with versions before 0.16 targets of symlinks and holes in files."""

from __future__ import annotations

import ctypes
import os
import stat
from typing import List

from ..repository import manifest
from ..repository.manifest import DIRECTORY, FILE, LINK, Entry

_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2  # linux/falloc.h
_BLOCK = 4096
_PART = 1 << 20


def put_right(root: str, *, dig: bool) -> None:
    """Make sockets anew, let symlinks point to where they pointed, and set what that changed of their directories.

    Nothing is written through a symlink that was fetched: each name is one in a directory that is opened by descriptors, one after the other.

    :param dig: make holes of blocks of zeros, too
    """
    touched: List[Entry] = []
    directories: List[Entry] = []
    for entry in manifest.entries(root):
        while directories and not entry.path.startswith(directories[-1].path + b"/"):
            directories.pop()
        changed = False
        if entry.type == "socket":
            changed = _make_socket(root, entry)
        elif entry.type == LINK:
            changed = _make_link(root, entry)
        elif entry.type == FILE and dig and entry.size >= _BLOCK:
            _dig(root, entry)
        if entry.type == DIRECTORY:
            directories.append(entry)
        elif changed and directories:
            touched.append(directories[-1])
    for directory in touched:
        _set_time(root, directory)


class _Parent:
    """The directory of an entry, opened without a symlink on the way."""

    def __init__(self, root: str, path: bytes) -> None:
        self._parts = os.path.dirname(path).split(b"/") if b"/" in path else []
        self._root = root
        self.fd = -1

    def __enter__(self) -> int:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.fd = os.open(self._root, flags)
        for part in self._parts:
            try:
                if part in (b"..", b".", b""):
                    raise manifest.Damaged("the manifest of %s names what lies outside" % self._root)
                below = os.open(part, flags, dir_fd=self.fd)
            except BaseException:
                os.close(self.fd)
                raise
            os.close(self.fd)
            self.fd = below
        return self.fd

    def __exit__(self, *_what: object) -> None:
        os.close(self.fd)


def _make_socket(root: str, entry: Entry) -> bool:
    name = os.path.basename(entry.path)
    with _Parent(root, entry.path) as parent:
        if _exists(name, parent):
            return False
        os.mknod(name, stat.S_IFSOCK | 0o600, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        # the mode as by a descriptor, as chmod follows symlinks: the socket itself can't be opened but by its path
        descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chmod("/proc/self/fd/%d" % descriptor, entry.mode)
        finally:
            os.close(descriptor)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
    return True


def _make_link(root: str, entry: Entry) -> bool:
    name = os.path.basename(entry.path)
    with _Parent(root, entry.path) as parent:
        if _exists(name, parent):
            if os.readlink(name, dir_fd=parent) == entry.target:
                return False
            os.unlink(name, dir_fd=parent)
        os.symlink(entry.target, name, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
    return True


def _exists(name: bytes, parent: int) -> bool:
    try:
        os.lstat(name, dir_fd=parent)
        return True
    except FileNotFoundError:
        return False


def _set_time(root: str, directory: Entry) -> None:
    with _Parent(root, directory.path) as parent:
        os.utime(os.path.basename(directory.path), ns=(directory.mtime_ns, directory.mtime_ns), dir_fd=parent, follow_symlinks=False)


def _dig(root: str, entry: Entry) -> None:
    """Make holes of the blocks of a file that are zeros. One with capabilities, which a change of its contents takes away, is left as it is."""
    with _Parent(root, entry.path) as parent:
        try:
            descriptor = os.open(os.path.basename(entry.path), os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        except OSError:
            return  # it is missing, or something else: the comparison says so
    try:
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and "security.capability" not in os.listxattr(descriptor):
            _dig_in(descriptor, status.st_size)
            os.utime(descriptor, ns=(status.st_mtime_ns, status.st_mtime_ns))
    finally:
        os.close(descriptor)


def _dig_in(descriptor: int, length: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    zeros = bytes(_BLOCK)
    begin = None
    for part in range(0, length, _PART):
        data = os.pread(descriptor, _PART, part)
        if not any(data):
            begin = part if begin is None else begin
            continue
        for offset in range(0, len(data), _BLOCK):
            block = data[offset : offset + _BLOCK]
            if len(block) == _BLOCK and block == zeros:
                begin = part + offset if begin is None else begin
            elif begin is not None:
                _punch(libc, descriptor, begin, part + offset)
                begin = None
    if begin is not None:
        _punch(libc, descriptor, begin, length)


def _punch(libc: ctypes.CDLL, descriptor: int, begin: int, end: int) -> None:
    """Have the disk take back a stretch of zeros. A file system that can't do that keeps them: it is right all the same."""
    libc.fallocate(descriptor, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, ctypes.c_int64(begin), ctypes.c_int64(end - begin))
