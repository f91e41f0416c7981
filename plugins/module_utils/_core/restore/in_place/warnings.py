# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody should know who puts a generation back."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Iterator, Optional, Sequence

from ...host.mounts import is_below
from ...job.names import host_name
from ...mysql import keys
from ...repository import identity, recorded
from ...repository.generation import Generation
from ..rollback.plan import REPLICAS
from . import targets as places
from .targets import Target

if TYPE_CHECKING:
    from ..replay.execute import Replay


def doubts(generation: Generation) -> Iterator[str]:
    """Return what somebody should know who put this generation back all the same, wherever to."""
    if generation.failed_proof:
        yield "its proof failed, and a server may not start on it or find its tables well: %s" % generation.failed_proof


def _stranger(generation: Generation, targets: Sequence[Target]) -> Iterator[str]:
    """Return what it means that a backup is of another host."""
    if not identity.is_foreign(generation, host_name()):
        return
    yield "it is a backup of another host, %s: what is here now is replaced by what was there" % generation.host
    if places.databases(targets):
        yield "the server here gets the accounts and passwords of that one"


def _brings(generation: Generation, target: Target, path: str) -> bool:
    copy = os.path.join(generation.path, target.tree.name)
    return is_below(path, target.path) and os.path.lexists(copy if path == target.path else os.path.join(copy, os.path.relpath(path, target.path)))


def warnings_of(
    generation: Generation, targets: Sequence[Target], unit: Optional[str], replay: Optional["Replay"] = None
) -> Iterator[str]:
    yield from doubts(generation)
    yield from _stranger(generation, targets)
    if places.databases(targets):
        yield from keys.missing_here(generation.summary, lambda path: any(_brings(generation, target, path) for target in targets))
    if places.databases(targets) and unit is None:
        yield "no systemd unit is known for the server: start it yourself when the restore is done"
    settings = generation.summary.get("settings") or {}
    if places.databases(targets) and settings.get("log_bin") and settings.get("flavour") != "mariadb":
        yield REPLICAS
    halves = {tree.is_files for tree in generation.trees}
    whole = {tree.name for tree in generation.trees}
    if len(halves) == 2 and any(target.tree.name not in whole for target in targets):
        yield "it alone is put back as it was; rows of the database that belong to it are not"
    elif len(halves) == 2 and len({target.tree.is_files for target in targets}) == 1:
        yield "only one half of the backup is put back: database and files will not be of one point in time"
    stood = recorded.coordinates(generation)
    if replay and stood and stood.replica:
        yield "the server was a replica: what it had replicated is in its own binary logs only where it writes it there (log_slave_updates)"
    if len(halves) == 2 and len(targets) == len(generation.trees) and replay and replay.bytes:
        yield "the files will be those of %s UTC, when the backup was taken: binary logs hold the database alone" % generation.time.strftime(
            "%Y-%m-%d %H:%M:%S"
        )
