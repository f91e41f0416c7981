# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as it is delivered: one file, started as a program, on jobs and repositories in temporary directories."""

from __future__ import annotations

import ctypes
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any, Dict, List, NoReturn

import pytest
from _core import bundle
from _core.agent import main
from _core.backup import plan
from _core.host import durable, mounts, processes
from _core.host.errors import CommandError, StillpointError
from _core.host.machine import this_machine
from _core.host.version import VERSION
from _core.lvm import ownership
from _core.repository import rsync
from _core.repository.job_directory import JobDirectory
from _core.repository.partial import Partial
from _core.trees import Tree
from trees import small_disk

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the agent is root's"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync"),
    pytest.mark.skipif(
        subprocess.run(["unshare", "-m", "mount", "--bind", "/tmp", "/mnt"], stderr=subprocess.DEVNULL).returncode != 0,
        reason="needs mount namespaces",
    ),
]

# The agent keeps its journals in /var/lib and its progress in /run: in tests it gets directories of its own there.
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
OWN_DIRECTORIES = 'mount --bind "$0" /var/lib && mount --bind "$1" /run && shift && exec "$@"'

HOST = socket.gethostname()


class Host:
    """A host with an agent, jobs, and a repository."""

    def __init__(self, top: Any) -> None:
        self.agent = str(top / "stillpoint")
        with open(self.agent, "wb") as file:
            file.write(bundle.build())
        self.jobs = top / "jobs"
        self.jobs.mkdir()
        self.repository = top / "backups"
        self.repository.mkdir()
        self.files = top / "app"
        self.files.mkdir()
        (self.files / "case 1").write_text("first")
        self.var, self.run_files = top / "var", top / "run"
        self.var.mkdir()
        self.run_files.mkdir()

    def job(self, name: str = "web", **keys: Any) -> str:
        """Write a job's file and return its path."""
        mapping = {"name": name, "files": [str(self.files)], "repository": str(self.repository), **keys}
        path = self.jobs / (name + ".yml")
        path.write_text(json.dumps({key: value for key, value in mapping.items() if value is not None}))
        path.chmod(0o600)
        return str(path)

    def generation(self, when: datetime, name: str = "web", host: str = HOST, tree: str = "", **summary: Any) -> str:
        """Publish a generation of the files as they are now and return its path."""
        directory = JobDirectory.open(str(self.repository), host, name)
        with directory.lock(), Partial(directory, "run-" + name) as partial:
            partial.add(Tree(tree or "files" + str(self.files), str(self.files), str(self.files), ()))
            facts = {
                "job": name,
                "host": host,
                "time": when.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                "proof": None,
                "warnings": [],
                "duration_s": 1.5,
            }
            return partial.publish(when, {**facts, "server": None, "lock": None, "coordinates": None, "snapshots": [], **summary}).path

    def command(self, *arguments: str) -> List[str]:
        own = ["unshare", "-m", "sh", "-c", OWN_DIRECTORIES, str(self.var), str(self.run_files)]
        return [*own, sys.executable, "-I", self.agent, *arguments]

    def environment(self) -> Dict[str, str]:
        return {**os.environ, "STILLPOINT_JOBS": str(self.jobs), "LC_ALL": "C"}

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the agent in a child of this process, which is ten times faster than starting Python and reading the archive."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if not pid:
                self._be_the_agent(out.fileno(), err.fileno(), list(arguments))
            code = os.WEXITSTATUS(os.waitpid(pid, 0)[1])
            texts = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
        assert "Traceback" not in texts[0] + texts[1], texts
        return subprocess.CompletedProcess(arguments, code, *texts)

    def _be_the_agent(self, out: int, err: int, arguments: List[str]) -> NoReturn:
        code = 99
        try:
            for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (err, 2)):
                os.dup2(source, target)
            sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
            os.environ.update(self.environment())
            libc = ctypes.CDLL(None, use_errno=True)
            done = [libc.unshare(CLONE_NEWNS), libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)]
            for source, target in ((self.var, "/var/lib"), (self.run_files, "/run")):
                done.append(libc.mount(os.fsencode(str(source)), os.fsencode(target), None, MS_BIND, None))
            assert done == [0, 0, 0, 0], os.strerror(ctypes.get_errno())
            code = main.main(arguments)
            sys.stdout.flush()
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code)

    def json(self, *arguments: str, code: int = 0) -> Any:
        done = self.run(*arguments, "--json")
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def refusal(self, *arguments: str, code: int = 2) -> str:
        """Return the one sentence with which the agent ends, said on stderr and in JSON alike."""
        done = self.run(*arguments, "--json")
        (line,) = done.stderr.splitlines()
        assert line.startswith("stillpoint: ")
        sentence = line[len("stillpoint: ") :]
        assert done.returncode == code
        assert json.loads(done.stdout) == {"failed": True, "msg": sentence, "exit_code": code}
        return sentence


@pytest.fixture
def host(tmp_path: Any) -> Host:
    return Host(tmp_path)


def at(day: int, hour: int = 2) -> datetime:
    return datetime(2026, 11, day, hour, 0, 5, tzinfo=timezone.utc)


