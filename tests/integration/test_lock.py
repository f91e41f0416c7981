# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock: known to be held when the snapshot is taken, given back within its limit, never waited for without one."""

from __future__ import annotations

import json
import time

from etrial import HOLD_UP_LVM, Etrial

KILL_THE_SESSION = """
    def kill(session):
        import pymysql
        pymysql.connect(unix_socket='/run/mysqld/mysqld.sock', user='root').cursor().execute('KILL ' + session)
    at('lock held', kill)
"""


def nothing_came_of_it(etrial: Etrial) -> None:
    assert etrial.generations() == []
    assert etrial.left_behind() == []
    assert etrial.volumes() == {"root"}


def test_a_run_whose_locking_session_is_killed_fails_and_leaves_nothing(etrial: Etrial) -> None:
    etrial.small_job()
    done = etrial.faulty(KILL_THE_SESSION, "run", "etrial")
    assert done.rc == 1
    assert "the session that held the lock was ended before the snapshot was known to be taken" in done.stderr
    assert "Traceback" not in done.stderr
    nothing_came_of_it(etrial)


def test_a_lock_that_comes_after_the_snapshot_is_noticed_and_the_snapshot_taken_again(etrial: Etrial) -> None:
    etrial.small_job()
    with etrial.load(rate=2):
        done = etrial.faulty(
            """
            from stillpoint.lvm import snapshots
            snapshots.Taking.stop = lambda taking: True
            at('lock asked for', lambda _about: time.sleep(5))
            """,
            "run",
            "etrial",
        )
    assert done.rc == 0, done.stderr
    assert "LVM came to the snapshot before the lock; once more" in done.stderr
    assert etrial.volumes() == {"root"}
    good, verdict = etrial.judge_generation(etrial.generations()[0]["path"])
    assert good, verdict["violations"]


def test_the_snapshot_waits_for_a_lock_that_takes_its_time_and_the_lock_for_a_snapshot_that_does(etrial: Etrial) -> None:
    etrial.small_job()
    with etrial.load(rate=2):
        slow_lock = "\nat('lock asked for', lambda _about: time.sleep(5))"
        done = etrial.faulty(HOLD_UP_LVM + slow_lock, "run", "etrial", "--json")
    assert done.rc == 0, done.stderr
    assert "once more" not in done.stderr
    assert "lock may go: root frozen" in done.stderr
    summary = json.loads(done.stdout)
    assert 3900 < summary["lock"]["held_ms"] < 6500  # the snapshot's time, and not the lock's
    good, verdict = etrial.judge_generation(summary["path"])
    assert good, verdict["violations"]


def test_an_lvm_command_that_hangs_or_fails_gives_the_lock_back_within_its_limit(etrial: Etrial) -> None:
    etrial.small_job()
    for command, sentence in (
        (["sleep", "8"], "LVM did not take the snapshot of vg00/root within 2 s; nothing is locked any more"),
        (["false"], "LVM can't snapshot vg00/root: exit status 1"),
    ):
        with etrial.load(rate=2) as report:
            done = etrial.faulty(
                f"""
                from stillpoint.lvm import snapshots, volumes
                snapshots.FREEZE_LIMIT = 2
                volumes.convert_argv = lambda *arguments: {command!r}
                """,
                "run",
                "etrial",
            )
        assert done.rc == 1
        assert sentence in done.stderr
        assert report["commit"]["worst_ms"] < 1000 * (2 + 4)  # the limit, and what emulation takes for the statements around it
        nothing_came_of_it(etrial)


