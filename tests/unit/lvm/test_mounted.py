# SPDX-License-Identifier: GPL-3.0-or-later
"""Where live paths lie on mounted snapshots, and a path that is a file system of its own in another one. A directory stands for each snapshot."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest
from _core.backup import copied as snapshot_copy
from _core.backup import plan
from _core.host.errors import BusyError, StillpointError, Stopped, UsageError
from _core.host.processes import Owner
from _core.lvm import dm, mounted, volumes
from _core.lvm.layout import FILES
from _core.lvm.targets import Hold, Snapshot, Target
from _core.lvm.volumes import LogicalVolume
from _core.proof import checksums
from _core.repository.job_directory import JobDirectory
from _core.repository.mirror import alone, mirror
from trees import Quiet, back_up, facts, job, needs_root, small_disk, write

OWNER = Owner("run", "job", "boot", 1, 1)


def snapshot(number: int, directory: Path, *holds: Tuple[str, str, str]) -> Snapshot:
    held = tuple(Hold(*each) for each in holds)
    return Snapshot("vg", "origin", "snapshot-%d" % number, str(directory), "", False, 0, "ext4", "/", held)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    @contextmanager
    def there(device: str, _fs_type: str, _name: str) -> Iterator[str]:
        yield device

    monkeypatch.setattr(mounted, "enter_private_namespace", lambda: None)
    monkeypatch.setattr(mounted, "mounted_read_only", there)
    monkeypatch.setattr(mounted, "mounted_writable", there)
    for _disk in small_disk(str(tmp_path / "can-mount")):
        pass
    return tmp_path


@pytest.fixture
def snapshots(root: Path) -> Tuple[Snapshot, ...]:
    """/opt with /opt/data mounted in it, and /opt/data/deep in that."""
    (root / "a" / "opt" / "data").mkdir(parents=True)
    write(str(root / "a" / "opt" / "app"))
    (root / "b" / "deep").mkdir(parents=True)
    write(str(root / "b" / "rows"), b"rows")
    os.chmod(str(root / "b"), 0o711)
    (root / "c" / "top").mkdir(parents=True)
    write(str(root / "c" / "top" / "file"), b"deep")
    return (
        snapshot(0, root / "a", (FILES, "/opt", "opt")),
        snapshot(1, root / "b", (FILES, "/opt/data", "")),
        snapshot(2, root / "c", (FILES, "/opt/data/deep", "top")),
    )


def trees(snapshots: Any, *paths: str) -> Any:
    """Return the trees of a copy of these paths, as they lie on the snapshots while these are mounted."""
    return plan.trees_for([(FILES, path) for path in paths], {})


@needs_root
def test_what_is_mounted_in_a_path_is_copied_with_it_into_a_generation_that_is_whole(root, snapshots):
    (wanted,) = trees(snapshots, "/opt/data", "/opt", "/opt/data/deep")
    directory = job(root / "repository")
    with mounted.mounted(snapshots, OWNER) as to_snapshot:
        assert to_snapshot.directory("/opt/data/deep") == str(root / "c" / "top")
        expected = facts(to_snapshot(wanted).path)
        one, two = (back_up(directory, to_snapshot(wanted), hours=hours) for hours in (0, 1))
    assert {b"app", b"data/rows", b"data/deep/file"} <= set(expected)
    assert expected[b"data"]["mode"] & 0o777 == 0o711
    for generation in (one, two):
        assert [(tree.name, tree.source, tree.files) for tree in generation.trees] == [("files/opt", "/opt", 3)]
        assert facts(generation.path + "/files/opt") == expected
        assert checksums.verify(generation, Quiet()).faults_total == 0
    assert os.path.samefile(one.path + "/files/opt/data/rows", two.path + "/files/opt/data/rows")
    assert not os.path.exists(str(root / "a" / "opt" / "data" / "rows"))


@needs_root
def test_a_mirror_keeps_what_is_mounted_in_a_path(root, snapshots):
    request = snapshot_copy.CopyRequest(dest=str(root), src=("/opt/", "/opt/data"), exclude=("*.log",))
    wanted = snapshot_copy._trees(request, snapshots)
    dest = str(root / "mirror")
    for changes in (None, 0):
        with mounted.mounted(snapshots, OWNER) as to_snapshot:
            copied = mirror([to_snapshot(tree) for tree in wanted], dest)
        assert changes is None or copied.changes == changes
    assert sorted(os.listdir(dest + "/files/opt/data")) == ["deep", "rows"]


@needs_root
def test_a_path_is_read_from_the_file_system_that_is_mounted_there(root, snapshots):
    with mounted.mounted(snapshots, OWNER, writable=True) as to_snapshot:
        assert to_snapshot.find("/opt/data/rows") == str(root / "b" / "rows")
        assert to_snapshot.find("/opt/database") == str(root / "a" / "opt" / "database")
        assert to_snapshot.find("/optional") is None
        assert os.listdir(str(root / "a" / "opt" / "data")) == []


@needs_root
def test_a_symbolic_link_on_a_snapshot_does_not_lead_to_the_live_system(root, snapshots):
    os.rmdir(str(root / "a" / "opt" / "data"))
    (root / "live").mkdir()
    (root / "a" / "opt" / "data").symlink_to(root / "live")
    with mounted.mounted(snapshots, OWNER):
        assert os.listdir(str(root / "live")) == []


def test_a_directory_in_another_is_a_part_of_it_and_one_behind_a_link_is_refused(tmp_path):
    (tmp_path / "opt" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "opt" / "link").symlink_to(tmp_path / "elsewhere")
    opt = str(tmp_path / "opt")
    request = snapshot_copy.CopyRequest(dest="/backups", src=(opt + "/sub", opt + "/"))
    assert [tree.source for tree in snapshot_copy._file_trees(request)] == [opt]
    with pytest.raises(UsageError, match="name it as %s/elsewhere" % tmp_path):
        snapshot_copy._file_trees(snapshot_copy.CopyRequest(dest="/backups", src=(opt, opt + "/link")))


def test_in_check_mode_the_copy_of_a_snapshot_that_does_not_exist_yet_is_planned(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows").write_bytes(b"12345")
    (tmp_path / "backups").mkdir()
    volume = LogicalVolume("vg00", "data", "u", "", "vg00-data", "", 1 << 30, ("linear",), ("public",), (), 253, 0, "", "", None, None, 1 << 30, 1 << 22, 0)
    hold = Hold("datadir", str(tmp_path / "data"), "")
    returned = [plan.target_facts(Target(volume, size, "ext4", "/", (hold,))) for size in (1 << 30, None)]
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
    theirs = back_up(JobDirectory(str(tmp_path / "backups")), *trees((), str(tmp_path / "data")), machine={"id": "0" * 32})
    sentence = refused(str(tmp_path / "backups"))
    assert "are of another machine of this name" in sentence and "give this one a directory of its own, or move them away" in sentence
    half_done = {"job": "etrial", "phase": "ready", "generation": theirs.name, "host": "", "parts": "all"}
    monkeypatch.setattr(plan.journal, "pending", lambda: half_done)
    assert refused(str(tmp_path / "other")).startswith("a restore of etrial was interrupted while it replaced live data")


class Group:
    """A volume group with one kept snapshot, that of `live`; it lists what is done to the snapshot."""

    def __init__(self, root: Path) -> None:
        for name in ("live", "frozen", "backups"):
            (root / name).mkdir()
        write(str(root / "frozen" / "rows"))
        self.dest = str(root / "backups")
        self.snapshot = snapshot(0, root / "frozen", (FILES, str(root / "live"), ""))
        self.done: List[str] = []

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def volumes(self) -> List[LogicalVolume]:
        tags = (*OWNER.tags(), "stillpoint.kept")
        made = self.snapshot
        return [LogicalVolume(made.vg, made.name, "u", "", "", "", 0, (), (), tags, 253, 1, made.origin, "", 0.0, None, 1 << 30, 1 << 22, 0)]

    def state(self, _name: str) -> dm.State:
        return dm.State(False, False, "snapshot", "16/2097152 16")

    def retag(self, full_name: str, **_tags: Any) -> None:
        self.done.append("taken over")

    def remove(self, full_name: str) -> None:
        self.done.append("removed")

    def copy(self, **changes: Any) -> Any:
        asked = {"dest": self.dest, "snapshots": (self.snapshot.as_dict(),), **changes}
        return snapshot_copy.copy(snapshot_copy.CopyRequest(**asked), Quiet())


@pytest.fixture
def group(root: Path, monkeypatch: pytest.MonkeyPatch) -> Group:
    group = Group(root)
    for name in ("volumes", "retag", "remove"):
        monkeypatch.setattr(volumes, name, getattr(group, name))
    monkeypatch.setattr(volumes, "settle", lambda: None)
    monkeypatch.setattr(dm, "Control", lambda: group)
    return group


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
    assert group.done == ["taken over", "removed"]
    group.done.clear()
    monkeypatch.setattr(group, "state", lambda _name: dm.State(False, False, "snapshot", "Invalid"))
    with pytest.raises(StillpointError, match="nothing was published"):
        group.copy()
    assert group.done == ["taken over", "removed"]


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
