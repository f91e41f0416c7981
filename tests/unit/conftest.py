# SPDX-License-Identifier: GPL-3.0-or-later
"""The core is tested as what it is, a package without Ansible: ``from _core import job``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Iterator

import pytest

if TYPE_CHECKING:
    from shop import Shop

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "plugins", "module_utils"))


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Shop"]:
    """A server with an archive of its binary logs; what runs on scratch keeps its files apart."""
    from _core.host import run_directory
    from _core.lvm import ownership
    from real_server import real_server
    from shop import Shop

    run = "/tmp/stillpoint-test-run-%d" % os.getpid()
    monkeypatch.setattr(run_directory, "RUN_DIRECTORY", run)
    monkeypatch.setattr(ownership, "RUN_DIRECTORY", run)
    with real_server() as server:
        server.do("CREATE DATABASE d", "CREATE TABLE d.orders (i INT PRIMARY KEY AUTO_INCREMENT, s TEXT)")
        yield Shop(server, tmp_path)
    subprocess.run(["rm", "-rf", run], check=True)
