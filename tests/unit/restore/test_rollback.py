# SPDX-License-Identifier: GPL-3.0-or-later
"""Undo points: what LVM's tags keep of them, which are whole, who is in the way. That volumes really go back is shown in virtual machines."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Iterator, List

import pytest
from _core.host import durable, processes
from _core.host.errors import StillpointError, UsageError
from _core.host.processes import holders
from _core.job import reader
from _core.job.names import host_name
from _core.lvm import ownership, undo_points
from _core.lvm import volumes as lvm
from _core.lvm.volumes import LogicalVolume
from _core.restore import journal
from _core.restore.rollback import execute
from _core.restore.rollback import plan as rollback_plan
from trees import Quiet, needs_root, read, small_disk, write

RUN = "20261122t020004-3f9a"
ABOUT = undo_points.About("mariadb@one\\x2dtwo.service", "/srv/db & more/mysql", "/var/log/mysql/mysql-bin", "/var/log/mysql/mysql-bin.index")


def snapshot(number: int, origin: str, tags: List[str], *, thin: bool = False, attr: str = "", percent: str = "3.1", run: str = RUN) -> LogicalVolume:
    owner = processes.Owner(run, "playbook", "a-boot", 1, 2).tags()
    row = {
        "vg_name": "data",
        "lv_name": "stillpoint-%s-%d" % (run, number),
        "lv_uuid": "u%d" % number,
        "lv_path": "/dev/data/s%d" % number,
        "lv_dm_path": "/dev/mapper/data-s%d" % number,
        "lv_attr": attr or ("Vwi-a-tz-k" if thin else "swi-a-s---"),
        "lv_size": "1073741824",
        "lv_layout": "thin,sparse" if thin else "linear",
        "lv_role": "public,snapshot,%s" % ("thinsnapshot" if thin else "thicksnapshot"),
        "lv_tags": ",".join([*owner, *tags]),
        "lv_kernel_major": "253",
        "lv_kernel_minor": str(number + 10),
        "origin": origin,
        "pool_lv": "pool" if thin else "",
        "data_percent": percent,
        "metadata_percent": "",
        "vg_free": "0",
        "vg_extent_size": "4194304",
        "vg_missing_pv_count": "0",
    }
    return lvm.parse_report(json.dumps({"report": [{"lv": [row]}]}))[0]


def pair(**more: Any) -> List[LogicalVolume]:
    tags = undo_points.tags(2, ABOUT)
    return [snapshot(0, "db", tags, thin=True, **more), snapshot(1, "tree", tags, **more)]


def test_the_tags_of_a_point_say_all_that_the_way_back_needs_in_what_lvm_allows() -> None:
    assert all(set(tag) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-/=!:#&") for tag in undo_points.tags(2, ABOUT))
    point = undo_points.find(pair())
    assert (point.run_id, point.size, point.about) == (RUN, 2, ABOUT)
    assert [each.origin for each in point.snapshots] == ["db", "tree"]
    assert point.time == "2026-11-22 02:00:04 UTC"
    undo_points.check(point)


def test_a_point_is_named_where_there_are_several_and_another_name_is_refused_with_those_there_are() -> None:
    other = snapshot(0, "db", undo_points.tags(1, ABOUT), run="20261123t020004-aaaa")
    with pytest.raises(UsageError, match="there are several undo points .20261122t020004-3f9a, 20261123t020004-aaaa.: name the one"):
        undo_points.find([*pair(), other])
    assert undo_points.find([*pair(), other], "20261123t020004-aaaa").snapshots == (other,)
    with pytest.raises(UsageError, match="no kept snapshot of run 2026 of this collection to go back to; there are 2026"):
        undo_points.find([*pair()], "2026")
    with pytest.raises(UsageError, match="there is no kept snapshot of this collection to go back to"):
        undo_points.find([])


def test_a_snapshot_that_a_run_still_works_with_is_no_point() -> None:
    with pytest.raises(UsageError, match="there is no kept snapshot"):
        undo_points.find([snapshot(0, "db", [])])


def test_half_a_set_and_one_that_overflowed_are_refused() -> None:
    with pytest.raises(StillpointError, match="1 of 2 snapshots are left .data/stillpoint-.*-0., and a part of it is no moment to go back to"):
        undo_points.check(undo_points.find(pair()[:1]))
    with pytest.raises(StillpointError, match="not all snapshots are left"):
        undo_points.check(undo_points.find([snapshot(0, "db", [ownership.KEPT])]))
    for more in ({"attr": "swi-I-s---"}, {"percent": "100.00"}):
        tags = undo_points.tags(1, ABOUT)
        with pytest.raises(StillpointError, match="has overflowed and holds nothing any more: there is no way back to 2026-11-22 02:00:04 UTC"):
            undo_points.check(undo_points.find([snapshot(0, "tree", tags, **more)]))
    undo_points.check(undo_points.find([snapshot(0, "db", undo_points.tags(1, ABOUT), thin=True, percent="100.00")]))


def test_what_is_about_to_be_a_volume_of_its_own_is_nobodys_leftover() -> None:
    given_away = pair()[0]
    left = [tag for tag in given_away.tags if tag not in undo_points.merge_tags(given_away)]
    merged = LogicalVolume(**{**vars(given_away), "tags": tuple(left)})
    assert ownership.find([given_away], kept=True) == [given_away]
    assert ownership.find([merged], kept=True) == [] and ownership.find([merged], run_id=RUN, kept=True) == []
    assert undo_points.find([merged], RUN).about == ABOUT  # and is still known as what it is
    assert set(left) == set(undo_points.own_tags(merged))


@needs_root
def test_who_works_on_a_file_system_is_named_and_nobody_else(tmp_path: Any) -> None:
    for disk in small_disk(str(tmp_path / "disk")):
        device = os.stat(disk).st_dev
        assert holders(device) == []
        working = subprocess.Popen(["sleep", "1000"], cwd=disk)
        with open(disk + "/log", "w") as log:
            writing = subprocess.Popen(["sleep", "1000"], stdout=log)
        try:
            found = holders(device)
            assert {(each.pid, each.what) for each in found} == {(working.pid, disk), (writing.pid, disk + "/log")}
            assert all(each.program in ("sleep", "pytest", "python", "python3") for each in found)
        finally:
            for process in (working, writing):
                process.kill()
                process.wait()
        assert holders(device) == []


def test_one_that_was_interrupted_is_finished_before_another_one(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "STATE", str(tmp_path))
    volumes = (rollback_plan.Volume("data", "db", "stillpoint-%s-0" % RUN, True, "/srv/db", "ext4", "rw,relatime"),)
    plan = rollback_plan.RollbackPlan(RUN, "2026-11-22 02:00:04 UTC", volumes, "mariadb.service", ("mariadb.socket",), ABOUT, False)
    rollback_plan.write(plan)
    with pytest.raises(UsageError, match="going back to %s was interrupted: finish that first, with stillpoint rollback %s" % (RUN, RUN)):
        rollback_plan.make("another")
    again = rollback_plan.make()
    assert again.resumes and vars(again) == {**vars(plan), "resumes": True}
    assert again.lines()[0] == "finish going back to the undo point %s of 2026-11-22 02:00:04 UTC:" % RUN
    assert rollback_plan.begun() == again
    rollback_plan.forget()
    assert rollback_plan.begun() is None
    assert durable.read_json(str(tmp_path / "rollback.json")) is None


def test_the_plan_says_what_is_lost_and_a_running_system_does_not_go_back() -> None:
    root = rollback_plan.Volume("vg00", "root", "stillpoint-%s-0" % RUN, False, "/", "ext4", "rw")
    data = rollback_plan.Volume("data", "db", "stillpoint-%s-1" % RUN, True, "/var/lib/mysql", "ext4", "rw")
    rollback_plan._refuse_system([data])
    way_out = "lvconvert --merge data/stillpoint-%s-1; lvconvert --merge vg00/stillpoint-%s-0$" % (RUN, RUN)
    with pytest.raises(StillpointError, match="vg00/root, mounted at /, holds the running system .* rescue system .*: " + way_out):
        rollback_plan._refuse_system([data, root])
    for path in ("/usr", "/etc", "/var", "/var/lib"):
        with pytest.raises(StillpointError, match="holds the running system"):
            rollback_plan._refuse_system([rollback_plan.Volume("vg00", "v", "s", False, path)])
    plan = rollback_plan.RollbackPlan(RUN, "then", (data,), "mariadb.service", (), ABOUT, False)
    text = "\n".join(plan.lines())
    assert "data/db, mounted at /var/lib/mysql: everything that was written to it since is lost" in text
    assert "mariadb.service is stopped for it" in text and "mysql-bin.* are set aside" in text


class Fake:
    """LVM, systemd and mounts as a rollback of two thick snapshots calls them, and what they were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, top: Any) -> None:
        monkeypatch.setattr(journal, "STATE", str(top))
        tags = undo_points.tags(2, ABOUT)
        self.known = [snapshot(0, "db", tags), snapshot(1, "tree", tags)]
        self.calls: List[str] = []
        self.overflows: List[int] = []
        self.after_stop: List[int] = []
        volumes = tuple(rollback_plan.Volume("data", each.origin, each.name, False) for each in self.known)
        self.plan = rollback_plan.RollbackPlan(RUN, "then", volumes, "mariadb.service", (), undo_points.About("mariadb.service", str(top), "", ""), False)

        def call(name: str) -> Any:
            return lambda *args, **_more: self.calls.append(" ".join([name, *(each for each in args[:1] if isinstance(each, str))]))

        for name in ("forbid", "allow", "start"):
            monkeypatch.setattr(execute.service, name, call(name))
        monkeypatch.setattr(execute.service, "stop", self._stop)
        monkeypatch.setattr(execute.volumes, "volumes", self._volumes)
        monkeypatch.setattr(execute.volumes, "retag", call("retag"))
        monkeypatch.setattr(execute, "_merge", lambda volume, _control: self.calls.append("merge " + volume.origin))
        monkeypatch.setattr(execute.dm, "Control", open_nothing)

    def _stop(self, *_args: Any) -> None:
        self.calls.append("stop")
        self.overflows += self.after_stop

    def _volumes(self) -> List[LogicalVolume]:
        return [LogicalVolume(**{**vars(each), "attr": "swi-I-s---"}) if number in self.overflows else each for number, each in enumerate(self.known)]


