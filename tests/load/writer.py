#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writers that keep changing database and files together, and note how long each step made them wait.

Each writer does this over and over: one transaction into two InnoDB tables, the same key into a MyISAM table, then into
an Aria table, then into a file. Whatever moment a backup shows, it must therefore hold, for each writer,
cases >= audit >= audit2 >= files >= cases - 1. `judge.py` checks that.

The notes go to a directory on tmpfs: a note on the frozen root file system would stall the one who measures the stall.

    writer.py setup                      tables and directories, emptied
    writer.py run [--seconds N]          in the foreground, until SIGTERM or the stop file
    writer.py start / stop               the same in the background; stop prints the report
    writer.py report [--since T --until T]
    writer.py known [--at T]             the last acknowledged key of each writer
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any, TextIO

import latency
import pymysql
import rows

STOP = "stop"
PID = "pid"
START_LIMIT = 60  # seconds until every writer has written its first key
STOP_LIMIT = 180  # seconds until every writer has finished its key


def connect(socket: str) -> Any:
    return pymysql.connect(unix_socket=socket, user="root", autocommit=True, charset="utf8mb4")


def setup(args: argparse.Namespace) -> None:
    """Make the tables and the directories of the load, emptied."""
    shutil.rmtree(os.path.join(args.application, rows.FILES), ignore_errors=True)
    os.makedirs(os.path.join(args.application, rows.FILES))
    with contextlib.closing(connect(args.socket)) as connection, connection.cursor() as cursor:
        is_mariadb = "mariadb" in connection.get_server_info().lower()
        cursor.execute(f"DROP DATABASE IF EXISTS {rows.DATABASE}")
        cursor.execute(f"CREATE DATABASE {rows.DATABASE}")
        cursor.execute(f"USE {rows.DATABASE}")
        for statement in rows.tables(args.engines, is_mariadb).values():
            cursor.execute(statement)


class Writer:
    """One writer: its connection, its files, its notes."""

    def __init__(self, number: int, args: argparse.Namespace) -> None:
        self.number = number
        self.application = args.application
        self.connection = connect(args.socket)
        self.cursor = self.connection.cursor()
        self.cursor.execute(f"USE {rows.DATABASE}")
        self.cursor.execute("SHOW TABLES LIKE 'audit%'")
        self.audits = sorted(name for (name,) in self.cursor.fetchall())
        # one line at a time reaches the kernel: what was acknowledged is noted, even if the writer is killed
        self.log: TextIO = open(latency.log_path(args.log_dir, number), "a", buffering=1, encoding="ascii")  # noqa: SIM115 - as long as the process

    def last_key(self) -> int:
        """Return the last committed key of this writer, its unfinished audit rows and file made up for."""
        self.cursor.execute("SELECT seq, amount, note FROM cases WHERE writer=%s ORDER BY seq DESC LIMIT 1", (self.number,))
        found = self.cursor.fetchone()
        if found is None:
            return 0
        case = rows.Case(self.number, *found)
        for table in self.audits:
            self.cursor.execute(f"INSERT IGNORE INTO {table} VALUES (%s, %s, %s)", (case.writer, case.seq, case.amount))
        self.write_file(case)
        return case.seq

    def write_key(self, seq: int) -> None:
        case = rows.Case(self.number, seq, random.randint(1, 1_000_000), f"case of {time.time():.6f}")
        self.timed("commit", case, self.commit)
        for table in self.audits:
            self.timed(table, case, functools.partial(self.insert_audit, table))
        self.timed("file", case, self.write_file)

    def timed(self, kind: str, case: rows.Case, step: Callable[[rows.Case], None]) -> None:
        started, before = time.time(), time.perf_counter()
        step(case)
        seconds = time.perf_counter() - before
        latency.note(self.log, latency.Step(self.number, kind, case.seq, started, seconds))

    def commit(self, case: rows.Case) -> None:
        """One transaction from its first statement to its acknowledgement: a lock may stop it at either."""
        key = (case.writer, case.seq)
        self.cursor.execute("BEGIN")
        self.cursor.execute("INSERT INTO cases VALUES (%s, %s, %s, %s)", (*key, case.amount, case.note))
        self.cursor.execute(
            "INSERT INTO movements VALUES (%s, %s, 1, %s), (%s, %s, 2, %s)", (*key, case.amount, *key, -case.amount)
        )
        self.cursor.execute("COMMIT")

    def insert_audit(self, table: str, case: rows.Case) -> None:
        self.cursor.execute(f"INSERT INTO {table} VALUES (%s, %s, %s)", (case.writer, case.seq, case.amount))

    def write_file(self, case: rows.Case) -> None:
        """Write beside, then rename: the file is there whole or not at all, as long as the file system keeps its word."""
        path = rows.file_path(self.application, case.writer, case.seq)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".new", "wb") as new:
            new.write(rows.file_content(case))
        os.rename(path + ".new", path)


