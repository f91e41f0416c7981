# SPDX-License-Identifier: GPL-3.0-or-later
"""How the role's jobs are checked before they reach a host."""

from __future__ import annotations

from typing import Any, Dict

import pytest

pytest.importorskip("ansible")

from ansible.errors import AnsibleFilterError  # noqa: E402
from ansible_collections.stillpoint.backup.plugins.filter.jobs import accounts, jobs  # noqa: E402

pytestmark = pytest.mark.cores

FILES = {"name": "files", "files": ["/opt"], "repository": "/backups"}
DATABASE = {"name": "database", "mysql": {}, "repository": "/backups"}


def test_a_job_that_is_right_is_written_as_it_is() -> None:
    assert jobs([FILES]) == [FILES]


def test_a_job_that_names_no_login_gets_the_roles_account() -> None:
    (written,) = jobs([DATABASE], "/etc/stillpoint/my.cnf")
    assert written["mysql"] == {"config_file": "/etc/stillpoint/my.cnf"}
    assert DATABASE["mysql"] == {}


@pytest.mark.parametrize("login", [{"config_file": "/root/.my.cnf"}, {"login_user": "root"}])
def test_a_job_that_names_a_login_keeps_it(login: Any) -> None:
    (written,) = jobs([{**DATABASE, "mysql": login}], "/etc/stillpoint/my.cnf")
    assert written["mysql"] == login


def test_without_an_account_the_job_logs_in_as_root() -> None:
    assert jobs([DATABASE]) == [DATABASE]


def test_a_wrong_job_is_refused_by_the_name_of_what_is_wrong() -> None:
    with pytest.raises(AnsibleFilterError, match=r"backup_client_jobs\[1\]: .*filez"):
        jobs([FILES, {"name": "b", "filez": ["/opt"], "repository": "/backups"}])


def test_an_address_that_is_none_is_refused_in_the_agents_words_and_not_repeated() -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        jobs([{**FILES, "notify": {"ping_url": "https://[::1/token"}}])
    assert str(caught.value) == "backup_client_jobs[0]: notify.ping_url is not a URL on one line that begins with https:// or http://"


def test_two_jobs_of_one_name_are_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="same name, files"):
        jobs([FILES, FILES])


def test_something_that_is_no_list_is_refused() -> None:
    with pytest.raises(AnsibleFilterError, match="not a list"):
        jobs(FILES)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given, meant",
    [
        ({"keep": {"last": "7", "daily": " 3 "}}, {"keep": {"last": 7, "daily": 3}}),
        ({"keep": {"last": 7.0}}, {"keep": {"last": 7}}),
        ({"mysql": {"login_port": "3306"}}, {"mysql": {"login_port": 3306}}),
        ({"mysql": {"desync": "yes", "check_hostname": "False"}}, {"mysql": {"desync": True, "check_hostname": False}}),
        ({"mysql": {"stop_replica": 1}}, {"mysql": {"stop_replica": True}}),
        ({"mysql": {}, "binlog": {"archive": "on"}}, {"mysql": {}, "binlog": {"archive": True}}),
        ({"checksum": "true"}, {"checksum": True}),
        ({"name": 7}, {"name": "7"}),
        ({"mysql": {"method": "dump", "databases": [2024]}}, {"mysql": {"method": "dump", "databases": ["2024"]}}),
        ({"bwlimit": 5000}, {"bwlimit": "5000"}),
        ({"bwlimit": "__omit_place_holder__0123", "exclude": ["a", "__omit_place_holder__0123"]}, {"exclude": ["a"]}),
        ({"snapshot_size": 512}, {"snapshot_size": 512}),
        ({"snapshot_size": "512"}, {"snapshot_size": "512"}),
    ],
)
def test_text_that_can_mean_nothing_but_a_number_or_a_switch_becomes_one(given: Dict[str, Any], meant: Dict[str, Any]) -> None:
    assert jobs([{**FILES, **given}]) == [{**FILES, **meant}]


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"keep": {"last": "seven"}}, "keep.last is 'seven', expected a whole number from 0"),
        ({"keep": {"last": 7.5}}, "keep.last is 7.5"),
        ({"keep": {"last": ""}}, "keep.last is '', expected"),
        ({"keep": "7"}, "keep is '7', expected a mapping"),
        ({"checksum": "perhaps"}, "checksum is 'perhaps', expected true or false"),
        ({"checksum": 2}, "checksum is 2"),
        ({"name": 1.10}, "name is 1.1"),
        ({"schedule": 1320}, 'write "22:00" if that is what you meant'),
        ({"mysql": {"login_port": "70000"}}, "login_port is 70000"),
    ],
)
def test_what_could_mean_something_else_is_refused(given: Dict[str, Any], sentence: str) -> None:
    with pytest.raises(AnsibleFilterError) as caught:
        jobs([{**FILES, **given}])
    assert sentence in str(caught.value)


