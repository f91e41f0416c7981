# SPDX-License-Identifier: GPL-3.0-or-later
"""One table of a physical backup, put back into a running server.

A scratch server opens the generation through a layer that takes its writes, and dumps the table from there. The live server gets it
under a name of its own first. Only when all rows are there does it take its place, so nothing that goes wrong on the way costs a row.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

from ...dump.contents import quoted, shown
from ...host.errors import StillpointError, UsageError
from ...host.mounts import is_below
from ...host.process import undisturbed
from ...host.reporter import Reporter
from ...mysql.acceptance import accept
from ...mysql.connection import ServerError, Session
from ...mysql.scratch import Scratch, scratch_server
from ...mysql.settings import Settings
from ...proof import checksums
from ...repository import rsync
from ...repository.compare import Fault
from .. import journal as journals
from ..replay.execute import Floor
from ..result import RestoreResult
from . import clients, overlay
from .clients import HELD, LOCK_WAIT_TIMEOUT, Clients
from .plan import LAYER, Key, TablePlan, named, own_files

_MOST_NAMED = 5
_COUNT_TIMEOUT = 6 * 3600


@dataclass(frozen=True)
class _Found:
    """The table in the scratch server.

    :ivar view: it is a view
    :ivar foreign_keys: its clauses ``CONSTRAINT … FOREIGN KEY …``
    :ivar triggers: SQL that makes its triggers, for the server's client
    """

    view: bool
    foreign_keys: Tuple[str, ...]
    triggers: bytes
    database: str
    rows: int


def execute(plan: TablePlan, reporter: Reporter) -> RestoreResult:
    """Put the table back.

    :raises StillpointError: it says what became of the live table
    """
    started = time.monotonic()
    with journals.alone(plan.state), plan.generation.hold(), ExitStack() as stack:
        files, size = _verify(plan, reporter)
        reporter.stage("open")
        trees = [tree for tree in plan.generation.trees if not tree.is_files]
        where = stack.enter_context(overlay.writable(plan.generation, trees, os.path.join(plan.state, LAYER)))
        room = os.path.join(where[plan.settings.datadir], ".stillpoint-new.tmp")
        os.mkdir(room, 0o700)
        status = os.stat(where[plan.settings.datadir])
        os.chown(room, status.st_uid, status.st_gid)
        floors = [Floor(path, "the restore", path) for path in (plan.state, plan.live) if path]

        def tick() -> None:
            for floor in floors:
                floor.check()

        scratch = stack.enter_context(
            scratch_server(plan.settings, where, discard=True, binary_log=_logs_are_there(plan.settings), room=room, tick=tick)
        )
        rows = _Work(plan, Clients(plan, scratch, reporter, tick), scratch, reporter).run()
    return RestoreResult(
        plan.generation.name,
        files,
        size,
        round(time.monotonic() - started, 1),
        "the table %s" % named(plan.into),
        warnings=list(plan.warnings),
        more={"table": list(plan.table), "as": list(plan.into), "rows": rows},
    )


def _logs_are_there(settings: Settings) -> bool:
    """Whether the binary logs were copied with the data: a server decides by them about what was just being committed."""
    paths = [path for _role, path in settings.paths]
    return bool(settings.log_bin) and all(
        any(is_below(os.path.realpath(os.path.dirname(os.path.join(settings.datadir, name))), path) for path in paths)
        for name in (settings.log_bin, settings.log_bin_index)
    )


def _verify(plan: TablePlan, reporter: Reporter) -> Tuple[int, int]:
    """Compare the table's own files with their checksums; return how many they are, and their bytes.

    :raises StillpointError: one is not what was backed up
    """
    reporter.stage("verify")
    expected = {entry.path: entry for entry in own_files(plan.generation, plan.table)}
    found: Dict[bytes, str] = {}
    with tempfile.NamedTemporaryFile() as paths:
        paths.write(b"".join(path + b"\0" for path in expected))
        paths.flush()
        if expected:
            rsync.checksums(
                plan.generation.path,
                algorithm=str(plan.generation.summary["checksum"]),
                paths=paths.name,
                on_item=lambda item: found.update({item.path: item.checksum}),
            )
    faults = [Fault(os.fsdecode(path), "contents changed", path) for path, entry in expected.items() if found.get(path, entry.checksum) != entry.checksum]
    if faults:
        checksums.found_damaged(plan.generation, faults, reporter)
        raise StillpointError(
            "generation %s is damaged (%s): the server was not touched; restore the table from another generation" % (plan.generation.name, faults[0].text())
        )
    return len(expected), sum(entry.size for entry in expected.values())


class _Work:
    """The way of a table from a scratch server into the live one."""

    def __init__(self, plan: TablePlan, clients_: Clients, scratch: Scratch, reporter: Reporter) -> None:
        self._plan = plan
        self._clients = clients_
        self._scratch = scratch
        self._reporter = reporter
        digest = hashlib.sha256(repr(plan.into).encode("utf-8", "surrogateescape")).hexdigest()[:12]
        self._stage = (plan.into[0], "stillpoint_restored_%s" % digest)

    def run(self) -> int:
        """Do it, and return the number of rows."""
        plan = self._plan
        with Session(self._scratch.login, read_timeout=_COUNT_TIMEOUT) as there, Session(plan.login, read_timeout=_COUNT_TIMEOUT) as live:
            live.do("SET SESSION lock_wait_timeout = %d" % clients.LOCK_WAIT)
            self._clients.accepted = accept(live)
            accept(there)
            found = self._look(there)
            live.do(found.database)
            if found.view:
                self._put_view(live)
                return 0
            self._move(there, found)
            self._make_room(live)
            try:
                self._reporter.stage("load")
                self._clients.pipe(self._stage)
                rows = int(live.value("SELECT COUNT(*) FROM %s" % _sql(self._stage)))
                if rows != found.rows:
                    raise StillpointError("the backup has %d rows of %s, and %d arrived in the server" % (found.rows, named(plan.table), rows))
            except BaseException as error:
                with undisturbed():
                    self._drop_stage(live)
                if isinstance(error, StillpointError):
                    raise StillpointError("%s; %s was not touched" % (error, named(plan.into))) from error
                raise
            self._reporter.stage("replace")
            with undisturbed():
                self._replace(live, found)
        return rows

    def _look(self, session: Session) -> _Found:
        """Find the table, and what has to be known of it before it gets another name.

        :raises UsageError: the backup does not hold it
        """
        plan = self._plan
        rows = session.rows("SELECT TABLE_TYPE AS type FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", plan.table)
        if not rows:
            raise UsageError(self._missing(session))
        view = "VIEW" in str(rows[0]["type"])
        if view and plan.beside:
            raise UsageError("%s is a view, which can't be put beside itself under another name: leave out --as" % named(plan.table))
        schema = session.rows(
            "SELECT DEFAULT_CHARACTER_SET_NAME AS letters, DEFAULT_COLLATION_NAME AS collation FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = %s",
            (plan.table[0],),
        )[0]
        database = "CREATE DATABASE IF NOT EXISTS %s CHARACTER SET %s COLLATE %s" % (quoted(plan.into[0]), schema["letters"], schema["collation"])
        if view:
            return _Found(True, (), b"", database, 0)
        made = str(session.rows("SHOW CREATE TABLE %s" % _sql(plan.table))[0]["Create Table"])
        foreign_keys = tuple(line.strip().rstrip(",") for line in made.splitlines() if re.match(r"\s+CONSTRAINT `(?:[^`]|``)+` FOREIGN KEY ", line))
        triggers = b""
        if session.rows("SELECT 1 FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = %s AND EVENT_OBJECT_TABLE = %s", plan.table):
            triggers = self._clients.dumped(["--no-data", "--no-create-info", "--triggers"], plan.table)
        count = int(session.value("SELECT COUNT(*) FROM %s" % _sql(plan.table)))
        return _Found(False, foreign_keys, triggers, database, count)

    def _missing(self, session: Session) -> str:
        database, table = self._plan.table
        names = session.rows(
            "SELECT TABLE_SCHEMA AS d, TABLE_NAME AS t FROM information_schema.TABLES "
            "WHERE TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema', 'sys')"
        )
        known = sorted("%s.%s" % (row["d"], row["t"]) for row in names)
        elsewhere = [name for name in known if name.split(".", 1)[1].lower() == table.lower()]
        near = elsewhere + [name for name in difflib.get_close_matches("%s.%s" % (database, table), known, _MOST_NAMED, 0.6) if name not in elsewhere]
        text = "the generation %s holds no table %s" % (self._plan.generation.name, named(self._plan.table))
        return "%s; near it: %s" % (text, ", ".join(map(shown, near[:_MOST_NAMED]))) if near else text

    def _move(self, session: Session, found: _Found) -> None:
        """Give the table in the scratch server the name that it is loaded under, without what is only made in its final place."""
        for row in session.rows(
            "SELECT TRIGGER_SCHEMA AS s, TRIGGER_NAME AS n FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = %s AND EVENT_OBJECT_TABLE = %s",
            self._plan.table,
        ):
            session.do("DROP TRIGGER %s" % _sql((row["s"], row["n"])))
        for clause in found.foreign_keys:
            session.do("ALTER TABLE %s DROP FOREIGN KEY %s" % (_sql(self._plan.table), _constraint(clause)))
        session.do("CREATE DATABASE IF NOT EXISTS %s" % quoted(self._stage[0]))
        session.do("RENAME TABLE %s TO %s" % (_sql(self._plan.table), _sql(self._stage)))

    def _put_view(self, live: Session) -> None:
        """Replace the view."""
        before = self._view(live)
        try:
            self._clients.pipe(self._plan.table)
        except StillpointError as error:
            try:
                state = "was not touched" if self._view(live) == before else "is not complete"
            except ServerError:
                raise error from None
            raise StillpointError("%s; %s %s" % (error, named(self._plan.table), state)) from error

    def _view(self, live: Session) -> List[Dict[str, Any]]:
        return live.rows("SELECT VIEW_DEFINITION FROM information_schema.VIEWS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", self._plan.table)

    def _make_room(self, live: Session) -> None:
        """Drop what a run that was killed has loaded."""
        try:
            live.do("DROP TABLE IF EXISTS %s" % _sql(self._stage))
        except ServerError as error:
            if error.number != LOCK_WAIT_TIMEOUT:
                raise
            raise StillpointError(
                "%s was not touched: %s, which an earlier restore has left and this one replaces, %s" % (named(self._plan.into), named(self._stage), HELD)
            ) from None

    def _replace(self, live: Session, found: _Found) -> None:
        """Let the loaded table take its place."""
        plan = self._plan
        dropped = False
        try:
            if not plan.beside:
                live.do("DROP TABLE IF EXISTS %s" % _sql(plan.into))
                dropped = True
            live.do("RENAME TABLE %s TO %s" % (_sql(self._stage), _sql(plan.into)))
        except ServerError as error:
            if error.number == LOCK_WAIT_TIMEOUT and not plan.beside and not dropped:
                raise StillpointError(
                    "%s was not touched: it %s; all rows of the backup are in %s, which can be dropped" % (named(plan.into), HELD, named(self._stage))
                ) from None
            raise StillpointError(
                "all rows of the backup are in %s, and it could not get the name %s: %s" % (named(self._stage), named(plan.into), error.text)
            ) from None
        if plan.beside:
            return
        for clause in found.foreign_keys:
            try:
                live.do("ALTER TABLE %s ADD %s" % (_sql(plan.into), clause))
            except ServerError as error:
                self._reporter.warn("%s is back without its foreign key %s: %s" % (named(plan.into), _constraint(clause), error.text))
        if found.triggers:
            self._clients.feed(found.triggers)

    def _drop_stage(self, live: Session) -> None:
        try:
            live.do("DROP TABLE IF EXISTS %s" % _sql(self._stage))
        except ServerError:
            self._reporter.warn("%s in the server is what was loaded so far, and can be dropped" % named(self._stage))


def _constraint(clause: str) -> str:
    """Return the name in ``CONSTRAINT `name` FOREIGN KEY …``, as SQL."""
    match = re.match(r"CONSTRAINT (`(?:[^`]|``)+`)", clause)
    return match.group(1) if match else ""


def _sql(key: Key) -> str:
    return "%s.%s" % (quoted(key[0]), quoted(key[1]))
