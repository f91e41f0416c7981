# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan for loading a dump into a running server: all of it, one database or one table, and what of the server's that replaces."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from ...dump import accounts, client, views
from ...dump.client import LARGEST_PACKET, Program
from ...dump.contents import OLD, InvalidView, shown
from ...dump.plan import FILE, VIEWS
from ...dump.stream import decompressed
from ...host import service
from ...host.errors import StillpointError, UsageError
from ...host.free_space import space
from ...host.process import require
from ...host.reporter import Reporter
from ...host.text import count, size
from ...job.names import host_name
from ...job.options import Job
from ...mysql import server as servers
from ...mysql.connection import Login, Session
from ...repository import identity, recorded
from ...repository.generation import Generation
from .. import journal
from ..in_place.activity import OPTION
from ..in_place.plan import InPlacePlan
from ..in_place.plan import make as plan_restore
from ..in_place.selection import ALL, FILES, refuse_damaged
from ..result import RestoreResult
from . import beside
from .refusals import refuse
from .what import What, named

_MARGIN_SHARE, _MARGIN = 0.1, 64 << 20  # redo and undo logs, temporary tables, pages that are not full
_PACKET_UNIT = 1024  # max_allowed_packet is a multiple of it


@dataclass(frozen=True)
class LoadPlan:
    """A load that nothing is known to be against.

    :ivar where: the server's address
    :ivar replaced: databases that are there now, and are dropped when the load has ended well; none where a single table is loaded
    :ivar live: the directory of the server's data; "" where that is not on this host
    :ivar needs: bytes that the load takes there, and free ones; None where that is not known
    :ivar made: accounts that are missing; kept: those that are there and stay as they are
    :ivar invalid: views that were so when the dump was taken, and are tried
    :ivar packet: what the server's max_allowed_packet is too small by; None where it is enough
    :ivar files: the restore of the files that belong to it
    :ivar without_events: it is another host's, whose events are created and not enabled
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
    invalid: Tuple[InvalidView, ...]
    packet: Optional[Tuple[int, int]]
    files: Optional[InPlacePlan]
    warnings: Tuple[str, ...]
    state: str
    flavour: str
    live: str = ""
    needs: Optional[Tuple[int, int]] = None
    without_events: bool = False

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
            "needs_bytes": self.needs[0] if self.needs else None,
            "without_events": self.without_events,
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
                lines.append(
                    "  replaces the databases %s when all of the dump is in the server: until then they stay as they are, then they are dropped"
                    % named(self.replaced)
                )
            if new:
                lines.append("  creates the databases %s" % named(new))
        if self.made:
            lines.append("  creates the accounts %s" % named(self.made))
        if self.kept:
            lines.append("  leaves %s accounts that are there as they are" % count(len(self.kept)))
        lines.append("  other databases are not touched; a load that does not end well changes nothing of what is there now")
        if self.needs:
            lines.append(
                "  needs about %s in %s, where %s are free: old and new lie side by side until the end" % (size(self.needs[0]), self.live, size(self.needs[1]))
            )
        if self.without_events:
            lines.append("  its events do not run on this host: they are created disabled; %s leaves them as they were" % OPTION)
        if self.packet:
            lines.append(
                "  max_allowed_packet is raised from %s to %s for the moment in which the load begins" % (size(self.packet[0]), size(self.packet[1]))
            )
        if self.files:
            lines += ["after that, " + line if not number else line for number, line in enumerate(self.files.lines())]
        return lines + ["  warning: " + warning for warning in self.warnings]

    @property
    def question(self) -> str:
        """What somebody has to agree to."""
        return "replace what is there now with %s" % self.generation.name

    def execute(self, reporter: Reporter) -> RestoreResult:
        """Do it; see `execute.execute`."""
        from .execute import execute  # pylint: disable=import-outside-toplevel  # a plan that is only shown needs none of it

        return execute(self, reporter)


# -- planning


def applies(generation: Generation, *, to: Optional[str], parts: Optional[str], asked: Optional[str]) -> bool:
    """Tell whether a restore loads a dump.

    :param asked: the option that was given and that only a dump has
    :raises UsageError: it was given where nothing is loaded
    """
    dump = isinstance(generation.summary.get("dump"), dict)
    if dump and to is None and parts != FILES:
        pending = journal.pending()  # of its files, when all of it had been loaded
        return asked is not None or pending is None or pending.path != generation.path
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
    parts: str = ALL,
    state: str = journal.STATE,
    resume: bool = False,
) -> LoadPlan:
    """Return the plan for loading a dump. Nothing is changed.

    :param resume: events of another host's dump run as they did there

    :param table: ``DATABASE.TABLE``, in backquotes where a dot in a name would make that two things
    :param parts: as in `restore.plan.make`; not the files alone
    :raises UsageError: the dump does not hold it
    :raises StillpointError: the server can't be reached, is another product, or can't take it
    """
    require("zstd")
    refuse_damaged(generation)
    facts = generation.summary["dump"]
    tables: Dict[str, List[str]] = facts["databases"]
    what = _what(tables, database, table, generation.name)
    databases = tuple(tables) if what == What() else (what.table[0] if what.table else str(what.database),)
    sources = _sources(generation, facts, databases)
    with Session(login_) as session:
        product = servers.product(session)
        flavour, version = product.flavour, product.text
        _same_product(generation, flavour, version)
        there = [str(next(iter(row.values()))) for row in session.rows("SHOW DATABASES")]
        interrupted = beside.pending(state)
        known = [part.old for part in interrupted.parts] if interrupted else []
        refuse(session, facts, what, databases, [name for name in there if name.startswith(OLD) and name not in known])
        live, needs = _room(session, facts, what, databases)
        packet = _packet(session, int(facts["longest_statement"]))
        table_is_there = bool(
            what.table
            and session.rows("SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", what.table)
        )
        made, kept = _accounts(session, generation) if what == What() and facts["accounts"] else ([], [])
        warnings = list(_warnings(session, what))
        if interrupted:
            warnings.append("a restore of %s was interrupted: what that has left is undone before anything else" % interrupted.generation)
        where = session.where
    files = None
    if parts == ALL and what == What() and any(tree.is_files for tree in generation.trees):
        files = plan_restore(generation, parts=FILES, state=state)
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
        tuple(_invalid(generation, what)),
        packet,
        files,
        tuple(warnings),
        state,
        flavour,
        live,
        needs,
        what.table is None and not resume and identity.is_foreign(generation, host_name()),
    )


def _room(session: Session, facts: Dict[str, Any], what: What, databases: Sequence[str]) -> Tuple[str, Optional[Tuple[int, int]]]:
    """Return the server's data directory, where it is on this host, with the bytes that the load takes there and those that are free.

    :raises StillpointError: it would not fit
    """
    datadir = str(session.value("SELECT @@GLOBAL.datadir")).rstrip("/")
    if not service.running_in(datadir):
        return "", None
    if what.table or "sizes" not in facts:
        return datadir, None
    needed = int(sum(facts["sizes"].get(name, 0) for name in databases) * (1 + _MARGIN_SHARE)) + _MARGIN
    log = str(session.value("SELECT @@GLOBAL.log_bin_basename") or "") if str(session.value("SELECT @@GLOBAL.log_bin")) in ("1", "ON") else ""
    if log and os.path.isdir(os.path.dirname(log)) and os.stat(os.path.dirname(log)).st_dev == os.stat(datadir).st_dev:
        needed += int(facts["sql_bytes"])
    free = space(datadir).free
    if free < needed:
        raise StillpointError(
            "the file system of %s has %s free, and old and new data side by side need %s more: free some, or load one database at a time (--database)"
            % (datadir, size(free), size(needed))
        )
    return datadir, (needed, free)


def _what(tables: Dict[str, List[str]], database: Optional[str], table: Optional[str], name: str) -> What:
    if database is not None and database not in tables:
        raise UsageError("the generation %s holds no database %s; it holds %s" % (name, shown(database), named(list(tables)) or "none"))
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
    server = recorded.server(generation)
    dumped = server is not None and server.is_mariadb
    if dumped != (flavour == "mariadb"):
        raise StillpointError(
            "generation %s is a dump of %s, and the server is %s: they write views, routines and accounts differently, and the load would end half way"
            % (generation.name, "MariaDB" if dumped else "MySQL", version)
        )


def _packet(session: Session, longest: int) -> Optional[Tuple[int, int]]:
    """Return what max_allowed_packet is, and what it has to be; None where it is enough."""
    now = int(session.value("SELECT @@GLOBAL.max_allowed_packet"))
    needed = min(LARGEST_PACKET, -(-(longest + _PACKET_UNIT) // _PACKET_UNIT) * _PACKET_UNIT)
    return None if now >= needed else (now, needed)


def _accounts(session: Session, generation: Generation) -> Tuple[List[str], List[str]]:
    there = accounts.existing(session)
    known = list(account_statements(generation))
    return [name for name in known if name not in there], [name for name in known if name in there]


def _invalid(generation: Generation, what: What) -> List[InvalidView]:
    """Return the views that a generation holds as text, as far as they are asked for."""
    if not generation.summary["dump"].get("invalid_views"):
        return []
    with decompressed(os.path.join(generation.path, VIEWS)) as source:
        known = views.parse(b"".join(source.chunks()).decode("utf-8", "surrogateescape"))
    return [view for view in known if what.table is None and what.database in (None, view.database)]


def account_statements(generation: Generation) -> Dict[str, List[str]]:
    """Return the statements of the accounts that a generation holds, by account."""
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
