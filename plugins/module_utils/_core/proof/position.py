# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a recovered server stands in its binary logs, compared with where it is said to stand.

MariaDB's InnoDB remembers the file and position of its last commit, and tells them when it had something to recover. MySQL's does not
(since 8.0); it remembers the GTIDs that it has executed, where the server has GTIDs. Without either, the end of the binary log on the
snapshot tells: a transaction is logged after it is prepared and before it is committed, so without a prepared one all that was logged
is committed, and nothing else.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from ..binlog import between, xa
from ..binlog.format import MAGIC
from ..binlog.place import Place, base, sequence
from ..binlog.place import logs as logs_in
from ..mysql.connection import Session
from ..mysql.coordinates import Coordinates
from ..mysql.recovery import Recovery
from ..mysql.settings import Settings

SNAPSHOT, SERVER = "the snapshot", "the server"

_GTIDS = "executed GTIDs"
_MOST_MISSING = 10000  # GTIDs that are looked for in the binary log one by one


@dataclass(frozen=True)
class Stands:
    """Where a server stands by its own account.

    :ivar file: of InnoDB's last commit; None where it does not keep it
    :ivar gtid: what is executed; None without GTIDs
    :ivar prepared: transactions of applications that are prepared
    """

    file: Optional[str]
    position: Optional[int]
    gtid: Optional[str]
    prepared: Tuple[xa.Xid, ...] = ()

    def as_dict(self) -> Dict[str, Any]:
        source = "InnoDB" if self.file else "gtid_executed" if self.gtid else None
        return {"file": self.file, "position": self.position, "gtid": self.gtid, "source": source}


@dataclass(frozen=True)
class Logs:
    """The binary logs that can be read.

    :ivar whose: where they lie, for the evidence: on the snapshot, or with the server, whose logs are not changed but only added to
    :ivar sizes: name -> bytes, before anything was started on them
    :ivar end: where the last one holds whole transactions up to; None where it can't be read
    """

    directory: str
    basename: str
    whose: str
    sizes: Mapping[str, int]
    end: Optional[Place]


def find_logs(settings: Settings, on_snapshot: Callable[[str], Optional[str]], *, live: bool = True) -> Optional[Logs]:
    """Return the binary logs of a server: those on the snapshot, else its own; None where there are none to be read.

    :param on_snapshot: gives where a live directory lies on the snapshot, None where it does not
    :param live: its own may be read; they are those of the snapshot, and what was added since
    """
    if not settings.log_bin:
        return None
    own, basename = os.path.split(settings.log_bin)
    for directory, whose in ((on_snapshot(own), SNAPSHOT), (own if live else None, SERVER)):
        sizes = logs_in(directory, basename) if directory else {}
        if directory and sizes:
            last = list(sizes)[-1]
            try:
                end: Optional[Place] = Place(last, between.complete(os.path.join(directory, last)))
            except (between.Unreadable, OSError):
                end = None
            return Logs(directory, basename, whose, sizes, end)
    return None


def stands(session: Session, settings: Settings, recovery: Recovery, *, with_log: bool) -> Stands:
    """Return where a scratch server stands.

    :param with_log: it was started with its binary logs
    """
    gtid = None
    if not settings.is_mariadb and settings.version >= (5, 7):
        gtid = str(session.value("SELECT @@GLOBAL.gtid_executed") or "").replace("\n", "")
    elif settings.is_mariadb and with_log:
        gtid = session.value("SELECT @@GLOBAL.gtid_binlog_pos")
    return Stands(recovery.file, recovery.position, gtid or None, tuple(prepared(session, is_mariadb=settings.is_mariadb)))


def prepared(session: Session, *, is_mariadb: bool) -> List[xa.Xid]:
    """Return the transactions that XA RECOVER lists."""
    found = []
    for row in session.rows("XA RECOVER" if is_mariadb else "XA RECOVER CONVERT XID"):  # a name may be any bytes, which MySQL sends as text
        data, length = row["data"], int(row["gtrid_length"])
        raw = data if isinstance(data, bytes) else bytes.fromhex(str(data)[2:])
        found.append(xa.Xid(int(row["formatID"]), raw[:length], raw[length : length + int(row["bqual_length"])]))
    return found


