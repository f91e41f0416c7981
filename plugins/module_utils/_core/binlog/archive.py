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
from typing import Any, Callable, Dict, List, Optional, Tuple

from .. import durable
from ..errors import BusyError, StillpointError, Stopped, UsageError
from ..job import Job, MysqlOptions, host_name
from ..mysql.connection import Session
from ..observe.metrics import ArchiveMetrics
from ..observe.progress import Reporter
from ..process import sentence, start, undisturbed
from ..repository.generations import JobDirectory
from . import events, gtid, source
from .events import Facts, NoLog
from .follower import Again, Follower, Progress
from .index import CRASH, CUT, FIRST, GAP, OTHER, RESET, RESTORED, Archive, Line, Log, next_name, numbered, sequence, sync, text_of, written
from .source import Source

STREAM, COPY, AUTO = "stream", "copy", "auto"

# Seconds, all of them.
_TICK = 0.25
_PRUNE_EVERY = 900.0
_COPY_EVERY = 300.0
_BACK_OFF = (1.0, 60.0)
_STEADY = 30.0  # a stream that lasted as long as this was a good one

_PREAMBLE = 3  # events before a log's first transaction; a log that has more, and has not said what went before it, does not say it

_TRIES = 3  # so often a log that can't be archived whole is fetched anew before that is called an error


def serve(job: Job, reporter: Reporter, *, once: bool = False) -> Dict[str, Any]:
    """Archive until told to end, and return the status then; with ``once``, copy what is closed and return.

    :raises BusyError: another process archives this job
    :raises UsageError: the job archives nothing
    :raises StillpointError: with ``once``, it was not possible; without, the repository can't be written
    """
    if job.mysql is None or job.binlog is None:
        raise UsageError("%s: the job does not archive binary logs: give it binlog: {archive: true}" % job.where)
    directory = JobDirectory.open(job.repository, host_name(), job.name, to_write=True)
    archive = Archive(directory.path)
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
    from .timeline import read  # pylint: disable=import-outside-toplevel  # it needs the index as this does

    generations = directory.generations()
    if not generations or any(not each.summary for each in generations):
        return []
    found = read(archive, generations)
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

_RESET = "the server's binary logs were reset, or are those of another server: its %s is not the one that was archived"


