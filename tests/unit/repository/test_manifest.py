# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import grp
import json
import os
import pwd
import random
import shutil
import subprocess
import sys
from typing import Any, List

import pytest
from _core.host import durable
from _core.repository import compare, manifest, rsync
from _core.repository.sums import Stamp, Sums, order
from trees import (
    START,
    awkward,
    back_up,
    facts,
    job,
    needs_root,
    no_waiting_for_the_disk,  # noqa: F401
    tree,
    write,
)


@pytest.fixture
def generation(tmp_path):
    source = str(tmp_path / "source")
    os.makedirs(source + "/sub")
    write(source + "/a", b"alpha")
    write(source + "/sub/b", b"beta")
    os.symlink("a", source + "/link")
    return back_up(job(tmp_path / "repository"), tree(source, "mysql"))


def test_the_manifest_is_one_json_object_with_one_line_for_each_key_and_file(generation):
    with open(generation.path + "/manifest.json", encoding="ascii") as file:
        text = file.read()
    value = json.loads(text)
    assert [entry["path"] for entry in value["files"]] == ["mysql", "mysql/a", "mysql/link", "mysql/sub", "mysql/sub/b"]
    assert len(text.splitlines()) == len(value) + len(value["files"]) + 3
    for line in text.splitlines():
        if line.startswith('{"path"'):
            json.loads(line.rstrip(","))
    assert list(value)[-2:] == ["files", "sha256"]


def test_an_entry_says_all_that_a_comparison_needs(generation):
    found = {entry.path: entry for entry in manifest.entries(generation.path)}
    status = os.lstat(generation.path + "/mysql/a")
    assert found[b"mysql/a"] == manifest.Entry(
        b"mysql/a", "file", 5, status.st_mtime_ns, 0o644, status.st_uid, status.st_gid, found[b"mysql/a"].checksum, stamp=found[b"mysql/a"].stamp
    )
    assert found[b"mysql/a"].stamp == Stamp.of(os.lstat(generation.trees[0].source + "/a"))
    assert len(found[b"mysql/a"].checksum) == 32
    assert found[b"mysql/link"].target == b"a"
    assert found[b"mysql/sub"].type == "directory"


def test_the_manifest_is_readable_by_root_alone(generation):
    assert os.stat(generation.path + "/manifest.json").st_mode & 0o7777 == 0o600


@needs_root
def test_every_name_comes_back_as_it_was(tmp_path):
    source = awkward(str(tmp_path / "source"))
    generation = back_up(job(tmp_path / "repository"), tree(source))
    paths = [entry.path for entry in manifest.entries(generation.path)]
    assert {path[len(b"files/tree/") :] for path in paths if path != b"files"} == set(facts(source))
    with open(generation.path + "/manifest.json", "rb") as file:
        assert all(byte < 0x80 for byte in file.read())


def test_names_are_the_same_in_every_locale(generation):
    program = "import sys; sys.path.insert(0, %r)\nfrom _core.repository import manifest\nprint([e.path for e in manifest.entries(%r)])" % (
        [path for path in sys.path if path.endswith("module_utils")][0],
        generation.path,
    )
    said = {
        subprocess.run([sys.executable, "-c", program], env={"LC_ALL": name, "PYTHONUTF8": "0"}, stdout=subprocess.PIPE, check=True).stdout
        for name in ("C", "C.UTF-8", "POSIX")
    }
    assert len(said) == 1


def test_entries_are_in_the_order_of_their_keys_whatever_the_names_are(tmp_path):
    dice = random.Random(1)
    root = os.fsencode(str(tmp_path / "root"))
    os.mkdir(root)
    directories = [root]
    for _number in range(300):
        name = bytes(dice.choice(b"ab-.\x01 \xff/0A".replace(b"/", b"z")) for _ in range(dice.randint(1, 4)))
        path = os.path.join(dice.choice(directories), name)
        if name in (b".", b"..") or os.path.lexists(path):
            continue
        if dice.random() < 0.4:
            os.mkdir(path)
            directories.append(path)
        else:
            open(path, "wb").close()
    paths = [entry.path for entry, _allocated in manifest.walk(root)]
    assert paths == sorted(paths, key=order)
    assert len(paths) == len(set(paths)) == len(facts(os.fsdecode(root))) - 1


def test_a_tree_may_be_deeper_than_the_stack(tmp_path):
    root = str(tmp_path / "root")
    os.mkdir(root)
    here = os.open(root, os.O_RDONLY)
    for _level in range(1200):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    paths = [entry.path for entry, _allocated in manifest.walk(os.fsencode(root))]
    assert [len(path) for path in paths] == list(range(1, 2400, 2))
    durable.remove_tree(root)
    assert not os.path.exists(root)


def test_a_flipped_bit_anywhere_in_the_manifest_is_noticed(tmp_path, generation):
    path = str(tmp_path / "manifest.json")
    with open(generation.path + "/manifest.json", "rb") as file:
        good = file.read()
    for place in range(0, len(good), 3):
        bad = bytearray(good)
        bad[place] ^= 1 << (place % 8)
        with open(path, "wb") as file:
            file.write(bad)
        with pytest.raises(manifest.Damaged, match="manifest of .* (is damaged|can't be read)"):
            manifest.check(str(tmp_path))
        with pytest.raises(manifest.Damaged):
            list(manifest.entries(str(tmp_path)))


