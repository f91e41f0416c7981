# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper's round of a host: what arrived, is it sound, what has to go.

Nothing is removed while an alarm stands, and no failure leaves a repository frozen. One that was killed is taken up by the next round: its
repository is found frozen, and is put back once it is in order.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Iterator, List, Tuple

from ..host import durable
from ..host.errors import NotNowError, StillpointError
from ..host.steps import reached
from ..host.text import age
from . import alarms as alarm_rules
from . import arrivals, retention
from . import ledger as ledgers
from . import state as states
from .engine import Engine, require_version
from .layout import REJECTED, VIEW, HostDirectory, StoredFile
from .ledger import Ledger
from .state import KEEPER, PERSON, RETIRING, Alarm, State
from .trusted import Trusted

READ_EVERY = 6.5 * 86400  # a part of all packs is read again each week
READ_PARTS = 52

_LOCK_AGE = 2100.0  # restic writes its lock anew every five minutes and takes one of half an hour for stale
_LEFT_OVER = 86400.0  # files of broken uploads
_PUT_OFF = 14 * 86400.0  # without pruning, then somebody should know


@dataclass(frozen=True)
class Round:
    """What a round came to.

    :ivar removed: ids of the copies that were removed
    :ivar put_off: why nothing could be removed now; ""
    """

    host: str
    ledger: Ledger
    state: State
    bytes: int
    removed: Tuple[str, ...] = ()
    put_off: str = ""

    @property
    def alarms(self) -> Tuple[Alarm, ...]:
        return self.state.alarms


def check(directory: HostDirectory, *, accept: bool = False, reject: bool = False, read_data: bool = False) -> Round:
    """Look at what has arrived and return what is to be said of it. Changes nothing that a client could read again.

    :param accept: the alarms that stand and may have their reason are known to a person
    :param reject: what is not sound is moved aside, out of restic's sight
    :param read_data: read a part of all packs again now, also when it is not due
    """
    require_version(directory.settings)
    with directory.lock(), _told(directory):
        _take_up(directory)
        found = _look(directory)
        if accept:
            ledgers.append(directory.ledger, {"event": ledgers.ACCEPTED, "alarms": [each.key for each in found.alarms if each.ends == "accept"]})
            found = _look(directory)
        if reject and any(each.ends == "reject" for each in found.alarms):
            with _frozen(directory):
                _reject(directory, _look(directory).ledger)
            found = _look(directory)
        if read_data or _is_due(found.state):
            _read_part(directory)
            found = replace(found, state=states.read(directory))
        return found


def prune(directory: HostDirectory, *, dry_run: bool = False) -> Round:
    """Look at what has arrived and remove what the retention no longer keeps.

    :raises StillpointError: an alarm stands: nothing is removed
    :raises NotNowError: its client is sending
    """
    require_version(directory.settings)
    with directory.lock(), _told(directory):
        _take_up(directory)
        found = _look(directory)
        going = _going(directory, found)
        if found.alarms or dry_run:
            return replace(found, removed=tuple(going) if not found.alarms else ())
        if not going and Trusted(directory).is_put():
            return replace(found, state=_remember(directory, pruned=time.time()))
        sender = _sender(directory)
        if not sender:
            with _frozen(directory):
                sender = _sender(directory)
                if not sender:
                    return _put_in_order(directory)
        return _put_off(directory, found, sender)


def _look(directory: HostDirectory) -> Round:
    """Write down what has arrived and which alarms stand."""
    now = time.time()
    own = directory.settings.of_host(directory.host)
    ledger, unreadable = arrivals.take_in(directory, now)
    stored, foreign = directory.files()
    for left in foreign:
        if left.arrived < now - _LEFT_OVER:
            os.unlink(left.path)
    state = states.read(directory)
    if state.created is None:
        state = replace(state, created=now)
    seen = alarm_rules.Seen(
        snapshots={each.id for each in stored if each.kind == "snapshots"},
        unreadable=unreadable,
        bad_packs=sorted(Trusted(directory).bad() & {each.id for each in stored}),
        bytes=sum(each.size for each in stored),
        created=state.created or now,
    )
    found = alarm_rules.of_host(own, directory.host, ledger, seen, now)
    lasting = tuple(each for each in state.alarms if each.key == "rot")
    state = replace(state, alarms=(*found, *lasting), checked=now, failed="")
    states.write(directory, state)
    return Round(directory.host, ledger, state, seen.bytes)


def _going(directory: HostDirectory, found: Round) -> List[str]:
    keep = directory.settings.of_host(directory.host).keep
    reasons = retention.decide(found.ledger, keep, time.time())
    return sorted(each.id for each in _left(directory, found)) + [name for name, each in reasons.items() if not each]


def _left(directory: HostDirectory, found: Round) -> List[StoredFile]:
    """Return the snapshots that were to be removed and are there, as a keeper was killed or a client has sent them again."""
    return [each for each in directory.files()[0] if each.kind == "snapshots" and each.id in found.ledger.gone]


def _put_in_order(directory: HostDirectory) -> Round:
    """Let a frozen repository have the trusted index alone, and none of what is no longer kept, after another look at what has arrived until now."""
    found = _look(directory)
    if found.alarms:
        return found
    Engine(directory.settings, directory.path).run("unlock", "--remove-all")
    Trusted(directory).put_index()
    going = _going(directory, found)
    if going:
        _remove(directory, found, going)
        found = _look(directory)
    return replace(found, removed=tuple(going), state=_remember(directory, pruned=time.time()))


