# SPDX-License-Identifier: GPL-3.0-or-later
"""What a killed run leaves behind: snapshots that carry our tags and whose process is gone. Nobody else's are touched."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

from ..errors import CommandError, StillpointError, fail
from . import lvm
from .mounts import RUN_DIRECTORY

COLLECTION = "stillpoint"
KEPT = COLLECTION + ".kept"  # handed to a playbook: no process owns it, and only `clean` or state=absent removes it

SCRATCH = "scratch"  # a scratch server's directory below /run/stillpoint is SCRATCH-PID-START-NUMBER

_REMOVE_TRIES = 8


@dataclass(frozen=True)
class Owner:
    """The run that a snapshot belongs to, as its LVM tags say."""

    run_id: str
    job: str
    boot: str
    pid: int
    start: int  # of the process, in clock ticks since boot: a pid alone may be another process by now

    def tags(self) -> Tuple[str, ...]:
        facts = {"run": self.run_id, "job": self.job, "boot": self.boot, "pid": self.pid, "start": self.start}
        return (COLLECTION, *("%s.%s=%s" % (COLLECTION, key, value) for key, value in facts.items()))

    def alive(self) -> bool:
        """Tell whether the process that made the snapshot still runs."""
        return self.boot == boot_id() and self.start != 0 and process_start(self.pid) == self.start


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def process_start(pid: int) -> Optional[int]:
    """Return when a process started, in clock ticks since boot; None when there is none (proc(5), field 22 of stat)."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def process_state(pid: int) -> str:
    """Return the letter of a process's state, "T" when it is stopped; "" when there is none (proc(5), field 3 of stat)."""
    return (_stat(pid) or [""])[0]


def locked_memory(pid: int) -> int:
    """Return how much memory a process has locked, in KiB; 0 when there is none (proc(5), VmLck of status)."""
    try:
        with open("/proc/%d/status" % pid, encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("VmLck:")), 0)
    except OSError:
        return 0


def _stat(pid: int) -> List[str]:
    """Return the fields of /proc/PID/stat from the third on: the second may hold spaces."""
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as file:
            return file.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def this_process(run_id: str, job: str) -> Owner:
    pid = os.getpid()
    return Owner(run_id, job, boot_id(), pid, process_start(pid) or 0)


def owner(tags: Iterable[str]) -> Optional[Owner]:
    """Return the Owner that a volume's tags name; None when the volume is not ours."""
    tags = list(tags)
    if COLLECTION not in tags:
        return None
    facts = dict(tag[len(COLLECTION) + 1 :].split("=", 1) for tag in tags if tag.startswith(COLLECTION + ".") and "=" in tag)

    def number(key: str) -> int:
        return int(facts[key]) if facts.get(key, "").isdigit() else 0

    return Owner(facts.get("run", ""), facts.get("job", ""), facts.get("boot", ""), number("pid"), number("start"))


def find(known: Iterable[lvm.LogicalVolume], *, run_id: Optional[str] = None, kept: bool = False) -> List[lvm.LogicalVolume]:
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
    *, run_id: Optional[str] = None, kept: bool = False, on_trouble: Callable[[StillpointError], None] = fail
) -> List[Dict[str, Any]]:
    """Remove our leftover snapshots and mount points; return the snapshots removed as ``{vg, name, origin, run_id, job}``.

    :param on_trouble: told of each snapshot that can't be removed
    """
    removed = []
    for volume in find(lvm.volumes(), run_id=run_id, kept=kept):
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
        lvm.settle()
        try:
            lvm.remove(full_name)
            return
        except CommandError as error:
            found = lvm.by_name(lvm.volumes(), full_name)
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
