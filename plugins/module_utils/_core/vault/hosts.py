# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that come, change their passwords, and go."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Dict, List, Optional

from ..host import durable
from ..host.errors import StillpointError, UsageError
from ..host.steps import reached
from . import accounts
from . import ledger as ledgers
from . import state as states
from .engine import Engine, password_file, require_version
from .layout import RETIRED, HostDirectory, ids_of, make_top, own
from .ledger import Copy
from .settings import Settings, check_name
from .state import PERSON, RETIRING

CLIENT = "client"  # the name on the key of a host's own password


@dataclass(frozen=True)
class Secrets:
    """What a host needs to send; nobody can be told again."""

    host: str
    repository_password: str
    http_password: str

    def as_dict(self) -> Dict[str, str]:
        """Return it as a secrets file has it."""
        return {"RESTIC_PASSWORD": self.repository_password, "RESTIC_REST_USERNAME": self.host, "RESTIC_REST_PASSWORD": self.http_password}


def init(settings: Settings, host: str) -> Secrets:
    """Make a repository and an account for a host, and return its secrets.

    :raises UsageError: there is one already
    """
    require_version(settings)
    directory = HostDirectory(settings, check_name(host))
    ids_of(settings.user)
    make_top(settings)
    _make_keeper_password(settings)
    with directory.lock():
        if directory.exists:
            raise UsageError("the vault has a repository of %s already: give it new passwords with `stillpoint vault rekey %s`" % (host, host))
        secrets = Secrets(host, accounts.new_password(), accounts.new_password())
        new = os.path.join(settings.directory, "frozen", "." + host)
        durable.remove_tree(new)  # of one that was killed
        engine = Engine(settings, new)
        engine.run("init", "--repository-version", "2")
        _add_key(engine, secrets.repository_password)
        own(new, settings.user)
        reached("vault host made", host)
        _forget_ledger(directory)
        states.write(directory, replace(states.State(), created=time.time()))
        accounts.set_password(settings, host, secrets.http_password)
        durable.sync_file_system(new)
        durable.rename_to_free_name(new, directory.served)
    return secrets


def rekey(directory: HostDirectory) -> Secrets:
    """Give a host new passwords, take the old ones away, and return them."""
    with directory.lock():
        _refuse_retiring(directory)
        secrets = Secrets(directory.host, accounts.new_password(), accounts.new_password())
        engine = Engine(directory.settings, directory.path)
        old = engine.key_ids(CLIENT)
        _add_key(engine, secrets.repository_password)
        reached("vault key added", directory.host)
        own(directory.path, directory.settings.user)
        accounts.set_password(directory.settings, directory.host, secrets.http_password)
        for each in old:
            os.unlink(os.path.join(directory.path, "keys", each))
        durable.sync_directory(os.path.join(directory.path, "keys"))
    return secrets


def freeze(directory: HostDirectory) -> None:
    """Take a repository out of its host's reach until a person thaws it."""
    with directory.lock():
        _refuse_retiring(directory)
        states.write(directory, replace(states.read(directory), frozen_by=PERSON))
        directory.freeze()


def thaw(directory: HostDirectory) -> None:
    """Let a host reach its repository again."""
    with directory.lock():
        _refuse_retiring(directory)
        directory.thaw()
        states.write(directory, replace(states.read(directory), frozen_by=""))


@dataclass(frozen=True)
class Retired:
    """A host that delivers no more.

    :ivar path: where its repository lies now
    :ivar last: the newest sound copy of each of its jobs that arrived before the moment asked for
    """

    path: str
    last: List[Copy]


def retire(directory: HostDirectory, before: Optional[float] = None) -> Retired:
    """Take from a host its account, its key and its repository's name, remove nothing, and return where its copies lie.

    One that was interrupted goes on where it was.
    """
    settings, host = directory.settings, directory.host
    with directory.lock():
        states.write(directory, replace(states.read(directory), frozen_by=RETIRING))
        directory.freeze()
        accounts.set_password(settings, host, None)
        reached("vault account removed", host)
        engine = Engine(settings, directory.path)
        for each in engine.key_ids(CLIENT):
            os.unlink(os.path.join(directory.path, "keys", each))
        ledger = ledgers.read(directory.ledger)
        for source, name in ((directory.ledger, "ledger"), (directory.state, "state.json")):
            if os.path.exists(source):
                shutil.copyfile(source, os.path.join(directory.path, name))
        target = os.path.join(settings.directory, RETIRED, "%s.%s" % (host, datetime.now(timezone.utc).strftime("%Y-%m-%dT%H-%M-%SZ")))
        durable.sync_file_system(directory.path)
        durable.rename_to_free_name(directory.frozen, target)
        reached("vault retired", host)
        _forget_ledger(directory)
        os.unlink(directory.state)
    return Retired(target, ledger.newest_sound(float("inf") if before is None else before))


def _refuse_retiring(directory: HostDirectory) -> None:
    if states.read(directory).frozen_by == RETIRING:
        raise StillpointError("%s is being retired: end that with `stillpoint vault retire %s`" % (directory.host, directory.host))


def _forget_ledger(directory: HostDirectory) -> None:
    """Remove the ledger of a host whose repository has gone, with its ledger in it."""
    if os.path.exists(directory.ledger):
        os.unlink(directory.ledger)


def _add_key(engine: Engine, password: str) -> None:
    with password_file(password) as path:
        engine.run("key", "add", "--new-password-file", path, "--user", CLIENT, "--host", "vault")


def _make_keeper_password(settings: Settings) -> None:
    """Make the password that opens every repository, where there is none yet."""
    if os.path.exists(settings.password):
        return
    os.makedirs(os.path.dirname(settings.password), mode=0o755, exist_ok=True)
    new = settings.password + ".new"
    with open(new, "w", encoding="ascii", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(accounts.new_password() + "\n")
        file.flush()
        os.fsync(file.fileno())
    durable.rename(new, settings.password)
