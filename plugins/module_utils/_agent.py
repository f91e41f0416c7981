# SPDX-License-Identifier: GPL-3.0-or-later
# Private to this collection: may change with any release.
"""The agent of this host, asked by modules as a person would ask it."""

from __future__ import annotations

import json
import os
from typing import Any, List, Optional, Sequence

from ._core.host.errors import CommandError, StillpointError, UsageError
from ._core.host.process import run, sentence
from ._core.job.names import job_names, jobs_directory

AGENT = "/usr/local/sbin/stillpoint"


class AgentError(CommandError):
    """The agent ended with another status than 0; its sentence is ours, and its exit status too."""

    def __init__(self, message: str, cmd: Sequence[str], rc: int, stderr: str, stdout: str = "") -> None:
        super().__init__(message, cmd, rc, stderr)
        self.exit_code = rc
        self._stdout = stdout

    @property
    def answer(self) -> Any:
        """What it answered as JSON all the same; None where it did not."""
        try:
            return json.loads(self._stdout)
        except ValueError:
            return None


def ask(*arguments: str, timeout: float = 600) -> Any:
    """Return what the agent answers as JSON.

    :param timeout: seconds after which the agent is told to end and clean up
    :raises AgentError: it says no
    :raises StillpointError: it is not installed, or is not our agent
    """
    text = tell(*arguments, "--json", timeout=timeout)
    try:
        return json.loads(text)
    except ValueError as error:
        raise StillpointError("%s %s did not answer in JSON: is it the agent of this collection? Deploy it again" % (AGENT, arguments[0])) from error


def tell(*arguments: str, timeout: float = 600) -> str:
    """Run the agent to its end and return what it printed; otherwise as `ask`."""
    if not os.path.exists(AGENT):
        raise StillpointError("the agent %s is not on this host: run the playbook stillpoint.backup.deploy for it" % AGENT)
    argv = [AGENT, *arguments]
    result = run(argv, timeout=timeout, check=False)
    if result.rc != 0:
        prefix = os.path.basename(AGENT) + ": "
        said = sentence(result.stderr) or "%s ended with status %d" % (" ".join(argv[:2]), result.rc)
        raise AgentError(said[len(prefix) :] if said.startswith(prefix) else said, argv, result.rc, result.stderr, result.stdout)
    return result.stdout


def jobs(asked: Optional[str]) -> List[str]:
    """Return the jobs that are meant: the one asked for, else all that this host has.

    :raises UsageError: it has none
    """
    names = [asked] if asked else job_names()
    if not names:
        raise UsageError("this host has no job in %s: list some in backup_client_jobs and run the playbook stillpoint.backup.deploy" % jobs_directory())
    return names


def only_job(asked: Optional[str]) -> str:
    """Return the job that is meant: the one asked for, else the only one that this host has.

    :raises UsageError: there is none, or more than one
    """
    names = jobs(asked)
    if len(names) > 1:
        raise UsageError("this host has the jobs %s: say which one is meant" % ", ".join(names))
    return names[0]
