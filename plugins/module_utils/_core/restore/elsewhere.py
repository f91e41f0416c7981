# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a generation into a directory, with everything live left alone."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Tuple

from ..host import durable
from ..host.errors import UsageError
from ..host.mounts import is_below
from ..host.reporter import Reporter
from ..host.text import human
from ..mysql import keys
from ..repository.generation import Generation
from . import gtid_state
from .in_place import copy as copying
from .in_place import selection
from .in_place import targets as places
from .in_place.need import Need, needs
from .in_place.targets import Target
from .in_place.warnings import doubts
from .result import RestoreResult

if TYPE_CHECKING:
    from .replay.execute import Replay


@dataclass(frozen=True)
class DirectoryPlan:
    """A restore into a directory that nothing is known to be against.

    :ivar to: the directory
    :ivar replay: what is replayed onto the copy; None: nothing
    :ivar part: the path of the files that is put there alone; None: whole trees
    """

    generation: Generation
    to: str
    targets: Tuple[Target, ...]
    needs: Tuple[Need, ...]
    warnings: Tuple[str, ...]
    replay: Optional["Replay"] = None
    part: Optional[str] = None

    @property
    def question(self) -> Optional[str]:
        """None: nothing is replaced, so nobody is asked."""
        return None

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {
            "generation": self.generation.name,
            "path": self.generation.path,
            "to": self.to,
            "part": self.part,
            "trees": [places.facts(target) for target in self.targets],
            "space": [need.as_dict() for need in self.needs],
            "service": None,
            "resumes": False,
            "recovery": self.replay.as_dict() if self.replay else None,
            "galera": None,
            "does_not_start": None,
            "warnings": list(self.warnings),
        }

    def lines(self) -> List[str]:
        """Return it for people."""
        lines = ["put generation %s back into %s:" % (self.generation.name, self.to)]
        lines += ["  %s: %d files, %s" % (target.path, target.tree.files, human(target.tree.bytes)) for target in self.targets]
        lines += [need.line(about=self.replay is not None) for need in self.needs]
        lines += self.replay.lines() if self.replay else []
        return lines + ["  warning: " + warning for warning in self.warnings]

    def execute(self, reporter: Reporter) -> RestoreResult:
        """Copy and check every tree: each has its final name only when all of them are there.

        :raises StillpointError: what was there before is there
        """
        started = time.monotonic()
        with self.generation.hold():
            recovery = _copied(self, reporter)
        trees = [target.tree for target in self.targets]
        return RestoreResult.of_trees(self.generation.name, trees, started, self.part, recovery=recovery, warnings=list(self.warnings))


def make(
    generation: Generation, to: str, parts: str = selection.ALL, *, path: Optional[str] = None, replay: Optional["Replay"] = None
) -> DirectoryPlan:
    """Return the plan for putting a generation into a directory.

    :param to: a directory that is empty or does not exist
    :param parts: ``all``, ``database`` or ``files``
    :param path: of the files, this path alone, as it is called on the live system
    :param replay: what to replay onto it
    :raises UsageError: this generation does not hold it, or it can't go there
    :raises StillpointError: the generation is damaged, or there is no room
    """
    selection.refuse_damaged(generation)  # or it could not be told what it holds
    trees = selection.trees(generation, parts, path)
    to = os.path.abspath(to)
    if os.path.lexists(to):
        if not os.path.isdir(to):
            raise UsageError("%s is not a directory" % to)
        there = sorted(set(os.listdir(to)) - {places.NEW, places.LOST_AND_FOUND})
        if there:
            raise UsageError("the directory %s is not empty (%s): name one that is, or that does not exist" % (to, ", ".join(there[:3])))
    if is_below(os.path.realpath(to), os.path.realpath(os.path.dirname(generation.path))):
        raise UsageError("%s lies among the generations: name a directory outside the repository" % to)
    targets = tuple(Target(tree, os.path.join(to, tree.name), os.path.join(to, places.NEW, tree.name), "", False) for tree in trees)
    warnings = [*doubts(generation), *(keys.missing_here(generation.summary, lambda _path: False) if places.databases(targets) else ())]
    room = needs([(to, tree) for tree in trees], replay)
    return DirectoryPlan(generation, to, targets, room, tuple(warnings), replay, None if path is None else trees[0].source)


def _copied(plan: DirectoryPlan, reporter: Reporter) -> Optional[Mapping[str, Any]]:
    """Copy, and return what was replayed."""
    made = not os.path.lexists(plan.to)
    staging = os.path.join(plan.to, places.NEW)
    try:
        os.makedirs(plan.to, mode=0o700, exist_ok=True)
        durable.remove_tree(staging)
        os.mkdir(staging, 0o700)
        copying.copy_all(plan.generation, plan.targets, reporter, make=lambda path: os.makedirs(path, mode=0o700, exist_ok=True))
        recovery = copying.replayed(plan.replay, plan.targets, reporter)
        if places.databases(plan.targets):
            gtid_state.renew(places.datadir_of(plan.targets).staging)
        durable.sync_file_system(plan.to)
        for name in sorted(os.listdir(staging)):
            durable.rename_to_free_name(os.path.join(staging, name), os.path.join(plan.to, name))
        os.rmdir(staging)
        return recovery
    except BaseException as error:
        if os.path.isdir(staging):
            durable.remove_tree(staging)
        if made and os.path.isdir(plan.to) and not os.listdir(plan.to):
            os.rmdir(plan.to)
        if isinstance(error, OSError):
            raise copying.untouched(plan.generation, error) from error
        raise
