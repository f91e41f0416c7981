# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `plan`."""

from __future__ import annotations

import argparse
from typing import Any, Dict, Sequence

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
    if not job.copies:
        _say(arguments, made.as_dict(), made.lines())
        return 0
    from .. import copies  # pylint: disable=import-outside-toplevel  # only where a job has some

    dialled = copies.dial(job)
    _say(arguments, {**made.as_dict(), "copies": [each.as_dict() for each in dialled]}, [*made.lines(), *(each.line() for each in dialled if not each.error)])
    copies.refuse_unusable(dialled)
    return 0


def _say(arguments: argparse.Namespace, facts: Dict[str, Any], lines: Sequence[str]) -> None:
    if arguments.json:
        print_json(facts)
    else:
        print_lines(lines)
