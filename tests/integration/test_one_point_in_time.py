# SPDX-License-Identifier: GPL-3.0-or-later
"""A backup is one point in time: database and files together, at exactly the coordinates that it states."""

from __future__ import annotations

import pytest
from etrial import Etrial

JOB = """
    name: etrial
    mysql: {{method: snapshot, lock: {lock}}}
    files: [/opt/processmaker]
    exclude: ["/core/", "/plugins/", "/translations/"]
    repository: /backups
"""
BINLOGS = "/var/log/mysql"


@pytest.mark.state("binlog")
@pytest.mark.parametrize("lock", ["auto", "ftwrl"])
def test_a_backup_under_load_is_one_point_in_time_at_the_recorded_coordinates(etrial: Etrial, lock: str) -> None:
    etrial.job(JOB.format(lock=lock))
    with etrial.load() as report:
        summary = etrial.backup()
    coordinates = summary["coordinates"]
    # the binary logs are outside the data directory, so the copy recovers without them; the judge reads the live ones only to
    # show that what lies between InnoDB's position and the recorded one is not transactional
    good, verdict = etrial.judge_generation(summary["path"], "--coordinates", f"{coordinates['file']}:{coordinates['position']}", "--binlogs", BINLOGS)
    assert good, verdict["violations"]
    assert verdict["recovery"]["prepared"] == []
    assert verdict["rows"] > 0
    assert verdict["files"] > 0
    assert summary["lock"]["method"] == ("backup_stage" if lock == "auto" else "ftwrl")
    assert 0 < summary["lock"]["held_ms"] < report["commit"]["worst_ms"] + 2000


def test_without_binary_logging_a_backup_is_one_point_in_time_and_an_rsync_of_the_live_directories_is_not(etrial: Etrial) -> None:
    etrial.job(JOB.format(lock="auto"))
    with etrial.load():
        etrial.machine.run("mkdir -p /backups/rsync/files/opt")
        etrial.machine.run("rsync -a /var/lib/mysql /backups/rsync/; rsync -a /opt/processmaker /backups/rsync/files/opt/", check=False, timeout=300)
        summary = etrial.backup()
    assert summary["coordinates"] is None
    assert any("binary logging is off" in warning for warning in summary["warnings"])
    good, verdict = etrial.judge_generation(summary["path"])
    assert good, verdict["violations"]
    good, verdict = etrial.judge_generation("/backups/rsync")
    assert not good
    assert verdict["violations"]