def compare(session: Session, expected: Coordinates, found: Stands, logs: Optional[Logs]) -> Dict[str, Any]:
    """Return the evidence on whether a server stands at the recorded coordinates, less only what is not transactional.

    :returns: ``expected``, ``recovered``, ``between`` (what was read), ``log_end``, ``compared`` (by what), ``note``; ``open``, which is
        "" where nothing is left open; and ``fault``, which is "" where nothing speaks against it
    """
    until = Place(expected.file, expected.position)
    evidence: Dict[str, Any] = {
        "expected": {"file": until.file, "position": until.position, "gtid": expected.gtid},
        "recovered": found.as_dict(),
        "between": None,
        "log_end": None,
        "compared": None,
        "note": "",
        "open": "",
        "fault": "",
    }
    if found.file and found.position is not None:
        evidence["compared"] = "InnoDB's position"
        _by_position(Place(found.file, found.position), until, logs, found.prepared, evidence)
    elif found.gtid and expected.gtid:
        evidence["compared"] = _GTIDS
        _by_gtid(session, expected.gtid, found.gtid, until, logs, evidence)
    if not found.file and logs and logs.whose == SNAPSHOT:
        _by_end(until, logs, evidence)
    if evidence["compared"] is None:
        evidence["note"] = evidence["note"] or "the position could not be compared: the engine keeps none, and the binary logs are not on the snapshot"
    return evidence


def given(found: Stands, logs: Optional[Logs]) -> Optional[Coordinates]:
    """Return the coordinates that a recovered server without prepared transactions gives; None where nothing tells them."""
    if logs and logs.whose == SNAPSHOT and logs.end:
        place, source = logs.end, "the end of the binary log on the snapshot"
    elif found.file and found.position is not None and (logs is None or _may_be_in(logs, Place(found.file, found.position))):
        place, source = Place(found.file, found.position), "InnoDB"
    elif found.gtid:
        place, source = Place("", 0), "gtid_executed"
    else:
        return None
    return Coordinates(place.file, place.position, found.gtid, source="proof: " + source)


def lies_between(place: Coordinates, ends: Tuple[Coordinates, Coordinates]) -> bool:
    """Tell whether coordinates lie between two others; those without a file are not compared."""
    if not place.file:
        return True
    first, here, last = (Place(each.file, each.position).order for each in (ends[0], place, ends[-1]))
    return first <= here <= last


def _by_position(stood: Place, until: Place, logs: Optional[Logs], prepared: Sequence[xa.Xid], evidence: Dict[str, Any]) -> None:
    if stood == until:
        return
    where = "InnoDB recovered to %s, recorded is %s" % (stood, until)
    if logs is None:
        evidence["open"] = where + ", and there are no binary logs to show what lies between"
        return
    try:
        since = _comparable(stood, logs)
        if since is None:
            evidence["compared"] = None
            evidence["note"] = "InnoDB's last commit that it knows of is at %s, in a log that was reset or renamed since" % (stood,)
            if logs.whose == SNAPSHOT:
                _by_end(until, logs, evidence)
            return
        if since.order > until.order:
            evidence["fault"] = where
            return
        found = between.read(logs.directory, logs.basename, since, until)
    except between.Unreadable as error:
        if logs.whose != SNAPSHOT:
            evidence["open"] = "%s, and what lies between can't be read: %s" % (where, error)
            return
        evidence["note"] = "%s; what lies between can't be read (%s)" % (where, error)
        _by_end(until, logs, evidence)
        return
    if since != stood:
        evidence["note"] = "%s, which InnoDB's last commit is in, is there no more; what was logged since %s was read" % (stood.file, since.file)
    evidence["between"] = _told(found, since, logs)
    lost = [group for group in found.transactional if not _is_there(group, found, prepared)]
    if lost:
        first = lost[0]
        evidence["fault"] = "%s, and between them is a transaction, at %s:%d" % (where, first.file, first.position)


