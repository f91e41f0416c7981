# SPDX-License-Identifier: GPL-3.0-or-later
# Private to this collection: may change with any release.
"""Files on a host that belong together, and the systemd units among them.

What has to be done is found by looking at the host, not by what a deployment before has done: one that broke off is made up for.
"""

from __future__ import annotations

import fcntl
import glob
import grp
import os
import pwd
import stat
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from ._core.host.durable import sync_directory
from ._core.host.errors import StillpointError
from ._core.host.process import run

STARTED, ENABLED = "started", "enabled"

UNIT_SUFFIXES = (".timer", ".service")
READ_ONLY = ("/usr", "/boot", "/efi", "/etc")  # under ProtectSystem=full: systemd.exec(5)

_NEW = ".stillpoint-new"
_MARKED_LINES = 5
_PROPERTIES = "Id,UnitFileState,ActiveState,NeedDaemonReload,ActiveEnterTimestampMonotonic"
_TIMEOUT = 300.0
_LOCK_TIMEOUT = 60.0
_HIDDEN = "%s: not shown, as its notify may hold a secret\n"
_SECRET_KEY = b"\nnotify:"


@dataclass(frozen=True)
class File:
    """A file as it shall be.

    :ivar secret: what it holds is never shown
    :ivar read_only: it is needed only where one of these paths leads below a directory that systemd makes read-only
    """

    path: str
    content: bytes
    mode: int
    secret: bool = False
    read_only: Tuple[str, ...] = ()

    @property
    def needed(self) -> bool:
        real = [os.path.realpath(path) for path in self.read_only]
        return not real or any(path == top or path.startswith(top + "/") for path in real for top in READ_ONLY)


@dataclass(frozen=True)
class Unit:
    """A unit as it shall be.

    :ivar state: `STARTED` (and enabled), or `ENABLED` alone
    :ivar reads: files that it reads only when it starts: one that is younger than its start restarts it
    """

    name: str
    state: str = STARTED
    reads: Tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """All that shall be on the host.

    :ivar mark: text in the first lines of every file that is ours
    :ivar directory: of the units
    :ivar directories: others that the files lie in, made with mode 0700
    :ivar searched: patterns of paths, among which those that carry the mark and are not wanted are removed
    :ivar links: patterns of links that systemd makes for enabled units; those of units that are not wanted are disabled
    """

    mark: str
    directory: str
    directories: Tuple[str, ...] = ()
    searched: Tuple[str, ...] = ()
    links: Tuple[str, ...] = ()
    files: Tuple[File, ...] = ()
    units: Tuple[Unit, ...] = ()


@dataclass(frozen=True)
class UnitState:
    """What systemd says of a unit."""

    enabled: bool = False
    active: bool = False
    runs: bool = False  # it is active, or about to be started by systemd itself
    stale: bool = False  # its files have changed since systemd read them
    started: Optional[float] = None  # seconds of the monotonic clock


@dataclass
class Changes:
    """What there is to do, in words and for a diff; nothing secret."""

    actions: List[str] = field(default_factory=list)
    diff: List[Dict[str, str]] = field(default_factory=list)

    def add(self, action: str, *diff: Dict[str, str]) -> None:
        self.actions.append(action)
        self.diff += diff


def file(value: Mapping[str, Any]) -> File:
    """Return the File that the action describes."""
    return File(value["path"], value["content"].encode("utf-8"), int(value["mode"], 8), value["secret"], tuple(value["read_only"]))


def unit(value: Mapping[str, Any]) -> Unit:
    """Return the Unit that a module's option describes."""
    return Unit(value["name"], value["state"], tuple(value["reads"]))


def systemctl(*arguments: str) -> str:
    """Run systemctl and return what it prints.

    :raises CommandError: it fails
    """
    return run(["systemctl", *arguments], timeout=_TIMEOUT).stdout


def ensure(wanted: Wanted, *, check: bool, remove: bool = True, ask: Callable[..., str] = systemctl) -> Changes:
    """Have the files and units as wanted, and none of ours besides; return what that took.

    :param check: change nothing
    :param remove: False leaves files that are not wanted, and only stops and disables the units among them
    :param ask: runs systemctl
    :raises StillpointError: another deployment is at work, or something can't be done
    """
    with _alone(wanted.directory):
        return _Deployment(wanted, check, ask).perform(remove)


