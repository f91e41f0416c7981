# SPDX-License-Identifier: GPL-3.0-or-later
"""Checksums and stamps on their way from rsync, which tells them in its own order, into a manifest, which has them in the order of a walk."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple


def order(path: bytes) -> bytes:
    """Return the key by which entries are in order."""
    return path.replace(b"/", b"\0")


class Stamp(NamedTuple):
    """What the file system of a source says of a file beside size and time: as long as neither changes, nobody has written to it."""

    inode: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_ino, status.st_ctime_ns)


class Sums:
    """Checksums and stamps by path, on disk: a database that is nobody's business after the run, so it is neither logged nor synced.

    :param path: its file; default: an unnamed one that the system removes
    """

    def __init__(self, path: str = "") -> None:
        self.path = path
        import sqlite3  # pylint: disable=import-outside-toplevel  # who reads a manifest's summary needs none

        self._new: List[Tuple[bytes, str, Optional[bytes]]] = []
        self._stamps: List[Tuple[bytes, str]] = []  # as text: an inode number may have 64 bits, SQLite's have 63
        with _storage_errors(path):
            self._db = sqlite3.connect(path, isolation_level=None)
            for setting in ("journal_mode=OFF", "synchronous=OFF", "locking_mode=EXCLUSIVE", "cache_size=-8000"):
                self._db.execute("PRAGMA " + setting)
            self._db.execute("CREATE TABLE sums (place BLOB PRIMARY KEY, sum TEXT NOT NULL, first BLOB) WITHOUT ROWID")
            self._db.execute("CREATE TABLE stamps (place BLOB PRIMARY KEY, stamp TEXT NOT NULL) WITHOUT ROWID")

    def add(self, path: bytes, checksum: str, first: bytes = b"") -> None:
        """Keep a checksum, instead of an earlier one of the same path.

        :param first: another path of the same file, which has the checksum if `checksum` is ""
        """
        self._new.append((order(path), checksum, order(first) if first else None))
        if len(self._new) >= 2000:
            self._store()

    def stamp(self, path: bytes, stamp: Stamp) -> None:
        """Keep the stamp of a file's source, instead of an earlier one."""
        self._stamps.append((order(path), "%d %d" % stamp))
        if len(self._stamps) >= 2000:
            self._store()

    def _store(self) -> None:
        with _storage_errors(self.path):
            self._db.execute("BEGIN")
            self._db.executemany("INSERT OR REPLACE INTO sums VALUES (?, ?, ?)", self._new)
            self._db.executemany("INSERT OR REPLACE INTO stamps VALUES (?, ?)", self._stamps)
            self._db.execute("COMMIT")
        self._new, self._stamps = [], []

    def __contains__(self, path: bytes) -> bool:
        if self._new:
            self._store()
        with _storage_errors(self.path):
            return self._db.execute("SELECT 1 FROM sums WHERE place = ?", (order(path),)).fetchone() is not None

    def resolve(self, others: Callable[[], Iterable[Tuple[bytes, str]]]) -> None:
        """Give further names of a file the checksum of the first.

        :param others: gives ``(path, checksum)`` of files that were not copied
        """
        self._store()
        with _storage_errors(self.path):
            self._resolve()
            wanted = {row[0] for row in self._db.execute("SELECT DISTINCT first FROM sums WHERE sum = ''")}
            if wanted:
                self._db.execute("CREATE INDEX IF NOT EXISTS by_first ON sums (first) WHERE sum = ''")
                for path, checksum in others():
                    if checksum and order(path) in wanted:
                        self._db.execute("UPDATE sums SET sum = ? WHERE first = ? AND sum = ''", (checksum, order(path)))
            self._db.execute("DELETE FROM sums WHERE sum = ''")

    def _resolve(self) -> None:
        self._db.execute(
            "UPDATE sums SET sum = coalesce((SELECT other.sum FROM sums other WHERE other.place = sums.first), '') "
            "WHERE sum = '' AND first IS NOT NULL"
        )

    def in_order(self) -> Iterator[Tuple[bytes, Tuple[str, bytes]]]:
        """Return ``(order key, (checksum, first))`` for all, in order."""
        self._store()
        with _storage_errors(self.path):
            for place, checksum, first in self._db.execute("SELECT place, sum, first FROM sums ORDER BY place"):
                yield place, (checksum, first.replace(b"\0", b"/") if first else b"")

    def stamps_in_order(self) -> Iterator[Tuple[bytes, Stamp]]:
        """Return ``(order key, stamp)`` for all, in order."""
        self._store()
        with _storage_errors(self.path):
            for place, stamp in self._db.execute("SELECT place, stamp FROM stamps ORDER BY place"):
                yield place, Stamp(*map(int, stamp.split()))

    def close(self) -> None:
        """Forget everything."""
        self._db.close()
        if self.path and os.path.lexists(self.path):
            os.unlink(self.path)


@contextmanager
def _storage_errors(path: str) -> Iterator[None]:
    import sqlite3  # pylint: disable=import-outside-toplevel

    try:
        yield
    except sqlite3.Error as error:
        number = errno.ENOSPC if "full" in str(error) else errno.EIO
        raise OSError(number, "%s (sqlite: %s)" % (os.strerror(number), error), os.path.dirname(path) or "/var/tmp") from error


class Ahead:
    """Goes through ``(key, value)`` pairs that are in order, along with something else in the same order."""

    def __init__(self, pairs: Iterable[Tuple[bytes, Any]]) -> None:
        self._pairs = iter(pairs)
        self._next: Optional[Tuple[bytes, Any]] = next(self._pairs, None)

    def at(self, key: bytes) -> Any:
        """Return the value of a key, None where there is none. Keys are asked for in order."""
        while self._next is not None and self._next[0] < key:
            self._next = next(self._pairs, None)
        return self._next[1] if self._next is not None and self._next[0] == key else None
