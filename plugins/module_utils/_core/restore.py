# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a generation back.

In place, each tree is copied into a staging directory beside what it will replace, and compared with the manifest while that
happens; then the server is stopped, staging and live data change places in one step, and the server is started. What was
replaced stays, until it is discarded. Binary logs are replayed onto the staged copy, before anything is stopped. At every
moment either the old or the new data is complete under one name.

A journal on the disk says how far that has come. After a kill, the same command finishes what had begun: a copy is
made again, an exchange is completed. Which data lies under which name is told by the inode of each new tree.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from . import durable, service
from .binlog.aside import Logs
from .copy import rsync
from .errors import BusyError, StillpointError, UsageError
from .observe.progress import Reporter
from .process import run, undisturbed
from .repository import manifest, verify
from .repository.generations import Generation, RecordedTree
from .repository.manifest import Entry, Fault
from .storage.mounts import Tree, is_below, mounted_below, table
from .storage.sizes import human

if TYPE_CHECKING:
    from .binlog.index import Archive
    from .binlog.replay import Replay

STATE = "/var/lib/stillpoint/restore"
ALL, DATABASE, FILES = "all", "database", "files"

# How names are made; rsync.OWN_NAMES keeps those inside a tree out of backups.
_NEW, _REPLACED, _INCOMPLETE = ".stillpoint-new", ".stillpoint-replaced-", ".incomplete"
_LOST_AND_FOUND = "lost+found"

_JOURNAL = "journal.json"
_COPYING, _READY, _REPLACED_ALL = "copying", "ready", "replaced"

# What a copy takes beyond the blocks of its files: directories, and the file system's own bookkeeping.
_MARGIN_SHARE, _MARGIN = 0.02, 16 * 1024 * 1024


@dataclass(frozen=True)
class Target:
    """A tree of a generation and the place that it is put to.

    :ivar path: what is replaced, symlinks resolved
    :ivar staging: where it is copied to first
    :ivar kept: where what is there now will be kept
    :ivar mount_point: `path` is one, so its contents are exchanged, not itself
    """

    tree: RecordedTree
    path: str
    staging: str
    kept: str
    mount_point: bool


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
    :ivar resumes: an earlier run has copied everything and was interrupted while it replaced
    :ivar replay: what is replayed onto the copy before it replaces anything; None: nothing
    :ivar logs: the binary logs that the server writes outside its data, which end with the data that is replaced
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
            "trees": [
                {
                    "name": target.tree.name,
                    "path": target.path,
                    "files": target.tree.files,
                    "bytes": target.tree.bytes,
                    "replaced": target.kept if _occupied(target) else None,
                }
                for target in self.targets
            ],
            "space": [{"path": need.path, "needed": need.needed, "free": need.free} for need in self.needs],
            "service": self.unit,
            "resumes": self.resumes,
            "recovery": self.replay.as_dict() if self.replay else None,
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
            if _occupied(target):
                lines.append("    what is there is kept as %s" % target.kept)
        lines += [
            "  needs %s on the file system of %s, which has %s free" % (human(need.needed), need.path, human(need.free))
            for need in self.needs
        ]
        if self.replay:
            lines += self.replay.lines()
        if self.logs:
            lines.append("  the server's binary logs %s.* are set aside: they do not follow on what is put back" % self.logs.basename)
        if self.unit:
            lines.append("  %s is stopped while the data is exchanged, and started after that" % self.unit)
        return lines + ["  warning: " + warning for warning in self.warnings]


@dataclass(frozen=True)
class Replaced:
    """Data that a restore in place has replaced and kept.

    :ivar path: where it is
    :ivar target: where it was
    :ivar time: when it was replaced, ISO 8601, UTC
    """

    path: str
    target: str
    time: str
    job: str
    generation: str
    record: str
    inode: int


# -- planning


