# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's process and its systemd unit, for a restore: found, stopped, started, and asked whether it answers."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from . import durable
from .errors import CommandError, StillpointError
from .mounts import is_below
from .process import PATH, run, undisturbed

PROGRAMS = ("mysqld", "mariadbd")  # and what begins so: mysqld_safe would start the server again

UNITS = "/etc/systemd/system"
_FORBIDDEN = "stillpoint-restore.conf"

_STOP_TIMEOUT = 1800.0  # a large buffer pool is written out first; Debian's own unit gives it 900 s
_START_TIMEOUT = 1800.0  # it may have to recover
_ANSWER_TIMEOUT = 60.0

_NEW_CLUSTER = "_WSREP_NEW_CLUSTER"

_LISTENING = 0x10000  # __SO_ACCEPTCON in /proc/net/unix
_PROTOCOL_10, _ERROR = 0x0A, 0xFF  # first byte of what a server says to whoever connects


@dataclass(frozen=True)
class Running:
    """A server's process that works in a data directory.

    :ivar unit: the systemd unit whose main process it is; None when it is none's
    """

    pid: int
    program: str
    unit: Optional[str]


def running_in(directory: str) -> Optional[Running]:
    """Return the server that works in a data directory (it has that for its working directory); None when there is none."""
    try:
        wanted = os.stat(directory)
    except OSError:
        return None
    return _running(lambda link: os.path.samestat(os.stat(link), wanted))


def running_below(directory: str) -> Optional[Running]:
    """Return a server that works in a directory or anywhere below it; None when there is none."""
    return _running(lambda link: is_below(os.readlink(link), directory))


