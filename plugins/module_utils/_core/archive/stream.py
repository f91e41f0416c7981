# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking after the client that streams a server's binary logs: closing logs, bringing the open one to the disk, and making sure that
what arrives is what the server has."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, field, replace
from typing import Callable, List, Optional, Tuple

from ..binlog.place import numbered, sequence
from ..host.errors import StillpointError
from ..mysql.connection import ServerError, Session
from . import source
from .archive import RESET, sync
from .chains import NOT_THOSE, Again, LineKeeper
from .line import Line, next_name
from .source import Source

# Seconds, all of them.
_SYNC_EVERY = 1.0
_ASK_EVERY = 2.0
_STALLED = 60.0  # the server is ahead and nothing arrives, or it does not answer: the connection is dead

_PIECE = 1 << 20


@dataclass
class Progress:
    """How far the archiving is, for the status."""

    method: str = ""
    state: str = "starting"
    error: Optional[str] = None
    line: Optional[int] = None
    file: Optional[str] = None
    position: Optional[int] = None
    lag_bytes: Optional[int] = None
    synced: Optional[float] = None
    pending: List[Tuple[float, str, int]] = field(default_factory=list)  # what the server was known to have, and when


class Follower:
    """Looks after one client while it writes: closes logs, brings the open one to the disk, asks the server how far it is.

    :param directory: what the client writes to; old: what earlier clients have
    :param after_asking: called each time after the server was asked
    """

    def __init__(
        self,
        keeper: LineKeeper,
        progress: Progress,
        session: Session,
        there: Source,
        line: Line,
        directory: str,
        old: List[str],
        after_asking: Callable[[], None],
    ) -> None:
        self._keeper = keeper
        self._archive = keeper.archive
        self._progress = progress
        self._after_asking = after_asking
        self._session = session
        self._lost = False  # the session has failed, and another one is needed
        self._there = there
        self._line = line
        self._directory = directory
        self._old = old
        self._synced = self._asked = 0.0
        self._grown = self._answered = time.monotonic()
        self._size = -1
        self._seen: Optional[Tuple[Tuple[str, int], float, float]] = None  # where the server was, since when, until when
        self._begun = ""  # the log of which it is known that it follows on the line
        self._progress.pending.clear()

    def look(self) -> None:
        """Do what there is to do now.

        :raises Again: the stream must be begun anew
        """
        now = time.monotonic()
        name = next_name(self._line)
        later = numbered(name, sequence(name) + 1)
        while os.path.exists(self._path(later)):  # so the client has written the one before to its end
            self._replace_old(name)
            self._line = self._keeper.close(self._line, self._path(name), self._server_now())
            name, later = later, numbered(later, sequence(later) + 1)
        size = self._measure(name)
        if size != self._size:
            self._size, self._grown = size, now
            if name != self._begun and size > 0 and self._keeper.check_beginning(self._line, self._path(name), self._there):
                self._begun = name
        if now - self._synced >= _SYNC_EVERY:
            self._synced = now
            if size > 0:
                sync(self._path(name))
            self._replace_old(name)
            self._settle(name, size)
        if now - self._asked >= _ASK_EVERY:
            self._asked = now
            if self._ask(name, size):
                self._answered = now
            elif now - self._answered > _STALLED:
                raise StillpointError("the server has not answered for %d s: %s" % (_STALLED, self._progress.error))
            if self._progress.lag_bytes and now - self._grown > _STALLED:
                raise StillpointError("nothing has arrived for %d s, and the server has written more" % _STALLED)
            if self._archive.restored():
                raise Again("the server's data was replaced by a backup")
            self._after_asking()

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    def _measure(self, name: str) -> int:
        try:
            return os.path.getsize(self._path(name))
        except FileNotFoundError:
            return 0

    def _server_now(self) -> Source:
        """Return what the server says of its logs now, for the size of one that it has just closed; without any log where it can't be
        asked, as when it stops: the log's own end has to do then."""
        if not self._lost:
            try:
                self._there = source.read(self._session)
                return self._there
            except ServerError:
                self._lost = True
        return replace(self._there, logs=())

    def _replace_old(self, name: str) -> None:
        """Drop what earlier clients had fetched, as soon as this one has as much.

        :raises Again: this one brings something else under the same name
        """
        if not self._old:
            return
        new, size = self._path(name), self._measure(name)
        closed = os.path.exists(self._path(numbered(name, sequence(name) + 1)))
        for old in [os.path.join(stream, name) for stream in self._old if os.path.isfile(os.path.join(stream, name))]:
            shorter = os.path.getsize(old) > size
            if not _same_beginning(new, old, most=source.GLANCE if shorter else None) or (shorter and closed):
                self._keeper.seal(self._line, but=lambda path: os.path.dirname(path) == self._directory)
                text = NOT_THOSE % name
                self._keeper.begin(RESET, text, name, self._there)
                raise Again(text)
            if shorter:
                return
        if size > 0:
            for stream in self._old:
                shutil.rmtree(stream)
            self._old = []

    def _ask(self, name: str, size: int) -> bool:
        """Ask the server how far it is, and return whether it has answered; as long as it does not, nobody knows how far behind this is."""
        began = time.time()
        try:
            if self._lost:
                self._session.renew()
            file, position = source.position(self._session, self._there)
        except StillpointError as error:
            self._lost, self._progress.error, self._progress.lag_bytes = True, str(error), None
            return False
        if self._lost:
            self._lost, self._progress.error = False, None
        behind = sequence(file) < sequence(name) or (file == name and position < size)
        if behind or source.differ(self._there.original(name), self._path(name)):
            raise Again("the server has begun its binary logs anew")  # it does not tell its clients: the stream just stands still
        self._note(file, position, began)
        self._progress.pending = [*self._progress.pending[-20:], (began, file, position)]
        self._progress.file, self._progress.position = name, size
        self._progress.lag_bytes = max(position - size, 0) if file == name else position
        if file == name and position <= size:
            self._progress.error = None
        return True

    def _note(self, file: str, position: int, now: float) -> None:
        """Keep at which time the server was seen at a position first, and last."""
        seen = (file, position)
        if self._seen is None or self._seen[0] != seen:
            if self._seen is not None and self._seen[2] > self._seen[1]:
                self._archive.note_position(self._line, *self._seen[0], self._seen[2])
            self._archive.note_position(self._line, file, position, now)
            self._seen = (seen, now, now)
        else:
            self._seen = (seen, self._seen[1], now)

    def _settle(self, name: str, size: int) -> None:
        """Note up to which moment everything is on the disk: what the server had when it was asked."""
        reached = [each for each in self._progress.pending if (sequence(each[1]), each[2]) <= (sequence(name), size)]
        if reached:
            self._progress.synced = reached[-1][0]
            self._progress.pending = [each for each in self._progress.pending if each not in reached]


def _same_beginning(one: str, other: str, most: Optional[int]) -> bool:
    """Tell whether two files are the same as far as both go, and no further than to `most` bytes."""
    if not os.path.exists(one):
        return True
    left = min(os.path.getsize(one), os.path.getsize(other), *([most] if most is not None else []))
    with open(one, "rb") as first, open(other, "rb") as second:
        while left > 0:
            size = min(left, _PIECE)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True
