# SPDX-License-Identifier: GPL-3.0-or-later
"""Where data and files may lie: on which kinds of volume, through which kinds of path, on how many of them; and where not."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import jinja2
import pytest
from etrial import HOLD_UP_LVM, SMALL, Etrial
from machine import Machine

SPARE = "/dev/disk/by-id/virtio-spare"
# Four partitions of 2 GiB less a bit, for physical volumes; sizes in sectors.
PARTITIONS = f"""
import os, struct, subprocess
with open({SPARE!r}, 'r+b') as disk:
    disk.seek(446)
    for number in range(4):
        disk.write(struct.pack('<B3sB3sII', 0, bytes(3), 0x83, bytes(3), 2048 + number * 4192256, 4190208))
    disk.write(bytes([0x55, 0xAA]))
subprocess.run(['blockdev', '--rereadpt', {SPARE!r}], check=True)
subprocess.run(['udevadm', 'settle'], check=True)
"""
JOB = """
    name: etrial
    mysql: {method: snapshot}
    files: [/opt/processmaker]
    exclude: ["/core/", "/plugins/", "/translations/"]
    repository: /backups
"""
# With dashes, which device-mapper doubles, and as long as the layer "real" below an origin allows.
LONG = "f-" + "i" * 109


def shell(machine: Machine, *lines: str) -> str:
    """Run lines of shell, the first failure being the end of it."""
    return machine.run("set -e\n" + "\n".join(lines), timeout=300).stdout


def groups(machine: Machine, **partitions: str) -> None:
    """Make volume groups on partitions of the spare disk: ``data="1 2"``; an underscore in a name is a dash."""
    machine.run("python3 -", input=PARTITIONS)
    for name, numbers in partitions.items():
        devices = " ".join(f"{SPARE}-part{number}" for number in numbers.split())
        shell(machine, f"vgcreate -q {name.replace('_', '-')} {devices}")


def move_datadir(machine: Machine, directory: str, *then: str) -> None:
    """Move the server's data to a directory, and do something so that it is found under its old name."""
    shell(
        machine,
        "systemctl stop mariadb",
        f"cp -a /var/lib/mysql {directory}",
        "mv /var/lib/mysql /var/lib/mysql.before",
        *then,
        "systemctl start mariadb",
    )


def move_tree(machine: Machine, directory: str) -> None:
    """Move the application tree to a directory, and bind-mount it where it was."""
    shell(machine, f"mv /opt/processmaker {directory}", "mkdir /opt/processmaker", f"mount --bind {directory}/processmaker /opt/processmaker")


def udev_rules() -> bytes:
    """Return the rules as the role writes them."""
    template = Path(__file__).resolve().parents[2] / "roles" / "backup_client" / "templates" / "10-stillpoint.rules.j2"
    text = jinja2.Environment(trim_blocks=True, autoescape=False).from_string(template.read_text(encoding="utf-8"))
    return text.render(backup_client_mark="The role wrote this").encode()


def refused(etrial: Etrial) -> str:
    """Return the sentence by which a plan is refused. Nothing must come of a run either, but a plan is what it starts with."""
    done = etrial.stillpoint("plan", "etrial", check=False)
    assert done.rc in (1, 2), done.stdout
    assert "Traceback" not in done.stderr
    (sentence,) = done.stderr.strip().splitlines()
    return sentence


