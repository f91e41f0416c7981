# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: F811 (fixtures of other files)
"""One path of the files, put back alone: into a directory that others write to, which is backed up itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from typing import Any, Dict, Optional

import pytest
from _core.host import durable, mounts, service
from _core.host.errors import StillpointError, UsageError
from _core.repository import manifest, rsync
from _core.restore import elsewhere, journal, undo
from _core.restore.in_place import exchange, one_path
from _core.restore.in_place import plan as planning
from _core.restore.in_place.execute import execute
from _core.restore.in_place.replaced import discard, replaced
from _core.restore.result import RestoreResult
from test_restore import Host
from trees import Quiet, awkward, facts, killed_at, needs_root, no_waiting_for_the_disk, read, small_disk, tree, write  # noqa: F401


@pytest.fixture
def parts(tmp_path):
    """An application tree with more in it, its backup, and a change in every corner of it."""
    host = Host(str(tmp_path / "here"))
    awkward(host.app + "/shared/sites")
    write(host.app + "/shared/other", b"old")
    os.symlink("sites", host.app + "/shared/link")
    host.back_up()
    host.go_on()
    write(host.app + "/shared/sites/created since", age=1)
    write(host.app + "/shared/other", b"new", age=1)
    host.lived = {path: facts(path) for path in (host.datadir, host.app)}
    return host


def put_path(host: Host, path: str, to: Optional[str] = None) -> RestoreResult:
    generation = host.directory.find()
    if to is not None:
        return elsewhere.make(generation, to, path=path).execute(Quiet())
    return execute(planning.make(generation, path=path, state=host.state), Quiet())


def below(wanted: Dict[bytes, Any], path: str) -> Dict[bytes, Any]:
    """Return the facts of a path and of all below it, by its name there."""
    name = os.fsencode(path)
    return {each[len(name) :]: known for each, known in wanted.items() if each == name or each.startswith(name + b"/")}


@needs_root
@pytest.mark.parametrize("path", ["shared/sites", "shared/other", "shared/link", "shared"])
def test_one_path_is_put_back_alone_and_what_it_replaces_is_kept_where_no_backup_takes_it(parts, path):
    host = parts
    before = facts(host.app + "/" + path)
    done = put_path(host, host.app + "/" + path)
    (kept,) = done.replaced
    there = facts(host.app)
    assert below(there, path) == below(host.saved[host.app], path)
    assert facts(kept) == before
    # nothing else is touched, but for the time of the directory that it lies in
    others = {name: known for name, known in host.lived[host.app].items() if name[: len(path)] != path.encode() and name != os.path.dirname(path).encode()}
    assert {name: there[name] for name in others} == others and others
    assert facts(host.datadir) == host.lived[host.datadir]
    assert done.part == host.app + "/" + path
    newer = host.back_up(hours=1)
    assert not [name for _top, directories, files in os.walk(newer.path) for name in directories + files if "stillpoint-part" in name]
    assert [each.path for each in replaced(state=host.state)] == [kept]
    discard(replaced(state=host.state), Quiet(), state=host.state)
    assert not os.path.lexists(kept)


@needs_root
def test_a_hard_link_whose_other_names_lie_elsewhere_comes_back_as_a_file(parts):
    host = parts
    shutil.rmtree(host.app + "/shared/sites/open")
    put_path(host, host.app + "/shared/sites/open")
    assert read(host.app + "/shared/sites/open/third => name") == b"one of three"
    assert os.stat(host.app + "/shared/sites/open").st_mode & 0o7777 == 0o1777


@needs_root
def test_one_path_goes_into_a_directory_and_one_that_is_gone_comes_back(parts, tmp_path):
    host = parts
    assert put_path(host, host.app + "/shared/other", str(tmp_path / "look")).replaced == []
    assert read(str(tmp_path / "look") + "/files" + host.app + "/shared/other") == b"old" and read(host.app + "/shared/other") == b"new"
    shutil.rmtree(host.app + "/shared/sites")
    assert put_path(host, host.app + "/shared/sites/").replaced == []
    assert below(facts(host.app), "shared/sites") == below(host.saved[host.app], "shared/sites")


def test_a_path_that_can_not_be_put_back_alone_is_refused_with_the_way_out(parts):
    host = parts
    for path, words in (
        ("shared", "'shared' is not an absolute path: give it as on the live system, starting with /"),
        ("", "'' is not an absolute path"),
        (host.app + "/shared/../index.php", "/index.php' is not an absolute path: give it as on the live system, starting with / and without '..'"),
        ("/opt/other", "the generation 2026-11-22T02-00-05Z holds no /opt/other; its files are those of %s" % host.app),
        (host.app + "/shared/nothing", "holds no %s/shared/nothing: look for it below %s/files" % (host.app, host.directory.find().path)),
        (host.app + "/shared/sit", "holds no %s/shared/sit" % host.app),
        (host.datadir + "/ibdata1", "ibdata1 is one of the server's own files, which belong together"),
    ):
        with pytest.raises(UsageError) as refused:
            put_path(host, path)
        assert words in str(refused.value)
    assert not [name for name in os.listdir(host.app) if "stillpoint" in name]


@needs_root
def test_one_path_that_was_interrupted_is_finished_by_the_same_command_and_by_no_other(parts):
    host = parts
    path = host.app + "/shared/sites"
    template = host.root + ".template"
    subprocess.run(["cp", "-a", host.root, template], check=True)
    step, refused = 0, 0
    while killed_at(step, lambda: put_path(host, path)):
        there = below(facts(host.app), "shared/sites")
        assert there in (below(host.saved[host.app], "shared/sites"), below(host.lived[host.app], "shared/sites"))
        if journal.pending(state=host.state):
            refused += 1
            with pytest.raises(UsageError, match="finish it, with stillpoint restore job 2026-11-22T02-00-05Z --from-host host --path %s, or undo it" % path):
                host.make()
        put_path(host, path)
        assert below(facts(host.app), "shared/sites") == below(host.saved[host.app], "shared/sites")
        durable.remove_tree(host.root)
        subprocess.run(["cp", "-a", template, host.root], check=True)
        step += 1
    assert step > 5 and refused >= 2


# -- its directory


@needs_root
def test_a_directory_that_is_gone_or_a_symlink_by_now_is_named_and_nothing_is_followed_out_of_the_tree(parts):
    host = parts
    path = host.app + "/shared/other"
    os.rename(host.app + "/shared", host.root + "/elsewhere")
    os.symlink(host.root + "/elsewhere", host.app + "/shared")
    with pytest.raises(UsageError, match="%s/shared, in which .*other lies, is a symlink now and was none: put that one back, with --path " % host.app):
        put_path(host, path)
    os.unlink(host.app + "/shared")
    with pytest.raises(UsageError, match="shared, in which .*other lies, is no directory any more: put that one back, with --path %s/shared$" % host.app):
        put_path(host, path)
    shutil.rmtree(host.root + "/live/opt")
    with pytest.raises(UsageError, match="no directory any more: put that one back, with --path %s$" % host.app):
        put_path(host, path)
    assert put_path(host, host.app).replaced == []
    assert facts(host.app) == host.saved[host.app]


@needs_root
def test_who_owns_the_directory_can_not_have_it_written_elsewhere(parts, monkeypatch):
    host = parts
    etc = host.root + "/etc"
    os.mkdir(etc)
    real = rsync.copy_tree

    def swapped(tree: Any, dest: str, **more: Any) -> Any:
        for name in os.listdir(host.app + "/shared"):
            if name.startswith(".stillpoint-part-new"):
                os.rename(host.app + "/shared/" + name, host.app + "/moved")
                os.symlink(etc, host.app + "/shared/" + name)
        return real(tree, dest, **more)

    monkeypatch.setattr(rsync, "copy_tree", swapped)
    for path in ("sites", "other"):
        with pytest.raises((StillpointError, OSError)):
            put_path(host, host.app + "/shared/" + path)
        assert os.listdir(etc) == []
        durable.remove_tree(host.app + "/moved")


# -- what is in the way


@needs_root
def test_what_would_be_replaced_under_a_server_or_under_the_restore_itself_is_refused(parts, monkeypatch, tmp_path):
    host = parts
    shared = host.app + "/shared"
    working = service.Running(4711, "mariadbd", None)
    monkeypatch.setattr(service, "running_below", lambda path: working if path == shared else None)
    with pytest.raises(UsageError, match="a server .mariadbd, process 4711. works in %s, which would be replaced under it" % shared):
        put_path(host, shared)
    monkeypatch.undo()
    around = Host(str(tmp_path / "around"))
    around.trees[1] = tree(around.root + "/live", "files" + around.root + "/live")
    around.back_up()
    with pytest.raises(UsageError, match="%s, which is not put back, lies in %s/live/lib, which would be replaced" % (around.datadir, around.root)):
        put_path(around, around.root + "/live/lib")
    host.state = shared + "/state"
    with pytest.raises(UsageError, match="the journal of a restore, .*, lies in %s, which would be replaced" % shared):
        put_path(host, shared)


def test_a_server_that_works_below_a_directory_is_found(tmp_path):
    (tmp_path / "data" / "mysql").mkdir(parents=True)
    shutil.copy("/bin/sleep", str(tmp_path / "mariadbd"))
    with subprocess.Popen([str(tmp_path / "mariadbd"), "60"], cwd=str(tmp_path / "data" / "mysql")) as server:
        try:
            for _attempt in range(1200):  # it has its name a moment after it was begun
                if read("/proc/%d/comm" % server.pid) == b"mariadbd\n":
                    break
                time.sleep(0.05)
            for directory in ("data", "data/mysql"):
                found = service.running_below(str(tmp_path / directory))
                assert found is not None and found.pid == server.pid
            assert service.running_below(str(tmp_path / "dat")) is None
        finally:
            server.kill()


@needs_root
def test_a_path_that_leads_into_the_backup_or_above_a_volume_that_is_not_mounted_is_refused(parts, monkeypatch):
    host = parts
    generation = host.directory.find()
    shutil.rmtree(host.app)
    os.symlink(generation.path + "/files" + host.app, host.app)
    with pytest.raises(UsageError, match="lies among the generations now"):
        put_path(host, host.app + "/shared/sites")
    os.unlink(host.app)
    os.makedirs(host.app + "/shared/volume")
    with open(host.root + "/fstab", "w") as file:
        file.write("/dev/vg/v %s/shared/volume ext4 defaults 0 0\n" % host.app)
    monkeypatch.setattr(mounts, "FSTAB", host.root + "/fstab")
    with pytest.raises(UsageError, match="lies on the file system of %s/shared/volume, which /etc/fstab names and which is not mounted now" % host.app):
        put_path(host, host.app + "/shared")


# -- a volume in a tree


@needs_root
def test_what_a_volume_in_a_tree_held_is_kept_where_no_backup_takes_it_and_is_put_back_from_the_next(tmp_path):
    host = Host(str(tmp_path / "here"))
    for disk in small_disk(host.app + "/data", "40m"):
        write(disk + "/rows", b"old")
        host.back_up()
        write(disk + "/rows", b"new", age=1)
        (kept,) = put_path(host, disk).replaced
        assert (read(disk + "/rows"), read(kept + "/rows")) == (b"old", b"new")
        newer = host.back_up(hours=1)
        assert os.listdir(newer.path + "/files" + disk) == ["rows"]
        write(disk + "/rows", b"newer", age=1)
        put_path(host, disk)
        assert read(disk + "/rows") == b"old" and len(replaced(state=host.state)) == 2


@needs_root
def test_a_volume_where_the_backup_has_a_symlink_is_refused(tmp_path):
    host = Host(str(tmp_path / "here"))
    os.symlink("elsewhere", host.app + "/data")
    host.back_up()
    os.unlink(host.app + "/data")
    for _disk in small_disk(host.app + "/data", "8m"):
        with pytest.raises(UsageError, match="%s/data is a mount point now, and is no directory in the backup: unmount it first" % host.app):
            put_path(host, host.app + "/data")


# -- what is kept


def rewrite(path: str, contents: bytes) -> None:
    """Replace a file as applications do, by renaming: the new one is never given the number of the old one's inode."""
    write(path + ".tmp", contents, age=1)
    os.replace(path + ".tmp", path)


