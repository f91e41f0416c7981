# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
import subprocess
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, List

import pytest
from _core.host import durable
from _core.host.errors import BusyError, StillpointError, UsageError
from _core.job.options import Keep
from _core.proof import checksums
from _core.repository import manifest, rsync
from _core.repository.generation import Generation
from _core.repository.job_directory import JobDirectory
from _core.repository.partial import Partial
from trees import (
    START,
    Quiet,
    awkward,
    back_up,
    change_times_of_long_ago,  # noqa: F401
    facts,
    job,
    killed_at,
    needs_root,
    no_waiting_for_the_disk,  # noqa: F401
    read,
    shape,
    small_disk,
    summary,
    tree,
    write,
)


@pytest.fixture
def source(tmp_path):
    path = str(tmp_path / "source")
    os.makedirs(path + "/sub")
    write(path + "/a", b"alpha")
    write(path + "/sub/b", b"beta")
    return path


@pytest.fixture
def directory(tmp_path):
    return job(tmp_path / "repository")


def sums(generation: Generation) -> Dict[bytes, str]:
    return {entry.path: entry.checksum for entry in manifest.entries(generation.path) if entry.type == "file"}


# -- names and places


def test_a_generation_has_the_name_of_its_point_in_time_and_latest_points_to_it(directory, source):
    generation = back_up(directory, tree(source, "mysql"), tree(source, "files/opt/app"))
    assert generation.path == os.path.join(directory.repository, "host", "job", "2026-11-22T02-00-05Z")
    assert os.readlink(directory.path + "/latest") == generation.name
    assert sorted(os.listdir(generation.path)) == ["files", "manifest.json", "mysql"]
    assert facts(generation.path + "/files/opt/app") == facts(source)
    back_up(directory, tree(source), hours=1)
    assert os.readlink(directory.path + "/latest") == "2026-11-22T03-00-05Z"


def test_everything_that_is_made_is_closed_to_others(directory, source):
    old = os.umask(0)
    try:
        generation = back_up(directory, tree(source, "files/opt/app"))
    finally:
        os.umask(old)
    for path in ("host", "host/job", "host/job/" + generation.name):
        assert stat.S_IMODE(os.stat(os.path.join(directory.repository, path)).st_mode) == 0o700


def test_two_generations_of_one_second_both_stay(directory, source):
    names = [back_up(directory, tree(source)).name for _number in range(3)]
    assert names == ["2026-11-22T02-00-05Z", "2026-11-22T02-00-05Z-2", "2026-11-22T02-00-05Z-3"]
    assert [each.name for each in directory.generations()] == names[::-1]


def test_the_order_is_that_of_making_also_when_the_clock_went_back(directory, source):
    for hours in (0, 50_000, 1):
        back_up(directory, tree(source), hours=hours)
    assert [each.time for each in directory.generations()] == [START + timedelta(hours=hours) for hours in (1, 50_000, 0)]
    assert directory.find().time == START + timedelta(hours=1)


def test_the_repository_has_to_be_there_but_the_job_in_it_need_not(tmp_path):
    with pytest.raises(UsageError, match="the repository .*/missing does not exist"):
        JobDirectory.open(str(tmp_path / "missing"), "host", "job")
    directory = JobDirectory.open(str(tmp_path), "host", "job")
    assert directory.generations() == []
    assert os.listdir(str(tmp_path)) == []
    for host, name in (("..", "job"), ("host", "a/b"), ("", "job"), ("host", ".hidden")):
        with pytest.raises(UsageError, match="can't be the name of a directory"):
            JobDirectory.open(str(tmp_path), host, name)


def test_what_a_generation_says_of_itself(directory, source):
    generation = back_up(directory, tree(source, "mysql"), server={"unit": "mariadb.service"}, warnings=["look at this"])
    known = generation.summary
    assert (known["format"], known["generation"], known["sequence"], known["checksum"]) == (1, generation.name, 1, rsync.algorithm())
    assert known["copy"] == {"duration_s": 0.1, "files": 2, "bytes": 9, "bytes_transferred": 9}
    assert known["server"] == {"unit": "mariadb.service"}
    assert known["warnings"] == ["look at this"]
    assert generation.size_bytes == 9
    assert [(each.name, each.source, each.files, each.bytes) for each in generation.trees] == [("mysql", source, 2, 9)]
    assert generation.trees[0].allocated >= 8192


