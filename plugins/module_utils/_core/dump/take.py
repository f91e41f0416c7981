# SPDX-License-Identifier: GPL-3.0-or-later
"""A dump is taken: the server's snapshot, its coordinates, and the stream into a generation that is being made."""

from __future__ import annotations

import hashlib
import os
import re
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from ..host.errors import NotNowError, StillpointError
from ..host.pace import rate
from ..host.process import urgent
from ..host.reporter import Reporter
from ..host.text import size
from ..mysql import coordinates as coords
from ..mysql.absent import nothing_begun
from ..mysql.connection import Login, ServerError, Session
from ..mysql.coordinates import Coordinates
from ..mysql.locks import Lock, LockFacts, LockOptions
from ..mysql.way_clear import way_cleared
from ..repository.partial import Partial
from . import accounts, client, sections, views
from . import plan as planning
from .client import LARGEST_PACKET
from .contents import Key, chosen, quoted, shown
from .plan import DIRECTORY, FILE, SUFFIX, VIEWS, DumpPlan
from .sections import Scanner, Section
from .stream import Compressed, Files, Source

# A snapshot is taken within milliseconds of the program's start; a server that is out of connections or memory takes longer.
_BEGIN_TIMEOUT = 60.0
_BEGIN_UNDER_LOCK = 15.0  # users wait

_LOCK_WAIT_TIMEOUT = 1205
_LONGEST_NAME = 240  # bytes: a file name has at most 255
_BEGUN = re.compile(rb"-- (?:Setting savepoint|Retrieving table structure|Dumping|Disconnecting)")


@dataclass
class Begun:
    """A dump whose snapshot is taken, and that has not been read yet.

    :ivar time: of the snapshot, UTC
    :ivar lock: as a point in time has it
    :ivar coordinates: those read under a lock; None where the dump itself will state them, or there are none
    """

    plan: DumpPlan
    source: Source
    time: datetime
    lock: LockFacts
    coordinates: Optional[Coordinates]
    tables: "TableLocks"
    accounts: str


class TableLocks:
    """Keeps writers off the tables that no snapshot holds still, until each of them has gone by."""

    def __init__(self, session: Optional[Session], tables: Iterable[Key]) -> None:
        self._session = session
        self._waiting: Set[Key] = set(tables)
        self._since = time.monotonic()
        self.held_s: Optional[float] = None

    def dumped(self, key: Key) -> None:
        """A table has gone by: when it was the last of them, writers may go on.

        :raises StillpointError: they could do so before
        """
        self._waiting.discard(key)
        if not self._waiting:
            self.finish()

    def finish(self) -> None:
        """Let writers go on; errors as in `dumped`."""
        if self._session is not None:
            try:
                self._session.do("UNLOCK TABLES")
            except ServerError as error:
                raise StillpointError(
                    "the session that kept writers off the tables that are not transactional was ended while they were dumped (%s): they may be of "
                    "different moments, and nothing was published" % error.text
                ) from None
            self._session.close()
            self._session = None
            self.held_s = round(time.monotonic() - self._since, 3)


@contextmanager
def begun(plan: DumpPlan, login: Login, note: Callable[[str], None]) -> Iterator[Begun]:
    """Take the server's snapshot and give the dump that reads it.

    :param login: of the server, or of a scratch server on a snapshot of it, where nothing has to be locked
    :raises NotNowError: a lock was not to be had; nothing happened
    """
    live = plan.live
    with ExitStack() as stack:
        options = stack.enter_context(client.option_file(login))
        with nothing_begun() if live else nullcontext():
            session = stack.enter_context(Session(login))
            plan = planning.look(session, plan)
            keeper = stack.enter_context(Session(login)) if plan.locked else None
        sql = accounts.text(accounts.read(session, plan.server)) if not plan.options.databases else ""
        states = live and plan.choice.method is None and plan.server.flavour == "mariadb" and plan.server.log_bin
        without = ["%s.%s" % (view.database, view.name) for view in plan.invalid]
        argv = client.dump_command(plan.program, plan.server.flavour, options, plan.databases, coordinates=states, history=plan.with_history, without=without)
        source = Source(argv, _BEGUN)
        lock, position = _start(stack, source, plan, keeper, note) if live else _start_alone(stack, source, plan)
        source.give_way()
        moment = datetime.now(timezone.utc)
        if tuple(chosen(session, plan.options.databases or ())) != plan.databases:
            raise NotNowError("a database was created or dropped at the moment in which the dump began: nothing was backed up; try again")
        tables = TableLocks(keeper, [(table.schema, table.name) for table in plan.locked])
        yield Begun(plan, source, moment, lock, position, tables, sql)


