# SPDX-License-Identifier: GPL-3.0-or-later
"""What the keeper remembers of a host beside its ledger: why it is frozen, what is wrong, and what was done when."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Dict, Optional, Tuple

from ..host import durable
from .layout import HostDirectory

KEEPER, PERSON, RETIRING = "keeper", "person", "retiring"


@dataclass(frozen=True)
class Alarm:
    """Something that a person has to look at.

    :ivar key: what tells it from others, for as long as it stands
    :ivar ends: how it goes away: "mending" what it says, "accept" or "reject"
    """

    key: str
    text: str
    ends: str = "mending"


@dataclass(frozen=True)
class State:
    """What is known of a host.

    :ivar frozen_by: keeper, person, retiring; "" while the repository is served
    :ivar checked: when it was last looked at, seconds; `pruned`, `read` (a part of all packs) likewise
    :ivar part: which part of the packs is read again next
    :ivar failed: why the last round failed
    """

    frozen_by: str = ""
    alarms: Tuple[Alarm, ...] = ()
    checked: Optional[float] = None
    pruned: Optional[float] = None
    read: Optional[float] = None
    part: int = 1
    failed: str = ""
    created: Optional[float] = None


def read(directory: HostDirectory) -> State:
    """Return what is known of a host."""
    found: Dict[str, Any] = durable.read_json(directory.state) or {}
    known = {each.name for each in fields(State)}
    values = {key: value for key, value in found.items() if key in known}
    values["alarms"] = tuple(Alarm(**each) for each in values.get("alarms", ()))
    return State(**values)


def write(directory: HostDirectory, state: State) -> None:
    """Remember this of a host."""
    durable.write_json(directory.state, asdict(state))
