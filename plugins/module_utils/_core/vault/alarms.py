# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person has to know of a host's copies. While there is an alarm, nothing of that host is removed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, List, Sequence, Set

from ..host.text import age, human
from .ledger import Copy, Ledger
from .settings import Settings
from .state import Alarm

SILENT_TIMES = 3  # so many times a host's own schedule

_DAY = 86400.0
_AHEAD, _BEHIND = 1.1 * _DAY, 400 * _DAY  # of the claimed time, before somebody should look; a host that was away sends what is old
_SHRUNK = 0.5
_MANY, _MANY_TIMES = 10, 4  # in a day: more than so many, and so many times what the schedule says


@dataclass(frozen=True)
class Seen:
    """What lies in a repository now.

    :ivar snapshots: ids of those that are there
    :ivar unreadable: of those that restic can't read
    :ivar bad_packs: of packs that hold other data than they claim
    :ivar bytes: of all files
    :ivar created: since when the vault has the host, seconds
    """

    snapshots: Set[str]
    unreadable: Sequence[str]
    bad_packs: Sequence[str]
    bytes: int
    created: float


def of_host(settings: Settings, host: str, ledger: Ledger, seen: Seen, now: float) -> List[Alarm]:
    """Return what is to be said of a host, without what a person has accepted.

    :param settings: that hold for this host
    """
    reject = "move them aside with `stillpoint vault check %s --reject`, or, if it was broken into, `stillpoint vault retire %s`" % (host, host)
    found: List[Alarm] = []
    if seen.bad_packs:
        text = "%d packs (%s…) hold other data than they claim, as no honest client sends: %s"
        found.append(Alarm("packs", text % (len(seen.bad_packs), seen.bad_packs[0][:8], reject), "reject"))
    if seen.unreadable:
        found.append(Alarm("unreadable", "%d snapshots (%s…) can't be read: %s" % (len(seen.unreadable), seen.unreadable[0][:8], reject), "reject"))
    for each in ledger.present():
        if each.id in ledger.unsound and each.id in seen.snapshots:
            found.append(Alarm("unsound:" + each.id, "%s is not sound: %s; %s" % (_named(each), ledger.unsound[each.id], reject), "reject"))
    back = sorted(ledger.rejected & seen.snapshots)
    if back:
        found.append(Alarm("back", "%d copies (%s…) were moved aside and have been sent again: %s" % (len(back), back[0][:8], reject), "reject"))
    if settings.quota is not None and seen.bytes > settings.quota:
        found.append(Alarm("quota", "holds %s, its quota is %s: raise it, or keep less in the vault's file" % (human(seen.bytes), human(settings.quota))))
    events = [*_events(settings, ledger, seen.snapshots, now), *_silence(settings, host, ledger, seen.created, now)]
    return found + [each for each in events if each.key not in ledger.accepted]


def _named(copy: Copy) -> str:
    return "the copy %s (%s of %s)" % (copy.id[:8], copy.generation or "?", copy.job or "?")


def _events(settings: Settings, ledger: Ledger, there: Set[str], now: float) -> Iterator[Alarm]:
    """Return what may have its reason, which a person has to know: it is accepted with `check --accept`."""
    gone = [each for each in ledger.present() if each.id not in there]
    for each in gone:
        text = "%s has gone and the keeper did not remove it: if the vault's disk was not put back to an earlier day, somebody was on this machine"
        yield Alarm("gone:" + each.id, text % _named(each), "accept")
    before: List[Copy] = []
    for each in ledger.present():
        for kind, text in _oddities(each, before):
            yield Alarm("%s:%s" % (kind, each.id), "%s %s" % (_named(each), text), "accept")
        if each.id not in ledger.unsound:  # a client sends anew what did not get there whole
            before.append(each)
    lately = [each for each in ledger.copies if each.arrived > now - _DAY]
    usual = max(_MANY, _MANY_TIMES * _DAY / settings.every * max(1, len({each.job for each in ledger.copies})))
    if ledger.copies and ledger.copies[0].arrived < now - 2 * _DAY and len(lately) > usual:
        yield Alarm("many:" + lately[-1].id, "%d copies arrived within a day, where %d would be usual: look what sends them" % (len(lately), usual), "accept")


def _oddities(copy: Copy, before: Sequence[Copy]) -> Iterator[Sequence[str]]:
    if copy.foreign:
        yield "foreign", "was not made by stillpoint: look who sent it"
        return
    if copy.claimed > copy.arrived + _AHEAD or copy.claimed < copy.arrived - _BEHIND:
        yield "time", "claims a time that is %s from its arrival: look at the host's clock" % age(abs(copy.claimed - copy.arrived))
    same = [each for each in before if each.job == copy.job and not each.foreign]
    if same and copy.bytes < same[-1].bytes * _SHRUNK:
        yield "shrunk", "has %s, and the one before it %s: look whether that was meant" % (human(copy.bytes), human(same[-1].bytes))
    if any(each.generation == copy.generation for each in same):
        yield "twice", "has the name of one that arrived before it: a client never sends one twice; look at the host"
    if before and copy.hostname != before[0].hostname:
        yield "host", "claims to be of another host than those before it; look at both"


def _silence(settings: Settings, host: str, ledger: Ledger, created: float, now: float) -> Iterator[Alarm]:
    limit = SILENT_TIMES * settings.every
    sound = ledger.newest_sound()
    if not sound and created < now - limit:
        yield Alarm("silent", "nothing sound has arrived for %s: look at the host %s" % (age(now - created), host))
    for newest in sound:
        if newest.arrived < now - limit:
            text = "nothing sound of the job %s has arrived for %s: look at the host %s, or accept it where the job has ended"
            yield Alarm("silent:%s:%s" % (newest.job, newest.id), text % (newest.job, age(now - newest.arrived), host), "accept")
