# SPDX-License-Identifier: GPL-3.0-or-later
"""What the server is, and where on this host its data lies."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import AbstractSet, Any, Dict, FrozenSet, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import StillpointError
from ..host.service import unit_of
from . import keys
from .connection import ServerError, Session
from .keys import Keys
from .outside import Outside, decoded, lies_in, links_out, tables_elsewhere
from .throw_away import ThrowAway, throw_away

Version = Tuple[int, ...]

# Files by which a table of each engine that is not transactional is known in the data directory. Read from the disk, as
# information_schema shows an account only the tables that it has privileges for.
NON_TRANSACTIONAL = {".MYD": "MyISAM", ".MAD": "Aria", ".CSV": "CSV", ".ARZ": "ARCHIVE"}
_NO_PRIVILEGE = 1227

# Those of tables, and MySQL's undo tablespaces, which only the second one has.
_TABLESPACES = (
    "SELECT PATH FROM information_schema.INNODB_DATAFILES WHERE PATH LIKE '/%'",
    "SELECT FILE_NAME AS PATH FROM information_schema.FILES WHERE FILE_TYPE = 'UNDO LOG' AND FILE_NAME LIKE '/%'",
)

SYSTEM_SCHEMAS = ("mysql", "sys", "performance_schema", "information_schema")


@dataclass(frozen=True)
class ServerPath:
    """A directory that the server's own data needs."""

    role: str  # datadir, data (innodb_data_home_dir), redo, undo, aria, doublewrite, rocksdb, rocksdb_wal, tokudb, tokudb_log, mroonga
    path: str


@dataclass(frozen=True)
class Table:
    """A table that is not transactional."""

    schema: str
    name: str
    engine: str


@dataclass(frozen=True)
class Node:
    """What a Galera node says of itself: ``Synced`` and ``Primary`` when all is well."""

    state: str
    cluster: str


@dataclass(frozen=True)
class Server:
    """A running server of this host.

    :ivar commits_must_stop: why a snapshot that is taken while commits go on would not be enough, as far as it lies in the
        server's settings; None where it would be
    :ivar node: None on a server that is in no Galera cluster
    :ivar outside: what a copy of its directories would lack
    :ivar remote: a sentence for each kind of table whose rows are in no file of this host
    :ivar data_id: what its data directory got when it was made, and takes along when it is moved or copied
    """

    flavour: str  # mariadb, percona, mysql
    version: Version
    version_text: str
    datadir: str
    uuid: Optional[str]
    unit: Optional[str]  # its systemd unit
    log_bin: bool
    log_bin_basename: Optional[str]
    is_replica: bool
    paths: Tuple[ServerPath, ...]  # datadir first; the others only where they lie outside it
    non_transactional: Tuple[Table, ...]  # users' tables
    commits_must_stop: Optional[str] = None
    performance_schema: bool = False
    node: Optional[Node] = None
    throw_away: ThrowAway = ThrowAway()
    outside: Tuple[Outside, ...] = ()
    remote: Tuple[str, ...] = ()
    keys: Optional[Keys] = None
    rocksdb: bool = False
    data_id: Optional[str] = None

    def summary(self) -> Dict[str, Any]:
        """Return ``{flavour, version, datadir, uuid, data_id, unit}``, and ``keys`` where something is encrypted."""
        facts = {
            "flavour": self.flavour,
            "version": self.version_text,
            "datadir": self.datadir,
            "uuid": self.uuid,
            "data_id": self.data_id,
            "unit": self.unit,
        }
        return {**facts, "keys": self.keys.as_dict()} if self.keys else facts


def flavour_and_version(version: str, comment: str) -> Tuple[str, Version]:
    """Return ("mariadb", (10, 11, 19)) for the variables version and version_comment."""
    match = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)\.(\d+)", version)  # MariaDB 10 once said 5.5.5- to old replicas
    if not match:
        raise StillpointError("the server says that its version is %r, which is none that is known" % version)
    numbers = tuple(int(part) for part in match.groups())
    if "mariadb" in version.lower() or "mariadb" in comment.lower():
        return "mariadb", numbers
    return ("percona" if "percona" in comment.lower() else "mysql"), numbers


