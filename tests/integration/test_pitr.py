# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery to a point in time on the replica: the archive as a service, a table dropped under load, and every row back."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from etrial import AGENT, Etrial
from guest import HERE as LOAD
from machine import Machine

JOB = "name: etrial\nmysql: {}\nrepository: /backups\nbinlog: {archive: true}\n"

TEMPLATE = Path(__file__).resolve().parents[2] / "roles/backup_client/templates/stillpoint-archive@.service.j2"
UNIT = re.sub(r"{#.*?#}\n", "", TEMPLATE.read_text()).replace("{{ backup_client_agent }}", AGENT).replace("{{ backup_client_mark }}", "A test")


def start_committer(machine: Machine) -> None:
    machine.put(LOAD / "committer.py", "/root/committer.py")
    machine.run("setsid python3 /root/committer.py /run/mysqld/mysqld.sock /run/committer >/run/committer.log 2>&1 </dev/null & true")


def known(machine: Machine) -> set[tuple[int, int]]:
    """Return what the sessions of the load know to be committed."""
    text = machine.run("for n in 1 2; do sed \"s/^/$n /\" /run/committer/$n; done").stdout
    return {(int(one), int(key)) for one, key in (line.split() for line in text.splitlines())}


def there(etrial: Etrial, table: str) -> set[tuple[int, int]]:
    return {(int(one), int(key)) for one, key in (line.split() for line in etrial.sql(f"SELECT writer, id FROM load_d.{table}").splitlines())}


def timeline(etrial: Etrial) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(etrial.stillpoint("show", "etrial", "--timeline", "--json").stdout)
    return found


