# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary logs of a real server: read, streamed, copied, and what becomes of the archive when something goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from _core.archive import chains, stream, timeline
from _core.archive import service as archiving
from _core.archive.archive import GAP, RESET, RESTORED, Archive
from _core.archive.chains import Again, LineKeeper
from _core.archive.line import CRASH, CUT, Line
from _core.archive.service import Service
from _core.binlog import events
from _core.host.errors import BusyError, StillpointError
from _core.job.options import Job
from _core.job.reader import parse
from _core.mysql.connection import ServerError, Session
from _core.repository.job_directory import JobDirectory
from real_server import PATIENCE, RealServer, needed, real_server, until
from trees import Quiet

pytest.importorskip("pymysql")

pytestmark = needed

FRESH = ("RESET MASTER", "DROP DATABASE IF EXISTS d", "CREATE DATABASE d", "CREATE TABLE d.t (i INT PRIMARY KEY AUTO_INCREMENT, s TEXT)")
FACTS = {"flavour": "mariadb", "version": "10.11", "uuid": None, "basename": ""}


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as server:
        yield server


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_ASK_EVERY", 0.2)
    monkeypatch.setattr(stream, "_SYNC_EVERY", 0.2)
    monkeypatch.setattr(archiving, "_TICK", 0.05)
    monkeypatch.setattr(archiving, "_BACK_OFF", (0.1, 0.2))


class Archiving:
    """An archive of the server's logs, and a service for it that runs in a thread."""

    def __init__(self, server: RealServer, repository: str) -> None:
        self.repository = repository
        self.use(server)
        self.directory = JobDirectory(repository + "/host/job")
        self.archive = Archive(self.directory.path)
        self.reporter = Notes()
        self._thread: Any = None
        self.crashed: List[BaseException] = []

    def use(self, server: RealServer, method: str = "auto") -> None:
        """Archive that server's logs from now on."""
        self.server = server
        login = {"login_user": "root", "login_unix_socket": server.top + "/s"}
        self.job: Job = parse({"name": "job", "mysql": login, "repository": self.repository, "binlog": {"archive": True, "method": method}})

    def service(self) -> Service:
        assert self.job.mysql is not None
        assert self.job.binlog is not None
        return Service(self.job, self.job.mysql, self.job.binlog.method, self.archive, self.directory, self.reporter)

    def keeper(self) -> LineKeeper:
        return LineKeeper(self.archive, self.directory, self.reporter)

    def start(self) -> None:
        service = self.service()
        self._end = threading.Event()
        wait = service._wait

        class Ended(BaseException):
            pass

        def ended(*_arguments: Any) -> None:
            if self._end.is_set():
                raise Ended

        say = service.say

        def say_and_end(state: str) -> None:
            say(state)
            if state != "stopped":
                ended()

        def wait_and_end(seconds: float) -> None:
            until = time.monotonic() + min(seconds, PATIENCE)
            while time.monotonic() < until:
                ended()
                wait(0.05)

        service.say = say_and_end  # type: ignore[method-assign]
        service._wait = wait_and_end  # type: ignore[method-assign]

        def run() -> None:
            try:
                with self.archive.lock():
                    service.run()
            except Ended:
                pass
            except BaseException as error:
                self.crashed.append(error)

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def stop(self) -> None:
        if self._thread:
            self._end.set()
            self._thread.join(PATIENCE)
            assert not self._thread.is_alive()
            self._thread = None
        assert self.crashed == []

    def line(self) -> Line:
        return self.archive.lines()[-1]

    def names(self) -> List[str]:
        return [log.file for log in self.line().logs] if self.archive.lines() else []

    def complete(self) -> bool:
        """Whether the archive has every byte that the server has now."""
        with Session(self.server.login) as session:
            status = session.rows("SHOW MASTER STATUS")[0]
        if not self.archive.lines():
            return False
        pieces = self.archive.pieces(self.line(), current=True)
        return bool(pieces) and (pieces[-1].file, pieces[-1].usable) == (status["File"], status["Position"])


