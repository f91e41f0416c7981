# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a generation that are put beside the live data by sharing its blocks, where repository and data lie on one file system that can do that."""

from __future__ import annotations

import os
import tempfile
from typing import Callable, Iterator, List, Optional

from ...host.reporter import Reporter
from ...repository import blocks, manifest, rsync
from ...repository.generation import Generation
from ...repository.renewal import SMALLEST
from ...repository.transfer import Item


class Clones:
    """The files of one tree that need not be copied.

    :ivar bytes: of them
    """

    def __init__(self, generation: Generation, tree: str) -> None:
        self._generation, self._name = generation, os.fsencode(tree)
        self._made: List[bytes] = []  # relative to the tree's root
        self.bytes = 0

    def make(self, place: str) -> None:
        """Make new files with the blocks, size and time of the generation's, for rsync to complete and to copy the others.

        :param place: the tree's new root, an empty directory
        """
        for path in self._paths():
            size = self._clone(path, os.path.join(os.fsencode(place), path))
            if size is None:
                return
            self._made.append(path)
            self.bytes += size

    def _paths(self) -> Iterator[bytes]:
        for entry in manifest.below(self._generation.path, self._name):
            if entry.type == manifest.FILE and entry.size >= SMALLEST and not entry.first and entry.path != self._name:
                yield entry.path[len(self._name) + 1 :]

    def _clone(self, path: bytes, dest: bytes) -> Optional[int]:
        """Return the size of a file that was cloned; None where it can't be, so that rsync copies it, or says what is wrong with it."""
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            source = os.open(os.path.join(os.fsencode(self._generation.path), self._name, path), os.O_RDONLY | flags)
        except OSError:
            return None
        try:
            os.makedirs(os.path.dirname(dest), mode=0o700, exist_ok=True)
            new = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags, 0o600)
            try:
                blocks.clone(source, new)
                status = os.fstat(source)
                os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
                return status.st_size
            except (blocks.CantShare, OSError):
                os.unlink(dest)
                return None
            finally:
                os.close(new)
        finally:
            os.close(source)

    def read(self, place: str, record: Callable[[Item], None], reporter: Reporter, done: int, total: int) -> None:
        """Read what was made, and tell of each file with the checksum of what lies there."""
        if not self._made:
            return
        with tempfile.NamedTemporaryFile() as paths:
            paths.write(b"".join(path + b"\0" for path in self._made))
            paths.flush()
            rsync.checksums(
                place,
                algorithm=str(self._generation.summary["checksum"]),
                paths=paths.name,
                on_item=record,
                on_progress=lambda now: reporter.progress(min(done + now, total), total),
            )
