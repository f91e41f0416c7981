# SPDX-License-Identifier: GPL-3.0-or-later
"""Real files for the tests of copying and restoring: a tree with everything that is easily lost, and what to compare."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import struct
import subprocess
import traceback
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest
from _core.host import durable
from _core.repository import rsync, unchanged
from _core.repository.generation import Generation
from _core.repository.job_directory import JobDirectory
from _core.repository.partial import Partial
from _core.trees import Tree

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices can be set by root only")

START = datetime(2026, 11, 22, 2, 0, 5, tzinfo=timezone.utc)

AWKWARD_NAMES = (
    b"plain",
    b"two words",
    b" leading and trailing ",
    b"new\nline",
    b"carriage\rreturn",
    b"tab\tbell\x07delete\x7f",
    "Größe-日本".encode(),
    b"not-utf8-\xff\xfe",
    b"back\\#101slash \\#012 \\",
    b"arrow => b",
    b"-rf",
    b"star*[a]?",
    b"quote'\"$`",
    b"a" * 255,
)


def posix_acl(*entries: Tuple[int, int, int]) -> bytes:
    """Return the extended attribute of an ACL (linux/posix_acl_xattr.h) of ``(tag, permissions, id)``."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


ACL = posix_acl((0x01, 7, 0xFFFFFFFF), (0x02, 6, 1234), (0x04, 5, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF))


def write(path: str, data: bytes = b"x", age: float = 1000.0) -> None:
    """Write a file that was modified some seconds before START."""
    with open(path, "wb") as file:
        file.write(data)
    moment = int((START.timestamp() - age) * 1e9) + 123456789
    os.utime(path, ns=(moment, moment))


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def awkward(root: str) -> str:
    """Make a tree with everything that is easily lost and return its path."""
    os.makedirs(root)
    top = os.fsencode(root)
    for number, name in enumerate(AWKWARD_NAMES):
        write(os.fsdecode(os.path.join(top, name)), b"contents %d" % number)
    os.mkdir(os.path.join(top, b"dir \xe9\n"))
    write(os.fsdecode(os.path.join(top, b"dir \xe9\n", b"in\xff")))
    write(root + "/empty", b"")
    write(root + "/owned")
    os.chown(root + "/owned", 1234, 5678)
    os.chmod(root + "/owned", 0o4750)
    write(root + "/hidden")
    os.chmod(root + "/hidden", 0)
    os.mkdir(root + "/open")
    os.chown(root + "/open", 33, 44)
    os.chmod(root + "/open", 0o1777)
    write(root + "/linked", b"one of three")
    os.link(root + "/linked", root + "/again")
    os.link(root + "/linked", root + "/open/third => name")
    os.symlink("plain", root + "/to-plain")
    os.symlink("/nowhere at all\n", os.path.join(root, "dangling"))
    os.lchown(root + "/dangling", 77, 88)
    os.mkfifo(root + "/fifo", 0o640)
    os.mknod(root + "/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    with open(root + "/sparse", "wb") as file:
        file.truncate(3_000_000)
        file.seek(1_000_000)
        file.write(b"data in the middle")
    write(root + "/attributes")
    os.setxattr(root + "/attributes", "user.comment", b"kept \x00 too")
    os.setxattr(root + "/attributes", "user.rsync.%stat", b"100644 0,0 1:1")
    os.setxattr(root + "/attributes", "trusted.note", b"root's")
    os.setxattr(root + "/open", "user.on-a-directory", b"1")
    os.setxattr(root + "/attributes", "system.posix_acl_access", ACL)
    os.setxattr(root + "/open", "system.posix_acl_default", ACL)
    # cap_net_bind_service=ep (linux/capability.h, revision 2): lost whenever the owner is changed after it is set
    write(root + "/capable", b"#!/bin/true\n")
    os.chown(root + "/capable", 1234, 1234)
    os.setxattr(root + "/capable", "security.capability", struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0))
    os.chown(root, 10, 20)
    os.chmod(root, 0o751)
    os.utime(root, ns=(1, 1_600_000_000_123_456_789))
    return root


