# SPDX-License-Identifier: GPL-3.0-or-later
"""What belongs to a server's tables and lies elsewhere is found, and nothing else is held against it."""

from __future__ import annotations

import base64
import os
import zlib
from pathlib import Path
from typing import Any, List

import pytest
from _core.backup import point, sources
from _core.host.errors import StillpointError
from _core.mysql import connection, lock_choice, locks, outside, server
from _core.mysql.server import Server


def a_server(**facts: Any) -> Server:
    values = dict(
        flavour="mariadb", version=(10, 11, 19), version_text="10.11.19", datadir="/var/lib/mysql", uuid=None, unit=None, log_bin=True,
        log_bin_basename=None, is_replica=False, paths=(), non_transactional=(),
    )  # fmt: skip
    return Server(**{**values, **facts})


@pytest.fixture
def datadir(tmp_path: Path) -> Path:
    for name in ("data/wf/cases.ibd", "data/wf/cases.frm", "data/mysql-files/x.txt", "else/db/t.frm", "else/certs/ca.pem", "else/redo/#ib_redo1", "else/t.MYD"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path / "data"


def found(datadir: Path, *own_names: str) -> List[str]:
    return [each.path for each in outside.links_out(str(datadir), [str(datadir)], frozenset(own_names))]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mysql.sock", "/run/mysqld/mysqld.sock"),  # leads nowhere while the server is stopped
        ("ca.pem", "../else/certs/ca.pem"),
        ("slow.log", "../else/slow.log"),
        ("certs", "../else/certs"),
        ("mysql-files/more.txt", "../../else/certs/ca.pem"),
        ("wf/readme.txt", "../../else/certs/ca.pem"),
        ("copy.ibd", "wf/cases.ibd"),
    ],
)
def test_a_link_that_is_no_table_tablespace_or_database_is_a_link_like_any_other(datadir: Path, name: str, target: str) -> None:
    (datadir / name).symlink_to(target)
    assert found(datadir) == []


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("db", "../else/db"),
        ("#innodb_redo", "../else/redo"),
        ("ibdata1", "../else/ibdata1"),
        ("ib_logfile0", "../else/ib_logfile0"),
        ("undo001", "../else/undo001"),
        ("ts.ibd", "../else/ts.ibd"),
        ("aria_log_control", "../else/aria_log_control"),
        ("system-1", "../else/system-1"),
        ("wf/t.MYD", "../../else/t.MYD"),
        ("wf/cases#P#p0.ibd", "../../else/p0.ibd"),
        ("wf/inner", "../../else/certs"),
    ],
)
def test_a_table_tablespace_or_database_that_is_a_link_to_elsewhere_is_found(datadir: Path, name: str, target: str) -> None:
    (datadir / name).symlink_to(target)
    assert found(datadir, "ibdata1", "system-1") == [os.path.realpath(datadir / name)]


def test_a_table_that_lies_elsewhere_is_named(datadir: Path) -> None:
    assert found(datadir) == []
    (datadir / "wf" / "big.isl").write_text("/elsewhere/big.ibd")
    (datadir / "ts.isl").write_text("/elsewhere/ts.ibd")
    assert found(datadir) == ["/elsewhere/ts.ibd", "/elsewhere/big.ibd"] or found(datadir) == ["/elsewhere/big.ibd", "/elsewhere/ts.ibd"]
    first = next(outside.links_out(str(datadir), [str(datadir)]))
    assert "leads out of the data directory to /elsewhere/" in first.sentence
    assert found(datadir) and not first.plain


def test_a_raw_device_is_no_directory_to_copy() -> None:
    variables = {"innodb_data_file_path": "ibdata1:12M;/dev/sdb1:3Graw"}
    assert [each.path for each in server._raw_devices(variables)] == ["/dev/sdb1"]
    assert server.elsewhere(variables, "/var/lib/mysql") == []


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"rocksdb_datadir": "./#rocksdb", "rocksdb_wal_dir": ""}, []),
        ({"rocksdb_datadir": "/srv/rocks", "rocksdb_wal_dir": "/srv/wal"}, [("rocksdb", "/srv/rocks"), ("rocksdb_wal", "/srv/wal")]),
        ({"tokudb_data_dir": "", "tokudb_log_dir": "/srv/log"}, [("tokudb_log", "/srv/log")]),
        ({"mroonga_database_path_prefix": "/srv/mrn/db-"}, [("mroonga", "/srv/mrn")]),
    ],
)
def test_directories_of_other_engines_are_copied_too(variables: dict, expected: list) -> None:
    assert [(part.role, part.path) for part in server.elsewhere(variables, "/var/lib/mysql")] == expected


