# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, as exceptions that carry one sentence: what is wrong, where, and the way out.

They are turned into text once, at the door: by the agent into its last line and exit code, by a module into ``fail_json``.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would cost `version` a third of Python's start
if TYPE_CHECKING:
    from typing import NoReturn, Optional, Sequence


class StillpointError(Exception):
    """The run failed. Published generations and live data are as they were before."""

    exit_code = 1


class UsageError(StillpointError):
    """A job, an argument or an option is wrong; nothing was started."""

    exit_code = 2


class BusyError(StillpointError):
    """Another run holds the job; nothing was started."""

    exit_code = 3


class NotNowError(StillpointError):
    """The server is too busy to be locked now; nothing happened and a later try may succeed."""

    exit_code = 75


class CommandError(StillpointError):
    """A program failed, was missing, or did not end in time.

    :ivar cmd: the argument list as it was run
    :ivar rc: its exit status; None when it never started or was given up on
    :ivar stderr: what it said, as text
    """

    def __init__(self, message: str, cmd: Sequence[str], rc: Optional[int] = None, stderr: str = "") -> None:
        super().__init__(message)
        self.cmd = list(cmd)
        self.rc = rc
        self.stderr = stderr


def fail(error: StillpointError) -> NoReturn:
    """Raise an error: what is done about a trouble where nobody asks for going on after it."""
    raise error


class Stopped(BaseException):
    """A signal asked the process to end. Not an Exception, so that nothing on the way treats it as a failure to be survived.

    :ivar outcome: what had been done by then, where that is known
    """

    def __init__(self, signal_name: str) -> None:
        super().__init__("stopped by %s" % signal_name)
        self.signal_name = signal_name
        self.outcome = ""
