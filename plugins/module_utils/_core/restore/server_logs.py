# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a server's binary logs when its data is replaced; `gtid_state` says what it numbers its transactions on from.

They tell of what happened after the moment that has been restored. A server that went on in them would give a replica, or an archive, logs that do not
describe its data. Where they lie beside the data they are set aside, and archives of them are told. Only what the server's own index names is taken:
another server may log to the same directory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Iterable, List, Optional, Sequence, Set, Tuple

from ..host import durable, service
from ..host.errors import StillpointError
from ..host.mounts import is_below
from ..host.reporter import Reporter
from ..repository.generation import Generation
from .in_place import targets as places
from .in_place.targets import Target

if TYPE_CHECKING:
    from ..archive.archive import Archive


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
        """Move them into a directory beside them, and return the paths that are kept; idempotent."""
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


def own(generation: Generation, targets: Sequence[Target], archives: Sequence["Archive"]) -> Optional[Logs]:
    """Return the binary logs of the server whose data is replaced; None where it writes none, or it is not certain which.

    The manifest says which they were. A server that runs shows whether they still are: it has the index open.

    :param archives: the one beside the generation, if it is among them, says it for an old manifest
    """
    settings = generation.summary.get("settings") or {}
    basename, index = str(settings.get("log_bin") or ""), str(settings.get("log_bin_index") or "")
    if not settings:
        beside = os.path.dirname(generation.path)
        basename = next((found for found in (_basename(archive) for archive in archives if os.path.dirname(archive.path) == beside) if found), "")
    if not basename:
        return None
    datadir = places.datadir(targets)
    index = os.path.join(datadir, index or basename + ".index")
    if not os.path.exists(index) and os.path.exists(index + ".index"):
        index += ".index"  # as a server completes what it was given
    holders = service.holders(index)
    running = service.running_in(datadir)
    if any(pid != running.pid for pid in holders) if running else holders:
        return None
    if running and not holders and os.path.exists(index):
        return None
    stamp = places.stamp_of(targets[0].kept)
    return Logs(os.path.join(datadir, basename), index, datadir, tuple(places.databases(targets)), stamp)


def is_of(archive: "Archive", basename: str) -> bool:
    """Tell whether an archive is one of the logs of this path without the number."""
    known = _basename(archive)
    return bool(known) and _real(known) == _real(basename)


def _basename(archive: "Archive") -> str:
    """Return what an archive's logs are called on their server; "" where that is not known."""
    return next((str(line.server.get("basename") or "") for line in reversed(archive.lines())), "")


def _real(path: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def coming_back(targets: Sequence[Target], archives: Sequence["Archive"]) -> List[str]:
    """Return the names of the archived server's logs that lie in staged copies: what the server logs from now on begins after them."""
    found: Set[str] = set()
    for archive in archives:
        for line in archive.lines()[-1:]:
            directory, stem = os.path.split(str(line.server.get("basename") or ""))
            for target in targets:
                source = os.path.realpath(target.tree.source)
                if stem and is_below(os.path.realpath(directory), source):
                    inside = target.staging + os.path.realpath(directory)[len(source) :]
                    found.update(name for name in (os.listdir(inside) if os.path.isdir(inside) else []) if name.startswith(stem + "."))
    return sorted(found)


def drop_index(logs: Logs, targets: Sequence[Target]) -> None:
    """Remove the index from a staged copy where the logs themselves lie beside the data: it names what is set aside."""
    if not logs.outside(logs.basename) or logs.outside(logs.index):
        return
    index = os.path.join(os.path.realpath(os.path.dirname(logs.index)), os.path.basename(logs.index))
    for target in targets:
        copy = target.staging + index[len(target.path) :]
        if is_below(index, target.path) and os.path.lexists(copy):
            os.unlink(copy)


def tell(archives: Iterable["Archive"], what: str, coming: Sequence[str], reporter: Reporter, *, of: Optional[str] = None) -> None:
    """Tell archives that what is logged from now on does not follow on them. One that can't be told keeps no server down.

    :param what: is put back
    :param coming: names of logs that come back with the data
    :param of: tell those alone that archive the logs of this path without the number
    """
    for archive in archives:
        try:
            if archive.exists and (of is None or is_of(archive, of)):
                archive.note_restore(what, list(coming))
        except (OSError, StillpointError) as error:
            reporter.warn(
                "the archive of binary logs in %s can't be told that the data was replaced (%s): have it begin anew, by moving it away, before anything is "
                "recovered from it" % (archive.path, error.strerror if isinstance(error, OSError) else error)
            )