def test_the_version_is_shown_for_people_and_programs(host: Host) -> None:
    for words in (["version"], ["--version"], ["--debug", "version"], ["--debug", "--version"]):
        assert host.run(*words).stdout == "stillpoint %s\n" % VERSION
    for words in (["version", "--json"], ["--json", "version"], ["--json", "--version"], ["--version", "--json"]):
        assert json.loads(host.run(*words).stdout)["version"] == VERSION


def test_json_and_debug_may_stand_in_front_of_the_command_and_behind_it(host: Host) -> None:
    host.job()
    host.generation(at(22))
    asked = (["--json", "--debug", "show", "web"], ["--json", "show", "web", "--debug"], ["show", "--debug", "web", "--json"])
    shown = [json.loads(host.run(*words).stdout) for words in asked]
    assert [each["job"] for each in shown] == ["web", "web", "web"]
    for words in (["--debug", "list", "nobody"], ["list", "nobody", "--debug"]):
        with pytest.raises(AssertionError, match="Traceback"):
            host.run(*words)


def test_options_in_front_of_a_command_that_does_not_exist_do_not_hide_that(host: Host) -> None:
    assert "invalid choice: 'frobnicate'" in host.refusal("frobnicate", "list")
    assert "unrecognized arguments: --frob" in host.refusal("--frob", "list")


def test_the_one_file_does_what_its_sources_do(host: Host) -> None:
    host.job()
    host.generation(at(22))
    for arguments in (["list", "--json"], ["show", "web"], ["verify", "web", "--json"], ["restore", "web", "--dry-run"], ["prune", "web"]):
        done = subprocess.run(host.command(*arguments), env=host.environment(), capture_output=True, text=True)
        own = host.run(*arguments)
        assert (done.returncode, done.stderr) == (own.returncode, own.stderr)
        assert len(done.stdout.splitlines()) == len(own.stdout.splitlines())


def test_help_lists_the_commands_and_exit_codes_without_any_library(host: Host) -> None:
    done = subprocess.run([sys.executable, "-I", "-S", host.agent, "--help"], stdout=subprocess.PIPE, text=True, check=True)
    for word in ("plan", "run", "list", "show", "verify", "restore", "prune", "clean", "version", "75 not now"):
        assert word in done.stdout


