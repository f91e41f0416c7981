# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import copy
import errno
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
import traceback
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
from _core.host import durable, mounts, service
from _core.host.errors import BusyError, CommandError, StillpointError, UsageError
from _core.lvm import undo_points
from _core.repository import rsync
from _core.repository.generation import Generation
from _core.restore import elsewhere, journal
from _core.restore.in_place import need, selection
from _core.restore.in_place import plan as planning
from _core.restore.in_place.execute import execute
from _core.restore.in_place.replaced import discard, replaced
from _core.restore.result import RestoreResult
from _core.restore.rollback import plan as rollback_plan
from trees import (
    Quiet,
    awkward,
    back_up,
    facts,
    job,
    killed_at,
    needs_root,
    no_waiting_for_the_disk,  # noqa: F401
    read,
    shape,
    small_disk,
    tree,
    write,
)


class Host:
    """A data directory and an application tree as they are on a live system, a backup of them, and what has happened since."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.state = root + "/state"
        self.datadir = root + "/live/lib/mysql"
        self.app = root + "/live/opt/app"
        os.makedirs(self.datadir + "/shop")
        os.makedirs(self.app)
        write(self.datadir + "/ibdata1", b"old" * 1000)
        write(self.datadir + "/shop/orders.ibd", b"old orders")
        write(self.app + "/index.php", b"old code")
        os.chmod(self.datadir, 0o750)
        if os.geteuid() == 0:
            os.chown(self.datadir, 104, 105)
        self.directory = job(root + "/repository")
        self.trees = [tree(self.datadir, "mysql"), tree(self.app, "files" + self.app)]

    def back_up(self, **more: Any) -> Generation:
        generation = back_up(self.directory, *self.trees, **more)
        self.saved = {path: facts(path) for path in (self.datadir, self.app)}
        return generation

    def go_on(self) -> None:
        """Change everything."""
        write(self.datadir + "/ibdata1", b"new!" * 1000, age=1)
        write(self.datadir + "/created since", age=1)
        shutil.rmtree(self.datadir + "/shop", ignore_errors=True)
        write(self.app + "/index.php", b"new code", age=1)
        self.lived = {path: facts(path) for path in (self.datadir, self.app)}

    def make(self, to: Optional[str] = None, parts: str = "all", name: Optional[str] = None) -> Any:
        generation = self.directory.find(name)
        return elsewhere.make(generation, to, parts) if to is not None else planning.make(generation, parts, state=self.state)

    def restore(self, **more: Any) -> RestoreResult:
        return self.make(**more).execute(Quiet())

    def complete(self, path: str, wanted: Dict[bytes, Any]) -> bool:
        return os.path.isdir(path) and facts(path) == wanted

    def names(self) -> List[str]:
        return sorted(os.listdir(os.path.dirname(self.datadir)) + os.listdir(os.path.dirname(self.app)))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    host = Host(str(tmp_path_factory.mktemp("host") / "here"))
    host.back_up()
    host.go_on()
    os.rename(host.root, host.root + ".prepared")
    return host


@pytest.fixture
def host(prepared):
    """A host for each test, always at the same place, as backups know the paths of what is in them."""
    subprocess.run(["cp", "-a", prepared.root + ".prepared", prepared.root], check=True)
    host = copy.copy(prepared)
    yield host
    durable.remove_tree(host.root)


# -- in place


@needs_root
def test_a_restore_in_place_brings_both_halves_back_and_keeps_what_it_replaced(host):
    done = host.restore()
    for path in (host.datadir, host.app):
        assert facts(path) == host.saved[path]
    kept = {re.sub(r"\.replaced-\d{8}T\d{6}Z$", "", path): path for path in done.replaced}
    assert {path: facts(kept[path]) for path in kept} == host.lived
    assert (done.generation, done.files, done.bytes, done.service) == ("2026-11-22T02-00-05Z", 3, 3018, None)
    assert os.listdir(host.state + "/") != [] and journal.pending(state=host.state) is None
    assert not [name for name in host.names() if "stillpoint" in name]


@pytest.mark.parametrize("to", [None, "look"])
def test_a_mysql_server_gets_another_identity_so_that_it_gives_out_no_gtid_a_second_time(tmp_path, to):
    host = Host(str(tmp_path / "here"))
    write(host.datadir + "/auto.cnf", b"[auto]\nserver-uuid=one\n")
    write(host.app + "/auto.cnf", b"of the application")
    host.back_up()
    host.go_on()
    (kept, *_files) = host.restore(to=to and host.root + "/" + to).replaced or [host.datadir]
    restored = {host.datadir: host.root + "/look/mysql", host.app: host.root + "/look/files" + host.app} if to else {}
    assert not os.path.exists(restored.get(host.datadir, host.datadir) + "/auto.cnf")
    assert read(restored.get(host.datadir, host.datadir) + "/ibdata1") == b"old" * 1000
    assert read(restored.get(host.app, host.app) + "/auto.cnf") == b"of the application"
    assert read(kept + "/auto.cnf") == b"[auto]\nserver-uuid=one\n"
    assert read(host.directory.find().path + "/mysql/auto.cnf") == b"[auto]\nserver-uuid=one\n"


@needs_root
def test_everything_that_is_easily_lost_comes_back(tmp_path):
    source = awkward(str(tmp_path / "live" / "app"))
    wanted = facts(source)
    directory = job(tmp_path / "repository")
    generation = back_up(directory, tree(source))
    before = shape(generation.path)
    shutil.rmtree(source)
    execute(planning.make(generation, state=str(tmp_path / "state")), Quiet())
    assert facts(source) == wanted
    assert os.stat(source + "/sparse").st_blocks * 512 < 1_000_000
    elsewhere.make(generation, str(tmp_path / "elsewhere")).execute(Quiet())
    assert facts(str(tmp_path / "elsewhere" / "files" / "tree")) == wanted
    assert shape(generation.path) == before


def test_what_is_restored_shares_no_file_with_the_backup(host):
    host.restore()
    assert os.stat(host.datadir + "/ibdata1").st_nlink == 1


@needs_root
def test_the_tree_itself_has_the_mode_and_owner_it_had(host):
    before = os.stat(host.app)
    for path in (host.datadir, host.app):
        os.chmod(path, 0o777)
    os.chown(host.app, 1, 1)
    host.restore()
    status = os.stat(host.datadir)
    assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o750, 104, 105)
    status = os.stat(host.app)
    assert (status.st_mode, status.st_uid, status.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_tree_that_is_gone_with_the_directories_above_it_comes_back(host):
    shutil.rmtree(host.root + "/live")
    old = os.umask(0o077)
    try:
        done = host.restore()
    finally:
        os.umask(old)
    assert done.replaced == []
    for path in (host.datadir, host.app):
        assert facts(path) == host.saved[path]
    assert os.stat(host.root + "/live/opt").st_mode & 0o777 == 0o755


def test_one_half_can_be_restored_alone_and_a_warning_says_what_that_means(host):
    plan = host.make(parts="database")
    assert any("not be of one point in time" in warning for warning in plan.warnings)
    execute(plan, Quiet())
    assert facts(host.datadir) == host.saved[host.datadir]
    assert facts(host.app) == host.lived[host.app]
    host.restore(parts="files")
    assert facts(host.app) == host.saved[host.app]
    back_up(host.directory, host.trees[1], hours=1)
    with pytest.raises(UsageError, match="the generation 2026-11-22T03-00-05Z holds no database"):
        host.make(parts="database")


def test_a_data_directory_behind_a_symlink_is_replaced_where_it_really_is(host):
    really = host.root + "/data/mysql"
    os.makedirs(os.path.dirname(really))
    os.rename(host.datadir, really)
    os.symlink(really, host.datadir)
    done = host.restore(parts="database")
    assert os.path.islink(host.datadir)
    assert facts(really) == host.saved[host.datadir]
    assert done.replaced[0].startswith(really + ".replaced-")


def test_where_two_names_can_not_change_places_in_one_step_two_steps_do(host, monkeypatch):
    def not_here(_one: str, _other: str) -> None:
        raise durable.NotSupported

    monkeypatch.setattr(durable, "exchange", not_here)
    done = host.restore()
    assert facts(host.datadir) == host.saved[host.datadir]
    assert facts(done.replaced[0]) == host.lived[host.datadir]


def test_two_restores_one_after_the_other_keep_what_each_replaced(host):
    first = host.restore()
    second = host.restore()
    assert len(set(first.replaced + second.replaced)) == 4
    assert facts(first.replaced[0]) == host.lived[host.datadir]
    assert facts(second.replaced[0]) == host.saved[host.datadir]


def test_names_of_hard_links_that_look_like_an_arrow_are_restored(host):
    os.link(host.app + "/index.php", host.app + "/a => b")
    os.link(host.app + "/index.php", host.app + "/c => d => e")
    host.back_up(hours=1)
    host.go_on()
    host.restore()
    assert facts(host.app) == host.saved[host.app]


def test_a_single_file_is_restored_under_its_name(tmp_path):
    path = str(tmp_path / "etc" / "my.cnf")
    os.makedirs(os.path.dirname(path))
    write(path, b"old")
    generation = back_up(job(tmp_path / "repository"), tree(path, "files/etc/my.cnf"))
    write(path, b"new", age=1)
    done = execute(planning.make(generation, state=str(tmp_path / "state")), Quiet())
    assert read(path) == b"old" and read(done.replaced[0]) == b"new"
    assert sorted(os.listdir(os.path.dirname(path))) == ["my.cnf", os.path.basename(done.replaced[0])]


# -- a mount point


@pytest.fixture
def mounted(tmp_path):
    for disk in small_disk(str(tmp_path / "live" / "lib" / "mysql"), "40m"):
        host = Host(str(tmp_path))
        os.mkdir(disk + "/lost+found")
        host.back_up()
        host.go_on()
        yield host


@needs_root
def test_a_mount_point_gets_its_contents_exchanged_and_its_own_attributes_back(mounted):
    host = mounted
    os.chmod(host.datadir, 0o700)
    done = host.restore(parts="database")
    kept = done.replaced[0]
    assert os.path.dirname(kept) == host.datadir and os.path.ismount(host.datadir)
    found = {path: each for path, each in facts(host.datadir).items() if not path.startswith(b".stillpoint-replaced-")}
    for path, each in found.items():
        assert (
            {**each, "mtime_ns": 0} == {**host.saved[host.datadir][path], "mtime_ns": 0}
            if path == b""
            else each == host.saved[host.datadir][path]
        )
    assert set(found) == set(host.saved[host.datadir])
    assert read(kept + "/ibdata1") == b"new!" * 1000 and os.path.exists(kept + "/created since")
    assert (os.stat(kept).st_mode & 0o7777, os.stat(kept).st_uid) == (0o700, 104)


@needs_root
def test_what_a_mount_point_keeps_is_not_backed_up_and_can_be_discarded(mounted):
    host = mounted
    host.restore(parts="database")
    generation = host.back_up(hours=1)
    assert sorted(os.listdir(generation.path + "/mysql")) == ["ibdata1", "lost+found", "shop"]
    kept = replaced("job", state=host.state)
    assert discard(kept, Quiet(), state=host.state) == [each.path for each in kept]
    assert sorted(os.listdir(host.datadir)) == ["ibdata1", "lost+found", "shop"]


@needs_root
def test_another_file_system_inside_what_is_replaced_is_refused(host):
    for disk in small_disk(host.datadir + "/binlog"):
        with pytest.raises(
            UsageError, match="another file system is mounted in .*/mysql, at %s: unmount it first, or restore it into a directory with --to" % disk
        ):
            host.make()
        host.make(parts="files")


# -- refusing


def test_an_empty_mount_point_is_not_taken_for_the_data_that_lies_on_its_volume(host, monkeypatch):
    plan = host.make()
    write(host.root + "/fstab", b"/dev/data/db %s ext4 noauto 0 0\n" % os.path.dirname(host.datadir).encode())
    monkeypatch.setattr(mounts, "FSTAB", host.root + "/fstab")
    with pytest.raises(UsageError, match="%s lies on the file system of .*/live/lib, which /etc/fstab names .* is not mounted now" % host.datadir):
        host.make()
    host.make(parts="files")
    host.make(to=host.root + "/elsewhere")
    monkeypatch.undo()
    execute(plan, Quiet())


def test_nothing_is_restored_in_place_while_a_rollback_is_half_done(host, monkeypatch):
    monkeypatch.setattr(journal, "STATE", host.state)
    os.makedirs(host.state)
    plan = host.make()
    rollback_plan.write(rollback_plan.RollbackPlan("R", "then", (), None, (), undo_points.About(), False))
    with pytest.raises(StillpointError, match="going back to R was interrupted: finish it first, with stillpoint rollback R$"):
        host.make()
    with pytest.raises(StillpointError, match="going back to R was interrupted"):
        execute(plan, Quiet())
    host.make(to=host.root + "/elsewhere")
    assert {path: facts(path) for path in host.lived} == host.lived


def test_a_repository_in_what_would_be_replaced_is_refused(tmp_path):
    os.makedirs(str(tmp_path / "live"))
    write(str(tmp_path / "live" / "file"))
    generation = back_up(job(tmp_path / "live" / "repository"), tree(str(tmp_path / "live"), exclude=("/repository",)))
    with pytest.raises(UsageError, match="the repository lies in .*/live, which would be replaced"):
        planning.make(generation, state=str(tmp_path / "state"))


def test_a_tree_inside_another_one_is_refused_in_place_but_not_elsewhere(host):
    generation = back_up(
        host.directory, tree(host.root + "/live", "files/live", exclude=("/lib/mysql",)), tree(host.datadir, "mysql"), hours=1
    )
    with pytest.raises(UsageError, match="mysql lies in .*/live, which would be replaced as a whole"):
        planning.make(generation, state=host.state)
    elsewhere.make(generation, host.root + "/elsewhere").execute(Quiet())


def flip_one_bit(path: str) -> None:
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(bytes([file.read(1)[0] ^ 1]))
    with open(path, "r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_generation_that_fails_its_checksums_is_refused_before_anything_is_touched_and_then_known_as_bad(host):
    generation = host.directory.find()
    flip_one_bit(generation.path + "/mysql/shop/orders.ibd")
    with pytest.raises(
        StillpointError,
        match=r"generation .* is damaged \(mysql/shop/orders.ibd: contents changed .*\): the live data was not touched; restore another",
    ):
        host.restore()
    assert {path: facts(path) for path in host.lived} == host.lived
    assert host.names() == ["app", "mysql"] and journal.pending(state=host.state) is None
    assert host.directory.generations()[0].state == "bad"
    with pytest.raises(
        StillpointError, match="is damaged and is not restored .*: choose another one; what is left of it can be copied by hand from"
    ):
        host.make(name="2026-11-22")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.unlink(path + "/mysql/ibdata1"),
        lambda path: write(path + "/mysql/new file"),
        lambda path: os.chmod(path + "/mysql/ibdata1", 0o666),
        lambda path: (os.unlink(path + "/mysql/ibdata1"), os.symlink("/dev/null", path + "/mysql/ibdata1")),
    ],
    ids=["missing", "new", "mode", "type"],
)
def test_a_generation_that_is_not_as_its_manifest_says_is_refused_too(host, damage):
    damage(host.directory.find().path)
    with pytest.raises(StillpointError, match="is damaged .*: the live data was not touched"):
        host.restore()
    assert {path: facts(path) for path in host.lived} == host.lived


class OtherModes(Quiet):
    """Stands for a file system that takes any mode and shows its own, as CIFS, FUSE and NFS can be told to."""

    def __init__(self, *paths: str) -> None:
        super().__init__()
        self.paths = paths

    def progress(self, done: int, total: Optional[int] = None) -> None:
        for path in self.paths:
            if os.path.exists(path):
                os.chmod(path, 0o755)


def test_a_destination_that_does_not_keep_what_it_is_given_makes_no_backup_bad(host):
    staging = os.path.dirname(host.datadir) + "/.mysql.stillpoint-new"
    shown = OtherModes(staging + "/ibdata1", staging + "/shop/orders.ibd")
    with pytest.raises(
        StillpointError,
        match=r"/live/lib does not keep what was written to it \(mysql/ibdata1: has mode 0755, had 06\d\d, and 1 more\), while generation \S+ is "
        "sound: the live data was not touched; restore to a file system",
    ):
        execute(host.make(), shown)
    assert {path: facts(path) for path in host.lived} == host.lived
    assert host.names() == ["app", "mysql"] and journal.pending(state=host.state) is None
    assert host.directory.find().state == "unproven" and not host.directory.find().recorded
    flip_one_bit(host.directory.find().path + "/mysql/ibdata1")  # the rest is the destination's
    with pytest.raises(StillpointError, match=r"is damaged \(mysql/ibdata1: contents changed [^:]*\): the live data"):
        execute(host.make(), shown)
    assert host.directory.generations()[0].verified["faults_total"] == 1


def test_one_whose_proof_failed_is_put_back_only_by_its_name_and_says_so(host):
    bad = host.back_up(hours=1, proof={"ok": False, "reason": "it holds 1 prepared transactions"})
    assert host.make().generation.name != bad.name
    plan = host.make(name=bad.name)
    assert any("its proof failed" in warning and "prepared" in warning for warning in plan.warnings)
    assert any("its proof failed" in line for line in plan.lines())
    there = host.make(to=host.root + "/elsewhere", name=bad.name)
    assert any("its proof failed" in line for line in there.lines())


def test_who_names_no_generation_is_told_of_a_newer_one_that_is_passed_over(host):
    def told() -> List[str]:
        return list(selection.passed_over(host.directory.find(), "all"))

    chosen = host.back_up(hours=1, proof={"ok": True})
    assert told() == []
    host.back_up(hours=2, proof={"ok": False, "reason": "it does not start"})
    assert told() == []
    newer = host.back_up(hours=3)
    assert (host.directory.find().name, told()) == (chosen.name, ["%s is newer and unproven: name it to restore that one instead" % newer.name])


def test_a_good_backup_that_lacks_what_a_newer_one_holds_is_not_taken_for_it(tmp_path):
    host = Host(str(tmp_path / "here"))
    both = host.trees
    host.trees = both[1:]
    old = host.back_up()
    host.trees = both
    new = host.back_up(hours=1)
    assert (host.directory.find().name, new.state) == (old.name, "unproven")
    sentence = "the newest good backup, %s, does not hold %s, which the newer %s .unproven. does: name the one to restore"
    with pytest.raises(UsageError, match=sentence % (old.name, host.datadir, new.name)):
        list(selection.passed_over(old, "all"))
    assert len(list(selection.passed_over(old, "files"))) == 1


def test_a_generation_whose_manifest_is_damaged_is_refused(host):
    path = host.directory.find().path + "/manifest.json"
    with open(path, "rb") as file:
        text = file.read()
    with open(path, "wb") as file:
        file.write(text.replace(b'"uid":', b'"uid":1', 1))
    with pytest.raises(
        StillpointError, match="is damaged and is not restored .the manifest of .* does not have the checksum that it states"
    ):
        host.make()


def test_a_restore_that_has_no_room_is_refused_before_it_begins(host, monkeypatch):
    real = os.statvfs

    def nearly_full(path: Any) -> os.statvfs_result:
        return os.statvfs_result((*real(path)[:2], *(real(path)[2], 10, 10), *real(path)[5:]))

    monkeypatch.setattr(os, "statvfs", nearly_full)
    with pytest.raises(
        StillpointError, match=r"has 40.0 KiB free and the restore needs 32\.\d MiB beside what is there: free some space, discard"
    ):
        host.make()
    with pytest.raises(StillpointError, match="beside what is there"):
        host.make(to=host.root + "/to")


@needs_root
def test_a_disk_that_fills_up_while_it_is_copied_leaves_everything_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(need, "_MARGIN", -100 << 20)
    for disk in small_disk(str(tmp_path / "disk"), "3m"):
        os.mkdir(disk + "/app")
        write(disk + "/app/file", b"x" * 2_000_000)
        generation = back_up(job(tmp_path / "repository"), tree(disk + "/app"))
        before = facts(disk + "/app")
        with pytest.raises(
            StillpointError, match="there is no room for .* beside .*/disk/app .*: the live data was not touched; free some space"
        ):
            execute(planning.make(generation, state=str(tmp_path / "state")), Quiet())
        assert facts(disk + "/app") == before
        assert os.listdir(disk) == ["app"]


def test_an_error_of_the_disk_before_the_exchange_leaves_everything_as_it_was(host, monkeypatch):
    def fail(path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(durable, "sync_file_system", fail)
    with pytest.raises(StillpointError, match="could not be put back: Input/output error .*; the live data was not touched"):
        host.restore()
    assert {path: facts(path) for path in host.lived} == host.lived
    assert host.names() == ["app", "mysql"]


def test_a_generation_is_not_removed_while_it_is_restored(host, monkeypatch):
    generation = host.directory.find()
    real = rsync.copy_tree
    removed: List[bool] = []

    def copy_and_try_to_remove(*args: Any, **named: Any) -> Any:
        with host.directory.lock():
            removed.append(host.directory.remove(generation))
        return real(*args, **named)

    monkeypatch.setattr(rsync, "copy_tree", copy_and_try_to_remove)
    host.restore()
    assert removed == [False, False]


def test_one_restore_runs_at_a_time(host):
    with journal.alone(host.state), pytest.raises(BusyError, match="another restore is running on this host"):
        host.restore()


# -- what is said


def test_a_plan_says_what_will_happen_for_people_and_for_programs(host):
    plan = host.make()
    text = "\n".join(plan.lines())
    assert "put generation 2026-11-22T02-00-05Z back in place:" in text
    assert "%s: 2 files, 2.9 KiB" % host.datadir in text
    assert re.search(r"what is there is kept as %s\.replaced-\d{8}T\d{6}Z" % host.datadir, text)
    assert re.search(r"needs 32\.\d MiB on the file system of .*, which has .* free", text)
    assert "warning: no systemd unit is known for the server" in text
    value = json.loads(json.dumps(plan.as_dict()))
    assert [each["path"] for each in value["trees"]] == [host.datadir, host.app]
    assert value["space"][0]["needed"] > 3018 and value["to"] is None and value["resumes"] is False
    assert {path: facts(path) for path in host.lived} == host.lived


def test_stages_and_bytes_are_told_while_it_goes_on(host):
    reporter = Quiet()
    execute(host.make(), reporter)
    assert reporter.stages == ["copy", "replace"]
    assert reporter.done[-1] == (3018, 3018)


@needs_root
def test_the_servers_files_get_the_account_that_has_the_data_directory_here_and_others_keep_their_numbers(host):
    os.chown(host.app + "/index.php", 104, 105)  # the same numbers
    os.chown(host.datadir + "/ibdata1", 0, 105)
    generation = host.back_up(hours=1)
    os.chown(host.datadir, 7, 8)
    plan = host.make(name=generation.name)
    said = [re.sub(r" \(\w+\)", "", line) for line in plan.lines()]
    assert "    files of user 104 get user 7, of group 105 get group 8, which the server has on this host" in said
    assert [(tree["users"], tree["groups"]) for tree in plan.as_dict()["trees"]] == [([104, 7], [105, 8]), (None, None)]
    host.restore(name=generation.name)
    owners = {path: (os.stat(path).st_uid, os.stat(path).st_gid) for path in (host.datadir, host.datadir + "/ibdata1", host.app + "/index.php")}
    assert list(owners.values()) == [(7, 8), (0, 8), (104, 105)]
    assert os.stat(generation.path + "/mysql").st_uid == 104 and generation.state != "bad"


@needs_root
@pytest.mark.parametrize("empty", [True, False])
def test_where_no_data_directory_is_there_the_account_of_the_same_name_gets_the_servers_files(host, empty):
    daemon = pwd.getpwnam("daemon")
    os.chown(host.datadir, daemon.pw_uid, daemon.pw_gid)
    generation = host.back_up(hours=1)
    assert [(tree.user, tree.group) for tree in generation.trees][0] == ("daemon", "daemon")
    for path in (host.datadir, generation.path + "/mysql"):  # as if it had another number where it was backed up
        os.chown(path, 104, 105)
    durable.remove_tree(host.datadir)
    if empty:
        os.mkdir(host.datadir)  # root's
    plan = host.make(name=generation.name)
    assert plan.targets[0].users == (104, daemon.pw_uid) and plan.targets[0].groups == (105, daemon.pw_gid)


def test_a_part_that_there_is_not_is_refused(host):
    with pytest.raises(UsageError, match="'half' is no part of a backup"):
        host.make(parts="half")


# -- into a directory


@pytest.mark.parametrize("there", ["missing", "empty", "lost+found"])
def test_a_directory_gets_everything_under_the_names_of_the_trees(host, there):
    to = host.root + "/to/here"
    if there != "missing":
        os.makedirs(to)
    if there == "lost+found":
        os.mkdir(to + "/lost+found")
    done = host.restore(to=to)
    assert done.replaced == [] and done.service is None
    assert sorted(set(os.listdir(to)) - {"lost+found"}) == ["files", "mysql"]
    assert facts(to + "/mysql") == host.saved[host.datadir]
    assert facts(to + "/files" + host.app) == host.saved[host.app]
    assert {path: facts(path) for path in host.lived} == host.lived
    assert not os.path.exists(host.state)


def test_a_directory_that_is_not_empty_or_none_is_refused(host):
    with pytest.raises(UsageError, match=r"the directory .*/app is not empty \(index.php\): name one that is, or that does not exist"):
        host.make(to=host.app)
    with pytest.raises(UsageError, match="index.php is not a directory"):
        host.make(to=host.app + "/index.php")
    with pytest.raises(UsageError, match="lies among the generations"):
        host.make(to=host.directory.path + "/new")


def test_a_damaged_generation_leaves_no_trace_in_the_directory(host):
    flip_one_bit(host.directory.find().path + "/files" + host.app + "/index.php")
    with pytest.raises(StillpointError, match="is damaged"):
        host.restore(to=host.root + "/to")
    assert not os.path.exists(host.root + "/to")


def test_a_kill_between_any_two_steps_into_a_directory_leaves_nothing_that_looks_complete_and_is_not(host):
    step = 0
    to = host.root + "/to"
    while killed_at(step, lambda: host.restore(to=to)):
        names = set(os.listdir(to)) - {".stillpoint-new"} if os.path.isdir(to) else set()
        if "mysql" in names:
            assert facts(to + "/mysql") == host.saved[host.datadir]
        if "files" in names:
            assert facts(to + "/files" + host.app) == host.saved[host.app]
        if names:
            with pytest.raises(UsageError, match="is not empty"):
                host.make(to=to)
            shutil.rmtree(to)
        step += 1
    assert step >= 4
    assert facts(to + "/mysql") == host.saved[host.datadir]


# -- killed


def every_kill(host: Host, is_complete: Callable[[str, Dict[bytes, Any]], bool], parts: str = "all") -> int:
    """Kill a restore at each of its steps in turn, look at what is there, run it again, and look again; return how many there are."""
    step = 0
    template = host.root + "/live.template"
    subprocess.run(["cp", "-a", host.root + "/live", template], check=True)
    halves = [path for path in (host.datadir, host.app) if parts == "all" or path == host.datadir]
    while killed_at(step, lambda: host.restore(parts=parts)):
        for path in halves:
            old, new = is_complete(path, host.lived[path]), is_complete(path, host.saved[path])
            assert old or new, "killed at step %d, neither old nor new is complete: %s" % (step, path)
        host.restore(parts=parts)
        for path in halves:
            assert in_place(path, host.saved[path]), "killed at step %d, and run again" % step
            assert is_complete(path, host.lived[path]), "killed at step %d: what was replaced is lost" % step
        assert journal.pending(state=host.state) is None
        leftovers = [
            name for _path, directories, files in os.walk(host.root + "/live") for name in directories + files if "stillpoint-new" in name
        ]
        assert leftovers == []
        kept = replaced(state=host.state)
        assert {each.target for each in kept} == set(halves)
        discard(kept, Quiet(), state=host.state)
        for path in halves:
            empty(path)
        subprocess.run(["cp", "-a", template + "/.", host.root + "/live"], check=True)
        for path in halves:
            assert in_place(path, host.lived[path])
        step += 1
    return step


def empty(path: str) -> None:
    for name in os.listdir(path):
        full = os.path.join(path, name)
        if os.path.isdir(full) and not os.path.islink(full):
            shutil.rmtree(full)
        else:
            os.unlink(full)


def contents(path: str) -> Dict[bytes, Any]:
    """Return the facts of a tree but for what a mount point keeps in it, and for the times of its root."""
    found = {name: each for name, each in facts(path).items() if not name.startswith(b".stillpoint-")}
    found[b""] = {**found[b""], "mtime_ns": 0}
    return found


def in_place(path: str, wanted: Dict[bytes, Any]) -> bool:
    return os.path.isdir(path) and contents(path) == {**wanted, b"": {**wanted[b""], "mtime_ns": 0}}


def test_at_every_kill_old_or_new_is_complete_and_the_same_command_finishes_it(host):
    def complete(path: str, wanted: Dict[bytes, Any]) -> bool:
        parent = os.path.dirname(path)
        return any(in_place(os.path.join(parent, name), wanted) for name in os.listdir(parent))

    assert every_kill(host, complete) >= 10


def test_so_it_is_where_two_names_can_not_change_places_in_one_step(host, monkeypatch):
    def not_here(_one: str, _other: str) -> None:
        raise durable.NotSupported

    def complete(path: str, wanted: Dict[bytes, Any]) -> bool:
        parent = os.path.dirname(path)
        return any(in_place(os.path.join(parent, name), wanted) for name in os.listdir(parent))

    monkeypatch.setattr(durable, "exchange", not_here)
    assert every_kill(host, complete, "database") >= 8


@needs_root
def test_so_it_is_in_a_mount_point(mounted):
    def complete(path: str, wanted: Dict[bytes, Any]) -> bool:
        wanted = {name: each for name, each in wanted.items() if name not in (b"", b"lost+found")}
        for candidate in [path] + [os.path.join(path, name) for name in os.listdir(path) if name.startswith(".stillpoint-")]:
            found = {name: each for name, each in contents(candidate).items() if name not in (b"", b"lost+found")}
            if found == wanted:
                return True
        return False

    assert every_kill(mounted, complete, "database") >= 10


def interrupted(host: Host, **more: Any) -> None:
    """Kill a restore when it has exchanged the first of its trees."""
    child = os.fork()
    if child == 0:
        real = durable.exchange

        def exchange(one: str, other: str) -> None:
            real(one, other)
            os.kill(os.getpid(), signal.SIGKILL)

        durable.exchange = exchange
        try:
            host.restore(**more)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_an_interrupted_restore_is_known_and_anything_else_waits_for_it(host):
    host.back_up(hours=1)
    interrupted(host, name="2026-11-22T02")
    assert journal.pending(state=host.state).generation == "2026-11-22T02-00-05Z"
    with pytest.raises(
        UsageError,
        match="a restore of 2026-11-22T02-00-05Z was interrupted while it replaced the live data, and this asks for another one: "
        "finish it, with stillpoint restore job 2026-11-22T02-00-05Z --from-host host, or undo it, with stillpoint undo job",
    ):
        host.make(name="2026-11-22T03")
    with pytest.raises(UsageError, match="this asks for another one"):
        host.make(name="2026-11-22T02", parts="database")
    with pytest.raises(StillpointError, match="finish or undo it before anything is discarded"):
        discard([], Quiet(), state=host.state)
    host.restore(name="2026-11-22T02", to=host.root + "/to")  # does not touch live data
    plan = host.make(name="2026-11-22T02")
    assert plan.resumes and plan.lines()[0] == "finish the restore of generation 2026-11-22T02-00-05Z that was interrupted:"
    execute(plan, Quiet())
    assert journal.pending(state=host.state) is None
    host.make(name="2026-11-22T03")


def test_one_half_that_was_interrupted_is_finished_by_its_own_command(host):
    interrupted(host, parts="database")
    with pytest.raises(UsageError, match="stillpoint restore job 2026-11-22T02-00-05Z --from-host host --only database, or undo it"):
        host.make()
    host.restore(parts="database")
    assert facts(host.datadir) == host.saved[host.datadir]


def test_prepared_data_that_somebody_took_away_is_missed_in_one_sentence(host):
    interrupted(host)
    shutil.rmtree(os.path.dirname(host.app) + "/.app.stillpoint-new")
    with pytest.raises(StillpointError, match="the data prepared for .*/app is no longer at .*app.stillpoint-new"):
        host.restore()
    assert facts(host.app) == host.lived[host.app]


def test_an_error_in_the_middle_of_the_exchange_says_that_the_same_command_finishes_it(host, monkeypatch):
    real = durable.exchange

    def exchange(one: str, other: str) -> None:
        if other == host.app:
            raise OSError(errno.EIO, os.strerror(errno.EIO), one, None, other)
        real(one, other)

    monkeypatch.setattr(durable, "exchange", exchange)
    way = "finish it, with stillpoint restore job 2026-11-22T02-00-05Z --from-host host, or undo it"
    with pytest.raises(StillpointError, match="both are complete on the disk: " + way):
        host.restore()
    monkeypatch.undo()
    host.restore()
    assert facts(host.app) == host.saved[host.app] and facts(host.datadir) == host.saved[host.datadir]


# -- discarding


def test_what_was_replaced_is_listed_by_job_and_discarded_for_good(host):
    done = host.restore()
    assert replaced("another", state=host.state) == []
    kept = replaced("job", state=host.state)
    assert [each.path for each in kept] == done.replaced
    assert [(each.target, each.job, each.generation) for each in kept][0] == (host.datadir, "job", "2026-11-22T02-00-05Z")
    assert discard(kept, Quiet(), state=host.state) == done.replaced
    assert host.names() == ["app", "mysql"]
    assert replaced(state=host.state) == []
    assert facts(host.datadir) == host.saved[host.datadir]


def test_what_somebody_moved_back_is_not_discarded(host):
    done = host.restore()
    old = done.replaced[0]
    kept = replaced(state=host.state)
    os.rename(host.datadir, host.datadir + ".restored")
    os.rename(old, host.datadir)
    os.mkdir(old)
    write(old + "/somebody's")
    assert discard(kept, Quiet(), state=host.state) == done.replaced[1:]
    assert os.path.exists(old + "/somebody's") and facts(host.datadir) == host.lived[host.datadir]


def test_where_nothing_was_ever_restored_there_is_nothing_to_discard(host):
    assert replaced(state=host.state) == [] and journal.pending(state=host.state) is None


# -- the server


class FakeServer:
    """A process that works in a data directory and greets at a socket as a server does, and systemctl to stop and start it."""

    def __init__(self, host: Host, monkeypatch: Any) -> None:
        self.host, self.calls = host, []  # type: Host, List[str]
        self.starts, self.unit = True, "mariadb.service"
        self.process: Optional[subprocess.Popen] = None
        os.makedirs(host.root + "/bin")
        program = host.root + "/bin/mariadbd"
        shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
        self.program = program
        monkeypatch.setattr(service, "systemd_runs", lambda: True)
        monkeypatch.setattr(service, "run", self.systemctl)
        monkeypatch.setattr(service, "unit_of", lambda pid: self.unit)
        monkeypatch.setattr(service, "answers", lambda pid: True)
        monkeypatch.setattr(service, "_ANSWER_TIMEOUT", 0.1)
        self.units = host.root + "/units"
        os.makedirs(self.units)
        monkeypatch.setattr(service, "UNITS", self.units)
        self.sockets: List[str] = []

    def begin(self) -> None:
        self.process = subprocess.Popen([self.program, "1000"], cwd=self.host.datadir)
        while service.running_in(self.host.datadir) is None:
            time.sleep(0.01)

    def end(self) -> None:
        if self.process:
            try:
                os.kill(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            self.process = None
            while service.running_in(self.host.datadir):  # a forked process can't wait for it
                time.sleep(0.01)

    def forbidden(self) -> List[str]:
        """Return what keeps systemd from starting the server, at a boot as well."""
        found = [os.path.join(self.units, self.unit + ".d", name) for name in ("stillpoint-restore.conf",)]
        return [path for path in found if os.path.exists(path) and "AssertPathExists=!" + path in read(path).decode()]

    def systemctl(self, argv: List[str], **_more: Any) -> Any:
        if argv[1] == "show":
            value = {
                "MainPID": str(self.process.pid if self.process else 0),
                "LoadState": "loaded",
                "ActiveState": "active",
                "TriggeredBy": " ".join(self.sockets),
                "DropInPaths": " ".join(self.forbidden()),
            }
            return type("Result", (), {"stdout": value[argv[2].split("=")[1]] + "\n"})
        if argv[1] == "daemon-reload":
            return None
        self.calls.append(" ".join(argv[1:]))
        if argv[1] == "stop":
            self.end()
        elif self.forbidden():
            raise CommandError("systemctl failed", argv, 1, "Assertion failed on job for mariadb.service.")
        elif not self.starts:
            raise CommandError("systemctl failed", argv, 1, "Job for mariadb.service failed")
        else:
            self.begin()
        return None


@pytest.fixture
def server(host, monkeypatch) -> Iterator[FakeServer]:
    server = FakeServer(host, monkeypatch)
    yield server
    server.end()


STOPPED_AND_STARTED = ["stop -- mariadb.service", "start -- mariadb.service"]


def test_the_server_is_stopped_for_the_exchange_and_started_after_it(host, server):
    server.begin()
    plan = host.make()
    assert "  mariadb.service is stopped while the data is exchanged, and started after that" in plan.lines()
    reporter = Quiet()
    assert execute(plan, reporter).service == "mariadb.service"
    assert reporter.stages == ["copy", "stop", "replace", "start"]
    assert server.calls == STOPPED_AND_STARTED
    assert service.running_in(host.datadir) is not None


def test_a_server_that_was_down_is_started_by_the_unit_that_the_backup_names(host, server):
    back_up(host.directory, *host.trees, hours=1, server={"unit": "mariadb.service"})
    assert host.restore().service == "mariadb.service"
    assert server.calls == STOPPED_AND_STARTED


def test_files_alone_leave_the_server_alone(host, server):
    server.begin()
    assert host.restore(parts="files").service is None
    assert server.calls == []


def test_a_server_that_belongs_to_no_unit_has_to_be_stopped_first(host, server):
    server.begin()
    server.unit = None
    with pytest.raises(
        UsageError,
        match=r"a server \(mariadbd, process %d\) runs in .*/mysql and is not the main process of a systemd unit: stop it"
        % server.process.pid,
    ):
        host.make()
    server.end()
    host.restore()


def test_a_server_in_somebody_elses_unit_is_not_stopped_with_it(host, server, monkeypatch):
    """One that was started by hand runs in the control group of the login or of whatever started it."""
    server.begin()
    monkeypatch.setattr(service, "_show", lambda unit, what: "1")
    with pytest.raises(UsageError, match="is not the main process of a systemd unit"):
        host.make()


def test_a_server_that_comes_up_before_the_exchange_stops_it(host, server):
    plan = host.make()
    server.begin()
    with pytest.raises(StillpointError, match=r"a server \(mariadbd, process \d+\) still runs in .*/mysql: stop it, then run this again"):
        execute(plan, Quiet())
    assert {path: facts(path) for path in host.lived} == host.lived
    assert host.names() == ["app", "mysql"]


def test_a_server_that_does_not_stop_is_left_running_on_untouched_data(host, server, monkeypatch):
    server.begin()
    monkeypatch.setattr(server, "end", lambda: None)
    monkeypatch.setattr(server, "begin", lambda: None)
    with pytest.raises(StillpointError, match="still runs in"):
        host.restore()
    assert server.calls == STOPPED_AND_STARTED
    assert {path: facts(path) for path in host.lived} == host.lived
    monkeypatch.undo()
    server.end()


def test_a_server_that_does_not_start_is_told_with_the_way_back(host, server):
    server.begin()
    server.starts = False
    with pytest.raises(StillpointError) as caught:
        host.restore()
    said = str(caught.value)
    why = "mariadb.service does not start (journalctl -u mariadb.service says why)"
    assert said.startswith("generation 2026-11-22T02-00-05Z is in place, but %s; to go back: " % why)
    way_back = said.split("to go back: ")[1].split("; ")
    assert way_back[0] == "systemctl stop mariadb.service" and way_back[-1] == "systemctl start mariadb.service"
    assert facts(host.datadir) == host.saved[host.datadir] and journal.pending(state=host.state) is None
    for command in way_back[1:-1]:
        subprocess.run(command, shell=True, check=True)
    assert {path: facts(path) for path in host.lived} == host.lived


def test_an_interrupted_restore_starts_the_server_when_it_is_finished(host, server):
    server.begin()
    interrupted(host)
    server.calls.clear()
    assert host.restore().service == "mariadb.service"
    assert server.calls == STOPPED_AND_STARTED


def test_a_shell_in_the_data_directory_is_no_server(host):
    sleeping = subprocess.Popen(["sleep", "1000"], cwd=host.datadir)
    try:
        assert service.running_in(host.datadir) is None
    finally:
        sleeping.kill()
        sleeping.wait()
    assert service.running_in(host.root + "/missing") is None


@pytest.mark.parametrize(
    ("greeting", "expected"), [(b"\x4a\0\0\0\x0a5.5.5-10.11", True), (b"\x10\0\0\1\xff\x69\x04Host is blocked", True), (b"", False)]
)
def test_a_server_answers_when_it_greets_at_one_of_its_sockets(tmp_path, greeting, expected):
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "mysqld.sock"))
    listening.listen(1)

    def greet() -> None:
        connection, _address = listening.accept()
        connection.sendall(greeting)
        connection.close()

    thread = threading.Thread(target=greet)
    thread.start()
    assert service.answers(os.getpid()) is expected
    thread.join()
    listening.close()
    assert service.answers(os.getpid()) is False
