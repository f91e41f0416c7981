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
    :ivar exclude: rsync patterns; none for the server's own trees, whose files all belong together
    """

    name: str
    source: str
    path: str
    exclude: Tuple[str, ...] = ()
