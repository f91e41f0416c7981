# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a live database RENAME TABLE can't move, as SQL in a directory: triggers, and views, routines and events."""

from __future__ import annotations

import os
import subprocess
from typing import IO, List, Sequence, Tuple

from ...dump import client, views
from ...dump.contents import invalid_views, quoted, shown
from ...host import durable
from ...host.errors import StillpointError
from ...host.process import start
from ...mysql.connection import Login, Session
from .beside import Part

_TRIGGERS, _PROGRAMS, _VIEWS = "triggers", "programs", "invalid-views"
_LOCK_WAIT = 60  # seconds for somebody's transaction


def tables(session: Session, database: str) -> Tuple[str, ...]:
    """Return all of a database that is no view."""
    rows = session.rows("SELECT TABLE_NAME AS name FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_TYPE NOT LIKE '%%VIEW'", (database,))
    return tuple(str(row["name"]) for row in rows)


def triggers(session: Session, part: Part) -> List[Tuple[str, str]]:
    """Return the triggers of the tables of a part, as (name, table)."""
    rows = session.rows("SELECT TRIGGER_NAME AS n, EVENT_OBJECT_TABLE AS t FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = %s", (part.name,))
    return [(str(row["n"]), str(row["t"])) for row in rows if str(row["t"]) in part.tables]


def save(session: Session, login: Login, flavour: str, parts: Sequence[Part], directory: str) -> None:
    """Save what the live databases have of these.

    :raises StillpointError: the server can't show all of it; nothing was touched
    """
    durable.remove_tree(directory)
    os.makedirs(directory, 0o700)
    for number, part in enumerate(parts):
        if not part.there:
            continue
        for index, table in enumerate(_having(part)):
            path = _path(directory, number, "%s-%d" % (_TRIGGERS, index))
            _dump(login, flavour, part, path, ["--no-create-info", "--triggers", "--add-drop-trigger"], [table])
        if part.only and part.only not in part.tables and _exists(session, part):
            _dump(login, flavour, part, _path(directory, number, _PROGRAMS), ["--skip-triggers"], [part.only])
        if not part.only:
            invalid = invalid_views(session, [part.name])
            skipped = ["--ignore-table=%s.%s" % (part.name, name) for name in (*tables(session, part.name), *(view.name for view in invalid))]
            _dump(login, flavour, part, _path(directory, number, _PROGRAMS), ["--skip-triggers", "--routines", "--events", *skipped], [])
            if invalid:
                with open(_path(directory, number, _VIEWS), "w", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(views.text(invalid))
    durable.sync_file_system(directory)


def _having(part: Part) -> List[str]:
    """Return the tables that have triggers."""
    return sorted({table for _name, table in part.triggers})


def _exists(session: Session, part: Part) -> bool:
    return bool(session.rows("SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = %s AND TABLE_NAME = %s", (part.name, part.only)))


def _path(directory: str, number: int, what: str) -> str:
    return os.path.join(directory, "%d-%s.sql" % (number, what))


def _dump(login: Login, flavour: str, part: Part, path: str, how: Sequence[str], names: Sequence[str]) -> None:
    argv = [client.dumper(flavour).path, "", "--no-data", "--skip-lock-tables", "--default-character-set=utf8mb4", *how]
    argv += ["--skip-routines", "--skip-events"] if "--routines" not in how else []
    argv += [] if flavour == "mariadb" else ["--set-gtid-purged=OFF", "--no-tablespaces"]
    with client.option_file(login) as options, open(path, "wb") as file:
        argv[1] = "--defaults-file=" + options
        process = start([*argv, "--", part.name, *names], dies_with_us=True, stdout=file, stderr=subprocess.PIPE)
        said = process.communicate()[1].decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise StillpointError(
            "the views, routines, events and triggers of %s can't be saved before it is replaced (%s): nothing was touched; mend what is named"
            % (shown(part.name), said.splitlines()[-1] if said else "exit status %d" % process.returncode)
        )


def put_back(session: Session, login: Login, flavour: str, part: Part, number: int, directory: str, *, programs: bool) -> List[str]:
    """Make again what was saved of a part, and return a sentence for each invalid view that can't be made.

    :param programs: views, routines and events too
    :raises StillpointError: the server refuses one
    """
    there = triggers(session, part)
    lost = {table for name, table in part.triggers if (name, table) not in there}
    files = [_path(directory, number, "%s-%d" % (_TRIGGERS, index)) for index, table in enumerate(_having(part)) if table in lost]
    for path in (*files, *([_path(directory, number, _PROGRAMS)] if programs else [])):
        if os.path.exists(path):
            with open(path, "rb") as file:
                _feed(login, flavour, part, file)
    path = _path(directory, number, _VIEWS)
    if not programs or not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="surrogateescape") as text:
        known = views.parse(text.read())
    refused = {name for (_database, name), _why in views.make(session, known)}
    return [
        "the view %s, which was invalid before too, could not be made again; what makes it: %s" % (view, view.text) for view in known if view.name in refused
    ]


def _feed(login: Login, flavour: str, part: Part, file: IO[bytes]) -> None:
    with client.option_file(login) as options:
        argv = [*client.load_command(client.loader(flavour), options), "--init-command=SET SESSION lock_wait_timeout = %d" % _LOCK_WAIT, part.name]
        process = start(argv, dies_with_us=True, stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        said = process.communicate()[1].decode("utf-8", "replace").strip()
    if process.returncode != 0:
        raise StillpointError("the server does not take back what %s had: %s" % (quoted(part.name), said.splitlines()[-1] if said else "no reason given"))
