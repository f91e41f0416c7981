# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `discard`."""

from __future__ import annotations

import argparse
from contextlib import closing

from ...job import file as jobs
from ...restore.in_place import replaced
from ..output import confirm, print_json, print_lines, reporter_for

TEXT = "delete what earlier restores of a job replaced and kept"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be deleted; change nothing")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    kept = replaced.replaced(job.name)
    if not arguments.json:
        print_lines(
            ["%s: what was %s until %s" % (each.path, each.target, each.time) for each in kept]
            or ["no restore of %s has left anything to discard" % job.name]
        )
    if not kept or arguments.dry_run:
        if arguments.json:
            print_json({"discarded": [], "kept": [each.path for each in kept]})
        return 0
    confirm(arguments, "delete that for good")
    with closing(reporter_for(arguments, job)) as reporter:
        gone = replaced.discard(kept, reporter)
    if arguments.json:
        print_json({"discarded": gone, "kept": []})
    else:
        print_lines(["deleted %s" % path for path in gone])
    return 0
