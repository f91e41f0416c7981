# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore in place on a Galera node: real nodes, on this host alone."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest
from _core.dump import plan as dumps
from _core.host import service
from _core.host.errors import NotNowError, StillpointError, UsageError
from _core.job.options import MysqlOptions
from _core.mysql.absent import nothing_begun
from _core.mysql.connection import Session
from _core.mysql.locks import LockOptions
from _core.mysql.way_clear import way_cleared
from _core.restore.in_place import cluster
from _core.restore.in_place import plan as planning
from _core.restore.in_place.execute import execute
from real_server import PLUGINS, RealServer, own_port, real_server
from shop import Shop, marked
from trees import Quiet

PROVIDER = os.path.join(os.path.dirname(PLUGINS or ""), "galera-4", "libgalera_smm.so")  # as tests/lab/setup puts it

needs_galera = pytest.mark.skipif(not os.path.exists(PROVIDER), reason="needs Galera, which tests/lab/setup brings")


def options(server: RealServer, port: int, *others: int) -> List[str]:
    library = os.path.join(server.top, "galera.so")  # where the server's account can read it
    shutil.copy(PROVIDER, library)
    address = "gcomm://" + ",".join("127.0.0.1:%d" % each for each in others)
    return [
        "--wsrep-on=ON",
        "--wsrep-provider=" + library,
        "--wsrep-cluster-address=" + address,
        "--wsrep-cluster-name=test",
        "--wsrep-node-address=127.0.0.1",
        "--wsrep-sst-method=rsync",
        "--wsrep-provider-options=gmcast.listen_addr=tcp://127.0.0.1:%d;ist.recv_addr=127.0.0.1:%d" % (port, own_port()),
        "--binlog-format=ROW",
    ]


class Cluster(Shop):
    """A shop whose server is a Galera node."""

    def __init__(self, server: RealServer, top: Path) -> None:
        self.port = own_port()
        self.options = options(server, self.port, self.port, own_port())
        server.stop()
        server.start(*self.options, "--wsrep-new-cluster")
        server.do("CREATE DATABASE d", "CREATE TABLE d.t (i INT PRIMARY KEY) ENGINE=InnoDB", "INSERT INTO d.t VALUES (1)")
        super().__init__(server, top)

    def plan(self) -> planning.InPlacePlan:
        return planning.make(self.directory.find(), parts="database", state=str(self.top / "state"))

    def ask(self, statement: str) -> Any:
        with Session(self.server.login) as session:
            return session.value(statement)


def _status(server: RealServer) -> Dict[str, str]:
    with Session(server.login) as session:
        return {row["Variable_name"]: row["Value"] for row in session.rows("SHOW STATUS LIKE 'wsrep_%'")}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with real_server() as server:
        made = Cluster(server, tmp_path)
        found = service.running_in

        def of_a_unit(directory: str) -> Optional[service.Running]:  # as if systemd had started it
            server = found(directory)
            return service.Running(server.pid, server.program, "mariadb.service") if server else None

        def start(_unit: str, _directory: str, _triggers: Any = (), new_cluster: bool = False) -> None:
            made.server.start(*made.options, *(["--wsrep-new-cluster"] if new_cluster else []))

        for name, value in (("running_in", of_a_unit), ("stop", lambda *_words: made.server.stop()), ("start", start)):
            monkeypatch.setattr(service, name, value)
        for name in ("forbid", "allow"):
            monkeypatch.setattr(service, name, lambda _unit: None)
        yield made