def facts(root: str) -> Dict[bytes, Any]:
    """Return everything that can be known of a tree, by path, its root under b""."""
    found: Dict[bytes, Any] = {}
    inodes: Dict[int, bytes] = {}
    top = os.fsencode(root)
    paths = [top]
    for directory, directories, files in os.walk(top):
        directories.sort()
        paths += sorted(os.path.join(directory, name) for name in directories + files)
    for path in paths:
        status = os.lstat(path)
        known: Dict[str, Any] = {
            "mode": status.st_mode,
            "owner": (status.st_uid, status.st_gid),
            "mtime_ns": status.st_mtime_ns,
            "device": status.st_rdev,
            "attributes": {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)},
        }
        relative = path[len(top) + 1 :]
        if stat.S_ISREG(status.st_mode):
            known["size"] = status.st_size
            with open(path, "rb") as file:
                known["contents"] = hashlib.sha256(file.read()).hexdigest()
            known["same_as"] = inodes.setdefault(status.st_ino, relative)
        elif stat.S_ISLNK(status.st_mode):
            known["target"] = os.readlink(path)
        found[relative] = known
    return found


def shape(root: str) -> Dict[str, Tuple[Any, ...]]:
    """Return what must never change in a published generation: every inode with all that is in it, its change time but for
    the number of its names."""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in ["."] + directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            contents = b""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    contents = hashlib.sha256(file.read()).digest()
            attributes = tuple((key, os.getxattr(path, key, follow_symlinks=False)) for key in os.listxattr(path, follow_symlinks=False))
            identity = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
            found[path] = (*identity, contents, attributes)
    return found


def tree(path: str, name: str = "files/tree", exclude: Tuple[str, ...] = ()) -> Tree:
    """Return a tree as a plan has it."""
    return Tree(name, path, path, (*rsync.OWN_NAMES, *exclude))


def job(repository: Any) -> JobDirectory:
    os.makedirs(str(repository), exist_ok=True)
    return JobDirectory.open(str(repository), "host", "job")


def summary(when: datetime, **more: Any) -> Dict[str, Any]:
    """Return what a run knows of itself."""
    return {
        "job": "job",
        "host": socket.gethostname(),
        "time": when.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "run_id": "run",
        "server": None,
        "copy": {"duration_s": 0.1},
        "proof": None,
        "warnings": [],
        **more,
    }


def back_up(
    directory: JobDirectory, *trees: Tree, hours: float = 0, checksum: bool = False, options: Sequence[str] = (), **more: Any
) -> Generation:
    """Make a generation of the time START and some hours."""
    when = START + timedelta(hours=hours)
    with directory.lock():
        directory.clean()
        with Partial(directory, "run-%s" % hours) as partial:
            for each in trees:
                partial.add(each, checksum=checksum, options=options)
            return partial.publish(when, summary(when, **more))


class Quiet:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: List[str] = []
        self.done: List[Tuple[int, Optional[int]]] = []
        self.warnings: List[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def progress(self, done: int, total: Optional[int] = None) -> None:
        self.done.append((done, total))

    def note(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def close(self) -> None:
        pass


def small_disk(path: str, size: str = "8m") -> Iterator[str]:
    """Mount a small file system of its own, for as long as a test lasts."""
    os.makedirs(path)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + size, "stillpoint-test", path], check=False).returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def disk(kind: str, place: Path, size: int = 320 << 20) -> Iterator[Path]:
    """Mount a file system of a kind, for as long as a test lasts."""
    image, point = place / "image", place / kind
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs." + kind, "-q", image], check=True, stdout=subprocess.DEVNULL)
    point.mkdir()
    if subprocess.run(["mount", "-o", "loop", image, point], check=False, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("no %s can be mounted here" % kind)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", point], check=True)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test can't cut the power, so nothing that it looks at depends on these."""
    for module, name in ((os, "fsync"), (durable, "sync_file_system")):
        monkeypatch.setattr(module, name, lambda _what: None)


@pytest.fixture(autouse=True)
def change_times_of_long_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generations of a test are of START and later, its files are changed now, and nobody can set the time of that. Tests of the doubt take real times."""
    monkeypatch.setattr(unchanged, "DOUBTFUL", -1e9)


# What a kill can come before and leave something different. A sync changes nothing for who looks through the same kernel.
STEPS = ((os, ("mkdir", "rename", "unlink", "rmdir", "symlink")), (durable, ("_renameat2", "remove_tree")))


def killed_at(step: int, action: Callable[[], Any]) -> bool:
    """Do something in a process of its own that kills itself before its step of this number (from 0), and tell whether it
    came to that."""
    child = os.fork()
    if child == 0:
        try:
            _kill_at(step)
            action()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _pid, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _kill_at(step: int) -> None:
    seen = [0]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            if seen[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1
            return function(*args, **named)

        return call

    for module, names in STEPS:
        for name in names:
            setattr(module, name, counted(getattr(module, name)))
