# SPDX-License-Identifier: GPL-3.0-or-later
"""restic as a program: how it is called, what it may know, and what its exit codes and sentences mean.

The sentences are those of 0.14 to 0.19: exit codes of their own for the common failures came with 0.17.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple
from urllib.parse import quote, urlsplit, urlunsplit

from ..host import process
from ..host.errors import CommandError, NotNowError, StillpointError, UsageError
from ..host.run_directory import make_run_directory
from .secrets import CA_CERT, CLIENT_CERT, USER_PASSWORD, USERNAME, Secrets

PROGRAM = "restic"
OLDEST = (0, 14)
CACHE = "/var/cache/stillpoint/restic"

#: Seconds for which restic may repeat one thing in vain: while a repository is opened, and while data goes to it or comes from it
PATIENCE_OPENING, PATIENCE_SENDING = 10.0, 300.0

_OPENING_TIMEOUT = 120.0
_SENDING_TIMEOUT = 7 * 86400.0
_END_PATIENCE = 20.0  # of one that was told to end, and removes its lock
_STDERR_KEPT = 65536
_GOT_ON_AFTER = 150.0  # seconds without a word of trying something again, whose pauses are shorter

_VERSION = re.compile(r"restic (\d+)\.(\d+)(?:\.(\d+))?")
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^/\s\"]*@")


class NoRepository(StillpointError):
    """Nothing that restic knows is at the address."""


class WrongPassword(StillpointError):
    """There is a repository, and the password opens none of its keys."""


class Refused(StillpointError):
    """The server at the address does not let this account in, or is not the one that its certificate should name."""


class Offline(NotNowError):
    """The address does not answer."""


class Locked(NotNowError):
    """Another process has the repository for itself."""


class Full(NotNowError):
    """There is no room at the address."""


class Unavailable(NotNowError):
    """The server is there and does not serve this repository for now."""


# In this order; each is looked for in all that restic said. The second of a pair is the error, and what is said of "the copy at ADDRESS".
_SENTENCES: Tuple[Tuple[str, type, str], ...] = (
    (r"wrong password or no key found", WrongPassword, "has a repository that the password in %(secrets)s does not open: put its own there"),
    (r"x509:|certificate (?:signed by|has expired|is not)|tls: failed to verify", Refused, "shows a certificate that is not accepted: %(said)s"),
    (r"Insufficient Storage|\b507\b|[Nn]o space left|disk quota exceeded", Full, "is full: make room there; the copy goes on by itself after that"),
    (r"\((?:401|403)\)|Access Denied|SignatureDoesNotMatch|InvalidAccessKeyId", Refused, "refuses the account in %(secrets)s, or this repository to it"),
    (r"Permission denied \(publickey|Host key verification failed", Refused, "can't be logged in to: %(said)s"),
    (r"already locked|unable to create lock", Locked, "is locked by another process, which prunes or checks it: it is tried again"),
    (r"\((?:423|429|502|503|504)\)|SlowDown", Unavailable, "is not served for now (%(said)s): it is tried again"),
    (r"config file does not exist|<?config/?>? does not exist|unable to open config file: .*no such file", NoRepository, "has no repository"),
    (
        r"connection refused|no such host|i/o timeout|TLS handshake timeout|network is unreachable|no route to host|connection reset|context deadline"
        r"|server misbehaving|connection timed out|Could not resolve|Temporary failure in name resolution|unexpected EOF|: EOF",
        Offline,
        "can't be reached: %(said)s",
    ),
)
_IN_VAIN = re.compile("|".join("(?:%s)" % pattern for pattern, kind, _text in _SENTENCES if kind in (WrongPassword, Refused, Full)))
_RETRYING = "retrying after"
_BY_STATUS = {10: NoRepository, 11: Locked, 12: WrongPassword}


@dataclass(frozen=True)
class Output:
    """What restic left: exit status, stdout as text where nobody took its lines, and stderr without secrets."""

    rc: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Restic:
    """A repository, reached by a program.

    :ivar url: as restic takes it, without an account in it
    :ivar cache: restic's cache directory; None for no cache
    """

    url: str
    secrets: Secrets
    program: str = PROGRAM
    cache: Optional[str] = None

    def run(
        self,
        *arguments: str,
        cwd: Optional[str] = None,
        on_line: Optional[Callable[[str], None]] = None,
        tick: Callable[[], None] = lambda: None,
        accept: Sequence[int] = (0,),
        patience: float = PATIENCE_OPENING,
        timeout: float = _OPENING_TIMEOUT,
        in_child: Optional[Callable[[], None]] = None,
        stdout: Optional[IO[bytes]] = None,
    ) -> Output:
        """Run a command of restic to its end.

        :param on_line: takes each line of stdout; default: they are in what is returned
        :param tick: called about every second; what it raises ends restic
        :param accept: exit statuses that are no failure
        :param patience: seconds for which it may repeat one thing in vain
        :param in_child: called between fork and exec
        :param stdout: takes its output instead
        :raises StillpointError: in the kinds above; it is missing; CommandError where the failure is none of these
        """
        with self._environment() as (environment, descriptors):
            argv = [self.program, *self._options(), *arguments]
            child = process.start(
                argv,
                dies_with_us=True,
                gives_way=True,
                in_child=in_child,
                env=environment,
                cwd=cwd,
                pass_fds=descriptors,
                stdout=stdout or subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            watch = _Watch(child, on_line, tick, patience, timeout)
            try:
                watch.follow()
            finally:
                watch.end()
        output = Output(child.returncode, "".join(watch.lines), self._harmless(watch.stderr))
        if watch.gave_up or child.returncode not in accept:
            raise self._failure(argv, output, watch.gave_up)
        return output

    def send(self, *arguments: str, **options: Any) -> Output:
        """Run a command that moves data, as `run` does, for as long as it gets on."""
        return self.run(*arguments, **{"patience": PATIENCE_SENDING, "timeout": _SENDING_TIMEOUT, **options})

    def json(self, *arguments: str) -> Any:
        """Return what a command says with --json; its lock is not taken."""
        output = self.run(*arguments, "--json", "--no-lock")
        try:
            return json.loads(output.stdout)
        except ValueError as error:
            raise StillpointError("restic %s says what is not JSON: %s" % (arguments[0], output.stdout[:80])) from error

    def repository_id(self) -> str:
        """Return the id of the repository, which no other one has.

        :raises NoRepository: there is none
        """
        return str(self.json("cat", "config")["id"])

    def version(self) -> Tuple[int, ...]:
        """Return the program's version.

        :raises UsageError: it is older than any that is supported
        """
        version = version_of(self.program)
        if version[:2] < OLDEST:
            raise UsageError("restic %d.%d.%d is too old for copies: 0.14 is the oldest that works; Debian 12's package runs on Debian 11" % version)
        return version

    def _options(self) -> List[str]:
        options = ["--cache-dir", self.cache] if self.cache else ["--no-cache"]
        for key, option in ((CA_CERT, "--cacert"), (CLIENT_CERT, "--tls-client-cert")):
            if self.secrets.get(key):
                options += [option, self.secrets.get(key)]
        return options

    @contextmanager
    def _environment(self) -> Iterator[Tuple[Dict[str, str], Tuple[int, ...]]]:
        """Give the environment of restic, made from nothing, and the descriptors that it refers to. An address with an account in it stands in a
        file without a name: 0.14 knows no other way, and what is in a name can be left behind."""
        environment = {**self.secrets.environment(), "PATH": process.PATH, "LC_ALL": "C", "TZ": "UTC", "RESTIC_PROGRESS_FPS": "1"}
        user = self.secrets.get(USERNAME)
        if not user or not self.url.startswith("rest:"):
            yield {**environment, "RESTIC_REPOSITORY": self.url}, ()
            return
        with tempfile.TemporaryFile(dir=make_run_directory()) as file:
            file.write(_with_account(self.url, user, self.secrets.get(USER_PASSWORD)).encode())
            file.flush()
            yield {**environment, "RESTIC_REPOSITORY_FILE": "/proc/self/fd/%d" % file.fileno()}, (file.fileno(),)

    def _harmless(self, said: str) -> str:
        """Return what restic said without any secret."""
        said = _PASSWORD_IN_URL.sub("", said)
        for value in self.secrets.environment().values():
            said = said.replace(value, "***") if len(value) > 3 else said
        password = self.secrets.get(USER_PASSWORD)
        return said.replace(password, "***") if password else said

    def _failure(self, argv: List[str], output: Output, gave_up: str) -> StillpointError:
        said = output.stderr + output.stdout[-2000:]
        for pattern, kind, text in _SENTENCES:
            found = re.search(pattern, said)
            if found or _BY_STATUS.get(output.rc) is kind:
                facts = {"secrets": self.secrets.path, "said": _around(said, found.start()) if found else ""}
                error: StillpointError = kind("the repository %s %s" % (self.url, text % facts))
                return error
        if gave_up == _Watch.IN_VAIN:
            return Offline("the repository %s can't be reached: %s" % (self.url, _last(said)))
        if gave_up:
            return Offline("the repository %s can't be reached: restic %s did not end in time" % (self.url, _command(argv)))
        return CommandError("restic %s failed: %s" % (_command(argv), _last(said) or "exit status %d" % output.rc), argv, output.rc, output.stderr)


def version_of(program: str) -> Tuple[int, ...]:
    """Return the version of a restic, of three numbers.

    :raises UsageError: it says none
    """
    found = _VERSION.search(process.run([program, "version"]).stdout)
    if not found:
        raise UsageError("the program %s does not say its version as restic does: install the package restic" % program)
    return tuple(int(part or 0) for part in found.groups())


class _Watch:
    """Follows a restic that runs: its lines, how long it repeats something in vain, and its end."""

    IN_VAIN, TOO_LONG = "in vain", "too long"

    def __init__(
        self, child: "subprocess.Popen[Any]", on_line: Optional[Callable[[str], None]], tick: Callable[[], None], patience: float, timeout: float
    ) -> None:
        self.lines: List[str] = []
        self.stderr = ""
        self.gave_up = ""
        self._child = child
        self._take = on_line or self.lines.append
        self._tick = tick
        self._patience = patience
        self._until = time.monotonic() + timeout
        self._followed = False
        self._vain_since = 0.0
        self._vain_last = -_GOT_ON_AFTER
        self._rest = b""

    def follow(self) -> None:
        """Read until both ends are closed, or there is no use in going on."""
        with selectors.DefaultSelector() as selector:
            for stream, take in ((self._child.stdout, self._out), (self._child.stderr, self._err)):
                if stream is not None:
                    selector.register(stream, selectors.EVENT_READ, take)
            while selector.get_map() and not self.gave_up:
                for key, _events in selector.select(1.0):
                    data = os.read(key.fd, 1 << 16)
                    key.data(data)
                    if not data:
                        selector.unregister(key.fileobj)
                self._tick()
                self._look_at_clock()
        self._followed = not self.gave_up

    def end(self) -> None:
        """Wait for the end of a program that has closed its output; one that has not is told to end, and removes its lock."""
        if not self._followed:
            self._child.send_signal(signal.SIGINT)
        try:
            self._child.wait(_END_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill(self._child)
        for stream in (self._child.stdout, self._child.stderr):
            if stream is not None:
                stream.close()

    def _out(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data and self._rest:
            lines, self._rest = [self._rest], b""
        for line in lines:
            self._take(line.decode("utf-8", "replace") + "\n")

    def _err(self, data: bytes) -> None:
        said = data.decode("utf-8", "replace")
        self.stderr = (self.stderr + said)[-_STDERR_KEPT:]
        if _RETRYING in said:
            if _IN_VAIN.search(said):
                self.gave_up = self.IN_VAIN
            now = time.monotonic()
            if now > self._vain_last + _GOT_ON_AFTER:
                self._vain_since = now
            self._vain_last = now

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if now < self._vain_last + _GOT_ON_AFTER and now > self._vain_since + self._patience:
            self.gave_up = self.IN_VAIN
        if now > self._until:
            self.gave_up = self.TOO_LONG


def _with_account(url: str, user: str, password: str) -> str:
    parts = urlsplit(url[len("rest:") :])
    return "rest:" + urlunsplit(parts._replace(netloc="%s:%s@%s" % (quote(user, safe=""), quote(password, safe=""), parts.netloc)))


def _command(argv: Sequence[str]) -> str:
    """Return the command of a call: the first word that is no option, nor the value of one."""
    words = iter(argv[1:])
    for word in words:
        if word in ("--cache-dir", "--cacert", "--tls-client-cert"):
            next(words)
        elif not word.startswith("-"):
            return word
    return ""


def _around(said: str, place: int) -> str:
    """Return the end of the line in which something was said: what is in front of it are restic's own calls."""
    begin = said.rfind("\n", 0, place) + 1
    end = said.find("\n", place)
    line = said[begin : end if end >= 0 else len(said)].strip().rstrip('"}').split("\\n")[0]
    return ": ".join(line.split(": ")[-2:])


def _last(said: str) -> str:
    """Return the sentence that tells most of what restic said."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    fatal = [line for line in lines if "Fatal" in line or '"exit_error"' in line or '"error"' in line]
    return (fatal or lines or [""])[-1][:300]
