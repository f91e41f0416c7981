# SPDX-License-Identifier: GPL-3.0-or-later
"""What this host knows of a copy: which repository it is, and what was seen there last. Nobody is dialled for that."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import List, NamedTuple, Optional, Sequence, Set, Tuple

from ..host import durable
from ..host.text import moment
from ..job.options import Keep
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
    :ivar pruning: snapshots were removed whose room is not free yet
    :ivar broken: ids of snapshots that are not whole: a file could not be read while they were sent
    """

    repository: str = ""
    seen: str = ""
    generations: Tuple[CopiedGeneration, ...] = ()
    broken: Tuple[str, ...] = ()
    pruning: bool = False

    def has(self, name: str) -> bool:
        return any(each.name == name for each in self.generations)

    def behind(self, generations: Sequence[Generation], keep: Optional[Keep] = None) -> List[Generation]:
        """Return which of some generations are to be sent and are not there, in their order.

        :param keep: what would be removed there at once is not sent
        """
        missing = [each for each in generations if each.state != BAD and not self.has(each.name)]
        stay = self.staying(keep, missing) if keep and missing else None
        return [each for each in missing if stay is None or each.name in stay]

    def staying(self, keep: Keep, sent: Sequence[Generation] = ()) -> Set[str]:
        """Return the names of the generations that a retention keeps there.

        :param sent: generations that are not there, as if they were
        """
        from ..repository import retention  # pylint: disable=import-outside-toplevel  # only where a copy has one

        dated = [_Dated(each.name, each.moment, each.state) for each in self.generations]
        dated += [_Dated(each.name, each.time, each.state) for each in sent]
        dated.sort(key=lambda each: (each.time, each.name), reverse=True)
        return {decision.name for decision in retention.decide(dated, keep) if decision.keep}


class _Dated(NamedTuple):
    """A generation as the retention looks at it."""

    name: str
    time: datetime
    state: str


def known(job: str, copy: str) -> Known:
    """Return what this host knows of a copy."""
    found = durable.read_json(path_of(job, copy))
    if not isinstance(found, dict):
        return Known()
    try:
        generations = tuple(CopiedGeneration(**each) for each in found["generations"])
        return Known(str(found["repository"]), str(found["seen"]), generations, tuple(found.get("broken", ())), bool(found.get("pruning")))
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
