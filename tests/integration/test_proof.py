# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof: a server starts on the snapshot of a backup, stands where it should, and finds its tables well; or the backup is bad."""

from __future__ import annotations

import json

import pytest
from etrial import Etrial

# What the scratch server may write to, as the kernel sees it, kept while it runs.
LOOK = """
    def look(_pid):
        import subprocess
        pid = subprocess.run(['pgrep', '-f', 'mariadbd --no-defaults'], stdout=subprocess.PIPE, text=True).stdout.split()[0]
        with open('/root/scratch.json', 'w') as file:
            import json
            json.dump({'mounts': open('/proc/%s/mountinfo' % pid).read(), 'status': open('/proc/%s/status' % pid).read(),
                       'sockets': subprocess.run(['ss', '-tlnp'], stdout=subprocess.PIPE, text=True).stdout}, file)
    at('scratch server recovered', look)
"""

# Garbage in pages of a table that nobody has written to for long, after the copy.
BREAK = """
    def break_pages(mounted):
        path = mounted + '/var/lib/mysql/wf_workflow/APP_HISTORY.ibd'
        with open(path, 'r+b') as file:
            for page in range(6, os.path.getsize(path) // 16384):
                file.seek(page * 16384 + 300)
                file.write(b'garbage' * 100)
    at('mounted', break_pages, 2)  # the first time to be copied, the second to be proven
"""

# Tables whose one row keeps its text on pages of its own, which only their server can read; the restart leaves nothing of them in the redo log.
UNREADABLE = """
set -e
echo "1;$(openssl rand -hex 32)" > /etc/mysql/keys.txt
chown mysql /etc/mysql/keys.txt; chmod 400 /etc/mysql/keys.txt
cat > /etc/mysql/conf.d/keys.cnf <<'END'
[mariadb]
plugin_load_add = file_key_management
file_key_management_filename = /etc/mysql/keys.txt
innodb_encrypt_log = ON
END
systemctl restart mariadb
mariadb <<'END'
CREATE DATABASE probe; USE probe; SET group_concat_max_len = 1000000;
CREATE TABLE secret (i INT PRIMARY KEY, t LONGTEXT) ENGINE=InnoDB ENCRYPTED=YES;
CREATE TABLE packed (i INT PRIMARY KEY, t LONGTEXT) ENGINE=InnoDB PAGE_COMPRESSED=1;
CREATE TABLE zipped (i INT PRIMARY KEY, t LONGTEXT) ENGINE=InnoDB ROW_FORMAT=COMPRESSED KEY_BLOCK_SIZE=8;
INSERT INTO secret SELECT 1, GROUP_CONCAT(SHA2(seq, 512) SEPARATOR '') FROM seq_1_to_1000;
INSERT INTO packed SELECT * FROM secret; INSERT INTO zipped SELECT * FROM secret;
END
systemctl restart mariadb
"""
BREAK_LONG_COLUMNS = """
    def break_pages(mounted):
        for name, page in (('secret', 16384), ('packed', 16384), ('zipped', 8192)):
            with open(mounted + '/var/lib/mysql/probe/%s.ibd' % name, 'r+b') as file:
                file.seek(6 * page + 100)
                file.write(b'torn' * 10)
    at('mounted', break_pages, 2)  # the first time to be copied, the second to be proven
"""

# One bit, as a disk does it: size and times stay.
FLIP = """
import os, sys
with open(sys.argv[1], 'r+b') as file:
    status = os.fstat(file.fileno())
    file.seek(90000)
    byte = file.read(1)[0]
    file.seek(90000)
    file.write(bytes([byte ^ 1]))
os.utime(sys.argv[1], ns=(status.st_atime_ns, status.st_mtime_ns))
"""

# A server that lacks something of the host.
NO_LIBRARY = """
    from stillpoint.mysql import scratch
    with open('/usr/local/bin/without', 'w') as file:
        file.write('#!/bin/sh\\necho error while loading shared libraries: libnothing.so >&2\\nexit 127\\n')
    os.chmod('/usr/local/bin/without', 0o755)
    scratch.Settings.find_program = lambda settings: '/usr/local/bin/without'
"""

