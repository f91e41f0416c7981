# SPDX-License-Identifier: GPL-3.0-or-later
"""A second server on the host, and Ansible in a venv that lacks what the host's own Python has."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any, Dict, Iterator

import pytest
from _core.host.errors import StillpointError
from _core.mysql import account
from _core.mysql.connection import Login, Session
from deployed_host import Host
from real_server import RealServer, needed, real_server

pytest.importorskip("ansible")
pytestmark = needed

ACCOUNT = "stillpoint.backup.mysql_backup_account"


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as server:
        yield server


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, server: RealServer) -> Host:
    job = {"name": "second", "mysql": {"method": "dump", "login_unix_socket": server.login.login_unix_socket}, "repository": "/backups"}
    host = Host(tmp_path_factory.mktemp("host"), [job])
    for name in ("pymysql", "yaml"):
        (host.libraries / name).symlink_to(os.path.dirname(str(importlib.import_module(name).__file__)))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(host.top / "venv")], check=True)
    return host


def module(host: Host, name: str, **arguments: Any) -> Dict[str, Any]:
    """Return what a module answers that Ansible runs in a venv with nothing in it."""
    interpreter = ["-e", "ansible_python_interpreter=%s/venv/bin/python" % host.top]
    command = [sys.executable, "-m", "ansible", "adhoc", "-o", "-i", "localhost,", "-c", "local", "localhost", *interpreter]
    done = host.apart(*command, "-m", name, "-a", json.dumps(arguments))
    return dict(json.loads(done.stdout[done.stdout.index("{") :]))


def test_it_has_an_account_of_its_own_that_is_made_where_ansibles_python_lacks_pymysql(host: Host, server: RealServer) -> None:
    option_file = str(host.top / "etc" / "my.cnf")
    options = ("-e", "ansible_python_interpreter=%s/venv/bin/python" % host.top)
    host.deployed(*options, backup_client_account=True, backup_client_account_config_file=option_file)
    (own,) = (host.top / "etc").glob("my-*.cnf")
    assert not os.path.exists(option_file)
    with Session(Login(config_file=str(own))) as session:
        assert session.value("SELECT CURRENT_USER()").startswith("stillpoint-s-")
        assert "SELECT" in str(session.rows("SHOW GRANTS"))  # it is a dump
    assert "changed=0" in host.deployed(*options, "--check", backup_client_account=True, backup_client_account_config_file=option_file)


def test_removing_it_needs_no_more_than_its_option_file(host: Host, server: RealServer) -> None:
    (own,) = (host.top / "etc").glob("my-*.cnf")
    said = account.recorded(str(own))
    assert set(said) == {"user", "socket"}
    assert module(host, ACCOUNT, option_file=str(own), state="absent", login_user="root")["changed"] is True
    assert not own.exists()
    with Session(server.login) as session:
        assert session.value("SELECT COUNT(*) FROM mysql.user WHERE User = '%s'" % said["user"]) == 0
    assert account.recorded(str(own)) == {}


def test_where_no_python_has_a_library_the_sentence_names_the_one_that_was_used(host: Host) -> None:
    libraries = list(host.libraries.iterdir())
    for each in libraries:
        each.unlink()
    if subprocess.run(["/usr/bin/python3", "-c", "import pymysql"], stderr=subprocess.DEVNULL).returncode == 0:
        pytest.skip("the host's own Python has PyMySQL")
    answer = module(host, ACCOUNT, login_unix_socket="/nowhere")
    assert answer["msg"] == "the Python library PyMySQL is missing for %s: install the package python3-pymysql" % (host.top / "venv/bin/python")
    with pytest.raises(StillpointError, match="can't be reached|does not answer"):
        Session(Login(login_unix_socket="/nowhere"))
