#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is lost of the commits when server, archive and its client are killed at once, at a moment that none of them knows.

`received` is what the archive had in its file then: lost with the machine if that file lies on another one. `durable` is what it had
brought to the disk: lost in a power cut, if the server's own logs are lost with it."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Optional

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit"), str(HERE.parents[1] / "plugins" / "module_utils")]

from _core.archive import stream  # noqa: E402
from _core.archive.archive import Archive  # noqa: E402
from _core.archive.service import Service  # noqa: E402
from _core.binlog import events  # noqa: E402
from _core.host.errors import StillpointError  # noqa: E402
from _core.job.file import parse  # noqa: E402
from _core.mysql.connection import Session  # noqa: E402
from _core.repository.job_directory import JobDirectory  # noqa: E402
from bench import Results  # noqa: E402
from native import conditions  # noqa: E402
from real_server import RealServer, real_server  # noqa: E402
from trees import Quiet  # noqa: E402

WRITERS = 4


def run(rounds: int = 30, repository: Optional[str] = None) -> None:
    """Kill everything `rounds` times under a load of small commits, and compare what was acknowledged with what the archive has.

    :param repository: directory of the archive; default: beside the server's
    """
    top = Path(tempfile.mkdtemp(prefix="stillpoint-bench-", dir=repository))
    try:
        with real_server() as server:
            directory = JobDirectory(str(top / "host" / "job"))
            os.makedirs(directory.path)
            server.do("CREATE DATABASE d", "CREATE TABLE d.t (n BIGINT PRIMARY KEY AUTO_INCREMENT, s VARCHAR(200))")
            results = Results("lost", {**conditions(top), "writers": WRITERS}, [])
            for number in range(rounds):
                if server.process is None:
                    server.start()
                results.add(round=number, **killed(server, directory, top))
    finally:
        shutil.rmtree(top)


def killed(server: RealServer, directory: JobDirectory, top: Path) -> dict[str, Any]:
    notes = top / "synced"
    notes.write_text("")
    service = subprocess.Popen([sys.executable, __file__, "--serve", server.top, str(top), str(notes)], start_new_session=True)
    archive = Archive(directory.path)
    caught_up(server, archive)
    acknowledged: list[tuple[int, float]] = []
    writers = [threading.Thread(target=write, args=(server, acknowledged)) for _each in range(WRITERS)]
    for writer in writers:
        writer.start()
    time.sleep(random.uniform(3.0, 8.0))
    assert server.process is not None
    clients = subprocess.run(["pgrep", "-P", str(service.pid)], capture_output=True, text=True, check=False).stdout.split()
    moment = time.monotonic()
    for pid in [server.process.pid, service.pid, *map(int, clients)]:
        os.kill(pid, signal.SIGKILL)
    service.wait()
    server.process.wait()
    server.process = None
    for writer in writers:
        writer.join()
    known = [each for each in acknowledged if each[1] <= moment]
    durable = [line.split() for line in notes.read_text().splitlines() if line.count(" ") == 1]
    received_until, durable_until = reached(archive, durable)
    return {
        "commits_s": round(len(known) / (moment - known[0][1])),
        **{"received_%s" % name: value for name, value in lost(known, received_until, moment).items()},
        **{"durable_%s" % name: value for name, value in lost(known, durable_until, moment).items()},
    }


def write(server: RealServer, acknowledged: list[tuple[int, float]]) -> None:
    """Commit until the server is gone, and note the number of each transaction and when the answer came."""
    try:
        with Session(server.login) as session:
            while True:
                session.do("INSERT INTO d.t (s) VALUES (REPEAT('x', 100))")
                at = time.monotonic()
                acknowledged.append((int(str(session.value("SELECT @@last_gtid")).rsplit("-", 1)[1]), at))
    except StillpointError:
        pass


def caught_up(server: RealServer, archive: Archive) -> None:
    """Wait until a service streams what the server writes now."""
    for _attempt in range(600):
        with Session(server.login) as session:
            row = session.rows("SHOW MASTER STATUS")[0]
        if archive.exists and archive.lines():
            pieces = archive.pieces(archive.lines()[-1], current=True)
            if pieces and (pieces[-1].file, pieces[-1].usable) == (row["File"], row["Position"]):
                return
        time.sleep(0.1)
    raise SystemExit("the archive did not catch up")


def reached(archive: Archive, durable: list[list[str]]) -> tuple[int, int]:
    """Return the numbers of the last transactions that the archive has, and has on the disk."""
    last = archive.pieces(archive.lines()[-1], current=True)[-1]
    size = max((int(size) for name, size in durable if name == last.file), default=0)
    received = stable = 0

    def visit(each: events.Transaction) -> bool:
        nonlocal received, stable
        received = getattr(each.gtid, "sequence", 0)
        stable = received if each.end <= size else stable
        return True

    events.read(last.path, visit)
    before = int(last.before.rsplit("-", 1)[1]) if last.before else 0
    return received or before, stable or before


def lost(known: list[tuple[int, float]], until: int, moment: float) -> dict[str, Any]:
    """Return how many commits are lost that had been acknowledged, and for how long they had been."""
    gone = [at for number, at in known if number > until]
    return {"lost": len(gone), "ms": round(1000 * (moment - min(gone)), 1) if gone else 0.0}


def serve(top: str, repository: str, notes: str) -> None:
    """Archive as the agent does, and note what has been brought to the disk."""
    real = stream.sync
    with open(notes, "a", buffering=1, encoding="ascii") as said:

        def sync(path: str) -> None:
            size = os.path.getsize(path)
            real(path)
            said.write("%s %d\n" % (os.path.basename(path), size))

        stream.sync = sync
        job = parse({"name": "job", "mysql": {"login_user": "root", "login_unix_socket": top + "/s"}, "repository": repository, "binlog": {"archive": True}})
        directory = JobDirectory(repository + "/host/job")
        archive = Archive(directory.path)
        assert job.mysql is not None
        with archive.lock():
            Service(job, job.mysql, "stream", archive, directory, Quiet()).run()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--repository", help="directory of the archive, as on another disk (default: beside the server's data)")
    arguments = parser.parse_args()
    run(arguments.rounds, arguments.repository)
