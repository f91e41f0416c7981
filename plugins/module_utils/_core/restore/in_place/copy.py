# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying a tree of a generation into its staging place, and comparing it with the manifest while that happens."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator, List, Mapping, Optional, Sequence

from ...host import durable
from ...host.errors import StillpointError
from ...host.reporter import Reporter
from ...proof import checksums
from ...repository import compare, manifest, rsync
from ...repository.compare import Fault
from ...repository.generation import Generation
from ...repository.manifest import Entry
from ...repository.sums import Ahead, Sums, order
from ...repository.transfer import DestinationFull, Item, room
from ...trees import Tree
from . import owners
from .clones import Clones
from .targets import ROOM, SINGLE, Target

if TYPE_CHECKING:
    from ..replay.execute import Replay


def copy(generation: Generation, target: Target, done: int, total: int, reporter: Reporter) -> None:
    """Copy a tree into its staging place and make sure that it is what the manifest says.

    :raises StillpointError: it is not; whether that is the generation's fault or the destination's, the sentence says
    """
    name = os.fsencode(target.tree.name)
    source = os.path.join(generation.path, target.tree.name)
    if not os.path.lexists(source):
        missing = [Fault(compare.shown(name), "missing", name)]
        checksums.found_damaged(generation, missing, reporter)
        raise _damaged(generation, missing)
    sums = Sums()
    single = not os.path.isdir(source) or os.path.islink(source)
    untold = False

    def record(item: Item) -> None:
        nonlocal untold
        if item.checksum or item.first:
            prefix = b"" if single else name + b"/"
            sums.add(name if single else prefix + item.path, item.checksum, prefix + item.first if item.first else b"")
        else:
            untold = True

    try:
        with _made(target.staging + SINGLE if single else target.staging) as directory:
            place = "/proc/%d/fd/%d" % (os.getpid(), directory)
            clones = Clones(generation, target.tree.name)
            clones.make(place)
            rsync.copy_tree(
                Tree(target.tree.name, source, source),
                # one that is no directory keeps its name while it is copied
                place + ("/" + os.path.basename(source) if single else ""),
                algorithm=str(generation.summary["checksum"]),
                gives_way=False,
                owners=owners.options(target),
                on_item=record,
                on_progress=lambda now: reporter.progress(min(done + now, total), total),
            )
            clones.read(place, record, reporter, done + target.tree.bytes - clones.bytes, total)
            if single:
                os.rename(os.path.basename(source), target.staging, src_dir_fd=directory)
        if single:
            os.rmdir(target.staging + SINGLE)
        sums.resolve(lambda: ())
        if untold:
            _read_untold(generation, target, sums)
        faults = list(_compared(generation, target, sums))
        damage = _confirmed(generation, target, faults) if faults else []
    except DestinationFull as error:
        raise StillpointError(
            "there is no room for %s beside %s (%s): the live data was not touched; free some space, or restore into a directory "
            "elsewhere (--to DIR)" % (generation.name, target.path, room(os.path.dirname(target.staging)))
        ) from error
    finally:
        sums.close()
    if damage:
        checksums.found_damaged(generation, damage, reporter)
        raise _damaged(generation, damage)
    if faults:
        raise StillpointError(
            "%s does not keep what was written to it (%s), while generation %s is sound: the live data was not touched; restore to a file system "
            "that keeps owners and modes (--to DIR)" % (os.path.dirname(target.staging), _first(faults), generation.name)
        )