@pytest.mark.state("binlog")
def test_data_on_a_thin_xfs_volume_and_files_on_a_striped_one_of_another_group_are_one_point_in_time(etrial: Etrial) -> None:
    machine = etrial.machine
    groups(machine, vg_data="1", vg_files="2 3")
    shell(
        machine,
        "lvcreate -qq -y -L 1200m --type thin-pool -n pool vg-data",
        "lvcreate -qq -y -V 2g --thinpool pool -n db vg-data",
        f"lvcreate -qq -y -i 2 -L 1g -n {LONG} vg-files",
        f"mkfs.xfs -q /dev/vg-data/db; mkfs.ext4 -q /dev/vg-files/{LONG}",
        f"mkdir /srv/db /srv/files; mount /dev/vg-data/db /srv/db; mount /dev/vg-files/{LONG} /srv/files",
    )
    move_datadir(machine, "/srv/db/mysql", "ln -s /srv/db/mysql /var/lib/mysql")
    move_tree(machine, "/srv/files")
    etrial.job(JOB)

    shown = etrial.stillpoint("plan", "etrial").stdout
    assert "vg-data/db, xfs on /srv/db: thin snapshot in the pool vg-data/pool" in shown
    assert f"vg-files/{LONG}, ext4 on" in shown
    assert "with commits stopped from before the first until after the last" in shown
    with etrial.load():
        done = etrial.faulty(HOLD_UP_LVM, "run", "etrial", "--json")
    assert done.rc == 0, done.stderr
    assert "once more" not in done.stderr
    assert {f"lock may go: {name} frozen" for name in ("db", LONG)} <= set(done.stderr.splitlines()), done.stderr
    summary = json.loads(done.stdout)
    assert summary["lock"]["held_ms"] > 3000
    coordinates = summary["coordinates"]
    good, verdict = etrial.judge_generation(
        summary["path"], "--coordinates", f"{coordinates['file']}:{coordinates['position']}", "--binlogs", "/var/log/mysql"
    )
    assert good, verdict["violations"]
    assert verdict["rows"] > 0 and verdict["files"] > 0
    assert verdict["recovery"]["prepared"] == []
    assert 0 < summary["lock"]["skew_ms"] < summary["lock"]["held_ms"]
    assert {snapshot["pool"] for snapshot in summary["snapshots"]} == {"pool", None}
    assert etrial.left_behind() == []

    # the pool fills up while the copy lasts: the live volume is worth more than the backup
    outgrow = """
        import subprocess
        def outgrow(_about):
            full = float(subprocess.check_output(['lvs', '--noheadings', '-o', 'data_percent', 'vg-data/pool']))
            count = 'count=%d' % (1200 * (96.5 - full) / 100)
            subprocess.run(['dd', 'if=/dev/zero', 'of=/srv/db/outgrow', 'bs=1M', count, 'conv=fdatasync'], check=True)
        at('copy', outgrow)
    """
    done = etrial.faulty(outgrow, "run", "etrial")
    assert done.rc == 1
    assert "the thin pool vg-data/pool has filled up to 96." in done.stderr
    assert etrial.left_behind() == []
    assert etrial.write_takes() < 5
    assert "the thin pool vg-data/pool (1.2 GiB) is 96." in refused(etrial)


def test_ext4_with_orphans_on_raid_below_a_bind_mount_is_copied_and_half_a_set_of_snapshots_is_rolled_back(etrial: Etrial) -> None:
    machine = etrial.machine
    groups(machine, data="1 2", files="3")
    shell(
        machine,
        "lvcreate -qq -y --type raid1 -m 1 --nosync -L 1g -n db data; lvcreate -qq -y -L 1g -n tree files",
        "mkfs.ext4 -q /dev/data/db; mkfs.xfs -q /dev/files/tree",
        "mkdir /srv/db /srv/files; mount /dev/data/db /srv/db; mount /dev/files/tree /srv/files",
    )
    move_datadir(machine, "/srv/db/mysql", "mkdir /var/lib/mysql; mount --bind /srv/db/mysql /var/lib/mysql")
    move_tree(machine, "/srv/files")
    etrial.job(JOB)
    orphans = "import time; files = [open('/srv/db/orphan', 'w+b') for _ in range(1)]; files[0].write(bytes(1 << 20)); files[0].flush(); "
    orphans += "__import__('os').unlink('/srv/db/orphan'); time.sleep(600)"
    machine.run(f'setsid python3 -c "{orphans}" >/dev/null 2>&1 </dev/null & sleep 1; sync')

    # the command for one of the two fails: before the lock is taken, and under a lock that was taken first
    for tries in (3, 1):
        done = etrial.faulty(
            f"""
            from stillpoint.backup import point
            from stillpoint.lvm import volumes
            point._TRIES = {tries}
            right, fails = volumes.convert_argv, ['sh', '-c', 'sleep 4; echo no room >&2; false']
            volumes.convert_argv = lambda origin, cow: fails if origin == 'files/tree' else right(origin, cow)
            """,
            "run",
            "etrial",
        )
        assert done.rc == 1
        assert "LVM can't snapshot files/tree: no room" in done.stderr
        assert etrial.left_behind() == []
        assert etrial.generations() == []
        assert etrial.write_takes() < 5
    with etrial.load():
        summary = etrial.backup()
    good, verdict = etrial.judge_generation(summary["path"])
    assert good, verdict["violations"]
    assert "orphan cleanup" in machine.run("dmesg | grep -i orphan || true").stdout
    assert len(summary["snapshots"]) == 2
    assert etrial.left_behind() == []


