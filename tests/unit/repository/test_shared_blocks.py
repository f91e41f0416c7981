# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations whose changed files share their unchanged blocks: on real file systems that can do that, and on one that can't."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest
from _core.host import durable
from _core.host.errors import StillpointError
from _core.host.pace import Pace
from _core.host.steps import listening
from _core.proof import checksums
from _core.repository import blocks, manifest, renewal
from _core.repository.generation import Generation
from _core.repository.job_directory import JobDirectory
from _core.repository.storing import storing
from trees import (
    Quiet,
    back_up,
    change_times_of_long_ago,  # noqa: F401
    disk,
    facts,
    job,
    needs_root,
    no_waiting_for_the_disk,  # noqa: F401
    read,
    shape,
    small_disk,
    tree,
    write,
)

pytestmark = needs_root
SYNC = durable.sync_file_system
MIB = 1 << 20


@pytest.fixture
def directory(sharing_disk: Path) -> Iterator[JobDirectory]:
    """A job's directory where blocks can be shared."""
    yield job(sharing_disk / "repository")
    shutil.rmtree(sharing_disk / "repository")


@pytest.fixture
def source(tmp_path: Path) -> str:
    """A tree with a table of 2 MiB whose blocks all differ."""
    path = str(tmp_path / "source")
    os.makedirs(path + "/d")
    write(path + "/d/table", os.urandom(2 * MIB))
    write(path + "/small", b"x" * 1000)
    return path


def change(path: str, offset: int, data: bytes) -> None:
    """Write into a file, as a server does."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def sound(generation: Generation) -> bool:
    """Tell whether every byte of a generation is what its manifest says."""
    return checksums.verify(generation, Quiet()).ok


def is_whole(generation: Generation, source: str) -> bool:
    """Tell whether a generation is what its source is, and what its manifest says."""
    return facts(generation.path + "/files/tree") == facts(source) and sound(generation)


def made_of_blocks(generation: Generation) -> Dict[str, int]:
    return generation.summary["copy"].get("shared_blocks", {})  # type: ignore[no-any-return]


def comes_true(true: Callable[[], bool]) -> None:
    """Wait for what is so as soon as the file system has removed files, which both do in the background."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        os.sync()
        time.sleep(0.05)


def test_a_changed_file_takes_the_room_of_what_has_changed(directory: JobDirectory, source: str) -> None:
    first = back_up(directory, tree(source))
    before = shape(first.path)
    change(source + "/d/table", 512 * 1024, b"a page" * 2730)
    second = back_up(directory, tree(source), hours=1)
    assert is_whole(second, source) and shape(first.path) == before and sound(first)
    assert made_of_blocks(second) == {"files": 1, "bytes": 2 * MIB, "bytes_written": 16384}
    assert second.summary["copy"]["bytes_transferred"] == 16384 and second.summary["warnings"] == []
    assert blocks.own_bytes(second.path + "/files") == 16384
    # On btrfs a part of an extent is not given back alone: the old page goes with the last file that has any of its extent.
    assert blocks.own_bytes(first.path + "/files") == (16384 if "xfs" in first.path else 0)
    shutil.rmtree(first.path)
    comes_true(lambda: blocks.own_bytes(second.path + "/files") >= 2 * MIB)  # nobody shares it any more


def test_free_space_shows_at_once_what_a_generation_takes(directory: JobDirectory, source: str) -> None:
    """XFS would set 128 KiB aside around each write into shared blocks, and give them back at leisure."""
    back_up(directory, tree(source))
    os.sync()
    before = shutil.disk_usage(directory.path).used
    for number in range(12):
        change(source + "/d/table", number * 160 * 1024, b"x")
    back_up(directory, tree(source), hours=1)
    os.sync()
    comes_true(lambda: shutil.disk_usage(directory.path).used - before < 12 * 4096 + 300_000)  # directories, and btrfs's own trees


def grow_by_holes(path: str) -> None:
    with open(path, "r+b") as file:
        file.truncate(4 * MIB)
        file.seek(3 * MIB)
        file.write(b"beyond")


def replace_by_another(path: str) -> None:
    write(path + ".new", os.urandom(MIB + 5), age=10)
    os.setxattr(path + ".new", "user.comment", b"new")
    os.rename(path + ".new", path)


