# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules backup_run and backup_verify, with a real agent on real generations in a temporary directory."""

from __future__ import annotations

import json
import os
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Dict

import pytest

pytest.importorskip("ansible")

from _core import bundle  # noqa: E402
from _core.agent import show  # noqa: E402
from _core.job.names import host_name  # noqa: E402
from _core.repository.job_directory import JobDirectory  # noqa: E402
from ansible_collections.stillpoint.backup.plugins.module_utils import _agent  # noqa: E402
from ansible_collections.stillpoint.backup.plugins.modules import backup_info, backup_run, backup_verify  # noqa: E402
from trees import back_up, no_waiting_for_the_disk, tree, write  # noqa: E402, F401

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the agent is root's"),
    pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync"),
]

NOTHING: Dict[str, Any] = {"job": None, "generation": None, "all": False, "sample": None, "server": False, "timeout": 60}


@pytest.fixture
def generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A generation of the job web, and an agent that keeps its progress in a directory of its own."""
    for name in ("jobs", "repository", "source", "run"):
        (tmp_path / name).mkdir(mode=0o700)
    write(str(tmp_path / "source" / "case 1"), b"x" * 1000)
    (tmp_path / "stillpoint.pyz").write_bytes(bundle.build())
    agent = tmp_path / "stillpoint"
    start = 'mount --bind %s/run /run && exec %s %s/stillpoint.pyz "$@"' % (tmp_path, sys.executable, tmp_path)
    agent.write_text("#!/bin/sh\nexec unshare -m sh -c '%s' sh \"$@\"\n" % start)
    agent.chmod(0o700)
    monkeypatch.setattr(_agent, "AGENT", str(agent))
    monkeypatch.setenv("STILLPOINT_JOBS", str(tmp_path / "jobs"))
    job = tmp_path / "jobs" / "web.yml"
    job.write_text(json.dumps({"name": "web", "files": [str(tmp_path / "source")], "repository": str(tmp_path / "repository")}))
    job.chmod(0o600)
    return back_up(JobDirectory.open(str(tmp_path / "repository"), host_name(), "web"), tree(str(tmp_path / "source")))


def test_check_mode_says_what_would_be_read_and_records_nothing(generation: Any) -> None:
    done = backup_verify.plan({**NOTHING, "sample": "5%"}, ["web"])
    assert done == {"changed": False, "report": ["web %s: 5%% of the files of 1000 B would be read" % generation.name]}
    assert generation.recorded == {}


def test_check_mode_names_the_backup_that_would_be_read(generation: Any, tmp_path: Path) -> None:
    directory = JobDirectory.open(str(tmp_path / "repository"), host_name(), "web")
    newer = back_up(directory, tree(str(tmp_path / "source"), "mysql"), hours=1)
    assert [each.state for each in directory.generations()] == ["unproven", "good"]
    assert newer.name in backup_verify.plan(NOTHING, ["web"])["report"][0]
    assert backup_verify.perform(NOTHING, ["web"])["verifications"][0]["generation"] == newer.name
    assert [generation.name in line for line in backup_verify.plan({**NOTHING, "all": True}, ["web"])["report"]] == [False, True]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_a_job_that_is_overdue_is_returned_as_such_and_named_by_the_fleets_table(generation: Any, tmp_path: Path) -> None:
    job = tmp_path / "jobs" / "web.yml"
    known = backup_info.listed(["web"])
    assert [each["wrong"] for each in known["status"]] == [[]] and show.fleet({"db1": known}, datetime.now(timezone.utc))[1] == []
    job.write_text(json.dumps({**json.loads(job.read_text()), "schedule": "02:00"}))
    known = backup_info.listed(["web"])
    (late,) = [each["overdue"] for each in known["status"]]
    assert late.startswith("overdue: no backup since 2026-11-22 02:00 UTC") and known["backups"][0]["overdue"] == late
    assert show.fleet({"db1": known}, datetime.now(timezone.utc))[1] == ["db1: web: " + late]


def test_what_was_found_is_returned_and_damage_is_a_failure_that_says_what_is_wrong(generation: Any) -> None:
    done = backup_verify.perform(NOTHING, ["web"])
    assert "failed" not in done
    assert (done["changed"], done["verifications"][0]["ok"], done["verifications"][0]["job"]) == (False, True, "web")
    assert "every checksum is right" in done["report"][0]
    with open(generation.path + "/files/tree/case 1", "r+b") as file:
        file.write(b"y")
    done = backup_verify.perform({**NOTHING, "all": True}, ["web"])
    assert (done["failed"], done["exit_code"]) == (True, 1)
    assert done["msg"].startswith("%s of web is damaged" % generation.name)
    assert done["verifications"][0]["faults"][0].startswith("files/tree/case 1: contents changed")


def test_a_job_that_can_not_be_verified_does_not_keep_the_next_from_it(generation: Any) -> None:
    done = backup_verify.perform({**NOTHING, "server": True}, ["nobody", "web"])
    assert [each["job"] for each in done["failures"]] == ["nobody", "web"]
    assert "has no files of a server" in done["msg"]


def test_check_mode_of_a_run_asks_every_job_also_after_one_that_can_not_run(generation: Any) -> None:
    done = backup_run.plan(["nobody", "web"])
    assert (done["failed"], done["changed"]) == (True, False)
    assert [each["job"] for each in done["failures"]] == ["nobody", "web"]  # no snapshot can be taken of this test's directory
    assert [line.split(":")[0] for line in done["report"]] == ["nobody", "web"]