# How much room the repository takes, before the server on the copy writes.
USED = "df -B1 --output=used /backups"
LOOK_AT_ROOM = f"""
    import subprocess
    at('prove', lambda _about: print('used with the copy: ' + subprocess.getoutput({USED!r}).split()[-1], file=sys.stderr))
"""

DIE = "at('scratch server recovered', die)"


def log_lines(etrial: Etrial) -> str:
    """Return what the production server has logged."""
    return etrial.machine.run("journalctl -u mariadb -o cat; cat /var/log/mysql/error.log 2>/dev/null; true").stdout


@pytest.mark.state("binlog")
def test_under_load_a_server_recovers_the_snapshot_to_the_recorded_coordinates_and_touches_nothing_else(etrial: Etrial) -> None:
    etrial.small_job("verify: {server: true, tables: all}\n")
    planned = etrial.stillpoint("plan", "etrial").stdout
    assert "proof       /usr/sbin/mariadbd starts on the snapshot after the copy; CHECK TABLE: all tables" in planned
    logged = log_lines(etrial)
    with etrial.load():
        done = etrial.faulty(LOOK, "run", "etrial", "--json")
        assert done.rc == 0, done.stderr
        assert log_lines(etrial) == logged
    summary = json.loads(done.stdout)
    proof = summary["proof"]
    assert proof["ok"] is True
    assert proof["recovery"]["crash_recovery"] is True
    assert proof["recovery"]["errors"] == []
    assert proof["prepared"] == 0
    assert proof["program"] == "/usr/sbin/mariadbd"
    position, coordinates = proof["position"], summary["coordinates"]
    assert position["expected"]["position"] == coordinates["position"]
    recovered = (position["recovered"]["file"], position["recovered"]["position"])
    assert recovered == (coordinates["file"], coordinates["position"]) or position["between"]["transactional"] == 0
    assert position["between"] is None or position["between"]["read_from"] == "the snapshot"
    assert proof["tables"]["checked"] > 30
    assert proof["tables"]["complaints"] == []
    seen = json.loads(etrial.machine.run(["cat", "/root/scratch.json"]).stdout)
    writable = {line.split()[4] for line in seen["mounts"].splitlines() if "rw" in line.split()[5].split(",")}
    assert {path.split("scratch-")[0] for path in writable} == {"/var/lib/mysql", "/run/stillpoint/"}
    assert "CapEff:\t0000000000000000" in seen["status"]
    assert seen["sockets"].count("mariadbd") == 1, "the scratch server listens on the network"
    assert etrial.left_behind() == []
    (generation,) = etrial.generations()
    assert (generation["state"], generation["proof"]["ok"]) == ("good", True)
    assert "passed" in etrial.stillpoint("show", "etrial").stdout

    etrial.small_job("verify: {server: true, tables: changed}\n")
    etrial.sql("INSERT INTO rp_workflow.USERS VALUES (3, 'Ana'); FLUSH TABLES rp_workflow.USERS FOR EXPORT; UNLOCK TABLES")
    again = etrial.backup()["proof"]["tables"]
    assert again["since"] == summary["generation"]
    assert 0 < again["checked"] < proof["tables"]["checked"]
    assert again["checked"] + again["unchanged"] + len(again["unchecked"]) >= proof["tables"]["checked"]


def test_a_broken_page_on_the_snapshot_fails_the_proof_and_the_backup_is_kept_and_counts_for_nothing(etrial: Etrial) -> None:
    etrial.job("name: etrial\nmysql: {method: snapshot}\nrepository: /backups\nverify: {server: true}\nkeep: {last: 1}\n")
    good = etrial.backup()
    done = etrial.faulty(BREAK, "run", "etrial")
    assert done.rc == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "its proof failed and it is marked as bad" in last
    assert "wf_workflow.APP_HISTORY" in last
    bad, kept = etrial.generations()
    assert (bad["state"], kept["state"], kept["generation"]) == ("bad", "good", good["generation"])
    assert "APP_HISTORY" in bad["reason"]
    assert "failed" in etrial.stillpoint("show", "etrial", bad["generation"]).stdout
    # nothing puts it back that was not told to, and then it says what it is
    assert good["generation"] in etrial.stillpoint("restore", "etrial", "--dry-run").stdout
    named = etrial.stillpoint("restore", "etrial", bad["generation"], "--dry-run")
    assert "its proof failed" in named.stdout
    assert etrial.left_behind() == []


