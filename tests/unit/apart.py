# SPDX-License-Identifier: GPL-3.0-or-later
"""What each run of the tests has for itself, if root runs it: a /run/stillpoint, a network without a way out, and temporary files in memory.

Half of the time of a test went to waiting for the disk. It is ext4 in memory, as tmpfs has no attributes of users before Linux 6.6.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import tempfile

TEMPORARY = "/var/tmp/stillpoint"  # short, as a socket's path may have 107 bytes

_NEW_MOUNTS = 0x20000  # CLONE_NEWNS
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 1  # netdevice(7): SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
_ROOM = """
    mkdir -p {0} && mount -t tmpfs none {0} && truncate -s 8G {0}/disk &&
    mkfs.ext4 -q -O ^has_journal {0}/disk && mount -o loop,discard {0}/disk {0} && chmod 1777 {0}
""".format(TEMPORARY)


def keep_apart() -> None:
    """Give this process and its children mounts and a network of their own, which end with them.

    A worker of pytest-xdist shares the mount of temporary files. No port of it is taken by another worker.
    """
    unshare = ctypes.CDLL(None, use_errno=True).unshare
    if os.geteuid() != 0 or unshare(_NEW_MOUNTS) != 0:
        return
    if unshare(_NEW_NETWORK) == 0:
        _begin_loopback()
    _sh("mount --make-rprivate / && mkdir -p /run/stillpoint && mount -t tmpfs none /run/stillpoint")
    if os.environ.get("TMPDIR") != TEMPORARY and _sh(_ROOM):
        os.environ["TMPDIR"] = TEMPORARY
        tempfile.tempdir = None


def _begin_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        asked = struct.pack("16sh14x", b"lo", 0)
        flags = struct.unpack("16sh14x", fcntl.ioctl(sock, _GET_FLAGS, asked))[1]
        fcntl.ioctl(sock, _SET_FLAGS, struct.pack("16sh14x", b"lo", flags | _UP))


def _sh(script: str) -> bool:
    return subprocess.run(["sh", "-c", script], stderr=subprocess.DEVNULL, check=False).returncode == 0
