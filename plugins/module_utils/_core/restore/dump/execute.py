# SPDX-License-Identifier: GPL-3.0-or-later
"""The loading of a dump: checked before anything is touched, fed to the server's own client, and told of where it ended if it did."""

from __future__ import annotations

import bisect
import os
import re
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from typing import Any, Callable, Dict, List, Sequence, Set, Tuple

from ...dump import accounts, client, sections, views
from ...dump.plan import VIEWS, shown
from ...dump.sections import Scanner, Section
from ...dump.stream import CHUNK, checksum, decompressed, end
from ...host.errors import StillpointError
from ...host.process import start
from ...host.reporter import Reporter
from ...mysql.acceptance import accept, init_command
from ...mysql.connection import ServerError, Session
from ...proof import checksums
from ...repository import manifest
from ...repository.manifest import Fault
from .. import journal
from ..in_place.execute import execute as put_back
from .plan import LoadPlan, What, account_statements, named

_END_TIMEOUT = 86400.0  # the client has got everything, and the server builds the last table's indexes


def execute(plan: LoadPlan, reporter: Reporter) -> Dict[str, Any]:
    """Load a dump and return ``{generation, databases, table, part, replaced, files, bytes, duration_s, service, warnings}``.

    :raises StillpointError: it says what was loaded
    """
    started = time.monotonic()
    with journal.alone(plan.state), plan.generation.hold():
        _verify(plan, reporter)
        reporter.stage("load")
        statements = {name: each for name, each in account_statements(plan.generation).items() if name in plan.made} if plan.made else {}
        troubles = _create(plan, statements)
        _Load(plan, reporter).run()
        _check(plan)
        troubles += _invalid_views(plan)
        troubles += _grant(plan, statements)
        for trouble in troubles:
            reporter.warn(trouble)
    files = put_back(plan.files, reporter) if plan.files else None
    return {
        "generation": plan.generation.name,
        "databases": list(plan.databases),
        "table": list(plan.what.table) if plan.what.table else None,
        "part": None if plan.what == What() else str(plan.what),
        "replaced": files["replaced"] if files else [],
        "files": len(plan.sources) + (files["files"] if files else 0),
        "bytes": sum(os.path.getsize(os.path.join(plan.generation.path, name)) for name in plan.sources) + (files["bytes"] if files else 0),
        "duration_s": round(time.monotonic() - started, 1),
        "service": files["service"] if files else None,
        "warnings": troubles,
    }


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


def _check(plan: LoadPlan) -> None:
    """Raise StillpointError where the server does not have what was loaded."""
    tables: Dict[str, List[str]] = plan.generation.summary["dump"]["databases"]
    with Session(plan.login) as session:
        for database in plan.databases:
            rows = session.rows("SELECT TABLE_NAME AS name FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s", (database,))
            there = {str(row["name"]).lower() for row in rows}
            wanted = [plan.what.table[1]] if plan.what.table else tables[database]
            missing = [name for name in wanted if name.lower() not in there]
            if missing:
                raise StillpointError(
                    "everything was loaded, and yet the server has no table %s.%s: look at it before it is used" % (shown(database), shown(missing[0]))
                )


