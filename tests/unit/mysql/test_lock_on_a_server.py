# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a lock is waited for, on a real server with statements in its way."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event, Thread
from typing import Iterator, Set

import pytest
from _core.backup import sources
from _core.backup.quiesced import QuiesceRequest
from _core.host.errors import NotNowError, StillpointError, Stopped
from _core.mysql import lock_choice, locks
from _core.mysql.connection import ServerError, Session
from _core.mysql.lock_choice import Method
from _core.mysql.locks import Lock
from real_server import PATIENCE, RealServer, needed, real_server, until

pytest.importorskip("pymysql")
pytestmark = needed

STAGE, FTWRL = lock_choice._BACKUP_STAGE, replace(lock_choice._FTWRL, limit=lock_choice._LIMIT)
LIMIT = 3  # seconds
SLOW = 1.5  # seconds that a busy machine may add


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as server:
        server.do("CREATE DATABASE d", *("CREATE TABLE d.%s (i INT) ENGINE=MyISAM" % name for name in "abc"))
        yield server


@contextmanager
def in_the_way(server: RealServer, seconds: float) -> Iterator[None]:
    """Have two statements in the way: one that ends so many seconds after the body has begun, and one that a later step waits for and that does not end."""
    begun = Event()

    def hold() -> None:
        with Session(server.login) as session:
            session.do("LOCK TABLES d.a WRITE")
            begun.wait(PATIENCE)
            time.sleep(seconds)

    with Session(server.login) as writer:
        threads = [Thread(target=hold), Thread(target=_write, args=(writer,))]
        for thread in threads:
            thread.start()
        until(lambda: {"a", "b"} <= _in_use(server), "both to be in the way")
        begun.set()
        yield
        server.do("KILL QUERY %d" % writer.id)
        for thread in threads:
            thread.join()


def _in_use(server: RealServer) -> Set[str]:
    with Session(server.login) as session:
        return {str(row["Table"]) for row in session.rows("SHOW OPEN TABLES FROM d WHERE In_use > 0")}


def _write(session: Session) -> None:
    try:
        session.do("INSERT INTO d.b SELECT SLEEP(30)")
    except ServerError:
        pass  # killed at the end of the test


def asked_for(server: RealServer, method: Method) -> float:
    """Ask for a lock that is not granted, and return for how many seconds it was waited for."""
    with Session(server.login) as session:
        lock = Lock(session, method, LIMIT)
        began = time.monotonic()
        with pytest.raises(NotNowError, match="within lock_wait_timeout = 3 s: a statement that it has to wait for is running; nothing was"), lock:
            lock.prepare()
            lock.take()
        return time.monotonic() - began


@pytest.mark.parametrize("method", [STAGE, FTWRL, lock_choice._FTWRL], ids=["backup_stage", "ftwrl", "ftwrl ended from outside"])
def test_all_that_a_lock_waits_for_counts_to_one_limit(server: RealServer, method: Method) -> None:
    with in_the_way(server, 2.5):
        assert LIMIT - 0.2 < asked_for(server, method) < LIMIT + SLOW  # and not for each of the two
        server.do("INSERT INTO d.c VALUES (1)")  # nothing is held any more


def test_where_the_server_does_not_count_the_lock_is_ended_by_another_session(server: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lock, "_set_limit", lambda _self: None)
    with in_the_way(server, 60 / 1000):
        assert LIMIT - 0.2 < asked_for(server, lock_choice._FTWRL) < LIMIT + SLOW


def test_a_lock_that_is_granted_is_held_beyond_the_limit_of_its_waiting(server: RealServer) -> None:
    for method in (STAGE, FTWRL, lock_choice._FTWRL):
        with Session(server.login) as session, Lock(session, method, 1) as lock:
            lock.prepare()
            lock.take()
            time.sleep(1.5)
            lock.release()
            assert lock.waited < 1 < lock.held


LONG = "SELECT BENCHMARK(1000000000, MD5('x'))"  # minutes, in which the server does not look whether the client is there


def free_within(server: RealServer, seconds: float) -> bool:
    began = time.monotonic()
    with suppress(StillpointError), Session(server.login, read_timeout=20) as session:
        session.do("INSERT INTO d.c VALUES (1)")
    return time.monotonic() - began < seconds


