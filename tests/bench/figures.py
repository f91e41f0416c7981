# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables for people, made of the benchmarks' records, written between their markers in docs/figures.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bench import Record, Results

PAGE = Path(__file__).resolve().parents[2] / "docs" / "figures.md"
WAYS = {
    "original": "the original script",
    "auto": "ours",
    "ftwrl": "ours, `lock: ftwrl`",
    "none": "ours, `lock: none`",
    "lvcreate": "a bare `lvcreate`, no lock",
    "freeze": "suspend and resume of the volume alone",
    "alone": "no backup: the writers alone",
}
ENGINES = {"all": "with MyISAM and Aria tables", "innodb": "InnoDB alone"}
MIB = 1 << 20


def write() -> None:
    """Bring the page up to date with every benchmark that has results."""
    text = PAGE.read_text()
    for name, render in TABLES.items():
        results = Results.read(name)
        if results and results.records:
            text = between_markers(text, name, render(results))
    PAGE.write_text(text)


def between_markers(text: str, name: str, table: str) -> str:
    """Return `text` with `table` in place of what was between the markers of `name`."""
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{PAGE.name} has no markers for {name}")
    return pattern.sub(lambda match: f"{match.group(1)}{table}\n{match.group(2)}", text)


def lock(results: Results) -> str:
    rows = [
        [
            *titles,
            _spread(records, "held_ms"),
            _ratio(of_engines, way, "held_ms"),
            _spread(records, "worst_commit_ms"),
            _ratio(of_engines, way, "worst_commit_ms"),
            _spread(records, "worst_step_ms"),
            _spread(records, "median_commit_ms"),
        ]
        for titles, way, records, of_engines in _each(results, "engines", ENGINES, WAYS)
    ]
    head = ["load", "way", "lock held", "times shorter", "worst commit", "times shorter", "worst step of any kind", "median commit"]
    return _table(head, rows) + _conditions(
        results,
        f"Milliseconds: median (lowest to highest) of {_pairs(results)} runs of each way, in turn; three writers, {_rate(results)}. "
        "*Times shorter*: the original's figure by this one's, median over the pairs.",
    )


def tools(results: Results) -> str:
    rows = [
        [
            *titles,
            _spread(records, "held_ms"),
            _spread(records, "worst_step_ms"),
            _ratio(of_condition, way, "worst_step_ms"),
            _spread(records, "worst_commit_ms"),
            _spread(records, "p99_commit_ms"),
            _spread(records, "worst_myisam_ms"),
            _spread(records, "p99_myisam_ms"),
            _spread(records, "seconds"),
            _median(records, "bytes_left", MIB),
        ]
        for titles, way, records, of_condition in _each(results, "condition", TOOL_CONDITIONS, TOOLS)
    ]
    head = ["load", "tool", "lock held", "worst stall of any writer", "times shorter", "worst commit", "p99 commit", "worst MyISAM insert"]
    head += ["p99 MyISAM insert", "whole run (s)", "leaves (MiB)"]
    return _table(head, rows) + _conditions(
        results,
        f"Milliseconds where nothing else is said: median (lowest to highest) of {_pairs(results)} runs of each tool, in turn; three "
        f"writers, {_rate(results)}. The long statement is an `UPDATE` of an InnoDB table that has {results.conditions['statement_s']} s to "
        "go when the backup starts. *Times shorter*: the original's stall by this one's, median over the pairs. Ours copies at low priority, "
        "the others do not.",
    )


TOOL_CONDITIONS = {
    "all": "with MyISAM and Aria tables",
    "innodb": "InnoDB alone",
    "statement": "with MyISAM and Aria tables, and a long statement",
}
TOOLS = {
    "original": "the original script",
    "mylvmbackup": "mylvmbackup",
    "mariadb-backup": "mariadb-backup",
    "mariadb-dump": "mariadb-dump --single-transaction",
    "mydumper": "mydumper",
    "auto": "ours",
    "ftwrl": "ours, `lock: ftwrl`",
}


