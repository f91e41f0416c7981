# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the tests that run in virtual machines.

`machine` is a replica of ETrial in state `ready`, or in another one by `@pytest.mark.state("binlog")`. Each pytest-xdist
worker has one virtual machine; a test gets it back in its saved state, not booted anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(PROJECT / "tests" / folder) for folder in ("integration", "lab", "load")]

from etrial import AGENT, Etrial  # noqa: E402
from machine import Image, LabError, Machine, NotAvailable  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "state(name): the saved state that `machine` starts from; default: ready")
    config.addinivalue_line("markers", "suite(name): `machine` is one of this Debian suite, as it was when it had booted")


#: What takes longest, longest first.
LONGEST = ("test_roles.py", "test_interrupted.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest, so that no worker is left alone with it; then one suite after the other, so that each is booted once."""

    def place(item: pytest.Item) -> tuple[int, str]:
        suite = item.get_closest_marker("suite")
        return LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST), suite.args[0] if suite else "~"

    items.sort(key=place)


class Worker:
    """The one machine of this worker, started when the first test asks for it."""

    def __init__(self) -> None:
        self._machine: Machine | None = None
        self._suite: str | None = None

    def machine(self, state: str) -> Machine:
        """Return the machine in that state; a broken one is replaced."""
        if self._suite:
            self.close()
        if self._machine:
            try:
                self._machine.load(state)
            except (LabError, OSError, subprocess.TimeoutExpired):
                self.close()
        if not self._machine:
            self._machine = Machine.start(state)
        return self._machine

    def booted(self, suite: str) -> Machine:
        """Return a machine of that suite as it was when it had booted."""
        if self._suite == suite and self._machine:
            try:
                self._machine.load("booted")
                return self._machine
            except (LabError, OSError, subprocess.TimeoutExpired):
                pass
        self.close()
        try:
            image = Image.get(suite)
        except NotAvailable as error:
            pytest.skip(str(error))
        self._machine, self._suite = Machine.boot(image), suite
        self._machine.save("booted")
        return self._machine

    def close(self) -> None:
        if self._machine:
            self._machine.kill()
        self._machine = self._suite = None


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


@pytest.fixture
def machine(request: pytest.FixtureRequest, worker: Worker) -> Machine:
    """A replica of ETrial that only this test uses."""
    suite = request.node.get_closest_marker("suite")
    if suite:
        return worker.booted(suite.args[0])
    marker = request.node.get_closest_marker("state")
    return worker.machine(marker.args[0] if marker else "ready")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """With a failed test, show the end of the machine's journal."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.when == "call" and report.failed and isinstance(machine, Machine):
        try:
            journal = machine.run("journalctl -n 60 --no-pager -o short-precise", check=False, timeout=20).stdout
        except (OSError, subprocess.SubprocessError) as error:
            journal = f"no journal: {error}\n{machine.console()[-2000:]}"
        report.sections.append(("journal of the machine", journal))


def build_agent() -> bytes:
    """Return the agent as the module `agent` makes it on a host with this Python; in a process of its own, so that `_core` stays out of ours."""
    script = "import sys; from _core import bundle; sys.stdout.buffer.write(bundle.compiled(bundle.build(), sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "plugins" / "module_utils"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, "-c", script, AGENT], env=environment, stdout=subprocess.PIPE, check=True).stdout


@pytest.fixture(scope="session")
def agent_file() -> bytes:
    return build_agent()


@pytest.fixture
def agent(machine: Machine, agent_file: bytes) -> Machine:
    """The machine, with the agent installed."""
    machine.put(agent_file, AGENT, mode="0755")
    return machine


@pytest.fixture
def etrial(agent: Machine) -> Etrial:
    """The machine with the agent installed, and what tests do on it."""
    return Etrial(agent)


@pytest.fixture(scope="session")
def collections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collections path with this project in it."""
    folder = tmp_path_factory.mktemp("collections")
    home = folder / "ansible_collections" / "stillpoint"
    home.mkdir(parents=True)
    (home / "backup").symlink_to(PROJECT)
    return folder


@pytest.fixture
def playbook(machine: Machine, collections: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a playbook (a path, or its text) against the machine as host `etrial`."""
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": {"etrial": dict(machine.ansible_variables())}}}))

    def run(play: str | Path, *arguments: str, check: bool = True, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        if isinstance(play, str) and "\n" in play:
            (tmp_path / "play.yml").write_text(play)
            play = tmp_path / "play.yml"
        environment = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections),
            "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_PIPELINING": "true",
            "ANSIBLE_NOCOLOR": "true",
        }
        program = Path(sys.executable).with_name("ansible-playbook")
        command = [str(program), "-i", str(inventory), *arguments, str(play)]
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)
        if check and done.returncode:
            pytest.fail(f"ansible-playbook: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    return run
