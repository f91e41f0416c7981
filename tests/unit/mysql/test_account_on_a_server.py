# SPDX-License-Identifier: GPL-3.0-or-later
"""The account on a real server, which lives in a temporary directory and listens on nothing but a socket there."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from typing import Any, Iterator, List

import pytest
from _core.host.errors import StillpointError, UsageError
from _core.mysql import account, privileges
from _core.mysql.account import Account
from _core.mysql.connection import Login, ServerError, Session
from real_server import PLUGINS, REDO_LOG, SERVER, USER, installed, needed

pytest.importorskip("pymysql")

pytestmark = needed

MARIADB_10_11 = {"RELOAD", "PROCESS", "BINLOG MONITOR", "SLAVE MONITOR"}


@pytest.fixture(scope="module")
def admin() -> Iterator[Login]:
    """A server with binary, general and slow log; yields root's login."""
    top = tempfile.mkdtemp(prefix="stillpoint-test-")  # a short path: a socket's may have 107 bytes
    try:
        shutil.chown(top, USER)
        os.chmod(top, 0o755)
        data = os.path.join(top, "data")
        subprocess.run(["cp", "-a", installed("socket"), data], check=True)
        server = subprocess.Popen(
            [
                str(SERVER),
                "--no-defaults",
                "--user=" + USER,
                "--datadir=" + data,
                "--socket=" + top + "/s",
                "--pid-file=" + top + "/pid",
                "--skip-networking",
            ]
            + (["--plugin-dir=" + shutil.copytree(PLUGINS, top + "/plugins")] if PLUGINS else [])
            + ["--log-bin=" + data + "/bin", "--server-id=1", "--log-error=" + data + "/error.log", "--innodb-buffer-pool-size=16M", REDO_LOG]
            + [
                "--general-log=1",
                "--general-log-file=" + data + "/general.log",
                "--slow-query-log=1",
                "--slow-query-log-file=" + data + "/slow.log",
                "--long-query-time=0",
            ]
        )
        try:
            login = Login(login_user="root", login_unix_socket=top + "/s")
            _wait_for(login)
            yield login
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    finally:
        shutil.rmtree(top)


def _wait_for(login: Login) -> None:
    for _attempt in range(480):
        try:
            Session(login).close()
            return
        except StillpointError:
            time.sleep(0.25)
    raise AssertionError("the server did not start")


@pytest.fixture
def session(admin: Login) -> Iterator[Session]:
    with Session(admin) as opened:
        yield opened
        opened.do("DROP USER IF EXISTS stillpoint@localhost")


@pytest.fixture
def wanted(tmp_path: Any) -> Account:
    return Account(option_file=str(tmp_path / "etc" / "my.cnf"))


def held(session: Session) -> List[str]:
    return [next(iter(row.values())) for row in session.rows("SHOW GRANTS FOR stillpoint@localhost")]


