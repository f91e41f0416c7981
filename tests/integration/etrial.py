# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests do on the replica over and over: jobs, runs, load, and a look at what is left behind."""

from __future__ import annotations

import json
import shlex
import subprocess
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from guest import Load
from machine import BINLOG_CNF, Machine, Result

AGENT = "/usr/local/sbin/stillpoint"

#: The server's own client.
CLIENT = "$(command -v mariadb || command -v mysql)"

#: A small part of the application tree: enough to be copied, little enough to be copied often.
SMALL = "/opt/processmaker/shared"

# Runs the agent's own code, with something done at the steps that it tells of, as `faults` says: Python that sees the package as `stillpoint`.
FAULTY = f"""
import sys
sys.path.insert(0, {AGENT!r})
import os, signal, time
from stillpoint.agent import main
from stillpoint.host import steps

actions = []

def at(step, action, time=1):
    'Do something at a step, when it is reached for the so many-th time.'
    actions.append([step, action, time])

def reached(step, about):
    for each in actions:
        if each[0] == step:
            each[2] -= 1
            if each[2] == 0:
                each[1](about)

def die(_about):
    os.kill(os.getpid(), SIGNAL)
    time.sleep(1)

def run(*words):
    with steps.listening(reached):
        return main.main(list(words))
"""

# Does so over and over without a new start of Python, which takes emulation longer than much of what is tested: forks for each line of JSON
# [faults, signal, words], and answers with one.
FORKING = """
import json, subprocess, tempfile
from stillpoint.agent import commands
import stillpoint.backup.run, pymysql, yaml
commands.load("run")
for line in sys.stdin:
    faults, number, words = json.loads(line)
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    child = os.fork()
    if not child:
        os.dup2(os.open('/dev/null', os.O_RDONLY), 0)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        SIGNAL = getattr(signal, number)
        exec(faults)
        sys.exit(run(*words))
    status = os.waitpid(child, 0)[1]
    said = [file.seek(0) or file.read().decode(errors='replace') for file in (out, err)]
    print(json.dumps([*said, 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)]), flush=True)
"""

# LVM is not let go for four seconds after the lock was granted, where it is about to suspend the origins: a thick snapshot's
# table is loaded by then, and its slave is in sysfs. What the origins are like when the lock may go is told on stderr. A thin origin
# may be at work again by then, before its snapshot has a device: that it was taken is what the pool's transaction says.
HOLD_UP_LVM = """
import subprocess, threading
from stillpoint.lvm import snapshots
wait_frozen = snapshots.wait_frozen
def transactions():
    pools = subprocess.run(['dmsetup', 'status', '--target', 'thin-pool'], stdout=subprocess.PIPE, universal_newlines=True).stdout
    return [line.split()[4] for line in pools.splitlines() if 'thin-pool' in line]
begun = transactions()
let_go = snapshots.Taking.go_on
snapshots.Taking.go_on = lambda taking: threading.Timer(4, let_go, [taking]).start()
def tell(takings):
    seen = wait_frozen(takings)
    for taking in takings:
        origin, snapshot = (taking._control.state(name) for name in (taking._origin, taking._dm_name))
        frozen = origin.suspended or origin.target == 'snapshot-origin' or (origin.target == 'thin' and transactions() != begun)
        print('lock may go:', taking.target.volume.name, 'frozen' if frozen else 'NOT FROZEN %s %s' % (origin, snapshot), file=sys.stderr)
    return seen
snapshots.wait_frozen = tell
"""


