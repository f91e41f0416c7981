# SPDX-License-Identifier: GPL-3.0-or-later
"""What must be true of ETrial after the rollout: in this order, since a restore needs the backup before it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

SCENARIO = Path(__file__).resolve().parent.parent
AGENT = "/usr/local/sbin/stillpoint"


def play(playbook: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook against the scenario's machine."""
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], "--limit", "etrial", playbook, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def asked(host: Any, *words: str) -> Any:
    """Return what the agent answers as JSON."""
    with host.sudo():
        return json.loads(host.check_output(f"{AGENT} {' '.join(words)} --json"))


def rows(host: Any, query: str) -> str:
    with host.sudo():
        return str(host.check_output("mariadb -BNe %s", query)).strip()


def snapshots(host: Any) -> str:
    with host.sudo():
        return str(host.check_output("lvs --noheadings -o lv_name -S 'lv_tags=stillpoint'")).strip()


def test_what_the_role_writes_is_for_root_alone(host: Any) -> None:
    with host.sudo():
        assert host.file("/etc/stillpoint").mode == 0o700
        assert host.file("/etc/stillpoint/jobs/etrial.yml").mode == 0o600
        assert host.file("/etc/stillpoint/my.cnf").mode == 0o600


def test_the_account_has_no_privilege_on_data(host: Any) -> None:
    with host.sudo():
        grants = host.check_output("mariadb --defaults-file=/etc/stillpoint/my.cnf -BNe 'SHOW GRANTS'")
        assert "RELOAD" in grants
        assert "SELECT" not in grants and "ALL PRIVILEGES" not in grants
        assert host.run("mariadb --defaults-file=/etc/stillpoint/my.cnf -BNe 'SELECT * FROM wf_workflow.APPLICATION'").failed


def test_the_timer_waits_for_its_time(host: Any) -> None:
    timer = host.service("stillpoint@etrial.timer")
    assert timer.is_enabled and timer.is_running
    with host.sudo():
        assert host.check_output("systemctl show -P NextElapseUSecRealtime stillpoint@etrial.timer")
        assert host.check_output("systemd-analyze verify stillpoint@etrial.timer 2>&1") == ""


def test_the_timers_own_unit_takes_a_backup(host: Any) -> None:
    with host.sudo():
        host.check_output("systemctl start stillpoint@etrial.service")
    (backup,) = asked(host, "list", "etrial")
    assert backup["state"] in ("good", "unproven")
    shown = asked(host, "show", "etrial")
    assert shown["lock"]["method"] == "backup_stage"
    assert [tree["source"] for tree in shown["trees"]] == ["/var/lib/mysql", "/opt/processmaker"]
    with host.sudo():
        assert host.file(backup["path"]).mode == 0o700
    assert snapshots(host) == ""


def test_the_unit_backs_up_what_systemd_has_mounted_onto_itself(host: Any) -> None:
    job = "name: etc\nfiles: [/etc]\nrepository: /backups\n"
    with host.sudo():
        host.check_output("umask 077; printf %s > /etc/stillpoint/jobs/etc.yml", job)
        host.check_output("systemctl start stillpoint@etc.service")
        host.check_output("test -e /backups/etrial/etc/latest/files/etc/lvm/lvm.conf")
        host.check_output("rm -r /etc/stillpoint/jobs/etc.yml /backups/etrial/etc")
    assert snapshots(host) == ""


def test_the_fleets_table_has_it(host: Any) -> None:
    done = play("stillpoint.backup.status")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"etrial  etrial  {asked(host, 'list', 'etrial')[0]['generation']}" in done.stdout


def test_the_newest_backup_is_read_again_by_its_timer_and_by_the_fleets_playbook(host: Any) -> None:
    timer = host.service("stillpoint-verify@etrial.timer")
    assert timer.is_enabled and timer.is_running
    with host.sudo():
        assert host.check_output("systemctl show -P NextElapseUSecRealtime stillpoint-verify@etrial.timer")
        assert host.check_output("systemd-analyze verify stillpoint-verify@etrial.timer 2>&1") == ""
        host.check_output("systemctl start stillpoint-verify@etrial.service")
    assert asked(host, "show", "etrial")["verified"]["ok"] is True
    done = play("stillpoint.backup.verify")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every checksum is right" in done.stdout


