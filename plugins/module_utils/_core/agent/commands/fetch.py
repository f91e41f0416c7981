# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `fetch`."""

from __future__ import annotations

import argparse
import os
from contextlib import closing
from typing import Tuple

from ...copies import secrets
from ...copies.destination import Destination, find
from ...copies.fetch import Fetched, choose, fetch
from ...copies.known import CopiedGeneration
from ...copies.restic import CACHE, Restic
from ...host.errors import UsageError
from ...host.text import count, duration, size
from ...job import file as jobs
from ...job.names import host_name
from ...job.options import Job
from ...job.reader import parse
from ..arguments import one_generation
from ..output import PROGRAM, job_directory, print_json, print_lines, reporter_for

TEXT = "bring a generation back from a copy, compare it with its manifest, and have it as every other one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    one_generation(parser, "the newest that is good")
    parser.add_argument("--copy", metavar="NAME", help="from this copy of the job")
    parser.add_argument("--from", dest="address", metavar="ADDRESS", help="without a job file: where the copy is, as `to` of a job's copy has it")
    parser.add_argument("--secrets", metavar="FILE", help="with --from: the file with what opens it")
    parser.add_argument("--into", metavar="DIR", help="with --from: the repository on this host to put it into")


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.copy) == bool(arguments.address):
        raise UsageError("say where the copy is: --copy NAME of a job, or --from ADDRESS --secrets FILE --into DIR without a job file")
    if arguments.address:
        job, name = _without_job_file(arguments), "copy"
    else:
        job, name = jobs.load(arguments.job), arguments.copy
    done = bring(arguments, job, name)
    if arguments.json:
        print_json(done.as_dict())
        return 0
    facts = (done.generation.name, count(done.copied.files), size(done.copied.bytes), duration(done.duration_s), done.generation.path)
    print_lines(["%s is here and is what its manifest says: %s files, %s in %s; it lies in %s" % facts])
    if arguments.address:
        print_lines(["with a job file %s whose repository is %s, `%s restore %s` puts it back" % (job.name, job.repository, PROGRAM, job.name)])
    return 0


def _without_job_file(arguments: argparse.Namespace) -> Job:
    """Return a job that has a copy and nothing besides, for a host where there is nothing yet."""
    for option, value in (("--secrets", arguments.secrets), ("--into", arguments.into)):
        if not value:
            raise UsageError("--from needs %s" % option)
    os.makedirs(arguments.into, mode=0o700, exist_ok=True)
    copy = {"name": "copy", "to": arguments.address, "secrets": os.path.abspath(arguments.secrets)}
    facts = {"name": arguments.job, "repository": os.path.abspath(arguments.into), "files": ["/nonexistent"], "copies": [copy]}
    return parse(facts, "the command line")


def bring(arguments: argparse.Namespace, job: Job, name: str) -> Fetched:
    """Fetch the generation that is asked for from a copy of a job."""
    host = arguments.host or host_name()
    copied, destination = chosen(arguments, job, name, host)
    with closing(reporter_for(arguments, job)) as reporter:
        return fetch(destination, copied, job_directory(job, host), reporter)


def chosen(arguments: argparse.Namespace, job: Job, name: str, host: str) -> Tuple[CopiedGeneration, Destination]:
    """Return the generation that is asked for, as it is at a copy of a job, and that copy."""
    copy = find(job, name)
    if arguments.host or getattr(arguments, "address", None):  # what this host knows of the copy is of its own backups
        restic = Restic(copy.to, secrets.read(copy.secrets), cache=CACHE)
        restic.version()
        destination = Destination(restic, host, job.name, name)
        return choose(destination.list(), arguments.generation, copy.to), destination
    destination = Destination.of(job, copy, host)
    return choose(list(destination.look().generations), arguments.generation, copy.to), destination
