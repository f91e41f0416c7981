# SPDX-License-Identifier: GPL-3.0-or-later
"""The tasks of the role as they are there, run on this host: what they print of a job whose address is a secret, what they make of variables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml

pytest.importorskip("ansible")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the role's files are root's")

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "backup_client"
TOKEN = "f00d-cafe-secret"
JOBS = [
    {
        "name": "told",
        "mysql": {},
        "repository": "/backups",
        "schedule": "02:00",
        "verify": {"schedule": "weekly"},
        "binlog": {"archive": True},
        "notify": {"ping_url": "https://ping.example.com/" + TOKEN},
    },
    {"name": "plain", "files": ["/opt"], "repository": "/somewhere/else", "schedule": "03:00"},
]


def tasks() -> List[Dict[str, Any]]:
    """Return every task of the role."""
    return [task for file in sorted((ROLE / "tasks").glob("*.yml")) for task in yaml.safe_load(file.read_text(encoding="utf-8"))]


class Workstation:
    def __init__(self, top: Path) -> None:
        collections = top / "collections" / "ansible_collections" / "stillpoint"
        collections.mkdir(parents=True)
        (collections / "backup").symlink_to(ROOT)
        (top / "templates").symlink_to(ROLE / "templates")
        (top / "units").mkdir()
        (top / "jobs").mkdir()
        (top / "ansible.cfg").write_text("[defaults]\nhome = %s\ncollections_path = %s\n" % (top / "home", top / "collections"))
        self.top = top

    def vaulted(self, text: str) -> str:
        """Return a text encrypted, as YAML; `play` can read it."""
        (self.top / "password").write_text("of the vault")
        command = [sys.executable, "-m", "ansible", "vault", "encrypt_string", "--vault-password-file", str(self.top / "password"), text]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def play(self, wanted: List[Dict[str, Any]], *options: str, **variables: Any) -> str:
        """Run tasks with the role's variables and return all that is printed."""
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars": {"ansible_python_interpreter": sys.executable, "backup_client_jobs": JOBS},
            "vars_files": [str(ROLE / "defaults" / "main.yml"), str(ROLE / "vars" / "main.yml"), str(self.top / "given.json")],
            "tasks": wanted,
        }
        given = {"backup_client_jobs": JOBS, "backup_client_unit_directory": str(self.top / "units"), "backup_client_job_directory": str(self.top / "jobs")}
        (self.top / "given.json").write_text(json.dumps({**given, **variables}))
        (self.top / "play.yml").write_text(json.dumps([play]))
        command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(self.top / "play.yml"), *options]
        done = subprocess.run(command, env={**os.environ, "ANSIBLE_CONFIG": str(self.top / "ansible.cfg")}, capture_output=True, text=True)
        assert "PLAY RECAP" in done.stdout, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def workstation(tmp_path: Path) -> Workstation:
    return Workstation(tmp_path)


def written() -> List[Dict[str, Any]]:
    """Return the role's tasks that write what there is one of for each job."""
    found = [task for task in tasks() if "ansible.builtin.template" in task and "loop" in task]
    assert len(found) == 3
    return found


def test_no_task_that_fails_prints_what_is_told_to_whom(workstation: Workstation) -> None:
    failing = [
        {
            "name": task["name"],
            "ansible.builtin.fail": {"msg": "it failed"},
            "ignore_errors": True,
            **{key: task[key] for key in task if key.startswith("loop")},
        }
        for task in tasks()
        if "backup_client_" in str(task.get("loop")) and not re.search(r"\.(results|files)\b|obsolete", str(task["loop"]))
    ]
    printed = workstation.play(failing, "-vvv")
    for task in failing:
        assert "TASK [%s]" % task["name"] in printed
    assert printed.count("it failed") >= len(failing) >= 4
    assert TOKEN not in printed


