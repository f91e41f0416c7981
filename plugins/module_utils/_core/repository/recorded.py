# SPDX-License-Identifier: GPL-3.0-or-later
"""What a generation's manifest says of its server, as values, for those who ask for more than its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from ..mysql.coordinates import Coordinates
from ..mysql.locks import LockFacts
from .generation import Generation


@dataclass(frozen=True)
class RecordedServer:
    """The server that a backup is of, as far as is known.

    :ivar version: as it says it
    :ivar uuid: its own, where it has one
    :ivar unit: of systemd, which ran it; "" where none did
    """

    flavour: str = ""
    version: str = ""
    datadir: str = ""
    uuid: str = ""
    unit: str = ""

    @property
    def is_mariadb(self) -> bool:
        return self.flavour == "mariadb"


def server(generation: Generation) -> Optional[RecordedServer]:
    """Return the server that a generation is of; None where it holds no database."""
    facts = generation.summary.get("server")
    return RecordedServer(**{key: str(facts[key]) for key in RecordedServer.__dataclass_fields__ if facts.get(key)}) if facts else None


def coordinates(generation: Generation) -> Optional[Coordinates]:
    """Return where its server stood; None where that is not known."""
    facts = generation.summary.get("coordinates")
    return Coordinates.from_dict(facts) if facts else None


def in_its_log(generation: Generation) -> Optional[Coordinates]:
    """Return where its server stood in its own binary log; None where it wrote none, or that is not known."""
    found = coordinates(generation)
    return found if found and found.file else None


def lock(generation: Generation) -> Optional[LockFacts]:
    """Return how its server was locked; None without one."""
    facts = generation.summary.get("lock")
    return LockFacts.from_dict(facts) if facts else None
