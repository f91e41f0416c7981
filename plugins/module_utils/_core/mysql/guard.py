# SPDX-License-Identifier: GPL-3.0-or-later
"""Statements that a lock would queue behind, and everybody else behind the lock: found before it is asked for."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterable, List, Mapping, Tuple

from ..host.errors import NotNowError
from .connection import ServerError, Session
from .locks import LockOptions
from .server import Server, Table

WAIT, FAIL, KILL = "wait", "fail", "kill"

_NO_SUCH_THREAD = 1094
_POLL = 0.5

_READS = re.compile(r"\s*(?:/\*.*?\*/\s*)*\(*\s*(select|show|explain|desc|describe|help|with|analyze\s+format|set|use)\b", re.IGNORECASE | re.DOTALL)
_DDL = re.compile(r"\s*(?:/\*.*?\*/\s*)*(alter|create|drop|truncate|rename|optimize|repair|analyze)\b", re.IGNORECASE | re.DOTALL)

# A name in backticks, which stays; a literal; a comment, as an apostrophe in one begins no literal. /*! */ is executed, and so none. An
# escaped quote ends a literal under NO_BACKSLASH_ESCAPES: with one in it, where it ends is not known, and all that follows is hidden.
_HIDDEN = re.compile(
    r"""(?P<name>`[^`]*`?)"""
    r"""|(?P<literal>'(?:[^'\\]+|\\[^']|'')*(?:'|\\.*)?|"(?:[^"\\]+|\\[^"]|"")*(?:"|\\.*)?)"""
    r"""|/\*(?!M?!).*?(?:\*/|\Z)|(?:--\s|\#)[^\n]*""",
    re.DOTALL,
)


@dataclass(frozen=True)
class Cleared:
    """What it took to clear a lock's way.

    :ivar waited_ms: for statements to end
    :ivar killed: the statements that were ended, as text
    """

    waited_ms: int = 0
    killed: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Statement:
    """A running statement. As text it shows no literal: one may be a password."""

    id: int
    user: str
    seconds: float
    text: str

    def __str__(self) -> str:
        shown = " ".join(_HIDDEN.sub(lambda found: found["name"] or ("?" if found["literal"] else " "), self.text).split())
        return "%s's statement %d, running for %d s: %s" % (self.user, self.id, self.seconds, shown if len(shown) <= 60 else shown[:57] + "...")


def in_the_way(statement: Statement, method: str, flavour: str, non_transactional: Iterable[Table]) -> bool:
    """Tell whether a lock would wait for a statement.

    MariaDB's FTWRL waits for statements that write, not for reads; MySQL's waits for both. BACKUP STAGE waits for DDL and
    for statements that write tables which are not transactional; InnoDB's it stops at their commit. LOCK INSTANCE FOR BACKUP
    waits for DDL alone.
    """
    if method in ("none", "instance"):
        return method == "instance" and bool(_DDL.match(statement.text))
    if method == "backup_stage":
        if _DDL.match(statement.text):
            return True
        return not _READS.match(statement.text) and any(re.search(r"\b%s\b" % re.escape(table.name), statement.text) for table in non_transactional)
    if flavour == "mariadb":
        return not _READS.match(statement.text)
    return True


def long_statements(rows: Iterable[Mapping[str, Any]], own_id: int, threshold: float) -> List[Statement]:
    """Return the statements of a process list that have been running for the threshold (s) or longer."""
    found = []
    for found_row in rows:
        row = {name.upper(): value for name, value in found_row.items()}  # SHOW PROCESSLIST has its own capitals
        seconds = float(row["TIME_MS"]) / 1000 if row.get("TIME_MS") is not None else float(row["TIME"] or 0)
        if row["ID"] == own_id or row["COMMAND"] not in ("Query", "Execute") or not row["INFO"] or seconds < threshold:
            continue
        if row["USER"] == "system user":  # replication: it goes on in small steps, and killing it would stop the replica
            continue
        text = row["INFO"] if isinstance(row["INFO"], str) else row["INFO"].decode("utf-8", "replace")
        found.append(Statement(int(row["ID"]), str(row["USER"]), seconds, text))
    return found


def clear_the_way(session: Session, server: Server, method: str, options: LockOptions, note: Callable[[str], None]) -> Cleared:
    """Return once no statement older than long_query_threshold is in the lock's way.

    ``wait`` looks again until long_query_timeout has gone, ``fail`` gives up at once, ``kill`` waits like ``wait`` and
    then ends the statements that are left (KILL QUERY: their sessions live on).

    :raises NotNowError: statements are in the way and stay there
    """
    threshold, timeout, action = options.long_query_threshold, options.long_query_timeout, options.long_query_action
    started = time.monotonic()
    killed: List[str] = []
    noted = False
    while True:
        blockers = [
            statement
            for statement in long_statements(session.rows(_process_list(server)), session.id, threshold)
            if in_the_way(statement, method, server.flavour, server.non_transactional)
        ]
        waited = time.monotonic() - started
        if not blockers:
            return Cleared(round(waited * 1000), tuple(killed))
        if action == FAIL or waited >= timeout:
            if action != KILL or killed:
                raise NotNowError(
                    "the lock %s would wait behind %s (long_query_threshold = %d s, long_query_action = %s): nothing was locked or backed up; try again later"
                    % (method, blockers[0], threshold, action)
                )
            for statement in blockers:
                _kill(session, statement)
                killed.append(str(statement))
                note("ended %s" % statement)
            started, timeout = time.monotonic(), 10  # to see them gone: a large rollback takes its time
        elif not noted:
            note("waiting up to %d s for %s" % (timeout, blockers[0]))
            noted = True
        time.sleep(_POLL)


def _process_list(server: Server) -> str:
    if server.flavour == "mariadb":
        return "SELECT ID, USER, COMMAND, TIME, TIME_MS, INFO FROM information_schema.PROCESSLIST"
    # information_schema.PROCESSLIST is deprecated from 8.0.35 on; performance_schema's is empty where that is switched off
    if server.version >= (8, 0, 22) and server.performance_schema:
        return "SELECT ID, USER, COMMAND, TIME, INFO FROM performance_schema.processlist"
    return "SHOW FULL PROCESSLIST"


def _kill(session: Session, statement: Statement) -> None:
    try:
        session.do("KILL QUERY %d" % statement.id)
    except ServerError as error:
        if error.number != _NO_SUCH_THREAD:
            raise
