# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a generation back.

In place, each tree is copied into a staging directory beside what it will replace, and compared with the manifest while that
happens; then the server is stopped, staging and live data change places in one step, and the server is started. What was
replaced stays, until it is discarded. Binary logs are replayed onto the staged copy, before anything is stopped. At every
moment either the old or the new data is complete under one name.
"""

from __future__ import annotations

import os
import shlex
import time
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ...host import durable, service
from ...host.errors import StillpointError
from ...host.process import undisturbed
from ...host.reporter import Reporter
from ...repository.generation import now
from .. import gtid_state, server_logs
from .. import journal as journals
from ..rollback.plan import refuse_going_back
from . import activity, cluster, exchange, targets
from . import copy as copying
from .plan import ALL, DATABASE, FILES, RestorePlan
from .replaced import record


def execute(plan: RestorePlan, reporter: Reporter) -> Dict[str, Any]:
    """Put a generation back and return ``{generation, part, replaced, files, bytes, duration_s, service, recovery, disabled,
    warnings}``; recovery is None where nothing was replayed, disabled says how the server is let do what it is kept from.

    :raises BusyError: another restore is running
    :raises StillpointError: it says whether the live data was touched
    """
    started = time.monotonic()
    with plan.generation.hold():
        kept, journal = _elsewhere(plan, reporter) if plan.to is not None else _in_place(plan, reporter)
    return {
        "generation": plan.generation.name,
        "part": plan.part,
        "replaced": kept,
        "files": plan.files,
        "bytes": plan.bytes,
        "duration_s": round(time.monotonic() - started, 1),
        "service": plan.unit,
        "recovery": journal.get("recovery"),
        "disabled": journal.get("disabled") or [],
        "warnings": list(plan.warnings),
    }


def _in_place(plan: RestorePlan, reporter: Reporter) -> Tuple[List[str], Dict[str, Any]]:
    """Replace live data; return what is kept of that, and the journal."""
    with journals.alone(plan.state):
        refuse_going_back(plan.state)  # one may have begun since
        journal = journals.read(plan.state)
        if plan.resumes:
            if journal is None or journal["path"] != plan.generation.path:
                raise StillpointError("the interrupted restore of %s has been finished by another run" % plan.generation.name)
        else:
            if journal and journal["phase"] != journals.COPYING:
                raise StillpointError("another restore was interrupted meanwhile: run this again")
            journal = _copied(plan, journal, reporter)
        if journal["phase"] == journals.REPLACED:
            # The server may have been started since, by a boot for one: what it has written is not to be taken for what was replaced.
            kept = journal.get("kept") or []
        else:
            _stopped(plan, journal, reporter)
            journal = _onward(plan, journal)
            reporter.stage("replace")
            with undisturbed():
                kept = _replace(plan, journal, reporter)
        if plan.unit:
            reporter.stage("start")
            service.allow(plan.unit)
            _start(plan, plan.unit, kept, journal["new_cluster"])
        journals.forget(plan.state)
        return [each["path"] for each in kept], journal


def _copied(plan: RestorePlan, journal: Optional[Dict[str, Any]], reporter: Reporter) -> Dict[str, Any]:
    """Copy and check every tree, and return the journal that says so."""
    if journal:
        copying.drop(journal)
    journal = {
        "format": 1,
        "phase": journals.COPYING,
        "job": str(plan.generation.summary.get("job")),
        "host": os.path.basename(os.path.dirname(os.path.dirname(plan.generation.path))),
        "generation": plan.generation.name,
        "path": plan.generation.path,
        "parts": _parts(plan),
        "part": plan.part,
        "time": now(),
        "moment": plan.moment,
        "unit": plan.unit,
        "triggers": plan.triggers,
        "targets": [{**vars(target), "tree": target.tree._asdict()} for target in plan.targets],
        "logs": vars(plan.logs) if plan.logs else None,
        "archives": [archive.path for archive in plan.archives],
        "identities": [],
        "new_cluster": plan.node is not None,
        "recovery": None,
    }
    try:
        journals.write(plan.state, journal)
        reporter.stage("copy")
        done = 0
        for target in plan.targets:
            _make_parents(os.path.dirname(target.staging))
            durable.remove_tree(target.staging)
            copying.copy(plan.generation, target, done, plan.bytes, reporter)
            done += target.tree.bytes
        journal = {**journal, "recovery": _replayed(plan, reporter), "disabled": _disabled(plan)}
        _renew(plan)
        if plan.node:
            cluster.prepare(targets.datadir_of(plan.targets).staging)
        for target in plan.targets:
            durable.sync_file_system(os.path.dirname(target.staging))
        journal["old_logs"] = server_logs.coming_back(plan.targets, plan.archives)
        if plan.logs:
            server_logs.drop_index(plan.logs, plan.targets)
        journal = {
            **journal,
            "phase": journals.READY,
            "identities": [durable.identity(target.staging) for target in plan.targets],
            "old": [None if target.mount_point else durable.identity(target.path) for target in plan.targets],
        }
        journals.write(plan.state, journal)
    except BaseException as error:
        copying.drop(journal)
        journals.forget(plan.state)
        if isinstance(error, OSError):
            raise _untouched(plan, error) from error
        raise
    return journal


def _replayed(plan: RestorePlan, reporter: Reporter) -> Optional[Dict[str, Any]]:
    """Replay what the plan says onto the copy, which nothing depends on yet, and return what came of it.

    :raises StillpointError: it failed; the live data was not touched
    """
    if plan.replay is None:
        return None
    try:
        return plan.replay.run(_where(plan), reporter)
    except StillpointError as error:
        raise StillpointError("%s; the live data was not touched" % error) from error


def _where(plan: RestorePlan) -> Mapping[str, str]:
    """Return for each path of the server the directory of its copy."""
    return {os.path.realpath(target.tree.source): target.staging for target in plan.targets if not target.tree.is_files}


def _disabled(plan: RestorePlan) -> List[str]:
    """Keep the copy of another host's server from doing what it did there, and return in sentences how it is let do so.

    :raises StillpointError: that is not possible; the live data was not touched
    """
    if plan.activity is None:
        return []
    try:
        done = activity.disable(plan.activity, _where(plan))
    except StillpointError as error:
        raise StillpointError("%s; the live data was not touched" % error) from error
    return activity.way_back(plan.activity, done, targets.datadir_of(plan.targets).path)


def _renew(plan: RestorePlan) -> None:
    if targets.databases(plan.targets):
        gtid_state.renew(targets.datadir_of(plan.targets).staging)


def _onward(plan: RestorePlan, journal: Dict[str, Any]) -> Dict[str, Any]:
    """Note which GTIDs the server had given out when it was stopped, and have a copy that brings logs begin after them; return the journal."""
    if plan.logs is None or "gtids" in journal:
        return journal
    try:
        journal = {**journal, "gtids": gtid_state.newest(plan.generation, plan.logs, plan.archives)}
        if journal["gtids"] and gtid_state.begin_after(journal["gtids"], plan.logs, plan.targets):
            journal["old_logs"] = []
        journals.write(plan.state, journal)
    except OSError as error:
        raise StillpointError(
            "%s could not be prepared: %s (%s); the live data was not touched: %s"
            % (plan.generation.name, error.strerror, error.filename, journals.ways_out(journal))
        ) from error
    return journal


def _make_parents(path: str) -> None:
    """Make a directory that the backup does not hold, above one that it does, as such directories are: open to read."""
    if not os.path.isdir(path):
        _make_parents(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def _parts(plan: RestorePlan) -> str:
    if len(plan.targets) == len(plan.generation.trees) and plan.part is None:
        return ALL
    return FILES if plan.targets[0].tree.is_files else DATABASE


def _untouched(plan: RestorePlan, error: OSError) -> StillpointError:
    name = " (%s)" % error.filename if error.filename else ""
    return StillpointError("%s could not be put back: %s%s; the live data was not touched" % (plan.generation.name, error.strerror, name))


def _stopped(plan: RestorePlan, journal: Dict[str, Any], reporter: Reporter) -> None:
    """Make sure that no server works on what is about to be replaced.

    :raises StillpointError: one does; the live data was not touched, and the server runs if it did before
    """
    stopped = False
    try:
        if plan.unit:
            reporter.stage("stop")
            stopped = True
            service.stop(plan.unit, plan.triggers)
            service.forbid(plan.unit)
        targets.refuse_running(plan.targets)
    except BaseException as error:
        if not plan.resumes:
            with undisturbed():
                _give_back(plan, journal, plan.unit if stopped else None, reporter)
            if isinstance(error, OSError):
                raise _untouched(plan, error) from error
        raise


def _give_back(plan: RestorePlan, journal: Dict[str, Any], unit: Optional[str], reporter: Reporter) -> None:
    """Remove the copy, which may have filled the disk that the server needs, and start the server again."""
    try:
        journals.write(plan.state, {**journal, "phase": journals.COPYING})  # before anything is removed: what is left of a copy is not to be put back
    except OSError:
        journals.forget(plan.state)  # that takes no room
    try:
        copying.drop(journal)
    except StillpointError as error:
        reporter.warn("what was copied is left beside the live data: %s" % error)
    if unit:
        _start_again(plan, unit, reporter)
    journals.forget(plan.state)


def _start_again(plan: RestorePlan, unit: str, reporter: Reporter) -> None:
    try:
        service.allow(unit)
        service.start(unit, targets.datadir(plan.targets), plan.triggers, plan.node is not None)
    except StillpointError as error:
        reporter.warn("%s; the data it works on was not touched" % error)


def _replace(plan: RestorePlan, journal: Dict[str, Any], reporter: Reporter) -> List[Dict[str, Any]]:
    """Exchange each tree, whatever of that has been done before, and return what was kept."""
    try:
        server_logs.tell(plan.archives, plan.generation.name, journal.get("old_logs") or [], reporter)
        aside = plan.logs.set_aside() if plan.logs else []
        if plan.logs and journal.get("gtids") and plan.logs.outside(plan.logs.basename):
            gtid_state.leave(plan.logs.basename, journal["gtids"], os.path.dirname(plan.logs.basename))
        kept = []
        for target, new, old in zip(plan.targets, journal["identities"], journal["old"]):
            if target.mount_point:
                exchange.contents(target, new)
            else:
                exchange.directories(target, new, old)
            found = [exchange.kept(target, old), exchange.later(target)]
            kept += [{"path": path, "target": target.path, "identity": durable.identity(path)} for path in found if path]
        kept += [{"path": path, "target": plan.logs.basename + ".*", "identity": durable.identity(path)} for path in aside if plan.logs]
        record(plan.state, journal, kept)
        journals.write(plan.state, {**journal, "phase": journals.REPLACED, "kept": kept})
    except OSError as error:
        raise StillpointError(
            "the exchange of old and new data was interrupted: %s (%s); both are complete on the disk: %s"
            % (error.strerror, error.filename2 or error.filename, journals.ways_out(journal))
        ) from error
    return kept


def _start(plan: RestorePlan, unit: str, kept: Sequence[Dict[str, Any]], new_cluster: bool) -> None:
    """Start the server.

    :raises StillpointError: it does not start; the sentence says how to go back
    """
    try:
        service.start(unit, targets.datadir(plan.targets), plan.triggers, new_cluster)
    except StillpointError as error:
        journals.forget(plan.state)
        back = ["systemctl stop %s" % unit]
        for target, each in ((target, each) for target in plan.targets for each in kept if each["target"] == target.path):
            if each["path"] == exchange.later(target):
                continue
            path, old = shlex.quote(target.path), shlex.quote(each["path"])
            if target.mount_point:
                back.append("exchange what is in %s for what is in %s" % (path, old))
            else:
                back.append("mv %s %s.restored && mv %s %s" % (path, path, old, path))
        for path, place in plan.logs.way_back() if plan.logs else []:
            back.append("mv %s%s %s" % (shlex.quote(path), "/*" if os.path.isdir(path) else "", shlex.quote(place)))
        back.append("systemctl start %s" % unit)
        raise StillpointError(
            "generation %s is in place, but %s; to go back: %s" % (plan.generation.name, error, "; ".join(back))
        ) from error


def _elsewhere(plan: RestorePlan, reporter: Reporter) -> Tuple[List[str], Dict[str, Any]]:
    """Copy into a directory: everything has its final name only when all of it is there and checked."""
    if plan.to is None:
        raise RuntimeError("called before it was begun")
    made = not os.path.lexists(plan.to)
    staging = os.path.join(plan.to, targets.NEW)
    try:
        os.makedirs(plan.to, mode=0o700, exist_ok=True)
        durable.remove_tree(staging)
        os.mkdir(staging, 0o700)
        reporter.stage("copy")
        done = 0
        for target in plan.targets:
            os.makedirs(os.path.dirname(target.staging), mode=0o700, exist_ok=True)
            copying.copy(plan.generation, target, done, plan.bytes, reporter)
            done += target.tree.bytes
        recovery = _replayed(plan, reporter)
        _renew(plan)
        durable.sync_file_system(plan.to)
        for name in sorted(os.listdir(staging)):
            durable.rename_to_free_name(os.path.join(staging, name), os.path.join(plan.to, name))
        os.rmdir(staging)
        return [], {"recovery": recovery}
    except BaseException as error:
        if os.path.isdir(staging):
            durable.remove_tree(staging)
        if made and os.path.isdir(plan.to) and not os.listdir(plan.to):
            os.rmdir(plan.to)
        if isinstance(error, OSError):
            raise _untouched(plan, error) from error
        raise
