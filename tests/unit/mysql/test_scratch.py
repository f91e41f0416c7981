# SPDX-License-Identifier: GPL-3.0-or-later
"""The scratch server on copies of a real one's data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from _core.host.errors import StillpointError
from _core.lvm import ownership
from _core.mysql import recovery, scratch, settings
from _core.mysql import server as servers
from _core.mysql.connection import ServerError, Session
from _core.mysql.recovery import said
from _core.mysql.scratch import ScratchFailed, scratch_server
from _core.mysql.settings import Settings
from real_server import USER, RealServer, needed, real_server

pytest.importorskip("pymysql")

FLUSH = "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS"
REAL = [pytest.mark.usefixtures("own_run_directory"), *needed]


def real(test: Any) -> Any:
    for mark in REAL:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as server:
        server.do(
            "CREATE DATABASE d",
            "CREATE TABLE d.rows_innodb (i INT PRIMARY KEY) ENGINE=InnoDB",
            "CREATE TABLE d.rows_myisam (i INT PRIMARY KEY) ENGINE=MyISAM",
            "INSERT INTO d.rows_innodb VALUES (1), (2)",
            "INSERT INTO d.rows_myisam VALUES (1)",
        )
        yield server


@pytest.fixture
def copy(server: RealServer, tmp_path: Path) -> Iterator[str]:
    """A copy of the data, its engines' logs flushed first."""
    path = server.copy("copy", FLUSH)
    yield path
    shutil.rmtree(path)


def settings_of(server: RealServer) -> Settings:
    with Session(server.login) as session:
        return settings.read(session, servers.read(session))


def contents(directory: str) -> Dict[str, Any]:
    """Return size and time of each file below a directory."""
    found = {}
    for folder, _names, files in os.walk(directory):
        for name in files:
            status = os.lstat(os.path.join(folder, name))
            found[os.path.join(folder, name)] = (status.st_size, status.st_mtime_ns)
    return found


@real
def test_it_recovers_a_copy_under_the_paths_of_the_live_data_and_says_where_it_stands(server: RealServer, copy: str) -> None:
    with Session(server.login) as session:
        status = session.rows("SHOW MASTER STATUS")[0]
    with scratch_server(settings_of(server), {server.datadir: copy}, discard=True) as it, Session(it.login) as session:
        assert it.recovery.crash_recovery
        assert it.recovery.file == status["File"]
        assert 0 < (it.recovery.position or 0) <= status["Position"]
        assert it.recovery.prepared == ()
        assert it.recovery.errors == ()
        assert session.value("SELECT @@datadir") == server.datadir + "/"
        assert session.value("SELECT COUNT(*) FROM d.rows_innodb") == 2
        # what is written under the live paths lands in the copy
        session.do("CREATE TABLE d.only_in_the_copy (i INT) ENGINE=MyISAM")
        assert os.path.exists(copy + "/d/only_in_the_copy.MYD")
        assert not os.path.exists(server.datadir + "/d/only_in_the_copy.MYD")
        assert session.rows("SHOW VARIABLES LIKE 'skip_networking'")[0]["Value"] == "ON"
        interfaces = Path("/proc/%d/net/dev" % it.process.pid).read_text(encoding="ascii").splitlines()[2:]
        assert [line.split(":")[0].strip() for line in interfaces] == ["lo"], "it can reach other hosts"


@real
def test_it_writes_to_the_copy_and_its_own_directory_alone(server: RealServer, copy: str, own_run_directory: str) -> None:
    other = server.top + "/other"
    os.mkdir(other)
    os.chmod(other, 0o777)
    before = {**contents(server.datadir), **contents(server.binlogs), **contents("/var/lib/mysql")}
    log = Path(server.top, "error.log").read_bytes()
    with scratch_server(settings_of(server), {server.datadir: copy}, discard=True, options=["--secure-file-priv="]) as it, Session(it.login) as session:
        for path in (other + "/x", server.binlogs + "/x", "/var/tmp/stillpoint-test-x", "/tmp/stillpoint-test-x"):
            with pytest.raises(ServerError, match="Read-only file system|Errcode: 30"):
                session.do("SELECT 1 INTO OUTFILE '%s'" % path)
        session.do("SELECT 1 INTO OUTFILE '%s/x'" % it.directory)
        assert os.listdir(own_run_directory) == [os.path.basename(it.directory)]
    assert os.listdir(own_run_directory) == []
    assert {**contents(server.datadir), **contents(server.binlogs), **contents("/var/lib/mysql")} == before
    assert Path(server.top, "error.log").read_bytes() == log


@real
def test_a_session_may_be_idle_for_longer_than_a_server_would_wait_by_itself(server: RealServer, copy: str) -> None:
    with scratch_server(settings_of(server), {server.datadir: copy}, discard=True) as it, Session(it.login) as session:
        assert session.value("SELECT @@GLOBAL.wait_timeout") == 365 * 24 * 3600  # by itself: 8 hours, and a replay may take longer


