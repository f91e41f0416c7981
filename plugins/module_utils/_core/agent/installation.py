# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's file on this host: what it is now, and its replacement, whole or not at all."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from contextlib import contextmanager, suppress
from typing import Iterator, List, NamedTuple, Optional

from ..bundle import Origin, origin
from ..host import durable
from ..host.errors import BusyError, CommandError, StillpointError
from ..host.process import run, sentence
from ..host.version import VERSION

MODE = 0o755

_COMPILE_TIMEOUT = 600.0  # seconds: a second or less but for emulated processors

_ASK = "import sys, importlib.util as u; print(sys.version_info >= (3, 8), sys.implementation.cache_tag + '-' + u.MAGIC_NUMBER.hex())"
_COMPILE = "import sys; sys.path.insert(0, sys.argv[1]); from stillpoint import bundle; bundle.compile_file(*sys.argv[1:])"


class Agent(NamedTuple):
    """An agent's file as it is, or as it is wanted.

    :ivar origin: None where the file was not made by `install`, or was changed since
    """

    origin: Optional[Origin]
    owner: str
    group: str
    mode: int

    def lines(self) -> List[str]:
        """Return the lines of a diff."""
        made = ["%s %s" % each for each in zip(Origin._fields, self.origin)] if self.origin else ["not an agent as it was put here"]
        return [*made, "owner %s:%s" % (self.owner, self.group), "mode %04o" % self.mode]


def wanted(sources: str, interpreter: str) -> Agent:
    """Return the Agent that the interpreter makes of this version's sources.

    :param sources: their checksum
    :raises StillpointError: it is no Python that the agent runs on
    """
    try:
        recent, bytecode = run([interpreter, "-I", "-c", _ASK]).stdout.split()
    except (CommandError, ValueError) as error:
        raise _does_not_start(interpreter, error) from error
    if recent != "True":
        raise StillpointError("the agent needs Python 3.8 or newer, and %s on the host is older: name another interpreter" % interpreter)
    return Agent(Origin(VERSION, sources, bytecode), "root", "root", MODE)


def look(path: str) -> Optional[Agent]:
    """Return the Agent that a path is; None where there is nothing.

    :raises StillpointError: it is a directory
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(info.st_mode):
        raise StillpointError("%s is a directory on the host: the agent is one file, name its path" % path)
    return Agent(_origin(path) if stat.S_ISREG(info.st_mode) else None, _user(info.st_uid), _group(info.st_gid), stat.S_IMODE(info.st_mode))


def install(sources: str, path: str, interpreter: str, after: Agent) -> None:
    """Compile sources and replace the agent at a path by them, once they have been seen to start.

    :param sources: a file that `bundle.build` made
    :param after: the Agent that this has to come to
    :raises BusyError: another deployment is about to replace it
    :raises StillpointError: they do not start on this host, or can't be written; the agent is as it was
    """
    new = path + ".new"
    with _explained(path), _alone(os.path.dirname(path)), _removed_in_the_end(new):
        os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        try:
            run([interpreter, "-I", "-c", _COMPILE, sources, new, path], timeout=_COMPILE_TIMEOUT)
            run([interpreter, "-I", new, "version"])
        except CommandError as error:
            raise _does_not_start(interpreter, error) from error
        _give_access(new)
        if look(new) != after:
            raise StillpointError("what arrived on the host is not the agent that was sent, and %s was left as it was: deploy it again" % path)
        durable.rename(new, path)


def restore_access(path: str) -> None:
    """Give the agent the owner and mode that it is installed with.

    :raises StillpointError: that can't be done
    """
    with _explained(path):
        _give_access(path)


def remove(path: str) -> None:
    """Remove the agent.

    :raises StillpointError: that can't be done
    """
    with _explained(path), _removed_in_the_end(path + ".new"):
        os.unlink(path)
        durable.sync_directory(os.path.dirname(path))


def _give_access(path: str) -> None:
    """Set owner and mode, and bring the file to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fchown(descriptor, 0, 0)
        os.fchmod(descriptor, MODE)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _does_not_start(interpreter: str, error: Exception) -> StillpointError:
    said = sentence(error.stderr) if isinstance(error, CommandError) else ""
    return StillpointError("the agent does not start on the host with %s and was not put in place: %s" % (interpreter, said or error))


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn an OSError into a sentence."""
    try:
        yield
    except OSError as error:
        raise StillpointError("the agent %s can't be changed: %s: %s" % (path, error.filename or path, error.strerror)) from error


@contextmanager
def _alone(directory: str) -> Iterator[None]:
    """Keep other deployments out of a directory.

    :raises BusyError: one is at work there
    """
    with durable.lock(directory) as held:
        if held is None:
            raise BusyError("another deployment is replacing the agent in %s: run this one again when it has ended" % directory)
        yield


@contextmanager
def _removed_in_the_end(path: str) -> Iterator[None]:
    """Remove a file if it is still there after the body, or after one that was killed before."""
    try:
        yield
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _origin(path: str) -> Optional[Origin]:
    with open(path, "rb") as file:
        return origin(file.read())


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
