# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof on copies of a real server's data, taken with and without the lock that a backup takes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Iterator, List, Set

import pytest
from _core.host import processes
from _core.host.errors import StillpointError
from _core.mysql.connection import Session
from _core.mysql.coordinates import Coordinates
from _core.proof import prove as proof
from _core.proof import tables as checking
from _core.proof.prove import prove
from _core.repository import manifest
from proving import FLUSH, Copies, claim, made_copies, proven, taken  # noqa: F401
from real_server import RealServer, needed, real_server, until

pytest.importorskip("pymysql")
pytestmark = [pytest.mark.usefixtures("own_run_directory"), *needed]


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as server:
        server.do(
            "CREATE DATABASE d",
            "CREATE TABLE d.large (i INT AUTO_INCREMENT PRIMARY KEY, t CHAR(200)) ENGINE=InnoDB",
            "CREATE TABLE d.small (i INT PRIMARY KEY) ENGINE=InnoDB",
            "CREATE TABLE d.notes (i INT PRIMARY KEY) ENGINE=MyISAM",
            "CREATE TABLE d.`a-b` (i INT PRIMARY KEY) ENGINE=Aria PARTITION BY KEY() PARTITIONS 2",
            "INSERT INTO d.large (t) VALUES ('x')",
            *["INSERT INTO d.large (t) SELECT t FROM d.large"] * 12,
        )
        yield server


def test_a_copy_stands_at_the_recorded_coordinates_and_all_its_tables_are_well(server: RealServer, copies: List[str]) -> None:
    server.do("INSERT INTO d.small VALUES (1)")
    copy, coordinates = taken(server, copies, FLUSH)
    found = proven(server, copy, claim(server, coordinates, tables="all"))
    assert found.reason == ""
    assert found.position["recovered"]["file"] == coordinates.file
    assert found.position["recovered"]["position"] == coordinates.position
    assert found.position["between"] is None
    assert found.prepared == 0
    assert found.tables["checked"] > 30
    assert found.tables["complaints"] == []
    assert found.as_dict()["ok"] is True


def test_what_is_not_transactional_may_lie_between_and_is_read_to_make_sure(server: RealServer, copies: List[str]) -> None:
    server.do("INSERT INTO d.small VALUES (2)", "FLUSH BINARY LOGS", "INSERT INTO d.notes VALUES (1)", "INSERT INTO d.`a-b` VALUES (1)")
    copy, coordinates = taken(server, copies, FLUSH)
    found = proven(server, copy, claim(server, coordinates))
    assert found.reason == ""
    assert found.position["recovered"]["file"] != coordinates.file
    assert found.position["between"]["groups"] == 2
    assert found.position["between"]["transactional"] == 0
    assert found.position["between"]["read_from"] == "the server"


def test_a_transaction_between_is_told_by_its_place(server: RealServer, copies: List[str]) -> None:
    server.do("INSERT INTO d.small VALUES (3)")
    copy, _before = taken(server, copies, FLUSH)
    server.do("INSERT INTO d.notes VALUES (2)")
    with Session(server.login) as session:
        place = session.rows("SHOW MASTER STATUS")[0]
    server.do("INSERT INTO d.small VALUES (4)")
    _copy, coordinates = taken(server, copies, FLUSH)
    found = proven(server, copy, claim(server, coordinates))
    assert "between them is a transaction, at %s:%d" % (place["File"], place["Position"]) in found.reason
    assert found.as_dict()["ok"] is False


def test_an_engine_that_is_ahead_of_the_recorded_coordinates_is_none_that_was_locked(server: RealServer, copies: List[str]) -> None:
    with Session(server.login) as session:
        row = session.rows("SHOW MASTER STATUS")[0]
    server.do("INSERT INTO d.small VALUES (5)")
    copy, _after = taken(server, copies, FLUSH)
    found = proven(server, copy, claim(server, Coordinates(row["File"], row["Position"])))
    assert found.reason.startswith("InnoDB recovered to")


