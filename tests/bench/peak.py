#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a command and print, as JSON, its time, exit code, output, and the peak memory of each program that it ran.

usage: peak.py COMMAND…; peak memory is VmHWM of /proc/PID/status, the highest of all processes with the same name.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

INTERVAL = 0.1  # seconds; VmHWM only grows, so that a look now and then is enough


def children(pid: int) -> list[int]:
    """Return the processes that descend from `pid`, itself included."""
    found = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in file.read().split():
                    found += children(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def high_water(pid: int) -> tuple[str, int]:
    """Return the name of a process and its peak resident memory in KiB; of one that has ended, nothing."""
    try:
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        return status["Name"].strip(), int(status["VmHWM"].split()[0])
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return "", 0


def main() -> None:
    peaks: dict[str, int] = {}
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=output)
        while process.poll() is None:
            own = high_water(process.pid)[1]
            for pid in children(process.pid):
                name, peak = high_water(pid)
                if name:
                    peaks[name] = max(peak, peaks.get(name, 0))
            peaks["command itself"] = max(own, peaks.get("command itself", 0))
            time.sleep(INTERVAL)
        output.seek(0)
        print(json.dumps({
            "rc": process.returncode, "seconds": round(time.monotonic() - begin, 3), "peak_kib": peaks, "stdout": output.read(),
        }))


if __name__ == "__main__":
    main()