def make(
    generation: Generation,
    to: Optional[str] = None,
    parts: str = ALL,
    *,
    replay: Optional["Replay"] = None,
    archives: Sequence["Archive"] = (),
    state: str = STATE,
) -> RestorePlan:
    """Return the plan for putting a generation back.

    :param to: a directory that is empty or does not exist; default: in place
    :param parts: ``all``, ``database`` or ``files``
    :param replay: what to replay onto it
    :param archives: of the binary logs of the server that it replaces the data of
    :raises UsageError: this generation does not hold it, or it can't go there
    :raises StillpointError: the generation is damaged, or there is no room
    """
    trees = _chosen(generation, parts)
    if to is not None:
        return _plan_elsewhere(generation, trees, os.path.abspath(to), replay, state)
    journal = _pending(state)
    if journal and journal["phase"] != _COPYING:
        return _plan_resumption(generation, parts, journal, archives, state)
    refuse_damaged(generation)
    targets = _targets(trees)
    _refuse_places(generation, targets)
    unit = _unit(generation, targets)
    needs = _needs([(target.path if target.mount_point else os.path.dirname(target.path), target.tree) for target in targets], replay)
    warnings = tuple(_warnings(generation, targets, unit, replay))
    if not _databases(targets):
        return RestorePlan(generation, None, targets, needs, unit, False, warnings, state, replay)
    ends = tuple(archive for archive in archives if archive.writable)
    for archive in archives:
        if archive not in ends:
            warnings += (
                "the archive of binary logs in %s can't be written now, and will not learn of the restore: have it begin anew, by moving it away, "
                "before the server writes to it again" % archive.path,
            )
    return RestorePlan(generation, None, targets, needs, unit, False, warnings, state, replay, _logs(generation, targets, archives), ends)


def _logs(generation: Generation, targets: Sequence[Target], archives: Sequence["Archive"]) -> Optional[Logs]:
    """Return the binary logs that the server writes beside its data; None where they are part of the data, or not archived."""
    for archive in archives:
        for line in reversed(archive.lines()):
            basename = str(line.server.get("basename") or "")
            if not basename or any(is_below(os.path.realpath(os.path.dirname(basename)), path) for path in _databases(targets)):
                return None
            return Logs(basename, targets[0].kept.rsplit("-", 1)[1])
    return None


def _chosen(generation: Generation, parts: str) -> List[RecordedTree]:
    if parts not in (ALL, DATABASE, FILES):
        raise UsageError("%r is no part of a backup: say %s, %s or %s" % (parts, ALL, DATABASE, FILES))
    trees = [tree for tree in generation.trees if parts == ALL or tree.is_files == (parts == FILES)]
    if not trees and not generation.damage:
        raise UsageError("the generation %s holds no %s" % (generation.name, "data" if parts == ALL else parts))
    return trees


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


def _targets(trees: Sequence[RecordedTree]) -> Tuple[Target, ...]:
    """Return where trees go, with names for what is kept that nothing has yet."""
    mount_points = {mount.mount_point for mount in table()}
    first = stamp = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    number = 1
    while True:
        targets = tuple(_target(tree, stamp, mount_points) for tree in trees)
        if not any(os.path.lexists(target.kept) or os.path.lexists(target.kept + _INCOMPLETE) for target in targets):
            return targets
        number += 1
        stamp = "%s.%d" % (first, number)


def _target(tree: RecordedTree, stamp: str, mount_points: Set[str]) -> Target:
    path = os.path.realpath(tree.source)
    if path in mount_points:
        return Target(tree, path, os.path.join(path, _NEW), os.path.join(path, _REPLACED + stamp), True)
    parent, name = os.path.split(path)
    return Target(tree, path, os.path.join(parent, ".%s%s" % (name, _NEW)), "%s.replaced-%s" % (path, stamp), False)


def _occupied(target: Target) -> bool:
    """Tell whether there is something to be kept."""
    if not target.mount_point:
        return os.path.lexists(target.path)
    return any(not _is_own(name) for name in os.listdir(target.path))


def _is_own(name: str) -> bool:
    return name in (_NEW, _LOST_AND_FOUND) or name.startswith(_REPLACED)


def _refuse_places(generation: Generation, targets: Sequence[Target]) -> None:
    """Refuse what an exchange of directories would tear apart."""
    elsewhere = "restore it into a directory with --to DIR and put it in place by hand"
    for target in targets:
        if is_below(os.path.realpath(generation.path), target.path):
            raise UsageError("the repository lies in %s, which would be replaced: %s" % (target.path, elsewhere))
        inside = mounted_below(target.path)
        if inside:
            raise UsageError("another file system is mounted in %s, at %s: %s" % (target.path, inside[0], elsewhere))
        for other in targets:
            if other is not target and is_below(other.path, target.path):
                raise UsageError("%s lies in %s, which would be replaced as a whole: %s" % (other.path, target.path, elsewhere))


