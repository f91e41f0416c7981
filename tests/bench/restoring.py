# SPDX-License-Identifier: GPL-3.0-or-later
"""How long it takes to have the databases back: from a backup of the server's files, and from a dump of the same data."""

from __future__ import annotations

from typing import Any

from bench import JOBS, Record, Results, ask, conditions, prepared_machine
from machine import Machine

DATABASE: dict[str, Any] = {"repository": "/backups"}
OWN_JOBS: list[dict[str, Any]] = [
    *JOBS,
    {"name": "physical", "mysql": {"method": "snapshot"}, **DATABASE},
    {"name": "dump", "mysql": {"method": "dump"}, **DATABASE},
]

# Rows of the length that the application's own tables have, with two secondary indexes that a load has to build.
FILL = """
CREATE DATABASE bench; USE bench;
CREATE TABLE rows_of_cases (id INT AUTO_INCREMENT PRIMARY KEY, uid CHAR(32), status VARCHAR(20), data TEXT, KEY (uid), KEY (status, uid)) ENGINE=InnoDB;
INSERT INTO rows_of_cases (uid, status, data)
  SELECT MD5(seq), ELT(1 + seq % 4, 'TO_DO', 'DRAFT', 'COMPLETED', 'CANCELLED'), REPEAT(SHA1(seq), 12) FROM seq_1_to_{rows};
"""


def run(state: str, pairs: int, rows: int) -> None:
    """Measure both, `pairs` times in turn, each from the same saved state and from cold caches."""
    with prepared_machine(state, OWN_JOBS) as machine:
        machine.run(["mariadb", "-e", FILL.format(rows=rows)], timeout=1800)
        machine.save("bench-restore")
        size = ask(machine, "mariadb", "-BN", "-e", "SELECT SUM(DATA_LENGTH + INDEX_LENGTH) FROM information_schema.TABLES WHERE TABLE_SCHEMA = 'bench'")
        results = Results("restore", {**conditions(machine), "rows": rows, "table_bytes": size}, [])
        for pair in range(pairs):
            ways = ["physical", "dump"]
            for way in ways if pair % 2 == 0 else reversed(ways):
                machine.load("bench-restore")
                results.add(pair=pair, **there_and_back(machine, way))


def there_and_back(machine: Machine, way: str) -> Record:
    """Take a backup, lose the table, and restore; the restore ends when the server answers with all of it."""
    summary = ask(machine, "stillpoint", "run", way, "--json")
    machine.run(["mariadb", "-e", "DROP DATABASE bench"])
    machine.run("sync; echo 3 > /proc/sys/vm/drop_caches")
    done = ask(machine, "stillpoint", "restore", way, "--yes", "--json")
    return {"way": way, "backup_s": summary["duration_s"], "stored_bytes": summary["copy"]["bytes"], "restore_s": done["duration_s"]}
