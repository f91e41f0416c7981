# SPDX-License-Identifier: GPL-3.0-or-later
"""How a backup is followed from the workstation."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("ansible")

from ansible_collections.stillpoint.backup.plugins.plugin_utils import _live  # noqa: E402

BOOT = "6b8f2b1e-7a0c-4a7e-9f9b-0d4c8a5b8f11"
RUNNING = json.dumps({"started": 1, "finished": 0, "ansible_job_id": "j1"})
COPYING = json.dumps({"stage": "copy", "done": 512 * 1024**2, "total": 1024**3, "time": 0})


def test_a_module_that_runs_has_not_ended() -> None:
    look = _live.seen("%s\n%s\netrial %s\n" % (BOOT, RUNNING, COPYING))
    assert (look.boot, look.ended, look.progress) == (BOOT, False, ())


def test_the_progress_of_each_job_is_seen() -> None:
    look = _live.seen("%s\n%s\netrial.progress %s\nfiles.progress %s\n" % (BOOT, RUNNING, COPYING, COPYING))
    assert [job for job, _state in look.progress] == ["etrial", "files"]
    assert list(_live.lines(look))[0] == ("etrial: copy", "50 %, 512.0 MiB of 1.0 GiB")


def test_a_module_that_has_written_its_result_has_ended() -> None:
    assert _live.seen("%s\n%s\n" % (BOOT, json.dumps({"changed": True, "backups": []}))).ended


@pytest.mark.parametrize("result", ["", '{"started": 1, "fini'])
def test_a_result_that_is_not_there_or_not_whole_is_no_end(result: str) -> None:
    assert not _live.seen("%s\n%s\n" % (BOOT, result)).ended


def test_the_command_shows_what_there_is_in_a_shell(tmp_path: Path) -> None:
    results = tmp_path / "it's a result"
    results.write_text(RUNNING)
    command = _live.look_command(str(results), None).replace("/run/stillpoint", str(tmp_path))
    (tmp_path / "etrial.progress").write_text(COPYING)
    look = _live.seen(subprocess.run(["/bin/sh", "-c", command], stdout=subprocess.PIPE, text=True, check=True).stdout)
    assert not look.ended
    assert [job for job, _state in look.progress] == ["etrial"]
    assert look.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
