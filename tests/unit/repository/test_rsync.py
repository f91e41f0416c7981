# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import os
import shutil
import signal
import statistics
import subprocess
import time
from typing import Any, Callable, Dict, List

import pytest
from _core.host.errors import BusyError, CommandError, StillpointError, UsageError
from _core.host.processes import io_counter
from _core.repository import rsync
from _core.repository.mirror import alone, mirror
from _core.repository.rsync_options import check_options
from _core.repository.transfer import Copied, DestinationFull, Item
from trees import ACL, AWKWARD_NAMES, awkward, facts, needs_root, shape, small_disk, tree, write

ALGORITHM = rsync.algorithm()


def copy(source: str, dest: Any, **more: Any) -> Dict[bytes, Item]:
    items: Dict[bytes, Item] = {}
    more.setdefault("algorithm", ALGORITHM)
    rsync.copy_tree(tree(source), str(dest), on_item=lambda item: items.__setitem__(item.path, item), **more)
    return items


@needs_root
def test_a_copy_has_everything_that_is_easily_lost(tmp_path):
    source = awkward(str(tmp_path / "source"))
    copy(source, tmp_path / "copy")
    assert facts(str(tmp_path / "copy")) == facts(source)
    assert os.stat(str(tmp_path / "copy" / "sparse")).st_blocks * 512 < 1_000_000


@needs_root
def test_a_copy_of_a_copy_is_the_same_again(tmp_path):
    source = awkward(str(tmp_path / "source"))
    copy(source, tmp_path / "copy")
    copy(str(tmp_path / "copy"), tmp_path / "back")
    assert facts(str(tmp_path / "back")) == facts(source)


@pytest.mark.parametrize("algorithm", sorted({ALGORITHM, "md5"}))
def test_every_copied_file_is_told_with_the_checksum_of_its_contents_under_its_own_name(tmp_path, algorithm):
    source = tmp_path / "source"
    source.mkdir()
    contents = {name: b"contents %d" % number for number, name in enumerate(AWKWARD_NAMES)}
    contents[b"empty"] = b""
    contents[b"large"] = bytes(range(256)) * 4096
    for name, data in contents.items():
        write(os.fsdecode(os.path.join(os.fsencode(str(source)), name)), data)
    items = copy(str(source), tmp_path / "copy", algorithm=algorithm)
    assert {path: item.size for path, item in items.items()} == {path: len(data) for path, data in contents.items()}
    for path, data in contents.items():
        assert items[path].checksum == checksum(algorithm, data), path


def checksum(algorithm: str, data: bytes) -> str:
    if algorithm == "md5":
        return hashlib.md5(data).hexdigest()
    if shutil.which("xxh128sum") is None:
        pytest.skip("xxh128sum (package xxhash) is the judge here")
    return subprocess.run(["xxh128sum"], input=data, stdout=subprocess.PIPE, check=True).stdout.split()[0].decode()


def test_the_names_of_a_file_with_hard_links_are_told_with_the_first_of_them(tmp_path):
    (tmp_path / "source" / "sub").mkdir(parents=True)
    write(str(tmp_path / "source" / "b"), b"three names")
    os.link(str(tmp_path / "source" / "b"), str(tmp_path / "source" / "new\nline"))
    os.link(str(tmp_path / "source" / "b"), str(tmp_path / "source" / "sub" / "c"))
    items = copy(str(tmp_path / "source"), tmp_path / "copy")
    told = [item for item in items.values() if item.checksum]
    assert len(told) == 1
    assert {item.first for item in items.values() if not item.checksum} == {told[0].path}
    assert set(items) == {b"b", b"new\nline", b"sub/c"}


def test_unchanged_files_are_shared_and_not_read(tmp_path):
    (tmp_path / "source").mkdir()
    path = str(tmp_path / "source" / "table.ibd")
    write(path, b"x" * 100000)
    copy(str(tmp_path / "source"), tmp_path / "one")
    os.utime(path, ns=(1, os.stat(path).st_mtime_ns))  # read long ago: relatime would note a new reading
    assert copy(str(tmp_path / "source"), tmp_path / "two", link_dest=[str(tmp_path / "one")]) == {}
    assert os.stat(path).st_atime_ns == 1
    assert os.path.samefile(str(tmp_path / "one" / "table.ibd"), str(tmp_path / "two" / "table.ibd"))


def test_a_file_written_twice_in_one_second_is_not_held_for_unchanged(tmp_path):
    (tmp_path / "source").mkdir()
    path = str(tmp_path / "source" / "ibdata1")
    write(path, b"before")
    os.utime(path, ns=(0, 1_700_000_000_100_000_000))
    copy(str(tmp_path / "source"), tmp_path / "one")
    write(path, b"later!")
    os.utime(path, ns=(0, 1_700_000_000_900_000_000))
    copy(str(tmp_path / "source"), tmp_path / "two", link_dest=[str(tmp_path / "one")])
    assert (tmp_path / "two" / "ibdata1").read_bytes() == b"later!"


