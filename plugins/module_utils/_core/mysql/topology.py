# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that is not alone: what is changed on a replica or a cluster node for the moment of the lock, and put back after it.

What is changed is written down first, in a directory that a reboot empties, as it undoes such changes itself. So a run that
was killed leaves word of what the next one, or `stillpoint clean`, has to put back.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ..host.durable import read_json, write_json
from ..host.errors import NotNowError, StillpointError
from ..host.process import undisturbed
from ..host.processes import Owner, this_process
from ..host.run_directory import RUN_DIRECTORY
from .connection import Login, ServerError, Session
from .locks import LockOptions
from .server import Server, Version, product, replica_status

_PREFIX = "changed-"
_NO_SUCH_CHANNEL = (1200, 1617, 3074)  # not configured (any more); MariaDB and MySQL have their own numbers for a named one
_POLL = 0.25
_GO_ON = 1.0  # seconds for which a SQL thread goes on before it is stopped again
_STOP_LIMIT = 30  # seconds, at least, for the event that is being applied to end
_UNDO_TRIES, _UNDO_LIMIT = 3, 120


@dataclass(frozen=True)
class Change:
    """What is changed on a server for a moment.

    :ivar channels: replication channels ("" is the one without a name) whose SQL thread runs and is stopped
    :ivar desync: the cluster node is taken out of flow control
    """

    channels: Tuple[str, ...] = ()
    desync: bool = False

    def __bool__(self) -> bool:
        return bool(self.channels) or self.desync


def check_node(server: Server) -> None:
    """Refuse a cluster node that does not have what the others have.

    :raises NotNowError: it is not Synced, or not in the primary component
    """
    node = server.node
    if node is not None and (node.state != "Synced" or node.cluster != "Primary"):
        raise NotNowError(
            "this node of the Galera cluster is not Synced (wsrep_local_state_comment is %r, wsrep_cluster_status %r): nothing was locked "
            "or backed up; try again when it is" % (node.state, node.cluster)
        )


@contextmanager
def set_aside(login: Login, server: Server, asked: LockOptions, note: Callable[[str], None]) -> Iterator[None]:
    """While the body runs, have the SQL threads of a replica stopped where they have no temporary table open, and a cluster
    node desynced, as far as it is asked for; then start and sync again what was so before, whatever happened.

    :raises NotNowError: a SQL thread did not come to such a place in time
    :raises StillpointError: what was changed can't be put back; the next run tries again
    """
    if not (asked.stop_replica and server.is_replica) and not (asked.desync and server.node):
        yield
        return
    limit = max(asked.long_query_timeout, _STOP_LIMIT)
    with Session(login, read_timeout=limit) as session:
        change = Change(
            tuple(_running(session, server)) if asked.stop_replica else (),
            asked.desync and server.node is not None and str(session.value("SELECT @@GLOBAL.wsrep_desync")) in ("0", "OFF"),
        )
        if not change:
            yield
            return
        record = _write_down(change, login, server)
        try:
            if change.desync:  # before the lock: under it, the server refuses (MDEV-15933)
                session.do("SET GLOBAL wsrep_desync = ON")
            if change.channels:
                _stop(session, server, change.channels, limit)
                note("the replica's SQL thread stands still for the snapshot")
            yield
        finally:
            with undisturbed():
                _put_back(login, change, server.flavour, server.version)
                os.unlink(record)


def by_hand(change: Change, flavour: str, version: Version) -> str:
    """Return the statements that put a change back, for a person to type."""
    statements = [_words("START", flavour, version) % ("'%s'" % channel.replace("'", "''")) for channel in change.channels]
    return "; ".join(statements + (["SET GLOBAL wsrep_desync = OFF"] if change.desync else []))


# --- replicas


def _running(session: Session, server: Server) -> List[str]:
    """Return the channels whose SQL thread runs."""
    rows = replica_status(session, server.flavour, server.version)
    return [_channel(row) for row in rows if "Yes" in (row.get("Slave_SQL_Running"), row.get("Replica_SQL_Running"))]


def _channel(row: Dict[str, Any]) -> str:
    return str(row.get("Connection_name") or row.get("Channel_Name") or "")


def _words(verb: str, flavour: str, version: Version) -> str:
    """Return the statement that stops or starts a SQL thread, with a place for the channel."""
    if flavour == "mariadb":
        return verb + " SLAVE %s SQL_THREAD"
    if version >= (8, 0, 22):
        return verb + " REPLICA SQL_THREAD FOR CHANNEL %s"
    return verb + " SLAVE SQL_THREAD FOR CHANNEL %s"