OPTION_FILE = "/etc/stillpoint/my.cnf"
TWO = {"login_unix_socket": "/run/mysqld/two.sock"}


def job(name: str, mysql: Dict[str, Any], **more: Any) -> Dict[str, Any]:
    return {"name": name, "mysql": mysql, "repository": "/backups", **more}


def test_a_second_server_has_an_account_and_an_option_file_of_its_own_for_all_of_its_jobs() -> None:
    given = [job("one", {}), job("two", TWO), job("dump", {**TWO, "method": "dump"}), job("old", {"login_unix_socket": "/var/run/mysqld/mysqld.sock"})]
    written = jobs(given, OPTION_FILE, "")
    one, two = accounts(written, OPTION_FILE, "")
    nothing = dict.fromkeys(("kill", "dump", "stop_replica", "desync", "archive"), False)
    assert one == {"option_file": OPTION_FILE, "name": "stillpoint", **nothing}
    assert two == {"option_file": two["option_file"], "name": two["name"], **TWO, **nothing, "dump": True}
    assert two["option_file"].startswith("/etc/stillpoint/my-two-") and two["option_file"].endswith(".cnf")
    assert two["name"] == "stillpoint-" + two["option_file"][len("/etc/stillpoint/my-") : -len(".cnf")] and len(two["name"]) <= 32
    assert [each["mysql"]["config_file"] for each in written] == [OPTION_FILE, two["option_file"], two["option_file"], OPTION_FILE]
    assert written[1]["mysql"]["login_unix_socket"] == TWO["login_unix_socket"]


def test_the_first_servers_own_socket_is_the_first_server() -> None:
    (written,) = jobs([job("one", {"login_unix_socket": "/srv/db/s.sock"})], OPTION_FILE, "/srv/db/s.sock")
    assert written["mysql"]["config_file"] == OPTION_FILE
    assert [each["name"] for each in accounts([written], OPTION_FILE, "/srv/db/s.sock")] == ["stillpoint"]


def test_long_names_of_sockets_make_accounts_that_every_server_takes() -> None:
    given = [job(str(number), {"login_unix_socket": "/srv/%d/a-very-long-name-of.a-server.sock" % number}) for number in range(2)]
    found = accounts(jobs(given, OPTION_FILE), OPTION_FILE)
    assert len({each["name"] for each in found}) == 2 and all(len(each["name"]) <= 32 for each in found)


def test_a_second_server_named_by_its_port_is_refused_where_nobody_could_make_an_account() -> None:
    given = [job("one", {}), job("two", {"login_port": "3307", "login_host": "localhost"})]
    with pytest.raises(AnsibleFilterError, match=r"backup_client_jobs\[1\]: mysql.login_port .* name its login_unix_socket, or a config_file"):
        jobs(given, OPTION_FILE, "")
    written = jobs(given, OPTION_FILE, "", "/root/.my.cnf")
    assert written[1]["mysql"] == {"login_port": 3307, "config_file": "/etc/stillpoint/my-3307.cnf"}
    (_one, two) = accounts(written, OPTION_FILE, "")
    assert (two["login_host"], two["login_port"], two["name"]) == ("127.0.0.1", 3307, "stillpoint-3307")
    for login in ({"config_file": "/root/.my.cnf"}, {"login_user": "root"}):
        assert jobs([job("two", {"login_port": 3307, **login})], OPTION_FILE, "")[0]["mysql"] == {"login_port": 3307, **login}


def test_an_account_may_do_what_the_jobs_of_its_server_need() -> None:
    needing = {"stop_replica": "yes", "desync": True, "long_query_action": "kill"}
    given = [job("one", {**needing}, binlog={"archive": "true"}), job("two", TWO, binlog={"archive": False})]
    one, two = accounts(jobs(given, OPTION_FILE), OPTION_FILE)
    assert [one[extra] for extra in ("kill", "dump", "stop_replica", "desync", "archive")] == [True, False, True, True, True]
    assert not any(two[extra] for extra in ("kill", "dump", "stop_replica", "desync", "archive"))