CHANGES: Dict[str, Callable[[str], Any]] = {
    "mode": lambda path: os.chmod(path, 0o600),
    "owner": lambda path: os.chown(path, 4711, 0),
    "time": lambda path: os.utime(path, ns=(0, 5)),
    "attribute": lambda path: os.setxattr(path, "user.new", b"1"),
    "attribute changed": lambda path: os.setxattr(path, "user.old", b"2"),
    "attribute removed": lambda path: os.removexattr(path, "user.old"),
    "ACL": lambda path: os.setxattr(path, "system.posix_acl_access", ACL),
    "ACL removed": lambda path: os.removexattr(path, "system.posix_acl_access"),
    "contents": lambda path: write(path, b"other contents", age=1),
    "contents of the same size": lambda path: write(path, b"y", age=1),
    "became a directory": lambda path: (os.unlink(path), os.mkdir(path)),
    "became a symlink": lambda path: (os.unlink(path), os.symlink("x", path)),
    "gone": os.unlink,
}


@needs_root
def test_a_changed_file_becomes_a_new_one_and_the_shared_one_stays_as_it_was(tmp_path):
    source = awkward(str(tmp_path / "source"))
    for name in CHANGES:
        for path in (source + "/" + name, source + "/linked for " + name):
            write(path)
            os.setxattr(path, "user.old", b"1")
            if name == "ACL removed":
                os.setxattr(path, "system.posix_acl_access", ACL)
        os.link(source + "/linked for " + name, source + "/second name for " + name)
    copy(source, tmp_path / "one")
    before = shape(str(tmp_path / "one"))
    for name, change in CHANGES.items():
        change(source + "/" + name)
        change(source + "/linked for " + name)
    os.lchown(source + "/to-plain", 4711, 0)
    os.utime(source + "/dangling", ns=(0, 5), follow_symlinks=False)
    os.chmod(source + "/fifo", 0o600)
    os.chown(source + "/null", 4711, 0)
    os.chmod(source + "/open", 0o700)
    os.setxattr(source, "user.root", b"1")
    copy(source, tmp_path / "two", link_dest=[str(tmp_path / "one")])
    assert shape(str(tmp_path / "one")) == before
    assert facts(str(tmp_path / "two")) == facts(source)


def test_comparing_by_checksum_finds_a_change_that_neither_size_nor_time_shows(tmp_path):
    (tmp_path / "source").mkdir()
    path = str(tmp_path / "source" / "file")
    write(path, b"before")
    copy(str(tmp_path / "source"), tmp_path / "one")
    write(path, b"later!")
    copy(str(tmp_path / "source"), tmp_path / "two", link_dest=[str(tmp_path / "one")], checksum=True)
    assert (tmp_path / "one" / "file").read_bytes() == b"before"
    assert (tmp_path / "two" / "file").read_bytes() == b"later!"


def test_a_single_file_and_a_symlink_are_copied_as_they_are(tmp_path):
    write(str(tmp_path / "my.cnf"), b"[mysqld]")
    os.symlink("my.cnf", str(tmp_path / "link"))
    for name in ("my.cnf", "link"):
        items = {}
        os.makedirs(str(tmp_path / "copy" / name))
        dest = str(tmp_path / "copy" / name / name)
        rsync.copy_tree(
            tree(str(tmp_path / name)), dest, algorithm=ALGORITHM, on_item=lambda item, items=items: items.update({item.path: item})
        )
        assert list(items) == ([b"my.cnf"] if name == "my.cnf" else [])
    assert (tmp_path / "copy" / "my.cnf" / "my.cnf").read_bytes() == b"[mysqld]"
    assert os.readlink(str(tmp_path / "copy" / "link" / "link")) == "my.cnf"


def test_what_is_excluded_and_what_a_restore_keeps_in_a_tree_is_left_out(tmp_path):
    source = tmp_path / "source"
    for name in (".stillpoint-new", ".stillpoint-replaced-20261122T020005Z", "sub/.stillpoint-new", "sub/.stillpoint-part-replaced-a-20261122T02", "cache"):
        (source / name).mkdir(parents=True)
    write(str(source / "a.log"))
    write(str(source / "a.txt"))
    rsync.copy_tree(tree(str(source), exclude=("*.log", "/cache/")), str(tmp_path / "copy"), algorithm=ALGORITHM)
    assert sorted(os.listdir(str(tmp_path / "copy"))) == ["a.txt", "sub"]
    assert os.listdir(str(tmp_path / "copy" / "sub")) == [".stillpoint-new"]


