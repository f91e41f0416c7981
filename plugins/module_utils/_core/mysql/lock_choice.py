# SPDX-License-Identifier: GPL-3.0-or-later
"""Which lock makes a snapshot of a server one point in time, and the statements of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Tuple

from ..host.errors import StillpointError, UsageError
from .server import Server, Version

AUTO = "auto"

# Locks under which no commit can be under way when the snapshot is taken.
COMMITS_STOPPED = ("backup_stage", "ftwrl")

# RocksDB in MariaDB leaves its last commits prepared until the binary log asks for a checkpoint, which a new log does, and FLUSH ENGINE LOGS
# does not (measured on 10.11); a copy without the binary logs would not start.
_SETTLE = "FLUSH NO_WRITE_TO_BINLOG BINARY LOGS"


@dataclass(frozen=True)
class Method:
    """The statements of one kind of lock.

    :ivar early: harmless to writers, sent while the snapshot is being prepared
    :ivar late: writers wait from the first of these on
    :ivar release: undo both
    :ivar stops_commits: nothing is committed while it is held, so that the binary log stands still
    :ivar limit: makes the server end one of these statements after so many seconds, a fraction included; "" where it can't
    """

    name: str
    early: Tuple[str, ...]
    late: Tuple[str, ...]
    release: Tuple[str, ...]
    stops_commits: bool = True
    limit: str = ""


_LIMIT = "SET STATEMENT max_statement_time = %.3f FOR "  # MariaDB, since 10.1.2

_BACKUP_STAGE = Method(
    "backup_stage",
    ("BACKUP STAGE START",),
    # MyISAM and Aria writers wait from FLUSH on, commits from BLOCK_COMMIT on (MariaDB documentation, BACKUP STAGE)
    ("BACKUP STAGE FLUSH", "BACKUP STAGE BLOCK_DDL", "BACKUP STAGE BLOCK_COMMIT"),
    ("BACKUP STAGE END",),
    limit=_LIMIT,
)
_FTWRL = Method("ftwrl", (), ("FLUSH TABLES WITH READ LOCK",), ("UNLOCK TABLES",))
# LOCK INSTANCE FOR BACKUP stops what makes, renames or removes files, and neither commits nor MyISAM writes (measured on 9.7).
# Before FTWRL it is what keeps that from waiting for an ALTER TABLE while everybody waits for it.
_INSTANCE = Method("instance", ("LOCK INSTANCE FOR BACKUP",), (), ("UNLOCK INSTANCE",), stops_commits=False)
_FTWRL_8 = Method("ftwrl", _INSTANCE.early, _FTWRL.late, (*_FTWRL.release, *_INSTANCE.release))

# (method, flavour) -> the first version that has it, and its statements; a MySQL method is Percona's too. Percona's own LOCK
# TABLES FOR BACKUP does not close tables, as a snapshot of MyISAM needs it, and stops no commits.
_METHODS: Dict[Tuple[str, str], List[Tuple[Version, Method]]] = {
    ("backup_stage", "mariadb"): [((10, 4), _BACKUP_STAGE)],
    ("instance", "mysql"): [((8, 0), _INSTANCE)],
    ("ftwrl", "mariadb"): [((5, 1), _FTWRL), ((10, 1, 2), replace(_FTWRL, limit=_LIMIT))],
    ("ftwrl", "mysql"): [((5, 1), _FTWRL), ((8, 0), _FTWRL_8)],
}


@dataclass(frozen=True)
class Choice:
    """The lock that a run takes, and why.

    :ivar doubt: why what was asked for is less than ``auto`` would take; None where it is as good
    """

    method: Optional[Method]  # None: no lock
    name: str
    reason: str
    doubt: Optional[str] = None

    @property
    def stops_commits(self) -> bool:
        return self.method is not None and self.method.stops_commits


def choose(asked: str, server: Server, besides: Optional[str] = None) -> Choice:
    """Return the Choice for what was asked for, or for ``auto`` the cheapest lock that is enough.

    :param besides: a reason why commits must stop that does not lie in the server
    :raises UsageError: the server does not have the lock
    """
    why = why_commits_must_stop(server) or besides
    if asked == "none":
        return Choice(None, "none", "asked for", why)
    if asked != AUTO:
        method = _method(asked, server)
        if method is None:
            raise UsageError("lock %s does not exist on %s %s: use auto" % (asked, server.flavour, server.version_text))
        return Choice(method, asked, "asked for", None if method.stops_commits else why)
    stage, instance, ftwrl = (_method(name, server) for name in ("backup_stage", "instance", "ftwrl"))
    if stage:
        return Choice(stage, stage.name, "%s stops commits with it without waiting for running statements" % server.version_text)
    if instance and why is None:
        return Choice(instance, instance.name, "every table of users is InnoDB, which comes back from an atomic snapshot: only DDL has to wait")
    if ftwrl:
        return Choice(ftwrl, ftwrl.name, why if instance and why else "%s has nothing cheaper that stops commits" % server.version_text)
    raise StillpointError("%s %s is older than anything that this knows a lock of" % (server.flavour, server.version_text))


def why_commits_must_stop(server: Server) -> Optional[str]:
    """Return why a snapshot that is taken while commits and writes go on would not be one point in time; None where it would."""
    others = server.non_transactional
    if others:
        more = " and %d more are not transactional" % (len(others) - 1) if len(others) > 1 else ""
        return "%s.%s is %s%s: only a lock makes it one point in time with the rest" % (others[0].schema, others[0].name, others[0].engine, more)
    return server.commits_must_stop


def _method(name: str, server: Server) -> Optional[Method]:
    flavour = "mysql" if server.flavour == "percona" else server.flavour
    found = None
    for least, method in _METHODS.get((name, flavour), []):
        if server.version >= least:
            found = method
    if found and found.stops_commits and flavour == "mariadb" and server.rocksdb and server.log_bin:
        return replace(found, late=(*found.late, _SETTLE))
    return found
