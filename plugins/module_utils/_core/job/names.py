# SPDX-License-Identifier: GPL-3.0-or-later
"""Which jobs a host has, by their files' names, and what it is called in a repository."""

from __future__ import annotations

import os
from typing import List

from ..host.errors import UsageError

JOBS_DIRECTORY = "/etc/stillpoint/jobs"
SUFFIX = ".yml"


def host_name() -> str:
    """Return the name under which this host's generations lie in a repository."""
    return os.uname().nodename


def jobs_directory() -> str:
    """Return the directory of the job files; STILLPOINT_JOBS in the environment names another."""
    return os.environ.get("STILLPOINT_JOBS") or JOBS_DIRECTORY


def job_names() -> List[str]:
    """Return the names of the jobs that have a file, sorted.

    :raises UsageError: the directory can't be read
    """
    directory = jobs_directory()
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UsageError("the directory of the jobs, %s, can't be read: %s" % (directory, error.strerror)) from error
    return sorted(entry[: -len(SUFFIX)] for entry in entries if entry.endswith(SUFFIX) and not entry.startswith("."))