def test_the_figures_are_those_of_the_tree_and_of_what_was_transferred(tmp_path):
    (tmp_path / "source").mkdir()
    write(str(tmp_path / "source" / "a"), b"1" * 1_234_567)
    write(str(tmp_path / "source" / "b"), b"22")
    assert rsync.copy_tree(tree(str(tmp_path / "source")), str(tmp_path / "one"), algorithm=ALGORITHM) == Copied(
        2, 1_234_569, 1_234_569
    )
    write(str(tmp_path / "source" / "b"), b"333", age=5)
    link = [str(tmp_path / "one")]
    copied = rsync.copy_tree(tree(str(tmp_path / "source")), str(tmp_path / "two"), algorithm=ALGORITHM, link_dest=link)
    assert copied == Copied(2, 1_234_570, 3)


def test_a_large_file_shows_progress_while_it_is_copied_and_is_watched(tmp_path):
    (tmp_path / "source").mkdir()
    write(str(tmp_path / "source" / "ibdata1"), b"x" * 3_000_000)
    done: List[int] = []
    watched: List[float] = []
    rsync.copy_tree(
        tree(str(tmp_path / "source")),
        str(tmp_path / "copy"),
        algorithm=ALGORITHM,
        bwlimit="3m",
        on_progress=done.append,
        watch=lambda: watched.append(time.monotonic()),
    )
    assert len({each for each in done if 0 < each < 3_000_000}) >= 2
    assert done == sorted(done[:-1]) + [3_000_000]
    assert statistics.median(after - before for before, after in zip(watched, watched[1:])) < 0.5


def test_how_far_a_process_has_read_is_known_while_it_reads(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 1_000_000)
    before = io_counter(os.getpid(), "rchar")
    (tmp_path / "file").read_bytes()
    assert 1_000_000 <= io_counter(os.getpid(), "rchar") - before < 1_100_000
    assert io_counter(0, "rchar") is None


def test_what_the_watcher_raises_ends_rsync_and_all_of_its_processes(tmp_path):
    (tmp_path / "source").mkdir()
    write(str(tmp_path / "source" / "big"), b"x" * 3_000_000)

    def overflow() -> None:
        raise StillpointError("the snapshot is lost")

    with pytest.raises(StillpointError, match="the snapshot is lost"):
        rsync.copy_tree(tree(str(tmp_path / "source")), str(tmp_path / "copy"), algorithm=ALGORITHM, bwlimit="100k", watch=overflow)
    assert rsyncs(str(tmp_path)) == []


