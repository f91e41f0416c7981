# SPDX-License-Identifier: GPL-3.0-or-later
"""Loaded tables take the places of the live ones, and back: RENAME TABLE moves them at once, whatever they hold. A kill between any two
lines leaves what `put_back` sees by where the tables are."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Iterator, List, Sequence, Set, Tuple

from ...dump.contents import quoted, shown
from ...host import durable
from ...host.errors import StillpointError
from ...host.reporter import Reporter
from ...mysql.acceptance import accept
from ...mysql.connection import ServerError, Session
from . import beside, saved
from .beside import LOADED, REMAKING, SWAPPING, ForeignKey, Load, Part
from .feed import Later
from .plan import LoadPlan

# Seconds that a statement waits for somebody's transaction: everybody else who wants the table queues behind it. What was loaded took long, so it
# is tried again for a while.
_LOCK_WAIT, _PAUSE, _TRIES = 10, 5.0, 20
ANSWER_TIMEOUT = 6 * 3600  # seconds; large tables are dropped at the pace of their file system
_LOCK_WAIT_TIMEOUT, _NOT_EMPTY = 1205, (1010, 3552)
# ER_CANT_CREATE_TABLE, ER_CANNOT_ADD_FOREIGN, ER_FK_NO_INDEX_PARENT and the like: the table that it refers to is another one now
_NO_KEY = (150, 1005, 1215, 1822, 1824, 1825, 3734, 3780, 6125)

_KEY = re.compile(r"\s+(CONSTRAINT (`(?:[^`]|``)+`) FOREIGN KEY \(.*?\) REFERENCES (?:(`(?:[^`]|``)+`)\.)?(`(?:[^`]|``)+`) .*?),?$")


def session_for(session: Session) -> None:
    """Prepare a session for what is done here."""
    accept(session)
    session.do("SET SESSION lock_wait_timeout = %d" % _LOCK_WAIT)


def swap(session: Session, load: Load, plan: LoadPlan, later: Later, reporter: Reporter) -> Load:
    """Let the loaded tables take their places, and make what depends on them.

    :raises StillpointError: it is for the caller to put back what was there
    """
    for database, name in load.sequences:
        session.do("DROP SEQUENCE IF EXISTS %s" % _sql(database, name))
    parts = tuple(_known(session, part) for part in load.parts)
    keys = (*_of_others(session, parts), *_of_loaded(session, parts))
    saved.save(session, plan.login, load.flavour, parts, beside.saved_directory(plan.state))
    load = load.at(SWAPPING, plan.state, parts=parts, keys=keys)
    broken = _move_aside(session, parts)
    for database, name in broken:
        reporter.warn("%s.%s can't be opened by the server, and is not kept" % (shown(database), shown(name)))
    load = load.at(REMAKING, plan.state)
    for part in parts:
        _remake(session, part, later, [name for database, name in broken if database == part.name])
    _rename(session, [(part.new, part.name, name) for part in parts for name in part.loaded])
    later.feed(plan)
    for key in keys:
        _renew(session, key, reporter)
    return load


def finish(session: Session, load: Load, state: str, live: str = "") -> None:
    """Drop what was replaced: the load has ended well, and is on the disk."""
    session.do("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS")
    if live:
        durable.sync_file_system(live)
    load.at(LOADED, state)
    for part in load.parts:
        session.do("DROP DATABASE IF EXISTS %s" % quoted(part.old), "DROP DATABASE IF EXISTS %s" % quoted(part.new))
    beside.forget(state)


def put_back(load: Load, state: str) -> List[str]:
    """Put back what was there before a load, and drop what was loaded. Return sentences about what could not be made again.

    :raises StillpointError: the server refuses, or does not answer; to be said again when it does
    """
    troubles: List[str] = []
    with Session(load.server(), read_timeout=ANSWER_TIMEOUT) as session:
        session_for(session)
        if load.phase == LOADED:
            finish(session, load, state)
            return []
        for number, part in enumerate(load.parts):
            if load.phase in (SWAPPING, REMAKING):
                troubles += _restore(session, load, part, number, state)
            elif not part.there:
                _drop_empty(session, part.name)
        for key in load.keys:
            if key.own and key.name not in [name for name, _clause in _foreign_keys(session, key.database, key.table)]:
                _patiently(session, "ALTER TABLE %s ADD %s" % (_sql(key.database, key.table), key.clause))
        for database, name in load.sequences:
            if load.phase not in (SWAPPING, REMAKING):
                session.do("DROP SEQUENCE IF EXISTS %s" % _sql(database, name))
        for part in load.parts:
            session.do("DROP DATABASE IF EXISTS %s" % quoted(part.new))
            if not part.there:
                _drop_empty(session, part.name)
    beside.forget(state)
    return troubles


# -- the live tables move aside


def _known(session: Session, part: Part) -> Part:
    """Return a part with the tables that there are now."""
    tables: Tuple[str, ...] = saved.tables(session, part.name) if part.there else ()
    if part.only:
        tables = tuple(name for name in tables if name == part.only)
    create = str(session.rows("SHOW CREATE DATABASE %s" % quoted(part.name))[0]["Create Database"]) if part.there else ""
    part = replace(part, tables=tables, loaded=saved.tables(session, part.new), create=create)
    return replace(part, triggers=tuple(saved.triggers(session, part)))


def _move_aside(session: Session, parts: Sequence[Part]) -> List[Tuple[str, str]]:
    """Move the live tables, and return those that the server can't open."""
    for part in parts:
        if part.tables:
            session.do("CREATE DATABASE IF NOT EXISTS %s" % quoted(part.old))
        for name, _table in saved.triggers(session, part):
            _patiently(session, "DROP TRIGGER IF EXISTS %s" % _sql(part.name, name))
    pairs = [(part.name, part.old, name) for part in parts for name in part.tables]
    try:
        _rename(session, pairs)
        return []
    except ServerError as error:
        if error.connection_lost:
            raise
    broken = []
    for pair in pairs:
        try:
            _rename(session, [pair])
        except ServerError as error:
            if error.connection_lost or _opens(session, pair[0], pair[2]):
                raise
            broken.append((pair[0], pair[2]))
    return broken


