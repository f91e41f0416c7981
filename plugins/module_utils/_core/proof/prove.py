# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof: a scratch server starts on the snapshot that the copy was read from, and tells whether it is what it is said to be.

What is proven is the snapshot. The copy was read from it, every file with the checksum that the manifest has, and `verify` compares
the copy with those. The snapshot is written to here, so nobody reads it for the copy any more.
"""

from __future__ import annotations

import os
import struct
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from threading import Thread
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Protocol, Sequence, Set, Tuple

from ..host.errors import StillpointError
from ..host.mounts import is_below
from ..host.steps import reached
from ..host.text import iso
from ..job import options
from ..lvm.targets import Target
from ..mysql.connection import READ_TIMEOUT, Login, ServerError, Session
from ..mysql.coordinates import Coordinates
from ..mysql.messages import table_of
from ..mysql.recovery import Recovery, is_of_host
from ..mysql.scratch import Scratch, ScratchFailed, scratch_server
from ..mysql.settings import Settings
from ..repository import manifest
from ..repository.generation import GOOD, Generation
from ..repository.unchanged import DOUBTFUL
from . import position as standing
from . import tables as checking
from .known_faults import Judge, KnownFault, recorded_tables
from .production import Production
from .tables import Checked

# Seconds for all of CHECK TABLE; a hang ends there, and so does the time that the snapshot can be kept.
CHECK_LIMIT = 6 * 3600.0
_TICK = 0.2
_END_LIMIT = 10.0  # seconds for a server that has cut the connection to end

_REDO_MOST = 1 << 30  # a snapshot that needs more is extended
_OWN_FILES = 64 << 20  # bytes: ibtmp1, doublewrite files

_ACCEPT = "; if production has the same fault, name the table in verify.accept"

SUBJECT = "the snapshot that the copy was read from"


class ProofFailed(StillpointError):
    """The backup was published, and the proof that a server starts on it failed, or could not be done."""


@dataclass(frozen=True)
class Claim:
    """What a backup says of its databases, to be proven.

    :ivar coordinates: as recorded; None where none were
    :ivar commits_stopped: a lock stopped them, so that nothing can have been under way
    :ivar tables: which tables are to be checked: all, changed, none
    :ivar before: the newest generation whose tables are proven; those that did not change since need not be checked again
    :ivar between: two coordinates between which the point in time lies, where no more than that is known
    :ivar later: it is proven on a copy of the backup: the server has gone on since, and its binary logs tell nothing of then any more
    :ivar login: for asking the server itself whether it has a fault too; None where it can't be asked
    :ivar accept: tables whose faults the job accepts, where the server can't be asked
    :ivar recorded: tables that the backup's own proof found the server to have the fault of
    """

    settings: Settings
    coordinates: Optional[Coordinates]
    commits_stopped: bool
    tables: str
    before: Optional[Generation] = None
    between: Optional[Tuple[Coordinates, Coordinates]] = None
    later: bool = False
    login: Optional[Login] = None
    accept: Sequence[str] = ()
    recorded: Sequence[str] = ()


@dataclass
class Proof:
    """What was found.

    :ivar reason: why it failed, or could not be done; "" where it passed
    :ivar refuted: the data are not what they were said to be; else whatever the reason is, it lies elsewhere
    :ivar given: coordinates that the proof gives, where none were recorded, or others
    :ivar prepared: transactions that are neither committed nor rolled back, those of applications left out
    :ivar known: faults that the production server has too
    """

    reason: str = ""
    refuted: bool = False
    time: str = ""
    duration_s: float = 0.0
    of: str = SUBJECT
    program: str = ""
    version: str = ""
    recovery: Optional[Recovery] = None
    position: Dict[str, Any] = field(default_factory=dict)
    given: Optional[Coordinates] = None
    prepared: Optional[int] = None
    tables: Dict[str, Any] = field(default_factory=dict)
    known: List[KnownFault] = field(default_factory=list)

    def as_dict(self) -> Dict[str, Any]:
        """Return it as the manifest has it; ``ok`` is None where it could not be done."""
        recovery = self.recovery
        return {
            "ok": not self.reason or (False if self.refuted else None),
            "reason": self.reason,
            "time": self.time,
            "duration_s": self.duration_s,
            "of": self.of,
            "program": self.program,
            "version": self.version,
            "recovery": {"seconds": recovery.seconds, "crash_recovery": recovery.crash_recovery, "errors": list(recovery.errors)} if recovery else None,
            "position": self.position,
            "prepared": self.prepared,
            "tables": self.tables,
            "known_faults": [fault.as_dict() for fault in self.known],
        }


class Placed(Protocol):
    """Where the data that a server is to be started on lies."""

    def directory(self, source: str) -> str:
        """Return where a live directory of the server's lies there."""

    def find_any(self, source: str, targets: Sequence[Target]) -> Optional[str]:
        """Return where any live path lies there; None where it does not."""


