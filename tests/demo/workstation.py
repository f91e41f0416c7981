# SPDX-License-Identifier: GPL-3.0-or-later
"""An ops workstation in a folder: the collection installed from a built tarball, an inventory of one host, playbooks."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
JOB: dict[str, Any] = {
    "name": "etrial",
    "mysql": {"method": "snapshot", "lock": "auto"},
    "files": ["/opt/processmaker"],
    "repository": "/backups",
    "keep": {"last": 3},
}
# everything of it stays in its folder, and nothing of the user's own configuration has a say
CONFIGURATION = """[defaults]
home = {{CWD}}/ansible
collections_path = {{CWD}}/collections
inventory = {{CWD}}/inventory.json
nocows = true
[connection]
pipelining = true
"""


@dataclass(frozen=True)
class Workstation:
    """Where the programs are, and the folder that has everything else of it."""

    venv: Path
    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Workstation:
        """Build the collection as it stands and install the tarball, with nothing fetched from anywhere."""
        setup = [str(PROJECT / "tests/lab/setup"), "--print-venv"]
        venv = Path(subprocess.run(setup, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
        folder.mkdir()
        (folder / "ansible.cfg").write_text(CONFIGURATION)
        workstation = cls(venv, folder)
        workstation._ansible("ansible-galaxy", "collection", "build", "--output-path", str(folder), str(PROJECT))
        (tarball,) = folder.glob("stillpoint-backup-*.tar.gz")
        workstation._ansible("ansible-galaxy", "collection", "install", "--offline", "-p", str(folder / "collections"), str(tarball))
        return workstation

    def write_inventory(self, variables: Mapping[str, str | int], jobs: Sequence[Mapping[str, Any]]) -> None:
        """Write the inventory: the host `etrial`, how to reach it, and its backup jobs."""
        host = {**variables, "backup_client_jobs": list(jobs)}
        self.inventory.write_text(json.dumps({"all": {"hosts": {"etrial": host}}}, indent=2))

    def play(self, name: str, **variables: object) -> None:
        """Run a playbook of the collection, its output on the terminal."""
        extra = ["-e", json.dumps(variables)] if variables else []
        self._ansible("ansible-playbook", f"stillpoint.backup.{name}", *extra)

    @property
    def inventory(self) -> Path:
        return self.folder / "inventory.json"

    def _ansible(self, program: str, *arguments: str) -> None:
        environment = {**os.environ, "ANSIBLE_CONFIG": str(self.folder / "ansible.cfg"), "PATH": f"{self.venv / 'bin'}:{os.environ['PATH']}"}
        subprocess.run([self.venv / "bin" / program, *arguments], check=True, env=environment, cwd=self.folder)
