# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `list`."""

from __future__ import annotations

import argparse
from typing import Any, Dict, List, Optional, Sequence

from ...host.errors import StillpointError
from ...job import file as jobs
from ...job.file import Job
from .. import show
from ..arguments import any_host
from ..output import PROGRAM, complain, job_directory, now, print_json, print_lines

# pylint: disable=import-outside-toplevel

TEXT = "list the generations of a job, or of all jobs, newest first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", nargs="?")
    any_host(parser)


def run(arguments: argparse.Namespace) -> int:
    troubles: List[str] = []
    if arguments.job:
        asked = [arguments.job]
        found = _listed(jobs.load(arguments.job), arguments.host)
    else:
        asked = jobs.names()
        found = []
        for name in asked:
            try:
                found += _listed(jobs.load(name), arguments.host)
            except StillpointError as error:
                troubles.append(str(error))
        found.sort(key=lambda each: str(each["time"]), reverse=True)
    if arguments.json:
        print_json(found)
    elif found:
        print_lines([show.generations(found, now())])
    elif not asked:
        print_lines(["there are no jobs in %s" % jobs.jobs_directory()])
    elif not troubles:
        print_lines(["there is no backup yet of %s" % ", ".join(asked)])
    if not arguments.json:
        _print_archives(asked, arguments.host)
    for trouble in troubles:
        complain("%s: %s" % (PROGRAM, trouble))
    return StillpointError.exit_code if troubles else 0


def _print_archives(names: Sequence[str], host: Optional[str]) -> None:
    """Say how the archives of binary logs are."""
    from ...archive import timeline
    from ...archive.archive import Archive

    for name in names:
        try:
            job = jobs.load(name)
            if job.binlog is not None:
                directory = job_directory(job, host)
                print_lines(["%s: %s" % (job.name, line) for line in timeline.brief(Archive(directory.path), directory.generations(), now())])
        except StillpointError as error:
            complain("%s: %s" % (PROGRAM, error))


def _listed(job: Job, host: Optional[str]) -> List[Dict[str, Any]]:
    """Return what `list` says of a job's generations, newest first.

    :raises UsageError: the repository is not there
    """
    return [show.listed(job.name, host or jobs.host_name(), each, now()) for each in job_directory(job, host).generations()]
