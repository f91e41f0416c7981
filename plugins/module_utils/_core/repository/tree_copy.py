# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree's way into a new generation: shared with the base where it is unchanged, else copied."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import dataclass, field, replace
from typing import Dict, Iterable, Iterator, List, Mapping, Optional, Tuple

from ..host import durable
from ..trees import Tree
from . import links, rsync
from .shared_blocks import SharedBlocks
from .sums import Stamp, Sums
from .transfer import HARD_LINK, Copied, Item, Manner, TooManyLinks, ended_by_nul
from .unchanged import Base, Findings, Way, look

_WATCHED = 5000  # files that are looked at, in fractions of a second, between two looks at the snapshots

PATHS = ".paths"  # in the generation while it is being made: the files that rsync is asked for by name


@dataclass
class TreeCopy:
    """One tree on its way into a generation.

    :ivar root: the generation that is being made
    :ivar base: the generation to share unchanged files with; None where the tree is not in any
    :ivar sums: gets the checksum of each file that is read, and the stamp of each that is not shared as it is
    :ivar warnings: what somebody should know
    """

    tree: Tree
    root: str
    base: Optional[Base]
    sums: Sums
    manner: Manner
    warnings: List[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._name = os.fsencode(self.tree.name)
        self._source = os.fsencode(self.tree.path)
        self._dest = os.path.join(self.root, self.tree.name)
        self._single = os.path.islink(self.tree.path) or not os.path.isdir(self.tree.path)
        self._findings = Findings()
        self._seen_again = 0  # files made of the base's blocks of which rsync told too: it set their owner or the like
        self.shared = SharedBlocks(self.tree, self.root, self.base, self.sums, self.manner, self.warnings)

    def copy(self) -> Copied:
        """Copy the tree and return what that came to.

        :raises DestinationFull: no room
        :raises CommandError: rsync failed
        """
        with tempfile.TemporaryFile(dir=self.root) as self._compare:  # paths, each ended by NUL
            self._look()
            if not self._findings.crowded:  # else what is there already is left as it is by the copy of all
                self.shared.make()
            try:
                copied = self._copy_all(self._files_of(self._findings.crowded))
            except TooManyLinks:
                # For the first time: what is in the base is known beforehand. A part of a copy is not built upon.
                durable.remove_tree(self._dest)
                self.shared.forget()
                copied = self._copy_all(self._files_of(None))
            if not self.manner.checksum and not self._single:
                self._compare_contents()
            return copied

    def _look(self) -> None:
        """Find out what becomes of the files that the base has."""
        if self.base is None:
            return
        for number, (entry, status, way) in enumerate(look(self.base, self._name, self._source, self._findings)):
            self.shared.consider(entry, status, way)
            if way is Way.COMPARE:
                self.sums.stamp(entry.path, Stamp.of(status))
                self._to_compare(entry.path)
            if number % _WATCHED == 0:
                self.manner.watch()

    def _to_compare(self, path: bytes) -> None:
        self._compare.write(path + b"\0")

    def _copy_all(self, crowded: Mapping[int, List[bytes]]) -> Copied:
        """Copy the tree; files with too many names by themselves, so that none of these is shared with the base.

        :param crowded: inode -> the names in the tree
        """
        anew = self._copy_anew(crowded) if crowded else Copied(0, 0, 0)
        old = os.path.join(self.base.path, self.tree.name) if self.base else ""
        copied = rsync.copy_tree(
            self.tree,
            self._dest,
            algorithm=self.manner.algorithm,
            link_dest=[old] if old and os.path.lexists(old) else [],
            bwlimit=self.manner.bwlimit,
            options=self.manner.options,
            checksum=self.manner.checksum or (self._single and self._compare.tell() > 0),
            keep_existing=bool(crowded),
            on_item=self._record,
            on_progress=lambda done: self.manner.on_progress(self.shared.made.bytes + done),
            watch=self.manner.watch,
        )
        return replace(
            copied,
            bytes_transferred=copied.bytes_transferred + anew.bytes_transferred + self.shared.made.written,
            changes=copied.changes + anew.changes + self.shared.made.files - self._seen_again,
        )

    def _files_of(self, crowded: Optional[Mapping[int, int]]) -> Dict[int, List[bytes]]:
        """Return the names in the tree, by inode, of the files that would get more names than the file system takes.

        :param crowded: inode -> names that it has in the repository already; None: all that have many, and none there yet
        """
        if crowded is not None and not crowded:
            return {}
        found: Dict[int, List[bytes]] = {}

        def note(item: Item) -> None:
            status = os.lstat(os.path.join(self._source, item.path))
            if status.st_ino in crowded if crowded is not None else status.st_nlink > links.SAFE:
                found.setdefault(status.st_ino, []).append(item.path)

        rsync.names(self.tree, self.manner.options, note)
        together = {inode: len(names) + (crowded or {}).get(inode, 0) for inode, names in found.items()}
        self._limit = links.limit(self.root, max(together.values(), default=0))
        return {inode: names for inode, names in found.items() if crowded is None or together[inode] > self._limit}

    def _copy_anew(self, crowded: Mapping[int, List[bytes]]) -> Copied:
        """Copy files by themselves, as many names of each at a time as the file system takes for one file."""
        total = Copied(0, 0, 0)
        os.makedirs(self._dest, mode=0o700, exist_ok=True)
        for start in range(0, max(map(len, crowded.values())), self._limit):
            paths = self._write_paths(path for names in crowded.values() for path in names[start : start + self._limit])
            copied = rsync.copy_files(
                self.tree,
                self._dest,
                paths,
                algorithm=self.manner.algorithm,
                bwlimit=self.manner.bwlimit,
                options=self.manner.options,
                on_item=self._record,
                watch=self.manner.watch,
            )
            total = Copied(0, 0, total.bytes_transferred + copied.bytes_transferred, total.changes + copied.changes)
        for names in crowded.values():
            if len(names) > self._limit:
                self.warnings.append(
                    "%s has %d names (hard links) in %s, and the repository's file system takes %d for one file: it was copied as several"
                    % (os.fsdecode(names[0]), len(names), self.tree.source, self._limit)
                )
        self._findings.compared.difference_update(crowded)
        return total

    def _compare_contents(self) -> None:
        """Compare with their source the files that were taken from the base and whose stamp does not prove them unchanged."""
        if self.base is None or not self._compare.tell():
            return
        if self._findings.compared:
            for entry, status, way in look(self.base, self._name, self._source, Findings()):
                if way is not Way.COMPARE and status.st_ino in self._findings.compared:
                    self._to_compare(entry.path)
        rsync.copy_files(
            self.tree,
            self._dest,
            self._write_paths(path[len(self._name) + 1 :] for path in self._taken()),
            algorithm=self.manner.algorithm,
            bwlimit=self.manner.bwlimit,
            options=self.manner.options,
            checksum=True,
            on_item=self._record,
            watch=self.manner.watch,
        )

    def _taken(self) -> Iterator[bytes]:
        """Return the files to compare that are in the copy: what is excluded by now is not, and rsync would bring it in by its name."""
        self._compare.seek(0)
        root = os.fsencode(self.root)
        for path in ended_by_nul(self._compare):
            if path in self.shared:
                continue  # made of what its contents were compared with
            try:
                if stat.S_ISREG(os.lstat(os.path.join(root, path)).st_mode):
                    yield path
            except (FileNotFoundError, NotADirectoryError):
                continue

    def _record(self, item: Item) -> None:
        """Keep what rsync tells of a file, with the stamp of its source."""
        item, status = self._located(item)
        path = self._name if self._single else self._name + b"/" + item.path
        if status is not None:
            self.sums.stamp(path, Stamp.of(status))
            if item.first and status.st_ino in self._findings.compared:
                self._to_compare(path)
        if path in self.shared:
            self._seen_again += 1
        if item.checksum or item.first:
            self.sums.add(path, item.checksum, self._name + b"/" + item.first if item.first else b"")

    def _located(self, item: Item) -> Tuple[Item, Optional[os.stat_result]]:
        """Return an item with the status of its source; None where that can't be had. Where names look like rsync's own arrow between them, the source
        tells which is which."""
        if self._single:
            return item, _status(self._source)
        status = _status(os.path.join(self._source, item.path))
        parts = item.path.split(HARD_LINK) if status is None else []
        for number in range(1, len(parts)):
            name, first = HARD_LINK.join(parts[:number]), HARD_LINK.join(parts[number:])
            one, other = (_status(os.path.join(self._source, each)) for each in (name, first))
            if one is not None and other is not None and os.path.samestat(one, other):
                return replace(item, path=name, first=first), one
        return item, status

    def _write_paths(self, paths: Iterable[bytes]) -> str:
        """Write paths to a file as rsync reads them, and return its path."""
        path = os.path.join(self.root, PATHS)
        with open(path, "wb") as file:
            for each in paths:
                file.write(each + b"\0")
        return path


def _status(path: bytes) -> Optional[os.stat_result]:
    try:
        return os.lstat(path)
    except OSError:
        return None
