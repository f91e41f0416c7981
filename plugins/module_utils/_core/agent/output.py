# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent's commands share: what they say and where, what they ask, and the job's directory that they look at."""

from __future__ import annotations

import os
import sys

from ..host.errors import StillpointError, UsageError

TYPE_CHECKING = False  # as in main
if TYPE_CHECKING:
    import argparse
    from datetime import datetime
    from typing import Any, Optional, Sequence, TextIO

    from ..host.reporter import Reporter
    from ..job.options import Job
    from ..repository.job_directory import JobDirectory

# pylint: disable=import-outside-toplevel  # as in main

PROGRAM = "stillpoint"


def job_directory(job: Job, host: Optional[str]) -> JobDirectory:
    """Return the directory of a job's generations, those of another host where one is named.

    :raises UsageError: the repository is not there
    """
    from ..job.names import host_name
    from ..repository.job_directory import JobDirectory

    return JobDirectory.open(job.repository, host or host_name(), job.name)


def reporter_for(arguments: argparse.Namespace, job: Job) -> Reporter:
    """Return a Reporter on stderr; with --json it speaks only to a person who looks on."""
    from .progress import for_stream

    return for_stream(sys.stderr, job.name, quiet=arguments.json and not sys.stderr.isatty())


def only_shown(arguments: argparse.Namespace, facts: Any, lines: Sequence[str]) -> bool:
    """Show what a command is going to do, and tell whether that was all that was asked for, with --dry-run.

    :param facts: the same as `lines`, for JSON
    """
    if not arguments.json:
        print_lines(lines)
    elif arguments.dry_run:
        print_json(facts)
    return bool(arguments.dry_run)


def confirm(arguments: argparse.Namespace, what: str) -> None:
    """Return when whoever called agrees.

    :raises UsageError: there is nobody to ask
    :raises StillpointError: they don't
    """
    if arguments.yes:
        return
    if arguments.json or not sys.stdin.isatty():
        raise UsageError("nothing was changed: say --yes to %s" % what)
    sys.stderr.write("Really %s? Type yes: " % what)
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() != "yes":
        raise StillpointError("not confirmed: nothing was changed")


def now() -> datetime:
    """Return the time, UTC."""
    from datetime import datetime, timezone

    return datetime.now(timezone.utc)


def warn(text: str) -> None:
    """Say what somebody should know."""
    complain(_of_priority(4, "warning: " + text))


def complain_of_failure(text: str) -> None:
    """Say how the command failed, as its last words."""
    complain(_of_priority(3, "%s: %s" % (PROGRAM, text)))


def _of_priority(number: int, text: str) -> str:
    """Return a line with its priority, which the journal reads (sd-daemon(3)) and a person need not see."""
    return "<%d>%s" % (number, text) if is_journal(sys.stderr) else text


def complain(text: str) -> None:
    """Say something on stderr."""
    try:
        print(text, file=sys.stderr, flush=True)  # pylint: disable=ansible-bad-function  # a program, not a module
    except OSError:
        pass  # nobody is left to hear it; the exit code says it too


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    import json

    print_lines([json.dumps(value, indent=2)])


def print_lines(lines: Sequence[str]) -> None:
    """Print lines to stdout; a reader who has gone away (`| head`) does not change how the command ended."""
    try:
        for line in lines:
            print(line)  # pylint: disable=ansible-bad-function  # a program, not a module
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_journal(stream: TextIO) -> bool:
    """Tell whether a stream is the journal's own (JOURNAL_STREAM, systemd.exec(5))."""
    try:
        info = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == "%d:%d" % (info.st_dev, info.st_ino)
