# SPDX-License-Identifier: GPL-3.0-or-later
"""Mounts: which file system a path lies on, and snapshots mounted where only this process sees them."""

from __future__ import annotations

import ctypes
import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, List, Optional, Sequence, Tuple

from .errors import CommandError, StillpointError, UsageError
from .process import run, undisturbed
from .run_directory import make_run_directory
from .steps import reached

FSTAB = "/etc/fstab"

_CLONE_NEWNS = 0x00020000  # sched.h
_MS_REC, _MS_SLAVE = 0x4000, 0x80000  # mount.h
_UNMOUNT_TRIES = 10

# Options that the file systems of snapshots need, by type. A snapshot has its origin's superblock, and one that overflows answers each read with an error:
# with errors=panic in it (tune2fs -e panic) ext2, ext3 and ext4 would stop the host. XFS refuses a second file system of one UUID without nouuid.
_OPTIONS_BY_TYPE = {"ext2": "errors=continue", "ext3": "errors=continue", "ext4": "errors=continue", "xfs": "nouuid"}


@dataclass(frozen=True)
class Mount:
    """One line of /proc/self/mountinfo."""

    major: int
    minor: int
    root: str  # the path within the file system that is mounted here; not "/" for a bind mount
    mount_point: str
    fs_type: str
    source: str
    options: Tuple[str, ...] = ()  # of this mount, not of the file system: ro, nosuid, …


@dataclass(frozen=True)
class Place:
    """Where a path really lies: its file system, and its path below that file system's root."""

    path: str  # as asked, symlinks resolved
    mount: Mount
    below: str  # "var/lib/mysql"; "" for the root itself


def table(text: Optional[str] = None) -> List[Mount]:
    """Return the mounts of this process, in the order in which they were made.

    :param text: contents of a mountinfo file; default: this process's own
    """
    if text is None:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            text = file.read()
    mounts = []
    for line in text.splitlines():
        left, right = line.split(" - ", 1)
        fields, rest = left.split(" "), right.split(" ")
        major, minor = fields[2].split(":")
        mounts.append(Mount(int(major), int(minor), _plain(fields[3]), _plain(fields[4]), rest[0], _plain(rest[1]), tuple(fields[5].split(","))))
    return mounts


def _plain(field: str) -> str:
    """Return a mountinfo field with its octal escapes (space, tab, newline, backslash) undone."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match.group(1), 8)), field)


def is_below(path: str, directory: str) -> bool:
    """Tell whether a path is a directory or lies in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def nested(paths: Sequence[str]) -> List[Tuple[str, str]]:
    """Return each path that lies in another one of them, with that one.

    :raises UsageError: one does so by its name alone, behind a symbolic link
    """
    found = [(path, other) for path in paths for other in paths if path != other and is_below(path, other)]
    for path, other in found:
        real = os.path.realpath(path)
        if real != os.path.join(os.path.realpath(other), os.path.relpath(path, other)):
            raise UsageError("the path %s lies in %s by its name alone, behind a symbolic link: name it as %s" % (path, other, real))
    return found


def place(path: str, mounts: Optional[List[Mount]] = None) -> Place:
    """Return where a path lies, through symlinks and bind mounts.

    :raises UsageError: the path does not exist
    """
    if not os.path.lexists(path):
        raise UsageError("the path %s does not exist" % path)
    real = os.path.realpath(path)
    device = os.stat(real).st_dev
    covering = [mount for mount in (table() if mounts is None else mounts) if is_below(real, mount.mount_point)]
    if not covering:
        raise StillpointError("no mount of this host holds %s" % real)
    deepest = max(len(mount.mount_point) for mount in covering)
    mount = [mount for mount in covering if len(mount.mount_point) == deepest][-1]  # the last one hides those below it
    if mount.fs_type != "btrfs" and (mount.major, mount.minor) != (os.major(device), os.minor(device)):
        raise StillpointError(
            "%s lies on device %d:%d, and its mount %s says %d:%d"
            % (real, os.major(device), os.minor(device), mount.mount_point, mount.major, mount.minor)
        )
    inside = os.path.relpath(real, mount.mount_point)
    below = os.path.normpath(os.path.join(mount.root, inside)).lstrip("/")
    return Place(real, mount, "" if below == "." else below)


def mounted_below(path: str, mounts: Optional[Sequence[Mount]] = None) -> List[str]:
    """Return the mount points strictly below a path."""
    return sorted(
        {mount.mount_point for mount in (table() if mounts is None else mounts) if is_below(mount.mount_point, path) and mount.mount_point != path}
    )


