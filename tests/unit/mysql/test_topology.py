# SPDX-License-Identifier: GPL-3.0-or-later
"""What is changed on replicas and cluster nodes for the moment of the lock, and put back whatever happens."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field, replace
from typing import Any, Dict, List, Optional, Sequence

import pytest
from _core.host.errors import NotNowError, StillpointError
from _core.mysql import topology
from _core.mysql.connection import Login, ServerError
from _core.mysql.server import Node
from test_mysql import a_server

LOGIN = Login(login_user="backup", login_password="secret", config_file="/etc/stillpoint/my.cnf")
NOBODY = 2**22 + 1  # beyond the highest process id that Linux gives


@dataclass
class Fake:
    """A server as far as replication goes: its channels' SQL threads, its temporary tables, its desync, and what it was told."""

    channels: Dict[str, bool] = field(default_factory=dict)
    temporary_tables: List[int] = field(default_factory=list)  # one answer after the other, then 0
    desync: bool = False
    datadir: str = "/var/lib/mysql/"
    refuse: Optional[str] = None
    told: List[str] = field(default_factory=list)
    position: int = 4

    def rows(self, statement: str, arguments: Sequence[Any] = ()) -> List[Dict[str, Any]]:
        text = statement % tuple("'%s'" % each for each in arguments) if arguments else statement
        if self.refuse and re.search(self.refuse, text):
            raise ServerError(text, 2013 if "STOP" in self.refuse else 1290, "refused")
        if text == "SHOW ALL SLAVES STATUS":
            self.position += 1
            return [{"Connection_name": name, "Slave_SQL_Running": "Yes" if on else "No", "Exec_Master_Log_Pos": self.position}
                    for name, on in self.channels.items()]  # fmt: skip
        if "open_temp_tables" in text:
            return [{"Value": str(self.temporary_tables.pop(0) if self.temporary_tables else 0)}]
        if text.startswith("SELECT"):
            answers = {"wsrep_desync": int(self.desync), "datadir": self.datadir, "version": "10.11.19-MariaDB", "version_comment": ""}
            return [{"value": answers[text.split(".")[-1]]}]
        self.told.append(text)
        match = re.match(r"(STOP|START) SLAVE '(.*)' SQL_THREAD", text)
        if match:
            if match.group(2) not in self.channels:
                raise ServerError(text, 1617, "there is no master connection")
            self.channels[match.group(2)] = match.group(1) == "START"
        elif text.startswith("SET GLOBAL wsrep_desync"):
            self.desync = text.endswith("ON")
        else:
            raise AssertionError(text)
        return []

    def value(self, statement: str) -> Any:
        return self.rows(statement)[0]["value"]

    def do(self, *statements: str) -> None:
        for statement in statements:
            self.rows(statement)

    def __enter__(self) -> "Fake":
        return self

    def __exit__(self, *_exc: object) -> None:
        pass


@dataclass(frozen=True)
class Asked:
    stop_replica: bool = True
    desync: bool = False
    long_query_timeout: int = 60


