# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `undo`."""

from __future__ import annotations

import argparse
from contextlib import closing

from ...job import file as jobs
from ...restore import undo
from ..output import confirm, only_shown, print_json, print_lines, reporter_for

TEXT = "undo a restore that was interrupted: put back what it was to replace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done; change nothing")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    plan = undo.plan(job.name)
    if only_shown(arguments, plan.as_dict(), plan.lines()):
        return 0
    confirm(arguments, "undo the restore of %s of %s" % (plan.generation, job.name))
    with closing(reporter_for(arguments, job)) as reporter:
        done = plan.execute(reporter)
    if arguments.json:
        print_json(done.as_dict())
    else:
        print_lines(["what was there before %s of %s is %s" % (done.generation, job.name, "gone" if done.old_is_gone else "back")])
        print_lines(["  what had come about meanwhile is in %s" % path for path in done.later])
    return 0
