# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a restore, and of undoing one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence

if TYPE_CHECKING:
    from ..repository.generation import RecordedTree


@dataclass(frozen=True)
class RestoreResult:
    """A restore that has ended well.

    :ivar part: what was put back where it was not all of it, a path, or in words a table or a database
    :ivar replaced: paths of what was replaced and is kept
    :ivar service: the unit that was stopped and started; None: none
    :ivar recovery: what was replayed; None: nothing
    :ivar disabled: in sentences, how another host's server is let do what it is kept from
    :ivar more: facts that only restores of this kind have
    """

    generation: str
    files: int
    bytes: int
    duration_s: float
    part: Optional[str] = None
    replaced: List[str] = field(default_factory=list)
    service: Optional[str] = None
    recovery: Optional[Mapping[str, Any]] = None
    disabled: List[str] = field(default_factory=list)
    warnings: List[str] = field(default_factory=list)
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of_trees(cls, generation: str, trees: Sequence[RecordedTree], started: float, part: Optional[str], **more: Any) -> "RestoreResult":
        """Return it for trees that were put back.

        :param started: time.monotonic() of then
        """
        duration = round(time.monotonic() - started, 1)
        return cls(generation, sum(tree.files for tree in trees), sum(tree.bytes for tree in trees), duration, part, **more)

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        own = {key: value for key, value in vars(self).items() if key != "more"}
        return {**own, **self.more}


@dataclass(frozen=True)
class UndoResult:
    """A restore that was undone.

    :ivar undone: what has its place back
    :ivar later: directories of what had come about meanwhile
    :ivar service: the unit that was started; None: none
    :ivar old_is_gone: the restore had ended well, so what was there before it could only be dropped
    """

    generation: str
    job: str
    undone: List[str]
    later: List[str] = field(default_factory=list)
    service: Optional[str] = None
    old_is_gone: bool = False

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        return {key: value for key, value in vars(self).items() if key != "old_is_gone"}
