# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of each file of a tree that a generation has already: the one place where that is decided.

rsync holds a file for unchanged whose size and time of modification agree. Package managers, `mv` and `touch -r` make files of which that is not true, so
inode and change time have to agree too, as restic and borg have it; no program can set those.
"""

from __future__ import annotations

import enum
import os
import stat
from dataclasses import dataclass, field
from datetime import datetime
from typing import Dict, Iterator, Set, Tuple

from ..host.errors import StillpointError
from . import compare, manifest
from .links import SAFE
from .manifest import Entry
from .sums import Stamp

# Seconds before a generation's time within which a file's change time does not prove that it is in the snapshot as it was left:
# a time stamp's tick (1 s on ext3 and small ext4 file systems), and the time that the snapshots of several volumes take, of
# which the last gives the generation its time.
DOUBTFUL = 10.0


def doubtful_from(time: datetime) -> int:
    """Return the change time, in nanoseconds, from which on it does not prove that a file is in a copy of a point in time as it was left."""
    return int((time.timestamp() - DOUBTFUL) * 1e9)


class Way(enum.Enum):
    """How a file gets into the new generation."""

    SHARE = "a hard link to the base's"
    COMPARE = "a hard link to the base's, once its contents are known to be the same"
    COPY = "a new file"


@dataclass(frozen=True)
class Base:
    """The generation that unchanged files are shared with.

    :ivar doubtful_ns: a change time from here on does not prove that a file is in it as it was left
    """

    path: str
    doubtful_ns: int

    @classmethod
    def at(cls, path: str, time: datetime) -> "Base":
        """:param time: the point in time that it holds"""
        return cls(path, doubtful_from(time))

    def way(self, entry: Entry, status: os.stat_result) -> Way:
        """Return the way of a file.

        :param entry: what the base has under its name
        :param status: of the file now
        """
        if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (entry.size, entry.mtime_ns):
            return Way.COPY
        if Stamp.of(status) == entry.stamp and status.st_ctime_ns < self.doubtful_ns:
            return Way.SHARE
        return Way.COMPARE


@dataclass
class Findings:
    """What was found of a tree's files that the base has too.

    :ivar compared: inodes with several names of which one is to be compared; all of them have to be, as rsync makes them one file again
    :ivar crowded: inode -> names that its file has in the repository, of files that may get more names there than a file system takes
    """

    compared: Set[int] = field(default_factory=set)
    crowded: Dict[int, int] = field(default_factory=dict)


def look(base: Base, name: bytes, source: bytes, findings: Findings) -> Iterator[Tuple[Entry, os.stat_result, Way]]:
    """Return each regular file that both the base and the source have, with the way that it goes.

    :param name: of the tree in the generation
    :param source: where its files are now
    :param findings: filled meanwhile
    :raises StillpointError: the source can't be read
    """
    root = os.fsencode(base.path)
    for entry in manifest.below(base.path, name):
        if entry.type != manifest.FILE:
            continue
        try:
            status = os.lstat(source + entry.path[len(name) :])
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise StillpointError("%s can't be read: %s" % (compare.shown(source + entry.path[len(name) :]), error.strerror)) from error
        way = base.way(entry, status)
        if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
            links = _links(os.path.join(root, entry.path))
            if links + status.st_nlink > SAFE:
                findings.crowded[status.st_ino] = max(links, findings.crowded.get(status.st_ino, 0))
            if way is Way.COMPARE:
                findings.compared.add(status.st_ino)
        yield entry, status, way


def _links(path: bytes) -> int:
    try:
        return os.lstat(path).st_nlink
    except OSError:
        return 0
