# SPDX-License-Identifier: GPL-3.0-or-later
"""The load and the judge inside a machine of the lab, driven from the workstation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).resolve().parent
PROGRAMS = ("checks.py", "gap.py", "judge.py", "latency.py", "rows.py", "scratch.py", "writer.py")
FOLDER = "/usr/local/lib/stillpoint-load"


class Machine(Protocol):
    """What is asked of a machine: `tests/lab/machine.py` has it."""

    def run(self, command: Any, input: Any = None, check: bool = True, timeout: float = 120) -> Any: ...


class CannotJudge(Exception):
    """The judge itself failed, which is no verdict."""


@dataclass(frozen=True)
class Load:
    """Writers and judge in one machine; the writers are clients of the server at `socket`, if it is not the packaged one."""

    machine: Machine
    socket: str | None = None

    @classmethod
    def install(cls, machine: Machine, socket: str | None = None) -> Load:
        """Put the programs into the machine."""
        script = f"mkdir -p {FOLDER}\n"
        for name in PROGRAMS:
            script += f"cat > {FOLDER}/{name} <<'END OF {name}'\n{(HERE / name).read_text()}END OF {name}\n"
        machine.run("sh -e", input=script)
        return cls(machine, socket)

    def setup(self, engines: str = "all") -> None:
        self._writer("setup", "--engines", engines)

    def start(self, writers: int = 3, rate: float = 0) -> None:
        """Start the writers and return when each has written a key."""
        self._writer("start", "--writers", str(writers), "--rate", str(rate))

    def stop(self) -> dict[str, Any]:
        """Stop the writers in order and return their report over their whole time."""
        return self._json("stop")

    def report(self, since: float, until: float) -> dict[str, Any]:
        """Return what the writers waited for between two moments of `now`."""
        return self._json("report", "--since", f"{since:.6f}", "--until", f"{until:.6f}")

    def known(self, at: float) -> dict[str, int]:
        """Return writer → the last key whose commit was acknowledged at a moment of `now`."""
        return self._json("known", "--at", f"{at:.6f}")

    def now(self) -> float:
        """Return the machine's clock: what the writers' notes are timed with."""
        return float(self.machine.run(["date", "+%s.%N"]).stdout)

    def judge(self, *options: str, known: Mapping[str, int] | None = None, timeout: float = 1200) -> dict[str, Any]:
        """Return the verdict of `judge.py`, called with `server` or `copy` and its options."""
        words = ["python3", f"{FOLDER}/judge.py", *options]
        if known is not None:
            self.machine.run(["tee", f"{FOLDER}/known.json"], input=json.dumps(known))
            words += ["--known", f"{FOLDER}/known.json"]
        done = self.machine.run(shlex.join(words), check=False, timeout=timeout)
        if not done.stdout:
            raise CannotJudge(done.stderr)
        verdict: dict[str, Any] = json.loads(done.stdout)
        return verdict

    def _writer(self, *words: str) -> str:
        socket = ["--socket", self.socket] if self.socket else []
        return str(self.machine.run(["python3", f"{FOLDER}/writer.py", *words, *socket], timeout=300).stdout)

    def _json(self, *words: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._writer(*words))
        return answer
