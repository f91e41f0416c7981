# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole backups by the usual tools and by ours, under the same load: what writers feel, how long it takes, what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from bench import GUEST, Record, Results, ask, conditions, prepared_machine
from guest import Load
from locking import SETTLE, measure, rotated, save_states
from machine import Machine

SOCKET = "/run/mysqld/mysqld.sock"
TARGET = "/backups/tool"
LOGIN = ["--user=root", f"--socket={SOCKET}"]
# condition → the saved state that it begins from, and whether a long statement runs
CONDITIONS = {"all": ("all", False), "innodb": ("innodb", False), "statement": ("all", True)}
STATEMENT_SECONDS = 10  # that the statement has to go when the tool is started

COMMANDS: dict[str, str] = {
    "original": f"{GUEST}/original.sh {TARGET}",
    # an LVM snapshot under FLUSH TABLES WITH READ LOCK, and an archive of it
    "mylvmbackup": f"mylvmbackup --user=root --socket={SOCKET} --host=localhost --vgname=vg00 --lvname=root --lvsize=1G"
    f" --relpath=var/lib/mysql --backuptype=tar --backupdir={TARGET} --mountdir=/mnt/mylvm --suffix=_mysql --mycnf=/etc/mysql/mariadb.cnf",
    "mariadb-backup": f"mariadb-backup --backup {' '.join(LOGIN)} --target-dir={TARGET}",
    "mariadb-dump": f"mariadb-dump {' '.join(LOGIN)} --single-transaction --all-databases --result-file={TARGET}/all.sql",
    "mydumper": f"mydumper {' '.join(LOGIN)} --outputdir {TARGET} --long-query-guard 600",
}


def tool(name: str) -> Callable[[Machine], Record]:
    """Return what runs a tool to its end; one that fails ends the bench."""

    def run(machine: Machine) -> Record:
        machine.run(f"mkdir -p {TARGET} /mnt/mylvm && {COMMANDS[name]} >/var/tmp/tool.log 2>&1 || {{ tail /var/tmp/tool.log >&2; exit 1; }}", timeout=900)
        return {"bytes_left": int(machine.run(["du", "-sB1", TARGET]).stdout.split()[0])}

    return run


def agent(job: str) -> Callable[[Machine], Record]:
    def run(machine: Machine) -> Record:
        summary = ask(machine, "stillpoint", "run", job, "--json")
        return {**summary["lock"], "bytes_left": int(machine.run(["du", "-sB1", summary["path"]]).stdout.split()[0])}

    return run


WAYS: dict[str, Callable[[Machine], Record]] = {
    **{name: tool(name) for name in COMMANDS},
    "auto": agent("auto"),
    "ftwrl": agent("ftwrl"),
}


@contextmanager
def long_statement(machine: Machine) -> Iterator[None]:
    """A statement of an InnoDB table that has begun before the body does; it works on one row a second."""
    machine.run(
        "mysql -e 'CREATE DATABASE IF NOT EXISTS bench; CREATE OR REPLACE TABLE bench.slow (n INT PRIMARY KEY, slept INT) ENGINE=InnoDB;"
        f" INSERT INTO bench.slow VALUES {', '.join(f'({n}, 0)' for n in range(STATEMENT_SECONDS + SETTLE))}'"
    )
    machine.run("setsid mysql bench -e 'UPDATE slow SET slept = SLEEP(1)' >/dev/null 2>&1 </dev/null &")
    yield


def run(state: str, pairs: int, rate: float) -> None:
    """Measure every tool in turn, `pairs` times, each from the same saved state; the order rotates."""
    with prepared_machine(state) as machine:
        # the tools take the databases alone: an empty tree makes ours comparable
        machine.run(["find", "/opt/processmaker", "-mindepth", "1", "-delete"])
        load = Load.install(machine)
        save_states(machine, load)
        results = Results("tools", {**conditions(machine), "rate": rate, "pairs": pairs, "statement_s": STATEMENT_SECONDS}, [])
        for pair in range(pairs):
            for condition, (engines, statement) in CONDITIONS.items():
                for way in rotated(list(WAYS), pair):
                    machine.load(f"bench-{engines}")
                    load.start(rate=rate)
                    with long_statement(machine) if statement else nullcontext():
                        results.add(pair=pair, condition=condition, way=way, **measure(machine, load, WAYS[way]))
                    load.stop()
