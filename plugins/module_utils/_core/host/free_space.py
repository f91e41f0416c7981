# SPDX-License-Identifier: GPL-3.0-or-later
"""The room on a file system."""

from __future__ import annotations

import os
from typing import NamedTuple


class Space(NamedTuple):
    """Bytes of a file system.

    :ivar free: what may still be written
    :ivar has_names: it can take another file (inode)
    """

    free: int
    size: int
    has_names: bool = True


def space(path: str) -> Space:
    """Return the Space of the file system that a path lies on.

    :raises OSError: it can't be asked
    """
    figures = os.statvfs(path)
    return Space(figures.f_bavail * figures.f_frsize, figures.f_blocks * figures.f_frsize, not figures.f_files or figures.f_favail > 0)
