# SPDX-License-Identifier: GPL-3.0-or-later
"""The trees of a backup: what is copied from where, and what it is called in a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Tree:
    """One directory tree to copy.

    :ivar name: where it lies in a generation: ``mysql``, ``files/opt/processmaker``
    :ivar source: what it is called on the live system
    :ivar path: where to read it now
    :ivar exclude: rsync's patterns for what is left out, of which the first that matches counts; with "+ " in front, for what is not
    """

    name: str
    source: str
    path: str
    exclude: Tuple[str, ...] = ()


@dataclass(frozen=True)
class LeftOut:
    """What is left out of a path.

    :ivar patterns: rsync's, of which the first that matches counts; with "+ " in front, for what is not left out
    :ivar mount_points: below the path, with contents that are left out as a whole
    """

    patterns: Tuple[str, ...] = ()
    mount_points: Tuple[str, ...] = ()
