# SPDX-License-Identifier: GPL-3.0-or-later
"""Undoing a restore in place that was interrupted while it replaced live data: what was live gets its place back, and what was put
back is removed. A kill in between leaves what the same command finishes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Dict, List, Optional

from ...host import durable
from ...host.errors import StillpointError
from ...host.process import undisturbed
from ...host.reporter import Reporter
from .. import journal as journals
from ..journal import Journal, KeptPath
from ..result import UndoResult
from . import exchange
from . import targets as places
from .replaced import forget_record, record


@dataclass(frozen=True)
class InPlaceUndo:
    """What undoing a restore in place will do."""

    journal: Journal
    state: str

    @property
    def job(self) -> str:
        return self.journal.job

    @property
    def generation(self) -> str:
        return self.journal.generation

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {key: getattr(self.journal, key) for key in ("job", "generation", "time", "parts", "part", "moment")}

    def lines(self) -> List[str]:
        """Return it for people."""
        found = ["undo the restore of generation %s of %s that was interrupted:" % (self.generation, self.job)]
        found += ["  %s: what was there before gets its place back, and the copy of the backup is removed" % each.path for each in self.journal.targets]
        return found + (["  %s is started after that" % self.journal.server] if self.journal.server else [])

    def execute(self, reporter: Reporter) -> UndoResult:
        """Undo it.

        :raises BusyError: a restore is running
        :raises StillpointError: a server runs, or the disk refuses; saying the same again goes on
        """
        with journals.alone(self.state):
            journal = journals.pending(state=self.state)
            if journal is None:
                raise StillpointError("the restore of %s, which was interrupted, has been ended by another run" % self.generation)
            return _undone(journal, self.state, reporter)


def find(state: str = journals.STATE) -> Optional[InPlaceUndo]:
    """Return what undoes the restore in place that was interrupted; None where none was."""
    journal = journals.pending(state=state)
    return InPlaceUndo(journal, state) if journal else None


def _undone(journal: Journal, state: str, reporter: Reporter) -> UndoResult:
    journal = journal.at(journals.UNDOING, state)
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
    paths = [target.path for target in journal.targets]
    return UndoResult(journal.generation, journal.job, paths, [each.path for each in later], server.name if server else None)


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
