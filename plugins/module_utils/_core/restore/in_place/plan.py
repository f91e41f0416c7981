# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan of a restore: what goes where, what it takes, which server is stopped for it, and every reason against it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ...host import service
from ...host.errors import StillpointError, UsageError
from ...host.mounts import is_below
from ...host.text import human
from ...mysql import keys
from ...repository import manifest
from ...repository.generation import BAD, Generation, RecordedTree
from ...repository.job_directory import JobDirectory
from .. import journal as journals
from .. import server_logs
from ..dump import beside
from ..rollback.plan import refuse_going_back
from ..server_logs import Logs
from . import activity as activities
from . import cluster, owners
from . import one_path as part
from . import targets as places
from .activity import Activity
from .cluster import Node
from .targets import Target
from .warnings import doubts, warnings_of

if TYPE_CHECKING:
    from ...archive.archive import Archive
    from ..replay.execute import Replay

ALL, DATABASE, FILES = "all", "database", "files"

BACK_UP = "take a backup as soon as it is done: no moment after the restore can be recovered before there is one"

# What a copy takes beyond the blocks of its files: directories, and the file system's own bookkeeping.
_MARGIN_SHARE, _MARGIN = 0.02, 16 * 1024 * 1024


@dataclass(frozen=True)
class Need:
    """What a restore takes on one file system, in bytes."""

    path: str
    needed: int
    free: int


