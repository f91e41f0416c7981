# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said of a snapshot that is lost. The kernel's answer is given by hand."""

from __future__ import annotations

from typing import Any

import pytest
from _core.host.errors import StillpointError
from _core.lvm import dm
from _core.lvm.watch import Watch


class Kernel:
    def __init__(self, state: dm.State) -> None:
        self._state = state

    def state(self, _name: str) -> dm.State:
        return self._state


class Snapshot:
    vg, origin, name, full_name, dm_name, size_bytes = "vg0", "db", "s", "vg0/s", "vg0-s", 64 << 20

    def __init__(self, pool: Any = None) -> None:
        self.pool = pool


FULL = (Snapshot(), dm.State(False, False, "snapshot", "Invalid")), (Snapshot("p"), dm.State(False, False, "thin-pool", "1 9/100 99/100 - rw x"))


@pytest.mark.parametrize(("snapshot", "state"), FULL, ids=["thick", "thin"])
def test_what_is_lost_with_a_snapshot_is_said_by_what_it_was_needed_for(snapshot: Any, state: dm.State) -> None:
    watch = Watch([snapshot], Kernel(state))  # type: ignore[arg-type]
    with pytest.raises(StillpointError, match="vg0/db.*; nothing was published"):
        watch.check()
    watch.copied()
    with pytest.raises(StillpointError) as lost:
        watch.check()
    assert "the copy was complete before that, and is not proven" in str(lost.value)
    assert "published" not in str(lost.value)
