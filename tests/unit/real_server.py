# SPDX-License-Identifier: GPL-3.0-or-later
"""A real MariaDB server in a temporary directory, which listens on nothing but a socket there."""

from __future__ import annotations

import atexit
import fcntl
import functools
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, List, Optional

import pytest
from _core.host.errors import StillpointError
from _core.mysql.connection import Login, Session
from apart import TEMPORARY

SERVER = shutil.which("mariadbd", path="/usr/sbin:/usr/local/sbin:" + os.environ.get("PATH", ""))
INSTALL = shutil.which("mariadb-install-db")
PLUGINS = os.environ.get("SERVER_PLUGINS")  # of the package that has the service too; tests/lab/setup knows where
PATIENCE = 90.0  # seconds that a state is waited for
USER = "nobody"  # mysql is there only where a server is installed as a service
REDO_LOG = "--innodb-log-file-size=8M"  # the default is 96M, which each backup, copy and restore would carry along

needed = [
    pytest.mark.server,
    pytest.mark.skipif(not (SERVER and INSTALL), reason="needs mariadbd and mariadb-install-db (package mariadb-server-core)"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


# A database that the server has accepted against its own rules, in a session that had them off.
RULED = (
    "SET SESSION innodb_strict_mode = 0, SESSION check_constraint_checks = 0, SESSION enforce_storage_engine = NULL",
    "CREATE DATABASE ruled",
    "CREATE TABLE ruled.wide (%s) CHARSET utf8mb4 ROW_FORMAT=DYNAMIC ENGINE=InnoDB" % ", ".join("c%d VARCHAR(60)" % each for each in range(190)),
    "INSERT INTO ruled.wide (c1) VALUES ('one')",
    "CREATE TABLE ruled.low (a INT, CONSTRAINT pos CHECK (a > 0))",
    "INSERT INTO ruled.low VALUES (-1)",
    "CREATE TABLE ruled.isam (a INT) ENGINE=MyISAM",
    "INSERT INTO ruled.isam VALUES (1)",
)


@dataclass
class RealServer:
    """A running server.

    :ivar top: its directory: ``data``, ``binlog`` and a socket
    """

    top: str
    login: Login
    process: Optional["subprocess.Popen[bytes]"] = field(default=None, repr=False)

    def start(self, *more: str) -> None:
        top = self.top
        options = ["--datadir=" + self.datadir, "--socket=" + top + "/s", "--tmpdir=" + top, "--pid-file=" + top + "/pid", "--log-error=" + top + "/error.log"]
        options += ["--skip-networking", "--innodb-buffer-pool-size=16M", REDO_LOG, "--log-bin=" + self.binlogs + "/bin", "--server-id=1"]
        options += ["--plugin-dir=" + self.plugins] if os.path.isdir(self.plugins) else []
        options += more
        command: List[str] = [str(SERVER), "--no-defaults", "--user=" + USER, *options]
        environment = {**os.environ, "LD_LIBRARY_PATH": self.plugins + "/lib"}
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        _wait(self)

    def stop(self, *, crash: bool = False) -> None:
        if self.process is not None:
            if crash:
                self.process.kill()
            else:
                self.process.terminate()
            self.process.wait(60)
            self.process = None

    @property
    def datadir(self) -> str:
        return os.path.join(self.top, "data")

    @property
    def plugins(self) -> str:
        return os.path.join(self.top, "plugins")

    @property
    def binlogs(self) -> str:
        return os.path.join(self.top, "binlog")

    def do(self, *statements: str) -> None:
        with Session(self.login) as session:
            session.do(*statements)

    def purge(self, name: str) -> None:
        """Purge the binary logs before one. The server keeps those that its engine may still need for a recovery, for a moment."""

        def gone() -> bool:
            with Session(self.login) as session:
                session.do("PURGE BINARY LOGS TO '%s'" % name)
                return bool(session.rows("SHOW BINARY LOGS")[0]["Log_name"] == name)

        until(gone, "the logs before %s to be purged" % name)

    def write_out(self) -> None:
        """Have InnoDB write to its files what was changed up to now, so that a recovery repeats nothing of that."""
        with Session(self.login) as session:

            def lsn(of: str) -> int:
                return int(session.rows("SHOW GLOBAL STATUS LIKE 'Innodb_lsn_%s'" % of)[0]["Value"])

            session.do("SET GLOBAL innodb_max_dirty_pages_pct = 0")
            now = lsn("current")
            until(lambda: lsn("last_checkpoint") >= now, "a checkpoint of InnoDB")

    def copy(self, name: str, *flush: str) -> str:
        """Return a copy of the data directory beside it, made under a global read lock and after the statements of `flush`."""
        to = os.path.join(self.top, name)
        with Session(self.login) as session:
            session.do("FLUSH TABLES WITH READ LOCK", *flush)
            subprocess.run(["cp", "-a", self.datadir, to], check=True)
        return to


@functools.lru_cache(maxsize=None)
def installed(root: str = "normal") -> str:
    """Return a data directory that no server was started on, made once in a run of the tests: to be copied.

    :param root: what root logs in by: `normal` (nothing) or `socket`
    """
    data = os.path.join(_templates(), root)
    with open(data + ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(data):
            new = data + ".new"
            install = [str(INSTALL), "--no-defaults", "--user=" + USER, "--datadir=" + new, "--auth-root-authentication-method=" + root]
            done = subprocess.run([*install, "--skip-test-db", REDO_LOG], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
            assert done.returncode == 0, done.stdout
            subprocess.run(["chown", "-R", USER, new], check=True)
            os.rename(new, data)
    return data


def _templates() -> str:
    """Return the directory of the installed data directories: the same one for all workers of a run that has its temporary files for itself."""
    path = os.path.join(TEMPORARY, "installed")
    if tempfile.gettempdir() == TEMPORARY:
        os.makedirs(path, mode=0o755, exist_ok=True)
        return path
    path = tempfile.mkdtemp(prefix="stillpoint-test-")
    atexit.register(shutil.rmtree, path)
    os.chmod(path, 0o755)
    return path


@contextmanager
def real_server(*options: str, volume: bool = False) -> Iterator[RealServer]:
    """Start a server that writes binary logs, and end it.

    :param volume: its data directory is the root of a file system
    """
    top = tempfile.mkdtemp(prefix="stillpoint-test-")  # a short path: a socket's may have 107 bytes
    server = RealServer(top, Login(login_user="root", login_unix_socket=top + "/s"))
    try:
        shutil.chown(top, USER)
        os.chmod(top, 0o755)
        os.mkdir(server.binlogs)
        shutil.chown(server.binlogs, USER)
        if PLUGINS:
            shutil.copytree(PLUGINS, server.plugins)
        if volume:
            _make_volume(server.datadir)
        subprocess.run(["cp", "-a", "--reflink=auto", "-T", installed(), server.datadir], check=True)
        server.start(*options)
        yield server
    finally:
        server.stop(crash=True)
        if os.path.ismount(server.datadir):
            subprocess.run(["umount", server.datadir], check=True)
        shutil.rmtree(top)


def _make_volume(directory: str) -> None:
    image = directory + ".img"
    os.mkdir(directory)
    with open(image, "wb") as file:
        file.truncate(512 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    shutil.chown(directory, USER)


def _ready(server: RealServer) -> bool:
    """A Galera node listens before it takes statements on tables."""
    with Session(server.login) as session:
        known = {row["Variable_name"]: row["Value"] for row in session.rows("SHOW GLOBAL STATUS LIKE 'wsrep_ready'")}
        node = session.rows("SHOW GLOBAL VARIABLES LIKE 'wsrep_on'")
    return not node or node[0]["Value"] == "OFF" or known.get("wsrep_ready") == "ON"


def _wait(server: RealServer) -> None:
    def ready() -> bool:
        assert server.process and server.process.poll() is None, "the server ended while it started: " + _complaints(server)
        try:
            server.do("SELECT 1")
            return _ready(server)
        except StillpointError:
            return False

    until(ready, "the server to start")


def _complaints(server: RealServer) -> str:
    with open(server.top + "/error.log", encoding="utf-8", errors="replace") as log:
        return log.read()[-2000:]


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a state, longer than a busy machine takes to come to it."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "not in time: " + what
        time.sleep(0.05)


_ports = itertools.count(20000 + 200 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))


def own_port() -> int:
    """Return a port that no other worker is given, below those that the kernel gives to whoever connects."""
    for port in _ports:
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("endless")