@pytest.mark.parametrize(
    ("name", "proof", "state"),
    [
        ("files/opt", None, "good"),
        ("mysql", None, "unproven"),
        ("mysql", {"ok": True}, "good"),
        ("mysql", {"ok": False, "reason": "it found 1 prepared transaction"}, "bad"),
        ("mysql", {"ok": None, "reason": "there was no room"}, "unproven"),
        ("files/opt", {"ok": False}, "bad"),
    ],
)
def test_a_generation_with_a_database_is_good_when_a_server_has_started_on_it(directory, source, name, proof, state):
    generation = back_up(directory, tree(source, name), proof=proof)
    assert generation.state == state
    assert bool(generation.reason) == (state == "bad")


# -- finding


def test_the_newest_good_generation_is_found_else_the_newest_unproven_one(directory, source):
    with pytest.raises(UsageError, match="there is no generation in .*/host/job"):
        directory.find()
    back_up(directory, tree(source, "mysql"), proof={"ok": True})
    back_up(directory, tree(source, "mysql"), hours=1)
    back_up(directory, tree(source, "mysql"), hours=2, proof={"ok": False})
    assert directory.find().time == START
    shutil.rmtree(directory.find().path)
    assert directory.find().time == START + timedelta(hours=1)
    shutil.rmtree(directory.find().path)
    with pytest.raises(UsageError, match=r"every generation in .* is bad: name the one to use: 2026-11-22T04-00-05Z \(bad\)"):
        directory.find()


def test_a_generation_is_found_by_its_name_or_the_beginning_of_it(directory, source):
    for hours in (0, 1, 24):
        back_up(directory, tree(source), hours=hours)
    assert directory.find("2026-11-22T02-00-05Z").time == START
    assert directory.find("2026-11-23").time == START + timedelta(days=1)
    assert directory.find("latest").time == START + timedelta(days=1)
    with pytest.raises(
        UsageError, match=r"more than one generation in .* begins with 2026-11-22: there are 2026-11-22T03-00-05Z \(good\), 2026"
    ):
        directory.find("2026-11-22")
    with pytest.raises(UsageError, match="there is no generation 2025-01-01 in .*: there are 2026-11-23T02-00-05Z"):
        directory.find("2025-01-01")


def test_what_is_not_a_generation_is_not_listed(directory, source):
    back_up(directory, tree(source))
    for name in (".run.partial", ".2026-11-21T02-00-05Z.deleting", "2026-11-22T02-00-05Z.old", "binlog", "notes"):
        os.mkdir(os.path.join(directory.path, name))
    assert [each.name for each in directory.generations()] == ["2026-11-22T02-00-05Z"]


def test_a_generation_without_a_readable_manifest_is_listed_as_bad(directory, source):
    back_up(directory, tree(source))
    generation = back_up(directory, tree(source), hours=1)
    for text in (b"", b"{\n", b'{\n"format": 1,\n"files": [\n],\n', b'{\n"trees": 5,\n"sequence": 1,\n"files": [\n],\n'):
        with open(generation.path + "/manifest.json", "wb") as file:
            file.write(text)
        newest = directory.generations()[0]
        assert (newest.name, newest.state, newest.time) == (generation.name, "bad", START + timedelta(hours=1))
        assert newest.reason and newest.trees == () and newest.size_bytes == 0
    assert directory.find().time == START


# -- sharing


