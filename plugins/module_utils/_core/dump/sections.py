# SPDX-License-Identifier: GPL-3.0-or-later
"""What a dump consists of, told from its stream while it goes by.

mysqldump and mariadb-dump head each part of a dump with a comment (``-- Table structure for table `x` ``). A comment counts only
where a statement may begin: the text of a view, a routine, a trigger or an event may hold lines that look the same, and so may
names. Rows are written with their line feeds escaped, so they go by unread; everything else is read by the client's own rules
for quotes, comments and DELIMITER (client/mysql.cc, add_line).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Iterator, List, Optional, Tuple

from ..host.errors import StillpointError

HEAD, DATABASE, TABLE, DATA, STAND_IN, VIEW, PROGRAMS, FOOT = "head", "database", "table", "data", "stand-in", "view", "programs", "foot"

_IDENTIFIER = rb"`((?:[^`]|``)*)`"
_MARKERS = (
    (DATABASE, re.compile(rb"-- Current Database: " + _IDENTIFIER + rb"\n")),
    (TABLE, re.compile(rb"-- (?:Table|Sequence) structure for (?:table )?" + _IDENTIFIER + rb"\n")),
    (DATA, re.compile(rb"-- Dumping data for table " + _IDENTIFIER + rb"\n")),
    (STAND_IN, re.compile(rb"-- Temporary (?:table|view) structure for view " + _IDENTIFIER + rb"\n")),
    (VIEW, re.compile(rb"-- Final view structure for view " + _IDENTIFIER + rb"\n")),
)
_MARKER = re.compile(rb"-- (?:Current Database: |(?:Table|Sequence) structure for |Dumping data for table |(?:Temporary|Final) [a-z]+ structure for )")
_PROGRAMS = re.compile(rb"-- Dumping [a-z ]+ for database '")
_FOOT = b"/*!40103 SET TIME_ZONE=@OLD_TIME_ZONE"
_COMPLETED = re.compile(rb"-- Dump completed(?: on [-0-9: ]+)?\n")
_POSITION = re.compile(rb"-- CHANGE (?:MASTER|REPLICATION SOURCE) TO (?:MASTER|SOURCE)_LOG_FILE='([^']*)', (?:MASTER|SOURCE)_LOG_POS=(\d+);")
_GTID = re.compile(rb"-- SET GLOBAL gtid_slave_pos='([^']*)';")

_COLUMN = rb"(?:`(?:[^`]|``)*`|\w+)"
_COLUMNS = rb"(?: \(" + _COLUMN + rb"(?:, " + _COLUMN + rb")*\))?"
_INSERT = re.compile(rb"(?:INSERT|REPLACE)(?: IGNORE)? INTO " + _IDENTIFIER + _COLUMNS + rb" VALUES\s")
_INSERTS = (b"INSERT ", b"REPLACE INTO `", b"REPLACE IGNORE ")
_DELIMITER = re.compile(rb"DELIMITER (\S+)\s*\n")
_SQL_MODE = re.compile(rb"\s*/\*!50003 SET sql_mode\s+= (.*?)\*/", re.DOTALL)

# Where something begins in which a delimiter does not count. A comment for the server alone (/*! … */) is code.
_OPENING = re.compile(rb"['\"`#;]|--(?=\s)|/\*(?!M?!)")
_CLOSING = {
    b"'": re.compile(rb"(?:[^'\\]|\\.)*'", re.DOTALL),
    b'"': re.compile(rb'(?:[^"\\]|\\.)*"', re.DOTALL),
    b"`": re.compile(rb"[^`]*`"),
    b"#": re.compile(rb"[^\n]*\n"),
    b"--": re.compile(rb"[^\n]*\n"),
    b"/*": re.compile(rb".*?\*/", re.DOTALL),
}
_PLAIN_CLOSING = {**_CLOSING, b"'": re.compile(rb"[^']*'"), b'"': re.compile(rb'[^"]*"')}  # NO_BACKSLASH_ESCAPES

# A statement other than rows that is longer is none: the stream is no dump.
_LONGEST_OTHER = 256 << 20


@dataclass(frozen=True)
class Section:
    """A part of a dump.

    :ivar name: of the table or view; "" for what belongs to the database, or to the whole dump
    """

    kind: str
    database: str = ""
    name: str = ""


Piece = Tuple[Section, bytes]


class Scanner:
    """Cuts the stream of a dump into pieces that belong to one section each.

    :ivar longest: bytes of the longest statement so far
    :ivar position: ``(file, position)`` of the binary log that the dump states in a comment
    :ivar gtid: the GTID position that it states so
    """

    def __init__(self) -> None:
        self.section = Section(HEAD)
        self.longest = 0
        self.position: Optional[Tuple[str, int]] = None
        self.gtid: Optional[str] = None
        self._rest = b""
        self._row_bytes: Optional[int] = None  # of the INSERT that is going by
        self._delimiter = b";"
        self._closing = _CLOSING
        self._in_title = True  # the comments at the top hold the name of a database as it is
        self._completed = False

    @property
    def complete(self) -> bool:
        """Whether what has gone by ended as a complete dump does."""
        return self._completed and not self._rest and self._row_bytes is None

    def feed(self, chunk: bytes) -> Iterator[Piece]:
        """Return the pieces that are known now; joined they are what was fed, but for the end that waits for more."""
        data = self._rest + chunk if self._rest else chunk
        at = 0
        end: Optional[int]
        while at < len(data):
            if self._row_bytes is not None:
                end = self._rows(data, at)
            else:
                end = self._heading(data, at) or self._statement(data, at)
            if end is None or end == at:
                break
            yield self.section, data[at:end]
            at = end
        self._rest = data[at:]
        if len(self._rest) > _LONGEST_OTHER:
            raise StillpointError("this is no dump: a statement at %r does not end" % self._rest[:40].decode("utf-8", "replace"))

    def _heading(self, data: bytes, at: int) -> Optional[int]:
        """Enter the section whose heading begins here and return where that ends; None where there is none, or not all of it yet."""
        if self._in_title or self._delimiter != b";" or not data.startswith(b"-- ", at):
            return None
        for kind, marker in _MARKERS:
            match = marker.match(data, at)
            if match:
                # mysqldump goes on with "-- " after a line feed in a name
                name = match.group(1).replace(b"``", b"`").replace(b"\n-- ", b"\n").decode("utf-8", "surrogateescape")
                self.section = Section(kind, name) if kind == DATABASE else Section(kind, self.section.database, name)
                return match.end()
        match = _PROGRAMS.match(data, at)
        if match and data.startswith(self._quoted_database, match.end()):
            self.section = Section(PROGRAMS, self.section.database)
            return match.end() + len(self._quoted_database)
        return None

    @property
    def _quoted_database(self) -> bytes:
        """How the heading of a database's programs goes on: nothing in it is escaped, and it may be more than a line."""
        return self.section.database.encode("utf-8", "surrogateescape").replace(b"\n", b"\n-- ") + b"'\n"

    def _rows(self, data: bytes, at: int) -> int:
        """Return the end of the rows that are there: line feeds in them are escaped, so that a bare one ends a line of rows."""
        end = data.find(b";\n", at)
        if end < 0:
            end = len(data) - (1 if data.endswith(b";") else 0)
            self._row_bytes = (self._row_bytes or 0) + end - at
            return end
        self.longest = max(self.longest, (self._row_bytes or 0) + end - at)
        self._row_bytes = None
        return end + 2

    def _statement(self, data: bytes, at: int) -> Optional[int]:
        """Return the end of the line or statement that begins here; None where it is not all there yet."""
        line_end = data.find(b"\n", at) + 1
        if self._delimiter == b";":
            if data.startswith(b"--", at) or data.startswith(b"/*M!999999", at):
                return self._comment(data, at, line_end)
            if data.startswith(b"\n", at):
                self._in_title = False
                return at + 1
            if data.startswith(_INSERTS, at):
                match = _INSERT.match(data, at)
                if match:
                    self._row_bytes = match.end() - at
                    return match.end()
                return None
            if any(insert.startswith(data[at : at + len(insert)]) for insert in _INSERTS):
                return None  # the beginning of one, perhaps
        if not line_end and len(data) - at < 16:
            return None
        match = _DELIMITER.match(data, at)
        if match:
            self._delimiter = match.group(1)
            return match.end()
        if data.startswith(b"DELIMITER ", at):
            return None
        return self._code(data, at)

    def _comment(self, data: bytes, at: int, line_end: int) -> Optional[int]:
        if not line_end:
            return None
        if not self._in_title:  # the name in a heading may go on in the next line
            programs = _PROGRAMS.match(data, at)
            if _MARKER.match(data, at) or (programs and self._quoted_database.startswith(data[programs.end() :])):
                return None
        match = _POSITION.match(data, at)
        if match:
            self.position = (match.group(1).decode(), int(match.group(2)))
        match = _GTID.match(data, at)
        if match:
            self.gtid = match.group(1).decode()
        if self.section.kind == FOOT and _COMPLETED.match(data, at):
            self._completed = True
        return line_end

    def _code(self, data: bytes, at: int) -> Optional[int]:
        """Return the end of the statement that begins here, with its delimiter and the rest of that line."""
        place = at
        while True:
            match = _OPENING.search(data, place)
            if match is None:
                return None
            if match.group() == b";":
                if data.startswith(self._delimiter, match.start()):
                    break
                place = match.end()
                if place == len(data):
                    return None
                continue
            closed = self._closing[match.group()].match(data, match.end())
            if closed is None:
                return None
            place = closed.end()
        end = data.find(b"\n", match.start()) + 1
        if not end:
            return None
        self.longest = max(self.longest, end - at)
        if data.startswith(_FOOT, at):
            self.section = Section(FOOT)
        mode = _SQL_MODE.match(data, at)
        if mode:
            self._closing = _PLAIN_CLOSING if b"NO_BACKSLASH_ESCAPES" in mode.group(1) else _CLOSING
        return end


def statements(text: bytes) -> List[bytes]:
    """Return the statements of a text, comments at their beginnings left out."""
    scanner = Scanner()
    return [piece for _section, piece in scanner.feed(b"\n" + text) if not piece.startswith(b"--") and piece.strip()]
