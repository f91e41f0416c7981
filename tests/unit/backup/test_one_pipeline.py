# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job's run, a dump and a playbook's tasks have in common: the same refusals, warnings and order of things behind each door."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Callable, List

import pytest
from _core.agent import main
from _core.backup import checks, copied, pipeline, plan, quiesced, run
from _core.backup.point import Quiesce
from _core.backup.sources import Sources
from _core.host.errors import StillpointError, Stopped, UsageError
from _core.host.mounts import place
from _core.host.processes import Owner
from _core.job import reader
from _core.lvm import dm, ownership
from _core.mysql import lock_choice, locks, topology
from _core.mysql.connection import Login
from _core.mysql.keys import Keys
from _core.mysql.server import Table
from _core.repository import manifest
from _core.repository.job_directory import JobDirectory
from _core.restore.journal import Journal
from a_group import Group
from trees import Quiet, needs_root, small_disk, write

NOWHERE = {"login_unix_socket": "/nonexistent/socket"}
DEAD = Owner("killed-run", "job", "boot", 1, 1)


def doors(tmp_path: Path) -> List[Callable[[], Any]]:
    """Return each way to a backup, as a call."""
    (tmp_path / "repository").mkdir()
    for_files = {"name": "files", "files": ["/opt/app"], "repository": str(tmp_path / "repository")}
    server = {"name": "db", "mysql": NOWHERE, "repository": str(tmp_path / "repository")}
    of_dump = {**server, "mysql": {**NOWHERE, "method": "dump"}}
    jobs = [reader.parse(each) for each in (for_files, server, of_dump)]
    asked = quiesced.QuiesceRequest(**NOWHERE)  # type: ignore[arg-type]
    files = copied.CopyRequest(dest=str(tmp_path / "repository"), src=("/opt/app",))
    return [
        *[lambda job=job: run.run(job, Quiet()) for job in jobs],  # type: ignore[misc]
        *[lambda job=job: plan.make(job) for job in jobs],  # type: ignore[misc]
        lambda: quiesced.quiesce_snapshot(asked, Quiet()),
        lambda: quiesced.quiesce_plan(asked),
        lambda: copied.copy(files, Quiet()),
        lambda: copied.copy_plan(files, Quiet()),
    ]


def test_no_door_leads_to_live_data_that_is_half_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half_done = Journal("etrial", "", "2026-11-22T02-00-05Z", "/backups", "all", ())
    monkeypatch.setattr(checks.journal, "pending", lambda: half_done)
    for door in doors(tmp_path):
        with pytest.raises(StillpointError, match="a restore of etrial was interrupted while it replaced live data"):
            door()


def server_of(**facts: Any) -> Any:
    known = {"remote": (), "is_replica": False, "flavour": "mariadb", "keys": None, "log_bin": True, "non_transactional": (), **facts}
    return type("Server", (), known)()


def test_what_a_run_warns_of_a_quiesced_snapshot_warns_of_too() -> None:
    table = server_of(non_transactional=(Table("wf", "audit", "MyISAM"),), engines=(), log_bin=False, keys=Keys("file", ("/etc/key",), "", ("d.t",)))
    choice = lock_choice.Choice(None, "none", "asked for", "wf.audit is MyISAM")
    found = Sources(Quiesce(Login(), table, choice, locks.LockOptions("none")), (), {}, (), ()).doubts()
    lock, log, keys = found
    assert "the lock none, which was asked for, is not enough: wf.audit is MyISAM" in lock
    assert log == "binary logging is off: the backup has no coordinates"
    assert "d.t can't be read without the key file /etc/key, which the backup does not hold" in keys


@pytest.mark.parametrize("key", ["lock_wait_timeout", "long_query_threshold", "long_query_timeout"])
def test_a_time_that_a_job_can_not_have_a_playbook_can_not_have_either(key: str) -> None:
    with pytest.raises(UsageError, match="%s is -1: give a whole number of seconds from" % key):
        quiesced.QuiesceRequest(**{key: -1})  # type: ignore[arg-type]


@needs_root
@pytest.mark.parametrize("way", [copied.copy, copied.copy_plan])
@pytest.mark.parametrize("wrong", [{"rsync_opts": ("--inplace",)}, {"bwlimit": "fast"}, {"point": {"time": "noon"}}, {"point": {"lock": "ftwrl"}}], ids=str)
def test_check_mode_refuses_what_the_copy_would(group: Group, way: Any, wrong: Any) -> None:
    with pytest.raises(UsageError):
        way(group.asked(**wrong), Quiet())
    assert group.done == []