@contextmanager
def open_nothing() -> Iterator[None]:
    yield


def test_a_snapshot_that_overflows_while_the_server_stops_is_noticed_before_another_one_goes_back(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tmp_path)
    fake.after_stop = [1]
    with pytest.raises(StillpointError, match="-1 overflowed while the server was stopped, and holds nothing any more; nothing has gone back"):
        execute.execute(fake.plan, Quiet())
    assert fake.calls == ["stop", "forbid mariadb.service", "allow mariadb.service", "start mariadb.service"]
    assert rollback_plan.begun() is None


def test_half_a_set_that_has_gone_back_ends_with_the_way_out_and_not_in_a_circle(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tmp_path)
    rollback_plan.write(replace(fake.plan, merging=(fake.known[0].full_name,)))
    fake.known = fake.known[1:]
    fake.overflows = [0]
    going = rollback_plan.begun()
    assert going is not None
    with pytest.raises(StillpointError, match="are of two moments: the server stays stopped until a backup is put back, with stillpoint restore JOB"):
        execute.execute(going, Quiet())
    assert not any(call.startswith(("merge", "allow", "start")) for call in fake.calls)
    assert rollback_plan.begun() is None


def test_half_a_set_that_has_gone_back_is_mounted_and_merged_before_a_backup_is_put_back_to_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tmp_path)
    monkeypatch.setattr(execute, "_mount", lambda volume: fake.calls.append("mount " + volume.origin))
    rollback_plan.write(replace(fake.plan, merging=(fake.known[0].full_name,)))
    fake.known[0] = LogicalVolume(**{**vars(fake.known[0]), "attr": "Swi-a-s---"})
    fake.overflows = [1]
    with pytest.raises(StillpointError, match="are of two moments: the server stays stopped until a backup is put back, with stillpoint restore JOB"):
        execute.execute(rollback_plan.make(), Quiet())
    assert fake.calls == ["stop", "forbid mariadb.service", "merge db", "mount db", "mount tree"]
    assert rollback_plan.begun() is None