def _databases(targets: Sequence[Target]) -> List[str]:
    return [target.path for target in targets if not target.tree.is_files]


def _datadir(targets: Sequence[Target]) -> str:
    """Return where the server works: the tree of its data directory, not that of its redo log or the like."""
    return min((target for target in targets if not target.tree.is_files), key=lambda target: len(target.tree.name)).path


def _running(targets: Sequence[Target]) -> Optional[Tuple[str, service.Running]]:
    """Return the server that works in one of the directories to be replaced."""
    for path in _databases(targets):
        server = service.running_in(path)
        if server is not None:
            return path, server
    return None


def _unit(generation: Generation, targets: Sequence[Target]) -> Optional[str]:
    """Return the unit to stop and start: the one of the server that runs there, else the one that was backed up.

    :raises UsageError: a server runs there that belongs to no unit
    """
    if not _databases(targets):
        return None
    found = _running(targets)
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
    """Return what is needed on each file system; what is replayed makes the database grow by no more than its own size.

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
                "restores replaced (--discard-replaced), or restore into a directory elsewhere (--to DIR)"
                % (need.path, human(need.free), human(need.needed))
            )
        needs.append(need)
    return tuple(needs)


def _doubts(generation: Generation) -> Iterator[str]:
    """Return what somebody should know who put this generation back all the same, wherever to."""
    if generation.failed_proof:
        yield "its proof failed, and a server may not start on it or find its tables well: %s" % generation.failed_proof


def _warnings(
    generation: Generation, targets: Sequence[Target], unit: Optional[str], replay: Optional["Replay"] = None
) -> Iterator[str]:
    yield from _doubts(generation)
    for target in targets:
        if target.tree.is_files or not os.path.isdir(target.path):
            continue
        there, new = os.stat(target.path), os.lstat(os.path.join(generation.path, target.tree.name))
        if (there.st_uid, there.st_gid) != (new.st_uid, new.st_gid):
            yield (
                "%s belongs to %d:%d now and to %d:%d in the backup: where the server's account has another number on this host, "
                "the server will not start until the files are given to it (chown -R)"
                % (target.path, there.st_uid, there.st_gid, new.st_uid, new.st_gid)
            )
    if _databases(targets) and unit is None:
        yield "no systemd unit is known for the server: start it yourself when the restore is done"
    halves = {tree.is_files for tree in generation.trees}
    if len(halves) == 2 and len({target.tree.is_files for target in targets}) == 1:
        yield "only one half of the backup is put back: database and files will not be of one point in time"
    if replay and (generation.summary.get("coordinates") or {}).get("replica"):
        yield "the server was a replica: what it had replicated is in its own binary logs only where it writes it there (log_slave_updates)"
    if len(halves) == 2 and len(targets) == len(generation.trees) and replay and replay.bytes:
        yield "the files will be those of %s UTC, when the backup was taken: binary logs hold the database alone" % generation.time.strftime(
            "%Y-%m-%d %H:%M:%S"
        )


def _plan_elsewhere(
    generation: Generation, trees: Sequence[RecordedTree], to: str, replay: Optional["Replay"], state: str
) -> RestorePlan:
    refuse_damaged(generation)
    if os.path.lexists(to):
        if not os.path.isdir(to):
            raise UsageError("%s is not a directory" % to)
        there = sorted(set(os.listdir(to)) - {_NEW, _LOST_AND_FOUND})
        if there:
            raise UsageError("the directory %s is not empty (%s): name one that is, or that does not exist" % (to, ", ".join(there[:3])))
    if is_below(os.path.realpath(to), os.path.realpath(os.path.dirname(generation.path))):
        raise UsageError("%s lies among the generations: name a directory outside the repository" % to)
    targets = tuple(Target(tree, os.path.join(to, tree.name), os.path.join(to, _NEW, tree.name), "", False) for tree in trees)
    return RestorePlan(generation, to, targets, _needs([(to, tree) for tree in trees], replay), None, False, tuple(_doubts(generation)), state, replay)


def _plan_resumption(
    generation: Generation, parts: str, journal: Dict[str, Any], archives: Sequence["Archive"], state: str
) -> RestorePlan:
    """Return the plan for finishing what the journal says.

    :raises UsageError: something else is asked for
    """
    names = [target["tree"]["name"] for target in journal["targets"]]
    asked = [tree.name for tree in generation.trees if parts == ALL or tree.is_files == (parts == FILES)]
    if journal["path"] != generation.path or names != asked:
        how = "" if journal["parts"] == ALL else " --%s-only" % journal["parts"]
        raise UsageError(
            "a restore of %s was interrupted while it replaced the live data: finish it first, with stillpoint restore %s %s%s --yes"
            % (journal["generation"], journal["job"], journal["generation"], how)
        )
    targets = tuple(Target(**{**target, "tree": RecordedTree(**target["tree"])}) for target in journal["targets"])
    logs = Logs(**journal["logs"]) if journal.get("logs") else None
    return RestorePlan(generation, None, targets, (), journal["unit"], True, (), state, None, logs, tuple(archives))


# -- executing


def execute(plan: RestorePlan, reporter: Reporter) -> Dict[str, Any]:
    """Put a generation back and return ``{generation, replaced, files, bytes, duration_s, service, recovery, warnings}``; recovery is None
    where nothing was replayed.

    :raises BusyError: another restore is running
    :raises StillpointError: it says whether the live data was touched
    """
    started = time.monotonic()
    with plan.generation.hold():
        kept, recovery = _elsewhere(plan, reporter) if plan.to is not None else _in_place(plan, reporter)
    return {
        "generation": plan.generation.name,
        "replaced": kept,
        "files": plan.files,
        "bytes": plan.bytes,
        "duration_s": round(time.monotonic() - started, 1),
        "service": plan.unit,
        "recovery": recovery,
        "warnings": list(plan.warnings),
    }


def _in_place(plan: RestorePlan, reporter: Reporter) -> Tuple[List[str], Optional[Dict[str, Any]]]:
    with alone(plan.state):
        journal = _pending(plan.state)
        if plan.resumes:
            if journal is None or journal["path"] != plan.generation.path:
                raise StillpointError("the interrupted restore of %s has been finished by another run" % plan.generation.name)
        else:
            if journal and journal["phase"] != _COPYING:
                raise StillpointError("another restore was interrupted meanwhile: run this again")
            journal = _copied(plan, journal, reporter)
        _stopped(plan, journal, reporter)
        reporter.stage("replace")
        with undisturbed():
            kept = _replace(plan, journal)
        if plan.unit:
            reporter.stage("start")
            _start(plan, plan.unit, kept)
        _forget(plan.state)
        return [each["path"] for each in kept], journal.get("recovery")


def _copied(plan: RestorePlan, journal: Optional[Dict[str, Any]], reporter: Reporter) -> Dict[str, Any]:
    """Copy and check every tree, and return the journal that says so."""
    if journal:
        _drop_copies(journal)
    journal = {
        "format": 1,
        "phase": _COPYING,
        "job": str(plan.generation.summary.get("job")),
        "generation": plan.generation.name,
        "path": plan.generation.path,
        "parts": _parts(plan),
        "time": _now(),
        "unit": plan.unit,
        "targets": [{**vars(target), "tree": vars(target.tree)} for target in plan.targets],
        "logs": vars(plan.logs) if plan.logs else None,
        "inodes": [],
        "recovery": None,
    }
    try:
        _write_journal(plan.state, journal)
        reporter.stage("copy")
        done = 0
        for target in plan.targets:
            _make_parents(os.path.dirname(target.staging))
            _remove(target.staging)
            _copy(plan, target, done, reporter)
            done += target.tree.bytes
        journal = {**journal, "recovery": _replayed(plan, reporter)}
        for target in plan.targets:
            durable.sync_file_system(os.path.dirname(target.staging))
        journal["old_logs"] = _old_logs(plan)
        journal = {**journal, "phase": _READY, "inodes": [os.lstat(target.staging).st_ino for target in plan.targets]}
        _write_journal(plan.state, journal)
    except BaseException as error:
        _drop_copies(journal)
        _forget(plan.state)
        if isinstance(error, OSError):
            raise _untouched(plan, error) from error
        raise
    return journal


def _replayed(plan: RestorePlan, reporter: Reporter) -> Optional[Dict[str, Any]]:
    """Replay what the plan says onto the copy, which nothing depends on yet, and return what came of it.

    :raises StillpointError: it failed; the live data was not touched
    """
    if plan.replay is None:
        return None
    where: Mapping[str, str] = {os.path.realpath(target.tree.source): target.staging for target in plan.targets if not target.tree.is_files}
    try:
        return plan.replay.run(where, reporter)
    except StillpointError as error:
        raise StillpointError("%s; the live data was not touched" % error) from error


def _old_logs(plan: RestorePlan) -> List[str]:
    """Return the binary logs that come back with the data: what the server logs from now on begins after them."""
    found: Set[str] = set()
    for archive in plan.archives:
        for line in archive.lines()[-1:]:
            directory, stem = os.path.split(str(line.server.get("basename") or ""))
            for target in plan.targets:
                source = os.path.realpath(target.tree.source)
                if stem and is_below(os.path.realpath(directory), source):
                    inside = target.staging + os.path.realpath(directory)[len(source) :]
                    found.update(name for name in (os.listdir(inside) if os.path.isdir(inside) else []) if name.startswith(stem + "."))
    return sorted(found)


def _make_parents(path: str) -> None:
    """Make a directory that the backup does not hold, above one that it does, as such directories are: open to read."""
    if not os.path.isdir(path):
        _make_parents(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def _parts(plan: RestorePlan) -> str:
    if len(plan.targets) == len(plan.generation.trees):
        return ALL
    return FILES if plan.targets[0].tree.is_files else DATABASE


def _untouched(plan: RestorePlan, error: OSError) -> StillpointError:
    name = " (%s)" % error.filename if error.filename else ""
    return StillpointError("%s could not be put back: %s%s; the live data was not touched" % (plan.generation.name, error.strerror, name))


def _copy(plan: RestorePlan, target: Target, done: int, reporter: Reporter) -> None:
    """Copy a tree into its staging place and make sure that it is what the manifest says.

    :raises StillpointError: it is not
    """
    name = os.fsencode(target.tree.name)
    source = os.path.join(plan.generation.path, target.tree.name)
    sums = manifest.Sums()
    single = not os.path.isdir(source) or os.path.islink(source)
    untold = False

    def record(item: rsync.Item) -> None:
        nonlocal untold
        if item.checksum or item.first:
            prefix = b"" if single else name + b"/"
            sums.add(name if single else prefix + item.path, item.checksum, prefix + item.first if item.first else b"")
        else:
            untold = True

    try:
        staging = target.staging
        if single:  # it keeps its name while it is copied: a directory around it
            os.mkdir(staging + ".file", 0o700)
            staging = os.path.join(staging + ".file", os.path.basename(source))
        rsync.copy_tree(
            Tree(target.tree.name, source, source),
            staging,
            algorithm=str(plan.generation.summary["checksum"]),
            gives_way=False,
            on_item=record,
            on_progress=lambda now: reporter.progress(min(done + now, plan.bytes), plan.bytes),
        )
        if single:
            os.rename(staging, target.staging)
            os.rmdir(target.staging + ".file")
        sums.resolve(lambda: ())
        if untold:
            _read_untold(plan.generation, target, sums)
        faults = list(_compared(plan.generation, target, sums))
    except rsync.DestinationFull as error:
        raise StillpointError(
            "there is no room for %s beside %s (%s): the live data was not touched; free some space, or restore into a directory "
            "elsewhere (--to DIR)" % (plan.generation.name, target.path, rsync.room(os.path.dirname(target.staging)))
        ) from error
    finally:
        sums.close()
    if faults:
        verify.found_damaged(plan.generation, faults, reporter)
        raise StillpointError(
            "generation %s is damaged (%s%s): the live data was not touched; restore another generation"
            % (plan.generation.name, faults[0].text(), ", and %d more" % (len(faults) - 1) if len(faults) > 1 else "")
        )


def _read_untold(generation: Generation, target: Target, sums: manifest.Sums) -> None:
    """Read the files whose checksum rsync did not tell: names of hard links that look like its own arrow between names."""
    told = manifest.Ahead(sums.in_order())
    with tempfile.NamedTemporaryFile() as paths:
        for entry in _expected(generation, target):
            if entry.type == manifest.FILE and told.at(manifest.order(entry.path)) is None:
                paths.write(entry.path + b"\0")
        paths.flush()
        rsync.checksums(
            generation.path,
            algorithm=str(generation.summary["checksum"]),
            paths=paths.name,
            on_item=lambda item: sums.add(item.path, item.checksum),
        )


def _expected(generation: Generation, target: Target) -> Iterator[Entry]:
    name = os.fsencode(target.tree.name)
    return (entry for entry in manifest.entries(generation.path) if entry.path == name or entry.path.startswith(name + b"/"))


def _compared(generation: Generation, target: Target, sums: manifest.Sums) -> Iterator[Fault]:
    name = os.fsencode(target.tree.name)
    root, below = os.path.split(os.fsencode(target.staging))

    def found() -> Iterator[Entry]:
        for entry, _allocated in manifest.walk(root, below):
            yield entry._replace(path=name + entry.path[len(below) :])

    # The file system may keep times less precisely than the one that was backed up.
    return manifest.compare(_expected(generation, target), found(), sums, times=False)


def _stopped(plan: RestorePlan, journal: Dict[str, Any], reporter: Reporter) -> None:
    """Make sure that no server works on what is about to be replaced.

    :raises StillpointError: one does; the live data was not touched, and the server runs if it did before
    """
    stopped = False
    try:
        if plan.unit:
            reporter.stage("stop")
            stopped = True
            service.stop(plan.unit)
        found = _running(plan.targets)
        if found is not None:
            path, server = found
            raise StillpointError(
                "a server (%s, process %d) still runs in %s: stop it, then run this again" % (server.program, server.pid, path)
            )
    except BaseException:
        if not plan.resumes:
            _drop_copies(journal)
            _forget(plan.state)
            if stopped and plan.unit:
                _start_again(plan, plan.unit, reporter)
        raise


def _start_again(plan: RestorePlan, unit: str, reporter: Reporter) -> None:
    try:
        service.start(unit, _datadir(plan.targets))
    except StillpointError as error:
        reporter.warn("%s; the data it works on was not touched" % error)


def _replace(plan: RestorePlan, journal: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Exchange each tree, whatever of that has been done before, and return what was kept."""
    try:
        for archive in plan.archives:
            if archive.exists:
                archive.note_restore(plan.generation.name, journal.get("old_logs") or [])
        aside = plan.logs.set_aside() if plan.logs else None
        for target, inode in zip(plan.targets, journal["inodes"]):
            if target.mount_point:
                _exchange_contents(target, inode)
            else:
                _exchange(target, inode)
        kept = [
            {"path": target.kept, "target": target.path, "inode": os.lstat(target.kept).st_ino}
            for target in plan.targets
            if os.path.lexists(target.kept)
        ]
        if aside and plan.logs:
            kept.append({"path": aside, "target": plan.logs.basename + ".*", "inode": os.lstat(aside).st_ino})
        _write_record(plan.state, journal, kept)
        _write_journal(plan.state, {**journal, "phase": _REPLACED_ALL})
    except OSError as error:
        raise StillpointError(
            "the exchange of old and new data was interrupted: %s (%s); both are complete on the disk, and the same command finishes it"
            % (error.strerror, error.filename2 or error.filename)
        ) from error
    return kept