def _is_there(group: between.Group, found: between.Between, prepared: Sequence[xa.Xid]) -> bool:
    """Tell whether the engine has what an application's transaction did, of which it keeps no position: prepared, it is still there or was
    ended later; ended, it is there no more."""
    if group.xid is None:
        return False
    if group.ends:
        again = [other for other in found.groups if other.xid == group.xid and _place(other) > _place(group)]
        return bool(again) or group.xid not in prepared
    return group.xid in prepared or any(other.xid == group.xid and other.ends and _place(other) > _place(group) for other in found.groups)


def _place(group: between.Group) -> Tuple[int, int]:
    return Place(group.file, group.position).order


def _comparable(stood: Place, logs: Logs) -> Optional[Place]:
    """Return from where on the logs have what came after InnoDB's last commit: from its place, or from the first log where that one was
    purged. None where it is a place of other logs: each rollback segment keeps the place of its own last commit, and MariaDB tells the
    one with the highest name, so that after RESET MASTER it is for a while one of before.

    :raises Unreadable: the log is encrypted
    """
    if _is_in(logs, stood):
        return stood
    oldest = next(iter(logs.sizes))
    purged = base(stood.file) == logs.basename and stood.order[0] < sequence(oldest)
    return Place(oldest, len(MAGIC)) if purged else None


def _is_in(logs: Logs, place: Place) -> bool:
    """Tell whether an event of these logs begins or ends at a place."""
    return place.file in logs.sizes and between.has(logs.directory, place)


def _may_be_in(logs: Logs, place: Place) -> bool:
    try:
        return _is_in(logs, place)
    except between.Unreadable:
        return True


def _by_end(until: Place, logs: Logs, evidence: Dict[str, Any]) -> None:
    last = list(logs.sizes)[-1]
    evidence["log_end"] = {"file": last, "position": logs.sizes[last]}
    evidence["compared"] = evidence["compared"] if evidence["compared"] == _GTIDS else "the end of the binary log"
    end = Place(last, logs.sizes[last])
    if end != until and not evidence["fault"]:
        evidence["fault"] = "the binary log on the snapshot ends at %s, recorded is %s" % (end, until)


def _by_gtid(session: Session, expected: str, stood: str, until: Place, logs: Optional[Logs], evidence: Dict[str, Any]) -> None:
    row = session.rows("SELECT GTID_SUBTRACT(%s, %s) AS missing, GTID_SUBTRACT(%s, %s) AS extra", (expected, stood, stood, expected))[0]
    missing, extra = (str(row[key]).replace("\n", "") for key in ("missing", "extra"))
    if extra:
        evidence["fault"] = "the server recovered GTIDs that are not among the recorded: %s" % extra
        return
    if not missing:
        return
    names = expanded(missing)
    lacks = "the server recovered without the recorded GTIDs %s" % missing
    if logs is None or names is None:
        evidence["open"] = lacks + ", and the binary log does not explain it"
        return
    since = Place(until.file, len(MAGIC))
    try:
        found = between.read(logs.directory, logs.basename, since, until)
    except between.Unreadable as error:
        evidence["open"] = "%s, and what lies between can't be read: %s" % (lacks, error)
        return
    evidence["between"] = _told(found, since, logs)
    harmless: Set[str] = {group.gtid for group in found.groups if not group.transactional}
    lacking = [name for name in names if name not in harmless]
    if lacking:
        evidence["fault"] = "the server recovered without the transaction %s, which is among the recorded" % lacking[0]


def expanded(gtids: str) -> Optional[List[str]]:
    """Return each GTID of a set of MySQL's (``uuid:1-3:5,uuid:7``) by itself; None for one that is too large or has tags."""
    names: List[str] = []
    for part in gtids.split(","):
        uuid, *intervals = part.strip().split(":")
        for interval in intervals:
            first, _dash, last = interval.partition("-")
            if not first.isdigit() or not (last or first).isdigit():
                return None
            if len(names) + int(last or first) - int(first) >= _MOST_MISSING:
                return None
            names += ["%s:%d" % (uuid, number) for number in range(int(first), int(last or first) + 1)]
    return names


def _told(found: between.Between, since: Place, logs: Logs) -> Dict[str, Any]:
    return {
        "since": str(since),
        "events": found.events,
        "groups": len(found.groups),
        "transactional": len(found.transactional),
        "read_from": logs.whose,
    }
