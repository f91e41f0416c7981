# SPDX-License-Identifier: GPL-3.0-or-later
"""What passes by itself is "not now"; a server that will never answer is a failure."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Iterator, List

import pytest
from _core.backup import plan, point, sources
from _core.backup import run as backup
from _core.backup.quiesced import QuiesceRequest
from _core.host.errors import NotNowError, StillpointError
from _core.host.reporter import Silent
from _core.job import reader
from _core.job.options import Job
from _core.mysql import absent
from _core.mysql.absent import Unit, nothing_begun
from _core.mysql.connection import Login, ServerError, Session
from real_server import RealServer, needed, real_server


def marked(test):
    for mark in needed:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as it:
        it.do("CREATE DATABASE d", "CREATE TABLE d.t (i INT) ENGINE=InnoDB", "CREATE TABLE d.m (i INT) ENGINE=MyISAM", "CREATE USER few@localhost")
        it.do("GRANT SELECT, RELOAD, PROCESS, BINLOG MONITOR, SLAVE MONITOR, LOCK TABLES, SHOW VIEW, TRIGGER, EVENT ON *.* TO few@localhost")
        yield it


@pytest.fixture
def asked(server: RealServer, tmp_path: Path) -> Job:
    (tmp_path / "backups").mkdir()
    mysql = {"method": "dump", "login_user": "few", "login_unix_socket": server.top + "/s"}
    return reader.parse({"name": "etrial", "mysql": mysql, "repository": str(tmp_path / "backups")})


def quiescing(of: RealServer) -> point.Quiesce:
    return sources.quiescing(QuiesceRequest(login_user="few", login_unix_socket=of.top + "/s"))


@contextmanager
def no_connection_free(server: RealServer) -> Iterator[None]:
    with ExitStack() as stack:
        server.do("SET GLOBAL max_connections = 10")
        stack.callback(server.do, "SET GLOBAL max_connections = DEFAULT")
        login = Login(login_user="few", login_unix_socket=server.top + "/s")
        try:
            for _each in range(12):
                stack.enter_context(Session(login))
        except StillpointError:
            pass
        yield


@contextmanager
def few_connections(server: RealServer, number: int) -> Iterator[None]:
    server.do("GRANT USAGE ON *.* TO few@localhost WITH MAX_USER_CONNECTIONS %d" % number)
    try:
        yield
    finally:
        server.do("GRANT USAGE ON *.* TO few@localhost WITH MAX_USER_CONNECTIONS 0")


@marked
def test_a_server_without_a_free_connection_is_not_now_for_every_plan_and_run(server: RealServer, asked: Job) -> None:
    with no_connection_free(server):
        for trying in (lambda: quiescing(server), lambda: plan.make(asked), lambda: backup.run(asked, Silent())):
            with pytest.raises(NotNowError, match=r"no connection free \(max_connections\) \(error 1040\): nothing was locked or backed up; try again"):
                trying()


@marked
@pytest.mark.parametrize("number", [1, 2])  # a dump of MyISAM takes three: its own, one that keeps writers off, and the program's
def test_an_account_with_too_few_connections_is_not_now_at_each_of_those_that_a_dump_takes(server: RealServer, asked: Job, number: int) -> None:
    with few_connections(server, number), pytest.raises(NotNowError, match="1226|1203") as refused:
        backup.run(asked, Silent())
    assert "nothing was" in str(refused.value)
    assert [name.name for name in Path(asked.repository).rglob("manifest.json")] == []


@marked
def test_a_session_that_ends_before_anything_was_locked_is_not_now(server: RealServer) -> None:
    login = Login(login_user="few", login_unix_socket=server.top + "/s")
    with pytest.raises(NotNowError, match="ended the session before anything was locked"), nothing_begun(), Session(login) as session:
        server.do("KILL %d" % session.id)
        session.do("SELECT 1")
    with pytest.raises(ServerError), nothing_begun(), Session(login) as session:
        session.do("SELECT 1 FROM d.nowhere")


@marked
def test_a_server_that_is_being_stopped_is_not_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with real_server() as it:
        found = quiescing_as_root(it)
        assert found.server.datadir == it.datadir
        it.stop()
        monkeypatch.setattr(absent, "units", lambda: [Unit("mariadb.service", "deactivating", True, False)])
        with pytest.raises(NotNowError, match=r"does not answer.*\(mariadb.service is deactivating\): nothing was locked or backed up; try again later"):
            quiescing_as_root(it)
        with pytest.raises(NotNowError), point._cleared(found, lambda text: None):
            pass
        monkeypatch.setattr(absent, "units", list)
        monkeypatch.setattr(absent, "_youngest_server", lambda: None)
        with pytest.raises(StillpointError, match="does not answer.*check login_unix_socket") as failed:
            quiescing_as_root(it)
        assert not isinstance(failed.value, NotNowError)


def quiescing_as_root(of: RealServer) -> point.Quiesce:
    return sources.quiescing(QuiesceRequest(login_user="root", login_unix_socket=of.top + "/s"))


def test_a_host_that_has_no_address_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(absent, "units", lambda: [Unit("mariadb.service", "inactive", True, False)])
    with pytest.raises(StillpointError) as failed, nothing_begun():
        Session(Login(login_host="no-such-host.invalid"))
    assert not isinstance(failed.value, NotNowError) or "Errno -3" in str(failed.value)


SHOWN = """\
Id=mariadb.service
LoadState=loaded
ActiveState=%s
UnitFileState=%s
Type=%s
ActiveEnterTimestampMonotonic=%d

