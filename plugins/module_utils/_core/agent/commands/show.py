# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `show`."""

from __future__ import annotations

import argparse
from typing import Optional

from ...job import file as jobs
from ...job.names import host_name
from ...job.options import Job
from .. import show
from ..arguments import one_generation
from ..output import job_directory, now, print_json, print_lines
from .list import at_copies, late

# pylint: disable=import-outside-toplevel

TEXT = "show a generation: what was locked and for how long, coordinates, proof, what was copied"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    one_generation(parser, "the newest that is good")
    parser.add_argument("--timeline", action="store_true", help="instead: to which moments the job can be recovered")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    if arguments.timeline:
        return _show_timeline(arguments, job)
    directory = job_directory(job, arguments.host)
    found = directory.find(arguments.generation)
    there = at_copies(job, [found.name], arguments.host).get(found.name, {})
    facts = {**show.known(job.name, found), "own_bytes": _own_bytes(found.path), **there}
    overdue = late(job, directory.generations(), arguments.host)
    if arguments.json:
        print_json({**facts, "overdue": overdue[0] if overdue else None})
    else:
        print_lines(["%s: %s" % (job.name, each) for each in overdue] + show.generation(facts, now()))
    return 0


def _own_bytes(path: str) -> Optional[int]:
    """Return what the removal of a generation would free; None where not all of it can be read."""
    from ...repository import blocks

    try:
        return blocks.own_bytes(path)
    except OSError:
        return None


def _show_timeline(arguments: argparse.Namespace, job: Job) -> int:
    from ...archive import timeline
    from ...archive.archive import Archive

    directory = job_directory(job, arguments.host)
    found = timeline.read(Archive(directory.path), directory.generations())
    if arguments.json:
        print_json({"job": job.name, "host": arguments.host or host_name(), **found.as_dict(now())})
    else:
        print_lines(found.lines(now()))
    return 0
