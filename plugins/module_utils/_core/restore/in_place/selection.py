# SPDX-License-Identifier: GPL-3.0-or-later
"""Which trees of a generation are put back, and whether the generation is fit for it."""

from __future__ import annotations

import os
from typing import Iterator, List, Optional

from ...host.errors import StillpointError, UsageError
from ...repository import manifest
from ...repository.generation import BAD, Generation, RecordedTree
from ...repository.job_directory import JobDirectory
from . import one_path

ALL, DATABASE, FILES = "all", "database", "files"


def trees(generation: Generation, parts: str, path: Optional[str] = None) -> List[RecordedTree]:
    """Return what is put back.

    :param parts: ``all``, ``database`` or ``files``
    :param path: of the files, this one alone, called as on the live system
    :raises UsageError: the generation does not hold it
    """
    if path is not None:
        return [one_path.find(generation, path)]
    if parts not in (ALL, DATABASE, FILES):
        raise UsageError("%r is no part of a backup: say %s, %s or %s" % (parts, ALL, DATABASE, FILES))
    found = [tree for tree in generation.trees if is_of(tree, parts)]
    if not found:
        raise UsageError("the generation %s holds no %s" % (generation.name, "data" if parts == ALL else parts))
    return found


def is_of(tree: RecordedTree, parts: str) -> bool:
    """Tell whether a tree belongs to a half of a backup."""
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
        wanted = [tree for tree in newer.trees if is_of(tree, parts) and path is None]
        lacks = {tree.source for tree in wanted} - {tree.source for tree in generation.trees}
        if lacks:
            raise UsageError(
                "the newest good backup, %s, does not hold %s, which the newer %s (%s) does: name the one to restore"
                % (generation.name, ", ".join(sorted(lacks)), newer.name, newer.state)
            )
        yield "%s is newer and %s: name it to restore that one instead" % (newer.name, newer.state)
        return
