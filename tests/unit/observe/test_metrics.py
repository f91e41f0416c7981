# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List

from _core.archive.archive import FIRST, GAP, Archive
from _core.archive.metrics import ArchiveMetrics
from _core.observe import metrics
from _core.observe.notify import FAILED, VERIFY, Outcome
from trees import START, back_up, job, tree, write

SERVER = {"flavour": "mariadb", "version": "10.11", "uuid": None, "basename": "/var/log/mysql/mysql-bin"}


def values(directory: Path, name: str) -> Dict[str, float]:
    """Return the samples of a file: name with labels, and value."""
    lines = (directory / name).read_text(encoding="utf-8").splitlines()
    return {sample: float(value) for sample, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_the_text_format_has_a_family_in_one_piece_and_labels_that_are_escaped() -> None:
    samples: List[metrics.Sample] = [
        ("backups", {"backup_job": 'a"b\\c\n', "state": "good"}, 2),
        ("backup_size_bytes", {"backup_job": "x"}, 1288490189),
        ("backups", {"backup_job": "x", "state": "bad"}, 0),
    ]
    assert metrics.text(samples).splitlines() == [
        "# HELP stillpoint_backups How many backups there are in each state.",
        "# TYPE stillpoint_backups gauge",
        'stillpoint_backups{backup_job="a\\"b\\\\c\\n",state="good"} 2.0',
        'stillpoint_backups{backup_job="x",state="bad"} 0.0',
        "# HELP stillpoint_backup_size_bytes " + metrics._HELP["backup_size_bytes"],
        "# TYPE stillpoint_backup_size_bytes gauge",
        'stillpoint_backup_size_bytes{backup_job="x"} 1288490189.0',
    ]


def test_what_backups_there_are_is_counted_by_state_with_the_newest_of_each(tmp_path: Path) -> None:
    directory = job(tmp_path / "repository")
    (tmp_path / "tree").mkdir()
    write(str(tmp_path / "tree" / "file"), b"12345")
    files = tree(str(tmp_path / "tree"))
    back_up(directory, files)
    back_up(directory, files, hours=1, proof={"ok": False, "reason": "it does not start"})
    back_up(directory, files, hours=2, lock={"method": "ftwrl", "held_ms": 228.7}, duration_s=14.2)
    metrics.write(str(tmp_path), "job", metrics.BACKUPS, metrics.backups("job", directory.generations()), lambda text: None)
    assert values(tmp_path, "stillpoint_job_backups.prom") == {
        'stillpoint_backups{backup_job="job",state="good"}': 2,
        'stillpoint_backups{backup_job="job",state="unproven"}': 0,
        'stillpoint_backups{backup_job="job",state="bad"}': 1,
        'stillpoint_backup_newest_timestamp_seconds{backup_job="job",state="good"}': START.timestamp() + 7200,
        'stillpoint_backup_newest_timestamp_seconds{backup_job="job",state="bad"}': START.timestamp() + 3600,
        'stillpoint_backup_size_bytes{backup_job="job"}': 5,
        'stillpoint_backup_duration_seconds{backup_job="job"}': 14.2,
        'stillpoint_backup_lock_held_seconds{backup_job="job"}': 0.2287,
    }


def test_how_a_verification_ended_does_not_touch_what_is_known_of_the_last_run() -> None:
    failed = Outcome("etrial", "db1", FAILED, 1, "two faults", action=VERIFY)
    assert {name: value for name, _labels, value in metrics.ended(failed, 17.0)} == {"verify_end_timestamp_seconds": 17.0, "verify_exit_code": 1}


def test_a_file_is_replaced_whole_for_all_to_read_and_one_that_can_not_be_is_warned_of(tmp_path: Path) -> None:
    warnings: List[str] = []
    (tmp_path / "stillpoint_job_run.prom").write_text("old and longer than what comes now" * 100)
    metrics.write(str(tmp_path), "job", "run", [("run_exit_code", {"backup_job": "job"}, 0)], warnings.append)
    assert values(tmp_path, "stillpoint_job_run.prom") == {'stillpoint_run_exit_code{backup_job="job"}': 0}
    assert (tmp_path / "stillpoint_job_run.prom").stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["stillpoint_job_run.prom"]
    assert warnings == []
    metrics.write(str(tmp_path / "none"), "job", "run", [], warnings.append)
    assert warnings == ["notify.metrics: %s/none/stillpoint_job_run.prom can't be written: No such file or directory" % tmp_path]


def test_a_gap_in_the_archive_is_one_until_a_backup_that_recovery_can_begin_with_was_taken_behind_it(tmp_path: Path, monkeypatch: Any) -> None:
    directory = job(tmp_path / "repository")
    (tmp_path / "tree").mkdir()
    files = tree(str(tmp_path / "tree"), "mysql")
    stands = {"coordinates": {"file": "mysql-bin.000009", "position": 342}}
    archive = Archive(directory.path)
    told: List[str] = []
    service = ArchiveMetrics(str(tmp_path), "job", archive, told.append)

    def gap(line: int) -> float:
        service.say({"time": 1000.5, "state": "streaming", "lag_bytes": 12, "synced": 999.25, "line": line}, directory.generations)
        found = values(tmp_path, "stillpoint_job_binlog.prom")
        assert found['stillpoint_binlog_archive_seen_timestamp_seconds{backup_job="job"}'] == 1000.5
        assert found['stillpoint_binlog_archive_complete_timestamp_seconds{backup_job="job"}'] == 999.25
        assert found['stillpoint_binlog_archive_lag_bytes{backup_job="job"}'] == 12
        assert [found['stillpoint_binlog_archive_state{backup_job="job",state="%s"}' % state] for state in metrics.STATES] == [1, 0, 0, 0]
        return found['stillpoint_binlog_archive_gap{backup_job="job"}']

    archive.begin(FIRST, "the archive begins", "mysql-bin.000001", SERVER)
    assert gap(1) == 0
    monkeypatch.setattr("_core.archive.archive._now", lambda: "2026-11-22T03:00:05.000Z")
    archive.begin(GAP, "the server has purged its binary logs", "mysql-bin.000009", SERVER)
    assert gap(2) == 1
    monkeypatch.setattr(ArchiveMetrics, "_LOOK_EVERY", 0.0)
    back_up(directory, files, **stands)
    assert gap(2) == 1, "that one was taken before the gap"
    back_up(directory, files, hours=2, proof={"ok": False, "reason": "it does not start"}, **stands)
    assert gap(2) == 1
    back_up(directory, tree(str(tmp_path / "tree"), "dump"), hours=3, **stands)
    assert gap(2) == 1, "logs can't be replayed onto a dump"
    back_up(directory, files, hours=4)
    back_up(directory, files, hours=5, coordinates={"file": None, "position": None})
    assert gap(2) == 1, "nobody knows where these two stand"
    back_up(directory, files, hours=6, **stands)
    assert gap(2) == 0
    assert told == []