def _keep_writers_off(session: Session, plan: DumpPlan) -> None:
    names = ", ".join("%s.%s READ" % (quoted(table.schema), quoted(table.name)) for table in plan.locked)
    session.do("SET SESSION lock_wait_timeout = %d" % plan.options.lock_wait_timeout)
    try:
        session.do("LOCK TABLES " + names)
    except ServerError as error:
        if error.number == _LOCK_WAIT_TIMEOUT:
            raise NotNowError(
                "the tables that are not transactional could not be locked within lock_wait_timeout = %d s: a statement is writing to one of them; "
                "nothing was backed up" % plan.options.lock_wait_timeout
            ) from None
        raise


def _start_alone(stack: ExitStack, source: Source, plan: DumpPlan) -> Tuple[LockFacts, None]:
    """Start the dump of a scratch server and wait for its snapshot."""
    stack.enter_context(source)
    source.wait_begun(_BEGIN_TIMEOUT)
    return LockFacts(plan.choice.name, plan.choice.reason), None


def _start(
    stack: ExitStack, source: Source, plan: DumpPlan, keeper: Optional[Session], note: Callable[[str], None]
) -> Tuple[LockFacts, Optional[Coordinates]]:
    """Start the dump and wait for its snapshot, under the lock that the plan has; return what there is to say of the lock, and coordinates.

    Statements that change tables' definitions are waited for under any lock: one that ends while the dump goes on would spoil it.

    :param keeper: locks the tables that are not transactional, after the plan's lock: MySQL's FTWRL would wait for it
    """
    how = LockOptions.from_options(plan.options)
    in_the_way_of = plan.choice.name if plan.choice.method else "backup_stage"
    with way_cleared(plan.login, plan.server, in_the_way_of, how, note) as (session, cleared):
        facts = LockFacts(plan.choice.name, plan.choice.reason, guard_waited_ms=cleared.waited_ms, killed=cleared.killed)
        if plan.choice.method is None:
            if keeper:
                _keep_writers_off(keeper, plan)
            stack.enter_context(source)
            source.wait_begun(_BEGIN_TIMEOUT)
            return facts, None
        with Lock(session, plan.choice.method, how.lock_wait_timeout) as lock:
            lock.prepare()
            with urgent(), lock:
                lock.take()
                with lock.held_or_lost():
                    position = coords.read(session, plan.server) if plan.choice.stops_commits else None
                    if keeper:
                        _keep_writers_off(keeper, plan)
                    stack.enter_context(source)
                    source.wait_begun(_BEGIN_UNDER_LOCK)
                lock.release()
        return replace(facts, waited_ms=round(lock.waited * 1000, 1), held_ms=round(lock.held * 1000, 1)), position


@dataclass(frozen=True)
class Dumped:
    """What is known of a dump when all of it has been read.

    :ivar databases: the tables and views of each
    :ivar files: of a dump that is split, the database of each file
    :ivar longest: bytes of the longest statement
    :ivar locked_s: for how long tables were locked; None where none were
    """

    plan: DumpPlan
    coordinates: Optional[Coordinates]
    databases: Dict[str, List[str]]
    files: Dict[str, str]
    accounts: bool
    sql_bytes: int
    longest: int
    locked_s: Optional[float]
    duration_s: float

    def as_dict(self) -> Dict[str, Any]:
        """Return it as the manifest has it."""
        plan = self.plan
        return {
            "program": "%s %s" % (plan.program.name, plan.program.version),
            "source": plan.options.source,
            "databases": self.databases,
            "files": self.files,
            "accounts": self.accounts,
            "invalid_views": [[view.database, view.name] for view in plan.invalid],
            **plan.facts.as_dict(),
            "sql_bytes": self.sql_bytes,
            "longest_statement": self.longest,
            "locked_tables": len(plan.locked),
            "locked_s": self.locked_s,
            "duration_s": self.duration_s,
        }


