#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""How fast archived transactions are replayed: by `restore --until`, and by the bare client on the same backup."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "unit"), str(HERE.parents[1] / "plugins" / "module_utils")]

from _core.binlog import events  # noqa: E402
from _core.mysql.connection import Login, Session  # noqa: E402
from _core.restore import elsewhere  # noqa: E402
from bench import Record, Results  # noqa: E402
from native import conditions  # noqa: E402
from real_server import SERVER, USER, real_server  # noqa: E402
from shop import Shop  # noqa: E402
from trees import Quiet  # noqa: E402

# Two statements each, of one row, as an application writes an order and changes it.
TRANSACTIONS = """
CREATE PROCEDURE d.work(n INT) BEGIN
  FOR i IN 1..n DO
    START TRANSACTION;
    INSERT INTO d.orders (s) VALUES (SHA1(i));
    UPDATE d.parts SET n = n + 1 WHERE id = 1 + i MOD 1000;
    COMMIT;
  END FOR;
END
"""
WAYS = {
    "ours": "`restore --until`, the start and the stop of its server included",
    "client": "`mariadb-binlog | mariadb` on a running server with its defaults",
    "client without flushes": "the same on one with `innodb_flush_log_at_trx_commit=0`",
}


def run(pairs: int = 5, transactions: int = 50_000) -> None:
    """Measure each way `pairs` times in turn, each on a fresh copy of the same backup."""
    top = Path(tempfile.mkdtemp(prefix="stillpoint-bench-", dir=os.environ.get("TMPDIR", "/tmp")))
    os.chmod(top, 0o755)
    try:
        with real_server() as server:
            shop = Shop(server, top)
            server.do(
                "CREATE DATABASE d",
                "CREATE TABLE d.orders (i INT PRIMARY KEY AUTO_INCREMENT, s VARCHAR(40), KEY (s))",
                "CREATE TABLE d.parts (id INT PRIMARY KEY, n INT)",
                "INSERT INTO d.parts SELECT seq, 0 FROM d.seq_1_to_1000",
                "SET GLOBAL binlog_format = 'ROW'",
                TRANSACTIONS,
            )
            generation = shop.back_up()
            server.do("SET GLOBAL sync_binlog = 0", "SET GLOBAL innodb_flush_log_at_trx_commit = 0", "CALL d.work(%d)" % transactions)
            last = shop.gtid()
            shop.archive_logs()
            recovery = shop.recovery(until_gtid=last).recovery
            number = sum(events.read(piece.path).events for piece in recovery.pieces)
            results = Results("replay", {**conditions(top), "transactions": transactions, "events": number, "bytes": recovery.bytes}, [])
            for pair in range(pairs):
                for way in [*WAYS][pair % len(WAYS) :] + [*WAYS][: pair % len(WAYS)]:
                    to = top / "to"
                    seconds = ours(shop, to, last) if way == "ours" else bare(shop, generation, recovery, to, way)
                    shutil.rmtree(to)
                    results.add(pair=pair, way=way, replay_s=round(seconds, 2), events_s=round(number / seconds))
    finally:
        shutil.rmtree(top)


def ours(shop: Shop, to: Path, last: str) -> float:
    replay = shop.recovery(until_gtid=last)
    done = elsewhere.make(replay.recovery.generation, str(to), replay=replay).execute(Quiet())
    return float((done.recovery or {})["duration_s"])


def bare(shop: Shop, generation: Any, recovery: Any, to: Path, way: str) -> float:
    to.mkdir()
    subprocess.run(["cp", "-a", generation.path + "/mysql", str(to / "mysql")], check=True)
    os.chmod(to, 0o755)
    socket = shop.server.top + "/bare"
    options = [] if way == "client" else ["--innodb-flush-log-at-trx-commit=0"]
    server = subprocess.Popen(
        [str(SERVER), "--no-defaults", "--user=" + USER, "--datadir=%s/mysql" % to, "--socket=" + socket, "--skip-networking", "--pid-file=bare.pid", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ready(socket)
        began = time.monotonic()
        reader = subprocess.Popen(
            [
                "mariadb-binlog",
                "--no-defaults",
                "--start-position=%d" % recovery.start,
                "--stop-position=%d" % recovery.stop,
                *(piece.path for piece in recovery.pieces),
            ],
            stdout=subprocess.PIPE,
        )
        subprocess.run(["mariadb", "--no-defaults", "--user=root", "--socket=" + socket, "--binary-mode"], stdin=reader.stdout, check=True)
        seconds = time.monotonic() - began
        with Session(Login(login_user="root", login_unix_socket=socket)) as session:
            assert session.value("SELECT COUNT(*) FROM d.orders") > 0
        return seconds
    finally:
        server.terminate()
        server.wait(120)


def ready(socket: str) -> None:
    for _attempt in range(300):
        if subprocess.run(["mariadb-admin", "--no-defaults", "--user=root", "--socket=" + socket, "ping"], capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.1)
    raise SystemExit("the server did not start")


def table(results: Results) -> list[Record]:
    """Return the median of each way."""
    return [
        {"way": text, "events_s": sorted(each["events_s"] for each in results.records if each["way"] == way)[len(results.records) // len(WAYS) // 2]}
        for way, text in WAYS.items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--transactions", type=int, default=50_000)
    arguments = parser.parse_args()
    run(arguments.pairs, arguments.transactions)
    for record in table(Results.read("replay") or Results("replay", {}, [])):
        print(record)
