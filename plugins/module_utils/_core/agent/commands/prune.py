# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `prune`."""

from __future__ import annotations

import argparse

from ...host.errors import UsageError
from ...job import file as jobs
from ...repository import identity
from ..outcome import count_backups
from ..output import job_directory, print_json, print_lines

TEXT = "remove the generations that the job's keep no longer asks for"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--dry-run", action="store_true", help="show what would be removed; change nothing")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    if job.keep is None:
        raise UsageError("%s: the job has no keep, so every generation is kept: say how many it shall keep" % job.where)
    directory = job_directory(job, None)
    if arguments.dry_run:
        decisions = directory.prune(job.keep, dry_run=True)
    else:
        identity.check(directory, identity.here())
        with directory.lock():
            decisions = directory.prune(job.keep)
        count_backups(job)
    if arguments.json:
        print_json([{"generation": each.name, "keep": each.keep, "reasons": list(each.reasons)} for each in decisions])
        return 0
    gone = "would be removed" if arguments.dry_run else "removed"
    print_lines(
        ["%s  %s" % (each.name, "kept: " + ", ".join(each.reasons) if each.keep else gone) for each in decisions]
        or ["there is no backup yet of %s" % job.name]
    )
    return 0
