# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore in place: everything comes back as it was, and what is replaced is kept until told otherwise."""

from __future__ import annotations

import json

import pytest
from etrial import Etrial

# Every attribute of every file: type, mode, owner, links, size, time, checksum; then ACLs, extended attributes, and what is sparse.
STATE = """
    cd /opt/processmaker
    find . ! -type d -printf '%p %y %m %U %G %n %s %T@ %l\\0' | sort -z | md5sum
    find . -type d -printf '%p %m %U %G %T@\\0' | sort -z | md5sum
    find . -type f -print0 | sort -z | xargs -0 md5sum | md5sum
    find . -print0 | sort -z | xargs -0 getfacl -n 2>/dev/null | md5sum
    find . -print0 | sort -z | xargs -0 getfattr -hd -m - -e hex 2>/dev/null | md5sum
    find . -type f -size +1M -printf '%S %p\\n' | awk '$1 < 0.1 { print $2 }' | sort
"""
JOB = "name: etrial\nmysql: {method: snapshot}\nfiles: [/opt/processmaker]\nrepository: /backups\n"


def test_a_restore_in_place_brings_everything_back_and_keeps_what_it_replaces(etrial: Etrial) -> None:
    machine = etrial.machine
    etrial.job(JOB)
    # a file that has names outside of a path comes back as one of its own
    part = STATE.replace("cd /opt/processmaker", "cd /opt/processmaker/shared").replace(" %n ", " ")
    before, part_before = machine.run(STATE).stdout, machine.run(part).stdout
    documents = etrial.sql("CHECKSUM TABLE wf_workflow.APP_DOCUMENT, rp_workflow.USERS EXTENDED")
    etrial.backup()
    etrial.sql("DROP DATABASE wf_workflow; DROP DATABASE rp_workflow; CREATE DATABASE later")
    machine.run("rm -rf /opt/processmaker/shared && touch /opt/processmaker/later")

    shown = etrial.stillpoint("restore", "etrial", "--dry-run")
    assert "/var/lib/mysql" in shown.stdout
    refused = etrial.stillpoint("restore", "etrial", check=False)
    assert refused.rc == 2
    assert "--yes" in refused.stderr
    assert machine.run("ls /opt/processmaker/later").rc == 0

    etrial.stillpoint("restore", "etrial", "--yes", timeout=600)
    assert machine.run(STATE).stdout == before
    assert etrial.sql("CHECKSUM TABLE wf_workflow.APP_DOCUMENT, rp_workflow.USERS EXTENDED") == documents
    assert "later" not in etrial.sql("SHOW DATABASES").split()
    assert machine.run("systemctl is-active mariadb").stdout.strip() == "active"
    kept = machine.run("ls -d /var/lib/mysql.replaced-* /opt/processmaker.replaced-*").stdout.split()
    assert len(kept) == 2
    assert machine.run("ls -d /var/lib/mysql.replaced-*/later /opt/processmaker.replaced-*/later").rc == 0

    etrial.stillpoint("discard", "etrial", "--yes")
    assert machine.run("ls -d /var/lib/mysql.replaced-* /opt/processmaker.replaced-*", check=False).stdout == ""
    assert etrial.sql("CHECKSUM TABLE wf_workflow.APP_DOCUMENT, rp_workflow.USERS EXTENDED") == documents

    started = machine.run("systemctl show -p MainPID --value mariadb").stdout
    machine.run("rm -rf /opt/processmaker/shared/* && echo later > /opt/processmaker/shared/later")
    done = json.loads(etrial.stillpoint("restore", "etrial", "--path", "/opt/processmaker/shared", "--yes", "--json").stdout)
    assert machine.run(["cat", done["replaced"][0] + "/later"]).stdout == "later\n"
    etrial.stillpoint("discard", "etrial", "--yes")
    assert machine.run(part).stdout == part_before
    assert machine.run("systemctl show -p MainPID --value mariadb").stdout == started


