# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from _core.mysql import account


def test_passwords_differ_and_satisfy_the_usual_policies() -> None:
    made = {account.new_password() for _each in range(50)}
    assert len(made) == 50
    for password in made:
        assert len(password) == 40
        assert any(c.islower() for c in password) and any(c.isupper() for c in password) and any(c.isdigit() for c in password)
        assert not set(password) - set(account._ALPHABET)
