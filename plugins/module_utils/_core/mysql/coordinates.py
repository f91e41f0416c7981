# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a server stands in its binary log, and where a replica stands in its sources'."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Optional, Tuple

from .connection import Session
from .server import Server, Version, replica_status

# flavour -> first version and its statement; SHOW MASTER STATUS is gone from MySQL 8.4 on
_STATUS: Dict[str, List[Tuple[Version, str]]] = {
    "mariadb": [((5, 1), "SHOW MASTER STATUS")],
    "mysql": [((5, 1), "SHOW MASTER STATUS"), ((8, 2), "SHOW BINARY LOG STATUS")],
}

# column of the replica's status: MariaDB and old MySQL, MySQL from 8.0.22 on
_REPLICA_COLUMNS = {
    "channel": ("Connection_name", "Channel_Name"),
    "host": ("Master_Host", "Source_Host"),
    "port": ("Master_Port", "Source_Port"),
    "file": ("Relay_Master_Log_File", "Relay_Source_Log_File"),
    "position": ("Exec_Master_Log_Pos", "Exec_Source_Log_Pos"),
}


@dataclass(frozen=True)
class Coordinates:
    """A position in the server's own binary log, and its executed GTIDs.

    :ivar replica: for each source ``{channel, host, port, file, position, gtid}``; None on a server that is no replica
    """

    file: str
    position: int
    gtid: Optional[str]
    replica: Optional[List[Dict[str, Any]]]

    def as_dict(self) -> Dict[str, Any]:
        return asdict(self)


def status_statement(flavour: str, version: Version) -> str:
    """Return the statement that shows the current binary log and position."""
    table = _STATUS["mariadb" if flavour == "mariadb" else "mysql"]
    return [statement for least, statement in table if version >= least][-1]


def read(session: Session, server: Server) -> Optional[Coordinates]:
    """Return where the server stands; None when it writes no binary log and is no replica. Exact only under a lock."""
    replica = _sources(session, server) if server.is_replica else None
    if not server.log_bin:
        return Coordinates("", 0, None, replica) if replica else None
    row = session.rows(status_statement(server.flavour, server.version))[0]
    if server.flavour == "mariadb":
        gtid = session.value("SELECT @@GLOBAL.gtid_binlog_pos")  # gtid_current_pos is unreliable with Galera (MDEV-10279)
    else:
        gtid = str(row.get("Executed_Gtid_Set") or "").replace("\n", "")
    return Coordinates(row["File"], int(row["Position"]), gtid or None, replica)


def _sources(session: Session, server: Server) -> List[Dict[str, Any]]:
    sources = []
    for row in replica_status(session, server.flavour, server.version):
        source = {key: next((row[name] for name in names if name in row), None) for key, names in _REPLICA_COLUMNS.items()}
        source["gtid"] = row.get("Gtid_Slave_Pos") or str(row.get("Executed_Gtid_Set") or "").replace("\n", "") or None
        sources.append(source)
    return sources