def test_unchanged_files_are_shared_and_keep_their_checksums(directory, source):
    one = back_up(directory, tree(source))
    write(source + "/a", b"ALPHA", age=1)
    two = back_up(directory, tree(source), hours=1)
    assert two.summary["copy"]["bytes_transferred"] == 5
    assert os.path.samefile(one.path + "/files/tree/sub/b", two.path + "/files/tree/sub/b")
    assert not os.path.samefile(one.path + "/files/tree/a", two.path + "/files/tree/a")
    assert sums(one)[b"files/tree/sub/b"] == sums(two)[b"files/tree/sub/b"]
    assert sums(one)[b"files/tree/a"] != sums(two)[b"files/tree/a"]
    assert checksums.verify(two, Quiet()).ok and checksums.verify(one, Quiet()).ok


@needs_root
def test_a_second_generation_of_everything_that_is_easily_lost_stores_no_data_and_is_whole(tmp_path, directory):
    source = awkward(str(tmp_path / "source"))
    one = back_up(directory, tree(source))
    before = shape(one.path)
    two = back_up(directory, tree(source), hours=1)
    assert two.summary["copy"]["bytes_transferred"] == 0
    assert sums(one) == sums(two)
    assert facts(two.path + "/files/tree") == facts(source)
    assert checksums.verify(two, Quiet()).ok
    assert shape(one.path) == before
    names = {entry.path: entry for entry in manifest.entries(two.path)}
    linked = [names[b"files/tree/" + name] for name in (b"linked", b"again", b"open/third => name")]
    assert len({entry.checksum for entry in linked}) == 1


@needs_root
def test_a_file_whose_attributes_changed_keeps_the_checksum_of_its_contents(directory, source):
    one = back_up(directory, tree(source))
    before = shape(one.path)
    os.chmod(source + "/a", 0o600)
    os.chown(source + "/sub/b", 5, 6)
    two = back_up(directory, tree(source), hours=1)
    assert shape(one.path) == before
    assert sums(two) == sums(one)
    assert checksums.verify(two, Quiet()).ok


def test_new_names_of_unchanged_files_have_checksums_too(directory, source):
    os.link(source + "/a", source + "/z => a")
    back_up(directory, tree(source))
    os.link(source + "/a", source + "/0 new name")
    os.link(source + "/sub/b", source + "/sub/a => b")  # looks like rsync's own arrow: has to be read
    os.unlink(source + "/z => a")
    generation = back_up(directory, tree(source), hours=1)
    found = sums(generation)
    assert found[b"files/tree/0 new name"] == found[b"files/tree/a"]
    assert found[b"files/tree/sub/a => b"] == found[b"files/tree/sub/b"]
    assert checksums.verify(generation, Quiet()).ok


def test_hard_links_are_counted_once_in_what_a_restore_takes(directory, source):
    write(source + "/large", b"x" * 1_000_000)
    for number in range(3):
        os.link(source + "/large", source + "/large%d" % number)
    for hours in (0, 1):
        generation = back_up(directory, tree(source), hours=hours)
        assert generation.trees[0].bytes == 4_000_009
        assert 1_000_000 <= generation.trees[0].allocated < 1_100_000
    os.unlink(source + "/large")
    assert back_up(directory, tree(source), hours=2).trees[0].allocated >= 1_000_000


@needs_root
@pytest.mark.parametrize(
    "options",
    [["--chmod=F600"], ["--chown=1000:1000"], ["--no-perms", "--no-acls", "--chmod=F640"], ["--no-owner", "--no-group"], ["--no-inc-recursive"]],
)
def test_what_rsync_is_told_to_make_of_modes_and_owners_changes_no_published_generation(directory, source, options):
    """What may have been written again is compared with the next snapshot, and shared if it is the same."""
    for name in ("/sub/same", "/sub/hot"):
        write(source + name, b"before", age=0.5)
        os.chown(source + name, 1234, 5678)
    one = back_up(directory, tree(source), options=options)
    published = shape(one.path)
    write(source + "/sub/hot", b"after!", age=0.5)
    os.chmod(source + "/sub/same", 0o644)  # changes its change time and nothing else
    two = back_up(directory, tree(source), hours=1, options=options)
    assert shape(one.path) == published
    assert os.path.samefile(one.path + "/files/tree/sub/same", two.path + "/files/tree/sub/same")
    assert read(two.path + "/files/tree/sub/hot") == b"after!" and sorted(os.listdir(two.path + "/files/tree")) == ["a", "sub"]
    assert checksums.verify(one, Quiet()).ok and checksums.verify(two, Quiet()).ok


