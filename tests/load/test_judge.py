# SPDX-License-Identifier: GPL-3.0-or-later
"""The judge and the writers against a private MariaDB server: what has to be named is named, and nothing else."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import rows  # noqa: E402


@dataclass(frozen=True)
class Site:
    """A private server with an application tree beside it."""

    room: Path

    @property
    def datadir(self) -> Path:
        return self.room / "data"

    @property
    def application(self) -> Path:
        return self.room / "processmaker"

    @property
    def socket(self) -> str:
        return str(self.room / "sock")

    @property
    def log_dir(self) -> str:
        return f"/dev/shm/{self.room.name}-{os.getpid()}"

    def sql(self, statement: str) -> list[Any]:
        with pymysql.connect(unix_socket=self.socket, user="root", autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def writer(self, action: str, *options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(HERE / "writer.py"), action, "--socket", self.socket]
        command += ["--application", str(self.application), "--log-dir", self.log_dir, *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def judge(self, what: str, *options: str) -> dict[str, Any]:
        command = [sys.executable, str(HERE / "judge.py"), what, "--socket", self.socket, *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        verdict: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (1 if verdict["violations"] else 0)
        return verdict

    def violations(self, *options: str) -> list[str]:
        found: list[str] = self.judge("server", "--application", str(self.application), *options)["violations"]
        return found

    def copy_to(self, place: Path) -> list[str]:
        """Copy both halves as they lie, and return the options that have the copy judged."""
        place.mkdir()
        for name, tree in (("data", self.datadir), ("tree", self.application)):
            # 24: a file vanished while it was copied
            done = subprocess.run(["rsync", "-a", "--exclude=binlog.*", f"{tree}/", str(place / name)], stderr=subprocess.DEVNULL, check=False)
            assert done.returncode in (0, 24)
        return ["--datadir", str(place / "data"), "--application", str(place / "tree")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    for program in ("mariadbd", "mariadb-install-db", "rsync"):
        assert shutil.which(program), f"{program} is needed on the machine that runs these tests (mariadb-server-core, rsync)"
    site = Site(tmp_path_factory.mktemp("site"))
    user = pwd.getpwuid(os.geteuid()).pw_name
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", f"--datadir={site.datadir}", f"--user={user}", f"--auth-root-socket-user={user}"],
        stdout=subprocess.DEVNULL, check=True,
    )
    command = ["mariadbd", "--no-defaults", f"--datadir={site.datadir}", f"--socket={site.socket}", f"--user={user}"]
    command += ["--skip-networking", "--port=0", f"--log-error={site.room}/error.log", f"--pid-file={site.room}/pid"]
    command += ["--log-bin=binlog", "--sync-binlog=1", "--skip-grant-tables", "--myisam-recover-options=OFF"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not os.path.exists(site.socket):
        assert server.poll() is None and time.monotonic() < end, (site.room / "error.log").read_text()
        time.sleep(0.1)
    yield site
    server.terminate()
    server.wait(60)
    shutil.rmtree(site.log_dir, ignore_errors=True)


@pytest.fixture
def written(site: Site) -> Site:
    """The site after three writers have written for a moment and ended in order."""
    assert site.writer("setup").returncode == 0
    assert site.writer("run", "--seconds", "0.4", "--rate", "50").returncode == 0
    return site


@pytest.fixture
def writing(site: Site) -> Iterator[Site]:
    """The site with three writers at work."""
    assert site.writer("setup").returncode == 0
    assert site.writer("start").returncode == 0
    yield site
    site.writer("stop")


def one(site: Site, table: str = "cases") -> int:
    """Return a key in the middle of those of writer 1."""
    return int(site.sql(f"SELECT MAX(seq) DIV 2 FROM {rows.DATABASE}.{table} WHERE writer=1")[0][0])


def test_writers_that_ended_in_order_are_judged_good(written: Site) -> None:
    verdict = written.judge("server", "--application", str(written.application))
    assert verdict["one_point_in_time"] and verdict["files"] > 10 and verdict["tables_checked"] > 20


@pytest.mark.parametrize("table, named", [
    ("cases", "cases has gaps"), ("audit", "audit has gaps"), ("audit2", "audit2 has gaps"), ("movements", "its movements are not the two"),
])
def test_a_missing_row_is_named(written: Site, table: str, named: str) -> None:
    written.sql(f"DELETE FROM {rows.DATABASE}.{table} WHERE writer=1 AND seq={one(written)} LIMIT 1")
    assert any(named in violation for violation in written.violations())


@pytest.mark.parametrize("table", ["audit", "audit2"])
def test_an_audit_ahead_of_its_case_is_named(written: Site, table: str) -> None:
    last = written.sql(f"SELECT MAX(seq) FROM {rows.DATABASE}.cases WHERE writer=1")[0][0]
    written.sql(f"INSERT INTO {rows.DATABASE}.{table} VALUES (1, {last + 1}, 5)")
    found = written.violations()
    assert any(f"{table} has {last + 1} keys, more than the {last}" in violation for violation in found)
    assert any(f"{table} 1/{last + 1}: its case is missing" in violation for violation in found)


def test_sums_that_do_not_cancel_are_named(written: Site) -> None:
    written.sql(f"UPDATE {rows.DATABASE}.movements SET amount = amount + 1 WHERE writer=1 AND seq={one(written)} AND side=1")
    assert any("the movements do not balance: their sum is 1" in violation for violation in written.violations())


def test_a_missing_file_is_named(written: Site) -> None:
    os.unlink(rows.file_path(str(written.application), 1, one(written)))
    assert any("files has gaps" in violation for violation in written.violations())


def test_two_files_behind_are_too_few(written: Site) -> None:
    last = written.sql(f"SELECT MAX(seq) FROM {rows.DATABASE}.cases WHERE writer=1")[0][0]
    for seq in (last, last - 1):
        os.unlink(rows.file_path(str(written.application), 1, seq))
    assert any(f"{last - 2} files are too few for {last} cases" in violation for violation in written.violations())


def test_one_file_behind_is_a_moment_of_the_writer(written: Site) -> None:
    last = written.sql(f"SELECT MAX(seq) FROM {rows.DATABASE}.cases WHERE writer=1")[0][0]
    os.unlink(rows.file_path(str(written.application), 1, last))
    assert written.violations() == []


def test_a_file_that_is_cut_short_is_named(written: Site) -> None:
    os.truncate(rows.file_path(str(written.application), 1, one(written)), 10)
    assert any("1 files do not hold what their rows say" in violation for violation in written.violations())


def test_a_damaged_table_is_named(written: Site) -> None:
    written.sql("FLUSH TABLES")
    with open(written.datadir / rows.DATABASE / "audit.MYI", "r+b") as index:
        index.seek(1024)
        index.write(b"\xff" * 512)
    assert any("CHECK TABLE stillpoint_load.audit:" in violation for violation in written.violations())


def test_a_lost_table_is_named(written: Site) -> None:
    written.sql(f"DROP TABLE {rows.DATABASE}.audit2")
    assert written.violations() == ["tables that the load had are missing: audit2"]


def test_a_lost_commit_is_named(written: Site, tmp_path: Path) -> None:
    known = json.loads(written.writer("known").stdout)
    (tmp_path / "known.json").write_text(json.dumps(known))
    assert written.violations("--known", str(tmp_path / "known.json")) == []
    known["2"] += 1
    (tmp_path / "known.json").write_text(json.dumps(known))
    assert any("writer 2" in violation for violation in written.violations("--known", str(tmp_path / "known.json")))


def test_an_rsync_of_the_live_directories_is_no_point_in_time(writing: Site, tmp_path: Path) -> None:
    time.sleep(1)
    copy = writing.copy_to(tmp_path / "copy")
    assert not writing.judge("copy", *copy)["one_point_in_time"]


def test_a_copy_under_the_lock_recovers_to_its_coordinates_and_is_left_untouched(writing: Site, tmp_path: Path) -> None:
    time.sleep(1)
    with pymysql.connect(unix_socket=writing.socket, user="root", autocommit=True) as connection, connection.cursor() as cursor:
        for stage in ("START", "FLUSH", "BLOCK_DDL", "BLOCK_COMMIT"):
            cursor.execute(f"BACKUP STAGE {stage}")
        cursor.execute("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS")
        cursor.execute("SHOW MASTER STATUS")
        file, position = cursor.fetchall()[0][:2]
        time.sleep(0.3)  # the lock stops the server, not the files: each writer comes to stand at it
        copy = writing.copy_to(tmp_path / "copy")
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "copy").rglob("*"))
    verdict = writing.judge("copy", *copy, "--coordinates", f"{file}:{position}", "--binlogs", str(writing.datadir))
    assert verdict["violations"] == []
    assert verdict["recovery"]["crash_recovery"] and verdict["recovery"]["prepared"] == []
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "copy").rglob("*"))


def test_coordinates_ahead_of_the_recovery_are_named(writing: Site, tmp_path: Path) -> None:
    time.sleep(1)
    with pymysql.connect(unix_socket=writing.socket, user="root", autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("FLUSH TABLES WITH READ LOCK")
        cursor.execute("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS")
        time.sleep(0.3)
        copy = writing.copy_to(tmp_path / "copy")
    time.sleep(0.5)
    file, position = writing.sql("SHOW MASTER STATUS")[0][:2]
    found = writing.judge("copy", *copy, "--coordinates", f"{file}:{position}", "--binlogs", str(writing.datadir))["violations"]
    assert len(found) == 1 and "was transactional" in found[0]


def test_a_stall_is_in_the_report_of_its_window_and_in_no_other(writing: Site) -> None:
    time.sleep(0.5)
    quiet = time.time()
    with pymysql.connect(unix_socket=writing.socket, user="root", autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("FLUSH TABLES WITH READ LOCK")
        time.sleep(0.7)
    time.sleep(0.3)
    during = json.loads(writing.writer("report", "--since", str(quiet)).stdout)
    before = json.loads(writing.writer("report", "--until", str(quiet - 0.1)).stdout)
    assert max(figures["worst_ms"] for kind, figures in during.items() if kind != "known") >= 600
    assert before["commit"]["worst_ms"] < 600


def test_innodb_alone_is_judged_without_audits(site: Site) -> None:
    assert site.writer("setup", "--engines", "innodb").returncode == 0
    assert site.writer("run", "--seconds", "0.4").returncode == 0
    assert site.violations("--engines", "innodb") == []
    assert site.violations() == ["tables that the load had are missing: audit, audit2"]


def test_writers_go_on_where_they_were(written: Site) -> None:
    before = written.sql(f"SELECT COUNT(*) FROM {rows.DATABASE}.cases")[0][0]
    assert written.writer("run", "--seconds", "0.3").returncode == 0
    assert written.sql(f"SELECT COUNT(*) FROM {rows.DATABASE}.cases")[0][0] > before
    assert written.violations() == []


def test_writers_end_with_the_one_that_started_them(writing: Site) -> None:
    with open(f"{writing.log_dir}/pid") as file:
        os.kill(int(file.read()), signal.SIGKILL)
    time.sleep(0.5)
    before = writing.sql(f"SELECT COUNT(*) FROM {rows.DATABASE}.cases")
    time.sleep(0.5)
    assert writing.sql(f"SELECT COUNT(*) FROM {rows.DATABASE}.cases") == before
