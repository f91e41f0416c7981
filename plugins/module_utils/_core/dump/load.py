# SPDX-License-Identifier: GPL-3.0-or-later
"""A dump is loaded into a running server: all of it, one database or one table, after the plan for that was shown."""

from __future__ import annotations

import bisect
import os
import re
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from .. import restore
from ..errors import StillpointError, UsageError
from ..job import Job
from ..mysql import server as servers
from ..mysql.connection import Login, ServerError, Session
from ..observe.progress import Reporter
from ..observe.text import count, size
from ..process import require, start
from ..repository import manifest, verify
from ..repository.generations import Generation
from ..repository.manifest import Fault
from ..restore import RestorePlan
from . import accounts, client, sections
from .client import LARGEST_PACKET, Program
from .plan import FILE, Key, shown
from .sections import Scanner, Section
from .stream import CHUNK, checksum, decompressed, end

_PACKET_UNIT = 1024  # max_allowed_packet is a multiple of it
_MOST_NAMED = 8
_END_TIMEOUT = 86400.0  # the client has got everything, and the server builds the last table's indexes


@dataclass(frozen=True)
class What:
    """What is asked for of a dump; with neither, all of it."""

    database: Optional[str] = None
    table: Optional[Key] = None

    def wants(self, section: Section) -> bool:
        """Tell whether a section is part of it; a dump's beginning and end are part of everything."""
        if section.kind in (sections.HEAD, sections.FOOT):
            return True
        if self.table is None:
            return self.database in (None, section.database)
        if section.database != self.table[0]:
            return False
        return section.kind == sections.DATABASE or (section.name == self.table[1] and section.kind != sections.STAND_IN)

    def __str__(self) -> str:
        if self.table:
            return "the table %s.%s" % (shown(self.table[0]), shown(self.table[1]))
        return "the database %s" % shown(self.database) if self.database else "all databases"


@dataclass(frozen=True)
class LoadPlan:
    """A load that nothing is known to be against.

    :ivar where: the server's address
    :ivar replaced: databases that are there now and are dropped first; none where a single table is loaded
    :ivar made: accounts that are missing; kept: those that are there and stay as they are
    :ivar packet: what the server's max_allowed_packet is too small by; None where it is enough
    :ivar files: the restore of the files that belong to it
    """

    generation: Generation
    what: What
    login: Login
    where: str
    server: str
    program: Program
    sources: Tuple[str, ...]
    databases: Tuple[str, ...]
    replaced: Tuple[str, ...]
    table_is_there: bool
    made: Tuple[str, ...]
    kept: Tuple[str, ...]
    packet: Optional[Tuple[int, int]]
    files: Optional[RestorePlan]
    warnings: Tuple[str, ...]
    state: str

    @property
    def sql_bytes(self) -> int:
        return int(self.generation.summary["dump"]["sql_bytes"])

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {
            "generation": self.generation.name,
            "path": self.generation.path,
            "to": None,
            "server": {"at": self.where, "version": self.server},
            "databases": list(self.databases),
            "table": list(self.what.table) if self.what.table else None,
            "replaced_databases": list(self.replaced),
            "replaces_table": self.table_is_there,
            "accounts": {"made": list(self.made), "kept": list(self.kept)},
            "files": self.files.as_dict() if self.files else None,
            "warnings": list(self.warnings),
        }

    def lines(self) -> List[str]:
        """Return it for people."""
        lines = ["load %s of generation %s into the server at %s (%s):" % (self.what, self.generation.name, self.where, self.server)]
        new = [name for name in self.databases if name not in self.replaced]
        if self.what.table:
            lines.append("  %s %s" % ("replaces" if self.table_is_there else "creates", self.what))
        else:
            if self.replaced:
                lines.append("  replaces the databases %s: what is in them now is dropped, and not kept" % _named(self.replaced))
            if new:
                lines.append("  creates the databases %s" % _named(new))
        if self.made:
            lines.append("  creates the accounts %s" % _named(self.made))
        if self.kept:
            lines.append("  leaves %s accounts that are there as they are" % count(len(self.kept)))
        lines.append("  other databases are not touched; a statement that fails ends the load, with what was loaded before it in place")
        if self.packet:
            lines.append(
                "  max_allowed_packet is raised from %s to %s for the moment in which the load begins" % (size(self.packet[0]), size(self.packet[1]))
            )
        if self.files:
            lines += ["after that, " + line if not number else line for number, line in enumerate(self.files.lines())]
        return lines + ["  warning: " + warning for warning in self.warnings]


def _named(names: Sequence[str]) -> str:
    more = " and %s more" % count(len(names) - _MOST_NAMED) if len(names) > _MOST_NAMED else ""
    return ", ".join(map(shown, names[:_MOST_NAMED])) + more