def test_without_the_log_of_the_last_commit_the_rest_is_read_and_the_evidence_says_so(server: RealServer, copies: List[str]) -> None:
    server.do("INSERT INTO d.small VALUES (6)", "FLUSH BINARY LOGS", "FLUSH BINARY LOGS", "INSERT INTO d.notes VALUES (3)")
    copy, coordinates = taken(server, copies, FLUSH)
    logs = server.top + "/logs"
    os.mkdir(logs)
    copies.append(logs)
    found = proven(server, copy, claim(server, coordinates), logs)
    assert (found.reason, found.position["between"]["read_from"]) == ("", "the server")
    shutil.copy(os.path.join(server.binlogs, coordinates.file), logs)
    found = proven(server, copy, claim(server, coordinates), logs)
    assert found.reason == ""
    assert "is there no more" in found.position["note"]
    assert found.position["between"]["read_from"] == "the snapshot"


def test_without_a_lock_it_gives_the_position_at_the_end_of_the_binary_log(server: RealServer, copies: List[str]) -> None:
    server.do("INSERT INTO d.small VALUES (7)", "INSERT INTO d.notes VALUES (4)")
    copy, coordinates = taken(server, copies, FLUSH)
    logs = server.top + "/logs"
    shutil.copytree(server.binlogs, logs)
    copies.append(logs)
    with open(os.path.join(logs, coordinates.file), "ab") as file:
        file.write(b"a torn event")
    found = proven(server, copy, claim(server, None, commits_stopped=False), logs)
    assert found.reason == ""
    assert found.given is not None
    assert (found.given.file, found.given.position) == (coordinates.file, coordinates.position)
    assert found.given.source == "proof: the end of the binary log on the snapshot"
    agreed = proven(server, copy, claim(server, coordinates, commits_stopped=False), logs)
    assert (agreed.reason, agreed.given) == ("", None)
    looked_too_early = replace(coordinates, position=coordinates.position - 100)
    corrected = proven(server, copy, claim(server, looked_too_early, commits_stopped=False), logs)
    assert corrected.reason == ""
    assert corrected.given == found.given
    ends = (Coordinates(coordinates.file, 4), Coordinates(coordinates.file, 300))
    found = proven(server, copy, claim(server, None, commits_stopped=False, between=ends), logs)
    assert "not between the positions before and after the snapshot" in found.reason


def test_with_nothing_to_recover_the_end_of_the_binary_log_on_the_snapshot_is_compared(server: RealServer, copies: List[str]) -> None:
    server.do("INSERT INTO d.small VALUES (8)")
    copy, coordinates = taken(server, copies, FLUSH)
    logs = server.top + "/logs"
    shutil.copytree(server.binlogs, logs)
    copies.append(logs)
    what = claim(server, coordinates)
    with proof.scratch_server(what.settings, {server.datadir: copy}, discard=False):
        pass  # it ends in order, and leaves nothing to recover
    found = proven(server, copy, what, logs)
    assert (found.reason, found.position["compared"]) == ("", "the end of the binary log")
    with open(os.path.join(logs, coordinates.file), "ab") as file:
        file.write(b"one event more")
    assert "the binary log on the snapshot ends at" in proven(server, copy, what, logs).reason


def test_a_copy_with_a_prepared_transaction_fails(server: RealServer, copies: List[str]) -> None:
    server.do("SET GLOBAL innodb_flush_log_at_timeout = 2700")
    for attempt in range(50):  # without the flush it is a matter of chance
        server.do("INSERT INTO d.small VALUES (%d)" % (1000 + attempt))
        copy, coordinates = taken(server, copies)
        found = proven(server, copy, claim(server, coordinates))
        assert found.reason != "" or found.position["recovered"]["position"] == coordinates.position
        if found.prepared:
            assert "prepared transactions" in found.reason
            return
    pytest.fail("no copy had a prepared transaction")


