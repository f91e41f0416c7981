# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a first backup copies, against a bare `rsync -a`, what a second one of the same data stores, and how fast it is verified."""

from __future__ import annotations

from bench import GUEST, Record, Results, ask, conditions, prepared_machine
from machine import Machine

# more of what users upload, so that starting programs is not all that is measured
FILL = """
import os, random
rng = random.Random("bench")
base = "/opt/processmaker/shared/sites/workflow/files/bench"
for number in range({files}):
    folder = f"{{base}}/{{number // 200:04d}}"
    os.makedirs(folder, exist_ok=True)
    with open(f"{{folder}}/upload-{{number}}.pdf", "wb") as file:
        file.write(rng.randbytes(rng.randint(1000, 2 * {average})))
os.sync()
"""
COLD = "sync; echo 3 > /proc/sys/vm/drop_caches"


def run(state: str, pairs: int, files: int, average: int) -> None:
    """Measure both, `pairs` times in turn, each from the same saved state and from cold caches."""
    with prepared_machine(state) as machine:
        machine.run(["python3", "-c", FILL.format(files=files, average=average)], timeout=1800)
        machine.save("bench-copy")
        results = Results("copy", {**conditions(machine), "pairs": pairs}, [])
        verified = Results("verify", results.conditions, [])
        for pair in range(pairs):
            ways = [bare, first_and_second]
            for way in ways if pair % 2 == 0 else reversed(ways):
                machine.load("bench-copy")
                for record in way(machine):
                    results.add(pair=pair, **record)
                if way is first_and_second:
                    for record in verifications(machine, pair):
                        verified.add(pair=pair, **record)


def bare(machine: Machine) -> list[Record]:
    said = ask(machine, f"{GUEST}/bare.sh")
    return [{"way": "rsync", "copy_s": said["copy_ms"] / 1000, "whole_s": said["synced_ms"] / 1000}]


def first_and_second(machine: Machine) -> list[Record]:
    """A first backup, and a second with nothing written in between: of both halves, and of the files alone."""
    records = []
    for job in ("auto", "files"):
        first = backup(machine, job)
        second = backup(machine, job)
        own = ask(machine, f"{GUEST}/stored.py", first["path"], second["path"])
        records += [
            {"way": f"first {job}", **figures(first)},
            {"way": f"second {job}", **figures(second), **{f"own_{kind}": size for kind, size in own.items()}},
        ]
    return records


def verifications(machine: Machine, pair: int) -> list[Record]:
    """The newest generation's checksums compared, and the same files read by sha256sum; the order changes each pair."""
    newest = ask(machine, "stillpoint", "list", "auto", "--json")[0]
    commands = {"verify": "stillpoint verify auto", "sha256sum": f"find {newest['path']} -type f -print0 | xargs -0 sha256sum"}
    records = []
    for way in list(commands)[:: 1 if pair % 2 == 0 else -1]:
        machine.run(COLD)
        took = machine.run(f"bash -c 'TIMEFORMAT=%R; time {{ {commands[way]}; }} >/var/tmp/verified 2>&1'", timeout=1800).stderr
        records.append({"way": way, "seconds": float(took.split()[-1]), "bytes": newest["size_bytes"]})
    return records


def backup(machine: Machine, job: str) -> Record:
    machine.run(COLD)
    return ask(machine, "stillpoint", "run", job, "--json")


def figures(summary: Record) -> Record:
    copy = summary["copy"]
    return {
        "copy_s": copy["duration_s"],
        "whole_s": summary["duration_s"],
        "files": copy["files"],
        "bytes": copy["bytes"],
        "bytes_transferred": copy["bytes_transferred"],
    }
