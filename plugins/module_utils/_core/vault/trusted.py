# SPDX-License-Identifier: GPL-3.0-or-later
"""Which packs of a repository hold what they claim, and an index of these alone.

A client can send packs whose headers give old blobs' ids to other contents, and indexes that say anything. restic believes both: it would
restore the wrong data, and prune the right ones. So each pack that arrives is read once, in a throw-away view that holds nothing else, and
what restic finds in the good ones becomes a part of the index with which the keeper looks at the repository ever after.

::

    HOST/trusted/           root 0700
        index/              restic's index files of the packs that were read and found right
        packs               their ids
        bad                 ids of those that were found wrong
        doubt               is there while the packs are being changed; then the index is made anew
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Dict, Iterable, Iterator, Set

from ..host import durable
from ..host.steps import reached
from .engine import Engine, failed, summary
from .layout import VIEW, HostDirectory, StoredFile

TRUSTED = "trusted"


@dataclass(frozen=True)
class Trusted:
    """The trusted packs of a host's repository."""

    directory: HostDirectory

    @property
    def path(self) -> str:
        return os.path.join(self.directory.path, TRUSTED)

    @property
    def index(self) -> str:
        return os.path.join(self.path, "index")

    def packs(self) -> Set[str]:
        """Return the ids of the packs that were found right."""
        return _ids(os.path.join(self.path, "packs"))

    def bad(self) -> Set[str]:
        """Return the ids of the packs that were found wrong."""
        return _ids(os.path.join(self.path, "bad"))

    def take_in(self, stored: Iterable[StoredFile]) -> None:
        """Read the packs that are new among these, and trust those that hold what they claim.

        :raises StillpointError: they can't be looked at
        """
        packs = {each.id: each for each in stored if each.kind == "data"}
        self._make_sure(packs)
        known = self.packs() & set(packs)
        new = [each for name, each in packs.items() if name not in known | self.bad()]
        if not new:
            return
        with _view(self.directory, new) as view:
            engine = Engine(self.directory.settings, view)
            engine.run("repair", "index", "--read-all-packs")
            wrong = _wrong(engine) | {each.id for each in new} - _indexed(engine)
            if wrong:
                _write_ids(os.path.join(self.path, "bad"), (self.bad() | wrong) & set(packs))
                _empty(view, wrong)
                engine.run("repair", "index", "--read-all-packs")
            reached("vault packs read", self.directory.host)
            _copy_all(os.path.join(view, "index"), self.index)
        _write_ids(os.path.join(self.path, "packs"), known | {each.id for each in new} - wrong)

    def _make_sure(self, packs: Dict[str, StoredFile]) -> None:
        """Make the index anew where a keeper was killed while it changed packs, or some of them are gone."""
        os.makedirs(self.index, mode=0o700, exist_ok=True)
        doubt = os.path.join(self.path, "doubt")
        gone = self.packs() - set(packs)
        if not gone and not os.path.exists(doubt):
            return
        self.doubt()
        kept = [packs[name] for name in self.packs() & set(packs)]
        with _view(self.directory, kept) as view:
            if kept:
                Engine(self.directory.settings, view).run("repair", "index", "--read-all-packs")
            self._replace_index(os.path.join(view, "index"))
        _write_ids(os.path.join(self.path, "packs"), [each.id for each in kept])
        self._sure()

    def doubt(self) -> None:
        """Have the index made anew unless `adopt` follows: the packs are going to be changed."""
        with open(os.path.join(self.path, "doubt"), "wb") as file:
            os.fsync(file.fileno())
        durable.sync_directory(self.path)

    def _sure(self) -> None:
        os.unlink(os.path.join(self.path, "doubt"))
        durable.sync_directory(self.path)

    def adopt(self) -> None:
        """Trust the packs and the index that the keeper's own restic has left in a frozen repository."""
        stored, _foreign = self.directory.files()
        self._replace_index(os.path.join(self.directory.path, "index"))
        _write_ids(os.path.join(self.path, "packs"), [each.id for each in stored if each.kind == "data"])
        self._sure()

    def _replace_index(self, source: str) -> None:
        _copy_all(source, self.index)
        _keep_only(self.index, set(os.listdir(source)))

    def is_put(self) -> bool:
        """Tell whether the repository has the trusted index and no other."""
        return set(os.listdir(self.index)) == set(os.listdir(os.path.join(self.directory.path, "index")))

    def put_index(self) -> None:
        """Let a frozen repository have the trusted index in place of what clients have sent."""
        index = os.path.join(self.directory.path, "index")
        _copy_all(self.index, index)
        _keep_only(index, set(os.listdir(self.index)))
        reached("vault index put", self.directory.host)

    @contextmanager
    def view(self, snapshots: Iterable[StoredFile]) -> Iterator[Engine]:
        """Look at these snapshots of the repository by the trusted index, whatever else clients have sent."""
        with _view(self.directory, snapshots) as view:
            os.rmdir(os.path.join(view, "data"))
            os.symlink(os.path.join(self.directory.path, "data"), os.path.join(view, "data"))
            _copy_all(self.index, os.path.join(view, "index"))
            yield Engine(self.directory.settings, view)


