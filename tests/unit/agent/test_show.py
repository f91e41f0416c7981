# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Dict

import pytest
from _core.agent import show
from _core.host import text

NOW = datetime(2026, 11, 22, 5, 0, 5, tzinfo=timezone.utc)


def summary(**changes: Any) -> Dict[str, Any]:
    """Return a manifest's summary, with some keys changed."""
    facts: Dict[str, Any] = {
        "job": "etrial",
        "generation": "2026-11-22T02-00-05Z",
        "time": "2026-11-22T02:00:05.123Z",
        "path": "/backups/etrial/etrial/2026-11-22T02-00-05Z",
        "state": "unproven",
        "trees": [{"name": "mysql", "source": "/var/lib/mysql", "files": 321, "bytes": 943718400}],
        "server": {
            "flavour": "mariadb",
            "version": "10.11.19-MariaDB",
            "datadir": "/var/lib/mysql",
            "uuid": None,
            "unit": "mariadb.service",
        },
        "lock": {"method": "backup_stage", "reason": "it stops commits", "waited_ms": 2.6, "held_ms": 228.7, "frozen_ms": 70.1},
        "coordinates": {"file": "bin.000003", "position": 3083129, "gtid": "0-1-17", "replica": None},
        "snapshots": [{"vg": "vg00", "origin": "root", "name": "x", "size_bytes": 1024**3, "used_percent": 12.34}],
        "copy": {"files": 5321, "bytes": 1288490189, "bytes_transferred": 35651584, "duration_s": 12.0, "rsync": "3.2.7"},
        "proof": None,
        "warnings": ["the repository lies on vg00/root"],
        "duration_s": 14.2,
    }
    facts.update(changes)
    return facts


def test_a_generation_shows_what_was_locked_for_how_long_and_where_the_binary_log_stood() -> None:
    lines = show.generation(summary(), NOW)
    assert lines == [
        "etrial 2026-11-22T02-00-05Z",
        "  taken        2026-11-22 02:00:05 UTC (2 h ago), in 14.2 s",
        "  state        unproven",
        "  path         /backups/etrial/etrial/2026-11-22T02-00-05Z",
        "  server       mariadb 10.11.19-MariaDB, /var/lib/mysql",
        "  lock         backup_stage, held 229 ms (3 ms of them to get it), file system frozen 70 ms",
        "               because it stops commits",
        "  coordinates  bin.000003:3083129, GTID 0-1-17",
        "  snapshot     vg00/root, 1.0 GiB, 12.3 % used",
        "  copy         5,321 files, 1.2 GiB, of which 34.0 MiB were new, in 12.0 s",
        "  holds        /var/lib/mysql in mysql: 321 files, 900.0 MiB",
        "  proof        none: nobody has tried yet whether it starts",
        "  warning      the repository lies on vg00/root",
    ]


def test_of_several_volumes_it_says_how_far_apart_they_are_and_of_a_thin_one_how_full_its_pool_was() -> None:
    facts = summary()
    facts["lock"]["skew_ms"] = 41.8
    facts["snapshots"].append({"vg": "data", "origin": "db", "thin": True, "used_percent": None, "pool": "pool", "pool_percent": 61.26})
    lines = show.generation(facts, NOW)
    assert "  lock         backup_stage, held 229 ms (3 ms of them to get it), file system frozen 70 ms, volumes at most 42 ms apart" in lines
    assert "  snapshot     data/db, thin, the pool pool was 61.3 % full" in lines


def test_a_server_without_binary_log_and_a_replica_are_told_apart() -> None:
    assert any("coordinates  none" in line for line in show.generation(summary(coordinates=None), NOW))
    source = {"channel": "", "host": "db1", "port": 3306, "file": "bin.7", "position": 99, "gtid": None}
    lines = show.generation(summary(coordinates={"file": "", "position": 0, "gtid": None, "replica": [source]}), NOW)
    assert "  coordinates  no binary log of its own" in lines
    assert "  replica of   db1:3306 at bin.7:99" in lines


