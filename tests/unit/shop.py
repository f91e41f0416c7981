# SPDX-License-Identifier: GPL-3.0-or-later
"""A shop: a real server with backups of it and an archive of its binary logs. The fixture `shop` is one."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple

from _core.archive.archive import Archive
from _core.archive.service import Service
from _core.job.reader import parse
from _core.mysql import coordinates, settings
from _core.mysql import server as servers
from _core.mysql.connection import Session
from _core.mysql.scratch import scratch_server
from _core.repository.generation import Generation
from _core.repository.partial import Partial
from _core.restore import elsewhere
from _core.restore.replay import execute as replay
from _core.restore.replay import moment
from _core.restore.result import RestoreResult
from real_server import RealServer, needed
from trees import Quiet, job, summary, tree


class Shop:
    """A server with an archive of its logs, backups, and rows of which is known when they were committed."""

    def __init__(self, server: RealServer, top: Path) -> None:
        self.server = server
        self.top = top
        self.directory = job(top / "repository")
        os.makedirs(self.directory.path, exist_ok=True)
        self.archive = Archive(self.directory.path)
        options = {"login_user": "root", "login_unix_socket": server.top + "/s"}
        binlog = {"archive": True, "method": "copy"}
        self.job = parse({"name": "job", "mysql": options, "repository": str(top / "repository"), "binlog": binlog})
        self.rows = 0

    def archive_logs(self) -> None:
        assert self.job.mysql is not None
        with self.archive.lock():
            Service(self.job, self.job.mysql, "copy", self.archive, self.directory, Quiet()).copy_once()

    def write(self, number: int = 3) -> int:
        """Commit transactions of two rows each, and return how many rows there are."""
        with Session(self.server.login) as session:
            for _each in range(number):
                session.do("BEGIN", "INSERT INTO d.orders (s) VALUES ('first')", "INSERT INTO d.orders (s) VALUES ('second')", "COMMIT")
                self.rows += 2
        return self.rows

    def gtid(self) -> str:
        with Session(self.server.login) as session:
            return str(session.value("SELECT @@gtid_binlog_pos"))

    def position(self) -> Tuple[str, int]:
        with Session(self.server.login) as session:
            row = session.rows("SHOW MASTER STATUS")[0]
            return str(row["File"]), int(row["Position"])

    def back_up(self, **more: Any) -> Generation:
        copy = self.server.top + "/snapshot"
        with Session(self.server.login) as session:
            server = servers.read(session)
            session.do("FLUSH TABLES WITH READ LOCK", "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS")
            where = coordinates.read(session, server)
            when = datetime.now(timezone.utc)
            subprocess.run(["cp", "-a", self.server.datadir, copy], check=True)
            known, how = server.summary(), settings.read(session, server).as_dict()
        assert where is not None
        with self.directory.lock(), Partial(self.directory, "run-%s" % when.timestamp()) as partial:
            found = tree(copy, "mysql")
            partial.add(type(found)("mysql", self.server.datadir, copy, ()))
            generation = partial.publish(when, summary(when, server=known, settings=how, coordinates=where.as_dict(), **more))
        subprocess.run(["rm", "-rf", copy], check=True)
        return generation

    def recovery(self, name: Optional[str] = None, **wanted: Any) -> replay.Replay:
        target = moment.asked(**wanted)
        assert target is not None
        return replay.plan(self.archive, self.directory, target, name)

    def restore(self, **wanted: Any) -> Tuple[str, RestoreResult]:
        """Recover into a directory and return the data directory there, and what the restore says."""
        made = self.recovery(**wanted)
        to = str(self.top / ("to-%d" % time.monotonic_ns()))
        plan = elsewhere.make(made.recovery.generation, to, replay=made)
        return to + "/mysql", plan.execute(Quiet())

    @contextmanager
    def look(self, datadir: str, *options: str) -> Iterator[Session]:
        with Session(self.server.login) as session:
            known = settings.read(session, servers.read(session))
        with scratch_server(known, {self.server.datadir: datadir}, discard=True, options=options) as it, Session(it.login) as session:
            yield session

    def count(self, datadir: str) -> int:
        with self.look(datadir) as session:
            return int(session.value("SELECT COUNT(*) FROM d.orders"))


def marked(test: Any) -> Any:
    for mark in needed:
        test = mark(test)
    return test


def next_second() -> str:
    """Wait until a second has begun that nothing was committed in, and return it."""
    time.sleep(1.0 - time.time() % 1.0 + 0.01)
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def ahead(shop: Shop, seconds: int, number: int = 1) -> None:
    """Commit rows in a session whose clock is ahead of the time, or behind it."""
    with Session(shop.server.login) as session:
        session.do("SET TIMESTAMP = UNIX_TIMESTAMP() + (%d)" % seconds, *["INSERT INTO d.orders (s) VALUES ('ahead')"] * number)
    shop.rows += number
