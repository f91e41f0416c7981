# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `copy`."""

from __future__ import annotations

import argparse
from typing import Any, Dict, List, Sequence

from ...copies.destination import Destination, find
from ...copies.prune import prune
from ...copies.send import Sent, send_missing
from ...host.errors import NotNowError, StillpointError, UsageError
from ...host.reporter import Reporter
from ...host.text import duration, size
from ...job import file as jobs
from ...job.names import host_name
from ...job.options import Copy, Job
from ...observe import notify
from ...repository.generation import Generation
from ..outcome import told
from ..output import job_directory, print_json, print_lines, reporter_for

TEXT = "send the generations that are not there yet to the job's copies, newest first"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--copy", metavar="NAME", help="to this copy alone (default: to all)")
    parser.add_argument("--init", action="store_true", help="make the copy's repository, which is done once and never by itself; then send")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    if not job.copies:
        raise UsageError("%s: the job has no copies: add one with its name and where it goes to" % job.where)
    if arguments.init and not arguments.copy:
        raise UsageError("--init makes the repository of one copy: name it with --copy")
    chosen = (find(job, arguments.copy),) if arguments.copy else job.copies
    generations = job_directory(job, None).generations()
    reporter = reporter_for(arguments, job._replace(name=job.name + ".copy"))
    sent: List[Sent] = []
    with told(job, notify.COPY) as outcome:
        try:
            _send_all(job, chosen, generations, arguments.init, sent, reporter)
        finally:
            reporter.close()
        outcome("", _summary(sent))
    if arguments.json:
        print_json([each.as_dict() for each in sent])
    else:
        lines = ["%s: %s is at %s: %s, %s new there, in %s" % (job.name, *_said(each)) for each in sent]
        print_lines(lines or ["%s: all that is to be sent is at %s" % (job.name, ", ".join(copy.name for copy in chosen))])
    return 0


def _said(sent: Sent) -> Sequence[str]:
    return sent.generation, sent.copy, size(sent.bytes), size(sent.added), duration(sent.duration_s)


def _send_all(job: Job, chosen: Sequence[Copy], generations: Sequence[Generation], init: bool, sent: List[Sent], reporter: Reporter) -> None:
    """Send to each copy, one that fails no reason not to try the next.

    :raises StillpointError: one failed; NotNowError where all that did may succeed later
    """
    troubles: List[StillpointError] = []
    for copy in chosen:
        try:
            destination = Destination.of(job, copy, host_name())
            if init:
                destination.init()
            sent += send_missing(destination, copy, generations, reporter)
            if copy.keep:
                for name in prune(destination, copy.keep, reporter):
                    reporter.note("%s was removed from %s, as its keep says" % (name, copy.name))
        except StillpointError as error:
            if len(chosen) == 1:
                raise
            troubles.append(error)
            reporter.warn("%s: %s" % (copy.name, error))
    if troubles:
        later = all(isinstance(error, NotNowError) for error in troubles)
        text = "; ".join(str(error) for error in troubles)
        raise NotNowError(text) if later else StillpointError(text)


def _summary(sent: Sequence[Sent]) -> Dict[str, Any]:
    return {"generation": sent[0].generation if sent else None, "sent": [each.as_dict() for each in sent]}
