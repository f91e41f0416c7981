# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `undo`."""

from __future__ import annotations

import argparse

from ...host.errors import UsageError
from ...job import file as jobs
from ...job.options import Job
from ...restore import journal as journals
from ...restore.dump import beside, swap
from ...restore.in_place import undo
from ..output import PROGRAM, confirm, only_shown, print_json, print_lines, reporter_for

TEXT = "undo a restore that was interrupted: put back what it was to replace"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done; change nothing")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    load = beside.pending()
    if load:
        return _undo_load(arguments, job, load)
    journal = undo.find()
    if journal.job != job.name:
        raise UsageError("the restore that was interrupted is one of %s: `%s undo %s` undoes it" % (journal.job, PROGRAM, journal.job))
    if only_shown(arguments, {key: getattr(journal, key) for key in ("job", "generation", "time", "parts", "part", "moment")}, undo.lines(journal)):
        return 0
    confirm(arguments, "undo the restore of %s of %s" % (journal.generation, job.name))
    reporter = reporter_for(arguments, job)
    try:
        done = undo.undo(reporter)
    finally:
        reporter.close()
    if arguments.json:
        print_json(done.as_dict())
    else:
        print_lines(["what was there before %s of %s is back" % (done.generation, job.name)])
        print_lines(["  what had come about meanwhile is in %s" % path for path in done.later])
    return 0


def _undo_load(arguments: argparse.Namespace, job: Job, load: beside.Load) -> int:
    """Undo the load of a dump."""
    if load.job != job.name:
        raise UsageError("the restore that was interrupted is one of %s: %s undoes it" % (load.job, load.undo))
    if only_shown(arguments, {"job": load.job, "generation": load.generation, "phase": load.phase}, beside.lines(load)):
        return 0
    confirm(arguments, "undo the restore of %s of %s" % (load.generation, job.name))
    reporter = reporter_for(arguments, job)
    try:
        with journals.alone():
            reporter.stage("undo")
            troubles = swap.put_back(load, journals.STATE)
            for trouble in troubles:
                reporter.warn(trouble)
    finally:
        reporter.close()
    if arguments.json:
        print_json({"generation": load.generation, "job": load.job, "undone": [part.name for part in load.parts], "later": [], "service": None})
    else:
        print_lines(["what was there before %s of %s is %s" % (load.generation, job.name, "gone" if load.phase == beside.LOADED else "back")])
    return 0
