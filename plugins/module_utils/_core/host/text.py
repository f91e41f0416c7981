# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures and tables as people read them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Sequence


def size(number: float) -> str:
    """Return a number of bytes as people read it: 1.5 GiB."""
    return human(number)


def duration(seconds: float) -> str:
    """Return a length of time as people read it: 350 ms, 12.5 s, 3:05 min, 2:10 h, 4 d."""
    if seconds < 1:
        return "%d ms" % round(seconds * 1000)
    if seconds < 60:
        return "%.1f s" % seconds
    if seconds < 3600:
        return "%d:%02d min" % divmod(int(seconds), 60)
    if seconds < 2 * 86400:
        return "%d:%02d h" % divmod(int(seconds) // 60, 60)
    return "%d d" % (seconds // 86400)


def age(seconds: float) -> str:
    """Return how long ago something was, roughly: 5 min, 3 h, 12 d."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= (2 * length if unit == "d" else length):
            return "%d %s" % (seconds // length, unit)
    return "now" if seconds >= 0 else "in the future"


def count(number: int) -> str:
    """Return a number with its thousands set apart: 12,345."""
    return "{:,}".format(number)


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return rows under their head as aligned text.

    :param right: indexes of the columns that are aligned to the right
    """
    cells = [list(head)] + [list(row) for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def text(row: Sequence[str]) -> str:
        parts = [each.rjust(width) if column in right else each.ljust(width) for column, (each, width) in enumerate(zip(row, widths))]
        return "  ".join(parts).rstrip()

    return "\n".join(text(row) for row in cells)


def moment(text: str) -> datetime:
    """Return the UTC moment of an ISO 8601 time that ends in Z, with or without a fraction."""
    whole = text.rstrip("Z")
    form = "%Y-%m-%dT%H:%M:%S.%f" if "." in whole else "%Y-%m-%dT%H:%M:%S"
    return datetime.strptime(whole, form).replace(tzinfo=timezone.utc)


def iso(when: datetime) -> str:
    """Return a moment as ISO 8601 in UTC, with milliseconds: 2026-11-22T02:00:05.123Z."""
    return when.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.") + "%03dZ" % (when.microsecond // 1000)


def human(size: float) -> str:
    """Return a number of bytes as people read it: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return "%d B" % size if unit == "B" else "%.1f %s" % (size, unit)
        size /= 1024
    return "%.1f TiB" % size
