# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of a job in a repository: its generations, how one comes into being, and how it goes.

::

    REPO/HOST/JOB/2026-11-22T02-00-05Z/     a generation: manifest.json and the trees
    REPO/HOST/JOB/.2026-….verified          what later verifications of it found
    REPO/HOST/JOB/.2026-….trial/            a copy of it that a server is started on, locked while that lasts
    REPO/HOST/JOB/latest -> …
    REPO/HOST/JOB/.lock                     held by the one that writes; the kernel frees it, whatever happens
    REPO/HOST/JOB/.RUN.partial/             being written
    REPO/HOST/JOB/.2026-….deleting/         being removed

A generation appears by one rename, after everything in it has reached the disk, and is never written to again: files that
did not change are hard links that it shares with others.
"""

from __future__ import annotations

import fcntl
import os
import re
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Type

from .. import durable
from ..copy import rsync
from ..errors import BusyError, CommandError, StillpointError, UsageError, fail
from ..process import undisturbed
from ..storage.mounts import Tree, unmounted
from . import manifest, retention

GOOD, UNPROVEN, BAD = "good", "unproven", "bad"

# In place of a record that is there and can't be read.
_UNREADABLE = {"ok": False, "files": 0, "faults": ["it was found damaged, and what was wrong could not be recorded"], "faults_total": 1, "time": ""}

LOCK, LATEST = ".lock", "latest"
PARTIAL, DELETING, VERIFIED, TRIAL = ".partial", ".deleting", ".verified", ".trial"

_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(-\d+)?")
_NAME_FORMAT = "%Y-%m-%dT%H-%M-%SZ"
_MOMENT = "%Y-%m-%dT%H:%M:%SZ"
_SUMS, _PATHS = ".sums", ".paths"

# Seconds before a generation's time within which a file's own time does not prove that it is in the snapshot as it was left:
# a time stamp's tick (1 s on ext3 and small ext4 file systems), and the time that the snapshots of several volumes take, of
# which the last gives the generation its time.
DOUBTFUL = 10.0


class Gone(UsageError):
    """A generation is gone, or about to be."""


@dataclass(frozen=True)
class RecordedTree:
    """A tree of a generation, as its manifest names it.

    :ivar source: what it was called on the live system
    :ivar bytes: of its regular files
    :ivar allocated: bytes of disk that they take when they are put back
    """

    name: str
    source: str
    files: int
    bytes: int
    allocated: int

    @property
    def is_files(self) -> bool:
        """Whether it is of the file half of a backup, not of the server's."""
        return self.name == "files" or self.name.startswith("files/")

    @property
    def is_dump(self) -> bool:
        """Whether it is SQL, to be loaded into a server."""
        return self.name == "dump" or (self.name.endswith(".sql.zst") and not self.is_files)


def _recorded(tree: Mapping[str, Any]) -> RecordedTree:
    return RecordedTree(str(tree["name"]), str(tree["source"]), int(tree["files"]), int(tree["bytes"]), int(tree["allocated"]))


