# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of running processes, below /run, and the names in it."""

from __future__ import annotations

import os

RUN_DIRECTORY = "/run/stillpoint"


def make_run_directory() -> str:
    """Return the directory of all that lasts as long as a run, made where it is missing. Others than root may pass through it, to
    what is theirs, and not look around."""
    os.makedirs(RUN_DIRECTORY, exist_ok=True)
    os.chmod(RUN_DIRECTORY, 0o711)
    return RUN_DIRECTORY


SCRATCH = "scratch"  # a scratch server's directory below /run/stillpoint is SCRATCH-PID-START-NUMBER