def test_a_missing_library_is_named_with_its_package(host: Host) -> None:
    path = host.job()
    done = subprocess.run([sys.executable, "-I", "-S", host.agent, "list", path], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr == "stillpoint: the Python module yaml is missing for %s: install the package python3-yaml\n" % sys.executable


def test_without_a_command_the_help_is_shown_and_the_usage_is_wrong(host: Host) -> None:
    done = host.run()
    assert done.returncode == 2
    assert "usage: stillpoint" in done.stdout


@pytest.mark.parametrize(
    "arguments", [("frobnicate",), ("run",), ("list", "--frob"), ("restore", "web", "--only", "both"), ("restore", "web", "--undo"), ("discard",), ("undo",)]
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(host: Host, arguments: Any) -> None:
    assert "--help" in host.refusal(*arguments)


@pytest.mark.parametrize("command", ["plan", "run", "list", "show", "verify", "restore", "prune"])
def test_a_job_that_does_not_exist_is_refused_by_every_command(host: Host, command: str) -> None:
    host.job("etrial")
    assert host.refusal(command, "etrail").endswith("did you mean etrial?")


@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_wrong_job_and_a_missing_path_are_refused_before_anything_starts(host: Host, command: str) -> None:
    assert "excludes is not a key that a job has" in host.refusal(command, host.job(excludes=[]))
    assert "files has /missing, which does not exist" in host.refusal(command, host.job(files=["/missing"]))


def test_no_backup_goes_to_the_directory_below_a_disk_that_is_not_mounted(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    (host.var / "fstab").write_text("/dev/backups %s ext4 noauto\n" % host.repository)
    monkeypatch.setattr(mounts, "FSTAB", str(host.var / "fstab"))
    host.job()
    for command in ("plan", "run"):
        assert "lies on the file system of %s, which /etc/fstab names and which is not mounted now" % host.repository in host.refusal(command, "web")
    assert os.listdir(host.repository) == []
    assert host.run("list").returncode == 0, "what is there can be read and restored"


def test_somebody_who_is_not_root_is_sent_to_sudo(host: Host) -> None:
    code = (
        "import os, sys; os.geteuid = lambda: 1000; sys.argv = ['/usr/local/sbin/stillpoint', 'list'];"
        " sys.path.insert(0, %r); from stillpoint.agent.main import main; sys.exit(main())" % host.agent
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "stillpoint: root is needed to read databases, volumes and repositories: run it as root, or as sudo /usr/local/sbin/stillpoint\n",
    )


def test_list_has_the_agreed_keys_newest_first_over_all_jobs(host: Host) -> None:
    host.job("web")
    host.job("etrial")
    old = host.generation(at(20))
    middle = host.generation(at(21), "etrial")
    new = host.generation(at(22))
    listed = host.json("list")
    assert [each["path"] for each in listed] == [new, middle, old]
    assert {key: listed[0][key] for key in ("job", "host", "generation", "path", "time", "size_bytes", "state")} == {
        "job": "web",
        "host": HOST,
        "generation": "2026-11-22T02-00-05Z",
        "path": new,
        "time": "2026-11-22T02:00:05.000Z",
        "size_bytes": 5,
        "state": "good",
    }
    assert [each["path"] for each in host.json("list", "etrial")] == [middle]


def test_list_for_people_is_a_table(host: Host) -> None:
    host.job()
    host.generation(at(22))
    head, row = host.run("list").stdout.splitlines()
    assert head.split()[:5] == ["JOB", "GENERATION", "AGE", "SIZE", "STATE"]
    assert row.split()[:2] == ["web", "2026-11-22T02-00-05Z"]


def test_list_without_jobs_or_generations_says_so(host: Host) -> None:
    assert host.json("list") == []
    assert "there are no jobs" in host.run("list").stdout
    host.job()
    assert host.json("list") == []
    assert host.run("list").stdout == "there is no backup yet of web\n"


def test_list_says_which_repository_is_not_reachable_and_still_lists_the_others(host: Host) -> None:
    host.job("web")
    host.job("etrial", repository="/missing/backups")
    path = host.generation(at(22))
    done = host.run("list", "--json")
    assert done.returncode == 1
    assert [each["path"] for each in json.loads(done.stdout)] == [path]
    assert "/missing/backups" in done.stderr and done.stderr.startswith("stillpoint: ")
    assert "/missing/backups" in host.refusal("list", "etrial")


def test_another_hosts_generations_can_be_looked_at(host: Host) -> None:
    host.job()
    path = host.generation(at(22), host="lost.example.com")
    assert host.json("list", "web") == []
    assert [each["path"] for each in host.json("list", "web", "--from-host", "lost.example.com")] == [path]
    assert host.json("show", "web", "--from-host", "lost.example.com")["path"] == path


needs_schedules = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@needs_schedules
def test_a_job_that_nobody_runs_any_more_is_called_overdue_wherever_it_is_shown(host: Host, tmp_path: Any) -> None:
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    os.utime(host.job(schedule="02:00", verify={"schedule": "weekly"}, notify={"metrics": str(metrics)}), (at(1).timestamp(), at(1).timestamp()))
    host.generation(datetime(2026, 10, 1, 2, 0, 5, tzinfo=timezone.utc))
    late = "overdue: no backup since 2026-10-01 02:00 UTC, by schedule (02:00) one was due on 2026-10-02 02:00 UTC"
    done = host.run("status")
    assert done.returncode == 1
    assert [line.split()[:2] for line in done.stdout.splitlines()[:2]] == [["STATUS", "JOB"], ["OVERDUE", "web"]]
    assert "web: " + late in done.stdout.splitlines() and "web: overdue: never verified, by schedule (weekly)" in done.stdout
    (facts,) = host.json("status", code=1)
    assert facts["overdue"] == late == facts["wrong"][0] == facts["backup"]["overdue"]
    assert facts["newest"]["state"] == "good" and facts["verify"]["overdue"].startswith("overdue: never verified")
    assert host.json("list")[0]["overdue"] == late == host.json("show", "web")["overdue"]
    for command in ("list", "show"):
        assert host.run(command, "web").stdout.splitlines()[0] == "web: " + late
    assert host.json("list", "--from-host", HOST)[0]["overdue"] == late
    text = (metrics / "stillpoint_web_backups.prom").read_text()
    assert re.search(r'^stillpoint_backup_due_timestamp_seconds\{backup_job="web"\} 1790917200.0$', text, re.MULTILINE), text
    assert "stillpoint_verify_due_timestamp_seconds" in text


@needs_schedules
def test_a_job_that_is_in_time_is_well_and_a_job_that_is_not_fails_status_alone(host: Host) -> None:
    host.job(schedule="02:00")
    host.generation(datetime.now(timezone.utc))
    done = host.run("status")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2), done.stdout
    assert host.json("list")[0]["overdue"] is None
    host.job("never", schedule="02:00")
    assert [each["wrong"] for each in host.json("status", code=1)] == [["there is no backup yet"], []]
    host.job("broken", schedule=["x"])
    assert "schedule" in host.json("status", "broken", code=1)[0]["wrong"][0]
    assert host.json("status", "web")[0]["wrong"] == []


def test_a_job_without_a_schedule_is_never_overdue(host: Host) -> None:
    host.job()
    host.generation(at(1))
    assert host.json("status")[0]["overdue"] is None and host.json("list")[0]["overdue"] is None


def test_a_host_with_a_new_name_adopts_its_backups_when_told_yes(host: Host) -> None:
    host.job()
    host.generation(at(21), host="old", machine=this_machine().as_dict())
    there = host.generation(at(22), host="theirs", machine={"id": "0" * 32})
    here = "%s/%s/web" % (host.repository, HOST)
    assert host.json("adopt", "web", "--dry-run") == {"job": "web", "host": HOST, "from": "old", "path": here, "generations": 1}
    assert "say --yes" in host.refusal("adopt", "web")
    assert "name one with --from-host" in host.refusal("show", "web")
    done = host.run("adopt", "web", "--yes")
    assert done.returncode == 0 and done.stdout.endswith("web goes on with the backups in %s/%s/web\n" % (host.repository, HOST))
    assert [each["host"] for each in host.json("list")] == [HOST]
    assert "this machine's already" in host.refusal("adopt", "web", "--yes")
    assert os.path.isdir(there)


def test_nothing_of_another_machine_of_the_same_name_is_pruned(host: Host) -> None:
    host.job(keep={"last": 1})
    for day in (20, 21):
        host.generation(at(day), machine={"id": "0" * 32})
    assert "another machine of this name" in host.refusal("prune", "web", code=1)
    assert len(host.json("list")) == 2
    assert host.run("adopt", "web", "--yes").returncode == 0
    assert host.run("prune", "web").returncode == 0
    assert len(host.json("list")) == 1


def test_show_tells_of_the_newest_good_generation_or_of_the_one_named(host: Host) -> None:
    host.job()
    host.generation(at(20), warnings=["look here"])
    host.generation(at(21))
    assert host.json("show", "web")["generation"] == "2026-11-21T02-00-05Z"
    assert host.json("show", "web", "2026-11-20T02-00-05Z")["warnings"] == ["look here"]
    assert host.json("show", "web")["own_bytes"] >= os.stat(host.json("show", "web")["path"] + "/manifest.json").st_size
    text = host.run("show", "web", "2026-11-20T02-00-05Z").stdout
    assert "web 2026-11-20T02-00-05Z\n" in text
    assert "warning      look here" in text
    assert "2026-11-21T02-00-05Z (good)" in host.refusal("show", "web", "2026-01-01T00-00-00Z")


def test_verify_ends_well_on_a_whole_generation_and_badly_on_a_damaged_one(host: Host) -> None:
    host.job()
    path = host.generation(at(22))
    verdict = host.json("verify", "web")
    assert (verdict["ok"], verdict["files"], verdict["faults"]) == (True, 1, [])
    assert "every checksum is right" in host.run("verify", "web").stdout
    assert "verified" in host.run("show", "web").stdout
    (damaged,) = [os.path.join(top, name) for top, _directories, names in os.walk(path) for name in names if name == "case 1"]
    with open(damaged, "r+") as file:
        file.write("FIRST")
    done = host.run("verify", "web")
    assert done.returncode == 1
    assert "case 1: " in done.stdout
    assert done.stderr.splitlines()[-1].startswith("stillpoint: 2026-11-22T02-00-05Z of web is damaged")
    assert host.json("verify", "web", "2026-11-22T02-00-05Z", code=1)["ok"] is False
    assert host.json("list")[0]["state"] == "bad"


def test_verify_all_reads_every_generation(host: Host) -> None:
    host.job()
    for day in (20, 21):
        host.generation(at(day))
    assert [each["ok"] for each in host.json("verify", "web", "--all")] == [True, True]
    assert "not both" in host.refusal("verify", "web", "2026-11-20T02-00-05Z", "--all")


def test_verify_all_goes_on_past_one_that_is_removed_meanwhile_and_one_that_can_not_be_read(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.job()
    pruned, unreadable, _whole, damaged = (host.generation(at(day)) for day in (19, 20, 21, 22))
    shutil.rmtree(damaged + "/files")
    read = rsync.checksums

    def meanwhile(root: str, **named: Any) -> Any:
        if root == unreadable:
            raise CommandError("%s could not be read: rsync: it was ended by signal 9" % root, ["rsync"])
        with suppress(FileNotFoundError):
            os.rename(pruned, os.path.join(os.path.dirname(pruned), ".pruned.deleting"))
        return read(root, **named)

    monkeypatch.setattr(rsync, "checksums", meanwhile)
    done = host.run("verify", "web", "--all")
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("web ")] == ["web 2026-11-22T02-00-05Z", "web 2026-11-21T02-00-05Z"]
    assert "left out: the generation %s can't be read: No such file" % pruned in done.stderr
    assert done.stderr.splitlines()[-1] == (
        "stillpoint: 2026-11-22T02-00-05Z of web is damaged and will not be restored or counted as a backup: restore another one, and take a new "
        "backup; %s could not be read: rsync: it was ended by signal 9" % unreadable
    )
    assert [each["ok"] for each in host.json("verify", "web", "--all", code=1)] == [False, True]
    assert "could not be read" in host.refusal("verify", "web", "2026-11-20", code=1)


def test_verify_of_a_sample_says_what_was_read_and_calls_nothing_verified(host: Host) -> None:
    host.job()
    for number in range(40):
        (host.files / str(number)).write_text("x" * 1000)
    host.generation(at(22))
    assert "in a sample of " in host.run("verify", "web", "--sample", "10%").stdout
    assert host.json("verify", "web", "--sample", "10")["percent"] == 10
    shown = host.run("show", "web").stdout
    assert "sampled" in shown and "verified" not in shown
    assert host.json("verify", "web", "--sample", "100%")["percent"] is None
    for share in ("0", "101%", "few"):
        assert "--sample %s is no share of the files" % share in host.refusal("verify", "web", "--sample", share)
    assert "has no files of a server" in host.refusal("verify", "web", "--server")


def test_a_verification_of_the_newest_is_told_of_and_one_that_somebody_picked_is_not(host: Host) -> None:
    told = teller(host)
    assert "nothing was backed up there yet" in host.refusal("verify", "web")
    assert json.loads(told.read_text())["status"] == "failed"
    path = host.generation(at(22))
    host.run("verify", "web")
    facts = json.loads(told.read_text())
    assert (facts["action"], facts["status"], facts["ok"], facts["path"]) == ("verify", "ok", True, path)
    os.unlink(path + "/files" + str(host.files) + "/case 1")
    told.unlink()
    host.run("verify", "web", "2026-11-22T02-00-05Z")
    assert not told.exists()
    host.generation(at(23))
    host.run("verify", "web", "--all")
    facts = json.loads(told.read_text())
    assert (facts["status"], facts["exit_code"], facts["path"]) == ("failed", 1, path)
    assert facts["msg"].startswith("2026-11-22T02-00-05Z of web is damaged")


def test_a_generation_whose_manifest_is_lost_is_listed_and_shown_as_bad(host: Host) -> None:
    host.job()
    path = host.generation(at(22))
    os.unlink(os.path.join(path, "manifest.json"))
    (listed,) = host.json("list")
    assert (listed["state"], listed["size_bytes"], listed["time"]) == ("bad", 0, "2026-11-22T02:00:05.000Z")
    assert "state        bad: " in host.run("show", "web", "2026-11-22T02-00-05Z").stdout
    assert host.run("list").returncode == 0


def test_prune_removes_what_keep_no_longer_asks_for_and_dry_run_only_says_so(host: Host) -> None:
    host.job(keep={"last": 1})
    for day in (20, 21, 22):
        host.generation(at(day))
    foretold = host.json("prune", "web", "--dry-run")
    assert [(each["generation"][:10], each["keep"]) for each in foretold] == [
        ("2026-11-22", True),
        ("2026-11-21", False),
        ("2026-11-20", False),
    ]
    assert len(host.json("list")) == 3
    assert host.json("prune", "web") == foretold
    assert [each["generation"] for each in host.json("list")] == ["2026-11-22T02-00-05Z"]
    assert "kept: " in host.run("prune", "web").stdout


def test_prune_without_keep_is_refused(host: Host) -> None:
    host.job()
    assert "the job has no keep" in host.refusal("prune", "web")


def test_prune_waits_for_nobody(host: Host) -> None:
    host.job(keep={"last": 1})
    host.generation(at(22))
    with JobDirectory.open(str(host.repository), HOST, "web").lock():
        assert "another run" in host.refusal("prune", "web", code=3)


def test_a_reader_who_leaves_early_does_not_make_a_traceback(host: Host) -> None:
    host.job()
    for day in range(1, 20):
        host.generation(at(day))
    done = subprocess.run(
        ["sh", "-c", '"$@" --json | head -n 1', "sh", *host.command("list")], env=host.environment(), capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[\n", "")


def test_debug_shows_when_each_step_was_reached_and_nothing_of_it_in_the_output(host: Host) -> None:
    host.job()
    host.generation(at(22))
    done = host.run("verify", "web", "--json", "--debug")
    assert re.search(r"^ +\d+\.\d{3} s  verify$", done.stderr, re.MULTILINE), done.stderr
    assert json.loads(done.stdout), "it is JSON alone"
    assert not re.search(r"\d s  verify", host.run("verify", "web").stderr)


def test_an_unexpected_fault_is_one_sentence_and_debug_shows_where(host: Host) -> None:
    host.job()
    host.generation(at(22))
    sources = os.path.join(os.path.dirname(host.agent), "sources")
    subprocess.run(
        [sys.executable, "-c", "import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2])", host.agent, sources], check=True
    )
    shown = os.path.join(sources, "stillpoint", "agent", "show.py")
    with open(shown) as text:
        changed = text.read().replace("def generations(", "def gone(")
    with open(shown, "w") as text:
        text.write(changed)
    command = [sys.executable, "-I", sources, "list"]
    done = subprocess.run(command, env=host.environment(), stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("stillpoint: unexpected AttributeError: ") and len(done.stderr.splitlines()) == 1
    done = subprocess.run([*command, "--debug"], env=host.environment(), stderr=subprocess.PIPE, text=True)
    assert "Traceback" in done.stderr


def in_process(code: str) -> "subprocess.Popen[str]":
    """Start Python with the core at hand."""
    core = os.path.dirname(os.path.dirname(bundle.__file__))
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.path.insert(0, %r)\n%s" % (core, code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


SIGNALLED = """
import os, signal, subprocess, sys, time
from _core.agent import main
from _core.agent.commands import version
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what nohup starts ignores it
def command():
    try:
        print("started", flush=True)
        time.sleep(300)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        print("child", subprocess.run(["sh", "-c", "kill -TERM $$; sleep 1"]).returncode)
        print("cleaned up", flush=True)
version.print_version = command
sys.exit(main.main(["version", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_once_and_those_after_it_do_not_cut_the_clean_up_short(number: signal.Signals) -> None:
    process = in_process(SIGNALLED)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    # the child of the clean-up can be ended by the signals that we take no notice of any more
    assert out == "child -15\ncleaned up\n"
    assert err == "stillpoint: stopped by %s; what had been opened was closed\n" % number.name
    assert process.returncode == 1


def test_a_signal_that_was_ignored_from_the_start_stays_ignored() -> None:
    code = SIGNALLED.replace("SIGHUP, signal.SIG_DFL", "SIGHUP, signal.SIG_IGN").replace("time.sleep(300)", "time.sleep(1)")
    process = in_process(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(signal.SIGHUP)
    _out, err = process.communicate(timeout=60)
    assert "SIGHUP" not in err


def test_files_that_the_agent_makes_are_for_root_alone() -> None:
    code = "from _core.agent.commands import version\nversion.print_version = lambda: print(oct(os.umask(0)))\nmain.main(['version'])"
    process = in_process("import os\nfrom _core.agent import main\n" + code)
    assert process.communicate(timeout=60)[0] == "0o77\n"


class Terminal:
    """The agent on a terminal."""

    def __init__(self, host: Host, *arguments: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if not self.pid:
            os.environ.update(host.environment(), TERM="xterm", COLUMNS="80")
            command = host.command(*arguments)
            os.execvp(command[0], command)

    def read(self, until: str = "", timeout: float = 60) -> str:
        """Return what the terminal shows up to a text, or up to the end."""
        shown = ""
        end = time.monotonic() + timeout
        while time.monotonic() < end and not (until and until in shown):
            if select.select([self.descriptor], [], [], 0.1)[0]:
                try:
                    shown += os.read(self.descriptor, 4096).decode()
                except OSError:
                    break
        return shown

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def end(self) -> int:
        status = os.waitpid(self.pid, 0)[1]
        os.close(self.descriptor)
        return os.WEXITSTATUS(status)


def test_on_a_terminal_there_is_a_bar_that_is_erased_at_the_end(host: Host) -> None:
    host.job()
    host.generation(at(22))
    terminal = Terminal(host, "verify", "web")
    shown = terminal.read()
    assert terminal.end() == 0
    assert "\r\x1b[Kverify" in shown
    assert "every checksum is right" in shown.split("\r\x1b[K")[-1]


def test_a_restore_needs_to_be_told_yes_where_nobody_can_be_asked(host: Host) -> None:
    host.job()
    host.generation(at(22))
    (host.files / "case 1").write_text("changed since")
    done = host.run("restore", "web")
    assert done.returncode == 2
    assert "in place" in done.stdout and str(host.files) in done.stdout, "the plan is shown"
    assert done.stderr == "stillpoint: nothing was changed: say --yes to replace what is there now with 2026-11-22T02-00-05Z of web\n"
    assert host.json("restore", "web", code=2)["exit_code"] == 2
    assert (host.files / "case 1").read_text() == "changed since"


def test_a_dry_run_shows_the_plan_alone(host: Host) -> None:
    host.job()
    host.generation(at(22))
    (host.files / "case 1").write_text("changed since")
    assert host.json("restore", "web", "--dry-run")["generation"] == "2026-11-22T02-00-05Z"
    assert str(host.files) in host.run("restore", "web", "--dry-run").stdout
    assert (host.files / "case 1").read_text() == "changed since"


def test_a_recovery_that_can_not_be_is_refused_in_one_sentence(host: Host) -> None:
    host.job()
    host.generation(at(22))
    assert "'tomorrow' is not a time: write 2026-11-22 14:03:07Z" in host.refusal("restore", "web", "--until", "tomorrow")
    assert "'' is not a time" in host.refusal("restore", "web", "--until", "", "--yes")
    assert "'' is not the GTID of one transaction" in host.refusal("restore", "web", "--before-gtid=", "--yes")
    assert "it names no host" in host.refusal("restore", "web", "--from-host=", "--yes")
    assert "not allowed with argument" in host.refusal("restore", "web", "--until", "2026-11-22 14:03:07Z", "--before-gtid", "0-1-5")
    assert "leave out --only files" in host.refusal("restore", "web", "--only", "files", "--until", "2026-11-22 14:03:07Z")
    assert "leave out --path" in host.refusal("restore", "web", "--path", str(host.files), "--until", "2026-11-22 14:03:07Z")
    assert "no binary logs have been archived" in host.refusal("restore", "web", "--until", "2026-11-22 14:03:07Z", code=1)
    assert "the job does not archive binary logs" in host.refusal("archive", "web")


def test_the_timeline_without_archived_logs_says_what_each_backup_is_good_for(host: Host) -> None:
    host.job()
    host.generation(at(22))
    shown = host.json("show", "web", "--timeline")
    assert (shown["job"], shown["restorable"], shown["gaps"]) == ("web", [], [])
    assert shown["without_logs"] == [{"generation": "2026-11-22T02-00-05Z", "reason": "it holds no database"}]
    assert shown["archive"]["running"] is False
    assert "NOT RUNNING" in host.run("show", "web", "--timeline").stdout


def test_a_restore_in_place_keeps_what_it_replaces_until_that_is_discarded(host: Host) -> None:
    host.job()
    host.generation(at(22))
    (host.files / "case 1").write_text("changed since")
    done = host.json("restore", "web", "--yes")
    (kept,) = done["replaced"]
    assert (done["generation"], done["files"], done["bytes"]) == ("2026-11-22T02-00-05Z", 1, 5)
    assert (host.files / "case 1").read_text() == "first"
    with open(os.path.join(kept, "case 1")) as file:
        assert file.read() == "changed since"

    assert host.run("discard", "web").returncode == 2
    assert host.json("discard", "web", "--dry-run") == {"discarded": [], "kept": [kept]}
    assert os.path.isdir(kept)
    assert host.json("discard", "web", "--yes") == {"discarded": [kept], "kept": []}
    assert not os.path.exists(kept)
    assert host.run("discard", "web").stdout == "no restore of web has left anything to discard\n"


def test_one_path_is_restored_alone(host: Host) -> None:
    (host.files / "case 2").write_text("second")
    host.job()
    host.generation(at(22))
    for name in ("case 1", "case 2"):
        (host.files / name).write_text("changed since")
    path = str(host.files / "case 2")
    assert host.json("restore", "web", "--path", path, "--dry-run")["part"] == path
    assert "not allowed with argument" in host.refusal("restore", "web", "--path", path, "--only", "files")
    done = host.run("restore", "web", "--path", path, "--yes")
    assert "%s of 2026-11-22T02-00-05Z of web is back: 1 files, 6 B in " % path in done.stdout
    assert [(host.files / name).read_text() for name in ("case 1", "case 2")] == ["changed since", "second"]


def test_a_restore_elsewhere_leaves_the_live_data_alone_and_asks_nothing(host: Host, tmp_path: Any) -> None:
    host.job()
    host.generation(at(22))
    (host.files / "case 1").write_text("changed since")
    done = host.run("restore", "web", "--to", str(tmp_path / "look"))
    assert done.returncode == 0, done.stderr
    assert "2026-11-22T02-00-05Z of web is back: 1 files, 5 B in " in done.stdout
    assert (host.files / "case 1").read_text() == "changed since"
    assert [name for _top, _directories, names in os.walk(str(tmp_path / "look")) for name in names] == ["case 1"]


def test_a_restore_that_was_interrupted_is_undone_or_finished_and_nothing_else_is_begun(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.job()
    host.generation(at(21))
    host.generation(at(22))
    (host.files / "case 1").write_text("changed since")
    assert "no restore was interrupted on this host" in host.refusal("undo", "web")

    real = durable.exchange
    monkeypatch.setattr(durable, "exchange", lambda one, other: (real(one, other), os.kill(os.getpid(), signal.SIGKILL)))
    host.run("restore", "web", "--yes")
    monkeypatch.undo()
    way_out = "finish it, with stillpoint restore web 2026-11-22T02-00-05Z, or undo it, with stillpoint undo web"
    for more in (["2026-11-21"], ["--until", "2026-11-22 14:03:07Z"]):
        sentence = host.refusal("restore", "web", *more)
        assert sentence == "a restore of 2026-11-22T02-00-05Z was interrupted while it replaced the live data, and this asks for another one: " + way_out
    assert way_out in host.refusal("run", "web", code=1)
    assert "say --yes to undo the restore of 2026-11-22T02-00-05Z of web" in host.refusal("undo", "web")
    assert host.json("undo", "web", "--dry-run")["generation"] == "2026-11-22T02-00-05Z"
    assert (host.files / "case 1").read_text() != "changed since"
    done = host.run("undo", "web", "--yes")
    assert "%s: what was there before gets its place back" % host.files in done.stdout
    assert (host.files / "case 1").read_text() == "changed since"
    assert host.run("restore", "web", "--yes").returncode == 0


def test_a_verification_takes_the_newest_that_is_not_bad_and_finds_that_there_is_none(host: Host) -> None:
    host.job()
    for options in ([], ["--all"]):
        assert "nothing was backed up there yet" in host.refusal("verify", "web", *options)
    proven = {"proof": {"ok": True}}
    host.generation(at(21), tree="mysql", **proven)
    newest = host.generation(at(22), tree="mysql")
    assert [each["state"] for each in host.json("list", "web")] == ["unproven", "good"]
    assert host.run("verify", "web").stdout.startswith("web %s:" % os.path.basename(newest))


def test_a_generation_may_be_named_behind_options(host: Host) -> None:
    host.job()
    host.generation(at(22))
    older = os.path.basename(host.generation(at(21)))
    for words in (["show", "web", "--json", older], ["show", "--json", "web", older], ["verify", "web", "--json", older]):
        assert json.loads(host.run(*words).stdout)["generation"] == older
    assert [each["generation"] for each in json.loads(host.run("list", "--from-host", HOST, "web", "--json").stdout)][1:] == ["2026-11-22T02-00-05Z"]
    for words in (["show", "web", older, "more"], ["show", "web", "--json", older, "more"], ["run", "web", "--json", older], ["show", "web", "--jso", "-x"]):
        assert "unrecognized arguments" in host.refusal(*words)


def test_a_table_is_asked_for_with_what_goes_with_it(host: Host) -> None:
    host.job()
    host.generation(at(22))
    assert "--as is for --table" in host.refusal("restore", "web", "--as", "shop.orders")
    assert "a table can't be had with --to" in host.refusal("restore", "web", "--table", "shop.orders", "--to", "/srv/look")
    assert "holds no database" in host.refusal("restore", "web", "--table", "shop.orders")
    assert "write it as DATABASE.TABLE" in host.refusal("restore", "web", "--table", "orders")


def test_a_part_that_a_generation_does_not_hold_is_refused(host: Host) -> None:
    host.job()
    host.generation(at(22))
    assert "holds no database" in host.refusal("restore", "web", "--only", "database", "--yes")


@pytest.mark.parametrize("answer, code, text", [("yes\n", 0, "first"), ("y\n", 1, "changed since"), ("\x04", 1, "changed since")])
def test_on_a_terminal_the_person_is_asked_and_only_yes_is_yes(host: Host, answer: str, code: int, text: str) -> None:
    host.job()
    host.generation(at(22))
    (host.files / "case 1").write_text("changed since")
    terminal = Terminal(host, "restore", "web")
    assert str(host.files) in terminal.read("Type yes: ")
    terminal.type(answer)
    shown = terminal.read()
    assert terminal.end() == code
    assert ("stillpoint: not confirmed: nothing was changed" in shown) == (code == 1)
    assert (host.files / "case 1").read_text() == text


def teller(host: Host) -> Any:
    """Return the file that gets the facts from the job's command, once there is one."""
    told = host.var / "told"
    host.job(notify={"command": ["/bin/sh", "-c", "cat >/var/lib/told"]})
    return told


def test_a_run_that_fails_is_told_of_with_the_sentence_that_it_ends_with(host: Host) -> None:
    told = teller(host)
    sentence = host.refusal("run", "web", code=1)  # what is in a temporary directory is not on LVM, or there is no LVM
    facts = json.loads(told.read_text())
    assert facts == {"action": "run", "job": "web", "host": HOST, "status": "failed", "exit_code": 1, "msg": sentence}
    assert host.json("list") == []
    assert list((host.run_files / "stillpoint").iterdir()) == [], "the progress file is gone"


def test_the_metrics_say_how_a_run_ended_and_which_backups_there_are(host: Host) -> None:
    metrics = host.var / "metrics"
    metrics.mkdir()
    host.job(notify={"metrics": "/var/lib/metrics"})
    host.generation(at(22))
    host.refusal("run", "web", code=1)
    text = "".join(file.read_text() for file in sorted(metrics.iterdir()))
    assert sorted(file.name for file in metrics.iterdir()) == ["stillpoint_web_backups.prom", "stillpoint_web_run.prom"]
    assert 'stillpoint_run_exit_code{backup_job="web"} 1.0' in text
    assert 'stillpoint_backups{backup_job="web",state="good"} 1.0' in text
    assert host.run("verify", "web").returncode == 0
    assert 'stillpoint_verify_exit_code{backup_job="web"} 0.0' in (metrics / "stillpoint_web_verify.prom").read_text()
    host.job(notify={"metrics": "/var/lib/none"})
    done = host.run("verify", "web")
    assert done.returncode == 0
    assert "notify.metrics: /var/lib/none/stillpoint_web_verify.prom can't be written" in done.stderr


def test_a_second_run_of_a_job_is_refused_and_nobody_is_alarmed(host: Host) -> None:
    told = teller(host)
    with JobDirectory.open(str(host.repository), HOST, "web").lock():
        assert "another run" in host.refusal("run", "web", code=3)
    assert not told.exists()


def test_clean_removes_unfinished_copies_of_jobs_that_nobody_is_running(host: Host) -> None:
    host.job()
    path = host.generation(at(22))
    left = os.path.join(os.path.dirname(path), ".killed.partial")
    os.mkdir(left)
    done = host.run("clean", "--json")
    if shutil.which("lvs") is None:
        pytest.skip("needs the LVM tools")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"snapshots": [], "unfinished": [left], "put_back": []}
    assert not os.path.exists(left) and os.path.isdir(path)
    assert host.run("clean").stdout == "nothing was left behind\n"


def test_what_can_not_be_removed_is_warned_about_by_a_run_and_fails_clean(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = processes.Owner("20261122t020005-1a2b", "web", "0-0", 1, 2).tags()
    snapshot = SimpleNamespace(vg="vg0", name="stuck", full_name="vg0/stuck", origin="root", tags=dead)

    def refuse(_name: str) -> NoReturn:
        raise CommandError("lvremove failed: in use", ["lvremove"], 5)

    def made(_job: Any) -> NoReturn:
        raise StillpointError("the run went on")

    for name, fake in (("volumes", lambda: [snapshot]), ("remove", refuse), ("settle", lambda: None)):
        monkeypatch.setattr(ownership.volumes, name, fake)
    monkeypatch.setattr(ownership, "_REMOVE_TRIES", 1)
    monkeypatch.setattr(plan, "make", made)
    host.job()
    left = os.path.join(os.path.dirname(host.generation(at(22))), ".killed.partial")
    with contextmanager(small_disk)(left):
        ran, cleaned = host.run("run", "web"), host.run("clean")
    assert ran.stderr.endswith("stillpoint: the run went on\n")
    for done in (ran, cleaned):
        assert done.returncode == 1
        assert "the snapshot vg0/stuck can't be removed: lvremove failed: in use" in done.stderr
        assert left + ", which an earlier run left, can't be removed" in done.stderr
    assert cleaned.stdout == ""
