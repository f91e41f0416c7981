# SPDX-License-Identifier: GPL-3.0-or-later
"""Replaying archived logs onto a restored copy, on a scratch server that nobody else can reach.

One client invocation reads all logs, so that temporary tables, user variables and GTIDs go on from one log to the next. The
scratch server writes no binary log of its own; what the result's own logging has to go on from is set at the end:

MariaDB   ``gtid_slave_pos`` becomes the last GTID of each domain; domains that the logs know nothing of stay as they are. A replica
          made of the result goes on right there.
MySQL     transactions keep their GTIDs (``gtid_executed`` grows with each), after what the backup lacked of them was added.

Logs that were in the backup's data directory are removed from the copy: they end where the backup did, and a replica that read
on in them would miss what has been replayed.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Mapping, Optional, Tuple

from ...archive import source
from ...archive.archive import Archive
from ...archive.line import Piece
from ...binlog import gtid
from ...host import durable
from ...host.errors import StillpointError
from ...host.free_space import space
from ...host.process import PATH, undisturbed
from ...host.reporter import Reporter
from ...host.text import human as size
from ...mysql import option_file, settings
from ...mysql.acceptance import accept
from ...mysql.account import new_password
from ...mysql.connection import Login, Session
from ...mysql.scratch import Scratch, make_directory, scratch_server, user_of
from ...mysql.settings import Settings
from ...repository import recorded
from ...repository.generation import Generation
from ...repository.job_directory import JobDirectory
from .. import gtid_state
from ..in_place.targets import ROOM
from .feed import feed
from .moment import Moment
from .outside import NO_REMOTE, Filter, MemoryTables, memory_tables
from .plan import Recovery, resolve

_CLIENTS = {"mariadb": ("mariadb", "mysql"), "mysql": ("mysql",), "percona": ("mysql",)}

# For the last word on what production or the scratch server say: events as large as any server takes, LOAD DATA from the log, no flush
# for each commit, as the copy is thrown away unless it stops in order. Statements about accounts and events need the grants.
_OPTIONS = (
    "--max-allowed-packet=1G",
    "--local-infile=1",
    "--innodb-flush-log-at-trx-commit=0",
    "--event-scheduler=OFF",
    "--skip-grant-tables=0",
    *NO_REMOTE,
)
_ACCOUNT = "stillpoint_replay"
_MAKE = (
    "DROP USER IF EXISTS {0}@localhost;\nCREATE USER {0}@localhost IDENTIFIED BY '%s';\n"
    "GRANT ALL PRIVILEGES ON *.* TO {0}@localhost WITH GRANT OPTION;\n"
).format(_ACCOUNT)
_SHARE_OF_MEMORY = 0.25
_LEAST_POOL = 128 << 20

# A replay ends before a file system has less room than this.
_ROOM_LEFT, _SHARE_LEFT = 1 << 30, 0.05


@dataclass(frozen=True)
class Replay:
    """A Recovery with what is needed to perform it."""

    recovery: Recovery
    archive: Archive
    settings: Settings
    memory: MemoryTables = MemoryTables()

    @property
    def bytes(self) -> int:
        return self.recovery.bytes

    def lines(self) -> List[str]:
        return self.recovery.lines() + self.memory.lines()

    def as_dict(self) -> Dict[str, Any]:
        return {**self.recovery.as_dict(), "memory_events": self.memory.events}

    def run(self, where: Mapping[str, str], reporter: Reporter) -> Dict[str, Any]:
        """Replay onto a copy, and return the Recovery's facts with ``duration_s`` and ``mb_s``.

        :param where: for each directory of the server's data, the one in which the copy of it lies
        :raises StillpointError: it failed somewhere; the copy is of no use any more
        """
        reporter.stage("replay")
        began = time.monotonic()
        with ExitStack() as stack:
            private = stack.enter_context(_private(where[self.settings.datadir]))
            room = stack.enter_context(_room(where[self.settings.datadir]))
            password = new_password()
            options = [*_OPTIONS, "--innodb-buffer-pool-size=%d" % _pool(), "--init-file=%s" % _write(private, "account", _MAKE % password)]
            scratch = stack.enter_context(scratch_server(self.settings, where, discard=False, options=options, room=room))
            login = Login(login_user=_ACCOUNT, login_password=password, login_unix_socket=scratch.socket)
            session = stack.enter_context(Session(login))
            _prepare(session, self.recovery)
            if self.recovery.bytes > 0:
                client = _theirs(option_file.write(os.path.join(private, "client"), {"user": _ACCOUNT, "password": password}))
                self._feed(scratch, client, where, room, session, reporter)
            _finish(session, self.recovery)
            session.do("DROP USER IF EXISTS %s@localhost" % _ACCOUNT)
        _remove_logs(self.settings, where)
        seconds = time.monotonic() - began
        return {**self.as_dict(), "duration_s": round(seconds, 1)}

    def _feed(
        self, scratch: Scratch, client: str, where: Mapping[str, str], room: str, session: Session, reporter: Reporter
    ) -> None:
        """Have the logs executed, as long as there is room.

        :param session: with the scratch server
        :raises StillpointError: it failed
        """
        watched = [Floor(path) for path in sorted({*where.values(), room})]

        def look(read: int) -> None:
            reporter.progress(min(read, self.recovery.bytes), self.recovery.bytes)
            for floor in watched:
                floor.check()

        accepted = accept(session, dump=False)  # a log holds what was accepted, and not by which rules
        outside = Filter(session, mariadb=self.settings.is_mariadb)
        for name in outside.remote:
            reporter.warn("nothing is written to %s by a replay: its rows are on another server, or outside of the data directory" % name)
        with ExitStack() as stack:
            paths, descriptors = self._open(stack)
            feed(self.recovery, _programs(self.settings.flavour), paths, descriptors, scratch, client, room, accepted, outside, look)

    def _open(self, stack: ExitStack) -> Tuple[List[str], List[int]]:
        """Return paths at which the client finds the logs. One that is still being written may get another place at any moment: it
        is opened here and handed on."""
        paths, descriptors = [], []
        fresh = {piece.file: piece for piece in self._pieces_now()}
        for piece in self.recovery.pieces:
            now = fresh.get(piece.file, piece)
            if now.archived:
                paths.append(now.path)
                continue
            for path in (piece.path, now.path, self.archive.path_of(self.recovery.line, piece.file)):
                try:
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                stack.callback(os.close, descriptor)
                descriptors.append(descriptor)
                paths.append("/dev/fd/%d" % descriptor)
                break
            else:
                raise StillpointError("the binary log %s is not in %s any more" % (piece.file, self.archive.path))
        for path in paths:
            if not os.path.exists(path) and not path.startswith("/dev/fd/"):
                raise StillpointError("the binary log %s is not in the archive any more" % path)
        return paths, descriptors

    def _pieces_now(self) -> List[Piece]:
        lines = self.archive.lines()
        number = self.recovery.line.number
        return [piece for line in lines if line.number == number for piece in self.archive.pieces(line, current=line is lines[-1])]


def plan(archive: Archive, directory: JobDirectory, wanted: Moment, name: Optional[str] = None) -> Replay:
    """Return the Replay that leads to a target; the archive and the generations are only read.

    :param name: of the generation to begin with; default: the newest one at or before the target that is not bad
    :raises StillpointError: it can't be had
    """
    chosen = directory.find(name).name if name else None
    recovery = resolve(archive, directory.generations(), wanted, chosen)
    known = settings_of(recovery.generation)
    known.find_program()
    _programs(known.flavour)
    memory = memory_tables(recovery.generation, recovery.pieces, recovery.start, recovery.stop)
    return Replay(recovery, archive, known, memory)


def settings_of(generation: Generation) -> Settings:
    """Return how the server of a generation was set up, as its manifest says.

    :raises StillpointError: it does not say
    """
    facts = generation.summary.get("settings")
    if not facts:
        raise StillpointError("the manifest of %s does not say how its server was set up: binary logs can't be replayed onto it here" % generation.name)
    return settings.from_dict(facts)


class Floor:
    """How much room a replay leaves on a file system: what it needs is only an estimate, and others may live there too.

    :param what: which takes the room
    :param named: a path on the file system that people know it by; default: the directory that the first one lies in
    """

    def __init__(self, path: str, what: str = "the replay", named: str = "") -> None:
        found = space(path)
        self._path = path
        self._what = what
        self._named = named or os.path.dirname(path)
        self._least = min(_ROOM_LEFT, int(found.size * _SHARE_LEFT), found.free // 2)

    def check(self) -> None:
        """:raises StillpointError: less is left"""
        left = space(self._path).free
        if left < self._least:
            raise StillpointError(
                "%s takes more room than there is: only %s are left on the file system of %s; free some, discard what earlier restores "
                "replaced (stillpoint discard), or restore into a directory elsewhere (--to DIR)" % (self._what, size(left), self._named)
            )


@contextmanager
def _private(datadir: str) -> Iterator[str]:
    """Make a directory that only root and the server of a data directory can read, and remove it at the end."""
    path = make_directory()
    try:
        os.chown(path, *user_of(datadir))
        yield path
    finally:
        with undisturbed():
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _room(copy: str) -> Iterator[str]:
    """Make a directory for temporary files beside a copy of a data directory, on its file system, and remove it at the end: /run, where
    all else of a scratch server lies, is memory."""
    path = copy + ROOM
    try:
        durable.remove_tree(path)
        os.mkdir(path, 0o700)
        os.chown(path, *user_of(copy))
        yield path
    finally:
        with undisturbed():
            shutil.rmtree(path, ignore_errors=True)


def _write(directory: str, name: str, text: str) -> str:
    """Write a file that its directory's owner can read and nobody else, and return its path."""
    path = os.path.join(directory, name)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
    return _theirs(path)


