# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server says of its recovery in its error log."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Optional, Tuple

from .messages import bare

LOG_MOST = 4 << 20  # bytes of an error log that are read

# What an engine says of where it stands: MariaDB, and MySQL up to 5.7 (two halves of a number). MySQL has not kept it since 8.0.
_POSITION = re.compile(r"Last binlog file '(?P<name>[^']*)', position (?P<low>\d+)")
_POSITION_MYSQL = re.compile(r"Last MySQL binlog file position (?P<high>\d+) (?P<low>\d+), file name (?P<name>[^\s,]+)")
_CRASH_RECOVERY = re.compile(r"Starting crash recovery|Starting final batch|crash recovery from checkpoint", re.IGNORECASE)
PREPARED = re.compile(r"in the XA prepared state|Found [1-9]\d* prepared")
_ERROR = re.compile(r"\[ERROR\]|provider plugin is not loaded|^mysqld.*: (?:unknown|ambiguous|error)|can't be enclosed|error while loading")

# What a server says where it lacks something of the host: room, memory, descriptors, a library, a key, an option that it knows.
_OF_HOST = re.compile(
    r"No space left|\b(?:errno|errcode|error number|os error):? *(?:12|24|28)\b|disk (?:is )?full|quota exceeded|out of memory|cannot allocate|"
    r"can't allocate|too many open files|error while loading|unknown (?:variable|option)|can't be enclosed|can't open shared library|keyring|"
    r"key.management|provider plugin|plugin '(?!innodb|aria|rocksdb)[^']*' (?:init function|registration)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Recovery:
    """What a server said between its start and its readiness, or its end.

    :ivar crash_recovery: it had to bring data files and redo log together
    :ivar file: the binary log of its engine's last commit, without a directory; None where the engine does not keep it
    :ivar prepared: lines about transactions that were neither committed nor rolled back
    """

    seconds: float
    crash_recovery: bool
    file: Optional[str]
    position: Optional[int]
    prepared: Tuple[str, ...]
    errors: Tuple[str, ...]


def said(log: str, seconds: float) -> Recovery:
    """Return the Recovery that an error log tells of."""
    lines = [bare(line) for line in log.splitlines()]
    found = [*_POSITION.finditer(log), *_POSITION_MYSQL.finditer(log)]
    last = found[-1].groupdict() if found else {}
    errors = [line for line in lines if _ERROR.search(line) and "Warning:" not in line]  # MariaDB marks a few of its warnings as errors
    return Recovery(
        seconds=round(seconds, 1),
        crash_recovery=bool(_CRASH_RECOVERY.search(log)),
        file=os.path.basename(last["name"]) if last else None,
        position=(int(last.get("high", 0)) << 32) + int(last["low"]) if last else None,
        prepared=tuple(line for line in lines if PREPARED.search(line)),
        errors=tuple(errors),
    )


def is_of_host(text: str) -> bool:
    """Tell whether what a server says is about the host that it runs on, and not about its data."""
    return bool(_OF_HOST.search(text))
