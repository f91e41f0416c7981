# SPDX-License-Identifier: GPL-3.0-or-later
"""Option files mean what the server's own clients take them to mean."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterator

import pytest
from _core.dump import client
from _core.host.errors import StillpointError, UsageError
from _core.mysql import connection, option_file
from _core.mysql.connection import Login, Session
from real_server import RealServer, needed, real_server

PASSWORD = 'a#b\\c "d\' é€ '  # with a space at its end
PLAIN = "secret"

# text of the option file, where %s is the socket; the account that it logs in as
ACCEPTED = {
    "double quotes, an escape and a comment": ('[client]\nuser=odd\npassword = "a#b\\\\c \\"d\' é€ " # production\nsocket=%s\n', "odd"),
    "escapes without quotes": ("[client]\nuser=odd\npassword=\"a#b\"\npassword='a#b\\\\c \"d\\' é€\\s'\nsocket=%s\n", "odd"),
    "a comment after a value": ("[client]\nuser=plain # who\npassword=secret # old\nsocket=%s#here\n", "plain"),
    "nothing after an unquoted sign": ("[client]\nuser=plain\npassword=secret#b\nsocket=%s\n", "plain"),
    "semicolons and blanks": ("; [mysqld]\n  [client]  ; all\n  user =  plain\n\tpassword\t=\tsecret\n socket= %s \n", "plain"),
    "two sections of one name": ("[client]\nuser=nobody\npassword=secret\n[mysqld]\nuser=mysql\n[client]\nuser=plain\nsocket=%s\n", "plain"),
    "one key twice": ("[client]\nuser=plain\npassword=wrong\npassword=secret\nsocket=%s\n", "plain"),
    "MariaDB's own section alone": ("[client-mariadb]\nuser=plain\npassword=secret\nsocket=%s\n", "plain"),
    "the section of client and server": ("[client-server]\nsocket=%s\n[client]\nuser=plain\npassword=secret\n", "plain"),
    "names with underscores, a loose one": ("[client]\nloose_user=plain\npassword=secret\nloose-no-such-thing=1\nsocket=%s\n", "plain"),
    "a name cut short": ("[client]\nuser=plain\npass=secret\nsocket=%s\n", "plain"),
    "an included directory first": ("!includedir DIRECTORY\n[client]\nsocket=%s\n", "plain"),
    "an included file last": ("[client]\nuser=nobody\nsocket=%s\n!include DIRECTORY/a.cnf\n", "plain"),
    "a socket beside host and port": ("[client]\nuser=plain\npassword=secret\nhost=localhost\nport=3307\nsocket=%s\n", "plain"),
    "an empty password": ('[client]\nuser=open\npassword=""\nsocket=%s\n', "open"),
}
REFUSED = {
    "no section": "user=plain\npassword=secret\nsocket=%s\n",
    "a section without an end": "[client\nuser=plain\npassword=secret\nsocket=%s\n",
    "a wrong password": "[client]\nuser=plain\npassword='secret \nsocket=%s\n",
    "the server's section alone": "[mysqld]\nuser=plain\npassword=secret\nsocket=%s\n",
}


def marked(test):
    for mark in needed:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def server() -> Iterator[RealServer]:
    with real_server() as it:
        with Session(it.login) as session:
            for name, password in (("odd", PASSWORD), ("plain", PLAIN), ("open", "")):
                session.rows("CREATE USER %s@localhost IDENTIFIED BY %s", (name, password))
        yield it


@pytest.fixture(params=["my_print_defaults", "its rules"])
def reader(request, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "its rules":
        monkeypatch.setattr(option_file.shutil, "which", lambda name, **_where: None if name == "my_print_defaults" else shutil.which(name))
    return str(request.param)


def written(tmp_path: Path, text: str, socket: str) -> Path:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a.cnf").write_text("[client]\nuser=plain\npassword=secret\n")
    (tmp_path / "conf.d" / "ignored.txt").write_text("[client]\nuser=nobody\n")
    file = tmp_path / "my.cnf"
    file.write_text(text.replace("DIRECTORY", str(tmp_path / "conf.d")) % socket, encoding="utf-8")
    file.chmod(0o600)
    return file


def who(program: str, file: str) -> str:
    """Return the account that a client of the server logs in as with an option file; "" where it is refused."""
    said = subprocess.run([program, "--defaults-file=" + file, "-N", "-e", "SELECT SUBSTRING_INDEX(USER(), '@', 1)"], capture_output=True, text=True)
    return said.stdout.strip() if said.returncode == 0 else ""


@marked
@pytest.mark.parametrize("case", sorted(ACCEPTED))
def test_what_the_servers_client_accepts_is_accepted_by_all_that_log_in(server: RealServer, reader: str, tmp_path: Path, case: str) -> None:
    text, account = ACCEPTED[case]
    file = str(written(tmp_path, text, server.top + "/s"))
    assert who("mariadb", file) == account
    login = Login(config_file=file)
    with Session(login) as session:
        assert session.value("SELECT SUBSTRING_INDEX(USER(), '@', 1)") == account
    with client.option_file(login) as made:  # for the dump, the load and the archive
        assert who("mariadb", made) == account
        assert oct(os.stat(made).st_mode) == "0o100600"


@marked
@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_the_servers_client_refuses_is_refused_in_a_sentence_without_a_value(server: RealServer, reader: str, tmp_path: Path, case: str) -> None:
    file = str(written(tmp_path, REFUSED[case], server.top + "/s"))
    assert who("mariadb", file) != "plain"
    with pytest.raises(StillpointError) as refused:
        Session(Login(config_file=file))
    assert file in str(refused.value) or "option file" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_what_is_written_for_a_client_is_read_back_as_it_was(tmp_path: Path, reader: str) -> None:
    options = {"user": "odd", "password": PASSWORD + "\nmore\t", "socket": "/run/a b#c.sock", "ssl-verify-server-cert": "1"}
    file = tmp_path / "client.cnf"
    file.write_text(option_file.text(options), encoding="utf-8")
    assert option_file.read(str(file)) == {**options, "password": options["password"]}


def test_an_option_file_that_everybody_may_write_is_refused_as_clients_ignore_it(tmp_path: Path) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nuser=plain\npassword=secret\n")
    file.chmod(0o666)
    with pytest.raises(UsageError, match="is writable for everybody, so that the server's clients ignore it"):
        option_file.read(str(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ssl-ca=/etc/ca.pem", {"ca": "/etc/ca.pem", "check_hostname": False}),
        ("ssl_ca=/etc/ca.pem\nssl-verify-server-cert", {"ca": "/etc/ca.pem", "check_hostname": True}),
        ("ssl", {"check_hostname": False}),
        ("ssl-mode=VERIFY_IDENTITY\nssl-ca=/etc/ca.pem", {"ca": "/etc/ca.pem", "check_hostname": True}),
        ("ssl-ca=/etc/ca.pem\nskip-ssl", None),
    ],
)
def test_tls_is_used_as_the_option_file_asks_for_it(tmp_path: Path, text: str, expected) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\nhost=db1\n" + text + "\n")
    file.chmod(0o600)
    assert connection._arguments(Login(config_file=str(file))).get("ssl") == expected


@pytest.mark.parametrize(
    ("text", "more", "expected"),
    [
        ("host=db1", {}, ("db1", 3306)),
        ("host=db1\nport=3307", {"login_port": 3308}, ("db1", 3308)),
        ("protocol=tcp", {}, ("localhost", 3306)),
        ("socket=/run/a.sock", {"login_host": "db2"}, ("db2", 3306)),
        ("socket=/run/a.sock", {"login_host": "db2", "login_unix_socket": "/run/b.sock"}, ("/run/b.sock", None)),
        ("host=db1\nport=3307", {"login_unix_socket": "/run/b.sock"}, ("/run/b.sock", None)),
    ],
)
def test_what_the_job_says_goes_before_what_the_option_file_says(tmp_path: Path, text: str, more: dict, expected: tuple) -> None:
    file = tmp_path / "my.cnf"
    file.write_text("[client]\n" + text + "\n")
    file.chmod(0o600)
    found = connection._arguments(Login(config_file=str(file), **more))
    assert (found.get("unix_socket") or found.get("host"), found.get("port")) == expected
