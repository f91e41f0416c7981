# SPDX-License-Identifier: GPL-3.0-or-later
"""The directory of a job's binary log archive, and its index.

::

    REPO/HOST/JOB/binlog/index            a line of JSON for each thing that happened: a line of logs began, a log was archived
    REPO/HOST/JOB/binlog/0001/            a line of logs: one follows the other, and none is missing
    REPO/HOST/JOB/binlog/0001/mysql-bin.000042
    REPO/HOST/JOB/binlog/0001/clock       at which time the server was known to be at which position
    REPO/HOST/JOB/binlog/.stream-3/       what the client is writing: logs that are not finished, or not looked at yet
    REPO/HOST/JOB/binlog/.status.json     how far the service is, for whoever asks
    REPO/HOST/JOB/binlog/.lock            held by the one that writes

A log is in the index when it is whole, has been read to its end, and has reached the disk; nothing else counts as archived
whole. A new line begins wherever a log does not follow on the one before: a gap.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from ..binlog import events, gtid
from ..binlog.events import Facts
from ..binlog.place import is_log, numbered, sequence
from ..host import durable
from ..host.errors import BusyError, StillpointError
from ..host.text import iso
from .line import CUT, Line, Log, Piece, next_name, text_of

DIRECTORY = "binlog"

_INDEX, _STATUS, _LOCK, _RESTORED = "index", ".status.json", ".lock", ".restored.json"
_CLOCK = "clock"
_STREAM = ".stream-"

FIRST, GAP, RESET, OTHER, RESTORED = "first", "gap", "reset", "other server", "restored"


class Archive:
    """A job's binary logs. Whoever changes anything holds its `lock`."""

    def __init__(self, job_path: str) -> None:
        self.path = os.path.join(job_path, DIRECTORY)

    @property
    def exists(self) -> bool:
        return os.path.exists(os.path.join(self.path, _INDEX))

    @property
    def writable(self) -> bool:
        """Whether its file system takes writes: not so for a repository that was mounted read-only, to keep it as it is."""
        return not os.statvfs(self.path).f_flag & os.ST_RDONLY

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one that writes.

        :raises BusyError: another process is
        """
        with ExitStack() as stack:
            with written(self.path):
                os.makedirs(self.path, mode=0o700, exist_ok=True)
                held = stack.enter_context(durable.lock(os.path.join(self.path, _LOCK), make=True))
            if held is None:
                raise BusyError("another process is archiving binary logs to %s" % self.path)
            yield

    # -- reading

    def lines(self) -> List[Line]:
        """Return the lines of the archive, oldest first.

        :raises StillpointError: the index is damaged
        """
        return self._parse()[0]

    def _parse(self) -> Tuple[List[Line], int]:
        """Return the lines, and how many bytes of the index are whole: what was being written at a power cut is left out."""
        found: Dict[int, Line] = {}
        path = os.path.join(self.path, _INDEX)
        whole = 0
        try:
            with open(path, "rb") as file:
                for number, text in enumerate(file, 1):
                    if not text.endswith(b"\n"):
                        break
                    try:
                        entry = json.loads(text)
                        if "reason" in entry:
                            line = Line(**entry)
                            found[line.number] = line
                        else:
                            log = Log(**entry)
                            line = found[log.line]
                            found[log.line] = Line(**{**vars(line), "logs": (*line.logs, log)})
                    except (ValueError, TypeError, KeyError) as error:
                        raise StillpointError(
                            "%s is damaged in line %d: put the index back from another copy; the logs beside it are as they were" % (path, number)
                        ) from error
                    whole += len(text)
        except FileNotFoundError:
            pass
        return [found[number] for number in sorted(found)], whole

    def path_of(self, line: Line, name: str) -> str:
        return os.path.join(self.path, line.directory, name)

    def candidates(self, line: Line, name: str) -> List[str]:
        """Return the paths at which a log of the current line may lie that is not in the index, the longest first."""
        places = [os.path.join(self.path, line.directory), *self.streams()]
        paths = [os.path.join(place, name) for place in places]
        return sorted((path for path in paths if os.path.isfile(path)), key=os.path.getsize, reverse=True)

    def streams(self) -> List[str]:
        """Return the directories that clients have been writing to, oldest first."""
        try:
            names = [name for name in os.listdir(self.path) if name.startswith(_STREAM) and name[len(_STREAM) :].isdigit()]
        except FileNotFoundError:
            return []
        return [os.path.join(self.path, name) for name in sorted(names, key=lambda name: int(name[len(_STREAM) :]))]

    def pieces(self, line: Line, *, current: bool) -> List[Piece]:
        """Return what there is of a line, in order, with what is still being written where it is the current one."""
        found = [
            Piece(log.file, self.path_of(line, log.file), log.size, log.created, log.before, log.after, log.first_time, log.last_time, True, log.failed)
            for log in line.logs
        ]
        if not current or (line.logs and line.logs[-1].end == CUT):
            return found
        name = next_name(line)
        while True:
            piece, facts = self._unfinished(line, name, found[-1].after if found else None)
            if piece is None or facts is None:
                return found
            found.append(piece)
            if not facts.ended:
                return found
            name = numbered(name, sequence(name) + 1)

    def _unfinished(self, line: Line, name: str, after: Optional[str]) -> Tuple[Optional[Piece], Optional[Facts]]:
        best: Tuple[Optional[Piece], Optional[Facts]] = (None, None)
        for path in self.candidates(line, name):
            try:
                facts = events.read(path)
            except StillpointError:
                continue  # it has just got another place, and is looked for again with the next question
            before = text_of(facts.before)
            if not facts.events or not gtid.continues(before, after, line.flavour):
                continue
            if best[0] is None or facts.complete > best[0].usable:
                piece = Piece(
                    name, path, facts.complete, facts.created, before, text_of(facts.after), facts.first_time, facts.last_time, False, facts.failed
                )
                best = (piece, facts)
        return best

    def marks(self, line: Line, name: str) -> List[Tuple[int, float]]:
        """Return ``(position, time)`` where the server was known to be in a log, in order: what is before the position had been committed
        by then, and what is behind it had not."""
        found: List[Tuple[int, float]] = []
        try:
            with open(os.path.join(self.path, line.directory, _CLOCK), "rb") as file:
                for text in file:
                    words = text.decode("ascii", "replace").split()
                    if len(words) == 3 and words[0] == name and text.endswith(b"\n"):  # others are what a power cut has left
                        found.append((int(words[1]), float(words[2])))
        except FileNotFoundError:
            pass
        return sorted(found)

    def status(self) -> Dict[str, Any]:
        """Return what the service last said of itself; {} if it never has."""
        found = durable.read_json(os.path.join(self.path, _STATUS))
        return found if isinstance(found, dict) else {}

    def restored(self) -> Optional[Dict[str, Any]]:
        """Return what a restore has left for the service: ``{time, generation, logs}``; None when there was none."""
        found = durable.read_json(os.path.join(self.path, _RESTORED))
        return found if isinstance(found, dict) else None

    # -- writing

    def begin(self, reason: str, text: str, start: str, server: Dict[str, Any]) -> Line:
        """Begin a line of logs and return it."""
        lines, status = self.lines(), self.status()
        until = status.get("synced") if lines and status.get("line") == lines[-1].number else None
        line = Line(lines[-1].number + 1 if lines else 1, reason, text, _now(), start, server, until)
        with written(self.path):
            os.makedirs(os.path.join(self.path, line.directory), mode=0o700, exist_ok=True)
            entry = asdict(line)
            del entry["logs"]
            self._append(entry)
        return line

    def add(self, line: Line, path: str, facts: Facts, end: str) -> Log:
        """Take a log that has been read to its end into the archive, for good, and return it."""
        name = os.path.basename(path)
        final = self.path_of(line, name)
        log = Log(
            line.number,
            name,
            facts.complete if end == CUT else facts.size,
            facts.sha256,
            end,
            facts.created,
            text_of(facts.before),
            text_of(facts.after),
            facts.first_time,
            facts.last_time,
            facts.transactions,
            facts.failed,
        )
        with written(self.path):
            sync(path)
            os.chmod(path, 0o600)
            if path != final:
                durable.rename(path, final)
            self._append(asdict(log))
        return log

    def note_position(self, line: Line, name: str, position: int, when: float) -> None:
        """Keep where the server was at a time. A power cut may take the last ones back."""
        path = os.path.join(self.path, line.directory, _CLOCK)
        with written(self.path), open(path, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(b"%s %d %.3f\n" % (name.encode(), position, when))

    def _append(self, entry: Dict[str, Any]) -> None:
        _lines, whole = self._parse()
        path = os.path.join(self.path, _INDEX)
        fresh = not os.path.exists(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(descriptor, whole)
            os.pwrite(descriptor, json.dumps(entry).encode("ascii") + b"\n", whole)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if fresh:
            durable.sync_directory(self.path)

    def new_stream(self) -> str:
        """Make an empty directory for a client to write to, and return its path."""
        streams = self.streams()
        number = int(streams[-1].rpartition("-")[2]) + 1 if streams else 1
        path = os.path.join(self.path, "%s%d" % (_STREAM, number))
        with written(self.path):
            os.mkdir(path, 0o700)
            durable.sync_directory(self.path)
        return path

    def say(self, status: Dict[str, Any]) -> None:
        """Keep the status for whoever asks. A power cut may take the last one back."""
        path = os.path.join(self.path, _STATUS)
        with written(self.path):
            with open(path + ".new", "w", encoding="ascii") as file:
                json.dump(status, file)
            os.replace(path + ".new", path)

    def note_restore(self, generation: str, logs: Sequence[str]) -> None:
        """Tell the service that the server's data has been replaced: what it logs from now on does not follow on the archive.

        :param logs: the logs of the time before that the server still has
        """
        durable.write_json(os.path.join(self.path, _RESTORED), {"time": _now(), "generation": generation, "logs": list(logs)})

    def forget_restore(self) -> None:
        os.unlink(os.path.join(self.path, _RESTORED))
        durable.sync_directory(self.path)

    def remove(self, doomed: Sequence[Log]) -> None:
        """Remove logs, and lines of which nothing is left but the current one."""
        gone = {(log.line, log.file) for log in doomed}
        lines = self.lines()
        kept = []
        for line in lines:
            logs = tuple(log for log in line.logs if (log.line, log.file) not in gone)
            if logs or line is lines[-1]:
                kept.append(Line(**{**vars(line), "logs": logs, "start": logs[0].file if logs else next_name(line)}))
        entries: List[Dict[str, Any]] = []
        for line in kept:
            entry = asdict(line)
            del entry["logs"]
            entries += [entry, *(asdict(log) for log in line.logs)]
        path = os.path.join(self.path, _INDEX)
        with written(self.path):
            with open(path + ".new", "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(b"".join(json.dumps(entry).encode("ascii") + b"\n" for entry in entries))
                file.flush()
                os.fsync(file.fileno())
            durable.rename(path + ".new", path)  # from now on they do not count; what a kill leaves lying is removed the next time
            for line in lines:
                left = next((each for each in kept if each.number == line.number), None)
                self._remove_unlisted(line, {log.file for log in left.logs} if left else set(), line.number == lines[-1].number)

    def _remove_unlisted(self, line: Line, listed: Set[str], current: bool) -> None:
        """Remove what lies in a line's directory and is in the index no more; what comes after its last log may still be."""
        directory = os.path.join(self.path, line.directory)
        if not os.path.isdir(directory):
            return
        for name in os.listdir(directory):
            if name not in listed and is_log(name) and not (current and sequence(name) >= line.next_number):
                os.unlink(os.path.join(directory, name))
        self._trim_clock(directory, min((sequence(name) for name in listed), default=line.next_number))
        if not current and not listed:
            unlink(os.path.join(directory, _CLOCK))
            if not os.listdir(directory):
                os.rmdir(directory)

    def _trim_clock(self, directory: str, first: int) -> None:
        """Forget what was noted of the logs before one."""
        path = os.path.join(directory, _CLOCK)
        if not os.path.exists(path):
            return
        with open(path, "rb") as old, open(path + ".new", "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as new:
            for text in old:
                name = text.split(b" ", 1)[0].decode()
                if is_log(name) and sequence(name) >= first:
                    new.write(text)
        os.replace(path + ".new", path)


@contextmanager
def written(path: str) -> Iterator[None]:
    """Turn what the disk refuses into a sentence."""
    try:
        yield
    except OSError as error:
        raise StillpointError("the archive of the binary logs in %s can't be written: %s" % (path, error.strerror or error)) from error


def unlink(path: str) -> None:
    """Remove a file that need not be there."""
    if os.path.lexists(path):
        os.unlink(path)


def sync(path: str) -> None:
    """Bring a file's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _now() -> str:
    return iso(datetime.now(timezone.utc))
