# SPDX-License-Identifier: GPL-3.0-or-later
"""What no session can have a server accept, and so is refused before a load begins."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence, Set

from ...dump.contents import shown
from ...host.errors import StillpointError
from ...mysql.connection import Session
from .what import What, named

_VARIABLES = ("innodb_force_primary_key", "super_read_only", "innodb_read_only", "disabled_storage_engines", "lower_case_table_names")
_ON_FUNCTIONS = ("log_bin", "log_bin_trust_function_creators")


def refuse(session: Session, facts: Dict[str, Any], what: What, databases: Sequence[str], left: Sequence[str]) -> None:
    """Refuse a load that the server would not take.

    :param facts: what the manifest says of the dump
    :param left: databases with old tables, which no journal of this host knows of
    :raises StillpointError: the first reason
    """
    rows = session.rows("SHOW GLOBAL VARIABLES WHERE Variable_name IN (%s)" % ", ".join("'%s'" % name for name in (*_VARIABLES, *_ON_FUNCTIONS)))
    values = {str(row["Variable_name"]).lower(): str(row["Value"]) for row in rows}
    for name in ("super_read_only", "innodb_read_only"):
        if values.get(name, "OFF") not in ("OFF", "0"):
            raise StillpointError("the server accepts no writes (%s = %s): turn that off, and restore again" % (name, values[name]))
    _refuse_left(left)
    _refuse_keyless(values, facts, what, databases)
    if not what.table:
        _refuse_undeclared(values, facts, databases)
    _refuse_engines(session, values, facts, databases)
    if values.get("lower_case_table_names", "0") != "0":
        _refuse_one_name(facts["databases"], what, databases)


def _refuse_left(left: Sequence[str]) -> None:
    """Old tables that no journal knows of may be all that is left of a database."""
    if left:
        raise StillpointError(
            "the server has %s, the old tables of a restore that was interrupted: undo that one on the host where it ran (stillpoint undo), or move them back"
            % named(left)
        )


def _refuse_keyless(values: Dict[str, str], facts: Dict[str, Any], what: What, databases: Sequence[str]) -> None:
    if values.get("innodb_force_primary_key", "OFF") in ("OFF", "0"):
        return
    wanted = [(database, table) for database, table in facts.get("keyless", ()) if database in databases and what.table in (None, (database, table))]
    if wanted:
        raise StillpointError(
            "the server accepts no table without a primary key, as %s.%s is one: SET GLOBAL innodb_force_primary_key = OFF, and restore again"
            % (shown(wanted[0][0]), shown(wanted[0][1]))
        )


def _refuse_undeclared(values: Dict[str, str], facts: Dict[str, Any], databases: Sequence[str]) -> None:
    """A server with a binary log takes such a function from nobody, while it does not trust those who make them (error 1418)."""
    if [values.get(name, "OFF") for name in _ON_FUNCTIONS] != ["ON", "OFF"]:
        return
    wanted = [(database, function) for database, function in facts.get("undeclared", ()) if database in databases]
    if wanted:
        raise StillpointError(
            "the server accepts no function that does not say what it reads, as %s.%s: SET GLOBAL log_bin_trust_function_creators = ON, and restore again"
            % (shown(wanted[0][0]), shown(wanted[0][1]))
        )


def _refuse_engines(session: Session, values: Dict[str, str], facts: Dict[str, Any], databases: Sequence[str]) -> None:
    rows = session.rows("SELECT ENGINE AS name, SUPPORT AS s FROM information_schema.ENGINES")
    known: Set[str] = {str(row["name"]).lower() for row in rows if row["s"] in ("YES", "DEFAULT")}
    known -= {name.strip().lower() for name in values.get("disabled_storage_engines", "").split(",")}
    for database in databases:
        for engine in facts.get("engines", {}).get(database, ()):
            if engine.lower() not in known:
                raise StillpointError(
                    "the dump has tables of the engine %s in %s, which the server does not have: install or enable it, and restore again"
                    % (engine, shown(database))
                )


def _refuse_one_name(tables: Dict[str, List[str]], what: What, databases: Sequence[str]) -> None:
    names = [(database,) for database in databases] + [(database, table) for database in databases for table in tables[database] if not what.table]
    seen: Dict[Any, Any] = {}
    for name in names:
        other = seen.setdefault(tuple(each.lower() for each in name), name)
        if other != name:
            raise StillpointError(
                "%s and %s of the dump are one name to this server (lower_case_table_names): load it into a server where names keep their letters"
                % (shown(".".join(other)), shown(".".join(name)))
            )
