# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dump will do, found out before anything is started: which databases, which lock, what is missing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Dict, List, Tuple

from ..host.errors import StillpointError
from ..host.process import require
from ..host.text import count, size
from ..job.options import MysqlOptions
from ..mysql import lock_choice, privileges, topology
from ..mysql import server as servers
from ..mysql.connection import Login, Session
from ..mysql.lock_choice import Choice
from ..mysql.locks import LockOptions
from ..mysql.server import Server, Table
from ..repository.generation import BAD
from ..repository.job_directory import JobDirectory
from . import client
from .client import Program
from .contents import (
    DIRECTORY_NAME,
    InvalidView,
    Key,
    TableFacts,
    by_transaction,
    chosen,
    facts,
    invalid_views,
    listed,
    read_tables,
    shown,
)

#: Where a dump lies in a generation.
FILE, DIRECTORY, SUFFIX = "dump.sql.zst", "dump", ".sql.zst"
VIEWS = "invalid-views.sql.zst"

_MOST_NAMED = 5

# Engines whose rows mysqldump and mariadb-dump leave out unless told otherwise (--no-data-med), as they lie elsewhere or are made of other tables'.
_DEFINED_ONLY = ("CONNECT", "FEDERATED", "OQGRAPH", "SPIDER", "VP")

_PATIENT = 30  # seconds; a disk may stall as long
_NO_LIMIT = 18446744073709551615

_GROWTH = 1.1  # from one dump to the next
_COMPRESSION = 5  # of rows as SQL; a guess, for the first dump alone


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
                % ", ".join(shown(name[len(DIRECTORY_NAME) :]) for name in self.directories)
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
        directories=tuple(name for name in listed(session) if name.startswith(DIRECTORY_NAME)),
        databases=tuple(databases),
        tables=tuple((row["db"], row["name"]) for row in tables),
        locked=tuple(Table(row["db"], row["name"], str(row["engine"])) for row in tables if not row["transactional"]) if plan.live else (),
        facts=facts(session, tables),
        versioned=versioned,
        by_transaction=tuple(key for key in by_transaction(session) if key in versioned) if versioned else (),
        bytes_tables=sum(int(row["bytes"] or 0) for row in tables),
        without_rows=tuple(Table(row["db"], row["name"], str(row["engine"])) for row in tables if str(row["engine"]).upper() in _DEFINED_ONLY),
        wait_timeout=int(session.value("SELECT @@GLOBAL.wait_timeout")),
    )


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
    if asked != lock_choice.AUTO:
        return lock_choice.choose(asked, server)
    if server.is_replica:
        return _stopping_commits(server, "a replica's place in its source's log is exact only while nothing commits")
    if server.flavour == "mariadb":
        return Choice(None, "none", "a consistent snapshot of MariaDB comes with its coordinates")
    if not server.log_bin:
        return Choice(None, "none", "the server writes no binary log, so there are no coordinates to be exact about")
    return _stopping_commits(server, "for the moment in which the dump begins: the coordinates are exact only while nothing commits")


def _stopping_commits(server: Server, reason: str) -> Choice:
    return replace(lock_choice.choose(lock_choice.AUTO, server, reason), reason=reason)


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
