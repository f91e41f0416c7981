# SPDX-License-Identifier: GPL-3.0-or-later
"""Undoing the load of a dump that was interrupted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from ...dump.contents import shown
from ...host.errors import StillpointError
from ...host.reporter import Reporter
from .. import journal as journals
from ..result import UndoResult
from . import beside, swap
from .beside import LOADED, LOADING, Load


@dataclass(frozen=True)
class LoadUndo:
    """What undoing a load will do."""

    load: Load
    state: str

    @property
    def job(self) -> str:
        return self.load.job

    @property
    def generation(self) -> str:
        return self.load.generation

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {"job": self.job, "generation": self.generation, "phase": self.load.phase}

    def lines(self) -> List[str]:
        """Return it for people."""
        found = ["undo the restore of generation %s of %s that was interrupted:" % (self.generation, self.job)]
        for each in self.load.parts:
            what = "%s.%s" % (shown(each.name), shown(each.only)) if each.only else shown(each.name)
            if self.load.phase == LOADED:
                found.append("  %s: it had ended well; what was there before is dropped" % what)
            elif self.load.phase == LOADING:
                found.append("  %s: it was not touched; what was loaded into %s is dropped" % (what, each.new))
            else:
                found.append("  %s: what was there before gets its place back from %s, and what was loaded is dropped" % (what, each.old))
        return found

    def execute(self, reporter: Reporter) -> UndoResult:
        """Undo it.

        :raises BusyError: a restore is running
        :raises StillpointError: the server refuses; saying the same again goes on
        """
        with journals.alone(self.state):
            load = beside.pending(self.state)
            if load is None:
                raise StillpointError("the restore of %s, which was interrupted, has been ended by another run" % self.generation)
            reporter.stage("undo")
            for trouble in swap.put_back(load, self.state):
                reporter.warn(trouble)
        return UndoResult(load.generation, load.job, [part.name for part in load.parts], old_is_gone=load.phase == LOADED)


def find(state: str = journals.STATE) -> Optional[LoadUndo]:
    """Return what undoes the load that was interrupted; None where none was."""
    load = beside.pending(state)
    return LoadUndo(load, state) if load else None
