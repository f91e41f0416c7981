# SPDX-License-Identifier: GPL-3.0-or-later
"""Changed files in a new generation that share their unchanged blocks with the last one.

A file of the base is cloned into a new file, and the blocks of that which differ from the source's are written. The base's own file is only ever read.
Compared with `rsync --inplace --no-whole-file` on a clone (a table of 128 MiB, XFS): a quarter of its processor time where 5 % of the pages have changed, an
eighth where all have, as there is no search for blocks that moved, which could not be shared; and blocks of 4 KiB in place of pages of 16 KiB.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Callable, Iterator, Optional

from ..host.pace import Pace
from ..host.steps import reached
from . import blocks
from .digest import Digest

# Below, a clone costs more time than a copy: 262,144 bytes take as long either way, 65,536 half as long again (XFS, one page of 16 KiB changed in each).
SMALLEST = 1 << 18

_CHUNK = 1 << 18  # bytes that are read at a time
_UNIT = 4096  # bytes that are compared at a time: the block of XFS and btrfs as they are made


class SourceUnreadable(Exception):
    """The file to copy can't be read, or is not what it was."""


class BaseUnreadable(Exception):
    """The file of the base, or what was made of it, can't be read or is not what was written."""


@dataclass(frozen=True)
class Renewed:
    """A clone that was brought up to date.

    :ivar checksum: of the source, which the clone was found to have
    :ivar written: bytes that differed
    """

    checksum: str
    size: int
    written: int


def renew(base: bytes, source: bytes, dest: bytes, algorithm: str, pace: Pace) -> Renewed:
    """Make a new file of the base's blocks and the source's contents, with the source's time of modification. Where that fails there is no new file.

    :raises CantShare: the file system can't do that
    :raises SourceUnreadable: rsync is to say why
    :raises BaseUnreadable: what came of it is not what was read from the source
    :raises OSError: it can't be written
    """
    with _opened(base, BaseUnreadable) as old, _opened(source, SourceUnreadable) as origin, _made(dest) as new:
        blocks.clone(old, new)
        blocks.set_no_room_aside(new)
        status = os.fstat(origin)
        os.ftruncate(new, status.st_size)
        checksum, written = _bring_up_to_date(origin, new, status.st_size, algorithm, pace)
        reached("clone written", os.fsdecode(dest))
        if _checksum(new, status.st_size, algorithm, pace) != checksum:
            raise BaseUnreadable("it does not hold what was written to it")
        os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    return Renewed(checksum, status.st_size, written)


@contextmanager
def _opened(path: bytes, error: Callable[[str], Exception]) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as failure:
        raise error(failure.strerror or "") from failure
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _made(path: bytes) -> Iterator[int]:
    """Give a descriptor of a new file, which is removed where the body fails."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(descriptor)


def _bring_up_to_date(source: int, clone: int, size: int, algorithm: str, pace: Pace) -> "tuple[str, int]":
    """Write what differs, and return the source's checksum and the bytes written."""
    digest = Digest(algorithm)
    theirs, ours = bytearray(_CHUNK), bytearray(_CHUNK)
    written = 0
    for offset in range(0, size, _CHUNK):
        length = _read(source, theirs, offset, size, SourceUnreadable)
        digest.update(theirs, length)
        _read(clone, ours, offset, size, BaseUnreadable)
        if theirs[:length] != ours[:length] if length < _CHUNK else theirs != ours:
            written += _write_differences(clone, theirs, ours, length, offset)
        pace.went_by(length)
    return digest.hexdigest(), written


def _read(descriptor: int, buffer: bytearray, offset: int, size: int, error: Callable[[str], Exception]) -> int:
    """Fill a buffer, as far as a file of this size can, and return how far."""
    wanted = min(len(buffer), size - offset)
    done = 0
    while done < wanted:
        try:
            got = os.preadv(descriptor, [memoryview(buffer)[done:wanted]], offset + done)
        except OSError as failure:
            raise error(failure.strerror or "") from failure
        if not got:
            raise error("it is shorter than it was")
        done += got
    return wanted


def _write_differences(clone: int, theirs: bytearray, ours: bytearray, length: int, offset: int) -> int:
    """Write the blocks of a chunk that differ, neighbours at once, and return their bytes."""
    written = 0
    start: Optional[int] = None
    for at in range(0, length + _UNIT, _UNIT):
        differs = at < length and theirs[at : min(at + _UNIT, length)] != ours[at : min(at + _UNIT, length)]
        if differs and start is None:
            start = at
        elif not differs and start is not None:
            end = min(at, length)
            _write(clone, memoryview(theirs)[start:end], offset + start)
            written += end - start
            start = None
    return written


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(descriptor, data, offset)
        data, offset = data[done:], offset + done


def _checksum(descriptor: int, size: int, algorithm: str, pace: Pace) -> str:
    """Return the checksum of what lies in a file."""
    digest = Digest(algorithm)
    buffer = bytearray(_CHUNK)
    for offset in range(0, size, _CHUNK):
        digest.update(buffer, _read(descriptor, buffer, offset, size, BaseUnreadable))
        pace.went_by(0)
    return digest.hexdigest()