@needs_root
def test_what_a_killed_copy_left_makes_room_for_the_next(group: Group, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_SPARE", 0)
    for small in small_disk(str(tmp_path / "small")):
        os.makedirs(small + "/.killed.partial")
        write(small + "/.killed.partial/rows", b"x" * (7 << 20))
        write(group.snapshot.holds[0].path + "/rows", b"y" * (4 << 20))
        write(group.snapshot.device + "/rows", b"y" * (4 << 20))
        assert group.copy(dest=small)["bytes"] == 4 << 20


@needs_root
def test_snapshots_of_killed_runs_go_and_those_that_were_given_stay_for_the_copy(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    own = group.volume(group.snapshot.name, *DEAD.tags(), origin=group.snapshot.origin)  # taken over by a copy that was killed then
    group.others = [group.volume("left", *DEAD.tags(), origin="db")]
    there = (own, *group.others)
    monkeypatch.setattr(ownership.volumes, "volumes", lambda: [each for each in there if "removed " + each.full_name not in group.done])
    assert group.copy()["removed"] == ["vg/snapshot-0"]
    assert group.done == ["removed vg/left", "taken over", "removed vg/snapshot-0"]


@needs_root
def test_a_quiesced_snapshot_begins_with_what_killed_runs_left(group: Group, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group.others = [group.volume("left", *DEAD.tags(), origin="db")]
    left_changed(tmp_path, monkeypatch)
    with pytest.raises(StillpointError, match="/nonexistent/socket"):
        quiesced.quiesce_snapshot(quiesced.QuiesceRequest(**NOWHERE), group.reporter)  # type: ignore[arg-type]
    assert group.done == ["removed vg/left"]
    (warning,) = group.reporter.warnings
    assert "a run that was killed has left replication stopped" in warning


@needs_root
def test_what_can_not_be_put_back_on_a_server_makes_no_copy_fail(group: Group, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    left_changed(tmp_path, monkeypatch)
    assert group.copy()["changed"]
    (warning,) = group.reporter.warnings
    assert "a run that was killed has left replication stopped" in warning


def left_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave word of a run that was killed while it had replication stopped on a server that is not there."""
    monkeypatch.setattr(topology, "RUN_DIRECTORY", str(tmp_path / "run"))
    (tmp_path / "run").mkdir()
    facts = {"owner": asdict(DEAD), "login": NOWHERE, "datadir": "/var/lib/mysql", "channels": [""], "desync": False}
    (tmp_path / "run" / "changed-1.json").write_text(json.dumps(facts))


@needs_root
@pytest.mark.parametrize("way", [copied.copy, copied.copy_plan])
def test_a_repository_beside_what_is_copied_to_it_is_told_of(group: Group, way: Any) -> None:
    device = place(group.dest).mount
    group.others = [group.volume("origin", device=(device.major, device.minor))]
    reporter = Quiet()
    way(group.asked(), reporter)
    assert reporter.warnings == [
        "the repository %s lies on vg/origin, which is backed up: the copy itself fills the snapshot, and both are lost together with the volume" % group.dest
    ]


@needs_root
def test_what_the_snapshots_task_warned_of_is_in_the_manifest_and_is_not_told_again(group: Group) -> None:
    coordinates = {"file": "bin.000007", "position": 4, "gtid": None, "replica": [{"channel": "", "host": "db1", "position": 9, "uses_gtid": True}]}
    lock = {"method": "instance", "reason": "asked for", "held_ms": 1.5, "frozen_ms": None, "killed": ["a statement"], "between": [coordinates, coordinates]}
    point = {"run_id": "r", "lock": lock, "coordinates": coordinates, "server": {"flavour": "mysql"}, "warnings": ["commits went on"]}
    made = group.copy(point=point)
    summary = manifest.summary(made["path"])
    assert (summary["warnings"], group.reporter.warnings) == (["commits went on"], [])
    assert {key: summary["lock"][key] for key in ("method", "held_ms", "killed")} == {"method": "instance", "held_ms": 1.5, "killed": ["a statement"]}
    assert summary["lock"]["between"] == [summary["coordinates"]] * 2
    assert (summary["coordinates"]["file"], summary["coordinates"]["replica"][0]["host"]) == ("bin.000007", "db1")
    assert (summary["run_id"], summary["server"]) == ("r", {"flavour": "mysql"})


@needs_root
def test_a_snapshot_that_can_not_be_removed_costs_no_copy_and_is_not_said_to_be_gone(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(full_name: str) -> None:
        raise ownership.CommandError("lvremove failed: in use", ["lvremove"])

    monkeypatch.setattr(ownership, "_REMOVE_TRIES", 1)
    monkeypatch.setattr(ownership.volumes, "remove", busy)
    made = group.copy()
    assert made["removed"] == []
    assert JobDirectory(group.dest).generations()[0].path == made["path"]
    (warning,) = group.reporter.warnings
    assert "the snapshot vg/snapshot-0 can't be removed: lvremove failed: in use" in warning


@needs_root
@pytest.mark.parametrize("layout", ["generations", "mirror"])
def test_a_lost_snapshot_is_named_where_rsync_says_only_what_follows_from_it(group: Group, layout: str, tmp_path: Path, monkeypatch: Any) -> None:
    log = str(tmp_path / "log")

    def state(_name: str) -> dm.State:
        return dm.State(False, False, "snapshot", "Invalid" if os.path.exists(log) else "16/2097152 16")

    class Late(pipeline.Watch):
        """Is asked between two looks, while rsync is at work."""

        def __call__(self) -> None:
            pass

    monkeypatch.setattr(pipeline, "Watch", Late)
    monkeypatch.setattr(group, "state", state)
    with pytest.raises(StillpointError, match="the snapshot snapshot-0 of vg/origin .* was filled up"):
        group.copy(layout=layout, rsync_opts=("--log-file=" + log, "--temp-dir=/nonexistent"))


@needs_root
def test_a_snapshot_that_was_lost_before_the_copy_is_named_before_it_is_mounted(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "state", lambda _name: dm.State(False, False, "snapshot", "Invalid"))
    monkeypatch.setattr(pipeline, "mounted", lambda *_asked: pytest.fail("it was mounted"))
    with pytest.raises(StillpointError, match="was filled up by writes"):
        group.copy()


def test_a_signal_after_the_publication_tells_of_the_backup(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped) as stopped, pipeline.told_when_stopped("the backup") as complete:
        complete("/backups/h/j/g")
        raise Stopped("SIGTERM")
    assert main._failed(stopped.value, as_json=False, debug=False) == 1
    assert "stopped by SIGTERM; what had been opened was closed; the backup /backups/h/j/g was complete by then, and stays" in capsys.readouterr().err
