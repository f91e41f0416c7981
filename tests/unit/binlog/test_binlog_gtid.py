# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from _core.binlog import gtid
from _core.binlog.gtid import MariaGtid, MariaState, MysqlGtid, MysqlState
from _core.host.errors import UsageError

A, B = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "3e11fa47-71ca-11e1-9e33-c80aa9429563"


def test_one_transaction_is_understood_in_either_form() -> None:
    assert gtid.parse("0-1-1234") == MariaGtid(0, 1, 1234)
    assert gtid.parse(" %s:23 " % A.upper()) == MysqlGtid(A, 23)


@pytest.mark.parametrize("text", ["", "0-1", "0-1-2,0-1-3", A, A + ":1-5", A + ":0", "x-y-z"])
def test_what_is_not_one_transaction_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not the GTID of one transaction"):
        gtid.parse(text)


def test_the_last_transaction_of_a_domain_is_the_one_that_was_written_last() -> None:
    state = MariaState.parse("0-1-5,0-2-7,1-3-9")
    assert state.position() == "0-2-7,1-3-9"
    state.add(MariaGtid(0, 1, 8))
    assert state.position() == "0-1-8,1-3-9"
    assert MariaState.parse(str(state)).position() == state.position()


def test_a_transaction_is_in_a_state_up_to_the_number_that_its_server_has_reached() -> None:
    state = MariaState.parse("0-1-5,0-2-7")
    assert MariaGtid(0, 1, 5) in state
    assert MariaGtid(0, 1, 6) not in state
    assert MariaGtid(1, 1, 1) not in state


@pytest.mark.parametrize(
    "earlier, later, follows",
    [
        ("0-1-5", "0-1-5", True),
        ("", "", True),
        ("", "0-1-5", False),  # five transactions are missing
        ("0-1-5", "0-1-7", False),
        ("0-1-5", "0-1-3", False),  # another history
        ("0-1-5", "", False),  # reset
        ("0-1-5,1-1-3", "0-1-5", True),  # a domain was taken out on purpose
        ("0-1-5", "0-1-5,1-1-1", False),
    ],
)
def test_a_log_of_mariadb_follows_only_where_no_transaction_is_missing(earlier: str, later: str, follows: bool) -> None:
    assert gtid.continues(later, earlier, "mariadb") is follows
    assert gtid.continues(None, earlier, "mariadb")


def test_sets_of_mysql_join_what_is_next_to_each_other_and_keep_gaps() -> None:
    state = MysqlState.parse("%s:1-3:7,\n%s:2" % (A, B))
    assert str(state) == "%s:1-3:7,%s:2" % (A, B)
    for number in (8, 4, 6, 5):
        state.add(MysqlGtid(A, number))
    assert str(state) == "%s:1-8,%s:2" % (A, B)
    assert MysqlGtid(B, 1) not in state
    assert MysqlGtid(A, 8) in state


def test_a_log_of_mysql_follows_only_on_the_very_same_set() -> None:
    assert gtid.continues(A + ":1-5", A + ":1-5", "mysql")
    assert not gtid.continues(A + ":1-6", A + ":1-5", "mysql")
    assert not gtid.continues("", A + ":1-5", "mysql")