class _Refuted(StillpointError):
    """Something is not as it was said to be."""


def writes(settings: Settings) -> int:
    """Return bytes that a scratch server writes to the snapshot, as far as that can be known: what the redo log makes it write, and
    files of its own."""
    return min(settings.redo_bytes, _REDO_MOST) + _OWN_FILES


def newest_proven(generations: Sequence[Generation]) -> Optional[Generation]:
    """Return the newest generation whose tables are proven, each of them checked or not changed since it was."""
    for generation in generations:
        proof = generation.proof or {}
        if generation.state == GOOD and (proof.get("tables") or {}).get("mode") in (options.ALL, options.CHANGED):
            return generation
    return None


def prove(claim: Claim, mounted: Placed, targets: Sequence[Target], watch: Callable[[], None]) -> Proof:
    """Return the Proof of a claim. That something fails, or can't be done, is a Proof too, and no exception.

    :param mounted: the snapshots, mounted to be written to; or a copy of the backup
    :param targets: what the snapshots were taken of
    :param watch: called a few times a second: keeps the snapshots valid, and raises when one is lost
    """
    began = time.monotonic()
    proof = Proof(time=iso(datetime.now(timezone.utc)), version=claim.settings.version_text)
    try:
        _prove(claim, mounted, targets, watch, proof)
        watch()
    except ScratchFailed as error:
        proof.recovery = error.recovery or proof.recovery
        proof.reason, proof.refuted = str(error), not error.of_host
        if error.recovery and error.recovery.prepared and proof.prepared is None:
            proof.prepared = len([line for line in error.recovery.prepared if "in the XA prepared state" in line]) or None
    except _Refuted as error:
        proof.reason, proof.refuted = str(error), not is_of_host(str(error))
    except struct.error as error:
        proof.reason = "an event of the binary log can't be read: %s" % error
    except (StillpointError, OSError) as error:
        proof.reason = str(error)
    proof.duration_s = round(time.monotonic() - began, 1)
    return proof


