# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a server stands in its binary log, and where a replica stands in its sources'."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from ..host.errors import StillpointError
from .connection import ServerError, Session
from .server import Server, Version, replica_status

# flavour -> first version and its statement; SHOW MASTER STATUS is gone from MySQL 8.4 on
_STATUS: Dict[str, List[Tuple[Version, str]]] = {
    "mariadb": [((5, 1), "SHOW MASTER STATUS")],
    "mysql": [((5, 1), "SHOW MASTER STATUS"), ((8, 2), "SHOW BINARY LOG STATUS")],
}

_DENIED = (1044, 1142, 1227)

# column of the replica's status: MariaDB and old MySQL, MySQL from 8.0.22 on
_REPLICA_COLUMNS = {
    "channel": ("Connection_name", "Channel_Name"),
    "host": ("Master_Host", "Source_Host"),
    "port": ("Master_Port", "Source_Port"),
    "file": ("Relay_Master_Log_File", "Relay_Source_Log_File"),
    "position": ("Exec_Master_Log_Pos", "Exec_Source_Log_Pos"),
}


@dataclass(frozen=True)
class SourcePosition:
    """What a replica has executed of the binary log of one of its sources."""

    channel: Optional[str] = None
    host: Optional[str] = None
    port: Optional[int] = None
    file: Optional[str] = None
    position: Optional[int] = None
    gtid: Optional[str] = None
    uses_gtid: bool = False


@dataclass(frozen=True)
class Coordinates:
    """A position in the server's own binary log, and its executed GTIDs.

    :ivar file: "" where the server writes no binary log, and is a replica
    :ivar replica: for each source; None on a server that is no replica
    :ivar source: who gives them, where that is not the server itself
    """

    file: str
    position: int
    gtid: Optional[str] = None
    replica: Optional[Tuple[SourcePosition, ...]] = None
    source: Optional[str] = None

    def as_dict(self) -> Dict[str, Any]:
        """Return them as the module and the manifest have them."""
        replica = None if self.replica is None else [asdict(each) for each in self.replica]
        facts = {"file": self.file, "position": self.position, "gtid": self.gtid, "replica": replica}
        return {**facts, "source": self.source} if self.source else facts

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "Coordinates":
        """Return the Coordinates that `as_dict` described.

        :raises ValueError, TypeError: a fact is not what it should be
        """
        known = SourcePosition.__dataclass_fields__
        sources = facts.get("replica")
        replica = None if sources is None else tuple(SourcePosition(**{key: each[key] for key in known if key in each}) for each in sources)
        return cls(str(facts.get("file") or ""), int(facts.get("position") or 0), facts.get("gtid") or None, replica, facts.get("source"))


def status_statement(flavour: str, version: Version) -> str:
    """Return the statement that shows the current binary log and position."""
    table = _STATUS["mariadb" if flavour == "mariadb" else "mysql"]
    return [statement for least, statement in table if version >= least][-1]


def read(session: Session, server: Server) -> Optional[Coordinates]:
    """Return where the server stands; None when it writes no binary log and is no replica. Exact only under a lock that stops commits."""
    if not server.log_bin:
        return _of_a_server_without_log(session, server)
    rows = session.rows(status_statement(server.flavour, server.version))
    if not rows:  # MariaDB switches logging off after a write error, and log_bin stays ON
        raise StillpointError("the server has stopped writing its binary log: its error log says why, and a restart of it begins a new one")
    row = rows[0]
    if server.flavour == "mariadb":
        gtid = session.value("SELECT @@GLOBAL.gtid_binlog_pos")  # gtid_current_pos is unreliable with Galera (MDEV-10279)
    else:
        gtid = _one_line(row.get("Executed_Gtid_Set"))
    return Coordinates(row["File"], int(row["Position"]), gtid or None, _replica(session, server))


def read_unlocked(session: Session, server: Server) -> Optional[Coordinates]:
    """Return where a server stands whose commits go on, in one consistent look; None where it can't tell: that takes
    performance_schema.log_status (MySQL 8), the privileges for it, and a binary log."""
    if server.flavour == "mariadb" or server.version < (8, 0):
        return None
    try:
        if not server.log_bin:
            return _of_a_server_without_log(session, server)
        rows = session.rows("SELECT LOCAL FROM performance_schema.log_status")
        replica = _replica(session, server)
    except ServerError as error:
        if error.number in _DENIED:
            return None
        raise
    if not rows:  # performance_schema is off
        return None
    local = json.loads(rows[0]["LOCAL"])
    return Coordinates(local["binary_log_file"], int(local["binary_log_position"]), _one_line(local["gtid_executed"]), replica)


class Around:
    """Coordinates of a moment at which commits are not stopped: read before and after it. If nothing was logged in between,
    they are those of the moment itself: what was under way then had either been logged whole before, or not at all."""

    def __init__(self, session: Session, server: Server) -> None:
        self._session = session
        self._server = server
        self._before: Optional[Coordinates] = None
        self._after: Optional[Coordinates] = None

    def before(self, in_time: Callable[[], bool] = lambda: True) -> None:
        """Look, and let it count if the moment had not come by then; the later the last look, the less was logged since."""
        seen = read_unlocked(self._session, self._server)
        if in_time():
            self._before = seen

    def after(self) -> None:
        self._after = read_unlocked(self._session, self._server) if self._before else None

    @property
    def exact(self) -> Optional[Coordinates]:
        """The coordinates of the moment; None where they are not known."""
        return self._before if self._before == self._after else None

    @property
    def again(self) -> bool:
        """Tell whether they are not known and may be after another try."""
        return self._before != self._after

    def between(self) -> Optional[Tuple[Coordinates, Coordinates]]:
        """Return the two coordinates between which the moment lies; None where there is nothing to ask for them."""
        return (self._before, self._after) if self._before and self._after else None


def _of_a_server_without_log(session: Session, server: Server) -> Optional[Coordinates]:
    replica = _replica(session, server)
    return Coordinates("", 0, None, replica) if replica else None


def _replica(session: Session, server: Server) -> Optional[Tuple[SourcePosition, ...]]:
    """Return what a replica has executed of each source's binary log: positions that a new replica can go on from, not those
    up to which the log was merely received."""
    if not server.is_replica:
        return None
    sources = []
    for row in replica_status(session, server.flavour, server.version):
        named: Dict[str, Any] = {key: next((row[name] for name in names if name in row), None) for key, names in _REPLICA_COLUMNS.items()}
        gtid = row.get("Gtid_Slave_Pos") or _one_line(row.get("Executed_Gtid_Set"))
        # MariaDB says No, Slave_Pos or Current_Pos; MySQL 0 or 1
        uses_gtid = str(row.get("Using_Gtid", row.get("Auto_Position", "0"))) not in ("No", "0", "")
        sources.append(SourcePosition(gtid=gtid, uses_gtid=uses_gtid, **named))
    return tuple(sources)


def _one_line(gtids: Any) -> Optional[str]:
    """Return a set of GTIDs without the line breaks that MySQL shows it with; None for an empty one."""
    return str(gtids or "").replace("\n", "") or None
