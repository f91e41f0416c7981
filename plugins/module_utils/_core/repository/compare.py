# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the files that a manifest lists and those that are there."""

from __future__ import annotations

from typing import Iterable, Iterator, NamedTuple

from .manifest import FILE, Entry
from .sums import Ahead, Sums, order


class Fault(NamedTuple):
    """Something in a copy that is not as its manifest says.

    :ivar path: for people; what is not printable is escaped
    :ivar contents: where a file's contents are wrong, its path as it is: other generations may have the same file; b"" otherwise
    """

    path: str
    what: str
    contents: bytes = b""

    def text(self) -> str:
        return "%s: %s" % (self.path, self.what)


def shown(path: bytes) -> str:
    """Return a path for people, on one line."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def compare(expected: Iterable[Entry], found: Iterable[Entry], sums: Sums, *, times: bool = True) -> Iterator[Fault]:
    """Return every Fault of what was found against what is expected, both in order.

    :param times: times of modification count too
    """
    told = Ahead(sums.in_order())
    left, right = iter(expected), iter(found)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        if other is None or (one is not None and order(one.path) < order(other.path)):
            if one is None:
                raise RuntimeError("called before it was begun")
            yield Fault(shown(one.path), "missing")
            one = next(left, None)
        elif one is None or order(other.path) < order(one.path):
            yield Fault(shown(other.path), "not in the manifest")
            other = next(right, None)
        else:
            checksum = told.at(order(one.path))
            wrong = _wrong_contents(one, other, checksum[0] if checksum else "")
            if wrong:
                yield Fault(shown(one.path), wrong, one.path)
            for what in _differences(one, other, times):
                yield Fault(shown(one.path), what)
            one, other = next(left, None), next(right, None)


def _wrong_contents(expected: Entry, found: Entry, checksum: str) -> str:
    if not expected.type == found.type == FILE:
        return ""
    if expected.size != found.size:
        return "has %d bytes, had %d" % (found.size, expected.size)
    if not expected.checksum:  # of a sample, one that was not read
        return ""
    if not checksum:
        return "can't be read"
    return "contents changed (checksum %s, was %s)" % (checksum, expected.checksum) if expected.checksum != checksum else ""


def _differences(expected: Entry, found: Entry, times: bool) -> Iterator[str]:
    if expected.type != found.type:
        yield "is a %s, was a %s" % (found.type, expected.type)
        return
    if expected.target != found.target:
        yield "points to %s, pointed to %s" % (shown(found.target), shown(expected.target))
    if expected.mode != found.mode:
        yield "has mode %04o, had %04o" % (found.mode, expected.mode)
    if (expected.uid, expected.gid) != (found.uid, found.gid):
        yield "belongs to %d:%d, belonged to %d:%d" % (found.uid, found.gid, expected.uid, expected.gid)
    if times and expected.mtime_ns != found.mtime_ns:
        yield "was modified at another time"
