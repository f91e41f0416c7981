# SPDX-License-Identifier: GPL-3.0-or-later
"""A server on a copy of a generation: the generation is of a real server's data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest
from _core.agent.commands.verify import lines
from _core.host import durable
from _core.host.errors import StillpointError, UsageError
from _core.job.names import host_name
from _core.job.reader import parse
from _core.mysql import server as servers
from _core.mysql import settings
from _core.mysql.connection import Session
from _core.proof import on_a_copy
from _core.proof.verify import Asked, choose, complaint, perform
from _core.repository.generation import Generation
from _core.repository.job_directory import JobDirectory
from _core.repository.partial import Partial
from _core.trees import Tree
from real_server import RealServer, needed, real_server
from trees import Quiet, back_up, no_waiting_for_the_disk, tree  # noqa: F401

pytest.importorskip("pymysql")
pytestmark = [pytest.mark.usefixtures("own_run_directory"), *needed]

FLUSH = "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS"


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as server:
        server.do(
            "CREATE DATABASE d",
            "CREATE TABLE d.t (i INT AUTO_INCREMENT PRIMARY KEY, t CHAR(200)) ENGINE=InnoDB",
            "CREATE TABLE d.m (i INT PRIMARY KEY) ENGINE=MyISAM",
            "INSERT INTO d.t (t) VALUES ('x')",
            *["INSERT INTO d.t (t) SELECT t FROM d.t"] * 10,
            "FLUSH TABLES d.t FOR EXPORT",
            "UNLOCK TABLES",
        )
        server.write_out()  # a page that is in the redo log too would be mended
        yield server


@pytest.fixture
def directory(tmp_path: Path) -> JobDirectory:
    (tmp_path / "repository").mkdir(mode=0o700)
    return JobDirectory.open(str(tmp_path / "repository"), "db1", "etrial")


def backed_up(server: RealServer, directory: JobDirectory, *, broken: bool = False, source: str = "", **more: Any) -> Generation:
    """Return a generation of the server as it is now; one with a broken page has it from the beginning, so that its checksums are right."""
    with Session(server.login) as session:
        described = settings.read(session, servers.read(session))
    server.do("INSERT INTO d.t (t) VALUES ('y')", "INSERT INTO d.m SELECT COALESCE(MAX(i), 0) + 1 FROM d.m")
    copy = server.copy("copy", FLUSH)
    with Session(server.login) as session:
        row = session.rows("SHOW MASTER STATUS")[0]
    if broken:
        with open(copy + "/d/t.ibd", "r+b") as file:
            file.seek(7 * 16384 + 200)
            file.write(os.urandom(1000))
    summary = {
        "job": "etrial",
        "time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "settings": described.as_dict(),
        "lock": {"method": "ftwrl"},
        "coordinates": {"file": row["File"], "position": row["Position"], "gtid": None},
        **more,
    }
    try:
        with directory.lock(), Partial(directory, "run") as partial:
            partial.add(Tree("mysql", source or server.datadir, copy))
            return partial.publish(datetime.now(timezone.utc), summary)
    finally:
        shutil.rmtree(copy)


def listed(path: str) -> bytes:
    return subprocess.run(["find", path, "-printf", "%p %i %C@ %T@ %s\n"], stdout=subprocess.PIPE, check=True).stdout


def test_a_server_recovers_a_copy_of_a_generation_that_is_not_touched_and_is_good_then(
    server: RealServer, directory: JobDirectory, own_run_directory: str
) -> None:
    generation = backed_up(server, directory)
    assert generation.state == "unproven"
    before = listed(generation.path)
    (found,) = perform(choose(directory, Asked(server=True)), Asked(server=True), Quiet())
    assert found.proof is not None
    assert (found.proof["ok"], found.proof["of"], found.proof["prepared"]) == (True, "a copy of the backup", 0)
    assert found.proof["recovery"]["crash_recovery"] is True
    assert found.proof["tables"]["checked"] > 30
    assert "what lies between" in found.proof["position"]["note"] or "no binary logs" in found.proof["position"]["note"]
    assert (found.bad, found.unproven) == (False, "")
    assert listed(generation.path) == before
    assert directory.find().state == "good"
    assert sorted(os.listdir(directory.path)) == sorted([".%s.verified" % generation.name, ".lock", generation.name, "latest"])
    assert os.listdir(own_run_directory) == []
    assert "stillpoint-test-run" not in Path("/proc/self/mountinfo").read_text(encoding="utf-8")
    assert any(line.startswith("  proof passed") for line in lines("etrial", found))


def test_where_the_live_directory_is_on_no_such_host_the_copy_is_used_where_it_can_be_reached(server: RealServer, directory: JobDirectory) -> None:
    with Session(server.login) as session:
        described = json.dumps(settings.read(session, servers.read(session)).as_dict())
    elsewhere = "/nowhere/data"
    generation = backed_up(server, directory, source=elsewhere, settings=json.loads(described.replace(server.datadir, elsewhere)))
    assert on_a_copy.try_copy(generation, Quiet())["ok"] is True


def test_what_its_checksums_do_not_show_a_server_finds_and_the_generation_is_bad(server: RealServer, directory: JobDirectory) -> None:
    backed_up(server, directory, broken=True)
    (found,) = perform(choose(directory, Asked(server=True)), Asked(server=True), Quiet())
    assert found.verdict.ok
    assert found.proof is not None and "d.t" in found.proof["reason"]
    assert found.bad
    (generation,) = directory.generations()
    assert (generation.state, "d.t" in generation.reason) == ("bad", True)


def test_what_the_job_accepts_or_the_run_has_recorded_or_the_server_of_this_host_has_is_a_known_fault(
    server: RealServer, directory: JobDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mysql = {"login_user": "root", "login_unix_socket": server.top + "/s"}

    def tried(generation: Generation, *accept: str) -> Optional[bool]:
        given = {"name": "etrial", "mysql": mysql, "repository": directory.repository, "verify": {"accept": list(accept)}}
        (found,) = perform([generation], Asked(server=True), Quiet(), job=parse(given))
        assert found.proof is not None
        assert bool(found.proof["known_faults"]) == bool(found.proof["ok"])
        return found.proof["ok"]  # type: ignore[no-any-return]

    generation = backed_up(server, directory, broken=True)
    assert (tried(generation), tried(generation, "d.m"), tried(generation, "d.t")) == (False, False, True)
    assert tried(directory.find(generation.name)) is False, "what was accepted is not production's"
    known = {"ok": True, "known_faults": [{"kind": "table", "name": "d.t", "evidence": "production has the same fault, as it says itself"}]}
    assert tried(backed_up(server, directory, broken=True, proof=known)) is True
    orphan = Path(server.datadir, "d", "orphan.frm")
    shutil.copy(Path(server.datadir, "d", "t.frm"), orphan)
    shutil.chown(orphan, "nobody")
    try:
        of_another, of_this = (backed_up(server, directory, host=host) for host in ("another", host_name()))
        assert (tried(of_another), tried(of_this)) == (False, True)
    finally:
        orphan.unlink()


def test_a_flipped_bit_is_found_before_any_server_is_started(server: RealServer, directory: JobDirectory) -> None:
    generation = backed_up(server, directory)
    with open(generation.path + "/mysql/d/t.ibd", "r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    (found,) = perform([generation], Asked(server=True), Quiet())
    assert (found.bad, found.proof) == (True, None)
    assert found.verdict.faults[0].path == "mysql/d/t.ibd"


def test_another_version_or_a_backup_without_a_server_is_refused_with_a_sentence(server: RealServer, directory: JobDirectory, tmp_path: Path) -> None:
    with Session(server.login) as session:
        described = settings.read(session, servers.read(session)).as_dict()
    for facts in ({**described, "version": "11.8.2-MariaDB"}, {**described, "version": "9.7.4", "flavour": "mysql", "program": described["program"]}):
        generation = backed_up(server, directory, settings=facts)
        with pytest.raises(StillpointError, match=r"is of (mariadb 11\.8\.2-MariaDB|mysql 9\.7\.4) and .*mariadbd on this host is mariadb "):
            on_a_copy.try_copy(generation, Quiet())
    other = JobDirectory.open(directory.repository, "db1", "files")
    (tmp_path / "source").mkdir()
    back_up(other, tree(str(tmp_path / "source")))
    with pytest.raises(UsageError, match="has no files of a server"):
        choose(other, Asked(server=True))
    (found,) = perform(choose(other, Asked(all=True, server=True)), Asked(all=True, server=True), Quiet())
    assert (found.bad, found.proof, found.unproven) == (False, None, "")


def test_where_there_is_no_room_for_a_copy_it_is_said_and_nothing_is_held_against_the_backup(
    server: RealServer, directory: JobDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    generation = backed_up(server, directory)
    monkeypatch.setattr(on_a_copy, "writes", lambda _settings: 1 << 60)
    (found,) = perform([generation], Asked(server=True), Quiet())
    assert "and a copy that a server can be started on needs 1048576.0 TiB" in found.unproven
    assert not found.bad
    assert directory.find().state == "unproven"
    assert "no server could be tried" in complaint(type("Job", (), {"name": "etrial"}), [found])  # type: ignore[arg-type]
    assert not [name for name in os.listdir(directory.path) if name.endswith(".trial")]


def test_a_copy_that_a_killed_process_left_goes_with_the_next_run_and_one_in_use_stays(directory: JobDirectory) -> None:
    with directory.lock():
        for name in ("a", "b"):
            os.mkdir("%s/.%s.trial" % (directory.path, name))
        with durable.used(directory.path + "/.a.trial"):
            assert directory.clean() == [".b.trial"]
        assert directory.clean() == [".a.trial"]