def test_a_lock_that_let_commits_go_on_says_so_and_between_which_coordinates_the_backup_stands() -> None:
    between = [{"file": "binlog.000002", "position": position, "gtid": None} for position in (1437, 1800)]
    lock = {"method": "instance", "reason": "x", "waited_ms": 1.0, "held_ms": 20.0, "between": between}
    text = "\n".join(show.generation(summary(lock=lock, coordinates=None), NOW))
    assert "instance, held 20 ms (1 ms of them to get it), commits went on" in text
    assert "none: the server wrote no binary log, or commits went on\n               between binlog.000002:1437 and binlog.000002:1800" in text


def test_files_alone_have_neither_server_nor_lock() -> None:
    heads = [line.split()[0] for line in show.generation(summary(server=None, lock=None, coordinates=None), NOW)]
    assert not {"server", "lock", "coordinates"} & set(heads)


def test_what_a_generation_alone_has_on_the_disk_is_shown_where_it_is_known() -> None:
    lines = show.generation(summary(own_bytes=5 << 20), NOW)
    assert "  own          5.0 MiB, which its removal would free; the rest is shared with other generations" in lines
    assert not any(line.startswith("  own") for line in show.generation(summary(), NOW))


def test_a_failed_proof_and_the_reason_of_a_bad_state_are_shown() -> None:
    failed = {"ok": False, "reason": "it holds 1 prepared transactions", "duration_s": 4.0}
    lines = show.generation(summary(proof=failed, state="bad", reason="2 files differ"), NOW)
    assert "  proof        failed in 4.0 s: it holds 1 prepared transactions" in lines
    assert "  state        bad: 2 files differ" in lines


def test_a_proof_that_could_not_be_done_is_not_called_failed() -> None:
    undone = {"ok": None, "reason": "there was no room", "duration_s": 4.0}
    assert "  proof        not done in 4.0 s: there was no room" in show.generation(summary(proof=undone, state="unproven"), NOW)
    row = {"job": "web", "generation": "x", "time": "2026-11-22T02:00:05Z", "size_bytes": 7, "state": "unproven", "lock": None, "proof": undone}
    assert show.generations([row], NOW).splitlines()[1].endswith("not done")


def test_the_table_has_ages_and_sizes() -> None:
    row = {
        "job": "etrial",
        "generation": "2026-11-22T02-00-05Z",
        "time": "2026-11-22T02:00:05Z",
        "size_bytes": 1288490189,
        "state": "good",
        "lock": {"held_ms": 228.7},
        "proof": {"ok": True},
    }
    old = {
        **row,
        "job": "web",
        "generation": "2026-11-01T02-00-05Z",
        "time": "2026-11-01T02:00:05Z",
        "size_bytes": 7,
        "state": "bad",
        "lock": None,
        "proof": None,
    }
    assert show.generations([row, old], NOW).splitlines() == [
        "JOB     GENERATION             AGE     SIZE  STATE  LOCK HELD  PROOF",
        "etrial  2026-11-22T02-00-05Z   3 h  1.2 GiB  good      229 ms  passed",
        "web     2026-11-01T02-00-05Z  21 d      7 B  bad            -  -",
    ]


