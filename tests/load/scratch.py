# SPDX-License-Identifier: GPL-3.0-or-later
"""A scratch server, MariaDB or MySQL, on a copy of a data directory, and what it said while it recovered."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

START_LIMIT = 600  # seconds; recovery under software emulation is slow
STOP_LIMIT = 300

CRASH_RECOVERY = re.compile(r"Starting (XA )?crash recovery|Starting final batch to recover|InnoDB: Starting.*recovery")
PREPARED = re.compile(r"was in the XA prepared state|Found [1-9]\d* prepared transaction")
# MySQL's judgement is that of its own binary log in the copy: what is prepared is completed from there or rolled back
STRANDED = re.compile(r"Found [1-9]\d* prepared transactions! It means")
READY = re.compile(r"(?<!X Plugin )ready for connections")
POSITION = re.compile(r"[Ll]ast binlog file '(?P<file>[^']*)', position (?P<position>\d+)")


@dataclass(frozen=True)
class Recovery:
    """What the server said between its start and its readiness.

    MySQL does not say where InnoDB stood in the binary log: there, the position is the end of the last log in the copy.
    """

    started: bool
    seconds: float
    crash_recovery: bool
    prepared: list[str]
    binlog_file: str | None
    binlog_position: int | None
    errors: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class Scratch:
    """A scratch server that was started (or failed to), and where to reach it."""

    socket: str
    recovery: Recovery


@contextlib.contextmanager
def scratch_server(datadir: str, in_place: bool, work: str | None, options: Sequence[str]) -> Iterator[Scratch]:
    """Start a server on a copy of `datadir` (or on itself), yield it with its recovery, and shut it down."""
    with tempfile.TemporaryDirectory(prefix="judge-", dir=work) as room:
        os.chmod(room, 0o755)
        if in_place:
            data = os.path.abspath(datadir)
        else:
            data = os.path.join(room, "data")
            subprocess.run(["cp", "-a", "--sparse=auto", datadir, data], check=True)
        run_dir = os.path.join(room, "run")
        os.mkdir(run_dir)
        subprocess.run(["chown", "-R", f"{_user()}:", data, run_dir], check=True)
        stood = _end_of_logs(data) if _is_mysql() else None
        process = subprocess.Popen(_command(data, run_dir, options), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield _wait_until_ready(process, run_dir, stood)
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def read_recovery(log: str, started: bool, seconds: float, stood: tuple[str, int] | None = None) -> Recovery:
    """Return what the error log `log` says about the recovery; `stood` is where the binary log of a MySQL server ends."""
    lines = log.splitlines()
    found = [(os.path.basename(match.group("file")), int(match.group("position"))) for match in POSITION.finditer(log)]
    last = found[-1] if found else stood
    prepared = STRANDED if _is_mysql() else PREPARED
    return Recovery(
        started=started,
        seconds=round(seconds, 3),
        crash_recovery=bool(CRASH_RECOVERY.search(log)),
        prepared=[line for line in lines if prepared.search(line)],
        binlog_file=last[0] if last else None,
        binlog_position=last[1] if last else None,
        errors=[line for line in lines if "[ERROR]" in line],
        warnings=[line for line in lines if "[Warning]" in line],
    )


def _user() -> str:
    """Return the user that the server runs as: `mysql` where root may choose, else whoever runs this."""
    own = pwd.getpwuid(os.geteuid()).pw_name
    there = any(entry.pw_name == "mysql" for entry in pwd.getpwall())
    return "mysql" if own == "root" and there else own


def _is_mysql() -> bool:
    return shutil.which("mariadbd") is None and shutil.which("mysqld") is not None


def _end_of_logs(data: str) -> tuple[str, int] | None:
    """Return the last binary log of a copied data directory, where MySQL has them by default, and its size."""
    logs = sorted(name for name in os.listdir(data) if re.fullmatch(r"binlog\.\d{6,}", name))
    return (logs[-1], os.path.getsize(os.path.join(data, logs[-1]))) if logs else None


def _command(data: str, run_dir: str, options: Sequence[str]) -> list[str]:
    if _is_mysql():
        return [
            "mysqld", "--no-defaults", f"--datadir={data}", f"--socket={run_dir}/sock", f"--pid-file={run_dir}/pid",
            f"--log-error={run_dir}/error.log", "--log-error-verbosity=3", f"--tmpdir={run_dir}", "--skip-networking", "--mysqlx=OFF",
            "--skip-replica-start", "--skip-grant-tables", "--event-scheduler=DISABLED", "--innodb-buffer-pool-size=64M",
            "--innodb-buffer-pool-load-at-startup=OFF", "--innodb-buffer-pool-dump-at-shutdown=OFF", "--myisam-recover-options=OFF",
            f"--user={_user()}", *options,
        ]
    server = shutil.which("mariadbd") or shutil.which("mysqld") or "/usr/sbin/mariadbd"
    command = [
        server, "--no-defaults", f"--datadir={data}", f"--socket={run_dir}/sock", f"--pid-file={run_dir}/pid",
        f"--log-error={run_dir}/error.log", f"--tmpdir={run_dir}", "--skip-networking", "--port=0",
        "--skip-log-bin", "--skip-slave-start", "--skip-grant-tables", "--event-scheduler=DISABLED", "--log-warnings=9",
        "--innodb-buffer-pool-size=64M", "--innodb-buffer-pool-load-at-startup=OFF",
        "--innodb-buffer-pool-dump-at-shutdown=OFF",
        # a table that only opens after a repair must be seen, not repaired on the way
        "--myisam-recover-options=OFF", "--aria-recover-options=OFF",
    ]
    redo = os.path.join(data, "ib_logfile0")
    if os.path.exists(redo):
        command.append(f"--innodb-log-file-size={os.path.getsize(redo) // 4096 * 4096}")
    return [*command, f"--user={_user()}", *options]


def _wait_until_ready(process: subprocess.Popen[bytes], run_dir: str, stood: tuple[str, int] | None) -> Scratch:
    socket, log_path = os.path.join(run_dir, "sock"), os.path.join(run_dir, "error.log")
    begin = time.monotonic()
    ready = False
    log = ""
    while not ready and process.poll() is None and time.monotonic() < begin + START_LIMIT:
        time.sleep(0.1)
        log = _read(log_path)
        ready = bool(READY.search(log))
    log = _read(log_path)
    return Scratch(socket, read_recovery(log, ready, time.monotonic() - begin, stood))


def _read(path: str) -> str:
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