@marked
@needs_galera
def test_a_node_that_is_alone_comes_up_with_the_restored_data_as_the_first_of_its_cluster(node: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = cluster.prepare

    def of_several(datadir: str) -> None:
        """Prepare a copy as it is where other nodes were in the cluster."""
        state = Path(datadir) / cluster.STATE
        state.write_text(state.read_text().replace("safe_to_bootstrap: 1", "safe_to_bootstrap: 0"))
        prepare(datadir)

    monkeypatch.setattr(cluster, "prepare", of_several)
    node.back_up()
    node.server.do("DROP TABLE d.t")
    plan = node.plan()
    said = "\n".join(plan.lines())
    assert "the server is a Galera node, and no other node of its cluster (%s) runs: it starts a new cluster" % plan.as_dict()["galera"]["address"] in said
    assert "remove grastate.dat in their data directories before they join" in said
    execute(plan, Quiet())
    assert node.ask("SELECT COUNT(*) FROM d.t") == 1
    status = _status(node.server)
    assert (status["wsrep_local_state_comment"], status["wsrep_cluster_status"], status["wsrep_cluster_size"]) == ("Synced", "Primary", "1")


@marked
@needs_galera
def test_a_node_of_a_running_cluster_is_refused_with_what_to_do(node: Cluster) -> None:
    node.back_up()
    where = "%(wsrep_cluster_state_uuid)s:%(wsrep_last_committed)s" % _status(node.server)
    copy = node.server.copy("second", "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS")
    with real_server() as second:
        second.stop()
        subprocess.run(["rm", "-rf", second.datadir], check=True)
        os.rename(copy, second.datadir)
        os.unlink(second.datadir + "/gvwstate.dat")
        second.start(*options(second, own_port(), node.port), "--wsrep-start-position=" + where)
        assert _status(node.server)["wsrep_cluster_size"] == "2"
        with pytest.raises(UsageError) as caught:
            node.plan()
        assert str(caught.value) == (
            "the server is one of 2 nodes of a running Galera cluster, which would bring its own data back (IST, SST): stop the other nodes first, or "
            "restore with --to DIR"
        )
    node.server.stop(crash=True)


@marked
@needs_galera
def test_a_node_that_takes_no_statements_is_tried_again_later(node: Cluster) -> None:
    with Session(node.server.login) as session:
        session.do("SET GLOBAL wsrep_reject_queries = ALL")
        sentence = "this node of the Galera cluster takes no statements now .*: nothing was locked or backed up"
        with pytest.raises(NotNowError, match=sentence), nothing_begun():
            session.rows("SELECT i FROM d.t")
        session.do("SET GLOBAL wsrep_reject_queries = NONE")


@marked
@needs_galera
def test_a_dump_is_taken_of_a_node_that_is_synced_and_waits_for_no_cluster_under_its_lock(node: Cluster) -> None:
    of = MysqlOptions(method="dump", login_unix_socket=node.server.login.login_unix_socket, login_user=node.server.login.login_user)
    with Session(node.server.login) as session:
        session.do("SET GLOBAL wsrep_desync = ON")
        with pytest.raises(NotNowError, match="not Synced .wsrep_local_state_comment is 'Donor/Desynced'"):
            dumps.make(of, node.directory)
        session.do("SET GLOBAL wsrep_desync = OFF", "SET GLOBAL wsrep_sync_wait = 15")
    made = dumps.make(of, node.directory)
    with way_cleared(made.login, made.server, "ftwrl", LockOptions(), lambda text: None) as (session, _cleared):
        assert str(session.value("SELECT @@SESSION.wsrep_sync_wait")) == "0"


@pytest.mark.parametrize(
    "address, listening, answers",
    [
        ("gcomm://", True, False),
        ("gcomm://127.0.0.1:PORT", True, True),
        ("gcomm://127.0.0.1:PORT?gcache.size=1", True, True),
        ("gcomm://127.0.0.1:PORT", False, False),
    ],
)
def test_the_other_nodes_of_one_that_is_stopped_are_looked_for(address: str, listening: bool, answers: bool) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        if listening:
            sock.listen()
        where = address.replace("PORT", str(sock.getsockname()[1]))
        assert bool(cluster._answering(where)) is answers


def test_options_are_read_however_they_are_written() -> None:
    found = cluster._named(["--wsrep-on=1", "--wsrep_cluster_address=gcomm://a,b", "--wsrep-provider='/x'", "mysqld", "--skip-name-resolve"])
    assert found == {"wsrep_on": "1", "wsrep_cluster_address": "gcomm://a,b", "wsrep_provider": "/x", "skip_name_resolve": ""}


def test_the_state_of_a_copy_keeps_its_owner_and_its_history(tmp_path: Path) -> None:
    state = tmp_path / cluster.STATE
    state.write_text("version: 2.1\nuuid:    6b2d1fe6\nseqno:   -1\nsafe_to_bootstrap: 0\n")
    state.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(state, 7, 8)
    (tmp_path / "gvwstate.dat").write_text("member: a 0\nmember: b 0\n")
    cluster.prepare(str(tmp_path))
    assert state.read_text() == "version: 2.1\nuuid:    6b2d1fe6\nseqno:   -1\nsafe_to_bootstrap: 1\n"
    assert (state.stat().st_mode & 0o777, state.stat().st_uid) == (0o640, 7 if os.geteuid() == 0 else os.geteuid())
    assert os.listdir(tmp_path) == [cluster.STATE]


def test_what_is_no_galera_node_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "datadir_of", lambda _targets: type("T", (), {"path": "/nowhere"}))
    generation: Any = type("G", (), {"summary": {"server": {"flavour": "percona"}}})
    for known in ({}, {"wsrep_on": "OFF", "wsrep_provider": "/x"}, {"wsrep_on": "ON", "wsrep_provider": "none"}):
        values: Dict[str, str] = known
        monkeypatch.setattr(cluster, "_options", lambda _generation, _pid, values=values: values)
        assert cluster.find(generation, ()) is None
    monkeypatch.setattr(cluster, "_options", lambda _generation, _pid: {"wsrep_on": "ON", "wsrep_provider": "/x"})
    with pytest.raises(StillpointError, match="Percona XtraDB Cluster, which is not restored in place"):
        cluster.find(generation, ())
