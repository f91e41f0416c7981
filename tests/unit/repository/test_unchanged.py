# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files are shared with the generation before, which are compared with it, and which are copied: on real files with real rsync."""

from __future__ import annotations

import os
import shutil
import subprocess
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from _core.proof import checksums
from _core.repository import links, manifest, mirror, mirror_record, tree_copy, unchanged
from _core.repository.generation import Generation
from _core.repository.job_directory import JobDirectory
from _core.repository.partial import Partial
from trees import (
    Quiet,
    back_up,
    change_times_of_long_ago,  # noqa: F401
    facts,
    job,
    needs_root,
    no_waiting_for_the_disk,  # noqa: F401
    read,
    shape,
    summary,
    tree,
    write,
)

TREE = "/files/tree/"


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = str(tmp_path / "source")
    os.makedirs(path + "/sub")
    return path


@pytest.fixture
def directory(tmp_path: Path) -> JobDirectory:
    return job(tmp_path / "repository")


def checksum_of(generation: Generation, name: str) -> str:
    return next(entry.checksum for entry in manifest.entries(generation.path) if entry.path == os.fsencode("files/tree/" + name))


def rewrite(path: str) -> None:
    """Write other contents of the same size into the same file, and set its time back, as `touch -r` does."""
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"new")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace(path: str) -> None:
    """Put another file of the same size and time in the place of one, as npm does."""
    status = os.stat(path)
    with open(path + ".tmp", "wb") as file:
        file.write(b"new" + read(path)[3:])
    os.utime(path + ".tmp", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.rename(path + ".tmp", path)


def swap_directories(path: str) -> None:
    """Exchange the directory of a file for one that has had another of the same name, size and time all along: no change time of a file tells."""
    above = os.path.dirname(path)
    os.rename(above, above + ".old")
    os.rename(above + ".other", above)


SAME_SIZE_AND_TIME: Dict[str, Callable[[str], Any]] = {
    "rewritten": rewrite,
    "replaced": replace,
    "moved over": lambda path: os.rename(path + ".other", path),
    "directory moved": swap_directories,
    "link to another": lambda path: (os.unlink(path), os.link(path + ".other", path)),
}


@pytest.mark.parametrize("names", [1, 3])
@pytest.mark.parametrize("change", SAME_SIZE_AND_TIME)
def test_other_contents_of_the_same_size_and_time_are_backed_up_and_the_old_generation_stays(directory, source, change, names):
    os.mkdir(source + "/sub.other")
    for name, contents in (("sub/file", b"old one"), ("sub/file.other", b"new one"), ("sub.other/file", b"new one"), ("still", b"as ever")):
        write(source + "/" + name, contents)
    if change != "directory moved":
        for number in range(1, names):
            os.link(source + "/sub/file", source + "/%d another name" % number)
    one = back_up(directory, tree(source))
    published = shape(one.path)
    SAME_SIZE_AND_TIME[change](source + "/sub/file")
    two = back_up(directory, tree(source), hours=1)
    assert read(two.path + TREE + "sub/file")[:3] == b"new" and read(one.path + TREE + "sub/file") == b"old one"
    assert facts(two.path + "/files/tree") == facts(source)
    assert checksum_of(two, "sub/file") != checksum_of(one, "sub/file")
    assert checksums.verify(two, Quiet()).ok and checksums.verify(one, Quiet()).ok
    assert shape(one.path) == published
    assert os.path.samefile(one.path + TREE + "still", two.path + TREE + "still")
    three = back_up(directory, tree(source), hours=2)
    assert os.path.samefile(two.path + TREE + "sub/file", three.path + TREE + "sub/file")


def test_a_new_name_of_a_changed_file_has_its_new_contents_whatever_it_is_called(directory, source):
    for name in ("b", "old"):
        write(source + "/" + name, b"before")
    os.link(source + "/b", source + "/c")
    one = back_up(directory, tree(source))
    rewrite(source + "/b")
    os.link(source + "/b", source + "/sub/name => b")  # looks like rsync's own arrow
    os.unlink(source + "/old")
    os.link(source + "/b", source + "/old")
    two = back_up(directory, tree(source), hours=1)
    assert facts(two.path + "/files/tree") == facts(source)
    assert read(one.path + TREE + "b") == read(one.path + TREE + "old") == b"before"
    assert checksums.verify(two, Quiet()).ok


@needs_root
def test_a_file_of_which_only_the_change_time_differs_is_compared_and_shared_if_its_attributes_are_the_same(directory, source, monkeypatch):
    for name in ("moved there and back", "chmod there and back", "chmod", "copied"):
        write(source + "/" + name, b"contents")
    one = back_up(directory, tree(source))
    os.rename(source + "/moved there and back", source + "/away")
    os.rename(source + "/away", source + "/moved there and back")
    os.chmod(source + "/chmod there and back", 0o600)
    os.chmod(source + "/chmod there and back", 0o644)
    os.chmod(source + "/chmod", 0o600)
    subprocess.run(["cp", "-a", "copied", "copy"], cwd=source, check=True)  # a new inode
    os.rename(source + "/copy", source + "/copied")
    two = back_up(directory, tree(source), hours=1)
    shared = {name: os.path.samefile(one.path + TREE + name, two.path + TREE + name) for name in sorted(os.listdir(source)) if name != "sub"}
    assert shared == {"chmod": False, "chmod there and back": True, "copied": True, "moved there and back": True}
    assert checksum_of(two, "chmod") == checksum_of(one, "chmod")
    monkeypatch.setattr(tree_copy.rsync, "copy_files", lambda *_all, **_named: pytest.fail("compared once more"))
    back_up(directory, tree(source), hours=2)


def test_the_manifest_has_inode_and_change_time_of_each_source(directory, source):
    write(source + "/shared")
    write(source + "/changes")
    one = back_up(directory, tree(source))
    write(source + "/changes", b"longer than before")
    write(source + "/new")
    two = back_up(directory, tree(source), hours=1)
    for generation, names in ((one, ["changes", "shared"]), (two, ["changes", "new", "shared"])):
        stamps = {os.path.basename(entry.path).decode(): entry.stamp for entry in manifest.entries(generation.path) if entry.type == "file"}
        assert sorted(stamps) == names
        for name in names if generation is two else ["shared"]:
            status = os.stat(source + "/" + name)
            assert stamps[name] == (status.st_ino, status.st_ctime_ns)


def test_a_file_that_is_no_directory_is_compared_too(directory, tmp_path):
    write(str(tmp_path / "settings"), b"old one")
    trees = tree(str(tmp_path / "settings"), "files/settings")
    one = back_up(directory, trees)
    rewrite(str(tmp_path / "settings"))
    two = back_up(directory, trees, hours=1)
    assert (read(one.path + "/files/settings"), read(two.path + "/files/settings")) == (b"old one", b"new one")


def test_what_is_excluded_by_now_does_not_come_back_because_it_would_have_to_be_compared(directory, source):
    write(source + "/sub/file", b"old one")
    write(source + "/kept", b"old one")
    back_up(directory, tree(source))
    rewrite(source + "/sub/file")
    rewrite(source + "/kept")
    two = back_up(directory, tree(source, exclude=("/sub",)), hours=1)
    assert sorted(os.listdir(two.path + "/files/tree")) == ["kept"]
    assert read(two.path + TREE + "kept") == b"new one"


def test_a_file_written_again_in_the_tick_of_the_snapshot_is_not_taken_from_the_generation_before(directory, source, monkeypatch):
    """Coarse time stamps: written just before the snapshot and just after it, a file has one stamp, and two contents."""
    monkeypatch.setattr(unchanged, "DOUBTFUL", 10.0)

    def back_up_at(seconds: float, run: str) -> Generation:
        when = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        with directory.lock(), Partial(directory, run) as partial:
            partial.add(tree(source))
            return partial.publish(when, summary(when))

    write(source + "/hot", b"before")
    one = back_up_at(5, "one")
    status = os.stat(source + "/hot")
    rewrite(source + "/hot")
    same_tick = manifest.Entry(b"files/tree/hot", "file", 6, status.st_mtime_ns, 0o644, 0, 0, "", stamp=unchanged.Stamp.of(os.stat(source + "/hot")))
    assert unchanged.Base.at(one.path, one.time).way(same_tick, os.stat(source + "/hot")) is unchanged.Way.COMPARE
    assert unchanged.Base.at(one.path, one.time + timedelta(seconds=20)).way(same_tick, os.stat(source + "/hot")) is unchanged.Way.SHARE
    two = back_up_at(100, "two")
    assert read(two.path + TREE + "hot") == b"newore" and read(one.path + TREE + "hot") == b"before"


# -- more names than a file system takes


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Path]:
    image, point = tmp_path / "image", tmp_path / "disk"
    point.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-N", "2000", str(image), "64m"], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(point)], check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


