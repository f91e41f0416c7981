# SPDX-License-Identifier: GPL-3.0-or-later
"""A dump on its way into the server's own client: tables and rows beside the live databases, what depends on a database's name afterwards."""

from __future__ import annotations

import bisect
import os
import re
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, BinaryIO, Callable, Dict, List, Mapping, Optional, Set, Tuple, Type

from ...dump import client, sections
from ...dump.contents import quoted, shown
from ...dump.sections import Scanner, Section
from ...dump.stream import CHUNK, decompressed
from ...host.errors import StillpointError
from ...host.process import end, start
from ...host.reporter import Reporter
from ...mysql.acceptance import accept, init_command
from ...mysql.connection import Session
from .plan import LoadPlan

_END_TIMEOUT = 86400.0  # the client has got everything, and the server builds the last table's indexes
_TICK = 0.5
_SAID = 1 << 16  # bytes of what the client says that are looked into, from the end
_PATIENT = ("wait_timeout=2147483", "net_read_timeout=600", "net_write_timeout=600")  # rows come as fast as they are read

# What a table has that is made in its final place alone: its triggers, in comments for versions that know them.
_TRIGGER = (b"/*!50003 ", b"/*!50032 ", b"DELIMITER ")
_LOCKS = (b"LOCK TABLES `", b"UNLOCK TABLES;")
_LATER = (sections.STAND_IN, sections.VIEW, sections.PROGRAMS)
# An event that is enabled, as the server shows its definition: its name and its schedule come before that word.
_EVENT = re.compile(rb"(/\*!50106 CREATE\*/ [^\n]*?\bEVENT (`(?:[^`]|``)+`) ON SCHEDULE [^\n]*? ON COMPLETION (?:NOT )?PRESERVE) ENABLE\b")
_SEQUENCE = re.compile(rb"(?:nextval|lastval)\(`((?:[^`]|``)+)`\.`((?:[^`]|``)+)`\)")


class Client:
    """The client of a server, which executes what is written to it until a statement fails."""

    def __init__(self, plan: LoadPlan) -> None:
        self._plan = plan
        self._stack = ExitStack()
        self.line = 1  # that the client reads next
        self._starts: List[int] = []
        self._sections: List[Section] = []
        self._said = b""

    def __enter__(self) -> "Client":
        with ExitStack() as stack:
            self._process = self._start(stack)
            self._listener = threading.Thread(target=self._listen, daemon=True)
            self._listener.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, _type: Optional[Type[BaseException]], _error: Optional[BaseException], _trace: Optional[TracebackType]) -> None:
        end(self._process)
        with suppress(OSError):  # what it was not given any more
            self._process.stdin.close()  # type: ignore[union-attr]
        self._listener.join(10)
        self._stack.close()

    def _start(self, stack: ExitStack) -> "subprocess.Popen[Any]":
        """Start the client, with a server that accepts the dump's longest statement from it."""
        plan = self._plan
        options = stack.enter_context(client.option_file(plan.login))
        with Session(plan.login) as session:
            argv = [*client.load_command(plan.program, options), init_command((*accept(session), *_PATIENT))]
            if plan.packet:
                session.do("SET GLOBAL max_allowed_packet = %d" % plan.packet[1])
            try:
                process = start(argv, dies_with_us=True, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                stack.callback(end, process)
                if plan.packet:
                    # what a session may send is fixed when it begins; this statement is answered by the client's own
                    process.stdin.write(b"SELECT GET_LOCK('stillpoint.%d', 0);\n" % process.pid)  # type: ignore[union-attr]
                    process.stdin.flush()  # type: ignore[union-attr]
                    self.line += 1
                    _wait_until(lambda: session.value("SELECT IS_USED_LOCK('stillpoint.%d')" % process.pid) is not None or process.poll() is not None)
            finally:
                if plan.packet:
                    session.do("SET GLOBAL max_allowed_packet = %d" % plan.packet[0])
        return process

    def _listen(self) -> None:
        with self._process.stderr as stderr:  # type: ignore[union-attr]
            for chunk in iter(lambda: stderr.read(CHUNK), b""):
                self._said = (self._said + chunk)[-_SAID:]  # the statement that failed goes before, with rows of people

    def enter(self, section: Section) -> None:
        """Note that a section begins, for the sentence about a statement that fails."""
        if not self._sections or self._sections[-1] != section:
            self.note(self.line, section)

    def note(self, line: int, section: Section) -> None:
        """Note that a section begins with a line of what the client is given; the lines go up."""
        self._starts.append(line)
        self._sections.append(section)

    def write(self, data: bytes) -> None:
        """:raises StillpointError: the client has ended"""
        try:
            self._process.stdin.write(data)  # type: ignore[union-attr]
        except BrokenPipeError:
            self.finish()
            raise StillpointError("the client of the server ended before it was given everything") from None
        self.line += data.count(b"\n")

    def finish(self, look: Callable[[], None] = lambda: None) -> None:
        """Wait until everything is executed.

        :param look: called now and then; what it raises ends the client
        :raises StillpointError: a statement failed; it says which
        """
        with suppress(BrokenPipeError):  # it ended, and says why
            self._process.stdin.close()  # type: ignore[union-attr]
        deadline = time.monotonic() + _END_TIMEOUT
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_TICK)
            look()
        self._listener.join(10)
        code = self._process.poll()
        if code != 0:
            raise self._failure(code)

    def _failure(self, code: Optional[int]) -> StillpointError:
        text = self._said.decode("utf-8", "replace").strip()
        lines = [line for line in text.splitlines() if line.startswith("ERROR")][-1:] or ["the client ended with status %s" % code]
        match = re.match(r"ERROR (\d+)(?: \(\w+\))? at line (\d+): (.*)", lines[0])
        place = bisect.bisect_right(self._starts, int(match.group(2)) if match else self.line) - 1
        at = self._sections[place] if place >= 0 else Section(sections.HEAD)
        where = "%s.%s" % (shown(at.database), shown(at.name)) if at.name else "the %s of %s" % (at.kind, shown(at.database) or "the dump")
        why = "%s (error %s)" % (match.group(3), match.group(1)) if match else lines[0]
        return StillpointError("the server refused a statement of the dump: %s, at %s" % (why, where))


