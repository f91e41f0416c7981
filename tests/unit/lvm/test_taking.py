# SPDX-License-Identifier: GPL-3.0-or-later
"""When a snapshot's point in time counts as reached, and when as certainly yet to come: for each state that device-mapper can show.

The kernel's answers are given by hand; on the real thing the same is shown by the integration tests.
"""

from __future__ import annotations

from typing import Dict, Iterator, List, Optional

import pytest
from _core.host import processes
from _core.host.errors import CommandError, StillpointError
from _core.host.processes import this_process
from _core.lvm import dm, snapshots, volumes
from _core.lvm.snapshots import Taking
from _core.lvm.targets import Target

ORIGIN, POOL, RUN = "vg-db", "vg-pool-tpool", "20261122t020005-1a2b"
SNAPSHOT = "vg-stillpoint--20261122t020005--1a2b--0"
LINEAR = dm.State(False, False, "linear", "")
THIN = dm.State(False, False, "thin", "")


def pool(transaction: int) -> dm.State:
    return dm.State(False, False, "thin-pool", "%d 1/100 1/100 - rw no_discard_passdown queue_if_no_space - 1" % transaction)


class Kernel:
    """What stands for /dev/mapper/control: the state of each device, as the test sets it."""

    def __init__(self, **states: dm.State) -> None:
        self.states: Dict[str, dm.State] = {}

    def state(self, name: str) -> Optional[dm.State]:
        return self.states.get(name)


