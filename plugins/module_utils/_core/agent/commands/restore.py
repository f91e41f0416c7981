# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `restore`."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import TYPE_CHECKING

from ...host.errors import UsageError
from ...host.text import count, duration, size
from ...job import file as jobs
from ...job.options import Job
from .. import show
from ..arguments import one_generation
from ..output import PROGRAM, confirm, only_shown, print_json, print_lines, reporter_for

if TYPE_CHECKING:
    from ...restore.result import RestoreResult

# pylint: disable=import-outside-toplevel

TEXT = "put a generation back: in place, with what it replaces kept beside it, or into a directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    one_generation(parser, "the newest that is good")
    parser.add_argument("--copy", metavar="NAME", help="fetch it from this copy of the job first, unless it is here; it stays in the repository")
    parser.add_argument("--to", metavar="DIR", help="put it there and leave the live data alone")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--only", choices=("database", "files"), help="leave the other half alone")
    part.add_argument("--path", metavar="PATH", help="this directory or file of the live files alone")
    part.add_argument("--database", metavar="NAME", help="of a dump: this database alone")
    part.add_argument("--table", metavar="DATABASE.TABLE", help="this table or view alone, into a running server")
    parser.add_argument("--as", dest="into", metavar="DATABASE.TABLE", help="with --table, not of a dump: under this name, beside the live one")
    parser.add_argument("--server-socket", metavar="PATH", help="of a dump, or a table: into the server at this socket, as root (default: the job's)")
    parser.add_argument("--server-config", metavar="FILE", help="of a dump, or a table: an option file that logs in to the server it is loaded into")
    moment = parser.add_mutually_exclusive_group()
    moment.add_argument("--until", metavar="TIME", help="then replay archived binary logs: everything committed before that second, as in 2026-11-22 14:03:07Z")
    moment.add_argument("--until-gtid", metavar="GTID", help="the same, up to and with this transaction")
    moment.add_argument("--before-gtid", metavar="GTID", help="the same, up to and without this transaction")
    moment.add_argument("--until-position", metavar="FILE:POS", help="the same, up to this place in the server's binary logs")
    parser.add_argument(
        "--resume-replication-and-events", dest="resume", action="store_true", help="another host's server replicates and runs events here as it did there"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done; change nothing")


def run(arguments: argparse.Namespace) -> int:
    """Put a generation back, or one path or one table of it."""
    from ...restore import request
    from ...restore.replay import moment

    job = jobs.load(arguments.job)
    if arguments.copy:
        arguments.generation = _fetched(arguments, job)
    names = ("generation", "host", "to", "only", "path", "database", "table", "into", "server_socket", "server_config", "resume")
    wanted = moment.asked(arguments.until, arguments.until_gtid, arguments.before_gtid, arguments.until_position)
    plan = request.plan(request.Request(job, moment=wanted, **{name: getattr(arguments, name) for name in names}))
    if only_shown(arguments, plan.as_dict(), plan.lines()):
        return 0
    if plan.question:
        confirm(arguments, "%s of %s" % (plan.question, job.name))
    with closing(reporter_for(arguments, job)) as reporter:
        done = plan.execute(reporter)
    if arguments.json:
        print_json(done.as_dict())
    else:
        _print(done, job, arguments.job)
    return 0


def _fetched(arguments: argparse.Namespace, job: Job) -> str:
    """Return the name of the generation that is asked for, which lies in the repository now."""
    from .fetch import bring

    if arguments.dry_run:
        wanted = (PROGRAM, job.name, arguments.copy)
        raise UsageError("--dry-run shows what is done with a generation that is here: get it first, with `%s fetch %s --copy %s`" % wanted)
    return bring(arguments, job, arguments.copy).generation.name


def _print(done: "RestoreResult", job: Job, asked: str) -> None:
    """Say what came of it, and what is to be done next.

    :param asked: the job as it was asked for, by its name or its file
    """
    from ...restore.in_place.plan import BACK_UP

    what = "%s of %s" % (done.part, done.generation) if done.part else done.generation
    print_lines(["%s of %s is back: %s files, %s in %s" % (what, job.name, count(done.files), size(done.bytes), duration(done.duration_s))])
    if done.recovery:
        print_lines(show.recovery(done.recovery))
    print_lines(done.disabled)
    if done.replaced:
        print_lines(["what it replaced is kept until `%s discard %s`:" % (PROGRAM, asked)])
        print_lines(["  %s" % kept for kept in done.replaced])
    if BACK_UP in done.warnings:
        print_lines(["take a backup now, with `%s run %s`: no moment from now on can be recovered before there is one" % (PROGRAM, job.name)])
