# SPDX-License-Identifier: GPL-3.0-or-later
"""Error logs: what a line is about, and what the running server has said since its start."""

from __future__ import annotations

import os
import re
from typing import FrozenSet, List, Optional, Sequence

from ..host.errors import StillpointError
from ..host.process import run
from .connection import Session
from .outside import decoded

_STAMP = re.compile(r"^\d{4}-\d\d-\d\d[T ]+[\d:.]+Z? +\d+ +")
_ERROR = "[ERROR]"
_BEGINS = re.compile(r"\[(?:Note|System)\].* (?:Starting MariaDB|starting) .*as process \d+")
_MOST = 4 << 20  # bytes of a log that are read, from its end
_JOURNAL_LINES = 20000
_JOURNAL_LIMIT = 20.0  # seconds

# A name in the data directory that no database of this server can have: it writes all but letters, digits, _ and $ as @ and four digits.
_NO_NAME = re.compile(r"Invalid \(old\?\) table or database name '(?P<name>.*)'")
_FILE = r"[^/'\"`\s]+"
_TABLE = [
    re.compile(pattern)
    for pattern in (
        r"\./(?P<s>%s)/(?P<t>%s)\.(?:ibd|isl|frm|MY[ID]|MA[ID]|MRG|CSV|CSM|ARZ)\b" % (_FILE, _FILE),
        r"`(?P<s>[^`]+)`\.`(?P<t>[^`]+)`",
        r"'\./(?P<s>%s)/(?P<t>%s)'" % (_FILE, _FILE),
        r"(?:table|tablespace|file for|index \S+ of) '?(?P<s>[\w@$#-]+)/(?P<t>[\w@$#-]+)",
        r"(?:[Tt]able|definition of table|Column count of) '?(?P<s>[\w$]+)'?\.'?(?P<t>[\w$]+)",
        r"\[ERROR\] (?P<s>[\w$]+)\.(?P<t>[\w$]+): ",
    )
]
_PARTITION = re.compile("#p#", re.IGNORECASE)
# InnoDB's words on a call that failed; the line that names the file comes after them.
_FOREWORD = re.compile(r"Operating system error number|Error number \d+ means|The error means the system cannot find")


def bare(line: str) -> str:
    """Return a line of an error log without its time and thread."""
    return _STAMP.sub("", line.strip())


def no_name(line: str) -> Optional[str]:
    """Return the name in the data directory that a line calls none of a database or table; None where it is about something else."""
    match = _NO_NAME.search(line)
    return match.group("name") if match else None


def table_of(line: str) -> Optional[str]:
    """Return the table that a line is about, as ``schema.table``; None where it names none."""
    for pattern in _TABLE:
        match = pattern.search(line)
        if match:
            return "%s.%s" % (decoded(match.group("s")), decoded(_PARTITION.split(match.group("t"))[0]))
    return None


def is_foreword(line: str) -> bool:
    """Tell whether a line says what went wrong, and leaves to the next one with what."""
    return bool(_FOREWORD.search(line))


def tables_of(lines: Sequence[str]) -> List[Optional[str]]:
    """Return the table of each line; a foreword has that of the line that it introduces."""
    found: List[Optional[str]] = []
    after: Optional[str] = None
    for line in reversed(lines):
        own = table_of(line)
        after = own or (after if is_foreword(line) else None)
        found.append(after)
    return found[::-1]


def said_by(session: Session) -> FrozenSet[str]:
    """Return the errors that a running server of this host has logged since its start, as far back as its log is read; without their times.

    Where it has no log of its own, the journal has what it writes to its standard error.
    """
    row = session.rows("SELECT @@GLOBAL.log_error AS log, @@GLOBAL.datadir AS datadir, @@GLOBAL.pid_file AS pid_file")[0]
    datadir = str(row["datadir"])
    path = os.path.join(datadir, str(row["log"] or ""))
    try:
        if os.path.isfile(path):
            text = _tail(path)
        else:
            with open(os.path.join(datadir, str(row["pid_file"])), encoding="ascii") as file:
                text = _journal(int(file.read()))
    except (OSError, ValueError, StillpointError):
        return frozenset()
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if _BEGINS.search(line)]
    return frozenset(bare(line) for line in lines[starts[-1] if starts else 0 :] if _ERROR in line)


def _tail(path: str) -> str:
    with open(path, "rb") as file:
        file.seek(max(os.fstat(file.fileno()).st_size - _MOST, 0))
        return file.read(_MOST).decode("utf-8", "replace")


def _journal(pid: int) -> str:
    command = ["journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=%d" % _JOURNAL_LINES, "_PID=%d" % pid]
    return run(command, timeout=_JOURNAL_LIMIT).stdout
