# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is told how a run ended. Nothing here can fail a backup: what goes wrong becomes a warning."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Sequence
from urllib.parse import urlsplit, urlunsplit

from ..host.process import environment
from ..host.version import VERSION
from ..job.options import Notify

OK, FAILED, NOT_NOW = "ok", "failed", "not_now"
RUN, VERIFY, COPY = "run", "verify", "copy"

PING_TIMEOUT = 10.0  # seconds
COMMAND_TIMEOUT = 60.0

_PING_TRIES = 3
_PING_PAUSE = 2.0
_PING_BODY = 10000  # bytes


@dataclass(frozen=True)
class Outcome:
    """How a run of a job, or a verification of its backups, ended.

    :ivar status: ok, failed, or not_now: the guard refused and nothing happened
    :ivar summary: of the manifest, or what the verification found; {} without a generation
    """

    job: str
    host: str
    status: str
    exit_code: int
    message: str = ""
    summary: Dict[str, Any] = field(default_factory=dict)
    action: str = RUN

    def facts(self) -> Dict[str, Any]:
        """Return everything as one object: the summary, and how it ended."""
        own = {"action": self.action, "job": self.job, "host": self.host, "status": self.status, "exit_code": self.exit_code, "msg": self.message}
        return {**self.summary, **own}


def tell(notify: Notify, outcome: Outcome, warn: Callable[[str], None]) -> None:
    """Request the URL and start the command of a job's ``notify``.

    The URL is left alone when the guard refused: the next try may succeed, and who waits for the ping knows when to worry. It is left
    alone after a verification that went well, too: who waits for the ping waits for a backup.
    """
    if notify.ping_url and outcome.status != NOT_NOW and (outcome.action == RUN or outcome.status != OK):
        complaint = ping(notify.ping_url, outcome)
        if complaint:
            warn(complaint)
    if notify.command:
        complaint = run(notify.command, outcome)
        if complaint:
            warn(complaint)


def ping_address(url: str, status: str) -> str:
    """Return the URL to request: as given after success, with ``/fail`` added to its path after a failure."""
    if status == OK:
        return url
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/fail"))


def ping(url: str, outcome: Outcome, *, pause: float = _PING_PAUSE) -> str:
    """Request the URL, after a failure with the sentence as its body (POST); return what went wrong, "" if nothing."""
    import urllib.error  # pylint: disable=import-outside-toplevel  # slow to load, and most runs of the agent do without
    import urllib.request  # pylint: disable=import-outside-toplevel

    body = None if outcome.status == OK else outcome.message.encode("utf-8", "replace")[:_PING_BODY]
    request = urllib.request.Request(
        ping_address(url, outcome.status),
        data=body,
        headers={"User-Agent": "stillpoint/" + VERSION, "Content-Type": "text/plain; charset=utf-8"},
    )
    trouble = ""
    for attempt in range(_PING_TRIES):
        if attempt:
            time.sleep(pause)
        try:
            with urllib.request.build_opener().open(request, timeout=PING_TIMEOUT):
                return ""
        except urllib.error.HTTPError as error:
            trouble = "HTTP status %d" % error.code
        except Exception as error:  # pylint: disable=broad-exception-caught  # OSError, HTTPException, ValueError: none may fail a backup
            trouble = str(getattr(error, "reason", None) or error or type(error).__name__)
    # the path of such a URL is as good as a password to the service behind it
    return "notify.ping_url: %s did not take the ping: %s" % (urlsplit(url).hostname, trouble)


def run(command: Sequence[str], outcome: Outcome) -> str:
    """Run the command with the outcome's facts as JSON on its standard input and in STILLPOINT_*; return what went wrong, "" if nothing."""
    given = environment()
    given.update(
        STILLPOINT_ACTION=outcome.action,
        STILLPOINT_JOB=outcome.job,
        STILLPOINT_HOST=outcome.host,
        STILLPOINT_STATUS=outcome.status,
        STILLPOINT_EXIT_CODE=str(outcome.exit_code),
        STILLPOINT_MESSAGE=outcome.message,
        STILLPOINT_GENERATION=str(outcome.summary.get("generation") or ""),
        STILLPOINT_PATH=str(outcome.summary.get("path") or ""),
    )
    argv: List[str] = list(command)
    try:
        process = subprocess.Popen(  # pylint: disable=consider-using-with
            argv, env=given, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
    except (OSError, ValueError) as error:
        return "notify.command: %s can't be started: %s" % (argv[0], getattr(error, "strerror", None) or error)
    try:
        process.communicate(json.dumps(outcome.facts()).encode("ascii"), timeout=COMMAND_TIMEOUT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return "notify.command: %s did not end within %g s and was ended" % (argv[0], COMMAND_TIMEOUT)
    if process.returncode:
        return "notify.command: %s ended with exit status %d" % (argv[0], process.returncode)
    return ""
