# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from ansible.errors import AnsibleFilterError
from ansible.module_utils.parsing.convert_bool import boolean
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host.errors import UsageError
from ansible_collections.stillpoint.backup.plugins.module_utils._core.job import reader
from ansible_collections.stillpoint.backup.plugins.module_utils._core.job.options import DUMP, BinlogOptions, Copy, Job, Keep, MysqlOptions, Notify, Verify
from ansible_collections.stillpoint.backup.plugins.module_utils._core.mysql.connection import SOCKETS

DOCUMENTATION = r"""
name: jobs
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Backup jobs, checked and as they are written to a host
description:
  - Checks jobs with the code that the agent reads them with, so that a wrong one is refused before anything is changed anywhere.
  - Numbers and switches that are text, as templates, the command line and the vault give them, become what they mean.
  - A job that says nothing about how to log in to the server gets an option file to log in with. A server that it reaches at another address than the
    host's first server has an option file of its own.
options:
  _input:
    description: Jobs, as in the variable C(backup_client_jobs) of the role P(stillpoint.backup.backup_client#role).
    type: list
    elements: dict
    required: true
  config_file:
    description: The option file for jobs with a C(mysql) section that names neither a C(config_file) nor a C(login_user).
    type: path
  socket:
    description: The local socket of the host's first server. Default is where distributions put it.
    type: path
  admin_config_file:
    description: The option file with which accounts are made. Without it, a second server that is named by its port alone is refused.
    type: path
"""

EXAMPLES = r"""
- name: Refuse wrong jobs
  ansible.builtin.assert:
    that: "[{'name': 'etc', 'files': ['/etc'], 'repository': '/backups'}] | stillpoint.backup.jobs | length == 1"
"""

RETURN = r"""
_value:
  description: The jobs.
  type: list
  elements: dict
"""

VARIABLE = "backup_client_jobs"
ACCOUNT = "stillpoint"

_PARTS = {"mysql": MysqlOptions, "keep": Keep, "notify": Notify, "binlog": BinlogOptions, "verify": Verify}
_TEXTS = {"Optional[str]", "str"}
_TEXT_LISTS = {"Tuple[str, ...]", "Optional[Tuple[str, ...]]"}
_PORT = 3306
_LOCAL = ("localhost", "127.0.0.1", "::1")
_OMITTED = "__omit_place_holder__"  # what `omit` is inside of a variable, before ansible-core 2.19; it has a type of its own since then


def jobs(
    value: Sequence[Mapping[str, Any]], config_file: Optional[str] = None, socket: Optional[str] = None, admin_config_file: Optional[str] = None
) -> List[Dict[str, Any]]:
    """Return the jobs, those that log in by default with an option file to do it."""
    if not isinstance(value, list):
        raise AnsibleFilterError("%s is not a list of jobs" % VARIABLE)
    known: Dict[str, int] = {}
    result = []
    for number, each in enumerate(plain(value)):
        where = "%s[%d]" % (VARIABLE, number)
        meant = typed(each, Job)
        try:
            name = reader.parse(meant, where).name
        except UsageError as error:
            raise AnsibleFilterError(str(error)) from error
        if name in known:
            raise AnsibleFilterError("%s and %s[%d] have the same name, %s" % (where, VARIABLE, known[name], name))
        known[name] = number
        result.append(with_login(meant, config_file, socket))
        if "login_port" in server_of(_mysql(meant), "").address and result[-1] != meant and not admin_config_file:
            raise AnsibleFilterError(
                "%s: mysql.login_port is that of a second server, where root can't make an account without a password: "
                "name its login_unix_socket, or a config_file" % where
            )
    return result


def accounts(value: Sequence[Mapping[str, Any]], config_file: str, socket: Optional[str] = None) -> List[Dict[str, Any]]:
    """Return the account that each server needs for those of the jobs, as `jobs` returns them, that log in with it.

    Each has ``option_file``, ``name``, how the server is reached, and what the account may do besides.
    """
    found: Dict[str, Dict[str, Any]] = {}
    for each in value:
        mysql = _mysql(each)
        server = server_of(mysql, config_file, socket)
        if mysql.get("config_file") != server.option_file:
            continue
        account = found.setdefault(
            server.option_file, {"option_file": server.option_file, "name": server.account, **server.address, **dict.fromkeys(_EXTRAS, False)}
        )
        for extra, needs in _EXTRAS.items():
            account[extra] = account[extra] or needs(each, mysql)
    return list(found.values())


