# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads of a dump into a real server that holds something: however one ends, what was there is there or comes back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from _core.backup import run as backup
from _core.dump import client
from _core.host.errors import StillpointError
from _core.host.machine import Machine
from _core.host.reporter import Silent
from _core.job import reader
from _core.job.names import host_name
from _core.mysql.connection import Session
from _core.repository import identity
from _core.repository.generation import Generation
from _core.repository.job_directory import JobDirectory
from _core.restore import undo
from _core.restore.dump import beside, execute, feed, swap
from _core.restore.dump import plan as load
from _core.restore.result import RestoreResult
from real_server import USER, RealServer, needed, real_server
from trees import Quiet

pytest.importorskip("pymysql")
pytestmark = [*needed, pytest.mark.skipif(not shutil.which("zstd"), reason="needs zstd")]

DUMPED = """
CREATE DATABASE shop CHARACTER SET latin1;
CREATE DATABASE stock CHARACTER SET utf8mb4;
USE shop;
CREATE SEQUENCE numbers;
CREATE TABLE parent (id INT PRIMARY KEY, v INT) ENGINE=InnoDB;
CREATE TABLE child (id INT, CONSTRAINT mine FOREIGN KEY (id) REFERENCES parent (id)) ENGINE=InnoDB;
CREATE TABLE numbered (id BIGINT DEFAULT NEXTVAL(numbers), v INT) ENGINE=InnoDB;
CREATE TABLE isam (i INT, s TEXT) ENGINE=MyISAM;
CREATE TABLE merged (i INT, s TEXT) ENGINE=MERGE UNION=(isam);
CREATE TABLE log (t INT) ENGINE=InnoDB;
CREATE TABLE stock.item (id INT PRIMARY KEY, p INT, CONSTRAINT across FOREIGN KEY (p) REFERENCES shop.parent (id)) ENGINE=InnoDB;
CREATE TRIGGER noted AFTER INSERT ON child FOR EACH ROW INSERT INTO log VALUES (NEW.id);
"""
REST = """
CREATE OR REPLACE VIEW shop.z_view AS SELECT id FROM shop.parent;
CREATE OR REPLACE VIEW shop.a_view AS SELECT v.id FROM shop.z_view v;
CREATE PROCEDURE shop.counted() SELECT COUNT(*) FROM shop.parent;
CREATE EVENT shop.later ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01 00:00:00' DO SELECT 1;
INSERT INTO shop.parent VALUES (1, 10), (2, 20);
INSERT INTO shop.child VALUES (1);
INSERT INTO shop.numbered (v) VALUES (7);
INSERT INTO shop.isam VALUES (1, 'a'), (2, REPEAT('b', 3000));
INSERT INTO stock.item VALUES (1, 2);
"""
# What has become of it since, and a database that is not in the dump.
SINCE = """
USE shop;
UPDATE parent SET v = 99;
INSERT INTO parent VALUES (3, 30);
INSERT INTO isam VALUES (3, 'since');
CREATE TABLE of_since (i INT PRIMARY KEY) ENGINE=InnoDB;
INSERT INTO of_since VALUES (1);
CREATE TRIGGER of_since BEFORE INSERT ON of_since FOR EACH ROW SET NEW.i = NEW.i + 1;
CREATE OR REPLACE VIEW z_view AS SELECT id, v FROM parent;
DROP PROCEDURE counted;
CREATE PROCEDURE counted() SELECT 'since';
CREATE FUNCTION of_since() RETURNS INT DETERMINISTIC RETURN 1;
CREATE USER IF NOT EXISTS clerk@localhost;
GRANT EXECUTE ON PROCEDURE shop.counted TO clerk@localhost;
GRANT SELECT ON shop.parent TO clerk@localhost;
CREATE DATABASE books;
CREATE TABLE books.entry (p INT, CONSTRAINT outside FOREIGN KEY (p) REFERENCES shop.parent (id)) ENGINE=InnoDB;
INSERT INTO books.entry VALUES (1);
"""
DATABASES = ("shop", "stock", "books")


