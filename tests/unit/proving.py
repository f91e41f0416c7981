# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of the proof have in common: copies of a real server's data, and the claims made of them."""

from __future__ import annotations

import shutil
from typing import Any, Dict, Iterator, List, Optional

import pytest
from _core.mysql import server as servers
from _core.mysql import settings
from _core.mysql.connection import Session
from _core.mysql.coordinates import Coordinates
from _core.mysql.settings import Settings
from _core.proof.prove import Claim, Proof, prove
from real_server import RealServer

FLUSH = "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS"


class Copies:
    """In place of mounted snapshots: live directory -> its copy."""

    def __init__(self, copies: Dict[str, str]) -> None:
        self._copies = copies

    def directory(self, source: str) -> str:
        return self._copies[source]

    def find_any(self, source: str, _targets: Any) -> Optional[str]:
        return self._copies.get(source)


@pytest.fixture(name="copies")
def made_copies(server: RealServer) -> Iterator[List[str]]:
    """Copies to be removed after the test."""
    made: List[str] = []
    yield made
    for path in made:
        shutil.rmtree(path)


def taken(server: RealServer, copies: List[str], *flush: str) -> Any:
    """Return a copy, with coordinates of its moment."""
    path = server.copy("copy-%d" % len(copies), *flush)
    copies.append(path)
    with Session(server.login) as session:  # nobody else writes: it stands where it stood under the lock
        row = session.rows("SHOW MASTER STATUS")[0]
    return path, Coordinates(row["File"], int(row["Position"]))


def settings_of(server: RealServer) -> Settings:
    with Session(server.login) as session:
        return settings.read(session, servers.read(session))


def claim(server: RealServer, coordinates: Any, **more: Any) -> Claim:
    return Claim(**{"settings": settings_of(server), "coordinates": coordinates, "commits_stopped": True, "tables": "none", **more})


def proven(server: RealServer, copy: str, what: Claim, logs: Optional[str] = None) -> Proof:
    found: Dict[str, str] = {server.datadir: copy}
    if logs:
        found[server.binlogs] = logs
    return prove(what, Copies(found), [], lambda: None)  # type: ignore[arg-type]
