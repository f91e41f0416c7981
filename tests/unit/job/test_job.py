# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import textwrap
from typing import Any, Dict

import pytest
from _core.host.errors import UsageError
from _core.job import file, reader
from _core.job.names import job_names
from _core.job.options import BinlogOptions, Copy, Keep, MysqlOptions, Verify
from _core.job.paths import check_paths
from _core.lvm import sizes
from trees import small_disk

WHERE = "/etc/stillpoint/jobs/etrial.yml"


def etrial(**changes: Any) -> Dict[str, Any]:
    """Return the job of the reference host, with some keys changed; a key set to Ellipsis is left out."""
    mapping: Dict[str, Any] = {"name": "etrial", "mysql": {}, "files": ["/opt/processmaker"], "repository": "/backups"}
    mapping.update(changes)
    return {key: value for key, value in mapping.items() if value is not ...}


def refusal(mapping: Any) -> str:
    with pytest.raises(UsageError) as caught:
        reader.parse(mapping, WHERE)
    sentence = str(caught.value)
    assert sentence.startswith(WHERE + ": ")
    assert "\n" not in sentence
    return sentence[len(WHERE) + 2 :]


def test_the_job_of_the_design_is_accepted() -> None:
    parsed = reader.parse(
        {
            "name": "etrial",
            "mysql": {"method": "snapshot", "lock": "auto", "config_file": "/etc/stillpoint/my.cnf"},
            "files": ["/opt/processmaker"],
            "exclude": ["*.log"],
            "snapshot_size": "auto",
            "repository": "/backups",
            "keep": {"last": 3, "daily": 7, "weekly": 4, "monthly": 6},
            "schedule": "02:00",
            "notify": {"ping_url": "https://ping.example.com/abc", "command": "/usr/local/bin/tell 'the ops'"},
        },
        WHERE,
    )
    assert parsed.mysql == MysqlOptions(config_file="/etc/stillpoint/my.cnf")
    assert parsed.files == ("/opt/processmaker",)
    assert parsed.keep == Keep(last=3, daily=7, weekly=4, monthly=6)
    assert parsed.notify.command == ("/usr/local/bin/tell", "the ops")
    assert parsed.snapshot_size == sizes.Size("auto", "auto")


def test_an_empty_mysql_section_means_the_defaults_and_an_absent_one_means_no_database() -> None:
    assert reader.parse(etrial(mysql={})).mysql == MysqlOptions()
    assert reader.parse(etrial(mysql=...)).mysql is None


def test_a_mysql_key_with_nothing_behind_it_is_refused_as_it_may_mean_either() -> None:
    assert refusal(etrial(mysql=None)).startswith("mysql is empty, expected a mapping")


def test_a_job_without_database_and_files_is_refused() -> None:
    assert "nothing to back up" in refusal(etrial(mysql=..., files=...))
    assert "nothing to back up" in refusal(etrial(mysql=..., files=[]))


@pytest.mark.parametrize("key", ["name", "repository"])
def test_a_missing_key_is_named(key: str) -> None:
    assert refusal(etrial(**{key: ...})) == "the job lacks the key %s" % key


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    assert refusal(etrial(excludes=["*.log"])) == "excludes is not a key that a job has; did you mean exclude?"
    assert refusal(etrial(mysql={"lock_timeout": 3})) == "mysql.lock_timeout is not a key that a job has; did you mean lock_wait_timeout?"
    assert "known are name, mysql, files" in refusal(etrial(zzz=1))