def test_a_damaged_generation_shares_nothing_with_the_next_one(directory, source):
    back_up(directory, tree(source))
    two = back_up(directory, tree(source), hours=1)
    with open(two.path + "/files/tree/a", "r+b") as file:
        file.write(b"A")
    os.utime(two.path + "/files/tree/a", ns=(0, os.stat(source + "/a").st_mtime_ns))
    for each in directory.generations():
        assert not checksums.verify(each, Quiet()).ok  # it is one file
    three = back_up(directory, tree(source), hours=2)
    assert three.summary["copy"]["bytes_transferred"] == 9
    assert checksums.verify(three, Quiet()).ok


def test_a_generation_whose_manifest_is_damaged_shares_nothing_and_is_warned_about(directory, source):
    one = back_up(directory, tree(source))
    two = back_up(directory, tree(source), hours=1)
    path = two.path + "/manifest.json"
    with open(path, "rb") as file:
        text = file.read()
    with open(path, "wb") as file:
        file.write(text.replace(b'"uid":0', b'"uid":1', 1))
    three = back_up(directory, tree(source), hours=2)
    assert os.path.samefile(one.path + "/files/tree/a", three.path + "/files/tree/a")
    assert any("damaged" in warning for warning in three.summary["warnings"])
    assert sums(three) == sums(one)


def rot(generation: Generation, name: str) -> None:
    """Flip a bit in a file, as a disk does it: size and times stay, and so does every generation's name for it."""
    path = os.path.join(generation.path, name)
    status = os.stat(path)
    with open(path, "r+b") as file:
        byte = file.read(1)[0]
        file.seek(0)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def found_by_an_old_agent(generation: Generation, time: str = "2026-11-23T00:00:00Z") -> None:
    """Record damage of one generation alone."""
    generation.record({"generation": generation.name, "time": time, "ok": False, "faults": ["files/tree/sub/b: contents changed"], "faults_total": 1})


def test_damage_that_was_found_is_not_shared_with_the_next_generation_by_way_of_another_one(directory, source):
    older = back_up(directory, tree(source))
    newer = back_up(directory, tree(source), hours=1)
    healthy = os.stat(older.path + "/files/tree/a").st_ino
    rot(newer, "files/tree/sub/b")
    found_by_an_old_agent(newer)
    assert (newer.state, older.state) == ("bad", "good"), "nobody has read that one yet"
    third = back_up(directory, tree(source), hours=2)
    assert read(third.path + "/files/tree/sub/b") == b"beta"
    assert checksums.verify(third, Quiet()).ok
    assert os.stat(third.path + "/files/tree/a").st_ino == healthy, "what is the same is shared all the same"
    assert any("all that the new one shares with %s was compared by contents" % older.name in text for text in third.summary["warnings"])


def test_damage_that_is_found_while_a_run_goes_on_does_not_get_into_the_one_after_it(directory, source):
    older = back_up(directory, tree(source))
    rot(older, "files/tree/sub/b")
    when = datetime.now(timezone.utc) + timedelta(hours=1)  # a snapshot is taken long after its base was chosen
    with directory.lock(), Partial(directory, "slow") as partial:
        assert not checksums.verify(older, Quiet()).ok
        partial.add(tree(source))
        newer = partial.publish(when, summary(when))
    assert os.path.samefile(older.path + "/files/tree/sub/b", newer.path + "/files/tree/sub/b")
    third = back_up(directory, tree(source), hours=2)
    assert read(third.path + "/files/tree/sub/b") == b"beta" and checksums.verify(third, Quiet()).ok


