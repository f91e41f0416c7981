# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of another host's server, and what it does by itself: a real source, a real replica with events, and MySQL's persisted variables."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from _core.host.errors import StillpointError, UsageError
from _core.mysql import server as servers
from _core.mysql.connection import Session
from _core.restore.in_place import activity
from _core.restore.in_place import plan as planning
from _core.restore.in_place.execute import execute
from real_server import RealServer, own_port, real_server, until
from shop import Shop, marked
from trees import Quiet, back_up, tree, write
from trees import job as job_directory

OTHER = {"id": "0" * 32, "hardware": None}
EVENTS = "--event-scheduler=ON"


class Replica(Shop):
    """A shop whose server replicates from another one and runs an event every second."""

    def __init__(self, source: RealServer, server: RealServer, top: Path) -> None:
        port = own_port()
        self.source = source
        source.stop()
        source.start("--skip-networking=0", "--bind-address=127.0.0.1", "--port=%d" % port)
        source.do("CREATE USER repl@'%' IDENTIFIED BY 'x'", "GRANT REPLICATION SLAVE ON *.* TO repl@'%'", "RESET MASTER")
        self.sources = ["127.0.0.1:%d" % port, "127.0.0.2:%d" % port]
        server.stop()
        server.start("--server-id=2", EVENTS)
        server.do(
            "CREATE DATABASE d",
            "CREATE TABLE d.ticks (at INT)",
            "CREATE EVENT d.tick ON SCHEDULE EVERY 1 SECOND DO INSERT INTO d.ticks VALUES (1)",
            "CREATE EVENT d.never ON SCHEDULE EVERY 1 SECOND DISABLE DO INSERT INTO d.ticks VALUES (2)",
            "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=%d, MASTER_USER='repl', MASTER_PASSWORD='x', MASTER_CONNECT_RETRY=1" % port,
            "CHANGE MASTER 'two' TO MASTER_HOST='127.0.0.2', MASTER_PORT=%d, MASTER_USER='repl', MASTER_PASSWORD='x', MASTER_CONNECT_RETRY=1" % port,
            "START SLAVE",
        )
        super().__init__(server, top)

    def put_back(self, **wanted: Any) -> Dict[str, Any]:
        """Put the backup in place, start the server as its unit would, and return what came of it."""
        self.server.stop()
        plan = planning.make(self.directory.find(), state=str(self.top / "state"), **wanted)
        done = execute(plan, Quiet())
        self.server.start("--server-id=2", EVENTS)
        return {**done.as_dict(), "lines": plan.lines(), "plan": plan.as_dict()}

    def ask(self, statement: str) -> List[Dict[str, Any]]:
        with Session(self.server.login) as session:
            return session.rows(statement)

    def ticks(self) -> int:
        return int(self.ask("SELECT COUNT(*) AS n FROM d.ticks")[0]["n"])


@pytest.fixture
def replica(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Replica]:
    with real_server() as source, real_server() as server:
        yield Replica(source, server, tmp_path)


@marked
def test_a_copy_of_another_hosts_replica_neither_replicates_nor_runs_events_before_somebody_says_so(replica: Replica) -> None:
    with Session(replica.server.login) as session:
        assert servers.enabled_events(session) == ["d.tick"]
    replica.back_up(machine=OTHER, events=["d.tick"])
    done = replica.put_back()
    said = "\n".join(done["lines"])
    assert "replication from %s, %s does not start on this host" % tuple(replica.sources) in said
    assert "events (d.tick) do not run on this host; --resume-replication-and-events leaves both as they were" in said
    assert done["plan"]["does_not_start"] == {"sources": replica.sources, "events": ["d.tick"]}
    before = replica.ticks()
    time.sleep(2.5)
    assert replica.ticks() == before
    assert replica.ask("SHOW ALL SLAVES STATUS") == []
    assert {row["name"]: row["status"] for row in replica.ask("SELECT name, status FROM mysql.event")} == {"tick": "DISABLED", "never": "DISABLED"}
    assert len(done["disabled"]) == 2 and "for each of d.tick" in done["disabled"][1]
    # what the sentences say lets both begin
    replica.server.stop()
    for name in os.listdir(replica.server.datadir):
        if name.endswith(activity.DISABLED):
            os.rename(os.path.join(replica.server.datadir, name), os.path.join(replica.server.datadir, name[: -len(activity.DISABLED)]))
    replica.server.start("--server-id=2", EVENTS)
    replica.server.do("ALTER EVENT d.tick ENABLE")
    until(lambda: replica.ticks() > before, "an event")
    assert {row["Connection_name"] for row in replica.ask("SHOW ALL SLAVES STATUS")} == {"", "two"}