@dataclass(frozen=True)
class RestorePlan:
    """A restore that nothing is known to be against.

    :ivar to: the directory that it goes to; None: in place
    :ivar unit: the systemd unit that is stopped and started; None: none
    :ivar triggers: the units that would start it by themselves, which are stopped and started with it
    :ivar moment: the option that asked for more than the generation, as ``{"--until": TIME}``
    :ivar part: the path of the live files that is put back alone; None: whole trees
    :ivar resumes: an earlier run has copied everything and was interrupted while it replaced
    :ivar replay: what is replayed onto the copy before it replaces anything; None: nothing
    :ivar logs: the binary logs that the server writes outside its data, which end with the data that is replaced
    :ivar activity: what the server is kept from doing by itself, as it is another host's; None: nothing
    :ivar node: the Galera node that the server is; None: it is none
    :ivar archives: of this server's binary logs: what comes after the restore does not follow on them
    """

    generation: Generation
    to: Optional[str]
    targets: Tuple[Target, ...]
    needs: Tuple[Need, ...]
    unit: Optional[str]
    resumes: bool
    warnings: Tuple[str, ...]
    state: str
    replay: Optional["Replay"] = None
    logs: Optional[Logs] = None
    archives: Tuple["Archive", ...] = ()
    triggers: Tuple[str, ...] = ()
    moment: Optional[Mapping[str, str]] = None
    part: Optional[str] = None
    activity: Optional[Activity] = None
    node: Optional[Node] = None

    @property
    def bytes(self) -> int:
        return sum(target.tree.bytes for target in self.targets)

    @property
    def files(self) -> int:
        return sum(target.tree.files for target in self.targets)

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {
            "generation": self.generation.name,
            "path": self.generation.path,
            "to": self.to,
            "part": self.part,
            "trees": [
                {
                    "name": target.tree.name,
                    "path": target.path,
                    "files": target.tree.files,
                    "bytes": target.tree.bytes,
                    "replaced": target.kept if places.occupied(target) else None,
                    "users": list(target.users) if target.users else None,
                    "groups": list(target.groups) if target.groups else None,
                }
                for target in self.targets
            ],
            "space": [{"path": need.path, "needed": need.needed, "free": need.free} for need in self.needs],
            "service": self.unit,
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
            lines = ["put generation %s back %s:" % (self.generation.name, "into " + self.to if self.to else "in place")]
        for target in self.targets:
            lines.append("  %s: %d files, %s" % (target.path, target.tree.files, human(target.tree.bytes)))
            if places.occupied(target):
                lines.append("    what is there is kept as %s" % target.kept)
            if owners.text(target):
                lines.append("    " + owners.text(target))
        lines += [
            "  needs %s%s on the file system of %s, which has %s free" % ("about " if self.replay else "", human(need.needed), need.path, human(need.free))
            for need in self.needs
        ]
        if self.replay:
            lines += self.replay.lines()
        if self.logs and self.logs.files():
            lines.append("  the server's binary logs %s.* are set aside: they do not follow on what is put back" % self.logs.basename)
        if self.unit:
            lines.append("  %s is stopped while the data is exchanged, and started after that" % " and ".join([self.unit, *self.triggers]))
        lines += self.node.lines() if self.node else []
        lines += self.activity.lines() if self.activity else []
        return lines + ["  warning: " + warning for warning in self.warnings]


def make(
    generation: Generation,
    to: Optional[str] = None,
    parts: str = ALL,
    *,
    path: Optional[str] = None,
    replay: Optional["Replay"] = None,
    archives: Sequence["Archive"] = (),
    moment: Optional[Mapping[str, str]] = None,
    resume: bool = False,
    state: str = journals.STATE,
) -> RestorePlan:
    """Return the plan for putting a generation back.

    :param to: a directory that is empty or does not exist; default: in place
    :param parts: ``all``, ``database`` or ``files``
    :param path: of the files, this path alone, as it is called on the live system
    :param replay: what to replay onto it
    :param archives: of the binary logs of this host's servers
    :param resume: also another host's server goes on with replication and events
    :param moment: the option that asked for the replay; where a restore was interrupted, it has to be the one of that
    :raises UsageError: this generation does not hold it, or it can't go there
    :raises StillpointError: the generation is damaged, or there is no room
    """
    if to is None and parts != FILES:
        beside.refuse_half_done(state)
    journal = journals.pending(state=state) if to is None else None
    if to is None:
        refuse_going_back(state)
    if journal:
        return _plan_resumption(generation, parts, path, journal, archives, moment, state)
    refuse_damaged(generation)  # or it could not be told what it holds
    if path is None:
        trees = _chosen(generation, parts)
    else:
        trees = [part.find(generation, path)]
        path = trees[0].source
    if to is not None:
        return replace(_plan_elsewhere(generation, trees, os.path.abspath(to), replay, state), part=path)
    inside = trees[0].name not in {tree.name for tree in generation.trees}
    targets = owners.given(generation, places.targets_of(trees, part=inside))
    places.refuse_unmounted(targets)
    if inside and path is not None:
        part.check_way(generation, path)
    places.refuse_torn(generation, targets, state)
    unit = _unit(generation, targets)
    needs = _needs([(target.path if target.mount_point else os.path.dirname(target.path), target.tree) for target in targets], replay)
    warnings = tuple(warnings_of(generation, targets, unit, replay))
    plan = RestorePlan(generation, None, targets, needs, unit, False, warnings, state, replay, moment=moment, part=path)
    if not places.databases(targets):
        return plan
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
    triggers = service.triggers(unit) if unit else ()
    activity = None if resume else activities.of_another_host(generation, places.datadir_of(targets).tree.name)
    node = cluster.find(generation, targets)
    return replace(plan, warnings=warnings, logs=logs, archives=ends, triggers=triggers, activity=activity, node=node)


def _chosen(generation: Generation, parts: str) -> List[RecordedTree]:
    if parts not in (ALL, DATABASE, FILES):
        raise UsageError("%r is no part of a backup: say %s, %s or %s" % (parts, ALL, DATABASE, FILES))
    trees = [tree for tree in generation.trees if _is_of(tree, parts)]
    if not trees:
        raise UsageError("the generation %s holds no %s" % (generation.name, "data" if parts == ALL else parts))
    return trees


def _is_of(tree: RecordedTree, parts: str) -> bool:
    return parts == ALL or tree.is_files == (parts == FILES)


def refuse_damaged(generation: Generation) -> None:
    """Raise StillpointError for a generation that is damaged."""
    reason = generation.damage
    if not reason:
        try:
            manifest.check(generation.path)
        except manifest.Damaged as error:
            reason = str(error)
    if reason:
        raise StillpointError(
            "generation %s is damaged and is not restored (%s): choose another one; what is left of it can be copied by hand from %s"
            % (generation.name, reason, generation.path)
        )


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
    recorded = (generation.summary.get("server") or {}).get("unit")
    return recorded if recorded and service.exists(recorded) else None


def _needs(places: Sequence[Tuple[str, RecordedTree]], replay: Optional["Replay"] = None) -> Tuple[Need, ...]:
    """Return what is needed on each file system. How much a replay makes the database grow is estimated by the size of the logs, as a statement
    of a few words may write any number of rows: a replay watches the room as well.

    :raises StillpointError: one has less room
    """
    needed: Dict[int, Tuple[str, int]] = {}
    for path, tree in places:
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        device = os.stat(path).st_dev
        first, before = needed.get(device, (path, 0))
        grows = replay.bytes if replay and not tree.is_files else 0
        needed[device] = (first, before + int(tree.allocated * (1 + _MARGIN_SHARE)) + grows + _MARGIN)
    needs = []
    for path, size in needed.values():
        figures = os.statvfs(path)
        need = Need(path, size, figures.f_bavail * figures.f_frsize)
        if need.free < need.needed:
            raise StillpointError(
                "the file system of %s has %s free and the restore needs %s beside what is there: free some space, discard what earlier "
                "restores replaced (stillpoint discard), or restore into a directory elsewhere (--to DIR)"
                % (need.path, human(need.free), human(need.needed))
            )
        needs.append(need)
    return tuple(needs)


def passed_over(generation: Generation, parts: str, path: Optional[str] = None) -> Iterator[str]:
    """Return what somebody should know who named no generation and got this one: a newer one that nothing is known against.

    :param parts: ``all``, ``database`` or ``files``
    :param path: this one alone is put back
    :raises UsageError: the newer one holds something that this one lacks
    """
    for newer in JobDirectory(os.path.dirname(generation.path)).generations():
        if newer.name == generation.name:
            return
        if newer.state == BAD:
            continue
        wanted = [tree for tree in newer.trees if _is_of(tree, parts) and path is None]
        lacks = {tree.source for tree in wanted} - {tree.source for tree in generation.trees}
        if lacks:
            raise UsageError(
                "the newest good backup, %s, does not hold %s, which the newer %s (%s) does: name the one to restore"
                % (generation.name, ", ".join(sorted(lacks)), newer.name, newer.state)
            )
        yield "%s is newer and %s: name it to restore that one instead" % (newer.name, newer.state)
        return


def _plan_elsewhere(
    generation: Generation, trees: Sequence[RecordedTree], to: str, replay: Optional["Replay"], state: str
) -> RestorePlan:
    if os.path.lexists(to):
        if not os.path.isdir(to):
            raise UsageError("%s is not a directory" % to)
        there = sorted(set(os.listdir(to)) - {places.NEW, places.LOST_AND_FOUND})
        if there:
            raise UsageError("the directory %s is not empty (%s): name one that is, or that does not exist" % (to, ", ".join(there[:3])))
    if is_below(os.path.realpath(to), os.path.realpath(os.path.dirname(generation.path))):
        raise UsageError("%s lies among the generations: name a directory outside the repository" % to)
    targets = tuple(Target(tree, os.path.join(to, tree.name), os.path.join(to, places.NEW, tree.name), "", False) for tree in trees)
    warnings = [*doubts(generation), *(keys.missing_here(generation.summary, lambda _path: False) if any(not tree.is_files for tree in trees) else ())]
    return RestorePlan(generation, to, targets, _needs([(to, tree) for tree in trees], replay), None, False, tuple(warnings), state, replay)


def _plan_resumption(
    generation: Generation,
    parts: str,
    path: Optional[str],
    journal: Dict[str, Any],
    archives: Sequence["Archive"],
    moment: Optional[Mapping[str, str]],
    state: str,
) -> RestorePlan:
    """Return the plan for finishing what the journal says.

    :raises UsageError: something else is asked for
    """
    if journal["phase"] == journals.UNDOING:
        raise journals.refuse_another(journal, "then undone half way")
    if path is None:
        names = [target["tree"]["name"] for target in journal["targets"]]
        same = journal.get("part") is None and names == [tree.name for tree in generation.trees if _is_of(tree, parts)]
    else:
        same = journal.get("part") == part.normal(path)
    if journal["path"] != generation.path or not same or dict(journal.get("moment") or {}) != dict(moment or {}):
        raise journals.refuse_another(journal, "this asks for another one")
    targets = journals.targets(journal)
    places.refuse_unmounted(targets)
    logs = Logs(**{**journal["logs"], "replaced": tuple(journal["logs"]["replaced"])}) if journal.get("logs") else None
    told = tuple(archive for archive in archives if archive.path in journal["archives"])
    triggers = tuple(journal["triggers"])
    return RestorePlan(
        generation, None, targets, (), journal["unit"], True, (), state, None, logs, told, triggers, journal.get("moment"), journal.get("part")
    )