def test_snapshots_that_were_removed_before_they_were_merged_are_not_taken_for_merged(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tmp_path)
    log = tmp_path / "bin.000001"
    log.write_bytes(b"events")
    index = tmp_path / "bin.index"
    index.write_text(str(log) + "\n")
    plan = replace(fake.plan, about=undo_points.About("mariadb.service", str(tmp_path), str(tmp_path / "bin"), str(index)))

    def killed(_snapshot: LogicalVolume) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(execute, "_give_away", killed)
        with pytest.raises(KeyboardInterrupt):
            execute.execute(plan, Quiet())
    assert not log.exists()
    fake.calls.clear()
    fake.known.clear()
    with pytest.raises(StillpointError, match="the snapshot data/stillpoint-%s-0 is gone and was never merged; nothing has gone back$" % RUN):
        execute.execute(rollback_plan.make(), Quiet())
    assert fake.calls == ["stop", "forbid mariadb.service", "allow mariadb.service", "start mariadb.service"]
    assert log.exists() and index.exists() and rollback_plan.begun() is None


@pytest.mark.parametrize("merged", [1, 2])
def test_what_was_merged_before_a_kill_counts_and_what_was_only_removed_does_not(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, merged: int) -> None:
    fake = Fake(monkeypatch, tmp_path)

    def merge(volume: rollback_plan.Volume, _control: Any) -> None:
        if len(rollback_plan.begun().merging) == merged:  # type: ignore[union-attr, arg-type]
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(execute, "_merge", merge)
        with pytest.raises(KeyboardInterrupt):
            execute.execute(fake.plan, Quiet())
    fake.calls.clear()
    fake.known.clear()
    if merged == 2:
        assert execute.execute(rollback_plan.make(), Quiet()).volumes == ["data/db", "data/tree"]
        assert fake.calls[-1] == "start mariadb.service"
    else:
        with pytest.raises(StillpointError, match="-1 was gone, and never merged, when another volume of the set had gone back, .* stillpoint restore JOB"):
            execute.execute(rollback_plan.make(), Quiet())
        assert fake.calls == ["stop", "forbid mariadb.service"]
    assert rollback_plan.begun() is None


