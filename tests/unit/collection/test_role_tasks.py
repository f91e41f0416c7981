# SPDX-License-Identifier: GPL-3.0-or-later
"""The role as it is there, run on this host: what it leaves, what it prints of a job whose address is a secret, what it makes of variables."""

from __future__ import annotations

import os
import re
import shutil

import pytest
import yaml
from deployed_host import ROOT, Host

pytest.importorskip("ansible")

from ansible.parsing.vault import VaultLib, VaultSecret  # noqa: E402

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the role's files are root's"),
    pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze"),
]

ROLE = ROOT / "roles" / "backup_client"
TOKEN = "f00d-cafe-secret"
TOLD = {
    "name": "told",
    "mysql": {},
    "repository": "/backups",
    "schedule": "02:00",
    "verify": {"schedule": "weekly"},
    "binlog": {"archive": True},
    "copies": [{"name": "disk", "to": "/usr/share/disk"}],
    "notify": {"ping_url": "https://ping.example.com/" + TOKEN, "metrics": "/usr/share/met rics%"},
}
PLAIN = {"name": "plain", "files": ["/opt"], "repository": "/somewhere/else", "schedule": "03:00"}
JOBS = [TOLD, PLAIN]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(tmp_path_factory.mktemp("host"), JOBS)


def vaulted(text: str) -> str:
    """Return a text encrypted, as YAML."""
    encrypted = VaultLib([("default", VaultSecret(b"of the vault"))]).encrypt(text).decode()
    return "!vault |\n" + "".join("  %s\n" % line for line in encrypted.splitlines())


def changed(printed: str) -> int:
    return int(re.findall(r"changed=(\d+)", printed)[0])


def tasks(printed: str) -> int:
    """Return how many tasks a host had, without those that were made for the test."""
    return sum(int(number) for kind in ("ok", "skipped") for number in re.findall(r"\b%s=(\d+)" % kind, printed)) - 1


# In this order, on one host.


@pytest.mark.cores
def test_check_mode_writes_nothing_and_shows_all_but_what_may_be_a_secret(host: Host) -> None:
    printed = host.deployed("-vvv", "--check", "--diff")
    assert changed(printed) == 2  # the agent, and all that belongs to the jobs
    assert "+repository: /somewhere/else" in printed and "+OnCalendar=02:00" in printed
    assert "told.yml: not shown" in printed and TOKEN not in printed
    assert host.files() == {} and host.told() == []


def test_a_deployment_leaves_jobs_and_units_that_systemd_accepts_and_starts_them(host: Host) -> None:
    printed = host.deployed("-vvv", "--diff")
    assert changed(printed) == 2 and TOKEN not in printed
    files = host.files()
    jobs = {path: yaml.safe_load(text) for path, text in files.items() if path.endswith(".yml")}
    assert jobs == {"etc/jobs/told.yml": TOLD, "etc/jobs/plain.yml": PLAIN}
    timers = {path: re.findall("OnCalendar=(.*)", text) for path, text in files.items() if path.endswith(".timer")}
    told = {"units/stillpoint@told.timer": ["02:00"], "units/stillpoint-verify@told.timer": ["weekly"], "units/stillpoint-copy@told.timer": ["*:0/15"]}
    assert timers == {**told, "units/stillpoint@plain.timer": ["03:00"]}
    assert oct((host.top / "etc/jobs/told.yml").stat().st_mode) == "0o100600" and oct((host.top / "etc").stat().st_mode) == "0o40700"
    every = "stillpoint-clean.service stillpoint@told.timer stillpoint-verify@told.timer stillpoint-copy@told.timer stillpoint-archive@told.service"
    every += " stillpoint@plain.timer"
    assert host.told() == ["enable " + every, "start " + every.split(" ", 1)[1]]
    instances = ["stillpoint@told.service", "stillpoint-verify@told.service", "stillpoint-archive@told.service", "stillpoint@told.timer"]
    instances += ["stillpoint-copy@told.service", "stillpoint-copy@told.timer"]
    verified = host.apart("systemd-analyze", "verify", *(str(host.units / each) for each in instances))
    assert verified.stderr == "" and verified.returncode == 0, verified.stderr


def test_a_service_may_write_where_its_job_does_below_what_systemd_makes_read_only(host: Host) -> None:
    line = r'ReadWritePaths="-/backups" "-/usr/share/met rics%%" "-/usr/share/disk"'
    written = {path: text.splitlines()[-1] for path, text in host.files().items() if path.endswith(".conf")}
    units = ("stillpoint", "stillpoint-verify", "stillpoint-copy", "stillpoint-archive")
    assert written == {"units/%s@told.service.d/stillpoint.conf" % unit: line for unit in units}


