# SPDX-License-Identifier: GPL-3.0-or-later
"""What is chosen for a server: locks, statements, and what stands in a lock's way."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from _core.backup import sources
from _core.backup.point import Quiesce
from _core.host.errors import StillpointError, UsageError
from _core.mysql import connection, coordinates, guard, lock_choice, locks, server
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


AUDIT = (Table("wf", "audit", "MyISAM"),)
INSTANCE, FTWRL = "LOCK INSTANCE FOR BACKUP", "FLUSH TABLES WITH READ LOCK"


@pytest.mark.parametrize(
    ("flavour", "version", "facts", "name", "reason"),
    [
        ("mariadb", (11, 8, 2), {}, "backup_stage", "without waiting for running statements"),
        ("mariadb", (10, 4, 0), {"non_transactional": AUDIT}, "backup_stage", "without waiting"),
        ("mariadb", (10, 3, 39), {}, "ftwrl", "nothing cheaper"),
        ("mysql", (5, 7, 44), {}, "ftwrl", "nothing cheaper"),
        ("mysql", (8, 0, 36), {}, "instance", "every table of users is InnoDB"),
        ("percona", (8, 4, 0), {}, "instance", "every table of users is InnoDB"),
        ("mysql", (9, 7, 4), {"non_transactional": AUDIT}, "ftwrl", "wf.audit is MyISAM: only a lock"),
        ("mysql", (9, 7, 4), {"non_transactional": AUDIT * 3}, "ftwrl", "wf.audit is MyISAM and 2 more"),
        ("mysql", (9, 7, 4), {"commits_must_stop": "the binary logs lie in /var/log/mysql"}, "ftwrl", "the binary logs lie in /var/log/mysql"),
    ],
)
def test_auto_takes_the_cheapest_lock_that_is_enough_and_says_why(flavour: str, version: tuple, facts: dict, name: str, reason: str) -> None:
    choice = lock_choice.choose("auto", a_server(flavour, version, **facts))
    assert (choice.name, choice.doubt) == (name, None)
    assert reason in choice.reason
    assert choice.stops_commits is (name != "instance")


@pytest.mark.parametrize(
    ("asked", "flavour", "version", "early", "late", "release"),
    [
        ("ftwrl", "mariadb", (10, 11, 19), (), (FTWRL,), ("UNLOCK TABLES",)),
        ("ftwrl", "mysql", (5, 7, 44), (), (FTWRL,), ("UNLOCK TABLES",)),
        ("ftwrl", "mysql", (8, 0, 11), (INSTANCE,), (FTWRL,), ("UNLOCK TABLES", "UNLOCK INSTANCE")),
        ("instance", "percona", (8, 0, 36), (INSTANCE,), (), ("UNLOCK INSTANCE",)),
    ],
)
def test_a_lock_is_taken_in_the_servers_own_words(asked: str, flavour: str, version: tuple, early: tuple, late: tuple, release: tuple) -> None:
    method = lock_choice.choose(asked, a_server(flavour, version)).method
    assert method is not None
    assert (method.early, method.late, method.release) == (early, late, release)


def test_rocksdbs_last_commits_are_settled_under_the_lock_where_a_binary_log_has_them() -> None:
    def late(**facts) -> str:
        method = lock_choice.choose("auto", a_server(**facts)).method
        assert method is not None
        return method.late[-1]

    assert late(rocksdb=True) == "FLUSH NO_WRITE_TO_BINLOG BINARY LOGS"
    assert late(rocksdb=True, log_bin=False) == late() == "BACKUP STAGE BLOCK_COMMIT"


@pytest.mark.parametrize(
    ("asked", "flavour", "version"),
    [("backup_stage", "mariadb", (10, 3, 39)), ("instance", "mariadb", (11, 8, 2)), ("instance", "mysql", (5, 7, 44)), ("backup_stage", "mysql", (9, 7, 4))],
)
def test_a_lock_that_the_server_does_not_have_is_refused(asked: str, flavour: str, version: tuple) -> None:
    with pytest.raises(UsageError, match="lock %s does not exist on %s" % (asked, flavour)):
        lock_choice.choose(asked, a_server(flavour, version))
    with pytest.raises(StillpointError, match="older than anything"):
        lock_choice.choose("auto", a_server("mysql", (4, 1, 0)))


def test_a_lock_that_was_asked_for_and_is_not_enough_is_doubted() -> None:
    mysql = a_server("mysql", (9, 7, 4), non_transactional=AUDIT)
    for asked in ("instance", "none"):
        assert "wf.audit is MyISAM" in str(lock_choice.choose(asked, mysql).doubt)
        assert lock_choice.choose(asked, a_server("mysql", (9, 7, 4))).doubt is None
    assert lock_choice.choose("ftwrl", mysql).doubt is None


def test_several_volumes_take_a_lock_that_stops_commits() -> None:
    mysql = a_server("mysql", (9, 7, 4))
    quiesce = Quiesce(connection.Login(), mysql, lock_choice.choose("auto", mysql), locks.LockOptions())
    assert sources.for_volumes(quiesce, {"vg00/root"}).choice.name == "instance"
    several = sources.for_volumes(quiesce, {"vg00/root", "vg00/srv"}).choice
    assert several.name == "ftwrl"
    assert "vg00/root and vg00/srv are snapshotted one after the other" in several.reason
    asked = replace(quiesce, options=locks.LockOptions("instance"))
    assert "one after the other" in str(sources.for_volumes(asked, {"vg00/root", "vg00/srv"}).choice.doubt)


def test_commits_have_to_stop_where_a_snapshot_alone_would_lose_or_strand_some(tmp_path) -> None:
    datadir = str(tmp_path)
    paths = (server.ServerPath("datadir", datadir),)

    def why(**variables: str):
        return server.commits_must_stop({"innodb_flush_log_at_trx_commit": "1", **variables}, datadir, paths)

    assert why(log_bin="ON", log_bin_basename=datadir + "/binlog") is None
    assert why(log_bin="OFF", innodb_flush_log_at_trx_commit="2") is None
    assert "up to a second of commits" in why(innodb_flush_log_at_trx_commit="0")
    assert "the binary logs lie in /var/log/mysql" in why(log_bin="ON", log_bin_basename="/var/log/mysql/binlog")


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
        ("UPDATE audit SET a = 1", "instance", "mysql", False),
        ("ALTER TABLE cases ADD b INT", "none", "mariadb", False),
    ],
)
def test_a_statement_is_in_the_way_of_the_locks_that_wait_for_it(text: str, method: str, flavour: str, waits: bool) -> None:
    assert guard.in_the_way(guard.Statement(7, "app", 20, text), method, flavour, AUDIT) is waits


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("SELECT SLEEP(200) FROM wf_workflow.LOGIN_LOG LIMIT 1", "SELECT SLEEP(200) FROM wf_workflow.LOGIN_LOG LIMIT 1"),
        ("ALTER USER 'shop'@'%' IDENTIFIED BY 'Hunter2!'", "ALTER USER ?@? IDENTIFIED BY ?"),
        ('SET PASSWORD = PASSWORD("Hunter2!")', "SET PASSWORD = PASSWORD(?)"),
        ("UPDATE `it's` SET p = 'Hunter2!'", "UPDATE `it's` SET p = ?"),
        ("SELECT 'it''s', 'Hunter2!', \"a'b\", 1", "SELECT ?, ?, ?, 1"),
        ("INSERT INTO t VALUES ('Hunter2!%s', 1)" % ("x" * 100), "INSERT INTO t VALUES (?, 1)"),
        ("SELECT 'Hunter2!", "SELECT ?"),
        ("SELECT 'Hunter2!\\", "SELECT ?"),
        ("SELECT 'a\\\\', b, 'Hunter2!'", "SELECT ?, b, ?"),
        ("SELECT 'it\\'s Hunter2!', b", "SELECT ?"),
        ("SELECT 'C:\\', 'Hunter2!'", "SELECT ?"),  # two literals under NO_BACKSLASH_ESCAPES
        ("/* don't */ SELECT 'Hunter2!' -- isn't\n , 'Hunter2!' # wasn't\n, /* can't", "SELECT ? , ? ,"),
        ("CREATE USER a /*!80000 IDENTIFIED BY 'Hunter2!' */", "CREATE USER a /*!80000 IDENTIFIED BY ? */"),
    ],
)
def test_a_statement_is_shown_without_its_literals(text: str, shown: str) -> None:
    assert str(guard.Statement(7, "root", 20, text)) == "root's statement 7, running for 20 s: " + shown


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
        {"Id": 7, "User": "app", "Command": "Query", "Time": 9, "Info": "SELECT 1"},  # SHOW FULL PROCESSLIST
        row(ID=8, COMMAND="Binlog Dump GTID", TIME=99999),
    ]
    assert [found.id for found in guard.long_statements(rows, own_id=99, threshold=5)] == [1, 5, 6, 7]


@pytest.mark.parametrize(
    ("flavour", "version", "schema_is_on", "source"),
    [
        ("mariadb", (10, 5, 29), False, "information_schema.PROCESSLIST"),
        ("mysql", (5, 7, 44), True, "SHOW FULL PROCESSLIST"),
        ("mysql", (8, 0, 36), False, "SHOW FULL PROCESSLIST"),
        ("mysql", (9, 7, 4), True, "performance_schema.processlist"),
    ],
)
def test_the_guard_asks_where_the_server_has_its_process_list(flavour: str, version: tuple, schema_is_on: bool, source: str) -> None:
    assert guard._process_list(a_server(flavour, version, performance_schema=schema_is_on)).endswith(source)


class Answers:
    """A session that gives one answer after the other to each statement."""

    def __init__(self, **answers: list) -> None:
        self.answers = answers

    def rows(self, statement: str, arguments: tuple = ()) -> list:
        word = next(word for word in self.answers if word in statement)
        answer = self.answers[word].pop(0) if len(self.answers[word]) > 1 else self.answers[word][0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def value(self, statement: str):
        return next(iter(self.rows(statement)[0].values()))


def local(position: int, gtid: str = "uuid:1-5,\nother:1") -> list:
    return [{"LOCAL": json.dumps({"binary_log_file": "binlog.000002", "binary_log_position": position, "gtid_executed": gtid})}]


def around(*log_status, version: tuple = (9, 7, 4)) -> coordinates.Around:
    looking = coordinates.Around(Answers(log_status=list(log_status)), a_server("mysql", version))
    looking.before()
    looking.after()
    return looking


def test_coordinates_while_commits_go_on_are_exact_only_where_nothing_was_logged_in_between() -> None:
    still = around(local(1437), local(1437))
    assert still.exact == coordinates.Coordinates("binlog.000002", 1437, "uuid:1-5,other:1", None)
    assert not still.again
    for after in (local(1800), local(1437, "uuid:1-6")):  # committed, and logged before the first look
        moved = around(local(1437), after)
        assert (moved.exact, moved.again) == (None, True)
        assert [each.position for each in moved.between()] == [1437, json.loads(after[0]["LOCAL"])["binary_log_position"]]
    for in_time, first in ((True, 1500), (False, 1437)):
        looking = coordinates.Around(Answers(log_status=[local(1437), local(1500), local(1800)]), a_server("mysql", (9, 7, 4)))
        looking.before()
        looking.before(lambda in_time=in_time: in_time)
        looking.after()
        assert [each.position for each in looking.between()] == [first, 1800]


@pytest.mark.parametrize("answer", [[], connection.ServerError("SELECT", 1142, "denied")])
def test_without_log_status_there_are_no_coordinates_and_another_try_would_not_help(answer) -> None:
    unknown = around(answer)
    assert (unknown.exact, unknown.again, unknown.between()) == (None, False, None)
    assert coordinates.read_unlocked(Answers(), a_server("mysql", (5, 7, 44))) is None
    assert coordinates.read_unlocked(Answers(), a_server("mariadb", (11, 8, 2))) is None


def test_a_replicas_coordinates_are_what_it_has_executed_and_not_what_it_has_received() -> None:
    mariadb = {
        "Connection_name": "", "Master_Host": "db1", "Master_Port": 3306, "Master_Log_File": "bin.000009", "Read_Master_Log_Pos": 999,
        "Relay_Master_Log_File": "bin.000007", "Exec_Master_Log_Pos": 4242, "Using_Gtid": "No", "Gtid_Slave_Pos": "0-1-7",
    }  # fmt: skip
    found = coordinates.read(Answers(SLAVES=[[mariadb]]), a_server(log_bin=False, is_replica=True))
    assert found.as_dict()["replica"] == [
        {"channel": "", "host": "db1", "port": 3306, "file": "bin.000007", "position": 4242, "gtid": "0-1-7", "uses_gtid": False}
    ]
    mysql = {
        "Channel_Name": "one", "Source_Host": "db1", "Source_Port": 3306, "Source_Log_File": "bin.000009", "Read_Source_Log_Pos": 999,
        "Relay_Source_Log_File": "bin.000007", "Exec_Source_Log_Pos": 4242, "Auto_Position": 1, "Executed_Gtid_Set": "uuid:1-5,\nother:1",
    }  # fmt: skip
    group = {**mysql, "Channel_Name": "group_replication_applier"}
    found = coordinates.read(Answers(REPLICA=[[mysql, group]]), a_server("mysql", (9, 7, 4), log_bin=False, is_replica=True))
    assert found.as_dict()["replica"] == [
        {"channel": "one", "host": "db1", "port": 3306, "file": "bin.000007", "position": 4242, "gtid": "uuid:1-5,other:1", "uses_gtid": True}
    ]


def test_a_tablespace_that_mysql_keeps_elsewhere_is_found() -> None:
    def found(path: str, undo: list) -> list:
        return list(server._tablespaces_elsewhere(Answers(INNODB_DATAFILES=[[{"PATH": path}]], UNDO=[undo]), "/var/lib/mysql", ["/var/lib/mysql"]))

    assert found("/var/lib/mysql/ibdata1", []) == []
    table, undo = found("/srv/ext/d/t.ibd", [{"PATH": "/srv/undo/u.ibu"}])
    assert "tablespace file /srv/ext/d/t.ibd lies outside" in table.sentence
    assert undo.path == "/srv/undo/u.ibu"


def test_a_server_without_a_redo_log_is_refused() -> None:
    for rows in ([], [{"Value": "ON"}]):
        server._redo_log_is_on(Answers(redo_log=[rows]))
    with pytest.raises(StillpointError, match="no snapshot of it would recover"):
        session = Answers(redo_log=[[{"Value": "OFF"}]])
        session.where = "/run/mysqld/mysqld.sock"
        server._redo_log_is_on(session)


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


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[client]\nport = secret\n", "is not a number from 1 to 65535"),
        ("[client]\nsocket = /run/a.sock\nport = secret\n", "is not a number from 1 to 65535"),
        ("[client]\nport = 65536\n", "is not a number from 1 to 65535"),
        ("[client]\npassword = secret\nuser\n", "names user without a value"),
    ],
)
def test_an_option_file_that_would_not_be_understood_is_refused_by_name_without_a_value_of_it(tmp_path, text: str, why: str) -> None:
    file = tmp_path / "my.cnf"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(why)) as refused:
        connection.Session(connection.Login(config_file=str(file)))
    assert str(file) in str(refused.value)
    assert "secret" not in str(refused.value) and "65536" not in str(refused.value)


def test_with_nothing_given_the_login_is_root_at_the_local_socket() -> None:
    arguments = connection._arguments(connection.Login())
    assert arguments["user"] == "root"
    assert arguments["unix_socket"].endswith(".sock")
    assert connection._arguments(connection.Login(login_host="127.0.0.1"))["port"] == 3306
