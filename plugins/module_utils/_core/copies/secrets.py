# SPDX-License-Identifier: GPL-3.0-or-later
"""The secrets of a copy: a file of ``KEY=VALUE`` lines that root alone can read, and nothing that is not on a closed list."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import Dict, Mapping

from ..host.errors import UsageError

DIRECTORY = "/etc/stillpoint/secrets"

PASSWORD = "RESTIC_PASSWORD"
USERNAME, USER_PASSWORD = "RESTIC_REST_USERNAME", "RESTIC_REST_PASSWORD"
CA_CERT, CLIENT_CERT = "RESTIC_CACERT", "RESTIC_TLS_CLIENT_CERT"

_KEYS = (PASSWORD, USERNAME, USER_PASSWORD, CA_CERT, CLIENT_CERT)
_PREFIXES = ("AWS_", "B2_", "AZURE_", "GOOGLE_")
_KEY = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True)
class Secrets:
    """What restic needs to know of a repository and nobody else.

    :ivar path: the file it was read from, for sentences
    :ivar values: environment variables of restic
    """

    path: str
    values: Mapping[str, str] = field(repr=False)

    def environment(self) -> Dict[str, str]:
        """Return those that restic of every version takes from its environment."""
        return {key: value for key, value in self.values.items() if key not in (USERNAME, USER_PASSWORD, CA_CERT, CLIENT_CERT)}

    def get(self, key: str) -> str:
        """Return a value; "" where the file does not have it."""
        return self.values.get(key, "")


def read(path: str) -> Secrets:
    """Return the Secrets in a file.

    :raises UsageError: it is missing, others than root may read or write it, a line is not KEY=VALUE or has a key that is not on the list, or the
        password of the repository is missing
    """
    try:
        with open(path, encoding="utf-8") as file:
            _check_trust(path, os.fstat(file.fileno()))
            values = _parsed(path, file.read())
    except FileNotFoundError as error:
        raise UsageError("there is no secrets file %s: create it with mode 0600 and the line %s=…" % (path, PASSWORD)) from error
    except OSError as error:
        raise UsageError("the secrets file %s can't be read: %s" % (path, error.strerror)) from error
    except UnicodeDecodeError as error:
        raise UsageError("the secrets file %s is not a text file in UTF-8" % path) from error
    if not values.get(PASSWORD):
        raise UsageError("the secrets file %s lacks %s, the password of the repository" % (path, PASSWORD))
    return Secrets(path, values)


def _check_trust(path: str, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise UsageError("the secrets file %s is not a file" % path)
    if info.st_uid not in (0, os.geteuid()):
        raise UsageError("the secrets file %s belongs to user %d: chown root it" % (path, info.st_uid))
    if info.st_mode & 0o077:
        raise UsageError("the secrets file %s is open to others than its owner (mode %04o): chmod 0600 it" % (path, stat.S_IMODE(info.st_mode)))


def _parsed(path: str, content: str) -> Dict[str, str]:
    """Return the values by key. No sentence has more of a line than its key: the rest may be a secret."""
    values: Dict[str, str] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        where = "the secrets file %s, line %d" % (path, number)
        if not equals or not _KEY.fullmatch(key):
            raise UsageError("%s is not KEY=VALUE" % where)
        if key not in _KEYS and not key.startswith(_PREFIXES):
            raise UsageError("%s has the key %s; known are %s and what begins with %s" % (where, key, ", ".join(_KEYS), ", ".join(_PREFIXES)))
        if key in values:
            raise UsageError("%s has %s a second time" % (where, key))
        values[key] = value
    return values
