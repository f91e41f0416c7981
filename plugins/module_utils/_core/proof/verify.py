# SPDX-License-Identifier: GPL-3.0-or-later
"""A verification as it is asked for: which generations, how much of them, and what came of it in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Sequence

from ..host.errors import StillpointError, UsageError, fail
from ..host.reporter import Reporter
from ..job.options import Job
from ..repository.generation import BAD, GOOD, UNPROVEN, Generation, Gone
from ..repository.job_directory import JobDirectory
from .checksums import Verdict, verify


@dataclass(frozen=True)
class Asked:
    """What is to be verified.

    :ivar generation: by its name; None: the newest that is not bad
    :ivar percent: of the files whose contents are read; None: all
    :ivar server: start a server on a copy besides
    """

    generation: Optional[str] = None
    all: bool = False
    percent: Optional[float] = None
    server: bool = False


@dataclass(frozen=True)
class Verified:
    """What came of one generation.

    :ivar proof: of a server on a copy; None where none was asked for, or where the checksums say enough
    :ivar trouble: why no server could be tried; "" where one was, or none was asked for
    """

    generation: Generation
    verdict: Verdict
    proof: Optional[Dict[str, Any]] = None
    trouble: str = ""

    @property
    def bad(self) -> bool:
        return not self.verdict.ok or bool(self.proof and self.proof["ok"] is False)

    @property
    def unproven(self) -> str:
        """Why the proof that was asked for could not be done; "" where it was."""
        return self.trouble or (str(self.proof["reason"]) if self.proof and self.proof["ok"] is None else "")

    def as_dict(self) -> Dict[str, Any]:
        return {**self.verdict.as_dict(), "path": self.generation.path, "proof": self.proof, "proof_error": self.unproven}


def percent(text: str) -> Optional[float]:
    """Return the number in ``5%`` or ``5``; None for all.

    :raises UsageError: it is no share
    """
    try:
        number = float(text.rstrip("%"))
    except ValueError:
        number = 0.0
    if not 0 < number <= 100:
        raise UsageError("--sample %s is no share of the files: say 5%% for one in twenty" % text)
    return None if number == 100 else number


def choose(directory: JobDirectory, asked: Asked) -> List[Generation]:
    """Return the generations that are meant.

    :raises UsageError: there is none
    :raises StillpointError: a server can't be started on the only one that is meant
    """
    if asked.all and asked.generation:
        raise UsageError("name a generation or say --all, not both")
    # the one that is wanted next: a newer one that nobody has proven yet before a good one of last year
    generation = directory.find(asked.generation, ((GOOD, UNPROVEN), (BAD,)) if asked.all else ((GOOD, UNPROVEN),))
    if asked.all:
        return directory.generations()
    if asked.server:
        from . import on_a_copy  # pylint: disable=import-outside-toplevel  # most verifications start no server

        on_a_copy.settings_of(generation)
    return [generation]


def perform(
    generations: Sequence[Generation],
    asked: Asked,
    reporter: Reporter,
    on_trouble: Callable[[StillpointError], None] = fail,
    job: Optional[Job] = None,
) -> List[Verified]:
    """Verify generations, one after the other. Of all, one that a run has removed by then is left out.

    :param on_trouble: told why one could not be read
    :param job: theirs, which says what it accepts, and how its server is asked
    """
    found = []
    for generation in generations:
        try:
            found.append(_one(generation, asked, reporter, job))
        except Gone as error:
            if not asked.all:
                raise
            reporter.note("left out: %s" % error)
        except StillpointError as error:
            on_trouble(error)
    return found


def _one(generation: Generation, asked: Asked, reporter: Reporter, job: Optional[Job]) -> Verified:
    verdict = verify(generation, reporter, asked.percent)
    if not asked.server or not verdict.ok:
        return Verified(generation, verdict)
    from . import on_a_copy  # pylint: disable=import-outside-toplevel

    try:
        return Verified(generation, verdict, on_a_copy.try_copy(generation, reporter, job))
    except UsageError as error:  # of all, one that has no server's files
        reporter.note(str(error))
        return Verified(generation, verdict)
    except StillpointError as error:
        return Verified(generation, verdict, trouble=str(error))


def complaint(job: Job, found: Sequence[Verified], troubles: Sequence[StillpointError] = ()) -> str:
    """Return the sentence that ends a verification that did not go well; "" after one that did.

    :param troubles: why generations could not be read
    """
    if not found and not troubles:
        return "no generation of %s was read, as all that there were have been removed since: verify again" % job.name
    said = _found(job, found)
    return "; ".join([*([said] if said else []), *map(str, troubles)])


def _found(job: Job, found: Sequence[Verified]) -> str:
    bad = [each.verdict.generation for each in found if each.bad]
    unrecorded = [each.verdict.generation for each in found if each.bad and each.generation.state != BAD]
    if unrecorded:
        return (
            "%s of %s is damaged, which could not be recorded beside it, so that it still counts as a backup: let the repository be written, and "
            "verify again" % (", ".join(unrecorded), job.name)
        )
    if bad:
        return "%s of %s is damaged and will not be restored or counted as a backup: restore another one, and take a new backup" % (
            ", ".join(bad),
            job.name,
        )
    unproven = [each for each in found if each.unproven]
    if unproven:
        return "no server could be tried on %s of %s: %s" % (unproven[0].verdict.generation, job.name, unproven[0].unproven)
    return ""
