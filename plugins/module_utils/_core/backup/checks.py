# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be so before anything is begun, by a job, a dump or a playbook's task: live data that is whole, and a place to write to."""

from __future__ import annotations

import os
from typing import Dict, List, Sequence

from ..host import text
from ..host.errors import StillpointError, UsageError
from ..host.free_space import space
from ..lvm import layout, sizes
from ..repository.generation import BAD
from ..repository.job_directory import JobDirectory, refuse_absent
from ..restore import journal
from ..restore.dump import beside
from ..restore.rollback import plan as rollback

# Room that must stay in a repository beyond the copy itself: manifests, directories, the file system's own.
_SPARE = 64 * sizes.MIB


def refuse_half_done() -> None:
    """Raise StillpointError where a restore or a rollback has left the live data half done."""
    beside.refuse_half_done()
    half_done = journal.pending()
    if half_done:
        raise StillpointError(
            "a restore of %s was interrupted while it replaced live data, which is neither the old nor the new: %s"
            % (half_done.job, half_done.ways_out)
        )
    rollback.refuse_going_back()


def newest_trees(directory: JobDirectory) -> Dict[str, str]:
    """Return tree name -> path for the generation that the next one will share unchanged files with."""
    newest = next((generation for generation in directory.generations() if generation.state != BAD), None)
    return {tree.name: os.path.join(newest.path, tree.name) for tree in newest.trees} if newest else {}


def check_room(repository: str, new: int) -> int:
    """Return how many bytes a repository has free.

    :param new: bytes that it is to take
    :raises StillpointError: there are fewer
    """
    free = space(repository).free
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


def beside_its_sources(repository: str, volume: str, sources: Sequence[str]) -> List[str]:
    """Return what somebody should know of a repository that lies on a volume which is backed up to it.

    :param volume: full name of the one that it lies on; "" where that is none
    :param sources: full names of those that are backed up
    """
    if volume not in sources:
        return []
    return [
        "the repository %s lies on %s, which is backed up: the copy itself fills the snapshot, and both are lost together with the volume"
        % (repository, volume)
    ]
