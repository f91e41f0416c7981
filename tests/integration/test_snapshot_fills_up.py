# SPDX-License-Identifier: GPL-3.0-or-later
"""A snapshot that a writer outgrows: extended while the group has room, and otherwise a failed run that says why."""

from __future__ import annotations

from etrial import Etrial

# While the copy goes on slowly, 300 MiB are written to the origin.
WRITER = """
    import subprocess
    def outgrow(_about):
        script = 'for i in $(seq 60); do dd if=/dev/zero of=OUTGROW bs=1M count=5 oflag=append conv=notrunc,fdatasync; AND; sleep 0.3; done'
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
    done = etrial.faulty(WRITER.replace("OUTGROW", "/var/tmp/outgrow").replace("AND", "true"), "run", "etrial")
    assert done.rc == 0, done.stderr
    (generation,) = etrial.generations()
    shown = etrial.stillpoint("show", "etrial", "--json").stdout
    assert '"size_bytes": 134217728' not in shown
    assert etrial.stillpoint("verify", "etrial", generation["generation"]).rc == 0
    assert etrial.left_behind() == []


def test_without_room_the_run_fails_says_why_and_publishes_nothing_and_the_machine_stays_up(etrial: Etrial) -> None:
    """On a file system that asks for a panic: nothing of a snapshot may be in memory when it overflows, so that its directories have to be read."""
    machine = etrial.machine
    machine.run("lvcreate -qq -y -L 600m -n app vg00; mkfs.ext4 -q -N 8000 /dev/vg00/app; tune2fs -e panic /dev/vg00/app >/dev/null; mkdir /opt/slowly")
    machine.run("mount /dev/vg00/app /opt/slowly; sysctl -q kernel.panic=1")
    many = "import os\nfor d in range(100):\n os.mkdir(str(d))\n for f in range(40): open('%d/%d' % (d, f), 'wb').write(b'x' * 9000)"
    machine.run(f'cd /opt/slowly; python3 -c "{many}"; sync')
    etrial.job(JOB.replace("snapshot_size: 128m", "snapshot_size: 64m"))
    free = int(machine.run("vgs --noheadings --units m --nosuffix -o vg_free vg00").stdout.split(".")[0])
    machine.run(f"lvcreate -q -y -an -Zn -Wn -L {free - 80}m -n filler vg00")
    booted = machine.run("cat /proc/sys/kernel/random/boot_id").stdout
    done = etrial.faulty(WRITER.replace("OUTGROW", "/opt/slowly/outgrow").replace("AND", "echo 3 > /proc/sys/vm/drop_caches"), "run", "etrial")
    assert done.rc == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "was filled up by writes to its origin and is lost" in last
    assert "vg00" in last
    assert machine.run("cat /proc/sys/kernel/random/boot_id").stdout == booted
    assert etrial.generations() == []
    assert etrial.left_behind() == []