def work(number: int, args: argparse.Namespace, parent: int) -> None:
    """Be writer `number` until told to stop, until `args.seconds` are over, or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stop = os.path.join(args.log_dir, STOP)
    writer = Writer(number, args)
    seq = writer.last_key()
    end = time.monotonic() + args.seconds if args.seconds else math.inf
    turn = time.monotonic()
    while not os.path.exists(stop) and os.getppid() == parent and time.monotonic() < end:
        seq += 1
        writer.write_key(seq)
        if args.rate:
            now = time.monotonic()
            turn = max(turn + 1 / args.rate, now)  # a stall is not made up for by a burst
            time.sleep(turn - now)


def run(args: argparse.Namespace) -> int:
    """Run the writers in the foreground and print their report; 1 when one of them failed."""
    _prepare(args.log_dir)
    stop = os.path.join(args.log_dir, STOP)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: open(stop, "w").close())
    fork = get_context("fork")  # the writers watch for the end of their parent, so it has to be this process
    workers = [fork.Process(target=work, args=(number, args, os.getpid())) for number in range(1, args.writers + 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print_report(args)
    return 1 if any(worker.exitcode for worker in workers) else 0


def start(args: argparse.Namespace) -> int:
    """Start `run` in the background and return when every writer has written a key."""
    command = [sys.executable, os.path.abspath(__file__), "run"]
    command += ["--socket", args.socket, "--application", args.application, "--log-dir", args.log_dir]
    command += ["--writers", str(args.writers), "--rate", str(args.rate), "--seconds", str(args.seconds)]
    _prepare(args.log_dir)
    with open(os.path.join(args.log_dir, "output"), "w") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    with open(os.path.join(args.log_dir, PID), "w") as pid:
        pid.write(str(process.pid))
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end and process.poll() is None:
        begun = {step.writer for step in latency.read(args.log_dir) if step.kind == "file"}
        if len(begun) == args.writers:
            return 0
        time.sleep(0.2)
    print(f"the writers did not start; see {args.log_dir}/output", file=sys.stderr)
    return 1


def stop(args: argparse.Namespace) -> int:
    """Let every writer finish its key, and print the report; 1 when they had failed or do not end."""
    with open(os.path.join(args.log_dir, PID)) as file:
        pid = int(file.read())
    failed = not _is_running(pid)
    open(os.path.join(args.log_dir, STOP), "w").close()
    end = time.monotonic() + STOP_LIMIT
    while _is_running(pid):
        if time.monotonic() > end:
            print(f"writer {pid} does not end", file=sys.stderr)
            return 1
        time.sleep(0.05)
    print_report(args)
    if failed:
        print(f"the writers had ended by themselves; see {args.log_dir}/output", file=sys.stderr)
    return 1 if failed else 0


def print_report(args: argparse.Namespace) -> None:
    steps = latency.within(list(latency.read(args.log_dir)), args.since, args.until)
    report: dict[str, Any] = {kind: asdict(figures) for kind, figures in latency.figures(steps).items()}
    report["known"] = latency.known(steps)
    print(json.dumps(report, indent=1))


def print_known(args: argparse.Namespace) -> None:
    print(json.dumps(latency.known(list(latency.read(args.log_dir)), args.at)))


def _prepare(log_dir: str) -> None:
    """Empty the directory of the notes; refuse while other writers use it."""
    os.makedirs(log_dir, exist_ok=True)
    pid_file = os.path.join(log_dir, PID)
    if os.path.exists(pid_file):
        with open(pid_file) as file:
            pid = int(file.read())
        if pid != os.getpid() and _is_running(pid):
            sys.exit(f"writer {pid} uses {log_dir}; stop it first")
    for name in os.listdir(log_dir):
        if name not in (PID, "output"):
            os.unlink(os.path.join(log_dir, name))


def _is_running(pid: int) -> bool:
    """Tell whether `pid` lives; a zombie, whose parent has not looked yet, does not."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it may end between the two lines above
        return False


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["setup", "run", "start", "stop", "report", "known"])
    parser.add_argument("--socket", default=rows.SOCKET)
    parser.add_argument("--application", default=rows.APPLICATION, help="the application tree (default: %(default)s)")
    parser.add_argument("--log-dir", default="/dev/shm/stillpoint-load", help="on tmpfs (default: %(default)s)")
    parser.add_argument("--engines", choices=["all", "innodb"], default="all", help="setup: innodb makes no MyISAM, no Aria table")
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--rate", type=float, default=0.0, help="keys a second for each writer; 0: as fast as it goes")
    parser.add_argument("--seconds", type=float, default=0.0, help="end by itself after this time; 0: when told to")
    parser.add_argument("--until-stopped", action="store_const", const=0.0, dest="seconds", help="the default")
    parser.add_argument("--since", type=float, default=-math.inf, help="report: only steps that ran after this time")
    parser.add_argument("--until", type=float, default=math.inf, help="report: only steps that ran before this time")
    parser.add_argument("--at", type=float, default=math.inf, help="known: at this time")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    actions: dict[str, Callable[[argparse.Namespace], Any]] = {
        "setup": setup, "run": run, "start": start, "stop": stop, "report": print_report, "known": print_known,
    }
    return actions[args.action](args) or 0


if __name__ == "__main__":
    sys.exit(main())
