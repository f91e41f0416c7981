# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts of a vault: how they come, are kept out for a while, change their passwords, and go. With a real REST server and restic."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from _core.host import steps
from _core.host.errors import NotNowError, StillpointError, UsageError
from _core.vault import hosts, keeper, settings, state
from vault_server import DAY, Client, Vault, needs_vault, vault

pytestmark = needs_vault

FILES = {"files/srv/a": b"one", "files/srv/b": b"two"}


class Killed(BaseException):
    """As SIGKILL: nothing is done after it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    with vault(tmp_path_factory.mktemp("v")) as found:
        yield found


@pytest.fixture
def client(made: Vault) -> Client:
    """A host of its own for each test."""
    return made.add("host%03d" % len(made.secrets))


def owners(repository: str) -> Dict[str, Any]:
    names = ("", "config", "keys", "data", "index", "locks", "snapshots", "data/00")
    found = {name: os.stat(os.path.join(repository, name)) for name in names}
    return {name: (each.st_uid, each.st_gid, oct(stat.S_IMODE(each.st_mode))) for name, each in found.items()}


def test_a_new_host_can_send_and_its_repository_is_owned_so_that_it_can_do_no_more(client: Client) -> None:
    client.send("2026-11-22T02-00-05Z", FILES)
    vault_ids = (65534, 65534)
    assert owners(client.vault.directory(client.host).path) == {
        "": (0, 0, "0o755"),
        "config": (0, 65534, "0o640"),
        "keys": (0, 65534, "0o750"),
        **dict.fromkeys(("data", "index", "locks", "snapshots", "data/00"), (*vault_ids, "0o700")),
    }


def test_secrets_are_printed_once_and_lie_nowhere_on_the_vault(made: Vault) -> None:
    printed = made.agent("init", "web7", "--json")
    secrets = json.loads(printed.stdout)
    assert printed.returncode == 0 and set(secrets) == {"RESTIC_PASSWORD", "RESTIC_REST_USERNAME", "RESTIC_REST_PASSWORD"}
    found = [path for path in made.top.rglob("*") if path.is_file() and "generations" not in path.parts]
    for value in (secrets["RESTIC_PASSWORD"], secrets["RESTIC_REST_PASSWORD"]):
        assert len(value) >= 43 and not [path for path in found if value.encode() in path.read_bytes()]
    again = made.agent("init", "web7")
    assert again.returncode == 2 and "rekey web7" in again.stderr


def test_the_keepers_password_is_roots_alone(made: Vault) -> None:
    assert stat.S_IMODE(os.stat(made.settings.password).st_mode) == 0o600


@pytest.mark.parametrize("name", ["../x", ".x", "a/b", "", "-x", "a b", "a\nb"])
def test_a_name_that_would_lead_elsewhere_is_refused(made: Vault, name: str) -> None:
    with pytest.raises(UsageError, match="is no name of a host"):
        hosts.init(made.settings, name)


def test_a_frozen_repository_is_out_of_reach_and_comes_back_as_it_was(client: Client) -> None:
    copy = client.send("2026-11-22T02-00-05Z", FILES)
    directory = client.vault.directory(client.host)
    assert client.vault.agent("freeze", client.host).returncode == 0
    assert client.request("GET", "snapshots/")[0] == 404
    assert client.request("POST", "?create=true")[0] >= 400 and not os.path.exists(directory.served)
    with pytest.raises(NotNowError, match="is frozen and not looked at: `stillpoint vault thaw"):
        keeper.check(directory)
    assert client.vault.agent("thaw", client.host).returncode == 0
    assert copy[:8] in client.restic("snapshots").stdout
    client.send("2026-11-23T02-00-05Z", FILES)


def test_old_passwords_open_nothing_after_a_rekey(client: Client) -> None:
    client.send("2026-11-22T02-00-05Z", FILES)
    printed = client.vault.agent("rekey", client.host, "--yes", "--json")
    new = Client(client.vault, client.host, json.loads(printed.stdout))
    half = Client(client.vault, client.host, {**new.secrets, "RESTIC_PASSWORD": client.secrets["RESTIC_PASSWORD"]})
    client.vault.read_accounts(new)
    assert client.request("GET", "snapshots/")[0] == 401
    assert half.restic("snapshots", check=False).returncode == 12
    assert "22" in new.restic("snapshots").stdout


def test_a_retired_host_reaches_nothing_and_all_that_it_sent_is_kept(client: Client) -> None:
    first = client.send("2026-11-22T02-00-05Z", FILES)
    keeper.check(client.vault.directory(client.host))
    client.vault.age(2, client.host)
    client.send("2026-11-24T02-00-05Z", {**FILES, "files/srv/c": b"after the theft"})
    keeper.check(client.vault.directory(client.host))
    printed = client.vault.agent("retire", client.host, "--yes", "--json", "--before", _day_before())
    found = json.loads(printed.stdout)
    assert [each["id"] for each in found["last_sound"]] == [first]
    assert client.request("GET", "snapshots/")[0] in (401, 404)
    kept = Path(found["path"])
    assert len(list((kept / "snapshots").iterdir())) == 2 and first in (kept / "ledger").read_text()
    assert hosts.CLIENT not in "".join(json.loads(each.read_text())["username"] for each in (kept / "keys").iterdir())
    client.vault.add(client.host)  # the name is free for the machine that takes its place


def _day_before() -> str:
    import datetime

    return (datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize("step", ["rename", "renamed", "vault frozen", "vault account removed", "vault retired"])
def test_a_retirement_that_was_killed_goes_on(client: Client, step: str) -> None:
    client.send("2026-11-22T02-00-05Z", FILES)
    directory = client.vault.directory(client.host)
    killed_in(step, lambda: hosts.retire(directory))
    if directory.exists:
        hosts.retire(directory)
    assert not directory.exists
    retired = list((client.vault.top / "srv/retired").glob(client.host + ".*"))
    assert len(retired) == 1 and len(list((retired[0] / "snapshots").iterdir())) == 1
    assert client.host not in Path(client.vault.settings.accounts).read_text()


@pytest.mark.parametrize("step", ["vault host made", "rename", "renamed"])
def test_a_host_whose_making_was_killed_is_there_whole_or_can_be_made_again(made: Vault, step: str) -> None:
    host = "k-" + step.replace(" ", "-")
    killed_in(step, lambda: hosts.init(made.settings, host))
    if not made.directory(host).exists:
        made.add(host)
    else:
        made.secrets[host] = hosts.rekey(made.directory(host)).as_dict()
    made.read_accounts(made.client(host))
    made.client(host).send("2026-11-22T02-00-05Z", FILES)


def killed_in(step: str, action: Any) -> None:
    """Do something up to a step, as if killed there."""

    def die(reached: str, _about: str) -> None:
        if reached == step:
            raise Killed

    with pytest.raises(Killed), steps.listening(die):
        action()


def test_an_interrupted_retirement_is_not_undone_by_the_way(client: Client) -> None:
    directory = client.vault.directory(client.host)
    killed_in("vault frozen", lambda: hosts.retire(directory))
    for action in (hosts.thaw, hosts.freeze, hosts.rekey):
        with pytest.raises(StillpointError, match="is being retired: end that with"):
            action(directory)
    with pytest.raises(NotNowError, match="retire"):
        keeper.check(directory)
    assert state.read(directory).frozen_by == state.RETIRING


@pytest.mark.parametrize(
    "text, sentence",
    [
        ({"keep": {"last": 3}}, "counts what a client may send at will"),
        ({"keep": {"weekly": 3}}, "has no within"),
        ({"kep": {}}, "did you mean keep"),
        ({"every": "daily"}, "expected a length of time"),
        ({"directory": "srv"}, "expected an absolute path"),
        ({"hosts": {"a/b": {}}}, "is no name of a host"),
        ({"hosts": {"a": {"user": "x"}}}, "unknown key"),
        ({"quota": "much"}, "expected a size"),
    ],
)
def test_a_vaults_file_that_says_something_else_is_refused(text: Dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        settings.parse(text, "vault.yml")


def test_a_host_may_have_a_retention_of_its_own() -> None:
    found = settings.parse({"keep": {"within": "10d"}, "every": "1h", "hosts": {"db1": {"every": "1w"}}}, "vault.yml")
    assert found.of_host("db1").every == 7 * DAY and found.of_host("db1").keep.within == 10 * DAY
    assert found.of_host("db2").every == 3600


def test_a_host_that_is_no_vault_is_told_so(made: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLPOINT_VAULT", "/nonexistent/vault.yml")
    with pytest.raises(UsageError, match="this host is no vault"):
        settings.load()
