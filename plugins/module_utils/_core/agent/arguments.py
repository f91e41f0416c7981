# SPDX-License-Identifier: GPL-3.0-or-later
"""What the words of a command line ask for."""

from __future__ import annotations

import argparse
import os
from typing import Iterable, NoReturn, Sequence

from ..host.errors import UsageError
from . import commands
from .output import PROGRAM

_EPILOG = """\
exit codes: 0 done; 1 failed; 2 wrong usage or job file; 3 another run holds the job;
75 not now: the server was too busy to be locked, nothing happened, try again later.

JOB is the name of a job in /etc/stillpoint/jobs, or the path of a job file.
"""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Knows the terminal's width; argparse asks shutil, which loads three libraries that compress."""

    def __init__(self, prog: str) -> None:
        try:
            columns = int(os.environ.get("COLUMNS") or os.get_terminal_size(1).columns)
        except (ValueError, OSError):
            columns = 80
        super().__init__(prog, width=max(columns, 40) - 2)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError("%s; see `%s --help`" % (message, self.prog))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return what the words say; the name of the `command` is None where there is none.

    A word that may be left out may also stand behind options, where argparse takes it for left out already.

    :raises UsageError: they say nothing that the agent knows
    """
    parser = _parser(_concerned(words))
    arguments, rest = parser.parse_known_args(words, argparse.Namespace(json=False, debug=False, command=None))
    for name in ("job", "generation", "run"):
        if len(rest) == 1 and not rest[0].startswith("-") and getattr(arguments, name, "") is None:
            setattr(arguments, name, rest.pop())
    if rest:
        parser.error("unrecognized arguments: %s" % " ".join(rest))
    return arguments


def print_help() -> None:
    """Print all that the agent can be asked for."""
    _parser(commands.NAMES).print_help()


def _concerned(words: Sequence[str]) -> Iterable[str]:
    """Return the command that is asked for, or all where help is, or none of them: no other's code has to be read."""
    first = next((word for word in words if not word.startswith("-")), "")
    return [first] if first in commands.NAMES else commands.NAMES


def _parser(names: Iterable[str]) -> argparse.ArgumentParser:
    """Return the parser of these commands."""
    common = _Parser(add_help=False, formatter_class=_Formatter)
    for option, text in (("--json", "print JSON"), ("--debug", "show when each step was reached, and the traceback of a failure")):
        common.add_argument(option, action="store_true", default=argparse.SUPPRESS, help=text)  # or the command's would undo the one in front of it
    parser = _Parser(
        prog=PROGRAM,
        description="Backups of a database and its files, both from one point in time.",
        epilog=_EPILOG,
        formatter_class=_Formatter,
        parents=[common],
    )
    parser.add_argument("--version", dest="command", action="store_const", const="version", help="show the version")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", prog=PROGRAM)
    for name in names:
        command = commands.load(name)
        text = command.TEXT
        about = text[0].upper() + text[1:] + "."
        command.add_arguments(subparsers.add_parser(name, help=text, description=about, parents=[common], formatter_class=_Formatter))
    return parser


def one_generation(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the arguments that choose a generation."""
    parser.add_argument("job", metavar="JOB")
    parser.add_argument("generation", metavar="GENERATION", nargs="?", help="as `%s list` shows it (default: %s)" % (PROGRAM, default))
    any_host(parser)


def _host(text: str) -> str:
    """Return the name of a host; an empty one, as of a shell's variable that is not set, must not become this host's."""
    if not text:
        raise argparse.ArgumentTypeError("it names no host")
    return text


def any_host(parser: argparse.ArgumentParser) -> None:
    """Add the option that looks at another host's backups."""
    text = "the backups of this other host in the job's repository (default: this one)"
    parser.add_argument("--from-host", dest="host", metavar="NAME", type=_host, help=text)
