# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest
from _core.host import durable
from trees import small_disk

HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[str]:
    """A file system that gives the number of what is gone to the next thing."""
    image = tmp_path / "image"
    with open(image, "wb") as file:
        file.truncate(16 << 20)
    where = tmp_path / "disk"
    where.mkdir()
    if os.system("mkfs.ext4 -q -I 256 %s && mount -o loop %s %s" % (image, image, where)) != 0:
        pytest.skip("nothing can be mounted here")
    yield str(where)
    os.system("umount %s" % where)


def test_what_has_the_number_of_something_that_is_gone_is_another_thing(disk: str) -> None:
    path = disk + "/tree"
    os.mkdir(path)
    number, identity = os.lstat(path).st_ino, durable.identity(path)
    os.rmdir(path)
    assert durable.identity(path) is None
    os.mkdir(path)
    assert os.lstat(path).st_ino == number
    assert durable.identity(path) != identity


def test_a_thing_stays_the_same_under_another_name_and_when_it_is_written_to(disk: str) -> None:
    os.mkdir(disk + "/one")
    os.mkdir(disk + "/two")
    one, two = durable.identity(disk + "/one"), durable.identity(disk + "/two")
    durable.exchange(disk + "/one", disk + "/two")
    os.mkdir(disk + "/one/inside")
    os.utime(disk + "/one", (1, 1))
    os.symlink("one", disk + "/link")
    assert (durable.identity(disk + "/one"), durable.identity(disk + "/two")) == (two, one)
    assert durable.identity(disk + "/link") not in (one, two)


def test_where_no_moment_of_birth_is_known_the_device_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_birth", lambda _path: None)
    for other in small_disk(str(tmp_path / "other")):
        assert durable.identity(other) == "%d, device %d" % (os.stat(other).st_ino, os.stat(other).st_dev)
        assert durable.identity(str(tmp_path)) != durable.identity(other)


def test_a_lock_that_another_holds_is_told_at_once_and_free_again_when_that_one_ends(tmp_path: Path) -> None:
    file = str(tmp_path / ".lock")
    with durable.lock(file, make=True) as held:
        assert held is not None
        assert os.stat(file).st_mode & 0o777 == 0o600
        with durable.lock(file, make=True) as other:
            assert other is None
    for name, make in ((str(tmp_path), False), (file, True)):
        with durable.lock(name, make=make, shared=True) as one, durable.lock(name, make=make, shared=True) as two, durable.lock(name, make=make) as alone:
            assert one is not None and two is not None and alone is None
    holder = subprocess.Popen([sys.executable, "-c", HOLD, file], stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    with durable.lock(file, make=True) as other:
        assert other is None
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with durable.lock(file, make=True) as held:
        assert held is not None
