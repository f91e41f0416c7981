# SPDX-License-Identifier: GPL-3.0-or-later
"""How a command ended, for those who are to be told: notifications and metrics."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator

from ..host.errors import BusyError, NotNowError, StillpointError, Stopped
from ..job.names import host_name
from ..job.options import Job
from ..observe import metrics, notify
from .output import now, warn


@contextmanager
def told(job: Job, action: str) -> Iterator[Callable[[str, Dict[str, Any]], None]]:
    """Have those who are to be told hear how the body ended; it is given what takes a complaint, or "", and what it came to."""
    ended = notify.Outcome(job.name, host_name(), notify.OK, 0, action=action)

    def outcome(complaint: str, summary: Dict[str, Any]) -> None:
        nonlocal ended
        ended = replace(ended, summary=summary)
        if complaint:
            ended = replace(ended, status=notify.FAILED, exit_code=StillpointError.exit_code, message=complaint)

    try:
        yield outcome
    except BusyError:
        raise  # the run that holds the job tells how it ended
    except (Stopped, Exception) as error:
        code = error.exit_code if isinstance(error, StillpointError) else StillpointError.exit_code
        status = notify.NOT_NOW if isinstance(error, NotNowError) else notify.FAILED
        _tell(job, replace(ended, status=status, exit_code=code, message=str(error) or type(error).__name__))
        raise
    _tell(job, ended)


def _tell(job: Job, ended: notify.Outcome) -> None:
    """Tell how something ended to all who are to hear of it, the metrics first: they take no time."""
    if job.notify.metrics:
        metrics.write(job.notify.metrics, job.name, ended.action, metrics.ended(ended, now().timestamp()), warn)
        count_backups(job)
    notify.tell(job.notify, ended, warn)


def count_backups(job: Job) -> None:
    """Have the metrics say what backups there are now."""
    if job.notify.metrics:
        from .status import count  # pylint: disable=import-outside-toplevel  # only where somebody looks at metrics

        count(job)
