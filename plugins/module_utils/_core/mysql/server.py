# SPDX-License-Identifier: GPL-3.0-or-later
"""What the server is, and where on this host its data lies."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..errors import StillpointError
from .connection import ServerError, Session

Version = Tuple[int, ...]

# Files by which a table of each engine that is not transactional is known in the data directory. Read from the disk, as
# information_schema shows an account only the tables that it has privileges for.
NON_TRANSACTIONAL = {".MYD": "MyISAM", ".MAD": "Aria", ".CSV": "CSV", ".ARZ": "ARCHIVE"}
SYSTEM_SCHEMAS = ("mysql", "sys", "performance_schema", "information_schema")


@dataclass(frozen=True)
class ServerPath:
    """A directory that the server's own data needs."""

    role: str  # datadir, data (innodb_data_home_dir), redo, undo, aria
    path: str


@dataclass(frozen=True)
class Table:
    """A table that is not transactional."""

    schema: str
    name: str
    engine: str


@dataclass(frozen=True)
class Server:
    """A running server of this host."""

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

    def summary(self) -> Dict[str, Any]:
        """Return ``{flavour, version, datadir, uuid, unit}``."""
        return {"flavour": self.flavour, "version": self.version_text, "datadir": self.datadir, "uuid": self.uuid, "unit": self.unit}


def flavour_and_version(version: str, comment: str) -> Tuple[str, Version]:
    """Return ("mariadb", (10, 11, 19)) for the variables version and version_comment."""
    match = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)\.(\d+)", version)  # MariaDB 10 once said 5.5.5- to old replicas
    if not match:
        raise StillpointError("the server says that its version is %r, which is none that is known" % version)
    numbers = tuple(int(part) for part in match.groups())
    if "mariadb" in version.lower() or "mariadb" in comment.lower():
        return "mariadb", numbers
    return ("percona" if "percona" in comment.lower() else "mysql"), numbers


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
    _no_links_out(datadir, paths)
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
    )


def elsewhere(variables: Mapping[str, str], datadir: str) -> List[ServerPath]:
    """Return the directories outside the data directory that the engines' own files lie in."""

    def absolute(value: str) -> str:
        return os.path.realpath(os.path.join(datadir, value or "."))

    candidates = [
        ("data", absolute(variables.get("innodb_data_home_dir", ""))),
        ("redo", absolute(variables.get("innodb_log_group_home_dir", ""))),
        ("undo", absolute(variables.get("innodb_undo_directory", ""))),
        ("aria", absolute(variables.get("aria_log_dir_path", ""))),
    ]
    # each file of innodb_data_file_path is taken relative to innodb_data_home_dir, or absolute where that is empty
    for part in variables.get("innodb_data_file_path", "").split(";"):
        file_path = part.split(":")[0]
        if file_path.startswith("/"):
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


def unit_of(pid: int) -> Optional[str]:
    """Return the systemd service that a process belongs to; None when it belongs to none."""
    try:
        with open("/proc/%d/cgroup" % pid, encoding="utf-8") as file:
            groups = file.read()
    except OSError:
        return None
    match = re.search(r"/([^/\n]+\.service)(?:/|$)", groups, re.MULTILINE)
    return match.group(1) if match else None


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


def decoded(file_name: str) -> str:
    """Return the identifier that a file name stands for: the server writes other characters as @ and four hex digits."""
    return re.sub(r"@([0-9a-f]{4})", lambda match: chr(int(match.group(1), 16)), file_name)


def _directories(path: str) -> List[str]:
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def _files(path: str) -> List[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []  # dropped since


def _no_links_out(datadir: str, paths: Tuple[ServerPath, ...]) -> None:
    """Refuse a data directory with tables elsewhere: a copy of it would silently lack them.

    Symbolic links are databases (``db -> /elsewhere``) and MyISAM or Aria tables with DATA DIRECTORY; ``.isl`` and
    ``.ibd`` links are InnoDB's.
    """
    inside = tuple(part.path for part in paths)
    for directory in [datadir] + [os.path.join(datadir, name) for name in _directories(datadir)]:
        for entry in _entries(directory):
            target = None
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
            elif entry.name.endswith(".isl"):
                with open(entry.path, encoding="utf-8", errors="surrogateescape") as file:
                    target = os.path.realpath(file.read().strip())
            if target and not any(target == part or target.startswith(part + "/") for part in inside):
                raise StillpointError(
                    "%s leads out of the data directory to %s, which the backup would lack: move the table or database "
                    "back into %s" % (entry.path, target, datadir)
                )


def _entries(path: str) -> List["os.DirEntry[str]"]:
    try:
        return list(os.scandir(path))
    except OSError:
        return []


def replica_status(session: Session, flavour: str, version: Version) -> List[Dict[str, Any]]:
    """Return a row for each source that this server replicates from, as the server words it; [] without the privilege to ask."""
    if flavour == "mariadb":
        statement = "SHOW ALL SLAVES STATUS"
    else:
        statement = "SHOW REPLICA STATUS" if version >= (8, 0, 22) else "SHOW SLAVE STATUS"
    try:
        return session.rows(statement)
    except ServerError as error:
        if error.number == 1227:  # the plan names the missing privilege
            return []
        raise
