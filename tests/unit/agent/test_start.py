# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent imports before it does anything: most of the time that `list` and `version` take on a host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, FrozenSet

import pytest
from _core import bundle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the agent is root's")

# Each of these takes as long as all that `list` has to do itself, or brings others along that do.
HEAVY = {"ctypes", "dataclasses", "hashlib", "inspect", "logging", "pymysql", "socket", "sqlite3", "subprocess", "tempfile", "urllib"}

#: What is asked of a fleet, and the rooms that it may enter
ROOMS = {
    "version": {"agent", "host"},
    "--version": {"agent", "host"},
    "list": {"agent", "host", "job", "lvm", "repository"},
    "show web": {"agent", "host", "job", "lvm", "repository"},
}

ASK = """
import sys
sys.argv[1:] = sys.argv[2:]
sys.path.insert(0, %r)
from stillpoint.agent.main import main
code = main()
print()
print("\\n".join(sys.modules))
sys.exit(code)
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A directory with an agent, a job and a backup of it."""
    (tmp_path / "stillpoint").write_bytes(bundle.compiled(bundle.build(), str(tmp_path / "stillpoint")))
    (tmp_path / "jobs").mkdir()
    job = {"name": "web", "mysql": {"lock": "auto"}, "files": ["/srv"], "repository": str(tmp_path), "keep": {"last": 3}, "snapshot_size": "1g"}
    (tmp_path / "jobs" / "web.yml").write_text(json.dumps(job))
    (tmp_path / "jobs" / "web.yml").chmod(0o600)
    generation = tmp_path / os.uname().nodename / "web" / "2026-11-22T02-00-05Z"
    generation.mkdir(parents=True)
    facts = {"sequence": 1, "time": "2026-11-22T02:00:05.000Z", "trees": [], "lock": None, "snapshots": []}
    lines = ["%s: %s,\n" % (json.dumps(key), json.dumps(value)) for key, value in facts.items()]
    (generation / "manifest.json").write_text("{\n%s\"files\": [\n" % "".join(lines))
    return tmp_path


def imported(host: Path, *arguments: str) -> FrozenSet[str]:
    """Return the modules that the agent has imported when it has done what it was told."""
    environment = {**os.environ, "STILLPOINT_JOBS": str(host / "jobs")}
    command = [sys.executable, "-I", "-c", ASK % str(host / "stillpoint"), "-", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return frozenset(done.stdout.split("\n\n")[-1].split()) - before()


def before() -> FrozenSet[str]:
    """Return what Python has imported by itself, as an installation's own start-up files may."""
    code = "import sys; print('\\n'.join(sys.modules))"
    return frozenset(subprocess.run([sys.executable, "-I", "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.split())


@pytest.mark.parametrize("words", ROOMS)
def test_what_is_asked_of_a_fleet_enters_few_rooms_and_no_heavy_library(host: Path, words: str) -> None:
    found = imported(host, *words.split())
    assert {name.split(".")[0] for name in found} & HEAVY == set()
    assert {name.split(".")[1] for name in found if name.startswith("stillpoint.")} - {"trees"} <= ROOMS[words]


def test_a_version_is_said_without_a_parser_of_arguments(host: Path) -> None:
    assert not imported(host, "version") & {"argparse", "json", "re", "typing", "yaml"}


@pytest.mark.parametrize("command", ["list", "show web"])
def test_a_command_is_read_alone(host: Path, command: str) -> None:
    own = {"list", "show", "version"}
    found: Any = {name.rsplit(".", 1)[1] for name in imported(host, *command.split()) if name.startswith("stillpoint.agent.commands.")}
    assert found <= own


REPLACED = """
import os, sys
sys.path.insert(0, sys.argv[1])
from stillpoint.agent import main
from stillpoint.agent.commands import version
from stillpoint.host.errors import StillpointError
def work():
    with open(sys.argv[1] + ".new", "wb") as file:
        file.write(b"another version")
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    raise StillpointError("the work failed")
version.print_version = work
sys.exit(main.main(["version", *sys.argv[2:]]))
"""


def test_a_command_says_how_it_failed_also_when_the_agent_was_replaced_meanwhile(host: Path) -> None:
    done = subprocess.run([sys.executable, "-I", "-c", REPLACED, str(host / "stillpoint")], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "stillpoint: the work failed\n")