def _running(works_there: Callable[[str], bool]) -> Optional[Running]:
    """Return the first server of which something is true, by the link to its working directory."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/comm" % name, encoding="utf-8", errors="replace") as file:
                program = file.read().strip()
            if program.startswith(PROGRAMS) and works_there("/proc/%s/cwd" % name):
                return Running(int(name), program, _unit(int(name)))
        except OSError:
            continue  # it has ended
    return None


def holders(path: str) -> List[int]:
    """Return the processes of servers that have a file open."""
    try:
        wanted = os.stat(path)
    except OSError:
        return []
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/comm" % name, encoding="utf-8", errors="replace") as file:
                if not file.read().startswith(PROGRAMS):
                    continue
            if any(_is_file("/proc/%s/fd/%s" % (name, each), wanted) for each in os.listdir("/proc/%s/fd" % name)):
                found.append(int(name))
        except OSError:
            continue  # it has ended
    return found


def _is_file(path: str, wanted: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), wanted)
    except OSError:
        return False  # closed since


def systemd_runs() -> bool:
    """Tell whether units can be asked for here."""
    return os.path.isdir("/run/systemd/system") and shutil.which("systemctl", path=PATH) is not None


def _unit(pid: int) -> Optional[str]:
    """Return the unit whose main process this is. Merely to run in a unit's control group is not enough: a server that was
    started by hand runs in that of the login."""
    unit = unit_of(pid)
    if unit is None or not systemd_runs():
        return None
    main = _show(unit, "MainPID")
    return unit if main in (str(pid), str(_parent(pid))) else None


def _parent(pid: int) -> int:
    with open("/proc/%d/status" % pid, encoding="utf-8", errors="replace") as file:
        match = re.search(r"^PPid:\s+(\d+)", file.read(), re.MULTILINE)
    return int(match.group(1)) if match else 0


def _show(unit: str, what: str) -> str:
    return run(["systemctl", "show", "--property=" + what, "--value", "--", unit], check=False).stdout.strip()


def exists(unit: str) -> bool:
    """Tell whether systemd here knows a unit and would start it."""
    return systemd_runs() and _show(unit, "LoadState") == "loaded"


def is_active(unit: str) -> bool:
    """Tell whether systemd runs a unit now."""
    return systemd_runs() and _show(unit, "ActiveState") == "active"


def start_again(unit: str) -> None:
    """Start a unit that was stopped for a while.

    :raises CommandError: it does not start
    """
    run(["systemctl", "start", "--", unit], timeout=_START_TIMEOUT)


def triggers(unit: str) -> Tuple[str, ...]:
    """Return the units that would start a unit by themselves (sockets, timers, paths) and that are at it now."""
    names = _show(unit, "TriggeredBy").split() if systemd_runs() else []
    return tuple(name for name in names if _show(name, "ActiveState") == "active")


def stop(unit: str, triggered_by: Sequence[str] = ()) -> None:
    """Stop a unit, and first what would start it again.

    :raises CommandError: it does not stop
    """
    run(["systemctl", "stop", "--", *triggered_by, unit], timeout=_STOP_TIMEOUT)


def forbid(unit: str) -> None:
    """Have systemd refuse to start a unit, after a power cut and a boot too, until `allow`.

    :raises StillpointError: it can't be forbidden
    """
    path = forbidding(unit)
    text = (
        "# A restore replaces the data of this server. If it was interrupted, `stillpoint restore JOB` finishes it and removes this file.\n"
        "[Unit]\nAssertPathExists=!%s\n" % path.replace("%", "%%")
    )
    try:
        directory = os.path.dirname(path)
        if not os.path.isdir(directory):
            os.mkdir(directory)
            os.chmod(directory, 0o755)
            durable.sync_directory(UNITS)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        durable.sync_directory(directory)
    except OSError as error:
        raise StillpointError("systemd can't be told to leave %s stopped: %s (%s)" % (unit, error.strerror, path)) from error
    run(["systemctl", "daemon-reload"])
    if path not in _show(unit, "DropInPaths").split():
        raise StillpointError("systemd does not heed %s, which is to leave %s stopped while its data is replaced" % (path, unit))


def allow(unit: str) -> None:
    """Let systemd start a unit again that `forbid` keeps from it; idempotent.

    :raises StillpointError: the file that forbids it can't be removed
    """
    path = forbidding(unit)
    directory = os.path.dirname(path)
    try:
        if os.path.lexists(path):
            os.unlink(path)
            durable.sync_directory(directory)
        if os.path.isdir(directory) and not os.listdir(directory):
            os.rmdir(directory)
    except OSError as error:
        raise StillpointError("%s, which keeps %s from being started, can't be removed: %s" % (path, unit, error.strerror)) from error
    run(["systemctl", "daemon-reload"])  # also where the file is gone: who removed it may have been killed before this


def forbidding(unit: str) -> str:
    """Return the file that has systemd refuse to start a unit."""
    return os.path.join(UNITS, unit + ".d", _FORBIDDEN)


def start(unit: str, directory: str, triggered_by: Sequence[str] = (), new_cluster: bool = False) -> None:
    """Start a unit, what had been stopped with it, and wait until its server answers from a data directory.

    :param new_cluster: as the first node of a Galera cluster
    :raises StillpointError: it does not start, or does not answer
    """
    try:
        with _first_node() if new_cluster else nullcontext():
            run(["systemctl", "start", "--", *triggered_by, unit], timeout=_START_TIMEOUT)
    except CommandError as error:
        raise StillpointError("%s does not start (journalctl -u %s says why)" % (unit, unit)) from error
    deadline = time.monotonic() + _ANSWER_TIMEOUT
    while True:
        server = running_in(directory)
        if server is not None and answers(server.pid):
            return
        if time.monotonic() > deadline or _show(unit, "ActiveState") == "failed":
            raise StillpointError("%s was started, and its server does not answer (journalctl -u %s says why)" % (unit, unit))
        time.sleep(0.5)


@contextmanager
def _first_node() -> Iterator[None]:
    """Have MariaDB's unit begin a cluster if it is started now, as galera_new_cluster does it, and not any more afterwards."""
    try:
        run(["systemctl", "set-environment", _NEW_CLUSTER + "=--wsrep-new-cluster"])
        yield
    finally:
        with undisturbed():
            run(["systemctl", "unset-environment", _NEW_CLUSTER])


def answers(pid: int) -> bool:
    """Tell whether a server greets who connects to one of its sockets. No account is needed for that."""
    return any(_greets(path) for path in _sockets(pid))


def _sockets(pid: int) -> List[str]:
    """Return the paths of the sockets that a process listens on."""
    own = set()
    try:
        for name in os.listdir("/proc/%d/fd" % pid):
            try:
                match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink("/proc/%d/fd/%s" % (pid, name)))
            except OSError:
                continue  # closed since
            if match:
                own.add(match.group(1))
        with open("/proc/net/unix", encoding="utf-8", errors="surrogateescape") as file:
            lines = [line.rstrip("\n").split(None, 7) for line in file.readlines()[1:]]
    except OSError:
        return []
    return [line[7] for line in lines if len(line) == 8 and line[6] in own and int(line[3], 16) & _LISTENING]


def _greets(path: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(2)
            connection.connect(path)
            said = connection.recv(5)
    except OSError:
        return False
    return len(said) == 5 and said[4] in (_PROTOCOL_10, _ERROR)


def unit_of(pid: int) -> Optional[str]:
    """Return the systemd service that a process belongs to; None when it belongs to none."""
    try:
        with open("/proc/%d/cgroup" % pid, encoding="utf-8") as file:
            groups = file.read()
    except OSError:
        return None
    match = re.search(r"/([^/\n]+\.service)(?:/|$)", groups, re.MULTILINE)
    return match.group(1) if match else None