@pytest.mark.parametrize(
    "seconds, said", [(0.0004, "0 ms"), (0.35, "350 ms"), (12.46, "12.5 s"), (185, "3:05 min"), (7800, "2:10 h"), (5 * 86400, "5 d")]
)
def test_durations_read_well(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said


@pytest.mark.parametrize(
    "seconds, said", [(-5, "in the future"), (30, "now"), (90, "1 min"), (3 * 3600, "3 h"), (47 * 3600, "47 h"), (49 * 3600, "2 d")]
)
def test_ages_read_well(seconds: float, said: str) -> None:
    assert text.age(seconds) == said


def test_a_moment_is_read_with_and_without_a_fraction() -> None:
    assert text.moment("2026-11-22T05:00:05Z") == NOW
    assert text.moment("2026-11-22T05:00:05.250Z") == NOW + timedelta(milliseconds=250)


def test_the_evidence_of_a_proof_is_shown_a_line_for_each_thing_that_was_found() -> None:
    proof = {
        "ok": True,
        "reason": "",
        "duration_s": 12.3,
        "of": "the snapshot",
        "program": "/usr/sbin/mariadbd",
        "version": "10.11.19-MariaDB",
        "position": {
            "recovered": {"file": "mysql-bin.000007", "position": 300},
            "compared": "InnoDB's position",
            "between": {"events": 4, "transactional": 0},
            "note": "",
            "fault": "",
        },
        "tables": {"mode": "changed", "since": "2026-11-21T02-00-05Z", "checked": 3, "unchanged": 1204, "complaints_total": 0, "unchecked": ["d.far: no"]},
        "known_faults": [{"kind": "directory", "name": "lost+found", "sentence": "the data directory holds lost+found"}] * 12,
    }
    assert show.proof(proof) == [
        "passed in 12.3 s",
        "by /usr/sbin/mariadbd 10.11.19-MariaDB, on the snapshot",
        "stands where it should, by InnoDB's position (mysql-bin.000007:300); 4 events up to the recorded position, 0 of them transactions",
        "3 tables checked, 0 damaged; 1,204 unchanged since 2026-11-21T02-00-05Z",
        "not checked: d.far: no",
        *["known: the data directory holds lost+found"] * 12,
    ]
    given = {**proof, "known_faults": [], "position": {"given": {"source": "proof: InnoDB"}}, "tables": {"mode": "none"}}
    assert show.proof(given)[2:] == ["no lock stopped commits; the coordinates are those of InnoDB", "no tables checked, as verify.tables says"]


def backup(job: str, name: str, state: str, **more: Any) -> Dict[str, Any]:
    facts = {"generation": name, "time": "%sT%sZ" % (name[:10], name[11:19].replace("-", ":")), "size_bytes": 1024**3, "reason": "", "lock": None}
    return {"job": job, "state": state, "proof": None, **facts, **more}


def test_of_a_fleet_each_job_has_its_newest_usable_backup_in_a_table_and_what_is_wrong_is_said_below() -> None:
    good = backup("etrial", "2026-11-22T02-00-05Z", "good", lock={"held_ms": 12.4}, proof={"ok": True})
    bad = backup("wiki", "2026-11-22T02-00-05Z", "bad", reason="2 faults were found")
    lines, wrong = show.fleet(
        {
            "db1": {"jobs": ["etrial", "wiki"], "backups": [good, bad, backup("wiki", "2026-11-20T02-00-05Z", "unproven")]},
            "db2": {"jobs": ["etrial"], "backups": []},
            "db3": {"msg": "Failed to connect to the host via ssh", "unreachable": True},
            "db4": {"jobs": ["one", "two"], "backups": [backup("two", "2026-11-22T02-00-05Z", "good")], "failures": [{"job": "one"}], "msg": "one is gone"},
            "db5": {"jobs": [], "backups": []},
        },
        NOW,
    )
    assert lines == [
        "HOST  JOB     GENERATION            AGE     SIZE  STATE     LOCK HELD  PROOF",
        "db1   etrial  2026-11-22T02-00-05Z  3 h  1.0 GiB  good          12 ms  passed",
        "db1   wiki    2026-11-20T02-00-05Z  2 d  1.0 GiB  unproven          -  -",
        "db2   etrial  -                       -        -  -                 -  -",
        "db4   one     -                       -        -  -                 -  -",
        "db4   two     2026-11-22T02-00-05Z  3 h  1.0 GiB  good              -  -",
    ]
    assert wrong == [
        "db1: the newest backup of wiki, 2026-11-22T02-00-05Z, is bad: 2 faults were found",
        "db2: there is no backup yet of etrial",
        "db3: Failed to connect to the host via ssh",
        "db4: one is gone",
        "db5: it has no job: list some in backup_client_jobs and deploy, or leave it out with -e stillpoint_hosts=GROUP",
    ]
    assert show.fleet({"db1": {"jobs": ["etrial"], "backups": [good]}}, NOW)[1] == []
