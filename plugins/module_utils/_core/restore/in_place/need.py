# SPDX-License-Identifier: GPL-3.0-or-later
"""The room that a restore of trees takes on each file system."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Dict, Optional, Sequence, Tuple

from ...host.errors import StillpointError
from ...host.free_space import space
from ...host.text import human
from ...repository.generation import RecordedTree

if TYPE_CHECKING:
    from ..replay.execute import Replay

# What a copy takes beyond the blocks of its files: directories, and the file system's own bookkeeping.
_MARGIN_SHARE, _MARGIN = 0.02, 16 * 1024 * 1024


@dataclass(frozen=True)
class Need:
    """What a restore takes on one file system, in bytes."""

    path: str
    needed: int
    free: int

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {"path": self.path, "needed": self.needed, "free": self.free}

    def line(self, *, about: bool) -> str:
        """Return it for people.

        :param about: it is an estimate
        """
        how = "about " if about else ""
        return "  needs %s%s on the file system of %s, which has %s free" % (how, human(self.needed), self.path, human(self.free))


def needs(places: Sequence[Tuple[str, RecordedTree]], replay: Optional["Replay"] = None) -> Tuple[Need, ...]:
    """Return what is needed on each file system. How much a replay makes the database grow is estimated by the size of the logs, as a statement
    of a few words may write any number of rows: a replay watches the room as well.

    :raises StillpointError: one has less room
    """
    needed: Dict[int, Tuple[str, int]] = {}
    for path, tree in places:
        while not os.path.isdir(path):
            path = os.path.dirname(path)
        device = os.stat(path).st_dev
        first, before = needed.get(device, (path, 0))
        grows = replay.bytes if replay and not tree.is_files else 0
        needed[device] = (first, before + int(tree.allocated * (1 + _MARGIN_SHARE)) + grows + _MARGIN)
    found = []
    for path, size in needed.values():
        need = Need(path, size, space(path).free)
        if need.free < need.needed:
            raise StillpointError(
                "the file system of %s has %s free and the restore needs %s beside what is there: free some space, discard what earlier "
                "restores replaced (stillpoint discard), or restore into a directory elsewhere (--to DIR)"
                % (need.path, human(need.free), human(need.needed))
            )
        found.append(need)
    return tuple(found)
