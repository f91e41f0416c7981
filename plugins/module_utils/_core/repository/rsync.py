# SPDX-License-Identifier: GPL-3.0-or-later
"""Copying trees with rsync, and the checksum of each file that it computes while it copies.

What rsync does, as measured with 3.2.7 and 3.5.0:

- ``%C`` of a file that was transferred is the plain, unsalted checksum of its whole contents (what ``xxh128sum`` and
  ``md5sum`` print), also for empty files and with ``--whole-file``. The sender computes it from what it reads anyway.
- A file shared with ``--link-dest`` is not reported, one whose attributes changed is (``cf...p.....``) without a
  checksum: its contents were taken from the generation before, into a new file. Further names of a file with
  hard links are reported as ``hf+++++++++ NAME => FIRST``.
- By default rsync holds files for unchanged whose size and *whole* seconds of modification agree. A table that was
  written twice in one second, before the snapshot and after it, would keep its old contents in the next backup:
  ``--modify-window=-1`` compares nanoseconds (rsync >= 3.1.3).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import selectors
import signal
import stat
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ..host.errors import BusyError, CommandError, StillpointError, UsageError
from ..host.process import run, start
from ..host.text import human
from ..trees import Tree

OLDEST = (3, 1, 3)
CHOOSES_CHECKSUM = (3, 2, 0)  # --checksum-choice is passed from here on; before it, MD5 is all there is for local copies

# Patterns for what a restore in place keeps in a tree that is a mount point itself, and anywhere in a tree of which it puts a path back: left out of
# whatever is backed up.
OWN_NAMES = ("/.stillpoint-new*", "/.stillpoint-replaced-*", ".stillpoint-part-*")

# -XX: with a single X rsync leaves out its own attributes (user.rsync.*), which a tree written by --fake-super lives by.
_KEEP_ALL = ("-aHAXXS", "--numeric-ids", "--modify-window=-1")

_MARK = b"@@"
_FORMAT = "--out-format=@@%i %C %l %n%L"
_LINE = re.compile(rb"@@(?P<how>[<>ch.])f.{9} +(?P<sum>[0-9a-f]*) +(?P<size>\d+) (?P<name>.*)", re.DOTALL)
_ESCAPE = re.compile(rb"\\#([0-7]{3})")
_HARD_LINK = b" => "
_STATS = re.compile(rb"^(Number of files|Total file size|Total transferred file size): ([\d,.]+)(?:.*?reg: ([\d,.]+))?", re.MULTILINE)

# Options that would break what a generation promises, and what to use instead.
_REFUSED = {
    "--inplace": "it writes into files that generations share",
    "--append": "it writes into files that generations share",
    "--append-verify": "it writes into files that generations share",
    "--write-devices": "it writes into devices",
    "--copy-devices": "it turns devices into files",
    "--remove-source-files": "it deletes what is backed up",
    "--remove-sent-files": "it deletes what is backed up",
    "--fake-super": "owners and modes would not be kept as such",
    "--dry-run": "nothing would be copied",
    "-n": "nothing would be copied",
    "--list-only": "nothing would be copied",
    "--existing": "new files would be left out",
    "--ignore-non-existing": "new files would be left out",
    "--ignore-existing": "changed files would be left out",
    "--update": "changed files would be left out",
    "-u": "changed files would be left out",
    "--size-only": "files that changed without changing size would be left out",
    "--ignore-errors": "a copy that failed would count as complete",
    "--ignore-missing-args": "a copy that failed would count as complete",
    "--backup": "it keeps files that do not belong to the copy",
    "-b": "it keeps files that do not belong to the copy",
    "--delete-excluded": "it is not needed",
    "--link-dest": "generations are linked by stillpoint itself",
    "--copy-dest": "generations are linked by stillpoint itself",
    "--compare-dest": "unchanged files would be left out",
    "--out-format": "stillpoint reads rsync's output",
    "--log-format": "stillpoint reads rsync's output",
    "--quiet": "stillpoint reads rsync's output",
    "-q": "stillpoint reads rsync's output",
    "--only-write-batch": "nothing would be copied",
    "--read-batch": "the copy is of a snapshot",
    "--checksum-choice": "stillpoint chooses the checksum; it is named in the manifest",
    "--cc": "stillpoint chooses the checksum; it is named in the manifest",
    "--files-from": "name the paths to copy in src or files",
    "--from0": "name the paths to copy in src or files",
    "--one-file-system": "what is mounted in a path would be left out, and it is copied only where it was named",
    "-x": "what is mounted in a path would be left out, and it is copied only where it was named",
    "--rsh": "the copy is local",
    "-e": "the copy is local",
    "--rsync-path": "the copy is local",
    "--remote-option": "the copy is local",
    "-M": "the copy is local",
    "--daemon": "the copy is local",
    "--modify-window": "files that changed would be left out",
    "-@": "files that changed would be left out",
    "--stop-after": "a copy that is not complete would count as complete",
    "--stop-at": "a copy that is not complete would count as complete",
    "--time-limit": "a copy that is not complete would count as complete",
    "--checksum": "set checksum instead",
    "-c": "set checksum instead",
    "--bwlimit": "set bwlimit instead",
    "--exclude": "set exclude instead",
    "--exclude-from": "set exclude instead",
}
# As a cluster of letters (-vn) they are looked for too. What only adds to the output is harmless: unmarked lines are skipped.
_REFUSED_LETTERS = {option[1]: option for option in _REFUSED if len(option) == 2}

_LONGEST = 600  # characters of a complaint in an error's sentence

_TICK = 0.2  # seconds between two looks at the copy and at what it depends on
_END_TIMEOUT = 10.0  # seconds that rsync gets to end after SIGTERM

FULL = (errno.ENOSPC, errno.EDQUOT)

_IO_ERRORS = (23, 24)  # some files were not read, some vanished


class DestinationFull(CommandError):
    """The file system, or the quota, that is written to has no room left."""


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


def _no_item(_item: Item) -> None:
    pass


def _no_progress(_done: int) -> None:
    pass


def _no_watch() -> None:
    pass


@lru_cache(maxsize=1)
def _about() -> str:
    return run(["rsync", "--version"], timeout=30).stdout


def version() -> str:
    """Return rsync's version: ``3.2.7``.

    :raises CommandError: rsync is missing
    """
    match = re.search(r"version v?(\S+)", _about())
    return match.group(1) if match else "unknown"


def algorithm() -> str:
    """Return the checksum that copies are made with: ``xxh128`` where rsync has it, else ``md5``.

    :raises StillpointError: this rsync is too old
    """
    text = _about()
    if _numbers(text) < OLDEST:
        raise StillpointError(
            "rsync %s is too old: before %s it compares times by whole seconds only, and would take a changed table for an unchanged one"
            % (".".join(map(str, _numbers(text))), ".".join(map(str, OLDEST)))
        )
    sums = re.search(r"^Checksum list:\s*\n((?:\s+\S.*\n?)+)", text, re.MULTILINE)
    return "xxh128" if sums and "xxh128" in sums.group(1).split() else "md5"


def _numbers(about: str) -> Tuple[int, ...]:
    match = re.search(r"version v?(\d+)\.(\d+)\.(\d+)", about)
    return tuple(int(number) for number in match.groups()) if match else (0, 0, 0)


def _choice(algorithm: str) -> List[str]:
    if _numbers(_about()) >= CHOOSES_CHECKSUM:
        return ["--checksum-choice=" + algorithm]
    if algorithm != "md5":
        raise StillpointError(
            "this rsync has no %s checksum, and these files were recorded with it: install rsync 3.2 or later" % algorithm
        )
    return []


def check_options(options: Sequence[str]) -> None:
    """Refuse options for rsync that would break what a backup promises.

    :raises UsageError: names the first one of them
    """
    for option in options:
        word = option.split("=", 1)[0]
        found = (
            word
            if word in _REFUSED
            else next((option for letter, option in _REFUSED_LETTERS.items() if re.match(r"-[^-=]*" + letter, word)), None)
        )
        if found is not None:
            raise UsageError("the rsync option %s is refused: %s" % (option, _REFUSED[found]))
        if not option.startswith("-"):
            raise UsageError(
                "the rsync option %r does not begin with a dash: write an option and its value in one word, --name=value" % option
            )


def copy_tree(
    tree: Tree,
    dest: str,
    *,
    algorithm: str,
    link_dest: Sequence[str] = (),
    bwlimit: Optional[str] = None,
    options: Sequence[str] = (),
    checksum: bool = False,
    gives_way: bool = True,
    on_item: Callable[[Item], None] = _no_item,
    on_progress: Callable[[int], None] = _no_progress,
    watch: Callable[[], None] = _no_watch,
) -> Copied:
    """Copy a tree to a path that does not exist yet, and return what that came to.

    :param link_dest: copies of the same tree whose unchanged files are shared
    :param checksum: compare contents with `link_dest`, not sizes and times
    :param gives_way: let everything else on the host go first; not where somebody waits for a restore
    :param on_item: told of each file that was not found unchanged in `link_dest`
    :param on_progress: told the bytes transferred so far, several times a second
    :param watch: called several times a second; what it raises ends rsync
    :raises DestinationFull: no room
    :raises CommandError: rsync failed otherwise; files that vanish are a failure too, as nothing vanishes from a snapshot
    """
    check_options(options)
    source, target, links = _ends(tree.path, dest, link_dest)
    argv = [
        *_command(tree, algorithm, bwlimit, options),
        *(["--checksum"] if checksum else []),
        *("--link-dest=" + link for link in links),
        source,
        target,
    ]
    return _copy(argv, tree.source, on_item, on_progress, watch, gives_way)


def recheck(
    tree: Tree,
    dest: str,
    paths: str,
    *,
    algorithm: str,
    bwlimit: Optional[str] = None,
    options: Sequence[str] = (),
    on_item: Callable[[Item], None],
    watch: Callable[[], None],
) -> None:
    """Compare some files of a copy with their source by contents, and replace those that differ by new files.

    :param paths: a file with the paths below the tree's root, each ended by NUL
    :param options: those that the copy was made with: where they say what mode or owner a file gets, those of a shared one would be changed
    :raises CommandError: as `copy_tree`
    """
    check_options(options)
    compare = ["--checksum", "--relative", "--from0", "--files-from=" + paths]
    _copy([*_command(tree, algorithm, bwlimit, options), *compare, _slash(tree.path), _slash(dest)], tree.source, on_item, _no_progress, watch)
    # rsync takes care of the directories above each file, but not of the root, whose time a new file in it has changed.
    os.utime(dest, ns=(os.stat(dest).st_atime_ns, os.stat(tree.path).st_mtime_ns))


def mirror(
    trees: Sequence[Tree],
    dest: str,
    *,
    bwlimit: Optional[str] = None,
    options: Sequence[str] = (),
    checksum: bool = False,
    on_progress: Callable[[int], None] = _no_progress,
    watch: Callable[[], None] = _no_watch,
) -> Copied:
    """Bring DEST/mysql, DEST/files/opt/…, one directory for each tree, in step with their sources: what is not there is deleted.

    Called by whoever has it `alone`.

    :raises CommandError: as `copy_tree`; the mirror is then half way between two states
    """
    check_options(options)
    algorithm_here = algorithm()
    total = Copied(0, 0, 0)
    for tree in trees:
        path = os.path.join(dest, tree.name)
        try:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        except OSError as error:
            raise StillpointError("the mirror %s can't be written: %s" % (dest, error.strerror)) from error
        source, target, _links = _ends(tree.path, path, ())
        argv = [*_command(tree, algorithm_here, bwlimit, options), "--delete", *(["--checksum"] if checksum else []), source, target]
        before = total.bytes_transferred
        copied = _copy(argv, tree.source, _no_item, lambda done, before=before: on_progress(before + done), watch)  # type: ignore[misc]
        total = Copied(
            total.files + copied.files,
            total.bytes + copied.bytes,
            total.bytes_transferred + copied.bytes_transferred,
            total.changes + copied.changes,
        )
    return total


@contextmanager
def alone(dest: str) -> Iterator[None]:
    """Be the only one that writes to a mirror.

    :raises BusyError: another run is
    :raises StillpointError: it can't be written
    """
    try:
        os.makedirs(dest, mode=0o700, exist_ok=True)
        descriptor = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StillpointError("the mirror %s can't be written: %s" % (dest, error.strerror)) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BusyError("another run is writing to the mirror %s" % dest) from error
        yield
    finally:
        os.close(descriptor)


def checksums(
    root: str,
    *,
    algorithm: str,
    paths: Optional[str] = None,
    on_item: Callable[[Item], None],
    on_progress: Callable[[int], None] = _no_progress,
) -> List[str]:
    """Read the regular files below a directory and tell `on_item` of each with its checksum. Return rsync's complaints
    about files that could not be read.

    :param paths: a file with the paths to read, each ended by NUL; default: all
    :param on_progress: told the bytes read so far
    :raises CommandError: rsync failed as a whole
    """
    # A dry run against a directory that does not exist: the sender sums up every file for the comparison.
    argv = ["rsync", "-rlDnc", *_choice(algorithm), _FORMAT]
    if paths is not None:
        argv += ["--from0", "--files-from=" + paths]
    else:
        argv += ["--exclude=/manifest.json"]
    rc, _out, err = _drive([*argv, _slash(root), os.path.join(root, ".no-such-directory") + "/"], on_item, on_progress, _no_watch, "rchar")
    if rc not in (0, *_IO_ERRORS):
        raise _failure(argv, rc, err, root)
    return _complaints(err) if rc else []


def _command(tree: Tree, algorithm: str, bwlimit: Optional[str], options: Sequence[str]) -> List[str]:
    return [
        "rsync",
        *_KEEP_ALL,
        *_choice(algorithm),
        _FORMAT,
        "--stats",
        "--no-human-readable",
        *(["--bwlimit=" + str(bwlimit)] if bwlimit else []),
        *("--exclude=" + pattern for pattern in tree.exclude),
        *options,
    ]


def _ends(path: str, dest: str, link_dest: Sequence[str]) -> Tuple[str, str, List[str]]:
    """Return source, destination and link destinations as rsync wants them, for a directory or for a single file."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise StillpointError("%s can't be read: %s" % (path, error.strerror)) from error
    if stat.S_ISDIR(mode):
        return _slash(path), _slash(dest), list(link_dest)
    if os.path.basename(path) != os.path.basename(dest):
        raise StillpointError("%s can't be copied to %s: a single file keeps its name" % (path, dest))
    return path, _slash(os.path.dirname(dest)), [os.path.dirname(link) for link in link_dest]