def test_what_was_made_or_read_since_the_damage_was_found_is_trusted_again(directory, source):
    first = back_up(directory, tree(source))
    bad = back_up(directory, tree(source), hours=1)
    found_by_an_old_agent(bad)

    def compares() -> bool:
        with directory.lock(), Partial(directory, "look") as partial:
            return partial._compares

    assert compares()
    assert checksums.verify(first, Quiet()).ok
    assert not compares(), "it was read from end to end after that"
    os.unlink(first.verdict_path)
    assert compares()
    back_up(directory, tree(source), hours=3)
    assert not compares(), "it was made after that"
    found_by_an_old_agent(bad, "2026-11-24T00:00:00Z")
    assert compares(), "there is new damage"


def test_a_manifest_that_a_run_finds_damaged_makes_its_generation_bad_for_good(directory, source):
    first = back_up(directory, tree(source, "mysql"), proof={"ok": True})
    second = back_up(directory, tree(source, "mysql"), hours=1, proof={"ok": True})
    manifest_file = second.path + "/manifest.json"
    text = read(manifest_file).replace(b'"sub/b"', b'"sub/c"').replace(b"sub/b", b"sub/c")
    with open(manifest_file, "r+b") as file:
        file.write(text)
    assert Generation(second.path).state == "good", "the head is whole"
    back_up(directory, tree(source, "mysql"), hours=2)
    assert Generation(second.path).state == "bad"
    with directory.lock():
        kept = {decision.name: decision.reasons for decision in directory.prune(Keep(last=1))}
    assert "newest proven" in kept[first.name] and kept[second.name] == ()


def test_latest_points_away_from_a_generation_that_turns_out_to_be_bad(directory, source):
    older = back_up(directory, tree(source))
    write(source + "/a", b"changed")
    newer = back_up(directory, tree(source), hours=1)
    latest = directory.path + "/latest"
    assert os.readlink(latest) == newer.name
    with directory.lock():  # as by a run that is at work, and must not be in its way
        checksums.record_proof(newer, {"ok": False, "reason": "it does not start"}, Quiet())
    assert os.readlink(latest) == older.name
    checksums.record_proof(newer, {"ok": True}, Quiet())
    assert os.readlink(latest) == newer.name
    rot(newer, "files/tree/a")
    checksums.verify(newer, Quiet())
    assert os.readlink(latest) == older.name
    os.unlink(latest)  # as after a kill just before it was set
    with directory.lock():
        directory.clean()
    assert os.readlink(latest) == older.name


def test_a_generation_that_a_run_publishes_while_latest_is_set_anew_is_the_one_it_points_to(directory, source, monkeypatch):
    older = back_up(directory, tree(source))
    bad = back_up(directory, tree(source), hours=1)
    point, published = JobDirectory.point_latest, []

    def meanwhile(own: JobDirectory, name: str) -> None:
        monkeypatch.setattr(JobDirectory, "point_latest", point)
        assert name == older.name
        published.append(back_up(JobDirectory(directory.path), tree(source), hours=2))
        point(own, name)

    monkeypatch.setattr(JobDirectory, "point_latest", meanwhile)
    checksums.record_proof(bad, {"ok": False, "reason": "it does not start"}, Quiet())
    assert os.readlink(directory.path + "/latest") == published[0].name


@needs_root
def test_a_full_disk_keeps_no_generation_good_that_was_found_damaged(tmp_path, source):
    for disk in small_disk(str(tmp_path / "disk"), "2m"):
        directory = job(disk)
        generation = back_up(directory, tree(source))
        rot(generation, "files/tree/a")
        with pytest.raises(OSError, match="No space left"), open(disk + "/filled", "wb", buffering=0) as file:
            while file.write(bytes(1 << 12)):
                pass
        reporter = Quiet()
        assert not checksums.verify(generation, reporter).ok
        assert any("can't be recorded" in warning for warning in reporter.warnings)
        assert Generation(generation.path).state == "bad"
        assert "could not be recorded" in Generation(generation.path).reason
        os.unlink(disk + "/filled")
        rot(generation, "files/tree/a")
        assert checksums.verify(generation, Quiet()).ok
        assert Generation(generation.path).state == "good"


