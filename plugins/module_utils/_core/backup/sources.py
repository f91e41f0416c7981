# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup is made of: a server and paths, the volumes that hold them, and the lock under which these are one point in time."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ..host.errors import StillpointError
from ..host.mounts import nested
from ..lvm import layout, sizes
from ..lvm.layout import FILES, Located
from ..lvm.targets import Target
from ..lvm.volumes import LogicalVolume
from ..mysql import lock_choice, privileges, topology
from ..mysql import server as servers
from ..mysql.absent import nothing_begun
from ..mysql.connection import Login, Session
from ..mysql.lock_choice import Choice
from ..mysql.locks import LockOptions
from ..mysql.outside import lies_in
from ..mysql.server import Server
from ..mysql.throw_away import ThrowAway
from ..repository import rsync
from ..repository.left_out import held, left_out
from ..trees import LeftOut, Tree
from .point import Quiesce

MYSQL_TREE = "mysql"


@dataclass(frozen=True)
class Sources:
    """What is backed up, and where it lies.

    :ivar quiesce: the server, and how it is locked; None for files alone
    :ivar wanted: ``(role, path)`` of all that is copied
    :ivar left: path -> what is left out of it
    :ivar known: every volume of the host
    :ivar by_name: volumes that were asked for by name
    """

    quiesce: Optional[Quiesce]
    wanted: Tuple[Tuple[str, str], ...]
    left: Mapping[str, LeftOut]
    located: Tuple[Located, ...]
    known: Tuple[LogicalVolume, ...]
    by_name: Tuple[LogicalVolume, ...] = ()

    @property
    def paths(self) -> List[str]:
        return [path for _role, path in self.wanted]

    @property
    def trees(self) -> Tuple[Tree, ...]:
        return trees_for(self.wanted, self.left)

    def targets(self, size: sizes.Size, own_writes: Mapping[str, int]) -> List[Target]:
        """Return what is to be snapshotted; as `layout.targets`."""
        return layout.targets(self.located, self.by_name, size, own_writes, self.known)

    def doubts(self) -> List[str]:
        """Return what somebody should know before the server is locked and its files are copied; nothing for files alone."""
        if self.quiesce is None:
            return []
        keys = self.quiesce.server.keys
        return [*doubts(self.quiesce), *(keys.warnings(held(keys.files, self.trees)) if keys else ())]


def find(
    quiesce: Optional[Quiesce], files: Sequence[str], exclude: Sequence[str], known: Sequence[LogicalVolume], by_name: Sequence[LogicalVolume] = ()
) -> Sources:
    """Return the Sources of a server and files, under a lock that is enough for all of their volumes.

    :raises StillpointError: a part can't be snapshotted, or not all of them at one point in time
    """
    server = quiesce.server if quiesce else None
    if server:
        refuse_outside(server, files)
    wanted = server_paths(server) + [(FILES, path) for path in files]
    left = left_out_of(wanted, exclude, server)
    located = layout.locate(wanted, known, left)
    if quiesce:
        quiesce = for_volumes(quiesce, {volume.full_name for volume in layout.volumes_of(located, by_name)})
    check_one_point(located, by_name, quiesce)
    return Sources(quiesce, tuple(wanted), left, tuple(located), tuple(known), tuple(by_name))


@nothing_begun()
def quiescing(options: Any) -> Quiesce:
    """Return the Quiesce for a job's or a module's options, those of Login and LockOptions, from what the server says.

    :raises StillpointError: the server can't be reached or followed, or the account lacks a privilege (the sentence has the GRANT)
    """
    login, how = Login.of(options), LockOptions.from_options(options)
    with Session(login) as session:
        server = servers.read(session)
        topology.check_node(server)
        choice = lock_choice.choose(how.lock, server)
        check_privileges(session, server, choice, how)
    return Quiesce(login, server, choice, how)


def refuse_outside(server: Server, files: Sequence[str]) -> None:
    """Raise StillpointError for what belongs to the server's tables and is in none of its directories, nor below one of the files that are
    copied beside it."""
    for each in server.outside:
        if not (each.plain and lies_in(each.path, [os.path.realpath(path) for path in files])):
            raise StillpointError(each.sentence)


def for_volumes(quiesce: Quiesce, volumes: Set[str]) -> Quiesce:
    """Return the Quiesce with a lock that is enough for these volumes, whose snapshots are taken one after the other."""
    if len(volumes) < 2:
        return quiesce
    besides = "%s are snapshotted one after the other, and no commit may come in between" % " and ".join(sorted(volumes))
    return replace(quiesce, choice=lock_choice.choose(quiesce.options.lock, quiesce.server, besides))


