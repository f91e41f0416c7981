# SPDX-License-Identifier: GPL-3.0-or-later
"""A server whose settings are made for short-lived web sessions: ours last all the same."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Iterator

import pytest
from _core.backup import run as backup
from _core.dump import client
from _core.host.errors import StillpointError
from _core.host.reporter import Silent
from _core.job import reader
from _core.job.options import Job
from _core.mysql import lock_choice
from _core.mysql.acceptance import accept, init_command
from _core.mysql.connection import Login, Session
from _core.mysql.locks import Lock
from real_server import RealServer, needed, real_server

pytestmark = needed

HASTY = (
    "SET GLOBAL wait_timeout = 2, interactive_timeout = 2, net_read_timeout = 1, net_write_timeout = 1, lock_wait_timeout = 1, max_statement_time = 1",
    "SET GLOBAL init_connect = 'SET autocommit = 0, SESSION wait_timeout = 2'",
    "CREATE USER hasty@localhost WITH MAX_STATEMENT_TIME 1",
    "GRANT SELECT, RELOAD, PROCESS, BINLOG MONITOR, SLAVE MONITOR, LOCK TABLES, SHOW VIEW, TRIGGER, EVENT ON *.* TO hasty@localhost",
)


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as server:
        server.do("CREATE DATABASE d", "CREATE TABLE d.t (i INT PRIMARY KEY, s CHAR(250)) ENGINE=InnoDB", "CREATE TABLE d.m (i INT) ENGINE=MyISAM")
        server.do("INSERT INTO d.t SELECT seq, REPEAT('s', 250) FROM d.seq_1_to_20000", "INSERT INTO d.m VALUES (1)", *HASTY)
        yield server


@pytest.fixture(scope="module")
def hasty(server: RealServer) -> Login:
    return Login(login_user="hasty", login_unix_socket=server.top + "/s")


@pytest.fixture
def asked(hasty: Login, tmp_path: Path) -> Job:
    (tmp_path / "backups").mkdir()
    mysql = {"method": "dump", "login_user": hasty.login_user, "login_unix_socket": hasty.login_unix_socket}
    return reader.parse({"name": "etrial", "mysql": mysql, "repository": str(tmp_path / "backups"), "bwlimit": "1500K"})


def test_a_session_outlives_what_the_server_sets_for_others(hasty: Login) -> None:
    with Session(hasty) as session:
        time.sleep(2.5)
        assert session.value("SELECT SLEEP(1.5)") == 0  # 1 where it was ended
        assert session.value("SELECT @@autocommit") == 1


@pytest.mark.parametrize("method", [lock_choice._BACKUP_STAGE, lock_choice._FTWRL], ids=lambda method: method.name)
def test_a_lock_is_still_held_when_lvm_takes_its_time(hasty: Login, method: lock_choice.Method) -> None:
    with Session(hasty) as session, Lock(session, method, 5) as lock:
        lock.prepare()
        time.sleep(2.5)
        lock.take()
        time.sleep(2.5)
        lock.release()


def test_a_dump_that_is_read_slowly_comes_to_its_end_and_the_plan_warns(asked: Job) -> None:
    summary = backup.run(asked, Silent())
    assert summary["dump"]["sql_bytes"] > 4e6
    assert any("says nothing for wait_timeout = 2 s, and mariadb-dump can't ask for more" in each for each in summary["warnings"])


def test_all_rows_are_seen_where_the_server_limits_every_session_and_a_dump_that_would_not_see_them_is_refused(server: RealServer, asked: Job) -> None:
    server.do("SET GLOBAL sql_select_limit = 1")
    try:
        with Session(server.login) as session:
            assert len(session.rows("SELECT i FROM d.t")) == 20000
        with pytest.raises(StillpointError, match="sql_select_limit = 1 for every session, and a dump would have no more rows of a table: SET GLOBAL"):
            backup.run(asked, Silent())
    finally:
        server.do("SET GLOBAL sql_select_limit = DEFAULT")


def test_the_client_that_loads_a_dump_or_a_table_lasts_as_long(hasty: Login) -> None:
    with Session(hasty) as session, client.option_file(hasty) as options:
        argv = [*client.load_command(client.loader("mariadb"), options), init_command(accept(session)), "--skip-column-names"]
        said = subprocess.run(argv, input=b"SELECT @@wait_timeout, @@net_read_timeout, @@max_statement_time", capture_output=True, check=True).stdout
    assert said.split() == [b"31536000", b"600", b"0.000000"]
