# SPDX-License-Identifier: GPL-3.0-or-later
"""What device-mapper says of a device, by the ioctl DM_TABLE_STATUS: microseconds where `lvs` takes a tenth of a second.

Structure and flags: Linux, include/uapi/linux/dm-ioctl.h, version 4.0.0.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from typing import Optional, Tuple

from ..host.errors import StillpointError

CONTROL = "/dev/mapper/control"

_DM_TABLE_STATUS = 0xC138FD0C  # _IOWR(0xfd, 12, struct dm_ioctl)
_HEADER = struct.Struct("=3I I I I i I I I Q 128s")  # version, data_size, data_start, target_count, open_count, flags, event, pad, dev, name
_HEADER_SIZE = 312  # sizeof(struct dm_ioctl): name, uuid and data follow the fields above
_FLAGS_AT = 28
_TARGET = struct.Struct("=QQiI16s")  # sector_start, length, status, next, target_type
_BUFFER = 16384

# DM_NAME_LEN, less the byte that ends a string
NAME_LIMIT = 127

_SUSPENDED = 1 << 1
_INACTIVE_PRESENT = 1 << 6
_NOFLUSH = 1 << 11  # asking must not make the target commit anything


def name(vg: str, volume: str, layer: str = "") -> str:
    """Return the device-mapper name that LVM gives a volume, or a layer of it (``real``, ``cow``, ``tpool``): dashes doubled."""
    parts = [vg.replace("-", "--"), volume.replace("-", "--")] + ([layer] if layer else [])
    return "-".join(parts)


@dataclass(frozen=True)
class State:
    """A device-mapper device at one instant.

    :ivar suspended: writes to it wait
    :ivar inactive: a table is loaded that the next resume will switch to
    :ivar target: target type of the first segment of the live table ("linear", "snapshot-origin"); "" without a table
    :ivar params: the target's status line ("16/2097152 16" for a snapshot)
    """

    suspended: bool
    inactive: bool
    target: str
    params: str


class Control:
    """An open /dev/mapper/control."""

    def __init__(self) -> None:
        try:
            self._fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise StillpointError(
                "%s can't be opened (%s): the kernel has no device-mapper, or this is not root" % (CONTROL, error.strerror)
            ) from error

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_exc: object) -> None:
        os.close(self._fd)

    def state(self, dm_name: str) -> Optional[State]:
        """Return the State of a device by its device-mapper name (``vg00-root``); None when there is no such device."""
        buffer = bytearray(_BUFFER)
        _HEADER.pack_into(buffer, 0, 4, 0, 0, _BUFFER, _HEADER_SIZE, 0, 0, _NOFLUSH, 0, 0, 0, dm_name.encode())
        try:
            fcntl.ioctl(self._fd, _DM_TABLE_STATUS, buffer, True)
        except OSError:
            return None
        flags = struct.unpack_from("=I", buffer, _FLAGS_AT)[0]
        target_count = struct.unpack_from("=I", buffer, 20)[0]
        target, params = "", ""
        if target_count:
            _start, _length, _status, _next, kind = _TARGET.unpack_from(buffer, _HEADER_SIZE)
            target = kind.split(b"\0")[0].decode()
            params = bytes(buffer[_HEADER_SIZE + _TARGET.size :]).split(b"\0")[0].decode()
        return State(bool(flags & _SUSPENDED), bool(flags & _INACTIVE_PRESENT), target, params)


@dataclass(frozen=True)
class Fill:
    """How full a thick snapshot is, in bytes; ``valid`` is False once it has lost its origin's old contents."""

    valid: bool
    used: int
    size: int

    @property
    def percent(self) -> float:
        return 100.0 * self.used / self.size if self.size else 100.0


def fill(state: Optional[State]) -> Fill:
    """Return the Fill that the State of a thick snapshot's device tells.

    Status of a snapshot target: "<sectors allocated>/<total> <metadata sectors>", "Invalid" or "Overflow" (kernel,
    Documentation/admin-guide/device-mapper/snapshot.rst).
    """
    if state is None or state.target != "snapshot":
        return Fill(False, 0, 0)
    first = state.params.split(" ")[0]
    numbers: Tuple[str, ...] = tuple(first.split("/"))
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return Fill(False, 0, 0)
    used, size = int(numbers[0]) * 512, int(numbers[1]) * 512
    return Fill(used < size, used, size)


@dataclass(frozen=True)
class Pool:
    """A thin pool at one instant; ``valid`` is False once it can't take writes any more.

    :ivar transaction: grows by one with each snapshot that LVM makes in the pool
    """

    valid: bool
    transaction: int
    data_percent: float
    metadata_percent: float


def pool(state: Optional[State]) -> Pool:
    """Return the Pool that the State of a thin pool's device (layer ``tpool``) tells.

    Status of a thin-pool target: "<transaction> <metadata used>/<total> <data used>/<total> <held root> rw|ro|out_of_data_space …",
    "Fail" or "Error" (kernel, Documentation/admin-guide/device-mapper/thin-provisioning.rst).
    """
    words = state.params.split() if state is not None and state.target == "thin-pool" else []
    if len(words) < 5 or not words[0].isdigit():
        return Pool(False, -1, 100.0, 100.0)
    return Pool(words[4] == "rw", int(words[0]), _percent(words[2]), _percent(words[1]))


def _percent(used_of_total: str) -> float:
    used, _slash, total = used_of_total.partition("/")
    return 100.0 * int(used) / int(total) if used.isdigit() and total.isdigit() and int(total) else 100.0
