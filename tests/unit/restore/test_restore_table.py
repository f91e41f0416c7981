# SPDX-License-Identifier: GPL-3.0-or-later
"""One table of a physical backup, on a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
from _core.host import run_directory
from _core.host.errors import StillpointError, UsageError
from _core.mysql import scratch, settings
from _core.mysql import server as servers
from _core.mysql.connection import Login, Session
from _core.repository.generation import Generation
from _core.repository.partial import Partial
from _core.restore.table import clients, execute, overlay
from _core.restore.table import plan as table_plan
from real_server import RULED, RealServer, needed, real_server
from trees import Quiet, job, shape, small_disk, summary, tree

pytestmark = needed

MAKE = (
    "CREATE DATABASE shop CHARACTER SET latin1",
    "CREATE TABLE shop.customers (id INT PRIMARY KEY, name VARCHAR(20)) ENGINE=InnoDB",
    "CREATE TABLE shop.orders (id INT AUTO_INCREMENT PRIMARY KEY, customer INT, data BLOB, KEY (customer),"
    " CONSTRAINT `who` FOREIGN KEY (customer) REFERENCES customers (id) ON DELETE CASCADE) ENGINE=InnoDB",
    "CREATE TABLE shop.lines (orders INT, CONSTRAINT `of` FOREIGN KEY (orders) REFERENCES orders (id)) ENGINE=InnoDB",
    "CREATE TABLE shop.log (t INT) ENGINE=InnoDB",
    "CREATE TRIGGER shop.noted AFTER INSERT ON shop.orders FOR EACH ROW INSERT INTO shop.log VALUES (NEW.id)",
    "CREATE TABLE shop.isam (i INT, s MEDIUMTEXT) ENGINE=MyISAM",
    "CREATE TABLE shop.aria (i INT, s TEXT) ENGINE=Aria TRANSACTIONAL=1",
    "CREATE TABLE shop.parts (i INT) ENGINE=InnoDB PARTITION BY HASH (i) PARTITIONS 3",
    "CREATE TABLE shop.`odd name-é.x` (i INT) ENGINE=InnoDB",
    "CREATE TABLE shop.precise (id INT PRIMARY KEY, a BIGINT UNSIGNED GENERATED ALWAYS AS ROW START, b BIGINT UNSIGNED GENERATED ALWAYS AS ROW END,"
    " PERIOD FOR SYSTEM_TIME (a, b)) ENGINE=InnoDB WITH SYSTEM VERSIONING",
    "CREATE VIEW shop.names AS SELECT name FROM shop.customers",
    "INSERT INTO shop.customers VALUES (1, 'one'), (2, 'two')",
    "INSERT INTO shop.orders (customer, data) VALUES (1, x'00ff27'), (2, 'two'), (2, NULL)",
    "INSERT INTO shop.lines VALUES (1), (2)",
    "INSERT INTO shop.isam VALUES (1, 'a'), (2, REPEAT('b', 300000))",
    "INSERT INTO shop.aria VALUES (1, 'a'), (2, 'b')",
    "INSERT INTO shop.parts VALUES (1), (2), (3)",
    "INSERT INTO shop.precise (id) VALUES (1)",
    "UPDATE shop.precise SET id = 2",
    "INSERT INTO shop.`odd name-é.x` VALUES (7)",
)


class Shop:
    def __init__(self, server: RealServer, top: Path) -> None:
        self.server = server
        self.directory = job(top / "repository")
        self.state = str(top / "state")
        self.login = Login(login_user="root", login_unix_socket=server.top + "/s")
        self.do(*MAKE)
        self.generation = self.back_up()

    def back_up(self) -> Generation:
        """As from a snapshot: the server goes on writing, and what it holds in memory is in the redo log alone."""
        with Session(self.login) as session:
            known, how = servers.read(session), settings.read(session, servers.read(session)).as_dict()
            session.do("FLUSH TABLES shop.isam, shop.aria")
        copy = self.server.copy("snapshot", "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS")
        when = datetime.now(timezone.utc)
        with self.directory.lock(), Partial(self.directory, "run") as partial:
            found = tree(copy, "mysql")
            partial.add(type(found)("mysql", self.server.datadir, copy, ()))
            generation = partial.publish(when, summary(when, server=known.summary(), settings=how))
        subprocess.run(["rm", "-rf", copy], check=True)
        return generation

    def do(self, *statements: str) -> None:
        with Session(self.login) as session:
            session.do(*statements)

    def rows(self, statement: str) -> List[Any]:
        with Session(self.login) as session:
            return [tuple(row.values()) for row in session.rows(statement)]

    def plan(self, name: str, into: Optional[str] = None) -> table_plan.TablePlan:
        return table_plan.make(self.generation, self.login, name, into, state=self.state)

    def restore(self, name: str, into: Optional[str] = None) -> Quiet:
        reporter = Quiet()
        made = self.plan(name, into)
        alone(lambda: execute.execute(made, reporter))
        return reporter

    def tables(self) -> List[str]:
        return sorted(row[0] for row in self.rows("SHOW TABLES IN shop"))


def alone(action: Callable[[], Any]) -> None:
    """Do something in a process of its own, as it leaves the host's mount namespace; raise its StillpointError here."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except StillpointError as error:
            os.write(write, ("%d%s" % (isinstance(error, UsageError), error)).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(write)
    status = os.waitpid(child, 0)[1]
    said = os.read(read, 1 << 16).decode()
    os.close(read)
    if said:
        raise (UsageError if said[0] == "1" else StillpointError)(said[1:])
    assert status == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with real_server() as server:
        yield Shop(server, tmp_path_factory.mktemp("shop"))


@pytest.fixture
def shop(made: Shop) -> Iterator[Shop]:
    before, running = shape(made.generation.path), os.listdir(run_directory.make_run_directory())
    yield made
    assert shape(made.generation.path) == before, "the backup was written to"
    assert os.listdir(run_directory.RUN_DIRECTORY) == running
    assert os.listdir(made.state) == [".lock"] if os.path.isdir(made.state) else True
    made.do("SET foreign_key_checks = 0", "DROP DATABASE IF EXISTS shop", "DROP DATABASE IF EXISTS other", *MAKE)


def test_a_table_is_back_with_its_rows_keys_and_triggers_and_no_other_is_touched(shop: Shop) -> None:
    wanted = shop.rows("SELECT * FROM shop.orders")
    definition = shop.rows("SHOW CREATE TABLE shop.orders")
    shop.do("UPDATE shop.orders SET data = 'spoilt'", "INSERT INTO shop.orders (id, customer) VALUES (9, 1)", "INSERT INTO shop.customers VALUES (3, 'since')")
    log = shop.rows("SELECT * FROM shop.log")
    plan = shop.plan("shop.orders")
    assert any("replaces shop.orders when all rows of the backup are in the server" in line for line in plan.lines())
    shop.restore("shop.orders")
    assert shop.rows("SELECT * FROM shop.orders") == wanted
    assert shop.rows("SHOW CREATE TABLE shop.orders") == definition
    assert shop.rows("SELECT COUNT(*) FROM shop.customers") == [(3,)]
    assert shop.rows("SELECT * FROM shop.log") == log
    shop.do("INSERT INTO shop.orders (id, customer) VALUES (20, 1)")
    assert shop.rows("SELECT MAX(t) FROM shop.log") == [(20,)]
    with pytest.raises(StillpointError, match="foreign key constraint fails"):
        shop.do("INSERT INTO shop.lines VALUES (99)")
    assert not [name for name in shop.tables() if "stillpoint" in name]


def test_a_table_goes_beside_the_live_one_under_another_name(shop: Shop) -> None:
    shop.do("SET foreign_key_checks = 0", "DELETE FROM shop.orders WHERE id = 1")
    shop.restore("shop.orders", "shop.orders_before")
    assert shop.rows("SELECT id FROM shop.orders_before") == [(1,), (2,), (3,)]
    assert shop.rows("SELECT id FROM shop.orders") == [(2,), (3,)]
    assert shop.rows("SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_TABLE = 'orders_before'") == [(0,)]
    with pytest.raises(UsageError, match="the server has a table shop.orders_before already"):
        shop.plan("shop.orders", "shop.orders_before")
    shop.restore("shop.orders", "other.orders")
    assert shop.rows("SELECT id FROM other.orders") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("name", ["isam", "aria", "parts", "customers"])
def test_so_does_one_of_every_engine(shop: Shop, name: str) -> None:
    wanted = shop.rows("SELECT * FROM shop.%s" % name)
    shop.do("SET foreign_key_checks = 0", "DROP TABLE shop.%s" % name)
    shop.restore("shop.%s" % name)
    assert shop.rows("SELECT * FROM shop.%s" % name) == wanted


def test_one_that_keeps_its_old_rows_by_transaction_comes_without_them_and_that_is_said(shop: Shop) -> None:
    plan, reporter = shop.plan("shop.precise"), Quiet()

    def restored() -> None:
        execute.execute(plan, reporter)
        raise StillpointError("warned: %s" % reporter.warnings)

    shop.do("UPDATE shop.precise SET id = 3")
    with pytest.raises(StillpointError, match="warned: .*shop.precise comes without its old rows, which it keeps by transaction"):
        alone(restored)
    assert shop.rows("SELECT id FROM shop.precise") == [(2,)]


def test_a_name_in_backquotes_may_hold_anything_and_a_view_comes_back_too(shop: Shop) -> None:
    shop.do("DROP TABLE shop.`odd name-é.x`", "DROP VIEW shop.names")
    shop.restore("`shop`.`odd name-é.x`")
    shop.restore("shop.names")
    assert shop.rows("SELECT * FROM shop.`odd name-é.x`") == [(7,)]
    assert shop.rows("SELECT * FROM shop.names") == [("one",), ("two",)]
    with pytest.raises(UsageError, match="is a view, which can't be put beside itself"):
        shop.restore("shop.names", "shop.names2")
    with pytest.raises(UsageError, match="write it as DATABASE.TABLE"):
        shop.plan("shop.odd.x")


def test_a_database_that_is_gone_is_made_as_it_was(shop: Shop) -> None:
    shop.do("SET foreign_key_checks = 0", "DROP DATABASE shop")
    shop.restore("shop.isam")
    assert shop.tables() == ["isam"]
    assert shop.rows("SELECT DEFAULT_CHARACTER_SET_NAME FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = 'shop'") == [("latin1",)]


def test_a_table_that_the_backup_does_not_hold_is_refused_with_those_that_are_near(shop: Shop) -> None:
    with pytest.raises(UsageError, match=r"holds no table shop\.order; near it: shop\.orders"):
        shop.restore("shop.order")
    with pytest.raises(UsageError, match=r"holds no table mysql\.orders; near it: shop\.orders"):
        shop.restore("mysql.orders")
    with pytest.raises(UsageError, match="holds no database shopp; it holds .*shop"):
        shop.plan("shopp.orders")


def test_what_goes_wrong_on_the_way_costs_no_row(shop: Shop) -> None:
    shop.do("UPDATE shop.isam SET s = 'live'", "SET GLOBAL max_allowed_packet = 1024")
    before = shop.rows("SELECT * FROM shop.isam")
    try:
        with pytest.raises(StillpointError, match="the server does not take the table: .*max_allowed_packet.*; shop.isam was not touched"):
            shop.restore("shop.isam")
    finally:
        shop.do("SET GLOBAL max_allowed_packet = 16777216")
    assert shop.rows("SELECT * FROM shop.isam") == before
    assert not [name for name in shop.tables() if "stillpoint" in name]


def test_what_the_server_once_accepted_it_accepts_again(shop: Shop) -> None:
    shop.do("SET GLOBAL innodb_strict_mode = ON", "SET GLOBAL enforce_storage_engine = InnoDB", *RULED)
    wanted = shop.rows("SHOW CREATE TABLE ruled.wide"), shop.rows("SELECT * FROM ruled.low"), shop.rows("SHOW CREATE TABLE ruled.isam")
    made = shop.generation
    try:
        shop.generation = shop.back_up()
        shop.do("DROP TABLE ruled.wide, ruled.low, ruled.isam")
        for name in ("wide", "low", "isam"):
            shop.restore("ruled." + name)
        assert (shop.rows("SHOW CREATE TABLE ruled.wide"), shop.rows("SELECT * FROM ruled.low"), shop.rows("SHOW CREATE TABLE ruled.isam")) == wanted
        assert shop.rows("SELECT c1 FROM ruled.wide") == [("one",)]
    finally:
        shop.do("DROP DATABASE ruled", "SET GLOBAL enforce_storage_engine = NULL")
        subprocess.run(["rm", "-rf", shop.generation.path], check=True)
        shop.generation = made


@pytest.mark.parametrize("name", ["orders", "names"])
def test_somebodys_transaction_is_waited_for_half_a_minute_and_not_as_long_as_the_server_would(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert clients.LOCK_WAIT == 30
    monkeypatch.setattr(clients, "LOCK_WAIT", 1)
    shop.do("UPDATE shop.customers SET name = 'live'", "UPDATE shop.orders SET data = 'live'", "SET GLOBAL lock_wait_timeout = 100")
    before = shop.rows("SELECT * FROM shop.%s" % name)
    try:
        with Session(shop.login) as user:
            user.do("BEGIN", "SELECT * FROM shop.%s" % name)
            began = time.monotonic()
            with pytest.raises(StillpointError, match=r"is in use by somebody's transaction or lock, .* and restore again") as failed:
                shop.restore("shop.%s" % name)
            assert time.monotonic() - began < 60
    finally:
        shop.do("SET GLOBAL lock_wait_timeout = DEFAULT")
    assert "shop.%s was not touched" % name in str(failed.value)
    assert shop.rows("SELECT * FROM shop.%s" % name) == before
    loaded = [each for each in shop.tables() if "stillpoint" in each]
    assert len(loaded) == (name == "orders")
    if not loaded:
        return
    assert "all rows of the backup are in shop.%s, which can be dropped" % loaded[0] in str(failed.value)
    with Session(shop.login) as user:
        user.do("BEGIN", "SELECT * FROM shop.%s" % loaded[0])
        with pytest.raises(StillpointError, match=r"shop.orders was not touched: shop.%s, which an earlier restore has left .* is in use by" % loaded[0]):
            shop.restore("shop.orders")
    shop.restore("shop.orders")
    assert shop.rows("SELECT data FROM shop.orders WHERE id = 2") == [(b"two",)]
    assert not [each for each in shop.tables() if "stillpoint" in each]


@pytest.mark.parametrize("name", ["aria", "isam"])
def test_a_scratch_server_that_has_nothing_to_do_while_the_live_one_works_has_not_stalled(shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The one table is sent before the live server takes any of it; of the other one, more is left than there is room for on the way."""
    wanted = shop.rows("SELECT * FROM shop.%s" % name)
    shop.do("DROP TABLE shop.%s" % name)
    real = clients.Clients.pipe

    def slowly(self: Any, key: Any) -> None:
        scratch.STALL_LIMIT = 2.0  # in the process of this restore alone
        working = Session(shop.login)
        working.do("FLUSH TABLES WITH READ LOCK")
        threading.Timer(6.0, working.close).start()
        real(self, key)

    monkeypatch.setattr(clients.Clients, "pipe", slowly)
    shop.restore("shop.%s" % name)
    assert shop.rows("SELECT * FROM shop.%s" % name) == wanted


def test_a_scratch_server_that_does_nothing_any_more_is_not_waited_for(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real = clients.Clients._dump_command

    def stopped(self: Any, *arguments: Any) -> List[str]:
        scratch.STALL_LIMIT = 2.0
        argv = real(self, *arguments)
        self._scratch.process.send_signal(signal.SIGSTOP)
        return argv

    monkeypatch.setattr(clients.Clients, "_dump_command", stopped)
    with pytest.raises(StillpointError, match="the scratch server stopped working: .*; shop.isam was not touched"):
        shop.restore("shop.isam")


def test_a_table_that_does_not_fit_is_refused_before_a_server_is_started(shop: Shop, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = os.statvfs
    free: Dict[Any, int] = {}
    size = sum(entry.size for entry in table_plan.own_files(shop.generation, ("shop", "isam")))
    opened = table_plan._opened_files(shop.generation, shop.plan("shop.isam").settings)
    assert size > 300000 and {b"mysql/ibdata1", b"mysql/ib_logfile0"} <= {entry.path for entry in opened}
    assert not any(entry.path.startswith(b"mysql/shop/") for entry in opened)

    def statvfs(path: Any) -> os.statvfs_result:
        found = real(path)
        blocks = free.get(path, found.f_bavail * found.f_frsize) // found.f_frsize
        return os.statvfs_result((*found[:3], blocks, blocks, *found[5:]))

    for disk in small_disk(str(tmp_path / "state")):
        monkeypatch.setattr(shop, "state", disk + "/not made yet")
        with pytest.raises(StillpointError, match="the file system of %s has .* free and the restore of shop.isam needs .* there: free some space" % disk):
            shop.plan("shop.isam")
    monkeypatch.setattr(os, "statvfs", statvfs)
    for disk in small_disk(str(tmp_path / "elsewhere"), "1g"):  # of its own, or the two needs are added up
        monkeypatch.setattr(shop, "state", disk)
        live = shop.plan("shop.isam").live
        assert live == shop.rows("SELECT @@datadir")[0][0].rstrip("/")
        free[live] = 2 * size + (64 << 20)
        shop.plan("shop.isam")
        free[live] = 64 << 20
        with pytest.raises(StillpointError, match="the file system of %s has 64.0 MiB free and the restore of shop.isam needs 64.[1-9] MiB there" % live):
            shop.plan("shop.isam")


def test_a_table_that_takes_more_room_than_there_is_ends_before_the_disk_is_full(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    before = shop.rows("SELECT * FROM shop.isam")
    real = clients.Clients._dump_command

    def slowly(self: Any, *arguments: Any) -> List[str]:
        argv = real(self, *arguments)
        self._scratch.process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(os, "statvfs", lambda _path: os.statvfs_result((4096, 4096, 1 << 20, 10, 10, 10, 10, 10, 0, 255)))
        return argv

    monkeypatch.setattr(clients.Clients, "_dump_command", slowly)
    said = "the restore takes more room than there is: only 40.0 KiB are left on the file system of %s; .*; shop.isam was not touched" % shop.state
    with pytest.raises(StillpointError, match=said):
        shop.restore("shop.isam")
    assert shop.rows("SELECT * FROM shop.isam") == before
    assert not [name for name in shop.tables() if "stillpoint" in name]


HASTY = ("wait_timeout", "interactive_timeout", "net_read_timeout", "net_write_timeout", "lock_wait_timeout", "max_statement_time")


def test_a_server_that_closes_idle_sessions_soon_does_not_close_that_of_the_restore(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real = clients.Clients.pipe

    def slowly(self: Any, key: Any) -> None:
        real(self, key)
        time.sleep(3)

    monkeypatch.setattr(clients.Clients, "pipe", slowly)
    wanted = shop.rows("SELECT * FROM shop.orders")
    shop.do("DROP TABLE shop.lines", "DELETE FROM shop.orders", *("SET GLOBAL %s = 1" % name for name in HASTY))
    try:
        shop.restore("shop.orders")
    finally:
        shop.do(*("SET GLOBAL %s = DEFAULT" % name for name in HASTY))
    assert shop.rows("SELECT * FROM shop.orders") == wanted


def test_a_damaged_table_is_refused_before_the_server_is_touched(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    real = execute.rsync.checksums

    def spoilt(*args: Any, **named: Any) -> Any:
        told = named["on_item"]
        return real(*args, **{**named, "on_item": lambda item: told(type(item)(item.path, item.size, "0" * 32, item.first))})

    monkeypatch.setattr(execute.rsync, "checksums", spoilt)
    monkeypatch.setattr(execute.checksums, "found_damaged", lambda *_args: None)
    with pytest.raises(StillpointError, match=r"is damaged \(mysql/shop/isam\..*\): the server was not touched"):
        shop.restore("shop.isam")


def test_a_kill_leaves_the_live_table_and_the_next_run_does_not_stumble(shop: Shop) -> None:
    before = shop.rows("SELECT * FROM shop.orders")
    made = shop.plan("shop.orders")
    child = os.fork()
    if child == 0:
        execute._Work._replace = lambda *_args: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        try:
            execute.execute(made, Quiet())
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert shop.rows("SELECT * FROM shop.orders") == before
    from _core.lvm import ownership

    time.sleep(0.5)
    ownership._clean_run_directory()
    shop.restore("shop.orders")
    assert shop.rows("SELECT * FROM shop.orders") == before
    assert not [name for name in shop.tables() if "stillpoint" in name]


def test_where_the_kernel_lays_no_layer_the_way_out_is_said(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlay, "_escaped", lambda path: path + "-missing")
    with pytest.raises(StillpointError, match="no writable layer can be laid over .*: restore the generation into a directory with --to DIR"):
        shop.restore("shop.isam")
