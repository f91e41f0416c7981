# SPDX-License-Identifier: GPL-3.0-or-later
"""What a repository has to be before something is written to it, by a job or by a playbook's copy."""

from __future__ import annotations

import os
import shutil
from typing import Sequence

from ..host import text
from ..host.errors import StillpointError, UsageError
from ..lvm import layout, sizes
from ..repository.job_directory import refuse_absent

# Room that must stay in a repository beyond the copy itself: manifests, directories, the file system's own.
_SPARE = 64 * sizes.MIB


def check_room(repository: str, new: int) -> int:
    """Return how many bytes a repository has free.

    :param new: bytes that it is to take
    :raises StillpointError: there are fewer
    """
    free = shutil.disk_usage(repository).free
    if new + _SPARE > free:
        raise StillpointError(
            "the repository %s has %s free and the copy needs about %s: free space there, or keep fewer generations"
            % (repository, text.human(free), text.human(new + _SPARE))
        )
    return free


def check_apart(repository: str, sources: Sequence[str]) -> None:
    """Raise UsageError for a repository that lies in what is backed up, or would if it were made."""
    there = repository
    while not os.path.lexists(there):
        there = os.path.dirname(there) or "/"
    source = layout.lies_in(there, sources)
    if source is not None:
        raise UsageError(
            "the repository %s lies in %s, which the job backs up: a backup would contain itself; move it out of there" % (repository, source)
        )


def check_repository(repository: str, sources: Sequence[str]) -> None:
    """Raise UsageError for a repository that does not exist, is not mounted, can't be written, or lies in what is backed up."""
    refuse_absent(repository, to_write=True)
    check_apart(repository, sources)
    if not os.access(repository, os.W_OK) or os.statvfs(repository).f_flag & os.ST_RDONLY:
        raise StillpointError("the repository %s can't be written: it is mounted read-only, or this is not root" % repository)
