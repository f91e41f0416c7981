# SPDX-License-Identifier: GPL-3.0-or-later
"""Undoing a restore in place that was interrupted while it replaced live data: what was live gets its place back, and what was put
back is removed. A kill in between leaves what the same command finishes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional

from ...host import durable
from ...host.errors import StillpointError, UsageError
from ...host.process import undisturbed
from ...host.reporter import Reporter
from .. import journal as journals
from ..journal import Journal, KeptPath
from . import exchange
from . import targets as places
from .replaced import forget_record, record


@dataclass(frozen=True)
class UndoResult:
    """A restore that was undone.

    :ivar undone: what has its place back
    :ivar later: directories of what had come about meanwhile
    :ivar service: the unit that was started; None: none
    """

    generation: str
    job: str
    undone: List[str]
    later: List[str]
    service: Optional[str]

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return dict(vars(self))


def find(state: str = journals.STATE) -> Journal:
    """Return the journal of the restore that can be undone.

    :raises UsageError: there is none
    """
    journal = journals.pending(state=state)
    if journal is None:
        raise UsageError(
            "no restore was interrupted on this host, so there is nothing to undo; what a finished one has replaced lies where its last lines said"
        )
    return journal


def lines(journal: Journal) -> List[str]:
    """Return for people what undoing will do."""
    found = ["undo the restore of generation %s of %s that was interrupted:" % (journal.generation, journal.job)]
    found += ["  %s: what was there before gets its place back, and the copy of the backup is removed" % each.path for each in journal.targets]
    if journal.server:
        found.append("  %s is started after that" % journal.server)
    return found


def undo(reporter: Reporter, *, state: str = journals.STATE) -> UndoResult:
    """Undo it.

    :raises StillpointError: a server runs, or the disk refuses; saying the same again goes on
    """
    with journals.alone(state):
        journal = find(state).at(journals.UNDOING, state)
        server = journal.server
        if server:
            reporter.stage("stop")
            server.stop()
        places.refuse_running(journal.targets)
        reporter.stage("undo")
        with undisturbed():
            _put_back(journal, state)
        if server:
            reporter.stage("start")
            server.allow()
            server.start()
        later = [KeptPath(path, target.path, durable.identity(path)) for target in journal.targets for path in [exchange.later(target)] if path]
        record(state, replace(journal, kept=tuple(later)))
        journals.forget(state)
    return UndoResult(
        journal.generation, journal.job, [target.path for target in journal.targets], [each.path for each in later], server.name if server else None
    )


def _put_back(journal: Journal, state: str) -> None:
    try:
        for target, new, old in zip(journal.targets, journal.identities, journal.old):
            if target.mount_point:
                exchange.undo_contents(target)
            else:
                exchange.undo_directories(target, new, old)
        if journal.logs:
            journal.logs.put_back()
        for path in journal.archives:
            _forget_note(path, journal.generation)
        forget_record(state, journal)
    except OSError as error:
        raise StillpointError(
            "the restore could not be undone: %s (%s); %s" % (error.strerror, error.filename2 or error.filename, journal.ways_out)
        ) from error


def _forget_note(path: str, generation: str) -> None:
    """Take back what an archive of binary logs was told, if nobody has read it yet."""
    from ...archive.archive import Archive  # pylint: disable=import-outside-toplevel  # only where there is one

    archive = Archive(os.path.dirname(path))
    if durable.identity(path) is not None and (archive.restored() or {}).get("generation") == generation:
        archive.forget_restore()
