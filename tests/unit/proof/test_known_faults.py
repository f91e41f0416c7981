# SPDX-License-Identifier: GPL-3.0-or-later
"""What the production server has too is no fault of its backup: a real server whose data directory is the root of an ext4 volume, has
directories and tables in it that are broken for years, a transaction that an application has prepared, and rows compressed by a plugin."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Dict, Iterator, List, Tuple

import pytest
from _core.mysql import messages
from _core.mysql.connection import Login, Session
from _core.proof import known_faults
from _core.proof.prove import Proof
from _core.proof.tables import Complaint
from proving import FLUSH, claim, made_copies, proven, settings_of, taken  # noqa: F401
from real_server import PLUGINS, RealServer, needed, real_server

pytest.importorskip("pymysql")
pytestmark = [pytest.mark.usefixtures("own_run_directory"), *needed]

_DIRECTORIES = ("lost+found", "mysql-files", "shop.bak", "certs")
_BROKEN = ("shop.aria", "shop.crashed", "shop.merged", "shop.orphan", "shop.t2")
_PROVIDER = ["--plugin-load-add=provider_lz4"] if PLUGINS else []


def rows(table: str) -> str:
    return "INSERT INTO shop.%s SELECT seq, REPEAT('x', 50) FROM shop.seq_1_to_1000" % table


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server(*_PROVIDER, volume=True) as server:
        one = "(a INT PRIMARY KEY, b VARCHAR(100))"
        server.do(
            "CREATE DATABASE shop",
            "CREATE TABLE shop.t1 %s ENGINE=InnoDB" % one,
            "CREATE TABLE shop.t2 LIKE shop.t1",
            "CREATE TABLE shop.torn LIKE shop.t1",
            *["CREATE TABLE shop.%s %s ENGINE=%s" % (name, one, engine) for name, engine in _TABLES.items()],
            *[rows(name) for name in ("t1", *_TABLES)],
            "CREATE TABLE shop.child %s ENGINE=MyISAM" % one,
            "CREATE TABLE shop.gone %s ENGINE=MyISAM" % one,
            "CREATE TABLE shop.merged %s ENGINE=MERGE UNION=(shop.gone)" % one,
            "CREATE TABLE shop.whole %s ENGINE=MERGE UNION=(shop.child)" % one,
            "DROP TABLE shop.gone",
            # as an upgrade without mariadb-upgrade leaves it
            "ALTER TABLE mysql.column_stats MODIFY db_name varchar(10) NOT NULL",
            "CREATE USER backup@localhost IDENTIFIED BY 'word'",
            "GRANT RELOAD, PROCESS, BINLOG MONITOR, SLAVE MONITOR ON *.* TO backup@localhost",
        )
        if PLUGINS:
            server.do(
                "SET GLOBAL innodb_compression_algorithm = lz4",
                "CREATE TABLE shop.packed (a INT PRIMARY KEY, t LONGTEXT) ENGINE=InnoDB PAGE_COMPRESSED=1",
                "INSERT INTO shop.packed SELECT seq, REPEAT('lorem ', 4000) FROM shop.seq_1_to_50",
            )
        server.stop()
        data = Path(server.datadir)
        for name in _DIRECTORIES[1:]:
            (data / name).mkdir()
        for name in ("t1.frm", "t1.ibd"):
            shutil.copy(data / "shop" / name, data / "shop.bak")
        (data / "shop" / "t2.ibd").unlink()
        shutil.copy(data / "shop" / "t1.frm", data / "shop" / "orphan.frm")
        os.truncate(data / "shop" / "crashed.MYD", 20000)
        os.truncate(data / "shop" / "aria.MAD", 8192)
        subprocess.run(["chown", "-R", "--reference=%s" % (data / "ibdata1"), data / "shop", *(data / name for name in _DIRECTORIES[1:])], check=True)
        server.start(*_PROVIDER)
        yield server


_TABLES = {"crashed": "MyISAM", "aria": "Aria", "healthy": "MyISAM"}


def prepare(server: RealServer, xid: str, row: int) -> None:
    with Session(server.login) as session:
        session.do("XA START %s" % xid, "INSERT INTO shop.t1 VALUES (%d, 'xa')" % row, "XA END %s" % xid, "XA PREPARE %s" % xid)


def names(found: Proof, kind: str) -> List[str]:
    return sorted(fault.name for fault in found.known if fault.kind == kind)


def test_what_production_has_too_is_told_and_the_backup_is_good(server: RealServer, copies: List[str]) -> None:
    copy, coordinates = taken(server, copies, FLUSH)
    for login in (server.login, replace(server.login, login_user="backup", login_password="word")):
        found = proven(server, copy, claim(server, coordinates, tables="all", login=login))
        assert found.reason == ""
        assert (found.as_dict()["ok"], found.tables["complaints"]) == (True, [])
        assert names(found, known_faults.DIRECTORY) == ["lost+found", "mysql-files", "shop.bak"]
        assert names(found, known_faults.TABLE) == sorted(["mysql.column_stats", *_BROKEN])
        evidence = {fault.name: fault.sentence() for fault in found.known}
        asked = login.login_user == "root"
        assert all(("as it says itself" in evidence[name]) == asked for name in ("shop.orphan", "shop.t2")), evidence
        assert "production has the same fault, as its files are the same, byte for byte: shop.crashed: " in evidence["shop.crashed"]
        assert "no name of a database" in evidence["lost+found"]
        said = known_faults.warnings(found.known)
        assert (len(said), said[-1][:9]) == (6, "4 more kn")


def test_what_the_backup_alone_has_is_held_against_it(server: RealServer, copies: List[str]) -> None:
    copy, coordinates = taken(server, copies, FLUSH)
    shop = Path(copy, "shop")
    (shop / "t1.ibd").unlink()
    os.truncate(shop / "healthy.MYD", 20000)
    os.truncate(shop / "crashed.MYD", 10000)  # which was broken, and is more so
    (shop / "child.MYI").unlink()
    shutil.copy(shop / "t1.frm", shop / "more.frm")
    (shop / "torn.frm").write_bytes(b"torn")
    subprocess.run(["chown", "-R", "--reference=%s/ibdata1" % copy, str(shop)], check=True)
    for login in (server.login, replace(server.login, login_user="backup", login_password="word")):
        found = proven(server, copy, claim(server, coordinates, tables="all", login=login))
        assert found.as_dict()["ok"] is False
        complained = [text.partition(":")[0] for text in found.tables["complaints"]]
        assert complained == ["shop.child", "shop.crashed", "shop.healthy", "shop.more", "shop.t1", "shop.torn", "shop.whole"]


def test_a_job_accepts_faults_where_the_server_can_not_be_asked(server: RealServer, copies: List[str]) -> None:
    copy, coordinates = taken(server, copies, FLUSH)
    alone = proven(server, copy, claim(server, coordinates, tables="all"))
    assert (alone.as_dict()["ok"], "name the table in verify.accept" in alone.reason) == (False, True)
    assert alone.tables["complaints_total"] == len(_BROKEN)
    for names_ in ["shop.*", "mysql.column_stats"], [*_BROKEN, "mysql.*"]:
        found = proven(server, copy, claim(server, coordinates, tables="all", accept=names_))
        assert found.reason == ""
        assert "the job accepts this fault (verify.accept): shop.t2: " in {fault.sentence()[:60] for fault in found.known}.__str__()
    recorded = known_faults.recorded_tables(proven(server, copy, claim(server, coordinates, tables="all", login=server.login)).as_dict())
    later = proven(server, copy, claim(server, coordinates, tables="all", recorded=recorded, later=True))
    assert (later.reason, names(later, known_faults.TABLE)) == ("", sorted(["mysql.column_stats", *_BROKEN]))


def test_a_prepared_transaction_of_an_application_is_in_the_backup_and_can_be_committed_after_a_restore(server: RealServer, copies: List[str]) -> None:
    xids = ["'jta-1'", "X'00ff8080',X'c3',7"]
    for number, xid in enumerate(xids):
        prepare(server, xid, 5000 + number)
    copy, coordinates = taken(server, copies, FLUSH)
    found = proven(server, copy, claim(server, coordinates, tables="none", login=server.login))
    assert (found.reason, found.prepared) == ("", 0)
    assert names(found, known_faults.TRANSACTION) == sorted(xids)
    prepared = copy + "-2"
    subprocess.run(["cp", "-a", copy, prepared], check=True)
    copies.append(prepared)
    for path, options in ((copy, []), (prepared, ["--skip-log-bin"])):
        with restored(server, path, *options) as other, Session(other.login) as session:
            assert len(session.rows("XA RECOVER")) == 2
            session.do(*["XA COMMIT %s" % xid for xid in xids])
            assert session.value("SELECT COUNT(*) FROM shop.t1 WHERE b = 'xa'") == 2
    # what the log says to be committed is prepared in the copy: it lacks a transaction
    copy, _before = taken(server, copies, FLUSH)
    server.do(*["XA COMMIT %s" % xid for xid in xids])
    later, coordinates = taken(server, copies, FLUSH)
    assert "between them is a transaction" in proven(server, copy, claim(server, coordinates, login=server.login)).reason
    assert proven(server, later, claim(server, coordinates, login=server.login)).reason == ""
    # what the log says to be prepared is not
    prepare(server, "'jta-2'", 6000)
    _copy, coordinates = taken(server, copies, FLUSH)
    server.do("XA ROLLBACK 'jta-2'")
    assert "between them is a transaction" in proven(server, later, claim(server, coordinates, login=server.login)).reason


class restored:  # pylint: disable=invalid-name
    """A server on a copy, as a restore leaves it."""

    def __init__(self, server: RealServer, copy: str, *options: str) -> None:
        self._top = copy + "-restored"
        os.mkdir(self._top)
        os.mkdir(self._top + "/binlog")
        os.rename(copy, self._top + "/data")
        os.symlink(server.plugins, self._top + "/plugins")
        shutil.chown(self._top, "nobody")
        shutil.chown(self._top + "/binlog", "nobody")
        self._back = copy
        self._server = RealServer(self._top, Login(login_user="root", login_unix_socket=self._top + "/s"))
        self._options = options

    def __enter__(self) -> RealServer:
        self._server.start(*_PROVIDER, *self._options)
        return self._server

    def __exit__(self, *_exc: object) -> None:
        self._server.stop(crash=True)
        os.rename(self._top + "/data", self._back)
        shutil.rmtree(self._top)


def test_a_fault_is_told_again_when_only_changed_tables_are_checked(server: RealServer, copies: List[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from _core.proof import prove

    first, coordinates = taken(server, copies, FLUSH)
    known = proven(server, first, claim(server, coordinates, tables="all", login=server.login)).as_dict()
    second, coordinates = taken(server, copies, FLUSH)
    monkeypatch.setattr(prove, "_files_before", lambda generation: prove.checking.files_of(server.datadir))
    before = type("Before", (), {"name": "2026-11-22T02-00-05Z", "proof": known, "path": first})
    found = proven(server, second, claim(server, coordinates, tables="changed", before=before, login=server.login))
    assert found.reason == ""
    assert found.tables["unchanged"] > 20
    assert set(_BROKEN) <= set(names(found, known_faults.TABLE))


@pytest.mark.skipif(not PLUGINS, reason="needs the plugin provider_lz4, which tests/lab/setup brings")
def test_the_scratch_server_has_the_plugins_that_tables_and_accounts_need(server: RealServer, copies: List[str]) -> None:
    wanted = {"ARCHIVE": "ha_archive", "ed25519": "auth_ed25519", "MYSQL_JSON": "type_mysql_json"}
    unwanted = {"FEDERATED": "ha_federatedx", "SERVER_AUDIT": "server_audit", "simple_password_check": "simple_password_check"}
    for library in (*wanted.values(), *unwanted.values()):
        server.do("INSTALL SONAME '%s'" % library)
    try:
        described = settings_of(server)
    finally:
        for library in (*wanted.values(), *unwanted.values()):
            server.do("UNINSTALL SONAME '%s'" % library)
    loaded = {plugin.partition("=")[0] for plugin in described.plugins}
    assert {*wanted, "provider_lz4"} <= loaded
    assert not loaded & set(unwanted)
    copy, coordinates = taken(server, copies, FLUSH)
    what = claim(server, coordinates, tables="all", login=server.login)
    assert proven(server, copy, replace(what, settings=described)).reason == ""
    without = replace(described, plugins=tuple(plugin.replace("lz4.so", "gone.so") for plugin in described.plugins))
    found = proven(server, copy, replace(what, settings=without))
    assert ("provider plugin is not loaded" in found.reason, found.as_dict()["ok"]) == (True, None), found.reason


def test_a_line_of_an_error_log_names_a_table_or_nothing() -> None:
    lines: Dict[str, Tuple[str, ...]] = {
        "shop.t2": (
            "[ERROR] InnoDB: Operating system error number 2 in a file operation.",
            "[ERROR] InnoDB: Error number 2 means 'No such file or directory'",
            "[ERROR] InnoDB: Cannot open datafile for read-only: './shop/t2.ibd' OS error: 71",
            "[ERROR] InnoDB: Could not find a valid tablespace file for shop/t2. Please refer to https://mariadb.com/",
            "[ERROR] InnoDB: Index `PRIMARY` of table `shop`.`t2` is corrupted",
            "[ERROR] mariadbd: Table './shop/t2' is marked as crashed and should be repaired",
            "[ERROR] shop.t2: Size of datafile is:     20000         Should be: 60000",
        ),
        "mysql.event": ("[ERROR] Incorrect definition of table mysql.event: expected column 'x' at position 3",),
        "mysql.proc": ("[ERROR] Column count of mysql.proc is wrong. Expected 21, found 20.",),
        "a-b.c d": ("[ERROR] InnoDB: File './a@002db/c@0020d.ibd' not found", "[ERROR] InnoDB: failed to read './a@002db/c@0020d#P#p0.ibd'"),
        "": ("[ERROR] InnoDB: Operating system error number 5 in a file operation.", "[ERROR] Aborting"),
    }
    for table, said in lines.items():
        assert messages.tables_of(said) == [table or None] * len(said)
    assert messages.no_name("2026-11-30 18:46:34 0 [ERROR] Invalid (old?) table or database name 'lost+found'") == "lost+found"


def test_only_what_the_server_has_said_since_its_start_counts(server: RealServer) -> None:
    with open(server.top + "/error.log", "a", encoding="utf-8") as file:
        file.write("2026-11-30 18:46:34 7 [ERROR] InnoDB: a fault of today\n")
    text = Path(server.top, "error.log").read_text(encoding="utf-8")
    Path(server.top, "error.log").write_text("2026-01-01  0:00:00 0 [ERROR] InnoDB: a fault of old\n" + text, encoding="utf-8")
    with Session(server.login) as session:
        said = messages.said_by(session)
    assert "[ERROR] InnoDB: a fault of today" in said
    assert "[ERROR] InnoDB: a fault of old" not in said


def test_a_message_that_production_has_logged_too_is_none_against_the_backup(server: RealServer) -> None:
    line = "[ERROR] InnoDB: a fault of today"
    with open(server.top + "/error.log", "a", encoding="utf-8") as file:
        file.write("2026-11-30 18:46:34 7 %s\n" % line)
    judge = known_faults.Judge(known_faults.Production(server.login, server.datadir, "/nowhere"), plugins=("ed25519=auth_ed25519.so",))
    others = ["[ERROR] InnoDB: a fault of tomorrow", "[ERROR] Plugin 'ARCHIVE' init function returned error."]
    extra = "[ERROR] Plugin 'ed25519' init function returned error."
    assert judge.against([line, *others, extra, line], []) == others
    assert [fault.kind for fault in judge.known] == [known_faults.MESSAGE]
    assert not judge.table(Complaint(("shop", "t1"), ("torn",)))
