# SPDX-License-Identifier: GPL-3.0-or-later
"""The roles and playbooks, rolled out to a Vagrant machine: the scenarios of Molecule."""

from __future__ import annotations

import subprocess

from conftest import PROJECT, Worker


def test_the_scenario_default_passes(worker: Worker) -> None:
    worker.close()  # this worker's machine is now Vagrant's
    command = [PROJECT / "tests/lab/lab", "exec", "--libvirt", "--", "molecule", "test", "--no-command-borders"]
    done = subprocess.run(command, cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20000:]
