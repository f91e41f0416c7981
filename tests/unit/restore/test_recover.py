# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery to a moment, with a real server: backups, archived logs, and what a restore makes of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from _core import bundle
from _core.archive import timeline
from _core.host import run_directory
from _core.host.errors import StillpointError, UsageError
from _core.mysql import scratch
from _core.mysql.connection import Session
from _core.restore import elsewhere
from _core.restore.replay import execute as replay
from _core.restore.replay import feed
from _core.restore.replay import moment as moments
from _core.restore.replay import plan as recover
from shop import Shop, ahead, marked, next_second
from trees import Quiet

pytest.importorskip("pymysql")
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "load"))

import committer  # noqa: E402

# -- times


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def utc(*parts: int) -> float:
    return datetime(*parts, tzinfo=timezone.utc).timestamp()  # type: ignore[misc,arg-type]


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    "text, moment",
    [
        ("2026-11-22 14:03:07Z", utc(2026, 11, 22, 14, 3, 7)),
        ("2026-11-22T14:03:07 UTC", utc(2026, 11, 22, 14, 3, 7)),
        ("2026-11-22 14:03:07+02:00", utc(2026, 11, 22, 12, 3, 7)),
        ("2026-11-22 14:03:07 -0330", utc(2026, 11, 22, 17, 33, 7)),
        ("2026-11-22 14:03:07", utc(2026, 11, 22, 13, 3, 7)),
        ("2026-07-22 14:03:07", utc(2026, 7, 22, 12, 3, 7)),
    ],
)
def test_a_time_means_its_zone_and_without_one_that_of_the_host(text: str, moment: float) -> None:
    assert moments.seconds(text) == moment


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("text", ["2026-10-25 02:30:00", "2026-03-29 02:30:00"])
def test_a_time_that_the_hosts_clock_showed_twice_or_never_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not one moment in the time zone of this host"):
        moments.seconds(text)
    assert moments.seconds(text + "Z")