def copy(results: Results) -> str:
    rows = []
    for way in dict.fromkeys(r["way"] for r in results.records):
        records = [r for r in results.records if r["way"] == way]
        ratio = _median_ratio(results.records, way, "rsync", "copy_s")
        rows.append([
            WAYS_OF_COPYING[way],
            _spread(records, "copy_s", 1),
            f"{ratio:.2f}" if way == "first auto" and ratio else "",
            _spread(records, "whole_s", 1),
            _median(records, "files", 1),
            _median(records, "bytes", MIB),
            _median(records, "bytes_transferred", MIB),
            _median(records, "own_files", MIB),
            _median(records, "own_directories", MIB),
            _median(records, "own_manifest", MIB),
        ])
    head = ["", "copy (s)", "times the bare copy", "whole run (s)", "files", "MiB", "MiB transferred"]
    head += ["own file data (MiB)", "own directories (MiB)", "own manifest (MiB)"]
    return _table(head, rows) + _conditions(
        results,
        f"Median (lowest to highest) of {_pairs(results)} pairs, from cold caches. "
        "The bare rsync's whole run ends when its copy is on the disk. "
        "*Own*: on the disk and not shared with the generation before.",
    )


WAYS_OF_COPYING = {
    "rsync": "bare `rsync -a` of a snapshot",
    "first auto": "first backup, both halves",
    "second auto": "second backup, both halves, no writers",
    "first files": "first backup, files only",
    "second files": "second backup, files only, unchanged",
}


def memory(results: Results) -> str:
    rows = [
        [r["what"], f"{r['peak_kib']['command itself'] / 1024:.0f}", f"{r['peak_kib'].get('rsync', 0) / 1024:.0f}", f"{r['seconds']:.0f}"]
        for r in results.records
    ]
    head = ["", "agent, peak (MiB)", "rsync, largest process, peak (MiB)", "time (s)"]
    return _table(head, rows) + _conditions(results, f"{results.conditions['files']:,} files.")


def restore(results: Results) -> str:
    rows = []
    for way, label in (("physical", "a copy of the server's files"), ("dump", "a dump")):
        records = [r for r in results.records if r["way"] == way]
        ratio = _median_ratio(results.records, "dump", "physical", "restore_s")
        rows.append([
            label,
            _spread(records, "restore_s", 1),
            f"{ratio:.1f}" if way == "dump" and ratio else "",
            _spread(records, "backup_s", 1),
            _median(records, "stored_bytes", MIB),
        ])
    text = f"Median (lowest to highest) of {_pairs(results)} pairs, from cold caches; one table of {results.conditions['rows']:,} rows, "
    text += f"{results.conditions['table_bytes'] / MIB:.0f} MiB with its indexes."
    return _table(["", "restore (s)", "times longer", "backup (s)", "stored (MiB)"], rows) + _conditions(results, text)


def verify(results: Results) -> str:
    rows = []
    for way, label in (("verify", "`stillpoint verify`"), ("sha256sum", "`sha256sum` of every file")):
        records = [r for r in results.records if r["way"] == way]
        ratio = _median_ratio(results.records, way, "sha256sum", "seconds")
        rate = [r["bytes"] / MIB / r["seconds"] for r in records]
        rows.append([label, _spread(records, "seconds", 1), f"{statistics.median(rate):.0f}", f"{ratio:.2f}" if way == "verify" and ratio else ""])
    text = f"Median (lowest to highest) of {_pairs(results)} pairs, from cold caches, of the generation of the table above with both halves."
    return _table(["", "time (s)", "MiB/s", "times sha256sum"], rows) + _conditions(results, text)


def replay(results: Results) -> str:
    rows = []
    for way, label in REPLAYS.items():
        records = [r for r in results.records if r["way"] == way]
        rows.append([label, _spread(records, "replay_s", 1), _median(records, "events_s", 1)])
    text = f"Median (lowest to highest) of {_pairs(results)} runs of each way, in turn; {results.conditions['transactions']:,} transactions, "
    text += f"{results.conditions['events']:,} events, each on a fresh copy of the same backup."
    return _table(["", "time (s)", "events a second"], rows) + _conditions(results, text)


REPLAYS = {
    "ours": "`restore --until`, the start and the stop of its server included",
    "client": "`mariadb-binlog | mariadb` on a running server with its defaults",
    "client without flushes": "the same on one with `innodb_flush_log_at_trx_commit=0`",
}


def lost(results: Results) -> str:
    rows = []
    for kind, label in (("received", "not in the archive's file: lost with the machine"), ("durable", "not on the archive's disk: lost in a power cut")):
        counts, ages = ([r[f"{kind}_{what}"] for r in results.records] for what in ("lost", "ms"))
        rows.append([label, str(sum(count > 0 for count in counts)), str(max(counts)), f"{statistics.median(ages):.0f}", f"{max(ages):.0f}"])
    head = ["", "kills that lost any", "most commits", "oldest of them (ms): median", "at most"]
    text = f"{len(results.records)} kills, under {results.conditions['writers']} writers with "
    return _table(head, rows) + _conditions(results, text + f"{statistics.median(r['commits_s'] for r in results.records):.0f} commits a second.")