def test_a_second_deployment_changes_nothing_in_at_most_twelve_tasks(host: Host) -> None:
    printed = host.deployed("-vvv", "--diff")
    assert changed(printed) == 0 and host.told() == []
    assert 7 <= tasks(printed) <= 10  # and facts, and the validation of arguments of a role that is listed


def test_a_job_that_is_no_longer_listed_goes_and_is_not_printed(host: Host) -> None:
    assert TOKEN not in host.deployed("-vvv", "--diff", backup_client_jobs=[PLAIN])
    assert [path for path in host.files() if "told" in path] == []
    gone = "stillpoint-archive@told.service stillpoint-copy@told.timer stillpoint-verify@told.timer stillpoint@told.timer"
    assert host.told() == ["stop " + gone, "disable " + gone, "daemon-reload"]


def test_a_job_that_can_not_be_written_is_named_and_not_printed(host: Host) -> None:
    (host.top / "etc/jobs/told.yml").mkdir()
    printed = host.deploy("-vvv", "--diff")
    (host.top / "etc/jobs/told.yml").rmdir()
    assert "failed=1" in printed and re.search("jobs/told.yml can't be", printed)
    assert TOKEN not in printed


@pytest.mark.cores
def test_texts_of_templates_the_command_line_and_the_vault_mean_what_they_say(host: Host) -> None:
    (host.top / "vault.yml").write_text("address: %sdays: %s" % (vaulted("https://ping.example.com/" + TOKEN), vaulted("7")))
    (host.top / "password").write_text("of the vault")
    options = ["-e", "keep_last=3", "--vault-password-file", str(host.top / "password"), "-e", "@" + str(host.top / "vault.yml")]
    given = {"backup_client_account": "false", "backup_client_check_jobs": "false", "backup_client_retries": "2", "backup_client_retry_minutes": "5"}
    job = {
        "name": "text",
        "mysql": {"lock_wait_timeout": "{{ limit | default(5) }}", "desync": "{{ 'no' | bool }}", "login_port": "{{ db.port }}"},
        "repository": "/{{ 'backups' }}",
        "snapshot_size": 512,
        "verify": {"server": "{{ on }}", "schedule": "weekly"},
        "keep": {"last": "{{ keep_last | default(2) }}", "daily": "{{ days }}", "weekly": "{{ 3 + 4 }}"},
        "bwlimit": "{{ rate | default(omit) }}",
        "notify": {"ping_url": "{{ address }}"},
    }
    printed = host.deployed("-vvv", "--diff", *options, backup_client_jobs=[job], db={"port": 3306}, on="yes", **given)
    assert TOKEN not in printed
    files = host.files()
    assert yaml.safe_load(files["etc/jobs/text.yml"]) == {
        "name": "text",
        "mysql": {"lock_wait_timeout": 5, "desync": False, "login_port": 3306},
        "repository": "/backups",
        "snapshot_size": 512,
        "verify": {"server": True, "schedule": "weekly"},
        "keep": {"last": 3, "daily": 7, "weekly": 7},
        "notify": {"ping_url": "https://ping.example.com/" + TOKEN},
    }
    text = files["units/stillpoint@.service"]
    assert "StartLimitIntervalSec=20min" in text and "StartLimitBurst=3" in text


def test_a_host_without_a_job_is_refused_before_anything_is_changed(host: Host) -> None:
    before = host.files()
    printed = host.deploy(backup_client_jobs=[])
    assert "failed=1" in printed and "backup_client_jobs is empty for this host" in printed
    assert host.files() == before


@pytest.mark.parametrize("journal", ["rollback.json", "load.json"])
def test_the_agent_is_not_removed_where_a_restore_is_half_done(host: Host, journal: str) -> None:
    (host.top / "restore").mkdir(exist_ok=True)
    (host.top / "restore" / journal).write_text("{}")
    printed = host.deploy(entry="remove", backup_client_state_directory=str(host.top / "restore"))
    assert "A restore on this host is half done" in printed
    (host.top / "restore" / journal).unlink()


def test_no_task_loops_over_what_may_hold_a_secret() -> None:
    every = [task for file in (ROLE / "tasks").glob("*.yml") for task in yaml.safe_load(file.read_text(encoding="utf-8"))]
    loops = [str(task["loop"]) for task in every if "loop" in task]
    assert loops and not [loop for loop in loops if "jobs" in loop or "layout" in loop]
