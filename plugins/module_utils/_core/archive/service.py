# SPDX-License-Identifier: GPL-3.0-or-later
"""The service that keeps a server's binary logs beside the generations, as they are written.

The server's own client streams them into a directory of its own. A log that the server has closed is read to its end, every
checksum compared, and only then taken into the archive; the one that is open is brought to the disk every second. When the
client ends, for whatever reason, it is started again at the log that the archive needs next, with a pause that grows up to a
limit; what the last client had fetched of that log stays until the new one has as much. Where the stream is not to be had,
closed logs are copied instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from contextlib import ExitStack, suppress
from typing import Any, Dict, List, Optional, Tuple

from ..dump.client import option_file
from ..host.errors import BusyError, StillpointError, Stopped, UsageError
from ..host.process import end, sentence, start, undisturbed
from ..host.reporter import Reporter
from ..job.names import host_name
from ..job.options import Job, MysqlOptions
from ..mysql.absent import nothing_begun
from ..mysql.connection import Session
from ..repository import identity
from ..repository.job_directory import JobDirectory
from . import source, timeline
from .archive import Archive, written
from .chains import TRIES, Again, LineKeeper
from .line import Line, Log, next_name
from .metrics import ArchiveMetrics
from .source import Source
from .stream import Follower, Progress

STREAM, COPY, AUTO = "stream", "copy", "auto"

# Seconds, all of them.
_TICK = 0.25
_PRUNE_EVERY = 900.0
_COPY_EVERY = 300.0
_BACK_OFF = (1.0, 60.0)
_STEADY = 30.0  # a stream that lasted as long as this was a good one


def serve(job: Job, reporter: Reporter, *, once: bool = False) -> Dict[str, Any]:
    """Archive until told to end, and return the status then; with ``once``, copy what is closed and return.

    :raises BusyError: another process archives this job
    :raises UsageError: the job archives nothing
    :raises StillpointError: the archive is another machine's, or is this one's and lies under its former name
    :raises StillpointError: with ``once``, it was not possible; without, the repository can't be written
    """
    if job.mysql is None or job.binlog is None:
        raise UsageError("%s: the job does not archive binary logs: give it binlog: {archive: true}" % job.where)
    directory = JobDirectory.open(job.repository, host_name(), job.name, to_write=True)
    archive = Archive(directory.path)
    for former in identity.check(directory, identity.here()):
        if not archive.exists and Archive(former.directory.path).exists:
            raise StillpointError("%s; until then no binary log is archived" % former)
    with archive.lock():
        service = Service(job, job.mysql, job.binlog.method, archive, directory, reporter)
        if once:
            return service.copy_once()
        try:
            service.run()
        except Stopped:  # which is how a service ends, and no failure
            reporter.note("told to end")
    return archive.status()


def prune(directory: JobDirectory, reporter: Reporter) -> List[str]:
    """Remove the logs that no generation needs, unless the service is at work, which does that itself; return their names."""
    archive = Archive(directory.path)
    if not archive.exists:
        return []
    try:
        with archive.lock():
            return remove_unneeded(archive, directory, reporter)
    except BusyError:
        return []


def remove_unneeded(archive: Archive, directory: JobDirectory, reporter: Reporter) -> List[str]:
    """Remove the logs before the ones that the oldest generations stand in. As long as the coordinates of one generation can't
    be read, nothing is removed."""
    generations = directory.generations()
    if not generations or any(not each.summary for each in generations):
        return []
    found = timeline.read(archive, generations)
    doomed: List[Log] = []
    for stretch in found.stretches:
        logs = stretch.line.logs
        if stretch.bases:
            first = min(base.index for base in stretch.bases)
            doomed += logs[:first]
        elif stretch is not found.stretches[-1] and all(_younger(each, stretch.pieces[-1].last_time) for each in generations if stretch.pieces):
            doomed += logs
    if doomed:
        archive.remove(doomed)
        reporter.note("removed %d binary logs that no backup needs, up to %s" % (len(doomed), doomed[-1].file))
    return [log.file for log in doomed]


def _younger(generation: Any, moment: Optional[float]) -> bool:
    return moment is None or generation.time.timestamp() > moment


# As the server says it of a log of its own, also of one that nobody else can read, as it is encrypted.
_TORN = re.compile(r"(?:truncated in the middle of event|bogus data in log event).* the last event read from '(?:[^']*/)?([^'/]+)' at (\d+)")


class Service:
    """One job's archiving. Its methods are called by one thread, under the archive's lock."""

    def __init__(
        self, job: Job, options: MysqlOptions, method: str, archive: Archive, directory: JobDirectory, reporter: Reporter
    ) -> None:
        self._job = job
        self._options = options
        self._method = method
        self._archive = archive
        self._keeper = LineKeeper(archive, directory, reporter)
        self._directory = directory
        self._reporter = reporter
        self._progress = Progress(synced=archive.status().get("synced"))
        self._pruned = 0.0
        self._copied_at: Optional[Tuple[str, int]] = None
        self._metrics = ArchiveMetrics(job.notify.metrics, job.name, archive, reporter.warn) if job.notify.metrics else None

    # -- the loop

    def run(self) -> None:
        """Archive for ever."""
        pause = _BACK_OFF[0]
        try:
            while True:
                began = time.monotonic()
                try:
                    with written(self._archive.path):
                        self._turn()
                    trouble = None
                except Again as news:
                    self._reporter.note(str(news))
                    pause = _BACK_OFF[0]
                    self._wait(pause)
                    continue
                except StillpointError as error:
                    trouble = str(error)
                if time.monotonic() - began > _STEADY:
                    pause = _BACK_OFF[0]
                if trouble:
                    if trouble != self._progress.error:
                        self._reporter.warn("%s; trying again" % trouble)
                    self._progress.error = trouble
                with suppress(StillpointError):  # the disk may be full
                    self.say("waiting" if trouble else self._progress.state)
                self._wait(pause if trouble else 0.0)
                pause = min(pause * 2, _BACK_OFF[1])
        finally:
            with undisturbed():
                self.say("stopped")

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(_TICK, max(until - time.monotonic(), 0)))

    def _turn(self) -> None:
        """Connect, find out what comes next, and fetch it until something ends that."""
        with Session(source.login(self._options)) as session:
            there = source.read(session)
            method = self._choose(session, there)
            line = self._keeper.resume(there)
            self._progress.method, self._progress.line = method, line.number
            if method == STREAM:
                self._stream(session, there, line)
            else:
                self._copy(session, there, line)
                self._progress.error = None
                self.say("copying")
                self.prune()
        if method == COPY:
            self._wait(_COPY_EVERY)

    def copy_once(self) -> Dict[str, Any]:
        """Copy every closed log, after having the open one closed, and return the status."""
        for attempt in range(TRIES):
            try:
                with written(self._archive.path), ExitStack() as stack:
                    with nothing_begun():
                        session = stack.enter_context(Session(source.login(self._options)))
                        there = source.read(session)
                    line = self._keeper.resume(there)
                    self._progress.method, self._progress.line = COPY, line.number
                    self._copy(session, there, line)
                break
            except Again as again:
                if attempt == TRIES - 1:
                    raise StillpointError("the binary logs could not be copied: %s" % again) from None
        self.say("stopped")
        self.prune()
        return self._archive.status()

    def _choose(self, session: Session, there: Source) -> str:
        if self._method != AUTO:
            return self._method
        reason = None
        if source.find_client(there.flavour) is None:
            reason = "the client program that streams binary logs is not installed (package %s)" % source.client_package(there.flavour)
        elif not source.may_stream(session):
            reason = "the account %s lacks the privilege REPLICATION SLAVE" % session.user
        if reason and self._progress.method != COPY:
            self._reporter.warn("%s: closed logs are copied every %d s instead" % (reason, _COPY_EVERY))
        return COPY if reason else STREAM

    def say(self, state: str) -> None:
        progress = self._progress
        progress.state = state
        status = {
            "time": time.time(),
            "pid": os.getpid(),
            "state": state,
            "method": progress.method,
            "error": progress.error,
            "line": progress.line,
            "file": progress.file,
            "position": progress.position,
            "lag_bytes": progress.lag_bytes,
            "synced": progress.synced,
        }
        self._archive.say(status)
        if self._metrics:
            self._metrics.say(status, self._directory.generations)

    def prune(self) -> None:
        if time.monotonic() - self._pruned < _PRUNE_EVERY and self._pruned:
            return
        self._pruned = time.monotonic()
        try:
            remove_unneeded(self._archive, self._directory, self._reporter)
        except (StillpointError, OSError) as error:
            self._reporter.warn("old binary logs were not removed: %s" % error)

    # -- the stream

    def _say_streaming(self) -> None:
        self.say("streaming")
        self.prune()

    def _stream(self, session: Session, there: Source, line: Line) -> None:
        """Stream until the client ends; raise Again where the line does not go on."""
        name = next_name(line)
        old = self._best_stream(line, name)
        directory = self._archive.new_stream()
        errors = os.path.join(directory, "errors")
        with option_file(source.login(self._options)) as login:
            command = source.stream_command(login, there, name, directory, "%s/%s" % (host_name(), self._job.name))
            with open(errors, "wb") as said:
                client = start(command, dies_with_us=True, stdout=subprocess.DEVNULL, stderr=said)
            follower = Follower(self._keeper, self._progress, session, there, line, directory, old, self._say_streaming)
            try:
                while client.poll() is None:
                    follower.look()
                    time.sleep(_TICK)
                follower.look()
            finally:
                with undisturbed():
                    end(client, 5)
        with open(errors, encoding="utf-8", errors="replace") as said_:
            why = sentence(said_.read())
        torn = _TORN.search(why)
        if torn:
            self._keeper.note_torn(torn.group(1), int(torn.group(2)))
        raise StillpointError("the stream of binary logs ended: %s" % (why or "exit status %d" % client.returncode))

    def _best_stream(self, line: Line, name: str) -> List[str]:
        """Return the directory of the earlier client that had fetched the most, and remove those of the others."""
        best = [os.path.dirname(path) for path in self._archive.candidates(line, name)][:1]
        for stream in self._archive.streams():
            if stream not in best:
                shutil.rmtree(stream)
        return [stream for stream in best if stream in self._archive.streams()]

    # -- the copy

    def _copy(self, session: Session, there: Source, line: Line) -> None:
        """Have the open log closed where something is in it, and copy the closed ones that the archive does not have."""
        if there.encrypted:
            raise StillpointError(
                "the server encrypts its binary logs: they can't be copied, only streamed: set method: stream in the job, "
                "and give its account REPLICATION SLAVE"
            )
        began = time.time()
        where = source.position(session, there)
        if where != self._copied_at:
            session.do("FLUSH NO_WRITE_TO_BINLOG BINARY LOGS")
        there = source.read(session)
        reason, text = self._keeper.find_break(line, there)
        if reason:
            raise Again(text)
        directory = self._archive.new_stream()
        while True:
            name = next_name(line)
            if name not in there.names[:-1]:
                break
            line = self._copy_log(line, name, directory, there)
        self._copied_at = source.position(session, there)
        if next_name(line) == there.names[-1]:
            self._progress.synced = began
            self._progress.file, self._progress.position, self._progress.lag_bytes = there.names[-1], None, None
        for stream in self._archive.streams():
            shutil.rmtree(stream)

    def _copy_log(self, line: Line, name: str, directory: str, there: Source) -> Line:
        original = os.path.join(os.path.dirname(there.basename), name)
        path = os.path.join(directory, name)
        try:
            shutil.copyfile(original, path)
        except OSError as error:
            raise StillpointError("the binary log %s can't be copied: %s" % (original, error.strerror)) from error
        return self._keeper.close(line, path, there)
