# SPDX-License-Identifier: GPL-3.0-or-later
"""Where live paths lie on mounted snapshots, and a path that is a file system of its own in another one. A directory stands for each snapshot."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Tuple

import pytest
from _core.backup import copied as snapshot_copy
from _core.backup import sources
from _core.host.errors import UsageError
from _core.lvm import mounted
from _core.lvm.layout import FILES
from _core.lvm.targets import Snapshot
from _core.proof import checksums
from _core.repository.mirror import mirror
from a_group import OWNER, snapshot
from trees import Quiet, back_up, facts, job, needs_root, write


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
    return sources.trees_for([(FILES, path) for path in paths], {})


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
