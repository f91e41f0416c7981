# SPDX-License-Identifier: GPL-3.0-or-later
"""The privileges of the account that backups log in with: the least that a job needs, what an account holds, and what it lacks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Dict, FrozenSet, Iterable, List, Sequence, Set, Tuple

from ..host.errors import StillpointError
from .connection import Session
from .server import Server, Version

if TYPE_CHECKING:  # modules that take no lock do not carry it
    from .locks import LockOptions

GLOBAL = "*.*"

# What each privilege is for:
#   RELOAD                             BACKUP STAGE, FLUSH TABLES WITH READ LOCK, FLUSH ENGINE LOGS
#   PROCESS                            other users' statements, for the guard; MySQL's list of tablespaces, INNODB_DATAFILES
#   BINLOG MONITOR, REPLICATION CLIENT the binary log's coordinates
#   SLAVE MONITOR                      a replica's position in its source's log; 10.5.2 to 10.5.8 asked for REPLICATION SLAVE
#                                      ADMIN instead (SHOW GRANTS spells it so: MDEV-34053)
#   BACKUP_ADMIN                       LOCK INSTANCE FOR BACKUP, performance_schema.log_status
#   REPLICATION SLAVE                  the binary logs as a stream, for binlog.archive alone
#   CONNECTION ADMIN, SUPER            KILL QUERY, for long_query_action = kill alone
#   REPLICATION SLAVE ADMIN, SUPER     STOP and START SLAVE, for stop_replica alone
#   SUPER, SYSTEM_VARIABLES_ADMIN      wsrep_desync, for desync alone; MariaDB still asks for SUPER (measured on 10.11)
# No privilege on anybody's tables: which of them are not transactional is read from the data directory. A dump reads all of them:
#   SELECT, SHOW VIEW, TRIGGER, EVENT  rows, and the definitions of views, triggers and events
#   SHOW_ROUTINE, SHOW CREATE ROUTINE  routines, where SELECT on the table that holds them is not enough
#   LOCK TABLES                        tables that are not transactional


@dataclass(frozen=True)
class Extras:
    """What a job may ask for beyond a backup that only looks and locks.

    :ivar kill: the guard may end statements (``long_query_action: kill``)
    :ivar stop_replica: the SQL threads of a replica are stopped for the snapshot
    :ivar desync: a Galera node is desynced for it
    :ivar dump: every table is read as SQL (``method: dump``)
    :ivar archive: binary logs are sent to it (``binlog.archive``)
    """

    kill: bool = False
    stop_replica: bool = False
    desync: bool = False
    dump: bool = False
    archive: bool = False

    @classmethod
    def of(cls, options: "LockOptions", server: Server, *, dump: bool = False) -> "Extras":
        """Return what options ask for on a server."""
        return cls(
            kill=options.long_query_action == "kill",
            stop_replica=options.stop_replica and server.is_replica,
            desync=options.desync and server.node is not None,
            dump=dump,
        )


@dataclass(frozen=True)
class _Needs:
    """What an account needs on a server from a version on: for a backup, and besides for each of the extras but dumps.

    :ivar unlocked: for a backup without a lock: where a replica stands, and what MySQL 8 tells while commits go on
    """

    version: Version
    backup: Tuple[str, ...]
    extras: Dict[str, str]
    unlocked: Tuple[str, ...]


_SUPER = {"kill": "SUPER", "stop_replica": "SUPER", "desync": "SUPER", "archive": "REPLICATION SLAVE"}
_MARIADB = {**_SUPER, "kill": "CONNECTION ADMIN", "stop_replica": "REPLICATION SLAVE ADMIN"}
_MYSQL = {**_SUPER, "kill": "CONNECTION_ADMIN", "stop_replica": "REPLICATION_SLAVE_ADMIN", "desync": "SYSTEM_VARIABLES_ADMIN"}

_OLD = ("REPLICATION CLIENT",)
_NEW = ("PROCESS", "REPLICATION CLIENT", "BACKUP_ADMIN", "SELECT ON performance_schema.log_status")

_NEEDED: Dict[str, List[_Needs]] = {
    "mariadb": [
        _Needs((5, 1), ("RELOAD", "PROCESS", *_OLD), _SUPER, _OLD),
        _Needs((10, 5, 2), ("RELOAD", "PROCESS", "BINLOG MONITOR", "REPLICATION SLAVE ADMIN"), _MARIADB, ("REPLICATION SLAVE ADMIN",)),
        _Needs((10, 5, 9), ("RELOAD", "PROCESS", "BINLOG MONITOR", "SLAVE MONITOR"), _MARIADB, ("SLAVE MONITOR",)),
    ],
    "mysql": [
        _Needs((5, 1), ("RELOAD", "PROCESS", *_OLD), _SUPER, _OLD),
        _Needs((8, 0), ("RELOAD", *_NEW), _MYSQL, _NEW),
    ],
}

_READ_ALL = ("SELECT", "SHOW VIEW", "TRIGGER", "EVENT", "LOCK TABLES")
_TO_DUMP: Dict[str, List[Tuple[Version, Tuple[str, ...]]]] = {
    "mariadb": [((5, 1), _READ_ALL), ((11, 3), (*_READ_ALL, "SHOW CREATE ROUTINE"))],
    "mysql": [((5, 1), _READ_ALL), ((8, 0, 20), (*_READ_ALL, "SHOW_ROUTINE"))],
}

_SAME = {
    "BINLOG MONITOR": ("REPLICATION CLIENT",),
    "SLAVE MONITOR": ("REPLICA MONITOR",),
    "REPLICATION SLAVE ADMIN": ("REPLICATION REPLICA ADMIN",),
}
# What SUPER was split into (MDEV-21743, MySQL 8.0); MariaDB 11.0.1 took these out of it
_PARTS_OF_SUPER = (
    "BINLOG MONITOR",
    "REPLICATION CLIENT",
    "SLAVE MONITOR",
    "REPLICATION SLAVE ADMIN",
    "CONNECTION ADMIN",
    "CONNECTION_ADMIN",
    "REPLICATION_SLAVE_ADMIN",
    "SYSTEM_VARIABLES_ADMIN",
)
_SUPER_WITHOUT_PARTS = (11, 0, 1)

_NAME = r"(?:\*|`(?:[^`]|``)+`|\w+)"
_GRANT = re.compile(r"GRANT (?P<privileges>.+?) ON (?:TABLE )?(?P<object>%s\.%s) TO " % (_NAME, _NAME), re.IGNORECASE)

Grants = Dict[str, FrozenSet[str]]  # object as SHOW GRANTS writes it -> privileges on it


def least(flavour: str, version: Version, lock: str = "auto", extras: Extras = Extras()) -> List[str]:
    """Return the least privileges of an account that backups log in with; those on one table as ``SELECT ON schema.table``.

    :param lock: the lock that is taken; for ``none`` the server is only asked where its files are, and where a replica stands
    """
    rows = [row for row in _NEEDED["mariadb" if flavour == "mariadb" else "mysql"] if version >= row.version]
    if not rows:
        raise StillpointError("%s %s is older than anything that this knows the privileges of" % (flavour, ".".join(map(str, version))))
    if lock == "none" and extras == Extras():
        return list(rows[-1].unlocked)
    asked = [privilege for name, privilege in rows[-1].extras.items() if getattr(extras, name)]
    if extras.dump:
        asked += [needed for first, needed in _TO_DUMP["mariadb" if flavour == "mariadb" else "mysql"] if version >= first][-1]
    return list(dict.fromkeys([*rows[-1].backup, *asked]))


def parse_grants(lines: Iterable[str]) -> Grants:
    """Return what the lines of SHOW GRANTS grant; roles, proxies and USAGE left out."""
    grants: Dict[str, Set[str]] = {}
    for line in lines:
        match = _GRANT.match(line)
        if not match:
            continue
        found = {_spelled(privilege) for privilege in re.split(r",(?![^(]*\))", match.group("privileges"))}
        if re.search(r"\bWITH\b.*\bGRANT OPTION\b", line[match.end() :]):
            found.add("GRANT OPTION")
        grants.setdefault(match.group("object"), set()).update(found - {"USAGE"})
    return {name: frozenset(held) for name, held in grants.items() if held}


def missing(grants_text: str, needed: Iterable[str], *, flavour: str, version: Version) -> List[str]:
    """Return those of the needed privileges that the text of SHOW GRANTS (one grant to a line) does not hold."""
    held = {unquoted(name): each for name, each in parse_grants(grants_text.splitlines()).items()}
    super_counts = flavour != "mariadb" or version < _SUPER_WITHOUT_PARTS

    def covered(privilege: str) -> bool:
        word, where = _split(privilege)
        for place in (GLOBAL, where, where.split(".")[0] + ".*"):
            have = held.get(place, frozenset())
            if have & {word, "ALL PRIVILEGES", "ALL", *_SAME.get(word, ())}:
                return True
            if "SUPER" in have and super_counts and word in _PARTS_OF_SUPER:
                return True
        return False

    return [privilege for privilege in needed if not covered(privilege)]


def missing_privileges(session: Session, flavour: str, version: Version, lock: str = "auto", extras: Extras = Extras()) -> List[str]:
    """Return the privileges that a backup with this lock needs and the account that logged in does not hold."""
    return missing(
        "\n".join(show_grants(session, "SHOW GRANTS")), least(flavour, version, lock, extras), flavour=flavour, version=version
    )


def whoami(session: Session) -> Tuple[str, str]:
    """Return user and host of the account that the server took a session's login for."""
    user, _at, host = str(session.value("SELECT CURRENT_USER()")).rpartition("@")
    return user, host