def hidden_below(path: str, mounts: Sequence[Mount]) -> List[str]:
    """Return the mount points strictly below a path that hide something of the path's own file system: all but directories mounted onto themselves."""
    shown = {mount.mount_point for mount in mounts if _onto_itself(mount, mounts)}
    return [point for point in mounted_below(path, mounts) if point not in shown]


def _onto_itself(mount: Mount, mounts: Sequence[Mount]) -> bool:
    """Return whether a directory is mounted in its own place, which hides nothing: systemd makes directories read-only or writable so."""
    holding = [each for each in mounts if each.mount_point != mount.mount_point and is_below(mount.mount_point, each.mount_point)]
    if not holding:
        return False
    parent = max(holding, key=lambda each: len(each.mount_point))
    inside = os.path.join(parent.root, os.path.relpath(mount.mount_point, parent.mount_point))
    return (parent.major, parent.minor, inside) == (mount.major, mount.minor, mount.root)


def unmounted(path: str, mounts: Optional[List[Mount]] = None, *, below: bool = False) -> Optional[str]:
    """Return the mount point in /etc/fstab that a path lies at or below, where nothing is mounted there now nor further down; else None.

    :param below: also one that lies in the path, unless it is mounted on demand alone (noauto)
    """
    try:
        with open(FSTAB, encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.split() for line in file if not line.lstrip().startswith("#")]
    except OSError:
        return None
    places = [(os.path.realpath(_plain(fields[1])), fields[3:4]) for fields in lines if len(fields) > 1 and fields[1].startswith("/")]  # not none, nor swap
    named = {point for point, _options in places}
    mounted = {mount.mount_point for mount in (table() if mounts is None else mounts)}
    deepest = max((point for point in named | mounted if is_below(path, point)), key=len, default="")
    if deepest in named - mounted:
        return deepest
    inside = {point for point, options in places if below and is_below(point, path) and "noauto" not in "".join(options).split(",")}
    return min(inside - mounted, key=len, default=None)


def enter_private_namespace() -> None:
    """Put this process into a mount namespace of its own: what it mounts nobody else sees, and it ends with the process.
    Mounts and unmounts of the host still reach it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None) != 0:
        error = ctypes.get_errno()
        raise StillpointError("a private mount namespace can't be made: %s (CAP_SYS_ADMIN is needed)" % os.strerror(error))


@contextmanager
def mounted_read_only(device: str, fs_type: str, name: str) -> Iterator[str]:
    """Mount a snapshot read-only below /run/stillpoint for this process alone, and give the mount point.

    The device itself is writable: ext4 with orphans and XFS with a dirty log recover on it (borgmatic#1126, snapper#46).

    :param name: a name for the mount point that no other run uses
    """
    with _mounted(device, fs_type, name, "ro,nodev,nosuid,noexec") as point:
        yield point


@contextmanager
def mounted_writable(device: str, fs_type: str, name: str) -> Iterator[str]:
    """Mount a snapshot as `mounted_read_only` does, but to be written to. The kernel refuses it while it is mounted read-only."""
    with _mounted(device, fs_type, name, "rw,nodev,nosuid,noexec") as point:
        yield point


@contextmanager
def bound(directory: str, name: str) -> Iterator[str]:
    """Let a directory be reached below /run/stillpoint too, whoever may pass through those above it, and give that path."""
    point = os.path.join(make_run_directory(), name)
    try:
        os.mkdir(point, 0o700)
        with bound_over(directory, point):
            yield point
    finally:
        with undisturbed():
            if os.path.isdir(point):
                os.rmdir(point)


@contextmanager
def bound_over(directory: str, point: str) -> Iterator[None]:
    """Let a directory be reached in the place of another one too."""
    try:
        run(["mount", "--bind", directory, point])
        yield
    finally:
        with undisturbed():
            if any(mount.mount_point == os.path.realpath(point) for mount in table()):
                unmount(point)


@contextmanager
def _mounted(device: str, fs_type: str, name: str, options: str) -> Iterator[str]:
    point = os.path.join(make_run_directory(), name)
    try:
        os.mkdir(point, 0o700)
        run(["mount", "-t", fs_type, "-o", ",".join(filter(None, (options, _OPTIONS_BY_TYPE.get(fs_type)))), device, point], timeout=300)
        reached("mounted", point)
        yield point
    finally:
        # by what is there, not by how far this came: a signal may arrive between any two lines
        with undisturbed():
            if os.path.ismount(point):
                unmount(point)
            if os.path.isdir(point):
                os.rmdir(point)


def unmount(point: str) -> None:
    """Unmount, trying again for a bounded time while something still looks at it."""
    reached("unmount", point)
    for attempt in range(_UNMOUNT_TRIES):
        try:
            run(["umount", point], timeout=60)
            return
        except CommandError:
            if attempt == _UNMOUNT_TRIES - 1:
                raise
            time.sleep(0.5)
