# SPDX-License-Identifier: GPL-3.0-or-later
"""The core is tested as what it is, a package without Ansible: ``from _core import job``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

import pytest

if TYPE_CHECKING:
    from a_group import Group
    from shop import Shop

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "plugins", "module_utils"))

from apart import TEMPORARY, keep_apart  # noqa: E402

keep_apart()
# PyMySQL reads all certificates of the host at each connection, which is half of its time
os.environ.update(SSL_CERT_FILE="/dev/null", SSL_CERT_DIR="/")


def pytest_configure(config: pytest.Config) -> None:
    if not config.option.basetemp and tempfile.gettempdir() == TEMPORARY:  # a short path, for sockets
        config.option.basetemp = tempfile.mkdtemp(prefix="t")


@pytest.fixture(autouse=True)
def same_umask() -> Iterator[None]:
    """Leave no test the umask of the agent that an earlier one has run in this process."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="module", params=["xfs", "btrfs"])
def sharing_disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system on which files can share blocks."""
    from trees import disk

    yield from disk(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def own_run_directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A directory in place of /run/stillpoint, for what runs on scratch."""
    from _core.host import run_directory
    from _core.lvm import ownership

    path = os.path.join(tempfile.gettempdir(), "stillpoint-test-run-%d" % os.getpid())
    monkeypatch.setattr(run_directory, "RUN_DIRECTORY", path)
    monkeypatch.setattr(ownership, "RUN_DIRECTORY", path)
    yield path
    subprocess.run(["rm", "-rf", path], check=True)


@pytest.fixture
def shop(tmp_path: Path, own_run_directory: str) -> Iterator["Shop"]:
    """A server with an archive of its binary logs; what runs on scratch keeps its files apart."""
    from real_server import real_server
    from shop import Shop

    with real_server() as server:
        server.do("CREATE DATABASE d", "CREATE TABLE d.orders (i INT PRIMARY KEY AUTO_INCREMENT, s TEXT)")
        yield Shop(server, tmp_path)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which directories stand for snapshots."""
    from a_group import mount_nothing

    mount_nothing(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture
def group(root: Path, monkeypatch: pytest.MonkeyPatch) -> "Group":
    """A volume group with one snapshot, and no LVM."""
    from a_group import Group, in_place_of_lvm

    group = Group(root)
    in_place_of_lvm(group, monkeypatch)
    return group
