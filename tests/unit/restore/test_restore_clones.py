# SPDX-License-Identifier: GPL-3.0-or-later
"""A restore where the repository lies on the file system of the live data, which can share blocks."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Iterator

import pytest
from _core.host.errors import StillpointError
from _core.repository import blocks
from _core.restore.in_place import plan as planning
from _core.restore.in_place.execute import execute
from trees import (
    ACL,
    Quiet,
    awkward,
    back_up,
    facts,
    job,
    needs_root,
    no_waiting_for_the_disk,  # noqa: F401
    read,
    shape,
    tree,
    write,
)

pytestmark = needs_root
MIB = 1 << 20


@pytest.fixture
def live(sharing_disk: Path) -> Iterator[str]:
    """A tree with everything that is easily lost, also of files that are worth a clone."""
    path = awkward(str(sharing_disk / "live" / "app"))
    os.mkdir(path + "/data")
    for name in ("table", "capable", "linked"):
        write("%s/data/%s" % (path, name), os.urandom(MIB))
    os.link(path + "/data/linked", path + "/data/another")
    os.chown(path + "/data/capable", 1234, 5678)
    os.setxattr(path + "/data/capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    os.setxattr(path + "/data/table", "system.posix_acl_access", ACL)
    os.chown(path + "/data", 12, 34)
    yield path
    for each in ("live", "repository"):
        shutil.rmtree(sharing_disk / each)


def test_files_come_back_by_sharing_the_generations_blocks_with_all_that_belongs_to_them(sharing_disk: Path, live: str, tmp_path: Path) -> None:
    wanted = facts(live)
    generation = back_up(job(sharing_disk / "repository"), tree(live))
    before = shape(generation.path)
    shutil.rmtree(live)
    execute(planning.make(generation, state=str(tmp_path / "state")), Quiet())
    assert facts(live) == wanted and blocks.own_bytes(live + "/data") == 0
    write(live + "/data/table", b"the server goes on")
    assert shape(generation.path) == before


def test_a_damaged_generation_is_not_put_back_by_sharing_its_blocks_either(sharing_disk: Path, live: str, tmp_path: Path) -> None:
    generation = back_up(job(sharing_disk / "repository"), tree(live))
    status = os.stat(generation.path + "/files/tree/data/table")
    with open(generation.path + "/files/tree/data/table", "r+b") as file:
        file.seek(MIB // 2)
        file.write(b"rotten")
    os.utime(file.name, ns=(status.st_atime_ns, status.st_mtime_ns))
    write(live + "/data/table", b"alive")
    lived = facts(live)
    with pytest.raises(StillpointError, match="is damaged .*files/tree/data/table: contents changed.* the live data was not touched"):
        execute(planning.make(generation, state=str(tmp_path / "state")), Quiet())
    assert facts(live) == lived and read(live + "/data/table") == b"alive"