def broken(copy: str, name: str) -> None:
    """Write garbage into the pages of a file behind its first few."""
    with open(os.path.join(copy, name), "r+b") as file:
        for page in range(6, os.path.getsize(file.name) // 16384):
            file.seek(page * 16384 + 200)
            file.write(os.urandom(1000))


def test_a_broken_page_fails_the_proof_with_the_name_of_the_table(server: RealServer, copies: List[str]) -> None:
    # what is still in the redo log would mend the page
    server.do("FLUSH TABLES d.large FOR EXPORT", "UNLOCK TABLES")
    server.write_out()
    copy, coordinates = taken(server, copies, FLUSH)
    broken(copy, "d/large.ibd")
    found = proven(server, copy, claim(server, coordinates, tables="all"))
    assert "d.large" in found.reason
    assert found.as_dict()["ok"] is False


class Before:
    """A generation as the proof looks at one."""

    name = "2026-11-22T02-00-05Z"
    state = "good"
    time = datetime(2100, 1, 1, tzinfo=timezone.utc)  # long after what it holds was written

    def __init__(self, path: Path, mode: str = "all") -> None:
        self.path = str(path)
        self.proof = {"ok": True, "tables": {"mode": mode}}


def proven_before(copy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the generation before have these files."""
    known = [entry._replace(path=os.path.join(b"mysql", entry.path)) for entry, _size in manifest.walk(os.fsencode(copy))]
    monkeypatch.setattr(manifest, "entries", lambda path: iter(known))


def test_a_change_that_is_in_the_redo_log_alone_is_one(
    server: RealServer, copies: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.do("CREATE TABLE d.still (i INT PRIMARY KEY)", "CREATE TABLE d.late (i INT PRIMARY KEY) ENGINE=InnoDB")
    server.write_out()
    server.do("SET GLOBAL innodb_max_dirty_pages_pct = 90")
    first, _coordinates = taken(server, copies, FLUSH)
    proven_before(first, monkeypatch)
    server.do("INSERT INTO d.late VALUES (1)")
    second, coordinates = taken(server, copies, FLUSH)
    files = [os.stat(copy + "/d/late.ibd") for copy in (first, second)]
    assert files[0].st_mtime_ns == files[1].st_mtime_ns, "the page was written to the table's file: this shows nothing"
    names: Set[checking.Name] = set()
    check = checking.check
    monkeypatch.setattr(checking, "check", lambda session, asked, *more: names.update(asked) or check(session, asked, *more))
    found = proven(server, second, claim(server, coordinates, tables="changed", before=Before(tmp_path)))
    assert found.reason == ""
    assert ("d", "late") in names
    assert ("d", "still") not in names
    assert (found.tables["checked"] + len(found.tables["unchecked"]), found.tables["unchanged"] > 10) == (len(names), True)
    assert found.recovery is not None and found.recovery.crash_recovery, "the first start is the evidence, and not the second"


def test_what_was_written_just_before_the_snapshot_of_the_generation_before_counts_as_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "t.ibd").touch()
    proven_before(str(tmp_path), monkeypatch)
    before = Before(tmp_path)
    assert proof._files_before(before)  # type: ignore[arg-type]
    before.time = datetime.now(timezone.utc)
    assert proof._files_before(before) == {}  # type: ignore[arg-type]


def test_a_broken_page_of_a_long_column_fails_the_proof_with_the_name_of_the_table(server: RealServer, copies: List[str]) -> None:
    # what is still in the redo log would mend the page
    server.do("CREATE TABLE d.long (i INT PRIMARY KEY, t LONGBLOB) ENGINE=InnoDB", "INSERT INTO d.long VALUES (1, REPEAT('x', 100000))")
    server.do("FLUSH TABLES d.long FOR EXPORT", "UNLOCK TABLES")
    server.write_out()
    copy, coordinates = taken(server, copies, FLUSH)
    assert proven(server, copy, claim(server, coordinates, tables="all")).reason == ""
    with open(copy + "/d/long.ibd", "r+b") as file:
        data = file.read()
        file.seek(data.index(b"x" * 10000) // 16384 * 16384 + 9000)
        file.write(b"torn")
    found = proven(server, copy, claim(server, coordinates, tables="all"))
    assert "finds 1 of its tables damaged: d.long: " in found.reason
    assert found.as_dict()["ok"] is False


def test_after_the_logs_were_reset_the_place_of_a_commit_before_that_is_none_in_them(server: RealServer, copies: List[str]) -> None:
    server.do("FLUSH BINARY LOGS", "INSERT INTO d.small VALUES (5000)", "RESET MASTER", "INSERT INTO d.small VALUES (5001)")
    copy, coordinates = taken(server, copies, FLUSH)
    found = proven(server, copy, claim(server, coordinates))
    assert found.reason == ""
    assert found.position["recovered"]["file"] > coordinates.file, "this shows nothing"
    assert "was reset or renamed" in found.position["note"]


def test_only_tables_that_changed_are_checked_again(
    server: RealServer, copies: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.do("FLUSH TABLES")
    first, _coordinates = taken(server, copies, FLUSH)
    proven_before(first, monkeypatch)
    server.do("INSERT INTO d.notes VALUES (100)")
    second, coordinates = taken(server, copies, FLUSH)
    os.utime(second + "/d/small.ibd")
    found = proven(server, second, claim(server, coordinates, tables="changed", before=Before(tmp_path)))
    assert found.reason == ""
    assert found.tables["since"] == Before.name
    assert found.tables["unchanged"] > found.tables["checked"] > 0
    broken(second, "d/large.ibd")  # and its time of modification with it
    assert proven(server, second, claim(server, coordinates, tables="changed", before=Before(tmp_path))).reason != ""


def test_the_generation_to_compare_with_is_the_newest_that_is_good_and_had_its_tables_checked(tmp_path: Path) -> None:
    bad = Before(tmp_path)
    bad.state = "bad"
    unchecked = Before(tmp_path, "none")
    wanted = Before(tmp_path, "changed")
    assert proof.newest_proven([bad, unchecked, wanted, Before(tmp_path)]) is wanted  # type: ignore[list-item]
    assert proof.newest_proven([bad, unchecked]) is None  # type: ignore[list-item]


def test_a_server_that_dies_is_held_against_the_data_unless_somebody_killed_it(
    server: RealServer, copies: List[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, coordinates = taken(server, copies, FLUSH)
    tables = checking.tables
    for number, ok in (signal.SIGSEGV, False), (signal.SIGKILL, None):

        def die(session: Session, number: int = number) -> List[checking.Name]:
            pid = int(Path(str(session.value("SELECT @@pid_file"))).read_text(encoding="ascii"))
            os.kill(pid, number)
            until(lambda: processes.process_state(pid) in ("", "Z", "X"), "the end of the server")
            return tables(session)

        monkeypatch.setattr(checking, "tables", die)
        found = proven(server, copy, claim(server, coordinates, tables="all"))
        assert ("the scratch server ended" in found.reason, found.as_dict()["ok"]) == (True, ok)


def script(server: RealServer, words: str) -> str:
    """Return a program that says something and fails."""
    program = Path(server.top, "program")
    program.write_text("#!/bin/sh\necho \"%s\"\nexit 1\n" % words, encoding="ascii")
    program.chmod(0o755)
    return str(program)


def test_what_hangs_is_ended_and_what_can_not_be_done_says_nothing_against_the_data(
    server: RealServer, copies: List[str], own_run_directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, coordinates = taken(server, copies, FLUSH)
    with monkeypatch.context() as patch:
        patch.setattr(proof, "CHECK_LIMIT", 0.0)
        found = proven(server, copy, claim(server, coordinates, tables="all"))
        assert "did not end within" in found.reason
        assert (found.refuted, found.as_dict()["ok"]) == (False, None)

    def lost() -> None:
        raise StillpointError("the snapshot is full")

    what = claim(server, coordinates)
    found = prove(what, Copies({server.datadir: copy}), [], lost)  # type: ignore[arg-type]
    assert (found.reason, found.as_dict()["ok"]) == ("the snapshot is full", None)
    for words in ("error while loading shared libraries: libssl.so.3", "[ERROR] InnoDB: Error number 28 means 'No space left on device'", ""):
        found = proven(server, copy, replace(what, settings=replace(what.settings, program=script(server, words))))
        assert ("the server does not start: " + words in found.reason, found.as_dict()["ok"]) == (True, None)
    found = proven(server, copy, replace(what, settings=replace(what.settings, program=script(server, "[ERROR] InnoDB: the page is broken"))))
    assert found.as_dict()["ok"] is False
    no_program = replace(what, settings=replace(what.settings, program="/nowhere", flavour="percona", version_text="8.0.1"))
    if not shutil.which("mysqld", path="/usr/sbin:/usr/bin"):
        found = proven(server, copy, no_program)
        assert "no server program of percona" in found.reason
        assert found.as_dict()["ok"] is None
    assert subprocess.run(["pgrep", "-f", "socket=" + own_run_directory], check=False).returncode == 1
