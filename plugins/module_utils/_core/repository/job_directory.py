# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of a job in a repository: its generations, how they are found, and how they go.

::

    REPO/HOST/JOB/2026-11-22T02-00-05Z/     a generation: manifest.json and the trees
    REPO/HOST/JOB/.2026-….verified          what later verifications of it found
    REPO/HOST/JOB/.2026-….trial/            a copy of it that a server is started on, locked while that lasts
    REPO/HOST/JOB/latest -> …
    REPO/HOST/JOB/.lock                     held by the one that writes; the kernel frees it, whatever happens
    REPO/HOST/JOB/.RUN.partial/             being written
    REPO/HOST/JOB/.2026-….deleting/         being removed

A generation appears by one rename, after everything in it has reached the disk, and is never written to again: files that
did not change are hard links that it shares with others.
"""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Callable, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..host import durable
from ..host.errors import BusyError, CommandError, StillpointError, UsageError, fail
from .generation import BAD, GOOD, LATEST, PARTIAL, UNPROVEN, VERIFIED, Generation

if TYPE_CHECKING:
    from . import retention

# Who only looks at generations needs neither rsync nor the retention.
# pylint: disable=import-outside-toplevel

LOCK, DELETING, TRIAL = ".lock", ".deleting", ".trial"

_MOST_HOSTS = 10  # that a sentence names

_NAME = re.compile(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\dZ(-\d+)?")


def refuse_absent(repository: str, *, to_write: bool) -> None:
    """Raise UsageError for a repository that does not exist, or, where something is to be written to it, whose file system is not mounted."""
    if not os.path.isdir(repository):
        raise UsageError("the repository %s does not exist: create it with mode 0700, or mount what should be there" % repository)
    if not to_write:
        return
    from ..host.mounts import unmounted

    point = unmounted(repository)
    if point is not None:
        raise UsageError("the repository %s lies on the file system of %s, which /etc/fstab names and which is not mounted now: mount it" % (repository, point))


class JobDirectory:
    """A job's generations. Whoever changes anything holds its `lock`.

    :ivar sequence: a new generation gets a number after this one, and after those that are here
    """

    def __init__(self, path: str, repository: Optional[str] = None) -> None:
        self.path = path.rstrip("/") or "/"
        self.repository = repository or self.path
        self.sequence = 0
        self._locked = False

    @property
    def job(self) -> str:
        """The job's name; "" where the directory is not one of a repository."""
        return os.path.basename(self.path) if self.repository != self.path else ""

    @property
    def host(self) -> str:
        """The name of the host; "" where the directory is not one of a repository."""
        return os.path.basename(os.path.dirname(self.path)) if self.job else ""

    @classmethod
    def open(cls, repository: str, host: str, job: str, *, to_write: bool = False) -> "JobDirectory":
        """Return the directory of a job, which need not exist before something is written to it.

        :raises UsageError: the repository is absent (`refuse_absent`), or a name can't be one of a directory
        """
        refuse_absent(repository, to_write=to_write)
        for name in (host, job):
            if not name or "/" in name or name.startswith("."):
                raise UsageError("%r can't be the name of a directory in the repository %s" % (name, repository))
        return cls(os.path.join(repository, host, job), repository)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one that writes.

        :raises BusyError: another process is
        :raises StillpointError: the repository can't be written
        """
        path = os.path.join(self.path, LOCK)
        with ExitStack() as stack:
            with self.written():
                _make_directories(self.path)
                held = stack.enter_context(durable.lock(path, make=True))
                if held is None:
                    raise BusyError("another run%s is writing to %s: wait until it has ended" % (_holder(path), self.path))
                os.ftruncate(held, 0)
                os.pwrite(held, b"%d\n" % os.getpid(), 0)
            stack.callback(setattr, self, "_locked", False)
            self._locked = True
            yield

    def must_be_locked(self) -> None:
        """Raise StillpointError unless this holds the lock."""
        if not self._locked:
            raise StillpointError("%s is changed without its lock: this is a fault in stillpoint" % self.path)

    @contextmanager
    def written(self) -> Iterator[None]:
        """Turn errors of writing into a sentence that names the repository and its room."""
        from .transfer import DestinationFull

        try:
            yield
        except (OSError, DestinationFull) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> StillpointError:
        from .transfer import FULL, DestinationFull, room

        if isinstance(error, DestinationFull) or getattr(error, "errno", None) in FULL:
            return StillpointError(
                "the repository %s is full (%s): nothing was published; free space there, or keep fewer generations"
                % (self.repository, room(self.repository))
            )
        return StillpointError("the repository %s can't be written: %s" % (self.repository, _explained(error)))

    def names(self) -> List[str]:
        """Return the names of what is published, sorted."""
        try:
            return sorted(name for name in os.listdir(self.path) if _NAME.fullmatch(name))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise StillpointError("the generations in %s can't be listed: %s" % (self.path, error.strerror)) from error

    def generations(self) -> List[Generation]:
        """Return what is published, newest first: in the order in which they were made, also if the clock went back."""
        found: List[Tuple[int, Generation]] = []
        highest = 0
        for name in self.names():
            generation = Generation(os.path.join(self.path, name))
            # One whose manifest can't be read takes the place that its name says.
            place = highest if generation.sequence is None else generation.sequence
            highest = max(highest, place)
            found.append((place, generation))
        return [generation for _place, generation in sorted(found, key=lambda pair: (pair[0], pair[1].name), reverse=True)]

    def next_sequence(self) -> int:
        """Return the number of the generation that comes next."""
        return 1 + max(self.sequence, *(each.sequence or 0 for each in self.generations()), 0)

    def find(self, name: Optional[str] = None, states: Sequence[Sequence[str]] = ((GOOD,), (UNPROVEN,))) -> Generation:
        """Return a generation by its name or the beginning of it; without a name the newest good one, else the newest unproven.

        :param states: instead: the newest in one of the first of these states, else in one of the next
        :raises UsageError: there is no such generation; the sentence says what there is
        """
        found = self.generations()
        if not found:
            raise UsageError(
                "there is no generation %sin %s: nothing was backed up there yet%s" % (name + " " if name else "", self.path, self._elsewhere())
            )
        if name is None or name == LATEST:
            for wanted in states:
                for generation in found:
                    if generation.state in wanted:
                        return generation
            raise UsageError("every generation in %s is bad: name the one to use: %s" % (self.path, _names(found)))
        matching = [each for each in found if each.name == name] or [each for each in found if each.name.startswith(name)]
        if len(matching) != 1:
            problem = "more than one generation in %s begins with %s" if matching else "there is no generation %s in %s"
            raise UsageError(
                (problem % ((self.path, name) if matching else (name, self.path))) + ": there are " + _names(matching or found)
            )
        return matching[0]

    def others(self) -> List[str]:
        """Return under which other names of hosts the repository holds generations of this job, sorted."""
        if not self.job:
            return []
        try:
            hosts = sorted(os.listdir(self.repository))
        except OSError:
            return []
        return [host for host in hosts if not host.startswith(".") and host != self.host and self.of_host(host).names()]

    def of_host(self, host: str) -> "JobDirectory":
        """Return the directory of the same job of another host."""
        return JobDirectory(os.path.join(self.repository, host, self.job), self.repository)

    def _elsewhere(self) -> str:
        """Return in words which other hosts have what is not here."""
        hosts = self.others()
        if not hosts:
            return ""
        more = " and %d more" % (len(hosts) - _MOST_HOSTS) if len(hosts) > _MOST_HOSTS else ""
        return "; of %s there are backups of %s%s: name one with --from-host" % (self.job, ", ".join(hosts[:_MOST_HOSTS]), more)

    def clean(self, on_trouble: Callable[[StillpointError], None] = fail) -> List[str]:
        """Remove what earlier runs left unfinished, and return the names.

        :param on_trouble: told of each that can't be removed
        """
        self.must_be_locked()
        names = sorted(os.listdir(self.path))
        left = [name for name in names if name.startswith(".") and name.endswith((PARTIAL, DELETING))]
        left += [name for name in names if name.startswith(".") and name.endswith(TRIAL) and not durable.in_use(os.path.join(self.path, name))]
        stray = [name for name in names if name.startswith(".") and name.endswith(VERIFIED) and name[1 : -len(VERIFIED)] not in names]
        stray += [name for name in names if name.startswith(".") and name.endswith(".new")]
        removed = []
        for name in left + stray:
            path = os.path.join(self.path, name)
            try:
                if name in left:
                    durable.remove_tree(path)
                    removed.append(name)
                else:
                    os.unlink(path)
            except (CommandError, OSError) as error:
                on_trouble(StillpointError("%s, which an earlier run left, can't be removed and takes up room: %s" % (path, _explained(error))))
        with self.written():
            self.refresh_latest()
        return removed

    def remove(self, generation: Generation) -> bool:
        """Remove a generation. False: somebody is reading it, and it stays."""
        self.must_be_locked()
        with durable.lock(generation.path) as held:
            if held is None:
                return False
            doomed = os.path.join(self.path, "." + generation.name + DELETING)
            with self.written():
                self.refresh_latest(without=generation.name)
                durable.rename(generation.path, doomed)
                if os.path.lexists(generation.verdict_path):
                    os.unlink(generation.verdict_path)
                durable.remove_tree(doomed)
        return True

    def prune(self, keep: Any, *, dry_run: bool = False) -> "List[retention.Decision[Generation]]":
        """Apply a retention and return what became of each generation, newest first; one that is being read stays.

        :param dry_run: only say what would be removed
        """
        from . import retention

        decisions = retention.decide(self.generations(), keep)
        if dry_run:
            return decisions
        return [
            decision if decision.keep or self.remove(decision.generation) else retention.Decision(decision.generation, ("being read",))
            for decision in decisions
        ]

    def record(self, generation: Generation, value: Mapping[str, Any]) -> None:
        """Keep what was found of a generation, and let `latest` point away from one that is bad. It takes no lock, for which a run that begins just
        then would not wait.

        :raises OSError: as `Generation.record` does
        """
        generation.record(value)
        with self.written():
            self.refresh_latest()

    def refresh_latest(self, without: str = "") -> None:
        """Let `latest` point to the newest generation that is not bad.

        :param without: one that is about to go
        """
        while True:
            latest = os.path.join(self.path, LATEST)
            now = os.readlink(latest) if os.path.islink(latest) else ""
            wanted = next((each.name for each in self.generations() if each.name != without and each.state != BAD), "")
            if wanted == now:
                return
            if wanted:
                self.point_latest(wanted)  # and look again: a run may have published one meanwhile
            else:
                os.unlink(latest)

    def point_latest(self, name: str) -> None:
        """Let `latest` point to a generation."""
        new = os.path.join(self.path, "." + LATEST + ".new")
        if os.path.lexists(new):
            os.unlink(new)
        os.symlink(name, new)
        durable.rename(new, os.path.join(self.path, LATEST))


def _holder(path: str) -> str:
    """Return in words which process holds a lock, as far as it has said so."""
    with open(path, encoding="ascii", errors="replace") as file:
        holder = file.read(20).strip()
    return " (process %s)" % holder if holder else ""


def _make_directories(path: str) -> None:
    """Make a directory and those above it that are missing, for root alone."""
    if not os.path.isdir(path):
        _make_directories(os.path.dirname(path))
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass


def _names(generations: Sequence[Generation], most: int = 20) -> str:
    names = ["%s (%s)" % (each.name, each.state) for each in generations[:most]]
    return ", ".join(names) + (" and %d more" % (len(generations) - most) if len(generations) > most else "")


def _explained(error: Exception) -> str:
    reason = getattr(error, "strerror", None)
    name = getattr(error, "filename", None)
    return "%s (%s)" % (reason, os.fsdecode(name)) if reason and name else str(reason or error)
