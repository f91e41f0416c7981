# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `restore`."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING, List, Optional, Union

from ...host.errors import StillpointError, UsageError
from ...host.text import count, duration, size
from ...job import file as jobs
from ...job.names import host_name, job_names
from ...job.options import Job
from .. import show
from ..arguments import one_generation
from ..output import PROGRAM, confirm, job_directory, only_shown, print_json, print_lines, reporter_for

if TYPE_CHECKING:
    from ...archive.archive import Archive
    from ...repository.generation import Generation
    from ...restore.replay.execute import Replay
    from ...restore.replay.moment import Moment

# pylint: disable=import-outside-toplevel

TEXT = "put a generation back: in place, with what it replaces kept beside it, or into a directory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    one_generation(parser, "the newest that is good")
    parser.add_argument("--to", metavar="DIR", help="put it there and leave the live data alone")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--only", dest="parts", choices=("database", "files"), help="leave the other half alone")
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
    from ...restore import journal as journals
    from ...restore.dump import execute
    from ...restore.dump import plan as load
    from ...restore.in_place import plan
    from ...restore.in_place.execute import execute as put_back
    from ...restore.table import execute as table
    from ...restore.table import plan as table_plan

    job = jobs.load(arguments.job)
    if arguments.to == "":
        raise UsageError("--to names no directory")
    interrupted = journals.pending() if arguments.to is None else None
    moment = _moment(arguments)
    replay = _replay(arguments, job, moment) if moment and not interrupted else None
    name = arguments.generation or (interrupted["generation"] if interrupted and interrupted["job"] == job.name else None)
    generation = replay.recovery.generation if replay else job_directory(job, arguments.host).find(name)
    parts = plan.FILES if arguments.path is not None else arguments.parts
    made: Union[plan.RestorePlan, load.LoadPlan, table_plan.TablePlan]
    if _is_table(arguments, generation):
        login = load.login(job, arguments.server_socket, arguments.server_config)
        made = table_plan.make(generation, login, arguments.table, arguments.into)
    elif load.applies(generation, to=arguments.to, parts=parts, asked=_of_a_dump(arguments)):
        login = load.login(job, arguments.server_socket, arguments.server_config)
        made = load.make(generation, login, database=arguments.database, table=arguments.table, parts=parts or plan.ALL, resume=arguments.resume)
    else:
        wanted = moment.option if moment else None
        given = {"path": arguments.path, "replay": replay, "archives": _archives(job), "moment": wanted, "resume": arguments.resume}
        made = plan.make(generation, arguments.to, parts or plan.ALL, **given)
    if name is None and replay is None:
        concerned = plan.DATABASE if arguments.table or arguments.database else parts or plan.ALL
        made = replace(made, warnings=(*made.warnings, *plan.passed_over(generation, concerned, arguments.path)))
    if only_shown(arguments, made.as_dict(), made.lines()):
        return 0
    if arguments.to is None:  # elsewhere, nothing is replaced
        beside = isinstance(made, table_plan.TablePlan) and made.beside
        what = "put a table beside those that are there, from" if beside else "replace what is there now with"
        confirm(arguments, "%s %s%s of %s" % (what, "%s of " % arguments.path if arguments.path else "", generation.name, job.name))
    reporter = reporter_for(arguments, job)
    try:
        if isinstance(made, table_plan.TablePlan):
            done = table.execute(made, reporter)
        else:
            done = execute.execute(made, reporter) if isinstance(made, load.LoadPlan) else put_back(made, reporter)
    finally:
        reporter.close()
    if arguments.json:
        print_json(done)
        return 0
    print_lines(
        [
            "%s%s of %s is back: %s files, %s in %s"
            % (
                "%s of " % done["part"] if done.get("part") else "",
                done["generation"],
                job.name,
                count(done["files"]),
                size(done["bytes"]),
                duration(done["duration_s"]),
            )
        ]
    )
    if done.get("recovery"):
        print_lines(show.recovery(done["recovery"]))
    print_lines(done.get("disabled", []))
    if done.get("replaced"):
        print_lines(["what it replaced is kept until `%s discard %s`:" % (PROGRAM, arguments.job)])
        print_lines(["  %s" % kept for kept in done["replaced"]])
    if plan.BACK_UP in done.get("warnings", ()):
        print_lines(["take a backup now, with `%s run %s`: no moment from now on can be recovered before there is one" % (PROGRAM, job.name)])
    return 0


def _moment(arguments: argparse.Namespace) -> Optional["Moment"]:
    """Return the moment that is asked for; None where a generation alone is."""
    from ...restore.replay import moment

    wanted = moment.asked(arguments.until, arguments.until_gtid, arguments.before_gtid, arguments.until_position)
    if wanted is not None and (arguments.parts == "files" or arguments.path is not None):
        option = "--path" if arguments.path is not None else "--only files"
        raise UsageError("files can only be had as they were when a backup was taken: leave out %s, or the moment" % option)
    return wanted


def _replay(arguments: argparse.Namespace, job: Job, moment: "Moment") -> "Replay":
    """Return what has to be replayed onto which generation."""
    from ...archive.archive import Archive
    from ...restore.replay import execute as replay

    directory = job_directory(job, arguments.host)
    return replay.plan(Archive(directory.path), directory, moment, arguments.generation)


def _archives(job: Job) -> List["Archive"]:
    """Return the archives of this host's server, of whatever job, this one's first."""
    from ...archive.archive import Archive

    known = [job] if job.mysql else []
    for name in job_names() if job.mysql else []:
        try:
            other = jobs.load(name)
        except StillpointError:
            continue  # it archives nothing as long as it can't be read
        if other.name != job.name and other.mysql and other.binlog:
            known.append(other)
    found = [Archive(os.path.join(each.repository, host_name(), each.name)) for each in known]
    return [archive for archive in found if archive.exists]


def _is_table(arguments: argparse.Namespace, generation: "Generation") -> bool:
    """Tell whether one table of a copy of the server's files is asked for.

    :raises UsageError: it is asked for together with something that it can't have
    """
    dump = isinstance(generation.summary.get("dump"), dict)
    if arguments.into is not None and (dump or not arguments.table):
        raise UsageError(
            "--as is for --table of a backup of the server's files: %s"
            % ("%s is a dump, whose tables keep their names; load it into another server (--server-socket)" % generation.name if dump else "name the table too")
        )
    if dump or not arguments.table:
        return False
    for option, value in (("--to", arguments.to), ("a moment", arguments.until or arguments.until_gtid or arguments.before_gtid or arguments.until_position)):
        if value:
            raise UsageError(
                "a table can't be had with %s: put all of it into a directory, with --to DIR and the moment, and start a server there" % option
            )
    return True


def _of_a_dump(arguments: argparse.Namespace) -> Optional[str]:
    """Return the first option that was given and that only a dump has."""
    given = {"--" + name.replace("_", "-"): getattr(arguments, name) for name in ("database", "table", "server_socket", "server_config")}
    return next((option for option, value in given.items() if value is not None), None)
