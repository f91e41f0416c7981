# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeping the lines of an archive right: which log comes next, whether the server's logs follow on those before, and what is whole
and may be taken in."""

from __future__ import annotations

import os
import shutil
from typing import Callable, Dict, Optional, Tuple

from ..binlog import events, gtid
from ..binlog.events import Facts, NoLog
from ..binlog.place import base, numbered, sequence
from ..host import durable
from ..host.errors import StillpointError
from ..host.reporter import Reporter
from ..repository import recorded
from ..repository.job_directory import JobDirectory
from .archive import FIRST, GAP, OTHER, RESET, RESTORED, Archive, sync, unlink
from .line import CRASH, CUT, Line, next_name, text_of
from .source import Source

_PREAMBLE = 3  # events before a log's first transaction; a log that has more, and has not said what went before it, does not say it

TRIES = 3  # so often a log that can't be archived whole is fetched anew before that is called an error

NOT_THOSE = "the server's binary logs were reset, or are those of another server: its %s is not the one that was archived"


class Again(Exception):
    """The archive has to be looked at anew: something is not as it was when the stream began."""


class LineKeeper:
    """Keeps the lines of one job's archive right. Its methods are called by one thread, under the archive's lock, and within `written`: what the disk
    refuses is an OSError of theirs."""

    def __init__(self, archive: Archive, directory: JobDirectory, reporter: Reporter) -> None:
        self.archive = archive
        self._directory = directory
        self._reporter = reporter
        self._failed: Dict[str, int] = {}
        self._torn: Optional[Tuple[str, int]] = None  # a log that the server could not send to its end, and how far it has it

    def resume(self, there: Source) -> Line:
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
        reason, text = self.find_break(line, there)
        if not reason:
            return line
        self.seal(line, but=lambda path: reason == RESET and there.has(next_name(line), path))
        cut = line.logs[-1].file if line.logs and line.logs[-1].end == CUT else ""
        fresh = there.names[there.names.index(cut) + 1 :] if cut in there.names else []
        return self.begin(reason, text, (fresh or there.names)[0], there)

    def _first(self, there: Source) -> str:
        """Return the log to begin the archive with: that of the oldest generation which the server still has the log of."""
        needed = {stood.file for stood in map(recorded.in_its_log, self._directory.generations()) if stood}
        return next((name for name in there.names if name in needed), there.names[-1])

    def begin(self, reason: str, text: str, first: str, there: Source) -> Line:
        """Begin a line with a log of the server's, say why, and return the line."""
        line = self.archive.begin(reason, text, first, there.facts)
        (self._reporter.note if reason == FIRST else self._reporter.warn)("%s; archiving from %s on" % (text, first))
        if reason not in (FIRST, RESTORED):
            self._reporter.warn("moments between the last archived commit and the next backup can't be recovered: take a backup now")
        return line

    def find_break(self, line: Line, there: Source) -> Tuple[str, str]:
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
            renamed = base(wanted) != base(there.names[0])
            # what a crash has torn is not kept, so that the archive has less of it
            if renamed or (size not in (None, last.size) and last.end != CRASH) or there.is_other(last.file, self.archive.path_of(line, last.file)):
                return RESET, NOT_THOSE % last.file
        if wanted in there.names:
            if any(there.is_other(wanted, path) for path in self.archive.candidates(line, wanted)):
                return RESET, NOT_THOSE % wanted
            return "", ""
        first, current = sequence(there.names[0]), sequence(there.names[-1])
        if current < sequence(wanted):
            return RESET, "the server's binary logs were reset: it is at %s, and the archive at %s" % (there.names[-1], wanted)
        return GAP, "the server has purged its binary logs from %s to before %s, which had not been archived" % (wanted, numbered(wanted, first))

    def _adopt(self, line: Line, there: Source) -> Line:
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
            os.truncate(path, 0)
            return events.read(path)

    def _whole(self, path: str, facts: Facts, later: str, there: Source) -> str:
        """Return how a log ended that is there to its end; "" if it is not known to be."""
        name = os.path.basename(path)
        if not facts.events or (facts.fault and not facts.torn):
            return ""
        if not facts.fault and facts.end:
            return facts.end if facts.end != "rotate" or os.path.basename(facts.next_name) == later else ""
        if later not in there.names or there.is_other(name, path):
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
            os.truncate(path, facts.complete)
            facts = events.read(path, digest=True)
        log = self.archive.add(line, path, facts, end)
        self._failed.pop(log.file, None)
        for other in self.archive.streams():
            unlink(os.path.join(other, log.file))
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
                if path != final:
                    durable.rename(path, final)
                os.truncate(final, facts.complete)
                sync(final)
                facts = events.read(final, digest=True)
                self.archive.add(line, final, facts, CUT)
        for stream in self.archive.streams():
            shutil.rmtree(stream)

    def note_torn(self, name: str, size: int) -> None:
        """Remember that the server could not send a log to its end, and how far it has it."""
        self._torn = (name, size)

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
            if self._failed[name] < TRIES:
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