def _theirs(path: str) -> str:
    """Give a file to the owner of its directory, and return its path."""
    status = os.stat(os.path.dirname(path))
    os.chown(path, status.st_uid, status.st_gid)
    return path


def _prepare(session: Session, recovery: Recovery) -> None:
    """Give MySQL the GTIDs that the backup had executed and the copy does not know of: they were in a log only."""
    if recovery.line.flavour == "mariadb" or not recovery.gtid or str(session.value("SELECT @@GLOBAL.gtid_mode")) != "ON":
        return
    stood = recorded.coordinates(recovery.generation)
    known = gtid.MysqlState.parse(str(session.value("SELECT @@GLOBAL.gtid_executed") or ""))
    if stood and stood.gtid and str(known) != str(gtid.MysqlState.parse(stood.gtid)):
        lacking = session.rows("SELECT GTID_SUBTRACT(%s, @@GLOBAL.gtid_executed) AS lacking", (stood.gtid,))[0]["lacking"]
        if lacking:
            session.rows("SET GLOBAL gtid_purged = %s", ("+" + str(lacking).replace("\n", ""),))


def _finish(session: Session, recovery: Recovery) -> None:
    """Leave behind from where the result's own logging, or its replication, goes on.

    :raises StillpointError: the server does not stand where it should
    """
    if not recovery.gtid:
        return
    if recovery.line.flavour == "mariadb":
        known = str(session.value("SELECT @@GLOBAL.gtid_slave_pos") or "")
        session.rows("SET GLOBAL gtid_slave_pos = %s", (gtid.later(known, gtid.MariaState.parse(recovery.gtid).position()),))
        return
    if str(session.value("SELECT @@GLOBAL.gtid_mode")) != "ON":
        return
    subset = session.rows("SELECT GTID_SUBSET(%s, @@GLOBAL.gtid_executed) AS whole", (recovery.gtid,))[0]["whole"]
    if not int(subset or 0):
        raise StillpointError("after the replay the server has not executed all of %s" % recovery.gtid)


