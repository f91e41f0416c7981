# SPDX-License-Identifier: GPL-3.0-or-later
"""A scratch server: the same program as another one, on a copy of its data, seen by nobody and writing nowhere else.

It finds the copy under the paths that the data had on its server (where this host has them), so that whatever names them (tablespaces, indexes of binary logs,
symlinks) leads into the copy and not to what is live; all else of the host is read-only to it. It reads no option file, listens on a
private socket alone, replicates nothing, runs no event and repairs nothing. Grants are not looked at: root needs no password. A
statement about grants is refused until FLUSH PRIVILEGES, after which a new session has to log in as one would on the server itself.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import StillpointError
from ..host.process import end, kill, start, undisturbed
from ..host.processes import io_counts, process_start, processor_time
from ..host.run_directory import SCRATCH, make_run_directory
from ..host.sandbox import Enclosure, places_for
from .connection import Login
from .messages import bare
from .recovery import LOG_MOST, PREPARED, Recovery, is_of_host, said
from .settings import PLACED, Settings

START_LIMIT = 4 * 3600.0  # seconds; a recovery reads all of the redo log
# Seconds without a byte read or written and hardly any processor time: MySQL is known to sleep for ever on a broken page at its start.
STALL_LIMIT = 180.0
_STALL_CPU = 2.0
STOP_LIMIT = 600.0
_POLL = 0.1

_BUFFER_POOL = 128 << 20  # bytes: recovery needs room for the pages that the redo log names

_READY = "ready for connections"

_ENDED_BY_OTHERS = (-signal.SIGKILL, -signal.SIGTERM)  # the kernel, where memory runs out; a person

# variable that names the directory of each role
_VARIABLE = dict(zip(("data", "redo", "undo", "aria", "rocksdb", "rocksdb_wal"), PLACED))


class ScratchFailed(StillpointError):
    """A scratch server did not start, or ended.

    :ivar of_host: as far as can be told for a reason that lies in the host, and not in the data
    """

    def __init__(self, message: str, recovery: Optional[Recovery] = None, *, of_host: bool = False) -> None:
        super().__init__(message)
        self.recovery = recovery
        self.of_host = of_host


@dataclass(frozen=True)
class Scratch:
    """A scratch server that runs.

    :ivar login: for a Session with it
    :ivar socket: for a client program of it, as root without a password
    :ivar directory: its own, which goes with it
    """

    login: Login
    socket: str
    directory: str
    program: str
    recovery: Recovery
    process: "subprocess.Popen[Any]"
    pulse: "Pulse"

    def said(self) -> Recovery:
        """Return what it has said up to now."""
        return said(_log(self.directory), self.recovery.seconds)

    def check(self, *others: "Pulse") -> None:
        """Raise ScratchFailed if it has ended meanwhile, or does nothing any more. For use while it has something to do.

        :param others: of programs that it may have to wait for: it has not stalled as long as one of them works
        """
        stalled = [each.stalled() for each in (self.pulse, *others)]  # each has to be asked now and then
        if all(stalled):
            raise _given_up("the scratch server stopped working", self.said(), self.directory)
        if self.process.poll() is not None:
            raise _ended("the scratch server ended", self.process.returncode, self.said(), self.directory)


class Pulse:
    """Whether a process still does something, by what the kernel counts of it."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._since = time.monotonic()
        self._bytes, self._cpu = self._counts()

    def restart(self) -> None:
        """Count from now on: up to now it had nothing to do."""
        self._since = time.monotonic()

    def stalled(self) -> bool:
        """Tell whether it has done nothing for STALL_LIMIT; to be asked now and then."""
        now = time.monotonic()
        moved, cpu = self._counts()
        if moved != self._bytes or cpu > self._cpu + _STALL_CPU:
            self._since, self._bytes, self._cpu = now, moved, cpu
        return now > self._since + STALL_LIMIT

    def _counts(self) -> Tuple[Dict[str, int], float]:
        """Return its counts of bytes and its processor time in seconds; none of either where it has ended, which is for others to see."""
        return io_counts(self._pid), processor_time(self._pid)


