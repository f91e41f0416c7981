# SPDX-License-Identifier: GPL-3.0-or-later
"""Who keeps a file system busy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Iterator, List


@dataclass(frozen=True)
class Holder:
    """A process that has something of a file system open.

    :ivar what: one thing that it has open
    """

    pid: int
    program: str
    what: str

    def __str__(self) -> str:
        return "%s (process %d, %s)" % (self.program, self.pid, self.what)


def holders(device: int) -> List[Holder]:
    """Return the processes, but for this one, that work on the file system with a device number (st_dev)."""
    found = []
    for name in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        if int(name) == os.getpid():
            continue
        try:
            what = next(_open_on(name, device), None)
            if what is not None:
                with open("/proc/%s/comm" % name, encoding="utf-8", errors="replace") as file:
                    found.append(Holder(int(name), file.read().strip(), what))
        except OSError:
            continue  # it has ended
    return found


def _open_on(pid: str, device: int) -> Iterator[str]:
    for link in ("cwd", "root", "exe"):
        yield from _on("/proc/%s/%s" % (pid, link), device)
    for number in os.listdir("/proc/%s/fd" % pid):
        yield from _on("/proc/%s/fd/%s" % (pid, number), device)
    wanted = "%02x:%02x" % (os.major(device), os.minor(device))
    with open("/proc/%s/maps" % pid, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and fields[3] == wanted:
                yield fields[5]


def _on(link: str, device: int) -> Iterator[str]:
    try:
        if os.stat(link).st_dev == device:
            yield os.readlink(link)
    except OSError:
        pass  # closed since