def many_names(path: str, number: int) -> None:
    with open(path + "/0", "wb") as file:
        file.write(b"x" * 100)
    for name in range(1, number):
        os.link(path + "/0", "%s/%d" % (path, name))


@needs_root
def test_a_tree_whose_files_would_get_more_names_than_the_file_system_takes_is_backed_up_time_and_again(ext4, source):
    many_names(source + "/sub", 1500)
    write(source + "/other")
    os.link(source + "/other", source + "/its link")
    directory = job(ext4 / "repository")
    one = back_up(directory, tree(source))
    (ext4 / "older generations").mkdir()
    for number in range(1500, 64_500):
        os.link(one.path + TREE + "sub/0", str(ext4 / "older generations" / str(number)))
    generations = [one, *(back_up(directory, tree(source), hours=hours) for hours in (1, 2))]
    links_of = [[os.stat(generation.path + TREE + name).st_nlink for name in ("sub/0", "sub/1499", "other")] for generation in generations]
    assert links_of == [[64_500, 64_500, 6], [3000, 3000, 6], [3000, 3000, 6]]
    assert [generation.summary["copy"]["bytes_transferred"] for generation in generations] == [101, 100, 0]
    assert [generation.trees[0].files for generation in generations] == [1502] * 3
    assert facts(generations[1].path + "/files/tree") == facts(source)
    assert not any(generation.summary["warnings"] for generation in generations)
    assert checksums.verify(generations[1], Quiet()).ok


