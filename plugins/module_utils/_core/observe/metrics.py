# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics in Prometheus' text format, for the textfile collector of its node_exporter: the same facts that `list` and `show --timeline` tell.

Each file is written whole, from what the repository holds at that moment, and by one kind of process alone. Nothing here can fail what it
tells of: what goes wrong becomes a warning.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from ..repository.generation import BAD, GOOD, UNPROVEN, Generation
from .notify import Outcome

BACKUPS, BINLOG = "backups", "binlog"

_LABEL = "backup_job"  # not `job`: Prometheus has a label of its own of that name, and renames ours

#: What the archive's service can be doing, as its status says it.
STATES = ("streaming", "copying", "waiting", "stopped")

_HELP = {
    "run_end_timestamp_seconds": "When the last run of the job ended, whatever came of it.",
    "run_exit_code": "The exit code of that run: 0 done, 1 failed, 2 wrong job file, 75 the server was too busy to be locked.",
    "verify_end_timestamp_seconds": "When backups of the job were last read again, whatever was found.",
    "verify_exit_code": "The exit code of that verification: 0 every checksum is right.",
    "copy_end_timestamp_seconds": "When backups of the job were last sent to its copies, whatever came of it.",
    "copy_exit_code": "The exit code of that: 0 all of them are there, 75 a copy could not be used just then.",
    "copy_missing": "How many backups are here and were not at the copy when somebody last looked there.",
    "copy_seen_timestamp_seconds": "When somebody last looked at the copy.",
    "copy_newest_timestamp_seconds": "The point in time that the newest backup at the copy holds.",
    "backup_due_timestamp_seconds": "Until when the next backup has to be there by the job's schedule, spreading and its own time counted in.",
    "verify_due_timestamp_seconds": "The same of the next verification.",
    "backups": "How many backups there are in each state.",
    "backup_newest_timestamp_seconds": "The point in time that the newest backup in each state holds.",
    "backup_size_bytes": "Size of the files of the newest backup, those included that it shares with others.",
    "backup_duration_seconds": "How long the newest backup took.",
    "backup_lock_held_seconds": "How long the lock of the newest backup was held.",
    "backup_left_out": "How many invalid views the newest backup, a dump, holds as text alone.",
    "binlog_archive_seen_timestamp_seconds": "When the archive of binary logs last said how it is; it says so every few seconds (method copy: five minutes).",
    "binlog_archive_state": "What the archive is doing; waiting: it can't get the logs now, and tries again.",
    "binlog_archive_lag_bytes": "How far the archive is behind the server's binary log.",
    "binlog_archive_complete_timestamp_seconds": "Up to which moment every commit is in the archive.",
    "vault_copies": "How many copies of a host the vault has.",
    "vault_newest_timestamp_seconds": "When the newest copy of a host arrived.",
    "vault_sound_timestamp_seconds": "When the newest copy arrived that was found to be what its manifest says.",
    "vault_checked_timestamp_seconds": "When the keeper last looked at a host's repository.",
    "vault_alarms": "How many alarms of a host a person has to look at; while there are any, nothing is removed.",
    "vault_frozen": "1 while a host's repository is out of its reach.",
    "binlog_archive_gap": "1 where binary logs are missing and no backup was taken since: nothing after them can be recovered.",
}

Sample = Tuple[str, Mapping[str, str], float]


def ended(outcome: Outcome, now: float) -> List[Sample]:
    """Return how a run, or a verification, ended."""
    labels = {_LABEL: outcome.job}
    return [(outcome.action + "_end_timestamp_seconds", labels, now), (outcome.action + "_exit_code", labels, outcome.exit_code)]


def backups(job: str, generations: Sequence[Generation]) -> List[Sample]:
    """Return what backups there are.

    :param generations: newest first
    """
    labels = {_LABEL: job}
    states = [(each, each.state) for each in generations]
    found: List[Sample] = [("backups", {**labels, "state": state}, [own for _each, own in states].count(state)) for state in (GOOD, UNPROVEN, BAD)]
    for state in (GOOD, UNPROVEN, BAD):
        newest = next((each for each, own in states if own == state), None)
        if newest is not None:
            found.append(("backup_newest_timestamp_seconds", {**labels, "state": state}, newest.time.timestamp()))
    if generations:
        summary = generations[0].summary
        held = (summary.get("lock") or {}).get("held_ms")
        figures = {
            "backup_size_bytes": generations[0].size_bytes,
            "backup_duration_seconds": summary.get("duration_s"),
            "backup_left_out": len(summary["dump"].get("invalid_views") or ()) if summary.get("dump") else None,
            "backup_lock_held_seconds": held / 1000 if held is not None else None,
        }
        found += [(name, labels, value) for name, value in figures.items() if value is not None]
    return found


def due(job: str, until: Mapping[str, Optional[float]]) -> List[Sample]:
    """Return until when the next of what is done on a schedule has to be there: ``{backup, verify}``."""
    return [(name + "_due_timestamp_seconds", {_LABEL: job}, moment) for name, moment in until.items() if moment is not None]


def archived(job: str, status: Mapping[str, Any], gap: bool) -> List[Sample]:
    """Return how the archive of binary logs is.

    :param status: as the service last said it
    :param gap: whether something is missing that no backup has made up for yet
    """
    labels = {_LABEL: job}
    found: List[Sample] = [("binlog_archive_state", {**labels, "state": state}, float(status.get("state") == state)) for state in STATES]
    found.append(("binlog_archive_gap", labels, float(gap)))
    figures = {"seen_timestamp_seconds": status.get("time"), "lag_bytes": status.get("lag_bytes"), "complete_timestamp_seconds": status.get("synced")}
    return found + [("binlog_archive_" + name, labels, float(value)) for name, value in figures.items() if value is not None]


def text(samples: Iterable[Sample]) -> str:
    """Return samples in the text format: https://prometheus.io/docs/instrumenting/exposition_formats/."""
    families: Dict[str, List[str]] = {}
    for name, labels, value in samples:
        inside = ",".join('%s="%s"' % (key, _escaped(each)) for key, each in labels.items())
        families.setdefault(name, []).append("stillpoint_%s{%s} %s" % (name, inside, repr(round(float(value), 6))))
    lines: List[str] = []
    for name, found in families.items():
        lines += ["# HELP stillpoint_%s %s" % (name, _HELP[name]), "# TYPE stillpoint_%s gauge" % name, *found]
    return "".join(line + "\n" for line in lines)


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def write(directory: str, job: str, kind: str, samples: Iterable[Sample], warn: Callable[[str], None]) -> None:
    """Replace a job's file of this kind, as a whole. Everybody may read it: the collector is not root, and there is nothing secret in it."""
    path = os.path.join(directory, "stillpoint_%s_%s.prom" % (job, kind))
    new: Optional[str] = None
    try:
        descriptor, new = tempfile.mkstemp(prefix="." + os.path.basename(path), dir=directory)  # the collector reads *.prom, hidden or not
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text(samples))
            os.fchmod(file.fileno(), 0o644)
        os.rename(new, path)
    except OSError as error:
        if new is not None and os.path.lexists(new):
            os.unlink(new)
        warn("notify.metrics: %s can't be written: %s" % (path, error.strerror))