def start(results: Results) -> str:
    rows = []
    for way, label in STARTS.items():
        records = [r for r in results.records if r["way"] == way]
        ratio = _median_ratio(results.records, way, "bare", "cpu_ms")
        payload = results.conditions["payload"].get(way)
        rows.append([label, _spread(records, "cpu_ms", 1), f"{ratio:.1f}" if way != "bare" and ratio else "", f"{payload / 1024:.0f}" if payload else ""])
    text = f"The processor's time: median (lowest to highest) of {_pairs(results)} runs of each, in turn; *times*: median over the pairs."
    return _table(["", "time (ms)", "times a bare start", "payload (KiB)"], rows) + _conditions(results, text)


STARTS = {
    "bare": "`python3 -I -c pass`",
    "version": "`stillpoint version`",
    "list": "`stillpoint list`, one job",
    "plan": "what `stillpoint plan` reads before it asks LVM or a server",
    "version from sources": "`stillpoint version`, without bytecode",
    "list from sources": "`stillpoint list`, without bytecode",
    "module ansible.builtin.ping": "the module `ansible.builtin.ping`, on the host",
    "module stillpoint.backup.backup_info": "the module `backup_info`, on the host, without the agent that it asks",
}


def sharing(results: Results) -> str:
    rows = []
    for kind, pattern, share in dict.fromkeys((r["file_system"], r["pattern"], r["share"]) for r in results.records):
        of_change = [r for r in results.records if (r["file_system"], r["pattern"], r["share"]) == (kind, pattern, share)]
        changed = of_change[0]["changed"]
        by_way = {way: [r for r in of_change if r["way"] == way] for way in BACKUPS}
        stored = statistics.median(_values(by_way["ours"], "stored"))
        ratios = [_median_ratio(of_change, "ours", "rsync", key) or 0 for key in ("seconds", "cpu_s")]
        rows.append([
            kind,
            f"{share:g} % {pattern}",
            f"{changed / MIB:.2f}",
            f"{stored / MIB:.2f}",
            f"{stored / changed:.2f}",
            *(_median(by_way[way], "stored", MIB) for way in BACKUPS if way != "ours"),
            *(f"{ratio:.2f}" for ratio in ratios),
            *(f"{statistics.median(_values(by_way[way], 'seconds')):.1f}" if by_way[way] else "" for way in BACKUPS),
        ])
    tools = results.conditions["tools"]
    head = ["on", "pages changed", "MiB changed", "stored by ours", "times what changed", *(f"by {label}" for way, label in BACKUPS.items() if way != "ours")]
    head += ["ours: times the plain copy's time", "of processor", *(f"{label} (s)" for label in BACKUPS.values())]
    return _table(head, rows) + _conditions(
        results,
        f"A second backup of one table of {results.conditions['size_mib']} MiB of random bytes, in pages of 16 KiB, cold caches, to the disk; stored in MiB. "
        f"Plain copy (`rsync --link-dest`) and ours: median of {_pairs(results)} pairs, in turn; *times*: median over the pairs; the others once. "
        "*Ours* is what a run does between its snapshot and its proof, the start of Python included. All at the priority of the agent's copies. "
        f"rsync {tools['rsync']}, restic {tools['restic']}, borg {tools['borg']} (*fixed*: chunks of 16 KiB).",
    )


BACKUPS = {"ours": "ours", "rsync": "plain copy", "restic": "restic", "borg": "borg", "borg fixed": "borg, fixed"}


def generations(results: Results) -> str:
    rows = [
        [
            r["file_system"],
            "whole files" if r["whole"] else "shared blocks",
            f"{r['stored'] / MIB:.0f}",
            f"{r['backups_s']:.0f}",
            f"{r['prune_s']:.2f}",
            f"{r['freed'] / MIB:.1f}",
            f"{r['restore_newest_s']:.1f}",
            f"{r['restore_oldest_s']:.1f}",
            f"{r['extents_newest']:,}",
        ]
        for r in results.records
    ]
    head = ["on", "generations of", "stored (MiB)", "all backups (s)", "prune the oldest (s)", "freed (MiB)"]
    head += ["copy the newest back (s)", "copy the oldest back (s)", "extents of the newest"]
    return _table(head, rows) + _conditions(
        results,
        f"{results.conditions['generations']} generations of one table of {results.conditions['size_mib']} MiB, "
        "between which one percent of its pages changed at random; copied back with `rsync` to another file system, from cold caches to the disk.",
    )