def test_tables_that_only_their_server_can_read_are_read_to_the_end_of_their_long_columns(etrial: Etrial) -> None:
    etrial.machine.run(UNREADABLE, timeout=180)
    etrial.job("name: etrial\nmysql: {method: snapshot}\nrepository: /backups\nverify: {server: true, tables: all}\n")
    assert etrial.backup()["proof"]["ok"] is True
    done = etrial.faulty(BREAK_LONG_COLUMNS, "run", "etrial")
    assert done.rc == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "finds 3 of its tables damaged" in last
    for table in ("probe.packed", "probe.secret", "probe.zipped"):
        assert table in etrial.stillpoint("show", "etrial", "--json", etrial.generations()[0]["generation"]).stdout


def test_a_proof_that_can_not_be_done_leaves_the_backup_unproven_and_says_why(etrial: Etrial) -> None:
    etrial.job("name: etrial\nmysql: {method: snapshot}\nrepository: /backups\nverify: {server: true, tables: none}\n")
    done = etrial.faulty(NO_LIBRARY, "run", "etrial")
    assert done.rc == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "counts as unproven, as its proof could not be done: the server does not start" in last
    assert "libnothing.so" in last
    (generation,) = etrial.generations()
    assert (generation["state"], generation["proof"]["ok"]) == ("unproven", None)
    assert etrial.left_behind() == []


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_a_run_that_is_ended_while_it_proves_leaves_no_server(etrial: Etrial, signal: str) -> None:
    etrial.job("name: etrial\nmysql: {method: snapshot}\nrepository: /backups\nverify: {server: true, tables: none}\n")
    done = etrial.faulty(DIE, "run", "etrial", signal=signal)
    assert done.rc == (1 if signal == "SIGTERM" else 128 + 9), done.stderr
    etrial.machine.run("for i in $(seq 50); do pgrep -f '[m]ariadbd --no-defaults' || exit 0; sleep 0.1; done; exit 1")
    if signal == "SIGKILL":
        etrial.stillpoint("clean")
    assert etrial.machine.run("ls -d /run/stillpoint/scratch-* /run/stillpoint/mount-* 2>/dev/null || true").stdout == ""
    assert etrial.volumes() == {"root"}
    assert etrial.generations() == []


def test_a_backup_in_the_repository_is_proven_on_a_copy_that_shares_its_blocks_and_a_bit_that_flips_in_it_later_is_found(etrial: Etrial) -> None:
    etrial.machine.run("mkfs.xfs -q /dev/disk/by-id/virtio-spare && mount /dev/disk/by-id/virtio-spare /backups && chmod 700 /backups")
    etrial.small_job()
    summary = etrial.backup()
    assert etrial.generations()[0]["state"] == "unproven"
    before = int(etrial.machine.run(USED).stdout.split()[-1])
    done = etrial.faulty(LOOK_AT_ROOM, "verify", "etrial", "--server", "--json", timeout=600)
    assert done.rc == 0, done.stderr
    grown = int(done.stderr.split("used with the copy: ")[1].split()[0]) - before
    (copied,) = (tree["bytes"] for tree in summary["trees"] if tree["name"] == "mysql")
    assert grown < copied / 4
    found = json.loads(done.stdout)
    proof = found["proof"]
    assert (found["ok"], proof["ok"], proof["of"]) == (True, True, "a copy of the backup")
    assert proof["tables"]["checked"] > 30
    assert etrial.generations()[0]["state"] == "good"
    assert etrial.left_behind() == []
    table = summary["path"] + "/mysql/wf_workflow/APP_HISTORY.ibd"
    etrial.machine.run(["python3", "-c", FLIP, table])
    done = etrial.stillpoint("verify", "etrial", check=False)
    assert done.rc == 1
    assert "mysql/wf_workflow/APP_HISTORY.ibd: contents changed" in done.stdout
    assert etrial.generations()[0]["state"] == "bad"
