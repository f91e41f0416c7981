#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Suspend a logical volume and resume it at once: what any snapshot of it must cost. usage: freeze.py VG/LV

Only device-mapper's ioctls are used, from memory that is locked: nothing has to be read from the volume that stands still.
It prints how long suspend and resume took, as JSON.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import json
import os
import struct
import sys
import time

DM_DEV_SUSPEND = 0xC138FD06  # _IOWR(0xfd, 6, struct dm_ioctl)
DM_SUSPEND_FLAG = 1 << 1
HEADER_SIZE = 312
MCL_CURRENT_AND_FUTURE = 3


def request(name: bytes, flags: int) -> bytearray:
    """Return a dm_ioctl of version 4 for the device `name`."""
    header = bytearray(HEADER_SIZE)
    struct.pack_into("=3I I I I i I I I Q 128s", header, 0, 4, 0, 0, HEADER_SIZE, HEADER_SIZE, 0, 0, flags, 0, 0, 0, name)
    return header


def main() -> None:
    device = os.path.basename(os.path.realpath("/dev/" + sys.argv[1]))
    with open(f"/sys/block/{device}/dm/name", "rb") as file:
        name = file.read().strip()
    control = os.open("/dev/mapper/control", os.O_RDWR)
    suspend, resume = request(name, DM_SUSPEND_FLAG), request(name, 0)
    os.sync()
    gc.disable()
    if ctypes.CDLL(None, use_errno=True).mlockall(MCL_CURRENT_AND_FUTURE):
        sys.exit("memory cannot be locked")
    times = [time.perf_counter()] * 3
    fcntl.ioctl(control, DM_DEV_SUSPEND, suspend, True)
    times[1] = time.perf_counter()
    fcntl.ioctl(control, DM_DEV_SUSPEND, resume, True)
    times[2] = time.perf_counter()
    print(json.dumps({"suspend_ms": round((times[1] - times[0]) * 1000, 3), "frozen_ms": round((times[2] - times[0]) * 1000, 3)}))


if __name__ == "__main__":
    main()