def _remove_logs(settings: Settings, where: Mapping[str, str]) -> None:
    """Remove the logs that came with the backup from the copy."""
    if not settings.log_bin:
        return
    for path, copy in where.items():
        inside = os.path.realpath(os.path.dirname(settings.log_bin))  # as the paths of `where` are
        if inside != path and not inside.startswith(path + "/"):
            continue
        directory = copy + inside[len(path) :]
        gtid_state.remove(directory, os.path.basename(settings.log_bin), os.path.basename(settings.log_bin_index))


def _programs(flavour: str) -> Tuple[str, str]:
    """Return the programs that read logs and execute what they say.

    :raises StillpointError: one is not installed
    """
    reader, client = source.find_client(flavour), _find(flavour)
    if reader is None or client is None:
        raise StillpointError("the client programs of the server are missing on this host: install the package %s" % source.client_package(flavour))
    return reader, client


def _find(flavour: str) -> Optional[str]:
    return next((found for found in (shutil.which(name, path=PATH) for name in _CLIENTS[flavour]) if found), None)


def _pool() -> int:
    """Return the size of the buffer pool: a share of the memory that nobody uses."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":", 1) for line in file)
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return _LEAST_POOL
    return max(int(free * _SHARE_OF_MEMORY) >> 20 << 20, _LEAST_POOL)