@contextmanager
def _made(path: str) -> Iterator[int]:
    """Make a directory and give a descriptor of it: who owns the directory that it lies in could put another one in its place meanwhile."""
    os.mkdir(path, 0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _damaged(generation: Generation, faults: List[Fault]) -> StillpointError:
    return StillpointError(
        "generation %s is damaged (%s): the live data was not touched; restore another generation" % (generation.name, _first(faults))
    )


def _first(faults: List[Fault]) -> str:
    return faults[0].text() + (", and %d more" % (len(faults) - 1) if len(faults) > 1 else "")


def _confirmed(generation: Generation, target: Target, faults: List[Fault]) -> List[Fault]:
    """Return what of the faults of a copy is wrong with the generation itself: the copy's file system may show other modes and owners than it is
    given."""
    doubted = {fault.path for fault in faults}

    def in_doubt(entries: Iterable[Entry]) -> Iterator[Entry]:
        return (entry for entry in entries if compare.shown(entry.path) in doubted)

    sums = Sums()
    try:
        _read(generation, in_doubt(_expected(generation, target)), sums)
        found = (entry for entry, _allocated in manifest.walk(os.fsencode(generation.path), os.fsencode(target.tree.name)))
        return list(compare.compare(in_doubt(_expected(generation, target)), in_doubt(found), sums, times=False))
    finally:
        sums.close()


def _read_untold(generation: Generation, target: Target, sums: Sums) -> None:
    """Read the files whose checksum rsync did not tell: names of hard links that look like its own arrow between names."""
    told = Ahead(sums.in_order())
    _read(generation, (entry for entry in _expected(generation, target) if told.at(order(entry.path)) is None), sums)


def _read(generation: Generation, entries: Iterable[Entry], sums: Sums) -> None:
    """Read files of a generation and keep their checksums."""
    with tempfile.NamedTemporaryFile() as paths:
        for entry in entries:
            if entry.type == manifest.FILE:
                paths.write(entry.path + b"\0")
        paths.flush()
        rsync.checksums(
            generation.path,
            algorithm=str(generation.summary["checksum"]),
            paths=paths.name,
            on_item=lambda item: sums.add(item.path, item.checksum),
        )


def _expected(generation: Generation, target: Target) -> Iterator[Entry]:
    return manifest.below(generation.path, os.fsencode(target.tree.name))


def _compared(generation: Generation, target: Target, sums: Sums) -> Iterator[Fault]:
    name = os.fsencode(target.tree.name)
    root, below = os.path.split(os.fsencode(target.staging))

    def found() -> Iterator[Entry]:
        for entry, _allocated in manifest.walk(root, below):
            yield entry._replace(path=name + entry.path[len(below) :])

    # The file system may keep times less precisely than the one that was backed up.
    expected = (owners.expected(entry, target) for entry in _expected(generation, target))
    return compare.compare(expected, found(), sums, times=False)


def copy_all(generation: Generation, targets: Sequence[Target], reporter: Reporter, *, make: Callable[[str], None]) -> None:
    """Copy and check every tree.

    :param make: makes the directory that a staging place lies in
    """
    reporter.stage("copy")
    done, total = 0, sum(target.tree.bytes for target in targets)
    for target in targets:
        make(os.path.dirname(target.staging))
        durable.remove_tree(target.staging)
        copy(generation, target, done, total, reporter)
        done += target.tree.bytes


def replayed(replay: Optional["Replay"], targets: Sequence[Target], reporter: Reporter) -> Optional[Mapping[str, Any]]:
    """Replay onto the copy, which nothing depends on yet, and return what came of it; None where nothing is to be.

    :raises StillpointError: it failed; the live data was not touched
    """
    if replay is None:
        return None
    try:
        return replay.run(where(targets), reporter)
    except StillpointError as error:
        raise StillpointError("%s; the live data was not touched" % error) from error


def where(targets: Sequence[Target]) -> Mapping[str, str]:
    """Return for each path of the server the directory of its copy."""
    return {os.path.realpath(target.tree.source): target.staging for target in targets if not target.tree.is_files}


def untouched(generation: Generation, error: OSError) -> StillpointError:
    """Return the error of a restore that has replaced nothing."""
    name = " (%s)" % error.filename if error.filename else ""
    return StillpointError("%s could not be put back: %s%s; the live data was not touched" % (generation.name, error.strerror, name))


def drop(targets: Sequence[Target]) -> None:
    """Remove what was copied but has replaced nothing."""
    for target in targets:
        durable.remove_tree(target.staging)
        for suffix in (SINGLE, ROOM):
            durable.remove_tree(target.staging + suffix)
