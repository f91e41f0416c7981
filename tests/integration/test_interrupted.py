# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is ended at any stage: after SIGKILL the next run cleans up, by SIGTERM it does so itself."""

from __future__ import annotations

from etrial import Etrial, Forks

# One step in each stage, and those between two that belong together.
STEPS = (
    "clean",
    "snapshot",
    "snapshot prepared",
    "way clear",
    "snapshot begun",
    "lock held",
    "frozen",
    "snapshot taken",
    "mounted",
    "tree copied",
    "rsync started",
    "unmount",
    "discard",
    "publish",
    "rename",
    "renamed",
    "prune",
)


def fault(step: str) -> str:
    """Return what ends a run at a step, or while rsync is at work."""
    return f"at({step!r}, {'lambda about: (time.sleep(0.3), die(about))' if step == 'rsync started' else 'die'})"


def test_a_run_that_is_ended_at_any_stage_leaves_nothing_for_long_and_no_generation_is_touched(etrial: Etrial) -> None:
    etrial.job("name: etrial\nmysql: {method: snapshot}\nfiles: [/opt/processmaker/config]\nrepository: /backups\nkeep: {last: 3}\n")
    etrial.machine.run("lvcreate -q -y -s -L 64m -n somebody_elses vg00/root")
    first = etrial.backup()["generation"]
    forks = Forks(etrial.machine)
    for step in STEPS:
        done = forks.faulty(fault(step), "run", "etrial", signal="SIGKILL")
        assert done.rc == 128 + 9, f"{step}: it was not reached: {done.rc} {done.stderr}"
        assert etrial.write_takes() < 5, f"{step}: a lock is still held"
        # the next run removes what that one left, and then itself what it made, being ended in the same place
        done = forks.faulty(fault(step), "run", "etrial", signal="SIGTERM")
        assert done.rc == 1, f"{step}: it was not reached: {done.rc} {done.stderr}"
        assert "stopped by SIGTERM" in done.stderr, step
        assert "Traceback" not in done.stderr, step
        assert etrial.left_behind() == [], step
        assert etrial.volumes() == {"root", "somebody_elses"}, step
        after = etrial.published()
        assert first in after, step
        # a keep of three would remove the first one, if more came of the runs that were ended than was published
        etrial.machine.run(["rm", "-rf", *(f"/backups/etrial/etrial/{name}" for name in after - {first})])
    etrial.backup()
    kept = [generation["generation"] for generation in etrial.generations()]
    assert kept[1:] == [first]
    for name in kept:
        etrial.stillpoint("verify", "etrial", name)