class Etrial:
    """A replica with the agent installed."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def job(self, text: str, name: str = "etrial") -> None:
        """Write a job file."""
        self.machine.run("mkdir -p -m 700 /etc/stillpoint/jobs")
        self.machine.put(textwrap.dedent(text).encode(), f"/etc/stillpoint/jobs/{name}.yml", mode="0600")

    def small_job(self, extra: str = "", mysql: str = "mysql: {method: snapshot}") -> None:
        """Write the job `etrial`: the databases and a small part of the tree."""
        self.job(f"name: etrial\n{mysql}\nfiles: [{SMALL}]\nrepository: /backups\n{textwrap.dedent(extra)}")

    def stillpoint(self, *arguments: str, check: bool = True, timeout: float = 300) -> Result:
        """Run the agent; its progress and complaints are in stderr."""
        return self.machine.run([AGENT, *arguments], check=check, timeout=timeout)

    def backup(self, job: str = "etrial") -> dict[str, Any]:
        """Run a job and return the summary of its manifest."""
        summary: dict[str, Any] = json.loads(self.stillpoint("run", job, "--json").stdout)
        return summary

    def generations(self, job: str = "etrial") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.stillpoint("list", job, "--json").stdout)
        return found

    def published(self, job: str = "etrial") -> set[str]:
        """Return the names of a job's generations, as the directory has them."""
        return set(self.machine.run(f"cd /backups/etrial/{job} && ls -d 2*").stdout.split())

    def faulty(self, faults: str, *arguments: str, signal: str = "SIGKILL", timeout: float = 300) -> Result:
        """Run the agent and do something at its steps."""
        script = FAULTY + f"SIGNAL = signal.{signal}\n" + textwrap.dedent(faults) + f"\nsys.exit(run(*{list(arguments)!r}))\n"
        self.machine.put(script.encode(), "faulty.py")
        # two commands, so that a shell stays to tell of the signal that ended the first: 128 and its number
        return self.machine.run("/usr/bin/python3 faulty.py; exit $?", check=False, timeout=timeout)

    def sql(self, statement: str) -> str:
        """Return what a statement answers, tab-separated."""
        return self.machine.run(f"{CLIENT} -BN -e {shlex.quote(statement)}", timeout=120).stdout

    def binary_logging(self) -> None:
        """Switch it on where Debian has it off: on MariaDB."""
        if self.sql("SELECT @@log_bin").strip() == "0":
            self.machine.put(BINLOG_CNF.encode(), "/etc/mysql/conf.d/binlog.cnf")
            self.machine.run("install -d -o mysql -g adm -m 2750 /var/log/mysql; systemctl restart mariadb")

    def volumes(self) -> set[str]:
        return set(self.machine.run("lvs --noheadings -o lv_name vg00").stdout.split())

    def left_behind(self) -> list[str]:
        """Return every trace of an unfinished run: volumes, mounts, mount points, partial generations, LVM commands, locks."""
        script = f"""
            lvs --noheadings -o lv_full_name @stillpoint
            grep -l stillpoint /proc/[0-9]*/mountinfo 2>/dev/null | head -3
            ls -d /run/stillpoint/mount-* 2>/dev/null
            find /backups -maxdepth 3 \\( -name '*.partial' -o -name '*.deleting' -o -name '*.trial' \\)
            pgrep -fa '^(rsync|lvconvert|lvcreate) '
            pgrep -fa '^/usr/bin/python3 .*{AGENT} run'
            {CLIENT} -BN -e "SELECT CONCAT('session ', ID, ' ', IFNULL(STATE, ''), ' ', IFNULL(INFO, '')) FROM information_schema.PROCESSLIST
                            WHERE INFO LIKE '%BACKUP STAGE%' AND ID <> CONNECTION_ID()"
            true
        """
        return self.machine.run(textwrap.dedent(script)).stdout.splitlines()

    def write_takes(self) -> float:
        """Return the seconds that a new session's commit takes now: long, if somebody holds a lock."""
        statements = "CREATE DATABASE IF NOT EXISTS probe; CREATE TABLE IF NOT EXISTS probe.probe (t TIMESTAMP(6)) ENGINE=InnoDB"
        statements += "; INSERT INTO probe.probe VALUES (NOW(6))"
        return float(self.machine.run(f"TIMEFORMAT=%R; time {CLIENT} -e '{statements}'", timeout=120).stderr)

    @contextmanager
    def load(self, rate: float = 5, *, engines: str = "all") -> Iterator[dict[str, Any]]:
        """Three writers at work while the body runs, each with so many keys a second; what they report is in the dictionary afterwards."""
        load = Load.install(self.machine)
        load.setup(engines)
        load.start(rate=rate)
        report: dict[str, Any] = {}
        try:
            yield report
        finally:
            report.update(load.stop())

    def judge(self, *arguments: str) -> tuple[bool, dict[str, Any]]:
        """Return whether the judge finds one point in time, and its verdict."""
        verdict = Load.install(self.machine).judge(*arguments)
        return verdict["one_point_in_time"], verdict

    def judge_generation(self, path: str, *arguments: str) -> tuple[bool, dict[str, Any]]:
        """Judge a copy of a generation's data directory with its tree."""
        return self.judge("copy", "--datadir", f"{path}/mysql", "--application", f"{path}/files/opt/processmaker", "--work", "/var/tmp", *arguments)


class Forks:
    """Runs of the agent with something done at their steps, as `Etrial.faulty`, without a new start of Python for each."""

    def __init__(self, machine: Machine) -> None:
        machine.put((FAULTY + FORKING).encode(), "forking.py")
        self._python = machine.popen("/usr/bin/python3 forking.py", stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def faulty(self, faults: str, *arguments: str, signal: str) -> Result:
        assert self._python.stdin and self._python.stdout
        self._python.stdin.write(json.dumps([textwrap.dedent(faults), signal, arguments]).encode() + b"\n")
        self._python.stdin.flush()
        return Result(*json.loads(self._python.stdout.readline()))


def running(machine: Machine, command: Sequence[str]) -> int:
    """Start a command in the background of the machine and return its process id."""
    quoted = " ".join(f"'{word}'" for word in command)
    return int(machine.run(f"setsid {quoted} >/var/tmp/background.log 2>&1 </dev/null & echo $!").stdout)
