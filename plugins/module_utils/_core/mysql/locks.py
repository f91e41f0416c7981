# SPDX-License-Identifier: GPL-3.0-or-later
"""Take the lock that makes a snapshot of a server one point in time, with a limit, and know whether it held."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from threading import Timer
from typing import Any, ContextManager, Dict, Iterator, Mapping, Optional, Tuple

from ..host.errors import NotNowError, StillpointError, UsageError
from ..host.process import undisturbed
from ..host.steps import reached
from .connection import ServerError, Session
from .coordinates import Coordinates
from .lock_choice import AUTO, Method

# After the last writer has been stopped, the engines write out what they still hold in memory. Without it the recorded
# coordinates are ahead of what InnoDB in the snapshot has durably committed, and a transaction can be left prepared.
FLUSH_ENGINE_LOGS = "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS"
# MariaDB's InnoDB takes no notice of it (measured on 10.11): with innodb_flush_log_at_trx_commit = 0 commits stay in memory
# until a thread of its own writes them out, every innodb_flush_log_at_timeout seconds.
_REDO_WRITTEN = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Innodb_lsn_current', 'Innodb_lsn_flushed')"

_PREPARED_LIMIT = 330  # seconds that a session may say nothing before that: longer than LVM is waited for
_IDLE_LIMIT = 30  # seconds that a session which stops writers may say nothing; more than a snapshot may take under the lock
_ANSWER_LIMIT = 10  # seconds that a statement under the lock may take: it answers at once on a healthy server, and users are waiting
_GONE_LIMIT = 10  # seconds that a session which was ended is waited for
# lock_wait_timeout; max_statement_time; KILL QUERY
_NOT_GRANTED = (1205, 1969, 1317)
_LEAST = 0.01  # seconds: none at all would mean no limit


@dataclass(frozen=True)
class LockOptions:
    """How to lock a server, and how patiently; times in seconds. The names are those of a job's options and of the modules'.

    :raises UsageError: a time is too short to mean anything
    """

    lock: str = AUTO
    lock_wait_timeout: int = 5
    long_query_threshold: int = 5
    long_query_timeout: int = 60
    long_query_action: str = "wait"
    stop_replica: bool = False
    desync: bool = False

    def __post_init__(self) -> None:
        for name, least in (("lock_wait_timeout", 1), ("long_query_threshold", 0), ("long_query_timeout", 0)):
            if getattr(self, name) < least:
                raise UsageError("%s is %d: give a whole number of seconds from %d" % (name, getattr(self, name), least))

    @classmethod
    def from_options(cls, options: Any) -> "LockOptions":
        """Return the LockOptions in the attributes of an object that has them all."""
        return cls(**{name: getattr(options, name) for name in LockOptions.__dataclass_fields__})


@dataclass(frozen=True)
class LockFacts:
    """What was locked, why, and for how long, in milliseconds.

    :ivar waited_ms: from asking for the lock until it was granted; held_ms: until it was given back
    :ivar frozen_ms: for which the device mapper held back writes; skew_ms: from the first volume's freeze to the last one's
    :ivar guard_waited_ms: for long statements before, with nothing locked; killed: those that were ended, as text
    :ivar released_at: what showed that the point in time had been reached
    :ivar between: the coordinates before and after, where commits went on and both are known
    """

    method: str
    reason: str = ""
    waited_ms: float = 0
    held_ms: float = 0
    frozen_ms: Optional[float] = None
    skew_ms: Optional[float] = None
    guard_waited_ms: float = 0
    killed: Tuple[str, ...] = ()
    released_at: Optional[str] = None
    between: Optional[Tuple[Coordinates, Coordinates]] = None

    def as_dict(self) -> Dict[str, Any]:
        """Return it as the module and the manifest have it."""
        facts = {**vars(self), "killed": list(self.killed), "between": [each.as_dict() for each in self.between] if self.between else None}
        return {key: value for key, value in facts.items() if value is not None or key == "frozen_ms"}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> "LockFacts":
        """Return the LockFacts that `as_dict` described.

        :raises KeyError, TypeError, ValueError: a fact is not what it should be
        """
        known = {key: facts[key] for key in cls.__dataclass_fields__ if key in facts}
        between = tuple(map(Coordinates.from_dict, facts.get("between") or ()))
        ends = (between[0], between[-1]) if between else None
        return cls(**{**known, "method": str(facts["method"]), "killed": tuple(facts.get("killed") or ()), "between": ends})


class Lock:
    """A lock on one session, dropped when its context ends. Whoever ends the session, ends the lock; `release` tells whether somebody did.

    The limit is one for all of its statements: what one of them has waited, those after it have less.

    :ivar waited: seconds from the first late statement until the lock was granted
    :ivar held: seconds from the first late statement until the lock was given back, the waiting included: what a writer can
        feel. Without a late statement it is DDL that feels it, from the first of the early ones on
    """

    def __init__(self, session: Session, method: Method, wait_timeout: int) -> None:
        self._session = session
        self._method = method
        self._wait_timeout = wait_timeout
        self._left = float(wait_timeout)  # seconds
        self._told: Optional[int] = None  # the server's own limit, as it was set last
        self._expired = False
        self._redo_limit: Optional[int] = None  # seconds after which all that was committed is written out; None where a commit does it
        self._asked: Optional[float] = None
        self._ended = False
        self.waited = 0.0
        self.held = 0.0

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.drop()

    @property
    def session(self) -> Session:
        return self._session

    def prepare(self) -> None:
        """Send what does not stop a writer.

        :raises NotNowError: what is sent waited for DDL to end, longer than its limit
        :raises StillpointError: users would have to wait longer for the server to write its log out
        """
        self._redo_limit = self._written_out_within()
        self._session.do("SET SESSION wait_timeout = %d" % _PREPARED_LIMIT)  # DDL has to wait from here on
        if not self._method.late:
            self._asked = time.monotonic()
        self._send(self._method.early)
        if self._asked is not None:
            self.waited = time.monotonic() - self._asked
        self._session.do(FLUSH_ENGINE_LOGS)  # most of what the one under the lock would have to write

    def take(self) -> None:
        """Stop the writers and flush the engines' logs.

        :raises NotNowError: the lock was not granted within its limit; the session is closed, and whatever it held is free
        """
        reached("lock asked for")
        if self._method.late:
            # should this process stand still, the server ends the session, and with it the lock
            self._session.do("SET SESSION wait_timeout = %d" % _IDLE_LIMIT)
            self._asked = time.monotonic()
            self._send(self._method.late)
            self.waited = time.monotonic() - self._asked
        self._session.answer_within(_ANSWER_LIMIT)
        self._session.do(FLUSH_ENGINE_LOGS)
        if self._redo_limit:
            self._wait_for_redo(self._redo_limit)
        reached("lock held", self._session.id)

    def release(self) -> None:
        """Give the lock back.

        :raises StillpointError: the session was gone: the lock was not held all the time
        """
        try:
            with self.held_or_lost():
                self._session.do(*self._method.release)
        finally:
            self.drop()

    @contextmanager
    def held_or_lost(self) -> Iterator[None]:
        """Turn a lost connection in the body into the sentence that the lock was lost with it.

        :raises StillpointError: that sentence
        """
        try:
            yield
        except ServerError as error:
            self.drop()
            if not error.connection_lost:
                raise
            raise StillpointError(
                "the session that held the lock was ended before the snapshot was known to be taken (%s): "
                "what the snapshot holds is no point in time, and it was dropped" % error.text
            ) from None

    def drop(self) -> None:
        """Free whatever is held at once, by closing the session, and by ending it where a statement may still run in it: the server would
        notice after that. May be called at any time, more than once."""
        self._session.close()
        if self._session.unanswered and not self._ended:
            self._ended = True
            self._end()
        if self._asked is not None:
            self.held = time.monotonic() - self._asked
            self._asked = None

    def _end(self) -> None:
        """End the session from another one, and wait until it is gone, for a bounded time."""
        number, limit = self._session.id, time.monotonic() + _GONE_LIMIT
        # whatever becomes of it, what went wrong before is what has to be told
        with undisturbed(), suppress(Exception), Session(self._session.login, read_timeout=_ANSWER_LIMIT) as other:
            while other.id > number and time.monotonic() < limit:  # a server that was started meanwhile counts from the beginning
                other.do("KILL %d" % number)  # an error once it is gone
                time.sleep(0.05)

    def _send(self, statements: Tuple[str, ...]) -> None:
        for statement in statements:
            began = time.monotonic()
            try:
                self._set_limit()
                with self._ended_in_time():
                    self._session.do((self._method.limit % max(self._left, _LEAST) if self._method.limit else "") + statement)
                granted = not self._expired
            except ServerError as error:
                granted = False
                if error.number not in _NOT_GRANTED and not self._expired:
                    self.drop()
                    raise
            self._left -= time.monotonic() - began
            if not granted:
                self.drop()
                raise NotNowError(
                    "the server did not grant %s within lock_wait_timeout = %d s: a statement that it has to wait for is running; "
                    "nothing was backed up" % (statement, self._wait_timeout)
                )

    def _written_out_within(self) -> Optional[int]:
        found = {row["Variable_name"]: row["Value"] for row in self._session.rows("SHOW GLOBAL VARIABLES LIKE 'innodb_flush_log_at_%'")}
        if found.get("innodb_flush_log_at_trx_commit") != "0":
            return None
        every = int(found.get("innodb_flush_log_at_timeout", 1))
        if every > self._wait_timeout:
            raise StillpointError(
                "the server keeps commits in memory (innodb_flush_log_at_trx_commit is 0) for up to innodb_flush_log_at_timeout = %d s, and users "
                "would be held up as long; set that to 1, or the other to 2" % every
            )
        return every + 1

    def _wait_for_redo(self, limit: int) -> None:
        """Wait until everything that was committed before the lock is in the redo log on the disk."""
        end, wanted = time.monotonic() + limit, None
        while True:
            found = {row["Variable_name"]: int(row["Value"]) for row in self._session.rows(_REDO_WRITTEN)}
            if len(found) < 2:
                return  # MySQL, where the statement has done it
            wanted = wanted or found["Innodb_lsn_current"]
            if found["Innodb_lsn_flushed"] >= wanted:
                return
            if time.monotonic() > end:
                self.drop()
                raise NotNowError(
                    "the server did not write its redo log out within %d s (innodb_flush_log_at_trx_commit is 0); nothing was backed up" % limit
                )
            time.sleep(0.01)

    def _set_limit(self) -> None:
        """Have the server give up by itself, whatever becomes of this process: in whole seconds, and anew for each lock that one statement takes."""
        seconds = max(math.ceil(self._left), 1)
        if seconds != self._told:
            self._session.do("SET SESSION lock_wait_timeout = %d" % seconds)
            self._told = seconds

    def _ended_in_time(self) -> ContextManager[None]:
        return nullcontext() if self._method.limit else self._ended_from_outside()

    @contextmanager
    def _ended_from_outside(self) -> Iterator[None]:
        """End the session from another one when the time is up, where no statement can be told to end by itself."""
        number = self._session.id

        def end() -> None:
            self._expired = True
            with suppress(StillpointError), Session(self._session.login) as other:
                other.do("KILL %d" % number)  # an account may always end its own sessions

        timer = Timer(max(self._left, _LEAST), end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