@needs_root
def test_restores_of_one_second_are_all_listed_and_so_is_what_a_later_one_has_taken_along(parts):
    host = parts
    kept = [put_path(host, host.app + "/shared/" + name).replaced[0] for name in ("other", "link", "sites")]
    assert [each.path for each in sorted(replaced(state=host.state), key=lambda each: kept.index(each.path))] == kept
    (whole,) = execute(planning.make(host.directory.find(), "files", state=host.state), Quiet()).replaced
    moved = {whole + path[len(host.app) :] for path in kept}
    assert {each.path for each in replaced(state=host.state)} == {whole, *moved}
    discard(replaced(state=host.state), Quiet(), state=host.state)
    assert replaced(state=host.state) == [] and not os.path.lexists(whole)
    assert [name for name in os.listdir(host.state) if name.startswith("kept-")] == []


@needs_root
def test_what_came_about_before_an_undoing_is_listed(parts):
    host = parts
    path = host.app + "/shared/other"
    step = 0
    while killed_at(step, lambda: put_path(host, path)) and not (journal.pending(state=host.state) and read(path) == b"old"):
        if journal.pending(state=host.state):
            undo.plan("job", state=host.state).execute(Quiet())
        step += 1
    rewrite(path, b"by the application")
    (later,) = undo.plan("job", state=host.state).execute(Quiet()).later
    assert read(path) == b"new" and read(later + "/other") == b"by the application"
    assert [each.path for each in replaced(state=host.state)] == [later]