def test_a_journal_of_an_earlier_version_is_finished_where_all_snapshots_are_left_and_else_leaves_the_server_stopped(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = Fake(monkeypatch, tmp_path)

    def begin() -> None:
        rollback_plan.write(fake.plan)
        facts = durable.read_json(str(tmp_path / "rollback.json")) or {}
        del facts["merging"]
        durable.write_json(str(tmp_path / "rollback.json"), facts)

    begin()
    execute.execute(rollback_plan.make(), Quiet())
    assert fake.calls[-3:] == ["merge tree", "allow mariadb.service", "start mariadb.service"]
    begin()
    fake.calls.clear()
    fake.known.pop()
    with pytest.raises(StillpointError, match="earlier version, does not say whether it was merged: .* removing /etc/systemd/.*/stillpoint-restore.conf$"):
        execute.execute(rollback_plan.make(), Quiet())
    assert fake.calls == ["stop", "forbid mariadb.service"] and rollback_plan.begun() is None


def test_one_that_is_confirmed_when_another_one_has_ended_stops_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tmp_path)
    rollback_plan.write(fake.plan)
    going = rollback_plan.begun()
    assert going is not None
    execute.execute(going, Quiet())
    fake.calls.clear()
    fake.known.clear()
    for plan, said in ((going, "has been ended by another run"), (fake.plan, "-0 has been merged or removed by somebody meanwhile; nothing was stopped")):
        with pytest.raises(StillpointError, match=said):
            execute.execute(plan, Quiet())
    assert fake.calls == []


def test_one_that_is_confirmed_when_another_one_was_interrupted_goes_on_with_that(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tmp_path)
    rollback_plan.write(replace(fake.plan, merging=tuple(each.full_name for each in fake.known)))
    fake.known.clear()
    assert execute.execute(fake.plan, Quiet()).volumes == ["data/db", "data/tree"]


def fill(directory: str) -> str:
    """Write until there is no room, and return what is to be removed for some."""
    path = directory + "/full"
    for size in (1 << 16, 1):
        with pytest.raises(OSError, match="No space"), open(path, "ab", buffering=0) as file:
            while True:
                file.write(bytes(size))
    return path


