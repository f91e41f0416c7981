# SPDX-License-Identifier: GPL-3.0-or-later
"""Binary logs of MySQL and MariaDB as the proof reads them, and what it makes of them. The logs are written here, byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import pytest
from _core.binlog import between
from _core.binlog.format import MAGIC
from _core.binlog.place import Place
from _core.binlog.place import logs as logs_in
from _core.mysql.coordinates import Coordinates
from _core.proof import position as standing
from _core.proof import tables
from _core.proof.position import SERVER, SNAPSHOT, Logs, Stands

FORMAT, QUERY, XID, ROWS, ANONYMOUS, GTID, MARIADB_GTID, ENCRYPTION = 15, 2, 16, 23, 34, 33, 162, 164
UUID = "8a947cb5-e6b4-11f1-8ffa-02fc00000001"


def event(kind: int, body: bytes = b"x" * 20) -> bytes:
    return struct.pack("<IBIIIH", 0, kind, 1, 19 + len(body) + 4, 0, 0) + body + b"\1\2\3\4"  # a checksum, which nobody compares here


def mysql_gtid(number: int) -> bytes:
    return event(GTID, struct.pack("<B16sQ", 0, bytes.fromhex(UUID.replace("-", "")), number))


def mariadb_gtid(number: int, flags: int) -> bytes:
    return event(MARIADB_GTID, struct.pack("<QIB", number, 0, flags) + bytes(6))


def query(text: bytes) -> bytes:
    return event(QUERY, b"\0" * 14 + text)  # neither variables nor a schema


def log(folder: Path, *events: bytes, number: int = 1) -> List[int]:
    """Write a log and return where each event begins, and where the last one ends."""
    places = [4]
    for each in events:
        places.append(places[-1] + len(each))
    (folder / ("bin.%06d" % number)).write_bytes(MAGIC + b"".join(events))
    return places


BEGINNING = event(FORMAT, bytes(57) + b"\1")  # says that each event ends with a checksum
INSERT = (query(b"BEGIN"), event(ROWS))


def read(folder: Path, since: int, until: int) -> between.Between:
    return between.read(str(folder), "bin", Place("bin.000001", since), Place("bin.000001", until))


def test_mysqls_transactions_are_told_from_statements_on_other_engines(tmp_path: Path) -> None:
    at = log(tmp_path, BEGINNING, mysql_gtid(1), *INSERT, event(XID), mysql_gtid(2), *INSERT, query(b"COMMIT"))
    found = read(tmp_path, at[1], at[-1])
    assert [(group.gtid, group.transactional) for group in found.groups] == [(UUID + ":1", True), (UUID + ":2", False)]
    assert found.events == 8
    assert read(tmp_path, at[5], at[-1]).transactional == []


def test_mariadbs_groups_say_what_they_are_and_ddl_is_no_transaction(tmp_path: Path) -> None:
    at = log(
        tmp_path,
        BEGINNING,
        *(mariadb_gtid(1, 4), event(ROWS), event(XID)),
        *(mariadb_gtid(2, 0), event(ROWS), query(b"COMMIT")),
        *(mariadb_gtid(3, 1 | 4 | 32), query(b"CREATE TABLE t (i INT)")),
    )
    assert [group.transactional for group in read(tmp_path, at[1], at[-1]).groups] == [True, False, False]


def test_a_transaction_without_a_mark_where_it_begins_counts_too(tmp_path: Path) -> None:
    at = log(tmp_path, BEGINNING, *INSERT, event(XID))
    assert len(read(tmp_path, at[1], at[-1]).transactional) == 1


def test_several_logs_are_read_through_and_a_missing_one_is_named(tmp_path: Path) -> None:
    log(tmp_path, BEGINNING, mysql_gtid(1), *INSERT, event(XID), number=9)
    log(tmp_path, BEGINNING, number=10)
    end = log(tmp_path, BEGINNING, mysql_gtid(2), *INSERT, event(XID), number=11)[-1]
    found = between.read(str(tmp_path), "bin", Place("bin.000009", 4), Place("bin.000011", end))
    assert len(found.transactional) == 2
    with pytest.raises(between.Unreadable, match=r"bin\.000008 to bin\.000011 are not all in"):
        between.read(str(tmp_path), "bin", Place("bin.000008", 4), Place("bin.000011", end))


def test_what_is_encrypted_or_torn_is_not_taken_for_nothing(tmp_path: Path) -> None:
    at = log(tmp_path, BEGINNING, event(ENCRYPTION), event(77), event(78))
    with pytest.raises(between.Unreadable, match="encrypted"):
        read(tmp_path, at[2], at[-1])
    at = log(tmp_path, BEGINNING, event(ROWS))
    with pytest.raises(between.Unreadable, match="no whole event at %d" % at[1]):
        read(tmp_path, at[1], at[-1] - 1)
    (tmp_path / "bin.000001").write_bytes(b"\xfdbin" + bytes(600))
    with pytest.raises(between.Unreadable, match="encrypted"):
        read(tmp_path, 4, 100)


@pytest.mark.parametrize(
    ("events", "whole"),
    [
        ((mysql_gtid(1), *INSERT, event(XID)), 5),
        ((mysql_gtid(1), *INSERT, query(b"COMMIT")), 5),
        ((mysql_gtid(1), query(b"CREATE TABLE t (i INT)")), 3),
        ((mysql_gtid(1), *INSERT), 1),
        ((event(ANONYMOUS), *INSERT, query(b"ROLLBACK")), 5),
        ((mariadb_gtid(1, 4), event(ROWS), query(b"INSERT INTO t VALUES (1)")), 1),
        ((mariadb_gtid(1, 4), event(ROWS), event(XID)), 4),
        ((mariadb_gtid(1, 1), query(b"DROP TABLE t")), 3),
        ((mariadb_gtid(1, 0), query(b"INSERT INTO t VALUES (1)"), query(b"COMMIT")), 4),
        ((mysql_gtid(1), *INSERT, event(XID), b"torn"), 5),
    ],
)
def test_a_log_is_whole_up_to_the_end_of_its_last_whole_transaction(tmp_path: Path, events: Tuple[bytes, ...], whole: int) -> None:
    at = log(tmp_path, BEGINNING, *events)
    assert between.complete(str(tmp_path / "bin.000001")) == at[whole]


def test_a_set_of_gtids_is_taken_apart_unless_it_is_too_large_or_tagged() -> None:
    assert standing.expanded("a:1-3:7,b:2") == ["a:1", "a:2", "a:3", "a:7", "b:2"]
    assert standing.expanded("a:1-3000000") is None
    assert standing.expanded("a:tag:1") is None


class Answers:
    """A session with a server that subtracts sets of GTIDs."""

    def __init__(self, missing: str = "", extra: str = "") -> None:
        self._row = {"missing": missing, "extra": extra}

    def rows(self, _statement: str, _arguments: Any = ()) -> List[Dict[str, str]]:
        return [self._row]


def logs(folder: Path, whose: str = SNAPSHOT, end: Optional[Place] = None) -> Logs:
    return Logs(str(folder), "bin", whose, logs_in(str(folder), "bin"), end)


def compared(answers: Answers, until: int, stands: Stands, found: Optional[Logs]) -> Dict[str, Any]:
    expected = Coordinates("bin.000001", until, UUID + ":1-2")
    return standing.compare(answers, expected, stands, found)  # type: ignore[arg-type]


GTIDS = Stands(None, None, UUID + ":1-2")


def test_on_mysql_gtids_and_the_end_of_the_log_both_have_to_be_right(tmp_path: Path) -> None:
    at = log(tmp_path, BEGINNING, mysql_gtid(1), *INSERT, event(XID), mysql_gtid(2), *INSERT, query(b"COMMIT"))
    right = compared(Answers(), at[-1], GTIDS, logs(tmp_path))
    assert (right["fault"], right["compared"]) == ("", "executed GTIDs")
    assert right["log_end"] == {"file": "bin.000001", "position": at[-1]}
    assert "ends at bin.000001" in compared(Answers(), at[5], GTIDS, logs(tmp_path))["fault"]
    assert "not among the recorded: x:9" in compared(Answers(extra="x:9"), at[-1], GTIDS, logs(tmp_path))["fault"]
    assert compared(Answers(missing=UUID + ":2"), at[-1], GTIDS, logs(tmp_path))["fault"] == ""
    assert "without the transaction %s:1" % UUID in compared(Answers(missing=UUID + ":1-2"), at[-1], GTIDS, logs(tmp_path))["fault"]
    unexplained = compared(Answers(missing=UUID + ":2"), at[-1], GTIDS, None)
    assert "does not explain" in unexplained["open"]
    assert unexplained["fault"] == ""


def test_without_gtids_the_end_of_the_log_is_the_evidence_and_without_that_it_is_said(tmp_path: Path) -> None:
    at = log(tmp_path, BEGINNING)
    nothing = Stands(None, None, None)
    assert compared(Answers(), at[-1], nothing, logs(tmp_path))["compared"] == "the end of the binary log"
    elsewhere = compared(Answers(), at[-1], nothing, logs(tmp_path, SERVER))
    assert elsewhere["compared"] is None
    assert "could not be compared" in elsewhere["note"]


def test_behind_encrypted_logs_their_end_decides(tmp_path: Path) -> None:
    at = log(tmp_path, BEGINNING, event(ENCRYPTION), event(77), event(78))
    behind = Stands("bin.000001", at[2], None)
    assert compared(Answers(), at[-1], behind, logs(tmp_path))["fault"] == ""
    assert "ends at" in compared(Answers(), at[3], behind, logs(tmp_path))["fault"]
    assert "can't be read" in compared(Answers(), at[-1], behind, logs(tmp_path, SERVER))["open"]


def test_a_place_in_logs_that_were_reset_or_renamed_since_is_compared_with_nothing(tmp_path: Path) -> None:
    at = log(tmp_path, BEGINNING, mariadb_gtid(1, 4), event(ROWS), event(XID), number=2)
    until = Coordinates("bin.000002", at[-1])

    def compare(file: str, position: int, whose: str = SERVER) -> Dict[str, Any]:
        return standing.compare(Answers(), until, Stands(file, position, None), logs(tmp_path, whose))  # type: ignore[arg-type]

    for file, place in ("bin.000002", at[-1] + 4000), ("bin.000002", at[1] + 7), ("bin.000009", 400), ("old.000001", 400):
        reset = compare(file, place)
        assert (reset["fault"], reset["open"], reset["compared"]) == ("", "", None)
        assert "is at %s:%d, in a log that was reset or renamed since" % (file, place) in reset["note"]
        assert compare(file, place, SNAPSHOT)["compared"] == "the end of the binary log"
    until = Coordinates("bin.000002", at[1])
    assert "recorded is" in compare("bin.000002", at[-1])["fault"]
    assert "ends at" in compare("bin.000009", 400, SNAPSHOT)["fault"]
    until = Coordinates("bin.000002", at[-1])
    assert "between them is a transaction" in compare("bin.000001", 400)["fault"], "that log was purged"
    assert standing.given(Stands("bin.000009", 400, "0-1-7"), logs(tmp_path, SERVER)).source == "proof: gtid_executed"  # type: ignore[union-attr]


def test_coordinates_are_given_by_the_best_that_there_is(tmp_path: Path) -> None:
    at = log(tmp_path, BEGINNING)
    assert standing.given(Stands("bin.000001", 4, None), logs(tmp_path, end=Place("bin.000001", at[-1]))).position == at[-1]  # type: ignore[union-attr]
    assert standing.given(Stands("bin.000001", 4, None), logs(tmp_path, SERVER)).source == "proof: InnoDB"  # type: ignore[union-attr]
    assert standing.given(Stands(None, None, "a:1"), None).source == "proof: gtid_executed"  # type: ignore[union-attr]
    assert standing.given(Stands(None, None, None), None) is None
    ends = (Coordinates("bin.000009", 4), Coordinates("bin.000010", 100))
    for place, inside in (("bin.000009", 4), True), (("bin.000010", 100), True), (("bin.000010", 101), False), (("bin.000008", 900), False):
        assert standing.lies_between(Coordinates(*place), ends) is inside


def test_tables_are_unchanged_only_with_all_their_files_and_rows_of_their_own() -> None:
    names = ("a.ibd", "p#P#p0.ibd", "p#P#p1.ibd", "m.MYD", "m.MYI", "shared.frm", "x@002dy.ibd")
    before = {"d/" + name: (10, 1) for name in names}

    def now(**changes: Any) -> Any:
        files = {**before, **{name.replace("__", "/").replace("_dot_", "."): facts for name, facts in changes.items()}}
        return tables.unchanged({name: facts for name, facts in files.items() if facts}, before)

    assert now() == {("d", "a"), ("d", "p"), ("d", "m"), ("d", "x-y")}
    assert ("d", "a") not in now(d__a_dot_ibd=(10, 2))
    assert ("d", "m") not in now(d__m_dot_MYI=(6, 1))
    assert ("d", "m") not in now(d__m_dot_MYI=None)
    assert ("d", "b") not in now(d__b_dot_ibd=(10, 1))
