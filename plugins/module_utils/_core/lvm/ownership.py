# SPDX-License-Identifier: GPL-3.0-or-later
"""What a killed run leaves behind: snapshots that carry our tags and whose process is gone. Nobody else's are touched."""

from __future__ import annotations

import os
import shutil
import time
from typing import Any, Callable, Container, Dict, Iterable, List, Optional

from ..host.errors import CommandError, StillpointError, fail
from ..host.processes import COLLECTION, Owner, process_start
from ..host.run_directory import RUN_DIRECTORY, SCRATCH
from . import volumes

KEPT = COLLECTION + ".kept"  # handed to a playbook: no process owns it, and only `clean` or state=absent removes it

_REMOVE_TRIES = 8


def owner(tags: Iterable[str]) -> Optional[Owner]:
    """Return the Owner that a volume's tags name; None when the volume is not ours."""
    tags = list(tags)
    if COLLECTION not in tags:
        return None
    facts = dict(tag[len(COLLECTION) + 1 :].split("=", 1) for tag in tags if tag.startswith(COLLECTION + ".") and "=" in tag)

    def number(key: str) -> int:
        return int(facts[key]) if facts.get(key, "").isdigit() else 0

    return Owner(facts.get("run", ""), facts.get("job", ""), facts.get("boot", ""), number("pid"), number("start"))


def find(known: Iterable[volumes.LogicalVolume], *, run_id: Optional[str] = None, kept: bool = False) -> List[volumes.LogicalVolume]:
    """Return our volumes that no living process owns.

    :param run_id: only those of this run
    :param kept: also those that a playbook was given and has not removed
    """
    found = []
    for volume in known:
        whose = owner(volume.tags)
        if whose is None or (run_id is not None and whose.run_id != run_id):
            continue
        if KEPT in volume.tags:
            if kept:
                found.append(volume)
        elif not whose.alive():
            found.append(volume)
    return found


def clean(
    *, run_id: Optional[str] = None, kept: bool = False, on_trouble: Callable[[StillpointError], None] = fail, but_not: Container[str] = ()
) -> List[Dict[str, Any]]:
    """Remove our leftover snapshots and mount points; return the snapshots removed as ``{vg, name, origin, run_id, job}``.

    :param on_trouble: told of each snapshot that can't be removed
    :param but_not: full names of those that stay
    """
    removed = []
    for volume in find(volumes.volumes(), run_id=run_id, kept=kept):
        if volume.full_name in but_not:
            continue
        try:
            remove(volume.full_name)
        except StillpointError as error:
            on_trouble(error)
        else:
            whose = owner(volume.tags)
            removed.append(
                {
                    "vg": volume.vg,
                    "name": volume.name,
                    "origin": volume.origin,
                    "run_id": whose.run_id if whose else "",
                    "job": whose.job if whose else "",
                }
            )
    _clean_run_directory()
    return removed


def remove(full_name: str) -> None:
    """Remove one of our volumes, trying again for a bounded time while udev or a scanner still holds it.

    Never deactivated first: for a thick snapshot that would mean its origin too.

    :raises StillpointError: it can't be removed
    """
    for attempt in range(_REMOVE_TRIES):
        volumes.settle()
        try:
            volumes.remove(full_name)
            return
        except CommandError as error:
            found = volumes.by_name(volumes.volumes(), full_name)
            if found is None:
                return
            if owner(found.tags) is None:
                raise StillpointError("the volume %s does not carry our tag and was left alone" % full_name) from error
            if attempt == _REMOVE_TRIES - 1:
                raise StillpointError(
                    "the snapshot %s can't be removed: %s; run `stillpoint clean` when nothing uses it any more" % (full_name, error)
                ) from error
            time.sleep(min(0.2 * 2**attempt, 5))


def _clean_run_directory() -> None:
    """Remove the mount points and the scratch servers' directories of runs that are gone. A mount point that is in use by a living run is
    not empty, or not ours to see as such."""
    try:
        entries = os.listdir(RUN_DIRECTORY)
    except OSError:
        return
    for entry in entries:
        kind, pid, start = (entry.split("-") + ["", ""])[:3]
        if kind not in ("mount", SCRATCH) or pid.isdigit() and start.isdigit() and process_start(int(pid)) == int(start):
            continue
        path = os.path.join(RUN_DIRECTORY, entry)
        if kind == SCRATCH:
            shutil.rmtree(path, ignore_errors=True)
            continue
        try:
            os.rmdir(path)
        except OSError:
            pass