def test_what_can_not_be_one_point_in_time_is_refused_by_name(etrial: Etrial) -> None:
    machine = etrial.machine
    groups(machine, data="1", broken="2 3")
    shell(
        machine,
        "lvcreate -qq -y -L 100m -n redo data; lvcreate -qq -y -L 100m -n tree broken",
        f"lvcreate -qq -y -L 100m -n {'n' * 120} data",
        f"for v in data/redo broken/tree data/{'n' * 120}; do mkfs.ext4 -q /dev/$v; mkdir -p /mnt/$v; mount /dev/$v /mnt/$v; done",
        "lvcreate -qq -y -s -L 100m -n copy data/redo; mkdir -p /mnt/copy /mnt/plain; mount -o ro /dev/data/copy /mnt/copy",
        f"mkfs.ext4 -q {SPARE}-part4; mount {SPARE}-part4 /mnt/plain",
    )

    def files(path: str, mysql: str = "") -> str:
        etrial.job(f"name: etrial\n{mysql}\nfiles: [{path}]\nrepository: /backups\n")
        return refused(etrial)

    for path, of in (("/mnt/plain", "/dev/vdb4 (ext4)"), ("/dev/shm", "tmpfs (tmpfs)")):
        assert f"the path {path} lies on {of}, which is not a logical volume of LVM" in files(path)
    assert "data/copy is itself a snapshot (of redo)" in files("/mnt/copy")
    assert f"the name of data/{'n' * 120} is too long" in files(f"/mnt/data/{'n' * 120}")
    assert "with lock none commits go on between the snapshots of vg00/root and data/redo" in files("/mnt/data/redo", "mysql: {lock: none}")

    # a disk that is gone: its volume group is read without it, and the volume on the other one goes on
    machine.run(f"dd if=/dev/zero of={SPARE}-part3 bs=1M count=1 conv=fsync; pvscan --cache >/dev/null 2>&1", check=False)
    assert "volume group broken lacks 1 of its physical volumes" in files("/mnt/broken/tree")

    shell(
        machine,
        "systemctl stop mariadb; mkdir /mnt/data/redo/redo; mv /var/lib/mysql/ib_logfile0 /mnt/data/redo/redo/; chown -R mysql: /mnt/data/redo",
        "printf '[mysqld]\\ninnodb_log_group_home_dir = /mnt/data/redo/redo\\n' > /etc/mysql/conf.d/redo.cnf; systemctl start mariadb",
    )
    etrial.small_job()
    sentence = refused(etrial)
    assert "the data directory /var/lib/mysql lies on vg00/root and the server's redo directory /mnt/data/redo/redo on data/redo" in sentence
    done = etrial.stillpoint("run", "etrial", check=False)
    assert done.rc == 1 and sentence in done.stderr
    assert etrial.left_behind() == []


def test_after_a_crash_in_a_copy_the_host_boots_from_the_origins_and_the_next_run_removes_what_was_left(etrial: Etrial) -> None:
    machine = etrial.machine
    groups(machine, data="1")
    # mounted by UUID, which the snapshots have as well
    shell(
        machine,
        "lvcreate -qq -y -L 400m -n tree data; mkfs.xfs -q /dev/data/tree; mkdir /srv/tree",
        'sed -i "s,^/dev/mapper/vg00-root,UUID=$(findmnt -no UUID /)," /etc/fstab',
        'echo "UUID=$(blkid -o value -s UUID /dev/data/tree) /srv/tree xfs defaults 0 0" >> /etc/fstab',
        "mount /srv/tree; grep -c ^UUID= /etc/fstab; sync",
    )
    etrial.job(f"name: etrial\nmysql: {{}}\nfiles: [{SMALL}, /srv/tree]\nrepository: /backups\n")
    done = etrial.faulty("at('copy', die)", "run", "etrial")
    assert done.rc == 128 + 9
    left = shell(machine, "lvs --noheadings -o lv_path @stillpoint").split()
    assert len(left) == 2

    def by_uuid() -> bool:
        return any("disk/by-uuid" in shell(machine, f"udevadm info -q symlink {device}") for device in left)

    assert by_uuid()
    machine.put(udev_rules(), "/etc/udev/rules.d/10-stillpoint.rules")
    shell(machine, "udevadm control --reload; udevadm trigger --settle --subsystem-match=block")
    assert not by_uuid()
    shell(machine, "for directory in /root /srv/tree; do echo after the snapshot > $directory/after; done; sync")
    machine.power_cut()
    machine.run("systemctl is-system-running --wait", check=False, timeout=300)
    assert set(left) == set(shell(machine, "lvs --noheadings -o lv_path @stillpoint").split())
    assert not by_uuid()
    for directory, device in (("/", "/dev/mapper/vg00-root"), ("/srv/tree", "/dev/mapper/data-tree")):
        assert shell(machine, f"findmnt -no SOURCE {directory}").strip() == device
        assert shell(machine, f"readlink -f /dev/disk/by-uuid/$(findmnt -no UUID {directory})") == shell(machine, f"readlink -f {device}")
    assert shell(machine, "cat /root/after /srv/tree/after") == "after the snapshot\n" * 2
    done = etrial.stillpoint("run", "etrial")
    assert done.stderr.count("left behind") == 2
    assert etrial.volumes() == {"root"}
    assert etrial.left_behind() == []
    assert len(etrial.generations()) == 1


