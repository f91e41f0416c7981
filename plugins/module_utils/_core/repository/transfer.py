# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of rsync: driven to its end, its lines read, its failure turned into an exception."""

from __future__ import annotations

import errno
import os
import re
import selectors
import signal
import subprocess
import time
from dataclasses import dataclass, field
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ..host.errors import CommandError
from ..host.free_space import space
from ..host.process import start
from ..host.processes import io_counter
from ..host.steps import reached
from ..host.text import human

_MARK = b"@@"
FORMAT = "--out-format=@@%i %C %l %n%L"
_LINE = re.compile(rb"@@(?P<how>[<>ch.])f.{9} +(?P<sum>[0-9a-f]*) +(?P<size>\d+) (?P<name>.*)", re.DOTALL)
_ESCAPE = re.compile(rb"\\#([0-7]{3})")
HARD_LINK = b" => "
_STATS = re.compile(rb"^(Number of files|Total file size|Total transferred file size): ([\d,.]+)(?:.*?reg: ([\d,.]+))?", re.MULTILINE)

_LONGEST = 600  # characters of a complaint in an error's sentence

_TICK = 0.2  # seconds between two looks at the copy and at what it depends on
_END_TIMEOUT = 10.0  # seconds that rsync gets to end after SIGTERM

FULL = (errno.ENOSPC, errno.EDQUOT)

IO_ERRORS = (23, 24)  # some files were not read, some vanished


class DestinationFull(CommandError):
    """The file system, or the quota, that is written to has no room left."""


class TooManyLinks(CommandError):
    """A file has more names than the file system that is written to takes for one."""


@dataclass(frozen=True)
class Item:
    """A regular file that rsync dealt with.

    :ivar path: relative to the tree's root
    :ivar size: bytes
    :ivar checksum: hexadecimal; "" where rsync did not read the contents
    :ivar first: the path, relative to the root, that this one is another hard link of; b"" where it is none, or where the
        names themselves look like rsync's arrow and nothing says where one ends: `path` is then the whole of it
    """

    path: bytes
    size: int
    checksum: str
    first: bytes


@dataclass(frozen=True)
class Copied:
    """What one copy did: regular files and their bytes in the tree, bytes of file data that had to be transferred, and how many files,
    directories and the like were made, altered or deleted."""

    files: int
    bytes: int
    bytes_transferred: int
    changes: int = field(default=0, compare=False)


def no_item(_item: Item) -> None:
    pass


def no_progress(_done: int) -> None:
    pass


def no_watch() -> None:
    pass


@dataclass(frozen=True)
class Manner:
    """How a tree is to be copied; see `rsync.copy_tree`.

    :ivar checksum: compare every file by its contents
    """

    algorithm: str
    bwlimit: Optional[str] = None
    options: Sequence[str] = ()
    checksum: bool = False
    on_progress: Callable[[int], None] = no_progress
    watch: Callable[[], None] = no_watch


def transfer(
    argv: Sequence[str],
    source: str,
    on_item: Callable[[Item], None],
    on_progress: Callable[[int], None],
    watch: Callable[[], None],
    gives_way: bool = True,
) -> Copied:
    changes = 0

    def on_change() -> None:
        nonlocal changes
        changes += 1

    rc, out, err = drive(argv, on_item, on_progress, watch, "wchar", gives_way, on_change)
    if rc != 0:
        raise failure(argv, rc, err, source)
    figures: Dict[bytes, Tuple[int, int]] = {label: (_integer(number), _integer(regular)) for label, number, regular in _STATS.findall(out)}
    nothing = (0, 0)
    copied = Copied(
        files=figures.get(b"Number of files", nothing)[1],
        bytes=figures.get(b"Total file size", nothing)[0],
        bytes_transferred=figures.get(b"Total transferred file size", nothing)[0],
        changes=changes,
    )
    on_progress(copied.bytes_transferred)
    return copied


def _integer(digits: bytes) -> int:
    return int(re.sub(rb"\D", b"", digits) or b"0")


