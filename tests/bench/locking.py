# SPDX-License-Identifier: GPL-3.0-or-later
"""How long the lock is held and how long writers wait: the original script, ours, and the limits below which nobody gets."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bench import GUEST, Record, Results, ask, conditions, prepared_machine
from guest import Load
from machine import Machine

SETTLE = 4  # seconds that the writers run before each measurement
AFTER = 2  # seconds for what was stopped to end and be noted
ENGINES = ("all", "innodb")


def original(machine: Machine) -> Record:
    """The original script up to its copy: lock, sync, lvcreate, unlock."""
    return ask(machine, "env", "COPY=no", f"{GUEST}/original.sh")


def ours(lock: str) -> Callable[[Machine], Record]:
    """A quiesced snapshot, with no copy made of it."""
    return lambda machine: ask(machine, f"{GUEST}/quiesce.py", lock)


def bare_lvcreate(machine: Machine) -> Record:
    """A snapshot, and no lock at all."""
    machine.run("lvcreate -qq -s -L 1G -n bare-snapshot vg00/root >/dev/null && lvremove -qq -y vg00/bare-snapshot")
    return {}


def bare_freeze(machine: Machine) -> Record:
    """The suspend and the resume of the volume alone, which every snapshot has to do."""
    return ask(machine, f"{GUEST}/freeze.py", "vg00/root")


def alone(machine: Machine) -> Record:
    """Nothing: what the writers do to each other."""
    machine.run(["sleep", "8"])
    return {}


WAYS: dict[str, Callable[[Machine], Record]] = {
    "original": original,
    "auto": ours("auto"),
    "ftwrl": ours("ftwrl"),
    "none": ours("none"),
    "lvcreate": bare_lvcreate,
    "freeze": bare_freeze,
    "alone": alone,
}


def run(state: str, pairs: int, rate: float) -> None:
    """Measure every way in turn, `pairs` times, each round from the same saved state; the order rotates."""
    with prepared_machine(state) as machine:
        load = Load.install(machine)
        save_states(machine, load)
        results = Results("lock", {**conditions(machine), "rate": rate, "pairs": pairs}, [])
        for pair in range(pairs):
            for engines in ENGINES:
                machine.load(f"bench-{engines}")
                load.start(rate=rate)
                for way in rotated(list(WAYS), pair):
                    results.add(pair=pair, engines=engines, way=way, **measure(machine, load, WAYS[way]))
                load.stop()


def save_states(machine: Machine, load: Load) -> None:
    """Save a state for each set of engines, from which every measurement begins."""
    for engines in ENGINES:
        if engines == "innodb":
            machine.run(["mysql", "-e", "ALTER TABLE wf_workflow.LOGIN_LOG ENGINE=InnoDB"])
        load.setup(engines)
        machine.save(f"bench-{engines}")


def rotated(names: list[str], turn: int) -> list[str]:
    """Return the names, beginning with another one each turn."""
    return names[turn % len(names) :] + names[: turn % len(names)]


def measure(machine: Machine, load: Load, way: Callable[[Machine], Record]) -> dict[str, Any]:
    """Return what one way said of its lock and what the writers, who are at work, felt of it."""
    time.sleep(SETTLE)
    begin = load.now()
    said = way(machine)
    end = load.now()
    time.sleep(AFTER)
    felt = load.report(begin, end)
    kinds = [kind for kind in felt if kind != "known"]
    myisam = felt.get("audit", {})
    return {
        "method": said.get("method"),
        "waited_ms": said.get("waited_ms"),
        "held_ms": said.get("held_ms"),
        "frozen_ms": said.get("frozen_ms"),
        "worst_commit_ms": felt["commit"]["worst_ms"],
        "p99_commit_ms": felt["commit"]["p99_ms"],
        "median_commit_ms": felt["commit"]["median_ms"],
        "worst_myisam_ms": myisam.get("worst_ms"),
        "p99_myisam_ms": myisam.get("p99_ms"),
        "worst_step_ms": max(felt[kind]["worst_ms"] for kind in kinds),
        "seconds": round(end - begin, 1),
        "bytes_left": said.get("bytes_left"),
    }
