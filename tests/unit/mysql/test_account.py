# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from _core.mysql import account


def test_passwords_differ_and_satisfy_the_usual_policies() -> None:
    made = {account.new_password() for _each in range(50)}
    assert len(made) == 50
    for password in made:
        assert len(password) == 40
        assert any(c.islower() for c in password) and any(c.isupper() for c in password) and any(c.isdigit() for c in password)
        assert not set(password) - set(account._ALPHABET)


def test_the_option_file_reads_back_as_written() -> None:
    pymysql = pytest.importorskip("pymysql.optionfile")
    password = account.new_password()
    parser = pymysql.Parser(strict=False)
    parser.read_string(account.option_file("stillpoint", password, {"socket": "/run/mysqld/mysqld.sock"}))
    assert {key: parser.get("client", key) for key in ("user", "password", "socket")} == {
        "user": "stillpoint",
        "password": password,
        "socket": "/run/mysqld/mysqld.sock",
    }