_EXTRAS: Dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], bool]] = {
    "kill": lambda _job, mysql: mysql.get("long_query_action") == "kill",
    "dump": lambda _job, mysql: mysql.get("method") == DUMP,
    "stop_replica": lambda _job, mysql: bool(mysql.get("stop_replica")),
    "desync": lambda _job, mysql: bool(mysql.get("desync")),
    "archive": lambda each, _mysql: bool((each.get("binlog") or {}).get("archive")),
}


def plain(value: Any) -> Any:
    """Return a value of a variable without what Ansible knows of it besides: text out of the vault would be written as it is there."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items() if not _omitted(each)}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value if not _omitted(each)]
    return json.loads(json.dumps(value, default=str))


def _omitted(value: Any) -> bool:
    return type(value).__name__ == "_OmitType" or (isinstance(value, str) and value.startswith(_OMITTED))


def typed(value: Any, kind: Any) -> Any:
    """Return a mapping with the types that a class of options has, where a value can mean nothing else; what is wrong stays as it is."""
    if not isinstance(value, dict):
        return value
    types = {name: each.__forward_arg__ for name, each in kind.__annotations__.items()}
    if kind is Job and isinstance(value.get("copies"), list):
        value = {**value, "copies": [_copy(each) for each in value["copies"]]}
    return {key: typed(each, _PARTS[key]) if key in _PARTS and kind is Job else _meant(key, each, types.get(key, "")) for key, each in value.items()}


def _copy(value: Any) -> Any:
    meant = typed(value, Copy)
    return {**meant, "keep": typed(meant["keep"], Keep)} if isinstance(meant, dict) and "keep" in meant else meant


def _meant(key: str, value: Any, kind: str) -> Any:
    """Return what a value means for a key of a type."""
    if "int" in kind:
        return _whole(value)
    if "bool" in kind:
        return _switch(value)
    if kind in _TEXT_LISTS and isinstance(value, list):
        return [_text(each) for each in value]
    # 22:00 without quotes is a number in YAML, and not what was meant
    return _text(value) if kind in _TEXTS and key != "schedule" else value


def _whole(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _switch(value: Any) -> Any:
    try:
        return boolean(value)
    except TypeError:
        return value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _mysql(each: Mapping[str, Any]) -> Mapping[str, Any]:
    return each.get("mysql") or {}


@dataclass(frozen=True)
class Server:
    """One server of the host: the option file and the account that are for it, and how it is reached."""

    option_file: str
    account: str
    address: Dict[str, Any]


def server_of(mysql: Mapping[str, Any], config_file: str, socket: Optional[str] = None) -> Server:
    """Return the server of a job's ``mysql``. Two addresses are taken for two servers, each with its own account: one server of two addresses
    then has two, and neither takes the other's password away."""
    path, port = mysql.get("login_unix_socket"), mysql.get("login_port")
    if path:
        if _same(path) in [_same(each) for each in ([socket] if socket else SOCKETS)]:
            return Server(config_file, ACCOUNT, {"login_unix_socket": path})
        stem = re.sub(r"[^A-Za-z0-9]+", "-", os.path.splitext(os.path.basename(path))[0])[:12]
        suffix = "%s-%s" % (stem, hashlib.sha256(_same(path).encode("utf-8")).hexdigest()[:6])
        address = {"login_unix_socket": path}
    elif port and port != _PORT:
        suffix = str(port)
        address = {"login_host": mysql.get("login_host") or _LOCAL[1], "login_port": port}
    else:
        return Server(config_file, ACCOUNT, {"login_unix_socket": socket} if socket else {})
    root, extension = os.path.splitext(config_file)
    return Server("%s-%s%s" % (root, suffix, extension), "%s-%s" % (ACCOUNT, suffix), address)


def _same(path: str) -> str:
    """Return one name for the two that a socket has below /run."""
    path = os.path.normpath(path)
    return path[len("/var") :] if path.startswith("/var/run/") else path


def with_login(each: Dict[str, Any], config_file: Optional[str], socket: Optional[str] = None) -> Dict[str, Any]:
    """Return a job with an option file, where it needs one and names none."""
    mysql = each.get("mysql")
    if not config_file or mysql is None or "config_file" in mysql or "login_user" in mysql:
        return each
    server = server_of(mysql, config_file, socket)
    # the option file says how the server is reached; the account is one of this host, which is not how 127.0.0.1 looks to every server
    kept = {key: value for key, value in mysql.items() if server.option_file == config_file or (key, value) not in [("login_host", name) for name in _LOCAL]}
    return {**each, "mysql": {**kept, "config_file": server.option_file}}


class FilterModule:
    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"jobs": jobs, "accounts": accounts}
