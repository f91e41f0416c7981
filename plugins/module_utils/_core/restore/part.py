# SPDX-License-Identifier: GPL-3.0-or-later
"""One path of the files of a backup, as a tree of its own: a directory, a file, a symlink."""

from __future__ import annotations

import os

from ..errors import UsageError
from ..repository import manifest
from ..repository.generation import Generation, RecordedTree
from ..storage.mounts import is_below


def find(generation: Generation, path: str) -> RecordedTree:
    """Return what a generation holds of a path, called as on the live system.

    :raises UsageError: it holds nothing of it, or it is one of the server's own files, which belong together
    """
    if not os.path.isabs(path):
        raise UsageError("%s is no whole path: write it as it is called on the live system, from / on" % path)
    path = os.path.normpath(path)
    tree = max((tree for tree in generation.trees if is_below(path, tree.source)), key=lambda tree: len(tree.source), default=None)
    if tree is None:
        sources = ", ".join(tree.source for tree in generation.trees if tree.is_files)
        raise UsageError("the generation %s holds no %s; its files are those of %s" % (generation.name, path, sources or "nothing but the server"))
    if not tree.is_files:
        raise UsageError(
            "%s is one of the server's own files, which belong together: restore the database (--database-only), or one table of it (--table)" % path
        )
    name = os.path.join(tree.name, os.path.relpath(path, tree.source)) if path != tree.source else tree.name
    wanted, found, files, size, allocated = os.fsencode(name), False, 0, 0, 0
    for entry in manifest.entries(generation.path):
        if entry.path == wanted or entry.path.startswith(wanted + b"/"):
            found = True
            if entry.type == manifest.FILE:
                files += 1
                size += entry.size
                allocated += _allocated(generation, entry)
    if not found:
        raise UsageError("the generation %s holds no %s: look for it below %s" % (generation.name, path, os.path.join(generation.path, tree.name)))
    return RecordedTree(name, path, files, size, allocated)


def _allocated(generation: Generation, entry: manifest.Entry) -> int:
    """Return the bytes of disk that a file takes; what is lost is found when it is copied."""
    try:
        return os.lstat(os.path.join(os.fsencode(generation.path), entry.path)).st_blocks * 512
    except OSError:
        return entry.size
