# SPDX-License-Identifier: GPL-3.0-or-later
"""Undoing a restore that was interrupted while it replaced what was live, of whatever kind it was."""

from __future__ import annotations

from typing import Union

from ..host.errors import UsageError
from . import journal as journals
from .dump import undo as loads
from .dump.undo import LoadUndo
from .in_place import undo as in_place
from .in_place.replaced import replaced
from .in_place.undo import InPlaceUndo

Undo = Union[LoadUndo, InPlaceUndo]


def plan(job: str, *, state: str = journals.STATE) -> Undo:
    """Return what undoes the interrupted restore of a job. Nothing is changed.

    :raises UsageError: there is none, or it is one of another job
    """
    found = loads.find(state) or in_place.find(state)
    if found is None:
        raise UsageError(_nothing(job, state))
    if found.job != job:
        raise UsageError("the restore that was interrupted is one of %s: `stillpoint undo %s` undoes it" % (found.job, found.job))
    return found


def _nothing(job: str, state: str) -> str:
    kept = [each.path for each in replaced(job, state=state)]
    if not kept:
        return "no restore was interrupted on this host, and none of %s has kept what it replaced: there is nothing to undo" % job
    return "the restore of %s has ended, and undo is for one that was interrupted: what it replaced is in %s, to be moved back with the server stopped" % (
        job,
        ", ".join(kept),
    )
