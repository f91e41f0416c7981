# SPDX-License-Identifier: GPL-3.0-or-later
"""Setting a server's binary logs aside when its data is replaced, where they lie beside the data and not in it.

They tell of what happened after the moment that has been restored. A server that went on in them would give a replica, or an
archive, logs that do not describe its data. Only what the server's own index names is taken: other servers may log to the same
directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import List, Tuple

from ..host import durable
from ..host.mounts import is_below


@dataclass(frozen=True)
class Logs:
    """The binary logs of a server that does not run.

    :ivar basename: their path without the number
    :ivar index: the file that lists them
    :ivar datadir: what relative names in the index begin at
    :ivar replaced: directories that are replaced as a whole: what lies in them goes with them
    :ivar stamp: the time of the restore, as it is in the names of what it keeps
    """

    basename: str
    index: str
    datadir: str
    replaced: Tuple[str, ...]
    stamp: str

    @property
    def kept(self) -> str:
        """The directory that they are kept in."""
        return "%s.replaced-%s" % (self.basename, self.stamp)

    @property
    def kept_index(self) -> str:
        """Where the index is kept: with the logs, or beside its place where that is another directory."""
        directory, name = os.path.split(self.index)
        if directory == os.path.dirname(self.basename):
            return os.path.join(self.kept, name)
        return "%s.replaced-%s" % (self.index, self.stamp)

    def outside(self, path: str) -> bool:
        """Tell whether a path is not replaced with the data."""
        real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        return not any(is_below(real, directory) for directory in self.replaced)

    def paths(self) -> List[str]:
        """Return the paths of the logs that the index names, oldest first."""
        directory = os.path.dirname(self.basename)
        paths = [os.path.normpath(os.path.join(self.datadir, name)) for name in _named(self.index)]
        return [
            os.path.join(directory, os.path.basename(path)) for path in paths if os.path.realpath(os.path.dirname(path)) == os.path.realpath(directory)
        ]

    def files(self) -> List[str]:
        """Return the paths of what is set aside now, the index last: as long as that is in its place, it tells what is left to do."""
        found = [name for path in self.paths() for name in (path, path + ".idx")]
        found += [self.basename + ".state", self.index] if os.path.lexists(self.index) else []
        return [path for path in found if os.path.lexists(path) and self.outside(path)]

    def set_aside(self) -> List[str]:
        """Move them into a directory beside them, whatever of that was done before, and return what is kept."""
        for path in self.files():
            place = self.kept_index if path == self.index else os.path.join(self.kept, os.path.basename(path))
            if os.path.dirname(place) == self.kept and not os.path.isdir(self.kept):
                os.mkdir(self.kept, 0o700)
                durable.sync_directory(os.path.dirname(self.kept))
            durable.rename(path, place)
        return [path for path in (self.kept, self.kept_index) if os.path.lexists(path) and os.path.dirname(path) != self.kept]

    def put_back(self) -> None:
        """Undo that, whatever of it was done. The index comes first: it is what goes last. What a server without logs was to begin with
        goes before that: to one with logs it would be wrong, and a missing one it makes anew."""
        state = self.basename + ".state"
        if os.path.lexists(state) and not os.path.lexists(self.index) and self.outside(state):
            os.unlink(state)
        if os.path.lexists(self.kept_index):
            durable.rename(self.kept_index, self.index)
        for name in sorted(os.listdir(self.kept)) if os.path.isdir(self.kept) else []:
            durable.rename(os.path.join(self.kept, name), os.path.join(os.path.dirname(self.basename), name))
        if os.path.isdir(self.kept):
            os.rmdir(self.kept)

    def way_back(self) -> List[Tuple[str, str]]:
        """Return ``(from, to)`` of each move by hand that undoes it; of a directory, all that is in it."""
        moves = [(self.kept, os.path.dirname(self.basename))] if os.path.isdir(self.kept) else []
        if os.path.dirname(self.kept_index) != self.kept and os.path.lexists(self.kept_index):
            moves.append((self.kept_index, self.index))
        return moves


def _named(index: str) -> List[str]:
    try:
        with open(index, encoding="utf-8", errors="surrogateescape") as file:
            return [line.strip() for line in file if line.strip()]
    except OSError:
        return []
