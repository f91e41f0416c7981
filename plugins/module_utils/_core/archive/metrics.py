# SPDX-License-Identifier: GPL-3.0-or-later
"""How the archive of binary logs stands, as metrics."""

from __future__ import annotations

import time
from typing import Any, Callable, Mapping, Optional, Sequence, Tuple

from ..host.errors import StillpointError
from ..observe.metrics import BINLOG, archived, write
from ..repository.generation import Generation
from . import timeline
from .archive import Archive


class ArchiveMetrics:
    """The file of the archive's service, written as often as the service says how it is."""

    _LOOK_EVERY = 60.0  # seconds; generations are not looked through every few seconds

    def __init__(self, directory: str, job: str, archive: Archive, warn: Callable[[str], None]) -> None:
        self._directory, self._job, self._archive, self._warn = directory, job, archive, warn
        self._looked: Optional[Tuple[float, Any]] = None
        self._gap = False
        self._warned = ""

    def say(self, status: Mapping[str, Any], generations: Callable[[], Sequence[Generation]]) -> None:
        """Write what the service has just said, with whether there is a gap."""
        now = time.monotonic()
        if self._looked is None or now - self._looked[0] > self._LOOK_EVERY or self._looked[1] != status.get("line"):
            self._looked = (now, status.get("line"))
            try:
                self._gap = timeline.open_gap(self._archive.lines(), generations()) is not None
            except StillpointError as error:
                self._once("notify.metrics: %s" % error)
        write(self._directory, self._job, BINLOG, archived(self._job, status, self._gap), self._once)

    def _once(self, complaint: str) -> None:
        if complaint != self._warned:
            self._warned = complaint
            self._warn(complaint)
