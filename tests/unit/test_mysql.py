# SPDX-License-Identifier: GPL-3.0-or-later
"""What is chosen for a server: locks, statements, and what stands in a lock's way."""

from __future__ import annotations

import pytest
from _core.errors import StillpointError, UsageError
from _core.mysql import connection, coordinates, guard, locks, server
from _core.mysql.server import Server, Table


def a_server(flavour: str = "mariadb", version: tuple = (10, 11, 19), **facts) -> Server:
    values = dict(
        flavour=flavour, version=version, version_text=".".join(map(str, version)), datadir="/var/lib/mysql", uuid=None, unit=None, log_bin=True,
        log_bin_basename=None, is_replica=False, paths=(), non_transactional=(),
    )  # fmt: skip
    return Server(**{**values, **facts})


@pytest.mark.parametrize(
    ("version", "comment", "expected"),
    [
        ("10.11.19-MariaDB-0+deb12u1", "Debian 12", ("mariadb", (10, 11, 19))),
        ("5.5.5-10.4.34-MariaDB", "", ("mariadb", (10, 4, 34))),
        ("9.7.4", "(Debian)", ("mysql", (9, 7, 4))),
        ("8.0.36-28", "Percona Server (GPL), Release 28", ("percona", (8, 0, 36))),
    ],
)
def test_flavour_and_version_are_read_from_what_the_server_says(version: str, comment: str, expected: tuple) -> None:
    assert server.flavour_and_version(version, comment) == expected


@pytest.mark.parametrize(("version", "method"), [((10, 11, 19), "backup_stage"), ((10, 4, 0), "backup_stage"), ((10, 3, 39), "ftwrl")])
def test_auto_takes_the_cheapest_lock_that_the_server_has(version: tuple, method: str) -> None:
    choice = locks.choose("auto", a_server(version=version))
    assert choice.name == method
    assert choice.reason


def test_a_lock_that_the_server_does_not_have_is_refused() -> None:
    with pytest.raises(UsageError, match="backup_stage does not exist on mariadb 10.3.39"):
        locks.choose("backup_stage", a_server(version=(10, 3, 39)))
    with pytest.raises(StillpointError, match="not supported yet"):
        locks.choose("auto", a_server("mysql", (9, 7, 4)))


@pytest.mark.parametrize(
    ("flavour", "version", "statement"),
    [
        ("mariadb", (11, 8, 2), "SHOW MASTER STATUS"),
        ("mysql", (8, 0, 36), "SHOW MASTER STATUS"),
        ("mysql", (8, 4, 0), "SHOW BINARY LOG STATUS"),
        ("percona", (9, 7, 4), "SHOW BINARY LOG STATUS"),
    ],
)
def test_the_binary_log_is_asked_for_in_the_servers_own_words(flavour: str, version: tuple, statement: str) -> None:
    assert coordinates.status_statement(flavour, version) == statement


AUDIT = (Table("wf", "audit", "MyISAM"),)


@pytest.mark.parametrize(
    ("text", "method", "flavour", "waits"),
    [
        ("SELECT SLEEP(20) FROM t", "ftwrl", "mariadb", False),
        ("SELECT SLEEP(20) FROM t", "ftwrl", "mysql", True),
        ("UPDATE cases SET a = 1", "ftwrl", "mariadb", True),
        ("UPDATE cases SET a = 1", "backup_stage", "mariadb", False),
        ("UPDATE wf.audit SET a = 1", "backup_stage", "mariadb", True),
        ("SELECT * FROM wf.audit", "backup_stage", "mariadb", False),
        ("/* app */ ALTER TABLE cases ADD b INT", "backup_stage", "mariadb", True),
        ("INSERT INTO audits VALUES (1)", "backup_stage", "mariadb", False),
        ("ALTER TABLE cases ADD b INT", "instance", "mysql", True),
        ("ALTER TABLE cases ADD b INT", "none", "mariadb", False),
    ],
)
def test_a_statement_is_in_the_way_of_the_locks_that_wait_for_it(text: str, method: str, flavour: str, waits: bool) -> None:
    assert guard.in_the_way(guard.Statement(7, "app", 20, text), method, flavour, AUDIT) is waits


