# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent from its start to its exit code.

What only some commands need is imported when they are asked for: `list` and `version` are asked of whole fleets at once. It is imported before the
work begins: a deployment may replace the archive that it comes from meanwhile.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from contextlib import contextmanager, nullcontext

from ..host.errors import CommandError, StillpointError, Stopped, UsageError
from ..host.version import VERSION
from . import commands
from .commands import version
from .output import complain, complain_of_failure, print_json

TYPE_CHECKING = False  # typing's own costs a third of Python's start
if TYPE_CHECKING:
    from typing import Any, Iterator, List, Optional, Sequence

# pylint: disable=import-outside-toplevel

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the agent with the arguments and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files may be in any encoding
    os.umask(0o077)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # for developers; old PyMySQL makes them of what the server notes
    try:
        with _stopped_by_signals(), _steps_shown() if "--debug" in words else nullcontext():
            return _run(words)
    except (Stopped, Exception) as error:  # pylint: disable=broad-exception-caught
        return _failed(error, as_json="--json" in words, debug="--debug" in words)


def _run(words: List[str]) -> int:
    """Run the command that the words ask for and return its exit code."""
    if words in (["version"], ["--version"]):  # at once: argparse alone would take as long as this
        version.print_version()
        return 0
    from .arguments import parse, print_help

    arguments = parse(words)
    if arguments.command is None:
        print_help()
        return UsageError.exit_code
    if os.geteuid() != 0 and arguments.command not in commands.FOR_EVERYBODY:
        raise UsageError("root is needed to read databases, volumes and repositories: run it as root, or as sudo %s" % os.path.abspath(sys.argv[0]))
    return commands.load(arguments.command).run(arguments)


@contextmanager
def _steps_shown() -> Iterator[None]:
    """Show at the end when each step was reached: not before, as a terminal may make a run wait that holds a lock."""
    from ..host import steps

    log = steps.Log()
    try:
        with steps.listening(log.note):
            yield
    finally:
        for line in log.lines():
            complain(line)


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Raise Stopped for the first signal that asks the process to end; those after it must not cut the clean-up short."""

    def ignore(_number: int, _frame: Any) -> None:
        """Not SIG_IGN: the programs that the clean-up starts would inherit that, and could then not be ended either."""

    def stop(number: int, _frame: Any) -> None:
        for each in before:
            signal.signal(each, ignore)
        raise Stopped(signal.Signals(number).name)

    # one that is ignored already stays so: nohup, and shells that start jobs in the background, mean it
    before = {each: signal.signal(each, stop) for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _failed(error: BaseException, *, as_json: bool, debug: bool) -> int:
    """Say what went wrong, once and in one sentence, and return the exit code."""
    code = error.exit_code if isinstance(error, StillpointError) else StillpointError.exit_code
    if isinstance(error, Stopped):
        sentence = "; ".join(filter(None, (str(error), "what had been opened was closed", error.outcome)))
    elif isinstance(error, StillpointError):
        sentence = str(error)
    else:
        sentence = "unexpected %s: %s (a fault in stillpoint %s; --debug shows where)" % (type(error).__name__, error, VERSION)
    sentence = " ".join(sentence.split())
    if debug:
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
        if isinstance(error, CommandError):
            complain("command: %s\nexit status: %s\n%s" % (error.cmd, error.rc, error.stderr.rstrip()))
    if as_json:
        print_json({"failed": True, "msg": sentence, "exit_code": code})
    complain_of_failure(sentence)
    return code
