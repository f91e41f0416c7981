# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a generation back in place.

Each tree is copied into a staging directory beside what it will replace, and compared with the manifest while that happens; then the server is
stopped, staging and live data change places in one step, and the server is started. What was replaced stays, until it is discarded. Binary logs are
replayed onto the staged copy, before anything is stopped. At every moment either the old or the new data is complete under one name.
"""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import replace
from typing import List, Optional, Tuple

from ...host import durable
from ...host.errors import StillpointError
from ...host.process import undisturbed
from ...host.reporter import Reporter
from ...repository.generation import now
from .. import gtid_state, server_logs
from .. import journal as journals
from ..journal import Journal, KeptPath
from ..result import RestoreResult
from ..rollback.plan import refuse_going_back
from ..unit import Unit
from . import activity, cluster, exchange, targets
from . import copy as copying
from .plan import InPlacePlan
from .replaced import record


def execute(plan: InPlacePlan, reporter: Reporter) -> RestoreResult:
    """Put a generation back in place.

    :raises BusyError: another restore is running
    :raises StillpointError: it says whether the live data was touched
    """
    started = time.monotonic()
    with plan.generation.hold(), journals.alone(plan.state):
        refuse_going_back(plan.state)  # one may have begun since
        done = _in_place(plan, reporter)
    return RestoreResult.of_trees(
        plan.generation.name,
        [target.tree for target in plan.targets],
        started,
        done.part,
        replaced=[each.path for each in done.kept],
        service=done.server.name if done.server else None,
        recovery=done.recovery,
        disabled=list(done.disabled),
        warnings=list(plan.warnings),
    )


def _in_place(plan: InPlacePlan, reporter: Reporter) -> Journal:
    """Replace live data; return what the journal said last."""
    journal = _as_it_is_now(plan, reporter)
    if journal.phase != journals.REPLACED:  # the server may have been started since: what it has written is not to be taken for what was replaced
        _stopped(plan, journal, reporter)
        journal = _numbered_on(plan, journal)
        reporter.stage("replace")
        with undisturbed():
            journal = _replace(plan, journal, reporter)
    if journal.server:
        reporter.stage("start")
        journal.server.allow()
        _start(plan, journal, journal.server)
    journals.forget(plan.state)
    return journal


def _as_it_is_now(plan: InPlacePlan, reporter: Reporter) -> Journal:
    """Return the journal of a restore that has copied everything: another run may have come while somebody was asked."""
    journal = journals.read(plan.state)
    if plan.resumes:
        if journal is None or journal.path != plan.generation.path:
            raise StillpointError("the interrupted restore of %s has been finished by another run" % plan.generation.name)
        return journal
    if journal and journal.phase != journals.COPYING:
        raise StillpointError("another restore was interrupted meanwhile: run this again")
    if journal:
        copying.drop(journal.targets)
    return _copied(plan, reporter)


def _copied(plan: InPlacePlan, reporter: Reporter) -> Journal:
    """Copy and check every tree, and return the journal that says so."""
    try:
        journal = plan.journal.at(journals.COPYING, plan.state, time=now())
        copying.copy_all(plan.generation, plan.targets, reporter, make=_make_parents)
        recovery = copying.replayed(plan.replay, plan.targets, reporter)
        disabled = _disabled(plan)
        if targets.databases(plan.targets):
            gtid_state.renew(targets.datadir_of(plan.targets).staging)
        if plan.node:
            cluster.prepare(targets.datadir_of(plan.targets).staging)
        for target in plan.targets:
            durable.sync_file_system(os.path.dirname(target.staging))
        coming = server_logs.coming_back(plan.targets, plan.archives)
        if plan.logs:
            server_logs.drop_index(plan.logs, plan.targets)
        return journal.at(
            journals.READY,
            plan.state,
            recovery=recovery,
            disabled=tuple(disabled),
            old_logs=tuple(coming),
            identities=tuple(str(durable.identity(target.staging)) for target in plan.targets),
            old=tuple(None if target.mount_point else durable.identity(target.path) for target in plan.targets),
        )
    except BaseException as error:
        copying.drop(plan.targets)
        journals.forget(plan.state)
        if isinstance(error, OSError):
            raise copying.untouched(plan.generation, error) from error
        raise


def _disabled(plan: InPlacePlan) -> List[str]:
    """Keep the copy of another host's server from doing what it did there, and return in sentences how it is let do so.

    :raises StillpointError: that is not possible; the live data was not touched
    """
    if plan.activity is None:
        return []
    try:
        done = activity.disable(plan.activity, copying.where(plan.targets))
    except StillpointError as error:
        raise StillpointError("%s; the live data was not touched" % error) from error
    return activity.way_back(plan.activity, done, targets.datadir_of(plan.targets).path)


def _numbered_on(plan: InPlacePlan, journal: Journal) -> Journal:
    """Note which GTIDs the server had given out when it was stopped, and have a copy that brings logs begin after them; return the journal."""
    if journal.logs is None or journal.gtids is not None:
        return journal
    try:
        gtids = gtid_state.newest(plan.generation, journal.logs, plan.archives) or ""
        begins = bool(gtids) and gtid_state.begin_after(gtids, journal.logs, plan.targets)
        return journal.at(journal.phase, plan.state, gtids=gtids, old_logs=() if begins else journal.old_logs)
    except OSError as error:
        raise StillpointError(
            "%s could not be prepared: %s (%s); the live data was not touched: %s" % (plan.generation.name, error.strerror, error.filename, journal.ways_out)
        ) from error


def _make_parents(path: str) -> None:
    """Make a directory that the backup does not hold, above one that it does, as such directories are: open to read."""
    if not os.path.isdir(path):
        _make_parents(os.path.dirname(path))
        os.mkdir(path)
        os.chmod(path, 0o755)


def _stopped(plan: InPlacePlan, journal: Journal, reporter: Reporter) -> None:
    """Make sure that no server works on what is about to be replaced.

    :raises StillpointError: one does; the live data was not touched, and the server runs if it did before
    """
    stopped: Optional[Unit] = None
    try:
        if journal.server:
            reporter.stage("stop")
            stopped = journal.server
            journal.server.stop()
        targets.refuse_running(plan.targets)
    except BaseException as error:
        if not plan.resumes:
            with undisturbed():
                _give_back(plan, journal, stopped, reporter)
            if isinstance(error, OSError):
                raise copying.untouched(plan.generation, error) from error
        raise


def _give_back(plan: InPlacePlan, journal: Journal, stopped: Optional[Unit], reporter: Reporter) -> None:
    """Remove the copy, which may have filled the disk that the server needs, and start the server again."""
    try:
        journal.at(journals.COPYING, plan.state)  # before anything is removed: what is left of a copy is not to be put back
    except OSError:
        journals.forget(plan.state)  # that takes no room
    try:
        copying.drop(plan.targets)
    except StillpointError as error:
        reporter.warn("what was copied is left beside the live data: %s" % error)
    if stopped:
        stopped.start_again(reporter, "the data it works on was not touched")
    journals.forget(plan.state)


def _replace(plan: InPlacePlan, journal: Journal, reporter: Reporter) -> Journal:
    """Exchange each tree that has not been exchanged yet, and return the journal with what was kept."""
    logs = journal.logs
    try:
        server_logs.tell(plan.archives, plan.generation.name, journal.old_logs, reporter)
        aside = logs.set_aside() if logs else []
        if logs and journal.gtids and logs.outside(logs.basename):
            gtid_state.leave(logs.basename, journal.gtids, os.path.dirname(logs.basename))
        kept: List[KeptPath] = []
        for target, new, old in zip(plan.targets, journal.identities, journal.old):
            if target.mount_point:
                exchange.contents(target, new)
            else:
                exchange.directories(target, new, old)
            found = [exchange.kept(target, old), exchange.later(target)]
            kept += [KeptPath(path, target.path, durable.identity(path)) for path in found if path]
        kept += [KeptPath(path, logs.basename + ".*", durable.identity(path)) for path in aside if logs]
        record(plan.state, replace(journal, kept=tuple(kept)))
        return journal.at(journals.REPLACED, plan.state, kept=tuple(kept))
    except OSError as error:
        raise StillpointError(
            "the exchange of old and new data was interrupted: %s (%s); both are complete on the disk: %s"
            % (error.strerror, error.filename2 or error.filename, journal.ways_out)
        ) from error


def _start(plan: InPlacePlan, journal: Journal, server: Unit) -> None:
    """Start the server.

    :raises StillpointError: it does not start; the sentence says how to go back
    """
    try:
        server.start()
    except StillpointError as error:
        journals.forget(plan.state)
        back = ["systemctl stop %s" % server.name, *_way_back(journal), "systemctl start %s" % server.name]
        raise StillpointError("generation %s is in place, but %s; to go back: %s" % (plan.generation.name, error, "; ".join(back))) from error


def _way_back(journal: Journal) -> List[str]:
    """Return the commands that put back by hand what was replaced."""
    back = []
    pairs: List[Tuple[targets.Target, KeptPath]] = [(target, each) for target in journal.targets for each in journal.kept if each.target == target.path]
    for target, each in pairs:
        if each.path == exchange.later(target):
            continue
        path, old = shlex.quote(target.path), shlex.quote(each.path)
        if target.mount_point:
            back.append("exchange what is in %s for what is in %s" % (path, old))
        else:
            back.append("mv %s %s.restored && mv %s %s" % (path, path, old, path))
    for path, place in journal.logs.way_back() if journal.logs else []:
        back.append("mv %s%s %s" % (shlex.quote(path), "/*" if os.path.isdir(path) else "", shlex.quote(place)))
    return back