def test_comparing_by_checksum_shares_what_is_the_same_all_the_same(directory, source):
    one = back_up(directory, tree(source))
    write(source + "/a", b"ALPHA")
    two = back_up(directory, tree(source), hours=1, checksum=True)
    assert read(two.path + "/files/tree/a") == b"ALPHA"
    assert os.path.samefile(one.path + "/files/tree/sub/b", two.path + "/files/tree/sub/b")
    assert checksums.verify(two, Quiet()).ok


@pytest.mark.skipif(rsync.algorithm() == "md5", reason="this rsync has no other checksum")
def test_another_checksum_than_before_copies_everything_anew_and_says_so(directory, source, monkeypatch):
    one = back_up(directory, tree(source))
    monkeypatch.setattr(rsync, "algorithm", lambda: "md5")
    two = back_up(directory, tree(source), hours=1)
    assert two.summary["checksum"] == "md5"
    assert two.summary["copy"]["bytes_transferred"] == 9
    assert any("every file is copied anew" in warning for warning in two.summary["warnings"])
    assert checksums.verify(two, Quiet()).ok and checksums.verify(one, Quiet()).ok


def test_trees_in_one_generation_need_different_names(directory, source):
    with directory.lock(), Partial(directory, "run") as partial:
        partial.add(tree(source))
        with pytest.raises(UsageError, match="have the same name in a backup"):
            partial.add(tree(source + "/sub"))


def test_a_single_file_can_be_a_tree(directory, source):
    for hours, transferred in ((0, 14), (1, 0)):
        generation = back_up(directory, tree(source, "mysql"), tree(source + "/a", "files/etc/a"), hours=hours)
        assert sums(generation)[b"files/etc/a"] == sums(generation)[b"mysql/a"]
        assert generation.summary["copy"]["bytes_transferred"] == transferred
        assert checksums.verify(generation, Quiet()).ok


# -- one writer


def test_one_run_writes_at_a_time_and_the_other_is_told_which(directory):
    other = JobDirectory(directory.path)
    said = r"another run \(process %d\) is writing to .*/host/job" % os.getpid()
    with directory.lock(), pytest.raises(BusyError, match=said), other.lock():
        pass
    with other.lock():
        pass


def test_a_killed_run_leaves_no_lock(directory):
    child = os.fork()
    if child == 0:
        with directory.lock():
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with directory.lock():
        pass


def test_nothing_is_changed_without_the_lock(directory, source):
    generation = back_up(directory, tree(source))
    for change in (
        directory.clean,
        lambda: Partial(directory, "run"),
        lambda: directory.remove(generation),
        lambda: directory.prune(Keep(daily=1, last=0)),
    ):
        try:
            change()
        except StillpointError as error:
            assert "without its lock" in str(error)
    assert os.path.isdir(generation.path)


# -- failing and being killed


def test_what_fails_half_way_leaves_no_trace(directory, source):
    one = back_up(directory, tree(source))
    before = (shape(one.path), sorted(os.listdir(directory.path)))
    with pytest.raises(StillpointError, match="nothing can't be read"), directory.lock(), Partial(directory, "run") as partial:
        partial.add(tree(source))
        partial.add(tree(source + "/nothing", "files/other"))
    with pytest.raises(KeyboardInterrupt), directory.lock(), Partial(directory, "run") as partial:
        partial.add(tree(source))
        raise KeyboardInterrupt
    with directory.lock(), Partial(directory, "run") as partial:
        partial.add(tree(source))
    assert (shape(one.path), sorted(os.listdir(directory.path))) == before


