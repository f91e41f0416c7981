# SPDX-License-Identifier: GPL-3.0-or-later
"""The directories of a vault, and who owns what in them.

::

    DIRECTORY/served/HOST            root 0755           what the REST server shows
        config                       root:vault 0640     made by the keeper; nobody else could set a quota aside by it
        keys/                        root:vault 0750     a client that could write here could lock everybody out
        data/ index/ locks/ snapshots/    vault 0700
    DIRECTORY/frozen/HOST            root 0700           the same, out of reach of the server
    DIRECTORY/retired/HOST.MOMENT    root 0700           of a host that delivers no more
    STATE/HOST.ledger, HOST.json     root 0600           what arrived and when; alarms

A repository is frozen by renaming it, in one step. The server can't make it anew, as `served` is root's.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, List, NamedTuple, Tuple

from ..host import durable
from ..host.errors import BusyError, StillpointError, UsageError
from ..host.steps import reached
from .settings import Settings, check_name

SERVED, FROZEN, RETIRED = "served", "frozen", "retired"
WRITTEN = ("data", "index", "locks", "snapshots")  # by the server
REJECTED = "rejected"  # in a repository: what the keeper has moved out of restic's sight
VIEW = "view"  # in a repository: hard links to packs that are being looked at

# The lengths of restic's names: SHA-256 in hexadecimal digits
_ID = 64


class Ids(NamedTuple):
    """Numbers of a user and its group."""

    uid: int
    gid: int


def ids_of(user: str) -> Ids:
    """Return the numbers of a user.

    :raises UsageError: there is none of this name
    """
    try:
        found = pwd.getpwnam(user)
        return Ids(found.pw_uid, grp.getgrgid(found.pw_gid).gr_gid)
    except KeyError as error:
        raise UsageError("the vault's user %s does not exist: the role backup_vault makes it" % user) from error


class StoredFile(NamedTuple):
    """One file of a repository.

    :ivar kind: the directory that it lies in: data, index, locks, snapshots
    :ivar arrived: when the server made it, seconds
    """

    kind: str
    id: str
    path: str
    size: int
    arrived: float


@dataclass(frozen=True)
class Foreign:
    """A name in a repository that restic does not give."""

    path: str
    arrived: float


@dataclass(frozen=True)
class HostDirectory:
    """A host's repository in the vault, wherever it lies now."""

    settings: Settings
    host: str

    @property
    def served(self) -> str:
        return os.path.join(self.settings.directory, SERVED, self.host)

    @property
    def frozen(self) -> str:
        return os.path.join(self.settings.directory, FROZEN, self.host)

    @property
    def ledger(self) -> str:
        return os.path.join(self.settings.state, self.host + ".ledger")

    @property
    def state(self) -> str:
        return os.path.join(self.settings.state, self.host + ".json")

    @property
    def is_frozen(self) -> bool:
        return os.path.isdir(self.frozen)

    @property
    def exists(self) -> bool:
        return self.is_frozen or os.path.isdir(self.served)

    @property
    def path(self) -> str:
        """Return where the repository lies.

        :raises UsageError: the vault has none of this host
        """
        for path in (self.frozen, self.served):
            if os.path.isdir(path):
                return path
        raise UsageError("the vault has no repository of %s: `stillpoint vault list` shows those that it has" % self.host)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only keeper of this host.

        :raises BusyError: another one is at work
        """
        os.makedirs(self.settings.state, mode=0o700, exist_ok=True)
        with durable.lock(os.path.join(self.settings.state, self.host + ".lock"), make=True) as held:
            if held is None:
                raise BusyError("the keeper is at work on %s: try again when it has ended" % self.host)
            yield

    def freeze(self) -> None:
        """Take the repository out of the server's reach."""
        if not self.is_frozen:
            durable.rename_to_free_name(self.served, self.frozen)
            reached("vault frozen", self.host)

    def thaw(self) -> None:
        """Put the repository back where the server shows it, owned as it has to be."""
        if self.is_frozen:
            own(self.frozen, self.settings.user)
            reached("vault owned", self.host)
            durable.rename_to_free_name(self.frozen, self.served)
            reached("vault thawed", self.host)

    def files(self) -> Tuple[List[StoredFile], List[Foreign]]:
        """Return the files of the repository that restic knows, and names that are none of restic's.

        :raises StillpointError: something in it is neither a file nor a directory: the server can't have made it
        """
        found: List[StoredFile] = []
        foreign: List[Foreign] = []
        for kind in WRITTEN:
            for path, status in _walk(os.path.join(self.path, kind)):
                name = os.path.basename(path)
                if len(name) == _ID and not name.strip("0123456789abcdef"):
                    found.append(StoredFile(kind, name, path, status.st_size, status.st_mtime))
                else:
                    foreign.append(Foreign(path, status.st_mtime))
        return found, foreign


