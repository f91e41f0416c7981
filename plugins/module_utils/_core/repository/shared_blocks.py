# SPDX-License-Identifier: GPL-3.0-or-later
"""Which changed files of a tree are made of the blocks that the base has of them, before rsync copies the tree over all that."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set

from ..host.pace import Pace, giving_way, rate
from ..host.steps import reached
from ..trees import Tree
from . import blocks, compare, rsync
from .digest import computes
from .manifest import Entry
from .renewal import SMALLEST, BaseUnreadable, Renewed, SourceUnreadable, renew
from .sums import Stamp, Sums
from .transfer import Item, Manner
from .unchanged import Base, Way

# Options by which somebody asks for files that are copied whole.
_WHOLE = frozenset(("--whole-file", "--ignore-times", "--preallocate"))
_WHOLE_LETTERS = re.compile(r"-[A-Za-z]*[WI]")


@dataclass(frozen=True)
class Made:
    """Files that were made of the base's blocks, their bytes, and how many of these were written."""

    files: int = 0
    bytes: int = 0
    written: int = 0

    def __add__(self, other: "Made") -> "Made":
        return Made(self.files + other.files, self.bytes + other.bytes, self.written + other.written)

    def as_dict(self) -> Dict[str, int]:
        return {"files": self.files, "bytes": self.bytes, "bytes_written": self.written}

    def and_one(self, renewed: Renewed) -> "Made":
        """Return what it is with one more file."""
        return self + Made(1, renewed.size, renewed.written)


def asks_for_whole_files(options: Sequence[str]) -> bool:
    """Tell whether options for rsync leave no room for shared blocks."""
    return any(option in _WHOLE or _WHOLE_LETTERS.fullmatch(option) for option in options)


def worth_it(size: int, before: int) -> bool:
    """Tell whether a file of this size is made of the blocks of what had that size before."""
    return min(size, before) >= SMALLEST


class SharedBlocks:
    """The files of one tree that share blocks with the base's.

    :ivar made: what they came to
    """

    def __init__(self, tree: Tree, root: str, base: Optional[Base], sums: Sums, manner: Manner, warnings: List[str]) -> None:
        self.made = Made()
        self._tree, self._root, self._base = tree, os.fsencode(root), base
        self._sums, self._manner, self._warnings = sums, manner, warnings
        self._name, self._source = os.fsencode(tree.name), os.fsencode(tree.path)
        self._wanted: List[bytes] = []  # paths in the generation
        self._done: Set[bytes] = set()

    def __contains__(self, path: bytes) -> bool:
        return path in self._done

    def consider(self, entry: Entry, status: os.stat_result, way: Way) -> None:
        """Note a file that the base has too, where it can be made of that one's blocks.

        :param status: of the file now
        """
        changed = way is Way.COPY or (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) != (entry.mode, entry.uid, entry.gid)
        if way is Way.SHARE or not changed or not worth_it(status.st_size, entry.size):
            return
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:  # names of one file are rsync's to make
            self._wanted.append(entry.path)

    def make(self) -> None:
        """Make those files, as far as the file system can do it; whatever is not made here is rsync's to copy.

        :raises OSError: they can't be written
        """
        if self._base is None or not self._wanted or asks_for_whole_files(self._manner.options):
            return
        try:
            limit = rate(self._manner.bwlimit)
        except ValueError:
            return  # rsync may know what that is
        if not computes(self._manner.algorithm) or not blocks.can_be_shared(os.fsdecode(self._root)):
            return
        with giving_way():
            pace = Pace(limit, lambda: self._tick(pace))
            for path in self._asked_for():
                self._make_one(self._base, path, pace)

    def _tick(self, pace: Pace) -> None:
        self._manner.watch()
        self._manner.on_progress(pace.done)

    def _asked_for(self) -> List[bytes]:
        """Return the files that rsync would copy: it knows what is excluded by name or size, or lies behind a directory that is a link now."""
        if not os.path.isdir(self._source):
            plain = set(self._tree.exclude) <= set(rsync.OWN_NAMES) and not self._manner.options
            return self._wanted if plain else []
        wanted, found = set(self._wanted), []

        def note(item: Item) -> None:
            path = self._name + b"/" + item.path
            if path in wanted:
                found.append(path)

        rsync.names(self._tree, self._manner.options, note)
        return found

    def _make_one(self, base: Base, path: bytes, pace: Pace) -> None:
        source = self._source + path[len(self._name) :]
        dest = os.path.join(self._root, path)
        try:
            os.makedirs(os.path.dirname(dest), mode=0o700, exist_ok=True)
            stamp = Stamp.of(os.lstat(source))
            renewed = renew(os.path.join(os.fsencode(base.path), path), source, dest, self._manner.algorithm, pace)
        except (blocks.CantShare, SourceUnreadable, FileNotFoundError, FileExistsError, NotADirectoryError):
            return
        except BaseUnreadable as error:
            self._warnings.append(
                "%s in %s can't be built upon (%s): it was copied whole; `stillpoint verify` reads all of that generation"
                % (compare.shown(path), base.path, error)
            )
            return
        self._sums.add(path, renewed.checksum)
        self._sums.stamp(path, stamp)
        self._done.add(path)
        self.made = self.made.and_one(renewed)
        reached("file shares blocks", os.fsdecode(path))

    def forget(self) -> None:
        """Take note that the files were removed."""
        self._done.clear()
        self.made = Made()
