# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `list`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, Optional, Sequence

from ...host.errors import StillpointError
from ...job import file as jobs
from ...job.names import host_name, job_names, jobs_directory
from ...job.options import Job
from .. import show
from ..arguments import any_host
from ..output import PROGRAM, complain, job_directory, now, print_json, print_lines

if TYPE_CHECKING:
    from ...repository.generation import Generation

# pylint: disable=import-outside-toplevel

TEXT = "list the generations of a job, or of all jobs, newest first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", nargs="?")
    any_host(parser)


def run(arguments: argparse.Namespace) -> int:
    troubles: List[str] = []
    asked = [jobs.load(arguments.job)] if arguments.job else list(_readable(troubles))
    found: List[Dict[str, Any]] = []
    overdue: List[str] = []
    for job in asked:
        try:
            generations = job_directory(job, arguments.host).generations()
            said = late(job, generations, arguments.host)
            there = at_copies(job, [each.name for each in generations], arguments.host)
            listed = [{**show.listed(job.name, arguments.host or host_name(), each, now()), **there.get(each.name, {})} for each in generations]
            found += [{**each, "overdue": said[0] if said else None} for each in listed]
            overdue += ["%s: %s" % (job.name, each) for each in said]
        except StillpointError as error:
            if arguments.job:
                raise
            troubles.append(str(error))
    if not arguments.job:  # those of one are in the order in which they were made, also if the clock went back
        found.sort(key=lambda each: str(each["time"]), reverse=True)
    if arguments.json:
        print_json(found)
    else:
        print_lines(overdue)
        print_lines(_table(found) if found or troubles else _nothing(asked))
        print_lines([line for job in asked if job.copies and arguments.host in (None, host_name()) for line in _copies(job)])
        print_lines([line for job in asked if job.binlog is not None for line in _archive(job, arguments.host)])
    for trouble in troubles:
        complain("%s: %s" % (PROGRAM, trouble))
    return StillpointError.exit_code if troubles else 0


def _readable(troubles: List[str]) -> Iterator[Job]:
    """Give the jobs of this host, and add what is wrong with the others to the troubles."""
    for name in job_names():
        try:
            yield jobs.load(name)
        except StillpointError as error:
            troubles.append(str(error))


def _table(found: List[Dict[str, Any]]) -> List[str]:
    return [show.generations(found, now())] if found else []


def _nothing(asked: Sequence[Job]) -> List[str]:
    return ["there is no backup yet of %s" % ", ".join(job.name for job in asked) if asked else "there are no jobs in %s" % jobs_directory()]


def _archive(job: Job, host: Optional[str]) -> List[str]:
    """Return how the archive of a job's binary logs is; nothing where its repository can't be read."""
    from ...archive import timeline
    from ...archive.archive import Archive

    try:
        directory = job_directory(job, host)
        return ["%s: %s" % (job.name, line) for line in timeline.brief(Archive(directory.path), directory.generations(), now())]
    except StillpointError as error:
        complain("%s: %s" % (PROGRAM, error))
        return []


def at_copies(job: Job, names: Sequence[str], host: Optional[str]) -> Dict[str, Dict[str, Any]]:
    """Return by the name of each generation at which ``copies`` it is, by what was seen there last; {} where a job has no copies."""
    if not job.copies or host not in (None, host_name()):
        return {}
    from ...copies.known import known

    seen = {copy.name: {each.name for each in known(job.name, copy.name).generations} for copy in job.copies}
    return {name: {"copies": [copy for copy, generations in seen.items() if name in generations]} for name in names}


def _copies(job: Job) -> List[str]:
    """Return how the copies of a job stand; nothing where its repository can't be read."""
    from .. import copies

    try:
        generations = job_directory(job, None).generations()
    except StillpointError:
        return []  # it was said already
    return ["%s: %s" % (job.name, each.line(now())) for each in copies.of_job(job, generations, now())]


def late(job: Job, generations: Sequence["Generation"], host: Optional[str]) -> List[str]:
    """Return what of a job of this host is overdue by its schedule, as sentences."""
    if host not in (None, host_name()) or not (job.schedule or job.verify.schedule):
        return []
    from .. import status

    return status.late(job, generations)
