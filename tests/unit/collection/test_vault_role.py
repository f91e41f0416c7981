# SPDX-License-Identifier: GPL-3.0-or-later
"""The role backup_vault as it is there, run on this host with a real restic and REST server: what it leaves, and what it never shows."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from deployed_host import Host
from vault_server import RESTIC, SERVER, needs_vault

pytest.importorskip("ansible")

pytestmark = [*needs_vault, pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")]


class VaultHost(Host):
    """This host as a vault, and as one that sends copies to it."""

    role = "backup_vault"

    def __init__(self, top: Path) -> None:
        super().__init__(top, [])
        for parent in (top, *top.parents):
            if parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
        for program in (RESTIC, SERVER):
            shutil.copy(program, top)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def variables(self) -> Dict[str, Any]:
        return {
            "backup_vault_hosts": ["localhost"],
            "backup_vault_address": "localhost",
            "backup_vault_port": self.port,
            "backup_vault_directory": str(self.top / "srv"),
            "backup_vault_state_directory": str(self.top / "var/vault"),
            "backup_vault_own_directory": str(self.top / "etc/vault"),
            "backup_vault_settings": str(self.top / "etc/vault.yml"),
            "backup_vault_unit_directory": str(self.units),
            "backup_vault_secrets": str(self.top / "client/secrets/vault"),
            "backup_vault_metrics": str(self.top / "met rics"),
            "backup_vault_user": "daemon",
            "backup_vault_restic": str(self.top / "restic"),
            "backup_vault_server": str(self.top / "restic-rest-server"),
        }

    def secrets(self) -> Dict[str, str]:
        lines = (self.top / "client/secrets/vault").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> VaultHost:
    return VaultHost(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def printed(host: VaultHost) -> str:
    return host.deployed("-vvv", "--diff", **host.variables())


# In this order, on one host.


def test_a_vault_and_its_host_are_made_and_no_secret_is_shown(host: VaultHost, printed: str) -> None:
    secrets = host.secrets()
    assert set(secrets) == {"RESTIC_PASSWORD", "RESTIC_REST_USERNAME", "RESTIC_REST_PASSWORD", "RESTIC_CACERT"}
    keeper = (host.top / "etc/vault/password").read_text().strip()
    for value in (secrets["RESTIC_PASSWORD"], secrets["RESTIC_REST_PASSWORD"], keeper):
        assert len(value) >= 43 and value not in printed
    wanted = {"client/secrets/vault": "0o600", "etc/vault/password": "0o600", "etc/vault/key.pem": "0o640", "srv/frozen": "0o700"}
    assert {name: oct(stat.S_IMODE((host.top / name).stat().st_mode)) for name in wanted} == wanted


def test_its_units_are_what_systemd_understands(host: VaultHost, printed: str) -> None:
    names = ["stillpoint-vault.service", *("stillpoint-vault-%s.%s" % (what, kind) for what in ("check", "prune") for kind in ("service", "timer"))]
    verified = host.apart("systemd-analyze", "verify", *(str(host.units / each) for each in names))
    assert verified.stderr == "" and verified.returncode == 0, verified.stderr
    told = "\n".join(host.told())
    assert all(each in told for each in ("stillpoint-vault.service", "stillpoint-vault-check.timer", "stillpoint-vault-prune.timer"))


@pytest.fixture
def served(host: VaultHost, printed: str) -> Iterator[int]:
    """The REST server, started as the unit says, as its user; its process."""
    unit = (host.units / "stillpoint-vault.service").read_text()
    found = re.findall("^ExecStart=(.*)$", unit, re.MULTILINE)
    as_user = ["setpriv", "--reuid", "daemon", "--regid", "daemon", "--clear-groups", "--pdeathsig", "KILL"]
    with subprocess.Popen([*as_user, *found[0].split()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        while socket.socket().connect_ex(("127.0.0.1", host.port)) != 0:
            assert server.poll() is None
            time.sleep(0.02)
        yield server.pid
        server.kill()


def restic(host: VaultHost, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, **host.secrets(), "RESTIC_REPOSITORY": "rest:https://localhost:%d/localhost/" % host.port}
    return subprocess.run([str(RESTIC), "--no-cache", "-q", *words], env=environment, capture_output=True, text=True)


def test_the_host_can_send_with_what_it_was_given_and_the_keeper_looks_at_it(host: VaultHost, served: int) -> None:
    assert restic(host, "backup", str(host.top / "etc/vault.yml")).returncode == 0
    looked = host.apart("env", "STILLPOINT_VAULT=" + str(host.top / "etc/vault.yml"), str(host.top / "sbin/stillpoint"), "vault", "check", "--json")
    (found,) = json.loads(looked.stdout)
    assert found["host"] == "localhost" and "was not made by stillpoint" in found["alarms"][0]


def test_a_second_deployment_changes_nothing(host: VaultHost, printed: str) -> None:
    host.told()
    before = host.secrets()
    again = host.deployed("--diff", **host.variables())
    assert re.search(r"changed=0\b", again), again
    assert host.secrets() == before and host.told() == []


def test_a_host_that_has_lost_its_secrets_gets_new_ones_for_the_same_repository(host: VaultHost, served: int) -> None:
    before, repository = host.secrets(), restic(host, "cat", "config").stdout
    assert '"id"' in repository
    (host.top / "client/secrets/vault").unlink()
    public = {"content": base64.b64encode((host.top / "etc/vault/certificate.pem").read_bytes()).decode()}
    again = host.deployed("-vvv", entry="host", backup_vault_host="localhost", backup_vault_public=public, **host.variables())
    after = host.secrets()
    assert after["RESTIC_PASSWORD"] != before["RESTIC_PASSWORD"] and after["RESTIC_PASSWORD"] not in again
    os.kill(served, signal.SIGHUP)  # as systemd would by ExecReload
    until = time.monotonic() + 60
    while "401" in restic(host, "cat", "config").stderr and time.monotonic() < until:
        time.sleep(0.1)
    assert restic(host, "cat", "config").stdout == repository


def test_a_retention_that_counts_copies_is_refused_before_anything_is_changed(host: VaultHost, printed: str) -> None:
    before = (host.top / "etc/vault.yml").read_text()
    refused = host.deploy(**{**host.variables(), "backup_vault_keep": {"within": "3d", "last": 3}})
    assert "failed=1" in refused and "last" in refused and (host.top / "etc/vault.yml").read_text() == before