def _exchange(target: Target, inode: int) -> None:
    """Let a staged tree and the live one change places, and give what was live the name under which it is kept."""
    if _inode(target.path) == inode:
        if os.path.lexists(target.staging):  # it holds what was live
            durable.rename_to_free_name(target.staging, target.kept)
        return
    if _inode(target.staging) != inode:
        raise _lost(target)
    if os.path.lexists(target.path):
        try:
            durable.exchange(target.staging, target.path)
        except durable.NotSupported:
            durable.rename_to_free_name(target.path, target.kept)
            durable.rename_to_free_name(target.staging, target.path)
        else:
            durable.rename_to_free_name(target.staging, target.kept)
    else:
        durable.rename_to_free_name(target.staging, target.path)


def _exchange_contents(target: Target, inode: int) -> None:
    """Do that for a mount point: first everything live goes into one directory, then everything new comes out of one. Until the
    first is done the new data is complete in its directory, and after that the old data in its own."""
    incomplete = target.kept + _INCOMPLETE
    if not os.path.lexists(target.staging):
        if not os.path.lexists(target.kept):
            raise _lost(target)
        return
    if _inode(target.staging) != inode:
        raise _lost(target)
    if not os.path.lexists(target.kept):
        if not os.path.lexists(incomplete):
            os.mkdir(incomplete, 0o700)
            _copy_attributes(target.path, incomplete)
        for name in sorted(os.listdir(target.path)):
            if not _is_own(name):
                durable.rename_to_free_name(os.path.join(target.path, name), os.path.join(incomplete, name))
        durable.rename_to_free_name(incomplete, target.kept)
    for name in sorted(os.listdir(target.staging)):
        new = os.path.join(target.path, name)
        if name == _LOST_AND_FOUND and os.path.lexists(new):  # the file system's own stays; what was found before gets another name
            if not os.listdir(os.path.join(target.staging, name)):
                os.rmdir(os.path.join(target.staging, name))
                continue
            new = "%s.%s" % (new, os.path.basename(target.kept)[len(_REPLACED) :])
        durable.rename_to_free_name(os.path.join(target.staging, name), new)
    _copy_attributes(target.staging, target.path)
    os.rmdir(target.staging)
    durable.sync_directory(target.path)