def grant_sql(user: str, host: str, needed: Sequence[str]) -> str:
    """Return the statements that grant privileges to an account, as a person would type them."""
    return " ".join(
        "GRANT %s ON %s TO %s;" % (", ".join(words), where, account_name(user, host)) for where, words in by_object(needed).items()
    )


def account_name(user: str, host: str) -> str:
    """Return 'user'@'host' as SQL."""
    return "@".join("'%s'" % part.replace("\\", "\\\\").replace("'", "''") for part in (user, host))


def show_grants(session: Session, statement: str) -> List[str]:
    """Return the lines that a statement ``SHOW GRANTS …`` answers."""
    return [str(next(iter(row.values()))) for row in session.rows(statement)]


def _spelled(privilege: str) -> str:
    """Return a privilege in capitals, the columns that it may name as they are."""
    word, bracket, columns = privilege.strip().partition("(")
    return word.upper() + bracket + columns


def unquoted(name: str) -> str:
    """Return schema.table without quotes."""
    return name.replace("`", "")


def quoted(name: str) -> str:
    """Return schema.table as SHOW GRANTS writes it."""
    return name if name == GLOBAL else ".".join("`%s`" % part for part in name.split("."))


def _split(privilege: str) -> Tuple[str, str]:
    """Return privilege and object of ``SELECT ON schema.table``; those without an object are global."""
    word, _on, where = privilege.partition(" ON ")
    return word, where or GLOBAL


