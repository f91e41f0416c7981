# SPDX-License-Identifier: GPL-3.0-or-later
"""Copies as a person has them: the commands, from the job's file to a bare host."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from _core.agent import copies
from _core.agent.commands import run
from _core.agent.main import main
from _core.copies import known, restic
from _core.host import process
from _core.job import reader
from rest_server import RESTICS, RestServer, needs_restic, rest_server
from trees import back_up, facts, tree, write
from trees import job as job_directory

pytestmark = [*needs_restic, pytest.mark.usefixtures("own_run_directory")]
HOST = os.uname().nodename


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RestServer]:
    with rest_server(tmp_path) as running:
        yield running


class Host:
    """A host with a job whose repository has a copy."""

    def __init__(self, server: RestServer, top: Path) -> None:
        self.top = top
        self.jobs = top / "jobs"
        self.source = top / "source"
        self.repository = top / "repository"
        self.jobs.mkdir()
        self.source.mkdir()
        write(str(self.source / "page"), b"contents")
        self.job = {
            "name": "web",
            "files": [str(self.source)],
            "repository": str(self.repository),
            "notify": {"metrics": str(top)},
            "copies": [{"name": "vault", "to": server.url(), "secrets": server.secrets()}],
        }
        (self.jobs / "web.yml").write_text(json.dumps(self.job))
        self.directory = job_directory(self.repository).of_host(HOST)
        self.directory.path = str(self.repository / HOST / "web")

    def back_up(self, hours: float) -> str:
        return back_up(self.directory, tree(str(self.source), "files" + str(self.source)), hours=hours, job="web").name


@pytest.fixture
def host(server: RestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(known, "STATE", str(tmp_path / "state"))
    monkeypatch.setattr(process, "PATH", "%s:%s" % (os.path.dirname(RESTICS["newest"]), process.PATH))
    for module in ("_core.copies.destination", "_core.agent.commands.fetch"):
        monkeypatch.setattr(module + ".CACHE", str(tmp_path / "cache"))
    made = Host(server, tmp_path)
    monkeypatch.setenv("STILLPOINT_JOBS", str(made.jobs))
    return made


def test_a_backup_goes_to_its_copy_and_comes_back_to_a_host_that_has_lost_everything(
    host: Host, server: RestServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: str, code: int = 0) -> str:
        assert main(words) == code, capsys.readouterr()
        output = capsys.readouterr()
        return output.err if code else output.out

    name = host.back_up(0)
    assert "make one, this once, with `stillpoint copy web --copy vault --init`" in said("copy", "web", code=1)
    assert "%s is at vault" % name in said("copy", "web", "--copy", "vault", "--init")
    assert "all that is to be sent is at vault" in said("copy", "web")
    newer = host.back_up(1)
    listed: List[Any] = json.loads(said("list", "web", "--json"))
    assert [(each["generation"], each["copies"]) for each in listed] == [(newer, []), (name, ["vault"])]
    table = said("list", "web")
    assert "COPIES" in table and "web: copy vault: it lacks 1 backup" in table
    assert json.loads(said("show", "web", name, "--json"))["copies"] == ["vault"]
    said("copy", "web", "--json")
    written = (tmp_path / "stillpoint_web_backups.prom").read_text() + (tmp_path / "stillpoint_web_copy.prom").read_text()
    assert 'stillpoint_copy_missing{backup_job="web",copy="vault"} 0.0' in written and 'stillpoint_copy_exit_code{backup_job="web"} 0.0' in written

    verified = said("verify", "web", newer, "--copy", "vault", "--sample", "99%")
    assert "%s at vault: 1 files, 8 B are listed as they were; 99 %% of the repository's data was read" % newer in verified

    before = facts(str(host.source))
    shutil.rmtree(host.source)
    shutil.rmtree(host.repository / HOST)
    assert "%s of web is back" % newer in said("restore", "web", "--copy", "vault", "--to", str(tmp_path / "back"))
    assert facts(str(next((tmp_path / "back").rglob("page")).parent)) == before

    (host.jobs / "web.yml").unlink()
    bare = ("fetch", "web", name, "--from", server.url(), "--from-host", HOST, "--secrets", server.secrets(), "--into", str(tmp_path / "bare"))
    assert "%s is here and is what its manifest says" % name in said(*bare)
    assert facts(str(tmp_path / "bare" / HOST / "web" / name / "files") + str(host.source)) == before


def test_a_copy_that_a_backup_has_been_without_for_a_day_is_something_to_see_to(host: Host, server: RestServer) -> None:
    host.back_up(0)
    job = reader.parse(host.job, "here")
    generations = host.directory.generations()
    taken = generations[0].time.timestamp()
    for seconds, late in ((3600, False), (90000, True)):
        (status,) = copies.of_job(job, generations, type(generations[0].time).fromtimestamp(taken + seconds, generations[0].time.tzinfo))
        assert status.late is late and "nothing was sent to it yet" in status.line(generations[0].time)


def test_each_copy_is_called_and_what_it_is_is_said(host: Host, server: RestServer) -> None:
    job = reader.parse(host.job, "here")
    (found,) = copies.dial(job)
    assert isinstance(found.error, restic.NoRepository)
    host.back_up(0)
    assert main(["copy", "web", "--copy", "vault", "--init"]) == 0
    (found,) = copies.dial(job)
    assert found.error is None and found.generations == 1 and "restic 0.18.0 opens it" in found.line()
    server.stop()
    (found,) = copies.dial(job)
    assert isinstance(found.error, restic.Offline)


def test_a_run_has_its_copies_sent_by_a_service_and_is_none_the_worse_where_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(process, "PATH", str(tmp_path))
    run._start_copying("web")
    assert "`stillpoint copy web` does it" in capsys.readouterr().err
    (tmp_path / "systemctl").write_text("#!/bin/sh\necho \"$*\" >%s/told\n" % tmp_path)
    (tmp_path / "systemctl").chmod(0o755)
    run._start_copying("web")
    assert (tmp_path / "told").read_text() == "start --no-block stillpoint-copy@web.service\n" and capsys.readouterr().err == ""
