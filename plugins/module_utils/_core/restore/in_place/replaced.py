# SPDX-License-Identifier: GPL-3.0-or-later
"""What restores in place have replaced and kept: recorded, listed, discarded."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

from ...host import durable
from ...host.errors import StillpointError
from ...host.mounts import is_below
from ...host.reporter import Reporter
from .. import journal as journals
from .targets import stamp_of


@dataclass(frozen=True)
class Replaced:
    """Data that a restore in place has replaced and kept.

    :ivar path: where it is
    :ivar target: where it was
    :ivar time: when it was replaced, ISO 8601, UTC
    """

    path: str
    target: str
    time: str
    job: str
    generation: str
    record: str
    identity: str


def forget_record(state: str, journal: Dict[str, Any]) -> None:
    """Remove what `record` has written: nothing of it is kept any more."""
    path = _path(state, journal)
    if os.path.lexists(path):
        os.unlink(path)
        durable.sync_directory(state)


def replaced(job: Optional[str] = None, *, state: str = journals.STATE) -> List[Replaced]:
    """Return what restores in place have replaced and kept, oldest first.

    :param job: of this job; default: of any
    """
    names = [name for name in os.listdir(state) if name.startswith("kept-") and name.endswith(".json")] if os.path.isdir(state) else []
    paths = sorted((os.path.join(state, name) for name in names), key=lambda path: os.stat(path).st_mtime_ns)
    records = [(path, record) for path, record in ((path, durable.read_json(path)) for path in paths) if isinstance(record, dict)]
    found: List[Replaced] = []
    for number, (path, record) in enumerate(records):
        if job not in (None, record["job"]):
            continue
        for kept in record["kept"]:
            where = _now_at(kept, [moved for _path_of_later, later in records[number + 1 :] for moved in later["kept"]])
            # Somebody may have moved it back, or removed it by hand, and something else may have its name.
            if durable.identity(where) == kept["identity"]:
                found.append(Replaced(where, kept["target"], record["time"], record["job"], record["generation"], path, kept["identity"]))
    return found


def _now_at(kept: Dict[str, Any], later: Sequence[Dict[str, Any]]) -> str:
    """Return where something that was kept is now: a later restore may have replaced a directory that it lies in.

    :param later: what later restores have kept, in their order
    """
    where = str(kept["path"])
    for moved in later:
        if is_below(where, moved["target"]) and durable.identity(where) != kept["identity"]:
            where = moved["path"] + where[len(moved["target"]) :]
    return where


def discard(kept: Sequence[Replaced], reporter: Reporter, *, state: str = journals.STATE) -> List[str]:
    """Delete what restores have kept, for good, and return the paths.

    :raises BusyError: a restore is running
    :raises StillpointError: one was interrupted, and may still need it
    """
    gone: List[str] = []
    with journals.alone(state):
        if journals.pending(state=state):
            raise StillpointError("a restore was interrupted while it replaced live data: finish or undo it before anything is discarded")
        reporter.stage("discard")
        for each in kept:
            if durable.identity(each.path) == each.identity:
                durable.remove_tree(each.path)
                gone.append(each.path)
        for record in {each.record for each in kept}:
            facts = durable.read_json(record)
            if not isinstance(facts, dict) or not any(durable.identity(one["path"]) == one["identity"] for one in facts["kept"]):
                os.unlink(record)
    return gone


def record(state: str, journal: Dict[str, Any], kept: Sequence[Dict[str, Any]]) -> None:
    if kept:
        facts = {key: journal[key] for key in ("job", "generation", "time")}
        durable.write_json(_path(state, journal), {**facts, "kept": list(kept)})


def _path(state: str, journal: Dict[str, Any]) -> str:
    first = journal["targets"][0]  # its path too: parts of several directories may be restored within a second
    return os.path.join(state, "kept-%s-%08x.json" % (stamp_of(first["kept"]), zlib.crc32(os.fsencode(first["path"]))))
