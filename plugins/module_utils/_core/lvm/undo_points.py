# SPDX-License-Identifier: GPL-3.0-or-later
"""Undo points: snapshots that a playbook was given, as a set of one moment, with what has to be known to go back to it. All of that is
in LVM's tags, which are where the snapshots are, whatever has become of the host's files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from ..host.errors import StillpointError, UsageError
from ..host.processes import COLLECTION
from .ownership import KEPT
from .volumes import LogicalVolume

_SET = "set"
_NOT_IN_A_TAG = re.compile(rb"[^A-Za-z0-9_+./=!:#-]")
_LONGEST = 900  # a tag has at most 1024 characters
_RUN = re.compile(r"(\d{4})(\d\d)(\d\d)t(\d\d)(\d\d)(\d\d)-.*")


@dataclass(frozen=True)
class About:
    """What is known of the server whose data a point holds; "" for what is not.

    :ivar unit: its systemd unit
    :ivar log: basename of its binary logs; index: the file that lists them
    """

    unit: str = ""
    datadir: str = ""
    log: str = ""
    index: str = ""


@dataclass(frozen=True)
class UndoPoint:
    """The snapshots of a run that have not been merged."""

    run_id: str
    size: int
    snapshots: Tuple[LogicalVolume, ...]
    about: About

    @property
    def time(self) -> str:
        """When it was taken, for people."""
        match = _RUN.fullmatch(self.run_id)
        return "%s-%s-%s %s:%s:%s UTC" % match.groups() if match else "its snapshots were taken"


def tags(size: int, about: About) -> List[str]:
    """Return the tags of each snapshot of a point."""
    facts = {_SET: str(size), **vars(about)}
    found = ["%s.%s=%s" % (COLLECTION, key, _encoded(value)) for key, value in facts.items() if value]
    return [KEPT, *(tag for tag in found if len(tag) <= _LONGEST)]


def find(known: Iterable[LogicalVolume], run_id: Optional[str] = None) -> UndoPoint:
    """Return the undo point of a run; without a name, the only one that there is.

    :raises UsageError: there is none, or more than one
    """
    runs: Dict[str, List[LogicalVolume]] = {}
    for volume in known:
        if volume.is_snapshot and KEPT in volume.tags and _facts(volume).get("run"):
            runs.setdefault(_facts(volume)["run"], []).append(volume)
    if run_id is None and len(runs) > 1:
        raise UsageError("there are several undo points (%s): name the one to go back to" % ", ".join(sorted(runs)))
    wanted = run_id if run_id is not None else next(iter(runs), None)
    if wanted is None or wanted not in runs:
        there = "; there are %s" % ", ".join(sorted(runs)) if runs else ""
        raise UsageError("there is no kept snapshot %sof this collection to go back to%s" % ("of run %s " % wanted if wanted else "", there))
    facts = _facts(runs[wanted][0])
    about = About(*(facts.get(key, "") for key in ("unit", "datadir", "log", "index")))
    return UndoPoint(wanted, int(facts.get(_SET, "0") or 0), tuple(sorted(runs[wanted], key=lambda each: each.name)), about)


def check(point: UndoPoint) -> None:
    """Raise StillpointError where a point can't be gone back to as a whole."""
    if not point.size or len(point.snapshots) != point.size:
        raise StillpointError(
            "of the undo point %s %s are left (%s), and a part of it is no moment to go back to: remove them with state=absent or `stillpoint clean --kept`"
            % (point.run_id, "%d of %d snapshots" % (len(point.snapshots), point.size) if point.size else "not all snapshots", _names(point.snapshots))
        )
    for each in point.snapshots:
        if is_invalid(each):
            raise StillpointError("the snapshot %s has overflowed and holds nothing any more: there is no way back to %s" % (each.full_name, point.time))
        if not each.origin:
            raise StillpointError("the snapshot %s has no origin any more to merge it into" % each.full_name)


def is_invalid(volume: LogicalVolume) -> bool:
    """Tell whether a thick snapshot was lost: more was written than it could hold (lvs(8), the fifth letter of lv_attr)."""
    return not volume.thin and (volume.attr[4:5] in ("I", "S") or (volume.data_percent or 0.0) >= 100.0)


def is_merging(volume: LogicalVolume) -> bool:
    """Tell whether a snapshot is marked for being merged (lvs(8), the first letter of lv_attr)."""
    return volume.attr[:1] == "S"


def waits_for_merge(origin: LogicalVolume) -> bool:
    """Tell whether a volume has a snapshot that is being merged into it, or will be (lvs(8), the first letter of lv_attr)."""
    return origin.attr[:1] == "O"


def merge_tags(volume: LogicalVolume) -> List[str]:
    """Return the tag to take off a snapshot before it is merged: a thin one becomes the origin with all its tags, and nothing may take
    that for a leftover."""
    return [tag for tag in volume.tags if tag == COLLECTION]


def own_tags(volume: LogicalVolume) -> List[str]:
    """Return every tag of ours that a volume has."""
    return [tag for tag in volume.tags if tag == COLLECTION or tag.startswith(COLLECTION + ".")]


def _facts(volume: LogicalVolume) -> Dict[str, str]:
    pairs = (tag[len(COLLECTION) + 1 :].partition("=") for tag in volume.tags if tag.startswith(COLLECTION + "."))
    return {key: _decoded(value) for key, _equals, value in pairs}


def _names(volumes: Sequence[LogicalVolume]) -> str:
    return ", ".join(volume.full_name for volume in volumes)


def _encoded(value: str) -> str:
    return _NOT_IN_A_TAG.sub(lambda match: b"&%02X" % match.group()[0], value.encode("utf-8", "surrogateescape")).decode("ascii")


def _decoded(value: str) -> str:
    text = re.sub(rb"&([0-9A-F]{2})", lambda match: bytes([int(match.group(1), 16)]), value.encode("ascii", "surrogateescape"))
    return text.decode("utf-8", "surrogateescape")
