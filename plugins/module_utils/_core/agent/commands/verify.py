# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `verify`."""

from __future__ import annotations

import argparse
from contextlib import closing
from typing import List, Optional

from ...host.errors import StillpointError, UsageError, fail
from ...host.text import count, duration, size
from ...job import file as jobs
from ...job import options
from ...job.names import host_name
from ...observe import notify
from ...proof import verify
from .. import show
from ..arguments import one_generation
from ..outcome import told
from ..output import PROGRAM, complain, job_directory, print_json, print_lines, reporter_for

TEXT = "read a generation and compare every file with its checksum"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    one_generation(parser, "the newest that is not bad")
    parser.add_argument("--all", action="store_true", help="every generation of the job")
    parser.add_argument("--sample", metavar="PERCENT", help="read this share of the files alone, drawn at random; compare names, sizes and owners of all")
    parser.add_argument("--copy", metavar="NAME", help="the one at this copy of the job: manifest and listing compared, the repository's data read there")
    parser.add_argument("--server", action="store_true", help="besides, start a server on a copy: it has to recover and to find all its tables well")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    sample = verify.percent(arguments.sample) if arguments.sample else None
    if arguments.copy:
        return _verify_copy(arguments, job, sample)
    asked = verify.Asked(arguments.generation, arguments.all, sample, arguments.server)
    # One that somebody picked by hand is of no concern to who is told of the job.
    concerned = job._replace(notify=options.Notify()) if arguments.generation or arguments.host else job
    reporter = reporter_for(arguments, job)
    try:
        with told(concerned, notify.VERIFY) as outcome:
            troubles: List[StillpointError] = []
            chosen = verify.choose(job_directory(job, arguments.host), asked)
            found = verify.perform(chosen, asked, reporter, troubles.append if asked.all else fail, job)
            reporter.close()
            complaint = verify.complaint(job, found, troubles)
            outcome(complaint, next((each for each in found if each.bad), found[0]).as_dict() if found else {})
    finally:
        reporter.close()
    if arguments.json:
        facts = [each.as_dict() for each in found]
        print_json(facts if arguments.all else facts[0])
    else:
        print_lines([line for each in found for line in lines(job.name, each)])
    if complaint:
        complain("%s: %s" % (PROGRAM, complaint))
    return StillpointError.exit_code if complaint else 0


def _verify_copy(arguments: argparse.Namespace, job: options.Job, sample: Optional[float]) -> int:
    """Verify a generation at a copy."""
    from ...copies import verify as at_copy  # pylint: disable=import-outside-toplevel  # only where that is asked for
    from .fetch import chosen  # pylint: disable=import-outside-toplevel

    for option, given in (("--all", arguments.all), ("--server", arguments.server)):
        if given:
            raise UsageError("%s is for backups that are here: `%s fetch %s --copy %s` brings one" % (option, PROGRAM, job.name, arguments.copy))
    copied, destination = chosen(arguments, job, arguments.copy, arguments.host or host_name())
    with closing(reporter_for(arguments, job)) as reporter:
        found = at_copy.verify(destination, copied, sample, reporter)
    wrong = "%s at %s has %s faults" % (found.generation, found.copy, count(found.faults_total))
    if arguments.json:
        print_json(found.as_dict())
    elif found.ok:
        read = "all of the repository's data" if sample is None else "%g %% of the repository's data" % sample
        facts = (job.name, found.generation, found.copy, count(found.files), size(found.bytes), read, duration(found.duration_s))
        print_lines(["%s %s at %s: %s files, %s are listed as they were; %s was read and is sound, in %s" % facts])
    else:
        print_lines(["%s %s" % (job.name, wrong), *("  %s" % fault for fault in found.faults)])
    if not found.ok:
        complain("%s: %s" % (PROGRAM, wrong))
    return 0 if found.ok else StillpointError.exit_code


def lines(job: str, found: verify.Verified) -> List[str]:
    """Return what came of the verification of one generation, as lines."""
    said = found.verdict
    read = "%s files, %s read in %s" % (count(said.files), size(said.bytes), duration(said.duration_s))
    text = ["%s %s: %s: %s" % (job, said.generation, read, show.verdict(said.as_dict()))]
    text += ["  %s" % fault.text() for fault in said.faults]
    if said.faults_total > len(said.faults):
        text.append("  and %s more" % count(said.faults_total - len(said.faults)))
    if found.proof:
        text += ["  proof %s" % line if not number else "        %s" % line for number, line in enumerate(show.proof(found.proof))]
    return text
