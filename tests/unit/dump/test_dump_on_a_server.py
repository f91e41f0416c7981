# SPDX-License-Identifier: GPL-3.0-or-later
"""Dumps taken from a real server and loaded into another one, both in temporary directories."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from _core.agent import show
from _core.backup import dump as dump_backup
from _core.backup import plan as backup_plan
from _core.backup import run as backup
from _core.backup.point import Point
from _core.dump import accounts, client, stream, take, views
from _core.dump import plan as planning
from _core.host.errors import NotNowError, StillpointError, UsageError
from _core.host.processes import Owner
from _core.host.reporter import Silent
from _core.job import reader
from _core.job.names import host_name
from _core.job.options import Job, Keep
from _core.mysql import account
from _core.mysql.account import Account
from _core.mysql.connection import ServerError, Session
from _core.mysql.privileges import Extras
from _core.observe import metrics
from _core.repository.generation import Generation
from _core.repository.job_directory import JobDirectory
from _core.repository.partial import Partial
from _core.restore.dump import execute
from _core.restore.dump import plan as load
from real_server import RULED, USER, RealServer, needed, real_server

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "load"))

from awkward import DATABASES, quoted, sql  # noqa: E402

pytest.importorskip("pymysql")
pytestmark = [
    *needed,
    pytest.mark.skipif(not shutil.which("zstd"), reason="needs zstd"),
]

LARGE = 64  # MiB: as hexadecimal, twice that; what servers accept by default is 16


@pytest.fixture(scope="module")
def source() -> Iterator[RealServer]:
    """A server with everything that a dump may lose."""
    with real_server() as server:
        server.do("SET GLOBAL max_allowed_packet = 1 << 30")
        give(server, sql(LARGE))
        yield server


@pytest.fixture(scope="module")
def other() -> Iterator[RealServer]:
    """A server to load into."""
    with real_server() as server:
        yield server


@pytest.fixture
def shop(source: RealServer) -> Iterator[RealServer]:
    """The server, with a small database besides: the one that most tests dump."""
    source.do(
        "CREATE DATABASE shop",
        "CREATE TABLE shop.a_item (id INT PRIMARY KEY, v INT) ENGINE=InnoDB",
        "CREATE TABLE shop.b_log (id INT PRIMARY KEY) ENGINE=MyISAM",
        "CREATE TABLE shop.c_last (id INT PRIMARY KEY) ENGINE=InnoDB",
        "INSERT INTO shop.a_item SELECT seq, seq FROM shop.seq_1_to_20000",
        "INSERT INTO shop.b_log VALUES (1)",
        "INSERT INTO shop.c_last SELECT seq FROM shop.seq_1_to_20000",
    )
    try:
        yield source
    finally:
        source.do("DROP DATABASE IF EXISTS shop")


@pytest.fixture
def account_file(source: RealServer, tmp_path: Path) -> Iterator[str]:
    """The option file of the account that the role makes for dumps."""
    wanted = Account(option_file=str(tmp_path / "etc" / "my.cnf"), extras=Extras(dump=True))
    with Session(source.login) as session:
        account.ensure(session, wanted)
        yield wanted.option_file
        session.do("DROP USER stillpoint@localhost")


@pytest.fixture
def make_job(tmp_path: Path, source: RealServer) -> Callable[..., Job]:
    (tmp_path / "backups").mkdir()

    def make(**mysql: Any) -> Job:
        given = {"method": "dump", "login_unix_socket": source.login.login_unix_socket, **mysql}
        return reader.parse({"name": "etrial", "mysql": given, "repository": str(tmp_path / "backups")})

    return make


def give(server: RealServer, statements: str) -> None:
    program = client.loader("mariadb").path
    argv = [program, "--no-defaults", "-S", server.top + "/s", "--binary-mode", "--comments", "--max-allowed-packet=1G"]
    subprocess.run(argv, input=statements.encode(), check=True)


def directory(of: Job) -> JobDirectory:
    return JobDirectory.open(of.repository, host_name(), of.name)


def run(of: Job) -> Generation:
    summary = backup.run(of, Silent())
    return directory(of).find(summary["generation"])


def into(server: RealServer, generation: Generation, **what: Any) -> Dict[str, Any]:
    return execute.execute(prepared(server, generation, **what), Silent())


def prepared(server: RealServer, generation: Generation, **what: Any) -> load.LoadPlan:
    return load.make(generation, server.login, state=os.path.join(server.top, "state"), **what)


def picture(server: RealServer, databases: Any) -> Dict[str, Any]:
    """Return all there is in databases, as the server shows it."""
    shown: Dict[str, Any] = {}
    with Session(server.login) as session:
        session.do("SET NAMES utf8mb4", "SET SESSION time_zone = '+00:00'", "SET SESSION sql_mode = ''")

        def facts(statement: str, *arguments: str) -> List[List[str]]:
            return [[repr(value) for value in row.values()] for row in session.rows(statement, arguments)]

        for database in databases:
            name = quoted(database)
            shown[database] = facts("SHOW CREATE DATABASE %s" % name)
            for row in session.rows("SHOW FULL TABLES FROM %s" % name):
                table, kind = row.values()
                path = "%s.%s" % (name, quoted(table))
                shown[database, table] = facts("SHOW CREATE %s %s" % ("VIEW" if kind == "VIEW" else "TABLE", path))
                if table != "orphan_view":
                    shown[database, table, "rows"] = sorted(facts("SELECT * FROM %s" % path))
            for what, columns in (
                ("ROUTINES", "ROUTINE_NAME, ROUTINE_DEFINITION, DEFINER, SQL_MODE, DTD_IDENTIFIER"),
                ("TRIGGERS", "TRIGGER_NAME, ACTION_STATEMENT, ACTION_TIMING, EVENT_MANIPULATION, DEFINER, SQL_MODE"),
                ("EVENTS", "EVENT_NAME, EVENT_DEFINITION, STARTS, STATUS, EVENT_COMMENT, INTERVAL_FIELD, DEFINER, SQL_MODE, TIME_ZONE"),
            ):
                column = {"ROUTINES": "ROUTINE_SCHEMA", "TRIGGERS": "TRIGGER_SCHEMA", "EVENTS": "EVENT_SCHEMA"}[what]
                shown[database, what] = facts("SELECT %s FROM information_schema.%s WHERE %s = %%s ORDER BY 1" % (columns, what, column), database)
    return shown


def differences(one: Dict[Any, Any], two: Dict[Any, Any]) -> List[Any]:
    return [key for key in {**one, **two} if one.get(key) != two.get(key)]


@pytest.mark.parametrize("split", [False, True])
def test_a_dump_by_the_account_of_the_role_brings_everything_to_another_server(
    source: RealServer, other: RealServer, account_file: str, make_job: Callable[..., Job], split: bool
) -> None:
    if split:
        source.do("DROP DATABASE IF EXISTS awkward_large")  # it makes no difference, but for the time
    generation = run(make_job(config_file=account_file, split=split))
    give(other, "DROP DATABASE IF EXISTS awkward; CREATE DATABASE awkward; CREATE TABLE awkward.of_before (id INT); CREATE DATABASE IF NOT EXISTS theirs;")
    plan = prepared(other, generation)
    assert "awkward" in plan.replaced
    assert any("replaces the databases" in line for line in plan.lines())
    done = execute.execute(plan, Silent())
    assert done.warnings == []
    assert differences(picture(source, DATABASES), picture(other, DATABASES)) == []
    with Session(other.login) as session:
        assert int(session.value("SELECT @@GLOBAL.max_allowed_packet")) < LARGE << 20
        assert session.rows("SHOW DATABASES LIKE 'theirs'")
        assert bytes(session.value("SELECT b FROM awkward.bytes WHERE id = 1")) == bytes(range(256))
    names = {os.path.relpath(os.path.join(top, name), generation.path) for top, _dirs, files in os.walk(generation.path) for name in files}
    files = ["dump/" + take.file_name(database) for database in DATABASES] if split else ["dump.sql.zst"]
    assert names == {"manifest.json", "users.sql.zst", *files}
    statements = ["SHOW CREATE USER stillpoint@localhost"]
    statements += [] if split else ["SELECT SHA2(b, 256) AS sum, LENGTH(b) AS n FROM awkward_large.large ORDER BY id"]
    with Session(source.login) as one, Session(other.login) as two:
        for statement in statements:
            assert one.rows(statement) == two.rows(statement)
        two.do("DROP USER stillpoint@localhost", "DROP DATABASE IF EXISTS awkward_large")


def test_each_file_of_a_split_dump_is_a_dump_of_its_own(source: RealServer, other: RealServer, make_job: Callable[..., Job]) -> None:
    generation = run(make_job(split=True, databases=["awkward_empty", "awk-ward db"]))
    text = subprocess.run(["zstd", "-dc", os.path.join(generation.path, "dump", "awk-ward db.sql.zst")], stdout=subprocess.PIPE, check=True).stdout
    give(other, "DROP DATABASE IF EXISTS `awk-ward db`")
    give(other, text.decode())
    assert differences(picture(source, ["awk-ward db"]), picture(other, ["awk-ward db"])) == []
    assert not os.path.exists(os.path.join(generation.path, accounts.FILE))


def test_the_recorded_coordinates_are_those_of_the_snapshot_and_nobody_is_locked(shop: RealServer, make_job: Callable[..., Job]) -> None:
    made = planning.make(make_job(databases=["shop"]).mysql, directory(make_job()))  # type: ignore[arg-type]
    assert made.choice.method is None
    with Session(shop.login) as session:
        session.do("SET GLOBAL general_log_file = 'general.log'", "SET GLOBAL general_log = 1")
        try:
            before = session.rows("SHOW MASTER STATUS")[0]
            gtid = session.value("SELECT @@GLOBAL.gtid_binlog_pos")
            generation = run(make_job(databases=["shop"]))
        finally:
            session.do("SET GLOBAL general_log = 0")
    found = generation.summary["coordinates"]
    assert (found["file"], found["position"], found["gtid"]) == (before["File"], before["Position"], gtid)
    log = Path(shop.datadir, "general.log").read_text(encoding="utf-8", errors="replace")
    assert "WITH READ LOCK" not in log
    assert "WITH CONSISTENT SNAPSHOT" in log
    assert "LOCK TABLES `shop`.`b_log` READ" in log
    assert generation.summary["dump"]["locked_tables"] == 1


def test_a_lock_that_is_asked_for_is_held_while_the_dump_begins_and_no_longer(shop: RealServer, make_job: Callable[..., Job]) -> None:
    with begun(make_job(databases=["shop"], lock="ftwrl")) as began:
        assert began.lock.method == "ftwrl"
        assert 0 < began.lock.held_ms < 5000
        assert began.coordinates is not None
        with Session(shop.login) as session:
            session.do("SET SESSION lock_wait_timeout = 1", "INSERT INTO shop.a_item VALUES (0, 0)")


def test_a_statement_that_was_ended_for_a_dump_is_named_in_its_manifest(shop: RealServer, make_job: Callable[..., Job]) -> None:
    of = make_job(databases=["shop"], long_query_action="kill", long_query_threshold=0, long_query_timeout=0)
    with Session(shop.login) as watcher, ThreadPoolExecutor() as pool:
        running = pool.submit(shop.do, "INSERT INTO shop.b_log SELECT 100 + SLEEP(60)")
        while not watcher.rows("SELECT 1 AS n FROM information_schema.PROCESSLIST WHERE INFO LIKE 'INSERT INTO shop.b_log%'"):
            pass
        summary = backup.run(of, Silent())
        with pytest.raises(Exception, match=r"1317|interrupted"):
            running.result()
    (killed,) = summary["lock"]["killed"]
    assert "INSERT INTO shop.b_log" in killed
    assert summary["lock"]["guard_waited_ms"] >= 0


def test_a_dump_stops_the_threads_of_a_replica_where_that_is_asked_for(shop: RealServer, make_job: Callable[..., Job]) -> None:
    def running() -> str:
        with Session(shop.login) as session:
            return str(session.rows("SHOW SLAVE STATUS")[0]["Slave_SQL_Running"])

    class Listening(Silent):
        def note(self, text: str) -> None:
            told.append((text, running()))

    told: List[Tuple[str, str]] = []
    shop.do("CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=1, MASTER_USER='nobody'", "START SLAVE SQL_THREAD")
    try:
        summary = backup.run(make_job(databases=["shop"], stop_replica=True), Listening())
        assert told == [("the replica's SQL thread stands still for the snapshot", "No")]
        assert running() == "Yes"
        assert summary["coordinates"]["replica"][0]["host"] == "127.0.0.1"
    finally:
        shop.do("STOP SLAVE", "RESET SLAVE ALL")


def test_what_there_is_to_say_of_the_files_beside_a_dump_is_in_its_manifest(
    shop: RealServer, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def files(*_asked: Any) -> Iterator[Point]:
        point = Point("run", datetime.now(timezone.utc), [], warnings=["the files lie on 2 volumes"])
        yield point
        point.warnings.append("a snapshot can't be removed")

    of = make_job(databases=["shop"])
    plan = backup_plan.make(of)
    monkeypatch.setattr(dump_backup, "point_in_time", files)
    where = directory(of)
    with where.lock(), Partial(where, "run", stream.ALGORITHM) as partial:
        made = dump_backup.dump_backup(replace(plan, targets=(None,)), Owner("run", "etrial", "boot", 1, 1), partial, Silent())  # type: ignore[arg-type]
    apart, volumes, removed = made.summary(1.0)["warnings"][-3:]
    assert apart.startswith("dump and files are not one point in time")
    assert (volumes, removed) == ("the files lie on 2 volumes", "a snapshot can't be removed")


def test_a_dump_that_does_not_begin_holds_the_lock_no_longer_than_its_limit(
    shop: RealServer, make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "mariadb-dump"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(take, "_BEGIN_UNDER_LOCK", 1.0)
    with pytest.raises(NotNowError, match="did not begin within 1 s"), begun(make_job(databases=["shop"], lock="ftwrl"), str(program)):
        pass
    with Session(shop.login) as session:
        session.do("SET SESSION lock_wait_timeout = 1", "INSERT INTO shop.a_item VALUES (0, 0)", "INSERT INTO shop.b_log VALUES (9)")


class begun:
    """A dump whose snapshot is taken; `read` reads it into a generation, which is published."""

    def __init__(self, of: Job, program: str = "") -> None:
        self._job = of
        self._program = program
        self._stack = ExitStack()

    def __enter__(self) -> Any:
        where = directory(self._job)
        plan = planning.make(self._job.mysql, where)  # type: ignore[arg-type]
        if self._program:
            plan = replace(plan, program=client.Program(self._program, "0"))
        began = self._stack.enter_context(take.begun(plan, plan.login, lambda text: None))

        def read() -> Generation:
            with where.lock(), Partial(where, "run", stream.ALGORITHM) as partial:
                read = take.read(began, partial, Silent(), None, lambda: None)
                known = {"dump": read.as_dict(), "coordinates": read.coordinates.as_dict() if read.coordinates else None}
                return partial.publish(began.time, {"job": "etrial", "time": "2026-11-22T00:00:00.000Z", "server": {"flavour": "mariadb"}, **known})

        began.publish = read
        return began

    def __exit__(self, *exc: Any) -> None:
        self._stack.close()


def test_what_is_committed_after_the_snapshot_is_not_in_the_dump_and_writers_of_other_engines_wait(
    shop: RealServer, other: RealServer, make_job: Callable[..., Job]
) -> None:
    of = make_job(databases=["shop"])
    with begun(of) as began, Session(shop.login) as session:
        session.do("SET SESSION lock_wait_timeout = 1", "INSERT INTO shop.c_last VALUES (0)", "UPDATE shop.a_item SET v = -1")
        began.tables.dumped(("shop", "a_item"))
        with pytest.raises(ServerError, match="1205"):
            session.do("INSERT INTO shop.b_log VALUES (2)")
        generation = began.publish()
        session.do("INSERT INTO shop.b_log VALUES (2)")
    into(other, generation)
    with Session(other.login) as session:
        assert session.rows("SELECT COUNT(*) AS n, SUM(v = -1) AS changed FROM shop.a_item") == [{"n": 20000, "changed": 0}]
        assert session.value("SELECT COUNT(*) FROM shop.c_last") == 20000
        assert session.value("SELECT COUNT(*) FROM shop.b_log") == 1


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("ALTER TABLE shop.c_last ADD COLUMN later INT, ALGORITHM=COPY", "Table definition has changed"),
        ("DROP TABLE shop.c_last", "c_last.*doesn't exist"),
        ("DROP TABLE zoo.z", "the table zoo.z was dropped or renamed while the dump went on"),
        ("RENAME TABLE zoo.z TO zoo.y", "Table definition has changed|zoo.z was dropped or renamed"),
        ("TRUNCATE TABLE shop.c_last", "Table definition has changed"),
    ],
)
def test_a_table_that_is_changed_while_the_dump_goes_on_fails_it(shop: RealServer, make_job: Callable[..., Job], statement: str, sentence: str) -> None:
    shop.do("CREATE OR REPLACE DATABASE zoo", "CREATE TABLE zoo.z (id INT)")
    of = make_job(databases=["shop", "zoo"])
    with begun(of) as began:
        shop.do(statement)
        with pytest.raises(StillpointError, match=sentence):
            began.publish()
    assert directory(of).generations() == []
    assert os.listdir(directory(of).path) == [".lock"]


def test_a_program_that_is_killed_leaves_no_generation(shop: RealServer, make_job: Callable[..., Job]) -> None:
    of = make_job(databases=["shop"])
    with begun(of) as began:
        began.source._process.send_signal(signal.SIGKILL)
        with pytest.raises(StillpointError, match="ended by signal 9|without its closing line"):
            began.publish()
    assert directory(of).generations() == []


def test_a_dump_that_ends_early_as_if_all_were_well_is_not_published(shop: RealServer, make_job: Callable[..., Job], tmp_path: Path) -> None:
    program = tmp_path / "mariadb-dump"
    program.write_text('#!/bin/sh\n"%s" "$@" | head -c 200000\n' % client.dumper("mariadb").path)
    program.chmod(0o755)
    of = make_job(databases=["shop"])
    with begun(of, str(program)) as began, pytest.raises(StillpointError, match="without its closing line"):
        began.publish()
    assert directory(of).generations() == []


def test_a_lost_lock_on_tables_that_are_not_transactional_fails_the_dump(shop: RealServer, make_job: Callable[..., Job]) -> None:
    of = make_job(databases=["shop"])
    with begun(of) as began, Session(shop.login) as session:
        session.do("KILL %d" % began.tables._session.id)
        with pytest.raises(StillpointError, match="kept writers off"):
            began.publish()
    assert directory(of).generations() == []


def test_a_table_that_is_being_written_for_long_is_waited_for_no_longer_than_the_limit(shop: RealServer, make_job: Callable[..., Job]) -> None:
    of = make_job(databases=["shop"], lock_wait_timeout=1)
    with Session(shop.login) as session:
        session.do("LOCK TABLES shop.b_log WRITE")
        with pytest.raises(NotNowError, match="lock_wait_timeout = 1 s"):
            run(of)
    assert directory(of).generations() == []


def test_the_login_is_in_a_private_file_for_as_long_as_the_program_runs(shop: RealServer, account_file: str, make_job: Callable[..., Job]) -> None:
    password = next(line.split("=", 1)[1] for line in Path(account_file).read_text().splitlines() if line.startswith("password="))
    with begun(make_job(databases=["shop"], config_file=account_file)) as began:
        pid = began.source._process.pid
        words = Path("/proc/%d/cmdline" % pid).read_text().split("\0")
        options = next(word.split("=", 1)[1] for word in words if word.startswith("--defaults-file="))
        assert password in Path(options).read_text()
        assert stat.S_IMODE(os.stat(options).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(os.path.dirname(options)).st_mode) == 0o700
        assert password not in "".join(words) + Path("/proc/%d/environ" % pid).read_text()
    assert not os.path.exists(os.path.dirname(options))


@pytest.mark.parametrize("password", ["plain", "a b", "#;=[", '\'"\\"', "ü\t$(x)`", "\\n\\s\\\\"])
def test_any_password_reaches_the_program(source: RealServer, password: str) -> None:
    with Session(source.login) as session:
        session.rows("CREATE USER weird@localhost IDENTIFIED BY %s", (password,))
        try:
            with client.option_file(replace(source.login, login_user="weird", login_password=password)) as options:
                argv = [client.loader("mariadb").path, "--defaults-file=" + options, "-BNe", "SELECT CURRENT_USER()"]
                assert subprocess.run(argv, stdout=subprocess.PIPE, check=True).stdout == b"weird@localhost\n"
        finally:
            session.do("DROP USER weird@localhost")


def test_a_missing_privilege_is_named_with_the_grant_before_anything_starts(shop: RealServer, account_file: str, make_job: Callable[..., Job]) -> None:
    shop.do("REVOKE SHOW VIEW ON *.* FROM stillpoint@localhost")
    with pytest.raises(StillpointError, match=r"lacks privileges for a dump.*GRANT SHOW VIEW ON \*\.\*"):
        run(make_job(config_file=account_file))


@pytest.mark.parametrize("split", [False, True])
def test_an_invalid_view_is_dumped_as_text_and_keeps_nothing_else_from_being_dumped(
    shop: RealServer, other: RealServer, make_job: Callable[..., Job], split: bool
) -> None:
    shop.do(
        "CREATE DATABASE IF NOT EXISTS zoo",
        "CREATE OR REPLACE TABLE zoo.z (id INT)",
        "CREATE TABLE shop.of_before (id INT)",
        "CREATE VIEW shop.`left over` AS SELECT id, 'a;b' AS `s;` FROM shop.of_before",
        "CREATE VIEW shop.a_of_it AS SELECT id FROM shop.`left over`",
        "CREATE VIEW shop.whole AS SELECT id FROM shop.c_last",
        "DROP TABLE shop.of_before",
    )
    of = make_job(databases=["shop", "zoo"], split=split)
    try:
        generation = run(of)
        warned = [warning for warning in generation.summary["warnings"] if "is invalid" in warning]
        assert len(warned) == 2 and "the view shop.left over is invalid" in "".join(warned)
        listed = show.listed("etrial", "h", generation, datetime.now(timezone.utc))
        assert (listed["state"], sorted(listed["left_out"])) == ("unproven", ["shop.a_of_it", "shop.left over"])
        assert "unproven, without 2 views" in show.generations([listed], datetime.now(timezone.utc))
        assert ("backup_left_out", {"backup_job": "etrial"}, 2) in metrics.backups("etrial", [generation])
        done = into(other, generation)
        assert len(done.warnings) == 2 and "the view shop.left over was invalid when the dump was taken" in "".join(done.warnings)
        other.do("SELECT * FROM shop.whole", "SELECT * FROM zoo.z")
        other.do("CREATE TABLE zoo.of_before (id INT)", "CREATE TABLE shop.of_before LIKE zoo.of_before")
        plan = prepared(other, generation, database="shop")
        with Session(other.login) as session:
            session.do("SET NAMES utf8mb4")
            assert views.make(session, plan.invalid) == []
        statement = "SELECT TABLE_NAME, VIEW_DEFINITION, DEFINER, COLLATION_CONNECTION FROM information_schema.VIEWS WHERE TABLE_SCHEMA = 'shop' ORDER BY 1"
        with Session(shop.login) as one, Session(other.login) as two:
            assert one.rows(statement) == two.rows(statement)
    finally:
        shop.do("DROP DATABASE zoo")
        other.do("DROP DATABASE IF EXISTS zoo", "DROP DATABASE IF EXISTS shop")


def test_a_directory_that_is_no_database_is_left_out_with_a_warning(shop: RealServer, other: RealServer, make_job: Callable[..., Job]) -> None:
    found = [os.path.join(shop.datadir, name) for name in ("shop.bak", "mysql-files", ".ssh", "lost+found")]
    for path in found:
        os.mkdir(path, 0o700)
        if not path.endswith("lost+found"):  # the root of an ext4 file system has one of root's
            shutil.chown(path, USER)
    try:
        with pytest.raises(UsageError, match="mysql.databases has #mysql50#shop.bak, which is no database, but a directory among the server's"):
            run(make_job(databases=["shop", "#mysql50#shop.bak"]))
        generation = run(make_job())
        assert not [name for name in generation.summary["dump"]["databases"] if "#" in name]
        assert any("left out what is no database" in each and "shop.bak" in each and "lost+found" in each for each in generation.summary["warnings"])
        into(shop, generation, database="shop")
        assert all(os.path.isdir(path) for path in found)
    finally:
        for path in found:
            os.rmdir(path)


@pytest.mark.parametrize(("database", "sentence"), [("shop2", "does not exist on the server"), ("mysql", "is the server's own")])
def test_a_database_that_can_not_be_dumped_is_refused_by_name(source: RealServer, make_job: Callable[..., Job], database: str, sentence: str) -> None:
    with pytest.raises(UsageError, match="mysql.databases has %s, which %s" % (database, sentence)):
        run(make_job(databases=[database]))


def test_one_table_of_awkward_name_comes_back_and_nothing_else_changes(source: RealServer, other: RealServer, make_job: Callable[..., Job]) -> None:
    generation = run(make_job(databases=list(DATABASES[1:2]) + ["awkward"]))
    into(other, generation)
    other.do("DROP TABLE `awk-ward db`.`back``tick`", "DELETE FROM `awk-ward db`.plain", "UPDATE awkward.counted SET v = 99")
    plan = prepared(other, generation, table="awk-ward db.back`tick")
    assert plan.lines()[1] == "  creates the table awk-ward db.back`tick"
    execute.execute(plan, Silent())
    into(other, generation, table="`awkward`.`z;\n-- view`")
    with Session(other.login) as session:
        assert session.value("SELECT COUNT(*) FROM `awk-ward db`.`back``tick`") == 1
        assert session.value("SELECT COUNT(*) FROM `awk-ward db`.plain") == 0
        assert session.value("SELECT MIN(v) FROM awkward.counted") == 99
    into(other, generation, table="awkward.counted")
    assert differences(picture(source, ["awkward"]), picture(other, ["awkward"])) == []


def test_one_database_comes_back_and_the_others_stay(source: RealServer, other: RealServer, make_job: Callable[..., Job]) -> None:
    generation = run(make_job(databases=["awkward", "awk-ward db"]))
    into(other, generation)
    other.do("DROP TABLE awkward.bytes", "CREATE TABLE awkward.of_after (id INT)", "DELETE FROM `awk-ward db`.plain")
    into(other, generation, database="awkward")
    assert differences(picture(source, ["awkward"]), picture(other, ["awkward"])) == []
    with Session(other.login) as session:
        assert session.value("SELECT COUNT(*) FROM `awk-ward db`.plain") == 0


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ({"database": "nothing"}, "holds no database nothing; it holds shop"),
        ({"table": "shop.nothing"}, "holds no table shop.nothing"),
        ({"table": "a_item"}, "holds no table"),
    ],
)
def test_what_the_dump_does_not_hold_is_refused(shop: RealServer, other: RealServer, make_job: Callable[..., Job], what: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        into(other, run(make_job(databases=["shop"])), **what)


def test_accounts_come_back_with_their_password_and_rights_and_those_that_are_there_stay(
    source: RealServer, other: RealServer, make_job: Callable[..., Job]
) -> None:
    people = ["clerk@localhost", "`o'dd;\n-- name`@`%`", "`both`@localhost"]
    source.do(
        "CREATE ROLE IF NOT EXISTS reader",
        "GRANT SELECT ON awkward_empty.* TO reader",
        "GRANT SHOW VIEW ON awkward_empty.* TO PUBLIC",
        *("CREATE USER %s IDENTIFIED BY 'of the source'" % name for name in people),
        *("GRANT INSERT ON awkward.* TO %s" % name for name in people),
        "GRANT UPDATE (v) ON awkward.counted TO clerk@localhost",
        "GRANT EXECUTE ON PROCEDURE awkward.orphan TO clerk@localhost",
        "GRANT reader TO clerk@localhost",
        "SET DEFAULT ROLE reader FOR clerk@localhost",
    )
    other.do("CREATE USER `both`@localhost IDENTIFIED BY 'of the other'")
    try:
        plan = prepared(other, run(make_job()))
        assert "'clerk'@'localhost'" in plan.made
        assert "'both'@'localhost'" in plan.kept
        assert execute.execute(plan, Silent()).warnings == []
        with Session(source.login) as one, Session(other.login) as two:
            for name in people[:2]:
                assert one.rows("SHOW GRANTS FOR %s" % name) == two.rows("SHOW GRANTS FOR %s" % name)
                assert one.rows("SHOW CREATE USER %s" % name) == two.rows("SHOW CREATE USER %s" % name)
            assert one.rows("SHOW GRANTS FOR PUBLIC") == two.rows("SHOW GRANTS FOR PUBLIC") != []
            assert len(two.rows("SHOW GRANTS FOR `both`@localhost")) == 1
            assert two.rows("SHOW CREATE USER `both`@localhost") != one.rows("SHOW CREATE USER `both`@localhost")
        with Session(replace(other.login, login_user="clerk", login_password="of the source")) as session:
            assert session.value("SELECT CURRENT_ROLE()") == "reader"
    finally:
        source.do(*("DROP USER %s" % name for name in people), "DROP ROLE reader", "REVOKE ALL ON awkward_empty.* FROM PUBLIC")
        other.do("REVOKE ALL ON awkward_empty.* FROM PUBLIC", *("DROP USER IF EXISTS %s" % name for name in people), "DROP ROLE IF EXISTS reader")


def test_a_damaged_dump_is_refused_and_the_server_is_not_touched(shop: RealServer, other: RealServer, make_job: Callable[..., Job]) -> None:
    generation = run(make_job(databases=["shop"]))
    other.do("CREATE DATABASE IF NOT EXISTS shop", "CREATE TABLE IF NOT EXISTS shop.of_today (id INT)")
    flip(os.path.join(generation.path, "dump.sql.zst"))
    with pytest.raises(StillpointError, match="damaged.*the server was not touched"):
        into(other, generation)
    with Session(other.login) as session:
        assert session.rows("SHOW TABLES FROM shop LIKE 'of_today'")
    assert Generation(generation.path).state == "bad"


def flip(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(1000)
        byte = file.read(1)
        file.seek(1000)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("how", [{}, {"database": "ruled"}, {"table": "ruled.wide"}], ids=["all", "database", "table"])
def test_what_the_server_once_accepted_it_accepts_again(source: RealServer, other: RealServer, make_job: Callable[..., Job], how: Any) -> None:
    source.do(*RULED)
    try:
        generation = run(make_job(databases=["ruled"]))
        other.do("SET GLOBAL innodb_strict_mode = ON", "SET GLOBAL enforce_storage_engine = InnoDB", "SET GLOBAL tx_read_only = ON")
        into(other, generation, **how)
        only = ["wide"] if "table" in how else ["wide", "low", "isam"]
        found, wanted = picture(other, ["ruled"]), picture(source, ["ruled"])
        assert all(found["ruled", each] == wanted["ruled", each] and found["ruled", each, "rows"] == wanted["ruled", each, "rows"] for each in only)
    finally:
        for server in (source, other):
            server.do("SET GLOBAL tx_read_only = OFF", "SET GLOBAL enforce_storage_engine = NULL")
            server.do("DROP DATABASE IF EXISTS ruled")


def test_a_dump_is_listed_and_kept_like_every_generation(shop: RealServer, make_job: Callable[..., Job]) -> None:
    of = make_job(databases=["shop"])
    first = run(of)
    plan = planning.make(of.mysql, directory(of))  # type: ignore[arg-type]
    assert plan.bytes_sql == first.summary["dump"]["sql_bytes"]
    assert first.state == "unproven"
    assert first.size_bytes == os.path.getsize(os.path.join(first.path, "dump.sql.zst"))
    second = run(of._replace(keep=Keep(last=1)))
    assert [each.name for each in directory(of).generations()] == [second.name]


def test_old_rows_of_versioned_tables_and_sequences_come_back(shop: RealServer, other: RealServer, make_job: Callable[..., Job]) -> None:
    shop.do(
        "CREATE TABLE shop.versioned (id INT PRIMARY KEY, v INT) WITH SYSTEM VERSIONING",
        "INSERT INTO shop.versioned VALUES (1, 1)",
        "UPDATE shop.versioned SET v = 2",
        "DELETE FROM shop.versioned",
        "CREATE SEQUENCE shop.numbers START WITH 5 INCREMENT BY 3 NOCACHE",
        "DO NEXTVAL(shop.numbers)",
    )
    into(other, run(make_job(databases=["shop"])))
    with Session(shop.login) as one, Session(other.login) as two:
        for statement in ("SELECT *, row_start, row_end FROM shop.versioned FOR SYSTEM_TIME ALL ORDER BY 3", "SELECT NEXTVAL(shop.numbers)"):
            assert one.rows(statement) == two.rows(statement)
        assert len(two.rows("SELECT 1 FROM shop.versioned FOR SYSTEM_TIME ALL")) == 2


def test_a_table_that_keeps_old_rows_by_transaction_is_dumped_as_it_is_now_and_said(
    shop: RealServer, other: RealServer, make_job: Callable[..., Job]
) -> None:
    shop.do(
        "CREATE TABLE shop.by_time (id INT PRIMARY KEY) WITH SYSTEM VERSIONING",
        "CREATE TABLE shop.precise (id INT PRIMARY KEY, a BIGINT UNSIGNED GENERATED ALWAYS AS ROW START, b BIGINT UNSIGNED GENERATED ALWAYS AS ROW END,"
        " PERIOD FOR SYSTEM_TIME (a, b)) ENGINE=InnoDB WITH SYSTEM VERSIONING",
        "INSERT INTO shop.precise (id) VALUES (1)",
        "UPDATE shop.precise SET id = 2",
    )
    generation = run(make_job(databases=["shop"]))
    (warning,) = [each for each in generation.summary["warnings"] if "old rows" in each]
    assert warning == (
        "shop.precise keeps its old rows by transaction, which mariadb-dump can't dump: no old rows of any table are dumped (2 system-versioned); "
        "method: snapshot copies them"
    )
    into(other, generation)
    with Session(other.login) as session:
        assert [row["id"] for row in session.rows("SELECT id FROM shop.precise")] == [2]


def test_a_function_that_the_server_would_not_take_is_refused_by_the_plan(shop: RealServer, make_job: Callable[..., Job]) -> None:
    shop.do("SET GLOBAL log_bin_trust_function_creators = ON", "CREATE FUNCTION shop.f(i INT) RETURNS INT RETURN i")
    generation = run(make_job(databases=["shop"]))
    prepared(shop, generation)
    shop.do("SET GLOBAL log_bin_trust_function_creators = OFF")
    with pytest.raises(StillpointError, match=r"no function that does not say what it reads, as shop\.f: SET GLOBAL log_bin_trust_function_creators = ON"):
        prepared(shop, generation)
    prepared(shop, generation, table="shop.a_item")


def test_tables_that_are_dumped_without_their_rows_are_warned_of(shop: RealServer, make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_DEFINED_ONLY", ("MYISAM",))  # for CONNECT, whose plugin is not here
    of = make_job(databases=["shop"])
    assert of.mysql is not None
    (warning,) = [each for each in planning.make(of.mysql, directory(of)).warnings(files=False) if "no rows" in each]
    assert warning.startswith("the dump has the definition of shop.b_log (MyISAM) and no rows: mariadb-dump leaves them out")