class _Kept:
    """Statements in a file, with the section that each line of them is of."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._line = 0
        self._notes: List[Tuple[int, Section]] = []

    def write(self, section: Section, piece: bytes) -> None:
        if not self._notes or self._notes[-1][1] != section:
            self._notes.append((self._line, section))
        self._file.write(piece)
        self._line += piece.count(b"\n")

    def send(self, target: Client) -> None:
        for line, section in self._notes:
            target.note(target.line + line, section)
        self._file.seek(0)
        for chunk in iter(lambda: self._file.read(CHUNK), b""):
            target.write(chunk)


class Later:
    """What is left for the time when the tables are in their places: two files, in order, and each database's CREATE DATABASE.

    :ivar silenced: events that are created disabled, as ``database.name``
    """

    def __init__(self, programs: BinaryIO, views: BinaryIO, *, without_events: bool = False) -> None:
        """:param without_events: events are created, and not enabled"""
        self._programs, self._views = _Kept(programs), _Kept(views)
        self._without_events = without_events
        self.creates: Dict[str, str] = {}
        self.silenced: List[str] = []

    def everywhere(self, section: Section, piece: bytes) -> None:
        self._programs.write(section, piece)
        self._views.write(section, piece)

    def add(self, section: Section, piece: bytes) -> None:
        match = _EVENT.search(piece) if self._without_events and section.kind == sections.PROGRAMS else None
        if match:
            self.silenced.append("%s.%s" % (shown(section.database), shown(match.group(2)[1:-1].decode("utf-8", "surrogateescape").replace("``", "`"))))
            piece = piece[: match.end(1)] + b" DISABLE" + piece[match.end() :]
        (self._views if section.kind == sections.VIEW else self._programs).write(section, piece)

    def feed(self, plan: LoadPlan) -> None:
        """Execute it.

        :raises StillpointError: a statement failed
        """
        with Client(plan) as target:
            self._programs.send(target)
            self._views.send(target)
            target.finish()


def load(
    plan: LoadPlan, beside: Mapping[str, str], later: Later, on_sequence: Callable[[str, str], None], reporter: Reporter, look: Callable[[], None]
) -> None:
    """Load tables and rows into databases of other names, and keep the rest for later.

    :param beside: database -> the name that it is loaded under
    :param on_sequence: called before a statement with a sequence that it needs, of a database that is loaded
    :param look: called now and then; what it raises ends the load
    :raises StillpointError: a statement failed
    """
    done, seen = 0, 0.0
    known: Set[Tuple[str, str]] = set()
    with Client(plan) as target:
        for name in plan.sources:
            scanner = Scanner()
            with decompressed(os.path.join(plan.generation.path, name)) as source:
                for chunk in source.chunks():
                    for section, piece in scanner.feed(chunk):
                        if not plan.what.wants(section):
                            continue
                        target.enter(section)
                        for each in _sequences(section, piece, beside) - known:
                            known.add(each)
                            on_sequence(*each)
                        _send(target, section, piece, beside, later)
                    done += len(chunk)
                    reporter.progress(min(done, plan.sql_bytes), plan.sql_bytes)
                    if time.monotonic() - seen > _TICK:
                        look()
                        seen = time.monotonic()
            if not scanner.complete:
                raise StillpointError("%s ends without its closing line" % name)
        target.finish(look)


def _sequences(section: Section, piece: bytes, beside: Mapping[str, str]) -> Set[Tuple[str, str]]:
    """Return the sequences that a table's DEFAULT names, of databases that are loaded: it can't be made, nor written to, without them."""
    if section.kind != sections.TABLE or b"val(`" not in piece:
        return set()
    found = [tuple(name.replace(b"``", b"`").decode("utf-8", "surrogateescape") for name in match.groups()) for match in _SEQUENCE.finditer(piece)]
    return {(database, name) for database, name in found if database in beside}


def _send(target: Client, section: Section, piece: bytes, beside: Mapping[str, str], later: Later) -> None:
    if section.kind in (sections.HEAD, sections.FOOT):
        target.write(piece)
        later.everywhere(section, piece)
    elif section.kind == sections.DATABASE:
        later.everywhere(section, piece)
        if piece.startswith((b"CREATE DATABASE", b"USE ")):
            if piece.startswith(b"CREATE"):
                later.creates.setdefault(section.database, piece.decode("utf-8", "surrogateescape").strip().rstrip(";"))
            piece = piece.replace(_quoted(section.database), _quoted(beside[section.database]), 1)
        target.write(piece)
    elif piece.startswith(_LOCKS):
        pass  # nobody else is there; a sequence that a DEFAULT names would have to be locked too
    elif section.kind in _LATER or piece.startswith(_TRIGGER):
        later.add(section, piece)
    else:
        target.write(piece)


def _quoted(name: str) -> bytes:
    return quoted(name).encode("utf-8", "surrogateescape")


def _wait_until(true: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not true():
        if time.monotonic() > deadline:
            raise StillpointError("the client did not connect within %d s: nothing was loaded" % limit)
        time.sleep(0.02)
