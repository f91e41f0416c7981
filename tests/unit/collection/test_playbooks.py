# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks as Ansible reads them, and what `status` says of hosts that have nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from deployed_host import ROOT

pytest.importorskip("ansible")
pytestmark = pytest.mark.cores

INVENTORY = """
empty ansible_connection=local ansible_python_interpreter=%s
gone ansible_host=127.0.0.1 ansible_port=1
""" % sys.executable


def playbook(top: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    collections = top / "ansible_collections" / "stillpoint"
    collections.mkdir(parents=True)
    (collections / "backup").symlink_to(ROOT)
    (top / "hosts").write_text(INVENTORY)
    environment = {**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(top), "ANSIBLE_HOME": str(top / "home"), "ANSIBLE_TIMEOUT": "5"}
    command = [sys.executable, "-m", "ansible", "playbook", "-i", str(top / "hosts"), *arguments]
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_every_playbook_can_be_read(tmp_path: Path) -> None:
    names = ["stillpoint.backup." + path.stem for path in (ROOT / "playbooks").glob("*.yml")]
    assert len(names) >= 7
    done = playbook(tmp_path, "--syntax-check", "-e", "stillpoint_upgrade=x", *names)
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stdout + done.stderr


def test_status_fails_and_names_a_host_that_has_no_job_and_one_that_can_not_be_reached(tmp_path: Path) -> None:
    done = playbook(tmp_path, "stillpoint.backup.status", "-e", "ansible_become=false")
    assert done.returncode != 0
    assert "empty: it has no job: list some in backup_client_jobs" in done.stdout
    assert "gone: " in done.stdout and "HOST" in done.stdout, done.stdout