def test_what_a_crash_left_has_no_link_by_uuid_and_goes_at_boot(host: Any) -> None:
    assert host.service("stillpoint-clean.service").is_enabled
    name = "stillpoint-20260101t020000-0a1b-0"
    with host.sudo():
        host.check_output(f"lvcreate -qq -y -s -L 64m --addtag stillpoint --addtag stillpoint.boot=another -n {name} vg00/root")
        assert "by-uuid" in host.check_output("udevadm info -q symlink /dev/vg00/root")
        assert "by-uuid" not in host.check_output(f"udevadm info -q symlink /dev/vg00/{name}")
        host.check_output("systemctl start stillpoint-clean.service")
    assert snapshots(host) == ""


def test_two_modules_in_a_play_take_a_backup(host: Any) -> None:
    done = play(str(SCENARIO / "two_modules.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    with host.sudo():
        result = json.loads(host.file("/run/two_modules.json").content_string)
        manifest = host.file(result["copy"]["path"] + "/manifest.json")
        assert json.loads(manifest.content_string)["time"] == result["point"]["time"]
        assert host.file(result["copy"]["path"] + "/mysql/ibdata1").is_file
        assert host.file(result["copy"]["path"] + "/files/opt/processmaker/config/app.php").is_file
    assert snapshots(host) == ""


def test_a_restore_that_nobody_confirms_changes_nothing(host: Any) -> None:
    done = play("stillpoint.backup.restore")
    assert done.returncode != 0
    assert "Nothing was changed" in done.stdout + done.stderr
    assert host.service("mariadb").is_running


def test_a_generation_that_does_not_exist_is_refused(host: Any) -> None:
    done = play("stillpoint.backup.restore", "-e", "stillpoint_generation=2000-01-01T00-00-00Z", "-e", "stillpoint_confirm=true")
    assert done.returncode != 0
    assert "2000-01-01T00-00-00Z" in done.stdout + done.stderr
    assert host.service("mariadb").is_running


def test_what_was_lost_comes_back(host: Any) -> None:
    documents = rows(host, "SELECT COUNT(*) FROM wf_workflow.APP_DOCUMENT")
    with host.sudo():
        files = host.check_output("find /opt/processmaker -type f ! -name '*.log' | wc -l")
        host.check_output("mariadb -e 'DROP DATABASE wf_workflow; DROP DATABASE rp_workflow'")
        host.check_output("rm -rf /opt/processmaker/shared")
    done = play("stillpoint.backup.restore", "-e", "stillpoint_confirm=true")
    assert done.returncode == 0, done.stdout + done.stderr
    assert rows(host, "SELECT COUNT(*) FROM wf_workflow.APP_DOCUMENT") == documents
    assert rows(host, "SELECT NAME FROM rp_workflow.USERS WHERE ID = 2") == "Zoë"
    with host.sudo():
        assert host.check_output("find /opt/processmaker -type f ! -name '*.log' | wc -l") == files
        assert host.check_output("ls -d /var/lib/mysql.replaced-* /opt/processmaker.replaced-*").count("\n") == 1


def test_what_was_rolled_out_is_taken_off_again_and_backups_and_replaced_data_stay(host: Any) -> None:
    done = play("stillpoint.backup.remove")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/usr/local/backups/etrial/etrial" in done.stdout and "/var/lib/mysql.replaced-" in done.stdout
    with host.sudo():
        left = "find /usr/local/sbin /etc /var/lib/systemd -name '*stillpoint*'"
        assert host.check_output(left) == ""
        assert host.check_output("ls /usr/local/backups/etrial/etrial/latest/manifest.json")
    assert rows(host, "SELECT COUNT(*) FROM mysql.global_priv WHERE User LIKE 'stillpoint%'") == "0"