@contextmanager
def scratch_server(
    settings: Settings,
    where: Mapping[str, str],
    *,
    discard: bool,
    binary_log: bool = False,
    options: Sequence[str] = (),
    room: Optional[str] = None,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[Scratch]:
    """Start a scratch server and give it when it is ready; end it whatever happens, also when this process is killed.

    :param where: for each of the settings' paths, the directory in which that part of the copy lies now
    :param discard: the copy is thrown away afterwards: end the server at once, not in order
    :param binary_log: write binary logs where the settings say; their directory is then one of `where`
    :param room: a directory of the server's user for temporary files, which goes with the copy; default: its own in memory
    :param options: more options, for the last word on what the settings or this module say
    :param tick: called a few times a second while it starts
    :raises ScratchFailed: it does not start, says why not, or does not stop in order
    """
    program = settings.find_program()
    missing = [path for _role, path in settings.paths if path not in where]
    if missing:
        raise StillpointError("a scratch server needs %s too, which the copy does not have" % missing[0])
    uid, gid = user_of(where[settings.datadir])
    directory = make_directory()
    try:
        os.chown(directory, uid, gid)
        temporary = directory
        if room is not None:  # under a name that none of the copy's directories comes to lie over
            temporary = os.path.join(directory, "tmp")
            os.mkdir(temporary)
        places = places_for({**where, directory: directory, temporary: room or directory})
        absent = [path for path in where if not os.path.isdir(path)]
        argv = [program, *_options(settings, where, absent, directory, binary_log), "--tmpdir=%s" % temporary, *options]
        if uid == 0:
            argv.append("--user=root")  # a server that runs as root has to be told that this is meant
        began = time.monotonic()
        with open(os.path.join(directory, "output"), "wb") as output, _running(
            argv, Enclosure(places, uid, gid, settings.asks_for_keys), output, discard
        ) as process:
            log = _wait(process, directory, began, tick)
            socket = os.path.join(directory, "sock")
            login = Login(login_user="root", login_unix_socket=socket)
            yield Scratch(login, socket, directory, program, said(log, time.monotonic() - began), process, Pulse(process.pid))
    finally:
        with undisturbed():
            shutil.rmtree(directory, ignore_errors=True)


def user_of(datadir: str) -> Tuple[int, int]:
    """Return user and group that the server of a data directory runs as: its owner's."""
    status = os.stat(datadir)
    try:
        return status.st_uid, pwd.getpwuid(status.st_uid).pw_gid
    except KeyError:
        return status.st_uid, status.st_gid


@contextmanager
def _running(argv: Sequence[str], enclosure: Enclosure, output: Any, discard: bool) -> Iterator["subprocess.Popen[Any]"]:
    process: Optional["subprocess.Popen[Any]"] = None
    in_order = False
    try:
        with undisturbed():
            process = start(argv, dies_with_us=True, gives_way=True, in_child=enclosure.enter, stdout=output, stderr=output, cwd="/")
        yield process
        in_order = not discard
    finally:
        if process is not None:
            with undisturbed():
                _stop(process, in_order)


def _stop(process: "subprocess.Popen[Any]", in_order: bool) -> None:
    if in_order and process.poll() is None:
        if not end(process, STOP_LIMIT):
            raise ScratchFailed("the scratch server did not stop within %g s" % STOP_LIMIT, of_host=True)
        if process.returncode != 0:
            raise ScratchFailed(
                "the scratch server did not stop in order (exit status %d)" % process.returncode, of_host=process.returncode in _ENDED_BY_OTHERS
            )
    kill(process, STOP_LIMIT)


def _wait(process: "subprocess.Popen[Any]", directory: str, began: float, tick: Callable[[], None]) -> str:
    """Wait until the server is ready, and return what it said."""
    pulse = Pulse(process.pid)
    while True:
        tick()
        ended = process.poll()
        log = _log(directory)
        if ended is not None:
            raise _ended("the server does not start", ended, said(log, time.monotonic() - began), directory)
        if _READY in log:
            return log
        if time.monotonic() > began + START_LIMIT:
            raise _given_up("the server was not ready within %g s" % START_LIMIT, said(log, time.monotonic() - began), directory)
        if pulse.stalled():
            raise _given_up("the server stopped working while it started", said(log, time.monotonic() - began), directory)
        time.sleep(_POLL)


def _ended(what: str, status: int, recovery: Recovery, directory: str) -> ScratchFailed:
    """Return the error for a server that has ended by itself, with its own words for the cause."""
    how = "signal %d" % -status if status < 0 else "exit status %d" % status
    # an application's prepared transactions are no reason; the server's own are, and then it says so as an error
    undecided = [error for error in recovery.errors if PREPARED.search(error)]
    causes = [*undecided, *recovery.errors, _last(_log(directory)) or "it said nothing"]
    of_host = [cause for cause in causes if is_of_host(cause)]
    text = "%s: %s (%s)" % (what, (of_host or causes)[0], how)
    silent = status >= 0 and not recovery.errors  # it came to nothing before it had anything to say of its data
    return ScratchFailed(text, recovery, of_host=bool(of_host) or silent or status in _ENDED_BY_OTHERS)


def _given_up(what: str, recovery: Recovery, directory: str) -> ScratchFailed:
    """Return the error for a server that was ended because nothing came of it. MySQL is known to wait for ever where a page is broken,
    and says so before; without a word against the data, it may as well be the host."""
    against = [error for error in recovery.errors if not is_of_host(error)]
    text = "%s: %s" % (what, recovery.errors[-1] if recovery.errors else _last(_log(directory)) or "it said nothing")
    return ScratchFailed(text, recovery, of_host=not against)


def _last(log: str) -> str:
    lines = [line for line in log.splitlines() if line.strip()]
    return bare(lines[-1]) if lines else ""


def _log(directory: str) -> str:
    text = ""
    for name in ("output", "error.log"):
        try:
            with open(os.path.join(directory, name), "rb") as file:
                text += file.read(LOG_MOST).decode("utf-8", "replace")
        except FileNotFoundError:
            pass
    return text


def make_directory() -> str:
    """Make a run directory that `leftovers.clean` knows the owner of."""
    parent = make_run_directory()
    number = 0
    while True:
        directory = os.path.join(parent, "%s-%d-%d-%d" % (SCRATCH, os.getpid(), process_start(os.getpid()) or 0, number))
        try:
            os.mkdir(directory, 0o700)
            return directory
        except FileExistsError:
            number += 1


def _options(settings: Settings, where: Mapping[str, str], absent: Sequence[str], directory: str, binary_log: bool) -> List[str]:
    """Return the options of a scratch server. Those of the settings are given as ``loose``: another version may not know one."""
    datadir = settings.datadir
    values: Dict[str, str] = dict(settings.variables)
    for role, path in settings.paths:
        if path in absent and role in _VARIABLE:
            values[_VARIABLE[role]] = where[path]
    if datadir in absent:
        for name in PLACED:
            if values.get(name, "").startswith(datadir):
                values[name] = where[datadir] + values[name][len(datadir) :]
    chosen = [
        "--no-defaults",
        "--datadir=%s" % (where[datadir] if datadir in absent else datadir),
        "--socket=%s/sock" % directory,
        "--pid-file=%s/pid" % directory,
        "--log-error=%s/error.log" % directory,
        "--secure-file-priv=%s" % directory,
        "--skip-networking",
        "--skip-grant-tables",
        "--event-scheduler=DISABLED",
        "--relay-log=%s/relay" % directory,
        "--myisam-recover-options=OFF",  # a table that only opens after a repair must be seen, not repaired on the way
        "--performance-schema=OFF",
        "--max-connections=10",
        "--wait-timeout=31536000",  # a session may be idle while another one works, which may take days; no server takes more
        "--table-open-cache=400",
        "--key-buffer-size=8M",
        "--innodb-buffer-pool-size=%d" % _BUFFER_POOL,
        "--innodb-buffer-pool-load-at-startup=OFF",
        "--innodb-buffer-pool-dump-at-shutdown=OFF",
        "--innodb-use-native-aio=OFF",  # the kernel's contexts for it are limited in number, and the production server has its share
        "--innodb-flush-log-at-trx-commit=2",
        "--sync-binlog=0",
        *(_mariadb(directory) if settings.is_mariadb else _mysql(settings.version)),
        *("--loose-%s=%s" % (name.replace("_", "-"), value) for name, value in values.items()),
        *("--%splugin-load%s=%s" % _loading(settings, plugin) for plugin in settings.plugins_here()),
    ]
    if binary_log:
        chosen += ["--log-bin=%s" % settings.log_bin, "--log-bin-index=%s" % settings.log_bin_index]
    else:
        chosen.append("--skip-log-bin")
    return chosen


def _mariadb(directory: str) -> List[str]:
    return [
        "--skip-slave-start",
        # or it would open the relay logs of the sources that the copy knows of, and not start without them
        "--master-info-file=%s/master.info" % directory,
        "--relay-log-info-file=%s/relay-log.info" % directory,
        "--server-id=1",
        "--aria-recover-options=OFF",
        "--aria-pagecache-buffer-size=8M",
        "--innodb-encryption-threads=0",  # or it would begin to encrypt anew what has an old key
        "--log-warnings=4",
    ]


def _mysql(version: Tuple[int, ...]) -> List[str]:
    options = ["--log-error-verbosity=3", "--skip-replica-start" if version >= (8, 0, 26) else "--skip-slave-start"]
    options.append("--server-id=0")  # then it does not look for the relay logs of the sources that the copy knows of
    if version >= (8, 0):
        options += ["--persisted-globals-load=OFF", "--mysqlx=OFF", "--upgrade=NONE", "--loose-auto-generate-certs=OFF"]
        options += ["--loose-sha256-password-auto-generate-rsa-keys=OFF", "--loose-caching-sha2-password-auto-generate-rsa-keys=OFF"]
    return options


def _loading(settings: Settings, plugin: str) -> Tuple[str, str, str]:
    early = not settings.is_mariadb and "keyring" in plugin
    return ("early-", "", plugin) if early else ("", "-add", plugin)
