# SPDX-License-Identifier: GPL-3.0-or-later
"""What `exclude` leaves out, real mounts in a path included: rsync itself says what its patterns mean."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Iterator, Sequence, Set

import pytest
from _core.backup import sources
from _core.host.errors import StillpointError
from _core.host.mounts import place
from _core.lvm import layout
from _core.lvm.layout import FILES
from _core.mysql.server import ServerPath
from _core.mysql.throw_away import ThrowAway
from _core.repository import estimate, left_out, rsync
from _core.trees import LeftOut, Tree
from trees import back_up, job, needs_root, write

pytestmark = needs_root


@pytest.fixture
def app(tmp_path: Path) -> Iterator[str]:
    """A tree with mounts of all kinds in it: a chroot's /dev, two of a name with wildcards, one in the other, and a file."""
    top = tmp_path / "app"
    points = ("jail/dev", "jail/dev/shm", "nfs", "we[i]rd*", "cache/deep/memory")
    done = []
    try:
        for name in points:
            point = str(top / name)
            os.makedirs(point, exist_ok=True)
            if subprocess.run(["mount", "-t", "tmpfs", "stillpoint-test", point], check=False).returncode != 0:
                pytest.skip("nothing can be mounted here")
            done.append(point)
            write(point + "/inside", b"x" * 1000)
        write(str(top / "resolv.conf"), b"")
        subprocess.run(["mount", "--bind", "/etc/hostname", str(top / "resolv.conf")], check=True)
        done.append(str(top / "resolv.conf"))
        write(str(top / "code.php"))
        yield str(top)
    finally:
        for point in reversed(done):
            subprocess.run(["umount", point], check=True)


CASES = {
    "all by name": (["/jail/dev", "/nfs", "we*", "/cache", "resolv.conf"], {"jail/dev", "jail/dev/shm", "nfs", "we[i]rd*", "cache/deep/memory", "resolv.conf"}),
    "contents alone": (["/nfs/*", "/jail/dev/**", "/cache/deep/memory/"], {"nfs", "jail/dev", "jail/dev/shm", "cache/deep/memory"}),
    "directories alone": (["nfs/", "resolv.conf/"], {"nfs"}),
    "anywhere": (["dev", "memory"], {"jail/dev", "jail/dev/shm", "cache/deep/memory"}),
    "an inner one": (["shm"], {"jail/dev/shm"}),
    "some files of each": (["*.log", "/nfs/*.tmp", "in*", "/nfs/*/", "nf"], set()),
    "literally": ([r"/we\[i\]rd\*"], {"we[i]rd*"}),
    "not after all": (["+ /nfs", "+ /nfs/**", "*"], {"jail/dev", "jail/dev/shm", "we[i]rd*", "cache/deep/memory", "resolv.conf"}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mount_is_left_out_if_rsync_would_copy_nothing_of_it(app: str, case: str) -> None:
    patterns, expected = CASES[case]
    found = left_out.left_out(app, patterns)
    assert {os.path.relpath(point, app) for point in found.mount_points} == expected
    assert found.patterns[len(found.patterns) - len(patterns) :] == tuple(patterns)


def copied(tree: Tree, tmp_path: Path) -> Set[str]:
    made = back_up(job(tmp_path / "repository"), tree).path + "/" + tree.name
    return {os.path.relpath(os.path.join(above, name), made) for above, directories, files in os.walk(made) for name in directories + files}


def wanted(app: str, patterns: Sequence[str]) -> Tree:
    roles = [(FILES, app)]
    (tree,) = sources.trees_for(roles, sources.left_out_of(roles, patterns))
    return tree


def test_the_directory_that_something_left_out_is_mounted_on_is_in_the_backup_and_empty(app: str, tmp_path: Path) -> None:
    tree = wanted(app, ["/jail/dev", "nfs", r"/we\[i\]rd\*", "/cache", "resolv.conf"])
    assert copied(tree, tmp_path) == {"code.php", "jail", "jail/dev", "nfs", "we[i]rd*"}
    assert estimate.estimate([tree], {}) == (1, 1)


def test_a_mount_that_is_left_out_is_no_reason_to_refuse_and_any_other_is(app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "_located", lambda role, path, _known, mounts: layout.Located(role, path, place(path, mounts), None))
    roles = [(FILES, app)]
    everything = ["dev", "nfs", "we*", "/cache", "resolv.conf"]
    (one,) = layout.locate(roles, [], sources.left_out_of(roles, everything))
    assert one.left_out[-5:] == tuple(everything)
    with pytest.raises(StillpointError, match=r"app/nfs is a file system of its own inside .*/app, .*: name it too, .*, or name it in exclude$"):
        layout.locate(roles, [], sources.left_out_of(roles, ["dev", "we*", "/cache", "resolv.conf", "*.log"]))


class Server:
    paths = ()
    throw_away = ThrowAway()


def test_a_directory_for_temporary_files_in_a_data_directory_may_be_a_mount_and_stays_empty(app: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(layout, "_located", lambda role, path, _known, mounts: layout.Located(role, path, place(path, mounts), None))
    datadir = app + "/cache"
    server = Server()
    server.paths = (ServerPath("datadir", datadir),)
    roles = sources.server_paths(server)
    with pytest.raises(StillpointError, match="cache/deep/memory is a file system of its own .*: the server's directories must lie on one"):
        layout.locate(roles, [], sources.left_out_of(roles, ["memory"], server))
    server.throw_away = ThrowAway(directories=(datadir + "/deep/memory",))
    left = sources.left_out_of(roles, [], server)
    assert len(layout.locate(roles, [], left)) == 1
    assert copied(sources.trees_for(roles, left)[0], tmp_path) == {"deep", "deep/memory"}


def test_without_a_mount_patterns_stay_as_they_are_and_rsync_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "names", lambda *_all: pytest.fail("asked"))
    assert left_out.left_out(str(tmp_path), ["*.log"]) == LeftOut(("*.log",))