class _Load:
    """Feeds a client with what is wanted of a dump, and knows what went by at which line."""

    def __init__(self, plan: LoadPlan, reporter: Reporter) -> None:
        self._plan = plan
        self._reporter = reporter
        self._line = 1  # that the client reads next
        self._starts: List[int] = []
        self._sections: List[Section] = []
        self._dropped: Set[str] = set()
        self._said = b""

    def run(self) -> None:
        with ExitStack() as stack:
            options = stack.enter_context(client.option_file(self._plan.login))
            process = self._start(stack, options)
            listener = threading.Thread(target=self._listen, args=(process,), daemon=True)
            listener.start()
            try:
                with suppress(BrokenPipeError):  # it ended, and says why
                    self._feed(process)
                    process.stdin.close()  # type: ignore[union-attr]
                code = process.wait(_END_TIMEOUT)
            except BaseException as error:
                end(process)
                with suppress(OSError):  # what it was not given any more
                    process.stdin.close()  # type: ignore[union-attr]
                if isinstance(error, StillpointError):
                    raise StillpointError("%s; %s" % (error, self._state(self._line))) from error
                self._reporter.warn(self._state(self._line))
                raise
            listener.join(10)
            if code != 0:
                raise self._failure(code)

    def _start(self, stack: ExitStack, options: str) -> "subprocess.Popen[Any]":
        """Start the client, with a server that accepts the dump's longest statement from it."""
        session = stack.enter_context(Session(self._plan.login))
        argv = [*client.load_command(self._plan.program, options), init_command(accept(session))]
        if self._plan.packet:
            session.do("SET GLOBAL max_allowed_packet = %d" % self._plan.packet[1])
        try:
            process = start(argv, dies_with_us=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            stack.callback(end, process)
            if self._plan.packet:
                # what a session may send is fixed when it begins; this statement is answered by the client's own
                self._write(process, b"SELECT GET_LOCK('stillpoint.%d', 0);\n" % process.pid)
                process.stdin.flush()  # type: ignore[union-attr]
                _wait_until(lambda: session.value("SELECT IS_USED_LOCK('stillpoint.%d')" % process.pid) is not None or process.poll() is not None)
        finally:
            if self._plan.packet:
                session.do("SET GLOBAL max_allowed_packet = %d" % self._plan.packet[0])
        return process

    def _listen(self, process: "subprocess.Popen[Any]") -> None:
        with process.stderr as stderr:  # type: ignore[union-attr]
            self._said = stderr.read(1 << 16)
            while stderr.read(CHUNK):
                pass

    def _feed(self, process: "subprocess.Popen[Any]") -> None:
        done = 0
        for name in self._plan.sources:
            scanner = Scanner()
            with decompressed(os.path.join(self._plan.generation.path, name)) as source:
                for chunk in source.chunks():
                    for section, piece in scanner.feed(chunk):
                        if self._plan.what.wants(section):
                            self._enter(process, section)
                            self._write(process, piece)
                    done += len(chunk)
                    self._reporter.progress(min(done, self._plan.sql_bytes), self._plan.sql_bytes)
            if not scanner.complete:
                raise StillpointError("%s ends without its closing line" % name)

    def _enter(self, process: "subprocess.Popen[Any]", section: Section) -> None:
        if self._sections and self._sections[-1] == section:
            return
        if section.kind == sections.DATABASE and section.database in self._plan.replaced and section.database not in self._dropped:
            self._note(section)
            self._write(process, b"DROP DATABASE IF EXISTS `%s`;\n" % section.database.replace("`", "``").encode("utf-8", "surrogateescape"))
            self._dropped.add(section.database)
        self._note(section)

    def _note(self, section: Section) -> None:
        self._starts.append(self._line)
        self._sections.append(section)

    def _write(self, process: "subprocess.Popen[Any]", data: bytes) -> None:
        process.stdin.write(data)  # type: ignore[union-attr]
        self._line += data.count(b"\n")

    def _failure(self, code: int) -> StillpointError:
        text = self._said.decode("utf-8", "replace").strip()
        lines = [line for line in text.splitlines() if line.startswith("ERROR")] or text.splitlines()[-1:] or ["the client ended with status %d" % code]
        match = re.match(r"ERROR (\d+)(?: \(\w+\))? at line (\d+): (.*)", lines[0])
        line = int(match.group(2)) if match else self._line
        why = "%s (error %s)" % (match.group(3), match.group(1)) if match else lines[0]
        return StillpointError("the server refused a statement of the dump: %s; %s" % (why, self._state(line)))

    def _state(self, line: int) -> str:
        """Return in words what the server has got when the load ends at a line of what the client was given."""
        place = bisect.bisect_right(self._starts, line) - 1
        before = self._sections[:place] if place >= 0 else []
        at = self._sections[place] if place >= 0 else Section(sections.HEAD)
        touched = list(dict.fromkeys(section.database for section in [*before, at] if section.database))
        if not touched:
            return "nothing was loaded and nothing was replaced"
        name = "%s.%s" % (shown(at.database), shown(at.name)) if at.name else "the %s of %s" % (at.kind, shown(at.database or touched[-1]))
        text = "the load ended at %s: " % name
        if self._plan.what.table:
            return text + "the table is not complete, and no other was touched"
        whole = [each for each in touched if each != touched[-1]]
        text += "%s is not complete" % shown(touched[-1])
        if whole and at.kind != sections.VIEW:
            text += ", %s loaded but for views" % (named(whole) + (" is" if len(whole) == 1 else " are"))
        rest = [each for each in self._plan.databases if each not in touched]
        return text + (", %s not touched; load it again when the cause is mended" % (named(rest) + (" was" if len(rest) == 1 else " were")) if rest else "")


def _wait_until(true: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not true():
        if time.monotonic() > deadline:
            raise StillpointError("the client did not connect within %d s: nothing was loaded" % limit)
        time.sleep(0.02)
