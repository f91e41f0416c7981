# SPDX-License-Identifier: GPL-3.0-or-later
"""This host as one that the role is run on, with directories of its own for what the role writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

from fake_systemctl import Systemctl

ROOT = Path(__file__).resolve().parents[2]

# A host is described by one module, and nothing is installed by the other.
MODULES = {
    "described": '{"changed": false, "ansible_facts": {"pkg_mgr": "ansible.legacy.no_packages", "os_family": "Debian", "distribution": "Debian"}}',
    "no_packages": '{"changed": false}',
}
APART = 'mount --bind "$1/sbin" /usr/local/sbin && mount --bind "$1/libraries" "$2" && shift 2 && exec "$@"'
SITE = "import site; print(*site.getsitepackages())"


class Host:
    """This host, with directories of its own for what the role writes, and a systemctl that stands in for systemd."""

    role = "backup_client"

    def __init__(self, top: Path, jobs: Sequence[Mapping[str, Any]]) -> None:
        self.top, self._jobs = top, list(jobs)
        for name in ("units", "state", "sbin", "library", "libraries", "collections/ansible_collections/stillpoint"):
            (top / name).mkdir(parents=True)
        (top / "collections/ansible_collections/stillpoint/backup").symlink_to(ROOT)
        (top / "ansible.cfg").write_text("[defaults]\nhome = %s\ncollections_path = %s\nlibrary = %s\n" % (top / "home", top / "collections", top / "library"))
        shutil.copy(ROOT / "tests/unit/fake_systemctl.py", top / "sbin" / "systemctl")
        (top / "sbin" / "systemctl").chmod(0o755)
        for name, answer in MODULES.items():
            (top / "library" / (name + ".py")).write_text("#!/usr/bin/python3\nprint('%s')\n" % answer)

    @property
    def units(self) -> Path:
        return self.top / "units"

    @property
    def libraries(self) -> Path:
        """Return the directory whose packages the host's own Python has besides."""
        return self.top / "libraries"

    def deploy(self, *options: str, entry: str = "main", **variables: Any) -> str:
        """Run an entry point of the role and return all that is printed."""
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {"ansible_python_interpreter": sys.executable},
            "tasks": [{"described": {}}, {"include_role": {"name": "stillpoint.backup." + self.role, "tasks_from": entry}}],
        }
        given = {
            "backup_client_jobs": self._jobs,
            "backup_client_unit_directory": str(self.units),
            "backup_client_directory": str(self.top / "etc"),
            "backup_client_udev_rules": str(self.top / "udev.rules"),
            "backup_client_account": False,
            "backup_client_check_jobs": False,
            **variables,
        }
        (self.top / "given.json").write_text(json.dumps(given))
        (self.top / "play.yml").write_text(json.dumps([play]))
        files = ["-e", "@" + str(self.top / "given.json"), str(self.top / "play.yml")]
        playbook = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", *files, *options]
        done = self.apart(*playbook)
        assert "PLAY RECAP" in done.stdout, done.stdout + done.stderr
        return done.stdout + done.stderr

    def apart(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a program where the stand-ins are in place."""
        site = subprocess.run(["/usr/bin/python3", "-c", SITE], capture_output=True, text=True, check=True).stdout.split()
        wrapped = ["unshare", "--mount", "sh", "-c", APART, "-", str(self.top), next(filter(os.path.isdir, site)), *command]
        stand_ins = {"UNITS": str(self.units), "STATE": str(self.top / "state"), "SYSTEMD_UNIT_PATH": str(self.units) + ":"}
        return subprocess.run(wrapped, env={**os.environ, "ANSIBLE_CONFIG": str(self.top / "ansible.cfg"), **stand_ins}, capture_output=True, text=True)

    def deployed(self, *options: str, entry: str = "main", **variables: Any) -> str:
        """Run the role, which has to succeed."""
        printed = self.deploy(*options, entry=entry, **variables)
        assert "failed=0" in printed, printed
        return printed

    def told(self) -> List[str]:
        """Return what systemd was told to do since the last time."""
        return Systemctl(self.units, self.top / "state").told()

    def files(self) -> Dict[str, str]:
        """Return what the role has written, by path."""
        places = [self.top / "etc", self.units, self.top / "udev.rules"]
        found = [path for place in places for path in ([place] if place.is_file() else place.rglob("*"))]
        return {str(path.relative_to(self.top)): path.read_text() for path in found if path.is_file() and not path.is_symlink()}
