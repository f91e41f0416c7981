# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from typing import List, Tuple

import pytest
from _core.host.errors import StillpointError
from _core.mysql import privileges

MARIADB_10_11 = ("mariadb", (10, 11, 19))


@pytest.mark.parametrize(
    "flavour, version, needed",
    [
        ("mariadb", (10, 4, 32), ["RELOAD", "PROCESS", "REPLICATION CLIENT"]),
        ("mariadb", (10, 5, 8), ["RELOAD", "PROCESS", "BINLOG MONITOR", "REPLICATION SLAVE ADMIN"]),
        ("mariadb", (10, 11, 19), ["RELOAD", "PROCESS", "BINLOG MONITOR", "SLAVE MONITOR"]),
        ("mariadb", (11, 8, 2), ["RELOAD", "PROCESS", "BINLOG MONITOR", "SLAVE MONITOR"]),
        ("mysql", (5, 7, 44), ["RELOAD", "PROCESS", "REPLICATION CLIENT"]),
        ("percona", (8, 0, 36), ["RELOAD", "PROCESS", "REPLICATION CLIENT", "BACKUP_ADMIN", "SELECT ON performance_schema.log_status"]),
    ],
)
def test_the_least_privileges_depend_on_flavour_and_version(flavour: str, version: Tuple[int, ...], needed: List[str]) -> None:
    assert privileges.least(flavour, version) == needed


@pytest.mark.parametrize(
    "flavour, version, kill, stop_replica, desync",
    [
        ("mariadb", (10, 4, 1), "SUPER", "SUPER", "SUPER"),
        ("mariadb", (10, 11, 19), "CONNECTION ADMIN", "REPLICATION SLAVE ADMIN", "SUPER"),
        ("mysql", (5, 7, 44), "SUPER", "SUPER", "SUPER"),
        ("percona", (8, 4, 0), "CONNECTION_ADMIN", "REPLICATION_SLAVE_ADMIN", "SYSTEM_VARIABLES_ADMIN"),
    ],
)
def test_more_is_needed_only_for_what_is_asked_for(flavour: str, version: Tuple[int, ...], kill: str, stop_replica: str, desync: str) -> None:
    least = privileges.least(flavour, version)
    for extra, privilege in (("kill", kill), ("stop_replica", stop_replica), ("desync", desync)):
        assert privileges.least(flavour, version, extras=privileges.Extras(**{extra: True})) == [*least, privilege]


def test_nothing_is_listed_twice() -> None:
    needed = privileges.least("mariadb", (10, 5, 8), extras=privileges.Extras(stop_replica=True))
    assert needed.count("REPLICATION SLAVE ADMIN") == 1


def test_an_account_that_binary_logs_are_sent_to_needs_the_privilege_of_a_replica() -> None:
    for server in (MARIADB_10_11, ("mysql", (8, 4, 0))):
        assert privileges.least(*server, extras=privileges.Extras(archive=True)) == [*privileges.least(*server), "REPLICATION SLAVE"]


def test_without_a_lock_an_account_still_has_to_see_where_a_replica_stands_and_what_mysql_tells_of_itself() -> None:
    assert privileges.least(*MARIADB_10_11, lock="none") == ["SLAVE MONITOR"]
    assert privileges.least("mariadb", (10, 5, 8), lock="none") == ["REPLICATION SLAVE ADMIN"]
    assert privileges.least("mariadb", (10, 4, 32), lock="none") == ["REPLICATION CLIENT"]
    assert privileges.least("mysql", (5, 7, 44), lock="none") == ["REPLICATION CLIENT"]
    in_full = privileges.least("mysql", (9, 7, 4))
    assert privileges.least("mysql", (9, 7, 4), lock="none") == [each for each in in_full if each != "RELOAD"]
    assert "REPLICATION SLAVE ADMIN" in privileges.least(*MARIADB_10_11, lock="none", extras=privileges.Extras(stop_replica=True))