def test_only_statements_of_others_that_have_run_long_enough_are_looked_at() -> None:
    def row(**changes):
        return {**dict(ID=1, USER="app", COMMAND="Query", TIME=30, TIME_MS=30000.0, INFO="UPDATE t SET a = 1"), **changes}

    rows = [
        row(),
        row(ID=2, TIME=1, TIME_MS=1500.0),
        row(ID=3, COMMAND="Sleep", INFO=None),
        row(ID=4, USER="system user"),
        row(ID=5, COMMAND="Execute", INFO=b"INSERT INTO t VALUES (1)"),
        row(ID=99),
        {key: value for key, value in row(ID=6).items() if key != "TIME_MS"},  # MySQL has no TIME_MS
    ]
    assert [found.id for found in guard.long_statements(rows, own_id=99, threshold=5)] == [1, 5, 6]


def test_directories_outside_the_data_directory_are_found_in_the_variables() -> None:
    variables = {
        "innodb_data_home_dir": "", "innodb_data_file_path": "ibdata1:12M;/srv/more/ibdata2:12M:autoextend", "innodb_log_group_home_dir": "./",
        "innodb_undo_directory": "/srv/undo", "aria_log_dir_path": "/var/lib/mysql/",
    }  # fmt: skip
    found = server.elsewhere(variables, "/var/lib/mysql")
    assert [(part.role, part.path) for part in found] == [("undo", "/srv/undo"), ("data", "/srv/more")]


def test_tables_that_are_not_transactional_are_known_by_their_files(tmp_path) -> None:
    for name in ("wf/audit.MYD", "wf/cases.ibd", "wf/audit2.MAD", "my@002dapp/log.CSV", "mysql/db.MAD", "wf/parts#P#p0.MYD", "wf/parts#P#p1.MYD"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [(table.schema, table.name, table.engine) for table in server.non_transactional(str(tmp_path))]
    assert found == [("my-app", "log", "CSV"), ("wf", "audit", "MyISAM"), ("wf", "audit2", "Aria"), ("wf", "parts", "MyISAM")]


def test_a_table_that_lies_elsewhere_is_refused_by_name(tmp_path) -> None:
    datadir = tmp_path / "data"
    (datadir / "wf").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    paths = (server.ServerPath("datadir", str(datadir)),)
    server._no_links_out(str(datadir), paths)
    (datadir / "wf" / "big.isl").write_text(str(tmp_path / "elsewhere" / "big.ibd"))
    with pytest.raises(StillpointError, match=r"big\.isl leads out of the data directory"):
        server._no_links_out(str(datadir), paths)


def test_an_option_file_that_is_none_is_refused_without_showing_what_is_in_it(tmp_path) -> None:
    file = tmp_path / "my.cnf"
    with pytest.raises(UsageError, match="can't be read"):
        connection._arguments(connection.Login(config_file=str(file)))
    file.write_text("password = secret\n")
    with pytest.raises(UsageError) as refused:
        connection._arguments(connection.Login(config_file=str(file)))
    assert "secret" not in str(refused.value)
    file.write_text("[client]\nuser = stillpoint\npassword = secret\nsocket = /run/a.sock\n")
    arguments = connection._arguments(connection.Login(config_file=str(file)))
    assert (arguments["user"], arguments["unix_socket"]) == ("stillpoint", "/run/a.sock")
    assert "secret" not in repr(connection.Login(login_password="secret"))


def test_with_nothing_given_the_login_is_root_at_the_local_socket() -> None:
    arguments = connection._arguments(connection.Login())
    assert arguments["user"] == "root"
    assert arguments["unix_socket"].endswith(".sock")
    assert connection._arguments(connection.Login(login_host="127.0.0.1"))["port"] == 3306