REPLICA = a_server(is_replica=True)
NODE = a_server(node=Node("Synced", "Primary"))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Fake:
    server = Fake()
    monkeypatch.setattr(topology, "Session", lambda login, read_timeout=60: server)
    monkeypatch.setattr(topology, "RUN_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setattr(topology.time, "sleep", lambda seconds: None)
    return server


def aside(server: Any, asked: Asked) -> Any:
    return topology.set_aside(LOGIN, server, asked, lambda text: None)


def records() -> List[str]:
    return os.listdir(topology.RUN_DIRECTORY) if os.path.isdir(topology.RUN_DIRECTORY) else []


def test_only_sql_threads_that_ran_are_stopped_and_started_again(fake: Fake) -> None:
    fake.channels = {"": True, "second": False, "third": True}
    with aside(REPLICA, Asked()):
        assert fake.channels == {"": False, "second": False, "third": False}
        assert len(records()) == 1
    assert fake.channels == {"": True, "second": False, "third": True}
    assert records() == []
    assert not any("second" in text for text in fake.told)


@pytest.mark.parametrize("interruption", [StillpointError("x"), KeyboardInterrupt()])
def test_they_are_started_again_whatever_happens_in_between(fake: Fake, interruption: BaseException) -> None:
    fake.channels = {"": True}
    with pytest.raises(type(interruption)), aside(REPLICA, Asked()):
        raise interruption
    assert fake.channels == {"": True}
    assert records() == []


def test_they_are_stopped_where_no_temporary_table_is_open(fake: Fake) -> None:
    fake.channels, fake.temporary_tables = {"": True}, [2, 1, 0]
    with aside(REPLICA, Asked()):
        assert fake.told == ["STOP SLAVE '' SQL_THREAD", "START SLAVE '' SQL_THREAD"] * 2 + ["STOP SLAVE '' SQL_THREAD"]
        assert fake.channels == {"": False}


def test_temporary_tables_that_stay_open_are_waited_for_no_longer_than_the_limit(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.channels, fake.temporary_tables = {"": True}, [1] * 1000
    clock = iter(range(0, 100000, 5))
    monkeypatch.setattr(topology.time, "monotonic", lambda: next(clock))
    with pytest.raises(NotNowError, match="temporary tables open for 60 s"), aside(REPLICA, Asked()):
        raise AssertionError("not to be reached")
    assert fake.channels == {"": True}


def test_a_sql_thread_that_does_not_stop_in_time_is_started_again_and_nothing_is_backed_up(fake: Fake) -> None:
    fake.channels, fake.refuse = {"": True}, "STOP"
    with pytest.raises(NotNowError, match="did not stop within 60 s"), aside(REPLICA, Asked()):
        raise AssertionError("not to be reached")
    assert fake.told == ["START SLAVE '' SQL_THREAD"]
    assert records() == []


def test_what_is_not_asked_for_is_not_touched(fake: Fake) -> None:
    fake.channels = {"": True}
    for server, asked in ((REPLICA, Asked(stop_replica=False)), (a_server(), Asked(desync=True)), (NODE, Asked())):
        with aside(server, asked):
            assert records() == []
    assert fake.told == []


def test_a_node_is_desynced_and_synced_again_unless_somebody_else_desynced_it(fake: Fake) -> None:
    with aside(NODE, Asked(desync=True)):
        assert fake.desync
    assert not fake.desync
    fake.desync = True
    with aside(NODE, Asked(desync=True)):
        pass
    assert fake.desync
    assert len(fake.told) == 2


def test_a_node_that_is_not_synced_is_refused() -> None:
    topology.check_node(NODE)
    topology.check_node(a_server())
    for node in (Node("Donor/Desynced", "Primary"), Node("Synced", "non-Primary"), Node("", "")):
        with pytest.raises(NotNowError, match="not Synced"):
            topology.check_node(replace(NODE, node=node))


def test_what_can_not_be_put_back_is_said_with_the_statement_and_left_to_the_next_run(fake: Fake) -> None:
    fake.channels, fake.refuse = {"it's": True}, "START"
    with pytest.raises(StillpointError, match=re.escape("do it by hand: START SLAVE 'it''s' SQL_THREAD")), aside(REPLICA, Asked()):
        pass
    assert len(records()) == 1
    assert topology.put_back_leftovers() == [], "the run that owns it lives"
    fake.refuse = None
    orphan(records()[0], record())
    assert topology.put_back_leftovers() == ["put back what a killed run had changed on the server: the SQL thread of the replication channel \"it's\""]
    assert fake.channels == {"it's": True}
    assert records() == []


def orphan(name: str, text: str) -> None:
    """Write a record as that of a process that is gone."""
    facts = json.loads(text)
    facts["owner"]["pid"] = NOBODY
    with open(os.path.join(topology.RUN_DIRECTORY, name), "w") as file:
        json.dump(facts, file)


def record() -> str:
    """Return the text of the one record that there is."""
    (name,) = records()
    with open(os.path.join(topology.RUN_DIRECTORY, name)) as file:
        return file.read()


def killed(fake: Fake, server: Any, asked: Asked) -> str:
    """Leave what a run leaves that is killed while the body runs, and return the record's text."""
    with aside(server, asked):
        (name,), text = records(), record()
        then = dict(fake.channels), fake.desync
    orphan(name, text)
    fake.channels, fake.desync = then
    return text


def test_what_a_killed_run_left_is_put_back_by_the_next_and_no_password_is_written_down(fake: Fake) -> None:
    fake.channels = {"": True}
    text = killed(fake, replace(REPLICA, node=Node("Synced", "Primary")), Asked(desync=True))
    assert "secret" not in text
    assert (fake.channels, fake.desync) == ({"": False}, True)
    (sentence,) = topology.put_back_leftovers()
    assert "the SQL thread of the replication channel '', wsrep_desync" in sentence
    assert (fake.channels, fake.desync) == ({"": True}, False)
    assert topology.put_back_leftovers() == []


def test_it_is_put_back_only_on_the_server_where_it_was_changed(fake: Fake) -> None:
    fake.channels = {"": True}
    killed(fake, REPLICA, Asked())
    fake.datadir = "/srv/other/"
    with pytest.raises(StillpointError, match="has left replication stopped on the server with the data directory /var/lib/mysql"):
        topology.put_back_leftovers(LOGIN)
    assert fake.channels == {"": False}
    assert len(records()) == 1


def test_a_channel_that_was_taken_away_meanwhile_is_nothing_to_put_back(fake: Fake) -> None:
    fake.channels = {"gone": True}
    with aside(REPLICA, Asked()):
        del fake.channels["gone"]
    assert records() == []


@pytest.mark.parametrize(
    ("flavour", "version", "statement"),
    [
        ("mariadb", (10, 5, 29), "START SLAVE 'a' SQL_THREAD"),
        ("mysql", (5, 7, 44), "START SLAVE SQL_THREAD FOR CHANNEL 'a'"),
        ("percona", (8, 0, 36), "START REPLICA SQL_THREAD FOR CHANNEL 'a'"),
        ("mysql", (9, 7, 4), "START REPLICA SQL_THREAD FOR CHANNEL 'a'"),
    ],
)
def test_replication_is_started_in_the_servers_own_words(flavour: str, version: tuple, statement: str) -> None:
    assert topology.by_hand(topology.Change(("a",)), flavour, version) == statement
