# SPDX-License-Identifier: GPL-3.0-or-later
"""The retention of a copy from which this host may remove backups."""

from __future__ import annotations

from dataclasses import replace
from typing import List

from ..host.errors import StillpointError
from ..host.reporter import Reporter
from ..host.steps import reached
from ..job.options import Keep
from .destination import Destination


def prune(destination: Destination, keep: Keep, reporter: Reporter) -> List[str]:
    """Remove the generations from a copy that a retention no longer keeps, and return their names.

    :raises StillpointError: something that was to go is still there, or its room could not be freed; the next call goes on
    """
    with destination.alone():
        known = destination.look()
        stay = known.staying(keep)
        gone = [each for each in known.generations if each.name not in stay]
        if not (gone or known.broken or known.pruning):
            return []
        reporter.stage("prune")
        restic = destination.restic
        destination.keep(replace(known, pruning=True))
        restic.send("unlock")  # of locks, those alone whose process is gone
        if gone or known.broken:
            restic.send("forget", *(each.id for each in gone), *known.broken)
        reached("forgotten", destination.copy)
        left = [each.name for each in destination.look().generations if each.name not in stay]
        if left:
            names = ", ".join(left)
            raise StillpointError("%s could not be removed from %s: does this account only add there? then say append_only: true" % (names, restic.url))
        destination.keep(replace(destination.known, broken=()))
        restic.send("prune")
        destination.keep(replace(destination.known, pruning=False))
    return [each.name for each in gone]
