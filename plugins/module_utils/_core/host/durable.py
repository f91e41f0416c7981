# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes to the disk that a power cut can't take back or leave half done, and the few system calls that Python lacks."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import struct
from contextlib import contextmanager
from typing import Any, Iterator, Optional, Tuple

from .steps import reached

# What takes long to import, and only some need, is imported there: the agent's `list` reads JSON files and no more.
# pylint: disable=import-outside-toplevel

_AT_FDCWD = -100  # fcntl.h
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h

# linux/stat.h: struct statx, and where stx_btime stands in it
_AT_SYMLINK_NOFOLLOW, _STATX_BTIME, _STATX_SIZE, _STATX_BTIME_AT = 0x100, 0x800, 256, 80

# renameat2 and statx fail so where the kernel (< 3.15), the C library (glibc < 2.28) or the file system does not know it.
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)

# A tree of millions of files takes its time.
_REMOVE_TIMEOUT = 86400.0


class NotSupported(Exception):
    """This file system can't do that in one step."""


def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _errno() -> int:
    import ctypes

    return ctypes.get_errno()


def sync_directory(path: str) -> None:
    """Bring the names in a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file_system(path: str) -> None:
    """Bring everything that was written to the file system of a path to the disk.

    :raises OSError: something could not be written (the kernel tells since 5.8)
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc().syncfs(descriptor) != 0:
            number = _errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(descriptor)


def rename(old: str, new: str) -> None:
    """Rename and bring that to the disk; what has the new name is replaced, as rename(2) does it."""
    os.rename(old, new)
    _sync_parents(old, new)


def rename_to_free_name(old: str, new: str) -> None:
    """Rename and bring that to the disk.

    :raises FileExistsError: something has the new name
    """
    reached("rename", new)
    try:
        _renameat2(old, new, _RENAME_NOREPLACE)
    except NotSupported:
        if os.path.lexists(new):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new) from None
        os.rename(old, new)
    _sync_parents(old, new)
    reached("renamed", new)


def exchange(one: str, other: str) -> None:
    """Let two names change places, in one step, and bring that to the disk.

    :raises NotSupported: not here
    """
    _renameat2(one, other, _RENAME_EXCHANGE)
    _sync_parents(one, other)
    reached("exchanged", one)


def _renameat2(old: str, new: str, flags: int) -> None:
    call = getattr(_libc(), "renameat2", None)
    if call is None:
        raise NotSupported
    if call(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags) != 0:
        number = _errno()
        if number in _UNSUPPORTED:
            raise NotSupported
        raise OSError(number, os.strerror(number), old, None, new)


def _sync_parents(old: str, new: str) -> None:
    parents = {os.path.dirname(old) or ".", os.path.dirname(new) or "."}
    for parent in parents:
        sync_directory(parent)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Let an OSError say which file it is about: the kernel does not when a disk is full."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise


@contextmanager
def lock(path: str, *, make: bool = False, shared: bool = False, wait: bool = False) -> Iterator[Optional[int]]:
    """Hold the lock of a directory, or of a file, and give its descriptor; None where another process holds it. The kernel frees it, however this one ends.

    :param make: it is a file, for root alone, that is made where it is missing
    :param shared: others may hold it too that ask for no more
    :param wait: until the other one, which holds it for a moment only, has let go
    :raises OSError: it can't be opened
    """
    kind = os.O_RDWR | os.O_CREAT if make else os.O_RDONLY | os.O_DIRECTORY
    descriptor = os.open(path, kind | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor if _lock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)) else None
    finally:
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how)
        return True
    except BlockingIOError:
        return False


@contextmanager
def used(path: str) -> Iterator[None]:
    """Have a directory that is ours known as such for as long as this process lives, however it ends."""
    with lock(path, wait=True):
        yield


def in_use(path: str) -> bool:
    """Tell whether somebody uses a directory, as `used` marks it."""
    try:
        with lock(path) as held:
            return held is None
    except OSError:
        return False


def identity(path: str) -> Optional[str]:
    """Return what tells the thing that has a name now from every other, whatever its name is later; None when nothing has it.

    A number of a thing that is gone is given to another one, so the moment of its birth goes with it. Numbers of devices may change with a boot: they
    count only where the file system keeps no such moment.
    """
    try:
        status = os.lstat(path)
        born = _birth(path)
    except FileNotFoundError:
        return None
    return "%d, device %d" % (status.st_ino, status.st_dev) if born is None else "%d, born %d.%09d" % (status.st_ino, *born)


def _birth(path: str) -> Optional[Tuple[int, int]]:
    """Return when something was made, in seconds and nanoseconds; None where the kernel, the C library or the file system does not tell."""
    call = getattr(_libc(), "statx", None)
    if call is None:
        return None
    import ctypes

    found = ctypes.create_string_buffer(_STATX_SIZE)
    if call(_AT_FDCWD, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, found) != 0:
        number = _errno()
        if number in _UNSUPPORTED:
            return None
        raise OSError(number, os.strerror(number), path)
    (mask,) = struct.unpack_from("=I", found, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", found, _STATX_BTIME_AT)
    return (seconds, nanoseconds) if mask & _STATX_BTIME else None


def write_json(path: str, value: Any) -> None:
    """Replace a file by a JSON text, as a whole or not at all, readable by root alone."""
    new = path + ".new"
    with naming(path), open(new, "w", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(value, file, indent=1, sort_keys=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    rename(new, path)


def read_json(path: str) -> Optional[Any]:
    """Return what a JSON file holds; None when there is no such file, or it holds no JSON."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def remove_tree(path: str) -> None:
    """Remove a directory tree, if there is one, however deep, but nothing that is mounted in it.

    :raises CommandError: something of it can't be removed
    """
    from .process import run

    if os.path.lexists(path):
        run(["rm", "-rf", "--one-file-system", "--", path], timeout=_REMOVE_TIMEOUT)