def _remove(directory: HostDirectory, found: Round, going: List[str]) -> None:
    """Remove copies from a frozen repository that has the trusted index."""
    trusted = Trusted(directory)
    engine = Engine(directory.settings, directory.path)
    for each in _left(directory, found):
        os.unlink(each.path)  # all that it needs may be gone already
    engine.run("check")
    ledgers.append(directory.ledger, {"event": ledgers.LEAVING, "ids": going})
    reached("vault leaving", directory.host)
    trusted.doubt()
    there = {each.id for each in directory.files()[0] if each.kind == "snapshots"}
    if there & set(going):
        engine.run("forget", *sorted(there & set(going)))
    reached("vault forgotten", directory.host)
    engine.run("prune")
    reached("vault pruned", directory.host)
    engine.run("check")
    trusted.adopt()
    reached("vault adopted", directory.host)


def _sender(directory: HostDirectory) -> str:
    """Return since when somebody is at work on a repository, by a lock that restic has made; "" where nobody is."""
    now = time.time()
    engine = Engine(directory.settings, directory.path)
    for each in directory.files()[0]:
        if each.kind == "locks" and each.arrived > now - _LOCK_AGE and engine.run("cat", "lock", each.id, "--no-lock", check=False).rc == 0:
            return age(now - each.arrived)
        if each.kind == "locks" and each.arrived < now - _LOCK_AGE:
            os.unlink(each.path)
    return ""


def _put_off(directory: HostDirectory, found: Round, sender: str) -> Round:
    """Return a round that removed nothing because its client is sending; alarm where that has gone on for long."""
    last = found.state.pruned or found.state.created or 0.0
    state = found.state
    if last < time.time() - _PUT_OFF:
        text = "has held a lock at each round for %s, so that nothing could be removed: look what its client does" % age(time.time() - last)
        state = replace(state, alarms=(*state.alarms, Alarm("locked", text)))
        states.write(directory, state)
    return replace(found, state=state, put_off="its client is sending (a lock of %s ago)" % sender)


# -- freezing


def _take_up(directory: HostDirectory) -> None:
    """Put back what a keeper that was killed has left frozen.

    :raises StillpointError: a person has frozen it
    """
    state = states.read(directory)
    if state.frozen_by in (PERSON, RETIRING):
        done = "`stillpoint vault thaw %s`" if state.frozen_by == PERSON else "`stillpoint vault retire %s` again"
        raise NotNowError(("%s is frozen and not looked at: " + done) % (directory.host, directory.host))
    durable.remove_tree(os.path.join(directory.path, VIEW))
    if directory.is_frozen:
        directory.thaw()
    if state.frozen_by:
        _remember(directory, frozen_by="")


@contextmanager
def _frozen(directory: HostDirectory) -> Iterator[None]:
    """Have the repository out of the server's reach as long as the body runs, however that ends."""
    _remember(directory, frozen_by=KEEPER)
    directory.freeze()
    try:
        yield
    finally:
        directory.thaw()
        _remember(directory, frozen_by="")


def _remember(directory: HostDirectory, **values: object) -> State:
    state = replace(states.read(directory), **values)  # type: ignore[arg-type]
    states.write(directory, state)
    return state


@contextmanager
def _told(directory: HostDirectory) -> Iterator[None]:
    """Have a round that fails leave an alarm that says why."""
    try:
        yield
    except NotNowError:
        raise
    except (StillpointError, OSError) as error:
        failure = Alarm("failed", "the last round failed: %s" % error)
        known = tuple(each for each in states.read(directory).alarms if each.key != "failed")
        _remember(directory, alarms=(*known, failure), failed=str(error))
        raise


# -- moving aside, reading again


def _reject(directory: HostDirectory, ledger: Ledger) -> None:
    """Move packs that lie, and snapshots that are not sound or can't be read, out of restic's sight in a frozen repository."""
    stored, _foreign = directory.files()
    bad = Trusted(directory).bad()
    arrived = {each.id for each in ledger.present()}
    wanted = {each.id for each in ledger.present() if each.id in ledger.sound}
    going = [each for each in stored if (each.kind == "data" and each.id in bad) or (each.kind == "snapshots" and each.id not in wanted)]
    ledgers.append(directory.ledger, {"event": ledgers.REJECTED, "ids": [each.id for each in going if each.id in arrived]})
    folder = os.path.join(directory.path, REJECTED)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    for each in going:
        durable.rename(each.path, os.path.join(folder, "%s-%s" % (each.kind, each.id)))
    for lock in (each for each in stored if each.kind == "locks"):
        os.unlink(lock.path)
    Trusted(directory).put_index()


def _is_due(state: State) -> bool:
    return (state.read or state.created or 0.0) < time.time() - READ_EVERY


def _read_part(directory: HostDirectory) -> None:
    """Read one part of all trusted packs again, and alarm where a pack is no longer what it was."""
    state = states.read(directory)
    with Trusted(directory).view(each for each in directory.files()[0] if each.kind == "snapshots") as engine:
        done = engine.run("check", "--read-data-subset", "%d/%d" % (state.part, READ_PARTS), "--json", check=False)
    others = tuple(each for each in state.alarms if each.key != "rot")
    if done.rc != 0:
        text = "packs are damaged on the vault's disk: look at the disk; have the host send anew; `restic repair packs` in %s mends what it can"
        states.write(directory, replace(state, alarms=(*others, Alarm("rot", text % directory.path)), read=time.time()))
        return
    states.write(directory, replace(state, alarms=others, read=time.time(), part=state.part % READ_PARTS + 1))
