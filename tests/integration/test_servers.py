# SPDX-License-Identifier: GPL-3.0-or-later
"""The fleet's other servers: each gets the lock that is enough for it, and its backup is one point in time at exact coordinates."""

from __future__ import annotations

import json
from typing import Any

import pytest
from etrial import AGENT, Etrial
from guest import FOLDER, Load

BULLSEYE, TRIXIE, SID = (pytest.mark.suite(name) for name in ("bullseye", "trixie", "sid"))

# The account, by the agent's own code: what the role's module calls
ACCOUNT = f"""
import sys
sys.path.insert(0, {AGENT!r})
from stillpoint.mysql.account import Account, ensure
from stillpoint.mysql.connection import Login, Session
with Session(Login()) as session:
    print(ensure(session, Account()).privileges)
"""
# A point in time without a copy, as the module mysql_quiesce_snapshot takes it
SNAPSHOT_ALONE = f"""
import json, sys
sys.path.insert(0, {AGENT!r})
from stillpoint.host.reporter import Silent
from stillpoint.backup.quiesced import QuiesceRequest, quiesce_snapshot
from stillpoint.lvm import ownership
point = quiesce_snapshot(QuiesceRequest(config_file="/etc/stillpoint/my.cnf"), Silent())
ownership.clean(run_id=point["run_id"], kept=True)
print(json.dumps(point))
"""
CONFIG = "config_file: /etc/stillpoint/my.cnf"


def job(etrial: Etrial, options: str = "", extra: str = "") -> dict[str, Any]:
    """Write a job that logs in with the least privileges, and return its plan."""
    etrial.small_job(extra, mysql="mysql: {%s}" % ", ".join(filter(None, [CONFIG, options])))
    etrial.machine.run("python3 -", input=ACCOUNT)
    plan: dict[str, Any] = json.loads(etrial.stillpoint("plan", "etrial", "--json").stdout)
    return plan


@pytest.mark.parametrize(
    ("version", "method", "reason"),
    [
        pytest.param("10.5.", "backup_stage", "10.5", marks=BULLSEYE, id="MariaDB 10.5"),
        pytest.param("11.8.", "backup_stage", "11.8", marks=TRIXIE, id="MariaDB 11.8"),
        pytest.param("9.7.", "ftwrl", "stillpoint_load.audit is MyISAM and 2 more", marks=SID, id="MySQL 9.7"),
    ],
)
def test_a_server_gets_the_lock_that_is_enough_and_its_backup_is_one_point_in_time(etrial: Etrial, version: str, method: str, reason: str) -> None:
    etrial.binary_logging()
    with etrial.load(rate=3) as report:
        plan = job(etrial, extra="verify: {server: true, tables: all}\n")
        summary = etrial.backup()
    assert plan["server"]["version"].startswith(version)
    assert plan["lock"]["method"] == summary["lock"]["method"] == method
    assert reason in plan["lock"]["reason"]
    assert summary["lock"]["reason"] == plan["lock"]["reason"]
    assert 0 < summary["lock"]["held_ms"] < report["commit"]["worst_ms"] + 2000
    coordinates = summary["coordinates"]
    position = f"{coordinates['file']}:{coordinates['position']}"
    # MySQL's logs are in the copy, which must end at the position; MariaDB's are not, so it recovers without them, and the
    # live ones show only that what lies between InnoDB's position and the recorded one is not transactional
    logs = ["--binlogs", "/var/log/mysql"] if method == "backup_stage" else []
    good, verdict = etrial.judge_generation(summary["path"], "--coordinates", position, *logs)
    assert good, verdict["violations"]
    assert verdict["recovery"]["prepared"] == []
    assert verdict["rows"] > 0
    assert verdict["files"] > 0
    # the backup's own proof comes to the same, by other means
    proof = summary["proof"]
    assert proof["ok"] is True
    assert proof["prepared"] == 0
    assert proof["position"]["compared"] == ("InnoDB's position" if method == "backup_stage" else "executed GTIDs")
    assert proof["tables"]["checked"] > 30
    if method == "ftwrl":
        assert proof["position"]["log_end"]["position"] == coordinates["position"]
        assert verdict["gtid_executed"] == coordinates["gtid"] != ""
    assert etrial.left_behind() == []