class Service:
    """One job's archiving. Its methods are called by one thread, under the archive's lock."""

    def __init__(
        self, job: Job, options: MysqlOptions, method: str, archive: Archive, directory: JobDirectory, reporter: Reporter
    ) -> None:
        self._job = job
        self._options = options
        self._method = method
        self.archive = archive
        self._directory = directory
        self._reporter = reporter
        self.progress = Progress(synced=archive.status().get("synced"))
        self._failed: Dict[str, int] = {}
        self._torn: Optional[Tuple[str, int]] = None  # a log that the server could not send to its end, and how far it has it
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
                    if trouble != self.progress.error:
                        self._reporter.warn("%s; trying again" % trouble)
                    self.progress.error = trouble
                self.say("waiting" if trouble else self.progress.state)
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
            line = self._line(there)
            self.progress.method, self.progress.line = method, line.number
            if method == STREAM:
                self._stream(session, there, line)
            else:
                self._copy(session, there, line)
                self.progress.error = None
                self.say("copying")
                self.prune()
        if method == COPY:
            self._wait(_COPY_EVERY)

    def copy_once(self) -> Dict[str, Any]:
        """Copy every closed log, after having the open one closed, and return the status."""
        for attempt in range(_TRIES):
            try:
                with Session(source.login(self._options)) as session:
                    there = source.read(session)
                    line = self._line(there)
                    self.progress.method, self.progress.line = COPY, line.number
                    self._copy(session, there, line)
                break
            except Again as again:
                if attempt == _TRIES - 1:
                    raise StillpointError("the binary logs could not be copied: %s" % again) from None
        self.say("stopped")
        self.prune()
        return self.archive.status()

    def _choose(self, session: Session, there: Source) -> str:
        if self._method != AUTO:
            return self._method
        reason = None
        if source.find_client(there.flavour) is None:
            reason = "the client program that streams binary logs is not installed (package %s)" % source.client_package(there.flavour)
        elif not source.may_stream(session):
            reason = "the account %s lacks the privilege REPLICATION SLAVE" % session.user
        if reason and self.progress.method != COPY:
            self._reporter.warn("%s: closed logs are copied every %d s instead" % (reason, _COPY_EVERY))
        return COPY if reason else STREAM

    def say(self, state: str) -> None:
        progress = self.progress
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
        self.archive.say(status)
        if self._metrics:
            self._metrics.say(status, self._directory.generations)

    def prune(self) -> None:
        if time.monotonic() - self._pruned < _PRUNE_EVERY and self._pruned:
            return
        self._pruned = time.monotonic()
        try:
            remove_unneeded(self.archive, self._directory, self._reporter)
        except (StillpointError, OSError) as error:
            self._reporter.warn("old binary logs were not removed: %s" % error)

    # -- what comes next

    def _line(self, there: Source) -> Line:
        """Return the line to go on with: the current one, or a new one where the server's logs do not follow on it."""
        lines = self.archive.lines()
        if not lines:
            return self.begin(FIRST, "the archive begins", self._first(there), there)
        line = self._adopt(lines[-1], there)
        restored = self.archive.restored()
        if restored:
            fresh = [name for name in there.names if name not in restored["logs"]]
            self.seal(line)
            text = "the server's data was replaced by the backup %s: its logs begin anew" % restored["generation"]
            line = self.begin(RESTORED, text, fresh[0] if fresh else there.names[-1], there)
            self.archive.forget_restore()
            return line
        reason, text = self._break(line, there)
        if not reason:
            return line
        self.seal(line, but=lambda path: reason == RESET and there.has(next_name(line), path))
        cut = line.logs[-1].file if line.logs and line.logs[-1].end == CUT else ""
        fresh = there.names[there.names.index(cut) + 1 :] if cut in there.names else []
        return self.begin(reason, text, (fresh or there.names)[0], there)

    def _first(self, there: Source) -> str:
        """Return the log to begin the archive with: that of the oldest generation which the server still has the log of."""
        needed = {str((each.summary.get("coordinates") or {}).get("file")) for each in self._directory.generations()}
        return next((name for name in there.names if name in needed), there.names[-1])

    def begin(self, reason: str, text: str, first: str, there: Source) -> Line:
        line = self.archive.begin(reason, text, first, there.facts)
        (self._reporter.note if reason == FIRST else self._reporter.warn)("%s; archiving from %s on" % (text, first))
        if reason not in (FIRST, RESTORED):
            self._reporter.warn("moments between the last archived commit and the next backup can't be recovered: take a backup now")
        return line

    def _break(self, line: Line, there: Source) -> Tuple[str, str]:
        """Return why the server's logs do not follow on a line, as reason and sentence; ("", "") if they do."""
        known = line.server
        if known["flavour"] != there.flavour or (known.get("uuid") and there.uuid and known["uuid"] != there.uuid):
            return OTHER, "the server is another one than before (its uuid was %s and is %s)" % (known.get("uuid"), there.uuid)
        wanted = next_name(line)
        if line.logs and line.logs[-1].end == CUT:
            return GAP, "the end of the binary log %s was lost" % line.logs[-1].file
        if line.logs:
            last = line.logs[-1]
            size = there.size(last.file)
            renamed = wanted.rpartition(".")[0] != there.names[0].rpartition(".")[0]
            # what a crash has torn is not kept, so that the archive has less of it
            if renamed or (size not in (None, last.size) and last.end != CRASH) or there.is_other(last.file, self.archive.path_of(line, last.file)):
                return RESET, _RESET % last.file
        if wanted in there.names:
            if any(there.is_other(wanted, path) for path in self.archive.candidates(line, wanted)):
                return RESET, _RESET % wanted
            return "", ""
        first, current = sequence(there.names[0]), sequence(there.names[-1])
        if current < sequence(wanted):
            return RESET, "the server's binary logs were reset: it is at %s, and the archive at %s" % (there.names[-1], wanted)
        return GAP, "the server has purged its binary logs from %s to before %s, which had not been archived" % (wanted, numbered(wanted, first))

    def _adopt(self, line: Line, there: Optional[Source]) -> Line:
        """Take logs into the index that an earlier service had fetched whole, and return the line as it is then."""
        while True:
            name = next_name(line)
            later = numbered(name, sequence(name) + 1)
            found = None
            for path in self.archive.candidates(line, name):
                facts = self._read(path)
                end = self._whole(path, facts, later, there)
                if end and self._follows(line, facts):
                    found = (path, facts, end)
                    break
                if facts.fault and not facts.end:  # such as the zeros of a power cut: by them the server would seem to have another log by now
                    with written(self.archive.path):
                        os.truncate(path, facts.size)
            if found is None:
                return line
            line = self._add(line, *found)

    def _read(self, path: str) -> Facts:
        """Return the Facts of a log that is not in the index. What is none at all is emptied: it can be fetched again."""
        try:
            return events.read(path, digest=True)
        except NoLog as error:
            self._reporter.warn("%s: it is left out, and the log is fetched again" % error)
            with written(self.archive.path):
                os.truncate(path, 0)
            return events.read(path)

    def _whole(self, path: str, facts: Facts, later: str, there: Optional[Source]) -> str:
        """Return how a log ended that is there to its end; "" if it is not known to be."""
        name = os.path.basename(path)
        if not facts.events or (facts.fault and not facts.torn):
            return ""
        if not facts.fault and facts.end:
            return facts.end if facts.end != "rotate" or os.path.basename(facts.next_name) == later else ""
        if there is None or later not in there.names or there.is_other(name, path):
            return ""
        if there.size(name) == facts.size:
            return CRASH
        own = _own(there, name)
        torn = own.torn and own.size == facts.size if own is not None else self._torn == (name, facts.size)
        return CRASH if torn else ""

    def _follows(self, line: Line, facts: Facts) -> bool:
        return gtid.continues(text_of(facts.before), line.logs[-1].after if line.logs else None, line.flavour)

    def _add(self, line: Line, path: str, facts: Facts, end: str) -> Line:
        if end == CRASH:
            where = (os.path.basename(path), facts.complete)
            self._reporter.note("the server crashed while it wrote %s: it is archived up to its last whole transaction, at %d" % where)
        if end == CRASH and (facts.fault or facts.complete < facts.size):
            with written(self.archive.path):
                os.truncate(path, facts.complete)
            facts = events.read(path, digest=True)
        log = self.archive.add(line, path, facts, end)
        self._failed.pop(log.file, None)
        for other in self.archive.streams():
            _unlink(os.path.join(other, log.file))
        return Line(**{**vars(line), "logs": (*line.logs, log)})

    def seal(self, line: Line, *, but: Callable[[str], bool] = lambda _path: False) -> None:
        """End a line: what there is of its last log is kept up to the last whole transaction, everything else is dropped.

        :param but: tells whether the log at a path is of another line
        """
        if not (line.logs and line.logs[-1].end == CUT):
            name = next_name(line)
            best: Optional[Tuple[str, Facts]] = None
            for path in self.archive.candidates(line, name):
                if but(path):
                    continue
                facts = self._read(path)
                if facts.transactions and self._follows(line, facts) and (best is None or facts.complete > best[1].complete):
                    best = (path, facts)
            if best is not None:
                path, facts = best
                final = self.archive.path_of(line, name)
                with written(self.archive.path):
                    if path != final:
                        durable.rename(path, final)
                    os.truncate(final, facts.complete)
                    sync(final)
                facts = events.read(final, digest=True)
                self.archive.add(line, final, facts, CUT)
        for stream in self.archive.streams():
            shutil.rmtree(stream)

    # -- the stream

    def _stream(self, session: Session, there: Source, line: Line) -> None:
        """Stream until the client ends; raise Again where the line does not go on."""
        name = next_name(line)
        old = self._best_stream(line, name)
        directory = self.archive.new_stream()
        command = source.stream_command(self._options, there, name, directory, "%s/%s" % (host_name(), self._job.name))
        errors = os.path.join(directory, "errors")
        with open(errors, "wb") as said:
            client = start(command, dies_with_us=True, stdout=subprocess.DEVNULL, stderr=said)
        follower = Follower(self, session, there, line, directory, old)
        try:
            while client.poll() is None:
                follower.look()
                time.sleep(_TICK)
            follower.look()
        finally:
            with undisturbed():
                _end(client)
        with open(errors, encoding="utf-8", errors="replace") as said_:
            why = sentence(said_.read())
        torn = _TORN.search(why)
        if torn:
            self._torn = (torn.group(1), int(torn.group(2)))
        raise StillpointError("the stream of binary logs ended: %s" % (why or "exit status %d" % client.returncode))

    def _best_stream(self, line: Line, name: str) -> List[str]:
        """Return the directory of the earlier client that had fetched the most, and remove those of the others."""
        best = [os.path.dirname(path) for path in self.archive.candidates(line, name)][:1]
        for stream in self.archive.streams():
            if stream not in best:
                shutil.rmtree(stream)
        return [stream for stream in best if stream in self.archive.streams()]

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
        reason, text = self._break(line, there)
        if reason:
            raise Again(text)
        directory = self.archive.new_stream()
        while True:
            name = next_name(line)
            if name not in there.names[:-1]:
                break
            line = self._copy_log(line, name, directory, there)
        self._copied_at = source.position(session, there)
        if next_name(line) == there.names[-1]:
            self.progress.synced = began
            self.progress.file, self.progress.position, self.progress.lag_bytes = there.names[-1], None, None
        for stream in self.archive.streams():
            shutil.rmtree(stream)

    def _copy_log(self, line: Line, name: str, directory: str, there: Source) -> Line:
        original = os.path.join(os.path.dirname(there.basename), name)
        path = os.path.join(directory, name)
        try:
            shutil.copyfile(original, path)
        except OSError as error:
            raise StillpointError("the binary log %s can't be copied: %s" % (original, error.strerror)) from error
        return self.close(line, path, there)

    def close(self, line: Line, path: str, there: Source) -> Line:
        """Read a log that the server has closed to its end, take it into the archive, and return the line with it.

        :raises StillpointError: it is not whole, or not right
        :raises Again: it does not follow on the one before; a new line has begun
        """
        name = os.path.basename(path)
        facts = events.read(path, digest=True)
        end = self._whole(path, facts, numbered(name, sequence(name) + 1), there)
        size = there.size(name)
        if not end or (size is not None and facts.size != size and end != CRASH):
            own = _own(there, name) if name in there.names[:-1] else None
            if own is not None and own.fault and own.size == facts.size:
                self.seal(line)
                self.begin(GAP, "the binary log %s is damaged on the server: %s" % (name, own.fault), numbered(name, sequence(name) + 1), there)
                raise Again("%s was archived up to the damage" % name)
            if facts.fault:  # what is right of it stays, as long as there is nothing better
                os.truncate(path, facts.complete)
            self._failed[name] = self._failed.get(name, 0) + 1
            why = facts.fault or ("the server's has %d bytes" % size if size is not None and facts.size != size else "it does not end as a closed log does")
            text = "the binary log %s arrived damaged: %s" % (name, why)
            if self._failed[name] < _TRIES:
                raise Again(text)
            raise StillpointError(text + "; until it can be had whole, nothing after it is archived")
        if not self._follows(line, facts):
            first = self.archive.path_of(line, name)
            self._archive_break(line, name, there)
            raise Again("%s does not follow on the logs archived before it" % first)
        self._note_end(line, name, facts, there)
        return self._add(line, path, facts, end)

    def _note_end(self, line: Line, name: str, facts: Facts, there: Source) -> None:
        """Keep when the server wrote a log last, as its file says."""
        try:
            status = os.stat(there.original(name))
        except OSError:
            return
        if status.st_size == facts.size:
            self.archive.note_position(line, name, facts.size, status.st_mtime)

    def check_beginning(self, line: Line, path: str, there: Source) -> bool:
        """Return whether a log that is being written has had the time to say what went before it; if it has, that is what the line ends with.

        :raises Again: it does not follow on the line; a new one has begun
        """
        facts = events.read(path, beginning=True)
        if facts.before is not None and not self._follows(line, facts):
            self._archive_break(line, os.path.basename(path), there)
            raise Again("%s does not follow on the logs archived before it" % path)
        return facts.before is not None or facts.events > _PREAMBLE

    def _archive_break(self, line: Line, name: str, there: Source) -> None:
        """Begin a new line with a log whose GTIDs do not go on where the last one's ended."""
        for stream in self.archive.streams():
            shutil.rmtree(stream)
        before = line.logs[-1].file if line.logs else "the archive's beginning"
        self.begin(RESET, "the transactions in %s do not go on where %s ended" % (name, before), name, there)


def _own(there: Source, name: str) -> Optional[Facts]:
    """Return what the server's own file of a log holds; None where it can't be read here."""
    try:
        return events.read(there.original(name))
    except StillpointError:
        return None


def _unlink(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def _end(client: "subprocess.Popen[Any]") -> None:
    if client.poll() is None:
        client.terminate()
        try:
            client.wait(5)
        except subprocess.TimeoutExpired:
            client.kill()
            client.wait()