def _copy_attributes(source: str, dest: str) -> None:
    """Give a directory the owner, mode, times, ACL and extended attributes of another one."""
    run(["rsync", "-dptgoAXX", "--numeric-ids", "--exclude=*", source.rstrip("/") + "/", dest.rstrip("/") + "/"])


def _inode(path: str) -> Optional[int]:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None


def _lost(target: Target) -> StillpointError:
    return StillpointError(
        "the data that was prepared for %s is not at %s any more: look at %s and %s*; to start over, remove the journal below %s"
        % (target.path, target.staging, target.path, target.kept.rsplit("-", 1)[0], STATE)
    )


def _start(plan: RestorePlan, unit: str, kept: Sequence[Dict[str, Any]]) -> None:
    """Start the server.

    :raises StillpointError: it does not start; the sentence says how to go back
    """
    try:
        service.start(unit, _datadir(plan.targets))
    except StillpointError as error:
        _forget(plan.state)
        back = ["systemctl stop %s" % unit]
        for target, each in ((target, each) for target in plan.targets for each in kept if each["target"] == target.path):
            path, old = shlex.quote(target.path), shlex.quote(each["path"])
            if target.mount_point:
                back.append("exchange what is in %s for what is in %s" % (path, old))
            else:
                back.append("mv %s %s.restored && mv %s %s" % (path, path, old, path))
        if plan.logs and os.path.isdir(plan.logs.kept):
            back.append("mv %s/* %s" % (shlex.quote(plan.logs.kept), shlex.quote(os.path.dirname(plan.logs.basename))))
        back.append("systemctl start %s" % unit)
        raise StillpointError(
            "generation %s is in place, but %s; to go back: %s" % (plan.generation.name, error, "; ".join(back))
        ) from error