UPGRADE = """
- name: Upgrade
  ansible.builtin.shell: |
    mariadb -e 'DROP DATABASE wf_workflow; CREATE DATABASE later'
    echo new > /srv/tree/version
"""
CHECK = """
- name: Look whether the application finds its documents
  ansible.builtin.command: mariadb wf_workflow -e 'SELECT 1 FROM APP_DOCUMENT LIMIT 1'
"""
POINT = """
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - stillpoint.backup.mysql_quiesce_snapshot:
        volumes: [/srv/tree]
"""


@pytest.mark.state("binlog")
def test_an_upgrade_that_fails_goes_back_to_before_it_and_so_does_a_rollback_that_was_killed(
    etrial: Etrial, playbook: Callable[..., "CompletedProcess[str]"], tmp_path: Path
) -> None:
    machine = etrial.machine
    groups(machine, data="1 2")
    shell(
        machine,
        "lvcreate -qq -y -L 1200m --type thin-pool -n pool data; lvcreate -qq -y -V 2g --thinpool pool -n db data",
        "lvcreate -qq -y -L 400m -n tree data; mkfs.ext4 -q /dev/data/db; mkfs.xfs -q /dev/data/tree; mkdir /srv/db /srv/tree",
        "printf '/dev/data/db /srv/db ext4 defaults 0 0\\n/dev/data/tree /srv/tree xfs defaults 0 0\\n' >> /etc/fstab",
        "mount /srv/db; mount /srv/tree; echo old > /srv/tree/version",
    )
    move_datadir(machine, "/srv/db/mysql", "ln -s /srv/db/mysql /var/lib/mysql")
    before = etrial.sql("CHECKSUM TABLE wf_workflow.APP_DOCUMENT EXTENDED")
    for name, text in (("upgrade", UPGRADE), ("check", CHECK)):
        (tmp_path / f"{name}.yml").write_text(text)

    def is_back() -> None:
        assert etrial.sql("CHECKSUM TABLE wf_workflow.APP_DOCUMENT EXTENDED") == before
        assert "later" not in etrial.sql("SHOW DATABASES").split()
        assert machine.run("cat /srv/tree/version").stdout == "old\n"
        # nothing of ours is on what used to be a snapshot, or a clean-up would take it; it is there at the next boot
        assert shell(machine, "lvs --noheadings -o lv_tags,lv_skip_activation data/db data/tree").split() == []
        assert etrial.left_behind() == []
        assert machine.run("ls /etc/systemd/system/mariadb.service.d/stillpoint-restore.conf", check=False).rc != 0

    arguments = ["-e", json.dumps({"stillpoint_upgrade": f"{tmp_path}/upgrade.yml", "stillpoint_check": f"{tmp_path}/check.yml"})]
    arguments += ["-e", json.dumps({"stillpoint_volumes": ["/srv/tree"]})]
    upgrade = Path(__file__).resolve().parents[2] / "playbooks" / "upgrade.yml"
    failed = playbook(upgrade, *arguments, check=False)
    assert failed.returncode == 2
    assert "data/db, data/tree went back to 20" in failed.stdout.replace("\n", " ")
    is_back()
    # the logs lie on another volume, and tell of what is no more
    assert "wf_workflow" not in shell(machine, "mariadb-binlog --no-defaults $(ls /var/log/mysql/mysql-bin.0* | tail -1)")
    assert machine.run("ls -d /var/log/mysql/mysql-bin.replaced-*/mysql-bin.index").rc == 0

    (tmp_path / "check.yml").write_text("- ansible.builtin.command: mariadb later -e 'SELECT 1'\n")
    (tmp_path / "upgrade.yml").write_text("- ansible.builtin.command: mariadb -e 'CREATE DATABASE later'\n")
    playbook(upgrade, *arguments)
    assert "later" in etrial.sql("SHOW DATABASES").split()
    assert etrial.left_behind() == []
    etrial.sql("DROP DATABASE later")

    playbook(POINT)
    etrial.sql("DROP DATABASE wf_workflow; CREATE DATABASE later")
    machine.run("echo new > /srv/tree/version")
    busy = etrial.stillpoint("rollback", "--dry-run")
    assert "data/db, mounted at /srv/db: everything that was written to it since is lost" in busy.stdout
    machine.run("systemd-run -q --unit=shell-in-the-way --working-directory=/srv/tree sleep 1000")
    busy = etrial.stillpoint("rollback", "--yes", check=False)
    assert busy.rc == 1 and "/srv/tree is in use by sleep (process" in busy.stderr and "nothing has gone back" in busy.stderr
    assert "later" in etrial.sql("SHOW DATABASES").split()
    machine.run("systemctl stop shell-in-the-way")
    # one volume is merged and the other one is not
    halfway = """
        at('merge', die, 2)
    """
    assert etrial.faulty(textwrap.dedent(halfway), "rollback", "--yes").rc == 128 + 9
    machine.power_cut()
    assert machine.run("systemctl is-active mariadb", check=False).stdout.strip() != "active"
    machine.run("stillpoint clean --kept")
    assert "finish going back" in etrial.stillpoint("rollback", "--dry-run").stdout
    etrial.stillpoint("rollback", "--yes")
    is_back()


