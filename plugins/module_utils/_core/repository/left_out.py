# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left out of a copy, and the file systems that are mounted in a path but no part of its backup."""

from __future__ import annotations

import os
import re
import tempfile
from typing import List, Sequence, Set

from ..host.mounts import is_below, mounted_below
from ..trees import LeftOut, Tree
from . import rsync

# Names that no pattern means: where all of them are left out, so is whatever else a directory holds.
_ANY_NAMES = ("0", "a", "Z-z.x1", ".hidden", "~")


def left_out(path: str, exclude: Sequence[str], emptied: Sequence[str] = ()) -> LeftOut:
    """Return what is left out of a path: what `exclude` says, but for the directory itself that something left out is mounted on.

    :param exclude: rsync's patterns
    :param emptied: directories of the live system whose contents are thrown away
    """
    real = os.path.realpath(path)
    points = mounted_below(real)
    inside = [os.path.relpath(point, real) for point in points]
    excluded = _excluded(real, inside, exclude) if points and exclude else set()
    found = [point for point, name in zip(points, inside) if name in excluded or any(is_below(point, os.path.realpath(each)) for each in emptied)]
    outermost = [point for point in found if not any(is_below(point, other) for other in found if other != point)]
    rules: List[str] = []
    for point in outermost:
        name = os.path.relpath(point, real)
        if os.path.isdir(point):
            rules += ["+ /%s/" % literal(name), "/%s/**" % literal(name, wild=True)]
        else:
            rules.append("/" + literal(name))
    return LeftOut((*rules, *exclude), tuple(point for point in points if any(is_below(point, other) for other in outermost)))


def held(paths: Sequence[str], trees: Sequence[Tree]) -> Set[str]:
    """Return those of some files and directories of the live system that trees of a backup hold: they lie in one, and nothing leaves them out of it."""
    found: Set[str] = set()
    for tree in trees:
        source = os.path.realpath(tree.source)
        names = {os.path.relpath(path, source): path for path in paths if is_below(path, source)}
        out = _excluded(source, [name for name in names if name != "."], tree.exclude) if names else set()
        found.update(path for name, path in names.items() if name not in out)
    return found


def _excluded(path: str, names: Sequence[str], exclude: Sequence[str]) -> Set[str]:
    """Return those of some names below a path that patterns leave out, of directories those with all of their contents. rsync is asked, on a
    directory with the same names."""
    copied: Set[str] = set()
    with tempfile.TemporaryDirectory(prefix="stillpoint-") as model:
        probes = {}
        for name in sorted(names):
            here = os.path.join(model, name)
            if os.path.isdir(os.path.join(path, name)):
                os.makedirs(here, exist_ok=True)
                probes[name] = [os.path.join(name, each) for each in _ANY_NAMES]
            else:
                os.makedirs(os.path.dirname(here), exist_ok=True)
                probes[name] = [name]
            for each in probes[name]:
                with open(os.path.join(model, each), "wb"):
                    pass
        rsync.names(Tree("", path, model, tuple(exclude)), (), lambda item: copied.add(os.fsdecode(item.path)))
        return {name for name, wanted in probes.items() if not copied.intersection(wanted)}


def literal(name: str, *, wild: bool = False) -> str:
    r"""Return the pattern of rsync that means a name and nothing else.

    :param wild: it becomes a part of a pattern with wildcards, in which a backslash is one too
    """
    return re.sub(r"([\\*?\[])", r"\\\1", name) if wild or re.search(r"[*?\[]", name) else name
