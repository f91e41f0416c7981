# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
from pathlib import Path

import pytest
from _core.backup import point
from _core.host import process
from _core.lvm.targets import Target

STUBBORN = "#!/bin/bash\ntrap '' TERM\nfor each in $(seq 300); do sleep 0.1; done\n"


def test_file_systems_that_take_long_to_write_out_hold_nobody_up_longer_than_one_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "sync"
    program.write_text(STUBBORN, encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setattr(process, "PATH", "%s:%s" % (tmp_path, process.PATH))
    monkeypatch.setenv("PATH", process.PATH)
    monkeypatch.setattr(point, "_SYNC_LIMIT", 0.5)
    targets = [Target(None, None, "ext4", "/", ())] * 3  # type: ignore[arg-type]
    began = time.monotonic()
    point.sync_shortly(targets)
    assert 0.4 < time.monotonic() - began < 20
