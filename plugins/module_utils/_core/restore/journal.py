# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal on the disk that says how far a restore in place has come. After a kill, the same command finishes what had
begun: a copy is made again, an exchange is completed."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional

from .. import durable
from ..errors import BusyError, StillpointError

STATE = "/var/lib/stillpoint/restore"

COPYING, READY, REPLACED = "copying", "ready", "replaced"  # its phases

_JOURNAL = "journal.json"


@contextmanager
def alone(state: str = STATE) -> Iterator[None]:
    """Be the only restore in place on this host."""
    try:
        os.makedirs(state, mode=0o700, exist_ok=True)
        descriptor = os.open(os.path.join(state, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StillpointError("the journal of the restore can't be kept in %s: %s" % (state, error.strerror)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError("another restore is running on this host: wait until it has ended") from error
        yield
    finally:
        os.close(descriptor)


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