def test_a_password_in_a_job_is_refused_and_not_repeated() -> None:
    sentence = refusal(etrial(mysql={"login_password": "geheim"}))
    assert "mysql.login_password does not belong in a job" in sentence
    assert "config_file" in sentence
    assert "geheim" not in sentence


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"files": "/opt"}, "files is '/opt', expected a list"),
        ({"files": [7]}, "files[0] is 7, expected text"),
        ({"files": ["opt"]}, "files[0] is 'opt', expected an absolute path"),
        ({"files": ["/opt/../etc"]}, "files[0] is '/opt/../etc', expected a path without '..'"),
        ({"files": ["/"]}, "files[0] is '/', expected a directory below the root"),
        ({"files": ["/opt", "/opt/"]}, "files has /opt twice"),
        ({"name": 2026}, "name is 2026, expected a name"),
        ({"name": "-x"}, "name is '-x', expected a name"),
        ({"name": "a/b"}, "name is 'a/b', expected a name"),
        ({"name": "x" * 65}, "expected a name of up to 64"),
        ({"mysql": {"lock": "fast"}}, "mysql.lock is 'fast', expected one of auto, backup_stage, instance, ftwrl, none"),
        ({"mysql": {"method": "copy"}}, "mysql.method is 'copy', expected one of snapshot, dump"),
        ({"mysql": {"split": True}}, "mysql.split is for dumps alone"),
        ({"mysql": {"method": "dump", "databases": []}}, "mysql.databases is empty"),
        ({"mysql": {"method": "dump", "databases": ["a", "a"]}}, "mysql.databases has a twice"),
        ({"mysql": {"login_port": True}}, "mysql.login_port is true, expected a whole number from 1 to 65535"),
        ({"mysql": {"lock_wait_timeout": 0}}, "mysql.lock_wait_timeout is 0, expected a whole number from 1"),
        ({"mysql": {"lock_wait_timeout": "5"}}, "mysql.lock_wait_timeout is '5', expected a whole number"),
        ({"mysql": {"check_hostname": "yes"}}, "mysql.check_hostname is 'yes', expected true or false"),
        ({"mysql": ["x"]}, "mysql is a list, expected a mapping"),
        ({"snapshot_size": "much"}, "snapshot_size is 'much', expected auto, 1g, 512m, 20%ORIGIN or 50%FREE"),
        ({"snapshot_size": True}, "snapshot_size is true, expected auto"),
        (
            {"repository": "ssh://backup@vault.example.com/backups"},
            "repository is 'ssh://backup@vault.example.com/backups', expected an absolute path on this host; "
            "repositories elsewhere are not supported yet",
        ),
        ({"repository": "backups"}, "repository is 'backups', expected an absolute path"),
        ({"keep": {"last": -1}}, "keep.last is -1, expected a whole number from 0"),
        ({"keep": {"last": 0}}, "keep keeps nothing"),
        ({"keep": {"dayly": 7}}, "keep.dayly is not a key that a job has; did you mean daily?"),
        ({"bwlimit": "fast"}, "bwlimit is 'fast', expected a rate as rsync takes it"),
        ({"bwlimit": 0}, "bwlimit is 0, expected a rate"),
        ({"exclude": ["+ secret"]}, "exclude[0] is '+ secret', expected a pattern"),
        ({"exclude": ["a\nb"]}, "expected text on one line"),
        ({"notify": {"ping_url": "ftp://x"}}, "notify.ping_url is not a URL on one line that begins with https:// or http://"),
        ({"notify": {"ping_url": "https://[::1/x"}}, "notify.ping_url is not a URL on one line that begins with https:// or http://"),
        ({"notify": {"ping_url": "https://ping:port/x"}}, "notify.ping_url is not a URL on one line that begins with https:// or http://"),
        ({"notify": {"command": "tell me"}}, "notify.command is 'tell me', expected a command that begins with the absolute path"),
        ({"notify": {"command": "/bin/tell 'me"}}, "expected a command whose quotes are closed"),
        ({"verify": True}, "verify is true, expected a mapping of server, tables"),
        ({"verify": {"server": "yes"}}, "verify.server is 'yes', expected true or false"),
        ({"verify": {"server": True, "tables": "some"}}, "verify.tables is 'some', expected one of all, changed, none"),
        ({"verify": {"tables": "all"}}, "verify.tables needs verify.server: true"),
        ({"verify": {"accept": ["shop"]}}, "verify.accept[0] is 'shop', expected a table as schema.table"),
        ({"verify": {"server": True}, "mysql": ...}, "verify.server is true, and the job has no mysql"),
        ({"verify": {"server": True}, "mysql": {"method": "dump"}}, "no server can be started on a dump"),
        ({"schedule": "02:00\nExecStart=/bin/sh"}, "schedule is '02:00\\nExecStart=/bin/sh', expected text on one line"),
    ],
)
def test_a_wrong_value_is_refused_by_key_and_with_what_is_expected(changes: Dict[str, Any], said: str) -> None:
    assert said in refusal(etrial(**changes))


