# SPDX-License-Identifier: GPL-3.0-or-later
"""Dumps on the replica: taken while users write, loaded into the running server, together with the files."""

from __future__ import annotations

import json

import pytest
from etrial import Etrial

CHECKSUMS = "CHECKSUM TABLE wf_workflow.APP_DOCUMENT, wf_workflow.LOGIN_LOG, rp_workflow.USERS EXTENDED"


@pytest.mark.parametrize(
    (), [pytest.param(marks=pytest.mark.state("binlog"), id="MariaDB 10.11"), pytest.param(marks=pytest.mark.suite("sid"), id="MySQL 9.7")]
)
def test_a_dump_with_files_comes_back_into_the_running_server(etrial: Etrial) -> None:
    machine = etrial.machine
    etrial.small_job(mysql="mysql: {method: dump}")
    before = etrial.sql(CHECKSUMS)
    pid = machine.run("pidof mariadbd mysqld").stdout
    planned = etrial.stillpoint("plan", "etrial").stdout
    assert "wf_workflow.LOGIN_LOG (MyISAM)" in planned
    with etrial.load() as report:
        summary = etrial.backup()
    assert report["commit"]["worst_ms"] < 5000
    assert summary["coordinates"]["file"]
    assert any("not one point in time" in warning for warning in summary["warnings"])
    assert [tree["name"] for tree in summary["trees"]] == ["dump.sql.zst", "users.sql.zst", "files/opt/processmaker/shared"]
    assert etrial.left_behind() == []

    etrial.sql("DROP DATABASE wf_workflow; DELETE FROM rp_workflow.USERS; CREATE DATABASE later")
    machine.run("rm -rf /opt/processmaker/shared/sites")
    refused = etrial.stillpoint("restore", "etrial", check=False)
    assert refused.rc == 2
    assert "replaces the databases" in refused.stdout
    assert "rp_workflow" in refused.stdout
    etrial.stillpoint("restore", "etrial", "--yes", timeout=600)
    assert etrial.sql(CHECKSUMS) == before
    assert "later" in etrial.sql("SHOW DATABASES").split()
    assert machine.run("ls -d /opt/processmaker/shared/sites /opt/processmaker/shared.replaced-*").rc == 0
    assert machine.run("pidof mariadbd mysqld").stdout == pid, "the server was started anew"

    etrial.sql("DELETE FROM rp_workflow.USERS; DELETE FROM wf_workflow.LOGIN_LOG")
    done = json.loads(etrial.stillpoint("restore", "etrial", "--table", "rp_workflow.USERS", "--yes", "--json").stdout)
    assert done["table"] == ["rp_workflow", "USERS"]
    assert etrial.sql("SELECT COUNT(*) FROM rp_workflow.USERS; SELECT COUNT(*) FROM wf_workflow.LOGIN_LOG").split() == ["2", "0"]


@pytest.mark.state("binlog")
def test_a_dump_from_a_snapshot_is_one_point_in_time_with_the_files(etrial: Etrial) -> None:
    etrial.job("""
        name: etrial
        mysql: {method: dump, source: snapshot}
        files: [/opt/processmaker]
        exclude: ["/core/", "/plugins/", "/translations/"]
        repository: /backups
    """)
    etrial.sql("CREATE EVENT wf_workflow.nightly ON SCHEDULE EVERY 1 DAY DO DO 1")
    with etrial.load():
        summary = etrial.backup()
    assert summary["lock"]["method"] == "backup_stage"
    assert summary["coordinates"]["gtid"]
    assert summary["dump"]["locked_tables"] == 0
    assert not any("not one point in time" in warning for warning in summary["warnings"])
    assert etrial.left_behind() == []
    etrial.sql("DROP DATABASE wf_workflow; DROP DATABASE rp_workflow")
    etrial.stillpoint("restore", "etrial", "--yes", timeout=600)
    good, verdict = etrial.judge("server", "--application", "/opt/processmaker")
    assert good, verdict["violations"]
    assert verdict["rows"] > 0
    assert verdict["files"] > 0
    assert etrial.sql("SELECT EVENT_NAME FROM information_schema.EVENTS").split() == ["nightly"]
