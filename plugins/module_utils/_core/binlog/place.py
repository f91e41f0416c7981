# SPDX-License-Identifier: GPL-3.0-or-later
"""Places in a server's binary logs, and the logs' names: a base name and a number that counts them."""

from __future__ import annotations

import os
import re
from typing import Dict, NamedTuple, Tuple

from ..host.errors import StillpointError

_NAME = re.compile(r"(.+)\.(\d{6,})")


class Place(NamedTuple):
    """Where an event of a binary log begins, or the last one ends.

    :ivar file: the log's name, without its directory
    :ivar position: bytes from its beginning
    """

    file: str
    position: int

    def __str__(self) -> str:
        return "%s:%d" % self

    @property
    def order(self) -> Tuple[int, int]:
        """What places of one server are sorted by. Their names are no order: 1000000 comes after 999999."""
        return sequence(self.file), self.position


def is_log(name: str) -> bool:
    """Tell whether a file is called as a binary log is."""
    return bool(_NAME.fullmatch(name))


def base(name: str) -> str:
    """Return the name of a log without its number."""
    return name.rpartition(".")[0]


def sequence(name: str) -> int:
    """Return the number of a log by its name.

    :raises StillpointError: it has none
    """
    match = _NAME.fullmatch(name)
    if not match:
        raise StillpointError("%r is not the name of a binary log" % name)
    return int(match.group(2))


def numbered(name: str, number: int) -> str:
    """Return the name of the log with another number."""
    return "%s.%06d" % (base(name), number)


def logs(directory: str, basename: str) -> Dict[str, int]:
    """Return name -> bytes of the binary logs in a directory, the oldest first; {} where there is no such directory.

    :param basename: their name without the number
    """
    try:
        found = [name for name in os.listdir(directory) if is_log(name) and base(name) == basename]
    except OSError:
        return {}
    return {name: os.path.getsize(os.path.join(directory, name)) for name in sorted(found, key=sequence)}
