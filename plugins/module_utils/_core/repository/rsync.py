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

import os
import re
import stat
from functools import lru_cache
from typing import Callable, List, Optional, Sequence, Tuple

from ..host.errors import StillpointError
from ..host.process import run
from ..trees import Tree
from .rsync_options import check_options
from .transfer import FORMAT, IO_ERRORS, Copied, Item, complaints, drive, failure, no_item, no_progress, no_watch, transfer

OLDEST = (3, 1, 3)
CHOOSES_CHECKSUM = (3, 2, 0)  # --checksum-choice is passed from here on; before it, MD5 is all there is for local copies

# Patterns for what a restore in place keeps in a tree that is a mount point itself, and anywhere in a tree of which it puts a path back: left out of
# whatever is backed up.
OWN_NAMES = ("/.stillpoint-new*", "/.stillpoint-replaced-*", ".stillpoint-part-*")

# -XX: with a single X rsync leaves out its own attributes (user.rsync.*), which a tree written by --fake-super lives by.
_KEEP_ALL = ("-aHAXXS", "--numeric-ids", "--modify-window=-1")


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


def copy_tree(
    tree: Tree,
    dest: str,
    *,
    algorithm: str,
    link_dest: Sequence[str] = (),
    bwlimit: Optional[str] = None,
    options: Sequence[str] = (),
    checksum: bool = False,
    keep_existing: bool = False,
    gives_way: bool = True,
    owners: Sequence[str] = (),
    on_item: Callable[[Item], None] = no_item,
    on_progress: Callable[[int], None] = no_progress,
    watch: Callable[[], None] = no_watch,
) -> Copied:
    """Copy a tree to a path that does not exist yet, and return what that came to.

    :param link_dest: copies of the same tree whose unchanged files are shared
    :param checksum: compare contents with `link_dest`, not sizes and times
    :param keep_existing: files that are in the path already stay as they are
    :param owners: ``--usermap`` and ``--groupmap``, where files are to get other owners than they have
    :param gives_way: let everything else on the host go first; not where somebody waits for a restore
    :param on_item: told of each file that was not found unchanged in `link_dest`
    :param on_progress: told the bytes transferred so far, several times a second
    :param watch: called several times a second; what it raises ends rsync
    :raises DestinationFull: no room
    :raises TooManyLinks: a file has more names than the file system takes
    :raises CommandError: rsync failed otherwise; files that vanish are a failure too, as nothing vanishes from a snapshot
    """
    check_options(options)
    source, target, links = ends(tree.path, dest, link_dest)
    argv = [
        *command(tree, algorithm, bwlimit, options),
        *(["--checksum"] if checksum else []),
        *(["--ignore-existing"] if keep_existing else []),
        *owners,
        *("--link-dest=" + link for link in links),
        source,
        target,
    ]
    return transfer(argv, tree.source, on_item, on_progress, watch, gives_way)


def copy_files(
    tree: Tree,
    dest: str,
    paths: str,
    *,
    algorithm: str,
    bwlimit: Optional[str] = None,
    options: Sequence[str] = (),
    checksum: bool = False,
    on_item: Callable[[Item], None] = no_item,
    watch: Callable[[], None] = no_watch,
) -> Copied:
    """Copy some files of a tree into a copy of it, each that is not there, or there with another size or time, as a new file.

    :param paths: a file with the paths below the tree's root, each ended by NUL
    :param options: those that the copy was made with: where they say what mode or owner a file gets, those of a shared one would be changed
    :param checksum: go by contents instead of size and time
    :raises CommandError: as `copy_tree`
    """
    check_options(options)
    which = ["--relative", "--from0", "--files-from=" + paths, *(["--checksum"] if checksum else [])]
    argv = [*command(tree, algorithm, bwlimit, options), *which, slash(tree.path), slash(dest)]
    copied = transfer(argv, tree.source, on_item, no_progress, watch)
    # rsync takes care of the directories above each file, but not of the root, whose time a new file in it has changed.
    os.utime(dest, ns=(os.stat(dest).st_atime_ns, os.stat(tree.path).st_mtime_ns))
    return copied


def names(tree: Tree, options: Sequence[str], on_item: Callable[[Item], None]) -> None:
    """Tell of the regular files that a copy of a tree has, with nothing read or written.

    :raises CommandError: rsync failed
    """
    argv = ["rsync", "-rlDn", FORMAT, *filters(tree), *options, slash(tree.path), os.path.join(tree.path, ".no-such-directory") + "/"]
    rc, _out, err = drive(argv, on_item, no_progress, no_watch, "rchar")
    if rc != 0:
        raise failure(argv, rc, err, tree.source)


def checksums(
    root: str,
    *,
    algorithm: str,
    paths: Optional[str] = None,
    on_item: Callable[[Item], None],
    on_progress: Callable[[int], None] = no_progress,
) -> List[str]:
    """Read the regular files below a directory and tell `on_item` of each with its checksum. Return rsync's complaints
    about files that could not be read.

    :param paths: a file with the paths to read, each ended by NUL; default: all
    :param on_progress: told the bytes read so far
    :raises CommandError: rsync failed as a whole
    """
    # A dry run against a directory that does not exist: the sender sums up every file for the comparison.
    argv = ["rsync", "-rlDnc", *_choice(algorithm), FORMAT]
    if paths is not None:
        argv += ["--from0", "--files-from=" + paths]
    else:
        argv += ["--exclude=/manifest.json"]
    rc, _out, err = drive([*argv, slash(root), os.path.join(root, ".no-such-directory") + "/"], on_item, on_progress, no_watch, "rchar")
    if rc not in (0, *IO_ERRORS):
        raise failure(argv, rc, err, root)
    return complaints(err) if rc else []


def command(tree: Tree, algorithm: str, bwlimit: Optional[str], options: Sequence[str]) -> List[str]:
    return [
        "rsync",
        *_KEEP_ALL,
        *_choice(algorithm),
        FORMAT,
        "--stats",
        "--no-human-readable",
        *(["--bwlimit=" + str(bwlimit)] if bwlimit else []),
        *filters(tree),
        *options,
    ]


def filters(tree: Tree) -> List[str]:
    """Return the options that leave out what is not to be copied of a tree."""
    return ["--exclude=" + pattern for pattern in tree.exclude]


def ends(path: str, dest: str, link_dest: Sequence[str]) -> Tuple[str, str, List[str]]:
    """Return source, destination and link destinations as rsync wants them, for a directory or for a single file."""
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        raise StillpointError("%s can't be read: %s" % (path, error.strerror)) from error
    if stat.S_ISDIR(mode):
        return slash(path), slash(dest), list(link_dest)
    if os.path.basename(path) != os.path.basename(dest):
        raise StillpointError("%s can't be copied to %s: a single file keeps its name" % (path, dest))
    return path, slash(os.path.dirname(dest)), [os.path.dirname(link) for link in link_dest]


def slash(path: str) -> str:
    return path.rstrip("/") + "/"