def volume(thin: bool) -> volumes.LogicalVolume:
    layout = ("thin", "sparse") if thin else ("linear",)
    return volumes.LogicalVolume(
        "vg", "db", "u", "/dev/vg/db", ORIGIN, "", 1 << 30, layout, ("public",), (), 253, 0, "", "pool" if thin else "", None, None, 1 << 30, 1 << 22, 0
    )


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def begun(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """A function that returns a Taking whose LVM command runs, and does nothing."""
    made: List[Taking] = []
    monkeypatch.setattr(snapshots, "locked_memory", lambda _pid: 1)  # as LVM has it while it suspends

    def begin(thin: bool = False, command: str = "sleep 60") -> Taking:
        monkeypatch.setattr(volumes, "convert_argv", lambda *_arguments: ["sh", "-c", command])
        monkeypatch.setattr(volumes, "create_thin_snapshot_argv", lambda *_arguments: ["sh", "-c", command])
        kernel.states.update({ORIGIN: THIN, POOL: pool(7)} if thin else {ORIGIN: LINEAR})
        target = Target(volume(thin), None if thin else 1 << 28, "ext4", "/", ())
        taking = Taking(target, this_process(RUN, "etrial"), 0, kernel)  # type: ignore[arg-type]
        taking.begin()
        made.append(taking)
        return taking

    yield begin
    for taking in made:
        taking._command.kill()
        taking._command.wait()


def test_a_thick_snapshot_whose_table_is_only_loaded_is_not_taken_yet(begun, kernel, monkeypatch) -> None:
    taking = begun()
    monkeypatch.setattr(snapshots, "locked_memory", lambda _pid: 1)
    assert not taking.is_about
    kernel.states.update({ORIGIN: dm.State(False, True, "linear", ""), SNAPSHOT: dm.State(False, True, "", "")})
    assert taking.is_about
    assert taking.still_before()
    assert taking.look() is None


def test_a_thick_snapshot_is_taken_when_its_origin_is_suspended_or_has_the_new_table(begun, kernel) -> None:
    for state, sign in ((dm.State(True, True, "linear", ""), "suspended"), (dm.State(False, False, "snapshot-origin", ""), "switched")):
        taking = begun()
        kernel.states.update({ORIGIN: state, SNAPSHOT: dm.State(False, False, "snapshot", "16/2097152 16")})
        assert not taking.still_before()
        assert taking.look() == sign


def test_what_another_command_does_to_the_origin_is_not_taken_for_ours(begun, kernel, monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "locked_memory", lambda _pid: 0)  # it waits for the volume group
    for thin in (False, True):
        taking = begun(thin=thin)
        kernel.states[ORIGIN] = dm.State(True, True, "linear", "")
        assert taking.look() is None
    taking = begun()
    kernel.states[ORIGIN] = dm.State(False, False, "snapshot-origin", "")
    assert taking.look() is None


def test_the_origin_of_another_thick_snapshot_shows_no_new_table_and_nothing_about_it_is_certain_before(begun, kernel) -> None:
    kernel.states[ORIGIN] = dm.State(False, False, "snapshot-origin", "")
    taking = Taking(Target(volume(False), 1 << 28, "ext4", "/", ()), this_process(RUN, "etrial"), 0, kernel)
    assert not taking.can_be_late
    taking.begin = begun().begin  # the command that does nothing
    assert not taking.still_before()


def test_a_thin_snapshot_is_taken_when_its_origin_is_suspended_or_its_device_is_there(begun, kernel) -> None:
    taking = begun(thin=True)
    assert taking.still_before()
    kernel.states[ORIGIN] = dm.State(True, False, "thin", "")
    assert not taking.still_before()
    assert taking.look() == "suspended"
    taking = begun(thin=True)
    kernel.states[SNAPSHOT] = dm.State(False, False, "", "")
    assert taking.look() == "switched"


def test_another_snapshot_in_the_pool_is_not_taken_for_ours_and_ends_the_certainty(begun, kernel) -> None:
    taking = begun(thin=True)
    kernel.states[POOL] = pool(8)
    assert taking.look() is None
    assert not taking.still_before()


def test_a_command_that_ended_is_the_last_sign_and_one_that_failed_is_none(begun) -> None:
    taking = begun(command="true")
    taking._command.wait()
    assert not taking.still_before()
    assert taking.look() == "exit"
    taking = begun(command="echo no room >&2; exit 5")
    taking._command.wait()
    with pytest.raises(CommandError, match="LVM can't snapshot vg/db: no room"):
        taking.look()


def test_of_several_none_counts_before_all_do_and_the_time_between_them_is_told(begun, kernel, monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "FREEZE_LIMIT", 0.2)
    first, second = begun(), begun(thin=True)
    kernel.states[ORIGIN] = LINEAR
    second._origin, second._dm_name = "vg-other", "vg-second"
    kernel.states["vg-other"] = THIN
    assert snapshots.still_before([first, second])
    kernel.states.update({ORIGIN: dm.State(False, False, "snapshot-origin", ""), SNAPSHOT: dm.State(False, False, "snapshot", "16/2097152 16")})
    assert not snapshots.still_before([first, second])
    with pytest.raises(StillpointError, match="LVM did not take the snapshot of vg/db within 0.2 s"):
        snapshots.wait_frozen([first, second])
    kernel.states["vg-other"] = dm.State(True, False, "thin", "")
    assert snapshots.wait_frozen([first, second]) == "suspended, switched"
    assert 0.2 <= snapshots.skew([first, second]) < 60
    assert snapshots.skew([first]) == 0


def test_lvm_stands_still_while_the_lock_is_taken_and_goes_on_however_that_ends(begun, kernel, monkeypatch) -> None:
    monkeypatch.setattr(snapshots, "FREEZE_LIMIT", 5)
    monkeypatch.setattr(snapshots, "locked_memory", lambda _pid: 1)
    first, second = begun(), begun()  # in one group: one of them stands still, the other waits for it to leave the group
    kernel.states[SNAPSHOT] = dm.State(False, True, "", "")

    def states() -> List[str]:
        return [processes.process_state(taking._command.pid) for taking in (first, second)]

    with pytest.raises(ValueError), snapshots.stopped_before_suspend([first, second]) as in_time:
        assert in_time
        assert "T" in states()
        raise ValueError
    assert "T" not in states()
    kernel.states[ORIGIN] = dm.State(True, True, "linear", "")
    with snapshots.stopped_before_suspend([first, second]) as in_time:
        assert not in_time
        assert "T" not in states()
