# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `archive`."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from ...archive import service
from ...job import file as jobs
from ...job.paths import check_paths
from ..output import print_json
from ..progress import for_stream

TEXT = "keep the server's binary logs beside the backups as they are written, until told to end"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("--once", action="store_true", help="copy the logs that are closed, after having the open one closed, and end")


def run(arguments: argparse.Namespace) -> int:
    job = jobs.load(arguments.job)
    check_paths(job)
    with closing(for_stream(sys.stderr, quiet=arguments.json and not sys.stderr.isatty())) as reporter:
        status = service.serve(job, reporter, once=arguments.once)
    if arguments.json:
        print_json(status)
    return 0
