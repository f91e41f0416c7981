# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo's last words: what was locked, what the writers felt, what came back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Facts:
    """What the demo saw. Reports of the writers and the verdict are as `writer.py` and `judge.py` print them."""

    summary: Mapping[str, Any]
    before: Mapping[str, Any]
    during: Mapping[str, Any]
    known: Mapping[str, int]
    verdict: Mapping[str, Any]
    rest_came_back: bool
    restore_s: float

    @property
    def good(self) -> bool:
        return bool(self.verdict["one_point_in_time"]) and self.rest_came_back


def newest(machine: Any, job: str) -> dict[str, Any]:
    """Return what the agent shows of the newest good generation of a job."""
    summary: dict[str, Any] = json.loads(machine.run(["stillpoint", "show", job, "--json"]).stdout)
    return summary


def text(facts: Facts) -> str:
    """Return the report."""
    rows = list(_rows(facts))
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name:<{width}}  {value}" for name, value in rows]
    lines += [f"  violation: {sentence}" for sentence in facts.verdict["violations"]]
    return "\n".join(lines)


def _rows(facts: Facts) -> Iterator[tuple[str, str]]:
    lock, copy = facts.summary["lock"], facts.summary["copy"]
    yield "backup", f"{facts.summary['generation']}, point in time {facts.summary['time']}{_position(facts.summary['coordinates'])}"
    yield "lock", f"{lock['method']}, held {lock['held_ms']:.0f} ms, of which the file system was frozen {lock['frozen_ms'] or 0:.0f} ms"
    yield "worst commit", f"{_worst(facts.during)} during the backup; {_worst(facts.before)} in the seconds before it, with no backup"
    yield "copy", f"{copy['duration_s']:.0f} s, {copy['files']} files, {copy['bytes'] / MIB:.0f} MiB"
    came_back = sum(counts["cases"] for counts in facts.verdict["writers"].values())
    yield "restore", f"{facts.restore_s:.0f} s by playbook; {facts.verdict['rows']} rows and {facts.verdict['files']} files of the writers"
    yield "nothing forgotten", f"{sum(facts.known.values())} commits were acknowledged when the backup began, {came_back} came back"
    yield "one point in time", f"{_yes(facts.verdict['one_point_in_time'])}; CHECK TABLE on {facts.verdict['tables_checked']} tables"
    yield "everything else", "came back to the last byte and attribute" if facts.rest_came_back else "DIFFERS from what it was"


def _position(coordinates: Mapping[str, Any] | None) -> str:
    return f", binary log {coordinates['file']}:{coordinates['position']}" if coordinates and coordinates.get("file") else ""


def _worst(report: Mapping[str, Any]) -> str:
    commit = report.get("commit")
    return f"{commit['worst_ms']:.0f} ms" if commit else "none seen"


def _yes(good: bool) -> str:
    return "yes" if good else "NO"
