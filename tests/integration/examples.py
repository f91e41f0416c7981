# SPDX-License-Identifier: GPL-3.0-or-later
"""The EXAMPLES of modules as playbooks, so that a test can run them as they stand.

    python3 tests/integration/examples.py backup_run > play.yml
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
MODULES = ROOT / "plugins" / "modules"


def modules() -> list[str]:
    """Return the names of the collection's modules."""
    return sorted(path.stem for path in MODULES.glob("[a-z]*.py"))


def text(module: str) -> str:
    """Return a module's EXAMPLES as they stand in its source."""
    for node in ast.parse((MODULES / f"{module}.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "EXAMPLES":
            return str(ast.literal_eval(node.value))
    raise LookupError(f"{module} has no EXAMPLES")


def tasks(module: str) -> list[dict[str, Any]]:
    """Return a module's EXAMPLES as a list of tasks."""
    return list(yaml.safe_load(text(module)))


def playbook(module: str, hosts: str = "all") -> str:
    """Return a playbook that runs a module's EXAMPLES one after the other; the tasks are the text that users read."""
    head = f"- name: The examples of {module}\n  hosts: {hosts}\n  become: true\n  gather_facts: false\n  tasks:\n"
    return "---\n" + head + "".join(f"    {line}\n" if line.strip() else "\n" for line in text(module).strip().splitlines())


if __name__ == "__main__":
    print(playbook(*sys.argv[1:]), end="")