def read(begun_dump: Begun, partial: Partial, reporter: Reporter, bwlimit: Optional[str], watch: Callable[[], None]) -> Dumped:
    """Read a dump into a generation that is being made, and return what is known of it then.

    :raises StillpointError: it is not complete
    """
    plan = begun_dump.plan
    scanner = Scanner()
    seen: Dict[str, List[str]] = {}
    done = 0
    began = time.monotonic()
    with Files(partial.path) as files, partial.written():
        split = Splitter(files) if plan.options.split else None
        before = scanner.section
        for chunk in begun_dump.source.chunks(rate(bwlimit), watch):
            for section, piece in scanner.feed(chunk):
                if section != before:
                    _left(before, seen, begun_dump.tables)
                    if section.kind == sections.DATABASE:
                        seen.setdefault(section.database, [])
                    before = section
                if split:
                    split.write(section, piece)
            if not split:
                files.write(FILE, chunk)
            done += len(chunk)
            reporter.progress(done, max(plan.bytes_sql, done))
        begun_dump.tables.finish()  # a table without rows of its own, as one of MERGE, has not gone by
        _check(plan, scanner, seen, done)
        if split:
            split.end()
        if begun_dump.accounts:
            files.write(accounts.FILE, begun_dump.accounts.encode("utf-8", "surrogateescape"))
        if plan.invalid:
            files.write(VIEWS, views.text(plan.invalid).encode("utf-8", "surrogateescape"))
        files.finish()
        _add(files, partial, seen)
    return Dumped(
        plan=plan,
        coordinates=begun_dump.coordinates or _stated(scanner),
        databases=seen,
        files=dict(split.names) if split else {},
        accounts=bool(begun_dump.accounts),
        sql_bytes=done,
        longest=scanner.longest,
        locked_s=begun_dump.tables.held_s,
        duration_s=round(time.monotonic() - began, 1),
    )


def _left(section: Section, seen: Dict[str, List[str]], locks: TableLocks) -> None:
    if section.kind in (sections.TABLE, sections.STAND_IN):
        seen.setdefault(section.database, []).append(section.name)
    elif section.kind == sections.DATA:
        locks.dumped((section.database, section.name))


def _check(plan: DumpPlan, scanner: Scanner, seen: Dict[str, List[str]], done: int) -> None:
    """Raise StillpointError where the dump is not all that it should be."""
    if not scanner.complete:
        raise StillpointError("the dump ended after %s without its closing line: nothing was published" % size(done))
    missing = [key for key in plan.tables if key[1] not in seen.get(key[0], ())] + [(name, "") for name in plan.databases if name not in seen]
    if missing:
        raise StillpointError(
            "%s %s was dropped or renamed while the dump went on, and is not in it: nothing was published; run it again when no table is "
            "being changed, or dump from a snapshot (mysql.source: snapshot)"
            % ("the table" if missing[0][1] else "the database", ".".join(map(shown, filter(None, missing[0]))))
        )
    if scanner.longest > LARGEST_PACKET:
        raise StillpointError(
            "a row makes a statement of %s, and no server accepts more than %s (max_allowed_packet): a dump with it can't be loaded; use method: "
            "snapshot" % (size(scanner.longest), size(LARGEST_PACKET))
        )


def _stated(scanner: Scanner) -> Optional[Coordinates]:
    """Return the coordinates that a dump states of itself."""
    if scanner.position is None:
        return None
    return Coordinates(scanner.position[0], scanner.position[1], scanner.gtid or None)


def _add(files: Files, partial: Partial, seen: Dict[str, List[str]]) -> None:
    """Take what was written into the generation."""
    trees: Dict[str, Dict[str, Compressed]] = {}
    for name, file in files.written().items():
        trees.setdefault(DIRECTORY if name.startswith(DIRECTORY + "/") else name, {})[name] = file
    for tree, parts in trees.items():
        what = {accounts.FILE: "the accounts", VIEWS: "the invalid views"}.get(tree, "%d databases" % len(seen))
        partial.add_written(tree, what, {name: file.checksum for name, file in parts.items()}, sum(file.bytes for file in parts.values()))


class Splitter:
    """Writes each database into a file of its own, each with the dump's beginning and end.

    :ivar names: file -> database
    """

    def __init__(self, files: Files) -> None:
        self._files = files
        self._ends: Dict[str, List[bytes]] = {sections.HEAD: [], sections.FOOT: []}
        self._by_database: Dict[str, str] = {}
        self.names: Dict[str, str] = {}

    def write(self, section: Section, piece: bytes) -> None:
        if section.kind in self._ends:
            self._ends[section.kind].append(piece)
            return
        name = self._by_database.get(section.database)
        if name is None:
            name = self._by_database[section.database] = os.path.join(DIRECTORY, file_name(section.database))
            self.names[name] = section.database
            for each in self._ends[sections.HEAD]:
                self._files.write(name, each)
        self._files.write(name, piece)

    def end(self) -> None:
        """Give every file the dump's end."""
        for name in self.names:
            for each in self._ends[sections.FOOT]:
                self._files.write(name, each)


def file_name(database: str) -> str:
    """Return the name of a database's file: what a file name may not hold, or would not show, is written as %XX."""
    name = "".join(each if each.isprintable() and each not in "%/" else _escaped(each) for each in database)
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = hashlib.sha256(os.fsencode(database)).hexdigest()
    return ("%2E" + name[1:] if name.startswith(".") else name) + SUFFIX


def _escaped(letter: str) -> str:
    return "".join("%%%02X" % byte for byte in letter.encode("utf-8", "surrogateescape"))