def test_rsync_does_not_outlive_a_killed_agent(tmp_path):
    (tmp_path / "source").mkdir()
    write(str(tmp_path / "source" / "big"), b"x" * 3_000_000)
    child = os.fork()
    if child == 0:
        rsync.copy_tree(
            tree(str(tmp_path / "source")),
            str(tmp_path / "copy"),
            algorithm=ALGORITHM,
            bwlimit="100k",
            watch=lambda: os.kill(os.getpid(), signal.SIGKILL),
        )
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    deadline = time.monotonic() + 60
    while rsyncs(str(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert rsyncs(str(tmp_path)) == []


def rsyncs(path: str) -> List[str]:
    """Return the command lines of processes that work with a path."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as file:
                words = file.read().split(b"\0")
        except OSError:
            continue
        if words[0] == b"rsync" and path.encode() in b" ".join(words):
            found.append(b" ".join(words).decode())
    return found


@needs_root
def test_a_full_disk_is_told_as_such(tmp_path):
    (tmp_path / "source").mkdir()
    write(str(tmp_path / "source" / "big"), b"x" * 3_000_000)
    for disk in small_disk(str(tmp_path / "disk"), "1m"):
        with pytest.raises(DestinationFull, match="No space left on device while .*/source was copied to"):
            copy(str(tmp_path / "source"), disk + "/copy")


def test_a_copy_that_fails_says_why_in_one_sentence(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "in the way").write_text("a file")
    with pytest.raises(CommandError, match=r"source could not be copied to .*/in the way/copy/: rsync: .*Not a directory") as caught:
        copy(str(tmp_path / "source"), tmp_path / "in the way" / "copy")
    assert "\n" not in str(caught.value)
    assert caught.value.cmd[0] == "rsync" and caught.value.rc not in (0, None) and "rsync error" in caught.value.stderr
    with pytest.raises(StillpointError, match="/nothing can't be read: No such file or directory"):
        copy(str(tmp_path / "nothing"), tmp_path / "copy")


def test_files_that_vanish_while_they_are_copied_fail_the_copy(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    write(str(source / "a"), b"x" * 500_000)
    write(str(source / "b"))

    def vanish() -> None:
        begun = (tmp_path / "copy").is_dir() and os.listdir(str(tmp_path / "copy"))
        if begun and (source / "b").exists():  # the list of files is made, and a is on its way
            (source / "b").unlink()

    with pytest.raises(CommandError, match="vanished.*/b"):
        rsync.copy_tree(tree(str(source)), str(tmp_path / "copy"), algorithm=ALGORITHM, bwlimit="400k", watch=vanish)


@pytest.mark.parametrize(
    "option",
    [
        "--inplace",
        "--an-option-of-the-next-rsync",
        "-",
        "--delete-after",
        "--no-times",
        "--copy-links",
        "-L",
        "--append",
        "--remove-source-files",
        "--dry-run",
        "-n",
        "-vn",
        "--out-format=%n",
        "--link-dest=/x",
        "--checksum",
        "-q",
        "-e ssh",
        "--one-file-system",
        "-vx",
        "--ignore-non-existing",
        "--remote-option=--fake-super",
        "-M--fake-super",
    ],
)
def test_options_that_would_break_a_backup_are_refused_by_name(tmp_path, option):
    (tmp_path / "source").mkdir()
    with pytest.raises(UsageError, match="the rsync option %s is refused: " % option):
        copy(str(tmp_path / "source"), tmp_path / "copy", options=[option])
    assert not (tmp_path / "copy").exists()


def test_other_options_are_passed_on(tmp_path):
    (tmp_path / "source").mkdir()
    write(str(tmp_path / "source" / "large"), b"x" * 2000)
    write(str(tmp_path / "source" / "small"))
    assert list(copy(str(tmp_path / "source"), tmp_path / "copy", options=["--max-size=1k", "--verbose", "--no-human-readable"])) == [
        b"small"
    ]
    with pytest.raises(UsageError, match="does not begin with a dash"):
        check_options(["--max-size", "1k"])


def test_a_mirror_is_kept_in_step_and_what_is_gone_is_deleted(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("stays", "goes"):
        write(str(source / name))
    trees = [tree(str(source), "mysql"), tree(str(source), "files/opt/app")]
    dest = tmp_path / "mirror"
    mirror(trees, str(dest))
    (source / "goes").unlink()
    write(str(source / "comes"))
    (dest / "somebody's own").write_text("not ours")
    done: List[int] = []
    copied = mirror(trees, str(dest), on_progress=done.append)
    assert copied == Copied(4, 4, 2)
    assert done[-1] == 2
    for name in ("mysql", "files/opt/app"):
        assert facts(str(dest / name)) == facts(str(source))
    assert (dest / "somebody's own").exists()


def test_a_mirror_that_is_in_step_already_is_not_changed_and_anything_else_is_counted(tmp_path):
    source = tmp_path / "source"
    (source / "directory").mkdir(parents=True)
    write(str(source / "file"))
    os.link(str(source / "file"), str(source / "directory" / "link"))
    os.symlink("file", str(source / "symlink"))
    trees, dest = [tree(str(source), "files/tree")], str(tmp_path / "mirror")
    assert mirror(trees, dest).changes == 5
    assert mirror(trees, dest).changes == 0
    os.chmod(str(source / "directory"), 0o700)
    assert mirror(trees, dest).changes == 1
    (source / "symlink").unlink()
    assert mirror(trees, dest).changes == 2  # with the directory that it was in


def test_a_mirror_is_written_by_one_run_at_a_time(tmp_path):
    path, busy = str(tmp_path / "mirror"), pytest.raises(BusyError, match="another run is writing to the mirror")
    with alone(path), busy, alone(path):
        pytest.fail("two at once")


ABOUT = """rsync  version %s  protocol version 31
Checksum list:
    %s
Compress list:
    zstd xxh128 none
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ABOUT % ("3.2.7", "xxh128 xxh3 xxh64 (xxhash) md5 md4 none"), "xxh128"),
        (ABOUT % ("3.2.3", "md5 md4 none"), "md5"),
        ("rsync  version 3.1.3  protocol version 31\nCapabilities:\n", "md5"),
        (ABOUT % ("v3.4.1", "xxh128 md5"), "xxh128"),
    ],
)
def test_the_checksum_is_the_fastest_good_one_that_this_rsync_has(monkeypatch, text, expected):
    monkeypatch.setattr(rsync, "_about", lambda: text)
    assert rsync.algorithm() == expected


def test_an_rsync_that_compares_whole_seconds_only_is_refused(monkeypatch):
    monkeypatch.setattr(rsync, "_about", lambda: "rsync  version 3.1.2  protocol version 31\n")
    with pytest.raises(StillpointError, match="rsync 3.1.2 is too old"):
        rsync.algorithm()