CHANGES: Dict[str, Callable[[str], Any]] = {
    "first bytes": lambda path: change(path, 0, b"x" * 20),
    "last byte": lambda path: change(path, 2 * MIB - 1, b"xyz"),
    "across chunks": lambda path: change(path, renewal.SMALLEST - 3, b"x" * 5000),
    "grown": lambda path: change(path, 2 * MIB, b"x" * 12345),
    "grown by holes": grow_by_holes,
    "shrunk": lambda path: os.truncate(path, MIB + 1234),
    "replaced": replace_by_another,
    "zeros": lambda path: change(path, MIB, bytes(300_000)),
    "owner": lambda path: os.chown(path, 12, 34),
    "mode": lambda path: os.chmod(path, 0o604),
    "below the smallest": lambda path: os.truncate(path, 1000),
    "gone": os.unlink,
    "a directory now": lambda path: (os.unlink(path), os.mkdir(path)),
    "a link now": lambda path: (os.rename(path, path + "2"), os.symlink("table2", path)),
    "a name more": lambda path: (change(path, 5, b"x"), os.link(path, path + "2")),
    "its directory a link now": lambda path: (os.rename(os.path.dirname(path), os.path.dirname(path) + "2"), os.symlink("d2", os.path.dirname(path))),
}


def test_files_come_out_as_they_are_whatever_has_happened_to_them(directory: JobDirectory, source: str) -> None:
    for number, what in enumerate(CHANGES):
        shutil.copytree(source + "/d", "%s/%s/d" % (source, what))
        change("%s/%s/d/table" % (source, what), MIB, b"%d" % number)
    first = back_up(directory, tree(source))
    before = shape(first.path)
    for what, happen in CHANGES.items():
        happen("%s/%s/d/table" % (source, what))
    second = back_up(directory, tree(source), hours=1)
    assert is_whole(second, source) and shape(first.path) == before
    assert made_of_blocks(second)["files"] == len(CHANGES) - 6  # the last six are rsync's


def test_a_changed_owner_takes_no_room(directory: JobDirectory, source: str) -> None:
    back_up(directory, tree(source))
    os.chown(source + "/d/table", 12, 34)
    second = back_up(directory, tree(source), hours=1)
    assert made_of_blocks(second)["bytes_written"] == 0 == blocks.own_bytes(second.path + "/files")


def test_what_is_excluded_by_now_is_not_brought_in(directory: JobDirectory, source: str) -> None:
    back_up(directory, tree(source))
    change(source + "/d/table", 0, b"x")
    for exclude in (("table",), ("/d",)):
        second = back_up(directory, tree(source, exclude=exclude), hours=len(exclude[0]))
        assert not os.path.exists(second.path + "/files/tree/d/table") and sound(second) and not made_of_blocks(second)
    assert not os.path.exists(back_up(directory, tree(source), hours=9, options=("--max-size=1m",)).path + "/files/tree/d/table")


def test_a_tree_that_is_one_file_shares_blocks(directory: JobDirectory, source: str) -> None:
    back_up(directory, tree(source + "/d/table", name="files/table"))
    change(source + "/d/table", MIB, b"x")
    second = back_up(directory, tree(source + "/d/table", name="files/table"), hours=1)
    assert made_of_blocks(second)["bytes_written"] == 4096 and sound(second) and read(second.path + "/files/table") == read(source + "/d/table")


@pytest.mark.parametrize("option", ["--whole-file", "-W", "--ignore-times"])
def test_who_asks_for_whole_files_gets_them(option: str, directory: JobDirectory, source: str) -> None:
    back_up(directory, tree(source))
    change(source + "/d/table", 0, b"x")
    assert not made_of_blocks(back_up(directory, tree(source), hours=1, options=(option,)))


def test_generations_share_blocks_down_the_line_and_each_can_go(directory: JobDirectory, source: str) -> None:
    made = [back_up(directory, tree(source))]
    for number in range(1, 5):
        change(source + "/d/table", number * 100_000, os.urandom(4096))
        made.append(back_up(directory, tree(source), hours=number))
    for each in (made[0], made[2]):
        shutil.rmtree(each.path)
    assert sound(made[1]) and sound(made[3]) and is_whole(made[4], source)


# -- no published generation is altered


