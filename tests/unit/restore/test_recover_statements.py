# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery with a real server, of statements that failed half way, of those that do otherwise than they did, and on a disk that fills up."""

from __future__ import annotations

import os
from contextlib import contextmanager
from pathlib import Path
from typing import List

import pytest
from _core.host.errors import StillpointError
from _core.mysql import settings
from _core.mysql.connection import ServerError, Session
from _core.restore import elsewhere
from _core.restore.replay import execute as replay
from real_server import PLUGINS
from shop import Shop, marked, next_second
from trees import Quiet, small_disk

pytest.importorskip("pymysql")


def fail(session: Session, *statements: str) -> List[int]:
    """Execute statements that fail, and return the numbers of their errors."""
    found = []
    for statement in statements:
        with pytest.raises(ServerError) as failed:
            session.do(statement)
        assert failed.value.number is not None
        found.append(failed.value.number)
    return found


@marked
def test_statements_that_failed_half_way_fail_half_way_again(shop: Shop) -> None:
    shop.server.do("CREATE TABLE d.m (i INT PRIMARY KEY, s TEXT) ENGINE=MyISAM", "CREATE TABLE d.gone (i INT)")
    shop.back_up()
    with Session(shop.server.login) as session:
        session.do("SET SESSION binlog_format = 'STATEMENT'")
        assert fail(session, "INSERT INTO d.m VALUES (1, 'ERROR 1 (00000) at line 1:'), (2, 'b'), (1, 'c'), (4, 'd')") == [1062]
        session.do("FLUSH BINARY LOGS")
        session.do("BEGIN", "INSERT INTO d.orders (s) VALUES ('one')")
        fail(session, "INSERT INTO d.m VALUES (11, ''), (12, ''), (11, '')", "UPDATE d.m SET i = 12 WHERE i < 3")
        session.do("INSERT INTO d.orders (s) VALUES ('two')", "COMMIT")
        fail(session, "DROP TABLE d.gone, d.never_there")  # logged without its error
        session.do("INSERT INTO d.orders (s) VALUES ('three')")
        there = session.rows("SELECT * FROM d.m ORDER BY i")
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    made = shop.recovery(until=moment)
    assert [each.error for each in made.recovery.failed] == [1062, 1062, 1062][: len(made.recovery.failed)]
    assert len(made.recovery.failed) >= 2
    assert "statements failed half way on the server" in "\n".join(made.lines())
    datadir, _done = shop.restore(until=moment)
    with shop.look(datadir) as session:
        assert session.rows("SELECT * FROM d.m ORDER BY i") == there
        assert [row["s"] for row in session.rows("SELECT s FROM d.orders ORDER BY i")] == ["one", "two", "three"]
        assert session.rows("SHOW TABLES IN d LIKE 'gone'") == []


@marked
def test_a_statement_that_fails_otherwise_than_it_did_ends_the_replay(shop: Shop) -> None:
    shop.server.do("CREATE TABLE d.m (i INT PRIMARY KEY) ENGINE=MyISAM")
    shop.back_up()
    shop.server.do("SET GLOBAL binlog_format = 'STATEMENT'")
    with Session(shop.server.login) as session:
        session.do("SET sql_log_bin = 0", "INSERT INTO d.m VALUES (3)", "SET sql_log_bin = 1")
        fail(session, "INSERT INTO d.m VALUES (1), (2), (3), (4)")
    shop.write(3)
    moment = next_second()
    shop.archive_logs()
    with pytest.raises(StillpointError, match=r"that ends at bin.000001:\d+ failed half way on the server, with error 1062, and did not fail here"):
        shop.restore(until=moment)


