# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of the judge. Each returns sentences, one for each violation it found; none means that all is well."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rows

SAMPLE = 3  # examples named for each violation
NO_CHECK = "The storage engine for the table doesn't support check"
SKIPPED_SCHEMAS = ("information_schema", "performance_schema")


@dataclass(frozen=True)
class Keys:
    """The keys of one writer by the step that made them, in the order of the steps: cases first, files last."""

    steps: dict[str, set[int]]

    def counts(self) -> dict[str, int]:
        return {name: len(keys) for name, keys in self.steps.items()}


def read_keys(cursor: Any, table: str, writer: int) -> set[int]:
    cursor.execute(f"SELECT seq FROM {rows.DATABASE}.{table} WHERE writer=%s", (writer,))
    return {seq for (seq,) in cursor}


def read_files(application: str, writer: int) -> set[int]:
    """Return the keys of the files of `writer`; one that was being written (`.new`) is no file yet."""
    found = set()
    for _, _, names in os.walk(rows.directory(application, writer)):
        for name in names:
            match = rows.FILE_NAME.match(name)
            if match and int(match.group(1)) == writer:
                found.add(int(match.group(2)))
    return found


def one_point_in_time(writer: int, keys: Keys) -> list[str]:
    """Check gaps, and cases >= audit >= audit2 >= files >= cases - 1."""
    violations = [
        f"writer {writer}: {name} has gaps: {len(found)} keys, the last is {max(found)}, missing {_sample(set(range(1, max(found))) - found)}"
        for name, found in keys.steps.items()
        if found and len(found) != max(found)
    ]
    steps = list(keys.counts().items())
    for (name, count), (next_name, next_count) in zip(steps, steps[1:]):
        if count < next_count:
            violations.append(f"writer {writer}: {next_name} has {next_count} keys, more than the {count} of {name}")
    cases, files = keys.counts()["cases"], keys.counts()["files"]
    if files < cases - 1:
        violations.append(f"writer {writer}: {files} files are too few for {cases} cases")
    if not cases:
        violations.append(f"writer {writer}: no cases at all")
    return violations


def balanced(cursor: Any) -> list[str]:
    """Check that the movements of every case are both there and cancel, and that the audits name their case's amount."""
    database = rows.DATABASE
    cursor.execute(f"SELECT COALESCE(SUM(amount), 0) FROM {database}.movements")
    total = cursor.fetchone()[0]
    violations = [f"the movements do not balance: their sum is {total}"] if total else []
    cursor.execute(
        f"SELECT writer, seq FROM {database}.cases c LEFT JOIN {database}.movements m USING (writer, seq)"
        " GROUP BY writer, seq, c.amount HAVING COUNT(m.side) <> 2 OR SUM(m.amount) <> 0 OR MAX(m.amount) <> c.amount"
    )
    violations += [f"case {w}/{s}: its movements are not the two that were committed with it" for w, s in cursor.fetchall()[:SAMPLE]]
    cursor.execute(
        f"SELECT DISTINCT m.writer, m.seq FROM {database}.movements m LEFT JOIN {database}.cases c USING (writer, seq) WHERE c.seq IS NULL"
    )
    return violations + [f"movement {w}/{s}: its case is missing" for w, s in cursor.fetchall()[:SAMPLE]]


def audited(cursor: Any, table: str) -> list[str]:
    """Check that every row of an audit table says what its case says."""
    cursor.execute(
        f"SELECT a.writer, a.seq FROM {rows.DATABASE}.{table} a LEFT JOIN {rows.DATABASE}.cases c USING (writer, seq)"
        " WHERE c.amount IS NULL OR c.amount <> a.amount"
    )
    return [f"{table} {w}/{s}: its case is missing or has another amount" for w, s in cursor.fetchall()[:SAMPLE]]


def contents(cursor: Any, application: str, writer: int, files: set[int]) -> list[str]:
    """Check that every file holds what its row says."""
    cursor.execute(f"SELECT seq, amount, note FROM {rows.DATABASE}.cases WHERE writer=%s", (writer,))
    cases = {seq: rows.Case(writer, seq, amount, note) for seq, amount, note in cursor}
    wrong, orphans = set(), set()
    for seq in files:
        if seq not in cases:
            orphans.add(seq)
            continue
        with open(rows.file_path(application, writer, seq), "rb") as file:
            if file.read() != rows.file_content(cases[seq]):
                wrong.add(seq)
    violations = []
    if wrong:
        violations.append(f"writer {writer}: {len(wrong)} files do not hold what their rows say: {_sample(wrong)}")
    if orphans:
        violations.append(f"writer {writer}: {len(orphans)} files have no row: {_sample(orphans)}")
    return violations


@dataclass(frozen=True)
class Tables:
    checked: int
    violations: list[str]


def check_tables(cursor: Any) -> Tables:
    """Run CHECK TABLE … EXTENDED on every table of the server, its own included; whatever it says but OK is a violation."""
    cursor.execute(
        "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE'"
        " AND table_schema NOT IN %s ORDER BY 1, 2",
        (SKIPPED_SCHEMAS,),
    )
    names = cursor.fetchall()
    violations = []
    for schema, name in names:
        cursor.execute(f"CHECK TABLE `{schema}`.`{name}` EXTENDED")
        for table, _, kind, text in cursor.fetchall():
            if text not in ("OK", "Table is already up to date", NO_CHECK):
                violations.append(f"CHECK TABLE {table}: {kind}: {text}")
    return Tables(len(names), violations)


def remembered(counts: dict[int, int], known: dict[int, int]) -> list[str]:
    """Check that no commit that a writer knew of is missing."""
    return [
        f"writer {writer}: {last} commits were acknowledged, {counts.get(writer, 0)} cases came back"
        for writer, last in sorted(known.items())
        if counts.get(writer, 0) < last
    ]


def _sample(keys: set[int]) -> str:
    shown: Sequence[int] = sorted(keys)[:SAMPLE]
    return ", ".join(map(str, shown)) + (", …" if len(keys) > SAMPLE else "")
