# SPDX-License-Identifier: GPL-3.0-or-later
"""What belongs to a server's tables and lies outside of the directories that a copy takes.

Found on the disk, as information_schema shows an account only the tables that it has privileges for. MariaDB keeps a table's engine and
its options in the ``.frm``, MySQL in a ``.sdi`` where the engine has no place for it.
"""

from __future__ import annotations

import glob
import os
import re
import struct
from dataclasses import dataclass
from typing import AbstractSet, Dict, Iterator, List, Mapping, Sequence, Tuple


@dataclass(frozen=True)
class Outside:
    """Data of the server that a copy would lack.

    :ivar sentence: what it is, and what to do about it
    :ivar path: where it lies; "" where that is no path of this host
    :ivar plain: a file that may be copied beside the server's own, as no engine goes on writing to it by itself
    """

    sentence: str
    path: str
    plain: bool = False


# Extensions of what a table, or a database, consists of.
_OF_TABLES = (
    ".frm", ".ibd", ".isl", ".par", ".opt", ".MYD", ".MYI", ".MAD", ".MAI", ".CSV", ".CSM", ".ARZ", ".ARM", ".MRG", ".TRG", ".TRN", ".sdi", ".tokudb",
)  # fmt: skip
# What engines keep at the top of the data directory; #innodb_temp is made anew.
_OF_ENGINES = re.compile(r"#(?!innodb_temp$)|\.rocksdb$|ibdata|ib_logfile|undo|aria_log|tokudb\.|log\d+\.tokulog|.*\.(ibd|ibu|isl|dblwr|mrn.*)$")

# Plugins of engines whose tables are looked for.
_REMOTE = {"SPIDER": "on another server", "FEDERATED": "on another server", "SPHINX": "in a Sphinx index", "OQGRAPH": "in another table"}
_FAR = frozenset(("MYSQL", "ODBC", "JDBC", "MONGO", "REST"))  # CONNECT's types without a file here
_NO_DATA = frozenset(("DIR", "MAC", "WMI", "VIR", "PROXY", "TBL", "XCOL", "OCCUR", "PIVOT", "CATLG"))
_LOOKED_FOR = ("CONNECT", "COLUMNSTORE", *_REMOTE)

_TABLE_OPTIONS, _PARTITION_ENGINE = 128, 1  # EXTRA2_ENGINE_TABLEOPTS, EXTRA2_DEFAULT_PART_ENGINE (sql/unireg.h)
_SDI_ENGINE = re.compile(rb'"engine": ?"(\w+)"')


def decoded(file_name: str) -> str:
    """Return the identifier that a file name stands for: the server writes other characters as @ and four hex digits."""
    return re.sub(r"@([0-9a-f]{4})", lambda match: chr(int(match.group(1), 16)), file_name)


def lies_in(path: str, directories: Sequence[str]) -> bool:
    return any(path == each or path.startswith(each.rstrip("/") + "/") for each in directories)


def links_out(datadir: str, inside: Sequence[str], own_names: AbstractSet[str] = frozenset()) -> Iterator[Outside]:
    """Give each database, table or tablespace that is a symbolic link, or an ``.isl``, to somewhere else. What else is linked (a socket, a
    certificate, a log) is copied as the link that it is.

    :param own_names: of files at the top of the data directory that the server's settings name
    """
    for entry in _entries(datadir):
        if entry.is_dir(follow_symlinks=False):
            if entry.name.startswith("#") or _holds_tables(entry.path):
                yield from _tables_out(entry.path, datadir, inside)
        elif entry.is_symlink() and os.path.isdir(entry.path):
            if _OF_ENGINES.match(entry.name) or _holds_tables(entry.path):
                yield from _leading_out(entry.path, os.path.realpath(entry.path), datadir, inside)
        elif entry.is_symlink() and (_OF_ENGINES.match(entry.name) or entry.name in own_names):
            yield from _leading_out(entry.path, os.path.realpath(entry.path), datadir, inside)
        elif entry.name.endswith(".isl"):
            yield from _leading_out(entry.path, _isl_target(entry.path), datadir, inside)


def _tables_out(directory: str, datadir: str, inside: Sequence[str]) -> Iterator[Outside]:
    for entry in _entries(directory):
        if entry.is_symlink():
            of_engine = os.path.basename(directory).startswith("#")
            if of_engine or os.path.splitext(entry.name)[1] in _OF_TABLES or os.path.isdir(entry.path):
                yield from _leading_out(entry.path, os.path.realpath(entry.path), datadir, inside)
        elif entry.name.endswith(".isl"):
            yield from _leading_out(entry.path, _isl_target(entry.path), datadir, inside)


def _leading_out(path: str, target: str, datadir: str, inside: Sequence[str]) -> Iterator[Outside]:
    if not lies_in(target, inside):
        yield Outside(
            "%s leads out of the data directory to %s, which the backup would lack: move the table or database back into %s" % (path, target, datadir),
            target,
        )