@SID
def test_mysql_goes_on_committing_while_all_tables_are_innodb_and_the_coordinates_say_how_exact_they_are(etrial: Etrial) -> None:
    etrial.sql("ALTER TABLE wf_workflow.LOGIN_LOG ENGINE=InnoDB")
    assert job(etrial)["lock"]["method"] == "instance"
    quiet = json.loads(etrial.machine.run("python3 -", input=SNAPSHOT_ALONE).stdout)
    assert (quiet["lock"]["method"], quiet["warnings"]) == ("instance", [])
    assert etrial.sql("SHOW BINARY LOG STATUS").split()[:2] == [quiet["coordinates"]["file"], str(quiet["coordinates"]["position"])]
    with etrial.load(rate=3, engines="innodb"):
        busy = etrial.backup()
    good, verdict = etrial.judge_generation(busy["path"], "--engines", "innodb")
    assert good, verdict["violations"]
    stood = (verdict["recovery"]["binlog_file"], verdict["recovery"]["binlog_position"])
    if busy["coordinates"]:  # no commit happened to come in between
        least = most = busy["coordinates"]
    else:
        least, most = busy["lock"]["between"]
        assert any("commits went on" in warning for warning in busy["warnings"])
    assert (least["file"], least["position"]) <= stood <= (most["file"], most["position"])
    assert quiet["coordinates"]["position"] < least["position"]


LONG_SELECT = "SELECT ID FROM information_schema.PROCESSLIST WHERE INFO LIKE 'SELECT SLEEP(200)%'"


def long_select(etrial: Etrial) -> None:
    """Have a statement run that FLUSH TABLES WITH READ LOCK has to wait for."""
    etrial.machine.run("setsid mysql -e 'SELECT SLEEP(200) FROM wf_workflow.LOGIN_LOG LIMIT 1' >/dev/null 2>&1 </dev/null & sleep 4")
    assert etrial.sql(LONG_SELECT), "it runs"


@SID
def test_on_mysql_a_lock_that_is_not_granted_keeps_nobody_out(etrial: Etrial) -> None:
    job(etrial, "lock: ftwrl, lock_wait_timeout: 2, long_query_threshold: 3600")
    # what holds the snapshot's removal up must not hold up writers: the session is gone before it
    slow_end = "at('discard', lambda _about: time.sleep(15))"
    with etrial.load(rate=3) as report:
        long_select(etrial)
        done = etrial.faulty(slow_end, "run", "etrial")
    assert done.rc == 75, done.stderr
    assert "did not grant FLUSH TABLES WITH READ LOCK within lock_wait_timeout = 2 s" in done.stderr
    for kind in ("commit", "audit"):
        assert report[kind]["worst_ms"] < 1000 * (2 + 6)  # the limit, and what emulation takes for the statements around it
    assert etrial.sql(LONG_SELECT), "it is not the one that had to go"
    assert etrial.generations() == []
    assert etrial.left_behind() == []


@SID
def test_on_mysql_a_long_select_is_seen_before_anything_is_locked(etrial: Etrial) -> None:
    job(etrial, "lock: ftwrl, long_query_threshold: 2, long_query_action: fail")
    long_select(etrial)
    done = etrial.stillpoint("run", "etrial", check=False)
    assert done.rc == 75, done.stderr
    assert "root's statement" in done.stderr and "SELECT SLEEP(200)" in done.stderr
    assert etrial.write_takes() < 5


# --- a replica: the packaged server, of a second one beside it

SOURCE = "/run/mysqld/source.sock"
START_SOURCE = f"""
set -e
install -d -o mysql /var/lib/source /var/log/source
mariadb-install-db --no-defaults --user=mysql --datadir=/var/lib/source --auth-root-authentication-method=socket --skip-test-db >/dev/null
setsid mariadbd --no-defaults --user=mysql --datadir=/var/lib/source --socket={SOURCE} --port=3307 --bind-address=127.0.0.1 \\
    --pid-file=/var/lib/source/pid --log-error=/var/log/source/error.log --server-id=7 --log-bin=/var/log/source/source-bin \\
    --innodb-buffer-pool-size=32M >/dev/null 2>&1 </dev/null &
for i in $(seq 240); do mariadb -S {SOURCE} -e 'SELECT 1' >/dev/null 2>&1 && break; sleep 0.5; done
mariadb -S {SOURCE} -e "CREATE USER r@127.0.0.1 IDENTIFIED BY 'r'; GRANT REPLICATION SLAVE ON *.* TO r@127.0.0.1"
mariadb -e "CHANGE MASTER TO master_host='127.0.0.1', master_port=3307, master_user='r', master_password='r', master_use_gtid=slave_pos; START SLAVE"
"""