@needs_root
def test_a_file_that_the_application_has_rewritten_after_the_exchange_does_not_stop_the_restore(parts, monkeypatch):
    host = parts
    path = host.app + "/shared/other"
    real = exchange.directories

    def killed(*args: Any) -> None:
        real(*args)
        raise SystemExit

    monkeypatch.setattr(exchange, "directories", killed)
    with pytest.raises(SystemExit):
        put_path(host, path)
    monkeypatch.undo()
    rewrite(path, b"by the application")
    (kept,) = put_path(host, path).replaced
    assert read(path) == b"by the application" and read(kept) == b"new" and kept.endswith("-other")


# -- the backup


@needs_root
def test_hard_links_need_their_room_once(parts):
    host = parts
    for number in range(20):
        os.link(host.app + "/shared/sites/sparse", host.app + "/shared/sites/name %d" % number)
    generation = host.back_up(hours=1)
    found = one_path.find(generation, host.app + "/shared/sites")
    (whole,) = [tree for tree in generation.trees if tree.is_files]
    assert found.files > 20 and found.allocated <= whole.allocated


@needs_root
def test_damage_is_said_as_such_and_recorded_and_does_not_stop_what_has_begun(parts):
    host = parts
    path = host.app + "/shared/other"
    generation = host.directory.find()
    step = 0
    while killed_at(step, lambda: put_path(host, path)) and not journal.pending(state=host.state):
        step += 1
    text = read(generation.path + "/" + manifest.NAME)
    write(generation.path + "/" + manifest.NAME, text.replace(b"sites", b"sitez"))
    execute(planning.make(host.directory.find(), path=path, state=host.state), Quiet())
    assert read(path) == b"old"
    with pytest.raises(StillpointError, match="is damaged and is not restored .* choose another one"):
        put_path(host, path)
    write(generation.path + "/" + manifest.NAME, text)
    os.unlink(generation.path + "/files" + path)
    with pytest.raises(StillpointError, match="is damaged .*other: missing.: the live data was not touched; restore another generation"):
        put_path(host, path)
    assert host.directory.find(generation.name).state == "bad"
