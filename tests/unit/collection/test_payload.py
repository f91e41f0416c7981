# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ansible carries to a host for a module, and has that compile: all that the module imports, inside functions too, and what that imports."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Dict, Iterator

import pytest

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"
PACKAGE = ("ansible_collections", "stillpoint", "backup", "plugins")

#: The modules that only ask the agent, or put it on the host, and the most bytes that go with each; those that do the work themselves need its rooms
MOST = {"agent": 50_000, "backup_info": 70_000, "backup_restore": 45_000, "backup_run": 42_000, "backup_verify": 60_000}


def carried(path: Path) -> Dict[Path, int]:
    """Return the files of this collection that go along with one, itself among them, and their sizes."""
    found: Dict[Path, int] = {}
    waiting = [path]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = path.stat().st_size
            waiting += imports(path)
    return found


def imports(path: Path) -> Iterator[Path]:
    """Give the files of this collection that a file imports."""
    own = path.relative_to(PLUGINS).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            parts = tuple((node.module or "").split(".")) if node.module else ()
            if node.level:
                parts = (*own[: -node.level], *parts)
            elif parts[: len(PACKAGE)] == PACKAGE:
                parts = parts[len(PACKAGE) :]
            else:
                continue
            for place in [parts, *((*parts, name.name) for name in node.names)]:
                yield from (each for each in (PLUGINS.joinpath(*place).with_suffix(".py"), PLUGINS.joinpath(*place, "__init__.py")) if each.is_file())


@pytest.mark.parametrize("module", MOST)
def test_a_module_that_asks_the_agent_carries_little(module: str) -> None:
    found = carried(PLUGINS / "modules" / (module + ".py"))
    assert sum(found.values()) < MOST[module], sorted((size, str(path.relative_to(PLUGINS))) for path, size in found.items())


def test_what_does_the_work_itself_carries_its_rooms() -> None:
    assert PLUGINS / "module_utils" / "_core" / "lvm" / "snapshots.py" in carried(PLUGINS / "modules" / "mysql_quiesce_snapshot.py")