@dataclass(frozen=True)
class Product:
    """Which server it is.

    :ivar text: its version, as it says it
    """

    flavour: str
    version: Version
    text: str


def product(session: Session) -> Product:
    """Return which server is behind a session."""
    text, comment = (str(session.value("SELECT @@GLOBAL.%s" % name)) for name in ("version", "version_comment"))
    return Product(*flavour_and_version(text, comment), text)


def read(session: Session) -> Server:
    """Return the Server behind a session.

    :raises StillpointError: it does not run on this host, or parts of its data lie where they can't be followed
    """
    variables = {row["Variable_name"].lower(): row["Value"] for row in session.rows("SHOW GLOBAL VARIABLES")}
    flavour, version = flavour_and_version(variables["version"], variables.get("version_comment", ""))
    datadir = os.path.realpath(variables["datadir"])
    if not os.path.isdir(datadir):
        raise StillpointError(
            "the data directory %s of the server at %s does not exist on this host: is the server on another one?" % (datadir, session.where)
        )
    pid = process_id(variables, datadir)
    paths = (ServerPath("datadir", datadir), *elsewhere(variables, datadir))
    inside = [part.path for part in paths]
    plugins = active_plugins(session)
    outside, remote = tables_elsewhere(datadir, inside, plugins)
    outside += links_out(datadir, inside, _own_names(variables))
    outside += _raw_devices(variables)
    if flavour != "mariadb" and version >= (8, 0):
        outside += _tablespaces_elsewhere(session, datadir, inside)
        _redo_log_is_on(session)
    return Server(
        flavour=flavour,
        version=version,
        version_text=variables["version"],
        datadir=datadir,
        uuid=variables.get("server_uuid") or variables.get("server_uid"),
        unit=unit_of(pid),
        log_bin=variables.get("log_bin") == "ON",
        log_bin_basename=variables.get("log_bin_basename") or None,
        is_replica=bool(replica_status(session, flavour, version)),
        paths=paths,
        non_transactional=tuple(non_transactional(datadir)),
        commits_must_stop=commits_must_stop(variables, datadir, paths),
        performance_schema=variables.get("performance_schema") == "ON",
        node=_node(session) if variables.get("wsrep_on") == "ON" else None,
        throw_away=throw_away(variables, datadir),
        outside=tuple(outside),
        rocksdb=has_rocksdb(variables, datadir),
        remote=(*remote, *_remote_engines(variables, plugins)),
        keys=keys.read(session, variables, flavour, datadir, os.path.realpath("/proc/%d/exe" % pid)),
        data_id=_data_id(variables, datadir),
    )


def _data_id(variables: Mapping[str, str], datadir: str) -> Optional[str]:
    """Return the identity of a data directory: MySQL's server_uuid, or the UUID of Aria's log, as MariaDB's server_uid is made of the host's
    network card and the port, and is the same for two servers that listen on no port."""
    if variables.get("server_uuid"):
        return variables["server_uuid"]
    path = os.path.join(datadir, variables.get("aria_log_dir_path", ""), "aria_log_control")
    try:
        with open(path, "rb") as file:
            head = file.read(20)
    except OSError:
        return None
    return head[4:].hex() if head.startswith(b"\xfe\xfe\x0c") and len(head) == 20 else None  # storage/maria/ma_control_file.c


def commits_must_stop(variables: Mapping[str, str], datadir: str, paths: Sequence[ServerPath]) -> Optional[str]:
    """Return why InnoDB alone would not come back from an atomic snapshot with every commit that was acknowledged, and with
    no transaction left prepared; None where it would.

    The freeze of the file system writes out what the server has handed to the kernel, so innodb_flush_log_at_trx_commit = 2
    is as good as 1. What a commit has written to the binary log and not yet to InnoDB is completed from the binary log.
    """
    if variables.get("innodb_flush_log_at_trx_commit") == "0":
        return "innodb_flush_log_at_trx_commit is 0, so up to a second of commits is in memory alone"
    basename = variables.get("log_bin_basename") or ""
    if variables.get("log_bin") == "ON" and basename:
        logs = os.path.realpath(os.path.join(datadir, os.path.dirname(basename)))
        if not any(logs == part.path or logs.startswith(part.path + "/") for part in paths):
            return "the binary logs lie in %s, outside of what is copied, and a server with prepared transactions does not start without them" % logs
    if has_rocksdb(variables, datadir):
        return "RocksDB has tables"
    return None


