# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session tells a server so that it accepts again what a server once accepted: data is put back, not judged."""

from __future__ import annotations

from typing import List, Sequence, Tuple

from .connection import LONGEST_IDLE, ServerError, Session

# Rules that may have been off when a table was made or a row written, or that a server did not have then.
_RULES = (
    ("foreign_key_checks", "0"),
    ("check_constraint_checks", "0"),  # MariaDB
    ("innodb_strict_mode", "0"),
    ("sql_require_primary_key", "0"),  # MySQL 8.0.13
    ("sql_generate_invisible_primary_key", "0"),  # MySQL 8.0.30: a table gets no column that it did not have
    ("restrict_fk_on_non_standard_key", "0"),  # MySQL 8.4
    ("enforce_storage_engine", "NULL"),  # MariaDB: a table keeps its engine
    ("system_versioning_alter_history", "KEEP"),  # MariaDB
    ("sql_safe_updates", "0"),
    ("tx_read_only", "0"),
    ("transaction_read_only", "0"),
    ("autocommit", "1"),
    ("max_statement_time", "0"),  # MariaDB; a large table takes its time
    # as every session of ours has them
    ("wait_timeout", str(LONGEST_IDLE)),
    ("net_read_timeout", "600"),
    ("net_write_timeout", "600"),
    ("idle_transaction_timeout", "0"),  # MariaDB
    ("idle_write_transaction_timeout", "0"),  # MariaDB
)

# How the text of a dump is meant: what SHOW CREATE TABLE leaves out is the server's built-in default.
_MEANING = (
    ("explicit_defaults_for_timestamp", "1"),
    ("character_set_collations", "''"),  # MariaDB 11.2
)

# ER_UNKNOWN_SYSTEM_VARIABLE, ER_INCORRECT_GLOBAL_LOCAL_VAR, ER_GLOBAL_VARIABLE, ER_SPECIFIC_ACCESS_DENIED, ER_WRONG_VALUE_FOR_VAR
_NOT_HERE = (1193, 1238, 1229, 1227, 1231)


def accept(session: Session, *, dump: bool = True) -> Tuple[str, ...]:
    """Have a session accept what any server once accepted, and return the assignments that the server knows and allows.

    :param dump: the statements are those of a dump, not of a binary log, whose events say themselves how they are meant
    """
    taken: List[str] = []
    for name, value in (*_RULES, *(_MEANING if dump else ())):
        try:
            session.do("SET SESSION %s = %s" % (name, value))
        except ServerError as error:
            if error.number not in _NOT_HERE:
                raise
        else:
            taken.append("%s=%s" % (name, value))
    return tuple(taken)


def init_command(assignments: Sequence[str]) -> str:
    """Return the option of a client program that gives its session these assignments."""
    return "--init-command=SET %s" % ", ".join("SESSION " + each for each in assignments)