def _prove(claim: Claim, mounted: Placed, targets: Sequence[Target], watch: Callable[[], None], proof: Proof) -> None:
    settings = claim.settings
    proof.program = settings.find_program()
    where = {path: mounted.directory(path) for _role, path in settings.paths}
    datadir = where[settings.datadir]
    same, files = _unchanged(claim, datadir)
    logs = standing.find_logs(settings, lambda path: mounted.find_any(path, targets), live=not claim.later)
    # A server that is restored from this has the binary logs that were copied, and no others, to decide about prepared transactions.
    # Where a lock stopped commits there is nothing to decide, and it has to start without any.
    copied = any(is_below(os.path.dirname(settings.log_bin), path) for _role, path in settings.paths)
    with_log = bool(settings.log_bin) and copied and not claim.commits_stopped
    production = Production(claim.login, settings.datadir, datadir, watch) if claim.login else None
    judge = Judge(production, claim.accept, claim.recorded, settings.plugins, proof.known)
    checked = Checked()
    with scratch_server(settings, where, discard=not same, binary_log=with_log, tick=watch) as server:
        proof.recovery = server.recovery
        with _session(server, proof, judge, checked) as session:
            reached("scratch server recovered", server.process.pid)
            found = standing.stands(session, settings, server.recovery, with_log=with_log)
            _look_at_prepared(found, judge, proof)
            _place(claim, session, found, logs, proof)
            proof.tables = {"mode": claim.tables}
            if claim.tables != options.NONE:
                names = checking.tables(session)
                checked.unchanged = len([name for name in names if name in same])
                _check(claim, session, server, [name for name in names if name not in same], checked, judge, watch, proof)
    # What was in the redo log alone is in the files now that the server has stopped in order.
    written = sorted(same - checking.unchanged(checking.files_of(datadir), files)) if same else []
    if written:
        checked.unchanged -= len(written)
        with scratch_server(settings, where, discard=True, tick=watch) as server, _session(server, proof, judge, checked) as session:
            _check(claim, session, server, written, checked, judge, watch, proof)


def _look_at_prepared(found: standing.Stands, judge: Judge, proof: Proof) -> None:
    """Refuse what the server itself has left prepared; what an application has, it may still want to commit."""
    internal = [xid for xid in found.prepared if xid.is_internal]
    proof.prepared = len(internal)
    if internal:
        raise _Refuted("it holds %d prepared transactions, which are neither committed nor rolled back" % len(internal))
    for xid in found.prepared:
        judge.transaction(str(xid))


@contextmanager
def _session(server: Scratch, proof: Proof, judge: Judge, checked: Checked) -> Iterator[Session]:
    """Give a session with a scratch server; refuse one that has logged an error that production does not have, in the end."""
    first = proof.recovery or server.recovery
    try:
        with Session(server.login, read_timeout=int(CHECK_LIMIT) + READ_TIMEOUT) as session:
            yield session
    except ServerError as error:
        raise _with_cause(error, server) from None
    errors = server.said().errors
    proof.recovery = replace(first, errors=errors)
    against = judge.against(errors, checked.complaints)
    if against:
        raise _Refuted("the server says: %s%s" % (against[0], _ACCEPT if table_of(against[0]) else ""))


def _unchanged(claim: Claim, datadir: str) -> Tuple[Set[checking.Name], Mapping[str, Tuple[int, int]]]:
    """Return the tables whose files are those of the generation before, and size and time of each file."""
    if claim.tables != options.CHANGED or claim.before is None:
        return set(), {}
    files = checking.files_of(datadir)
    known = recorded_tables(claim.before.proof)
    try:
        same = checking.unchanged(files, _files_before(claim.before))
        return {name for name in same if "%s.%s" % name not in known}, files
    except manifest.Damaged:  # what was proven then is not known any more: every table is checked
        return set(), {}


def _place(claim: Claim, session: Session, found: standing.Stands, logs: Optional[standing.Logs], proof: Proof) -> None:
    """Compare where the server stands with the coordinates; let it give them where commits went on, and something may have been logged
    between the look at the coordinates and the snapshot."""
    recorded = claim.coordinates if claim.coordinates and claim.coordinates.file else None
    known = recorded.as_dict() if recorded else None
    if claim.later and not claim.commits_stopped:
        note = "commits went on while the snapshot was taken, so there is no place to compare with"
        proof.position = {"recorded": known, "recovered": found.as_dict(), "note": note}
        return
    given = None if claim.commits_stopped or not claim.settings.log_bin else standing.given(found, logs)
    if given and (given.file or not recorded):
        proof.position = {"recorded": known, "recovered": found.as_dict(), "given": given.as_dict()}
        if claim.between and not standing.lies_between(given, claim.between):
            raise _Refuted("it stands at %s:%d, which is not between the positions before and after the snapshot" % (given.file, given.position))
        if recorded is None or (recorded.file, recorded.position) != (given.file, given.position):
            proof.given = given
    elif recorded:
        proof.position = standing.compare(session, recorded, found, logs)
        if proof.position["fault"]:
            raise _Refuted(proof.position["fault"])
        if proof.position["open"] and claim.later:
            proof.position["note"] = proof.position["open"]
        elif proof.position["open"]:
            raise StillpointError(proof.position["open"])


