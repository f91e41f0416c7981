# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal on the disk that says how far a restore in place has come, and what was asked for. After a kill, the same command
finishes what had begun: a copy is made again, an exchange is completed."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Dict, Iterator, Mapping, Optional, Tuple

from ..host import durable
from ..host.errors import BusyError, StillpointError, UsageError
from ..job.names import host_name
from ..repository.generation import RecordedTree
from .in_place.targets import Target
from .server_logs import Logs
from .unit import Unit

STATE = "/var/lib/stillpoint/restore"

COPYING, READY, REPLACED, UNDOING = "copying", "ready", "replaced", "undoing"  # its phases

_JOURNAL = "journal.json"


@dataclass(frozen=True)
class KeptPath:
    """What was replaced and is kept.

    :ivar path: where it is
    :ivar target: where it was
    :ivar identity: tells it from what gets its name later
    """

    path: str
    target: str
    identity: Optional[str]


@dataclass(frozen=True)
class Journal:
    """A restore in place, as its journal has it.

    :ivar host: the host whose backup it is, as the repository calls it
    :ivar path: directory of the generation
    :ivar parts: ``all``, ``database`` or ``files``
    :ivar part: the path of the live files that is put back alone; None: whole trees
    :ivar time: when it began, ISO 8601, UTC
    :ivar moment: the option that asked for more than the generation, as ``{"--until": TIME}``
    :ivar server: the unit of the server whose data is replaced; None: none
    :ivar logs: the binary logs that the server writes outside its data, which end with the data that is replaced
    :ivar archives: paths of the archives of its logs that are told
    :ivar identities: of each tree that takes a place; old: of what had it, None where that was nothing, or is a mount point
    :ivar old_logs: names of binary logs that come back with the data
    :ivar gtids: the last that the server gave out before, "" where it goes on from others; None: not known yet
    :ivar recovery: what was replayed
    :ivar disabled: in sentences, how the server is let do what it is kept from
    """

    job: str
    host: str
    generation: str
    path: str
    parts: str
    targets: Tuple[Target, ...]
    part: Optional[str] = None
    time: str = ""
    moment: Optional[Mapping[str, str]] = None
    server: Optional[Unit] = None
    logs: Optional[Logs] = None
    archives: Tuple[str, ...] = ()
    phase: str = COPYING
    identities: Tuple[str, ...] = ()
    old: Tuple[Optional[str], ...] = ()
    old_logs: Tuple[str, ...] = ()
    gtids: Optional[str] = None
    recovery: Optional[Mapping[str, Any]] = None
    disabled: Tuple[str, ...] = ()
    kept: Tuple[KeptPath, ...] = ()

    def at(self, phase: str, state: str, **more: Any) -> "Journal":
        """Return the restore in a phase, which is on the disk by then."""
        now = replace(self, phase=phase, **more)
        write(state, now)
        return now

    @property
    def ways_out(self) -> str:
        """How it is finished after an interruption, and how it is undone."""
        undo = "stillpoint undo %s" % self.job
        if self.phase == UNDOING:
            return "finish undoing it, with %s" % undo
        words = ["stillpoint restore", self.job, self.generation]
        words += ["--from-host", self.host] if self.host not in ("", host_name()) else []
        if self.part:
            words += ["--path", shlex.quote(self.part)]
        elif self.parts != "all":
            words += ["--only", self.parts]
        words += [option + " " + shlex.quote(value) for option, value in (self.moment or {}).items()]
        return "finish it, with %s, or undo it, with %s" % (" ".join(words), undo)

    def refusal(self, what: str) -> UsageError:
        """Return the refusal of anything else while it is half done."""
        return UsageError("a restore of %s was interrupted while it replaced the live data, and %s: %s" % (self.generation, what, self.ways_out))


@contextmanager
def alone(state: str = STATE) -> Iterator[None]:
    """Be the only restore in place on this host."""
    with ExitStack() as stack:
        try:
            os.makedirs(state, mode=0o700, exist_ok=True)
            held = stack.enter_context(durable.lock(os.path.join(state, ".lock"), make=True))
        except OSError as error:
            raise StillpointError("the journal of the restore can't be kept in %s: %s" % (state, error.strerror)) from error
        if held is None:
            raise BusyError("another restore is running on this host: wait until it has ended")
        yield


def write(state: str, journal: Journal) -> None:
    durable.write_json(os.path.join(state, _JOURNAL), asdict(journal))


def read(state: str) -> Optional[Journal]:
    found = durable.read_json(os.path.join(state, _JOURNAL))
    if not isinstance(found, dict):
        return None
    facts: Dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    server, logs = found["server"], found["logs"]
    return Journal(
        **{
            **facts,
            "targets": tuple(_target(each) for each in found["targets"]),
            "server": Unit(**{**server, "triggers": tuple(server["triggers"])}) if server else None,
            "logs": Logs(**{**logs, "replaced": tuple(logs["replaced"])}) if logs else None,
            "kept": tuple(KeptPath(**each) for each in found["kept"]),
        }
    )


def _target(facts: Dict[str, Any]) -> Target:
    pairs = {key: tuple(facts[key]) if facts[key] else None for key in ("users", "groups")}
    return Target(**{**facts, **pairs, "tree": RecordedTree(*facts["tree"])})


def pending(*, state: str = STATE) -> Optional[Journal]:
    """Return the restore in place that was interrupted while it replaced live data; None when there is none."""
    journal = read(state)
    return journal if journal and journal.phase != COPYING else None


def forget(state: str) -> None:
    path = os.path.join(state, _JOURNAL)
    if os.path.lexists(path):
        os.unlink(path)
        durable.sync_directory(state)