@marked
@pytest.mark.parametrize("known", [True, False], ids=["known", "of an older manifest"])
@pytest.mark.parametrize("scope", ["GLOBAL", "SESSION"])
def test_a_table_that_only_a_server_which_is_not_strict_accepts_is_made_again(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, scope: str, known: bool
) -> None:
    if not known:
        carried = [name for name in settings._CARRIED if name != "innodb_strict_mode"]
        monkeypatch.setattr(settings, "_CARRIED", carried)
    wide = "CREATE TABLE d.wide (%s) ENGINE=InnoDB" % ", ".join("c%d TEXT" % number for number in range(400))
    with Session(shop.server.login) as session:
        assert fail(session, wide) == [1118]
        session.do("SET %s innodb_strict_mode = OFF" % scope)
    generation = shop.back_up()
    assert generation.summary["settings"]["variables"].get("innodb_strict_mode") == ({"GLOBAL": "OFF", "SESSION": "ON"}[scope] if known else None)
    shop.server.do("SET SESSION innodb_strict_mode = OFF", wide, "INSERT INTO d.wide (c1) VALUES ('one')")
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    datadir, _done = shop.restore(until=moment)
    with shop.look(datadir) as session:
        assert session.value("SELECT c1 FROM d.wide") == "one"


@marked
def test_a_table_that_is_made_again_gets_the_row_format_and_the_file_that_it_had(shop: Shop) -> None:
    shop.server.do("SET GLOBAL innodb_default_row_format = compact", "SET GLOBAL innodb_file_per_table = OFF")
    shop.back_up()
    shop.server.do("CREATE TABLE d.late (i INT) ENGINE=InnoDB")
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    datadir, _done = shop.restore(until=moment)
    with shop.look(datadir) as session:
        found = session.rows("SELECT ROW_FORMAT AS f, SPACE AS s FROM information_schema.INNODB_SYS_TABLES WHERE NAME = 'd/late'")
    assert found == [{"f": "Compact", "s": 0}]


@marked
def test_rows_of_memory_tables_that_a_row_event_does_not_find_are_skipped_and_counted(shop: Shop) -> None:
    shop.server.do(
        "CREATE TABLE d.`se-ss` (id INT PRIMARY KEY, v INT) ENGINE=MEMORY",
        "CREATE TABLE d.no_key (id INT, v INT) ENGINE=MEMORY",
        "INSERT INTO d.`se-ss` VALUES (1, 1), (2, 2)",
        "INSERT INTO d.no_key VALUES (1, 1)",
    )
    shop.back_up()
    with Session(shop.server.login) as session:
        session.do(
            "SET SESSION binlog_format = 'ROW'",
            "BEGIN",
            "INSERT INTO d.orders (s) VALUES ('one')",
            "UPDATE d.`se-ss` SET v = 9 WHERE id = 1",
            "INSERT INTO d.`se-ss` VALUES (5, 5)",
            "INSERT INTO d.orders (s) VALUES ('two')",
            "COMMIT",
            "UPDATE d.orders, d.`se-ss` SET orders.s = 'changed', `se-ss`.v = 7 WHERE orders.s = 'one' AND `se-ss`.id IN (2, 5)",
            "DELETE FROM d.no_key",
        )
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    made = shop.recovery(until=moment)
    assert "  3 row events are of MEMORY tables (d.no_key, d.se-ss), of which a backup holds no rows" in "\n".join(made.lines())
    datadir, done = shop.restore(until=moment)
    assert done.recovery["memory_events"] == 3
    # a scratch server has emptied the table again
    with shop.look(datadir) as session:
        assert [row["s"] for row in session.rows("SELECT s FROM d.orders ORDER BY i")] == ["changed", "two"]


@marked
def test_a_row_that_a_table_of_another_engine_lacks_ends_the_replay_all_the_same(shop: Shop) -> None:
    shop.server.do("CREATE TABLE d.sess (id INT PRIMARY KEY) ENGINE=MEMORY", "INSERT INTO d.sess VALUES (1)", "INSERT INTO d.orders (s) VALUES ('x')")
    shop.back_up()
    with Session(shop.server.login) as session:
        session.do("SET SESSION binlog_format = 'ROW'", "DELETE FROM d.sess")
        session.do("SET sql_log_bin = 0", "INSERT INTO d.orders (i, s) VALUES (77, 'unlogged')", "SET sql_log_bin = 1", "DELETE FROM d.orders WHERE i = 77")
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    with pytest.raises(StillpointError, match="Can't find record in 'orders'"):
        shop.restore(until=moment)


