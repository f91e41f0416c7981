# SPDX-License-Identifier: GPL-3.0-or-later
"""Which binary logs are those of the server whose data is replaced: never those of another one, which may log to the same directory."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Dict, Optional, Sequence

from ..host import service
from ..repository.generation import Generation
from .in_place import targets as places
from .in_place.targets import Target
from .server_logs import Logs

if TYPE_CHECKING:
    from ..archive.archive import Archive
    from .replay.moment import Moment


def own(generation: Generation, targets: Sequence[Target], archives: Sequence["Archive"]) -> Optional[Logs]:
    """Return the binary logs of the server whose data is replaced; None where it writes none, or it is not certain which.

    The manifest says which they were. A server that runs shows whether they still are: it has the index open.

    :param archives: the one beside the generation, if it is among them, says it for an old manifest
    """
    settings = generation.summary.get("settings") or {}
    basename, index = str(settings.get("log_bin") or ""), str(settings.get("log_bin_index") or "")
    if not settings:
        beside = os.path.dirname(generation.path)
        basename = next((found for found in (_basename(archive) for archive in archives if os.path.dirname(archive.path) == beside) if found), "")
    if not basename:
        return None
    datadir = places.datadir(targets)
    index = os.path.join(datadir, index or basename + ".index")
    if not os.path.exists(index) and os.path.exists(index + ".index"):
        index += ".index"  # as a server completes what it was given
    holders = service.holders(index)
    running = service.running_in(datadir)
    if any(pid != running.pid for pid in holders) if running else holders:
        return None
    if running and not holders and os.path.exists(index):
        return None
    stamp = places.stamp_of(targets[0].kept)
    return Logs(os.path.join(datadir, basename), index, datadir, tuple(places.databases(targets)), stamp)


def asked(moment: "Moment") -> Dict[str, str]:
    """Return the option that asks for a recovery to a moment, the same for whatever way a time was written."""
    if moment.time is not None:
        return {"--until": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment.time))}
    if moment.position is not None:
        return {"--until-position": "%s:%d" % moment.position}
    return {"--before-gtid" if moment.before else "--until-gtid": str(moment.gtid)}


def is_of(archive: "Archive", logs: Logs) -> bool:
    """Tell whether an archive is one of these logs."""
    known = _basename(archive)
    return bool(known) and _real(known) == _real(logs.basename)


def _basename(archive: "Archive") -> str:
    """Return what an archive's logs are called on their server; "" where that is not known."""
    return next((str(line.server.get("basename") or "") for line in reversed(archive.lines())), "")


def _real(path: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
