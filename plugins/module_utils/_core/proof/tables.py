# SPDX-License-Identifier: GPL-3.0-or-later
"""CHECK TABLE over a scratch server: which tables, and what it complained of.

CHECK TABLE follows InnoDB's indexes and not what a row keeps on pages of its own (BLOB, TEXT, JSON, long VARCHAR), so these columns
are read besides, by the server itself: whether they are compressed or encrypted is its matter. MySQL ends where such a page is broken;
MariaDB gives back what it has of the column and says so in its log alone.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ..mysql.connection import ServerError, Session
from ..mysql.messages import no_name, tables_of
from ..mysql.outside import decoded

# Files that hold the rows of one table alone; one without any of them lies in a tablespace that it shares.
_DATA = (".ibd", ".MYD", ".MAD", ".ARZ", ".CSV")
_PARTITION = re.compile("#p#", re.IGNORECASE)
_OLD = "#mysql50#"  # how the server calls what has a file name that it would not write itself

_WELL = ("ok", "table is already up to date")
# A column of up to 255 bytes lies in its row.
_LONG = (
    "SELECT COLUMN_NAME AS c FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND EXTRA NOT LIKE '%%VIRTUAL%%' AND "
    "(CHARACTER_OCTET_LENGTH > 255 OR DATA_TYPE IN ('json', 'vector', 'geometry', 'geomcollection', 'geometrycollection', 'point', 'multipoint', "
    "'linestring', 'multilinestring', 'polygon', 'multipolygon')) ORDER BY ORDINAL_POSITION"
)
_VERSIONED = "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s AND TABLE_TYPE = 'SYSTEM VERSIONED'"
_MOST = 20  # complaints that are kept

# Words that CHECK TABLE ends with, whatever is wrong.
GENERIC = ("corrupt", "operation failed")

Name = Tuple[str, str]  # schema, table


@dataclass(frozen=True)
class Complaint:
    """A table that is not well.

    :ivar words: of CHECK TABLE, or of the statement that failed
    :ivar lines: what the server has logged meanwhile about this table, or about none
    """

    name: Name
    words: Tuple[str, ...]
    lines: Tuple[str, ...] = ()

    @property
    def table(self) -> str:
        return "%s.%s" % self.name

    @property
    def text(self) -> str:
        telling = [word for word in self.words if word.lower() not in GENERIC]
        return "%s: %s" % (self.table, "; ".join(telling or self.words or self.lines[:1]))


@dataclass
class Checked:
    """What checking tables came to.

    :ivar checked: how many were checked; unchanged: how many had the files that they had when they were checked before
    :ivar unchecked: tables whose engine can't be checked or is not there, with the reason
    :ivar complaints: tables that are not well
    :ivar current: the table that is being checked
    """

    checked: int = 0
    unchanged: int = 0
    unchecked: List[str] = field(default_factory=list)
    complaints: List[Complaint] = field(default_factory=list)
    current: str = ""

    def as_dict(self) -> Dict[str, Any]:
        return {
            "checked": self.checked,
            "unchanged": self.unchanged,
            "unchecked": self.unchecked,
            **complained(self.complaints),
        }


def complained(complaints: Sequence[Complaint]) -> Dict[str, Any]:
    """Return complaints as the manifest has them: the first of them, and how many there are."""
    return {"complaints": [complaint.text for complaint in complaints[:_MOST]], "complaints_total": len(complaints)}


def tables(session: Session) -> List[Name]:
    """Return every table of a server, its own included."""
    rows = session.rows(
        "SELECT TABLE_SCHEMA AS s, TABLE_NAME AS t FROM information_schema.TABLES WHERE TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED') "
        "AND TABLE_SCHEMA NOT IN ('information_schema', 'performance_schema') ORDER BY 1, 2"
    )
    return [(str(row["s"]), str(row["t"])) for row in rows]


def check(session: Session, names: Sequence[Name], checked: Checked, errors: Callable[[], Sequence[str]]) -> None:
    """Check tables one by one, and write what came of it into `checked` as it goes.

    :param errors: gives the errors that the server has logged up to now
    :raises ServerError: the connection was lost; the last complaint names the table
    """
    for name in names:
        checked.current = "%s.%s" % name
        known = len(errors())
        well = False
        try:
            words = check_table(session, name)
            well = not words
            if well:
                read_long_columns(session, *name)
        except ServerError as error:
            checked.complaints.append(Complaint(name, (error.text,), _about(name, errors()[known:])))
            if error.connection_lost:
                raise
            continue
        logged = _about(name, errors()[known:])
        unchecked = [text for text in words if "support check" in text or "Unknown storage engine" in text]
        if well and not logged:
            checked.checked += 1
        elif unchecked:
            checked.unchecked.append("%s: %s" % (checked.current, unchecked[0]))
        else:
            checked.complaints.append(Complaint(name, words, logged))


def check_table(session: Session, name: Name, how: str = "") -> Tuple[str, ...]:
    """Return what CHECK TABLE says against a table; () where it is well.

    :raises ServerError: it can't be checked, or the connection was lost
    """
    rows = session.rows("CHECK TABLE %s.%s %s" % (quoted(name[0]), quoted(name[1]), how))
    said = [(str(row["Msg_type"]).lower(), str(row["Msg_text"])) for row in rows]
    well = not said or said[-1][0] == "status" and said[-1][1].lower() in _WELL
    return () if well else tuple(text for _kind, text in said)


def _about(name: Name, lines: Sequence[str]) -> Tuple[str, ...]:
    """Return those of an error log's lines that are about a table, or about nothing that they name."""
    own = "%s.%s" % name
    return tuple(line for line, table in zip(lines, tables_of(lines)) if table in (own, None) and no_name(line) is None)


