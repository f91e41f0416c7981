#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What starting costs: the agent's commands beside a bare Python, from bytecode and from sources, and a module as Ansible brings it to a host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(PROJECT / "plugins" / "module_utils")]

from _core import bundle  # noqa: E402
from bench import Results  # noqa: E402
from native import conditions  # noqa: E402

#: What `plan` reads before it asks LVM and the server anything
READ_PLAN = """
import sys
sys.path.insert(0, sys.argv[1])
from stillpoint.agent.main import main
from stillpoint.agent.arguments import parse
parse(["plan", "etrial"])
"""


def run(pairs: int = 30) -> None:
    """Measure each way `pairs` times in turn."""
    top = Path(tempfile.mkdtemp(prefix="stillpoint-bench-"))
    try:
        os.environ["STILLPOINT_JOBS"] = str(job(top).parent)
        sources = bundle.build(sys.executable)
        (top / "sources").write_bytes(sources)
        (top / "compiled").write_bytes(bundle.compiled(sources, str(top / "compiled")))
        python = [sys.executable, "-I"]
        ways = {
            "bare": [*python, "-c", "pass"],
            "version": [*python, str(top / "compiled"), "version"],
            "list": [*python, str(top / "compiled"), "list"],
            "plan": [*python, "-c", READ_PLAN, str(top / "compiled")],
            "version from sources": [*python, str(top / "sources"), "version"],
            "list from sources": [*python, str(top / "sources"), "list"],
            **{"module " + name: [sys.executable, str(carried(name, top))] for name in ("ansible.builtin.ping", "stillpoint.backup.backup_info")},
        }
        sizes = {name: os.path.getsize(command[1]) for name, command in ways.items() if name.startswith("module ")}
        results = Results("start", {**conditions(top), "payload": sizes}, [])
        for pair in range(-1, pairs):
            for way, command in ways.items():
                seconds = cpu_seconds(command)
                if pair >= 0:  # the first round warms the caches
                    results.add(pair=pair, way=way, cpu_ms=round(seconds * 1000, 1))
    finally:
        shutil.rmtree(top)


def job(top: Path) -> Path:
    """Write a job that has no backup yet; return its file."""
    (top / "jobs").mkdir()
    path = top / "jobs" / "etrial.yml"
    path.write_text("name: etrial\nmysql: {lock: auto}\nfiles: [/opt/processmaker]\nrepository: %s\nkeep: {last: 3, daily: 7}\n" % top)
    path.chmod(0o600)
    return path


def carried(module: str, top: Path) -> Path:
    """Return the file that Ansible brings to a host for a module, with its arguments in it."""
    collections = top / "collections" / "ansible_collections" / "stillpoint"
    collections.mkdir(parents=True, exist_ok=True)
    if not (collections / "backup").exists():
        (collections / "backup").symlink_to(PROJECT)
    folder = top / module
    environment = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(top / "collections"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_REMOTE_TMP": str(folder / "remote"),
        "ANSIBLE_KEEP_REMOTE_FILES": "true",
        "ANSIBLE_PIPELINING": "false",
    }
    interpreter = json.dumps({"ansible_python_interpreter": sys.executable})
    command = [sys.executable, "-m", "ansible", "adhoc", "localhost", "-c", "local", "-e", interpreter, "-m", module]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)  # there is no agent to ask: it says so
    (found,) = folder.glob("remote/*/AnsiballZ_*.py")
    return found


def cpu_seconds(command: list[str]) -> float:
    """Run a command and return the processor's time that it took."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and "AnsiballZ" not in command[1]:
        raise SystemExit("%s ended with %d" % (" ".join(command), process.returncode))
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    run()
