# SPDX-License-Identifier: GPL-3.0-or-later
"""One path of the files of a backup, as a tree of its own: a directory, a file, a symlink."""

from __future__ import annotations

import os
from typing import Optional

from ...host.errors import UsageError
from ...host.mounts import is_below
from ...repository import manifest
from ...repository.generation import Generation, RecordedTree


def normal(path: str) -> str:
    """Return an absolute path without ``.`` and without doubled slashes.

    :raises UsageError: it is not absolute
    """
    if not os.path.isabs(path) or ".." in path.split("/"):
        raise UsageError("%r is not an absolute path: give it as on the live system, starting with / and without '..'" % path)
    return "/" + os.path.normpath(path).lstrip("/")


def find(generation: Generation, path: str) -> RecordedTree:
    """Return what a generation holds of a path, called as on the live system.

    :raises UsageError: it holds nothing of it, or it is one of the server's own files, which belong together
    """
    path = normal(path)
    tree = _around(generation, path)
    if tree is None:
        sources = ", ".join(tree.source for tree in generation.trees if tree.is_files)
        raise UsageError("the generation %s holds no %s; its files are those of %s" % (generation.name, path, sources or "nothing but the server"))
    if not tree.is_files:
        raise UsageError(
            "%s is one of the server's own files, which belong together: restore the database (--only database), or one table of it (--table)" % path
        )
    name = os.path.join(tree.name, os.path.relpath(path, tree.source)) if path != tree.source else tree.name
    wanted, found, files, size, allocated = os.fsencode(name), False, 0, 0, 0
    for entry in manifest.below(generation.path, wanted):
        found = True
        if entry.type == manifest.FILE:
            files += 1
            size += entry.size
            shared = entry.first == wanted or entry.first.startswith(wanted + b"/")
            allocated += 0 if shared else _allocated(generation, entry)
    if not found:
        raise UsageError("the generation %s holds no %s: look for it below %s" % (generation.name, path, os.path.join(generation.path, tree.name)))
    return RecordedTree(name, path, files, size, allocated)


def _around(generation: Generation, path: str) -> Optional[RecordedTree]:
    """Return the tree that a path lies in, the innermost."""
    return max((tree for tree in generation.trees if is_below(path, tree.source)), key=lambda tree: len(tree.source), default=None)


def check_way(generation: Generation, path: str) -> None:
    """Refuse a path inside a tree whose directory is gone, or is another one by now: the backup holds that one too, with its owner and mode.

    :param path: as `find` returned it
    """
    tree = _around(generation, path)
    source = tree.source if tree else "/"
    directory = os.path.dirname(path)
    way = []
    while directory != source and is_below(directory, source):
        way.append(directory)
        directory = os.path.dirname(directory)
    for directory in (source, *reversed(way)):
        if directory != source and os.path.islink(directory):
            raise UsageError(
                "%s, in which %s lies, is a symlink now and was none: put that one back, with --path %s, or all of it elsewhere, with --to DIR"
                % (directory, path, directory)
            )
        if not os.path.isdir(directory):
            raise UsageError("%s, in which %s lies, is no directory any more: put that one back, with --path %s" % (directory, path, directory))


def _allocated(generation: Generation, entry: manifest.Entry) -> int:
    """Return the bytes of disk that a file takes; what is lost is found when it is copied."""
    try:
        return os.lstat(os.path.join(os.fsencode(generation.path), entry.path)).st_blocks * 512
    except OSError:
        return entry.size
