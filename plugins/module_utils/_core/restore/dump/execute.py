# SPDX-License-Identifier: GPL-3.0-or-later
"""The loading of a dump: checked before anything is touched, fed to the server's own client, and told of where it ended if it did."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import replace
from typing import Dict, List, Sequence, Tuple

from ...dump import accounts, views
from ...dump.contents import Key, listed, quoted, shown
from ...dump.plan import VIEWS
from ...dump.stream import checksum
from ...host.errors import StillpointError
from ...host.process import undisturbed
from ...host.reporter import Reporter
from ...mysql.connection import ServerError, Session
from ...proof import checksums
from ...repository import manifest
from ...repository.compare import Fault
from .. import journal
from ..replay.execute import Floor
from ..result import RestoreResult
from . import beside, feed, swap
from .beside import Load, Part
from .feed import Later
from .plan import LoadPlan, account_statements
from .what import What


def execute(plan: LoadPlan, reporter: Reporter) -> RestoreResult:
    """Load a dump.

    :raises StillpointError: it says what became of what was there before
    """
    started = time.monotonic()
    with journal.alone(plan.state), plan.generation.hold():
        _clear(plan, reporter)
        _verify(plan, reporter)
        reporter.stage("load")
        troubles = _load(plan, reporter)
        for trouble in troubles:
            reporter.warn(trouble)
    files = plan.files.execute(reporter) if plan.files else None
    return RestoreResult(
        plan.generation.name,
        len(plan.sources) + (files.files if files else 0),
        sum(os.path.getsize(os.path.join(plan.generation.path, name)) for name in plan.sources) + (files.bytes if files else 0),
        round(time.monotonic() - started, 1),
        None if plan.what == What() else str(plan.what),
        files.replaced if files else [],
        files.service if files else None,
        warnings=troubles,
        more={"databases": list(plan.databases), "table": list(plan.what.table) if plan.what.table else None},
    )


def _clear(plan: LoadPlan, reporter: Reporter) -> None:
    """Put back what a load has left that was interrupted, and drop what no journal knows of: names of ours, and no live data."""
    left = beside.pending(plan.state)
    if left:
        reporter.note("putting back what an interrupted restore of %s has left" % left.generation)
        for trouble in swap.put_back(left, plan.state):
            reporter.warn(trouble)
    with Session(plan.login, read_timeout=swap.ANSWER_TIMEOUT) as session:
        swap.session_for(session)
        for part in _parts(plan):
            session.do("DROP DATABASE IF EXISTS %s" % quoted(part.new))


def _parts(plan: LoadPlan) -> Tuple[Part, ...]:
    with Session(plan.login) as session:
        there = set(listed(session))
        lower = str(session.value("SELECT @@GLOBAL.lower_case_table_names")) != "0"
    only = plan.what.table[1] if plan.what.table else ""
    return tuple(beside.part(name, there=name in there or (lower and name.lower() in there), only=only) for name in plan.databases)


def _load(plan: LoadPlan, reporter: Reporter) -> List[str]:
    """Load beside the live databases, let that take their place, and return what went wrong with accounts and invalid views.

    :raises StillpointError: something else did, and what was there before is there
    """
    job = str(plan.generation.summary.get("job") or "JOB")
    load = Load(job, plan.generation.name, beside.LOADING, beside.login_facts(plan.login), plan.flavour, _parts(plan))
    load = load.at(beside.LOADING, plan.state)
    try:
        return _through(plan, load, reporter)
    except BaseException as error:
        now = beside.pending(plan.state)
        if now is None:
            raise  # it had ended well
        said = _given_up(now, plan, reporter)
        if isinstance(error, StillpointError):
            raise StillpointError("%s; %s" % (error, said)) from error
        reporter.warn(said)
        raise


def _given_up(load: Load, plan: LoadPlan, reporter: Reporter) -> str:
    """Put the live databases back, and return in words what became of them."""
    try:
        with undisturbed():
            for trouble in swap.put_back(load, plan.state):
                reporter.warn(trouble)
    except StillpointError as error:
        if load.phase == beside.LOADING:
            return "what was there before was not touched; %s drops what was loaded (%s)" % (load.undo, error)
        return "%s puts back what was there before (%s)" % (load.undo, error)
    return "what was there before was not touched" if load.phase == beside.LOADING else "what was there before is back"


def _through(plan: LoadPlan, load: Load, reporter: Reporter) -> List[str]:
    floors = [Floor(path, "the restore", path) for path in (plan.state, plan.live) if path]

    def look() -> None:
        for floor in floors:
            floor.check()

    with tempfile.TemporaryFile(dir=plan.state) as programs, tempfile.TemporaryFile(dir=plan.state) as views_file, Session(
        plan.login, read_timeout=swap.ANSWER_TIMEOUT
    ) as session:
        swap.session_for(session)
        later = Later(programs, views_file, without_events=plan.without_events)
        sequences: List[Key] = []

        def on_sequence(database: str, name: str) -> None:
            if not session.rows("SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", (database, name)):
                sequences.append((database, name))
                load.at(beside.LOADING, plan.state, sequences=tuple(sequences))
                session.do("CREATE DATABASE IF NOT EXISTS %s" % quoted(database), "CREATE SEQUENCE %s.%s" % (quoted(database), quoted(name)))

        feed.load(plan, {part.name: part.new for part in load.parts}, later, on_sequence, reporter, look)
        load = replace(load, sequences=tuple(sequences))
        statements = {name: each for name, each in account_statements(plan.generation).items() if name in plan.made} if plan.made else {}
        troubles = _create(plan, statements)
        reporter.stage("replace")
        with undisturbed():
            load = swap.swap(session, load, plan, later, reporter)
            _check(session, plan)
            swap.finish(session, load, plan.state, plan.live)
        if later.silenced:
            troubles.append("the events %s are another host's and are disabled here: ALTER EVENT NAME ENABLE lets one run" % ", ".join(later.silenced))
        troubles += _invalid_views(plan)
        return troubles + _grant(plan, statements)


def _verify(plan: LoadPlan, reporter: Reporter) -> None:
    """Make sure that the files are what was published, before anything is touched.

    :raises StillpointError: they are not
    """
    reporter.stage("verify")
    names = [*plan.sources, *([accounts.FILE] if plan.made else []), *([VIEWS] if plan.invalid else [])]
    expected = {os.fsdecode(entry.path): entry for entry in manifest.entries(plan.generation.path) if os.fsdecode(entry.path) in names}
    total = sum(entry.size for entry in expected.values())
    done = 0
    for name in names:
        before = done
        try:
            found = checksum(os.path.join(plan.generation.path, name), lambda read: reporter.progress(before + read, total))  # noqa: B023  # called at once
        except OSError as error:
            found = str(error.strerror)
        if name not in expected or found != expected[name].checksum:
            fault = Fault(name, "contents changed" if name in expected else "not in the manifest")
            checksums.found_damaged(plan.generation, [fault], reporter)
            raise StillpointError(
                "generation %s is damaged (%s): nothing was loaded and the server was not touched; restore another generation"
                % (plan.generation.name, fault.text())
            )
        done += expected[name].size


def _create(plan: LoadPlan, statements: Dict[str, List[str]]) -> List[str]:
    """Create the accounts, without what they may do: views and routines of theirs come next."""
    return _run(plan, [(name, each) for name, own in statements.items() for each in own if _creates(each)], "created")


def _grant(plan: LoadPlan, statements: Dict[str, List[str]]) -> List[str]:
    return _run(plan, [(name, each) for name, own in statements.items() for each in own if not _creates(each)], "given what it may do")


def _creates(statement: str) -> bool:
    return statement.startswith(("CREATE USER", "CREATE ROLE"))


def _run(plan: LoadPlan, work: Sequence[Tuple[str, str]], what: str) -> List[str]:
    """Run statements about accounts, and return a sentence for each that failed. The server's text may quote a password: it is left out."""
    troubles = []
    if work:
        with Session(plan.login) as session:
            session.do("SET SESSION sql_mode = ''")
            for name, statement in work:
                try:
                    session.do(statement)
                except ServerError as error:
                    if error.connection_lost:
                        raise StillpointError("the connection to the server was lost while accounts were made: %s" % error.text) from None
                    troubles.append("the account %s could not be %s: the server refuses it with error %d" % (name, what, error.number))
    return troubles


def _invalid_views(plan: LoadPlan) -> List[str]:
    """Make the views that were invalid when the dump was taken, and return a sentence for each that still is."""
    if not plan.invalid:
        return []
    with Session(plan.login) as session:
        return views.left_out(views.make(session, plan.invalid))


def _check(session: Session, plan: LoadPlan) -> None:
    """Raise StillpointError where the server does not have what was loaded."""
    tables: Dict[str, List[str]] = plan.generation.summary["dump"]["databases"]
    for database in plan.databases:
        rows = session.rows("SELECT TABLE_NAME AS name FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s", (database,))
        there = {str(row["name"]).lower() for row in rows}
        wanted = [plan.what.table[1]] if plan.what.table else tables[database]
        missing = [name for name in wanted if name.lower() not in there]
        if missing:
            raise StillpointError("everything was loaded, and yet the server has no table %s.%s" % (shown(database), shown(missing[0])))