def test_a_proof_is_asked_for_with_the_tables_that_it_checks() -> None:
    assert reader.parse(etrial()).verify == Verify(False, "changed")
    assert reader.parse(etrial(verify={})).verify.server is False
    assert reader.parse(etrial(verify={"server": True})).verify == Verify(True, "changed")
    assert reader.parse(etrial(verify={"accept": ["shop.t2", "old.*"]})).verify.accept == ("shop.t2", "old.*")
    assert reader.parse(etrial(verify={"server": True, "tables": "none"})).verify == Verify(True, "none")
    assert reader.parse(etrial(verify={"schedule": "weekly"})).verify == Verify(False, "changed", "weekly")


def test_a_repository_inside_what_is_backed_up_is_refused_and_the_other_way_round() -> None:
    assert "repository /opt/backups lies in /opt" in refusal(etrial(files=["/opt"], repository="/opt/backups"))
    assert "files has /backups/x, which lies in the repository /backups" in refusal(etrial(files=["/backups/x"]))
    assert reader.parse(etrial(files=["/opt"], repository="/optional")).repository == "/optional"


@pytest.mark.parametrize("value, meant", [(1320, '"22:00"'), (165, '"02:45"'), (79200, '"22:00:00"')])
def test_a_time_that_yaml_made_a_number_of_is_explained(value: int, meant: str) -> None:
    sentence = refusal(etrial(schedule=value))
    assert "without quotes" in sentence
    assert meant in sentence


def test_numbers_are_taken_as_bandwidth() -> None:
    assert reader.parse(etrial(bwlimit=5000)).bwlimit == "5000"
    assert reader.parse(etrial(bwlimit="1.5M")).bwlimit == "1.5M"


def test_binary_logs_are_archived_where_a_job_says_so() -> None:
    assert reader.parse(etrial()).binlog is None
    assert reader.parse(etrial(binlog={"archive": False})).binlog is None
    assert reader.parse(etrial(binlog={"archive": True})).binlog == BinlogOptions(True, "auto")
    assert reader.parse(etrial(binlog={"archive": True, "method": "copy"})).binlog == BinlogOptions(True, "copy")


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"binlog": {}}, "binlog lacks the key archive"),
        ({"binlog": {"archive": "yes"}}, "binlog.archive is 'yes', expected true or false"),
        ({"binlog": {"archive": True, "method": "rsync"}}, "binlog.method is 'rsync', expected one of auto, stream, copy"),
        (
            {"binlog": {"archive": True}, "mysql": {"method": "dump"}},
            "binlog has archive, and binary logs can only be replayed onto a copy of the server's files: give mysql the method snapshot, or a job "
            "of its own to each",
        ),
        ({"binlog": {"archive": True}, "mysql": ...}, "binlog archives the binary logs of a server, and the job has none: give mysql too"),
    ],
)
def test_binary_logs_can_be_asked_for_in_the_wrong_way(changes: Dict[str, Any], sentence: str) -> None:
    assert refusal(etrial(**changes)) == sentence


def test_copies_have_a_place_and_a_file_of_secrets_each() -> None:
    wanted = [{"name": "vault", "to": "rest:https://backup1.example.com:8000/db1/"}]
    wanted += [{"name": "usb", "to": "/mnt/usb", "secrets": "/root/usb", "bwlimit": "20M", "keep": {"daily": 7}}]
    assert reader.parse(etrial(copies=wanted)).copies == (
        Copy("vault", "rest:https://backup1.example.com:8000/db1", "/etc/stillpoint/secrets/vault", append_only=True),
        Copy("usb", "/mnt/usb", "/root/usb", "20M", False, Keep(daily=7)),
    )