def dumps(results: Results) -> str:
    rows = []
    for pattern in dict.fromkeys(r["pattern"] for r in results.records):
        for way, label in (("zstd", "`zstd -3`"), ("ours", "ours, `--rsyncable`")):
            records = [r for r in results.records if (r["pattern"], r["way"]) == (pattern, way)]
            cpu = f"{statistics.median(_values(records, 'cpu_s')):.2f}"
            rows.append([pattern, label, _median(records, "text", MIB), _median(records, "bytes", MIB), _spread_of(records, "sent", MIB), cpu])
    head = ["rows changed", "compressed by", "SQL (MiB)", "stored by the next generation (MiB)", "sent by `restic backup` (MiB)", "zstd's processor time (s)"]
    return _table(head, rows) + _conditions(
        results,
        f"Median (lowest to highest) of {_pairs(results)} dumps each of a table of {results.conditions['rows']:,} rows, "
        f"{results.conditions['percent']:g} % of which changed.",
    )


def _spread_of(records: Sequence[Record], key: str, unit: int) -> str:
    return _spread([{key: r[key] / unit} for r in records], key, 1)


TABLES: dict[str, Callable[[Results], str]] = {
    "lock": lock,
    "tools": tools,
    "copy": copy,
    "verify": verify,
    "memory": memory,
    "restore": restore,
    "replay": replay,
    "lost": lost,
    "start": start,
    "sharing": sharing,
    "generations": generations,
    "dumps": dumps,
}


def _each(
    results: Results, key: str, groups: Mapping[str, str], labels: Mapping[str, str]
) -> Iterator[tuple[list[str], str, list[Record], list[Record]]]:
    """Yield, for each group of records and each way that was measured in it: both titles, the way, its records, and all of the group's."""
    for group, title in groups.items():
        of_group = [r for r in results.records if r[key] == group]
        for way, label in labels.items():
            records = [r for r in of_group if r["way"] == way]
            if records:
                yield [title, label + _methods(records)], way, records, of_group


def _rate(results: Results) -> str:
    """Return how fast the writers write."""
    return f"{results.conditions['rate']:g} keys a second each" if results.conditions["rate"] else "without a pause"


def _pairs(results: Results) -> int:
    """Return how many pairs were measured, which is fewer than asked for when the run was cut short."""
    return len({record["pair"] for record in results.records})


def _methods(records: Sequence[Record]) -> str:
    found = sorted({r["method"] for r in records if r.get("method")})
    return f" ({', '.join(found)})" if found else ""


def _values(records: Iterable[Record], key: str) -> list[float]:
    return [r[key] for r in records if r.get(key) is not None]


def _spread(records: Sequence[Record], key: str, digits: int = 0) -> str:
    values = _values(records, key)
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _median(records: Sequence[Record], key: str, unit: int) -> str:
    values = _values(records, key)
    return f"{statistics.median(values) / unit:.{0 if unit == 1 else 1}f}" if values else ""


def _median_ratio(records: Sequence[Record], way: str, base: str, key: str) -> float | None:
    """Return the median over the pairs of `way` by `base`."""
    by_pair: dict[int, dict[str, float]] = {}
    for record in records:
        if record.get(key):
            by_pair.setdefault(record["pair"], {})[record["way"]] = record[key]
    ratios = [pair[way] / pair[base] for pair in by_pair.values() if way in pair and base in pair]
    return statistics.median(ratios) if ratios else None


def _ratio(records: Sequence[Record], way: str, key: str) -> str:
    ratio = _median_ratio(records, "original", way, key)
    return f"{ratio:.1f}" if ratio and way != "original" else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _conditions(results: Results, text: str) -> str:
    found = results.conditions
    if "host_cpus" in found:
        machine = f"QEMU with {found['accelerator']}, {found['cpus']} CPUs on a host with {found['host_cpus']}"
    else:
        machine = f"the host itself, {found['cpus']} CPUs, {found['file_system']}"
    loads = [record["host_load"] for record in results.records]
    return (
        f"\n{text} Machine: {machine}, {found['memory_mib']} MiB, MariaDB {found['server']}, Linux {found['kernel']}; "
        f"the host's load was {min(loads)} to {max(loads)}.\n"
    )
