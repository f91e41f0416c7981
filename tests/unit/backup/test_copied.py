# SPDX-License-Identifier: GPL-3.0-or-later
"""The module lvm_snapshot_rsync, from snapshots for each of which a directory stands."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from _core.backup import checks, sources
from _core.backup import copied as snapshot_copy
from _core.host.errors import BusyError, StillpointError, Stopped, UsageError
from _core.lvm import dm, volumes
from _core.lvm.layout import FILES
from _core.lvm.targets import Hold, Target
from _core.lvm.volumes import LogicalVolume
from _core.repository.job_directory import JobDirectory
from _core.repository.mirror import alone
from _core.restore.journal import Journal
from trees import Quiet, back_up, needs_root, small_disk, write


def test_in_check_mode_the_copy_of_a_snapshot_that_does_not_exist_yet_is_planned(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows").write_bytes(b"12345")
    (tmp_path / "backups").mkdir()
    volume = LogicalVolume("vg00", "data", "u", "", "vg00-data", "", 1 << 30, ("linear",), ("public",), (), 253, 0, "", "", None, None, 1 << 30, 1 << 22, 0)
    hold = Hold("datadir", str(tmp_path / "data"), "")
    returned = [sources.target_facts(Target(volume, size, "ext4", "/", (hold,))) for size in (1 << 30, None)]
    for each in returned:
        planned = snapshot_copy.copy_plan(snapshot_copy.CopyRequest(dest=str(tmp_path / "backups"), snapshots=(each,)), Quiet())
        assert (planned["removed"], planned["bytes"]) == (["vg00/(a new snapshot of data)"], 5)
        assert os.listdir(str(tmp_path / "backups")) == []
    reporter, absent = Quiet(), str(tmp_path / "planned" / "backups")
    assert snapshot_copy.copy_plan(snapshot_copy.CopyRequest(dest=absent, snapshots=(returned[0],)), reporter)["path"] == absent
    assert reporter.warnings == ["%s does not exist: it has to be there by then" % absent]


@needs_root
@pytest.mark.parametrize("way", [snapshot_copy.copy, snapshot_copy.copy_plan])
def test_a_playbooks_copy_is_refused_where_a_run_of_the_agent_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: Any) -> None:
    (tmp_path / "data").mkdir()
    write(str(tmp_path / "data" / "rows"))
    known = {"vg": "vg00", "origin": "data", "name": "", "fs_type": "ext4", "mount_point": "/", "thin": False}
    facts_ = {**known, "holds": [{"role": "datadir", "path": str(tmp_path / "data"), "below": ""}]}
    monkeypatch.setattr(snapshot_copy, "_checked", snapshot_copy._planned)

    def refused(dest: str, **more: Any) -> str:
        with pytest.raises(StillpointError) as caught:
            way(snapshot_copy.CopyRequest(dest=dest, snapshots=(facts_,), **more), Quiet())
        return str(caught.value)

    for full in small_disk(str(tmp_path / "full")):
        for kind in ("generations", "mirror"):
            assert refused(full, layout=kind) == (
                "the repository %s has 8.0 MiB free and the copy needs about 64.0 MiB: free space there, or keep fewer generations" % full
            )
    theirs = back_up(JobDirectory(str(tmp_path / "backups")), *sources.trees_for([(FILES, str(tmp_path / "data"))], {}), machine={"id": "0" * 32})
    sentence = refused(str(tmp_path / "backups"))
    assert "are of another machine of this name" in sentence and "give this one a directory of its own, or move them away" in sentence
    half_done = Journal("etrial", "", theirs.name, theirs.path, "all", ())
    monkeypatch.setattr(checks.journal, "pending", lambda: half_done)
    assert refused(str(tmp_path / "other")).startswith("a restore of etrial was interrupted while it replaced live data")


@needs_root
@pytest.mark.parametrize(
    "wrong",
    [{"dest": "/nowhere"}, {"src": ("/opt/not-held",)}, {"rsync_opts": ("--inplace",)}, {"point": {"time": "noon"}}],
    ids=["dest", "src", "rsync_opts", "point"],
)
def test_an_argument_that_is_wrong_leaves_the_snapshots_that_were_given_as_they_were(group, wrong):
    with pytest.raises(UsageError):
        group.copy(**wrong)
    assert group.done == []


@needs_root
@pytest.mark.parametrize("layout", ["generations", "mirror"])
def test_a_destination_that_another_run_writes_to_costs_no_snapshot(group, layout):
    with alone(group.dest) if layout == "mirror" else JobDirectory(group.dest).lock(), pytest.raises(BusyError, match="another run"):
        group.copy(layout=layout)
    assert group.done == []


@needs_root
def test_a_copy_removes_the_snapshots_that_it_was_given_and_so_does_one_that_fails(group, monkeypatch):
    assert os.listdir(group.copy()["path"] + "/files" + group.snapshot.holds[0].path) == ["rows"]
    assert group.done == ["taken over", "removed vg/snapshot-0"]
    group.done.clear()
    monkeypatch.setattr(group, "state", lambda _name: dm.State(False, False, "snapshot", "Invalid"))
    with pytest.raises(StillpointError, match="nothing was published"):
        group.copy()
    assert group.done == ["taken over", "removed vg/snapshot-0"]


@needs_root
@pytest.mark.parametrize("layout", ["generations", "mirror"])
def test_a_signal_that_comes_while_the_snapshots_are_removed_tells_that_the_copy_is_there(group, monkeypatch, layout):
    def stop(_number: int, _frame: Any) -> None:
        raise Stopped("SIGTERM")

    monkeypatch.setattr(volumes, "remove", lambda _name: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Stopped) as stopped:
            group.copy(layout=layout)
    finally:
        signal.signal(signal.SIGTERM, before)
    path = group.dest if layout == "mirror" else JobDirectory(group.dest).generations()[0].path
    assert stopped.value.outcome == "the copy %s was complete by then, and stays" % path


@needs_root
def test_a_signal_that_comes_before_the_copy_is_complete_tells_of_none(group, monkeypatch):
    def stop(_name: str) -> None:
        raise Stopped("SIGTERM")

    monkeypatch.setattr(group, "state", stop)
    with pytest.raises(Stopped) as stopped:
        group.copy()
    assert (stopped.value.outcome, JobDirectory(group.dest).generations()) == ("", [])