class Place:
    """A server with a dump of its databases, and what they have become since."""

    def __init__(self, server: RealServer, top: Path) -> None:
        self.server = server
        self.state = str(top / "state")
        self.backups = str(top / "backups")
        os.makedirs(self.backups)
        give(self.server, DUMPED + REST)
        self.generation = self.dump("etrial")
        self.then = self.picture()
        self.since()
        self.now = self.picture()
        self.grants = self.rows("SHOW GRANTS FOR clerk@localhost")

    def dump(self, name: str) -> Generation:
        given = {"method": "dump", "login_unix_socket": self.server.login.login_unix_socket}
        of = reader.parse({"name": name, "mysql": given, "repository": self.backups})
        summary = backup.run(of, Silent())
        return JobDirectory.open(of.repository, host_name(), of.name).find(summary["generation"])

    def since(self) -> None:
        give(self.server, SINCE)

    def renew(self) -> None:
        """Have everything as it is now, for the next test."""
        give(self.server, "SET foreign_key_checks = 0;" + "".join("DROP DATABASE IF EXISTS %s;" % name for name in (*DATABASES, *self.besides())))
        give(self.server, DUMPED + REST + SINCE)
        beside.forget(self.state)

    def plan(self, **what: Any) -> load.LoadPlan:
        return load.make(self.generation, self.server.login, state=self.state, **what)

    def restore(self, **what: Any) -> RestoreResult:
        return execute.execute(self.plan(**what), Silent())

    def rows(self, statement: str) -> List[Tuple[Any, ...]]:
        with Session(self.server.login) as session:
            session.do("SET NAMES utf8mb4")
            return [tuple(row.values()) for row in session.rows(statement)]

    def besides(self) -> List[str]:
        return [name for (name,) in self.rows("SHOW DATABASES") if name.startswith("stillpoint_")]

    def picture(self) -> Dict[Any, Any]:
        """Return all there is in the databases."""
        found: Dict[Any, Any] = {}
        for database in [name for (name,) in self.rows("SHOW DATABASES") if name in DATABASES or name.startswith("stillpoint_")]:
            found[database] = self.rows("SHOW CREATE DATABASE %s" % database)
            for name, kind in self.rows("SHOW FULL TABLES FROM %s" % database):
                path = "%s.%s" % (database, name)
                found[path] = self.rows("SHOW CREATE %s %s" % ("VIEW" if kind == "VIEW" else "TABLE", path))
                found[path, "rows"] = sorted(self.rows("SELECT * FROM %s" % path)) if kind != "SEQUENCE" else self.rows("SELECT start_value FROM %s" % path)
            for what, column in (("ROUTINES", "ROUTINE"), ("TRIGGERS", "TRIGGER"), ("EVENTS", "EVENT")):
                body = {"ROUTINES": "ROUTINE_DEFINITION", "TRIGGERS": "ACTION_STATEMENT", "EVENTS": "EVENT_DEFINITION"}[what]
                statement = "SELECT %s_NAME, %s, DEFINER, SQL_MODE FROM information_schema.%s WHERE %s_SCHEMA = '%s' ORDER BY 1"
                found[database, what] = self.rows(statement % (column, body, what, column, database))
        return found

    def killed(self, prepare: Callable[[], None]) -> None:
        """Restore in a process that is killed."""
        made = self.plan()
        child = os.fork()
        if child == 0:
            try:
                prepare()
                execute.execute(made, Silent())
            except BaseException:
                traceback.print_exc()
            os._exit(1)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status), "it was not killed"

    def undo(self) -> None:
        """Undo the load as the command does, and see that it warned of nothing."""
        plan = undo.plan("etrial", state=self.state)
        deadline = time.monotonic() + 60
        while len(self.rows("SELECT ID FROM information_schema.PROCESSLIST WHERE USER = 'root'")) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)  # what the dead client's session was doing
        reporter = Quiet()
        done = plan.execute(reporter)
        assert (done.job, sorted(done.undone), reporter.warnings) == ("etrial", ["shop", "stock"], [])

    def assert_as_it_was(self) -> None:
        assert different(self.picture(), self.now) == []
        assert self.rows("SHOW GRANTS FOR clerk@localhost") == self.grants
        assert [name for name in os.listdir(self.state) if name != ".lock"] == []
        with pytest.raises(StillpointError, match="foreign key constraint fails"):
            self.server.do("INSERT INTO books.entry VALUES (77)")


def different(one: Dict[Any, Any], two: Dict[Any, Any]) -> List[Any]:
    return [(key, one.get(key), two.get(key)) for key in {**one, **two} if one.get(key) != two.get(key)]


