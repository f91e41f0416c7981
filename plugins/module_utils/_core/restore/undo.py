# SPDX-License-Identifier: GPL-3.0-or-later
"""Undoing a restore that was interrupted while it replaced what was live, of whatever kind it was."""

from __future__ import annotations

from typing import Union

from ..host.errors import UsageError
from . import journal as journals
from .dump import undo as loads
from .dump.undo import LoadUndo
from .in_place import undo as in_place
from .in_place.undo import InPlaceUndo

Undo = Union[LoadUndo, InPlaceUndo]


def plan(job: str, *, state: str = journals.STATE) -> Undo:
    """Return what undoes the interrupted restore of a job. Nothing is changed.

    :raises UsageError: there is none, or it is one of another job
    """
    found = loads.find(state) or in_place.find(state)
    if found is None:
        raise UsageError(
            "no restore was interrupted on this host, so there is nothing to undo; what a finished one has replaced lies where its last lines said"
        )
    if found.job != job:
        raise UsageError("the restore that was interrupted is one of %s: `stillpoint undo %s` undoes it" % (found.job, found.job))
    return found
