# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot that a writer outgrows: extended while the group has room, and otherwise a failed run that says why."""

from __future__ import annotations

from etrial import Etrial

# While the copy goes on slowly, 300 MiB are written to the origin.
WRITER = """
    import subprocess
    def outgrow(_about):
        script = 'for i in $(seq 60); do dd if=/dev/zero of=/var/tmp/outgrow bs=1M count=5 oflag=append conv=notrunc,fdatasync; sleep 0.3; done'
        subprocess.Popen(['sh', '-c', script], stderr=subprocess.DEVNULL, start_new_session=True)
    at('copy', outgrow)
"""
JOB = "name: etrial\nfiles: [/opt/slowly]\nrepository: /backups\nsnapshot_size: 128m\nbwlimit: 1m\n"


def job(etrial: Etrial) -> None:
    """Write a job whose copy takes most of a minute."""
    etrial.machine.run("mkdir /opt/slowly && head -c 40M /dev/urandom > /opt/slowly/file && sync")
    etrial.job(JOB)


def test_a_snapshot_that_fills_up_is_extended_while_the_group_has_room(etrial: Etrial) -> None:
    job(etrial)
    done = etrial.faulty(WRITER, "run", "etrial")
    assert done.rc == 0, done.stderr
    (generation,) = etrial.generations()
    shown = etrial.stillpoint("show", "etrial", "--json").stdout
    assert '"size_bytes": 134217728' not in shown
    assert etrial.stillpoint("verify", "etrial", generation["generation"]).rc == 0
    assert etrial.left_behind() == []


def test_without_room_the_run_fails_says_why_and_publishes_nothing(etrial: Etrial) -> None:
    free = int(etrial.machine.run("vgs --noheadings --units m --nosuffix -o vg_free vg00").stdout.split(".")[0])
    etrial.machine.run(f"lvcreate -q -y -an -Zn -Wn -L {free - 160}m -n filler vg00")
    job(etrial)
    done = etrial.faulty(WRITER, "run", "etrial")
    assert done.rc == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "was filled up by writes to its origin and is lost" in last
    assert "vg00" in last
    assert etrial.generations() == []
    assert etrial.left_behind() == []