def test_a_job_that_can_not_be_written_is_named_and_not_printed(workstation: Workstation) -> None:
    printed = workstation.play(written(), "-vvv", "--diff", backup_client_job_directory=str(workstation.top / "missing"))
    assert "told" in printed
    assert "failed=1" in printed
    assert TOKEN not in printed


def test_diff_shows_the_jobs_that_tell_nobody_and_check_mode_and_a_second_run_tell_the_truth(workstation: Workstation) -> None:
    for options, changed in ((("--check",), 3), ((), 3), ((), 0), (("--check",), 0)):
        printed = workstation.play(written(), "-vvv", "--diff", *options)
        assert "failed=0" in printed, printed
        assert "changed=%d " % changed in printed
        assert ("+repository: /somewhere/else" in printed) == bool(changed)
        assert TOKEN not in printed
    files = {path.name: path.read_text() for directory in ("jobs", "units") for path in (workstation.top / directory).iterdir()}
    assert {name: yaml.safe_load(text) for name, text in files.items() if name.endswith(".yml")} == {
        "told.yml": {**JOBS[0], "mysql": {"config_file": "/etc/stillpoint/my.cnf"}},
        "plain.yml": JOBS[1],
    }
    timers = {name: re.findall("OnCalendar=(.*)", text) for name, text in files.items() if name.endswith(".timer")}
    assert timers == {"stillpoint@told.timer": ["02:00"], "stillpoint@plain.timer": ["03:00"], "stillpoint-verify@told.timer": ["weekly"]}


def test_an_address_in_the_vault_reaches_the_job_as_it_is(workstation: Workstation) -> None:
    (workstation.top / "vault.yml").write_text("address: " + workstation.vaulted("https://ping.example.com/" + TOKEN))
    jobs = [{**JOBS[0], "notify": {"ping_url": "{{ address }}"}}]
    options = ["--vault-password-file", str(workstation.top / "password"), "-e", "@" + str(workstation.top / "vault.yml")]
    printed = workstation.play(written(), "-vvv", "--diff", *options, backup_client_jobs=jobs)
    assert "failed=0" in printed, printed
    assert TOKEN not in printed
    (job,) = (yaml.safe_load(path.read_text()) for path in (workstation.top / "jobs").iterdir())
    assert job["notify"] == JOBS[0]["notify"]


def test_switches_and_numbers_given_as_text_mean_what_they_say(workstation: Workstation) -> None:
    given = {"backup_client_account": "false", "backup_client_check_jobs": "false", "backup_client_retries": "2", "backup_client_retry_minutes": "5"}
    service = [{"ansible.builtin.template": {"src": "stillpoint@.service.j2", "dest": str(workstation.top / "units" / "one.service")}}]
    asking = [
        {"name": task["name"], "ansible.builtin.debug": {"msg": "it would be done"}, "when": task["when"]}
        for task in tasks()
        if "backup_client_check_jobs" in str(task.get("when")) or "backup_client_account |" in str(task.get("when"))
    ]
    assert len(asking) == 3
    facts = {"backup_client_installed": {}, "backup_client_option_file": {"stat": {"exists": True}}}
    assert "it would be done" not in workstation.play([*written(), *service, *asking], **given, **facts)
    assert "mysql: {}" in (workstation.top / "jobs" / "told.yml").read_text()
    text = (workstation.top / "units" / "one.service").read_text()
    assert "StartLimitIntervalSec=20min" in text and "StartLimitBurst=3" in text


def test_the_agent_is_not_removed_where_a_restore_is_half_done(workstation: Workstation) -> None:
    state = workstation.top / "state"
    state.mkdir()
    removing = yaml.safe_load((ROLE / "tasks" / "remove.yml").read_text(encoding="utf-8"))
    looking = removing[: 1 + next(number for number, task in enumerate(removing) if "ansible.builtin.assert" in task)]
    assert "failed=0" in workstation.play(looking, backup_client_state_directory=str(state))
    (state / "rollback.json").write_text("{}")
    assert "A restore on this host is half done" in workstation.play(looking, backup_client_state_directory=str(state))