def test_a_long_statement_does_not_stall_others_and_the_guards_actions_do_what_they_say(etrial: Etrial) -> None:
    etrial.sql("CREATE DATABASE probe; CREATE TABLE probe.counts (n INT, pause INT) ENGINE=MyISAM; INSERT INTO probe.counts VALUES (1, 0)")

    def slow_update() -> None:
        etrial.machine.run("setsid mariadb -e 'UPDATE probe.counts SET pause = SLEEP(60)' >/var/tmp/slow.log 2>&1 </dev/null & sleep 3")

    def run(options: str) -> tuple[int, str, float]:
        etrial.small_job(mysql="mysql: {method: snapshot, long_query_threshold: 2, " + options + "}")
        slow_update()
        started = time.monotonic()
        done = etrial.stillpoint("run", "etrial", check=False)
        took = time.monotonic() - started
        return done.rc, done.stderr, took

    with etrial.load(rate=2) as report:
        rc, stderr, _took = run("long_query_timeout: 60, long_query_action: fail")
        assert (rc, etrial.generations()) == (75, [])
        assert "root's statement" in stderr
        assert "nothing was locked" in stderr
        rc, stderr, took = run("long_query_timeout: 3, long_query_action: wait")
        assert (rc, etrial.generations()) == (75, [])
        assert took > 3
        rc, stderr, _took = run("long_query_timeout: 1, long_query_action: kill")
        assert rc == 0, stderr
        assert "ended root's statement" in stderr
        assert len(etrial.generations()) == 1
    assert "interrupted" in etrial.machine.run("cat /var/tmp/slow.log").stdout
    assert report["commit"]["worst_ms"] < 8000
    assert report["audit"]["worst_ms"] < 8000


def test_a_lock_that_is_not_granted_in_time_leaves_the_server_as_it_was(etrial: Etrial) -> None:
    etrial.sql("CREATE DATABASE probe; CREATE TABLE probe.counts (n INT, pause INT) ENGINE=MyISAM; INSERT INTO probe.counts VALUES (1, 0)")
    etrial.small_job(mysql="mysql: {method: snapshot, lock_wait_timeout: 2, long_query_threshold: 3600}")
    with etrial.load(rate=2) as report:
        etrial.machine.run("setsid mariadb -e 'UPDATE probe.counts SET pause = SLEEP(200)' >/dev/null 2>&1 </dev/null & sleep 1")
        done = etrial.stillpoint("run", "etrial", check=False)
    assert done.rc == 75, done.stderr
    assert "within lock_wait_timeout = 2 s" in done.stderr
    for kind in ("commit", "audit"):
        assert report[kind]["worst_ms"] < 1000 * (2 + 4)
    nothing_came_of_it(etrial)


def test_a_server_that_is_stopped_is_not_now_and_a_wrong_address_is_a_failure(etrial: Etrial) -> None:
    etrial.small_job(mysql="mysql: {login_unix_socket: /run/mysqld/nowhere.sock}")
    etrial.machine.run("sleep 15")  # the server may have been started just now
    done = etrial.stillpoint("run", "etrial", check=False)
    assert done.rc == 1, done.stderr
    assert "check login_unix_socket" in done.stderr
    etrial.small_job(mysql="mysql: {method: snapshot}")
    etrial.machine.run("systemctl stop mariadb")
    for command in ("plan", "run"):
        done = etrial.stillpoint(command, "etrial", check=False)
        assert done.rc == 75, done.stderr
        assert "mariadb.service is inactive): nothing was locked or backed up; try again later" in done.stderr
    nothing_came_of_it(etrial)
    etrial.machine.run("systemctl start mariadb")
    etrial.stillpoint("run", "etrial")
    assert len(etrial.generations()) == 1


def test_hasty_sessions_and_links_beside_the_tables_are_no_trouble_for_a_backup_and_a_restore(etrial: Etrial) -> None:
    etrial.sql("SET GLOBAL wait_timeout = 3, interactive_timeout = 3, net_read_timeout = 3, net_write_timeout = 3, max_statement_time = 3")
    links = {"mysql.sock": "/run/mysqld/mysqld.sock", "ca.pem": "/etc/ssl/certs/ca-certificates.crt", "slow.log": "/var/log/mysql/slow.log"}
    for name, target in links.items():
        etrial.machine.run(["ln", "-s", target, "/var/lib/mysql/" + name])
    etrial.small_job(extra="verify: {server: true, tables: all}")
    slow = "at('lock asked for', lambda _about: time.sleep(5))"
    done = etrial.faulty(slow, "run", "etrial")
    assert done.rc == 0, done.stderr
    (generation,) = etrial.generations()
    assert generation["state"] == "good"
    etrial.machine.run("rm /var/lib/mysql/ca.pem; ln -s /nowhere /var/lib/mysql/ca.pem")
    etrial.stillpoint("restore", "etrial", "--yes", timeout=600)
    for name, target in links.items():
        for directory in (generation["path"] + "/mysql", "/var/lib/mysql"):
            assert etrial.machine.run(["readlink", directory + "/" + name]).stdout.strip() == target
