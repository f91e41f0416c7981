# SPDX-License-Identifier: GPL-3.0-or-later
"""Why no server answers: whether one is expected there again, or none ever will be."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, List, Optional

from ..host.errors import CommandError, NotNowError, StillpointError
from ..host.process import PATH, run
from ..host.processes import process_start
from .connection import ServerError, Unavailable

_PATTERNS = ("mariadb*.service", "mysql*.service", "mysqld*.service")
_NAME = re.compile(r"(mariadb|mysql|mysqld)(@.+)?\.service")
_PROGRAMS = re.compile(r"(mysqld|mariadbd)(-safe|_safe)?$")
_FRESH = 600.0  # seconds that a server which has just been started may take before it listens: it may have to recover
_RESTARTED = 15.0  # the same where systemd calls it started only when it listens
_TELLING = ("notify", "notify-reload", "forking")  # types of such units


@dataclass(frozen=True)
class Unit:
    """A server's systemd unit.

    :ivar state: active, inactive, failed, activating, deactivating, …
    :ivar enabled: systemd would start it at a boot, or something else does where it was never asked
    :ivar fresh: it was started so recently that its server may not listen yet
    """

    name: str
    state: str
    enabled: bool
    fresh: bool

    @property
    def expected(self) -> bool:
        """Whether its server is to answer before long, or when somebody has finished what it was stopped for."""
        if self.state == "active":
            return self.fresh
        return self.state not in ("inactive", "failed") or self.enabled


@contextmanager
def nothing_begun() -> Iterator[None]:
    """Have what passes by itself end the body as "not now": nothing has been locked or changed yet.

    :raises NotNowError: the server has no connection free, is stopped or restarting, ended the session, or is a Galera node outside of its cluster
    """
    try:
        yield
    except Unavailable as error:
        reason = error.reason or expected(error.socket)
        if reason is None:
            raise StillpointError(
                "%s; no server of this host is starting or stopped for a while: check login_unix_socket, login_host, login_port or config_file" % error
            ) from None
        raise NotNowError("%s (%s): nothing was locked or backed up; try again later" % (error, reason)) from None
    except ServerError as error:
        if error.node_not_ready:
            raise NotNowError(
                "this node of the Galera cluster takes no statements now (%s): nothing was locked or backed up; try again later" % error.text
            ) from None
        if not error.connection_lost:
            raise
        raise NotNowError(
            "the server ended the session before anything was locked (%s): is it being stopped? Nothing was backed up; try again later" % error.text
        ) from None


def expected(socket: Optional[str]) -> Optional[str]:
    """Return why a server is expected to answer again; None where nothing speaks for it: then the address is wrong, or no server is here."""
    known = units()
    for unit in known:
        if unit.expected:
            return "%s is %s" % (unit.name, unit.state)
    if known:
        return None
    age = _youngest_server()
    if age is not None:
        return "a server was started %d s ago" % age if age < _FRESH else None
    return "its socket is still there" if socket and os.path.exists(socket) else None


def units() -> List[Unit]:
    """Return the units of database servers that systemd knows here, those that are stopped too."""
    if not os.path.isdir("/run/systemd/system") or shutil.which("systemctl", path=PATH) is None:
        return []
    try:
        listed = run(["systemctl", "list-units", "--all", "--plain", "--no-legend", *_PATTERNS], timeout=30).stdout
        files = run(["systemctl", "list-unit-files", "--no-legend", *_PATTERNS], timeout=30, check=False).stdout
        names = {line.split()[0] for line in (listed + files).splitlines() if line.split() and _NAME.fullmatch(line.split()[0])}
        names = {name for name in names if "@." not in name}
        said = run(["systemctl", "show", "--property=" + ",".join(_PROPERTIES), "--", *sorted(names)], timeout=30).stdout if names else ""
    except CommandError:
        return []
    return list(_read_units(said))


_PROPERTIES = ("Id", "LoadState", "ActiveState", "UnitFileState", "Type", "ActiveEnterTimestampMonotonic")


def _read_units(said: str) -> Iterator[Unit]:
    seen = set()
    for block in said.split("\n\n"):
        facts = dict(line.partition("=")[::2] for line in block.splitlines())
        name = facts.get("Id", "")
        if facts.get("LoadState") != "loaded" or name in seen:
            continue
        seen.add(name)
        age = time.monotonic() - int(facts.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
        fresh = age < (_RESTARTED if facts.get("Type") in _TELLING else _FRESH)
        yield Unit(name, facts.get("ActiveState", ""), facts.get("UnitFileState") not in ("disabled", "masked"), fresh)


def _youngest_server() -> Optional[float]:
    """Return for how many seconds the server that was started last has run; None where none runs."""
    begun = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/comm" % pid, encoding="utf-8", errors="replace") as file:
                if _PROGRAMS.match(file.read().strip()):
                    begun.append(process_start(int(pid)) or 0)
        except OSError:
            continue  # it has ended
    return time.clock_gettime(time.CLOCK_BOOTTIME) - max(begun) / os.sysconf("SC_CLK_TCK") if begun else None
