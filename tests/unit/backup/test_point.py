# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import time
from contextlib import nullcontext
from datetime import datetime, timezone
from pathlib import Path

import pytest
from _core.backup import point
from _core.host import process
from _core.host.errors import StillpointError
from _core.lvm.targets import Target
from a_group import OWNER

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


def test_every_snapshot_that_can_not_be_removed_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        can_be_late = False

        def __init__(self, _target: object, _owner: object, number: int, _control: object) -> None:
            self.full_name = "vg/s%d" % number

        def prepare(self) -> None:
            pass

        def discard(self) -> None:
            if self.full_name != "vg/s1":
                raise StillpointError("%s is busy" % self.full_name)

    monkeypatch.setattr(point.dm, "Control", nullcontext)
    monkeypatch.setattr(point, "Taking", Stuck)
    monkeypatch.setattr(point, "_take", lambda *_asked, **_more: point.Point("run", datetime.now(timezone.utc), []))
    with point.point_in_time([None] * 3, OWNER, None, print) as found:  # type: ignore[list-item]
        pass
    assert (found.left, found.warnings) == (["vg/s0", "vg/s2"], ["vg/s0 is busy", "vg/s2 is busy"])
    with pytest.raises(StillpointError, match="vg/s0 is busy"), point.point_in_time([None] * 3, OWNER, None, print):  # type: ignore[list-item]
        raise OSError
