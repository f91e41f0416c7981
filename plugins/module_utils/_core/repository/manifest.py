# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a generation: what it is, and every file in it with size, owner, mode, time, checksum, and inode and change time of its source.

It is one JSON object that is written and read a line at a time, so that memory does not grow with the number of files:
one summary key a line, then ``"files": [`` and one entry a line, and last the SHA-256 of all bytes before that line. Entries
come in the order of a walk: a directory, then what is in it, by name; that is the order of paths with ``/`` for ``NUL``.
Names are UTF-8; a byte that is not has the form of a lone surrogate (``\\udcff`` for 0xff), as Python has it.
"""

from __future__ import annotations

import json
import os
import stat
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from ..host.errors import StillpointError
from .sums import Ahead, Stamp, Sums, order

NAME = "manifest.json"
FORMAT = 1

_FILES = b'"files": [\n'
_FILES_END = b"],\n"
_SEAL = b'"sha256": "'
_END = b'"\n}\n'

FILE, DIRECTORY, LINK = "file", "directory", "symlink"
_TYPES = {
    stat.S_IFREG: FILE,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFLNK: LINK,
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_DEVICES = ("character device", "block device")


class Damaged(StillpointError):
    """A manifest is not what was written."""


class Entry(NamedTuple):
    """One name in a generation.

    :ivar path: relative to the generation
    :ivar size: bytes; 0 for anything but a regular file
    :ivar mode: permission bits
    :ivar checksum: of a regular file
    :ivar target: of a symlink; of a device, its "major:minor"
    :ivar first: another path in the generation that is the same file, where rsync said so
    :ivar stamp: of the file that it was copied from; None where that is not known
    """

    path: bytes
    type: str
    size: int
    mtime_ns: int
    mode: int
    uid: int
    gid: int
    checksum: str = ""
    target: bytes = b""
    first: bytes = b""
    stamp: Optional[Stamp] = None


def walk(root: bytes, below: bytes = b"", *, leave_out: Tuple[bytes, ...] = ()) -> Iterator[Tuple[Entry, int]]:
    """Return each name below a directory as an Entry without checksum, in order, with the bytes allocated for it.

    :param below: start at this path, relative to the root, and give itself first; default: all, but not the root itself
    :param leave_out: names in the root that are no part of it
    """
    # Not recursive: a tree may be deeper than Python's stack. Names only: a directory may hold a million of them.
    waiting: List[bytes] = [below] if below else _names(root, b"", leave_out)
    while waiting:
        path = waiting.pop()
        full = os.path.join(root, path)
        status = os.lstat(full)
        kind = _TYPES[stat.S_IFMT(status.st_mode)]
        target = b""
        if kind == LINK:
            target = os.readlink(full)
        elif kind in _DEVICES:
            target = b"%d:%d" % (os.major(status.st_rdev), os.minor(status.st_rdev))
        elif kind == DIRECTORY:
            waiting += _names(full, path + b"/", ())
        size = status.st_size if kind == FILE else 0
        yield (
            Entry(path, kind, size, status.st_mtime_ns, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, "", target),
            status.st_blocks * 512,
        )


def _names(directory: bytes, prefix: bytes, leave_out: Tuple[bytes, ...]) -> List[bytes]:
    """Return the paths of what is in a directory, last first."""
    return sorted((prefix + name for name in os.listdir(directory) if name not in leave_out), reverse=True)


# -- writing


class Totals(NamedTuple):
    """Regular files below a tree: how many, their bytes, and the bytes that the disk has allocated for them."""

    files: int
    bytes: int
    allocated: int


def write(
    generation: str,
    sums: Sums,
    base: Callable[[], Iterable[Entry]],
    trees: Iterable[str],
    summary: Callable[[Dict[str, Totals]], Dict[str, Any]],
    *,
    leave_out: Tuple[bytes, ...] = (),
) -> List[bytes]:
    """Write the manifest of a generation and bring it to the disk. Return the paths whose checksum is not known; then nothing
    was written.

    :param sums: what rsync told
    :param base: gives the entries of the generation that unchanged files were taken from
    :param trees: names of the trees, to be counted
    :param summary: is given the totals by tree and returns the summary
    """
    import hashlib  # pylint: disable=import-outside-toplevel

    root = os.fsencode(generation)
    entries = os.path.join(generation, "." + NAME + ".entries")
    leave_out = (*leave_out, os.fsencode(os.path.basename(entries)), os.fsencode(NAME))
    totals = _Counter(trees)
    unknown: List[bytes] = []
    try:
        with open(entries, "wb", opener=_private) as file:
            separator = b""
            for entry, allocated in _summed(root, sums, base, leave_out):
                if entry.type == FILE and not entry.checksum:
                    unknown.append(entry.path)
                totals.count(entry, allocated)
                file.write(separator + _line(entry))
                separator = b",\n"
        if unknown:
            return unknown
        head = summary(totals.totals())
        with open(os.path.join(generation, NAME), "wb", opener=_private) as file:
            seal = hashlib.sha256()
            for part in _parts(head, entries, bool(separator)):
                seal.update(part)
                file.write(part)
            file.write(_SEAL + seal.hexdigest().encode() + _END)
            file.flush()
            os.fsync(file.fileno())
        return []
    finally:
        if os.path.lexists(entries):
            os.unlink(entries)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _summed(root: bytes, sums: Sums, base: Callable[[], Iterable[Entry]], leave_out: Tuple[bytes, ...]) -> Iterator[Tuple[Entry, int]]:
    """Return the entries of a generation with their checksums, in order, and the bytes allocated for each."""
    told = Ahead(sums.in_order())
    stamps = Ahead(sums.stamps_in_order())
    before = Ahead((order(entry.path), entry) for entry in base())
    for entry, allocated in walk(root, leave_out=leave_out):
        if entry.type == FILE:
            key = order(entry.path)
            old: Optional[Entry] = before.at(key)
            new: Optional[Tuple[str, bytes]] = told.at(key)
            stamp: Optional[Stamp] = stamps.at(key)
            if new is not None:
                entry = entry._replace(checksum=new[0], first=new[1], stamp=stamp)
            elif old is not None and (old.type, old.size, old.mtime_ns) == (FILE, entry.size, entry.mtime_ns):
                # Neither copied nor replaced: by its stamp or by its contents (then the stamp is a new one) it is what the base has under this name.
                first = old.first if old.first and _same_file(root, entry.path, old.first) else b""
                entry = entry._replace(checksum=old.checksum, first=first, stamp=stamp or old.stamp)
        yield entry, allocated


def _same_file(root: bytes, one: bytes, other: bytes) -> bool:
    try:
        return os.path.samestat(os.lstat(os.path.join(root, one)), os.lstat(os.path.join(root, other)))
    except FileNotFoundError:
        return False


class _Counter:
    """Counts what lies below each tree."""

    def __init__(self, trees: Iterable[str]) -> None:
        self._counts: Dict[str, List[int]] = {name: [0, 0, 0] for name in trees}
        # A tree may lie in another one's directory: the longest name is the one that a path belongs to.
        self._prefixes = sorted(((os.fsencode(name), count) for name, count in self._counts.items()), key=lambda pair: -len(pair[0]))

    def count(self, entry: Entry, allocated: int) -> None:
        if entry.type != FILE:
            return
        for name, count in self._prefixes:
            if entry.path == name or entry.path.startswith(name + b"/"):
                count[0] += 1
                count[1] += entry.size
                count[2] += 0 if entry.first else allocated
                return

    def totals(self) -> Dict[str, Totals]:
        return {name: Totals(*count) for name, count in self._counts.items()}


def _parts(summary: Dict[str, Any], entries: str, any_entry: bool) -> Iterator[bytes]:
    yield b"{\n"
    for key, value in summary.items():
        yield b"%s: %s,\n" % (_quoted(key).encode(), json.dumps(value).encode())
    yield _FILES
    with open(entries, "rb") as file:
        part = file.read(1 << 18)
        while part:
            yield part
            part = file.read(1 << 18)
    yield (b"\n" if any_entry else b"") + _FILES_END


def _line(entry: Entry) -> bytes:
    more = ""
    if entry.checksum:
        more += ',"checksum":"%s"' % entry.checksum
    if entry.target:
        more += ',"target":%s' % _text(entry.target)
    if entry.first:
        more += ',"same_as":%s' % _text(entry.first)
    if entry.stamp:
        more += ',"inode":%d,"ctime_ns":%d' % entry.stamp
    return (
        '{"path":%s,"type":"%s","size":%d,"mtime_ns":%d,"mode":"%04o","uid":%d,"gid":%d%s}'
        % (_text(entry.path), entry.type, entry.size, entry.mtime_ns, entry.mode, entry.uid, entry.gid, more)
    ).encode()


def _text(name: bytes) -> str:
    return _quoted(name.decode("utf-8", "surrogateescape"))


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


# -- reading


def summary(generation: str) -> Dict[str, Any]:
    """Return the summary of a generation, without a look at its files.

    :raises Damaged: there is none
    """
    lines: List[bytes] = []
    try:
        with open(os.path.join(generation, NAME), "rb") as file:
            for line in file:
                if line == _FILES:
                    value = json.loads(b"".join(lines) + b'"files":[]}')
                    del value["files"]
                    return dict(value)
                lines.append(line)
    except (OSError, ValueError) as error:
        raise _damaged(generation, error) from error
    raise _damaged(generation)


def _damaged(generation: str, error: Optional[Exception] = None) -> Damaged:
    return Damaged("the manifest of %s can't be read: %s" % (generation, getattr(error, "strerror", None) or "it is not what was written"))


def entries(generation: str) -> Iterator[Entry]:
    """Return the entries of a generation's manifest, in order.

    :raises Damaged: at the end, when the manifest is not what was written; at any entry that can't be read
    """
    return _parsed(generation)


def _parsed(generation: str, prefix: bytes = b"") -> Iterator[Entry]:
    try:
        for line in _sealed(generation):
            if line.startswith(prefix):
                yield _entry(line)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(generation, error) from error


def below(generation: str, path: bytes) -> Iterator[Entry]:
    """Return the entry of a path and those of all below it, in order; to be read to the end, as `entries`."""
    # the line tells as much before it is parsed: of a tree among others, only its own lines are
    prefix = b'{"path":' + _text(path)[:-1].encode()
    return (entry for entry in _parsed(generation, prefix) if entry.path == path or entry.path.startswith(path + b"/"))


def check(generation: str) -> None:
    """Make sure that a manifest is what was written, by its own checksum.

    :raises Damaged: it is not
    """
    try:
        for _entry_line in _sealed(generation):
            pass
    except OSError as error:
        raise _damaged(generation, error) from error


def _sealed(generation: str) -> Iterator[bytes]:
    """Return the lines of the entries, and find out at the end whether any bit of the file has changed."""
    import hashlib  # pylint: disable=import-outside-toplevel  # who reads a summary needs none

    seal = hashlib.sha256()
    found = b""
    inside = False
    with open(os.path.join(generation, NAME), "rb") as file:
        for line in file:
            if line.startswith(_SEAL) and not inside:
                found = line + file.read(len(_END) + 1)
                break
            seal.update(line)
            if inside and line == _FILES_END:
                inside = False
            elif inside:
                yield line
            elif line == _FILES:
                inside = True
    if found != _SEAL + seal.hexdigest().encode() + _END:
        raise Damaged("the manifest of %s is damaged: it does not have the checksum that it states" % generation)


def _entry(line: bytes) -> Entry:
    value = json.loads(line.rstrip(b",\n"))
    return Entry(
        _bytes(value["path"]),
        value["type"],
        value["size"],
        value["mtime_ns"],
        int(value["mode"], 8),
        value["uid"],
        value["gid"],
        value.get("checksum", ""),
        _bytes(value.get("target", "")),
        _bytes(value.get("same_as", "")),
        Stamp(value["inode"], value["ctime_ns"]) if "inode" in value else None,
    )


# -- comparing