Id=mariadb.service
LoadState=loaded
ActiveState=active
UnitFileState=alias
ActiveEnterTimestampMonotonic=0

Id=mysql.service
LoadState=not-found
ActiveState=inactive
UnitFileState=
ActiveEnterTimestampMonotonic=0
"""


@pytest.mark.parametrize(
    ("state", "enabled", "kind", "ago", "expected"),
    [
        ("active", "enabled", "notify", 100, False),  # it runs, and listens elsewhere: the address is wrong
        ("active", "enabled", "notify", 5, True),  # it was started between the try and the look
        ("active", "enabled", "simple", 100, True),  # it may be recovering
        ("active", "enabled", "simple", 100000, False),
        ("activating", "enabled", "notify", 0, True),
        ("deactivating", "disabled", "notify", 100000, True),
        ("inactive", "enabled", "notify", 0, True),  # stopped by hand, or for an upgrade
        ("failed", "enabled", "notify", 0, True),
        ("inactive", "disabled", "notify", 0, False),
        ("inactive", "masked", "notify", 0, False),
    ],
)
def test_a_server_is_expected_back_as_its_unit_says(
    monkeypatch: pytest.MonkeyPatch, state: str, enabled: str, kind: str, ago: int, expected: bool
) -> None:
    monkeypatch.setattr(absent.time, "monotonic", lambda: 200000.0)
    units: List[Unit] = list(absent._read_units(SHOWN % (state, enabled, kind, (200000 - ago) * 1000000)))
    assert [(unit.name, unit.expected) for unit in units] == [("mariadb.service", expected)]


@pytest.mark.parametrize("socket", [True, False])
def test_where_no_unit_is_known_a_server_that_starts_or_its_socket_speaks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, socket: bool) -> None:
    monkeypatch.setattr(absent, "units", list)
    monkeypatch.setattr(absent, "_youngest_server", lambda: None)
    path = tmp_path / "s"
    if socket:
        path.touch()
    assert absent.expected(str(path)) == ("its socket is still there" if socket else None)
    for age, reason in ((3.0, "a server was started 3 s ago"), (5000.0, None)):
        monkeypatch.setattr(absent, "_youngest_server", lambda age=age: age)
        assert absent.expected(str(path)) == reason
