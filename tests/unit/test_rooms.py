# SPDX-License-Identifier: GPL-3.0-or-later
"""The rooms of the core stand in one order: each imports those below it, never one beside it or above."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Iterator, Tuple

CORE = Path(__file__).resolve().parents[2] / "plugins" / "module_utils" / "_core"
FLOORS = (
    {"host"},
    {"trees", "bundle"},
    {"mysql", "lvm", "binlog"},
    {"repository"},
    {"job"},
    {"observe", "dump", "proof"},
    {"copies"},
    {"archive"},
    {"restore"},
    {"backup"},
    {"vault"},
    {"agent"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def _imports(path: Path) -> Iterator[Tuple[int, str]]:
    """Give line and room of each relative import of a file."""
    package = path.relative_to(CORE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            for name in [node.module or ""] if node.module or above else [alias.name for alias in node.names]:
                yield node.lineno, (*above, *name.split("."))[0]


def test_a_room_imports_only_rooms_below_it() -> None:
    wrong = []
    for path in sorted(CORE.rglob("*.py")):
        own = path.relative_to(CORE).parts[0].replace(".py", "")
        for line, room in _imports(path) if own != "__init__" else ():
            if room != own and FLOOR[room] >= FLOOR[own]:
                wrong.append("%s:%d: %s imports %s, which is no room below it" % (path.relative_to(CORE), line, own, room))
    assert not wrong, "\n".join(wrong)


def test_every_room_has_its_floor() -> None:
    assert {path.name.replace(".py", "") for path in CORE.iterdir() if not path.name.startswith("__")} | {"__main__"} == set(FLOOR)
