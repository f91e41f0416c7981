# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs that were killed left behind: removed and put back before anything new is begun."""

from __future__ import annotations

from typing import Container, Optional

from ..host.errors import StillpointError
from ..host.reporter import Reporter
from ..lvm import ownership
from ..mysql import topology
from ..mysql.connection import Login
from ..repository.job_directory import JobDirectory


def clear(reporter: Reporter, login: Optional[Login], directory: Optional[JobDirectory] = None, *, needed: Container[str] = ()) -> None:
    """Remove what killed runs left, and put back what they changed on the server. What can't be is a warning: somebody has to see to it, and a
    backup is none the worse for it.

    :param login: a way to the server besides the one that was written down
    :param directory: of the generations, where it is locked
    :param needed: full names of snapshots that stay
    """

    def warn(error: StillpointError) -> None:
        reporter.warn(str(error))

    for left in ownership.clean(on_trouble=warn, but_not=needed):
        reporter.note("removed the snapshot %s/%s that the run %s left behind" % (left["vg"], left["name"], left["run_id"]))
    for name in directory.clean(warn) if directory else ():
        reporter.note("removed %s, which an earlier run left unfinished" % name)
    try:
        for text in topology.put_back_leftovers(login):
            reporter.note(text)
    except StillpointError as error:
        warn(error)
