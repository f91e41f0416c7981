# SPDX-License-Identifier: GPL-3.0-or-later
"""A copy of a job's backups: the repository that it has to be, and what lies there.

What a generation is stands in its snapshot's tags, so one call lists all of them. What was seen there last is kept on this host, with the id of the
repository: a look at what is where dials nobody, and another repository behind the same address is not taken for it.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Dict, Iterator, List, Mapping, Optional

from ..host import durable
from ..host.errors import BusyError, StillpointError, UsageError
from ..host.text import moment
from ..job.options import Copy, Job
from ..repository.generation import Generation, now
from . import known, secrets
from .known import CopiedGeneration, Known
from .restic import CACHE, NoRepository, Restic, Unavailable

TAG = "stillpoint"

_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(-\d+)?")
_ID = re.compile(r"[0-9a-f]{64}")


class OtherRepository(StillpointError):
    """Another repository is behind the address than the first copy was sent to."""


def find(job: Job, name: str) -> Copy:
    """Return a job's copy by its name.

    :raises UsageError: it has none of that name
    """
    for copy in job.copies:
        if copy.name == name:
            return copy
    names = ", ".join(copy.name for copy in job.copies)
    raise UsageError("%s: the job has no copy %s; %s" % (job.where, name, "there are %s" % names if names else "it has no copies at all"))


class Destination:
    """A repository of restic that takes the generations of a job of a host, or of all of its jobs."""

    def __init__(self, restic: Restic, host: str, job: str, copy: str) -> None:
        self.restic = restic
        self.host = host
        self.job = job
        self.copy = copy

    @classmethod
    def of(cls, job: Job, copy: Copy, host: str) -> "Destination":
        """Return the Destination of a job's copy.

        :raises UsageError: its secrets can't be used, or restic is too old
        """
        restic = Restic(copy.to, secrets.read(copy.secrets), cache=CACHE)
        restic.version()
        return cls(restic, host, job.name, copy.name)

    @property
    def known(self) -> Known:
        return known.known(self.job, self.copy)

    def check(self) -> str:
        """Return the repository's id, having made sure that it is the one that earlier copies went to.

        :raises OtherRepository: it is not
        :raises StillpointError: it can't be opened
        """
        pinned = self.known.repository
        try:
            found = self.restic.repository_id()
        except NoRepository as error:
            if pinned:
                raise Unavailable(
                    "the repository %s, which has been there, is not: its keeper may look after it now, and it is tried again; if it is lost, "
                    "remove %s and make another one" % (self.restic.url, known.path_of(self.job, self.copy))
                ) from error
            raise NoRepository("%s: make one, this once, with `stillpoint copy %s --copy %s --init`" % (error, self.job, self.copy)) from error
        if pinned and found != pinned:
            raise OtherRepository(
                "another repository is at %s (%s) than the one that copies went to (%s): find out why; if that is right, remove %s"
                % (self.restic.url, found[:10], pinned[:10], known.path_of(self.job, self.copy))
            )
        return found

    def init(self) -> None:
        """Make the repository.

        :raises UsageError: copies went to one before, or there is one
        """
        if self.known.repository:
            raise UsageError(
                "copies went to a repository at %s before, and a new one must not hide what became of it: if it is lost, remove %s, then do this again"
                % (self.restic.url, known.path_of(self.job, self.copy))
            )
        try:
            self.restic.repository_id()
        except NoRepository:
            self.restic.run("init")
            return
        raise UsageError("there is a repository at %s: leave --init out" % self.restic.url)

    def look(self) -> Known:
        """Return what is there now, and keep that on this host.

        :raises StillpointError: it can't be opened, or is another one
        """
        before = self.known
        seen = Known(self.check(), now(), tuple(each for each in self.list() if each.id not in before.broken), before.broken, before.pruning)
        self.keep(seen)
        return seen

    def list(self) -> List[CopiedGeneration]:
        """Return the generations that are there, newest first; one that was sent twice counts as it was sent last."""
        found: Dict[str, CopiedGeneration] = {}
        for snapshot in self.restic.json("snapshots", "--host", self.host, "--tag", "%s,job=%s" % (TAG, self.job)) or ():
            copied = _copied(snapshot)
            if copied is not None:
                found[copied.name] = copied
        return sorted(found.values(), key=lambda each: (each.time, each.name), reverse=True)

    def keep(self, value: Known) -> None:
        """Keep what is known of the copy on this host."""
        known.keep(self.job, self.copy, value)

    def sent(self, copied: CopiedGeneration) -> None:
        """Keep that a generation is there."""
        before = self.known
        generations = sorted((copied, *(each for each in before.generations if each.name != copied.name)), key=lambda each: each.time, reverse=True)
        self.keep(replace(before, generations=tuple(generations)))

    def mark_broken(self, snapshot: str) -> None:
        """Keep that a snapshot is not whole, whatever its tags say."""
        self.keep(replace(self.known, broken=(*self.known.broken, snapshot)))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only one on this host that sends to the copy.

        :raises BusyError: another process does
        """
        directory = os.path.join(known.STATE, self.job, self.copy + ".lock")
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with durable.lock(directory) as held:
            if held is None:
                raise BusyError("another process is sending copies of %s to %s: wait until it has ended" % (self.job, self.copy))
            yield


def tags(generation: Generation, job: str, manifest: str) -> List[str]:
    """Return the tags that say of a snapshot which generation it is."""
    facts = {
        "job": job,
        "generation": generation.name,
        "state": generation.state,
        "bytes": generation.size_bytes,
        "files": generation.files,
        "manifest": manifest,
    }
    return [TAG, *("%s=%s" % pair for pair in facts.items())]


def _copied(snapshot: Mapping[str, Any]) -> Optional[CopiedGeneration]:
    """Return which generation a snapshot of restic is; None where it does not say so as we do. Whoever can write there may have written it."""
    said = dict(tag.split("=", 1) for tag in snapshot.get("tags") or () if "=" in tag)
    try:
        if not (_NAME.fullmatch(said["generation"]) and _ID.fullmatch(said["manifest"]) and said["state"] in ("good", "unproven")):
            return None
        time = re.sub(r"\.\d+", "", str(snapshot["time"])).replace("+00:00", "Z")
        moment(time)
        return CopiedGeneration(str(snapshot["id"]), said["generation"], time, said["state"], int(said["bytes"]), int(said["files"]), said["manifest"])
    except (KeyError, ValueError):
        return None


def summary_line(line: str) -> Dict[str, Any]:
    """Return what a line of restic's JSON says; {} where it is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