@real
def test_a_copy_that_is_kept_is_left_in_order_and_starts_again_without_recovery(server: RealServer, copy: str) -> None:
    known = settings_of(server)
    with scratch_server(known, {server.datadir: copy}, discard=False) as it, Session(it.login) as session:
        session.do("INSERT INTO d.rows_innodb VALUES (3)")
    with scratch_server(known, {server.datadir: copy}, discard=True) as it, Session(it.login) as session:
        assert not it.recovery.crash_recovery
        assert session.value("SELECT COUNT(*) FROM d.rows_innodb") == 3


@real
def test_without_the_live_path_on_this_host_the_copy_is_used_where_it_lies(server: RealServer, copy: str) -> None:
    known = json.loads(json.dumps(settings_of(server).as_dict()).replace(server.datadir, "/nowhere/data"))
    with scratch_server(settings.from_dict(known), {"/nowhere/data": copy}, discard=True) as it, Session(it.login) as session:
        assert session.value("SELECT @@datadir") == copy + "/"
        assert session.value("SELECT COUNT(*) FROM d.rows_innodb") == 2


@real
def test_binary_logs_go_where_the_copy_has_them(server: RealServer, copy: str) -> None:
    logs = server.top + "/binlog-copy"
    shutil.copytree(server.binlogs, logs)
    subprocess.run(["chown", "-R", USER, logs], check=True)
    before = contents(server.binlogs)
    where = {server.datadir: copy, server.binlogs: logs}
    with scratch_server(settings_of(server), where, discard=True, binary_log=True) as it, Session(it.login) as session:
        assert session.rows("SHOW MASTER STATUS")[0]["File"] == "bin.%06d" % len([name for name in os.listdir(logs) if name != "bin.index"])
    assert contents(server.binlogs) == before
    shutil.rmtree(logs)


@real
def test_a_copy_with_a_prepared_transaction_is_refused_with_the_servers_own_words(server: RealServer) -> None:
    server.do("SET GLOBAL innodb_flush_log_at_timeout = 2700")
    for attempt in range(50):  # without the flush, whether the last commit is on the disk is a matter of chance
        server.do("INSERT INTO d.rows_innodb VALUES (%d)" % (100 + attempt))
        path = server.copy("unflushed")
        try:
            with scratch_server(settings_of(server), {server.datadir: path}, discard=True):
                continue
        except ScratchFailed as error:
            assert "Found 1 prepared transactions" in str(error)
            assert error.recovery is not None
            assert error.recovery.prepared
            return
        finally:
            shutil.rmtree(path)
    pytest.fail("no copy had a prepared transaction")


@real
def test_one_that_is_not_ready_in_time_is_ended(server: RealServer, copy: str, own_run_directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "START_LIMIT", 0.0)
    with pytest.raises(ScratchFailed, match="not ready within"), scratch_server(settings_of(server), {server.datadir: copy}, discard=True):
        pytest.fail("it was not waited for")
    assert os.listdir(own_run_directory) == []
    assert _processes(own_run_directory) == []


@real
def test_one_that_does_nothing_any_more_is_ended_and_one_that_works_is_not(
    server: RealServer, copy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with scratch_server(settings_of(server), {server.datadir: copy}, discard=True) as it:
        it.check()
        monkeypatch.setattr(scratch, "STALL_LIMIT", 1.0)
        it.process.send_signal(signal.SIGSTOP)
        with pytest.raises(ScratchFailed, match="stopped working"):
            for _attempt in range(600):
                it.check()
                time.sleep(0.1)


@real
def test_it_dies_with_the_process_that_started_it_and_its_directory_is_found_again(server: RealServer, copy: str, own_run_directory: str) -> None:
    script = """
import json, sys, time
from _core.mysql import settings
from _core.mysql.scratch import scratch_server
from _core.host import run_directory
run_directory.RUN_DIRECTORY = sys.argv[3]
with scratch_server(settings.from_dict(json.loads(sys.argv[1])), json.loads(sys.argv[2]), discard=False):
    print("ready", flush=True)
    time.sleep(60)
"""
    arguments = [json.dumps(settings_of(server).as_dict()), json.dumps({server.datadir: copy}), own_run_directory]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script, *arguments], env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        ownership._clean_run_directory()
        assert _processes(own_run_directory)
        assert len(os.listdir(own_run_directory)) == 1, "the directory of a living run was removed"
        process.send_signal(signal.SIGKILL)
    for _attempt in range(600):
        if not _processes(own_run_directory):
            break
        time.sleep(0.1)
    assert _processes(own_run_directory) == []
    ownership._clean_run_directory()
    assert os.listdir(own_run_directory) == []


@real
def test_a_part_that_the_copy_lacks_is_named(server: RealServer, copy: str) -> None:
    known = settings_of(server)
    more = Settings(**{**known.__dict__, "paths": (*known.paths, ("redo", "/var/lib/redo"))})
    with pytest.raises(StillpointError, match="/var/lib/redo"), scratch_server(more, {server.datadir: copy}, discard=True):
        pytest.fail("it started without its redo log")


