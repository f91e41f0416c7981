# SPDX-License-Identifier: GPL-3.0-or-later
"""A real server with RocksDB, whose write-ahead log lies elsewhere, and with CONNECT, whose files may lie anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from _core.backup import sources
from _core.backup.quiesced import QuiesceRequest
from _core.dump import plan as dumps
from _core.host import run_directory
from _core.host.errors import StillpointError
from _core.job import reader
from _core.lvm import ownership
from _core.mysql import lock_choice, settings
from _core.mysql import server as servers
from _core.mysql.connection import Session
from _core.mysql.locks import Lock
from _core.mysql.scratch import scratch_server
from _core.repository.job_directory import JobDirectory
from real_server import PLUGINS, USER, RealServer, needed, real_server

pytestmark = [
    *needed,
    pytest.mark.skipif(not os.path.exists("%s/ha_rocksdb.so" % PLUGINS), reason="needs the server's plugins: tests/lab/setup brings them"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as it:
        it.stop()
        for name in ("wal", "else"):
            os.mkdir(os.path.join(it.top, name))
            shutil.chown(os.path.join(it.top, name), USER)
        it.start("--plugin-load-add=ha_rocksdb", "--plugin-load-add=ha_connect", "--rocksdb-wal-dir=%s/wal" % it.top)
        it.do("CREATE DATABASE shop", "CREATE TABLE shop.r (a INT PRIMARY KEY) ENGINE=ROCKSDB", "INSERT INTO shop.r SELECT seq FROM shop.seq_1_to_1000")
        yield it


def test_what_rocksdb_keeps_elsewhere_is_copied_and_brings_every_row_back_without_the_binary_logs(server: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", server.plugins + "/lib")
    for module in (run_directory, ownership):
        monkeypatch.setattr(module, "RUN_DIRECTORY", server.top + "/run")
    with Session(server.login) as session:
        found = servers.read(session)
        known = settings.read(session, found)
    wal, copy = server.top + "/wal", server.top + "/copy"
    assert [(part.role, part.path) for part in found.paths] == [("datadir", server.datadir), ("rocksdb_wal", wal)]
    method = lock_choice.choose("auto", found).method
    assert method is not None
    with Session(server.login) as session, Lock(session, method, 5) as lock:
        lock.prepare()
        lock.take()
        os.mkdir(copy)
        subprocess.run(["cp", "-a", server.datadir, wal, copy], check=True)
        lock.release()
    server.do("DELETE FROM shop.r")
    with scratch_server(known, {server.datadir: copy + "/data", wal: copy + "/wal"}, discard=True) as it, Session(it.login) as session:
        assert session.value("SELECT COUNT(*) FROM shop.r") == 1000


def test_a_file_of_connect_that_lies_elsewhere_is_refused_by_name_unless_the_job_has_it_or_dumps_the_server(server: RealServer) -> None:
    elsewhere = os.path.join(server.top, "else")
    server.do(
        "CREATE TABLE shop.far (a INT NOT NULL) ENGINE=CONNECT TABLE_TYPE=CSV FILE_NAME='%s/x.csv'" % elsewhere,
        "CREATE TABLE shop.near (a INT NOT NULL) ENGINE=CONNECT TABLE_TYPE=CSV FILE_NAME='near.csv'",
        *("INSERT INTO shop.%s VALUES (1)" % name for name in ("far", "near")),
    )
    found = sources.quiescing(QuiesceRequest(login_user="root", login_unix_socket=server.top + "/s")).server
    assert Path(elsewhere, "x.csv").exists() and Path(server.datadir, "shop", "near.csv").exists()
    with pytest.raises(StillpointError, match="the table shop.far .CONNECT. keeps its rows in %s/x.csv, which the backup would lack" % elsewhere):
        sources.refuse_outside(found, ["/opt/processmaker"])
    sources.refuse_outside(found, [elsewhere])
    of = reader.parse({"name": "shop", "mysql": {"method": "dump", "login_unix_socket": server.top + "/s"}, "repository": "/backups"})
    assert of.mysql is not None
    (warning,) = dumps.make(of.mysql, JobDirectory(server.top + "/none")).warnings(files=False)
    assert warning.startswith("the dump has the definition of shop.far (CONNECT) and 1 more and no rows: mariadb-dump leaves them out")
