# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts' HTTP accounts, in a file that the REST server reads.

A password is 32 random bytes. Of one that can't be guessed any hash will do; SHA-1 is the one that both the server and Python know.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
from typing import Dict, Optional

from ..host import durable
from ..host.process import run
from .layout import ids_of
from .settings import Settings


def new_password() -> str:
    """Return a password of 32 random bytes."""
    return secrets.token_urlsafe(32)


def set_password(settings: Settings, host: str, password: Optional[str]) -> None:
    """Give a host's account this password, or take the account away with None, and have the server know it."""
    with durable.lock(settings.accounts + ".lock", make=True, wait=True):
        accounts = _read(settings.accounts)
        before = dict(accounts)
        accounts.pop(host, None)
        if password is not None:
            accounts[host] = "{SHA}" + base64.b64encode(hashlib.sha1(password.encode()).digest()).decode()
        if accounts != before:
            _write(settings, accounts)
    # the server reads the file again at once, or else within half a minute
    if os.path.isdir("/run/systemd/system"):
        run(["systemctl", "try-reload-or-restart", settings.service], check=False)


def has_account(settings: Settings, host: str) -> bool:
    """Tell whether a host may log in."""
    return host in _read(settings.accounts)


def _read(path: str) -> Dict[str, str]:
    try:
        with open(path, encoding="ascii") as file:
            pairs = [line.rstrip("\n").partition(":") for line in file if ":" in line]
    except FileNotFoundError:
        return {}
    return {name: digest for name, _colon, digest in pairs}


def _write(settings: Settings, accounts: Dict[str, str]) -> None:
    path = settings.accounts
    new = path + ".new"
    with durable.naming(path), open(new, "w", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.writelines("%s:%s\n" % pair for pair in sorted(accounts.items()))
        os.fchown(file.fileno(), 0, ids_of(settings.user).gid)
        os.fchmod(file.fileno(), 0o640)
        file.flush()
        os.fsync(file.fileno())
    durable.rename(new, path)