# What has been wrong with a server for years, and a transaction that an application has prepared.
OF_OLD = """
set -e
mariadb -e "CREATE TABLE probe.t1 (a INT PRIMARY KEY) ENGINE=InnoDB; CREATE TABLE probe.t2 LIKE probe.t1"
mariadb -e "CREATE TABLE probe.m (a INT) ENGINE=MERGE UNION=(probe.gone)"
systemctl stop mariadb
cd /var/lib/mysql
rm probe/t2.ibd; cp -p probe/t1.frm probe/t9.frm; install -d -o mysql -g mysql mysql-files
systemctl start mariadb
mariadb -e "XA START 'jta-1'; INSERT INTO probe.t1 VALUES (1); XA END 'jta-1'; XA PREPARE 'jta-1'"
"""


@pytest.mark.state("binlog")
def test_what_is_wrong_with_the_server_whose_data_directory_is_the_root_of_a_volume_makes_no_backup_bad(etrial: Etrial) -> None:
    machine = etrial.machine
    groups(machine, data="1")
    shell(
        machine,
        "lvcreate -qq -y -L 1500m -n db data; mkfs.ext4 -q /dev/data/db; mkdir /srv/db; mount /dev/data/db /srv/db",
        "systemctl stop mariadb; cp -aT /var/lib/mysql /srv/db; umount /srv/db; mount /dev/data/db /var/lib/mysql",
        "chown root: /var/lib/mysql/lost+found; systemctl start mariadb",
    )
    etrial.sql("CREATE DATABASE probe")
    machine.run(OF_OLD, timeout=180)
    etrial.job("name: etrial\nmysql: {method: snapshot}\nrepository: /backups\nverify: {server: true}\n")
    for _time in range(2):
        summary = etrial.backup()
        assert summary["proof"]["ok"] is True
        known = {fault["name"]: fault["sentence"] for fault in summary["proof"]["known_faults"]}
        assert set(known) == {"lost+found", "mysql-files", "probe.m", "probe.t2", "probe.t9", "'jta-1'"}
        assert known["probe.t9"].startswith("production has the same fault, as it says itself: probe.t9: ")
        assert set(known.values()) & set(summary["warnings"])
    assert [each["state"] for each in etrial.generations()] == ["good", "good"]
    shown = etrial.stillpoint("show", "etrial").stdout
    assert all("known: %s" % sentence in shown for sentence in known.values())
    etrial.stillpoint("verify", "etrial", "--server", timeout=600)
    assert summary["generation"] in etrial.stillpoint("restore", "etrial", "--dry-run").stdout

    etrial.sql("XA ROLLBACK 'jta-1'")
    etrial.stillpoint("restore", "etrial", "--yes", timeout=600)
    assert etrial.sql("XA COMMIT 'jta-1'; SELECT a FROM probe.t1").split() == ["1"]
    assert etrial.left_behind() == []