def give(server: RealServer, statements: str) -> None:
    argv = [client.loader("mariadb").path, "--no-defaults", "-S", server.top + "/s", "--binary-mode"]
    subprocess.run(argv, input=statements.encode(), check=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with real_server() as server:
        yield Place(server, tmp_path_factory.mktemp("place"))


@pytest.fixture
def place(made: Place) -> Iterator[Place]:
    try:
        yield made
    finally:
        if made.server.process is None or made.server.process.poll() is not None:
            made.server.start()
        if different(made.picture(), made.now):
            made.renew()


def test_events_of_another_hosts_dump_do_not_run_unless_asked_to(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    give(place.server, "ALTER EVENT shop.later ON SCHEDULE EVERY 1 DAY COMMENT 'ON COMPLETION PRESERVE ENABLE'")
    status = "SELECT STATUS FROM information_schema.EVENTS WHERE EVENT_NAME = 'later'"
    monkeypatch.setattr(identity, "this_machine", lambda: Machine("another", "machine"))
    made = place.plan()
    assert any("events do not run on this host" in line for line in made.lines())
    assert execute.execute(made, Silent()).warnings == [
        "the events shop.later are another host's and are disabled here: ALTER EVENT NAME ENABLE lets one run"
    ]
    assert place.rows(status) == [("DISABLED",)]
    assert place.restore(resume=True).warnings == []
    assert place.rows(status) == [("ENABLED",)]


def test_a_load_that_ends_well_leaves_what_the_dump_holds_and_nothing_else(place: Place) -> None:
    assert any("until then they stay as they are" in line for line in place.plan().lines())
    assert place.restore().warnings == []
    found = place.picture()
    assert different({key: value for key, value in found.items() if "books" not in str(key)}, place.then) == []
    assert place.rows("SHOW GRANTS FOR clerk@localhost") == place.grants
    assert [name for name in os.listdir(place.state) if name != ".lock"] == []
    assert "REFERENCES `shop`.`parent`" in str(place.rows("SHOW CREATE TABLE books.entry"))
    with pytest.raises(StillpointError, match="foreign key constraint fails"):
        place.server.do("INSERT INTO books.entry VALUES (77)")
    place.server.do("INSERT INTO books.entry VALUES (2)", "INSERT INTO shop.child VALUES (2)")
    assert place.rows("SELECT t FROM shop.log ORDER BY t") == [(1,), (2,)]


def test_one_database_and_one_table_take_their_places_without_the_others(place: Place) -> None:
    place.restore(database="shop")
    found = place.picture()
    assert {key: value for key, value in found.items() if str(key).count("shop")} == {
        key: value for key, value in place.then.items() if str(key).count("shop")
    }
    assert found["stock.item"] == place.now["stock.item"]
    place.renew()
    place.restore(table="shop.parent")
    found = place.picture()
    assert found["shop.parent", "rows"] == place.then["shop.parent", "rows"]
    assert [each for each in different(found, place.now) if each[0] != ("shop.parent", "rows") and each[0] != ("shop.a_view", "rows")] in (
        [],
        [(("shop.z_view", "rows"), [(1, 10), (2, 20)], [(1, 99), (2, 99), (3, 30)])],
    )
    place.restore(table="shop.child")
    place.restore(table="shop.z_view")
    found = place.picture()
    assert found["shop.child"] == place.then["shop.child"]
    assert found["shop.z_view"] == place.then["shop.z_view"]
    assert found["shop", "TRIGGERS"] == place.now["shop", "TRIGGERS"]


@pytest.mark.parametrize(
    ("before", "sentence"),
    [
        (b"CREATE TABLE `child`", "what was there before was not touched"),
        (b"INSERT INTO `isam`", "what was there before was not touched"),
        (b"TRIGGER noted", "what was there before is back"),
        (b"CREATE DEFINER=`root`@`localhost` PROCEDURE", "what was there before is back"),
        (b"/*!50001 VIEW `a_view`", "what was there before is back"),
    ],
    ids=["table", "rows", "trigger", "routine", "view"],
)
def test_a_statement_that_fails_leaves_what_was_there(place: Place, monkeypatch: pytest.MonkeyPatch, before: bytes, sentence: str) -> None:
    real = feed._send

    def bad(target: Any, section: Any, piece: bytes, *more: Any) -> None:
        real(target, section, piece.replace(before, b"no_such_word " + before, 1), *more)

    monkeypatch.setattr(feed, "_send", bad)
    with pytest.raises(StillpointError, match="the server refused a statement of the dump: .* at .*; " + sentence):
        place.restore()
    place.assert_as_it_was()


def test_the_sentence_about_a_statement_holds_the_error_and_no_rows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = feed._send

    def bad(target: Any, section: Any, piece: bytes, *more: Any) -> None:
        if piece.startswith(b"(1,'a')"):
            piece = b"(1,'a'),(2,'%s'" % (b"secret " * 20000) + b");\n"
            piece = piece.replace(b"(1,'a')", b"(1,'a',3)")
        real(target, section, piece, *more)

    monkeypatch.setattr(feed, "_send", bad)
    with pytest.raises(StillpointError) as failed:
        place.restore()
    assert "Column count doesn't match value count at row 1 (error 1136), at shop.isam" in str(failed.value)
    assert "secret" not in str(failed.value)
    place.assert_as_it_was()


def test_a_load_that_is_killed_while_rows_arrive_has_touched_nothing(place: Place) -> None:
    def prepare() -> None:
        feed.Client.finish = lambda *_args: (_flushed(*_args), os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[assignment,method-assign,return-value]

    def _flushed(target: Any, *_more: Any) -> None:
        target._process.stdin.flush()
        time.sleep(1.0)

    place.killed(prepare)
    assert {key: value for key, value in place.picture().items() if "stillpoint" not in str(key)} == place.now
    assert place.besides() == ["stillpoint_new_shop", "stillpoint_new_stock"]
    place.undo()
    place.assert_as_it_was()


# Places of a swap, by what is said to the server next; each is the first statement that begins so.
STEPS = (
    "DROP TRIGGER",
    "RENAME TABLE `shop`.",
    "DROP DATABASE IF EXISTS `shop`",
    "CREATE DATABASE /*!32312 IF NOT EXISTS*/ `shop`",
    "DROP DATABASE IF EXISTS `stock`",
    "RENAME TABLE `stillpoint_new_shop`.",
    "ALTER TABLE `books`.`entry` DROP",
    "ALTER TABLE `books`.`entry` ADD",
    "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS",
)


def kill_at(step: str, process: Callable[[], int] = os.getpid) -> Callable[[], None]:
    def prepare() -> None:
        real = Session.rows

        def rows(self: Any, statement: str, arguments: Any = ()) -> Any:
            if statement.startswith(step):
                os.kill(process(), signal.SIGKILL)
            return real(self, statement, arguments)

        Session.rows = rows  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_while_tables_take_their_places_is_undone_by_one_command(place: Place, step: str) -> None:
    place.killed(kill_at(step))
    with pytest.raises(StillpointError, match="`stillpoint undo etrial` puts back the old"):
        beside.refuse_half_done(place.state)
    place.undo()
    place.assert_as_it_was()


def test_a_kill_of_an_undo_is_finished_by_the_same_command(place: Place) -> None:
    place.killed(kill_at("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS"))
    for step in ("DROP DATABASE IF EXISTS `shop`", "RENAME TABLE `stillpoint_old_shop`", "RENAME TABLE `stillpoint_old_stock`"):
        child = os.fork()
        if child == 0:
            try:
                kill_at(step)()
                place.undo()
            finally:
                os._exit(1)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), step
    place.undo()
    found = place.picture()
    assert different(found, place.now) == []


def test_a_restore_after_one_that_was_killed_goes_through(place: Place) -> None:
    place.killed(kill_at("RENAME TABLE `stillpoint_new_shop`."))
    place.restore()
    assert different({key: value for key, value in place.picture().items() if "books" not in str(key)}, place.then) == []


@pytest.mark.parametrize("step", ["RENAME TABLE `shop`.", "RENAME TABLE `stillpoint_new_shop`."])
def test_a_server_that_crashes_leaves_what_one_command_puts_back(place: Place, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    real = Session.rows

    def rows(self: Any, statement: str, arguments: Any = ()) -> Any:
        if statement.startswith(step):
            place.server.stop(crash=True)
        return real(self, statement, arguments)

    made = place.plan()
    with monkeypatch.context() as patched:
        patched.setattr(Session, "rows", rows)
        with pytest.raises(StillpointError, match="`stillpoint undo etrial` puts back what was there before"):
            execute.execute(made, Silent())
    place.server.start()
    place.undo()
    place.assert_as_it_was()


@pytest.mark.parametrize("table", ["child", "isam"])
def test_a_transaction_that_does_not_end_is_waited_for_and_then_nothing_has_changed(place: Place, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    for name, value in (("_LOCK_WAIT", 1), ("_PAUSE", 0.1), ("_TRIES", 2)):
        monkeypatch.setattr(swap, name, value)
    with Session(place.server.login) as user:
        user.do("BEGIN", "SELECT * FROM shop.%s" % table)
        with pytest.raises(StillpointError, match="in use by somebody's transaction or lock, .* and restore again; what was there before is back"):
            place.restore()
    place.assert_as_it_was()


def test_a_disk_that_fills_up_ends_a_load_before_it_is_full(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs
    free = [1 << 30]

    def statvfs(path: Any) -> os.statvfs_result:
        found = real(path)
        blocks = free[0] // found.f_frsize
        return os.statvfs_result((found[0], found[1], 1 << 24, blocks, blocks, *found[5:]))

    def rows(self: Any, *arguments: Any) -> None:
        free[0] = 1 << 20
        arguments[0]()

    made = place.plan()
    monkeypatch.setattr(os, "statvfs", statvfs)
    monkeypatch.setattr(feed.Client, "finish", rows)
    said = "the restore takes more room than there is: only 1.0 MiB are left on the file system of .*; what was there before was not touched"
    with pytest.raises(StillpointError, match=said):
        execute.execute(made, Silent())
    place.assert_as_it_was()


def test_a_directory_with_files_that_are_not_the_servers_stands_in_no_loads_way(place: Place) -> None:
    odd = os.path.join(place.server.datadir, "copies")
    os.mkdir(odd)
    Path(odd, "note.txt").write_text("of somebody")
    shutil.chown(odd, USER)
    held = place.generation
    try:
        place.server.do("CREATE VIEW copies.v AS SELECT 1 AS one", "CREATE PROCEDURE copies.p() SELECT 1")
        place.generation = place.dump("odd")
        place.server.do("CREATE TABLE copies.t (i INT)", "CREATE PROCEDURE copies.q() SELECT 2")
        place.restore()
        assert place.rows("SHOW TABLES FROM copies") == [("v",)]
        assert place.rows("SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = 'copies'") == [("p",)]
        assert Path(odd, "note.txt").read_text() == "of somebody"
    finally:
        place.generation = held
        shutil.rmtree(odd)
        place.server.do("FLUSH TABLES", "DROP PROCEDURE IF EXISTS copies.p", "DROP PROCEDURE IF EXISTS copies.q")


def test_what_the_server_would_not_take_is_refused_by_the_plan(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.server.do("SET GLOBAL innodb_force_primary_key = ON")
    try:
        with pytest.raises(StillpointError, match="accepts no table without a primary key, as shop.child is one: SET GLOBAL innodb_force_primary_key = OFF"):
            place.plan()
        place.plan(table="shop.parent")
    finally:
        place.server.do("SET GLOBAL innodb_force_primary_key = OFF")
    facts = place.generation.summary["dump"]
    with monkeypatch.context() as patched:
        patched.setitem(facts["engines"], "shop", ["InnoDB", "TokuDB"])
        with pytest.raises(StillpointError, match="tables of the engine TokuDB in shop, which the server does not have"):
            place.plan()
    with monkeypatch.context() as patched:
        patched.setitem(facts["sizes"], "shop", 1 << 60)
        with pytest.raises(StillpointError, match="old and new data side by side need .* more: free some"):
            place.plan()
    place.server.do("CREATE DATABASE stillpoint_old_shop")
    try:
        with pytest.raises(StillpointError, match="the server has stillpoint_old_shop, the old tables of a restore that was interrupted"):
            place.plan()
    finally:
        place.server.do("DROP DATABASE stillpoint_old_shop")


def test_the_databases_of_a_load_are_part_of_no_dump(place: Place) -> None:
    place.server.do("CREATE DATABASE stillpoint_new_shop")
    try:
        given = {"method": "dump", "login_unix_socket": place.server.login.login_unix_socket}
        of = reader.parse({"name": "other", "mysql": given, "repository": place.backups})
        assert "stillpoint_new_shop" not in backup.run(of, Silent())["dump"]["databases"]
    finally:
        place.server.do("DROP DATABASE stillpoint_new_shop")
