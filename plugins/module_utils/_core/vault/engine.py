# SPDX-License-Identifier: GPL-3.0-or-later
"""restic on a repository that lies in a directory of this machine, opened with the keeper's password."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Sequence

from ..copies.restic import version_of
from ..host.errors import CommandError, StillpointError
from ..host.process import Result, kill, sentence, start
from .settings import Settings

_OLDEST = (0, 18)  # earlier ones prune what a forged index or pack claims
_TIMEOUT = 7 * 86400.0  # a repository of many terabytes is read


@dataclass(frozen=True)
class Engine:
    """restic for one repository."""

    settings: Settings
    repository: str

    def run(self, *arguments: str, check: bool = True, password: Optional[str] = None) -> Result:
        """Run restic to its end and return its Result. It ends when this process does: a second one must never find it at work.

        :param password: a file of another password than the keeper's
        :raises CommandError: restic failed, with ``check``
        """
        argv = self._argv(arguments, password)
        process = start(argv, dies_with_us=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, errors="replace")
        try:
            out, err = process.communicate(timeout=_TIMEOUT)
        finally:
            kill(process)
        if check and process.returncode != 0:
            raise failed(argv, process.returncode, err)
        return Result(argv, process.returncode, out, err)

    def lines(self, *arguments: str) -> Iterator[bytes]:
        """Return what restic prints, line by line, however much that is.

        :raises CommandError: at the end, where restic failed
        """
        argv = self._argv(arguments)
        with tempfile.TemporaryFile() as errors:
            process = start(argv, dies_with_us=True, stdout=subprocess.PIPE, stderr=errors)
            try:
                yield from process.stdout  # type: ignore[misc]
                process.wait(timeout=_TIMEOUT)
            finally:
                kill(process)
            if process.returncode != 0:
                errors.seek(0)
                raise failed(argv, process.returncode, errors.read().decode("utf-8", "replace"))

    def _argv(self, arguments: Sequence[str], password: Optional[str] = None) -> List[str]:
        opened = ["--repo", self.repository, "--password-file", password or self.settings.password]  # a file's name: no password is in it
        return [self.settings.restic, *arguments, *opened, "--no-cache", "--quiet"]

    def key_ids(self, user: str) -> List[str]:
        """Return the ids of the keys that carry this user's name."""
        listed = json.loads(self.run("key", "list", "--json", "--no-lock").stdout)
        return [each["id"] for each in listed if each["userName"] == user]

    def snapshots(self) -> Dict[str, Dict[str, Any]]:
        """Return the snapshots that can be read, by id."""
        listed = json.loads(self.run("snapshots", "--json", "--no-lock", check=False).stdout or "[]")
        return {each["id"]: each for each in listed or ()}


@contextmanager
def password_file(password: str) -> Iterator[str]:
    """Return a file of a password, in memory, as long as the body runs."""
    descriptor = os.memfd_create("password")
    try:
        os.write(descriptor, password.encode())
        yield "/proc/%d/fd/%d" % (os.getpid(), descriptor)
    finally:
        os.close(descriptor)


def failed(argv: Sequence[str], rc: int, stderr: str) -> CommandError:
    """Return what a restic that failed comes to. It may quote what a client has sent: nothing in it gets to a terminal as it is."""
    said = plain(_said(stderr)) or "exit status %d" % rc
    return CommandError("restic %s failed on %s: %s" % (argv[1], argv[argv.index("--repo") + 1], said[:300]), argv, rc, plain(stderr))


def _said(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("Fatal:")]
    return lines[-1] if lines else sentence(stderr)


def plain(text: str) -> str:
    """Return a text without what a terminal would obey."""
    return re.sub(r"[^\x20-\x7e\n]", "?", text)


def require_version(settings: Settings) -> None:
    """Raise StillpointError where restic is older than a keeper needs."""
    version = version_of(settings.restic)
    if version[:2] < _OLDEST:
        raise StillpointError("the keeper needs restic 0.18 or newer, and this host has restic %d.%d: install Debian 13's package" % version[:2])


def summary(stdout: str) -> Dict[str, Any]:
    """Return the summary among the JSON lines that restic has printed; {} where there is none."""
    for line in reversed(stdout.splitlines()):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("message_type") == "summary":
            return found
    return {}
