# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server holds that a dump is made of: databases, tables, views, and what a load has to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Sequence, Set, Tuple

from ..host.errors import StillpointError, UsageError
from ..mysql.connection import ServerError, Session
from ..mysql.server import SYSTEM_SCHEMAS

# How a server shows a directory whose name is no database's: lost+found, shop.bak, .ssh.
DIRECTORY_NAME = "#mysql50#"

#: What the databases of a load that is not finished are called: never part of a dump.
NEW, OLD = "stillpoint_new_", "stillpoint_old_"

# Tables, columns or routines of a view are gone, or its definer may not read them. One whose definer is gone (1449) can be dumped.
_INVALID_VIEW = (1054, 1143, 1146, 1305, 1356, 4092)

Key = Tuple[str, str]


@dataclass(frozen=True)
class InvalidView:
    """A view that can't be read, and so is dumped as the text that makes it.

    :ivar why: in the server's words
    :ivar text: its CREATE VIEW; collation: that of the connection which it was made by
    """

    database: str
    name: str
    why: str
    text: str
    collation: str

    def __str__(self) -> str:
        return "%s.%s" % (shown(self.database), shown(self.name))


@dataclass(frozen=True)
class TableFacts:
    """What a load has to know of tables before it begins.

    :ivar engines: those of each database
    :ivar sizes: bytes of rows and indexes of each database
    :ivar undeclared: functions that are declared neither DETERMINISTIC nor NO SQL or READS SQL DATA, as (database, name)
    :ivar keyless: tables of InnoDB without a primary key, or a unique one of columns that are never NULL, as (database, name)
    """

    engines: Tuple[Tuple[str, Tuple[str, ...]], ...] = ()
    sizes: Tuple[Tuple[str, int], ...] = ()
    keyless: Tuple[Key, ...] = ()
    undeclared: Tuple[Key, ...] = ()

    def as_dict(self) -> Dict[str, Any]:
        return {
            "engines": {name: list(engines) for name, engines in self.engines},
            "sizes": dict(self.sizes),
            "keyless": [list(key) for key in self.keyless],
            "undeclared": [list(key) for key in self.undeclared],
        }