@contextmanager
def _view(directory: HostDirectory, stored: Iterable[StoredFile]) -> Iterator[str]:
    """Make a repository of hard links to these files, and remove it at the end."""
    view = os.path.join(directory.path, VIEW)
    durable.remove_tree(view)  # of a keeper that was killed
    os.mkdir(view, 0o700)
    try:
        for kind in ("data", "index", "locks", "snapshots", "keys"):
            os.mkdir(os.path.join(view, kind), 0o700)
        os.link(os.path.join(directory.path, "config"), os.path.join(view, "config"))
        _copy_all(os.path.join(directory.path, "keys"), os.path.join(view, "keys"))
        for each in stored:
            folder = os.path.join(view, each.kind, each.id[:2] if each.kind == "data" else "")
            os.makedirs(folder, mode=0o700, exist_ok=True)
            os.link(each.path, os.path.join(folder, each.id), follow_symlinks=False)
        yield view
    finally:
        durable.remove_tree(view)


def _wrong(engine: Engine) -> Set[str]:
    """Return the packs in a view that do not hold what they claim.

    :raises StillpointError: restic found something else wrong, and does not say which pack it is
    """
    done = engine.run("check", "--read-data", "--json", check=False)
    wrong = set(summary(done.stdout).get("broken_packs") or ())
    if done.rc != 0 and not wrong:
        raise failed(done.argv, done.rc, done.stderr)
    return wrong


def _indexed(engine: Engine) -> Set[str]:
    """Return the packs that a repository's index has something in: not those whose header can't be read."""
    found: Set[str] = set()
    for name in os.listdir(os.path.join(engine.repository, "index")):
        listed = json.loads(engine.run("cat", "index", name, "--no-lock").stdout)
        found |= {each["id"] for each in listed["packs"] if each["blobs"]}
    return found


def _empty(view: str, packs: Iterable[str]) -> None:
    """Take packs, and all indexes, out of a view."""
    for each in packs:
        os.unlink(os.path.join(view, "data", each[:2], each))
    _keep_only(os.path.join(view, "index"), set())


def _copy_all(source: str, target: str) -> None:
    """Copy the files of a directory that another one lacks, and bring them to the disk. They are copies, as others may own the originals."""
    for name in sorted(set(os.listdir(source)) - set(os.listdir(target))):
        new = os.path.join(target, ".new")
        shutil.copyfile(os.path.join(source, name), new, follow_symlinks=False)
        with open(new, "rb") as file:
            os.fsync(file.fileno())
        os.rename(new, os.path.join(target, name))
    durable.sync_directory(target)


def _keep_only(directory: str, names: Set[str]) -> None:
    """Remove all other files of a directory."""
    for name in set(os.listdir(directory)) - names:
        os.unlink(os.path.join(directory, name))
    durable.sync_directory(directory)


def _ids(path: str) -> Set[str]:
    try:
        with open(path, encoding="ascii") as file:
            return set(file.read().split())
    except FileNotFoundError:
        return set()


def _write_ids(path: str, ids: Iterable[str]) -> None:
    with durable.naming(path), open(path + ".new", "w", encoding="ascii") as file:
        file.writelines(each + "\n" for each in sorted(ids))
        file.flush()
        os.fsync(file.fileno())
    durable.rename(path + ".new", path)
