# SPDX-License-Identifier: GPL-3.0-or-later
"""A real MariaDB server in a temporary directory, which listens on nothing but a socket there."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator

import pytest
from _core.errors import StillpointError
from _core.mysql.connection import Login, Session

SERVER = shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
INSTALL = shutil.which("mariadb-install-db")

needed = [
    pytest.mark.skipif(not (SERVER and INSTALL), reason="needs mariadbd and mariadb-install-db (package mariadb-server)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@dataclass(frozen=True)
class RealServer:
    """A running server.

    :ivar top: its directory: ``data``, ``binlog`` and a socket
    """

    top: str
    login: Login

    @property
    def datadir(self) -> str:
        return os.path.join(self.top, "data")

    @property
    def binlogs(self) -> str:
        return os.path.join(self.top, "binlog")

    def do(self, *statements: str) -> None:
        with Session(self.login) as session:
            session.do(*statements)

    def copy(self, name: str, *flush: str) -> str:
        """Return a copy of the data directory beside it, made under a global read lock and after the statements of `flush`."""
        to = os.path.join(self.top, name)
        with Session(self.login) as session:
            session.do("FLUSH TABLES WITH READ LOCK", *flush)
            subprocess.run(["cp", "-a", self.datadir, to], check=True)
        return to


@contextmanager
def real_server() -> Iterator[RealServer]:
    """Start a server that writes binary logs, and end it."""
    top = tempfile.mkdtemp(prefix="stillpoint-test-")  # a short path: a socket's may have 107 bytes
    process = None
    try:
        shutil.chown(top, "mysql", "mysql")
        os.chmod(top, 0o755)
        server = RealServer(top, Login(login_user="root", login_unix_socket=top + "/s"))
        os.mkdir(server.binlogs)
        shutil.chown(server.binlogs, "mysql", "mysql")
        install = [str(INSTALL), "--no-defaults", "--user=mysql", "--datadir=" + server.datadir, "--auth-root-authentication-method=normal"]
        subprocess.run([*install, "--skip-test-db"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        subprocess.run(["chown", "-R", "mysql:mysql", server.datadir], check=True)
        options = ["--datadir=" + server.datadir, "--socket=" + top + "/s", "--pid-file=" + top + "/pid", "--log-error=" + top + "/error.log"]
        options += ["--skip-networking", "--innodb-buffer-pool-size=16M", "--log-bin=" + server.binlogs + "/bin", "--server-id=1"]
        process = subprocess.Popen([str(SERVER), "--no-defaults", "--user=mysql", *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _wait(server)
        yield server
    finally:
        if process is not None:
            process.kill()
            process.wait()
        shutil.rmtree(top)


def _wait(server: RealServer) -> None:
    for _attempt in range(300):
        try:
            server.do("SELECT 1")
            return
        except StillpointError:
            time.sleep(0.1)
    raise AssertionError("the server did not start")
