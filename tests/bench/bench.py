# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks share: the machine they run on, their results on disk, the programs in the machine."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
sys.path[:0] = [str(TESTS / "lab"), str(TESTS / "load"), str(TESTS / "demo")]

from machine import Machine  # noqa: E402
from workstation import Workstation  # noqa: E402

RESULTS = TESTS / "output" / "bench"
GUEST = "/usr/local/lib/stillpoint-bench"
PROGRAMS = ("original.sh", "bare.sh", "freeze.py", "peak.py", "quiesce.py", "stored.py")
BOTH_HALVES: dict[str, Any] = {"mysql": {"method": "snapshot"}, "files": ["/opt/processmaker"], "repository": "/backups"}
JOBS: list[dict[str, Any]] = [
    {"name": "auto", **BOTH_HALVES},
    {"name": "ftwrl", **BOTH_HALVES, "mysql": {"method": "snapshot", "lock": "ftwrl"}},
    {"name": "files", "files": ["/opt/processmaker"], "repository": "/backups"},
]

Record = dict[str, Any]


@contextmanager
def prepared_machine(state: str, jobs: Sequence[Mapping[str, Any]] = JOBS) -> Iterator[Machine]:
    """Yield a machine with the agent deployed, the jobs in place and the programs of the bench; it ends with the block."""
    with Machine.start(state) as machine:
        machine.run(["mkdir", "-p", GUEST])
        for program in PROGRAMS:
            machine.put(HERE / program, f"{GUEST}/{program}", "0755")
        workstation = Workstation.make(machine.folder / "workstation")
        workstation.write_inventory(machine.ansible_variables(), jobs)
        workstation.play("deploy")
        yield machine


def ask(machine: Machine, *command: str, timeout: float = 1800) -> Record:
    """Run a command that answers in JSON and return its answer."""
    answer: Record = json.loads(machine.run(list(command), timeout=timeout).stdout)
    return answer


def conditions(machine: Machine) -> Record:
    """Return what a reader has to know of the machine that figures come from."""
    return {
        "accelerator": machine.accel,
        "cpus": int(machine.run(["nproc"]).stdout),
        "memory_mib": int(machine.run("free -m").stdout.split("Mem:")[1].split()[0]),
        "server": machine.run(["mysql", "-N", "-e", "SELECT VERSION()"]).stdout.strip(),
        "kernel": machine.run(["uname", "-r"]).stdout.strip(),
        "host_cpus": os.cpu_count(),
    }


@dataclass
class Results:
    """The records of one benchmark; each is on disk as soon as it is made."""

    name: str
    conditions: Record
    records: list[Record]

    @property
    def path(self) -> Path:
        return RESULTS / f"{self.name}.json"

    def add(self, **record: Any) -> None:
        """Add a record, with the load of the host: what else ran there shows in the figures."""
        record["host_load"] = round(os.getloadavg()[0], 1)
        self.records.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps({"conditions": self.conditions, "records": self.records}, indent=1))
        print("  ".join(f"{key}={value}" for key, value in record.items()), flush=True)

    @classmethod
    def read(cls, name: str) -> Results | None:
        """Return the results of an earlier run, or nothing."""
        path = RESULTS / f"{name}.json"
        if not path.exists():
            return None
        found = json.loads(path.read_text())
        return cls(name, found["conditions"], found["records"])