class _Deployment:
    """One pass over the host: first all files, then one reload, then the units."""

    def __init__(self, wanted: Wanted, check: bool, ask: Callable[..., str]) -> None:
        self._wanted = wanted
        self._check = check
        self._ask = ask
        self._changes = Changes()
        self._written: Set[str] = set()
        self._files = [file for file in wanted.files if file.needed]
        self._states = unit_states(ask, [unit.name for unit in wanted.units])
        self._reload = any(state.stale for state in self._states.values())

    def perform(self, remove: bool) -> Changes:
        obsolete = _marked(self._wanted, {file.path for file in self._files})
        self._stop([path for path in obsolete if os.path.dirname(path) == self._wanted.directory])
        for directory in self._wanted.directories if self._wanted.files else ():
            self._make_directory(directory)
        for file in self._files:
            self._write(file)
        for path in obsolete if remove else ():
            self._remove(path)
        self._run_units()
        return self._changes

    def _do(self, *arguments: str) -> None:
        if not self._check:
            self._ask(*arguments)

    def _stop(self, obsolete: Sequence[str]) -> None:
        """Stop and disable units whose file goes, and instances that are enabled and not wanted. The files are still there, so one that
        breaks off here is made up for."""
        wanted = {unit.name for unit in self._wanted.units}
        links = {os.path.basename(path) for pattern in self._wanted.links for path in glob.glob(pattern)}
        files = {os.path.basename(path) for path in obsolete}
        names = sorted((links | {name for name in files if name.endswith(UNIT_SUFFIXES) and "@." not in name}) - wanted)
        states = unit_states(self._ask, names)
        running = [name for name in names if name in links or states[name].enabled or states[name].runs]
        if not running:
            return
        for name in running:
            self._changes.add("stop and disable %s" % name)
        # not `disable --now`: it takes the link away first, and one whose link is gone is not found again
        self._do("stop", *running)
        self._do("disable", "--no-reload", *running)
        self._reload = True

    def _make_directory(self, path: str) -> None:
        before = _attributes(path)
        after = _described(0o700, 0, 0)
        if before == after and os.path.isdir(path) and not os.path.islink(path):
            return
        self._changes.add("make the directory %s" % path, _difference(path, before, after))
        if self._check:
            return
        with _naming(path):
            os.makedirs(path, 0o700, exist_ok=True)
            os.chown(path, 0, 0)
            os.chmod(path, 0o700)
            sync_directory(os.path.dirname(path))

    def _write(self, file: File) -> None:
        content = _content(file.path)
        before, after = _attributes(file.path), _described(file.mode, 0, 0)
        if content == file.content and before == after:
            return
        self._written.add(file.path)
        self._reload = self._reload or file.path.startswith(self._wanted.directory + "/")
        secret = file.secret or (content is not None and _SECRET_KEY in b"\n" + content)
        diff = [] if content == file.content else [{"prepared": _HIDDEN % file.path} if secret else _texts(file.path, content, file.content)]
        self._changes.add("write %s" % file.path, *diff, *([] if before == after or content is None else [_difference(file.path, before, after)]))
        if not self._check:
            with _naming(file.path):
                os.makedirs(os.path.dirname(file.path), 0o755, exist_ok=True)
                _replace(file)

    def _remove(self, path: str) -> None:
        self._reload = self._reload or path.startswith(self._wanted.directory + "/")
        self._changes.add("remove %s" % path, _difference(path, "present", "absent"))
        if self._check:
            return
        with _naming(path):
            with suppress(FileNotFoundError):
                os.unlink(path)
            directory = os.path.dirname(path)
            if directory.endswith(".d"):
                with suppress(OSError):  # something of somebody else's is in it
                    os.rmdir(directory)
                    directory = os.path.dirname(directory)
            sync_directory(directory)

    def _run_units(self) -> None:
        """Enable, start and restart what has to be; systemd reads its files once before, if they have changed."""
        units = [(unit, self._states[unit.name]) for unit in self._wanted.units]
        enable = [unit.name for unit, state in units if not state.enabled]
        start = [unit.name for unit, state in units if unit.state == STARTED and not state.runs]
        restart = [unit.name for unit, state in units if state.active and unit.name not in start and self._outdated(unit, state)]
        for verb, names in (("enable", enable), ("start", start), ("restart", restart)):
            for name in names:
                self._changes.add("%s %s" % (verb, name))
        if enable:
            self._do("enable", *enable)  # reads all files anew at its end
        elif self._reload:
            self._do("daemon-reload")
        for verb, names in (("start", start), ("restart", restart)):
            if names:
                self._do(verb, *names)

    def _outdated(self, unit: Unit, state: UnitState) -> bool:
        """Tell whether a file that a unit reads at its start is younger than that. A clock that was set back must not restart it for ever."""
        if not unit.reads:
            return False
        if self._written.intersection(unit.reads):
            return True
        now = time.time()
        began = now - (time.monotonic() - (state.started or 0.0))
        changed = [os.lstat(path).st_ctime for path in unit.reads if os.path.lexists(path)]
        return any(began < each <= now for each in changed)