def drive(
    argv: Sequence[str],
    on_item: Callable[[Item], None],
    on_progress: Callable[[int], None],
    watch: Callable[[], None],
    counter: str,
    gives_way: bool = True,
    on_change: Callable[[], None] = lambda: None,
) -> Tuple[int, bytes, bytes]:
    """Run rsync to its end and return its exit status, the unmarked part of its output, and its complaints."""
    process = start(argv, dies_with_us=True, gives_way=gives_way, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/")
    reached("rsync started")
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("called before it was begun")
    rest: List[bytes] = []
    errors: List[bytes] = []
    line = b""
    seen = 0.0
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stderr, selectors.EVENT_READ)
            while selector.get_map():
                for key, _events in selector.select(_TICK):
                    chunk = os.read(key.fd, 1 << 16)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is process.stderr:
                        errors.append(chunk)
                        del errors[50:-50]  # the first say what happened, the last how it ended
                    else:
                        *lines, line = (line + chunk).split(b"\n")
                        for each in lines:
                            if each.startswith(_MARK):
                                on_change()
                                item = _item(each)
                                if item is not None:
                                    on_item(item)
                            else:
                                rest.append(each + b"\n")
                                del rest[:-200]
                now = time.monotonic()
                if now - seen >= _TICK:
                    seen = now
                    watch()
                    done = io_counter(process.pid, counter)
                    if done is not None:
                        on_progress(done)
        return process.wait(), b"".join(rest), b"".join(errors)
    except BaseException:
        _end(process)
        raise
    finally:
        process.stdout.close()
        process.stderr.close()


def _end(process: "subprocess.Popen[Any]") -> None:
    """End rsync and the processes that it is made of, and wait until the last of them has closed its output."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            pass
        deadline = time.monotonic() + _END_TIMEOUT
        with selectors.DefaultSelector() as selector:
            for stream in (process.stdout, process.stderr):
                selector.register(stream, selectors.EVENT_READ)  # type: ignore[arg-type]
            while selector.get_map() and time.monotonic() < deadline:
                for key, _events in selector.select(_TICK):
                    if not os.read(key.fd, 1 << 16):
                        selector.unregister(key.fileobj)
            ended = not selector.get_map()
        if ended:
            break
    try:
        process.wait(_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        pass  # in the kernel, uninterruptible


def _item(line: bytes) -> Optional[Item]:
    """Return what a marked line says of a regular file; None for one about something else."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    name, first = match.group("name"), b""
    if match.group("how") == b"h" and name.count(HARD_LINK) == 1:
        name, first = name.split(HARD_LINK)
    return Item(_plain(name), int(match.group("size")), match.group("sum").decode(), _plain(first))


def _plain(name: bytes) -> bytes:
    r"""Return a name with rsync's escapes undone: ``\#ooo``, for each byte that is not printable ASCII."""
    return _ESCAPE.sub(lambda match: bytes([int(match.group(1), 8)]), name) if b"\\#" in name else name


def complaints(stderr: bytes) -> List[str]:
    lines = [line.strip() for line in stderr.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(("rsync error:", "rsync warning:"))]


def failure(argv: Sequence[str], rc: int, stderr: bytes, source: str) -> CommandError:
    """Return the exception for a copy that failed."""
    text = stderr.decode("utf-8", "backslashreplace")
    dest = argv[-1]
    full = re.search(r"No space left on device|Disk quota exceeded", text)
    if full:
        return DestinationFull("%s while %s was copied to %s" % (full.group(0), source, dest), argv, rc, text)
    if "Too many links" in text:
        return TooManyLinks("a file in %s has more names (hard links) than the file system of %s takes for one" % (source, dest), argv, rc, text)
    lines = complaints(stderr)
    said = lines[0] if lines else (text.strip().splitlines() or ["exit status %d" % rc])[-1]
    if rc < 0:
        said = "it was ended by signal %d" % -rc
    said = re.sub(r"^rsync: ", "", said)
    if len(said) > _LONGEST:  # a path may have 4096 bytes
        said = "%s … %s" % (said[: _LONGEST // 2], said[-_LONGEST // 2 :])
    return CommandError("%s could not be copied to %s: rsync: %s" % (source, dest, said), argv, rc, text)


def ended_by_nul(file: IO[bytes]) -> Iterator[bytes]:
    """Return the parts of a file each of which is ended by NUL, as lists of paths have it."""
    rest = b""
    for chunk in iter(lambda: file.read(1 << 18), b""):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole


def room(path: str) -> str:
    """Return the room on the file system of a path, for a sentence: ``12.0 MiB free of 20.0 GiB``."""
    try:
        found = space(path)
    except OSError:
        return "its free space is unknown"
    if not found.has_names:
        return "no free inode"
    return "%s free of %s" % (human(found.free), human(found.size))