def _slash(path: str) -> str:
    return path.rstrip("/") + "/"


def _copy(
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

    rc, out, err = _drive(argv, on_item, on_progress, watch, "wchar", gives_way, on_change)
    if rc != 0:
        raise _failure(argv, rc, err, source)
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


def _drive(
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
    if process.stdout is None or process.stderr is None:
        raise RuntimeError("called before it was begun")
    rest: List[bytes] = []
    complaints: List[bytes] = []
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
                        complaints.append(chunk)
                        del complaints[50:-50]  # the first say what happened, the last how it ended
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
                    done = _transferred(process.pid, counter)
                    if done is not None:
                        on_progress(done)
        return process.wait(), b"".join(rest), b"".join(complaints)
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


def _transferred(pid: int, counter: str) -> Optional[int]:
    """Return the bytes that a process has read or written so far, from the kernel's own count; None where it keeps none.

    rsync's own progress is one more line for each file, and with many small files costs more than the copy.
    """
    try:
        with open("/proc/%d/io" % pid, encoding="ascii") as file:
            for line in file:
                if line.startswith(counter):
                    return int(line.split(":")[1])
    except (OSError, ValueError):
        pass
    return None


def _item(line: bytes) -> Optional[Item]:
    """Return what a marked line says of a regular file; None for one about something else."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    name, first = match.group("name"), b""
    if match.group("how") == b"h" and name.count(_HARD_LINK) == 1:
        name, first = name.split(_HARD_LINK)
    return Item(_plain(name), int(match.group("size")), match.group("sum").decode(), _plain(first))


def _plain(name: bytes) -> bytes:
    r"""Return a name with rsync's escapes undone: ``\#ooo``, for each byte that is not printable ASCII."""
    return _ESCAPE.sub(lambda match: bytes([int(match.group(1), 8)]), name) if b"\\#" in name else name


def _complaints(stderr: bytes) -> List[str]:
    lines = [line.strip() for line in stderr.decode("utf-8", "backslashreplace").splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(("rsync error:", "rsync warning:"))]


def _failure(argv: Sequence[str], rc: int, stderr: bytes, source: str) -> CommandError:
    """Return the exception for a copy that failed."""
    text = stderr.decode("utf-8", "backslashreplace")
    dest = argv[-1]
    full = re.search(r"No space left on device|Disk quota exceeded", text)
    if full:
        return DestinationFull("%s while %s was copied to %s" % (full.group(0), source, dest), argv, rc, text)
    complaints = _complaints(stderr)
    said = complaints[0] if complaints else (text.strip().splitlines() or ["exit status %d" % rc])[-1]
    if rc < 0:
        said = "it was ended by signal %d" % -rc
    said = re.sub(r"^rsync: ", "", said)
    if len(said) > _LONGEST:  # a path may have 4096 bytes
        said = "%s … %s" % (said[: _LONGEST // 2], said[-_LONGEST // 2 :])
    return CommandError("%s could not be copied to %s: rsync: %s" % (source, dest, said), argv, rc, text)


def room(path: str) -> str:
    """Return the room on the file system of a path, for a sentence: ``12.0 MiB free of 20.0 GiB``."""
    try:
        figures = os.statvfs(path)
    except OSError:
        return "its free space is unknown"
    if figures.f_files and not figures.f_favail:
        return "no free inode"
    return "%s free of %s" % (human(figures.f_bavail * figures.f_frsize), human(figures.f_blocks * figures.f_frsize))