@marked
def test_who_asks_for_it_gets_a_copy_that_goes_on_and_so_does_a_host_with_its_own_backup(replica: Replica) -> None:
    replica.back_up(machine=OTHER)
    for wanted, machine in (({"resume": True}, OTHER), ({}, None)):
        if machine is None:
            replica.back_up()
        done = replica.put_back(**wanted)
        assert done["plan"]["does_not_start"] is None and done["disabled"] == []
        before = replica.ticks()
        until(lambda before=before: replica.ticks() > before, "an event")  # type: ignore[misc]
        assert len(replica.ask("SHOW ALL SLAVES STATUS")) == 2


SETTINGS = {
    "flavour": "mysql",
    "version": "8.0.36",
    "program": "/usr/sbin/mysqld",
    "paths": [],
    "log_bin": "",
    "log_bin_index": "",
    "variables": {},
    "plugins": [],
}
OLD = {"Version": 1, "mysql_server": {"max_connections": {"Value": "7"}, "mysql_server_static_options": {"skip_name_resolve": {"Value": "ON"}}}}


def restored(tmp_path: Path, version: str, persisted: Any) -> Any:
    """Return what MySQL has persisted after a copy of another host's data was put in place; None where it has nothing."""
    datadir = tmp_path / "mysql"
    datadir.mkdir()
    write(str(datadir / "ibdata1"))
    if persisted is not None:
        (datadir / "mysqld-auto.cnf").write_text(persisted if isinstance(persisted, str) else json.dumps(persisted))
    facts = {**SETTINGS, "version": version, "paths": [{"role": "datadir", "path": str(datadir)}]}
    generation = back_up(job_directory(tmp_path / "repository"), tree(str(datadir), "mysql"), machine=OTHER, settings=facts)
    done = execute(planning.make(generation, state=str(tmp_path / "state")), Quiet())
    assert "RESET PERSIST" in done.disabled[0]
    return json.loads((datadir / "mysqld-auto.cnf").read_text())


@pytest.mark.parametrize("version, persisted, dynamic", [("8.4.2", None, "mysql_dynamic_variables"), ("8.0.36", {"Version": 2}, "mysql_dynamic_variables")])
def test_mysql_is_told_by_its_own_persisted_variables(tmp_path: Path, version: str, persisted: Any, dynamic: str) -> None:
    found = restored(tmp_path, version, persisted)
    assert found["Version"] == 2
    assert found["mysql_static_variables"]["skip_replica_start"]["Value"] == "ON" and found[dynamic]["event_scheduler"]["Value"] == "OFF"


def test_what_mysql_has_persisted_already_stays(tmp_path: Path) -> None:
    found = restored(tmp_path, "8.0.36", OLD)
    assert found["Version"] == 1 and found["mysql_server"]["max_connections"] == {"Value": "7"}
    assert set(found["mysql_server"]["mysql_server_static_options"]) == {"skip_name_resolve", "skip_replica_start"}


def test_a_server_that_can_not_be_told_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="MySQL 5.7.44 can't be kept from it: say --resume-replication-and-events"):
        restored(tmp_path, "5.7.44", None)
    (tmp_path / "two").mkdir()
    with pytest.raises(StillpointError, match="mysqld-auto.cnf can't be read: --resume-replication-and-events leaves .*the live data was not touched"):
        restored(tmp_path / "two", "8.4.2", "{")
