# SPDX-License-Identifier: GPL-3.0-or-later
"""What the next generation is expected to take on the disk, by what the last ones took."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence

from ..host import text
from ..trees import Tree
from . import blocks, rsync
from .digest import computes
from .estimate import Sizes, sizes
from .generation import BAD
from .job_directory import JobDirectory
from .shared_blocks import asks_for_whole_files

_RUNS = 5  # that are looked at, newest first
_TIMES = 2  # as much has to be free as the worst of them would take twice


@dataclass(frozen=True)
class Storing:
    """How a generation will be stored.

    :ivar sizes: of its trees
    :ivar directory: where it will be
    :ivar shares: blocks of changed files are shared there
    :ivar written: of the bytes of such files, the largest part that any of the last runs wrote; None where none had such files
    """

    sizes: Sizes
    directory: str
    shares: bool
    written: Optional[float] = None

    @property
    def expected(self) -> int:
        """Bytes that it is expected to take."""
        return self._bytes(1)

    @property
    def needed(self) -> int:
        """Bytes that have to be free: all that is new where no run has shown what part of it is written."""
        return self._bytes(_TIMES)

    def _bytes(self, times: int) -> int:
        if not self.shares or self.written is None:
            return self.sizes.new
        return self.sizes.new - self.sizes.renewable + int(self.sizes.renewable * min(1.0, times * self.written))

    def as_dict(self) -> Dict[str, Any]:
        return {"shares_blocks": self.shares, "bytes_expected": self.expected, "written_before": self.written}

    def line(self) -> str:
        """Return that as a line for people."""
        if not self.shares:
            return "whole files: the file system of %s can't share blocks (XFS and btrfs can), so a changed file takes its whole size" % self.directory
        if self.written is None:
            return "shared blocks: a changed file takes what has changed of it, which no run has shown yet"
        return "shared blocks: about %s expected, as the last runs wrote up to %.1f %% of changed files" % (text.human(self.expected), 100 * self.written)


def storing(directory: JobDirectory, trees: Sequence[Tree], base: Mapping[str, str], options: Sequence[str] = ()) -> Storing:
    """Return how the next generation of trees will be stored.

    :param base: as in `sizes`
    :param options: for rsync
    """
    there = directory.path if os.path.isdir(directory.path) else directory.repository
    shares = not asks_for_whole_files(options) and computes(rsync.algorithm()) and blocks.can_be_shared(there)
    return Storing(sizes(trees, base), there, shares, _written(directory) if shares else None)


def _written(directory: JobDirectory) -> Optional[float]:
    """Return the largest part that one of the last runs wrote of the files that it made of shared blocks."""
    known = (generation.summary for generation in directory.generations()[:_RUNS] if generation.state != BAD)
    made = [(summary.get("copy") or {}).get("shared_blocks") or {} for summary in known]
    return max((each["bytes_written"] / each["bytes"] for each in made if each.get("bytes")), default=None)
