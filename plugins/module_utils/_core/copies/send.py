# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations on their way to a copy: what is published and not there, newest first."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

from ..host.errors import StillpointError
from ..host.reporter import Reporter
from ..host.run_directory import make_run_directory
from ..host.sandbox import show_read_only
from ..host.steps import reached
from ..host.text import iso
from ..job.options import Copy
from ..repository import manifest
from ..repository.generation import Generation, Gone
from .destination import Destination, summary_line, tags
from .known import CopiedGeneration, Known

POINT = "point"  # below /run/stillpoint, where restic finds each generation: the same path each time
_INCOMPLETE = 3  # restic's exit status: a snapshot was written that lacks what could not be read


@dataclass(frozen=True)
class Sent:
    """What came of sending one generation.

    :ivar added: bytes that were new to the repository, compressed where restic's version tells
    """

    generation: str
    copy: str
    bytes: int
    added: int
    duration_s: float

    def as_dict(self) -> Dict[str, Any]:
        return dict(vars(self))


def send_missing(destination: Destination, copy: Copy, generations: Sequence[Generation], reporter: Reporter) -> List[Sent]:
    """Send what is not at a copy yet, newest first, and return what was sent. A generation that is removed meanwhile is left out.

    :param generations: those of the job, newest first
    :raises StillpointError: it can't go on; what was sent until then is there, and the next call goes on with the rest
    """
    with destination.alone():
        reporter.stage("look")
        known = destination.look()
        done: List[Sent] = []
        for generation in known.behind(generations, copy.keep):
            try:
                with generation.hold():
                    done.append(_send(destination, copy, generation, _parent(destination.known, generation, generations), reporter))
            except Gone:
                reporter.note("%s was removed before it was sent" % generation.name)
        return done


def _parent(known: Known, generation: Generation, generations: Sequence[Generation]) -> Optional[str]:
    """Return the id of the snapshot of the generation next to one: restic does not read those of its files that it knows from there.

    Only one that is here, too: a file's inode tells it from others for as long as that is in use.
    """
    here = {each.name: each.time for each in generations}
    nearest = [each for each in known.generations if each.name in here and each.name != generation.name]
    return min(nearest, key=lambda each: abs((here[each.name] - generation.time).total_seconds())).id if nearest else None


def _send(destination: Destination, copy: Copy, generation: Generation, parent: Optional[str], reporter: Reporter) -> Sent:
    """Send a generation and return what that came to."""
    started = time.monotonic()
    manifest.check(generation.path)
    digest = manifest_sha256(generation.path)
    reporter.stage("send %s" % generation.name)
    point = os.path.join(make_run_directory(), POINT)
    os.makedirs(point, mode=0o700, exist_ok=True)
    summary: Dict[str, Any] = {}

    def take(line: str) -> None:
        said = summary_line(line)
        if said.get("message_type") == "status" and said.get("total_bytes"):
            reporter.progress(int(said.get("bytes_done", 0)), max(int(said["total_bytes"]), generation.size_bytes))
        elif said.get("message_type") == "summary":
            summary.update(said)

    moment = generation.time.strftime("%Y-%m-%d %H:%M:%S")
    words = ["backup", ".", "--json", "--ignore-ctime", "--host", destination.host, "--time", moment]
    words += ["--parent", parent] if parent else ["--force"]
    words += ["--limit-upload", str(_kib(copy.bwlimit))] if copy.bwlimit else []
    facts = tags(generation, destination.job, digest)
    for tag in facts:
        words += ["--tag", tag]
    output = destination.restic.send(*words, on_line=take, accept=(0, _INCOMPLETE), in_child=lambda: show_read_only(generation.path, point))
    reached("sent", generation.name)
    snapshot = _snapshot(destination, str(summary.get("snapshot_id") or ""), generation.name)
    if output.rc == _INCOMPLETE:
        destination.mark_broken(snapshot)
        raise StillpointError(
            "the copy of %s at %s is not whole, as files of it can't be read here: `stillpoint verify %s %s` tells which"
            % (generation.name, destination.restic.url, destination.job, generation.name)
        )
    when = iso(generation.time)[:19] + "Z"
    destination.sent(CopiedGeneration(snapshot, generation.name, when, generation.state, generation.size_bytes, generation.files, digest))
    reached("recorded", generation.name)
    duration = round(time.monotonic() - started, 1)
    added = int(summary.get("data_added_packed", summary.get("data_added", 0)))
    return Sent(generation.name, destination.copy, generation.size_bytes, added, duration)


def _snapshot(destination: Destination, short: str, name: str) -> str:
    """Return the whole id of a snapshot, of which older versions of restic say the beginning alone.

    :raises StillpointError: it is not there
    """
    if len(short) == 64:
        return short
    for each in destination.restic.json("snapshots", short) if short else ():
        return str(each["id"])
    raise StillpointError("restic says that it sent %s to %s, and it is not there" % (name, destination.restic.url))


def manifest_sha256(path: str) -> str:
    """Return the SHA-256 of a generation's manifest, all of the file."""
    digest = hashlib.sha256()
    with open(os.path.join(path, manifest.NAME), "rb") as file:
        for part in iter(lambda: file.read(1 << 18), b""):
            digest.update(part)
    return digest.hexdigest()


def _kib(rate: str) -> int:
    """Return a rate as rsync takes it in KiB/s, at least one."""
    factor = {"K": 1, "M": 1024, "G": 1024**2}.get(rate[-1:].upper(), 1)
    return max(int(float(rate.rstrip("KMGkmg")) * factor), 1)
