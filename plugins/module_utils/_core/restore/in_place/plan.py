# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a restore in place: what it replaces, what it takes, which server is stopped for it, and every reason against it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ...host import service
from ...host.errors import UsageError
from ...host.reporter import Reporter
from ...host.text import human
from ...repository import recorded
from ...repository.generation import Generation
from .. import journal as journals
from .. import server_logs
from ..dump import beside
from ..journal import Journal
from ..result import RestoreResult
from ..rollback.plan import refuse_going_back
from ..server_logs import Logs
from ..unit import Unit
from . import activity as activities
from . import cluster, one_path, owners, selection
from . import targets as places
from .activity import Activity
from .cluster import Node
from .need import Need, needs
from .selection import ALL, DATABASE, FILES
from .targets import Target
from .warnings import warnings_of

if TYPE_CHECKING:
    from ...archive.archive import Archive
    from ..replay.execute import Replay

BACK_UP = "take a backup as soon as it is done: no moment after the restore can be recovered before there is one"


@dataclass(frozen=True)
class InPlacePlan:
    """A restore in place that nothing is known to be against.

    :ivar journal: what it puts where; of one that was interrupted while it replaced, how far that came
    :ivar replay: what is replayed onto the copy before it replaces anything; None: nothing
    :ivar archives: of this server's binary logs: what comes after the restore does not follow on them
    :ivar activity: what the server is kept from doing by itself, as it is another host's; None: nothing
    :ivar node: the Galera node that the server is; None: it is none
    """

    generation: Generation
    journal: Journal
    needs: Tuple[Need, ...]
    warnings: Tuple[str, ...]
    state: str
    replay: Optional["Replay"] = None
    archives: Tuple["Archive", ...] = ()
    activity: Optional[Activity] = None
    node: Optional[Node] = None

    @property
    def targets(self) -> Tuple[Target, ...]:
        return self.journal.targets

    @property
    def logs(self) -> Optional[Logs]:
        return self.journal.logs

    @property
    def resumes(self) -> bool:
        """Whether an earlier run has copied everything and was interrupted while it replaced."""
        return self.journal.phase != journals.COPYING

    @property
    def question(self) -> str:
        """What somebody has to agree to."""
        part = "%s of " % self.journal.part if self.journal.part else ""
        return "replace what is there now with %s%s" % (part, self.generation.name)

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {
            "generation": self.generation.name,
            "path": self.generation.path,
            "to": None,
            "part": self.journal.part,
            "trees": [places.facts(target) for target in self.targets],
            "space": [need.as_dict() for need in self.needs],
            "service": self.journal.server.name if self.journal.server else None,
            "resumes": self.resumes,
            "recovery": self.replay.as_dict() if self.replay else None,
            "galera": self.node.as_dict() if self.node else None,
            "does_not_start": self.activity.as_dict() if self.activity else None,
            "warnings": list(self.warnings),
        }

    def lines(self) -> List[str]:
        """Return it for people."""
        if self.resumes:
            lines = ["finish the restore of generation %s that was interrupted:" % self.generation.name]
        else:
            lines = ["put generation %s back in place:" % self.generation.name]
        for target in self.targets:
            lines.append("  %s: %d files, %s" % (target.path, target.tree.files, human(target.tree.bytes)))
            if places.occupied(target):
                lines.append("    what is there is kept as %s" % target.kept)
            if owners.text(target):
                lines.append("    " + owners.text(target))
        lines += [need.line(about=self.replay is not None) for need in self.needs]
        lines += self.replay.lines() if self.replay else []
        if self.logs and self.logs.files():
            lines.append("  the server's binary logs %s.* are set aside: they do not follow on what is put back" % self.logs.basename)
        if self.journal.server:
            lines.append("  %s is stopped while the data is exchanged, and started after that" % self.journal.server)
        lines += self.node.lines() if self.node else []
        lines += self.activity.lines() if self.activity else []
        return lines + ["  warning: " + warning for warning in self.warnings]

    def execute(self, reporter: Reporter) -> RestoreResult:
        """Do it; see `execute.execute`."""
        from .execute import execute  # pylint: disable=import-outside-toplevel  # a plan that is only shown needs none of it

        return execute(self, reporter)


