# SPDX-License-Identifier: GPL-3.0-or-later
"""How file systems of snapshots are mounted. The files of these tests are never read until they fail: what would follow stops the host."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Iterator, Tuple

import pytest
from _core.host import mounts, run_directory
from trees import needs_root

pytestmark = needs_root


@pytest.fixture(params=["ext2", "ext3", "ext4"])
def device(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tuple[str, str]]:
    """A file system that asks for a panic where it finds an error."""
    monkeypatch.setattr(run_directory, "RUN_DIRECTORY", str(tmp_path / "run"))
    image = str(tmp_path / "image")
    subprocess.run(["mkfs." + request.param, "-q", "-F", image, "8m"], check=True)
    subprocess.run(["tune2fs", "-e", "panic", image], check=True, stdout=subprocess.DEVNULL)
    loop = subprocess.run(["losetup", "--find", "--show", image], stdout=subprocess.PIPE, text=True, check=False)
    if loop.returncode != 0:
        pytest.skip("no loop device can be had here")
    try:
        yield loop.stdout.strip(), request.param
    finally:
        subprocess.run(["losetup", "--detach", loop.stdout.strip()], check=True)


@pytest.mark.parametrize(("way", "mode"), [(mounts.mounted_read_only, "ro"), (mounts.mounted_writable, "rw")])
def test_an_error_on_a_snapshot_never_stops_the_host_whatever_its_file_system_asks_for(device, way, mode: str) -> None:
    with way(*device, "snapshot") as point:
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            (line,) = [line for line in file if line.split()[4] == os.path.realpath(point)]
        of_mount, of_file_system = line.split()[5].split(","), line.split()[-1].split(",")
    assert {mode, "nodev", "nosuid", "noexec"} <= set(of_mount)
    assert "errors=continue" in of_file_system and "errors=panic" not in of_file_system
