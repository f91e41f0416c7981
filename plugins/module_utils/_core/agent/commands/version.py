# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `version`."""

from __future__ import annotations

import sys

from ...host.version import VERSION
from ..output import PROGRAM, print_json, print_lines

TYPE_CHECKING = False  # as in main
if TYPE_CHECKING:
    import argparse

TEXT = "show the version"


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(arguments: argparse.Namespace) -> int:
    if arguments.json:
        print_json({"version": VERSION, "python": "%d.%d.%d" % sys.version_info[:3]})
    else:
        print_version()
    return 0


def print_version() -> None:
    print_lines(["%s %s" % (PROGRAM, VERSION)])
