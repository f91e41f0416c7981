# SPDX-License-Identifier: GPL-3.0-or-later
"""What a vault is: its directories, its user, how long it keeps what arrived, and how often each host delivers."""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass, field, fields, replace
from typing import Any, Callable, Dict, Mapping, Optional, Sequence

from ..host.errors import StillpointError, UsageError
from ..job.reader import nearest, shown

SETTINGS = "/etc/stillpoint/vault.yml"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SECONDS = {"h": 3600, "d": 86400, "w": 7 * 86400}
_LENGTH = re.compile(r"([1-9][0-9]{0,4})([hdw])")
_COUNTING = ("last", "hourly", "yearly")


@dataclass(frozen=True)
class Keep:
    """How long what arrived is kept, by the vault's own clock.

    :ivar within: seconds during which everything is kept
    :ivar daily: for how many days that have an arrival the first one is kept; `weekly` and `monthly` likewise
    """

    within: int = 30 * 86400
    daily: int = 0
    weekly: int = 8
    monthly: int = 12


@dataclass(frozen=True)
class Settings:
    """A vault, as its file describes it.

    :ivar directory: the directory of all repositories, one file system
    :ivar user: whom the REST server runs as
    :ivar accounts: the file of the hosts' HTTP accounts, as htpasswd(1) writes it
    :ivar password: the file of the keeper's password, which opens every repository
    :ivar every: seconds within which a host delivers; `hosts` has the hosts that differ, in this and in `keep`
    :ivar metrics: a directory of node_exporter's textfile collector
    :ivar quota: bytes that one host may hold before there is an alarm; None: as many as there is room for
    """

    directory: str = "/srv/stillpoint"
    state: str = "/var/lib/stillpoint/vault"
    user: str = "stillpoint-vault"
    accounts: str = "/etc/stillpoint/vault/htpasswd"
    password: str = "/etc/stillpoint/vault/password"
    restic: str = "restic"
    service: str = "stillpoint-vault.service"
    metrics: str = ""
    every: int = 86400
    quota: Optional[int] = None
    keep: Keep = Keep()
    hosts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of_host(self, host: str) -> "Settings":
        """Return the settings that hold for one host."""
        return replace(self, **self.hosts.get(host, {}), hosts={})


def load() -> Settings:
    """Return the settings of this vault; STILLPOINT_VAULT in the environment names another file.

    :raises UsageError: this host is no vault, or its file is wrong
    """
    path = os.environ.get("STILLPOINT_VAULT") or SETTINGS
    try:
        import yaml  # pylint: disable=import-outside-toplevel  # only who reads the file needs it
    except ImportError as error:
        raise StillpointError("the Python module yaml is missing for %s: install the package python3-yaml" % sys.executable) from error
    try:
        with open(path, encoding="utf-8") as file:
            info = os.fstat(file.fileno())
            if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise UsageError("%s can be written by others than root: chown root and chmod go-w it" % path)
            return parse(yaml.safe_load(file) or {}, path)
    except FileNotFoundError as error:
        raise UsageError("this host is no vault, as it has no %s: the role backup_vault makes one" % path) from error
    except OSError as error:
        raise UsageError("%s can't be read: %s" % (path, error.strerror)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError("%s: not YAML: %s" % (path, " ".join(str(error).split()))) from error


def parse(mapping: Any, where: str) -> Settings:
    """Return the Settings that a mapping describes.

    :raises UsageError: a key is unknown, or a value is not what it has to be
    """
    values = _read(mapping, where, tuple(each.name for each in fields(Settings)))
    hosts = values.pop("hosts", {})
    if not isinstance(hosts, dict):
        raise UsageError("%s: hosts is %s, expected a mapping of host names" % (where, shown(hosts)))
    own = {check_name(name): _read(each or {}, "%s: hosts.%s" % (where, name), ("every", "keep", "quota")) for name, each in hosts.items()}
    return Settings(**values, hosts=own)


def check_name(host: Any) -> str:
    """Return the name of a host.

    :raises UsageError: it can't be a directory's and an account's name
    """
    if not isinstance(host, str) or not _NAME.fullmatch(host):
        raise UsageError("%s is no name of a host: letters, digits, '.', '_' and '-' alone, up to 64" % shown(host))
    return host


def _read(mapping: Any, where: str, known: Sequence[str]) -> Dict[str, Any]:
    if not isinstance(mapping, dict):
        raise UsageError("%s: is %s, expected a mapping" % (where, shown(mapping)))
    values: Dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in known:
            near = nearest(str(key), list(known))
            raise UsageError("%s: unknown key %s%s" % (where, shown(key), "; did you mean %s?" % near if near else ""))
        reader: Callable[[Any, str], Any] = _READERS.get(key, _path)
        values[key] = reader(value, "%s: %s" % (where, key))
    return values


def _path(value: Any, where: str) -> str:
    if not isinstance(value, str) or not (value.startswith("/") and ".." not in value.split("/")):
        raise UsageError("%s is %s, expected an absolute path" % (where, shown(value)))
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or value.startswith("-"):
        raise UsageError("%s is %s, expected a text" % (where, shown(value)))
    return value


def _length(value: Any, where: str) -> int:
    found = _LENGTH.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise UsageError("%s is %s, expected a length of time such as 12h, 30d or 8w" % (where, shown(value)))
    return int(found.group(1)) * _SECONDS[found.group(2)]


def _number(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UsageError("%s is %s, expected a number" % (where, shown(value)))
    return value


def _bytes(value: Any, where: str) -> int:
    found = re.fullmatch(r"([1-9][0-9]{0,8})([KMGT])?", str(value))
    if not found:
        raise UsageError("%s is %s, expected a size such as 500G" % (where, shown(value)))
    return int(found.group(1)) << 10 * " KMGT".index(found.group(2) or " ")


def _keep(value: Any, where: str) -> Keep:
    if not isinstance(value, dict):
        raise UsageError("%s is %s, expected {within: 30d, weekly: 8, monthly: 12}" % (where, shown(value)))
    for key in value:
        if key in _COUNTING:
            raise UsageError("%s.%s counts what a client may send at will: use within, daily, weekly and monthly" % (where, key))
        if key not in {each.name for each in fields(Keep)}:
            raise UsageError("%s: unknown key %s: there are within, daily, weekly and monthly" % (where, shown(key)))
    if "within" not in value:
        raise UsageError("%s has no within: say for how long everything is kept, such as 30d" % where)
    given = {key: (_length if key == "within" else _number)(each, "%s.%s" % (where, key)) for key, each in value.items()}
    return Keep(**{**dict(daily=0, weekly=0, monthly=0), **given})


_READERS: Dict[str, Callable[[Any, str], Any]] = {
    "keep": _keep,
    "every": _length,
    "quota": _bytes,
    "user": _text,
    "restic": _text,
    "service": _text,
    "hosts": lambda value, _where: value or {},
}
