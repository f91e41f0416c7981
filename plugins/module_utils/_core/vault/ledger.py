# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger of a host: what arrived in its repository, when by the vault's own clock, and what became of it.

One JSON object a line, appended and brought to the disk; a line that a power cut left half written is cut off by the next one.
A client can say of a copy what it likes; when it came, and in which order, is written here.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Dict, Iterator, List, Set

from ..host import durable
from ..host.errors import StillpointError

ARRIVED, SOUND, UNSOUND, LEAVING, REJECTED, ACCEPTED = "arrived", "sound", "unsound", "leaving", "rejected", "accepted"


@dataclass(frozen=True)
class Copy:
    """A copy that arrived.

    :ivar id: of the snapshot
    :ivar arrived: seconds, the vault's clock; never earlier than the one before
    :ivar claimed: the point in time that it holds, as the client says; seconds
    :ivar state: of the generation, as the client says: good, unproven, bad
    :ivar manifest: SHA-256 of the manifest's file, as the client says
    """

    id: str
    arrived: float
    claimed: float
    job: str
    generation: str
    state: str
    bytes: int
    files: int
    manifest: str
    hostname: str
    foreign: bool = False  # of another program than ours: it has no such tags


@dataclass
class Ledger:
    """All that a ledger says.

    :ivar copies: in the order of their arrival, those that left included
    :ivar sound: ids of the copies that were compared with their manifests and found right
    :ivar unsound: of those that were not, with what was wrong; the last word counts
    :ivar gone: of those that the keeper removes or has removed, or moved aside
    :ivar rejected: of these, the ones that were moved aside
    :ivar accepted: the alarms that a person has looked at
    """

    copies: List[Copy] = field(default_factory=list)
    sound: Set[str] = field(default_factory=set)
    unsound: Dict[str, str] = field(default_factory=dict)
    gone: Set[str] = field(default_factory=set)
    rejected: Set[str] = field(default_factory=set)
    accepted: Set[str] = field(default_factory=set)

    def present(self) -> List[Copy]:
        """Return the copies that have to be there, in the order of their arrival."""
        return [each for each in self.copies if each.id not in self.gone]

    def newest_sound(self, before: float = float("inf")) -> List[Copy]:
        """Return the newest sound copy of each job that arrived before a moment."""
        found = {each.job: each for each in self.present() if each.id in self.sound and each.arrived <= before}
        return list(found.values())


def read(path: str) -> Ledger:
    """Return what a ledger says; an empty one where there is none.

    :raises StillpointError: a line of it can't be read
    """
    ledger = Ledger()
    for number, line in enumerate(_lines(path), 1):
        try:
            _apply(ledger, json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            raise StillpointError(
                "line %d of the ledger %s can't be read: it was changed; put back a copy of it, as nothing is removed without it" % (number, path)
            ) from error
    return ledger


def _apply(ledger: Ledger, event: Dict[str, Any]) -> None:
    what = event.pop("event")
    if what == ARRIVED:
        ledger.copies.append(Copy(**event))
    elif what == SOUND:
        ledger.sound.add(event["id"])
        ledger.unsound.pop(event["id"], None)
    elif what == UNSOUND:
        ledger.unsound[event["id"]] = event["why"]
        ledger.sound.discard(event["id"])
    elif what in (LEAVING, REJECTED):
        ledger.gone |= set(event["ids"])
        ledger.rejected |= set(event["ids"]) if what == REJECTED else set()
    elif what == ACCEPTED:
        ledger.accepted |= set(event["alarms"])
    else:
        raise ValueError(what)


def _lines(path: str) -> Iterator[bytes]:
    try:
        with open(path, "rb") as file:
            yield from (line for line in file if line.endswith(b"\n"))
    except FileNotFoundError:
        return


def append(path: str, *events: Dict[str, Any]) -> None:
    """Add events to a ledger, and bring them to the disk."""
    if not events:
        return
    new = not os.path.exists(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with durable.naming(path), os.fdopen(descriptor, "r+b") as file:
        file.seek(_whole(file))
        file.truncate()
        file.write(b"".join(json.dumps(each, sort_keys=False).encode() + b"\n" for each in events))
        file.flush()
        os.fsync(file.fileno())
    if new:
        durable.sync_directory(os.path.dirname(path))


def _whole(file: Any) -> int:
    """Return where the last whole line ends."""
    end = file.seek(0, os.SEEK_END)
    step = 1 << 16
    at = end
    while at > 0:
        start = max(0, at - step)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0:
            return int(start + found + 1)
        at = start
    return 0