@pytest.mark.parametrize(
    "change", [lambda text: text[:-1], lambda text: text + b"\n", lambda text: b"", lambda text: text[:100], lambda text: b"{}\n"]
)
def test_a_manifest_with_a_part_missing_or_added_is_noticed(tmp_path, generation, change):
    with open(generation.path + "/manifest.json", "rb") as file:
        good = file.read()
    (tmp_path / "manifest.json").write_bytes(change(good))
    with pytest.raises(manifest.Damaged):
        manifest.check(str(tmp_path))


def test_a_manifest_that_is_missing_is_told_in_one_sentence(tmp_path):
    for read in (manifest.check, manifest.summary, lambda path: list(manifest.entries(path))):
        with pytest.raises(manifest.Damaged, match="can't be read: No such file or directory"):
            read(str(tmp_path))


OWNER = {"user": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}


def test_the_summary_is_read_without_the_files(generation, monkeypatch):
    read: List[Any] = []
    monkeypatch.setattr(manifest, "_entry", read.append)
    summary = manifest.summary(generation.path)
    assert summary["trees"] == [
        {"name": "mysql", "source": summary["trees"][0]["source"], "files": 2, "bytes": 9, "allocated": summary["trees"][0]["allocated"], **OWNER}
    ]
    assert summary["time"] == START.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert "files" not in summary and not read


def test_a_sum_that_is_told_twice_is_the_later_one(tmp_path):
    sums = Sums(str(tmp_path / "sums"))
    sums.add(b"a/b", "old")
    sums.add(b"a-b", "other")
    sums.add(b"a/b", "new")
    assert b"a/b" in sums and b"a" not in sums
    assert list(sums.in_order()) == [(b"a\0b", ("new", b"")), (b"a-b", ("other", b""))]
    sums.close()
    assert os.listdir(str(tmp_path)) == []


def test_further_names_get_the_sum_of_the_first_also_where_that_was_not_copied(tmp_path):
    sums = Sums()
    sums.add(b"first", "told")
    sums.add(b"second", "", b"first")
    sums.add(b"third", "", b"unchanged")
    sums.add(b"fourth", "", b"nowhere")
    sums.resolve(lambda: [(b"unchanged", "known")])
    assert dict(sums.in_order()) == {b"first": ("told", b""), b"second": ("told", b"first"), b"third": ("known", b"unchanged")}


def test_a_list_of_sums_that_can_not_be_kept_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(OSError, match="sqlite"):
        Sums(str(tmp_path / "missing" / "sums"))


def changes(root: str) -> List[Any]:
    """Return each way in which a copy can differ from its manifest, as ``(change, what is said)``."""
    return [
        (lambda: os.unlink(root + "/a"), "mysql/a: missing"),
        (lambda: shutil.rmtree(root + "/sub"), "mysql/sub: missing"),
        (lambda: write(root + "/new"), "mysql/new: not in the manifest"),
        (lambda: write(root + "/a", b"longer than it was"), "mysql/a: has 18 bytes, had 5"),
        (lambda: write(root + "/a", b"ALPHA"), "mysql/a: contents changed"),
        (lambda: os.chmod(root + "/sub", 0o777), "mysql/sub: has mode 0777, had 0755"),
        (lambda: os.utime(root + "/sub/b", ns=(0, 1)), "mysql/sub/b: was modified at another time"),
        (lambda: (os.unlink(root + "/link"), os.symlink("b", root + "/link")), "mysql/link: points to b, pointed to a"),
        (lambda: (os.unlink(root + "/a"), os.mkdir(root + "/a")), "mysql/a: is a directory, was a file"),
    ]


@pytest.mark.parametrize("number", range(9))
def test_every_difference_is_found_and_named(generation, number):
    change, said = changes(generation.path + "/mysql")[number]
    change()
    copy = generation.path
    sums = Sums()
    rsync.checksums(copy, algorithm=rsync.algorithm(), on_item=lambda item: sums.add(item.path, item.checksum))
    found = (entry for entry, _allocated in manifest.walk(os.fsencode(copy), leave_out=(b"manifest.json",)))
    faults = [fault.text() for fault in compare.compare(manifest.entries(generation.path), found, sums)]
    assert any(fault.startswith(said) for fault in faults), faults


@needs_root
def test_another_owner_is_a_difference(tmp_path, generation):
    os.chown(generation.path + "/mysql/a", 1, 2)
    sums = Sums()
    rsync.checksums(generation.path, algorithm=rsync.algorithm(), on_item=lambda item: sums.add(item.path, item.checksum))
    found = (entry for entry, _allocated in manifest.walk(os.fsencode(generation.path), leave_out=(b"manifest.json",)))
    assert [fault.text() for fault in compare.compare(manifest.entries(generation.path), found, sums)] == [
        "mysql/a: belongs to 1:2, belonged to 0:0"
    ]