def doubts(quiesce: Quiesce) -> List[str]:
    """Return what somebody should know of a server and its lock before that is taken."""
    choice, server = quiesce.choice, quiesce.server
    found = list(server.remote)
    if choice.doubt:
        found.append("the lock %s, which was asked for, is not enough: %s; auto takes one that is" % (choice.name, choice.doubt))
    if server.is_replica and server.flavour != "mariadb" and choice.name == "ftwrl" and not quiesce.options.stop_replica:
        found.append("a replica that applies in parallel can hold up the lock ftwrl until its limit: mysql.stop_replica avoids that")
    return found + log_doubts(server)


def log_doubts(server: Server) -> List[str]:
    """Return what somebody should know of a server's binary log."""
    return [] if server.log_bin else ["binary logging is off: the backup has no coordinates"]


def check_privileges(session: Session, server: Server, choice: Choice, options: LockOptions) -> None:
    """Raise StillpointError with the GRANT that is needed where the account lacks a privilege."""
    wanted = privileges.Extras.of(options, server)
    missing = privileges.missing_privileges(session, server.flavour, server.version, choice.name, wanted)
    if missing:
        user, at_host = privileges.whoami(session)
        raise StillpointError(
            "the account %s@%s lacks privileges for %s; run as an administrator: %s"
            % (user, at_host, "the lock %s" % choice.name if choice.method else "a backup without a lock", privileges.grant_sql(user, at_host, missing))
        )


def server_paths(server: Optional[Server]) -> List[Tuple[str, str]]:
    """Return ``(role, path)`` for each directory that the server's data needs."""
    return [(part.role, part.path) for part in server.paths] if server else []


def left_out_of(wanted: Sequence[Tuple[str, str]], exclude: Sequence[str], server: Optional[Server] = None) -> Dict[str, LeftOut]:
    """Return what is left out of the path of each ``(role, path)``: of files what `exclude` says, of the server's what it makes anew."""
    made_anew = server.throw_away if server else ThrowAway()
    return {
        path: left_out(path, exclude) if role == FILES else left_out(path, made_anew.below(path), made_anew.directories) for role, path in wanted
    }


def tree_for(role: str, path: str, left: LeftOut) -> Tree:
    """Return the Tree of a path: ``mysql`` for the data directory, ``mysql-redo`` and so on, ``files/opt/processmaker``."""
    name = MYSQL_TREE if role == "datadir" else "%s-%s" % (MYSQL_TREE, role)
    if role == FILES:
        name = os.path.join(FILES, path.strip("/")).rstrip("/")
    return Tree(name, path, path, (*rsync.OWN_NAMES, *left.patterns))


def trees_for(wanted: Sequence[Tuple[str, str]], left: Mapping[str, LeftOut]) -> Tuple[Tree, ...]:
    """Return the Tree of each ``(role, path)``. Files that lie in others have none: they are a part of that one's, mounted in it.

    :param left: path -> what is left out of it
    :raises UsageError: one lies in another by its name alone
    """
    inner = {path for path, _other in nested([path for role, path in wanted if role == FILES])}
    return tuple(tree_for(role, path, left.get(path, LeftOut())) for role, path in wanted if role != FILES or path not in inner)


def check_one_point(located: Sequence[Located], extra: Sequence[LogicalVolume], quiesce: Optional[Quiesce]) -> None:
    """Refuse volumes whose snapshots, which LVM takes one after the other, would not be one point in time.

    Under a lock that stops commits, nothing that a user sees changes between the first snapshot and the last, so files may lie
    anywhere. InnoDB's own files may not: it goes on writing pages and checkpoints under every lock, and recovers only from
    data, redo and undo of the very same instant.

    :param extra: volumes asked for by name
    """
    if quiesce is None:
        return
    parts = [one for one in located if one.role != FILES]
    for part in parts[1:]:
        if part.volume.full_name != parts[0].volume.full_name:
            raise StillpointError(
                "the data directory %s lies on %s and the server's %s directory %s on %s: the server goes on writing to both under every lock, "
                "so that snapshots of two volumes are not one point in time to it; move them to one volume"
                % (parts[0].path, parts[0].volume.full_name, part.role, part.path, part.volume.full_name)
            )
    volumes = layout.volumes_of(located, extra)
    if len(volumes) > 1 and not quiesce.choice.stops_commits:
        raise StillpointError(
            "with lock %s commits go on between the snapshots of %s, which are then not one point in time: use another lock, or a job of its own "
            "for each volume" % (quiesce.choice.name, " and ".join(volume.full_name for volume in volumes))
        )


def target_facts(target: Target) -> Dict[str, Any]:
    """Return a volume of a plan as the modules and `plan --json` show it."""
    return {
        "vg": target.volume.vg,
        "origin": target.volume.name,
        "thin": target.size is None,
        "size_bytes": target.size,
        "fs_type": target.fs_type,
        "mount_point": target.mount_point,
        "holds": [asdict(hold) for hold in target.holds],
    }