class Generation:
    """A published backup. What its manifest says is read when it is first asked for."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = os.path.basename(path)

    def __repr__(self) -> str:
        return "Generation(%r)" % self.path

    @cached_property
    def _head(self) -> Tuple[Dict[str, Any], str]:
        try:
            summary = manifest.summary(self.path)
            for tree in summary["trees"]:
                _recorded(tree)
            int(summary["sequence"])
            return summary, ""
        except manifest.Damaged as error:
            return {}, str(error)
        except (KeyError, TypeError, ValueError):
            return {}, "the manifest of %s is not what was written" % self.path

    @property
    def summary(self) -> Dict[str, Any]:
        """The manifest's summary; empty when it can't be read."""
        return self._head[0]

    @property
    def time(self) -> datetime:
        """The point in time that it holds, UTC."""
        try:
            return datetime.strptime(str(self.summary["time"]), "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
        except (KeyError, ValueError):
            return datetime.strptime(self.name[:20], _NAME_FORMAT).replace(tzinfo=timezone.utc)

    @property
    def trees(self) -> Tuple[RecordedTree, ...]:
        return tuple(_recorded(tree) for tree in self.summary.get("trees", ()))

    @property
    def size_bytes(self) -> int:
        """Bytes of its files, shared ones included."""
        return sum(tree.bytes for tree in self.trees)

    @property
    def files(self) -> int:
        """How many files it has."""
        return sum(tree.files for tree in self.trees)

    @property
    def recorded(self) -> Dict[str, Any]:
        """What was recorded of it later: a verdict, the last sample without a fault as ``sample``, the last proof on a copy as ``proof``."""
        found = durable.read_json(self.verdict_path)
        if isinstance(found, dict):
            return found
        # what was found could not be written, or can't be read any more: it was no praise
        return dict(_UNREADABLE) if os.path.lexists(self.verdict_path) else {}

    @property
    def verified(self) -> Optional[Dict[str, Any]]:
        """What the last verification of all of it found, or a sample that found a fault; None before the first."""
        return {key: value for key, value in self.recorded.items() if key not in ("sample", "proof")} or None

    @property
    def proof(self) -> Optional[Dict[str, Any]]:
        """What a proof found: one that failed, else one that passed, be it of the run or on a copy; None where there was none."""
        found = [proof for proof in (self.summary.get("proof"), self.recorded.get("proof")) if proof]
        for ok in (False, True):
            for proof in found:
                if proof.get("ok") is ok:
                    return dict(proof)
        return dict(found[0]) if found else None

    @property
    def verdict_path(self) -> str:
        return os.path.join(os.path.dirname(self.path), "." + self.name + VERIFIED)

    @property
    def damage(self) -> str:
        """What is known to be wrong with its files; "" where nothing is."""
        if self._head[1]:
            return self._head[1]
        verified = self.verified
        if verified and not verified.get("time"):
            return str(verified["faults"][0])
        if verified and verified.get("faults_total"):
            return "%d faults were found on %s" % (verified["faults_total"], verified.get("time"))
        return ""

    @property
    def found_damaged(self) -> Optional[datetime]:
        """When faults were found in it, UTC; None where none were, or where that is not known."""
        verified = self.verified
        return _moment(verified) if verified and verified.get("faults_total") else None

    @property
    def failed_proof(self) -> str:
        """Why its proof failed; "" where it passed, where it could not be done, or where there was none."""
        proof = self.proof
        if proof and proof.get("ok") is False:
            return str(proof.get("reason") or "a server did not start on it")
        return ""

    @property
    def reason(self) -> str:
        """Why it is bad; "" when it is not."""
        return self.damage or self.failed_proof

    @property
    def state(self) -> str:
        """``bad``: damaged, or its proof failed; ``good``: it is proven, or has no database; else ``unproven``."""
        if self.reason:
            return BAD
        if (self.proof or {}).get("ok") or all(tree.is_files for tree in self.trees):
            return GOOD
        return UNPROVEN

    def record(self, value: Mapping[str, Any]) -> None:
        """Keep what was found of it, beside it; `recorded` returns that.

        :raises OSError: it can't be written. What says that it is damaged then leaves a mark that says so, if even that is possible
        """
        try:
            durable.write_json(self.verdict_path, value)
        except OSError:
            if value.get("faults_total"):
                with suppress(OSError):  # a full disk takes an empty file
                    os.close(os.open(self.verdict_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            raise
        finally:
            with suppress(OSError):
                os.unlink(self.verdict_path + ".new")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep it from being removed.

        :raises Gone: it is, or about to be
        :raises UsageError: it can't be read
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            kind = Gone if isinstance(error, FileNotFoundError) else UsageError
            raise kind("the generation %s can't be read: %s" % (self.path, error.strerror)) from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                gone = not os.path.samestat(os.fstat(descriptor), os.stat(self.path))
            except OSError:
                gone = True
            if gone:
                raise Gone("the generation %s is being removed by another run" % self.path)
            yield
        finally:
            os.close(descriptor)


def refuse_absent(repository: str, *, to_write: bool) -> None:
    """Raise UsageError for a repository that does not exist, or, where something is to be written to it, whose file system is not mounted."""
    if not os.path.isdir(repository):
        raise UsageError("the repository %s does not exist: create it with mode 0700, or mount what should be there" % repository)
    point = unmounted(repository) if to_write else None
    if point is not None:
        raise UsageError("the repository %s lies on the file system of %s, which /etc/fstab names and which is not mounted now: mount it" % (repository, point))


class JobDirectory:
    """A job's generations. Whoever changes anything holds its `lock`."""

    def __init__(self, path: str, repository: Optional[str] = None) -> None:
        self.path = path.rstrip("/") or "/"
        self.repository = repository or self.path
        self._locked = False

    @classmethod
    def open(cls, repository: str, host: str, job: str, *, to_write: bool = False) -> "JobDirectory":
        """Return the directory of a job, which need not exist before something is written to it.

        :raises UsageError: the repository is absent (`refuse_absent`), or a name can't be one of a directory
        """
        refuse_absent(repository, to_write=to_write)
        for name in (host, job):
            if not name or "/" in name or name.startswith("."):
                raise UsageError("%r can't be the name of a directory in the repository %s" % (name, repository))
        return cls(os.path.join(repository, host, job), repository)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one that writes.

        :raises BusyError: another process is
        :raises StillpointError: the repository can't be written
        """
        with self._written():
            _make_directories(self.path)
            descriptor = os.open(os.path.join(self.path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                raise BusyError(
                    "another run%s is writing to %s: wait until it has ended" % (" (process %s)" % holder if holder else "", self.path)
                ) from error
            with self._written():
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            self._locked = True
            yield
        finally:
            self._locked = False
            os.close(descriptor)

    def _must_be_locked(self) -> None:
        if not self._locked:
            raise StillpointError("%s is changed without its lock: this is a fault in stillpoint" % self.path)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """Turn errors of writing into a sentence that names the repository and its room."""
        try:
            yield
        except (OSError, rsync.DestinationFull) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> StillpointError:
        if isinstance(error, rsync.DestinationFull) or getattr(error, "errno", None) in rsync.FULL:
            return StillpointError(
                "the repository %s is full (%s): nothing was published; free space there, or keep fewer generations"
                % (self.repository, rsync.room(self.repository))
            )
        return StillpointError("the repository %s can't be written: %s" % (self.repository, _explained(error)))

    def generations(self) -> List[Generation]:
        """Return what is published, newest first: in the order in which they were made, also if the clock went back."""
        try:
            names = sorted(name for name in os.listdir(self.path) if _NAME.fullmatch(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StillpointError("the generations in %s can't be listed: %s" % (self.path, error.strerror)) from error
        found: List[Tuple[int, Generation]] = []
        highest = 0
        for name in names:
            generation = Generation(os.path.join(self.path, name))
            # One whose manifest can't be read takes the place that its name says.
            place = int(generation.summary.get("sequence", highest))
            highest = max(highest, place)
            found.append((place, generation))
        return [generation for _place, generation in sorted(found, key=lambda pair: (pair[0], pair[1].name), reverse=True)]

    def find(self, name: Optional[str] = None, states: Sequence[Sequence[str]] = ((GOOD,), (UNPROVEN,))) -> Generation:
        """Return a generation by its name or the beginning of it; without a name the newest good one, else the newest unproven.

        :param states: instead: the newest in one of the first of these states, else in one of the next
        :raises UsageError: there is no such generation; the sentence says what there is
        """
        found = self.generations()
        if not found:
            raise UsageError("there is no generation %sin %s: nothing was backed up there yet" % (name + " " if name else "", self.path))
        if name is None or name == LATEST:
            for wanted in states:
                for generation in found:
                    if generation.state in wanted:
                        return generation
            raise UsageError("every generation in %s is bad: name the one to use: %s" % (self.path, _names(found)))
        matching = [each for each in found if each.name == name] or [each for each in found if each.name.startswith(name)]
        if len(matching) != 1:
            problem = "more than one generation in %s begins with %s" if matching else "there is no generation %s in %s"
            raise UsageError(
                (problem % ((self.path, name) if matching else (name, self.path))) + ": there are " + _names(matching or found)
            )
        return matching[0]

    def clean(self, on_trouble: Callable[[StillpointError], None] = fail) -> List[str]:
        """Remove what earlier runs left unfinished, and return the names.

        :param on_trouble: told of each that can't be removed
        """
        self._must_be_locked()
        names = sorted(os.listdir(self.path))
        left = [name for name in names if name.startswith(".") and name.endswith((PARTIAL, DELETING))]
        left += [name for name in names if name.startswith(".") and name.endswith(TRIAL) and not durable.in_use(os.path.join(self.path, name))]
        stray = [name for name in names if name.startswith(".") and name.endswith(VERIFIED) and name[1 : -len(VERIFIED)] not in names]
        stray += [name for name in names if name.startswith(".") and name.endswith(".new")]
        removed = []
        for name in left + stray:
            path = os.path.join(self.path, name)
            try:
                if name in left:
                    durable.remove_tree(path)
                    removed.append(name)
                else:
                    os.unlink(path)
            except (CommandError, OSError) as error:
                on_trouble(StillpointError("%s, which an earlier run left, can't be removed and takes up room: %s" % (path, _explained(error))))
        with self._written():
            self._refresh_latest()
        return removed

    def begin(self, run_id: str, algorithm: Optional[str] = None) -> "Partial":
        """Return a generation to be filled and published, as a context manager that discards it unless that happened.

        :param algorithm: of its checksums; default: the best that rsync has
        """
        self._must_be_locked()
        return Partial(self, run_id, algorithm or rsync.algorithm())

    def remove(self, generation: Generation) -> bool:
        """Remove a generation. False: somebody is reading it, and it stays."""
        self._must_be_locked()
        descriptor = os.open(generation.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False
            doomed = os.path.join(self.path, "." + generation.name + DELETING)
            with self._written():
                self._refresh_latest(without=generation.name)
                durable.rename(generation.path, doomed)
                if os.path.lexists(generation.verdict_path):
                    os.unlink(generation.verdict_path)
                durable.remove_tree(doomed)
        finally:
            os.close(descriptor)
        return True

    def prune(self, keep: Any, *, dry_run: bool = False) -> List[retention.Decision[Generation]]:
        """Apply a retention and return what became of each generation, newest first; one that is being read stays.

        :param dry_run: only say what would be removed
        """
        decisions = retention.decide(self.generations(), keep)
        if dry_run:
            return decisions
        return [
            decision if decision.keep or self.remove(decision.generation) else retention.Decision(decision.generation, ("being read",))
            for decision in decisions
        ]

    def record(self, generation: Generation, value: Mapping[str, Any]) -> None:
        """Keep what was found of a generation, and let `latest` point away from one that is bad. It takes no lock, for which a run that begins just
        then would not wait.

        :raises OSError: as `Generation.record` does
        """
        generation.record(value)
        with self._written():
            self._refresh_latest()

    def _refresh_latest(self, without: str = "") -> None:
        """Let `latest` point to the newest generation that is not bad.

        :param without: one that is about to go
        """
        while True:
            latest = os.path.join(self.path, LATEST)
            now = os.readlink(latest) if os.path.islink(latest) else ""
            wanted = next((each.name for each in self.generations() if each.name != without and each.state != BAD), "")
            if wanted == now:
                return
            if wanted:
                self._point_latest(wanted)  # and look again: a run may have published one meanwhile
            else:
                os.unlink(latest)

    def _point_latest(self, name: str) -> None:
        new = os.path.join(self.path, "." + LATEST + ".new")
        if os.path.lexists(new):
            os.unlink(new)
        os.symlink(name, new)
        durable.rename(new, os.path.join(self.path, LATEST))


class Partial:
    """A generation that is being made.

    :ivar path: where it is made
    :ivar base: the generation whose unchanged files it shares; None for the first
    :ivar warnings: what somebody should know; they go into the manifest
    :ivar trouble: what went wrong after it was published; "" where nothing did
    """

    def __init__(self, directory: JobDirectory, run_id: str, algorithm: str) -> None:
        self._directory = directory
        self.path = os.path.join(directory.path, ".%s%s" % (run_id.replace("/", "-"), PARTIAL))
        self.warnings: List[str] = []
        self.trouble = ""
        self.base: Optional[Generation] = None
        self._compares = False  # what is shared with the base, by contents
        self._damage_known: Optional[datetime] = None  # the last time that damage was found in a generation, when the base was chosen
        self.algorithm = algorithm
        self._sums: Optional[manifest.Sums] = None
        self._trees: Dict[str, Tuple[Tree, rsync.Copied]] = {}
        self._published = False

    def __enter__(self) -> "Partial":
        self.base = self._choose_base()
        with self._directory._written():
            os.mkdir(self.path, 0o700)
        try:
            self._sums = manifest.Sums(os.path.join(self.path, _SUMS))
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, _type: Optional[Type[BaseException]], _error: Optional[BaseException], _trace: Optional[TracebackType]) -> None:
        if not self._published:
            with undisturbed():
                self._discard()

    def _discard(self) -> None:
        try:
            if self._sums is not None:
                self._sums.close()
            durable.remove_tree(self.path)
        except (CommandError, OSError):
            pass  # what went wrong before is what has to be told; the next run removes it

    def _choose_base(self) -> Optional[Generation]:
        """Return the newest generation that is not known to be damaged and whose manifest is whole."""
        known = self._directory.generations()
        self._damage_known = _last_damage(known)
        for generation in known:
            if generation.state == BAD:
                continue
            try:
                manifest.check(generation.path)
            except manifest.Damaged as error:
                self.warnings.append("%s; its files are not shared with the new one" % error)
                try:
                    generation.record(_found_by_chance(generation, str(error)))
                except OSError as failure:
                    self.warnings.append("that it is damaged can't be recorded: %s" % failure.strerror)
                continue
            if generation.summary.get("checksum") == self.algorithm:
                self._compares = _shares_damage(generation, self._damage_known)
                if self._compares:
                    self.warnings.append(
                        "a backup was found damaged, and %s has files in common with it: all that the new one shares with %s was compared by contents"
                        % (generation.name, generation.name)
                    )
                return generation
            self.warnings.append(
                "generation %s has %s checksums and this one gets %s: every file is copied anew"
                % (generation.name, generation.summary.get("checksum"), self.algorithm)
            )
            return None
        return None

    def add(
        self,
        tree: Tree,
        *,
        bwlimit: Optional[str] = None,
        options: Sequence[str] = (),
        checksum: bool = False,
        on_progress: Callable[[int], None] = lambda _done: None,
        watch: Callable[[], None] = lambda: None,
    ) -> rsync.Copied:
        """Copy a tree into the generation and return what that came to; options as in `rsync.copy_tree`.

        :raises StillpointError: the repository is full, or rsync failed otherwise
        """
        if self._sums is None:
            raise RuntimeError("called before it was begun")
        if tree.name in self._trees:
            raise UsageError("%s and %s have the same name in a backup, %s" % (self._trees[tree.name][0].source, tree.source, tree.name))
        checksum = checksum or self._compares
        dest = os.path.join(self.path, tree.name)
        old = os.path.join(self.base.path, tree.name) if self.base else ""
        on_item = self._recorder(tree)
        with self._directory._written():
            os.makedirs(os.path.dirname(dest), mode=0o700, exist_ok=True)
            copied = rsync.copy_tree(
                tree,
                dest,
                algorithm=self.algorithm,
                link_dest=[old] if self.base and os.path.lexists(old) else [],
                bwlimit=bwlimit,
                options=options,
                checksum=checksum,
                on_item=on_item,
                on_progress=on_progress,
                watch=watch,
            )
            if self.base and not checksum and os.path.isdir(dest) and self._write_paths(self._doubtful(tree)):
                rsync.recheck(
                    tree,
                    dest,
                    self._paths,
                    algorithm=self.algorithm,
                    bwlimit=bwlimit,
                    options=options,
                    on_item=on_item,
                    watch=watch,
                )
        self._trees[tree.name] = (tree, copied)
        return copied

    @contextmanager
    def written(self) -> Iterator[None]:
        """Turn errors of writing in the body into a sentence that names the repository and its room."""
        with self._directory._written():
            yield

    def add_written(self, name: str, source: str, checksums: Mapping[str, str], size: int) -> None:
        """Take a file, or a directory of files, that was written to `path` into the generation.

        :param name: relative to `path`
        :param source: what it holds, for people
        :param checksums: of the contents of each file, by its name relative to `path` and by `algorithm`
        :param size: bytes of all of them
        """
        if self._sums is None:
            raise RuntimeError("called before it was begun")
        for path, checksum in checksums.items():
            self._sums.add(os.fsencode(path), checksum)
        self._trees[name] = (Tree(name, source, os.path.join(self.path, name)), rsync.Copied(len(checksums), size, size))

    def _recorder(self, tree: Tree) -> Callable[[rsync.Item], None]:
        """Return what keeps the checksums that rsync tells of a tree."""
        if self._sums is None:
            raise RuntimeError("called before it was begun")
        sums, name = self._sums, os.fsencode(tree.name)
        single = os.path.islink(tree.path) or not os.path.isdir(tree.path)

        def inside(path: bytes) -> bytes:
            return name if single else name + b"/" + path

        def record(item: rsync.Item) -> None:
            if item.checksum or item.first:
                sums.add(inside(item.path), item.checksum, inside(item.first) if item.first else b"")

        return record

    def _doubtful(self, tree: Tree) -> Iterator[bytes]:
        """Return the files of a tree that were taken from the base although their size and time don't prove them unchanged:
        those written just before the base's snapshot may have been written again just after it, within a time stamp's tick."""
        if self.base is None or self._sums is None:
            raise RuntimeError("called before it was begun")
        since = int((self.base.time.timestamp() - DOUBTFUL) * 1e9)
        prefix = os.fsencode(tree.name) + b"/"
        root = os.fsencode(self.path)
        for entry in manifest.entries(self.base.path):
            if entry.type == manifest.FILE and entry.mtime_ns >= since and entry.path.startswith(prefix) and entry.path not in self._sums:
                try:
                    status = os.lstat(os.path.join(root, entry.path))
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(status.st_mode) and status.st_mtime_ns == entry.mtime_ns:
                    yield entry.path[len(prefix) :]

    @property
    def _paths(self) -> str:
        return os.path.join(self.path, _PATHS)

    def _write_paths(self, paths: Iterator[bytes]) -> int:
        """Write paths to a file as rsync reads them, and return how many there are."""
        number = 0
        with open(self._paths, "wb") as file:
            for path in paths:
                file.write(path + b"\0")
                number += 1
        return number

    def publish(self, time: datetime, summary: Mapping[str, Any]) -> Generation:
        """Make it a generation, and return that.

        :param time: the point in time that it holds, UTC
        :param summary: what the run knows of it; format, generation, sequence, trees, checksum, and the sums in copy are added
        :raises StillpointError: the repository is full or can't be written; nothing was published
        """
        with self._directory._written():
            name = self._free_name(time)
            self._write_manifest(name, summary)
            for left in (_PATHS,):
                if os.path.lexists(os.path.join(self.path, left)):
                    os.unlink(os.path.join(self.path, left))
            durable.sync_file_system(self.path)
            generation = Generation(os.path.join(self._directory.path, name))
            durable.rename_to_free_name(self.path, generation.path)
            self._published = True
        try:
            if generation.state != BAD:
                self._directory._point_latest(name)
        except OSError as error:
            self.trouble = "%s/%s does not point to the new generation: %s" % (self._directory.path, LATEST, error.strerror)
        return generation

    def _free_name(self, time: datetime) -> str:
        """Return the name for a point in time; a second generation of one second gets a number."""
        first = name = time.astimezone(timezone.utc).strftime(_NAME_FORMAT)
        number = 1
        while os.path.lexists(os.path.join(self._directory.path, name)):
            number += 1
            name = "%s-%d" % (first, number)
        return name

    def _write_manifest(self, name: str, given: Mapping[str, Any]) -> None:
        if self._sums is None:
            raise RuntimeError("called before it was begun")
        sums = self._sums
        sums.resolve(self._base_entries)

        def summary(totals: Dict[str, manifest.Totals]) -> Dict[str, Any]:
            copies = [copied for _tree, copied in self._trees.values()]
            trees = [{"name": key, "source": self._trees[key][0].source, **figures._asdict()} for key, figures in totals.items()]
            return {
                "format": manifest.FORMAT,
                "generation": name,
                "sequence": 1 + max((int(each.summary.get("sequence", 0)) for each in self._directory.generations()), default=0),
                **given,
                "warnings": [*given.get("warnings", ()), *self.warnings],
                "trees": trees,
                "copy": {
                    **(given.get("copy") or {}),
                    "files": sum(figures.files for figures in totals.values()),
                    "bytes": sum(figures.bytes for figures in totals.values()),
                    "bytes_transferred": sum(copied.bytes_transferred for copied in copies),
                },
                "checksum": self.algorithm,
                "damage_known": self._damage_known.strftime(_MOMENT) if self._damage_known else None,
            }

        leave_out = (os.fsencode(_SUMS), os.fsencode(_PATHS))
        unknown = manifest.write(self.path, sums, self._base_entries, self._trees, summary, leave_out=leave_out)
        if unknown:
            # Rare: a new name of an unchanged file, where rsync's line does not tell which.
            self._write_paths(iter(unknown))
            rsync.checksums(self.path, algorithm=self.algorithm, paths=self._paths, on_item=lambda item: sums.add(item.path, item.checksum))
            unknown = manifest.write(self.path, sums, self._base_entries, self._trees, summary, leave_out=leave_out)
        if unknown:
            raise StillpointError(
                "the checksum of %s can't be computed: nothing was published" % os.path.join(self.path, os.fsdecode(unknown[0]))
            )
        sums.close()

    def _base_entries(self) -> Iterator[manifest.Entry]:
        return manifest.entries(self.base.path) if self.base else iter(())


def _moment(recorded: Mapping[str, Any]) -> Optional[datetime]:
    """Return when a verification ended, UTC; None where that is not known."""
    try:
        return datetime.strptime(str(recorded.get("time")), _MOMENT).replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def _last_damage(known: Sequence[Generation]) -> Optional[datetime]:
    """Return when damage was found last in any of some generations, UTC; None where none was."""
    return max((each.found_damaged for each in known if each.found_damaged), default=None)


def _shares_damage(base: Generation, found: Optional[datetime]) -> bool:
    """Tell whether a generation may have the damage that was found in another one: an unchanged file is the same file in all of them. One whose run
    knew of that was compared with its source, and one that was read from end to end since is known to be right.

    By what the run knew, not by the time of either: damage may be found while a run goes on, whose base is chosen by then.
    """
    if found is None or str(base.summary.get("damage_known") or "") >= found.strftime(_MOMENT):
        return False
    verified = base.verified
    since = _moment(verified) if verified and verified.get("ok") else None
    return since is None or since < found


def _found_by_chance(generation: Generation, text: str) -> Dict[str, Any]:
    """Return what is recorded of a generation whose manifest turned out to be damaged, as a verification records it."""
    known = {key: value for key, value in generation.recorded.items() if key == "proof"}
    now = datetime.now(timezone.utc).strftime(_MOMENT)
    facts = {"generation": generation.name, "time": now, "ok": False, "files": 0, "bytes": 0, "faults": [text], "faults_total": 1}
    return {**facts, "duration_s": 0.0, "percent": None, "of_files": generation.files, "of_bytes": generation.size_bytes, **known}


def _make_directories(path: str) -> None:
    """Make a directory and those above it that are missing, for root alone."""
    if not os.path.isdir(path):
        _make_directories(os.path.dirname(path))
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass


def _names(generations: Sequence[Generation], most: int = 20) -> str:
    names = ["%s (%s)" % (each.name, each.state) for each in generations[:most]]
    return ", ".join(names) + (" and %d more" % (len(generations) - most) if len(generations) > most else "")


def _explained(error: Exception) -> str:
    reason = getattr(error, "strerror", None)
    name = getattr(error, "filename", None)
    return "%s (%s)" % (reason, os.fsdecode(name)) if reason and name else str(reason or error)
