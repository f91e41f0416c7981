#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Judge whether database and files show one point in time of what `writer.py` did; exit 0 if so, 1 if not.

    judge.py server [--socket S] [--application TREE]       a running server and the tree beside it
    judge.py copy --datadir COPY [--application TREE]       a copy of a data directory: a scratch server recovers it first

It prints its verdict as JSON and names each violation. A copy is left as it is, unless `--in-place` allows otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import checks
import gap
import pymysql
import rows
import scratch


@dataclass(frozen=True)
class Verdict:
    """What was found. `writers` has the counts of each writer, `recovery` what a scratch server said, `gtid_executed` what MySQL did."""

    violations: list[str]
    writers: dict[int, dict[str, int]] = field(default_factory=dict)
    tables_checked: int = 0
    recovery: scratch.Recovery | None = None
    gtid_executed: str | None = None

    def as_json(self) -> str:
        total = {"rows": 0, "files": 0}
        for counts in self.writers.values():
            total["rows"] += counts["cases"] * 3 + counts.get("audit", 0) + counts.get("audit2", 0)
            total["files"] += counts["files"]
        return json.dumps({"one_point_in_time": not self.violations, **asdict(self), **total}, indent=1)


def judge(args: argparse.Namespace) -> Verdict:
    """Judge what the server at `args.socket` and the tree `args.application` hold."""
    with contextlib.closing(pymysql.connect(unix_socket=args.socket, user="root", charset="utf8mb4")) as connection, connection.cursor() as cursor:
        tables = checks.check_tables(cursor)
        violations = list(tables.violations)
        missing = _missing_tables(cursor, args.engines)
        if missing:
            violations.append(f"tables that the load had are missing: {', '.join(missing)}")
            return Verdict(violations, tables_checked=tables.checked)
        try:
            writers = _judge_load(cursor, args, violations)
        except pymysql.MySQLError as error:
            violations.append(f"the tables cannot be read: {error}")
            writers = {}
        gtid_executed = None
        if "mariadb" not in connection.get_server_info().lower():
            cursor.execute("SELECT REPLACE(@@GLOBAL.gtid_executed, '\n', '')")
            gtid_executed = cursor.fetchone()[0]
        return Verdict(violations, writers, tables.checked, gtid_executed=gtid_executed)


def judge_copy(args: argparse.Namespace) -> Verdict:
    """Judge a copy of a data directory: start a scratch server on it, then judge that."""
    with scratch.scratch_server(args.datadir, args.in_place, args.work, args.option) as server:
        recovery = server.recovery
        violations = ["the recovery found prepared transactions"] if recovery.prepared else []
        if not recovery.started:
            return Verdict([*violations, f"the server does not start: {' '.join(recovery.errors) or 'it logs no error'}"], recovery=recovery)
        violations += [f"error at recovery: {line}" for line in recovery.errors]
        if args.coordinates:
            stood = gap.Position(recovery.binlog_file or "nowhere", recovery.binlog_position or 0)
            violations += gap.unexplained(stood, gap.Position.parse(args.coordinates), args.binlogs)
        args.socket = server.socket
        verdict = judge(args)
        return replace(verdict, violations=violations + verdict.violations, recovery=recovery)


def _judge_load(cursor: Any, args: argparse.Namespace, violations: list[str]) -> dict[int, dict[str, int]]:
    audits = ["audit", "audit2"] if args.engines == "all" else []
    writers = {}
    for writer in range(1, args.writers + 1):
        files = checks.read_files(args.application, writer)
        tables = {table: checks.read_keys(cursor, table, writer) for table in ("cases", *audits)}
        keys = checks.Keys({**tables, "files": files})
        violations += checks.one_point_in_time(writer, keys)
        violations += checks.contents(cursor, args.application, writer, files)
        writers[writer] = keys.counts()
    violations += checks.balanced(cursor)
    for table in audits:
        violations += checks.audited(cursor, table)
    if args.known:
        with open(args.known) as file:
            known = json.load(file)
        known = {int(writer): last for writer, last in known.get("known", known).items()}
        violations += checks.remembered({writer: counts["cases"] for writer, counts in writers.items()}, known)
    return writers


def _missing_tables(cursor: Any, engines: str) -> list[str]:
    cursor.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = %s", (rows.DATABASE,))
    present = {name for (name,) in cursor.fetchall()}
    return [name for name in rows.tables(engines, is_mariadb=True) if name not in present]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["server", "copy"])
    parser.add_argument("--socket", default=rows.SOCKET)
    parser.add_argument("--application", default=rows.APPLICATION, help="the application tree (default: %(default)s)")
    parser.add_argument("--engines", choices=["all", "innodb"], default="all", help="those that `writer.py setup` was told")
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--known", help="report of the writers (JSON): each commit it knows must have come back")
    parser.add_argument("--datadir", help="copy: the copied data directory")
    parser.add_argument("--in-place", action="store_true", help="copy: let the scratch server change DATADIR")
    parser.add_argument("--work", help="copy: where the scratch copy may lie (default: the system's temporary directory)")
    parser.add_argument("--coordinates", metavar="FILE:POSITION", help="copy: InnoDB must recover to this position")
    parser.add_argument("--binlogs", default="", help="copy: the binary logs (a directory); they may show that what is between"
                        " the position of InnoDB and the recorded one is not transactional")
    parser.add_argument("--option", action="append", default=[], help="copy: an option for the scratch server, as --option=--NAME=VALUE")
    args = parser.parse_args()
    if args.what == "copy" and not args.datadir:
        parser.error("copy needs --datadir")
    return args


def main() -> int:
    args = arguments()
    verdict = judge_copy(args) if args.what == "copy" else judge(args)
    print(verdict.as_json())
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main())
