# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether what a job names is on this host."""

from __future__ import annotations

import os
import stat

from ..host import mounts
from ..host.errors import UsageError
from .options import Job


def check_paths(job: Job) -> None:
    """Raise UsageError for the first path that a job reads from and that is not there, or not as it has to be.

    What the repository has to be is the plan's to say.
    """
    for path in job.files:
        if not os.path.isdir(path):
            raise UsageError(
                "%s: files has %s, which %s" % (job.where, path, "is not a directory" if os.path.exists(path) else "does not exist")
            )
    mount_points = {mount.mount_point for mount in mounts.table()}
    try:
        nested = mounts.nested(job.files)
    except UsageError as error:
        raise UsageError("%s: files: %s" % (job.where, error)) from error
    for path, other in nested:
        if os.path.realpath(path) not in mount_points:
            raise UsageError(
                "%s: files has %s, which lies in %s and is no file system of its own: name only one of them" % (job.where, path, other)
            )
    if job.mysql is None:
        return
    for key in ("config_file", "ca_cert", "client_cert", "client_key"):
        path = getattr(job.mysql, key)
        if path is not None and not os.path.isfile(path):
            raise UsageError("%s: mysql.%s is %s, which is not a file on this host" % (job.where, key, path))
    if (
        job.mysql.config_file is not None
        and os.stat(job.mysql.config_file).st_mode & stat.S_IROTH
        and _holds_password(job.mysql.config_file)
    ):
        raise UsageError(
            "%s: mysql.config_file %s holds a password and every user can read it: chmod 0600 it" % (job.where, job.mysql.config_file)
        )


def _holds_password(path: str) -> bool:
    with open(path, encoding="utf-8", errors="replace") as file:
        return any(line.split("=")[0].strip() == "password" for line in file)