def text_of(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def test_an_account_is_made_with_the_least_privileges_and_a_file_that_logs_in(session: Session, wanted: Account) -> None:
    ensured = account.ensure(session, wanted)
    assert ensured.changed
    assert ensured.before == ()
    (line,) = held(session)
    assert privileges.parse_grants([line]) == {"*.*": frozenset(MARIADB_10_11)}
    info = os.stat(wanted.option_file)
    assert (stat.S_IMODE(info.st_mode), stat.S_IMODE(os.stat(os.path.dirname(wanted.option_file)).st_mode)) == (0o600, 0o700)
    assert os.listdir(os.path.dirname(wanted.option_file)) == ["my.cnf"]
    with Session(Login(config_file=wanted.option_file)) as its_own:
        assert privileges.whoami(its_own) == ("stillpoint", "localhost")
        assert privileges.missing_privileges(its_own, "mariadb", (10, 11, 19)) == []
        assert privileges.missing_privileges(its_own, "mariadb", (10, 11, 19), extras=privileges.Extras(kill=True)) == ["CONNECTION ADMIN"]


def test_the_privileges_are_enough_for_what_a_backup_sends(session: Session, wanted: Account) -> None:
    account.ensure(session, wanted)
    with Session(Login(config_file=wanted.option_file)) as its_own:
        its_own.do(
            "BACKUP STAGE START",
            "BACKUP STAGE FLUSH",
            "BACKUP STAGE BLOCK_DDL",
            "BACKUP STAGE BLOCK_COMMIT",
            "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS",
        )
        its_own.do("SHOW MASTER STATUS", "SHOW ALL SLAVES STATUS", "BACKUP STAGE END", "FLUSH TABLES WITH READ LOCK", "UNLOCK TABLES")
        assert {row["USER"] for row in its_own.rows("SELECT USER FROM information_schema.PROCESSLIST")} >= {"root", "stillpoint"}
        with pytest.raises(ServerError):
            its_own.do("SELECT * FROM mysql.user")


@pytest.mark.parametrize("privilege", sorted(MARIADB_10_11 - {"PROCESS"}))
def test_each_privilege_is_needed(session: Session, wanted: Account, privilege: str) -> None:
    account.ensure(session, wanted)
    session.do("REVOKE %s ON *.* FROM stillpoint@localhost" % privilege)
    with Session(Login(config_file=wanted.option_file)) as its_own:
        assert privileges.missing_privileges(its_own, "mariadb", (10, 11, 19)) == [privilege]
        with pytest.raises(ServerError) as refused:
            its_own.do(
                {"RELOAD": "BACKUP STAGE START", "BINLOG MONITOR": "SHOW MASTER STATUS", "SLAVE MONITOR": "SHOW ALL SLAVES STATUS"}[
                    privilege
                ]
            )
        assert refused.value.number == 1227


def test_the_grant_that_is_printed_is_what_was_missing(session: Session, wanted: Account) -> None:
    account.ensure(session, wanted)
    session.do("REVOKE RELOAD, BINLOG MONITOR ON *.* FROM stillpoint@localhost")
    with Session(Login(config_file=wanted.option_file)) as its_own:
        lacking = privileges.missing_privileges(its_own, "mariadb", (10, 11, 19))
        session.do(*privileges.grant_sql(*privileges.whoami(its_own), lacking).rstrip(";").split("; "))
        assert privileges.missing_privileges(its_own, "mariadb", (10, 11, 19)) == []


def test_a_second_time_changes_nothing(session: Session, wanted: Account) -> None:
    account.ensure(session, wanted)
    before = text_of(wanted.option_file), os.stat(wanted.option_file).st_mtime_ns, held(session)
    ensured = account.ensure(session, wanted)
    assert (ensured.changed, ensured.actions, ensured.before) == (False, (), ensured.after)
    assert before == (text_of(wanted.option_file), os.stat(wanted.option_file).st_mtime_ns, held(session))


def test_check_mode_says_what_would_change_and_changes_nothing(session: Session, wanted: Account) -> None:
    foretold = account.ensure(session, wanted, check=True)
    assert foretold.changed
    assert not os.path.exists(os.path.dirname(wanted.option_file))
    assert not session.rows("SELECT 1 FROM mysql.user WHERE User = 'stillpoint'")
    assert foretold == account.ensure(session, wanted)
    assert foretold.after == account.ensure(session, wanted).before


def test_too_much_is_revoked_and_too_little_granted(session: Session, wanted: Account) -> None:
    account.ensure(session, wanted)
    session.do("CREATE DATABASE IF NOT EXISTS app", "CREATE TABLE IF NOT EXISTS app.t (a INT, b INT)")
    session.do("GRANT SELECT ON *.* TO stillpoint@localhost WITH GRANT OPTION", "GRANT INSERT, SELECT (a) ON app.t TO stillpoint@localhost")
    session.do("REVOKE PROCESS ON *.* FROM stillpoint@localhost")
    password = text_of(wanted.option_file)
    ensured = account.ensure(session, wanted)
    assert set(ensured.actions) == {
        "revoke GRANT OPTION on *.*",
        "revoke SELECT on *.*",
        "revoke INSERT on `app`.`t`",
        "revoke SELECT (`a`) on `app`.`t`",
        "grant PROCESS on *.*",
    }
    assert privileges.parse_grants(held(session)) == {"*.*": frozenset(MARIADB_10_11)}
    assert text_of(wanted.option_file) == password
    session.do("GRANT ALL ON *.* TO stillpoint@localhost")
    account.ensure(session, wanted)
    assert privileges.parse_grants(held(session)) == {"*.*": frozenset(MARIADB_10_11)}


def test_the_password_is_replaced_when_the_file_does_not_log_in(session: Session, wanted: Account) -> None:
    account.ensure(session, wanted)
    before = text_of(wanted.option_file)
    session.do("ALTER USER stillpoint@localhost IDENTIFIED BY 'Another-1-password'")
    assert account.ensure(session, wanted).actions == ("set a new password", "write option file %s" % wanted.option_file)
    assert text_of(wanted.option_file) != before
    os.unlink(wanted.option_file)
    assert account.ensure(session, wanted).changed
    assert not account.ensure(session, wanted).changed


def test_a_file_that_others_can_read_is_closed_to_them(session: Session, wanted: Account) -> None:
    account.ensure(session, wanted)
    os.chmod(wanted.option_file, 0o644)
    assert account.ensure(session, wanted).actions == ("set mode 0600 on option file %s" % wanted.option_file,)
    assert stat.S_IMODE(os.stat(wanted.option_file).st_mode) == 0o600


def test_the_password_is_in_no_log_and_the_account_in_no_binary_log(admin: Login, session: Session, wanted: Account) -> None:
    before = session.rows("SHOW MASTER STATUS")
    ensured = account.ensure(session, wanted)
    (password,) = [line.split("=", 1)[1] for line in text_of(wanted.option_file).splitlines() if line.startswith("password=")]
    account.ensure(session, Account(option_file=wanted.option_file, extras=privileges.Extras(kill=True)))
    account.ensure(session, Account(option_file=wanted.option_file, present=False))
    assert session.rows("SHOW MASTER STATUS") == before
    data = os.path.join(os.path.dirname(str(admin.login_unix_socket)), "data")
    logs = text_of(os.path.join(data, "general.log")) + text_of(os.path.join(data, "slow.log"))
    assert "SHOW MASTER STATUS" in logs, "the logs are on"
    assert "IDENTIFIED BY" not in logs
    assert password not in logs + repr(ensured)


def test_somebody_elses_option_file_is_left_alone(session: Session, wanted: Account) -> None:
    os.mkdir(os.path.dirname(wanted.option_file))
    with open(wanted.option_file, "w") as file:
        file.write("[client]\nuser=root\npassword=theirs\n")
    with pytest.raises(UsageError, match="was not written by this module") as refused:
        account.ensure(session, wanted)
    assert "theirs" not in str(refused.value)
    assert not session.rows("SELECT 1 FROM mysql.user WHERE User = 'stillpoint'")
    assert not account.ensure(session, Account(option_file=wanted.option_file, present=False)).changed
    assert "theirs" in text_of(wanted.option_file)


def test_absent_drops_account_and_file_once(session: Session, wanted: Account) -> None:
    account.ensure(session, wanted)
    gone = Account(option_file=wanted.option_file, present=False)
    assert account.ensure(session, gone, check=True).changed
    assert os.path.exists(wanted.option_file)
    ensured = account.ensure(session, gone)
    assert ensured.actions == ("drop account 'stillpoint'@'localhost'", "remove option file %s" % wanted.option_file)
    assert ensured.after == ()
    assert not os.path.exists(wanted.option_file)
    assert not session.rows("SELECT 1 FROM mysql.user WHERE User = 'stillpoint'")
    assert not account.ensure(session, gone).changed


@pytest.mark.parametrize("may", ["USAGE ON *.*", "SELECT ON mysql.*", "SELECT, BINLOG ADMIN, SUPER ON *.*"])
def test_an_administrator_who_may_not_is_told_so_and_nothing_is_left(session: Session, wanted: Account, may: str) -> None:
    session.do("CREATE OR REPLACE USER helper@localhost IDENTIFIED BY 'Helper-1'", "GRANT %s TO helper@localhost" % may)
    try:
        login = Login(login_user="helper", login_password="Helper-1", login_unix_socket=session.where)
        with Session(login) as helper, pytest.raises(StillpointError, match="log in as one that holds ALL PRIVILEGES"):
            account.ensure(helper, wanted)
    finally:
        session.do("DROP USER helper@localhost")
    assert not os.path.exists(wanted.option_file)


def test_a_password_policy_that_refuses_is_named_and_no_file_is_left(session: Session, wanted: Account) -> None:
    try:
        session.do("INSTALL SONAME 'simple_password_check'")
    except ServerError:
        pytest.skip("the plugin simple_password_check is not installed")
    try:
        account.ensure(session, wanted)
        account.ensure(session, Account(option_file=wanted.option_file, present=False))
        session.do("SET GLOBAL simple_password_check_minimal_length = 100")
        with pytest.raises(StillpointError, match="password policy refuses") as refused:
            account.ensure(session, wanted)
        assert refused.value.__cause__ is None
        assert os.listdir(os.path.dirname(wanted.option_file)) == []
    finally:
        session.do("UNINSTALL SONAME 'simple_password_check'")
