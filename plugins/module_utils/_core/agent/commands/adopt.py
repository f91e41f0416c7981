# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `adopt`."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterator, Optional

from ...archive.archive import Archive
from ...backup.checks import refuse_half_done
from ...host import service
from ...job import file as jobs
from ...job import options
from ...mysql import server as servers
from ...mysql.connection import Login, Session
from ...repository import adoption, identity
from ..output import confirm, job_directory, only_shown, print_json, print_lines

TEXT = "go on with backups that were made under a former name of this host, or on another machine of its name"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--from-host", dest="source", metavar="NAME", help="the name under which they lie in the repository (default: found by the machine)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done; change nothing")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    refuse_half_done()  # it knows its backup by its path
    made = adoption.plan(job_directory(job, None), identity.here(_server(job)), arguments.source)
    if only_shown(arguments, made.as_dict(), made.lines()):
        return 0
    confirm(arguments, "go on with them, as those of this host")
    with ExitStack() as stack:
        stack.enter_context(_archive_stopped(job.name))
        archive = Archive(made.source.path)
        if archive.exists:
            stack.enter_context(archive.lock())
        adoption.execute(made)
    if arguments.json:
        print_json(made.as_dict())
    else:
        print_lines(["%s goes on with the backups in %s" % (job.name, made.directory.path)])
    return 0


def _server(job: options.Job) -> Optional[Dict[str, Any]]:
    """Return what tells the job's server from others; None where it has none."""
    if job.mysql is None:
        return None
    with Session(Login.of(job.mysql)) as session:
        return servers.read(session).summary()


@contextmanager
def _archive_stopped(job: str) -> Iterator[None]:
    """Have the service that archives binary logs, which knows the directory by its old name, begin anew with the new one."""
    unit = "stillpoint-archive@%s.service" % job
    if not service.is_active(unit):
        yield
        return
    service.stop(unit)
    try:
        yield
    finally:
        service.start_again(unit)
