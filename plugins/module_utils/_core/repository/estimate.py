# SPDX-License-Identifier: GPL-3.0-or-later
"""How much a copy will have to read and write, asked of rsync itself before anything is locked."""

from __future__ import annotations

import os
import re
import stat
import time
from typing import Mapping, NamedTuple, Sequence, Tuple

from ..host.errors import StillpointError
from ..host.process import sentence
from ..trees import Tree
from .rsync import filters
from .shared_blocks import worth_it
from .transfer import FORMAT, Item, drive, no_progress

_TIMEOUT = 3600.0

# Exit status when files vanished while the list was made: on a live system they do.
_VANISHED = 24


class Sizes(NamedTuple):
    """Bytes of file data.

    :ivar total: in the trees now
    :ivar new: of them, what the base does not have
    :ivar renewable: of that, in files that can be made of the base's blocks where the file system shares blocks
    """

    total: int
    new: int
    renewable: int


def estimate(trees: Sequence[Tree], base: Mapping[str, str]) -> Tuple[int, int]:
    """Return ``(bytes of file data in the trees now, bytes of it that the base does not have)``; see `sizes`."""
    return sizes(trees, base)[:2]


def sizes(trees: Sequence[Tree], base: Mapping[str, str]) -> Sizes:
    """Return the Sizes of the trees now.

    :param base: tree name -> its directory in the generation that unchanged files will be shared with
    """
    return Sizes(*map(sum, zip(*(_sizes_of(tree, base.get(tree.name)) for tree in trees)))) if trees else Sizes(0, 0, 0)


def _sizes_of(tree: Tree, base: "str | None") -> Sizes:
    argv = ["rsync", "-aHn", "--modify-window=-1", FORMAT, "--stats", *filters(tree)]
    if base is not None:
        argv.append("--link-dest=" + base)
    until = time.monotonic() + _TIMEOUT
    renewable = 0

    def note(item: Item) -> None:
        nonlocal renewable
        if base is not None and not item.first and worth_it(item.size, _size(os.path.join(os.fsencode(base), item.path))):
            renewable += item.size

    def watch() -> None:
        if time.monotonic() > until:
            raise StillpointError("the files of %s were not listed within %d s: is its storage in trouble?" % (tree.source, _TIMEOUT))

    rc, out, err = drive([*argv, tree.path.rstrip("/") + "/", "/run/stillpoint/estimate-only/"], note, no_progress, watch, "rchar")
    if rc not in (0, _VANISHED):
        said = sentence(err.decode("utf-8", "replace"))
        raise StillpointError("the files of %s can't be listed: %s" % (tree.source, said or "exit status %d" % rc))
    text = out.decode("utf-8", "replace")
    return Sizes(_number(text, "Total file size"), _number(text, "Total transferred file size"), renewable)


def _size(path: bytes) -> int:
    """Return the size of a regular file; 0 where there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _number(text: str, label: str) -> int:
    match = re.search(r"^%s: ([\d,.]+) bytes" % label, text, re.MULTILINE)
    if not match:
        raise StillpointError("rsync --stats did not print %r" % label)
    return int(re.sub(r"\D", "", match.group(1)))