def by_object(needed: Iterable[str]) -> Dict[str, List[str]]:
    """Return privileges by what they are on: ``{"*.*": ["RELOAD", …]}``."""
    found: Dict[str, List[str]] = {}
    for privilege in needed:
        word, where = _split(privilege)
        found.setdefault(where, []).append(word)
    return found


def as_grants(needed: Iterable[str]) -> Grants:
    """Return privileges as grants of them."""
    return {where: frozenset(words) for where, words in by_object(needed).items()}


def difference(held: Grants, wanted: Grants) -> Tuple[List[Tuple[str, str]], List[Tuple[str, str]]]:
    """Return what to revoke and what to grant, as (object, privilege), so that exactly what is wanted is held."""
    aliases = {alias: word for word, others in _SAME.items() for alias in others}
    plain = {
        unquoted(name): {word if word in wanted.get(unquoted(name), ()) else aliases.get(word, word) for word in words}
        for name, words in held.items()
    }
    revoke = [
        (name, word)
        for name, words in held.items()
        for word in sorted(words)
        if not {word, aliases.get(word, word)} & wanted.get(unquoted(name), frozenset())
    ]
    lost_all = {unquoted(name) for name, word in revoke if word in ("ALL", "ALL PRIVILEGES")}
    grant = [
        (name, word) for name, words in wanted.items() for word in sorted(words) if name in lost_all or word not in plain.get(name, set())
    ]
    return revoke, grant
