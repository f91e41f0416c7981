# SPDX-License-Identifier: GPL-3.0-or-later
"""Going on with backups that were made under another name, or on another machine.

A kill at any line leaves every generation under one of the two names, and the same command finishes what was begun.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional

from ..host import durable
from ..host.errors import BusyError, StillpointError, UsageError
from . import identity
from .generation import LATEST, Generation
from .identity import OWNER, Identity
from .job_directory import LOCK, JobDirectory

# What may lie in the new directory besides generations, and goes with it.
_OWN = (LOCK, LATEST, OWNER)


@dataclass(frozen=True)
class Adoption:
    """What has to happen for this machine to go on with a job's backups.

    :ivar source: where they lie; the job's own directory where it is another machine's
    """

    directory: JobDirectory
    source: JobDirectory
    own: Identity
    generations: int

    @property
    def renames(self) -> bool:
        return self.source.path != self.directory.path

    def as_dict(self) -> Dict[str, Any]:
        """Return it for programs."""
        facts = {"job": self.directory.job, "host": self.directory.host, "from": self.source.host, "path": self.directory.path}
        return {**facts, "generations": self.generations}

    def lines(self) -> List[str]:
        """Return it for people."""
        if not self.renames:
            return ["%d backups in %s belong to this machine from now on, and no longer to another" % (self.generations, self.directory.path)]
        return ["%d backups become those of this host: %s is renamed to %s" % (self.generations, self.source.path, self.directory.path)]


def plan(directory: JobDirectory, own: Identity, source: Optional[str] = None) -> Adoption:
    """Return what `execute` will do.

    :param source: the name of the host whose backups to go on with; default: a former name of this machine, else this very directory
    :raises UsageError: there is nothing to adopt, or it is not clear what
    """
    if source is None:
        source = _found(directory, own)
    other = directory.of_host(source)
    names = other.names()
    if not names and own.stranger(identity.owner(directory)) and source in {each.host for each in directory.generations()}:
        other = directory  # one that was ended after the directory had got its name
        names = other.names()
    if not names:
        known = directory.others()
        hint = "; there are some of %s" % ", ".join(known) if known else ""
        raise UsageError("there are no backups of %s of the host %s in %s%s" % (directory.job, source, directory.repository, hint))
    adoption = Adoption(directory, other, own, len(names))
    if adoption.renames and directory.names():
        _refuse_mixed(adoption)
    return adoption


def _found(directory: JobDirectory, own: Identity) -> str:
    if own.stranger(identity.owner(directory)):
        return directory.host
    formers = identity.formers(directory, own.machine)
    if len(formers) == 1:
        return formers[0].host
    if formers:
        raise UsageError("this machine had several names, %s: say which one with --from-host" % ", ".join(former.host for former in formers))
    raise UsageError(
        "the backups in %s are this machine's already, and the repository holds none of it under another name: name a host with --from-host" % directory.path
    )


def _refuse_mixed(adoption: Adoption) -> None:
    """Raise StillpointError where the backups of two names would not be one line, each after the one before."""
    old, new = adoption.source.generations(), adoption.directory.generations()
    both = sorted(set(_visible(adoption.source)) & set(_visible(adoption.directory)))
    last = max(each.sequence or 0 for each in old)
    mixed = [each.name for each in new if (each.sequence or 0) <= last]
    if both or mixed:
        raise StillpointError(
            "%s and %s both hold backups, and %s does not follow on the others: restore from either, and move one of the directories away"
            % (adoption.source.path, adoption.directory.path, (both or mixed)[0])
        )


def _visible(directory: JobDirectory) -> List[str]:
    """Return what a directory holds: generations, and the archive of binary logs."""
    return [name for name in os.listdir(directory.path) if not name.startswith(".") and name != LATEST]


def execute(adoption: Adoption) -> None:
    """Go on with another directory's backups, under this host's name.

    :raises BusyError: somebody reads or writes one of them
    """
    with ExitStack() as stack:
        stack.enter_context(adoption.source.lock())
        if adoption.renames:
            for generation in (*adoption.source.generations(), *adoption.directory.generations()):
                stack.enter_context(_unread(generation))
            with adoption.source.written():
                stack.enter_context(adoption.directory.lock())
                _merge(adoption)
                _empty(adoption.directory)
                durable.rename_to_free_name(adoption.source.path, adoption.directory.path)
                _remove_if_empty(os.path.dirname(adoption.source.path))
    with adoption.directory.lock():
        if adoption.own.stranger(identity.owner(adoption.directory)):
            identity.give(adoption.directory, adoption.own)


@contextmanager
def _unread(generation: Generation) -> Iterator[None]:
    """Keep others from reading a generation, whose path is about to change."""
    with durable.lock(generation.path) as held:
        if held is None:
            raise BusyError("%s is being read: wait until that has ended" % generation.path)
        yield


def _merge(adoption: Adoption) -> None:
    """Move what was backed up under the new name to the rest."""
    for generation in reversed(adoption.directory.generations()):
        moved = Generation(os.path.join(adoption.source.path, generation.name))
        if os.path.lexists(generation.verdict_path):  # first: a generation is never without what was found of it
            shutil.copy2(generation.verdict_path, moved.verdict_path + ".new")
            durable.rename(moved.verdict_path + ".new", moved.verdict_path)
        durable.rename_to_free_name(generation.path, moved.path)
        if os.path.lexists(generation.verdict_path):
            os.unlink(generation.verdict_path)
    for name in _visible(adoption.directory):
        durable.rename_to_free_name(os.path.join(adoption.directory.path, name), os.path.join(adoption.source.path, name))
    adoption.source.clean()


def _empty(directory: JobDirectory) -> None:
    """Remove a directory that holds no generation any more."""
    directory.clean()
    left = sorted(set(os.listdir(directory.path)) - set(_OWN))
    if left:
        raise StillpointError("%s holds %s, which can't be joined with the other directory: move it away" % (directory.path, ", ".join(left)))
    for name in _OWN:
        path = os.path.join(directory.path, name)
        if os.path.lexists(path):
            os.unlink(path)
    os.rmdir(directory.path)


def _remove_if_empty(path: str) -> None:
    if not os.listdir(path):
        os.rmdir(path)