def test_a_server_that_is_too_old_is_named() -> None:
    with pytest.raises(StillpointError, match="mysql 4.1.0 is older"):
        privileges.least("mysql", (4, 1, 0))


def lacking(grants: str, flavour: str = "mariadb", version: Tuple[int, ...] = (10, 11, 19)) -> List[str]:
    return privileges.missing(grants, privileges.least(flavour, version), flavour=flavour, version=version)


def test_what_show_grants_lists_is_not_missing() -> None:
    # as MariaDB 10.11 words it
    grants = "GRANT RELOAD, PROCESS, BINLOG MONITOR ON *.* TO `stillpoint`@`localhost` IDENTIFIED BY PASSWORD '*7B9E'"
    assert lacking(grants) == ["SLAVE MONITOR"]
    assert lacking(grants.replace("PROCESS", "PROCESS, SLAVE MONITOR")) == []


def test_all_privileges_are_all() -> None:
    assert (
        lacking(
            "GRANT ALL PRIVILEGES ON *.* TO `root`@`localhost` IDENTIFIED VIA unix_socket WITH GRANT OPTION\n"
            "GRANT PROXY ON ''@'%' TO 'root'@'localhost' WITH GRANT OPTION"
        )
        == []
    )


def test_privileges_on_a_schema_do_not_count_as_global() -> None:
    assert lacking("GRANT USAGE ON *.* TO `u`@`%`\nGRANT ALL PRIVILEGES ON `app`.* TO `u`@`%`") == privileges.least(*MARIADB_10_11)


def test_super_holds_what_was_taken_out_of_it_until_mariadb_11() -> None:
    grants = "GRANT RELOAD, PROCESS, SUPER ON *.* TO `u`@`localhost`"
    assert lacking(grants) == []
    assert lacking(grants, version=(11, 4, 2)) == ["BINLOG MONITOR", "SLAVE MONITOR"]


def test_other_names_of_a_privilege_count() -> None:
    assert lacking("GRANT RELOAD, PROCESS, REPLICATION CLIENT, REPLICA MONITOR ON *.* TO `u`@`localhost`") == []


@pytest.mark.parametrize("where", ["`performance_schema`.`log_status`", "performance_schema.log_status", "`performance_schema`.*", "*.*"])
def test_a_privilege_on_one_table_is_found_on_it_and_on_what_holds_it(where: str) -> None:
    grants = "GRANT RELOAD, PROCESS, REPLICATION CLIENT ON *.* TO `u`@`localhost`\nGRANT BACKUP_ADMIN ON *.* TO `u`@`localhost`\n"
    assert lacking(grants, "mysql", (8, 4, 0)) == ["SELECT ON performance_schema.log_status"]
    assert lacking(grants + "GRANT SELECT ON %s TO `u`@`localhost`" % where, "mysql", (8, 4, 0)) == []


def test_the_statement_to_run_can_be_pasted() -> None:
    assert (
        privileges.grant_sql("stillpoint", "localhost", ["RELOAD", "PROCESS"]) == "GRANT RELOAD, PROCESS ON *.* TO 'stillpoint'@'localhost';"
    )
    assert privileges.grant_sql("o'x", "%", ["BACKUP_ADMIN", "SELECT ON performance_schema.log_status"]) == (
        "GRANT BACKUP_ADMIN ON *.* TO 'o''x'@'%'; GRANT SELECT ON performance_schema.log_status TO 'o''x'@'%';"
    )


def test_columns_and_quoted_names_in_grants_are_read_as_they_are() -> None:
    parsed = privileges.parse_grants(
        [
            "GRANT USAGE ON *.* TO `u`@`localhost`",
            "GRANT SELECT (`a`, `b`), insert ON `we``ird db`.`t` TO `u`@`localhost` WITH GRANT OPTION",
            "GRANT `role` TO `u`@`localhost`",
            "GRANT PROXY ON ''@'%' TO 'u'@'localhost'",
        ]
    )
    assert parsed == {"`we``ird db`.`t`": frozenset({"SELECT (`a`, `b`)", "INSERT", "GRANT OPTION"})}