@pytest.mark.parametrize("text", ["", "yesterday", "2026-11-22", "14:03:07", "2026-13-22 14:03:07", "2026-11-22 14:03", "2026-11-22 14:03:07.5"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        moments.seconds(text)


def test_only_one_target_can_be_asked_for() -> None:
    assert moments.asked() is None
    with pytest.raises(UsageError, match="only one of"):
        moments.asked(until="2026-11-22 14:03:07Z", before_gtid="0-1-5")
    with pytest.raises(UsageError, match="looks like mysql-bin.000042:1234"):
        moments.asked(until_position="here")


# -- recovery


@marked
def test_a_dropped_table_comes_back_with_every_row_that_was_committed_before_the_drop(shop: Shop) -> None:
    server = shop.server
    shop.write()
    shop.back_up()
    shop.write()
    server.do("FLUSH BINARY LOGS")
    shop.write()
    server.stop()
    server.start()
    with Session(server.login) as session:  # DDL, accounts, events, temporary tables, a domain of its own
        session.do("ALTER TABLE d.orders ADD COLUMN n INT NOT NULL DEFAULT 7", "CREATE USER someone@localhost", "GRANT SELECT ON d.* TO someone@localhost")
        session.do("CREATE EVENT d.later ON SCHEDULE EVERY 1 DAY DO DELETE FROM d.orders")
        session.do("SET SESSION binlog_format = 'STATEMENT'", "CREATE TEMPORARY TABLE d.basket (s TEXT)", "INSERT INTO d.basket VALUES ('third')")
        session.do("FLUSH BINARY LOGS")
        session.do("INSERT INTO d.orders (s) SELECT s FROM d.basket", "DROP TEMPORARY TABLE d.basket")
        session.do("SET @v = 'fourth'", "INSERT INTO d.orders (s) VALUES (@v)")
        shop.rows += 2
        session.do("SET SESSION gtid_domain_id = 5", "SET SESSION gtid_seq_no = 70", "INSERT INTO d.orders (s) VALUES ('gap')")
        shop.rows += 1
    rows = shop.write()
    last = shop.gtid()
    moment = next_second()
    server.do("DROP TABLE d.orders")
    drop = shop.gtid().split(",")[0]
    server.do("CREATE TABLE d.after_the_drop (i INT)")
    shop.archive_logs()

    for wanted in ({"until": moment}, {"before_gtid": drop}, {"until_gtid": last.split(",")[0]}):
        datadir, done = shop.restore(**wanted)
        recovered = done.recovery
        assert recovered["leaves_out_from"]["gtid"] == drop
        assert recovered["gtid"].split(",")[0] == last.split(",")[0]
        with shop.look(datadir) as session:
            assert session.value("SELECT COUNT(*) FROM d.orders") == rows
            assert session.value("SELECT GROUP_CONCAT(DISTINCT n) FROM d.orders") == "7"
            assert session.value("SELECT COUNT(*) FROM d.orders WHERE s IN ('third', 'fourth', 'gap')") == 3
            assert session.rows("SHOW TABLES IN d LIKE 'after%%'") == []
            assert session.value("SELECT COUNT(*) FROM mysql.user WHERE User = 'someone'") == 1
            assert session.value("SELECT COUNT(*) FROM mysql.event WHERE name = 'later'") == 1
            assert session.value("SELECT COUNT(*) FROM mysql.user WHERE User LIKE 'stillpoint%%'") == 0
            assert session.value("SELECT @@gtid_slave_pos") == last


@marked
def test_what_was_recovered_goes_on_with_the_next_gtid_and_can_be_a_replica(shop: Shop) -> None:
    shop.back_up()
    shop.write(4)
    file, position = shop.position()
    last = shop.gtid()
    shop.write(2)
    shop.archive_logs()
    datadir, done = shop.restore(until_position="%s:%d" % (file, position))
    assert done.recovery["stops_at"] == "%s:%d" % (file, position)
    shop.server.stop()
    subprocess.run(["rm", "-rf", shop.server.datadir], check=True)
    os.rename(datadir, shop.server.datadir)
    for name in os.listdir(shop.server.binlogs):
        os.unlink(os.path.join(shop.server.binlogs, name))
    shop.server.start()
    assert not [name for name in os.listdir(shop.server.datadir) if name.startswith("bin.0")]
    with Session(shop.server.login) as session:
        assert session.value("SELECT @@gtid_current_pos") == last
        assert session.value("SELECT COUNT(*) FROM d.orders") == 8
        session.do("INSERT INTO d.orders (s) VALUES ('next')")
    domain, one, number = last.split("-")
    assert shop.gtid() == "%s-%s-%d" % (domain, one, int(number) + 1)


@marked
def test_the_second_that_is_asked_for_is_not_part_of_what_comes_back(shop: Shop) -> None:
    shop.back_up()
    before = shop.write()
    moment = next_second()
    assert int(time.time()) == int(moments.seconds(moment))
    shop.write(1)
    shop.archive_logs()
    assert shop.count(shop.restore(until=moment)[0]) == before


@marked
@pytest.mark.parametrize("binlog_format", ["ROW", "STATEMENT"])
def test_a_session_that_is_ahead_of_the_time_takes_nothing_that_was_committed_after_it_away(shop: Shop, binlog_format: str) -> None:
    shop.server.do("SET GLOBAL binlog_format = %s" % binlog_format)
    shop.back_up()
    shop.write()
    ahead(shop, 3600)
    ahead(shop, -86400)
    rows = shop.write()
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    made = shop.recovery(until=moment)
    assert made.recovery.doubtful[0] == 0
    datadir, done = shop.restore(until=moment)
    assert shop.count(datadir) == rows
    assert done.recovery["leaves_out_from"]["time"] >= moment.replace(" ", "T")[:-1]
    # and nobody is told that there is anything to be had from the hour to come
    (span,) = timeline.read(shop.archive, shop.directory.generations()).as_dict(datetime.now(timezone.utc))["restorable"]
    assert moments.seconds(span["to"].split(".")[0] + "Z") < time.time() + 1


@marked
def test_what_the_archive_saw_of_the_time_counts_more_than_what_transactions_say(shop: Shop) -> None:
    shop.back_up()
    shop.write()
    ahead(shop, 4)  # a moment that comes while the log is still being written
    rows = shop.write()
    file, before = shop.position()
    moment = next_second()
    shop.write(1)
    ahead(shop, -60, 2)  # as a statement that had begun before the moment, and took long
    time.sleep(4)
    shop.archive_logs()
    without = shop.recovery(until=moment).recovery
    assert without.doubtful[0] >= 2  # the six rows after the session that was ahead, and the two of the one that was behind
    assert "say that they are from before that moment, and are left out too" in "\n".join(without.lines())
    line = shop.archive.lines()[-1]
    shop.archive.note_position(line, file, before, moments.seconds(moment) - 0.5)  # as the stream does every two seconds
    assert shop.recovery(until=moment).recovery.doubtful[0] == 2
    shop.archive.note_position(line, file, before, moments.seconds(moment) + 0.01)
    made = shop.recovery(until=moment).recovery
    assert (made.stop, made.doubtful[0]) == (before, 0)
    assert shop.count(shop.restore(until=moment)[0]) == rows


@marked
def test_the_newest_backup_before_the_moment_is_taken_and_another_may_be_named(shop: Shop) -> None:
    first = shop.back_up()
    shop.write()
    time.sleep(1.1)
    second = shop.back_up()
    rows = shop.write()
    moment = next_second()
    shop.write(1)
    third = shop.back_up()
    shop.archive_logs()
    assert shop.recovery(until=moment).recovery.generation.name == second.name
    assert shop.recovery(name=first.name, until=moment).recovery.generation.name == first.name
    with pytest.raises(StillpointError, match="was taken after"):
        shop.recovery(name=third.name, until=moment)
    for name in (first.name, second.name):
        assert shop.count(shop.restore(name=name, until=moment)[0]) == rows


@marked
def test_an_unproven_backup_is_taken_before_an_older_good_one_and_a_bad_one_never(shop: Shop) -> None:
    good = shop.back_up(proof={"ok": True})
    shop.write()
    time.sleep(1.1)
    unproven = shop.back_up()
    shop.write()
    time.sleep(1.1)
    bad = shop.back_up(proof={"ok": False, "reason": "it did not start"})
    shop.write()
    last = shop.gtid()
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    assert [each.state for each in (good, unproven, bad)] == ["good", "unproven", "bad"]
    for wanted in ({"until": moment}, {"until_gtid": last}):
        made = shop.recovery(**wanted)
        assert made.recovery.generation.name == unproven.name
        assert "from %s, which is unproven" % unproven.name in "\n".join(made.lines())
    named = shop.recovery(name=bad.name, until=moment)
    plan = elsewhere.make(named.recovery.generation, str(shop.top / "to"), replay=named)
    assert "it did not start" in "\n".join(plan.lines())


@marked
def test_a_backup_of_another_history_does_not_make_the_one_before_it_longer(shop: Shop) -> None:
    shop.back_up()
    shop.write(6)
    shop.archive_logs()
    known = time.time()
    time.sleep(2.5)
    shop.server.do("RESET MASTER", "INSERT INTO d.orders (s) VALUES ('lost')")
    other = shop.back_up()  # in a log of the same name, at a position that the archived one has too
    shop.write(1)
    time.sleep(1.1)
    shop.server.do("FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
    shop.server.purge("bin.000003")
    shop.archive_logs()
    found = timeline.read(shop.archive, shop.directory.generations())
    assert [each.line.reason for each in found.stretches] == ["first", "gap"]
    assert found.stretches[0].until is not None
    assert found.stretches[0].until <= known
    assert [generation.name for generation, _reason in found.outside] == [other.name]
    with pytest.raises(StillpointError, match="does not reach"):
        shop.recovery(until=other.time.strftime("%Y-%m-%d %H:%M:%SZ"))


@marked
def test_what_can_not_be_had_is_refused_with_what_can(shop: Shop) -> None:
    early = next_second()
    with pytest.raises(StillpointError, match="no binary logs have been archived"):
        shop.recovery(until=early)
    time.sleep(1)
    shop.back_up()
    shop.write()
    shop.archive_logs()
    with pytest.raises(StillpointError, match="is before anything that can be recovered: what can be recovered is 2"):
        shop.recovery(until=early)
    with pytest.raises(StillpointError, match="does not reach .* UTC: what can be recovered is .* to "):
        shop.recovery(until="2099-01-01 00:00:00Z")
    with pytest.raises(StillpointError, match="0-1-99999 is not in the archive"):
        shop.recovery(until_gtid="0-1-99999")
    with pytest.raises(StillpointError, match="only up to"):
        shop.recovery(until_position="bin.000001:99999999")
    last = shop.gtid()
    log = shop.archive.path_of(shop.archive.lines()[0], "bin.000001")
    os.rename(log, log + ".away")
    with pytest.raises(StillpointError, match="bin.000001.* can't be read|bin.000001 is missing"):
        shop.recovery(until_gtid=last)
    os.rename(log + ".away", log)
    assert shop.recovery(until_gtid=last)
    shop.server.do("FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
    shop.write()
    shop.server.do("FLUSH BINARY LOGS")
    shop.server.purge(shop.position()[0])
    lost = next_second()
    time.sleep(1)
    shop.back_up()
    shop.write()
    shop.archive_logs()
    with pytest.raises(StillpointError, match="does not reach .*a gap: the server has purged"):
        shop.recovery(until=lost)
    found = timeline.read(shop.archive, shop.directory.generations())
    shown = found.as_dict(datetime.now(timezone.utc))
    assert len(shown["restorable"]) == 2
    assert [gap["reason"] for gap in shown["gaps"]] == ["gap"]


@marked
def test_an_archived_log_that_is_damaged_is_refused_also_where_it_is_as_long_as_it_was(shop: Shop) -> None:
    shop.back_up()
    shop.write()
    name, position = shop.position()
    shop.archive_logs()
    wanted = "%s:%d" % (name, position)
    assert shop.recovery(until_position=wanted).recovery.stop >= position
    log = Path(shop.archive.path_of(shop.archive.lines()[0], name))
    whole = log.read_bytes()
    for damaged in (whole[: position - 40] + bytes(len(whole) - position + 40), bytes(len(whole))):
        log.write_bytes(damaged)
        with pytest.raises(StillpointError, match="%s is (damaged|not a binary log)" % name):
            shop.recovery(until_position=wanted)


@marked
def test_without_the_servers_client_programs_a_recovery_is_refused_at_once(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.back_up()
    shop.write()
    shop.archive_logs()
    monkeypatch.setattr(replay.source, "find_client", lambda _flavour: None)
    with pytest.raises(StillpointError, match="client programs of the server are missing on this host: install the package mariadb-client"):
        shop.recovery(until_gtid=shop.gtid())


@marked
def test_what_a_replay_needs_for_a_while_lies_beside_the_copy_and_not_in_memory(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = shop.rows
    shop.back_up()
    data = Path(shop.server.top, "data.csv")
    data.write_text("loaded\n" * 3)
    shop.server.do("SET SESSION binlog_format = STATEMENT", "LOAD DATA INFILE '%s' INTO TABLE d.orders (s)" % data)
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    loads: List[Path] = []
    real_start, real_finish = feed.start, replay._finish

    def start(argv: List[str], **more: Any) -> Any:
        loads.extend(Path(word.partition("=")[2]) for word in argv if word.startswith("--local-load="))
        return real_start(argv, **more)

    def finish(session: Session, recovery: recover.Recovery) -> None:
        session.do("CREATE TEMPORARY TABLE d.held (i INT) ENGINE=MyISAM")
        assert any(each.name.startswith("#sql") for each in loads[0].iterdir()), "the server's temporary files are elsewhere"
        real_finish(session, recovery)

    monkeypatch.setattr(feed, "start", start)
    monkeypatch.setattr(replay, "_finish", finish)
    to = str(shop.top / "to")
    made = shop.recovery(until=moment)
    elsewhere.make(made.recovery.generation, to, replay=made).execute(Quiet())
    assert str(loads[0]).startswith(to + "/")
    assert os.listdir(to) == ["mysql"]
    assert shop.count(to + "/mysql") == rows + 3


@marked
@pytest.mark.parametrize("works", [True, False])
def test_a_replay_goes_on_as_long_as_the_reader_of_the_logs_works(shop: Shop, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    shop.back_up()
    rows = shop.write()
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    real = feed.start
    long = "for each in 1 2 3 4 5 6 7 8 9 10 11 12; do read line < /etc/passwd; sleep 0.5; done" if works else "sleep 600"

    def start(argv: List[str], **more: Any) -> Any:
        monkeypatch.setattr(scratch, "STALL_LIMIT", 4.0)
        if any(word.startswith("--local-load=") for word in argv):
            argv = ["sh", "-c", long + '; exec "$0" "$@"', *argv]
        return real(argv, **more)

    monkeypatch.setattr(feed, "start", start)
    if works:
        assert shop.count(shop.restore(until=moment)[0]) == rows
        return
    began = time.monotonic()
    with pytest.raises(StillpointError, match="the scratch server stopped working"):
        shop.restore(until=moment)
    assert time.monotonic() - began < 120


@marked
def test_a_failed_replay_leaves_nothing_behind_and_the_live_data_alone(shop: Shop) -> None:
    generation = shop.back_up()
    shop.write()
    with Session(shop.server.login) as session:  # as if a table had been filled past the log
        session.do("SET sql_log_bin = 0", "CREATE TABLE d.unlogged (i INT)", "SET sql_log_bin = 1", "INSERT INTO d.unlogged VALUES (1)")
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    to = str(shop.top / "to")
    plan = elsewhere.make(generation, to, replay=shop.recovery(until=moment))
    with pytest.raises(StillpointError, match="which the server executed without one: .*d.unlogged.*; the live data was not touched"):
        plan.execute(Quiet())
    assert not os.path.exists(to)
    assert os.listdir(run_directory.RUN_DIRECTORY) == []


@marked
def test_the_agent_archives_as_a_service_says_how_it_is_and_recovers(shop: Shop, tmp_path: Path) -> None:
    agent, jobs, run = tmp_path / "stillpoint", tmp_path / "jobs", tmp_path / "run"
    agent.write_bytes(bundle.build())
    for directory in (jobs, run):
        directory.mkdir()
    (jobs / "job.yml").write_text(
        json.dumps(
            {
                "name": "job",
                "mysql": {"login_user": "root", "login_unix_socket": shop.server.top + "/s"},
                "repository": str(tmp_path / "repository"),
                "binlog": {"archive": True},
            }
        )
    )
    (jobs / "job.yml").chmod(0o600)
    os.symlink("host", str(tmp_path / "repository" / socket.gethostname()))
    own = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /run && exec "$@"', str(run), sys.executable, "-I", str(agent)]
    environment = {**os.environ, "STILLPOINT_JOBS": str(jobs)}

    def ask(*arguments: str, code: int = 0) -> str:
        done = subprocess.run([*own, *arguments], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout if not code else done.stderr

    def behind() -> Any:
        return json.loads(ask("show", "job", "--timeline", "--json"))["archive"]["lag_bytes"]

    assert "archive      nothing has been archived yet" in ask("list", "job")
    service = subprocess.Popen([*own, "archive", "job"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        shop.back_up()
        rows = shop.write()
        moment = next_second()
        shop.server.do("DROP TABLE d.orders")
        deadline = time.monotonic() + 60
        while behind() != 0:
            assert time.monotonic() < deadline, "the archive did not come after"
            time.sleep(0.2)
        assert "streaming, 0 bytes behind" in ask("list", "job")
        assert "another process is archiving" in ask("archive", "job", "--once", code=3)
        shown = ask("restore", "job", "--until", moment, "--to", str(tmp_path / "to"), "--dry-run")
        assert "recover it to %s UTC" % moment[:-1] in shown
        assert not (tmp_path / "to").exists()
        done = json.loads(ask("restore", "job", "--until", moment, "--to", str(tmp_path / "to"), "--json"))
        assert done["recovery"]["leaves_out_from"]["gtid"] == shop.gtid()
        assert shop.count(str(tmp_path / "to" / "mysql")) == rows
    finally:
        service.terminate()
        said = service.communicate(timeout=60)[1]
    assert service.returncode == 0, said
    assert "told to end" in said
    assert "NOT RUNNING" in ask("list", "job")


@marked
def test_under_load_exactly_what_was_acknowledged_before_the_drop_comes_back(shop: Shop, tmp_path: Path) -> None:
    server, notes = shop.server, tmp_path / "notes"
    server.do(*committer.TABLES)
    load = subprocess.Popen([sys.executable, committer.__file__, server.top + "/s", str(notes)])
    try:
        shop.back_up()
        server.do("FLUSH BINARY LOGS", "ALTER TABLE load_d.parts ADD COLUMN note VARCHAR(20) NOT NULL DEFAULT 'added'")
        time.sleep(1.1)
        second = shop.back_up()
        server.stop()
        server.start()
        time.sleep(1)
        server.stop(crash=True)
        server.start()
        time.sleep(2)
        # whoever writes waits for the lock, and the drop comes in a second in which nothing was committed
        with Session(server.login) as session:
            session.do("LOCK TABLES load_d.orders WRITE, load_d.parts WRITE", "DO SLEEP(1.1)")
            moment = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")
            session.do("DROP TABLE load_d.orders")
        drop = shop.gtid()
    finally:
        notes.mkdir(exist_ok=True)
        (notes / "stop").touch()
        load.wait(120)
    acknowledged = {(writer, int(key)) for writer in (1, 2) for key in (notes / str(writer)).read_text().split()}
    assert len(acknowledged) > 20
    shop.archive_logs()
    datadir, done = shop.restore(until=moment)
    assert done.generation == second.name
    assert done.recovery["leaves_out_from"]["gtid"] == drop
    with shop.look(datadir) as session:
        for table in ("orders", "parts"):
            assert {(row["writer"], row["id"]) for row in session.rows("SELECT writer, id FROM load_d.%s" % table)} == acknowledged
        assert session.value("SELECT GROUP_CONCAT(DISTINCT note) FROM load_d.parts") == "added"


@marked
def test_only_logs_that_no_backup_needs_are_pruned(shop: Shop) -> None:
    first = shop.back_up()
    shop.write()
    shop.archive_logs()
    second = shop.back_up()
    shop.write()
    shop.archive_logs()
    from _core.archive import service as archiving

    with shop.archive.lock():
        assert archiving.remove_unneeded(shop.archive, shop.directory, Quiet()) == []
    with shop.directory.lock():
        assert shop.directory.remove(first)
    with shop.archive.lock():
        gone = archiving.remove_unneeded(shop.archive, shop.directory, Quiet())
    assert gone == ["bin.000001"]
    needed_log = second.summary["coordinates"]["file"]
    assert [log.file for log in shop.archive.lines()[-1].logs][0] == needed_log
    assert not os.path.exists(shop.archive.path_of(shop.archive.lines()[-1], "bin.000001"))
    assert shop.recovery(until_gtid=shop.gtid()).recovery.generation.name == second.name
