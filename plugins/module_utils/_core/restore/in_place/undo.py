# SPDX-License-Identifier: GPL-3.0-or-later
"""Undoing a restore in place that was interrupted while it replaced live data: what was live gets its place back, and what was put
back is removed. A kill in between leaves what the same command finishes."""

from __future__ import annotations

import os
from typing import Any, Dict, List, Tuple

from ...host import durable, service
from ...host.errors import StillpointError, UsageError
from ...host.process import undisturbed
from ...host.reporter import Reporter
from .. import journal as journals
from ..server_logs import Logs
from . import exchange
from . import targets as places
from .replaced import forget_record, record
from .targets import Target


def find(state: str = journals.STATE) -> Dict[str, Any]:
    """Return the journal of the restore that can be undone.

    :raises UsageError: there is none
    """
    journal = journals.pending(state=state)
    if journal is None:
        raise UsageError(
            "no restore was interrupted on this host, so there is nothing to undo; what a finished one has replaced lies where its last lines said"
        )
    return journal


def lines(journal: Dict[str, Any]) -> List[str]:
    """Return for people what undoing will do."""
    found = ["undo the restore of generation %s of %s that was interrupted:" % (journal["generation"], journal["job"])]
    found += ["  %s: what was there before gets its place back, and the copy of the backup is removed" % each.path for each in journals.targets(journal)]
    if journal["unit"]:
        found.append("  %s is started after that" % " and ".join([journal["unit"], *journal["triggers"]]))
    return found


def undo(reporter: Reporter, *, state: str = journals.STATE) -> Dict[str, Any]:
    """Undo it and return ``{generation, job, undone, later, service}``; `later` are directories of what had come about meanwhile.

    :raises StillpointError: a server runs, or the disk refuses; saying the same again goes on
    """
    with journals.alone(state):
        journal = find(state)
        journals.write(state, {**journal, "phase": journals.UNDOING})
        targets = journals.targets(journal)
        unit = journal["unit"]
        if unit:
            reporter.stage("stop")
            service.stop(unit, journal["triggers"])
            service.forbid(unit)
        places.refuse_running(targets)
        reporter.stage("undo")
        with undisturbed():
            _put_back(targets, journal, state)
        if unit:
            reporter.stage("start")
            service.allow(unit)
            service.start(unit, places.datadir(targets), journal["triggers"], journal["new_cluster"])
        later = [(target.path, path) for target, path in zip(targets, map(exchange.later, targets)) if path]
        record(state, journal, [{"path": path, "target": where, "identity": durable.identity(path)} for where, path in later])
        journals.forget(state)
    return {
        "generation": journal["generation"],
        "job": journal["job"],
        "undone": [target.path for target in targets],
        "later": [path for _where, path in later],
        "service": unit,
    }


def _put_back(targets: Tuple[Target, ...], journal: Dict[str, Any], state: str) -> None:
    try:
        for target, new, old in zip(targets, journal["identities"], journal["old"]):
            if target.mount_point:
                exchange.undo_contents(target)
            else:
                exchange.undo_directories(target, new, old)
        if journal.get("logs"):
            Logs(**{**journal["logs"], "replaced": tuple(journal["logs"]["replaced"])}).put_back()
        for path in journal["archives"]:
            _forget_note(path, journal["generation"])
        forget_record(state, journal)
    except OSError as error:
        raise StillpointError(
            "the restore could not be undone: %s (%s); %s"
            % (error.strerror, error.filename2 or error.filename, journals.ways_out({**journal, "phase": journals.UNDOING}))
        ) from error


def _forget_note(path: str, generation: str) -> None:
    """Take back what an archive of binary logs was told, if nobody has read it yet."""
    from ...archive.archive import Archive  # pylint: disable=import-outside-toplevel  # only where there is one

    archive = Archive(os.path.dirname(path))
    if durable.identity(path) is not None and (archive.restored() or {}).get("generation") == generation:
        archive.forget_restore()
