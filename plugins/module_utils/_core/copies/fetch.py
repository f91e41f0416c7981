# SPDX-License-Identifier: GPL-3.0-or-later
"""A generation on its way back from a copy: it is published here, as every other one, once it is what its manifest says.

restic's exit status proves nothing: what was forged in a repository it restores without a word. The manifest has every file's checksum.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

from ..host import durable
from ..host.errors import StillpointError, UsageError
from ..host.process import undisturbed
from ..host.reporter import Reporter
from ..host.steps import reached
from ..host.text import size
from ..proof.checksums import find_faults
from ..repository import manifest
from ..repository.generation import PARTIAL, Generation
from ..repository.job_directory import JobDirectory
from .destination import Destination, summary_line
from .known import CopiedGeneration
from .put_right import put_right
from .restic import Restic
from .send import manifest_sha256

_SPARSE = (0, 15)  # restore --sparse


@dataclass(frozen=True)
class Fetched:
    """A generation that was fetched.

    :ivar generation: as it is here now
    """

    generation: Generation
    copied: CopiedGeneration
    duration_s: float

    def as_dict(self) -> Dict[str, Any]:
        facts = {"generation": self.generation.name, "path": self.generation.path, "state": self.generation.state, "time": self.copied.time}
        return {**facts, "bytes": self.copied.bytes, "files": self.copied.files, "duration_s": self.duration_s}


def choose(known: List[CopiedGeneration], name: Optional[str], where: str) -> CopiedGeneration:
    """Return one of some generations by its name or the beginning of it; without a name the newest good one, else the newest.

    :raises UsageError: there is none
    """
    if name is None:
        for each in [each for each in known if each.state == "good"] + known:
            return each
    matching = [each for each in known if each.name == name] or [each for each in known if name and each.name.startswith(name)]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(each.name for each in known[:20]) or "none"
    raise UsageError("there is %s generation %s at %s: there are %s" % ("more than one" if matching else "no", name or "", where, names))


def fetch(destination: Destination, copied: CopiedGeneration, directory: JobDirectory, reporter: Reporter) -> Fetched:
    """Fetch a generation, publish it in a job's directory and return it. One that is here is returned as it is.

    :raises StillpointError: it can't be fetched, or is not what its manifest says; nothing was published
    """
    started = time.monotonic()
    with directory.lock():
        here = Generation(os.path.join(directory.path, copied.name))
        if os.path.lexists(here.path):
            _refuse_another(here, copied)
            return Fetched(here, copied, 0.0)
        _refuse_without_room(directory, copied)
        partial = os.path.join(directory.path, ".copy-%s%s" % (copied.name, PARTIAL))
        durable.remove_tree(partial)
        try:
            with directory.written():
                os.mkdir(partial, 0o700)
            _restore(destination, copied, partial, reporter)
            _compare(partial, copied, reporter)
            reporter.stage("publish")
            with directory.written():
                durable.sync_file_system(partial)
                durable.rename_to_free_name(partial, here.path)
        finally:
            with undisturbed():
                durable.remove_tree(partial)
        with directory.written():
            directory.refresh_latest()
    return Fetched(here, copied, round(time.monotonic() - started, 1))


def _refuse_another(here: Generation, copied: CopiedGeneration) -> None:
    if not here.summary or manifest_sha256(here.path) != copied.manifest:
        raise UsageError("%s is here and is another one than the copy's: fetch it into another repository" % here.path)


def _refuse_without_room(directory: JobDirectory, copied: CopiedGeneration) -> None:
    with directory.written():
        status = os.statvfs(directory.path)
    free = status.f_bavail * status.f_frsize
    if copied.bytes > free:
        raise StillpointError(
            "the copy of %s has %s and %s has room for %s: free space there, or fetch it elsewhere"
            % (copied.name, size(copied.bytes), directory.path, size(free))
        )


def _restore(destination: Destination, copied: CopiedGeneration, partial: str, reporter: Reporter) -> None:
    """Have restic write a snapshot into a directory, and put right what its version loses."""
    reporter.stage("fetch %s" % copied.name)
    restic = destination.restic
    version = restic.version()
    words = ["restore", copied.id, "--target", partial, "--json"] + (["--sparse"] if version >= _SPARSE else [])
    restic.send(*words, on_line=_progress(reporter, copied), tick=_measured(partial, copied, reporter, restic))
    reached("fetched", copied.name)
    if not os.path.isfile(os.path.join(partial, manifest.NAME)):
        raise StillpointError("the copy of %s at %s has no manifest: it is none of ours" % (copied.name, restic.url))
    if manifest_sha256(partial) != copied.manifest:
        raise StillpointError(
            "the copy of %s at %s has another manifest than its tags say: it was forged or is damaged; fetch an older one" % (copied.name, restic.url)
        )
    manifest.check(partial)
    try:
        put_right(partial, dig=version < _SPARSE)
        os.chmod(partial, 0o700)
    except OSError as error:
        raise StillpointError("the copy of %s can't be put right: %s: %s" % (copied.name, error.filename or partial, error.strerror)) from error


def _progress(reporter: Reporter, copied: CopiedGeneration) -> Callable[[str], None]:
    def take(line: str) -> None:
        said = summary_line(line)
        if said.get("message_type") == "status":
            reporter.progress(int(said.get("bytes_restored", 0)), copied.bytes)

    return take


def _measured(partial: str, copied: CopiedGeneration, reporter: Reporter, restic: Restic) -> Callable[[], None]:
    """Return what tells how far a restore is, of the versions that do not say it themselves (before 0.17): by the room that it has taken."""
    if restic.version() >= (0, 17):
        return lambda: None
    before = os.statvfs(partial)

    def tick() -> None:
        now = os.statvfs(partial)
        reporter.progress(min(max((before.f_bfree - now.f_bfree) * now.f_frsize, 0), copied.bytes), copied.bytes)

    return tick


def _compare(partial: str, copied: CopiedGeneration, reporter: Reporter) -> None:
    """Raise StillpointError unless what was fetched is what its manifest says."""
    reporter.stage("compare")
    generation = Generation(partial)
    if generation.summary.get("generation") != copied.name:
        raise StillpointError("the copy of %s holds the backup %s: it was forged or mixed up" % (copied.name, generation.summary.get("generation")))
    faults = list(find_faults(generation, copied.bytes, reporter))
    if faults:
        more = " and %d more" % (len(faults) - 1) if len(faults) > 1 else ""
        raise StillpointError(
            "the copy of %s is not what its manifest says (%s%s): nothing was put here; fetch an older one" % (copied.name, faults[0].text(), more)
        )
