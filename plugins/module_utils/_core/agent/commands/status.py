# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `status`."""

from __future__ import annotations

import argparse
from datetime import datetime
from typing import Sequence

from ...host.errors import StillpointError
from ...host.text import table
from ...job import file as jobs
from ...job.names import job_names, jobs_directory
from .. import show
from ..output import PROGRAM, complain, job_directory, now, print_json, print_lines
from ..status import JobStatus, count, of_job

TEXT = "show how the jobs of this host stand, held against their schedules; fail where something is wrong"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", nargs="?")


def run(arguments: argparse.Namespace) -> int:
    found = [_status(name) for name in ([arguments.job] if arguments.job else job_names())]
    if arguments.json:
        print_json([each.as_dict() for each in found])
    elif found:
        print_lines([_table(found, now())])
        print_lines([line for each in found for line in each.lines()])
    else:
        print_lines(["there are no jobs in %s" % jobs_directory()])
    wrong = ["%s: %s" % (each.job, sentence) for each in found for sentence in each.wrong]
    if wrong and arguments.json:
        complain("%s: %s" % (PROGRAM, "; ".join(wrong)))
    return StillpointError.exit_code if wrong else 0


def _status(name: str) -> JobStatus:
    """Return how a job of this name stands, also one that can't be read."""
    try:
        job = jobs.load(name)
        directory = job_directory(job, None)
        found = of_job(job, directory, directory.generations())
    except StillpointError as error:
        return JobStatus(name, "", (str(error),))
    count(job)
    return found


def _table(found: Sequence[JobStatus], moment: datetime) -> str:
    """Return the jobs as a table."""
    rows = []
    for each in found:
        due = (dict(each.clocks).get("backup") or {}).get("due") or "-"
        row = show.row(each.facts, moment) if each.facts else (each.job, *["-"] * (len(show.HEAD) - 1))
        rows.append(("OVERDUE" if each.overdue else "WRONG" if each.wrong else "ok", *row, due))
    return table(("STATUS", *show.HEAD, "NEXT BY"), rows, right=(3, 4, 6))