# -- planning


def applies(generation: Generation, *, to: Optional[str], parts: Optional[str], asked: Optional[str]) -> bool:
    """Tell whether a restore loads a dump.

    :param asked: the option that was given and that only a dump has
    :raises UsageError: it was given where nothing is loaded
    """
    dump = isinstance(generation.summary.get("dump"), dict)
    if dump and to is None and parts != restore.FILES:
        pending = restore.pending()  # of its files, when all of it had been loaded
        return asked is not None or pending is None or pending["path"] != generation.path
    if asked:
        why = "it is put into a directory" if to else "its files alone are put back" if dump else "its databases are a copy of the server's files"
        raise UsageError("%s is for loading a dump; of generation %s nothing is loaded: %s" % (asked, generation.name, why))
    return False


def login(job: Job, socket: Optional[str], config_file: Optional[str]) -> Login:
    """Return the login for a load: root over the socket that is named or that the job has, or as an option file says.

    The job's own account is no use: it may read.
    """
    if config_file:
        return Login(config_file=config_file, login_unix_socket=socket)
    if socket is None and job.mysql is not None:
        socket = job.mysql.login_unix_socket
    return Login(login_user="root", login_unix_socket=socket)


def make(
    generation: Generation,
    login_: Login,
    *,
    database: Optional[str] = None,
    table: Optional[str] = None,
    parts: str = restore.ALL,
    state: str = restore.STATE,
) -> LoadPlan:
    """Return the plan for loading a dump. Nothing is changed.

    :param table: ``DATABASE.TABLE``, in backquotes where a dot in a name would make that two things
    :param parts: as in `restore.make`; not the files alone
    :raises UsageError: the dump does not hold it
    :raises StillpointError: the server can't be reached, is another product, or can't take it
    """
    require("zstd")
    restore.refuse_damaged(generation)
    facts = generation.summary["dump"]
    tables: Dict[str, List[str]] = facts["databases"]
    what = _what(tables, database, table, generation.name)
    databases = tuple(tables) if what == What() else (what.table[0] if what.table else str(what.database),)
    sources = _sources(generation, facts, databases)
    with Session(login_) as session:
        version, comment = str(session.value("SELECT @@GLOBAL.version")), str(session.value("SELECT @@GLOBAL.version_comment"))
        flavour = servers.flavour_and_version(version, comment)[0]
        _same_product(generation, flavour, version)
        there = [str(next(iter(row.values()))) for row in session.rows("SHOW DATABASES")]
        packet = _packet(session, int(facts["longest_statement"]))
        table_is_there = bool(
            what.table
            and session.rows("SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", what.table)
        )
        made, kept = _accounts(session, generation) if what == What() and facts["accounts"] else ([], [])
        warnings = list(_warnings(session, what))
        where = session.where
    files = None
    if parts == restore.ALL and what == What() and any(tree.is_files for tree in generation.trees):
        files = restore.make(generation, parts=restore.FILES, state=state)
    return LoadPlan(
        generation,
        what,
        login_,
        where,
        version,
        client.loader(flavour),
        tuple(sources),
        databases,
        tuple(name for name in databases if name in there and what.table is None),
        table_is_there,
        tuple(made),
        tuple(kept),
        packet,
        files,
        tuple(warnings),
        state,
    )


def _what(tables: Dict[str, List[str]], database: Optional[str], table: Optional[str], name: str) -> What:
    if database is not None and database not in tables:
        raise UsageError("the generation %s holds no database %s; it holds %s" % (name, shown(database), _named(list(tables)) or "none"))
    if table is None:
        return What(database)
    match = re.fullmatch(r"`((?:[^`]|``)+)`\.`((?:[^`]|``)+)`", table, re.DOTALL)
    if match:
        pairs = [(match.group(1).replace("``", "`"), match.group(2).replace("``", "`"))]
    else:
        pairs = [(table[:place], table[place + 1 :]) for place, letter in enumerate(table) if letter == "."]
    found = [pair for pair in pairs if pair[1] in tables.get(pair[0], ())]
    if len(found) > 1:
        raise UsageError("%s may be one of several tables of %s: write it as `DATABASE`.`TABLE`, in backquotes" % (shown(table), name))
    if not found:
        raise UsageError("the generation %s holds no table %s: write it as DATABASE.TABLE" % (name, shown(table)))
    return What(None, found[0])


def _sources(generation: Generation, facts: Dict[str, Any], databases: Sequence[str]) -> List[str]:
    """Return the files to read, by their names in the generation."""
    if not facts["files"]:
        return [FILE]
    return [name for name, database in facts["files"].items() if database in databases]