def _elsewhere(plan: RestorePlan, reporter: Reporter) -> Tuple[List[str], Optional[Dict[str, Any]]]:
    """Copy into a directory: everything has its final name only when all of it is there and checked."""
    if plan.to is None:
        raise RuntimeError("called before it was begun")
    made = not os.path.lexists(plan.to)
    staging = os.path.join(plan.to, _NEW)
    try:
        os.makedirs(plan.to, mode=0o700, exist_ok=True)
        _remove(staging)
        os.mkdir(staging, 0o700)
        reporter.stage("copy")
        done = 0
        for target in plan.targets:
            os.makedirs(os.path.dirname(target.staging), mode=0o700, exist_ok=True)
            _copy(plan, target, done, reporter)
            done += target.tree.bytes
        recovery = _replayed(plan, reporter)
        durable.sync_file_system(plan.to)
        for name in sorted(os.listdir(staging)):
            durable.rename_to_free_name(os.path.join(staging, name), os.path.join(plan.to, name))
        os.rmdir(staging)
        return [], recovery
    except BaseException as error:
        if os.path.isdir(staging):
            _remove(staging)
        if made and os.path.isdir(plan.to) and not os.listdir(plan.to):
            os.rmdir(plan.to)
        if isinstance(error, OSError):
            raise _untouched(plan, error) from error
        raise


