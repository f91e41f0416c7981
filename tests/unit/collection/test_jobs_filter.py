# SPDX-License-Identifier: GPL-3.0-or-later
"""How the role's jobs are checked before they reach a host."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ansible")

from ansible.errors import AnsibleFilterError  # noqa: E402
from ansible_collections.stillpoint.backup.plugins.filter.jobs import jobs  # noqa: E402

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
