# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `run`."""

from __future__ import annotations

import argparse

from ...backup import run as backup
from ...host.errors import CommandError
from ...host.process import run as run_program
from ...job import file as jobs
from ...job.paths import check_paths
from ...observe import notify
from .. import show
from ..outcome import told
from ..output import now, print_json, print_lines, reporter_for, warn

TEXT = "take a backup now"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    reporter = reporter_for(arguments, job)
    with told(job, notify.RUN) as outcome:
        try:
            check_paths(job)
            summary = backup.run(job, reporter)
        finally:
            reporter.close()
        outcome("", summary)
    if job.copies:
        _start_copying(job.name)
    if arguments.json:
        print_json(summary)
    else:
        print_lines(show.generation(summary, now()))
    return 0


def _start_copying(job: str) -> None:
    """Have systemd start what sends the backup to the job's copies; the run does not wait for that."""
    try:
        run_program(["systemctl", "start", "--no-block", "stillpoint-copy@%s.service" % job])
    except CommandError as error:
        warn("the copies of %s are not sent by themselves (%s): `stillpoint copy %s` does it" % (job, error, job))
