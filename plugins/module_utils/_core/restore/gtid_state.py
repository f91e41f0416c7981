# SPDX-License-Identifier: GPL-3.0-or-later
"""What the binary log of a restored server goes on from, so that no GTID is given out twice.

On MySQL a GTID names the server that gave it out, by its ``server_uuid``: one that has lost transactions goes on under a new one.

On MariaDB it goes on from the last GTIDs that were ever given out, not from those of the backup. A server numbers its transactions on from what its
logs, and ``gtid_slave_pos``, say. Those of a backup say less than there was: it would give out the numbers of what came after the backup a second
time, and a replica that has the first could not tell the two apart. A server without logs begins with what is in a file beside them (MariaDB's
knowledge base, "Global Transaction ID", gtid_binlog_state; it reads the file also where the index is not there), so that is written in their place.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Iterator, Optional, Sequence

from ..binlog import events
from ..binlog.gtid import MariaState
from ..host import durable
from ..host.errors import StillpointError
from ..host.mounts import is_below
from ..repository import recorded
from ..repository.generation import Generation
from .in_place.targets import Target
from .server_logs import Logs

if TYPE_CHECKING:
    from ..archive.archive import Archive

_SUFFIX = ".state"

# In MySQL's data directory; where it is missing, the server makes one with a new server_uuid (its manual, "Replication and Binary Logging Options").
_IDENTITY = "auto.cnf"


def newest(generation: Generation, logs: Logs, archives: Sequence["Archive"]) -> Optional[str]:
    """Return the last GTIDs that a server gave out before its data was replaced, as ``gtid_binlog_state`` has them. It does not run.

    None where its numbers are not to be moved on: on MySQL, on a replica, which must fetch what it lost under the same numbers, and
    where it is not known.
    """
    server, stood = recorded.server(generation), recorded.in_its_log(generation)
    if server is None or not server.is_mariadb or stood is None or stood.replica:
        return None
    live = _live(logs)
    found = MariaState.parse(stood.gtid or "")
    for state in [*([live] if live else []), *(state for archive in archives for state in _archived(archive, current=live is None))]:
        found.merge(state)
    return str(found) if live is not None or archives else None


def ahead(logs: Logs) -> Optional[str]:
    """Return what the logs of a MariaDB server that has stopped end with, where it goes back and its logs do not; None on MySQL, on a replica, and
    where that can't be read."""
    if any(name.startswith("master") and name.endswith(".info") for name in os.listdir(logs.datadir)):
        return None
    live = _live(logs)
    return str(live) if live is not None else None


def _live(logs: Logs) -> Optional[MariaState]:
    """Return what the logs of a server that has stopped end with; None where that can't be read."""
    paths = [path for path in logs.paths() if os.path.isfile(path)]
    if not paths:
        return None
    try:
        if not events.in_use(paths[-1]):  # then the server has written it down
            with open(logs.basename + _SUFFIX, encoding="ascii") as file:
                return MariaState.parse(",".join(file.read().split()))
    except (OSError, ValueError, StillpointError):
        pass
    try:
        state = events.read(paths[-1]).after
    except StillpointError:
        return None
    return state if isinstance(state, MariaState) else None


def _archived(archive: "Archive", current: bool) -> Iterator[MariaState]:
    """Return what the lines of an archive end with.

    :param current: also what is still being written, which has to be read
    """
    lines = archive.lines()
    for line in lines:
        ends = [log.after for log in line.logs[-1:]]
        if current and line is lines[-1]:
            ends = [piece.after for piece in archive.pieces(line, current=True)[-1:]]
        for text in ends:
            if text:
                yield MariaState.parse(text)


def leave(basename: str, state: str, like: str) -> None:
    """Write the file that a server without logs begins with.

    :param basename: path of its logs without the number
    :param like: a directory that belongs to the server
    """
    if not os.path.isdir(like):
        return
    path, owner = basename + _SUFFIX, os.stat(like)
    with durable.naming(path), open(path + ".new", "wb", opener=lambda name, flags: os.open(name, flags, 0o660)) as file:
        file.write("".join(each + "\n" for each in state.split(",")).encode("ascii"))
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.flush()
        os.fsync(file.fileno())
    durable.rename(path + ".new", path)


def begin_after(gtids: str, logs: Logs, targets: Sequence[Target]) -> bool:
    """Have a staged copy that brings logs with it begin after these GTIDs, without those logs; tell whether it brings any."""
    directory, stem = os.path.split(logs.basename)
    target = next((each for each in targets if is_below(os.path.realpath(directory), each.path)), None)
    if target is None or logs.outside(logs.basename):
        return False
    copy = target.staging + os.path.realpath(directory)[len(target.path) :]
    remove(copy, stem, os.path.basename(logs.index))
    leave(os.path.join(copy, stem), gtids, copy)
    return True


def remove(directory: str, stem: str, index: str) -> None:
    """Remove the logs from a copy of the directory that they lie in: they end where the backup did.

    :param stem: their name without the number
    :param index: name of their list
    """
    for name in os.listdir(directory) if os.path.isdir(directory) else []:
        number = name[len(stem) + 1 :].split(".")[0]
        if name == index or (name.startswith(stem + ".") and (number in ("index", "state") or (number.isdigit() and len(number) >= 6))):
            os.unlink(os.path.join(directory, name))


def renew(datadir: str) -> None:
    """Have a MySQL server that goes back to earlier data make a server_uuid of its own; on MariaDB there is nothing to do."""
    path = os.path.join(datadir, _IDENTITY)
    if os.path.lexists(path):
        os.unlink(path)
        durable.sync_directory(datadir)
