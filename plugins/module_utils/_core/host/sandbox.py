# SPDX-License-Identifier: GPL-3.0-or-later
"""A program that can write only where it may: in a mount namespace of its own, with all else of the host read-only."""

from __future__ import annotations

import ctypes
import os
import pwd
from dataclasses import dataclass
from typing import List, Mapping, Optional, Tuple

from .mounts import enter_private_namespace, table

_MS_RDONLY, _MS_REMOUNT, _MS_BIND = 1, 32, 4096  # mount.h
_CLONE_NEWNET = 0x40000000  # sched.h
_FLAGS = {"nosuid": 2, "nodev": 4, "noexec": 8}

# Where a task asks AppArmor for another profile at its next exec (apparmor(7), aa_change_onexec); the second is of kernels before 5.1.
_APPARMOR = "/sys/kernel/security/apparmor"
_AT_EXEC = ("/proc/self/attr/apparmor/exec", "/proc/self/attr/exec")


@dataclass(frozen=True)
class Enclosure:
    """What a program may write to, and who it is.

    :ivar places: ``(path as the program knows it, directory that it gets there)``; a pair of the same path makes that directory
        writable. The paths exist; what lies there on the host can't be reached by the program.
    :ivar network: it may reach other hosts; else it has no network at all, and sockets of the file system alone
    """

    places: Tuple[Tuple[str, str], ...]
    uid: int
    gid: int
    network: bool = True

    def enter(self) -> None:
        """Enclose this process. For use between fork and exec, as root; ends the process where that fails, and says why on stderr."""
        try:
            _leave_profile()
            self._mount()
            if not self.network:
                _leave_network()
            os.setgroups(_groups(self.uid, self.gid))
            os.setresgid(self.gid, self.gid, self.gid)
            os.setresuid(self.uid, self.uid, self.uid)
        except Exception as error:  # pylint: disable=broad-exception-caught  # it would be lost between fork and exec
            os.write(2, ("the program can't be enclosed: %s\n" % error).encode())
            os._exit(126)

    def _mount(self) -> None:
        enter_private_namespace()
        sources = [os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for _path, source in self.places]
        for mount in table():
            try:
                _mount(None, mount.mount_point, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _flags(mount.options))
            except OSError:
                if mount.mount_point == "/":
                    raise
                # hidden below another mount, or of a user who lets nobody look: it can't be reached, or not be written
        # by descriptor, as one of the places may come to lie over another's source
        for (path, _source), source in zip(self.places, sources):
            _mount("/proc/self/fd/%d" % source, path, _MS_BIND)
            _mount(None, path, _MS_REMOUNT | _MS_BIND | _FLAGS["nosuid"] | _FLAGS["nodev"])
            os.close(source)


def show_read_only(directory: str, point: str) -> None:
    """Let a directory be seen at another place too, by this process and its children alone, who can't write to it there. For use between fork and exec, as
    root; ends the process where that fails, and says why on stderr."""
    try:
        enter_private_namespace()
        _mount(directory, point, _MS_BIND)
        _mount(None, point, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _FLAGS["nosuid"] | _FLAGS["nodev"])
        os.chdir(point)
    except Exception as error:  # pylint: disable=broad-exception-caught  # it would be lost between fork and exec
        os.write(2, ("%s can't be shown at %s: %s\n" % (directory, point, error)).encode())
        os._exit(126)


def places_for(wanted: Mapping[str, str]) -> Tuple[Tuple[str, str], ...]:
    """Return the places of an Enclosure for path -> directory, outer paths first. A path that this host does not have is left out, as
    nothing can be put there; its directory is writable where it lies."""
    there = {(path if os.path.isdir(path) else directory): directory for path, directory in wanted.items()}
    return tuple(sorted(there.items()))


def _flags(options: Tuple[str, ...]) -> int:
    return sum(_FLAGS[option] for option in options if option in _FLAGS)


def _mount(source: Optional[str], target: str, flags: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source) if source else None, os.fsencode(target), None, flags, None) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "%s can't be mounted: %s" % (target, os.strerror(number)))


def _leave_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, "a network namespace can't be made: %s" % os.strerror(number))


def _leave_profile() -> None:
    """Have AppArmor not confine the program that is started next by the profile of its path.

    Debian's profile of mysqld allows the production server's directories alone. This process is root and not confined, so it may
    ask for that, as ``aa-exec -p unconfined`` does; a copy of the program would do as well, but would not find its components.
    """
    if not os.path.isdir(_APPARMOR):
        return
    for path in _AT_EXEC:
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write("exec unconfined")
            return
        except OSError:
            continue


def _groups(uid: int, gid: int) -> List[int]:
    """Return the groups of a user: a key file of the server may be readable by one of them alone."""
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        return [gid]