@marked
@pytest.mark.skipif(not os.path.exists(os.path.join(PLUGINS or "", "ha_federatedx.so")), reason="needs the plugin FEDERATED")
def test_a_replay_writes_nothing_to_another_server(shop: Shop) -> None:
    there = "mysql://root@localhost:3306/d/there?socket=%s/s" % shop.server.top
    shop.server.do("INSTALL SONAME 'ha_federatedx'")
    try:
        shop.server.do(
            "CREATE TABLE d.there (i INT PRIMARY KEY) ENGINE=InnoDB",
            "CREATE SERVER far FOREIGN DATA WRAPPER mysql OPTIONS (USER 'root', SOCKET '%s/s', DATABASE 'd', HOST 'localhost')" % shop.server.top,
            "CREATE TABLE d.here (i INT PRIMARY KEY) ENGINE=FEDERATED CONNECTION='far/there'",
        )
        shop.back_up()
        with Session(shop.server.login) as session:
            session.do("SET SESSION binlog_format = 'ROW'", "INSERT INTO d.here VALUES (1)", "INSERT INTO d.orders (s) VALUES ('one')")
        moment = next_second()
        shop.write(1)
        shop.archive_logs()
        shop.server.do("SET sql_log_bin = 0", "DELETE FROM d.there")
        datadir, _done = shop.restore(until=moment)
        with Session(shop.server.login) as session:
            assert session.rows("SELECT * FROM d.there") == [], there
        with shop.look(datadir) as session:
            assert session.rows("SELECT i FROM d.there") == [{"i": 1}]
            assert session.value("SELECT COUNT(*) FROM d.orders") == 1
    finally:
        shop.server.do("DROP TABLE IF EXISTS d.here", "UNINSTALL SONAME 'ha_federatedx'")


@marked
def test_what_was_aborted_half_way_is_refused_before_anything_is_touched(shop: Shop) -> None:
    shop.server.do("SET GLOBAL binlog_format = 'STATEMENT'", "CREATE TABLE d.m (i INT, s TEXT) ENGINE=MyISAM")
    shop.back_up()
    rows = shop.write(1)
    last = shop.gtid()
    with Session(shop.server.login) as session:
        session.do("SET SESSION max_statement_time = 1.5")
        fail(session, "INSERT INTO d.m SELECT seq, SLEEP(0.1) FROM d.seq_1_to_50")
    shop.write(1)
    moment = next_second()
    shop.archive_logs()
    with Session(shop.server.login) as session:
        assert 0 < session.value("SELECT COUNT(*) FROM d.m") < 50
    with pytest.raises(StillpointError, match=r"aborted half way on the server \(error \d+, it ends at bin.000001:\d+\), and nobody knows"):
        shop.recovery(until=moment)
    assert shop.count(shop.restore(until_gtid=last)[0]) == rows


@marked
def test_a_replay_ends_before_it_fills_the_disk(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.server.do("SET GLOBAL binlog_format = 'STATEMENT'")
    generation = shop.back_up()
    shop.server.do("INSERT INTO d.orders (s) SELECT REPEAT('x', 2000) FROM d.seq_1_to_100000")  # 200 MB, of a log of 150 bytes
    moment = next_second()
    shop.archive_logs()
    made = shop.recovery(until=moment)
    with contextmanager(small_disk)(str(tmp_path / "small"), "320m") as small:
        monkeypatch.setattr(replay, "_SHARE_LEFT", 0.3)
        plan = elsewhere.make(generation, small + "/to", replay=made)
        assert "needs about" in "\n".join(plan.lines())
        with pytest.raises(StillpointError, match="the replay takes more room than there is: only .* are left .*the live data was not touched"):
            plan.execute(Quiet())
        assert os.listdir(small) == []
