# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal on the disk that says how far a restore in place has come, and what was asked for. After a kill, the same command
finishes what had begun: a copy is made again, an exchange is completed."""

from __future__ import annotations

import os
import shlex
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterator, Optional, Tuple

from ..host import durable
from ..host.errors import BusyError, StillpointError, UsageError
from ..job.names import host_name
from ..repository.generation import RecordedTree
from .in_place.targets import Target

STATE = "/var/lib/stillpoint/restore"

COPYING, READY, REPLACED, UNDOING = "copying", "ready", "replaced", "undoing"  # its phases

_JOURNAL = "journal.json"


@contextmanager
def alone(state: str = STATE) -> Iterator[None]:
    """Be the only restore in place on this host."""
    with ExitStack() as stack:
        try:
            os.makedirs(state, mode=0o700, exist_ok=True)
            held = stack.enter_context(durable.lock(os.path.join(state, ".lock"), make=True))
        except OSError as error:
            raise StillpointError("the journal of the restore can't be kept in %s: %s" % (state, error.strerror)) from error
        if held is None:
            raise BusyError("another restore is running on this host: wait until it has ended")
        yield


def read(state: str) -> Optional[Dict[str, Any]]:
    found = durable.read_json(os.path.join(state, _JOURNAL))
    return found if isinstance(found, dict) else None


def pending(*, state: str = STATE) -> Optional[Dict[str, Any]]:
    """Return what a restore in place that was interrupted while it replaced live data says of itself (``job``, ``generation``,
    ``time``); None when there is none."""
    journal = read(state)
    return journal if journal and journal["phase"] != COPYING else None


def write(state: str, journal: Dict[str, Any]) -> None:
    durable.write_json(os.path.join(state, _JOURNAL), journal)


def forget(state: str) -> None:
    path = os.path.join(state, _JOURNAL)
    if os.path.lexists(path):
        os.unlink(path)
        durable.sync_directory(state)


def targets(journal: Dict[str, Any]) -> Tuple[Target, ...]:
    """Return what the journal is about."""
    return tuple(Target(**{**target, "tree": RecordedTree(**target["tree"])}) for target in journal["targets"])


def ways_out(journal: Dict[str, Any]) -> str:
    """Return how a restore that was interrupted is finished, and how it is undone."""
    undo = "stillpoint undo %s" % journal["job"]
    if journal["phase"] == UNDOING:
        return "finish undoing it, with %s" % undo
    words = ["stillpoint restore", journal["job"], journal["generation"]]
    words += ["--from-host", journal["host"]] if journal["host"] not in ("", host_name()) else []
    if journal.get("part"):
        words += ["--path", shlex.quote(journal["part"])]
    elif journal["parts"] != "all":
        words += ["--only", journal["parts"]]
    words += [option + " " + shlex.quote(value) for option, value in (journal.get("moment") or {}).items()]
    return "finish it, with %s, or undo it, with %s" % (" ".join(words), undo)


def refuse_another(journal: Dict[str, Any], what: str) -> UsageError:
    """Return the refusal of anything else while a restore is half done."""
    return UsageError(
        "a restore of %s was interrupted while it replaced the live data, and %s: %s" % (journal["generation"], what, ways_out(journal))
    )