def dies_while_writing(directory: JobDirectory, source: str, write_number: int) -> None:
    """Back up in a process that is killed in the middle of its write of this number."""
    child = os.fork()
    if child:
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        return
    seen = [0]

    def half(descriptor: int, data: memoryview, offset: int) -> None:
        os.pwrite(descriptor, data[: len(data) // 2], offset)
        if seen[0] == write_number:
            os.kill(os.getpid(), signal.SIGKILL)
        os.pwrite(descriptor, data, offset)
        seen[0] += 1

    renewal._write = half
    back_up(directory, tree(source), hours=1)
    os._exit(0)


def test_a_kill_at_any_write_leaves_the_last_generation_as_it_is(directory: JobDirectory, source: str) -> None:
    first = back_up(directory, tree(source))
    before = shape(first.path)
    for offset in (0, 300_000, MIB, 2 * MIB):
        change(source + "/d/table", offset, os.urandom(5000))
    for number in range(4):
        dies_while_writing(directory, source, number)
        assert shape(first.path) == before and sound(first) and [each.name for each in directory.generations()] == [first.name]
    assert is_whole(back_up(directory, tree(source), hours=1), source) and shape(first.path) == before


def test_a_full_disk_leaves_the_last_generation_as_it_is(sharing_disk: Path, directory: JobDirectory, source: str) -> None:
    first = back_up(directory, tree(source))
    before = shape(first.path)
    write(source + "/d/table", os.urandom(2 * MIB), age=5)
    ballast = sharing_disk / "ballast"
    try:
        with open(ballast, "wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(os.urandom(MIB))
                os.fsync(file.fileno())
        with pytest.raises(StillpointError, match="full|No space"):
            back_up(directory, tree(source), hours=1)
    finally:
        ballast.unlink()
        os.sync()
    assert shape(first.path) == before and sound(first) and os.listdir(directory.path).count(".run-1.partial") == 0
    assert is_whole(back_up(directory, tree(source), hours=1), source)


def test_a_disk_that_does_not_take_writes_leaves_the_last_generation_as_it_is(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "sync_file_system", SYNC)
    for backing in small_disk(str(tmp_path / "backing"), "100m"):
        place = Path(backing)
        for point in disk("xfs", place):
            first = back_up(job(point / "repository"), tree(source))
            before = shape(first.path)
            os.sync()
            write(source + "/d/table", os.urandom(2 * MIB), age=5)
            with open(place / "ballast", "wb") as file, pytest.raises(OSError):
                while True:
                    file.write(bytes(MIB))
                    file.flush()
            with pytest.raises(StillpointError):  # the blocks have no place on what the disk lies on: errors of writing
                back_up(job(point / "repository"), tree(source), hours=1)
            (place / "ballast").unlink()
            subprocess.run(["umount", point], check=True)
            subprocess.run(["mount", "-o", "loop", place / "image", point], check=True)
            assert shape(first.path) == before and sound(first)
            assert is_whole(back_up(job(point / "repository"), tree(source), hours=2), source)


# -- a damaged base does not become a damaged file


def rot(path: str, offset: int) -> None:
    """Change a bit of a file, as a disk does that decays: its times say nothing of that."""
    status = os.stat(path)
    (byte,) = read(path)[offset : offset + 1]
    change(path, offset, bytes([byte ^ 4]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_bit_rot_in_the_base_does_not_get_into_the_next_generation(directory: JobDirectory, source: str) -> None:
    first = back_up(directory, tree(source))
    rot(first.path + "/files/tree/d/table", 777_777)
    change(source + "/d/table", 0, b"changed elsewhere")
    second = back_up(directory, tree(source), hours=1)
    assert made_of_blocks(second)["bytes_written"] == 2 * 4096  # what has changed, and what had rotted
    assert is_whole(second, source) and not sound(first)


def test_a_clone_that_does_not_hold_what_was_written_is_copied_whole(directory: JobDirectory, source: str) -> None:
    back_up(directory, tree(source))
    change(source + "/d/table", 0, b"changed elsewhere")

    def spoil(step: str, about: str) -> None:
        if step == "clone written":
            change(about, 1_000_000, b"not what was sent")

    with listening(spoil):
        second = back_up(directory, tree(source), hours=1)
    assert is_whole(second, source) and not made_of_blocks(second)
    assert "files/tree/d/table" in second.summary["warnings"][0] and "copied whole" in second.summary["warnings"][0]


def test_a_file_that_the_base_lacks_by_now_is_copied_whole(directory: JobDirectory, source: str) -> None:
    first = back_up(directory, tree(source))
    os.unlink(first.path + "/files/tree/d/table")
    change(source + "/d/table", 0, b"changed")
    second = back_up(directory, tree(source), hours=1)
    assert is_whole(second, source) and "No such file" in second.summary["warnings"][0]


# -- elsewhere, and at its own pace


def test_where_blocks_can_not_be_shared_everything_is_as_ever(tmp_path: Path, source: str) -> None:
    for point in disk("ext4", tmp_path, 64 * MIB):
        directory = job(point / "repository")
        back_up(directory, tree(source))
        change(source + "/d/table", 0, b"changed")
        second = back_up(directory, tree(source), hours=1)
        assert not blocks.can_be_shared(str(point)) and is_whole(second, source)
        assert not made_of_blocks(second) and second.summary["copy"]["bytes_transferred"] == 2 * MIB
        assert blocks.own_bytes(second.path + "/files") == 2 * MIB  # the other file is a hard link


@pytest.mark.parametrize("algorithm", ["md5", "xxh128"])
def test_the_checksum_is_what_rsync_says(algorithm: str, sharing_disk: Path, source: str) -> None:
    base, new = (os.fsencode(str(sharing_disk / name)) for name in ("base", "new"))
    shutil.copy(source + "/d/table", base)
    change(source + "/d/table", 0, b"changed")
    try:
        renewed = renewal.renew(base, os.fsencode(source + "/d/table"), new, algorithm, Pace(None, lambda: None))
        said = subprocess.run(
            ["rsync", "-nc", "--checksum-choice=" + algorithm, "--out-format=%C", new, str(sharing_disk) + "/elsewhere"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert renewed.checksum == said.stdout.strip()
    finally:
        os.unlink(base)
        os.unlink(new)


def test_a_limit_of_the_rate_holds() -> None:
    ticks = []
    pace = Pace(1000.0, lambda: ticks.append(time.monotonic()))
    began = time.monotonic()
    pace.went_by(300)
    assert time.monotonic() - began >= 0.29 and len(ticks) >= 2


def test_the_manifest_has_the_inode_and_change_time_of_a_file_that_shares_blocks(directory: JobDirectory, source: str) -> None:
    back_up(directory, tree(source))
    change(source + "/d/table", 0, b"changed")
    second = back_up(directory, tree(source), hours=1)
    status = os.stat(source + "/d/table")
    entry = next(each for each in manifest.entries(second.path) if each.path == b"files/tree/d/table")
    assert entry.stamp == (status.st_ino, status.st_ctime_ns)


# -- what a run is expected to store


def base_of(generation: Generation) -> Dict[str, str]:
    return {"files/tree": generation.path + "/files/tree"}


def test_what_a_run_stores_is_expected_by_what_the_last_ones_wrote(directory: JobDirectory, source: str) -> None:
    first = back_up(directory, tree(source))
    change(source + "/d/table", 0, b"x")
    write(source + "/new", b"n" * 300_000)
    unknown = storing(directory, [tree(source)], base_of(first))
    assert unknown.sizes == (2 * MIB + 301_000, 2 * MIB + 300_000, 2 * MIB) and unknown.needed == unknown.expected == unknown.sizes.new
    assert unknown.line() == "shared blocks: a changed file takes what has changed of it, which no run has shown yet"
    second = back_up(directory, tree(source), hours=1)  # writes 1 block of 512
    change(source + "/d/table", MIB, b"x")
    known = storing(directory, [tree(source)], base_of(second))
    assert (known.expected, known.needed) == (4096, 8192)
    assert known.line() == "shared blocks: about 4.0 KiB expected, as the last runs wrote up to 0.2 % of changed files"
    whole = storing(directory, [tree(source)], base_of(second), ("--whole-file",))
    assert whole.needed == 2 * MIB and not whole.shares


def test_the_worst_of_the_last_runs_counts(directory: JobDirectory, source: str) -> None:
    back_up(directory, tree(source))
    for hours, data in ((1, os.urandom(MIB)), (2, b"x")):
        change(source + "/d/table", 0, data)
        newest = back_up(directory, tree(source), hours=hours)
    change(source + "/d/table", 0, b"y")
    assert storing(directory, [tree(source)], base_of(newest)).needed == 2 * MIB  # half of it, and twice that


def test_where_blocks_can_not_be_shared_all_that_is_new_has_to_find_room(tmp_path: Path, source: str) -> None:
    for point in disk("ext4", tmp_path, 64 * MIB):
        directory = job(point / "repository")
        first = back_up(directory, tree(source))
        change(source + "/d/table", 0, b"x")
        found = storing(directory, [tree(source)], base_of(first))
        assert found.needed == found.expected == 2 * MIB and "can't share blocks" in found.line()
        assert found.as_dict() == {"shares_blocks": False, "bytes_expected": 2 * MIB, "written_before": None}
