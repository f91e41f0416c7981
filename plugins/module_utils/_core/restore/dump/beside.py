# SPDX-License-Identifier: GPL-3.0-or-later
"""A load beside the live databases, as its journal says it. A dump is loaded into databases of other names (``stillpoint_new_…``). Only when
all of it is there are the live tables moved aside (``stillpoint_old_…``) and the loaded ones moved in, by RENAME TABLE."""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Optional, Tuple

from ...dump.contents import NEW, OLD
from ...host import durable
from ...host.errors import StillpointError
from ...mysql.connection import Login
from .. import journal as journals

LOADING, SWAPPING, REMAKING, LOADED = "loading", "swapping", "remaking", "loaded"  # the phases of a load

_FILE = "load.json"
_SAVED = "load-saved"
_LONGEST = 64  # characters of a name


@dataclass(frozen=True)
class Part:
    """A database that is loaded, or of which one table is.

    :ivar new: the database that it is loaded into; old: the one that the live tables are moved to
    :ivar there: it is there; only: the one table or view that is replaced; "" where all of it is
    :ivar triggers: those of the live tables, as (name, table)
    :ivar create: what makes it as it is
    :ivar tables: the live tables that are moved; loaded: those that take their places
    """

    name: str
    new: str
    old: str
    there: bool
    only: str = ""
    create: str = ""
    tables: Tuple[str, ...] = ()
    loaded: Tuple[str, ...] = ()
    triggers: Tuple[Tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ForeignKey:
    """A foreign key between a table that is replaced and one that is not, or one of another database.

    :ivar own: it is of a live table that is not replaced
    :ivar clause: ``CONSTRAINT … FOREIGN KEY …``
    """

    database: str
    table: str
    name: str
    clause: str
    own: bool


@dataclass(frozen=True)
class Load:
    """A load that has begun. It is its own journal.

    :ivar sequences: those that were made for a table's DEFAULT to name, as (database, name)
    """

    job: str
    generation: str
    phase: str
    login: Dict[str, Any]
    flavour: str
    parts: Tuple[Part, ...]
    keys: Tuple[ForeignKey, ...] = ()
    sequences: Tuple[Tuple[str, str], ...] = ()

    @property
    def undo(self) -> str:
        """The command that puts back what was there before."""
        return "`stillpoint undo %s`" % self.job

    def at(self, phase: str, state: str, **more: Any) -> "Load":
        """Return the load in a phase, which is on the disk by then."""
        now = replace(self, phase=phase, **more)
        durable.write_json(os.path.join(state, _FILE), asdict(now))
        return now

    def server(self) -> Login:
        return Login(**self.login)


def beside(prefix: str, name: str) -> str:
    """Return the name of a database beside another one."""
    made = prefix + name
    return made if len(made) <= _LONGEST else prefix + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def part(name: str, *, there: bool, only: str = "") -> Part:
    return Part(name, beside(NEW, name), beside(OLD, name), there, only)


def login_facts(login: Login) -> Dict[str, Any]:
    """Return what a journal keeps of a login: no secret."""
    return {key: getattr(login, key) for key in ("login_user", "login_unix_socket", "config_file") if getattr(login, key) is not None}


def pending(state: str = journals.STATE) -> Optional[Load]:
    """Return the load that was interrupted; None where there is none."""
    found = durable.read_json(os.path.join(state, _FILE))
    if not isinstance(found, dict):
        return None
    parts = tuple(_part(each) for each in found["parts"])
    keys = tuple(ForeignKey(**each) for each in found["keys"])
    sequences = tuple((str(one), str(two)) for one, two in found["sequences"])
    return Load(**{**found, "parts": parts, "keys": keys, "sequences": sequences})


def _part(facts: Dict[str, Any]) -> Part:
    triggers = tuple((str(name), str(table)) for name, table in facts["triggers"])
    return Part(**{**facts, "tables": tuple(facts["tables"]), "loaded": tuple(facts["loaded"]), "triggers": triggers})


def forget(state: str) -> None:
    """Remove the journal and what was saved with it."""
    path = os.path.join(state, _FILE)
    if os.path.lexists(path):
        os.unlink(path)
        durable.sync_directory(state)
    durable.remove_tree(os.path.join(state, _SAVED))


def saved_directory(state: str) -> str:
    """Return the directory for the definitions of the live databases."""
    return os.path.join(state, _SAVED)


def refuse_half_done(state: str = journals.STATE) -> None:
    """Raise StillpointError where a load that was interrupted has left the live databases half done."""
    load = pending(state)
    if load and load.phase in (SWAPPING, REMAKING):
        raise StillpointError(
            "a restore of %s was interrupted while it replaced live databases, which are neither the old nor the new: %s puts back the old"
            % (load.job, load.undo)
        )
