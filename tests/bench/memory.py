# SPDX-License-Identifier: GPL-3.0-or-later
"""How much memory the agent takes for a great many files."""

from __future__ import annotations

import json

from bench import GUEST, Results, ask, conditions, prepared_machine

JOB = {"name": "many", "files": ["/srv/many"], "repository": "/srv/repository"}
# a volume group of its own on the spare disk: the root file system has too few inodes
VOLUMES = """
set -e
disk=/dev/disk/by-id/virtio-spare
vgcreate -qq vg01 $disk
for name in many repository; do
    lvcreate -qq -y -L 2500M -n $name vg01
    mkfs.ext4 -q -N 500000 /dev/vg01/$name
    mkdir -p /srv/$name
    mount /dev/vg01/$name /srv/$name
done
"""
FILL = """
import os
for number in range({files}):
    folder = f"/srv/many/{{number // 1000:04d}}"
    if number % 1000 == 0:
        os.makedirs(folder)
    with open(f"{{folder}}/a file with a name of usual length {{number}}.txt", "w") as file:
        file.write(str(number))
os.sync()
"""


def run(state: str, files: int) -> None:
    """Measure the peak memory of a first backup, a second one and a verification."""
    with prepared_machine(state) as machine:
        results = Results("memory", {**conditions(machine), "files": files}, [])
        machine.run(VOLUMES, timeout=600)
        machine.run(["python3", "-c", FILL.format(files=files)], timeout=3600)
        machine.put(json.dumps(JOB).encode(), "/etc/stillpoint/jobs/many.yml", "0600")
        for what, command in (("first backup", "run"), ("second backup", "run"), ("verification", "verify")):
            done = ask(machine, f"{GUEST}/peak.py", "stillpoint", command, "many", "--json", timeout=7200)
            if done["rc"]:
                raise SystemExit(f"stillpoint {command} many failed: {done['stdout']}")
            results.add(what=what, seconds=done["seconds"], peak_kib=done["peak_kib"])