@needs_root
def test_a_file_with_more_names_than_the_repository_takes_for_one_is_kept_as_several_which_is_said(tmp_path, source, directory, monkeypatch):
    """With a limit of five, where the file system itself has none that could be reached here."""
    real, made = os.link, links.limit
    monkeypatch.setattr(links, "SAFE", 4)
    monkeypatch.setattr(unchanged, "SAFE", 4)
    monkeypatch.setattr(links, "limit", lambda path, wanted: min(made(path, wanted), 5))
    many_names(source + "/sub", 12)
    real(source + "/sub/0", source + "/above")
    copied = tree_copy.rsync.copy_tree

    def refused(*all: Any, **named: Any) -> Any:
        if not named["keep_existing"]:
            os.makedirs(all[1])
            write(all[1] + "/left behind by rsync")
            raise tree_copy.TooManyLinks("a file in it has more names", ["rsync"], 12, "Too many links")
        return copied(*all, **named)

    monkeypatch.setattr(tree_copy.rsync, "copy_tree", refused)
    for hours in range(3):
        generation = back_up(directory, tree(source), hours=hours)
        assert sorted(os.listdir(generation.path + "/files/tree")) == ["above", "sub"]
        found, expected = (facts(path) for path in (generation.path + "/files/tree", source))
        for known in (*found.values(), *expected.values()):
            known.pop("same_as", None)
        assert found == expected
        assert len({os.stat(generation.path + TREE + "sub/%d" % number).st_ino for number in range(12)}) == 3
        assert "has 13 names (hard links) in %s, and the repository's file system takes 5 for one file" % source in generation.summary["warnings"][0]
        assert checksums.verify(generation, Quiet()).ok


# -- in a mirror, which has no manifest


@pytest.fixture
def mirrored(source: str, tmp_path: Path) -> Iterator[Any]:
    """What brings a mirror of the source in step, returns what that came to, and makes sure that it is."""
    dest = str(tmp_path / "mirror")

    def bring_in_step(**more: Any) -> Any:
        result = mirror.mirror([tree(source)], dest, **more)
        assert facts(dest + "/files/tree") == facts(source)
        return result

    bring_in_step.record = dest + "/" + mirror_record.DIRECTORY  # type: ignore[attr-defined]
    bring_in_step.copy = dest + TREE  # type: ignore[attr-defined]
    return bring_in_step