@needs_root
def test_a_repository_that_fills_up_is_named_with_its_free_space_and_keeps_what_it_has(tmp_path):
    source = str(tmp_path / "source")
    os.mkdir(source)
    write(source + "/small", b"x" * 1000)
    for disk in small_disk(str(tmp_path / "disk"), "2m"):
        directory = job(disk)
        one = back_up(directory, tree(source))
        before = shape(one.path)
        write(source + "/large", b"x" * 3_000_000)
        with pytest.raises(
            StillpointError,
            match=r"the repository .*/disk is full \(.* free of 2.0 MiB\): nothing was published; free space there, or keep fewer",
        ) as caught:
            back_up(directory, tree(source), hours=1)
        assert "\n" not in str(caught.value)
        assert sorted(os.listdir(directory.path)) == [".lock", one.name, "latest"]
        assert shape(one.path) == before and directory.find().path == one.path
        os.unlink(source + "/large")
        back_up(directory, tree(source), hours=2)


@needs_root
def test_a_disk_that_fills_up_while_the_manifest_is_written_publishes_nothing(tmp_path):
    source = str(tmp_path / "source")
    os.mkdir(source)
    for number in range(2000):
        os.symlink("nowhere", "%s/%s%d" % (source, "n" * 200, number))
    for disk in small_disk(str(tmp_path / "disk"), "1m,nr_inodes=10000"):
        directory = job(disk)
        with pytest.raises(StillpointError, match=r"the repository .*/disk is full"):
            back_up(directory, tree(source))
        assert os.listdir(directory.path) == [".lock"]


@pytest.mark.parametrize("step", ["rename_to_free_name", "sync_file_system"])
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EIO, "can't be written: Input/output error"),
        (errno.EROFS, "can't be written: Read-only file system"),
    ],
)
def test_an_error_while_it_is_published_publishes_nothing(directory, source, monkeypatch, step, number, said):
    def fail(*_args: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(durable, step, fail)
    with pytest.raises(StillpointError, match="the repository .* " + said):
        back_up(directory, tree(source))
    assert os.listdir(directory.path) == [".lock"]


@needs_root
def test_a_repository_that_can_not_be_written_is_named(tmp_path, source):
    for disk in small_disk(str(tmp_path / "disk")):
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StillpointError, match=r"the repository .*/disk can't be written: Read-only file system"):
            back_up(job(disk), tree(source))


def test_a_kill_between_any_two_steps_leaves_the_published_ones_untouched_and_the_next_run_whole(directory, source):
    one = back_up(directory, tree(source))
    before = shape(one.path)
    write(source + "/a", b"ALPHA", age=1)
    step = 0
    while killed_at(step, lambda hours=step + 1: back_up(directory, tree(source), hours=hours)):
        assert shape(one.path) == before
        for generation in directory.generations():
            assert checksums.verify(generation, Quiet()).ok, "killed at step %d" % step
        assert os.path.isdir(directory.path + "/latest/files")
        step += 1
    assert step >= 5
    after = back_up(directory, tree(source), hours=1000)
    assert not [name for name in os.listdir(directory.path) if name.endswith((".partial", ".deleting", ".new"))]
    assert directory.find().name == after.name == os.readlink(directory.path + "/latest")


def test_a_kill_while_rsync_copies_leaves_a_partial_generation_that_is_never_listed_and_then_removed(directory, source):
    one = back_up(directory, tree(source))
    write(source + "/large", b"x" * 2_000_000)
    child = os.fork()
    if child == 0:
        with directory.lock(), Partial(directory, "killed") as partial:
            partial.add(tree(source), bwlimit="500k", watch=lambda: os.kill(os.getpid(), 9))
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.path.isdir(directory.path + "/.killed.partial")
    assert [each.name for each in directory.generations()] == [one.name]
    with directory.lock():
        assert directory.clean() == [".killed.partial"]
        assert directory.clean() == []
    assert sorted(os.listdir(directory.path)) == [".lock", one.name, "latest"]


# -- removing


@needs_root
def test_rubbish_that_can_not_be_removed_is_told_and_keeps_nothing_else(directory, source):
    back_up(directory, tree(source))
    stuck = directory.path + "/.2026-11-01T02-00-05Z.deleting"
    for name in (".a.partial", ".z.partial"):
        os.mkdir(os.path.join(directory.path, name))
    troubles: List[StillpointError] = []
    with contextmanager(small_disk)(stuck), directory.lock():
        assert directory.clean(troubles.append) == [".a.partial", ".z.partial"]
        with pytest.raises(StillpointError, match="can't be removed"):
            directory.clean()
    (trouble,) = troubles
    assert str(trouble).startswith(stuck + ", which an earlier run left, can't be removed and takes up room: rm failed: ")


