# SPDX-License-Identifier: GPL-3.0-or-later
"""How much a copy will have to read and write, asked of rsync itself before anything is locked."""

from __future__ import annotations

import re
from typing import Mapping, Sequence, Tuple

from ..host.errors import StillpointError
from ..host.process import run, sentence
from ..trees import Tree
from .rsync import filters

_TIMEOUT = 3600.0

# Exit status when files vanished while the list was made: on a live system they do.
_VANISHED = 24


def estimate(trees: Sequence[Tree], base: Mapping[str, str]) -> Tuple[int, int]:
    """Return ``(bytes of file data in the trees now, bytes of it that the base does not have)``.

    :param base: tree name -> its directory in the generation that unchanged files will be shared with
    """
    total = new = 0
    for tree in trees:
        argv = ["rsync", "-aHn", "--modify-window=-1", "--stats", *filters(tree)]
        if tree.name in base:
            argv.append("--link-dest=" + base[tree.name])
        result = run([*argv, tree.path.rstrip("/") + "/", "/run/stillpoint/estimate-only/"], timeout=_TIMEOUT, check=False)
        if result.rc not in (0, _VANISHED):
            raise StillpointError("the files of %s can't be listed: %s" % (tree.source, sentence(result.stderr) or "exit status %d" % result.rc))
        total += _number(result.stdout, "Total file size")
        new += _number(result.stdout, "Total transferred file size")
    return total, new


def _number(text: str, label: str) -> int:
    match = re.search(r"^%s: ([\d,.]+) bytes" % label, text, re.MULTILINE)
    if not match:
        raise StillpointError("rsync --stats did not print %r" % label)
    return int(re.sub(r"\D", "", match.group(1)))