def read_long_columns(session: Session, schema: str, table: str) -> None:
    """Read to their ends the columns of a table that may lie outside of their rows, those of a versioned table's history too.

    :raises ServerError: one can't be read
    """
    columns = [str(row["c"]) for row in session.rows(_LONG, (schema, table))]
    if columns:
        history = " FOR SYSTEM_TIME ALL" if session.rows(_VERSIONED, (schema, table)) else ""
        lengths = ", ".join("SUM(LENGTH(%s))" % quoted(column) for column in columns)
        # without an index: from one that has a whole column, its other copy would not be read
        session.rows("SELECT %s FROM %s.%s%s USE INDEX ()" % (lengths, quoted(schema), quoted(table), history))


def unchanged(files: Mapping[str, Tuple[int, int]], before: Mapping[str, Tuple[int, int]]) -> Set[Name]:
    """Return the tables whose files are those of before, by name, size and time; one that shares its tablespace is none of them.

    :param files: as `files_of` returns them, as is `before`
    """
    same: Dict[Name, bool] = {}
    with_data: Set[Name] = set()
    now: Dict[Name, int] = {}
    for name, facts in files.items():
        table = _table_of(name)
        if table is None:
            continue
        same[table] = same.get(table, True) and before.get(name) == facts
        now[table] = now.get(table, 0) + 1
        if name.endswith(_DATA):
            with_data.add(table)
    then: Dict[Name, int] = {}
    for name in before:
        table = _table_of(name)
        if table is not None:
            then[table] = then.get(table, 0) + 1
    return {table for table, is_same in same.items() if is_same and table in with_data and then.get(table) == now[table]}


def files_of(datadir: str) -> Dict[str, Tuple[int, int]]:
    """Return name below the data directory -> bytes and time of modification in ns, for the files of each schema's directory."""
    found: Dict[str, Tuple[int, int]] = {}
    for schema in os.scandir(datadir):
        if not schema.is_dir(follow_symlinks=False):
            continue
        for entry in os.scandir(schema.path):
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                found["%s/%s" % (schema.name, entry.name)] = (status.st_size, status.st_mtime_ns)
    return found


def files_of_table(datadir: str, name: Name) -> Dict[str, str]:
    """Return name below the data directory -> path of the files that belong to a table; {} where there are none, or no such schema."""
    found: Dict[str, str] = {}
    wanted = tuple(part[len(_OLD) :] if part.startswith(_OLD) else part for part in name)
    try:
        schemas = [entry.name for entry in os.scandir(datadir) if decoded(entry.name) == wanted[0]]
        for schema in schemas:
            for file_name in os.listdir(os.path.join(datadir, schema)):
                path = "%s/%s" % (schema, file_name)
                if _table_of(path) == wanted:
                    found[path] = os.path.join(datadir, path)
    except OSError:
        return {}
    return found


def _table_of(name: str) -> Optional[Name]:
    """Return the table that a file belongs to: its name without extension and partition, decoded."""
    schema, _slash, file_name = name.partition("/")
    stem = _PARTITION.split(os.path.splitext(file_name)[0])[0]
    return (decoded(schema), decoded(stem)) if stem and "/" not in file_name else None


def quoted(name: str) -> str:
    return "`%s`" % name.replace("`", "``")