def test_a_retention_removes_what_it_does_not_keep_and_says_so(directory, source):
    for hours in (0, 1, 2, 24):
        back_up(directory, tree(source), hours=hours)
    with directory.lock():
        planned = directory.prune(Keep(last=2), dry_run=True)
        assert len(directory.generations()) == 4
        decisions = directory.prune(Keep(last=2))
    assert [(each.name, each.keep) for each in decisions] == [(each.name, each.keep) for each in planned]
    assert [each.keep for each in decisions] == [True, True, False, False]
    assert sorted(os.listdir(directory.path)) == [".lock", "2026-11-22T04-00-05Z", "2026-11-23T02-00-05Z", "latest"]
    for each in directory.generations():
        assert checksums.verify(each, Quiet()).ok


def test_latest_does_not_point_to_a_generation_whose_proof_failed(directory, source):
    good = back_up(directory, tree(source, "mysql"), proof={"ok": True})
    bad = back_up(directory, tree(source, "mysql"), hours=1, proof={"ok": False})
    assert os.readlink(directory.path + "/latest") == good.name
    assert {each.name for each in directory.generations()} == {good.name, bad.name}
    with directory.lock():
        directory.remove(good)
    assert not os.path.lexists(directory.path + "/latest")


def test_latest_never_points_to_a_generation_that_is_gone(directory, source):
    one, two = (back_up(directory, tree(source), hours=hours) for hours in (0, 1))
    for generation, latest in ((two, [one.name]), (one, [])):
        with directory.lock():
            directory.remove(generation)
        assert [os.readlink(directory.path + "/latest") for _name in os.listdir(directory.path) if _name == "latest"] == latest


def test_a_generation_that_is_being_read_outlives_the_retention(directory, source):
    old = back_up(directory, tree(source))
    back_up(directory, tree(source), hours=1)
    with directory.lock(), old.hold():
        assert [(each.keep, each.reasons[-1]) for each in directory.prune(Keep(last=1))][1] == (True, "being read")
    with directory.lock():
        assert [each.keep for each in directory.prune(Keep(last=1))] == [True, False]


def test_a_generation_that_is_being_removed_can_not_be_read(directory, source):
    generation = back_up(directory, tree(source))
    descriptor = os.open(generation.path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="is being removed by another run"), generation.hold():
        pass
    os.close(descriptor)


def test_a_kill_between_any_two_steps_of_removing_leaves_whole_generations_only(directory, source):
    keep = Keep(last=1)
    back_up(directory, tree(source))
    back_up(directory, tree(source), hours=1)

    def prune() -> List[Any]:
        with directory.lock():
            directory.clean()
            return directory.prune(keep)

    step = 0
    while killed_at(step, prune):
        for generation in directory.generations():
            assert checksums.verify(generation, Quiet()).ok
        step += 1
        if len(directory.generations()) == 1:
            back_up(directory, tree(source), hours=step + 1)
    assert step >= 2
    assert len(directory.generations()) == 1


def test_the_newest_good_generation_is_never_removed(directory, source):
    generation = back_up(directory, tree(source))
    for hours in (1, 2, 3):
        back_up(directory, tree(source), hours=hours, proof={"ok": False})
    with directory.lock():
        directory.prune(Keep(last=1))
    assert directory.find().name == generation.name


def test_a_summary_can_carry_anything_that_json_can(directory, source):
    generation = back_up(directory, tree(source), lock={"method": "ftwrl", "reason": "größer als \ud800"}, coordinates=None)
    assert generation.summary["lock"] == {"method": "ftwrl", "reason": "größer als \ud800"}
    assert summary(START)["time"] == generation.summary["time"]