def has_rocksdb(variables: Mapping[str, str], datadir: str) -> bool:
    """Tell whether RocksDB may have tables: MySQL calls its directory .rocksdb, MariaDB #rocksdb."""
    return any(os.path.isdir(os.path.join(datadir, variables.get("rocksdb_datadir") or name)) for name in (".rocksdb", "#rocksdb"))


def _node(session: Session) -> Node:
    status = {row["Variable_name"].lower(): row["Value"] for row in session.rows("SHOW GLOBAL STATUS LIKE 'wsrep_%'")}
    return Node(status.get("wsrep_local_state_comment", ""), status.get("wsrep_cluster_status", ""))


def _redo_log_is_on(session: Session) -> None:
    """Refuse a server without a redo log: no copy of it recovers (MySQL 8.0.21, ALTER INSTANCE DISABLE INNODB REDO_LOG)."""
    rows = session.rows("SHOW GLOBAL STATUS LIKE 'Innodb_redo_log_enabled'")
    if rows and rows[0]["Value"] == "OFF":
        raise StillpointError(
            "the server at %s writes no redo log, so no snapshot of it would recover: ALTER INSTANCE ENABLE INNODB REDO_LOG first" % session.where
        )


def active_plugins(session: Session) -> FrozenSet[str]:
    """Return the names of the plugins that are active, in capitals."""
    return frozenset(str(row["Name"]).upper() for row in session.rows("SHOW PLUGINS") if row["Status"] == "ACTIVE")


def _remote_engines(variables: Mapping[str, str], plugins: AbstractSet[str]) -> Iterator[str]:
    """Give a sentence for each engine that leaves nothing of its tables in the data directory."""
    if "S3" in plugins and variables.get("s3_access_key"):
        yield "the rows of tables of the engine S3 lie in the bucket %s, and are not in the backup" % variables["s3_bucket"]
    if "NDBCLUSTER" in plugins:
        yield "the rows of tables of the engine NDBCLUSTER lie in its data nodes, and are not in the backup"


def _tablespaces_elsewhere(session: Session, datadir: str, inside: Sequence[str]) -> Iterator[Outside]:
    """Give the tablespaces outside of what is copied. MySQL 8 leaves no trace of them in the data directory (no ``.isl``)."""
    for statement in _TABLESPACES:
        try:
            rows = session.rows(statement)
        except ServerError as error:
            if error.number == _NO_PRIVILEGE:  # the plan names PROCESS as missing
                return
            raise
        for path in [os.path.realpath(os.path.join(datadir, row["PATH"])) for row in rows]:
            if not lies_in(path, inside):
                yield Outside(
                    "the tablespace file %s lies outside the data directory, which the backup would lack: move it back into %s" % (path, datadir), path
                )


def _own_names(variables: Mapping[str, str]) -> FrozenSet[str]:
    """Return the names of the system tablespace's files."""
    return frozenset(os.path.basename(part.split(":")[0]) for part in variables.get("innodb_data_file_path", "").split(";"))


def _raw_devices(variables: Mapping[str, str]) -> Iterator[Outside]:
    for part in variables.get("innodb_data_file_path", "").split(";"):
        path, *rest = part.split(":")
        if any("raw" in each for each in rest):
            yield Outside("the system tablespace lies on the raw device %s, which the backup would lack: use method: dump" % path, path)


