# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the lock is held and how long writers wait: the original script, ours, and the limits below which nobody gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench import GUEST, Record, Results, ask, conditions, prepared_machine
from guest import Load
from machine import Machine

SETTLE = 5  # seconds that the writers run before each measurement
AFTER = 2  # seconds for what was stopped to end and be noted
ENGINES = ("all", "innodb")


def original(machine: Machine) -> Record:
    return ask(machine, f"{GUEST}/original.sh")


def agent(job: str) -> Callable[[Machine], Record]:
    def run(machine: Machine) -> Record:
        summary = ask(machine, "stillpoint", "run", job, "--json")
        return {**summary["lock"], "copy_ms": summary["copy"]["duration_s"] * 1000}

    return run


def bare_lvcreate(machine: Machine) -> Record:
    """A snapshot, and no lock at all."""
    machine.run("lvcreate -qq -s -L 1G -n bare-snapshot vg00/root >/dev/null && lvremove -qq -y vg00/bare-snapshot")
    return {}


def bare_freeze(machine: Machine) -> Record:
    """The suspend and the resume of the volume alone, which every snapshot has to do."""
    return ask(machine, f"{GUEST}/freeze.py", "vg00/root")


def alone(machine: Machine) -> Record:
    """Nothing: what the writers do to each other."""
    machine.run(["sleep", "15"])
    return {}


WAYS: dict[str, Callable[[Machine], Record]] = {
    "original": original,
    "auto": agent("auto"),
    "ftwrl": agent("ftwrl"),
    "lvcreate": bare_lvcreate,
    "freeze": bare_freeze,
    "alone": alone,
}


def run(state: str, pairs: int, rate: float) -> None:
    """Measure every way in turn, `pairs` times, each from the same saved state; the order rotates."""
    with prepared_machine(state) as machine:
        load = Load.install(machine)
        # what is copied after the lock has no part in this; less of it leaves time for more runs
        machine.run(["find", "/opt/processmaker", "-mindepth", "1", "-delete"])
        for engines in ENGINES:
            if engines == "innodb":
                machine.run(["mysql", "-e", "ALTER TABLE wf_workflow.LOGIN_LOG ENGINE=InnoDB"])
            load.setup(engines)
            machine.save(f"bench-{engines}")
        results = Results("lock", {**conditions(machine), "rate": rate, "pairs": pairs}, [])
        for pair in range(pairs):
            for engines in ENGINES:
                names = list(WAYS)
                for way in names[pair % len(names) :] + names[: pair % len(names)]:
                    machine.load(f"bench-{engines}")
                    results.add(pair=pair, engines=engines, way=way, **measure(machine, load, WAYS[way], rate))


def measure(machine: Machine, load: Load, way: Callable[[Machine], Record], rate: float) -> dict[str, Any]:
    """Return what one way said of its lock and what the writers felt of it."""
    load.start(rate=rate)
    time.sleep(SETTLE)
    begin = load.now()
    said = way(machine)
    end = load.now()
    time.sleep(AFTER)
    felt = load.report(begin, end)
    load.stop()
    kinds = [kind for kind in felt if kind != "known"]
    return {
        "method": said.get("method"),
        "waited_ms": said.get("waited_ms"),
        "held_ms": said.get("held_ms"),
        "frozen_ms": said.get("frozen_ms"),
        "worst_commit_ms": felt["commit"]["worst_ms"],
        "worst_step_ms": max(felt[kind]["worst_ms"] for kind in kinds),
        "median_commit_ms": felt["commit"]["median_ms"],
        "p99_commit_ms": felt["commit"]["p99_ms"],
        "seconds": round(end - begin, 1),
    }
