# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server does by itself, replication and events, and keeping a copy from doing it on another host.

On MariaDB the files that say what to replicate get another name, and events are disabled by a scratch server. On MySQL the copy's own persisted
variables (mysqld-auto.cnf) say that neither starts.
"""

from __future__ import annotations

import glob
import json
import os
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ...host import durable
from ...host.errors import StillpointError, UsageError
from ...job.names import host_name
from ...mysql import scratch, settings
from ...mysql.connection import Session
from ...mysql.settings import Settings
from ...repository import identity, recorded
from ...repository.generation import Generation

OPTION = "--resume-replication-and-events"

# How a file of replication is called that the server is not to find.
DISABLED = ".stillpoint-disabled"

# In MariaDB's data directory; of a named connection, the name is in the middle.
_REPLICATION = ("master.info", "master-*.info", "multi-master.info", "relay-log.info", "relay-log-*.info")
_PERSISTED = "mysqld-auto.cnf"
_PERSISTS_SKIP = (8, 0, 26)  # skip_replica_start is a variable that can be persisted
_SECOND_FORMAT = (8, 0, 29)


@dataclass(frozen=True)
class Activity:
    """What a copy would begin to do.

    :ivar sources: ``host:port`` of each source that it would replicate from
    :ivar events: enabled events that the account of the backup could see, as ``database.name``
    """

    settings: Settings
    sources: Tuple[str, ...]
    events: Tuple[str, ...]

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {"sources": list(self.sources), "events": list(self.events)}

    def lines(self) -> List[str]:
        """Return for people what does not start."""
        found = []
        if self.sources:
            found.append("  replication from %s does not start on this host" % ", ".join(self.sources))
        known = " (%s)" % ", ".join(self.events) if self.events else ""
        found.append("  events%s do not run on this host; %s leaves both as they were" % (known, OPTION))
        return found


def of_another_host(generation: Generation, datadir: str) -> Optional[Activity]:
    """Return what a server on a copy of another host's generation would begin to do; None where it is this host's own, or where it is not known how
    the server was set up.

    :param datadir: name of the tree of its data directory
    :raises UsageError: it is of a server that can't be kept from it
    """
    summary = generation.summary
    if not summary.get("settings") or not identity.is_foreign(generation, host_name()):
        return None
    known = settings.from_dict(summary["settings"])
    if known.is_mariadb:
        known.find_program()
    stood = recorded.coordinates(generation)
    sources = ["%s:%s" % (source.host, source.port) for source in (stood.replica if stood else None) or () if source.host]
    sources = sources or [_source(path) for path in _files(os.path.join(generation.path, datadir)) if os.path.basename(path).startswith("master")]
    if not known.is_mariadb and known.version < _PERSISTS_SKIP:
        raise UsageError(
            "%s would replicate and run events as the host that was backed up did, and MySQL %s can't be kept from it: say %s"
            % (generation.name, known.version_text, OPTION)
        )
    return Activity(known, tuple(sources), tuple(summary.get("events") or ()))


def _files(datadir: str) -> List[str]:
    return sorted(path for pattern in _REPLICATION for path in glob.glob(os.path.join(glob.escape(datadir), pattern)))


def _source(path: str) -> str:
    """Return ``host:port`` from a file of MariaDB's: its first line says how many lines follow, the fourth and the seventh are these."""
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    return "%s:%s" % (lines[3], lines[6]) if len(lines) > 6 else os.path.basename(path)


def disable(activity: Activity, where: Mapping[str, str]) -> Dict[str, List[str]]:
    """Keep a copy from replicating and from running events, and return what was disabled: ``{replication, events}``.

    :param where: for each of the settings' paths, the directory of the copy
    :raises StillpointError: that could not be done
    """
    datadir = where[activity.settings.datadir]
    if not activity.settings.is_mariadb:
        _persist(datadir, activity.settings.version)
        return {"replication": list(activity.sources), "events": list(activity.events) or ["all"]}
    for path in _files(datadir):
        os.rename(path, path + DISABLED)
    durable.sync_directory(datadir)
    return {"replication": list(activity.sources), "events": _disable_events(activity.settings, where)}


def _disable_events(known: Settings, where: Mapping[str, str]) -> List[str]:
    """Disable every event that is enabled, and return their names."""
    try:
        with scratch.scratch_server(known, where, discard=False) as server, Session(server.login) as session:
            rows = session.rows("SELECT db, name FROM mysql.event WHERE status = 'ENABLED' ORDER BY db, name")
            if rows:
                session.do("UPDATE mysql.event SET status = 'DISABLED' WHERE status = 'ENABLED'", "FLUSH TABLES mysql.event")
            return ["%s.%s" % (row["db"], row["name"]) for row in rows]
    except StillpointError as error:
        raise StillpointError("the events of the copy can't be disabled: %s; %s leaves them as they were" % (error, OPTION)) from error


def _persist(datadir: str, version: Sequence[int]) -> None:
    """Have MySQL start neither replication nor events, as SET PERSIST would (its manual, "Persisted System Variables"; persisted_variable.cc)."""
    path = os.path.join(datadir, _PERSISTED)
    old = durable.read_json(path)
    if os.path.lexists(path) and not isinstance(old, dict):
        raise StillpointError("%s can't be read: %s leaves replication and events as they were" % (path, OPTION))
    first = {"Version": 1, "mysql_server": {}}
    facts: Dict[str, Any] = old if isinstance(old, dict) else first if tuple(version) < _SECOND_FORMAT else {"Version": 2}
    moment = {"Timestamp": int(time.time() * 1e6), "User": "stillpoint", "Host": "localhost"}
    if facts.get("Version") == 1:
        dynamic = facts.setdefault("mysql_server", {})
        static = dynamic.setdefault("mysql_server_static_options", {})
    else:
        dynamic, static = (facts.setdefault("mysql_%s_variables" % kind, {}) for kind in ("dynamic", "static"))
    static["skip_replica_start"] = {"Value": "ON", "Metadata": moment}
    dynamic["event_scheduler"] = {"Value": "OFF", "Metadata": moment}
    owner = os.stat(datadir)
    with open(path + ".new", "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o640)) as file:
        json.dump(facts, file)
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        file.flush()
        os.fsync(file.fileno())
    durable.rename(path + ".new", path)


def way_back(activity: Activity, done: Mapping[str, Sequence[str]], datadir: str) -> List[str]:
    """Return for people how what was disabled is enabled again."""
    if not activity.settings.is_mariadb:
        return ["replication and events do not start on this host: RESET PERSIST skip_replica_start; RESET PERSIST event_scheduler; and restart the server"]
    found = []
    if done["replication"]:
        found.append("replication was disabled: to let it begin, rename %s/*%s back and restart the server" % (datadir, DISABLED))
    if done["events"]:
        found.append("events were disabled: ALTER EVENT ... ENABLE for each of %s" % ", ".join(done["events"]))
    return found