def unit_states(ask: Callable[..., str], names: Sequence[str]) -> Dict[str, UnitState]:
    """Return what systemd says of each unit, and of all that it has loaded whose name begins with ``stillpoint``."""
    states = {name: UnitState() for name in names}
    if not names:
        return states
    for block in ask("show", "--property=" + _PROPERTIES, "--", *names, "stillpoint*").split("\n\n"):
        said = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if said.get("Id"):
            states[said["Id"]] = UnitState(
                enabled=said.get("UnitFileState") == "enabled",
                active=said.get("ActiveState") in ("active", "reloading"),
                runs=said.get("ActiveState") in ("active", "reloading", "activating"),
                stale=said.get("NeedDaemonReload") == "yes",
                started=int(said.get("ActiveEnterTimestampMonotonic") or 0) / 1e6,
            )
    return states


def _marked(wanted: Wanted, keep: Set[str]) -> List[str]:
    """Return the files that carry the mark and are not wanted, and what a deployment that broke off has left of its own."""
    found = sorted({path for pattern in wanted.searched for path in glob.glob(pattern)} - keep)
    marked = [path for path in found if not os.path.islink(path) and os.path.isfile(path) and _carries(path, wanted.mark)]
    folders = {os.path.dirname(path) for path in [*wanted.searched, *keep]}
    return marked + sorted(path for folder in folders for path in glob.glob(os.path.join(folder, ".*" + _NEW)))


def _carries(path: str, mark: str) -> bool:
    with _naming(path), open(path, encoding="utf-8", errors="replace") as file:
        return any(line.startswith("# " + mark) for line, _number in zip(file, range(_MARKED_LINES)))


def _content(path: str) -> Optional[bytes]:
    """Return what a file holds; None where there is none, or something else that will be replaced."""
    try:
        if os.path.islink(path):
            return None
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StillpointError("%s can't be read: %s" % (path, error.strerror)) from error


def _attributes(path: str) -> str:
    """Return owner and mode as lines; "" where there is nothing."""
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return ""
    if stat.S_ISLNK(info.st_mode):
        return "a link to %s" % os.readlink(path)
    return _described(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)


def _described(mode: int, uid: int, gid: int) -> str:
    return "owner %s:%s\nmode %04o" % (_name(pwd.getpwuid, uid), _name(grp.getgrgid, gid), mode)


def _name(ask: Callable[[int], Any], number: int) -> str:
    try:
        return str(ask(number)[0])
    except KeyError:
        return str(number)


def _texts(path: str, before: Optional[bytes], after: bytes) -> Dict[str, str]:
    return {
        "before_header": path,
        "after_header": path,
        "before": (before or b"").decode("utf-8", "replace"),
        "after": after.decode("utf-8", "replace"),
    }


def _difference(path: str, before: str, after: str) -> Dict[str, str]:
    return {"before_header": path, "after_header": path, "before": before + "\n" if before else "", "after": after + "\n"}


def _replace(file: File) -> None:
    """Put a file in its place, as a whole or not at all, whenever the host goes down."""
    directory, name = os.path.split(file.path)
    new = os.path.join(directory, "." + name + _NEW)
    with suppress(FileNotFoundError):
        os.unlink(new)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(file.content)
        os.fchown(out.fileno(), 0, 0)
        os.fchmod(out.fileno(), file.mode)
        out.flush()
        os.fsync(out.fileno())
    os.replace(new, file.path)
    sync_directory(directory)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Turn an OSError into a sentence about a path."""
    try:
        yield
    except OSError as error:
        raise StillpointError("%s can't be put in order: %s" % (error.filename or path, error.strerror)) from error


@contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Keep other deployments off this host.

    :raises StillpointError: one is at work, and does not end in time
    """
    with _naming(directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StillpointError("another deployment has been at work on this host for %d s: let it end, then deploy again" % _LOCK_TIMEOUT) from None
                time.sleep(0.2)
        yield
    finally:
        os.close(descriptor)
