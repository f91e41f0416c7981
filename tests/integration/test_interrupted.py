# SPDX-License-Identifier: GPL-3.0-or-later
"""A run that is ended at any stage: after SIGKILL the next run cleans up, by SIGTERM it does so itself."""

from __future__ import annotations

from etrial import Etrial

# One place in each stage, and those between two steps that belong together.
PLACES = {
    "clean": "hook('lvm.ownership:clean', before=die)",
    "plan": "hook('backup.plan:make', after=die)",
    "the volume for the old contents is made": "hook('lvm.volumes:create_plain', after=die)",
    "guard": "hook('mysql.guard:clear_the_way', after=die)",
    "LVM has begun": "hook('lvm.snapshots:Taking.begin', after=die)",
    "the lock is held": "hook('mysql.locks:Lock.take', after=die)",
    "the origin is frozen": "hook('lvm.snapshots:wait_frozen', after=die)",
    "the snapshot is taken": "hook('lvm.snapshots:finish', after=die)",
    "the snapshot is mounted": "hook('host.mounts:run', after=lambda argv, **_options: argv[0] == 'mount' and die())",
    "copy": "hook('repository.partial:Partial.add', after=die)",
    "the copy is under way": "hook('repository.rsync:start', after=lambda *_a, **_k: (time.sleep(0.3), die()))",
    "unmount": "hook('host.mounts:unmount', before=die)",
    "the snapshot is to be removed": "hook('lvm.snapshots:remove', before=die)",
    "publish": "hook('repository.partial:Partial.publish', before=die)",
    "the generation is about to get its name": "hook('host.durable:rename_to_free_name', before=die)",
    "the generation has its name": "hook('host.durable:rename_to_free_name', after=die)",
    "prune": "hook('repository.job_directory:JobDirectory.prune', before=die)",
}


def test_a_run_that_is_ended_at_any_stage_leaves_nothing_for_long_and_no_generation_is_touched(etrial: Etrial) -> None:
    etrial.job("name: etrial\nmysql: {method: snapshot}\nfiles: [/opt/processmaker/config]\nrepository: /backups\nkeep: {last: 3}\n")
    etrial.machine.run("lvcreate -q -y -s -L 64m -n somebody_elses vg00/root")
    first = etrial.backup()["generation"]
    for place, fault in PLACES.items():
        before = etrial.published()
        done = etrial.faulty(fault, "run", "etrial", signal="SIGKILL")
        assert done.rc == 128 + 9, f"{place}: the fault was not met: {done.rc} {done.stderr}"
        assert etrial.write_takes() < 5, f"{place}: a lock is still held"
        # the next run removes what that one left, and then itself what it made, being ended in the same place
        done = etrial.faulty(fault, "run", "etrial", signal="SIGTERM")
        assert done.rc == 1, f"{place}: the fault was not met: {done.rc} {done.stderr}"
        assert "stopped by SIGTERM" in done.stderr, place
        assert "Traceback" not in done.stderr, place
        assert etrial.left_behind() == [], place
        assert etrial.volumes() == {"root", "somebody_elses"}, place
        after = etrial.published()
        assert before <= after, place
        # a keep of three would remove the first one, if more came of the runs that were ended than was published
        etrial.machine.run(["rm", "-rf", *(f"/backups/etrial/etrial/{name}" for name in after - before)])
    etrial.backup()
    kept = [generation["generation"] for generation in etrial.generations()]
    assert kept[1:] == [first]
    for name in kept:
        etrial.stillpoint("verify", "etrial", name)