def refused(path: str, *_more: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


@needs_root
@pytest.mark.parametrize("step", ["set_aside", "leave"])
def test_logs_that_can_not_be_set_aside_on_a_full_disk_leave_all_as_it_was(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    fake = Fake(monkeypatch, tmp_path)
    for disk in small_disk(str(tmp_path / "logs")):
        write(disk + "/bin.000001", b"events")
        write(disk + "/bin.index", b"./bin.000001\n")
        write(disk + "/bin.state", b"0-1-7\n")
        about = undo_points.About("mariadb.service", disk, disk + "/bin", disk + "/bin.index")
        plan = replace(fake.plan, about=about, gtids="0-1-7")
        full = fill(disk)
        before = sorted(name for name in os.listdir(disk) if name.startswith("bin.") and "replaced" not in name)
        with monkeypatch.context() as patch:
            if step == "set_aside":  # a directory takes no room on the file system of this test
                patch.setattr(os, "mkdir", refused)
            with pytest.raises(StillpointError, match="going back could not begin: No space left on device .%s/bin.*.; nothing has gone back" % disk):
                execute.execute(plan, Quiet())
        assert fake.calls == ["stop", "forbid mariadb.service", "allow mariadb.service", "start mariadb.service"]
        os.unlink(full)
        assert [name for name in sorted(os.listdir(disk)) if name.startswith("bin.") and not name.endswith(".new")] == before
        assert read(disk + "/bin.state") == b"0-1-7\n" and rollback_plan.begun() is None


@needs_root
def test_a_full_disk_in_the_middle_is_named_with_the_way_out(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tmp_path)
    for disk in small_disk(str(tmp_path / "state")):
        monkeypatch.setattr(journal, "STATE", disk)
        full = fill(disk)
        with pytest.raises(StillpointError, match="the journal of the rollback can't be kept: No space left .*/rollback.json.*; nothing was stopped"):
            execute.execute(fake.plan, Quiet())
        assert fake.calls == []
        os.unlink(full)
        monkeypatch.setattr(execute, "_give_away", lambda _snapshot, disk=disk: os.path.exists(disk + "/full") or fill(disk))
        said = "going back was interrupted: No space left on device .%s/rollback.json.*.; mend that, then finish it with stillpoint rollback %s" % (disk, RUN)
        with pytest.raises(StillpointError, match=said):
            execute.execute(fake.plan, Quiet())
        assert fake.calls == ["stop", "forbid mariadb.service"]
        os.unlink(full)
        monkeypatch.setattr(execute, "_give_away", lambda _snapshot: None)
        assert execute.execute(rollback_plan.make(), Quiet()).volumes == ["data/db", "data/tree"]


def test_a_rollback_that_is_ended_when_all_has_gone_back_only_starts_the_server(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tmp_path)

    def ended(*_args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(execute.service, "start", ended)
        with pytest.raises(KeyboardInterrupt):
            execute.execute(fake.plan, Quiet())
    assert [call for call in fake.calls if call.startswith("merge")] == ["merge db", "merge tree"]
    fake.calls.clear()
    going = rollback_plan.begun()
    assert going is not None and going.merged
    execute.execute(going, Quiet())
    assert fake.calls == ["allow mariadb.service", "start mariadb.service"]
    assert rollback_plan.begun() is None


def test_a_damaged_archive_is_warned_of_and_keeps_no_server_down(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(monkeypatch, tmp_path)
    repository = tmp_path / "repository"
    archive = repository / host_name() / "shop" / "binlog"
    archive.mkdir(parents=True)
    (archive / "index").write_text("no JSON\n")
    job = reader.parse({"name": "shop", "mysql": {}, "repository": str(repository), "binlog": {"archive": True}})
    monkeypatch.setattr(execute, "own_jobs", lambda: [job])
    reporter = Quiet()
    execute.execute(replace(fake.plan, about=undo_points.About("mariadb.service", str(tmp_path), "/nowhere/mysql-bin", "/nowhere/mysql-bin.index")), reporter)
    assert fake.calls[-1] == "start mariadb.service"
    assert any("can't be told that the data was replaced" in warning for warning in reporter.warnings)