def test_a_generation_that_fails_its_checksums_is_refused_before_anything_is_touched(etrial: Etrial) -> None:
    machine = etrial.machine
    etrial.job(JOB.replace("/opt/processmaker", "/opt/processmaker/shared"))
    path = etrial.backup()["path"]
    started = machine.run("systemctl show -p MainPID --value mariadb").stdout
    # one bit, with size and time as they were
    machine.run(
        f"python3 - <<'END'\nimport os\np = '{path}/mysql/ibdata1'\ns = os.stat(p)\nf = open(p, 'r+b')\nf.seek(5000)\nb = f.read(1)\n"
        "f.seek(5000)\nf.write(bytes([b[0] ^ 1]))\nf.close()\nos.utime(p, ns=(s.st_atime_ns, s.st_mtime_ns))\nEND"
    )
    done = etrial.stillpoint("restore", "etrial", "--yes", check=False, timeout=600)
    assert done.rc == 1
    assert "ibdata1" in done.stderr
    assert machine.run("systemctl show -p MainPID --value mariadb").stdout == started
    assert machine.run("ls -d /var/lib/.mysql* /var/lib/mysql.* 2>/dev/null", check=False).stdout == ""
    found = etrial.stillpoint("verify", "etrial", etrial.generations()[0]["generation"], check=False, timeout=600)
    assert found.rc == 1
    assert "ibdata1" in found.stdout + found.stderr
    assert etrial.generations()[0]["state"] == "bad"
    assert etrial.stillpoint("restore", "etrial", "--yes", check=False).rc == 2


def test_after_a_power_cut_in_the_exchange_the_server_stays_down_until_the_restore_is_undone(etrial: Etrial) -> None:
    machine = etrial.machine
    etrial.job(JOB.replace("/opt/processmaker", "/opt/processmaker/shared"))
    etrial.backup()
    etrial.sql("CREATE DATABASE later")
    machine.run("touch /opt/processmaker/shared/later")
    assert etrial.faulty("at('exchanged', die)", "restore", "etrial", "--yes", timeout=600).rc == 128 + 9
    machine.power_cut()
    assert machine.run("systemctl is-active mariadb", check=False).stdout.strip() != "active"
    refused = machine.run("systemctl start mariadb", check=False)
    assert refused.rc != 0 and "assert" in (refused.stdout + refused.stderr).lower()
    assert "stillpoint restore JOB" in machine.run("systemctl cat mariadb").stdout
    etrial.stillpoint("undo", "etrial", "--yes", timeout=600)
    assert "later" in etrial.sql("SHOW DATABASES").split()
    assert machine.run("ls /opt/processmaker/shared/later").rc == 0
    assert "stillpoint" not in machine.run("systemctl cat mariadb").stdout
    assert machine.run("ls -ad /var/lib/mysql.replaced* /var/lib/.mysql* /opt/processmaker/*replaced*", check=False).stdout == ""


@pytest.mark.parametrize((), [pytest.param(id="MariaDB 10.11"), pytest.param(marks=pytest.mark.suite("sid"), id="MySQL 9.7")])
def test_one_table_of_a_backup_comes_back_into_the_running_server_and_no_other(etrial: Etrial) -> None:
    def checksum(table: str) -> str:
        return etrial.sql(f"CHECKSUM TABLE {table} EXTENDED").split()[1]

    etrial.small_job()
    innodb, myisam = "wf_workflow.APP_DOCUMENT", "wf_workflow.LOGIN_LOG"
    before = {table: checksum(table) for table in (innodb, myisam)}
    etrial.backup()
    etrial.sql(f"DELETE FROM {innodb}; DELETE FROM {myisam}")
    emptied = checksum(innodb)
    etrial.stillpoint("restore", "etrial", "--table", innodb, "--as", "rp_workflow.document_before", "--yes", timeout=600)
    assert (checksum("rp_workflow.document_before"), checksum(innodb)) == (before[innodb], emptied)
    done = json.loads(etrial.stillpoint("restore", "etrial", "--table", innodb, "--yes", "--json", timeout=600).stdout)
    assert done["table"] == innodb.split(".")
    assert checksum(innodb) == before[innodb]
    assert etrial.sql(f"SELECT COUNT(*) FROM {myisam}").strip() == "0"
    etrial.stillpoint("restore", "etrial", "--table", myisam, "--yes", timeout=600)
    assert checksum(myisam) == before[myisam]
    etrial.sql("DROP TABLE rp_workflow.document_before")
    assert etrial.left_behind() == []
