#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print, as JSON, the disk space that a generation has of its own, not shared with an earlier one. usage: stored.py EARLIER LATER"""

from __future__ import annotations

import json
import os
import stat
import sys

BLOCK = 512  # the unit of st_blocks


def entries(top: str) -> dict[tuple[int, int], tuple[str, int]]:
    """Return (device, inode) → (what it is, bytes on disk) of everything below `top`."""
    found = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind = "directories" if stat.S_ISDIR(status.st_mode) else "other"
            if stat.S_ISREG(status.st_mode):
                kind = "manifest" if path == os.path.join(top, "manifest.json") else "files"
            found[status.st_dev, status.st_ino] = (kind, status.st_blocks * BLOCK)
    return found


def main() -> None:
    earlier, later = entries(sys.argv[1]), entries(sys.argv[2])
    own: dict[str, int] = {"files": 0, "directories": 0, "manifest": 0, "other": 0}
    for inode, (kind, size) in later.items():
        if inode not in earlier:
            own[kind] += size
    print(json.dumps(own))


if __name__ == "__main__":
    main()
