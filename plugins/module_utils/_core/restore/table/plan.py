# SPDX-License-Identifier: GPL-3.0-or-later
"""What putting back one table of a physical backup is going to do, and every reason not to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ...dump import client
from ...dump.client import Program
from ...dump.contents import shown
from ...host import service
from ...host.errors import StillpointError, UsageError
from ...host.free_space import space
from ...host.reporter import Reporter
from ...host.text import human
from ...mysql import server as servers
from ...mysql.connection import Login, Session
from ...mysql.settings import Settings
from ...repository import manifest
from ...repository.generation import Generation
from ...repository.manifest import Entry
from .. import journal as journals
from ..in_place.selection import refuse_damaged
from ..replay.execute import settings_of
from ..result import RestoreResult

Key = Tuple[str, str]

LAYER = "layer"

# What a server opens for writing when it starts, whatever it is asked for. Of a file that is opened so, overlayfs copies all (Linux,
# Documentation/filesystems/overlayfs.rst, "Non-directories").
_OPENED = r"ibdata[^/]*|undo[^/]*|[^/]*\.ibu|ib_logfile\d+|#ib_redo[^/]*|mysql\.ibd|aria_log[^/]*"
_MARGIN_SHARE, _MARGIN = 0.05, 64 << 20  # what a recovery writes, temporary tables, the system's own tables


@dataclass(frozen=True)
class TablePlan:
    """What is put back where.

    :ivar into: the name that it gets; the same as `table` unless another one was asked for
    :ivar there: a table of that name is in the live server
    :ivar live: the directory of its data; "" where that is not on this host
    """

    generation: Generation
    table: Key
    into: Key
    login: Login
    where: str
    server: str
    there: bool
    programs: Tuple[Program, Program]
    settings: Settings
    warnings: Tuple[str, ...]
    state: str
    live: str = ""

    @property
    def beside(self) -> bool:
        """Whether the table goes beside the live one, whatever that is called."""
        return self.into != self.table

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {
            "generation": self.generation.name,
            "path": self.generation.path,
            "to": None,
            "server": {"at": self.where, "version": self.server},
            "table": list(self.table),
            "as": list(self.into),
            "replaces_table": self.there,
            "warnings": list(self.warnings),
        }

    def lines(self) -> List[str]:
        """Return it for people."""
        name, into = named(self.table), named(self.into)
        lines = [
            "put the table %s of generation %s into the server at %s (%s):" % (name, self.generation.name, self.where, self.server),
            "  a scratch server that nobody else can reach opens the backup; it writes to %s, and not to the backup" % os.path.join(self.state, LAYER),
        ]
        if self.beside:
            lines.append("  creates %s, without foreign keys and triggers; nothing is replaced" % into)
        elif self.there:
            lines.append("  replaces %s when all rows of the backup are in the server: what is in it now is dropped then, and not kept" % into)
        else:
            lines.append("  creates %s" % into)
        return lines + ["  other tables are not touched"] + ["  warning: " + warning for warning in self.warnings]

    @property
    def question(self) -> str:
        """What somebody has to agree to."""
        what = "put a table beside those that are there, from" if self.beside else "replace what is there now with"
        return "%s %s" % (what, self.generation.name)

    def execute(self, reporter: Reporter) -> RestoreResult:
        """Do it; see `execute.execute`."""
        from .execute import execute  # pylint: disable=import-outside-toplevel  # a plan that is only shown needs none of it

        return execute(self, reporter)


def make(generation: Generation, login: Login, table: str, into: Optional[str] = None, *, state: str = journals.STATE) -> TablePlan:
    """Return the plan for putting a table back. Nothing is changed, and whether the backup holds it shows later, but for a plain case.

    :param table: ``DATABASE.TABLE``, or both in backquotes
    :param into: the same, the name that it gets
    :raises UsageError: that is no name, or the backup holds no such database
    :raises StillpointError: the server can't be reached, or is another product, or there is no room
    """
    refuse_damaged(generation)
    key = parse(table)
    target = parse(into) if into else key
    if not any(not tree.is_files for tree in generation.trees):
        raise UsageError("the generation %s holds no database" % generation.name)
    settings = settings_of(generation)
    settings.find_program()
    _refuse_missing(generation, key)
    with Session(login) as session:
        product = servers.product(session)
        flavour, version = product.flavour, product.text
        if (flavour == "mariadb") != settings.is_mariadb:
            raise StillpointError(
                "generation %s is of %s, and the server is %s: a table can't go from one to the other" % (generation.name, settings.version_text, version)
            )
        there = _exists(session, target)
        if there and target != key:
            raise UsageError("the server has a table %s already: name another one with --as, or drop it first" % named(target))
        warnings = _warnings(session, target != key)
        where = session.where
        datadir = str(session.value("SELECT @@GLOBAL.datadir")).rstrip("/")
    live = datadir if service.running_in(datadir) else ""
    _refuse_narrow(generation, key, settings, state, live)
    programs = client.dumper(flavour), client.loader(flavour)
    return TablePlan(generation, key, target, login, where, version, there, programs, settings, tuple(warnings), state, live)


def parse(text: str) -> Key:
    """Return database and table of a name.

    :raises UsageError: it is none
    """
    match = re.fullmatch(r"`((?:[^`]|``)+)`\.`((?:[^`]|``)+)`", text, re.DOTALL)
    if match:
        return match.group(1).replace("``", "`"), match.group(2).replace("``", "`")
    parts = text.split(".")
    if len(parts) != 2 or not all(parts):
        raise UsageError(
            "%s is not the name of a table: write it as DATABASE.TABLE, and `DATABASE`.`TABLE`, in backquotes, where a name has a dot" % shown(text)
        )
    return parts[0], parts[1]


def _refuse_missing(generation: Generation, key: Key) -> None:
    """Refuse a database that the backup does not hold, as far as names of directories tell."""
    if not re.fullmatch(r"[0-9A-Za-z_]+", key[0]):
        return
    tree = min((tree for tree in generation.trees if not tree.is_files), key=lambda tree: len(tree.name))
    root = os.path.join(generation.path, tree.name)
    found = sorted(name for name in os.listdir(root) if os.path.isdir(os.path.join(root, name)) and not name.startswith(("#", ".")))
    if key[0].lower() not in [name.lower() for name in found]:
        users = [name for name in found if name not in ("mysql", "performance_schema", "sys", "lost+found")]
        raise UsageError("the generation %s holds no database %s; it holds %s" % (generation.name, shown(key[0]), ", ".join(users) or "none"))


def own_files(generation: Generation, key: Key) -> List[Entry]:
    """Return the files of a table; none where only a server knows what they are called."""
    if not all(re.fullmatch(r"[0-9A-Za-z_]+", name) for name in key):
        return []
    return _files(generation, "mysql/%s/%s(?:#.*|\\.[^/]*)" % key)


def _opened_files(generation: Generation, settings: Settings) -> List[Entry]:
    """Return the files that a server opens for writing when it starts."""
    own = [part.split(":")[0] for part in dict(settings.variables).get("innodb_data_file_path", "").split(";")]
    return _files(generation, r"mysql[^/]*/(?:#[^/]*/)?(?:%s)" % "|".join([_OPENED, *map(re.escape, filter(None, own))]))


def _files(generation: Generation, pattern: str) -> List[Entry]:
    wanted = re.compile(pattern.encode(), re.IGNORECASE | re.DOTALL)
    return [entry for entry in manifest.entries(generation.path) if entry.type == manifest.FILE and wanted.fullmatch(entry.path)]


def _refuse_narrow(generation: Generation, key: Key, settings: Settings, state: str, live: str) -> None:
    """Refuse to fill a file system: that of the layer, or that of the server."""
    table = _bytes(generation, own_files(generation, key))
    layer = os.fsencode(os.path.join(state, LAYER))
    left = sum(allocated for _entry, allocated in manifest.walk(layer)) if os.path.isdir(layer) else 0  # by a run that was killed; it is removed first
    needed: Dict[int, Tuple[str, int]] = {}
    for path, size in ((state, table + _bytes(generation, _opened_files(generation, settings)) - left), (live, table)):
        while path and not os.path.isdir(path):
            path = os.path.dirname(path)
        if path:
            first, before = needed.get(os.stat(path).st_dev, (path, 0))
            needed[os.stat(path).st_dev] = (first, before + int(size * (1 + _MARGIN_SHARE)) + _MARGIN)
    for path, size in needed.values():
        free = space(path).free
        if free < size:
            raise StillpointError(
                "the file system of %s has %s free and the restore of %s needs %s there: free some space, or restore the generation into a directory "
                "elsewhere (--to DIR)" % (path, human(free), named(key), human(size))
            )


def _bytes(generation: Generation, entries: Sequence[Entry]) -> int:
    """Return the bytes of disk that files take; holes are not copied."""
    return sum(min(entry.size, os.lstat(os.path.join(os.fsencode(generation.path), entry.path)).st_blocks * 512) for entry in entries)


def _exists(session: Session, key: Key) -> bool:
    return bool(session.rows("SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", key))


def _warnings(session: Session, beside: bool) -> List[str]:
    values = {row["Variable_name"]: row["Value"] for row in session.rows("SHOW GLOBAL VARIABLES WHERE Variable_name IN ('read_only', 'log_bin')")}
    found = []
    if values.get("read_only") not in ("OFF", "0", None):
        found.append("the server is read-only for users (read_only): is it a replica, which should be restored from its source?")
    if values.get("log_bin") == "ON":
        found.append("the table is written to the binary log, and so reaches the server's replicas")
    if not beside:
        found.append("a table alone is put back as it was; rows of other tables that belong to its rows are not")
    return found


def named(key: Key) -> str:
    """Return DATABASE.TABLE, fit to be shown."""
    return "%s.%s" % (shown(key[0]), shown(key[1]))
