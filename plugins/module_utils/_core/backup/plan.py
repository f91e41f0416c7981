# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: everything that is known, chosen and refused before anything is changed. It is also `stillpoint plan` and check mode."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ..dump import plan as dumps
from ..dump.plan import DumpPlan
from ..dump.stream import ALGORITHM
from ..host import text
from ..host.errors import StillpointError
from ..host.mounts import nested
from ..host.process import require
from ..job import options
from ..job.names import host_name
from ..job.options import Job
from ..lvm import layout
from ..lvm import volumes as lvm
from ..lvm.layout import FILES
from ..lvm.targets import Target
from ..lvm.volumes import LogicalVolume
from ..mysql import guard, locks, privileges, settings, topology
from ..mysql import server as servers
from ..mysql.absent import nothing_begun
from ..mysql.connection import Login, Session
from ..mysql.locks import Choice
from ..mysql.outside import lies_in
from ..mysql.server import Server
from ..mysql.settings import Settings
from ..mysql.throw_away import ThrowAway
from ..proof import prove
from ..repository import identity, rsync
from ..repository.generation import Generation
from ..repository.job_directory import JobDirectory
from ..repository.left_out import held, left_out
from ..repository.storing import Storing, storing
from ..restore import journal
from ..restore.dump import beside
from ..restore.rollback import plan
from ..trees import LeftOut, Tree
from . import checks
from .point import LockOptions, Quiesce

