# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dump will do, found out before anything is started: which databases, which lock, what is missing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Sequence, Set, Tuple

from ..host.errors import StillpointError, UsageError
from ..host.process import require
from ..host.text import count, size
from ..job.options import MysqlOptions
from ..mysql import locks, privileges, topology
from ..mysql import server as servers
from ..mysql.connection import Login, ServerError, Session
from ..mysql.locks import Choice, LockOptions
from ..mysql.server import SYSTEM_SCHEMAS, Server, Table
from ..repository.generation import BAD
from ..repository.job_directory import JobDirectory
from . import client
from .client import Program

#: Where a dump lies in a generation.
FILE, DIRECTORY, SUFFIX = "dump.sql.zst", "dump", ".sql.zst"
VIEWS = "invalid-views.sql.zst"

_MOST_NAMED = 5

# How a server shows a directory whose name is no database's: lost+found, shop.bak, .ssh.
_DIRECTORY = "#mysql50#"

#: What the databases of a load that is not finished are called: never part of a dump.
NEW, OLD = "stillpoint_new_", "stillpoint_old_"

# Tables, columns or routines of a view are gone, or its definer may not read them. One whose definer is gone (1449) can be dumped.
_INVALID_VIEW = (1054, 1143, 1146, 1305, 1356, 4092)

# Engines whose rows mysqldump and mariadb-dump leave out unless told otherwise (--no-data-med), as they lie elsewhere or are made of other tables'.
_DEFINED_ONLY = ("CONNECT", "FEDERATED", "OQGRAPH", "SPIDER", "VP")

_PATIENT = 30  # seconds; a disk may stall as long
_NO_LIMIT = 18446744073709551615

_GROWTH = 1.1  # from one dump to the next
_COMPRESSION = 5  # of rows as SQL; a guess, for the first dump alone

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


@dataclass(frozen=True)
class DumpPlan:
    """What will be dumped, and how.

    :ivar options: the job's, with the names of the databases as they are asked for
    :ivar databases: all that will be dumped
    :ivar tables: every table of theirs, as (database, name)
    :ivar locked: those that are not transactional, and stay locked for writers until they are dumped
    :ivar versioned: those that keep their old rows
    :ivar by_transaction: of these, those that keep with them which transaction made them, and not when
    :ivar without_rows: those of which the program dumps the definition alone
    :ivar wait_timeout: seconds that the server lets the session of the program that dumps say nothing
    :ivar invalid: views that no program can dump
    :ivar facts: what a load has to know of them
    :ivar directories: what the server lists as databases, and are none
    :ivar bytes_tables: what the tables take in the server; bytes_sql: what the dump will come to; bytes_expected: and compressed
    """

    options: MysqlOptions
    login: Login
    server: Server
    choice: Choice
    program: Program
    databases: Tuple[str, ...] = ()
    tables: Tuple[Key, ...] = ()
    locked: Tuple[Table, ...] = ()
    versioned: Tuple[Key, ...] = ()
    by_transaction: Tuple[Key, ...] = ()
    invalid: Tuple[InvalidView, ...] = ()
    directories: Tuple[str, ...] = ()
    facts: TableFacts = TableFacts()
    bytes_tables: int = 0
    bytes_sql: int = 0
    bytes_expected: int = 0
    wait_timeout: int = _PATIENT
    without_rows: Tuple[Table, ...] = ()

    @property
    def live(self) -> bool:
        """Whether the running server itself is read."""
        return self.options.source == "server"

    @property
    def with_history(self) -> bool:
        """Whether the old rows of tables that keep them are dumped too. The program does so for all tables or for none, and ends where it can't for one."""
        return bool(self.versioned) and self.program.has_history and not self.by_transaction

    def warnings(self, *, files: bool) -> List[str]:
        """Return what somebody should know before it runs.

        :param files: the job has files beside the dump
        """
        found = []
        if files and self.live:
            found.append("dump and files will not be of one point in time: mysql.source: snapshot takes both from one")
        if self.live and self.server.log_bin and self.server.flavour != "mariadb" and not self.choice.stops_commits:
            found.append("the lock %s does not stop commits: the dump will have no coordinates" % self.choice.name)
        if self.without_rows:
            names = ["%s.%s (%s)" % (shown(table.schema), shown(table.name), table.engine) for table in self.without_rows]
            more = " and %s more" % count(len(names) - 1) if len(names) > 1 else ""
            found.append(
                "the dump has the definition of %s%s and no rows: %s leaves them out, as they may lie elsewhere; method: snapshot copies files of this host"
                % (names[0], more, self.program.name)
            )
        if self.live and self.wait_timeout < _PATIENT:
            found.append(
                "the server ends a session that says nothing for wait_timeout = %d s, and %s can't ask for more: where the repository stalls as "
                "long, the dump fails; mysql.source: snapshot avoids that" % (self.wait_timeout, self.program.name)
            )
        if self.versioned and not self.program.has_history:
            found.append(
                "%s.%s keeps its old rows (system versioning), and %s %s does not dump them"
                % (*map(shown, self.versioned[0]), self.program.name, self.program.version)
            )
        elif self.by_transaction:
            found.append(
                "%s.%s keeps its old rows by transaction, which %s can't dump: no old rows of any table are dumped (%s); method: snapshot copies them"
                % (*map(shown, self.by_transaction[0]), self.program.name, "%s system-versioned" % count(len(self.versioned)))
            )
        found += [
            "the view %s is invalid (%s): its CREATE VIEW is in %s, and a load makes it only where that is accepted" % (view, view.why, VIEWS)
            for view in self.invalid
        ]
        if self.directories:
            found.append(
                "left out what is no database, but a directory among the server's: %s; ignore_db_dirs in its configuration hides such a one"
                % ", ".join(shown(name[len(_DIRECTORY) :]) for name in self.directories)
            )
        return found

    def as_dict(self) -> Dict[str, Any]:
        return {
            "program": "%s %s" % (self.program.name, self.program.version),
            "source": self.options.source,
            "databases": list(self.databases),
            "split": self.options.split,
            "accounts": not self.options.databases,
            "invalid_views": [str(view) for view in self.invalid],
            "bytes_tables": self.bytes_tables,
            "locked_tables": ["%s.%s" % (table.schema, table.name) for table in self.locked],
        }

    def lines(self) -> List[str]:
        """Return it as lines for people."""
        lines = [
            "dump        %s (%s), %s of tables, with %s %s, %s"
            % (
                "%s databases" % count(len(self.databases)) if len(self.databases) != 1 else "the database %s" % shown(self.databases[0]),
                "chosen, without the accounts" if self.options.databases else "all, with the accounts",
                size(self.bytes_tables),
                self.program.name,
                self.program.version,
                "one file for each" if self.options.split else "in one file",
            )
        ]
        if not self.live:
            lines.append("from        a scratch server on a snapshot: the server itself carries no long transaction")
        elif self.locked:
            names = ["%s.%s (%s)" % (shown(table.schema), shown(table.name), table.engine) for table in self.locked]
            more = " and %s more" % count(len(names) - _MOST_NAMED) if len(names) > _MOST_NAMED else ""
            lines.append(
                "tables      %s that %s not transactional: locked for writers until dumped: %s%s"
                % (count(len(names)), "is" if len(names) == 1 else "are", ", ".join(names[:_MOST_NAMED]), more)
            )
        else:
            lines.append("tables      all transactional: none is locked while it is dumped")
        return lines


