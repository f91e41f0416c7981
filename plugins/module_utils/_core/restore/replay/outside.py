# SPDX-License-Identifier: GPL-3.0-or-later
"""Row events of tables whose rows are in no backup: those of MEMORY tables, which a restart empties, and those of tables that are on another
server. What a MEMORY table lacks is passed over, as after a restart; nothing is written to another server.

A replay executes BINLOG statements that mariadb-binlog writes, each of one statement's row events, with the names of its tables before it.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from dataclasses import dataclass
from typing import BinaryIO, Dict, Iterable, List, Set, Tuple

from ...archive.line import Piece
from ...binlog import events
from ...binlog.format import CHANGES_ROWS, TABLE_MAP
from ...dump.contents import quoted, shown
from ...host.text import count
from ...mysql.connection import Session
from ...repository import manifest
from ...repository.generation import Generation

Key = Tuple[str, str]

#: Options that keep a scratch server with grant tables from loading engines of other servers, which mysql.plugin may name.
#: Without "plugin-", "connect" would be short for connect_timeout.
NO_REMOTE = tuple("--loose-plugin-%s=OFF" % name for name in ("federated", "spider", "connect", "s3"))

_REMOTE = re.compile(r"Unknown storage engine '(?:FEDERATED|SPIDER|CONNECT|S3)'", re.IGNORECASE)
_HEAP = b"\xfe\x01\x00\x06"  # of a definition: its magic, a version, and DB_TYPE_HEAP (handler.h)
_MAP = re.compile(rb"#\d{6} [ \d]\d:\d\d:\d\d server id \d+  end_log_pos \d+ .*\tTable_map: (`.*`) mapped to number ")
_BEGIN, _END = b"BINLOG '\n", b"'/*!*/;\n"
_MOST_NAMED = 5


@dataclass(frozen=True)
class MemoryTables:
    """The MEMORY tables of a backup.

    :ivar events: row events in the logs that change or remove rows of theirs
    """

    tables: Tuple[Key, ...] = ()
    events: int = 0

    def lines(self) -> List[str]:
        """Return for people what becomes of them."""
        if not self.events:
            return []
        names = ", ".join("%s.%s" % (shown(database), shown(table)) for database, table in self.tables[:_MOST_NAMED])
        more = " and %s more" % count(len(self.tables) - _MOST_NAMED) if len(self.tables) > _MOST_NAMED else ""
        return [
            "  %s row events are of MEMORY tables (%s%s), of which a backup holds no rows: what they don't find is skipped, as after a restart of the server"
            % (count(self.events), names, more)
        ]


def memory_tables(generation: Generation, pieces: Iterable[Piece], start: int, stop: int) -> MemoryTables:
    """Return the MEMORY tables of a generation with what the logs have of them, from a position in the first to one in the last.

    Nothing but the definition is on the disk of such a table; MySQL 8 keeps definitions elsewhere, and none is found.
    """
    found = _definitions(generation)
    if not found:
        return MemoryTables()
    logs = list(pieces)
    number = 0
    for piece in logs:
        first, last = start if piece is logs[0] else 0, stop if piece is logs[-1] else piece.usable
        number += _changes(piece.path, found, first, last)
    return MemoryTables(tuple(sorted(found)), number)


def _definitions(generation: Generation) -> Set[Key]:
    files: Dict[bytes, List[bytes]] = {}
    for entry in manifest.entries(generation.path):
        stem, dot, suffix = entry.path.rpartition(b".")
        if dot and entry.type == manifest.FILE:
            files.setdefault(stem, []).append(suffix)
    found = set()
    for stem, suffixes in files.items():
        if suffixes == [b"frm"]:
            with open(os.path.join(os.fsencode(generation.path), stem + b".frm"), "rb") as file:
                beginning = file.read(4)
            if beginning[:2] + b"\x00" + beginning[3:] == _HEAP[:2] + b"\x00" + _HEAP[3:]:
                database, table = stem.split(b"/")[-2:]
                found.add((_name(database), _name(table)))
    return found


def _name(file: bytes) -> str:
    """Return the name that a file name stands for (tablename_to_filename)."""
    return re.sub(r"@([0-9a-f]{4})", lambda match: chr(int(match.group(1), 16)), file.decode("utf-8", "surrogateescape"))


def _changes(path: str, tables: Set[Key], first: int, last: int) -> int:
    """Return how many events of a log update or delete rows of these tables, between two positions."""
    mine: Set[bytes] = set()
    number = 0

    def look(kind: int, end: int, body: bytes) -> None:
        nonlocal number
        if kind == TABLE_MAP:
            (mine.add if _mapped(body) in tables else mine.discard)(body[:6])
        elif kind in CHANGES_ROWS and body[:6] in mine and first < end <= last:
            number += 1

    events.read(path, look=look)
    return number


def _mapped(body: bytes) -> Key:
    """Return the table that a table map event names: behind its number and flags, each name with its length before it."""
    (length,) = struct.unpack_from("<B", body, 8)
    database = body[9 : 9 + length]
    at = 9 + length + 1
    return database.decode("utf-8", "replace"), body[at + 1 : at + 1 + body[at]].decode("utf-8", "replace")


class Filter:
    """Stands between a reader of logs and the client that executes them. The lines keep their numbers, by which errors are told."""

    def __init__(self, session: Session, *, mariadb: bool) -> None:
        rows = session.rows("SELECT TABLE_SCHEMA AS d, TABLE_NAME AS t, ENGINE AS e, TABLE_COMMENT AS c FROM information_schema.TABLES")
        named = [("%s.%s" % (quoted(row["d"]), quoted(row["t"])), row) for row in rows]
        self._memory = {name.encode("utf-8", "surrogateescape") for name, row in named if row["e"] == "MEMORY" and row["d"] != "information_schema"}
        self._remote = {name.encode("utf-8", "surrogateescape") for name, row in named if _REMOTE.match(str(row["c"]))}
        how = "SET GLOBAL slave_exec_mode='%s'/*!*/;" if mariadb else "SET SESSION rbr_exec_mode='%s'/*!*/;"
        self._lenient, self._strict = (how % mode for mode in ("IDEMPOTENT", "STRICT"))
        self._error: List[BaseException] = []
        self._thread = threading.Thread(target=lambda: None)

    @property
    def needed(self) -> bool:
        return bool(self._memory or self._remote)

    @property
    def remote(self) -> List[str]:
        """The tables that nothing is written to."""
        return sorted(name.decode("utf-8", "replace") for name in self._remote)

    def start(self, source: BinaryIO, sink: BinaryIO) -> None:
        """Begin to pass lines on."""

        def work() -> None:
            try:
                with source, sink:
                    self._pass_on(source, sink)
            except BrokenPipeError:
                pass  # the client has ended, which says why
            except BaseException as error:  # pylint: disable=broad-exception-caught  # raised by `end`
                self._error.append(error)

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait until everything was passed on, and raise what went wrong."""
        if self.needed:
            self._thread.join(60)
            for error in self._error:
                raise error

    def _pass_on(self, source: BinaryIO, sink: BinaryIO) -> None:
        tables: List[bytes] = []
        after = b""  # what follows the end of the statement
        skipping = False
        for line in source:
            match = _MAP.match(line)
            if match:
                tables.append(match.group(1))
            elif line == _BEGIN:
                skipping = bool(tables) and self._remote.issuperset(tables)
                if tables and self._memory.issuperset(tables):
                    line, after = self._lenient.encode() + line, self._strict.encode()
                tables = []
            ends = line == _END
            if skipping:
                line = b"\n"
            elif ends and after:
                line, after = line[:-1] + after + b"\n", b""
            skipping = skipping and not ends
            sink.write(line)
