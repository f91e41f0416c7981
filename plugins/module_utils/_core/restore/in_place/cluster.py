# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore in place on a Galera node: what the node is, and how it comes up with the data that is put back.

A node that joins a running cluster gets that one's data (IST, SST), and the restore would be gone. So it has to be the first of a cluster, which takes
``safe_to_bootstrap: 1`` in its grastate.dat and a start with --wsrep-new-cluster, as galera_new_cluster does it.
"""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

from ...host import durable, service
from ...host.errors import StillpointError, UsageError
from ...host.process import run
from ...mysql import settings
from ...repository import recorded
from ...repository.generation import Generation
from .targets import Target, datadir_of

STATE = "grastate.dat"
_VIEW = "gvwstate.dat"  # the members of the cluster that a running node is in; gone after a stop in order
_PORT = 4567
_PATIENCE = 2.0  # seconds for a node that may be down
_ADDRESS = "gcomm://"
_FIRST = ("defaults_file", "defaults_extra_file", "defaults_group_suffix", "no_defaults")  # options that say where the others are


@dataclass(frozen=True)
class Node:
    """A Galera node that is alone.

    :ivar address: its wsrep_cluster_address
    """

    address: str

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {"address": self.address, "starts": "new cluster"}

    def lines(self) -> List[str]:
        """Return it for people."""
        return [
            "  the server is a Galera node, and no other node of its cluster (%s) runs: it starts a new cluster with the data that is put back" % self.address,
            "  warning: other nodes must get all data from this one: remove %s in their data directories before they join" % STATE,
        ]


def find(generation: Generation, targets: Sequence[Target]) -> Optional[Node]:
    """Return the Galera node that a generation is put in place on; None where the server is none.

    :raises UsageError: it is one of a running cluster, or one that can't be started as the first
    """
    datadir = datadir_of(targets).path
    running = service.running_in(datadir)
    options = _options(generation, running.pid if running else None)
    provider = options.get("wsrep_provider", "none")
    if options.get("wsrep_on", "OFF").upper() not in ("ON", "1", "TRUE", "") or provider in ("none", ""):
        return None
    address = options.get("wsrep_cluster_address", _ADDRESS)
    server = recorded.server(generation)
    if server is None or not server.is_mariadb:
        raise UsageError("the server is a node of Percona XtraDB Cluster, which is not restored in place: restore with --to DIR, and bootstrap it by hand")
    members = _members(datadir) if running else 1
    others = [] if running else _answering(address)
    if members > 1 or others:
        what = "one of %d nodes of a running Galera cluster" % members if members > 1 else "one of a Galera cluster whose node %s runs" % others[0]
        raise UsageError("the server is %s, which would bring its own data back (IST, SST): stop the other nodes first, or restore with --to DIR" % what)
    return Node(address)


def _options(generation: Generation, pid: Optional[int]) -> Dict[str, str]:
    """Return the options that the server runs with, or would be started with, by name."""
    given: List[str] = []
    program = "/proc/%d/exe" % pid if pid else _program(generation)
    if pid:
        with open("/proc/%d/cmdline" % pid, encoding="utf-8", errors="replace") as file:
            given = file.read().split("\0")[1:]
    where = [word for word in given if _named([word]).keys() & set(_FIRST)]
    known = run([program, *where, "--print-defaults"], check=False).stdout.split() if program else []
    return _named([*known, *given])


def _program(generation: Generation) -> str:
    try:
        return settings.from_dict(generation.summary.get("settings") or {}).find_program()
    except StillpointError:
        return ""  # no server is installed here, or it is not known which


def _named(words: Sequence[str]) -> Dict[str, str]:
    pairs = (word[2:].partition("=") for word in words if word.startswith("--"))
    return {name.replace("-", "_").lower(): value.strip("\"'") for name, _equals, value in pairs}


def _members(datadir: str) -> int:
    """Return how many nodes a running node sees, itself included."""
    try:
        with open(os.path.join(datadir, _VIEW), encoding="ascii", errors="replace") as file:
            return max(len(re.findall(r"^member:", file.read(), re.MULTILINE)), 1)
    except OSError:
        return 1


def _answering(address: str) -> List[str]:
    """Return which nodes of a cluster's address take connections."""
    listed = address[len(_ADDRESS) :].split("?")[0] if address.startswith(_ADDRESS) else ""
    return [node for node in listed.split(",") if node and _answers(node)]


def _answers(node: str) -> bool:
    match = re.fullmatch(r"\[?([^\]]*?)\]?(?::(\d+))?", node.strip())
    if match is None:
        return False
    try:
        with socket.create_connection((match.group(1), int(match.group(2) or _PORT)), _PATIENCE):
            return True
    except (OSError, ValueError):
        return False


def prepare(datadir: str) -> None:
    """Let a copy of a node's data directory be the first node of a cluster."""
    path = os.path.join(datadir, STATE)
    if os.path.lexists(os.path.join(datadir, _VIEW)):
        os.unlink(os.path.join(datadir, _VIEW))  # or the node would wait for those that it lists
    if os.path.lexists(path):
        with open(path, encoding="ascii", errors="replace") as file:
            text = re.sub(r"(?m)^(safe_to_bootstrap:[ \t]*)0[ \t]*$", r"\g<1>1", file.read())
        owner = os.lstat(path)
        with open(path + ".new", "w", encoding="ascii") as file:
            file.write(text)
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fchmod(file.fileno(), owner.st_mode & 0o7777)
            file.flush()
            os.fsync(file.fileno())
        durable.rename(path + ".new", path)
    durable.sync_directory(datadir)