# What a copy has executed of its source's log, when it has recovered
RECOVERED = """
import sys
sys.path.insert(0, sys.argv[2])
import pymysql, scratch
with scratch.scratch_server(sys.argv[1], False, '/var/tmp', []) as server:
    cursor = pymysql.connect(unix_socket=server.socket, user='root').cursor()
    cursor.execute('SELECT @@GLOBAL.gtid_slave_pos')
    print(cursor.fetchone()[0])
"""


def sql_thread_runs(etrial: Etrial) -> bool:
    return "Slave_SQL_Running: Yes" in etrial.machine.run("mariadb -e 'SHOW SLAVE STATUS\\G'").stdout


def follow_writers(etrial: Etrial) -> None:
    """Make the packaged server a replica of a second one, to which writers write."""
    etrial.machine.run(START_SOURCE, timeout=300)
    load = Load.install(etrial.machine, SOURCE)
    load.setup("innodb")
    load.start(rate=3)


def test_a_replica_stands_still_at_exact_source_coordinates_and_goes_on_whatever_happens_to_the_run(etrial: Etrial) -> None:
    follow_writers(etrial)
    etrial.small_job(mysql="mysql: {stop_replica: true}")
    summary = etrial.backup()
    assert sql_thread_runs(etrial)
    (source,) = summary["coordinates"]["replica"]
    assert (source["host"], source["port"], source["uses_gtid"]) == ("127.0.0.1", 3307, True)
    # exact: the position means the same to the source as the GTID, and the copy has executed just that
    said = etrial.machine.run(["mariadb", "-S", SOURCE, "-BNe", f"SELECT BINLOG_GTID_POS('{source['file']}', {source['position']})"]).stdout.strip()
    assert said == source["gtid"] != ""
    etrial.machine.put(RECOVERED.encode(), "/root/recovered.py")
    assert etrial.machine.run(["python3", "/root/recovered.py", f"{summary['path']}/mysql", FOLDER], timeout=300).stdout.strip() == source["gtid"]
    assert etrial.sql("SELECT @@GLOBAL.gtid_slave_pos").strip() != source["gtid"], "the replica follows its source again"

    at_the_snapshot = "at('snapshot begun', die)"
    done = etrial.faulty(at_the_snapshot, "run", "etrial", signal="SIGTERM")
    assert done.rc == 1
    assert sql_thread_runs(etrial)

    done = etrial.faulty(at_the_snapshot, "run", "etrial", signal="SIGKILL")
    assert done.rc == 137
    assert not sql_thread_runs(etrial), "nobody was left to start it"
    assert "put back what a killed run had changed on the server" in etrial.stillpoint("clean").stdout
    assert sql_thread_runs(etrial)
    assert etrial.left_behind() == []


# --- a cluster of one node

GALERA_CNF = """[mysqld]
wsrep_on = ON
wsrep_provider = /usr/lib/galera/libgalera_smm.so
wsrep_cluster_address = gcomm://
binlog_format = ROW
innodb_autoinc_lock_mode = 2
"""


@pytest.mark.state("binlog")
def test_a_galera_node_is_desynced_for_the_snapshot_alone_and_refused_when_it_is_not_synced(etrial: Etrial) -> None:
    etrial.machine.put(GALERA_CNF.encode(), "/etc/mysql/conf.d/galera.cnf")
    etrial.machine.run("systemctl stop mariadb && galera_new_cluster", timeout=180)
    etrial.small_job(mysql="mysql: {desync: true}")
    look = """
        def look(_session):
            import pymysql
            cursor = pymysql.connect(unix_socket='/run/mysqld/mysqld.sock', user='root').cursor()
            cursor.execute('SELECT @@GLOBAL.wsrep_desync')
            print('desync under the lock: %d' % cursor.fetchone()[0], file=sys.stderr)
        at('lock held', look)
    """
    done = etrial.faulty(look, "run", "etrial")
    assert done.rc == 0, done.stderr
    assert "desync under the lock: 1" in done.stderr
    assert etrial.sql("SELECT @@GLOBAL.wsrep_desync").strip() == "0"
    etrial.sql("SET GLOBAL wsrep_desync = ON")
    done = etrial.stillpoint("run", "etrial", check=False)
    assert done.rc == 75
    assert "is not Synced" in done.stderr
    assert etrial.sql("SELECT @@GLOBAL.wsrep_desync").strip() == "1", "somebody else's desync is theirs to end"
    assert len(etrial.generations()) == 1