# -- journal and records


@contextmanager
def alone(state: str = STATE) -> Iterator[None]:
    """Be the only restore in place on this host."""
    try:
        os.makedirs(state, mode=0o700, exist_ok=True)
        descriptor = os.open(os.path.join(state, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StillpointError("the journal of the restore can't be kept in %s: %s" % (state, error.strerror)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError("another restore is running on this host: wait until it has ended") from error
        yield
    finally:
        os.close(descriptor)


def _pending(state: str) -> Optional[Dict[str, Any]]:
    found = durable.read_json(os.path.join(state, _JOURNAL))
    return found if isinstance(found, dict) else None


def pending(*, state: str = STATE) -> Optional[Dict[str, Any]]:
    """Return what a restore in place that was interrupted while it replaced live data says of itself (``job``, ``generation``,
    ``time``); None when there is none."""
    journal = _pending(state)
    return journal if journal and journal["phase"] != _COPYING else None


def _write_journal(state: str, journal: Dict[str, Any]) -> None:
    durable.write_json(os.path.join(state, _JOURNAL), journal)


def _forget(state: str) -> None:
    path = os.path.join(state, _JOURNAL)
    if os.path.lexists(path):
        os.unlink(path)
        durable.sync_directory(state)


def _drop_copies(journal: Dict[str, Any]) -> None:
    """Remove what was copied but has replaced nothing."""
    for target in journal["targets"]:
        _remove(target["staging"])
        _remove(target["staging"] + ".file")


def _remove(path: str) -> None:
    if os.path.lexists(path):
        durable.remove_tree(path)


def _write_record(state: str, journal: Dict[str, Any], kept: Sequence[Dict[str, Any]]) -> None:
    if kept:
        stamp = journal["targets"][0]["kept"].rsplit("-", 1)[1]
        facts = {key: journal[key] for key in ("job", "generation", "time")}
        durable.write_json(os.path.join(state, "kept-%s.json" % stamp), {**facts, "kept": list(kept)})


def replaced(job: Optional[str] = None, *, state: str = STATE) -> List[Replaced]:
    """Return what restores in place have replaced and kept, oldest first.

    :param job: of this job; default: of any
    """
    found: List[Replaced] = []
    for name in sorted(os.listdir(state)) if os.path.isdir(state) else []:
        path = os.path.join(state, name)
        record = durable.read_json(path) if name.startswith("kept-") and name.endswith(".json") else None
        if not isinstance(record, dict) or job not in (None, record["job"]):
            continue
        for kept in record["kept"]:
            # Somebody may have moved it back, or removed it by hand, and something else may have its name.
            if _inode(kept["path"]) == kept["inode"]:
                found.append(
                    Replaced(kept["path"], kept["target"], record["time"], record["job"], record["generation"], path, kept["inode"])
                )
    return found


def discard(kept: Sequence[Replaced], reporter: Reporter, *, state: str = STATE) -> List[str]:
    """Delete what restores have kept, for good, and return the paths.

    :raises BusyError: a restore is running
    :raises StillpointError: one was interrupted, and may still need it
    """
    gone: List[str] = []
    with alone(state):
        if pending(state=state):
            raise StillpointError("a restore was interrupted while it replaced live data: finish it before anything is discarded")
        reporter.stage("discard")
        for each in kept:
            if _inode(each.path) == each.inode:
                durable.remove_tree(each.path)
                gone.append(each.path)
        for record in {each.record for each in kept}:
            facts = durable.read_json(record)
            if not isinstance(facts, dict) or not any(_inode(one["path"]) == one["inode"] for one in facts["kept"]):
                os.unlink(record)
    return gone


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