MYSQL_TREE = "mysql"


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    :ivar trees: what will be copied, as it lies on the live system
    :ivar settings: of the server, for another one that is to open its files
    :ivar proven: the newest generation whose tables are proven
    :ivar sequence: number of the newest generation of this machine from under another name, which the next one comes after
    :ivar events: that the server runs by itself, as far as the account may see them
    :ivar bytes_total: bytes of file data in the trees now; bytes_new: of them, what the newest generation does not have
    :ivar stored: how the trees will be stored, and what of them
    """

    job: Job
    quiesce: Optional[Quiesce]
    targets: Tuple[Target, ...]
    trees: Tuple[Tree, ...]
    bytes_total: int
    bytes_new: int
    repository_free: int
    warnings: Tuple[str, ...]
    settings: Optional[Settings] = None
    proven: Optional[Generation] = None
    dump: Optional[DumpPlan] = None
    sequence: int = 0
    events: Tuple[str, ...] = ()
    stored: Optional[Storing] = None

    @property
    def algorithm(self) -> Optional[str]:
        """The checksum that the generation has to have; None where any will do."""
        return ALGORITHM if self.dump else None

    def as_dict(self) -> Dict[str, Any]:
        asked = self.quiesce or self.dump
        return {
            "job": self.job.name,
            "server": asked.server.summary() if asked else None,
            "lock": {"method": asked.choice.name, "reason": asked.choice.reason} if asked else None,
            "binary_log": asked.server.log_bin if asked else None,
            "dump": self.dump.as_dict() if self.dump else None,
            "volumes": [target_facts(target) for target in self.targets],
            "repository": {
                "path": self.job.repository,
                "free_bytes": self.repository_free,
                **(self.stored.as_dict() if self.stored else {}),
            },
            "bytes_total": self.bytes_total,
            "bytes_new": self.bytes_new,
            "proof": self._proof(),
            "warnings": list(self.warnings),
        }

    def _proof(self) -> Optional[Dict[str, Any]]:
        """Return what the proof will do; None without one."""
        verify = self.job.verify
        if not verify.server or self.settings is None:
            return None
        since = self.proven.name if self.proven and verify.tables == options.CHANGED else None
        return {"program": self.settings.program, "tables": verify.tables, "since": since}

    def lines(self) -> List[str]:
        """Return the plan as lines for people."""
        lines = ["job %s" % self.job.name]
        asked = self.quiesce or self.dump
        if asked:
            server = asked.server
            lines.append("server      %s %s, data directory %s" % (server.flavour, server.version_text, server.datadir))
            lines.append("lock        %s: %s" % (asked.choice.name, asked.choice.reason))
            lines.append(
                "binary log  %s"
                % ("coordinates will be recorded" if server.log_bin else "off: no coordinates, and no recovery to a point in time after the backup")
            )
        lines += self.dump.lines() if self.dump else []
        for target in self.targets:
            volume = target.volume
            size = (
                "thin snapshot in the pool %s" % volume.pool_name
                if target.size is None
                else "snapshot of %s (%s free in %s)"
                % (
                    text.human(target.size),
                    text.human(volume.vg_free),
                    volume.vg,
                )
            )
            lines.append("volume      %s, %s on %s: %s" % (volume.full_name, target.fs_type, target.mount_point, size))
            for hold in target.holds:
                lines.append("            holds %s (%s)%s" % (hold.path, hold.role, " but for " + ", ".join(hold.left_out) if hold.left_out else ""))
        if len(self.targets) > 1:
            lines.append("one point   %s" % self._between())
        lines.append("copy        %s, of which %s are new" % (text.human(self.bytes_total), text.human(self.bytes_new)))
        proving = self._proof()
        if proving:
            lines.append("proof       %s starts on the snapshot after the copy; CHECK TABLE: %s" % (proving["program"], _tables_text(proving)))
        lines.append("repository  %s, %s free" % (self.job.repository, text.human(self.repository_free)))
        if self.stored and self.trees:
            lines.append("            %s" % self.stored.line())
        lines.extend("warning     %s" % warning for warning in self.warnings)
        return lines

    def _between(self) -> str:
        text = "the snapshots of the %d volumes are taken a moment apart, " % len(self.targets)
        return text + ("with commits stopped from before the first until after the last" if self.quiesce else "and nothing stops what writes to the files")


def _tables_text(proving: Mapping[str, Any]) -> str:
    if proving["tables"] == options.CHANGED:
        return "tables that changed since %s" % proving["since"] if proving["since"] else "all tables, as none are proven yet"
    return "all tables" if proving["tables"] == options.ALL else "no tables"


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


def refuse_half_done() -> None:
    """Raise StillpointError where a restore or a rollback has left the live data half done."""
    beside.refuse_half_done()
    half_done = journal.pending()
    if half_done:
        raise StillpointError(
            "a restore of %s was interrupted while it replaced live data, which is neither the old nor the new: %s"
            % (half_done.job, half_done.ways_out)
        )
    plan.refuse_going_back()


@nothing_begun()
def make(job: Job) -> Plan:
    """Return the Plan for a job. Nothing is changed.

    :raises NotNowError: the server can't be asked now
    :raises StillpointError: one sentence for the first reason why a run would not succeed
    """
    refuse_half_done()
    require("lvs", "rsync", "mount")
    directory = JobDirectory.open(job.repository, host_name(), job.name, to_write=True)
    server = None
    quiesce = None
    dump = dumps.make(job.mysql, directory) if job.mysql is not None and job.mysql.is_dump else None
    if job.mysql is not None and (dump is None or not dump.live):
        quiesce = quiescing(job.mysql)
        server = quiesce.server
        refuse_outside(server, job.files)
    known_server = dump.server if dump else server
    formers = identity.check(directory, identity.here(known_server.summary() if known_server else None))
    known = lvm.volumes()
    wanted = server_paths(server) + [(FILES, path) for path in job.files]
    left = left_out_of(wanted, job.exclude, server)
    located = layout.locate(wanted, known, left)
    if quiesce and job.mysql:
        quiesce = for_volumes(quiesce, job.mysql.lock, {one.volume.full_name for one in located})
    check_one_point(located, [], quiesce)
    sources = [path for _role, path in wanted]
    checks.check_repository(job.repository, sources)
    trees = trees_for([(role, path) for role, path in wanted if dump is None or role == FILES], left)
    stored = storing(directory, trees, newest_trees(directory))
    total, new, needed = (size + (dump.bytes_expected if dump else 0) for size in (stored.sizes.total, stored.sizes.new, stored.needed))
    free = checks.check_room(job.repository, needed)
    warnings = [str(former) for former in formers]
    own_writes = {}
    inside = layout.volume_of(job.repository, known)
    if inside is not None:
        own_writes[inside.full_name] = needed
    if inside is not None and inside.full_name in [one.volume.full_name for one in located]:
        warnings.append(
            "the repository %s lies on %s, which is backed up: the copy itself fills the snapshot, and both are lost together with the "
            "volume" % (job.repository, inside.full_name)
        )
    known_settings = None
    events: List[str] = []
    if quiesce:
        with Session(quiesce.login) as session:
            known_settings = settings.read(session, quiesce.server)
            events = servers.enabled_events(session)
        if job.verify.server:
            datadir = located[0].volume.full_name
            own_writes[datadir] = own_writes.get(datadir, 0) + prove.writes(known_settings)
    targets = layout.targets(located, [], job.snapshot_size, own_writes, known)
    if quiesce:
        warnings.extend(doubts(quiesce))
        if dump is None and quiesce.server.keys:
            warnings.extend(quiesce.server.keys.warnings(held(quiesce.server.keys.files, trees)))
    if known_server and not known_server.log_bin:
        warnings.append("binary logging is off: the backup has no coordinates")
    for name in layout.kept_by_playbooks(known):
        warnings.append("the snapshot %s was left by a playbook and fills up: `stillpoint clean --kept` removes it" % name)
    if dump:
        warnings += dump.warnings(files=bool(job.files))
    if job.notify.metrics and not os.path.isdir(job.notify.metrics):
        warnings.append("notify.metrics: there is no directory %s for the metrics" % job.notify.metrics)
    proven = prove.newest_proven(directory.generations()) if job.verify.server else None
    sequence = max((former.sequence for former in formers), default=0)
    return Plan(job, quiesce, tuple(targets), trees, total, new, free, tuple(warnings), known_settings, proven, dump, sequence, tuple(events), stored)


@nothing_begun()
def quiescing(options: LockOptions) -> Quiesce:
    """Return the Quiesce for a job's or a module's options, from what the server says.

    :raises StillpointError: the server can't be reached or followed, or the account lacks a privilege (the sentence has the GRANT)
    """
    login = Login.of(options)
    with Session(login) as session:
        server = servers.read(session)
        topology.check_node(server)
        choice = locks.choose(options.lock, server)
        check_privileges(session, server, choice, options)
    return Quiesce(
        login,
        server,
        choice,
        options.lock_wait_timeout,
        options.long_query_threshold,
        options.long_query_timeout,
        options.long_query_action,
        options.stop_replica,
        options.desync,
    )


def refuse_outside(server: Server, files: Sequence[str]) -> None:
    """Raise StillpointError for what belongs to the server's tables and is in none of its directories, nor below one of the files that are
    copied beside it."""
    for each in server.outside:
        if not (each.plain and lies_in(each.path, [os.path.realpath(path) for path in files])):
            raise StillpointError(each.sentence)


def for_volumes(quiesce: Quiesce, asked: str, volumes: Set[str]) -> Quiesce:
    """Return the Quiesce with a lock that is enough for these volumes, whose snapshots are taken one after the other."""
    if len(volumes) < 2:
        return quiesce
    besides = "%s are snapshotted one after the other, and no commit may come in between" % " and ".join(sorted(volumes))
    return replace(quiesce, choice=locks.choose(asked, quiesce.server, besides))


def doubts(quiesce: Quiesce) -> List[str]:
    """Return what somebody should know of a server and its lock before that is taken."""
    choice, server = quiesce.choice, quiesce.server
    found = list(server.remote)
    if choice.doubt:
        found.append("the lock %s, which was asked for, is not enough: %s; auto takes one that is" % (choice.name, choice.doubt))
    if server.is_replica and server.flavour != "mariadb" and choice.name == "ftwrl" and not quiesce.stop_replica:
        found.append("a replica that applies in parallel can hold up the lock ftwrl until its limit: mysql.stop_replica avoids that")
    return found


def check_privileges(session: Session, server: Server, choice: Choice, options: LockOptions) -> None:
    """Raise StillpointError with the GRANT that is needed where the account lacks a privilege."""
    wanted = privileges.Extras(
        kill=options.long_query_action == guard.KILL,
        stop_replica=options.stop_replica and server.is_replica,
        desync=options.desync and server.node is not None,
    )
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


def newest_trees(directory: JobDirectory) -> Dict[str, str]:
    """Return tree name -> path for the generation that the next one will share unchanged files with."""
    newest = next((generation for generation in directory.generations() if generation.state != "bad"), None)
    return {tree.name: os.path.join(newest.path, tree.name) for tree in newest.trees} if newest else {}


def check_one_point(located: Sequence[layout.Located], extra: Sequence[LogicalVolume], quiesce: Optional[Quiesce]) -> None:
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