class Notes(Quiet):
    def __init__(self) -> None:
        super().__init__()
        self.notes: List[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def archiving_(server: RealServer, tmp_path: Path) -> Iterator[Archiving]:
    if server.process is None:
        server.start()
    server.do(*FRESH)
    it = Archiving(server, str(tmp_path / "repository"))
    os.makedirs(it.directory.path)
    yield it
    it.stop()
    if server.process is None:
        server.start()


def insert(server: RealServer, rows: int = 1) -> None:
    server.do(*["INSERT INTO d.t (s) VALUES (REPEAT('x', 1000))"] * rows)


OTHERS = "SELECT id AS ID FROM information_schema.PROCESSLIST WHERE id <> CONNECTION_ID() AND command IN ('Sleep', 'Query')"


def kill_others(session: Session) -> None:
    """End every other session but those to which the server sends its logs."""
    for row in session.rows(OTHERS):
        with suppress(ServerError):  # it has just ended by itself
            session.do("KILL %d" % row["ID"])


def status_after(archiving_: Archiving, moment: float) -> Dict[str, Any]:
    """Wait until the archive is known to hold everything up to a moment, and return its status."""
    until(lambda: (archiving_.archive.status()["synced"] or 0) > moment, "an answer of the server")
    return archiving_.archive.status()


def checkpoint_noted(server: RealServer) -> bool:
    log = last_log(server)
    with Session(server.login) as session:
        noted = [row["Info"] for row in session.rows("SHOW BINLOG EVENTS IN '%s'" % log) if row["Event_type"] == "Binlog_checkpoint"]
    return log in noted


def last_log(server: RealServer) -> str:
    with Session(server.login) as session:
        return str(session.rows("SHOW MASTER STATUS")[0]["File"])


# -- reading


def test_a_log_is_read_with_its_transactions_their_gtids_and_its_end(server: RealServer, archiving_: Archiving) -> None:
    server.do("BEGIN", "COMMIT")
    with Session(server.login) as session:
        session.do("BEGIN", "INSERT INTO d.t (s) VALUES ('one')", "INSERT INTO d.t (s) VALUES ('two')", "COMMIT")
        session.do("CREATE TABLE d.m (i INT) ENGINE=MyISAM", "INSERT INTO d.m VALUES (1)")
        position = session.value("SELECT @@gtid_binlog_pos")
        session.do("FLUSH BINARY LOGS")
    found: List[events.Transaction] = []
    facts = events.read(server.binlogs + "/bin.000001", lambda each: not found.append(each), digest=True)  # type: ignore[func-returns-value]
    assert facts.ended
    assert (facts.end, facts.next_name) == ("rotate", "bin.000002")
    assert str(facts.before) == ""
    assert facts.after is not None
    assert facts.after.position() == position
    assert facts.transactions == len(found) == 6
    assert [str(each.gtid) for each in found] == ["0-1-%d" % number for number in range(1, 7)]
    assert all(abs(each.time - time.time()) < 120 for each in found)
    assert facts.size == facts.complete == os.path.getsize(server.binlogs + "/bin.000001")


def test_a_torn_log_is_whole_up_to_its_last_whole_transaction(server: RealServer, archiving_: Archiving, tmp_path: Path) -> None:
    insert(server, 3)
    server.do("FLUSH BINARY LOGS")
    whole = Path(server.binlogs, "bin.000001").read_bytes()
    ends: List[int] = []
    events.read(server.binlogs + "/bin.000001", lambda each: not ends.append(each.end))  # type: ignore[func-returns-value]
    torn = tmp_path / "torn"
    for size in (ends[-1] - 1, ends[-1], ends[-1] - 40, ends[-2] + 1):
        torn.write_bytes(whole[:size])
        facts = events.read(str(torn))
        assert facts.complete == max(end for end in ends if end <= size)
        assert not facts.ended
        assert facts.torn == (size != ends[-1])


@pytest.mark.parametrize("size", [1, 4, 5000])
def test_a_log_of_nothing_but_zeros_is_torn_from_its_beginning(tmp_path: Path, size: int) -> None:
    (tmp_path / "zeros").write_bytes(bytes(size))
    facts = events.read(str(tmp_path / "zeros"))
    assert (facts.torn, facts.size, facts.complete, facts.ended) == (True, 0, 0, False)
    (tmp_path / "zeros").write_bytes(bytes(size) + b"\xfebin")
    with pytest.raises(events.NoLog):
        events.read(str(tmp_path / "zeros"))


def test_one_flipped_bit_anywhere_is_noticed(server: RealServer, archiving_: Archiving, tmp_path: Path) -> None:
    insert(server, 2)
    server.do("FLUSH BINARY LOGS")
    whole = Path(server.binlogs, "bin.000001").read_bytes()
    for at in (10, 100, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        (tmp_path / "damaged").write_bytes(damaged)
        assert events.read(str(tmp_path / "damaged")).fault, at


# -- the stream


def test_what_is_committed_is_in_the_archive_within_seconds_byte_for_byte(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    until(archiving_.complete, "the first log")
    began = time.monotonic()
    insert(server, 5)
    until(archiving_.complete, "five rows")
    assert time.monotonic() - began < 20
    server.do("FLUSH BINARY LOGS")
    insert(server)
    server.do("FLUSH BINARY LOGS")
    until(lambda: archiving_.names() == ["bin.000001", "bin.000002"], "two closed logs")
    for log in archiving_.line().logs:
        archived = Path(archiving_.archive.path_of(archiving_.line(), log.file))
        assert archived.read_bytes() == Path(server.binlogs, log.file).read_bytes()
        assert log.end == "rotate"
    until(lambda: archiving_.archive.status().get("lag_bytes") == 0 and archiving_.archive.status()["synced"], "the status")
    status = archiving_.archive.status()
    assert status["state"] == "streaming"
    assert abs(status["synced"] - time.time()) < 30
    assert [line.reason for line in archiving_.archive.lines()] == ["first"]


def test_a_stream_notes_at_which_time_the_server_was_where(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    until(archiving_.complete, "the first log")
    begun = time.time()
    insert(server)
    with Session(server.login) as session:
        position = session.rows("SHOW MASTER STATUS")[0]["Position"]
    committed = time.time()

    def marks() -> List[Any]:
        return archiving_.archive.marks(archiving_.line(), "bin.000001")

    until(lambda: [at for at, _time in marks()] and marks()[-1][0] == position, "the row to be seen")
    time.sleep(2)
    insert(server)
    until(lambda: marks()[-1][0] > position, "the next row to be seen")
    seen = [when for at, when in marks() if at == position]
    # it looks every now and then: the last look at the first row came not much less than the waited seconds before the next row
    assert begun - 0.1 < min(seen) and committed + 0.5 < max(seen) < time.time()
    assert all(when < committed for at, when in marks() if at < position)
    server.do("FLUSH BINARY LOGS")
    until(lambda: archiving_.names() == ["bin.000001"], "a closed log")
    assert marks()[-1][0] == os.path.getsize(server.binlogs + "/bin.000001")


def test_two_services_do_not_write_to_one_archive(archiving_: Archiving) -> None:
    archiving_.start()
    until(archiving_.complete, "the first log")
    with pytest.raises(BusyError), archiving_.archive.lock():
        pass


def test_it_goes_on_by_itself_after_the_disk_was_full(archiving_: Archiving, monkeypatch: pytest.MonkeyPatch) -> None:
    real, say, full = shutil.rmtree, archiving_.archive.say, [True]

    def refuse(path: str) -> None:
        if full[0] and os.path.dirname(path).startswith(archiving_.archive.path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def say_nothing(status: Dict[str, Any]) -> None:
        if status["state"] == "waiting" and full[0]:
            raise StillpointError("the status can't be written either")
        say(status)

    monkeypatch.setattr(chains.shutil, "rmtree", lambda path, **how: (refuse(path), real(path, **how)))
    monkeypatch.setattr(archiving_.archive, "say", say_nothing)
    archiving_.start()
    until(archiving_.complete, "the first log")
    with Session(archiving_.server.login) as session:
        session.do("RESET MASTER")  # what it had is removed then
    until(lambda: any("can't be written: No space left on device; trying again" in each for each in archiving_.reporter.warnings), "the trouble")
    full[0] = False
    insert(archiving_.server)
    until(archiving_.complete, "a row")
    until(lambda: not archiving_.archive.status().get("error"), "the end of the trouble in the status")


def test_a_stream_goes_on_where_the_server_ends_sessions_soon(archiving_: Archiving) -> None:
    server = archiving_.server
    hasty = ("wait_timeout", "interactive_timeout", "net_read_timeout", "net_write_timeout", "lock_wait_timeout", "max_statement_time")
    server.do(*("SET GLOBAL %s = 1" % name for name in hasty))
    try:
        archiving_.start()
        insert(server)
        until(archiving_.complete, "a row")
        time.sleep(2.5)
        insert(server)
        until(archiving_.complete, "the next row")
        assert archiving_.reporter.warnings == []
        assert not archiving_.archive.status().get("error")
    finally:
        server.do(*("SET GLOBAL %s = DEFAULT" % name for name in hasty))


def test_it_goes_on_by_itself_after_a_restart_and_after_a_crash_of_the_server(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server)
    until(archiving_.complete, "a row")
    server.stop()
    until(lambda: archiving_.archive.status().get("error"), "the trouble in the status")
    server.start()
    insert(server)
    until(archiving_.complete, "a row after the restart")
    server.stop(crash=True)
    server.start()
    insert(server)
    until(archiving_.complete, "a row after the crash")
    assert [line.reason for line in archiving_.archive.lines()] == ["first"]
    assert [log.end for log in archiving_.line().logs] == ["stop", CRASH]
    until(lambda: not archiving_.archive.status().get("error"), "the end of the trouble in the status")


def test_it_goes_on_asking_the_server_after_its_session_was_killed(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server, 3)
    until(archiving_.complete, "three rows")
    streams = archiving_.archive.streams()
    for _each in range(3):
        with Session(server.login) as session:
            kill_others(session)
        status = status_after(archiving_, time.time() + 0.5)
    assert (status["state"], status["lag_bytes"], status["error"]) == ("streaming", 0, None)
    assert archiving_.archive.streams() == streams  # the stream went on
    with Session(server.login) as session:
        until(lambda: len(session.rows(OTHERS)) == 1, "that of those who asked, one is left")
    server.do("RESET MASTER")
    insert(server)
    until(lambda: len(archiving_.archive.lines()) == 2 and archiving_.complete(), "the new logs")


def test_a_server_that_does_not_answer_is_said_and_the_stream_begun_anew(archiving_: Archiving, monkeypatch: pytest.MonkeyPatch) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server, 3)
    until(lambda: archiving_.complete() and archiving_.archive.status().get("lag_bytes") == 0, "three rows")
    with Session(server.login) as session:  # whoever is in stays, and nobody else gets in
        session.do("SET sql_log_bin = 0", "SET PASSWORD FOR root@localhost = PASSWORD('another')")
        try:
            kill_others(session)
            session.do("SET sql_log_bin = 1", "INSERT INTO d.t (s) VALUES ('x')")
            until(lambda: "refuses the login" in (archiving_.archive.status()["error"] or ""), "the trouble in the status")
            status = archiving_.archive.status()
            assert (status["state"], status["lag_bytes"]) == ("streaming", None)
            assert "FAILING: the server" in timeline.brief(archiving_.archive, [], datetime.now(timezone.utc))[0]
            monkeypatch.setattr(stream, "_STALLED", 1.0)
            until(lambda: any("has not answered for 1 s" in text for text in archiving_.reporter.warnings), "the end of the stream")
        finally:
            session.do("SET sql_log_bin = 0", "SET PASSWORD FOR root@localhost = PASSWORD('')")
    until(lambda: archiving_.complete() and archiving_.archive.status()["lag_bytes"] == 0, "that it goes on")
    until(lambda: not archiving_.archive.status()["error"], "the end of the trouble in the status")
    assert [line.reason for line in archiving_.archive.lines()] == ["first"]


def test_it_begins_where_the_archive_ends_when_it_is_started_again(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server)
    until(archiving_.complete, "a row")
    archiving_.stop()
    assert archiving_.archive.status()["state"] == "stopped"
    insert(server)
    server.do("FLUSH BINARY LOGS")
    insert(server)
    archiving_.start()
    until(archiving_.complete, "what was written meanwhile")
    until(lambda: archiving_.names() == ["bin.000001"], "the closed log")
    assert [line.reason for line in archiving_.archive.lines()] == ["first"]


@pytest.mark.parametrize("left", ["zeros", "a tail of zeros", "something else"])
def test_what_a_power_cut_left_of_the_open_log_is_fetched_again(archiving_: Archiving, left: str) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server, 3)
    until(archiving_.complete, "three rows")
    archiving_.stop()
    path = Path(archiving_.archive.pieces(archiving_.line(), current=True)[-1].path)
    whole = path.read_bytes()
    path.write_bytes({"zeros": bytes(len(whole)), "a tail of zeros": whole[:-900] + bytes(900), "something else": b"no log" * 500}[left])
    insert(server, 2)
    server.do("FLUSH BINARY LOGS")
    insert(server)
    archiving_.start()
    until(lambda: archiving_.names() == ["bin.000001"] and archiving_.complete(), "all that the server has")
    archived = Path(archiving_.archive.path_of(archiving_.line(), "bin.000001"))
    assert archived.read_bytes() == Path(server.binlogs, "bin.000001").read_bytes()
    assert [line.reason for line in archiving_.archive.lines()] == ["first"]  # nothing is missing
    assert [text for text in archiving_.reporter.warnings if "is not a binary log" in text] == archiving_.reporter.warnings
    assert bool(archiving_.reporter.warnings) == (left == "something else")


def test_what_was_fetched_stays_until_a_new_stream_has_as_much(archiving_: Archiving, monkeypatch: pytest.MonkeyPatch) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server, 5)
    until(archiving_.complete, "five rows")
    archiving_.stop()
    reached = archiving_.archive.pieces(archiving_.line(), current=True)[-1].usable
    tries: List[str] = []

    def find_client(flavour: str) -> str:
        tries.append(flavour)
        return "/bin/false"  # a client that brings nothing

    monkeypatch.setattr(archiving.source, "find_client", find_client)
    archiving_.start()
    until(lambda: len(tries) > 6, "some tries")
    archiving_.stop()
    assert len(archiving_.archive.streams()) <= 2  # tries do not pile up on the disk
    assert archiving_.archive.pieces(archiving_.line(), current=True)[-1].usable == reached


def test_logs_that_were_purged_before_they_were_archived_are_a_gap_that_is_said(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server)
    until(archiving_.complete, "a row")
    archiving_.stop()
    for _each in range(3):
        server.do("FLUSH BINARY LOGS")
        insert(server)
    server.purge("bin.000003")
    archiving_.start()
    until(archiving_.complete, "what is left")
    lines = archiving_.archive.lines()
    assert [line.reason for line in lines] == ["first", GAP]
    assert "purged its binary logs from bin.000001 to before bin.000003" in lines[1].text
    assert lines[0].logs[-1].end == CUT
    assert any("purged" in warning for warning in archiving_.reporter.warnings)
    assert any("take a backup" in line for line in timeline.brief(archiving_.archive, [], datetime.now(timezone.utc)))
    shown = timeline.read(archiving_.archive, [])
    assert "purged" in shown.lines(datetime.now(timezone.utc))[1]


def test_a_reset_is_noticed_also_when_the_names_are_the_same_again(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server, 3)
    until(archiving_.complete, "three rows")
    before = archiving_.archive.pieces(archiving_.line(), current=True)[-1].usable
    archiving_.stop()
    server.do("RESET MASTER")
    insert(server, 6)
    archiving_.start()
    until(lambda: len(archiving_.archive.lines()) == 2 and archiving_.complete(), "the new logs")
    first, second = archiving_.archive.lines()
    assert second.reason == RESET
    assert (first.logs[-1].end, first.logs[-1].size) == (CUT, before)
    assert second.start == "bin.000001"


@pytest.mark.parametrize("rows", [1, 8])
def test_a_reset_under_a_running_stream_is_noticed_whether_the_new_log_is_shorter_or_longer(archiving_: Archiving, rows: int) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server, 3)
    until(lambda: archiving_.complete() and archiving_.archive.status().get("lag_bytes") == 0, "three rows")
    before = Path(archiving_.archive.pieces(archiving_.line(), current=True)[-1].path).read_bytes()
    with Session(server.login) as session:  # at once, so that the archive never sees a log that is shorter
        session.do("RESET MASTER", *["INSERT INTO d.t (s) VALUES (REPEAT('y', 1000))"] * rows)
    until(lambda: len(archiving_.archive.lines()) == 2 and archiving_.complete(), "the new logs")
    first, second = archiving_.archive.lines()
    assert (second.reason, second.start) == (RESET, "bin.000001")
    assert "its bin.000001 is not the one that was archived" in second.text
    assert any("take a backup now" in warning for warning in archiving_.reporter.warnings)
    (log,) = first.logs
    kept = Path(archiving_.archive.path_of(first, log.file)).read_bytes()
    assert (log.end, kept) == (CUT, before)
    gap = timeline.read(archiving_.archive, []).as_dict(datetime.now(timezone.utc))["gaps"]
    assert [each["reason"] for each in gap] == [RESET]


@pytest.mark.parametrize("tail", ["torn", "zeros", "half a transaction"])
@pytest.mark.parametrize("method", ["auto", "copy"])
def test_a_log_that_a_crash_has_torn_is_closed_as_it_is_and_the_next_one_follows(archiving_: Archiving, tail: str, method: str) -> None:
    server = archiving_.server
    insert(server, 3)
    server.stop(crash=True)
    log = Path(server.binlogs, "bin.000001")
    whole = log.read_bytes()
    ends: List[int] = []
    events.read(str(log), lambda each: not ends.append(each.end))  # type: ignore[func-returns-value]
    assert ends[-1] == len(whole)
    # as if the machine had lost power: what was not yet on the disk is missing
    last_event = len(whole) - 31  # the XID of the last transaction
    log.write_bytes({"torn": whole[: last_event - 5], "zeros": whole + bytes(5000), "half a transaction": whole[:last_event]}[tail])
    complete = ends[-1] if tail == "zeros" else ends[-2]
    server.start()
    insert(server, 2)
    archiving_.use(server, method)
    with archiving_.archive.lock():
        archiving_.archive.begin("first", "the archive begins", "bin.000001", FACTS)
    if method == "copy":
        with archiving_.archive.lock():
            archiving_.service().copy_once()
    else:
        archiving_.start()
        until(archiving_.complete, "what came after the crash")
    (line,) = archiving_.archive.lines()
    assert (line.logs[0].file, line.logs[0].end, line.logs[0].size) == ("bin.000001", CRASH, complete)
    archived = Path(archiving_.archive.path_of(line, "bin.000001")).read_bytes()
    assert events.as_sent(archived) == events.as_sent(log.read_bytes()[:complete])
    assert any("crashed while it wrote bin.000001" in note and str(complete) in note for note in archiving_.reporter.notes)
    archiving_.stop()
    with archiving_.archive.lock():  # and it goes on from there as often as it is started
        archiving_.service().copy_once()
    assert len(archiving_.archive.lines()) == 1


def test_a_log_that_is_damaged_on_the_server_itself_is_archived_up_to_there_and_said_to_be_a_gap(archiving_: Archiving) -> None:
    server = archiving_.server
    insert(server, 3)
    server.do("FLUSH BINARY LOGS")
    insert(server)
    log = Path(server.binlogs, "bin.000001")
    ends: List[int] = []
    events.read(str(log), lambda each: not ends.append(each.end))  # type: ignore[func-returns-value]
    data = bytearray(log.read_bytes())
    data[ends[-2] + 100] ^= 1
    log.write_bytes(data)
    with archiving_.archive.lock():
        archiving_.archive.begin("first", "the archive begins", "bin.000001", FACTS)
    archiving_.start()
    until(archiving_.complete, "what comes after the damage")
    first, second = archiving_.archive.lines()
    assert [(each.end, each.size) for each in first.logs] == [(CUT, ends[-2])]
    assert (second.reason, second.start) == (GAP, "bin.000002")
    assert "bin.000001 is damaged on the server: the checksum" in second.text


def test_the_logs_of_another_server_are_not_taken_for_those_of_this_one(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server, 3)
    until(archiving_.complete, "three rows")
    server.do("FLUSH BINARY LOGS")
    insert(server)
    until(lambda: archiving_.names() == ["bin.000001"] and archiving_.complete(), "the first log")
    archiving_.stop()
    with real_server() as other:  # with logs of the same names and sizes
        with Session(server.login) as one, Session(other.login) as two:  # the host's network card is the same
            assert one.value("SELECT @@server_uid") == two.value("SELECT @@server_uid")
        other.do(*FRESH)
        insert(other, 3)
        other.do("FLUSH BINARY LOGS")
        other.do("INSERT INTO d.t (s) VALUES ('theirs')")
        assert os.path.getsize(other.binlogs + "/bin.000001") == os.path.getsize(server.binlogs + "/bin.000001")
        archiving_.use(other)
        archiving_.start()
        try:
            until(lambda: len(archiving_.archive.lines()) == 2 and archiving_.complete(), "the other server's logs")
        finally:
            archiving_.stop()
            archiving_.use(server)
        first, second = archiving_.archive.lines()
        assert (second.reason, second.start) == (RESET, "bin.000001")
        assert "or are those of another server" in second.text
        for log in second.logs:
            assert Path(archiving_.archive.path_of(second, log.file)).read_bytes() == Path(other.binlogs, log.file).read_bytes()


def test_what_a_server_encrypts_on_its_disk_is_archived_as_a_stream_and_not_copied(archiving_: Archiving) -> None:
    server = archiving_.server
    server.stop()
    keys = Path(server.top, "keys")
    keys.write_text("1;" + "ab" * 32 + "\n")
    encrypted = ("--plugin-load-add=file_key_management", "--file-key-management-filename=%s" % keys, "--encrypt-binlog=ON")
    server.start(*encrypted)
    try:
        server.do("RESET MASTER")
        insert(server, 3)
        with archiving_.archive.lock(), pytest.raises(StillpointError, match="encrypts its binary logs: they can't be copied, only streamed"):
            archiving_.service().copy_once()
        log = last_log(server)
        assert log == "bin.000001"  # refused before anything was done
        archiving_.start()
        until(archiving_.complete, "three rows")
        server.do("FLUSH BINARY LOGS")
        until(lambda: archiving_.names() == ["bin.000001"], "a closed log")
        archived = archiving_.archive.path_of(archiving_.line(), "bin.000001")
        assert b"REPEAT('x', 1000)" in Path(archived).read_bytes()
        assert archiving_.line().logs[0].transactions == 3
        with pytest.raises(StillpointError, match="is encrypted by its server: it can only be archived as a stream"):
            events.read(server.binlogs + "/bin.000001")
        text = subprocess.run(["mariadb-binlog", "--no-defaults", "--verify-binlog-checksum", archived], capture_output=True, text=True, check=True).stdout
        assert text.count("COMMIT") == 3
        with Session(server.login) as session:
            session.do("RESET MASTER")
        insert(server, 6)
        until(lambda: len(archiving_.archive.lines()) == 2 and archiving_.complete(), "the logs after a reset")
        ends: List[int] = []
        events.read(archiving_.archive.pieces(archiving_.line(), current=True)[-1].path, lambda each: not ends.append(each.end))  # type: ignore[func-returns-value]
        archiving_.stop()
        shutil.rmtree(archiving_.archive.path)
        server.stop(crash=True)
        os.truncate(server.binlogs + "/bin.000001", ends[-1] - 5)  # torn, and nobody but the server can tell where
        server.start(*encrypted)
        insert(server)
        with archiving_.archive.lock():
            archiving_.archive.begin("first", "the archive begins", "bin.000001", FACTS)
        archiving_.start()
        until(archiving_.complete, "what came after the crash")
        (log,) = archiving_.line().logs
        assert (log.end, log.size) == (CRASH, ends[-2])
    finally:
        archiving_.stop()
        server.stop()


def test_transactions_that_are_missing_between_two_logs_are_noticed_by_their_gtids(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    until(archiving_.complete, "the first log")
    server.do("FLUSH BINARY LOGS")
    until(lambda: archiving_.names() == ["bin.000001"], "a closed log")
    archiving_.stop()
    # the names go on, the transactions do not
    server.do("RESET MASTER", "SET GLOBAL gtid_binlog_state='0-1-500'", "FLUSH BINARY LOGS", "FLUSH BINARY LOGS")
    keeper = archiving_.keeper()
    path = os.path.join(archiving_.archive.new_stream(), "bin.000002")
    shutil.copy(server.binlogs + "/bin.000002", path)
    with Session(server.login) as session:
        there = archiving.source.read(session)
    with pytest.raises(Again, match="does not follow"):
        keeper.close(archiving_.line(), path, there)
    assert (archiving_.line().reason, archiving_.line().start, archiving_.line().logs) == (RESET, "bin.000002", ())


def test_a_damaged_log_is_fetched_again_and_never_taken(archiving_: Archiving) -> None:
    server = archiving_.server
    insert(server)
    archiving_.start()
    until(archiving_.complete, "a row")
    archiving_.stop()
    server.do("FLUSH BINARY LOGS")
    keeper = archiving_.keeper()
    with Session(server.login) as session:
        there = archiving.source.read(session)
    path = os.path.join(archiving_.archive.new_stream(), "bin.000001")
    data = bytearray(Path(server.binlogs, "bin.000001").read_bytes())
    for damaged in (bytes(data[:-5]), bytes(data[:600]) + bytes([data[600] ^ 1]) + bytes(data[601:])):
        Path(path).write_bytes(damaged)
        with pytest.raises((Again, StillpointError), match="arrived damaged"):
            keeper.close(archiving_.line(), path, there)
        assert not events.read(path).fault
        assert archiving_.names() == []
    archiving_.start()
    until(lambda: archiving_.names() == ["bin.000001"], "the log")


def test_after_a_restore_a_new_line_begins(archiving_: Archiving) -> None:
    server = archiving_.server
    archiving_.start()
    insert(server)
    until(archiving_.complete, "a row")
    archiving_.archive.note_restore("2026-11-22T02-00-05Z", ["bin.000001"])
    server.do("FLUSH BINARY LOGS")
    insert(server)
    until(lambda: len(archiving_.archive.lines()) == 2 and archiving_.complete(), "the new line")
    first, second = archiving_.archive.lines()
    assert (second.reason, second.start) == (RESTORED, "bin.000002")
    assert first.logs[-1].end in (CUT, "rotate")
    assert archiving_.archive.restored() is None


# -- the copy


def test_without_the_privilege_closed_logs_are_copied_and_that_is_said(archiving_: Archiving, monkeypatch: pytest.MonkeyPatch) -> None:
    server = archiving_.server
    monkeypatch.setattr(archiving.source, "may_stream", lambda _session: False)
    archiving_.start()
    until(lambda: archiving_.names(), "a copy")
    assert any("lacks the privilege REPLICATION SLAVE: closed logs are copied" in text for text in archiving_.reporter.warnings)
    archiving_.stop()
    insert(server)
    with archiving_.archive.lock():
        status = archiving_.service().copy_once()
    assert archiving_.names()[-1] != last_log(server)
    assert status["method"] == "copy"
    assert abs(status["synced"] - time.time()) < 30
    for log in archiving_.line().logs:
        assert Path(archiving_.archive.path_of(archiving_.line(), log.file)).read_bytes() == Path(server.binlogs, log.file).read_bytes()


def test_a_server_that_has_written_nothing_is_not_made_to_begin_new_logs(archiving_: Archiving) -> None:
    service = archiving_.service()
    with archiving_.archive.lock():
        insert(archiving_.server)
        service.copy_once()
        until(lambda: checkpoint_noted(archiving_.server), "the server's note of its own checkpoint in the new log")
        service.copy_once()
        log = last_log(archiving_.server)
        service.copy_once()
    assert last_log(archiving_.server) == log


# -- the index


def test_what_a_power_cut_left_of_an_entry_is_as_if_it_had_not_begun(archiving_: Archiving) -> None:
    server = archiving_.server
    insert(server)
    with archiving_.archive.lock():
        archiving_.service().copy_once()
    index = Path(archiving_.archive.path, "index")
    whole = index.read_bytes()
    index.write_bytes(whole[:-7])
    assert archiving_.names() == []
    with archiving_.archive.lock():  # the log lies there, whole: it is read again and entered
        archiving_.service().copy_once()
    assert archiving_.names()[0] == "bin.000001"
    index.write_bytes(whole[:50] + b"\n" + whole)
    with pytest.raises(StillpointError, match="is damaged in line 1"):
        archiving_.archive.lines()