def _isl_target(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return os.path.realpath(file.read().strip())


def _holds_tables(directory: str) -> bool:
    return any(os.path.splitext(entry.name)[1] in _OF_TABLES for entry in _entries(directory))


def tables_elsewhere(datadir: str, inside: Sequence[str], plugins: AbstractSet[str]) -> Tuple[List[Outside], List[str]]:
    """Return the tables whose rows lie in files elsewhere, and a sentence for each kind of table whose rows lie on no disk of this host.

    :param plugins: names of those that are active, in capitals
    """
    outside: List[Outside] = []
    remote: Dict[str, List[str]] = {}
    if not plugins & set(_LOOKED_FOR):
        return outside, []
    for directory in _entries(datadir):
        if not directory.is_dir():
            continue
        for name, path in _definitions(directory.path):
            table = "%s.%s" % (decoded(directory.name), decoded(name))
            engine, options = _definition(path)
            if engine == "COLUMNSTORE":
                outside.append(Outside(_COLUMNSTORE % table, ""))
            elif engine == "CONNECT" and not _is_far(options):
                outside += _connected(table, directory.path, options, inside)
            elif engine:
                remote.setdefault(_REMOTE.get(engine, "elsewhere (CONNECT, %s)" % options.get("TABLE_TYPE", "").upper()), []).append(table)
    return sorted(outside, key=lambda each: each.sentence), [_sentence(where, tables) for where, tables in sorted(remote.items())]


_COLUMNSTORE = (
    "the table %s is ColumnStore's, which keeps its rows outside of the data directory and writes them by processes of its own, so that no lock "
    "holds them still: back it up with method: dump"
)


def _sentence(where: str, tables: Sequence[str]) -> str:
    more = " and %d more" % (len(tables) - 1) if len(tables) > 1 else ""
    return "the rows of %s%s lie %s, and are not in the backup" % (sorted(tables)[0], more, where)


def _is_far(options: Mapping[str, str]) -> bool:
    return options.get("TABLE_TYPE", "").upper() in _FAR or "HTTP" in options


def _connected(table: str, directory: str, options: Mapping[str, str], inside: Sequence[str]) -> Iterator[Outside]:
    """Give the file that a table of CONNECT reads, where it lies elsewhere; without a name of its own it lies beside the definition."""
    name = options.get("FILE_NAME")
    if not name or options.get("TABLE_TYPE", "").upper() in _NO_DATA:
        return
    path = os.path.realpath(os.path.join(directory, name))
    if not lies_in(path, inside) and _is_there(path):
        yield Outside(
            "the table %s (CONNECT) keeps its rows in %s, which the backup would lack: name that among the job's files, or move it into %s"
            % (table, path, directory),
            path,
            plain=True,
        )


def _is_there(path: str) -> bool:
    """Tell whether there is a file, or one of a pattern as CONNECT takes several for one table."""
    return os.path.lexists(path) or bool(glob.glob(path))


def _definitions(directory: str) -> Iterator[Tuple[str, str]]:
    """Give name and path of each definition that has no file of a common engine beside it."""
    names = {entry.name for entry in _entries(directory)}
    for name in sorted(names):
        stem, extension = os.path.splitext(name)
        if extension in (".frm", ".sdi") and not any(stem + other in names for other in (".ibd", ".MYI", ".MAI", ".ARZ", ".CSV", ".MRG")):
            yield (stem if extension == ".frm" else stem.rpartition("_")[0]), os.path.join(directory, name)


def _definition(path: str) -> Tuple[str, Dict[str, str]]:
    """Return the engine of a table, in capitals, and the options of the table; "" where it is none of those that are looked for."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError:
        return "", {}  # dropped since
    if path.endswith(".sdi"):
        found = _SDI_ENGINE.search(content)
        engine = found.group(1).decode().upper() if found else ""
        return (engine if engine in _LOOKED_FOR else ""), {}
    if not content.startswith(b"\xfe\x01"):
        return "", {}  # a view
    try:
        return _of_frm(content)
    except (IndexError, struct.error, UnicodeDecodeError):
        return "", {}


def _of_frm(content: bytes) -> Tuple[str, Dict[str, str]]:
    """Return engine and options of a ``.frm``: its extra2 segment begins at 64, each entry with its kind and length (sql/table.cc)."""
    engine, options = "", {}
    for name in _LOOKED_FOR:
        if re.search(re.escape(struct.pack("<H", len(name)) + name.encode()), content, re.IGNORECASE):
            engine = name
    at, end = 64, 64 + struct.unpack_from("<H", content, 4)[0]
    while at + 2 < end:
        kind, length = content[at], content[at + 1]
        at += 2
        if not length:
            length, at = struct.unpack_from("<H", content, at)[0], at + 2
        if kind == _PARTITION_ENGINE:
            engine = content[at : at + length].decode().upper()
        elif kind == _TABLE_OPTIONS:
            options = dict(_table_options(content[at : at + length]))
        at += length
    return (engine if engine in _LOOKED_FOR else ""), options


def _table_options(content: bytes) -> Iterator[Tuple[str, str]]:
    """Give name and value of the table's own options, up to those of its columns."""
    at = 0
    while content[at]:
        name = content[at + 1 : at + 1 + content[at]]
        at += 1 + content[at]
        length = struct.unpack_from("<H", content, at)[0] & 0x7FFF  # the highest bit: it was quoted
        yield name.decode().upper(), os.fsdecode(content[at + 2 : at + 2 + length])
        at += 2 + length


def _entries(path: str) -> List["os.DirEntry[str]"]:
    try:
        return list(os.scandir(path))
    except OSError:
        return []  # dropped since, or not a directory
