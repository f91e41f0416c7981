# SPDX-License-Identifier: GPL-3.0-or-later
"""Who keeps a file system busy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Tuple


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


COLLECTION = "stillpoint"


@dataclass(frozen=True)
class Owner:
    """The run that a snapshot belongs to, as its LVM tags say."""

    run_id: str
    job: str
    boot: str
    pid: int
    start: int  # of the process, in clock ticks since boot: a pid alone may be another process by now

    def tags(self) -> Tuple[str, ...]:
        facts = {"run": self.run_id, "job": self.job, "boot": self.boot, "pid": self.pid, "start": self.start}
        return (COLLECTION, *("%s.%s=%s" % (COLLECTION, key, value) for key, value in facts.items()))

    def alive(self) -> bool:
        """Tell whether the process that made the snapshot still runs."""
        return self.boot == boot_id() and self.start != 0 and process_start(self.pid) == self.start


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def process_start(pid: int) -> Optional[int]:
    """Return when a process started, in clock ticks since boot; None when there is none (proc(5), field 22 of stat)."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def process_state(pid: int) -> str:
    """Return the letter of a process's state, "T" when it is stopped; "" when there is none (proc(5), field 3 of stat)."""
    return (_stat(pid) or [""])[0]


def locked_memory(pid: int) -> int:
    """Return how much memory a process has locked, in KiB; 0 when there is none (proc(5), VmLck of status)."""
    try:
        with open("/proc/%d/status" % pid, encoding="utf-8", errors="replace") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("VmLck:")), 0)
    except OSError:
        return 0


def _stat(pid: int) -> List[str]:
    """Return the fields of /proc/PID/stat from the third on: the second may hold spaces."""
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as file:
            return file.read().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return []


def this_process(run_id: str, job: str) -> Owner:
    pid = os.getpid()
    return Owner(run_id, job, boot_id(), pid, process_start(pid) or 0)


def io_counter(pid: int, name: str) -> Optional[int]:
    """Return one of the kernel's counts of the bytes that a process has read or written (proc(5), io); None where it keeps none, or there is no process.

    :param name: ``rchar``, ``wchar``, ...
    """
    return io_counts(pid).get(name)


def io_counts(pid: int) -> Dict[str, int]:
    """Return all of these counts by name; none where there is no process."""
    try:
        with open("/proc/%d/io" % pid, encoding="ascii") as file:
            return {name: int(number) for name, number in (line.split(":") for line in file)}
    except (OSError, ValueError):
        return {}


def processor_time(pid: int) -> float:
    """Return the seconds of processor time that a process has taken; 0 where there is none (proc(5), fields 14 and 15 of stat)."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0