def make(
    generation: Generation,
    parts: str = ALL,
    *,
    path: Optional[str] = None,
    replay: Optional["Replay"] = None,
    archives: Sequence["Archive"] = (),
    moment: Optional[Mapping[str, str]] = None,
    resume: bool = False,
    state: str = journals.STATE,
) -> InPlacePlan:
    """Return the plan for putting a generation back in place.

    :param parts: ``all``, ``database`` or ``files``
    :param path: of the files, this path alone, as it is called on the live system
    :param replay: what to replay onto it
    :param archives: of the binary logs of this host's servers
    :param resume: also another host's server goes on with replication and events
    :param moment: the option that asked for the replay; where a restore was interrupted, it has to be the one of that
    :raises UsageError: this generation does not hold it, or it can't go there
    :raises StillpointError: the generation is damaged, or there is no room
    """
    if parts != FILES:
        beside.refuse_half_done(state)
    journal = journals.pending(state=state)
    refuse_going_back(state)
    if journal:
        return _plan_resumption(generation, parts, path, journal, archives, moment, state)
    selection.refuse_damaged(generation)  # or it could not be told what it holds
    trees = selection.trees(generation, parts, path)
    path = None if path is None else trees[0].source
    inside = trees[0].name not in {tree.name for tree in generation.trees}
    targets = owners.given(generation, places.targets_of(trees, part=inside))
    places.refuse_unmounted(targets)
    if inside and path is not None:
        one_path.check_way(generation, path)
    places.refuse_torn(generation, targets, state)
    name = _unit(generation, targets)
    room = needs([(target.path if target.mount_point else os.path.dirname(target.path), target.tree) for target in targets], replay)
    plan = InPlacePlan(
        generation,
        _begun(generation, targets, path, moment),
        room,
        tuple(warnings_of(generation, targets, name, replay)),
        state,
        replay,
    )
    return _with_server(plan, name, archives, resume) if places.databases(targets) else plan


def _begun(generation: Generation, targets: Tuple[Target, ...], path: Optional[str], moment: Optional[Mapping[str, str]]) -> Journal:
    """Return the journal of a restore that is about to begin."""
    whole = len(targets) == len(generation.trees) and path is None
    return Journal(
        str(generation.summary.get("job")),
        os.path.basename(os.path.dirname(os.path.dirname(generation.path))),
        generation.name,
        generation.path,
        ALL if whole else FILES if targets[0].tree.is_files else DATABASE,
        targets,
        path,
        moment=moment,
    )


def _with_server(plan: InPlacePlan, name: Optional[str], archives: Sequence["Archive"], resume: bool) -> InPlacePlan:
    """Return the plan with what concerns the server whose data is replaced.

    :param name: of its unit
    """
    generation, targets, warnings = plan.generation, plan.targets, plan.warnings
    logs = server_logs.own(generation, targets, archives)
    concerned = [archive for archive in archives if logs and server_logs.is_of(archive, logs.basename)]
    ends = tuple(archive for archive in concerned if archive.writable)
    for archive in concerned:
        if archive not in ends:
            warnings += (
                "the archive of binary logs in %s can't be written now, and will not learn of the restore: have it begin anew, by moving it away, "
                "before the server writes to it again" % archive.path,
            )
    if ends:
        warnings += (BACK_UP,)
    triggers = service.triggers(name) if name else ()
    activity = None if resume else activities.of_another_host(generation, places.datadir_of(targets).tree.name)
    node = cluster.find(generation, targets)
    server = Unit(name, triggers, places.datadir(targets), node is not None) if name else None
    journal = replace(plan.journal, server=server, logs=logs, archives=tuple(archive.path for archive in ends))
    return replace(plan, journal=journal, warnings=warnings, archives=ends, activity=activity, node=node)


def _unit(generation: Generation, targets: Sequence[Target]) -> Optional[str]:
    """Return the unit to stop and start: the one of the server that runs there, else the one that was backed up.

    :raises UsageError: a server runs there that belongs to no unit
    """
    if not places.databases(targets):
        return None
    found = places.running(targets)
    if found is not None:
        path, server = found
        if server.unit is None:
            raise UsageError(
                "a server (%s, process %d) runs in %s and is not the main process of a systemd unit: stop it, then run this again"
                % (server.program, server.pid, path)
            )
        return server.unit
    known = recorded.server(generation)
    return known.unit if known and known.unit and service.exists(known.unit) else None


def _plan_resumption(
    generation: Generation,
    parts: str,
    path: Optional[str],
    journal: Journal,
    archives: Sequence["Archive"],
    moment: Optional[Mapping[str, str]],
    state: str,
) -> InPlacePlan:
    """Return the plan for finishing what the journal says.

    :raises UsageError: something else is asked for
    """
    if journal.phase == journals.UNDOING:
        raise journal.refusal("then undone half way")
    if path is None:
        names = [target.tree.name for target in journal.targets]
        same = journal.part is None and names == [tree.name for tree in generation.trees if selection.is_of(tree, parts)]
    else:
        same = journal.part == one_path.normal(path)
    if journal.path != generation.path or not same or dict(journal.moment or {}) != dict(moment or {}):
        raise journal.refusal("this asks for another one")
    places.refuse_unmounted(journal.targets)
    told = tuple(archive for archive in archives if archive.path in journal.archives)
    return InPlacePlan(generation, journal, (), (), state, archives=told)