def elsewhere(variables: Mapping[str, str], datadir: str) -> List[ServerPath]:
    """Return the directories outside the data directory that the engines' own files lie in."""

    def absolute(value: str) -> str:
        return os.path.realpath(os.path.join(datadir, value or "."))

    candidates = [
        ("data", absolute(variables.get("innodb_data_home_dir", ""))),
        ("redo", absolute(variables.get("innodb_log_group_home_dir", ""))),
        ("undo", absolute(variables.get("innodb_undo_directory", ""))),
        ("aria", absolute(variables.get("aria_log_dir_path", ""))),
        ("doublewrite", absolute(variables.get("innodb_doublewrite_dir", ""))),
        ("rocksdb", absolute(variables.get("rocksdb_datadir", ""))),
        ("rocksdb_wal", absolute(variables.get("rocksdb_wal_dir", ""))),
        ("tokudb", absolute(variables.get("tokudb_data_dir", ""))),
        ("tokudb_log", absolute(variables.get("tokudb_log_dir", ""))),
        ("mroonga", absolute(os.path.dirname(variables.get("mroonga_database_path_prefix", "")))),
    ]
    # each file of innodb_data_file_path is taken relative to innodb_data_home_dir, or absolute where that is empty
    for part in variables.get("innodb_data_file_path", "").split(";"):
        file_path = part.split(":")[0]
        if file_path.startswith("/") and "raw" not in part:
            candidates.append(("data", os.path.realpath(os.path.dirname(file_path))))
    found: List[ServerPath] = []
    for role, path in candidates:
        inside = path == datadir or path.startswith(datadir + "/")
        if not inside and path not in [other.path for other in found]:
            found.append(ServerPath(role, path))
    return found


def process_id(variables: Mapping[str, str], datadir: str) -> int:
    """Return the server's process id, made sure of: a server works in its data directory (mysqld changes into it)."""
    pid_file = os.path.join(datadir, variables.get("pid_file", ""))
    try:
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read().strip())
        same = os.path.samefile("/proc/%d/cwd" % pid, datadir)
    except (OSError, ValueError) as error:
        raise StillpointError(
            "the server's process can't be found through its pid file %s (%s): is the server on this host?" % (pid_file, error)
        ) from error
    if not same:
        raise StillpointError("the process %d that %s names does not work in %s: this is not the server of this host" % (pid, pid_file, datadir))
    return pid


def non_transactional(datadir: str) -> List[Table]:
    """Return the users' tables whose engine is not transactional, by their files."""
    found = []
    for schema in _directories(datadir):
        if decoded(schema) in SYSTEM_SCHEMAS:
            continue
        for file_name in _files(os.path.join(datadir, schema)):
            stem, extension = os.path.splitext(file_name)
            if extension in NON_TRANSACTIONAL:
                found.append(Table(decoded(schema), decoded(stem.split("#P#")[0]), NON_TRANSACTIONAL[extension]))
    return sorted(set(found), key=lambda table: (table.schema, table.name))


def _directories(path: str) -> List[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def _files(path: str) -> List[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []  # dropped since


def enabled_events(session: Session) -> List[str]:
    """Return the events that the server runs by itself, as ``database.name``, as far as this account may see them."""
    try:
        rows = session.rows("SELECT EVENT_SCHEMA AS db, EVENT_NAME AS name FROM information_schema.EVENTS WHERE STATUS = 'ENABLED' ORDER BY 1, 2")
    except ServerError:  # the event scheduler's tables are damaged, or it is switched off for good
        return []
    return ["%s.%s" % (row["db"], row["name"]) for row in rows]


def replica_status(session: Session, flavour: str, version: Version) -> List[Dict[str, Any]]:
    """Return a row for each source that this server replicates from, as the server words it. Without the privilege to ask it returns [],
    and the plan refuses the account, which lacks one that every lock and also ``none`` needs.

    Group Replication's own channels are left out: they have no source whose log could be read on, and can't be stopped.
    """
    if flavour == "mariadb":
        statement = "SHOW ALL SLAVES STATUS"
    else:
        statement = "SHOW REPLICA STATUS" if version >= (8, 0, 22) else "SHOW SLAVE STATUS"
    try:
        rows = session.rows(statement)
    except ServerError as error:
        if error.number == _NO_PRIVILEGE:  # the plan names the missing privilege
            return []
        raise
    return [row for row in rows if not str(row.get("Channel_Name") or "").startswith("group_replication_")]