def _same_product(generation: Generation, flavour: str, version: str) -> None:
    dumped = str((generation.summary.get("server") or {}).get("flavour"))
    if (dumped == "mariadb") != (flavour == "mariadb"):
        raise StillpointError(
            "generation %s is a dump of %s, and the server is %s: they write views, routines and accounts differently, and the load would end half way"
            % (generation.name, "MariaDB" if dumped == "mariadb" else "MySQL", version)
        )


def _packet(session: Session, longest: int) -> Optional[Tuple[int, int]]:
    """Return what max_allowed_packet is, and what it has to be; None where it is enough."""
    now = int(session.value("SELECT @@GLOBAL.max_allowed_packet"))
    needed = min(LARGEST_PACKET, -(-(longest + _PACKET_UNIT) // _PACKET_UNIT) * _PACKET_UNIT)
    return None if now >= needed else (now, needed)


def _accounts(session: Session, generation: Generation) -> Tuple[List[str], List[str]]:
    there = accounts.existing(session)
    known = list(_account_statements(generation))
    return [name for name in known if name not in there], [name for name in known if name in there]


def _account_statements(generation: Generation) -> Dict[str, List[str]]:
    with decompressed(os.path.join(generation.path, accounts.FILE)) as source:
        return accounts.parse(b"".join(source.chunks()).decode("utf-8", "surrogateescape"))


def _warnings(session: Session, what: What) -> Iterator[str]:
    values = {row["Variable_name"]: row["Value"] for row in session.rows("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only', 'log_bin')")}
    if values.get("read_only") not in ("OFF", "0", None):
        yield "the server is read-only for users (read_only): is it a replica, which should be restored from its source?"
    if values.get("log_bin") == "ON":
        yield "the load is written to the binary log, and so reaches the server's replicas"
    if what.table:
        yield "a table alone is put back as it was; rows of other tables that belong to its rows are not"


# -- executing


def execute(plan: LoadPlan, reporter: Reporter) -> Dict[str, Any]:
    """Load a dump and return ``{generation, databases, table, replaced, files, bytes, duration_s, service, warnings}``.

    :raises StillpointError: it says what was loaded
    """
    started = time.monotonic()
    with restore.alone(plan.state), plan.generation.hold():
        _verify(plan, reporter)
        reporter.stage("load")
        statements = {name: each for name, each in _account_statements(plan.generation).items() if name in plan.made} if plan.made else {}
        troubles = _create(plan, statements)
        _Load(plan, reporter).run()
        _check(plan)
        troubles += _grant(plan, statements)
        for trouble in troubles:
            reporter.warn(trouble)
    files = restore.execute(plan.files, reporter) if plan.files else None
    return {
        "generation": plan.generation.name,
        "databases": list(plan.databases),
        "table": list(plan.what.table) if plan.what.table else None,
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
    names = [*plan.sources, *([accounts.FILE] if plan.made else [])]
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
            verify.found_damaged(plan.generation, [fault], reporter)
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
                if isinstance(error, StillpointError):
                    raise StillpointError("%s; %s" % (error, self._state(self._line))) from error
                self._reporter.warn(self._state(self._line))
                raise
            listener.join(10)
            if code != 0:
                raise self._failure(code)

    def _start(self, stack: ExitStack, options: str) -> "subprocess.Popen[Any]":
        """Start the client, with a server that accepts the dump's longest statement from it."""
        argv = client.load_command(self._plan.program, options)
        session = None
        if self._plan.packet:
            session = stack.enter_context(Session(self._plan.login))
            session.do("SET GLOBAL max_allowed_packet = %d" % self._plan.packet[1])
        try:
            process = start(argv, dies_with_us=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            stack.callback(end, process)
            if session:
                # what a session may send is fixed when it begins; this statement is answered by the client's own
                self._write(process, b"SELECT GET_LOCK('stillpoint.%d', 0);\n" % process.pid)
                process.stdin.flush()  # type: ignore[union-attr]
                _wait_until(lambda: session.value("SELECT IS_USED_LOCK('stillpoint.%d')" % process.pid) is not None or process.poll() is not None)
        finally:
            if session and self._plan.packet:
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
            text += ", %s loaded but for views" % (_named(whole) + (" is" if len(whole) == 1 else " are"))
        rest = [each for each in self._plan.databases if each not in touched]
        return text + (", %s not touched; load it again when the cause is mended" % (_named(rest) + (" was" if len(rest) == 1 else " were")) if rest else "")


def _wait_until(true: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not true():
        if time.monotonic() > deadline:
            raise StillpointError("the client did not connect within %d s: nothing was loaded" % limit)
        time.sleep(0.02)