@pytest.mark.parametrize("names", [1, 3])
@pytest.mark.parametrize("change", SAME_SIZE_AND_TIME)
def test_a_mirror_gets_other_contents_of_the_same_size_and_time(mirrored, source, change, names):
    os.mkdir(source + "/sub.other")
    for name, contents in (("sub/file", b"old one"), ("sub/file.other", b"new one"), ("sub.other/file", b"new one"), ("still", b"as ever")):
        write(source + "/" + name, contents)
    if change != "directory moved":
        for number in range(1, names):
            os.link(source + "/sub/file", source + "/%d another name" % number)
    mirrored()
    assert mirrored().changes == 0
    SAME_SIZE_AND_TIME[change](source + "/sub/file")
    assert mirrored().changes > 0
    assert mirrored().changes == 0
    assert len(os.listdir(mirrored.record)) == 2


def test_a_mirror_compares_only_what_its_record_does_not_prove_unchanged(mirrored, source, monkeypatch):
    for name in ("a", "sub/b"):
        write(source + "/" + name, b"contents")
    mirrored()
    compared: List[bytes] = []
    real = mirror.copy_files
    monkeypatch.setattr(mirror, "copy_files", lambda *all, **named: compared.extend(read(all[2]).split(b"\0")[:-1]) or real(*all, **named))
    mirrored()
    assert compared == []
    os.chmod(source + "/sub/b", 0o600)
    os.chmod(source + "/sub/b", 0o644)
    assert mirrored().changes == 0
    assert compared == [b"sub/b"]
    monkeypatch.setattr(unchanged, "DOUBTFUL", 10.0)
    mirrored()
    compared.clear()
    mirrored()
    assert sorted(compared) == [b"a", b"sub/b"]  # last written within the tick of what was mirrored


def test_a_mirror_without_a_record_is_compared_as_a_whole_and_has_one_then(mirrored, source):
    write(source + "/a", b"contents")
    for lost in (lambda: shutil.rmtree(mirrored.record), lambda: [os.unlink(mirrored.record + "/" + name) for name in os.listdir(mirrored.record)]):
        mirrored()
        lost()
        status = os.stat(mirrored.copy + "a")
        write(mirrored.copy + "a", b"CONTENTS")
        os.utime(mirrored.copy + "a", ns=(status.st_atime_ns, status.st_mtime_ns))
        assert mirrored().bytes_transferred == 8
    for name in os.listdir(mirrored.record):
        with open(mirrored.record + "/" + name, "r+b") as file:
            file.truncate(5)
    mirrored()


def test_what_a_run_has_changed_before_it_was_killed_is_compared_by_the_next_one(mirrored, source, monkeypatch):
    """The source may have gone back in the meantime to what the record says, as after a rollback."""
    for name in ("a", "b"):
        write(source + "/" + name, b"old one")
    mirrored()
    state = os.listdir(mirrored.record)
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(mirror_record.MirrorRecord, "finish", lambda _self: (_ for _ in ()).throw(KeyboardInterrupt))
        mirrored()
    assert set(state) < set(os.listdir(mirrored.record))
    status = os.stat(mirrored.copy + "a")
    write(mirrored.copy + "a", b"new one")
    os.utime(mirrored.copy + "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert mirrored().bytes_transferred == 7
    assert len(os.listdir(mirrored.record)) == 2


def test_what_is_excluded_by_now_does_not_come_into_a_mirror(mirrored, source):
    write(source + "/sub/file", b"old one")
    mirrored()
    shutil.rmtree(mirrored.copy + "sub")
    rewrite(source + "/sub/file")
    mirror.mirror([tree(source, exclude=("/sub",))], os.path.dirname(mirrored.record))
    assert os.listdir(mirrored.copy) == []


@pytest.mark.parametrize("number", [0, 1, 2, 500, 4999, 5000])
def test_the_end_of_a_long_list_is_read_from_the_right_line_on(tmp_path, number):
    lines = [b"%d.%09d0 7 1 some/path %d\0" % (1_700_000_000 + each, each, each) for each in range(5000)]
    (tmp_path / "list").write_bytes(b"".join(lines))
    found = mirror_record._last_lines(str(tmp_path / "list"), b"%d.%09d" % (1_700_000_000 + number, number))
    assert [line.path for line in found] == [b"some/path %d" % each for each in range(number, 5000)]