def _processes(directory: str) -> Any:
    return subprocess.run(["pgrep", "-f", "socket=" + directory], stdout=subprocess.PIPE, check=False).stdout.split()


KNOWN = Settings(
    flavour="mysql",
    version=(9, 7, 4),
    version_text="9.7.4-2",
    program="/proc/1/exe",
    paths=(("datadir", "/var/lib/mysql"), ("redo", "/srv/redo")),
    log_bin="/var/lib/mysql/binlog",
    log_bin_index="/var/lib/mysql/binlog.index",
    variables=(("innodb_page_size", "16384"), ("innodb_log_group_home_dir", "/srv/redo")),
    plugins=("keyring_file=keyring_file.so",),
)


def test_settings_come_back_from_a_manifest_but_not_a_process_that_is_another_one_by_now() -> None:
    back = settings.from_dict(json.loads(json.dumps(KNOWN.as_dict())))
    assert back == Settings(**{**KNOWN.__dict__, "program": ""})


def test_settings_that_lack_a_fact_are_refused_by_its_name() -> None:
    with pytest.raises(StillpointError, match="log_bin_index"):
        settings.from_dict({key: value for key, value in KNOWN.as_dict().items() if key != "log_bin_index"})


def test_mysql_is_told_not_to_upgrade_replicate_or_listen_and_where_its_parts_lie() -> None:
    options = scratch._options(KNOWN, {"/var/lib/mysql": "/m/mysql", "/srv/redo": "/m/redo"}, ["/srv/redo"], "/run/s", False)
    for option in ("--upgrade=NONE", "--skip-replica-start", "--skip-networking", "--mysqlx=OFF", "--persisted-globals-load=OFF", "--skip-log-bin"):
        assert option in options
    assert "--datadir=/var/lib/mysql" in options
    assert "--loose-innodb-log-group-home-dir=/m/redo" in options
    assert "--early-plugin-load=keyring_file=keyring_file.so" in options
    old = Settings(**{**KNOWN.__dict__, "version": (5, 7, 44)})
    assert "--skip-slave-start" in scratch._options(old, {"/var/lib/mysql": "/m"}, [], "/run/s", False)


@pytest.mark.parametrize(
    ("line", "file", "position"),
    [
        ("2026-11-22  5:00:00 0 [Note] InnoDB: Last binlog file '/var/log/mysql/mysql-bin.000007', position 3083129", "mysql-bin.000007", 3083129),
        ("InnoDB: Last MySQL binlog file position 0 123, file name bin.000002", "bin.000002", 123),
        ("InnoDB: Last MySQL binlog file position 1 5, file name bin.000002, and", "bin.000002", (1 << 32) + 5),
        ("2026-11-22T05:00:00.000000Z 0 [Note] [MY-012535] [InnoDB] Apply batch completed!", None, None),
    ],
)
def test_the_position_that_the_engine_remembers_is_read_from_what_it_says(line: str, file: Any, position: Any) -> None:
    recovery = said(line, 0.0)
    assert (recovery.file, recovery.position) == (file, position)


@pytest.mark.parametrize(
    ("line", "of_host"),
    [
        ("[ERROR] InnoDB: Operating system error number 28 in a file operation.", True),
        ("[ERROR] mariadbd: Can't create/write to file '/run/x/ib1' (Errcode: 28 \"No space left on device\")", True),
        ("[ERROR] InnoDB: Cannot allocate memory for the buffer pool", True),
        ("mysqld: unknown variable 'gtid_mode=ON'", True),
        ("[ERROR] [MY-000067] [Server] unknown variable 'innodb_x=1'.", True),
        ("[ERROR] InnoDB: Failed to read page 6 from file './d/b.ibd': Page read from tablespace is corrupted.", False),
        ("[ERROR] mysqld: Incorrect key file for table './d/m.MYI'; try to repair it", False),
        ("[ERROR] Got error 122 when reading table './d/t'", False),
        ("[ERROR] [MY-013183] [InnoDB] Assertion failure: buf0buf.cc:4073", False),
        ("[ERROR] Found 1 prepared transactions! It means that mysqld was not shut down properly last time", False),
    ],
)
def test_what_a_server_says_of_its_host_is_told_from_what_it_says_of_its_data(line: str, of_host: bool) -> None:
    assert recovery.is_of_host(line) is of_host


def test_errors_are_told_without_their_time_and_without_mariadbs_warnings() -> None:
    log = (
        "2026-11-22  5:00:00 0 [ERROR] InnoDB: Page [page id: space=5, page number=3] log sequence number 9 is in the future\n"
        "2026-11-22  5:00:00 0 [ERROR] mariadbd: Warning: Can't copy ownership for file\n"
        "2026-11-22  5:00:00 0 [Note] InnoDB: Starting crash recovery from checkpoint LSN=1\n"
    )
    recovery = said(log, 1.0)
    assert recovery.errors == ("[ERROR] InnoDB: Page [page id: space=5, page number=3] log sequence number 9 is in the future",)
    assert recovery.crash_recovery
