# SPDX-License-Identifier: GPL-3.0-or-later
"""A generation that is being made: what it shares with the one before, its checksums, and the rename that publishes it."""

from __future__ import annotations

import grp
import os
import pwd
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Type

from ..host import durable
from ..host.errors import CommandError, StillpointError, UsageError
from ..host.process import undisturbed
from ..host.steps import reached
from ..trees import Tree
from . import manifest, rsync
from .generation import BAD, LATEST, MOMENT, NAME_FORMAT, PARTIAL, Generation, moment, now
from .job_directory import JobDirectory
from .shared_blocks import Made
from .sums import Sums
from .transfer import Copied, Manner
from .tree_copy import PATHS, TreeCopy
from .unchanged import Base

_SUMS = ".sums"


class Partial:
    """A generation that is being made: a context manager that discards it unless it was published.

    :ivar path: where it is made
    :ivar base: the generation whose unchanged files it shares; None for the first
    :ivar warnings: what somebody should know; they go into the manifest
    :ivar trouble: what went wrong after it was published; "" where nothing did
    """

    def __init__(self, directory: JobDirectory, run_id: str, algorithm: Optional[str] = None) -> None:
        """:param algorithm: of its checksums; default: the best that rsync has"""
        directory.must_be_locked()
        self._directory = directory
        self.path = os.path.join(directory.path, ".%s%s" % (run_id.replace("/", "-"), PARTIAL))
        self.warnings: List[str] = []
        self.trouble = ""
        self.base: Optional[Generation] = None
        self._compares = False  # what is shared with the base, by contents
        self._damage_known: Optional[datetime] = None  # the last time that damage was found in a generation, when the base was chosen
        self.algorithm = algorithm or rsync.algorithm()
        self._sums: Optional[Sums] = None
        self._trees: Dict[str, Tuple[Tree, Copied]] = {}
        self._made = Made()
        self._published = False

    def __enter__(self) -> "Partial":
        self.base = self._choose_base()
        with self._directory.written():
            os.mkdir(self.path, 0o700)
        try:
            self._sums = Sums(os.path.join(self.path, _SUMS))
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
    ) -> Copied:
        """Copy a tree into the generation and return what that came to; options as in `rsync.copy_tree`.

        :raises StillpointError: the repository is full, or rsync failed otherwise
        """
        if self._sums is None:
            raise RuntimeError("called before it was begun")
        if tree.name in self._trees:
            raise UsageError("%s and %s have the same name in a backup, %s" % (self._trees[tree.name][0].source, tree.source, tree.name))
        manner = Manner(self.algorithm, bwlimit, options, checksum or self._compares, on_progress, watch)
        base = Base.at(self.base.path, self.base.time) if self.base else None
        with self._directory.written():
            os.makedirs(os.path.dirname(os.path.join(self.path, tree.name)), mode=0o700, exist_ok=True)
            tree_copy = TreeCopy(tree, self.path, base, self._sums, manner, self.warnings)
            copied = tree_copy.copy()
            self._made += tree_copy.shared.made
        self._trees[tree.name] = (tree, copied)
        reached("tree copied", tree.name)
        return copied

    @contextmanager
    def written(self) -> Iterator[None]:
        """Turn errors of writing in the body into a sentence that names the repository and its room."""
        with self._directory.written():
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
        self._trees[name] = (Tree(name, source, os.path.join(self.path, name)), Copied(len(checksums), size, size))

    @property
    def _paths(self) -> str:
        return os.path.join(self.path, PATHS)

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
        with self._directory.written():
            name = self._free_name(time)
            self._write_manifest(name, summary)
            if os.path.lexists(self._paths):
                os.unlink(self._paths)
            durable.sync_file_system(self.path)
            generation = Generation(os.path.join(self._directory.path, name))
            durable.rename_to_free_name(self.path, generation.path)
            self._published = True
        try:
            if generation.state != BAD:
                self._directory.point_latest(name)
        except OSError as error:
            self.trouble = "%s/%s does not point to the new generation: %s" % (self._directory.path, LATEST, error.strerror)
        return generation

    def _free_name(self, time: datetime) -> str:
        """Return the name for a point in time; a second generation of one second gets a number."""
        first = name = time.astimezone(timezone.utc).strftime(NAME_FORMAT)
        number = 1
        while os.path.lexists(os.path.join(self._directory.path, name)):
            number += 1
            name = "%s-%d" % (first, number)
        return name

    def _write_manifest(self, name: str, given: Mapping[str, Any]) -> None:
        if self._sums is None:
            raise RuntimeError("called before it was begun")
        sums = self._sums
        sums.resolve(lambda: ((entry.path, entry.checksum) for entry in self._base_entries()))

        def summary(totals: Dict[str, manifest.Totals]) -> Dict[str, Any]:
            copies = [copied for _tree, copied in self._trees.values()]
            trees = [
                {"name": key, "source": self._trees[key][0].source, **figures._asdict(), **_owner(os.path.join(self.path, key)), **self._left_out(key)}
                for key, figures in totals.items()
            ]
            return {
                "format": manifest.FORMAT,
                "generation": name,
                "sequence": self._directory.next_sequence(),
                **given,
                "warnings": [*given.get("warnings", ()), *self.warnings],
                "trees": trees,
                "copy": {
                    **(given.get("copy") or {}),
                    "files": sum(figures.files for figures in totals.values()),
                    "bytes": sum(figures.bytes for figures in totals.values()),
                    "bytes_transferred": sum(copied.bytes_transferred for copied in copies),
                    **({"shared_blocks": self._made.as_dict()} if self._made.files else {}),
                },
                "checksum": self.algorithm,
                "damage_known": self._damage_known.strftime(MOMENT) if self._damage_known else None,
            }

        leave_out = (os.fsencode(_SUMS), os.fsencode(PATHS))
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

    def _left_out(self, name: str) -> Dict[str, Any]:
        """Return the patterns by which something of a tree was left out, for the manifest."""
        patterns = [pattern for pattern in self._trees[name][0].exclude if pattern not in rsync.OWN_NAMES]
        return {"left_out": patterns} if patterns else {}

    def _base_entries(self) -> Iterator[manifest.Entry]:
        return manifest.entries(self.base.path) if self.base else iter(())