def shown(name: str) -> str:
    """Return a name on one line."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)


def quoted(name: str) -> str:
    """Return a name as SQL."""
    return "`%s`" % name.replace("`", "``")


def listed(session: Session) -> List[str]:
    """Return what the server lists as databases."""
    return [str(next(iter(row.values()))) for row in session.rows("SHOW DATABASES")]


def chosen(session: Session, asked: Sequence[str]) -> List[str]:
    """Return the databases to dump: those asked for, or all that are not the server's own.

    :raises UsageError: one does not exist, or is the server's own
    """
    there = listed(session)
    theirs = [name for name in there if name.lower() not in SYSTEM_SCHEMAS and not name.startswith((DIRECTORY_NAME, NEW, OLD))]
    for name in asked:
        if name not in theirs:
            raise UsageError(
                "mysql.databases has %s, which %s"
                % (
                    shown(name),
                    "is the server's own: its accounts are dumped with all databases, when mysql.databases is left out"
                    if name.lower() in SYSTEM_SCHEMAS
                    else "is no database, but a directory among the server's"
                    if name.startswith(DIRECTORY_NAME)
                    else "does not exist on the server; there are %s" % (", ".join(map(shown, theirs)) or "none"),
                )
            )
    if not theirs:
        raise StillpointError("the server has no databases but its own: there is nothing to dump")
    return list(asked) or theirs


def read_tables(session: Session, databases: Sequence[str]) -> List[Dict[str, Any]]:
    """Return ``{db, name, engine, transactional, kind, bytes, index_bytes}`` for each table; views are left out."""
    rows = session.rows(
        "SELECT t.TABLE_SCHEMA AS db, t.TABLE_NAME AS name, t.ENGINE AS engine, COALESCE(e.TRANSACTIONS, 'NO') = 'YES' AS transactional,"
        " t.TABLE_TYPE AS kind, t.DATA_LENGTH AS bytes, t.INDEX_LENGTH AS index_bytes"
        " FROM information_schema.TABLES t LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE"
        " WHERE t.TABLE_TYPE NOT IN ('VIEW', 'SYSTEM VIEW') AND t.TABLE_SCHEMA NOT IN ('mysql', 'sys', 'performance_schema', 'information_schema')"
    )
    wanted = set(databases)
    return sorted((row for row in rows if row["db"] in wanted), key=lambda row: (row["db"], row["name"]))


def invalid_views(session: Session, databases: Sequence[str]) -> List[InvalidView]:
    """Return the views whose tables or columns are gone: a program that dumps gives up at one, after hours perhaps."""
    rows = session.rows("SELECT TABLE_SCHEMA AS db, TABLE_NAME AS name FROM information_schema.TABLES WHERE TABLE_TYPE = 'VIEW'")
    found = []
    for database, name in [(str(row["db"]), str(row["name"])) for row in rows if row["db"] in databases]:
        path = "%s.%s" % (quoted(database), quoted(name))
        try:
            session.rows("SHOW FIELDS FROM %s" % path)
        except ServerError as error:
            if error.connection_lost:
                raise
            if error.number in _INVALID_VIEW:  # any other one is the program's to say
                made = session.rows("SHOW CREATE VIEW %s" % path)[0]
                found.append(InvalidView(database, name, error.text, str(made["Create View"]), str(made["collation_connection"])))
    return found


def by_transaction(session: Session) -> Set[Key]:
    """Return the tables of MariaDB whose rows say by which transaction they were made and replaced; mariadb-dump has no way to keep that."""
    rows = session.rows(
        "SELECT TABLE_SCHEMA AS db, TABLE_NAME AS name FROM information_schema.COLUMNS WHERE GENERATION_EXPRESSION = 'ROW START' AND DATA_TYPE = 'bigint'"
    )
    return {(str(row["db"]), str(row["name"])) for row in rows}


def facts(session: Session, tables: Sequence[Dict[str, Any]]) -> TableFacts:
    having = {
        (str(row["db"]), str(row["name"]))
        for row in session.rows(
            "SELECT TABLE_SCHEMA AS db, TABLE_NAME AS name FROM information_schema.STATISTICS WHERE NON_UNIQUE = 0"
            " GROUP BY TABLE_SCHEMA, TABLE_NAME, INDEX_NAME HAVING SUM(NULLABLE = 'YES' OR SUB_PART IS NOT NULL) = 0"
        )
    }
    engines: Dict[str, Set[str]] = {}
    sizes: Dict[str, int] = {}
    for row in tables:
        engines.setdefault(row["db"], set()).update([str(row["engine"])] if row["engine"] else [])
        sizes[row["db"]] = sizes.get(row["db"], 0) + int(row["bytes"] or 0) + int(row["index_bytes"] or 0)
    return TableFacts(
        tuple((name, tuple(sorted(found))) for name, found in engines.items()),
        tuple(sizes.items()),
        tuple((row["db"], row["name"]) for row in tables if row["engine"] == "InnoDB" and row["kind"] != "SEQUENCE" and (row["db"], row["name"]) not in having),
        tuple(key for key in _undeclared(session) if key[0] not in SYSTEM_SCHEMAS),
    )


def _undeclared(session: Session) -> List[Key]:
    rows = session.rows(
        "SELECT ROUTINE_SCHEMA AS db, ROUTINE_NAME AS name FROM information_schema.ROUTINES WHERE ROUTINE_TYPE = 'FUNCTION' AND IS_DETERMINISTIC = 'NO'"
        " AND SQL_DATA_ACCESS NOT IN ('NO SQL', 'READS SQL DATA')"
    )
    return [(str(row["db"]), str(row["name"])) for row in rows]