def shown(name: str) -> str:
    """Return a name on one line."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)


def make(options: MysqlOptions, directory: JobDirectory) -> DumpPlan:
    """Return the plan for a dump. Nothing is changed.

    :param directory: the job's generations, whose last dump says how large the next will be
    :raises UsageError: a database that was asked for does not exist, or is the server's own
    :raises StillpointError: something that is needed is missing: a program, a privilege
    """
    require("zstd")
    login = Login.of(options)
    with Session(login) as session:
        server = servers.read(session)
        program = client.dumper(server.flavour)
        topology.check_node(server)
        choice = choose(options.lock, server)
        check_privileges(session, server, choice, options)
        check_events(session, options.source, server)
        check_limit(session, options.source)
        made = look(session, DumpPlan(options, login, server, choice, program))
    bytes_sql, bytes_expected = _sizes(directory, made.bytes_tables)
    return replace(made, bytes_sql=bytes_sql, bytes_expected=bytes_expected)


def look(session: Session, plan: DumpPlan) -> DumpPlan:
    """Return a plan with the databases and tables that the server has now.

    :raises UsageError: a database that was asked for does not exist, or is the server's own
    """
    databases = chosen(session, plan.options.databases or ())
    tables = read_tables(session, databases)
    versioned = tuple((row["db"], row["name"]) for row in tables if row["kind"] == "SYSTEM VERSIONED")
    return replace(
        plan,
        invalid=tuple(invalid_views(session, databases)),
        directories=tuple(name for name in listed(session) if name.startswith(_DIRECTORY)),
        databases=tuple(databases),
        tables=tuple((row["db"], row["name"]) for row in tables),
        locked=tuple(Table(row["db"], row["name"], str(row["engine"])) for row in tables if not row["transactional"]) if plan.live else (),
        facts=_facts(session, tables),
        versioned=versioned,
        by_transaction=tuple(key for key in by_transaction(session) if key in versioned) if versioned else (),
        bytes_tables=sum(int(row["bytes"] or 0) for row in tables),
        without_rows=tuple(Table(row["db"], row["name"], str(row["engine"])) for row in tables if str(row["engine"]).upper() in _DEFINED_ONLY),
        wait_timeout=int(session.value("SELECT @@GLOBAL.wait_timeout")),
    )


def _facts(session: Session, tables: Sequence[Dict[str, Any]]) -> TableFacts:
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


def _sizes(directory: JobDirectory, bytes_tables: int) -> Tuple[int, int]:
    """Return the bytes of SQL, and of the compressed file, to expect: what the last dump came to, or a guess from the tables."""
    for generation in directory.generations():
        facts = generation.summary.get("dump")
        if generation.state != BAD and isinstance(facts, dict):
            return int(facts["sql_bytes"]), int(sum(tree.bytes for tree in generation.trees if tree.is_dump) * _GROWTH)
    return bytes_tables, int(bytes_tables / _COMPRESSION)


def choose(asked: str, server: Server) -> Choice:
    """Return the lock under which a dump begins, for as long as that takes.

    MariaDB's own consistent snapshot comes with its place in the binary log (the status variables ``binlog_snapshot_*``), and
    needs none; neither does a server without a binary log. MySQL's has none, and a replica's place in its source's log is
    known under a lock alone.
    """
    if asked != locks.AUTO:
        return locks.choose(asked, server)
    if server.is_replica:
        return _stopping_commits(server, "a replica's place in its source's log is exact only while nothing commits")
    if server.flavour == "mariadb":
        return Choice(None, "none", "a consistent snapshot of MariaDB comes with its coordinates")
    if not server.log_bin:
        return Choice(None, "none", "the server writes no binary log, so there are no coordinates to be exact about")
    return _stopping_commits(server, "for the moment in which the dump begins: the coordinates are exact only while nothing commits")


def _stopping_commits(server: Server, reason: str) -> Choice:
    return replace(locks.choose(locks.AUTO, server, reason), reason=reason)


def check_privileges(session: Session, server: Server, choice: Choice, options: MysqlOptions) -> None:
    """Raise StillpointError with the GRANT that is needed where the account lacks a privilege."""
    wanted = privileges.Extras.of(LockOptions.from_options(options), server, dump=True)
    missing = privileges.missing_privileges(session, server.flavour, server.version, choice.name, wanted)
    if missing:
        user, host = privileges.whoami(session)
        raise StillpointError(
            "the account %s@%s lacks privileges for a dump; run as an administrator: %s" % (user, host, privileges.grant_sql(user, host, missing))
        )


def check_events(session: Session, source: str, server: Server) -> None:
    """Raise StillpointError where events can't be seen: with event_scheduler = DISABLED, MariaDB shows none, or an error.

    A scratch server on a snapshot is started with another value.
    """
    if source == "server" and server.flavour == "mariadb" and str(session.value("SELECT @@GLOBAL.event_scheduler")) == "DISABLED":
        raise StillpointError(
            "the server runs with event_scheduler = DISABLED and does not show its events, which the dump would lack: start it with OFF instead, or "
            "dump from a snapshot (mysql.source: snapshot)"
        )


def check_limit(session: Session, source: str) -> None:
    """Raise StillpointError where every session is limited to so many rows: the program that dumps would write no more of a table."""
    limit = int(session.value("SELECT @@GLOBAL.sql_select_limit"))
    if source == "server" and limit < _NO_LIMIT:
        raise StillpointError(
            "the server has sql_select_limit = %d for every session, and a dump would have no more rows of a table: SET GLOBAL sql_select_limit = %d, "
            "or dump from a snapshot (mysql.source: snapshot)" % (limit, _NO_LIMIT)
        )


def by_transaction(session: Session) -> Set[Key]:
    """Return the tables of MariaDB whose rows say by which transaction they were made and replaced; mariadb-dump has no way to keep that."""
    rows = session.rows(
        "SELECT TABLE_SCHEMA AS db, TABLE_NAME AS name FROM information_schema.COLUMNS WHERE GENERATION_EXPRESSION = 'ROW START' AND DATA_TYPE = 'bigint'"
    )
    return {(str(row["db"]), str(row["name"])) for row in rows}


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
    theirs = [name for name in there if name.lower() not in SYSTEM_SCHEMAS and not name.startswith((_DIRECTORY, NEW, OLD))]
    for name in asked:
        if name not in theirs:
            raise UsageError(
                "mysql.databases has %s, which %s"
                % (
                    shown(name),
                    "is the server's own: its accounts are dumped with all databases, when mysql.databases is left out"
                    if name.lower() in SYSTEM_SCHEMAS
                    else "is no database, but a directory among the server's"
                    if name.startswith(_DIRECTORY)
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
