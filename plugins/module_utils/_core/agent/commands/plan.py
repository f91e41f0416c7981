# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `plan`."""

from __future__ import annotations

import argparse

from ...backup import plan
from ...job import file as jobs
from ...job.paths import check_paths
from ..output import print_json, print_lines

TEXT = "show what a run would do, and every reason why it would not succeed; change nothing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    check_paths(job)
    made = plan.make(job)
    if arguments.json:
        print_json(made.as_dict())
    else:
        print_lines(made.lines())
    return 0