def _opens(session: Session, database: str, table: str) -> bool:
    try:
        session.rows("SELECT 1 FROM %s LIMIT 1" % _sql(database, table))
    except ServerError as error:
        if error.connection_lost:
            raise
        return False
    return True


def _remake(session: Session, part: Part, later: Later, broken: Sequence[str]) -> None:
    """Make the database as the dump has it; its tables are aside."""
    if not part.only and part.there:
        left = set(saved.tables(session, part.name)) - set(broken)
        if left:
            raise StillpointError("the table %s.%s was made while the dump was loaded" % (shown(part.name), shown(sorted(left)[0])))
        _drop_database(session, part.name)
    elif part.only in broken:
        session.do("DROP TABLE IF EXISTS %s" % _sql(part.name, part.only))
    if not part.only or not part.there:
        session.do(later.creates[part.name])


def _drop_database(session: Session, name: str) -> None:
    """Drop a database that holds no table any more. Privileges on its routines stay, as they would not if each were dropped."""
    try:
        session.do("DROP DATABASE IF EXISTS %s" % quoted(name))
    except ServerError as error:
        if error.number not in _NOT_EMPTY:
            raise
        # a directory with files that are not the server's: it stays, and is a database as before
        for kind, routine in ((row["k"], row["n"]) for row in _routines(session, name)):
            session.do("DROP %s IF EXISTS %s" % (kind, _sql(name, routine)))


def _routines(session: Session, name: str) -> List[dict]:  # type: ignore[type-arg]
    found = session.rows("SELECT ROUTINE_TYPE AS k, ROUTINE_NAME AS n FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = %s", (name,))
    return found + session.rows("SELECT 'EVENT' AS k, EVENT_NAME AS n FROM information_schema.EVENTS WHERE EVENT_SCHEMA = %s", (name,))


# -- and back


def _restore(session: Session, load: Load, part: Part, number: int, state: str) -> List[str]:
    aside = saved.tables(session, part.old)
    now = set(saved.tables(session, part.name))
    mine = set(aside) | (set(part.loaded) - set(part.tables) if load.phase == REMAKING else set())
    for name in sorted(mine & now):  # its own place is taken by the table that was loaded
        session.do("DROP TABLE %s" % _sql(part.name, name))
    if not part.there:
        return []
    if load.phase == REMAKING and not part.only and not saved.tables(session, part.name):
        _drop_database(session, part.name)
        session.do(re.sub(r"^CREATE DATABASE (?!.*IF NOT EXISTS)", "CREATE DATABASE IF NOT EXISTS ", part.create))
    _rename(session, [(part.old, part.name, name) for name in aside])
    troubles = saved.put_back(
        session, load.server(), load.flavour, part, number, beside.saved_directory(state), programs=load.phase == REMAKING
    )
    _drop_empty(session, part.old)
    return troubles


