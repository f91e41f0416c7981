# SPDX-License-Identifier: GPL-3.0-or-later
"""The server whose binary logs are archived: which logs it has, how far it is, and how its client is told to stream them."""

from __future__ import annotations

import os
import shutil
import zlib
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

from ..binlog import events
from ..host.errors import StillpointError
from ..host.process import PATH
from ..job.options import MysqlOptions
from ..mysql import coordinates
from ..mysql.connection import Login, ServerError, Session
from ..mysql.server import Version, flavour_and_version

#: Bytes that tell one log from another: its description of itself has the time at which it was begun
GLANCE = 4096

# flavour -> client programs, newest name first; the options that only one of them knows
_CLIENTS = {"mariadb": ("mariadb-binlog", "mysqlbinlog"), "mysql": ("mysqlbinlog",), "percona": ("mysqlbinlog",)}
_ID_OPTION = {"mariadb": "--stop-never-slave-server-id", "mysql": "--connection-server-id", "percona": "--connection-server-id"}
_PACKAGES = {"mariadb": "mariadb-client", "mysql": "mysql-client", "percona": "percona-server-client"}


@dataclass(frozen=True)
class Source:
    """What a server says of its binary logs at one moment.

    :ivar logs: ``(name, size)`` in order; the last one is being written
    :ivar basename: their path without the number; "" where the server does not say
    :ivar uuid: of MySQL; MariaDB has nothing like it, for its server_uid is made of the host's network card and the port
    :ivar encrypted: it encrypts the logs on its disk; what it sends to a client is in clear
    """

    flavour: str
    version: Version
    uuid: Optional[str]
    basename: str
    logs: Tuple[Tuple[str, int], ...]
    encrypted: bool = False

    @property
    def facts(self) -> Dict[str, Any]:
        """Return what a line of the index says of the server."""
        version = ".".join(str(part) for part in self.version)
        return {"flavour": self.flavour, "version": version, "uuid": self.uuid, "basename": self.basename}

    @property
    def names(self) -> List[str]:
        return [name for name, _size in self.logs]

    def size(self, name: str) -> Optional[int]:
        return dict(self.logs).get(name)

    def original(self, name: str) -> str:
        """Return the path of a log on the server's own disk, which is this host's."""
        return os.path.join(os.path.dirname(self.basename), name)

    def is_other(self, name: str, path: str) -> bool:
        """Tell whether the server's log of a name is another one than what has been archived of it, as far as that can be seen: it has
        less, or begins differently, or is different where the archived part ends."""
        size = self.size(name)
        if size is None or not os.path.isfile(path):
            return False
        return size < os.path.getsize(path) or differ(self.original(name), path)

    def has(self, name: str, path: str) -> bool:
        """Tell whether what has been archived of a log is of the server's one of that name."""
        return name in self.names and not self.is_other(name, path)


def read(session: Session) -> Source:
    """Return the Source behind a session.

    :raises StillpointError: the server writes no binary log, or does not tell this account about it
    """
    variables = {
        row["Variable_name"].lower(): row["Value"]
        for row in session.rows(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version', 'version_comment', 'log_bin', 'log_bin_basename', 'server_uuid', "
            "'encrypt_binlog', 'binlog_encryption')"
        )
    }
    flavour, version = flavour_and_version(variables["version"], variables.get("version_comment", ""))
    if variables.get("log_bin") != "ON":
        raise StillpointError("the server at %s writes no binary log: set log_bin in its configuration and restart it" % session.where)
    logs = tuple((str(row["Log_name"]), int(row["File_size"])) for row in session.rows("SHOW BINARY LOGS"))
    encrypted = "ON" in (variables.get("encrypt_binlog"), variables.get("binlog_encryption"))
    return Source(flavour, version, variables.get("server_uuid"), variables.get("log_bin_basename") or "", logs, encrypted)


def differ(original: str, archived: str) -> bool:
    """Tell whether the server's log is another one than what has been archived of it, as far as that goes and can be seen: by how both
    begin, and by the end of the archived part."""
    try:
        with open(original, "rb") as first, open(archived, "rb") as second:
            one, other = first.read(GLANCE), second.read(GLANCE)
            clear = events.clear_bytes(one)
            length = min(clear, len(other))
            if events.as_sent(one[:length]) != events.as_sent(other[:length]):
                return True
            if clear < len(one):
                return False
            size = os.path.getsize(archived)
            at = max(size - GLANCE, GLANCE)
            tails = []
            for file in (first, second):
                file.seek(at)
                tails.append(file.read(max(size - at, 0)))
            return tails[0] != tails[1]
    except OSError:  # purged, or never there
        return False


def position(session: Session, source: Source) -> Tuple[str, int]:
    """Return the log that the server writes now, and how far it is."""
    row = session.rows(coordinates.status_statement(source.flavour, source.version))[0]
    return str(row["File"]), int(row["Position"])


def find_client(flavour: str) -> Optional[str]:
    """Return the path of the program that streams binary logs; None: it is not installed."""
    return next((found for found in (shutil.which(name, path=PATH) for name in _CLIENTS[flavour]) if found), None)


def client_package(flavour: str) -> str:
    """Return the package that has it."""
    return _PACKAGES[flavour]


def stream_command(option_file: str, source: Source, start: str, directory: str, identity: str) -> List[str]:
    """Return the command that streams logs into a directory, from the beginning of one on and without an end.

    No password is in it: that is in the option file, which has to be there when the command starts. The number under which the server
    knows the client must be nobody else's, or the two would end each other's streams: it is made of the job's identity, above the numbers
    that people choose.

    :raises StillpointError: the client is not installed
    """
    program = find_client(source.flavour)
    if program is None:
        raise StillpointError(
            "the program %s is missing on this host: install the package %s" % (_CLIENTS[source.flavour][0], client_package(source.flavour))
        )
    number = 0x80000000 | zlib.crc32(identity.encode()) & 0x3FFFFFFF
    return [
        program,
        "--defaults-file=" + option_file,
        "--raw",
        "--read-from-remote-server",
        "--stop-never",
        "--verify-binlog-checksum",
        "%s=%d" % (_ID_OPTION[source.flavour], number),
        "--result-file=%s/" % directory.rstrip("/"),
        start,
    ]


def may_stream(session: Session) -> bool:
    """Tell whether the account may have binary logs sent to it."""
    try:
        grants = " ".join(str(next(iter(row.values()))) for row in session.rows("SHOW GRANTS"))
    except ServerError:
        return False
    return "REPLICATION SLAVE," in grants or "REPLICATION SLAVE ON" in grants or "ALL PRIVILEGES ON *.*" in grants


def login(options: MysqlOptions) -> Login:
    return Login.of(options)