@pytest.mark.parametrize("name", [".rocksdb", "#rocksdb"])
def test_rocksdb_needs_a_lock_that_stops_commits(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    assert server.commits_must_stop({}, str(tmp_path), [server.ServerPath("datadir", str(tmp_path))]) == "RocksDB has tables"


def test_mysqls_tables_on_another_server_are_known_by_their_sdi(datadir: Path) -> None:
    (datadir / "wf" / "far_321.sdi").write_text('[{"type": 1, "object": {"dd_object": {"name": "far", "engine": "FEDERATED"}}}]')
    (datadir / "wf" / "log_322.sdi").write_text('[{"type": 1, "object": {"dd_object": {"name": "log", "engine": "CSV"}}}]')
    files, far = outside.tables_elsewhere(str(datadir), [str(datadir)], frozenset(("FEDERATED", "INNODB")))
    assert (files, far) == ([], ["the rows of wf.far lie on another server, and are not in the backup"])


# Definitions (.frm) as MariaDB 10.11 has written them, compressed: of CONNECT a CSV table with FILE_NAME=/srv/x.csv, in.csv and ../../out.csv, one of
# TABLE_TYPE=MYSQL, a partitioned one with /srv/p.txt, a DIR; of SPIDER; of MEMORY.
DEFINITIONS = {
    "far_file": (
        "eNr7x8hlaMPQwMDIcJuRgUGAgZUBDpg4GDgYIAIcMDEBIP7fxcggCFclMOGH1dI3HwU/7vrD9AfIZ2zQ4ApxdPJxjQ+JDHBlZnAODuN08wRy/Rx9Xbka9IuLyvQr9JKLyx"
        "gYlsEsYvgPNw7KYmdw9vfzc3UOgXBNGU0ZGUY0AHmfmwEUHSxwsQAGMYQCbmAwMkg7AFnMwNj6n/ifAQB3FCC2"
    ),
    "near_file": (
        "eNr7x8hlaMFQw8DIcJ2RgUGAgZUBDpg4GDgYIAIcMDEBIP7fxcggCFclMOGPzqQ3HwU/7vrD9AfIZ2xQ4QpxdPJxjQ+JDHBlZnAODuN08wRy/Rx9XdkaMvP0kovLGBgWwS"
        "xh+A83CspiZ3D29/NzdQ6BcE0ZTRkZRjQAeZ+bARQVLHCxAAYxhAJuYDAySDsAWczAmPqf+J8BAOdcHyc="
    ),
    "up_file": (
        "eNr7x8hlaM/QzMDIcJ+RgUGAgZUBDpg4GDgYIAIcMDEBIP7fxcggBFclMJFFLPHNR8GPu/4w/QHyGRu0uUIcnXxc40MiA1yZGZyDwzjdPIFcP0dfV94GPT19IMovLdFLLi"
        "5jYFgFs4vhP9xEMIuRoYKdwdnfz8/VOQQibMpoysgwogHI+9wMoChhgYsFMIghFHADw5FB2gHIYgbG2P/E/wwAtdYgJg=="
    ),
    "remote": (
        "eNr7x8hlqMGQw8DI8IiRgUGAgZUBDpg4GDgYIAIcMDEBIP7fxcigA1clMJE9ru/NR8GPu/4w/QHyGRtEuEIcnXxc40MiA1xZGXwjgwN9GBjWwgxl+A/XCmZJM+RWFhfmWO"
        "nrF+Xnlzjk5Ccn5mTkF5fop+jn5rIzOPv7+bk6h0A0mDKaMjKMaADyPjcDKFZY4GIBDGIM8GDhBoYwg3QDkMUMjLT/if8ZAItDJCE="
    ),
    "parted": (
        "eNr7x8gl4srQycDIkM/EwCDAwMoAB0wcDBwMEAEOmJgAEP/vYmSYA+YZgkQmciakvPko+HHXH6Y/QD4jI7uzv5+fq3NIgwZXiKOTj2t8SGSAKzODm2cEp5snkOvn6OvK1a"
        "BfXFSmX6BXUlHCwGDFCLWR4T/cdiiLk6EgsagksyQzP68TyFUIcAwK8Qzx9PdTcIpUCHL0c3dV0EhITNDk0kDIJBQYJCiEOfqEugYr+LgGByuEeDj6KWgYGmgquPq5e/q5"
        "KtgqQN2ow6WArM8Qmz4jLPo0GRhMGU0ZGUY0AHmfmwGURFjgYgEMYggF3MAYZZB2ALKYgSnof+J/BgBVREdZ"
    ),
    "listing": (
        "eNr7x8hl6MLQwcDI8ISJgUGAgYmRAQaYOBg4GRhYQUwOmJgAEP/vYmQQhKsSWMq+U+zNR8GPu/4w/QHyGRsMuEIcnXxc40MiA1yZGVw8gzjdPIFcP0dfV64G/eKiMn0tve"
        "TiMgYWNx9Hd0YGI4bVUDuZGP4zjAIEYGdw9vfzc3UOgXAtGS0ZR3aAMEIJJkZ4gmQIYBBDVgFS4gDE/EAV/9PyEnNT/zMAAGDoIXQ="
    ),
    "spider": (
        "eNr7x8hlJMQQxsDIsIGRgUGAgZUBDpg4GDgYIAIcMDEBIP7fxQimoSIBk1Qa33wW/LjrD9MfIJ+xGqad4T9cEZTFxhAc4OniGgThmTKaMjIQDVTKixILClKLFJRyK4sLc5"
        "R0FIqLyhSUisuArJLEpJxUBaVKJYahBUDe52YAhTELXCyAQYwBHizcwFBkkG4AspiBUfA/8T8DAF77H4c="
    ),
    "memory": (
        "eNr7x8jFJsQQxsDIsIGRgUGAgZUBDpg4GDgYIAIcMDEBIP7fxQimoSITxdR933wU/LjrD9MfIJ+xGqad4T9cEZTFxuDr6usfFAnhmTKaMjKMaADyPjcDKIxZ4GIBDGIM8G"
        "DhBoYig3QDkMUMjIL/if8ZACFvExs="
    ),
}


@pytest.fixture
def defined(datadir: Path) -> Path:
    for name, content in DEFINITIONS.items():
        (datadir / "wf" / (name + ".frm")).write_bytes(zlib.decompress(base64.b64decode(content)))
    (datadir / "wf" / "view.frm").write_text("TYPE=VIEW\nquery=select 'CONNECT'\n")
    (datadir / "wf" / "torn.frm").write_bytes(b"\xfe\x01\x0a\x31\xff\xff" + b"\x07\x00CONNECT".rjust(80, b"\x80"))
    return datadir


def test_tables_whose_rows_lie_elsewhere_are_known_by_their_definitions(defined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert outside.tables_elsewhere(str(defined), [str(defined)], frozenset(("CONNECT",)))[0] == []  # no file, no rows
    monkeypatch.setattr(outside, "_is_there", lambda path: True)
    files, far = outside.tables_elsewhere(str(defined), [str(defined)], frozenset(("CONNECT", "SPIDER", "INNODB")))
    assert [(each.path, each.plain) for each in files] == [("/srv/x.csv", True), ("/srv/p.txt", True), (str(defined.parent / "out.csv"), True)]
    assert files[0].sentence.startswith("the table wf.far_file (CONNECT) keeps its rows in /srv/x.csv, which the backup would lack: name that among the job")
    assert far == [
        "the rows of wf.remote lie elsewhere (CONNECT, MYSQL), and are not in the backup",
        "the rows of wf.spider lie on another server, and are not in the backup",
    ]
    (defined / "wf" / "in.csv").symlink_to("/srv/y.csv")
    assert "/srv/y.csv" in [each.path for each in outside.tables_elsewhere(str(defined), [str(defined)], frozenset(("CONNECT",)))[0]]


def test_definitions_are_not_read_where_no_such_engine_is_loaded(defined: Path) -> None:
    assert outside.tables_elsewhere(str(defined), [str(defined)], frozenset(("INNODB", "ARIA"))) == ([], [])


def test_a_file_of_a_table_may_be_among_the_jobs_files_and_a_tablespace_may_not(tmp_path: Path) -> None:
    plain, tablespace = outside.Outside("the file", str(tmp_path / "x.csv"), plain=True), outside.Outside("the tablespace", str(tmp_path / "t.ibd"))
    sources.refuse_outside(a_server(outside=(plain,)), [str(tmp_path)])
    for left, files in ((plain, ["/opt/processmaker"]), (tablespace, [str(tmp_path)])):
        with pytest.raises(StillpointError, match=left.sentence):
            sources.refuse_outside(a_server(outside=(left,)), files)


def test_rows_that_are_in_no_backup_and_a_lock_that_is_not_enough_are_doubted_in_jobs_and_modules_alike() -> None:
    asked = a_server(remote=("the rows of wf.spider lie on another server",), non_transactional=(server.Table("wf", "audit", "MyISAM"),))
    quiesce = point.Quiesce(connection.Login(), asked, lock_choice.choose("none", asked), locks.LockOptions())
    first, second = sources.doubts(quiesce)
    assert first == "the rows of wf.spider lie on another server"
    assert "the lock none, which was asked for, is not enough: wf.audit is MyISAM" in second
