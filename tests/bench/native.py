# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks share that run on this host itself, with a real server, the agent's own code, and no virtual machine."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from bench import Record


def conditions(directory: Path) -> Record:
    """Return what a reader has to know of the host that figures come from.

    :param directory: in which the data lies
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "accelerator": "none, on the host itself",
        "cpus": os.cpu_count(),
        "memory_mib": memory >> 20,
        "server": subprocess.run(["mariadbd", "--version"], capture_output=True, text=True, check=True).stdout.split("Ver ")[1].split()[0],
        "kernel": platform.release().partition("-")[0],
        "file_system": subprocess.run(["findmnt", "-no", "FSTYPE", "-T", str(directory)], capture_output=True, text=True, check=True).stdout.strip(),
    }
