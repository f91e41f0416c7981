# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `rollback`."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing

from ...restore.rollback import execute, plan
from ..output import confirm, only_shown, print_json, print_lines
from ..progress import for_stream

TEXT = "go back to the snapshots that a playbook has kept, and lose what was written since"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", nargs="?", help="the run_id of mysql_quiesce_snapshot (default: the only one that there is)")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--dry-run", action="store_true", help="show what would be done; change nothing")


def run(arguments: argparse.Namespace) -> int:
    made = plan.make(arguments.run)
    if only_shown(arguments, made.as_dict(), made.lines()):
        return 0
    confirm(arguments, made.question)
    with closing(for_stream(sys.stderr, quiet=arguments.json and not sys.stderr.isatty())) as reporter:
        done = execute.execute(made, reporter)
    if arguments.json:
        print_json(done.as_dict())
    else:
        print_lines(["%s are as they were at %s" % (", ".join(done.volumes), made.time)])
        print_lines(["  the binary logs since are kept in %s" % path for path in done.replaced])
    return 0