@pytest.mark.parametrize(
    "copy, said",
    [
        ({"to": "rest:https://db1:hunter2@host/db1"}, "has an account in it"),
        ({"to": "sftp:db1:hunter2@host:/db1"}, "has an account in it"),
        ({"to": "s3:https://KEY:hunter2@host/bucket/db1"}, "has an account in it"),
        ({"to": "/mnt/usb", "password": "hunter2"}, "put the password into the secrets file of the copy"),
        ({"to": "rest:http://host/db1"}, "over the network for everybody to read"),
        ({"to": "rclone:there"}, "is no destination: expected rest:https://HOST/PATH"),
        ({"to": "--repo=hunter2"}, "is no destination"),
        ({"to": "/backups/copy"}, "lies in the repository /backups"),
        ({"to": "rest:https://host/db1", "keep": {"last": 3}}, "copies.0..keep is for a copy from which this host may remove"),
        ({"to": "/mnt/usb", "append_only": True, "keep": {"last": 3}}, "leave it to the other side, or say append_only: false"),
        ({"to": "/mnt/usb", "keep": {}}, "keeps nothing"),
    ],
)
def test_a_place_for_copies_that_would_show_a_password_or_protect_from_nothing_is_refused(copy: Dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        reader.parse(etrial(copies=[{"name": "other", **copy}]))
    assert "hunter2" not in str(caught.value)


def test_two_copies_of_one_name_or_to_one_place_are_refused() -> None:
    for one, other in (({"name": "a", "to": "/a"}, {"name": "a", "to": "/b"}), ({"name": "a", "to": "/a"}, {"name": "b", "to": "/a"})):
        with pytest.raises(UsageError, match="copies has the (name|to) /?a twice"):
            reader.parse(etrial(copies=[one, other]))


def test_a_trailing_slash_is_dropped() -> None:
    parsed = reader.parse(etrial(files=["/opt/processmaker/"], repository="//backups/"))
    assert (parsed.files, parsed.repository) == (("/opt/processmaker",), "/backups")


# --- files


@pytest.fixture
def directory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("STILLPOINT_JOBS", str(tmp_path))
    return tmp_path


def written(directory: Any, name: str, text: str, mode: int = 0o600) -> str:
    path = directory / name
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    path.chmod(mode)
    return str(path)


def loading(name_or_path: str) -> str:
    with pytest.raises(UsageError) as caught:
        file.load(name_or_path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


GOOD = "name: etrial\nmysql: {}\nrepository: /backups\n"


def test_a_job_is_found_by_name_and_by_path(directory: Any) -> None:
    path = written(directory, "etrial.yml", GOOD)
    assert file.load("etrial") == file.load(path)
    assert file.load("etrial").where == path
    assert job_names() == ["etrial"]


def test_a_job_that_does_not_exist_is_refused_with_those_that_do(directory: Any) -> None:
    assert loading("etrial").endswith("there are no jobs at all")
    written(directory, "etrial.yml", GOOD)
    assert loading("etrail").endswith("did you mean etrial?")
    assert loading("web").endswith("there are etrial")


def test_without_a_directory_of_jobs_there_are_none(directory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLPOINT_JOBS", str(directory / "missing"))
    assert job_names() == []


def test_the_file_has_to_be_called_as_the_job(directory: Any) -> None:
    written(directory, "other.yml", GOOD)
    assert "name is 'etrial', but the file is called other.yml" in loading("other")


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(directory: Any, mode: int) -> None:
    written(directory, "etrial.yml", GOOD, mode)
    assert "can be written by others" in loading("etrial")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_that_belongs_to_somebody_else_is_refused(directory: Any) -> None:
    os.chown(written(directory, "etrial.yml", GOOD), 4242, 0)
    assert "belongs to user 4242" in loading("etrial")


@pytest.mark.parametrize(
    "text, said",
    [
        (GOOD + "repository: /other\n", "line 4: the key repository is given twice"),
        ("name: etrial\nmysql: {lock: auto, lock: none}\nrepository: /b\n", "line 2: the key lock is given twice"),
        ("name: [etrial\n", "not YAML"),
        ("name: 'etrial\n", "not YAML"),
        ("", "the job is empty, expected a mapping"),
        ("- name: etrial\n", "the job is a list, expected a mapping"),
        ("name: !!python/object/apply:os.system [id]\n", "not YAML"),
        ("name: 2026-11-22\nmysql: {}\nrepository: /b\n", "name is 2026-11-22, expected a name"),
        ("on: true\n", "True is not a key that a job has"),
        (GOOD + "schedule: 22:00\n", 'write "22:00"'),
        ("name: etrial\nmysql: &a {}\nfiles: *nowhere\n", "not YAML"),
        ("name: etrial\nmysql: {}\nrepository: {{ repo }}\n", "line 3: a mapping or a list can't be a key: put a value that begins with {"),
        ("name: etrial\n? [a]\n: b\n", "line 2: a mapping or a list can't be a key"),
        (GOOD + "schedule: 2026-02-30\n", "line 4: '2026-02-30' can't be read (day is out of range for month): put it in quotes"),
        (GOOD + "bwlimit: !!int fast\n", "line 4: 'fast' can't be read"),
        (GOOD + "checksum: !!bool maybe\n", "line 4: 'maybe' can't be read"),
        (GOOD + "schedule: !!timestamp soon\n", "line 4: 'soon' can't be read"),
        (GOOD + "keep: !!map x\n", "line 4: 'x' can't be read"),
        (GOOD + "keep: " + "[" * 5000 + "\n", "too deep"),
    ],
)
def test_a_file_that_says_something_else_than_it_seems_to_is_refused(directory: Any, text: str, said: str) -> None:
    path = written(directory, "etrial.yml", text)
    sentence = loading("etrial")
    assert said in sentence
    assert path in sentence


def test_a_file_that_is_not_text_is_refused(directory: Any) -> None:
    (directory / "etrial.yml").write_bytes(b"name: \xff\xfe\n")
    (directory / "etrial.yml").chmod(0o600)
    assert "not a text file in UTF-8" in loading("etrial")


def test_paths_that_a_job_reads_from_are_checked_apart_from_its_shape(tmp_path: Any) -> None:
    parsed = reader.parse(etrial(files=[str(tmp_path / "missing")]), WHERE)
    with pytest.raises(UsageError, match="files has .*/missing, which does not exist"):
        check_paths(parsed)
    (tmp_path / "missing").write_text("")
    with pytest.raises(UsageError, match="which is not a directory"):
        check_paths(parsed)
    check_paths(reader.parse(etrial(files=[str(tmp_path)])))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
def test_a_path_in_another_is_a_file_system_of_its_own_or_refused(tmp_path: Any) -> None:
    (tmp_path / "opt").mkdir()
    outer, inner = str(tmp_path / "opt"), str(tmp_path / "opt" / "data")
    parsed = reader.parse(etrial(files=[inner, outer]), WHERE)
    for _disk in small_disk(inner):
        check_paths(parsed)
    with pytest.raises(UsageError) as caught:
        check_paths(parsed)
    assert str(caught.value) == "%s: files has %s, which lies in %s and is no file system of its own: name only one of them" % (WHERE, inner, outer)


def test_a_path_that_lies_in_another_behind_a_symbolic_link_is_refused_with_its_real_name(tmp_path: Any) -> None:
    (tmp_path / "opt").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "opt" / "link").symlink_to(tmp_path / "elsewhere")
    parsed = reader.parse(etrial(files=[str(tmp_path / "opt"), str(tmp_path / "opt" / "link")]), WHERE)
    with pytest.raises(UsageError, match="%s: files: .*opt/link lies in .*opt by its name alone.*: name it as %s/elsewhere$" % (WHERE, tmp_path)):
        check_paths(parsed)


def test_an_option_file_with_a_password_is_for_its_owner_alone(tmp_path: Any) -> None:
    options = tmp_path / "my.cnf"
    parsed = reader.parse(etrial(files=..., mysql={"config_file": str(options)}))
    with pytest.raises(UsageError, match="config_file is .*my.cnf, which is not a file"):
        check_paths(parsed)
    options.write_text("[client]\nuser = x\n")
    options.chmod(0o644)
    check_paths(parsed)
    options.write_text("[client]\nuser = x\npassword = y\n")
    with pytest.raises(UsageError, match="every user can read it: chmod 0600"):
        check_paths(parsed)
    options.chmod(0o600)
    check_paths(parsed)
