# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose a job's directory is: the machine and the server that its newest generation is of, or that it was given to since.

The name of a directory is that of a host, which two machines may have, and which one machine may get anew.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional

from ..host import durable
from ..host.errors import StillpointError
from ..host.machine import Machine, from_dict, this_machine
from ..host.service import running_in
from .generation import Generation
from .job_directory import JobDirectory

# Written by `give`: whose the directory is, as long as nothing is newer than `after`.
OWNER = ".owner.json"


@dataclass(frozen=True)
class Identity:
    """A machine and the server of it that a job backs up.

    :ivar server: of the server's facts in a manifest, those that tell it from others; None where a job has none, or it is not known
    """

    machine: Machine
    server: Optional[Mapping[str, Any]] = None

    def as_dict(self) -> Dict[str, Any]:
        """Return it as `Generation.summary` has it."""
        return {"machine": self.machine.as_dict(), "server": dict(self.server) if self.server else None}

    def stranger(self, owner: "Identity") -> str:
        """Return in words why what belongs to `owner` is not this one's; "" where nothing says so."""
        difference = self.machine.difference(owner.machine)
        if difference:
            return "another machine of this name (%s)" % difference
        here, there = self.server or {}, owner.server or {}
        if not here.get("datadir") or not there.get("datadir") or os.path.realpath(there["datadir"]) == os.path.realpath(here["datadir"]):
            return ""
        if here.get("data_id") and here["data_id"] == there.get("data_id") and not running_in(there["datadir"]):
            return ""  # it was moved, and is no copy of one that goes on
        return "another server of this host (data directory %s, here %s)" % (there["datadir"], here["datadir"])


@dataclass(frozen=True)
class Former:
    """What a machine backed up under another name.

    :ivar host: that name
    """

    host: str
    directory: JobDirectory
    generations: int
    sequence: int

    def __str__(self) -> str:
        return "%d backups of this machine lie in %s, from when it was called %s: `stillpoint adopt %s` goes on with them" % (
            self.generations,
            self.directory.path,
            self.host,
            self.directory.job,
        )


def here(server: Optional[Mapping[str, Any]] = None) -> Identity:
    """Return the Identity of this machine.

    :param server: what `Server.summary` says
    """
    return Identity(this_machine(), server)


def of_summary(summary: Mapping[str, Any]) -> Identity:
    """Return the Identity that a manifest's summary names."""
    server = summary.get("server")
    return Identity(from_dict(summary.get("machine")), server if isinstance(server, dict) else None)


def is_foreign(generation: Generation, host: str) -> bool:
    """Tell whether a generation is of another machine, by its name where machines can't be told apart.

    :param host: what this one is called
    """
    own, made = this_machine(), of_summary(generation.summary).machine
    if own.is_same(made):
        return False
    return bool(own.difference(made)) or generation.host not in ("", host)


def owner(directory: JobDirectory, generations: Optional[List[Generation]] = None) -> Identity:
    """Return whose a directory is; nothing is known of one without a generation.

    :param generations: its generations, where they have been read already
    """
    found = directory.generations() if generations is None else generations
    newest = next((each for each in found if each.summary), None)
    if newest is None:
        return Identity(Machine())
    given = durable.read_json(os.path.join(directory.path, OWNER))
    if isinstance(given, dict) and given.get("after") == newest.name:
        return of_summary(given)
    return of_summary(newest.summary)


def check(directory: JobDirectory, own: Identity) -> List[Former]:
    """Return what this machine has backed up of a directory's job under other names.

    :raises StillpointError: the directory's backups are of another machine or server
    """
    stranger = own.stranger(owner(directory))
    if stranger and directory.job:
        raise StillpointError(
            "the backups in %s are of %s: give this one a host name or a job of its own, or take them over, with `stillpoint adopt %s`"
            % (directory.path, stranger, directory.job)
        )
    if stranger:
        raise StillpointError("the backups in %s are of %s: give this one a directory of its own, or move them away" % (directory.path, stranger))
    return formers(directory, own.machine)


def give(directory: JobDirectory, own: Identity) -> None:
    """Record that a directory belongs to this machine and server from now on."""
    directory.must_be_locked()
    newest = next((each for each in directory.generations() if each.summary), None)
    if newest is not None:
        with directory.written():
            durable.write_json(os.path.join(directory.path, OWNER), {**own.as_dict(), "after": newest.name})


def formers(directory: JobDirectory, machine: Machine) -> List[Former]:
    """Return what a machine has backed up of a directory's job under other names."""
    if not machine.id:
        return []
    found = []
    for host in directory.others():
        other = directory.of_host(host)
        generations = other.generations()
        if generations and owner(other, generations).machine.is_same(machine):
            sequence = max(each.sequence or 0 for each in generations)
            found.append(Former(host, other, len(generations), sequence))
    return found