@pytest.fixture
def impatient(server: RealServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An answer under the lock is waited for half a second, and what a test has left running is ended."""
    monkeypatch.setattr(locks, "_ANSWER_LIMIT", 0.5)
    yield
    with Session(server.login) as session:
        for row in session.rows("SELECT ID FROM information_schema.PROCESSLIST WHERE INFO = %s", (LONG,)):
            session.do("KILL %d" % row["ID"])


@pytest.mark.parametrize("method", [STAGE, FTWRL, lock_choice._FTWRL], ids=["backup_stage", "ftwrl", "ftwrl without a limit"])
def test_a_statement_under_the_lock_that_is_not_answered_is_ended_and_the_lock_with_it(server: RealServer, impatient: None, method: Method) -> None:
    with Session(server.login, read_timeout=35) as session, Lock(session, method, 5) as lock:
        lock.prepare()
        lock.take()
        with pytest.raises(StillpointError, match="the session that held the lock was ended .*timed out"), lock.held_or_lost():
            session.do(LONG)
        assert 0.5 < lock.held < 15
        assert free_within(server, 10)


def test_the_lock_of_a_process_that_is_stopped_under_a_statement_does_not_outlive_it(server: RealServer, impatient: None) -> None:
    def stop(_number: int, _frame: object) -> None:
        raise Stopped("SIGALRM")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with pytest.raises(Stopped), Session(server.login, read_timeout=35) as session, Lock(session, STAGE, 5) as lock:
            lock.prepare()
            lock.take()
            session.answer_within(35)
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            session.do(LONG)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert free_within(server, 10)


def test_what_prepares_the_lock_and_is_not_answered_is_ended_too(server: RealServer, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "FLUSH_ENGINE_LOGS", LONG)
    with pytest.raises(ServerError), Session(server.login, read_timeout=1) as session, Lock(session, STAGE, 5) as lock:
        lock.prepare()
    with Session(server.login) as session:
        session.do("SET SESSION lock_wait_timeout = 10", "BACKUP STAGE START", "BACKUP STAGE END")


def test_where_the_session_can_not_be_ended_it_is_the_first_failure_that_is_told(
    server: RealServer, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_login: object, **_options: object) -> Session:
        raise ValueError("no connection free")

    with Session(server.login) as session, Lock(session, STAGE, 5) as lock:
        lock.prepare()
        lock.take()
        monkeypatch.setattr(locks, "Session", refused)
        with pytest.raises(StillpointError, match="the session that held the lock was ended .*timed out"), lock.held_or_lost():
            session.do(LONG)
        assert lock.held > 0.5


def test_a_lock_that_was_given_back_or_whose_session_was_ended_by_others_is_not_ended_again(
    server: RealServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "_GONE_LIMIT", 60)
    with Session(server.login) as session, Lock(session, STAGE, 5) as lock:
        lock.prepare()
        lock.take()
        server.do("KILL %d" % session.id)
        began = time.monotonic()
        with pytest.raises(StillpointError, match="the session that held the lock was ended"):
            lock.release()
        assert time.monotonic() - began < 20
    monkeypatch.setattr(Lock, "_end", lambda _self: pytest.fail("there is nothing to end"))
    with Session(server.login) as session, Lock(session, STAGE, 5) as lock:
        lock.prepare()
        lock.take()
        lock.release()


def test_on_a_server_that_was_started_meanwhile_nobody_elses_session_is_ended(server: RealServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(server.login) as session, Lock(session, STAGE, 5) as lock, Session(server.login) as somebody:
        monkeypatch.setattr(Session, "id", somebody.id)  # of both: what a new server may have given them
        session.unanswered = True
        lock.drop()
        assert somebody.value("SELECT 1") == 1


def test_without_a_lock_too_an_account_that_can_not_see_whether_this_is_a_replica_is_refused_with_the_grant(server: RealServer) -> None:
    server.do("CREATE USER blind IDENTIFIED BY 'x'")
    request = QuiesceRequest(login_user="blind", login_password="x", login_unix_socket=server.top + "/s", lock="none")
    with pytest.raises(StillpointError, match="blind@% lacks privileges for a backup without a lock; .*: GRANT SLAVE MONITOR ON .* TO 'blind'@'%';"):
        sources.quiescing(request)
    server.do("GRANT SLAVE MONITOR ON *.* TO blind")
    assert sources.quiescing(request).choice.name == "none"


def test_commits_that_the_server_keeps_in_memory_are_in_the_log_before_the_lock_counts_as_taken(server: RealServer) -> None:
    def lsn(session: Session) -> dict:
        return {row["Variable_name"]: int(row["Value"]) for row in session.rows("SHOW GLOBAL STATUS LIKE 'Innodb_lsn%'")}

    server.do("SET GLOBAL innodb_flush_log_at_trx_commit = 0", "CREATE TABLE d.lazy (n INT) ENGINE=InnoDB")
    try:
        with Session(server.login) as session, Lock(session, lock_choice._BACKUP_STAGE, 5) as lock:
            lock.prepare()
            for _attempt in range(50):  # the server writes its log once a second, and may do so just now
                server.do("INSERT INTO d.lazy VALUES (1)")
                committed = lsn(session)
                if committed["Innodb_lsn_flushed"] < committed["Innodb_lsn_current"]:
                    break
            assert committed["Innodb_lsn_flushed"] < committed["Innodb_lsn_current"]
            lock.take()
            assert lsn(session)["Innodb_lsn_flushed"] >= committed["Innodb_lsn_current"]
        server.do("SET GLOBAL innodb_flush_log_at_timeout = 2700")
        refused = pytest.raises(StillpointError, match="innodb_flush_log_at_timeout = 2700 s")
        with Session(server.login) as session, Lock(session, lock_choice._BACKUP_STAGE, 5) as lock, refused:
            lock.prepare()
    finally:
        server.do("SET GLOBAL innodb_flush_log_at_trx_commit = 1", "SET GLOBAL innodb_flush_log_at_timeout = 1")