def _stop(session: Session, server: Server, channels: Sequence[str], limit: float) -> None:
    """Stop SQL threads where they have no temporary table open: such a table is in no backup, and what the source writes to it
    later could not be applied to what is restored.

    :raises NotNowError: they do not stop, or not there, within the limit (s); they may be stopped or not
    """
    end = time.monotonic() + limit
    while True:
        try:
            for channel in channels:
                session.rows(_words("STOP", server.flavour, server.version), (channel,))
        except ServerError as error:
            if not error.connection_lost:
                raise
            raise NotNowError(
                "the replica's SQL thread did not stop within %d s, as it applies something long: it is started again, and nothing was backed up"
                % limit
            ) from None
        if not _temporary_tables(session):
            return
        stood = _positions(session, server)
        for channel in channels:
            session.rows(_words("START", server.flavour, server.version), (channel,))
        time.sleep(_GO_ON)
        while _positions(session, server) == stood or time.monotonic() > end:
            if time.monotonic() > end:
                raise NotNowError(
                    "the replica's SQL thread has had temporary tables open for %d s (Slave_open_temp_tables): nothing was backed up; try again later"
                    % limit
                )
            time.sleep(_POLL)


def _temporary_tables(session: Session) -> int:
    """Return how many temporary tables the SQL threads have open. With binlog_format = ROW there are none."""
    return max((int(row["Value"]) for row in session.rows("SHOW GLOBAL STATUS LIKE '%_open_temp_tables'")), default=0)


def _positions(session: Session, server: Server) -> List[Tuple[Any, ...]]:
    names = ("Relay_Master_Log_File", "Exec_Master_Log_Pos", "Relay_Source_Log_File", "Exec_Source_Log_Pos")
    return [tuple(row.get(name) for name in names) for row in replica_status(session, server.flavour, server.version)]


# --- putting back


def _put_back(login: Login, change: Change, flavour: str, version: Version) -> None:
    """Start and sync again, in a session of its own: the one that made the change may be gone, or be waiting still.

    :raises StillpointError: it is not possible
    """
    for attempt in range(_UNDO_TRIES):
        try:
            with Session(login, read_timeout=_UNDO_LIMIT) as session:
                for channel in change.channels:
                    try:
                        session.rows(_words("START", flavour, version), (channel,))
                    except ServerError as error:
                        if error.number not in _NO_SUCH_CHANNEL:  # somebody has taken the replica apart: nothing to start
                            raise
                if change.desync:
                    session.do("SET GLOBAL wsrep_desync = OFF")
            return
        except StillpointError as error:
            if attempt + 1 == _UNDO_TRIES:
                raise StillpointError(
                    "what was changed on the server for the snapshot can't be put back (%s): the next run tries again, or do it by hand: %s"
                    % (error, by_hand(change, flavour, version))
                ) from error
            time.sleep(1 + attempt)


def _write_down(change: Change, login: Login, server: Server) -> str:
    """Write down what is about to be changed, and how to log in to put it back, and return the file's path. No password is
    written: a login that needs one has it in its option file, or is left to the next run."""
    owner = this_process("", "")
    known = {key: value for key, value in asdict(login).items() if value is not None and key != "login_password"}
    path = os.path.join(RUN_DIRECTORY, "%s%d-%d.json" % (_PREFIX, owner.pid, owner.start))
    try:
        os.makedirs(RUN_DIRECTORY, mode=0o700, exist_ok=True)
        write_json(path, {"owner": asdict(owner), "datadir": server.datadir, "login": known, **asdict(change)})
    except OSError as error:
        raise StillpointError("%s can't be written: %s; nothing was changed on the server" % (path, error.strerror)) from error
    return path


def put_back_leftovers(login: Optional[Login] = None) -> List[str]:
    """Put back what runs that were killed have left changed, and return a sentence for each.

    :param login: tried where the run's own, which was written down without its password, does not log in
    :raises StillpointError: it is not possible
    """
    done = []
    for path in _leftovers():
        facts = read_json(path)
        if facts is None:
            os.unlink(path)  # written when the power went: nothing was changed yet
            continue
        if Owner(**facts["owner"]).alive():
            continue
        change = Change(tuple(facts["channels"]), bool(facts["desync"]))
        _put_back_as(Login(**facts["login"]), login, facts["datadir"], change)
        os.unlink(path)
        parts = ["the SQL thread of the replication channel %r" % channel for channel in change.channels]
        done.append("put back what a killed run had changed on the server: %s" % ", ".join(parts + (["wsrep_desync"] if change.desync else [])))
    return done


def _put_back_as(own: Login, other: Optional[Login], datadir: str, change: Change) -> None:
    """Put a change back by the first of the logins that leads to the server that it was made on."""
    trouble: Optional[StillpointError] = None
    for login in (own, other):
        if login is None:
            continue
        try:
            with Session(login) as session:
                if os.path.realpath(str(session.value("SELECT @@GLOBAL.datadir"))) != datadir:
                    continue
                found = product(session)
            _put_back(login, change, found.flavour, found.version)
            return
        except StillpointError as error:
            trouble = error
    raise StillpointError(
        "a run that was killed has left %s on the server with the data directory %s, and it can't be put back: %s"
        % ("replication stopped" if change.channels else "the cluster node desynced", datadir, trouble or "no login leads there")
    )


def _leftovers() -> List[str]:
    try:
        return sorted(
            os.path.join(RUN_DIRECTORY, name) for name in os.listdir(RUN_DIRECTORY) if name.startswith(_PREFIX) and name.endswith(".json")
        )
    except FileNotFoundError:
        return []