def _drop_empty(session: Session, name: str) -> None:
    """Drop a database that holds nothing."""
    rows = session.rows("SELECT 1 FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = %s", (name,))
    if rows and not session.rows("SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_TYPE <> 'VIEW' LIMIT 1", (name,)):
        session.do("DROP DATABASE %s" % quoted(name))


# -- foreign keys


def _foreign_keys(session: Session, database: str, table: str) -> Iterator[Tuple[str, "re.Match[str]"]]:
    """Give the foreign keys of a table: the name of each, and what it is."""
    made = session.rows("SHOW CREATE TABLE %s" % _sql(database, table))[0]
    for line in str(made.get("Create Table", "")).splitlines():
        match = _KEY.match(line)
        if match:
            yield _plain(match.group(2)), match


def _of_others(session: Session, parts: Sequence[Part]) -> List[ForeignKey]:
    """Return the foreign keys of tables that stay to tables that are moved: RENAME TABLE would have them follow."""
    moved: Set[Tuple[str, str]] = {(part.name, name) for part in parts for name in part.tables}
    rows = session.rows(
        "SELECT CONSTRAINT_SCHEMA AS d, TABLE_NAME AS t, CONSTRAINT_NAME AS n, UNIQUE_CONSTRAINT_SCHEMA AS rd, REFERENCED_TABLE_NAME AS rt"
        " FROM information_schema.REFERENTIAL_CONSTRAINTS"
    )
    found = []
    beside_them = {part.new for part in parts}
    for row in rows:
        if (row["rd"], row["rt"]) in moved and (row["d"], row["t"]) not in moved and row["d"] not in beside_them:
            clause = next(match.group(1) for name, match in _foreign_keys(session, row["d"], row["t"]) if name == row["n"])
            found.append(ForeignKey(str(row["d"]), str(row["t"]), str(row["n"]), clause, True))
    return found


def _of_loaded(session: Session, parts: Sequence[Part]) -> List[ForeignKey]:
    """Return the foreign keys of loaded tables to tables that are not beside them, without which they are left for now."""
    found = []
    for part in parts:
        rows = session.rows(
            "SELECT DISTINCT TABLE_NAME AS t FROM information_schema.TABLE_CONSTRAINTS WHERE TABLE_SCHEMA = %s AND CONSTRAINT_TYPE = 'FOREIGN KEY'", (part.new,)
        )
        for table in (str(row["t"]) for row in rows):
            for name, match in list(_foreign_keys(session, part.new, table)):
                if match.group(3) is not None or _plain(match.group(4)) not in part.loaded:
                    clause = match.group(1).replace("REFERENCES %s." % quoted(part.new), "REFERENCES ")
                    session.do("ALTER TABLE %s DROP FOREIGN KEY %s" % (_sql(part.new, table), quoted(name)))
                    found.append(ForeignKey(part.name, table, name, clause, False))
    return found


def _renew(session: Session, key: ForeignKey, reporter: Reporter) -> None:
    """Have a foreign key refer to the table that has the name now."""
    path = _sql(key.database, key.table)
    if key.own:
        _patiently(session, "ALTER TABLE %s DROP FOREIGN KEY %s" % (path, quoted(key.name)))
    try:
        _patiently(session, "ALTER TABLE %s ADD %s" % (path, key.clause))
    except ServerError as error:
        if error.number not in _NO_KEY:
            raise
        reporter.warn("%s.%s is without its foreign key %s: %s" % (shown(key.database), shown(key.table), shown(key.name), error.text))


# -- SQL


def _rename(session: Session, triples: Sequence[Tuple[str, str, str]]) -> None:
    """Move tables, as (from, to, name), in one statement."""
    if triples:
        _patiently(session, "RENAME TABLE " + ", ".join("%s TO %s" % (_sql(one, name), _sql(two, name)) for one, two, name in triples))


def _patiently(session: Session, statement: str) -> None:
    """Execute a statement that waits for somebody's transaction, time and again.

    :raises StillpointError: that did not end
    """
    for number in range(_TRIES):
        try:
            session.do(statement)
            return
        except ServerError as error:
            if error.number != _LOCK_WAIT_TIMEOUT:
                raise
        if number < _TRIES - 1:
            time.sleep(_PAUSE)
    raise StillpointError(
        "a table is in use by somebody's transaction or lock, which did not end within %d s: end that one (SHOW FULL PROCESSLIST) and restore again"
        % (_TRIES * (_LOCK_WAIT + _PAUSE))
    )


def _sql(database: str, name: str) -> str:
    return "%s.%s" % (quoted(database), quoted(name))


def _plain(name: str) -> str:
    return name[1:-1].replace("``", "`")
