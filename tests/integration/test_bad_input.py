# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input and broken surroundings: one sentence, the right exit code, and nothing changed."""

from __future__ import annotations

from etrial import SMALL, Etrial
from machine import Result


def refused(done: Result, code: int, *parts: str) -> None:
    """Check that a command was refused with one sentence that has these parts."""
    last = done.stderr.strip().splitlines()[-1]
    assert done.rc == code, done.stderr
    assert last.startswith("stillpoint: "), done.stderr
    for part in parts:
        assert part in last
    assert "Traceback" not in done.stderr


def run(etrial: Etrial) -> Result:
    return etrial.stillpoint("run", "etrial", check=False)


def test_jobs_that_are_wrong_are_refused_by_name(etrial: Etrial) -> None:
    etrial.small_job("files_: [/opt]\n")
    refused(run(etrial), 2, "files_", "files")
    etrial.small_job("exclude: 3\n")
    refused(run(etrial), 2, "exclude")
    refused(etrial.stillpoint("run", "nowhere", check=False), 2, "nowhere")
    etrial.job("name: etrial\nfiles: [/opt/nothing]\nrepository: /backups\n")
    refused(run(etrial), 2, "/opt/nothing", "does not exist")
    etrial.job("name: etrial\nfiles: [/opt/processmaker]\nrepository: /opt/processmaker/backups\n")
    refused(run(etrial), 2, "/opt/processmaker/backups", "/opt/processmaker")
    etrial.job("name: etrial\nfiles: [/opt/processmaker]\nrepository: /backups/none\n")
    refused(run(etrial), 2, "/backups/none", "does not exist")
    etrial.small_job()
    refused(etrial.stillpoint("show", "etrial", "2020-01-01T00-00-00Z", check=False), 2, "2020-01-01T00-00-00Z")
    refused(etrial.stillpoint("restore", "etrial", "2020-01-01T00-00-00Z", "--yes", check=False), 2, "2020-01-01T00-00-00Z")


def test_storage_that_will_not_do_is_refused_before_any_lock(etrial: Etrial) -> None:
    machine = etrial.machine
    machine.run("mkfs.ext4 -q /dev/disk/by-id/virtio-spare && mkdir -p /srv/plain /srv/full")
    machine.run("mount /dev/disk/by-id/virtio-spare /srv/plain && mkdir /srv/plain/tree")
    etrial.job("name: etrial\nfiles: [/srv/plain/tree]\nrepository: /backups\n")
    refused(run(etrial), 1, "/srv/plain/tree", "not a logical volume")
    machine.run("mkdir -p /opt/processmaker/shared/mounted && mount -t tmpfs none /opt/processmaker/shared/mounted")
    etrial.small_job()
    refused(run(etrial), 1, "/opt/processmaker/shared/mounted", "a file system of its own")
    machine.run("umount /opt/processmaker/shared/mounted")
    machine.run("mount -t tmpfs -o size=20m none /srv/full")
    etrial.job("name: etrial\nmysql: {method: snapshot}\nrepository: /srv/full\n")
    refused(run(etrial), 1, "/srv/full", "free")
    machine.run("mount -o remount,ro,size=500m /srv/full")
    refused(run(etrial), 1, "/srv/full", "can't be written")
    machine.run("mount -o remount,rw,size=500m /srv/full")
    full_half_way = """
        import subprocess
        at('copy', lambda _about: subprocess.call(['fallocate', '-l', '498m', '/srv/full/fill']))
    """
    refused(etrial.faulty(full_half_way, "run", "etrial"), 1, "/srv/full", "full")
    assert machine.run("ls -A /srv/full/etrial/etrial").stdout.split() == [".lock"]
    free = int(machine.run("vgs --noheadings --units m --nosuffix -o vg_free vg00").stdout.split(".")[0])
    machine.run(f"lvcreate -q -y -an -Zn -Wn -L {free - 40}m -n filler vg00")
    etrial.small_job()
    general = machine.run("mariadb -e 'SET GLOBAL general_log_file = \"/var/tmp/general.log\", GLOBAL general_log = 1'")
    assert general.rc == 0
    refused(run(etrial), 1, "vg00", "free", "vg00/root")
    assert "BACKUP STAGE" not in machine.run("cat /var/tmp/general.log").stdout
    assert etrial.left_behind() == []


def test_a_server_that_cannot_be_locked_is_refused_with_the_way_out(etrial: Etrial) -> None:
    machine = etrial.machine
    etrial.sql("CREATE USER lacking@localhost IDENTIFIED BY 'right'; GRANT PROCESS ON *.* TO lacking@localhost")
    options = "[client]\nuser = lacking\npassword = {}\n"
    etrial.small_job(mysql="mysql: {method: snapshot, config_file: /etc/stillpoint/own.cnf}")
    refused(run(etrial), 2, "/etc/stillpoint/own.cnf")
    machine.put(options.format("wrong-and-secret").encode(), "/etc/stillpoint/own.cnf", mode="0600")
    done = run(etrial)
    refused(done, 1, "lacking", "password")
    assert "wrong-and-secret" not in done.stdout + done.stderr
    machine.put(options.format("right").encode(), "/etc/stillpoint/own.cnf", mode="0600")
    done = run(etrial)
    refused(done, 1, "GRANT RELOAD", "lacking")
    grant = done.stderr[done.stderr.index("GRANT ") :].splitlines()[0]
    etrial.sql(grant.rstrip(";."))
    etrial.stillpoint("plan", "etrial")
    machine.run("systemctl stop mariadb", timeout=120)
    refused(run(etrial), 75, "does not answer", "try again later")  # it may be on its way back


def test_what_is_missing_on_the_host_is_named_with_its_package(etrial: Etrial) -> None:
    etrial.small_job()
    for path, package in (
        ("/usr/bin/rsync", "rsync"),
        ("/usr/sbin/lvs", "lvm2"),
        ("/usr/lib/python3/dist-packages/pymysql", "python3-pymysql"),
        ("/usr/lib/python3/dist-packages/yaml", "python3-yaml"),
    ):
        etrial.machine.run(f"mv {path} {path}.aside")
        refused(run(etrial), 1, package)
        etrial.machine.run(f"mv {path}.aside {path}")


def test_a_second_run_of_the_same_job_is_refused_and_does_not_disturb_the_first(etrial: Etrial) -> None:
    etrial.job(f"name: etrial\nfiles: [{SMALL}]\nrepository: /backups\nbwlimit: 1m\n")
    etrial.machine.run("setsid /usr/local/sbin/stillpoint run etrial >/var/tmp/first.log 2>&1 </dev/null & "
                       "while ! ls -d /backups/etrial/etrial/.*partial >/dev/null 2>&1; do sleep 0.2; done", timeout=120)  # fmt: skip
    refused(run(etrial), 3, "etrial")
    etrial.machine.run("while pgrep -f '^/usr/bin/python3 .*/usr/local/sbin/stillpoint run' >/dev/null; do sleep 0.5; done", timeout=300)
    assert len(etrial.generations()) == 1