def _owner(path: str) -> Dict[str, str]:
    """Return the names of the accounts that own a tree, as far as this host has any of these numbers."""
    status = os.lstat(path)
    names = {"user": "", "group": ""}
    with suppress(KeyError):
        names["user"] = pwd.getpwuid(status.st_uid).pw_name
    with suppress(KeyError):
        names["group"] = grp.getgrgid(status.st_gid).gr_name
    return names


def _last_damage(known: Sequence[Generation]) -> Optional[datetime]:
    """Return when damage was found last in any of some generations, UTC; None where none was."""
    return max((each.found_damaged for each in known if each.found_damaged), default=None)


def _shares_damage(base: Generation, found: Optional[datetime]) -> bool:
    """Tell whether a generation may have the damage that was found in another one: an unchanged file is the same file in all of them. One whose run
    knew of that was compared with its source, and one that was read from end to end since is known to be right.

    By what the run knew, not by the time of either: damage may be found while a run goes on, whose base is chosen by then.
    """
    if found is None or str(base.summary.get("damage_known") or "") >= found.strftime(MOMENT):
        return False
    verified = base.verified
    since = moment(verified) if verified and verified.get("ok") else None
    return since is None or since < found


def _found_by_chance(generation: Generation, text: str) -> Dict[str, Any]:
    """Return what is recorded of a generation whose manifest turned out to be damaged, as a verification records it."""
    known = {key: value for key, value in generation.recorded.items() if key == "proof"}
    facts = {"generation": generation.name, "time": now(), "ok": False, "files": 0, "bytes": 0, "faults": [text], "faults_total": 1}
    return {**facts, "duration_s": 0.0, "percent": None, "of_files": generation.files, "of_bytes": generation.size_bytes, **known}
