# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host knows of a copy: which repository it is, and what was seen there last. Nobody is dialled for that."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import List, Sequence, Tuple

from ..host import durable
from ..host.text import moment
from ..repository.generation import BAD, Generation

STATE = "/var/lib/stillpoint/copies"


@dataclass(frozen=True)
class CopiedGeneration:
    """A generation at a copy, as its tags name it.

    :ivar id: of restic's snapshot
    :ivar time: the point in time that it holds, ISO 8601, UTC
    :ivar manifest: SHA-256 of its manifest's file
    """

    id: str
    name: str
    time: str
    state: str
    bytes: int
    files: int
    manifest: str

    @property
    def moment(self) -> datetime:
        return moment(self.time)


@dataclass(frozen=True)
class Known:
    """What this host knows of a copy.

    :ivar repository: the id of the repository that it is pinned to; "" before the first copy
    :ivar seen: when somebody last looked there, ISO 8601, UTC; "" before that
    :ivar generations: what was there then, newest first
    :ivar broken: ids of snapshots that are not whole: a file could not be read while they were sent
    """

    repository: str = ""
    seen: str = ""
    generations: Tuple[CopiedGeneration, ...] = ()
    broken: Tuple[str, ...] = ()

    def has(self, name: str) -> bool:
        return any(each.name == name for each in self.generations)

    def behind(self, generations: Sequence[Generation]) -> List[Generation]:
        """Return which of some generations are to be sent and are not there, in their order."""
        return [each for each in generations if each.state != BAD and not self.has(each.name)]


def known(job: str, copy: str) -> Known:
    """Return what this host knows of a copy."""
    found = durable.read_json(path_of(job, copy))
    if not isinstance(found, dict):
        return Known()
    try:
        generations = tuple(CopiedGeneration(**each) for each in found["generations"])
        return Known(str(found["repository"]), str(found["seen"]), generations, tuple(found.get("broken", ())))
    except (KeyError, TypeError):
        return Known()


def keep(job: str, copy: str, value: Known) -> None:
    """Keep what is known of a copy."""
    path = path_of(job, copy)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    durable.write_json(path, asdict(value))


def path_of(job: str, copy: str) -> str:
    """Return the file in which that is kept."""
    return os.path.join(STATE, job, copy + ".json")