def _check(
    claim: Claim,
    session: Session,
    server: Scratch,
    names: Sequence[checking.Name],
    checked: Checked,
    judge: Judge,
    watch: Callable[[], None],
    proof: Proof,
) -> None:
    """Check tables. Those with a fault that production has too count as checked."""
    try:
        _meanwhile(lambda: checking.check(session, names, checked, lambda: server.said().errors), _limited(watch, server))
        lacking = [line for line in server.said().errors if is_of_host(line) and not judge.is_of_extra_plugin(line)] if checked.complaints else []
        against = [] if lacking else [complaint for complaint in checked.complaints if not judge.table(complaint)]
    except (ServerError, ScratchFailed) as error:
        raise _with_cause(error, server, "; it was checking %s" % checked.current) from None
    finally:
        proof.tables = {"mode": claim.tables, "since": claim.before.name if claim.before else None, **checked.as_dict()}
    proof.tables.update(checking.complained(against))
    lacking += [complaint.text for complaint in against[:1] if is_of_host(complaint.text)]
    if lacking:
        raise StillpointError("its tables can't be checked on this host: %s" % lacking[0])
    if against:
        raise _Refuted("CHECK TABLE finds %d of its tables damaged: %s%s" % (len(against), against[0].text, _ACCEPT))


def _with_cause(error: StillpointError, server: Scratch, doing: str = "") -> ScratchFailed:
    """Return an error with what the server itself says where it has ended."""
    try:
        if isinstance(error, ServerError) and error.connection_lost:
            server.process.wait(_END_LIMIT)
        server.check()
    except ScratchFailed as ended:
        error = ended
    except subprocess.TimeoutExpired:
        pass
    of_host = error.of_host if isinstance(error, ScratchFailed) else is_of_host(str(error))
    return ScratchFailed("%s%s" % (error, doing), server.said(), of_host=of_host)


def _files_before(generation: Generation) -> Dict[str, Tuple[int, int]]:
    """Return size and time of the files of each schema, by their names below the data directory, as a manifest has them. A file that was
    written just before that generation's snapshot is left out: its time does not prove that it was not written again just after it."""
    found = {}
    doubtful = int((generation.time.timestamp() - DOUBTFUL) * 1e9)
    for entry in manifest.entries(generation.path):
        tree, _slash, name = os.fsdecode(entry.path).partition("/")
        if tree == "mysql" and entry.type == manifest.FILE and name.count("/") == 1 and entry.mtime_ns < doubtful:
            found[name] = (entry.size, entry.mtime_ns)
    return found


def _limited(watch: Callable[[], None], server: Scratch) -> Callable[[], None]:
    end = time.monotonic() + CHECK_LIMIT

    def tick() -> None:
        watch()
        server.check()
        if time.monotonic() > end:
            raise ScratchFailed("the check of the tables did not end within %g s" % CHECK_LIMIT, of_host=True)

    return tick


def _meanwhile(work: Callable[[], None], tick: Callable[[], None]) -> None:
    """Do the work in another thread and call tick until it is done; an exception of either ends the wait. The work then ends as soon as
    the server does that it talks to."""
    errors: List[BaseException] = []

    def worker() -> None:
        try:
            work()
        except BaseException as error:  # pylint: disable=broad-exception-caught  # raised again below
            errors.append(error)

    thread = Thread(target=worker, daemon=True)
    thread.start()
    while thread.is_alive():
        tick()
        thread.join(_TICK)
    if errors:
        raise errors[0]