def wait_for(what: str, condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(1)


@dataclass(frozen=True)
class Flavour:
    """What a server's statements are called.

    :ivar status: says where its binary log stands
    :ivar gap: what leaves out GTIDs for the statement after it
    """

    unit: str
    status: str
    gtids: str
    gap: str
    reset: str


MARIADB = Flavour("mariadb", "SHOW MASTER STATUS", "@@GLOBAL.gtid_binlog_pos", "SET SESSION gtid_seq_no = 100000", "RESET MASTER")
MYSQL = Flavour(
    "mysql",
    "SHOW BINARY LOG STATUS",
    "@@GLOBAL.gtid_executed",
    "SET @gap = CONCAT(\"SET SESSION gtid_next = '\", @@server_uuid, \":100000'\"); PREPARE gap FROM @gap; EXECUTE gap",
    "RESET BINARY LOGS AND GTIDS",
)


def gtid_at(etrial: Etrial, file: str, position: str) -> str:
    """Return the GTID of the transaction that begins at a place in a log."""
    event = etrial.sql(f"SHOW BINLOG EVENTS IN '{file}' FROM {position} LIMIT 1")
    return re.findall(r"[0-9a-f-]+[-:][0-9]+", event)[-1]


@pytest.mark.parametrize(
    "flavour",
    [
        pytest.param(MARIADB, marks=pytest.mark.state("binlog"), id="MariaDB 10.11"),
        pytest.param(MARIADB, marks=pytest.mark.suite("trixie"), id="MariaDB 11.8"),
        pytest.param(MYSQL, marks=pytest.mark.suite("sid"), id="MySQL 9.7"),
    ],
)
def test_a_table_dropped_under_load_comes_back_with_every_commit_before_the_drop(etrial: Etrial, flavour: Flavour) -> None:
    machine = etrial.machine
    etrial.binary_logging()
    etrial.job(JOB)
    machine.put(UNIT.encode(), "/etc/systemd/system/stillpoint-archive@.service")
    machine.run("systemctl daemon-reload && systemctl start stillpoint-archive@etrial")
    etrial.sql(
        "CREATE DATABASE load_d; CREATE TABLE load_d.orders (writer INT, id BIGINT, s TEXT, PRIMARY KEY (writer, id));"
        "CREATE TABLE load_d.parts (writer INT, id BIGINT, n INT, PRIMARY KEY (writer, id))"
    )
    start_committer(machine)
    first = etrial.backup()
    etrial.sql("FLUSH BINARY LOGS; ALTER TABLE load_d.parts ADD COLUMN note VARCHAR(20) NOT NULL DEFAULT 'added'")
    second = etrial.backup()
    assert second["coordinates"]["file"] > first["coordinates"]["file"]
    machine.run(f"systemctl restart {flavour.unit}", timeout=120)
    etrial.sql(
        "SET SESSION binlog_format = 'STATEMENT'; CREATE TEMPORARY TABLE load_d.basket (n INT); INSERT INTO load_d.basket VALUES (1), (2), (3);"
        "CREATE TABLE load_d.kept (n INT); FLUSH BINARY LOGS; INSERT INTO load_d.kept SELECT n FROM load_d.basket"
    )
    etrial.sql(f"{flavour.gap}; INSERT INTO load_d.kept VALUES (4)")
    time.sleep(2)
    # the writers wait for the lock; what they have got is what they know, and the drop comes next
    said = etrial.sql(
        f"LOCK TABLES load_d.orders WRITE, load_d.parts WRITE; DO SLEEP(2.5); {flavour.status};"
        "SELECT DATE_FORMAT(UTC_TIMESTAMP(), '%Y-%m-%d %H:%i:%sZ'); DROP TABLE load_d.orders"
    )
    status, moment = said.splitlines()
    dropped = gtid_at(etrial, *status.split()[:2])
    machine.run("touch /run/committer/stop; while pgrep -f '[/]root/committer' >/dev/null; do sleep 0.2; done", timeout=60)
    committed = known(machine)
    assert len(committed) > 20
    wait_for("the archive to have it all", lambda: timeline(etrial)["archive"]["lag_bytes"] == 0)

    # too early, too late: refused, with nothing touched
    refused = etrial.stillpoint("restore", "etrial", "--until", "2099-01-01 00:00:00Z", "--yes", check=False)
    assert refused.rc == 1
    assert "the archive does not reach" in refused.stderr
    assert "what can be recovered is" in refused.stderr

    shown = etrial.stillpoint("restore", "etrial", "--until", moment, "--dry-run").stdout
    assert second["generation"] in shown
    assert f"the first transaction that is left out: {dropped}" in shown
    identity = etrial.sql("SELECT @@server_id" if flavour is MARIADB else "SELECT @@server_uuid").strip()
    done = json.loads(etrial.stillpoint("restore", "etrial", "--until", moment, "--yes", "--json", timeout=600).stdout)
    assert done["recovery"]["leaves_out_from"]["gtid"] == dropped
    assert there(etrial, "orders") == committed
    assert there(etrial, "parts") == committed
    assert etrial.sql("SELECT DISTINCT note FROM load_d.parts").strip() == "added"
    assert etrial.sql("SELECT n FROM load_d.kept ORDER BY n").split() == ["1", "2", "3", "4"]
    assert any("mysql-bin.replaced-" in path for path in done["replaced"]) == (flavour is MARIADB), "the logs that lie beside the data"

    # production gives out no GTID that it ever gave out before, in new logs, and the archive goes on with it
    etrial.sql("CREATE TABLE load_d.later (i INT)")
    given = etrial.sql(f"SELECT {flavour.gtids}").replace("\\n", "").strip()
    if flavour is MARIADB:
        domain_and_server, _dash, number = dropped.rpartition("-")
        assert given == f"{domain_and_server}-{int(number) + 1}"
    else:
        anew = etrial.sql("SELECT @@server_uuid").strip()
        assert anew != identity
        assert f"{anew}:1" in given.split(",")
    wait_for("the archive to go on", lambda: [gap["reason"] for gap in timeline(etrial)["gaps"]] == ["restored"])
    etrial.backup()
    wait_for("the new backup to be a beginning", lambda: len(timeline(etrial)["restorable"]) == 2)
    etrial.sql(f"{flavour.reset}; CREATE TABLE load_d.after_the_reset (i INT)")
    wait_for("the reset to be noticed", lambda: [gap["reason"] for gap in timeline(etrial)["gaps"]] == ["restored", "reset"])


@pytest.mark.state("binlog")
def test_from_another_generation_the_same_moment_gives_the_same_rows_beside_the_live_data(etrial: Etrial) -> None:
    machine = etrial.machine
    etrial.job(JOB.replace("archive: true", "archive: true, method: copy"))
    etrial.sql("CREATE DATABASE d; CREATE TABLE d.t (i INT PRIMARY KEY AUTO_INCREMENT)")
    first = etrial.backup()
    etrial.sql("INSERT INTO d.t VALUES (), (), (); FLUSH BINARY LOGS; INSERT INTO d.t VALUES ()")
    last = etrial.sql("SELECT @@gtid_binlog_pos").strip()
    etrial.sql("DELETE FROM d.t")
    etrial.stillpoint("archive", "etrial", "--once")
    machine.run("mkdir -p /srv")
    done = json.loads(
        etrial.stillpoint("restore", "etrial", first["generation"], "--until-gtid", last, "--to", "/srv/look", "--json", timeout=300).stdout
    )
    assert done["recovery"]["gtid"] == last
    assert etrial.sql("SELECT COUNT(*) FROM d.t").strip() == "0"
    machine.run("systemctl stop mariadb && mv /var/lib/mysql /var/lib/mysql.live && mv /srv/look/mysql /var/lib/mysql && systemctl start mariadb", timeout=120)
    assert etrial.sql("SELECT COUNT(*) FROM d.t").strip() == "4"
    assert etrial.sql("SELECT @@gtid_slave_pos").strip() == last