def hosts(settings: Settings) -> List[HostDirectory]:
    """Return the hosts whose repositories the vault has, by name."""
    names = set()
    for place in (SERVED, FROZEN):
        try:
            names |= {each for each in os.listdir(os.path.join(settings.directory, place)) if not each.startswith(".")}
        except FileNotFoundError as error:
            raise UsageError("%s has no directory %s: the role backup_vault makes it" % (settings.directory, place)) from error
    return [HostDirectory(settings, name) for name in sorted(names)]


def host_directory(settings: Settings, host: str) -> HostDirectory:
    """Return the directory of a host that the vault has.

    :raises UsageError: it has none of this name
    """
    found = HostDirectory(settings, check_name(host))
    _path_or_refusal = found.path
    return found


def make_top(settings: Settings) -> None:
    """Make the directories of the vault where they are missing."""
    for name, mode in ((SERVED, 0o755), (FROZEN, 0o700), (RETIRED, 0o700)):
        path = os.path.join(settings.directory, name)
        os.makedirs(path, exist_ok=True)
        os.chmod(path, mode)
        os.chown(path, 0, 0)
    os.chmod(settings.directory, 0o755)
    os.makedirs(settings.state, mode=0o700, exist_ok=True)


def own(repository: str, user: str) -> None:
    """Give each part of a repository the owner and mode that it has to have, and bring that to the disk."""
    ids = ids_of(user)
    for kind in WRITTEN:
        directory = os.path.join(repository, kind)
        for path, status in _walk(directory, directories=True):
            mode = 0o700 if stat.S_ISDIR(status.st_mode) else 0o600
            if (status.st_uid, status.st_gid) != tuple(ids) or stat.S_IMODE(status.st_mode) & 0o7077:
                os.chown(path, *ids, follow_symlinks=False)
                os.chmod(path, mode)
    keys = os.path.join(repository, "keys")
    for path in [os.path.join(repository, "config"), *(os.path.join(keys, each) for each in os.listdir(keys))]:
        os.chown(path, 0, ids.gid, follow_symlinks=False)
        os.chmod(path, 0o640)
    for path, group, mode in ((keys, ids.gid, 0o750), (repository, 0, 0o755)):
        os.chown(path, 0, group)
        os.chmod(path, mode)


def _walk(directory: str, *, directories: bool = False) -> Iterator[Tuple[str, os.stat_result]]:
    """Return the files below a directory of a repository, and the directories too where they are asked for."""
    if directories:
        yield directory, os.lstat(directory)
    waiting = [directory]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # an upload that ended meanwhile
                if stat.S_ISDIR(status.st_mode):
                    waiting.append(entry.path)
                elif not stat.S_ISREG(status.st_mode):
                    raise StillpointError(
                        "%s is neither a file nor a directory, which the REST server can't make: somebody was on this machine; look before you go on"
                        % entry.path
                    )
                if directories or not stat.S_ISDIR(status.st_mode):
                    yield entry.path, status
