# SPDX-License-Identifier: GPL-3.0-or-later
"""The keeper's rounds, on repositories that a real restic has sent through a real REST server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import forge
import pytest
from _core.host import steps
from _core.host.errors import BusyError, NotNowError
from _core.vault import keeper, ledger, retention, state
from _core.vault.settings import Keep
from trees import awkward
from vault_server import DAY, Client, Vault, differences, needs_vault, vault, write_manifest

pytestmark = needs_vault

FILES = {"files/srv/a": b"one" * 1000, "mysql/ibdata1": os.urandom(100_000)}
KEEP = {"within": "10d", "weekly": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vault]:
    with vault(tmp_path_factory.mktemp("v")) as found:
        found.configure(keep=KEEP)
        yield found


@pytest.fixture
def client(made: Vault) -> Client:
    return made.add("host%03d" % len(made.secrets))


class Kept:
    """A host with copies that arrived long ago and lately, and hosts that are copies of it."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.ids = sent(client, [50, 49, 1])
        self.ids.append(client.send(day(20), {**FILES, "files/srv/own": b"after"}))

    def clone(self) -> Client:
        made = self._client.vault
        client = made.add("host%03d" % len(made.secrets))
        old, new = made.directory(self._client.host), made.directory(client.host)
        subprocess.run(["rm", "-rf", new.served], check=True)
        for source, target in ((old.served, new.served), (old.ledger, new.ledger), (old.state, new.state)):
            subprocess.run(["cp", "-a", source, target], check=True)
        return client


@pytest.fixture(scope="module")
def kept_long(made: Vault) -> Kept:
    return Kept(made.add("long"))


def day(number: int) -> str:
    return "2026-11-%02dT02-00-05Z" % number


def sent(client: Client, ages: List[float]) -> List[str]:
    """Send copies that arrived so many days ago, oldest first, each with a round of the keeper after it, and return their ids."""
    ids = []
    for at, (age, following) in enumerate(zip(ages, [*ages[1:], 0.0]), 1):
        ids.append(client.send(day(at), {**FILES, "files/srv/own": b"of copy %d" % at}))
        assert [each for each in checked(client) if each.split(":")[0] not in ("time", "silent")] == []
        client.vault.age(age - following, client.host)
    return ids


def checked(client: Client, **options: Any) -> List[str]:
    """Have the keeper look and return the keys of its alarms."""
    return [each.key for each in keeper.check(client.vault.directory(client.host), **options).alarms]


def there(client: Client) -> List[str]:
    return sorted(each.id for each in client.vault.directory(client.host).files()[0] if each.kind == "snapshots")


def test_what_arrives_is_written_down_once_and_found_sound(client: Client) -> None:
    name = client.send(day(1), FILES)
    assert checked(client) == [] and checked(client) == []
    found = client.vault.ledger(client.host)
    (copy,) = found.copies
    assert found.sound == {name} and (copy.job, copy.generation, copy.state, copy.hostname) == ("web", day(1), "good", client.host)
    assert abs(copy.arrived - os.stat(Path(client.vault.directory(client.host).served) / "snapshots" / name).st_mtime) < 0.01
    printed = client.vault.agent("list", client.host)
    assert day(1) in printed.stdout and "yes" in printed.stdout


def test_a_tree_with_everything_that_a_file_system_can_hold_is_found_sound(client: Client) -> None:
    tree = client.generation(day(1), FILES)
    awkward(str(tree / "files/tree"))
    write_manifest(tree)
    client.send_tree(tree, day(1))
    assert checked(client) == []
    assert len(client.vault.ledger(client.host).sound) == 1


def test_a_copy_that_did_not_get_there_whole_and_is_sent_anew_is_one_alarm_that_goes_with_it(client: Client) -> None:
    tree = client.generation(day(1), FILES)
    (tree / "mysql/ibdata1").rename(tree / "away")
    half = client.send_tree(tree, day(1))
    (tree / "away").rename(tree / "mysql/ibdata1")
    client.send_tree(tree, day(1))
    assert checked(client) == ["unsound:" + half]
    assert checked(client, reject=True) == [] and half not in there(client)


def test_a_round_reads_new_packs_alone(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.send(day(1), {"files/big": os.urandom(3 << 20)})
    checked(client)
    read: List[int] = []
    run = keeper.arrivals.Engine.run

    def counted(engine: Any, *arguments: str, **options: Any) -> Any:
        if "--read-data" in arguments:
            read.extend(each.stat().st_size for each in (Path(engine.repository) / "data").rglob("*") if each.is_file())
        return run(engine, *arguments, **options)

    monkeypatch.setattr(keeper.arrivals.Engine, "run", counted)
    client.send(day(2), {"files/big": b"", "files/small": os.urandom(100_000)})
    checked(client)
    assert 100_000 < sum(read) < 150_000
    checked(client)
    assert sum(read) < 150_000


def test_what_the_retention_no_longer_keeps_goes_and_all_else_can_be_restored(client: Client) -> None:
    ids = sent(client, [50, 49, 42, 35, 1])
    done = keeper.prune(client.vault.directory(client.host))
    assert done.alarms == () and sorted(done.removed) == sorted(ids[:4])
    assert there(client) == [ids[4]] and client.restored(ids[4]) == []
    assert client.restic("check", "--read-data").returncode == 0
    assert client.restic("prune", "--dry-run", "--no-lock", check=False).returncode == 0
    client.send(day(20), FILES)
    assert checked(client) == []
    facts = json.loads(client.vault.agent("status", client.host, "--json").stdout)[0]
    assert facts["copies"] == 2 and facts["alarms"] == [] and facts["state"] == "served"


def test_an_index_that_lies_is_replaced_by_the_keepers(client: Client) -> None:
    name = client.send(day(1), FILES)
    checked(client)
    first, second = (each.id for each in client.vault.directory(client.host).files()[0] if each.kind == "data")
    (honest,) = json.loads("[%s]" % client.restic("cat", "index", next(_indexes(client)), "--no-lock").stdout)
    swapped = {first: [], second: []}
    for each in honest["packs"]:
        swapped[first if each["id"] == second else second] += each["blobs"]
    forged = client.post("index", forge.index(client.key, swapped))
    done = keeper.prune(client.vault.directory(client.host))
    assert done.alarms == () and forged not in list(_indexes(client))
    target = client.vault.top / ("r-" + client.host)
    client.restic("restore", name, "--target", str(target))
    assert differences(target) == []


def _indexes(client: Client) -> Iterator[str]:
    return (each.id for each in client.vault.directory(client.host).files()[0] if each.kind == "index")


def test_a_dry_run_removes_nothing(kept_long: Kept) -> None:
    client, ids = kept_long.clone(), kept_long.ids
    printed = client.vault.agent("prune", client.host, "--dry-run")
    assert "2 would be removed" in printed.stdout and there(client) == sorted(ids)


def test_nothing_is_removed_of_a_host_that_has_delivered_nothing_lately(client: Client) -> None:
    ids = sent(client, [50, 49, 40])
    printed = client.vault.agent("prune", client.host)
    assert printed.returncode == 1 and "nothing sound of the job web has arrived for 40 d" in printed.stdout
    assert there(client) == sorted(ids)
    assert client.vault.agent("check", client.host, "--accept").returncode == 0
    keeper.prune(client.vault.directory(client.host))
    assert there(client) == [ids[2]]  # the newest stays, whatever its age


def test_nothing_is_removed_while_a_client_sends_and_a_lock_that_restic_did_not_make_keeps_nobody(kept_long: Kept) -> None:
    client, ids = kept_long.clone(), kept_long.ids
    client.post("locks", b"no lock at all")
    lock = json.dumps({"time": "2026-11-30T00:00:00Z", "exclusive": False, "hostname": "db1", "username": "root", "pid": 1}).encode()
    name = client.post("locks", client.key.sealed(lock))
    done = keeper.prune(client.vault.directory(client.host))
    assert done.removed == () and "its client is sending" in done.put_off and there(client) == sorted(ids)
    assert client.request("DELETE", "locks/" + name)[0] == 200
    assert len(keeper.prune(client.vault.directory(client.host)).removed) == 2


def test_a_lock_that_is_held_for_weeks_is_an_alarm(kept_long: Kept) -> None:
    client = kept_long.clone()
    client.post("locks", client.key.sealed(b'{"time": "2026-11-30T00:00:00Z", "exclusive": false, "hostname": "x", "username": "x", "pid": 1}'))
    directory = client.vault.directory(client.host)
    assert [each.key for each in keeper.prune(directory).alarms] == ["locked"]


def test_two_keepers_do_not_work_on_one_host(client: Client) -> None:
    directory = client.vault.directory(client.host)
    with directory.lock(), pytest.raises(BusyError, match="the keeper is at work on"):
        keeper.check(directory)


@pytest.mark.parametrize("fault", ["a pack is lost", "a pack is damaged", "the disk is full"])
def test_a_prune_that_fails_leaves_the_repository_served_and_an_alarm(kept_long: Kept, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client, ids = kept_long.clone(), kept_long.ids
    directory = client.vault.directory(client.host)

    def fail(engine: Any, *arguments: str, **options: Any) -> Any:
        if arguments[0] == "prune":
            raise OSError(28, "No space left on device")
        return run(engine, *arguments, **options)

    run = keeper.Engine.run
    if fault == "the disk is full":
        monkeypatch.setattr(keeper.Engine, "run", fail)
    else:
        pack = max((each for each in directory.files()[0] if each.kind == "data"), key=lambda each: each.size)
        if fault == "a pack is lost":
            os.unlink(pack.path)
        else:
            os.truncate(pack.path, pack.size - 1)
    printed = None
    try:
        keeper.prune(directory)
    except Exception as error:  # pylint: disable=broad-exception-caught
        printed = str(error)
    assert not directory.is_frozen and os.path.isdir(directory.served)
    assert state.read(directory).alarms and (printed is not None or fault != "the disk is full")
    if fault != "the disk is full":
        assert there(client) == sorted(ids)
    assert client.vault.agent("status", client.host).returncode == 1


STEPS = [
    "vault packs read",
    "vault arrivals noted",
    "rename",
    "renamed",
    "vault frozen",
    "vault index put",
    "vault leaving",
    "vault forgotten",
    "vault pruned",
    "vault adopted",
    "vault owned",
    "vault thawed",
]


def test_a_copy_that_was_removed_and_is_sent_again_goes_with_the_next_round(kept_long: Kept) -> None:
    client, ids = kept_long.clone(), kept_long.ids
    directory = client.vault.directory(client.host)
    content = (Path(directory.served) / "snapshots" / ids[0]).read_bytes()
    keeper.prune(directory)
    assert client.post("snapshots", content) == ids[0]
    done = keeper.prune(directory)
    assert done.removed == (ids[0],) and done.alarms == () and there(client) == sorted(ids[2:])


@pytest.mark.parametrize("step", STEPS)
def test_after_a_kill_at_any_stage_the_next_round_goes_on(kept_long: Kept, step: str) -> None:
    client, ids = kept_long.clone(), kept_long.ids
    directory = client.vault.directory(client.host)
    assert killed_at(step, lambda: keeper.prune(directory)), "it never came to this step"
    done = keeper.prune(directory)
    assert done.alarms == ()
    assert there(client) == sorted(ids[2:]) and not directory.is_frozen
    assert client.restored(ids[2]) == [] and client.restic("check", "--read-data").returncode == 0
    client.send(day(21), FILES)
    assert [each for each in checked(client) if each.split(":")[0] != "host"] == []


def killed_at(step: str, action: Callable[[], Any]) -> bool:
    """Do something in a process that is killed where it reaches a step, and tell whether it was."""
    child = os.fork()
    if child == 0:

        def die(reached: str, _about: str) -> None:
            if reached == step:
                os.kill(os.getpid(), signal.SIGKILL)

        with steps.listening(die):
            action()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_what_was_thrown_away_with_the_vaults_disk_is_missed(client: Client) -> None:
    ids = sent(client, [3, 2, 1])
    directory = client.vault.directory(client.host)
    earlier = client.vault.top / "earlier"
    subprocess.run(["cp", "-a", directory.served, str(earlier)], check=True)
    late = client.send(day(20), {**FILES, "files/late": b"late"})
    assert checked(client) == []
    subprocess.run(["rm", "-rf", directory.served], check=True)
    os.rename(earlier, directory.served)
    assert checked(client) == ["gone:" + late]
    assert client.restored(ids[2]) == []
    assert checked(client, accept=True) == []
    client.send(day(21), {**FILES, "files/later": b"later"})
    assert checked(client) == []


def test_bit_rot_is_found_in_the_part_that_is_read_each_week(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    client.send(day(1), {"files/big": os.urandom(1 << 20)})
    assert checked(client) == []
    monkeypatch.setattr(keeper, "READ_PARTS", 1)
    directory = client.vault.directory(client.host)
    pack = max((each for each in directory.files()[0] if each.kind == "data"), key=lambda each: each.size)
    with open(pack.path, "r+b") as file:
        file.seek(pack.size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert checked(client) == []
    client.vault.age(8, client.host)
    assert "rot" in checked(client)
    with open(pack.path, "r+b") as file:
        file.seek(pack.size // 2)
        file.write(byte)
    assert "rot" not in checked(client, read_data=True)


def test_a_person_who_has_frozen_a_host_is_not_overruled(client: Client) -> None:
    assert client.vault.agent("freeze", client.host).returncode == 0
    with pytest.raises(NotNowError, match="is frozen and not looked at"):
        keeper.prune(client.vault.directory(client.host))
    assert client.vault.agent("prune").returncode in (0, 1) and client.vault.directory(client.host).is_frozen


def test_metrics_tell_of_each_host(client: Client, tmp_path: Path) -> None:
    client.vault.configure(metrics=str(tmp_path))
    client.send(day(1), FILES)
    client.vault.agent("check", client.host)
    text = (tmp_path / "stillpoint_vault_hosts.prom").read_text()
    assert 'stillpoint_vault_copies{backup_host="%s"} 1.0' % client.host in text
    assert 'stillpoint_vault_alarms{backup_host="%s"} 0.0' % client.host in text
    assert len([line for line in text.splitlines() if line.startswith("# TYPE stillpoint_vault_copies")]) == 1


# -- retention and ledger alone


def copies(*ages: float, job: str = "web", **more: Any) -> ledger.Ledger:
    found = ledger.Ledger()
    for at, age in enumerate(ages):
        values: Dict[str, Any] = dict(claimed=0.0, generation="g%d" % at, state="good", bytes=1, files=1, manifest="m", hostname="h")
        found.copies.append(ledger.Copy(id="c%d" % at, arrived=1e9 - age * DAY, job=job, **{**values, **more}))
        found.sound.add("c%d" % at)
    return found


def kept(found: ledger.Ledger, **keep: int) -> List[str]:
    return [name for name, reasons in retention.decide(found, Keep(**{**dict(within=0, daily=0, weekly=0, monthly=0), **keep}), 1e9).items() if reasons]


def test_the_first_arrival_of_a_period_stays_however_many_follow() -> None:
    flood = copies(*([30.5] + [30.4 - n / 10000 for n in range(100)] + [0.1]))
    assert kept(flood, monthly=2) == ["c0", "c101"]


def test_the_newest_sound_copy_stays_and_what_is_not_sound_takes_no_ones_place() -> None:
    found = copies(90, 60, 30)
    found.sound = {"c1"}
    assert kept(found, monthly=1) == ["c0", "c1", "c2"]
    found.sound = {"c0", "c1"}
    assert kept(found, monthly=1) == ["c1", "c2"]


def test_a_copy_that_its_host_calls_damaged_does_not_stand_for_its_month() -> None:
    found = copies(90, 60, 60)
    found.copies[1] = ledger.Copy(**{**found.copies[1].__dict__, "state": "bad"})
    assert kept(found, monthly=1) == ["c2"]


def test_a_line_that_a_power_cut_left_half_written_is_cut_off(tmp_path: Path) -> None:
    path = str(tmp_path / "ledger")
    ledger.append(path, {"event": ledger.SOUND, "id": "a"})
    with open(path, "ab") as file:
        file.write(b'{"event": "sou')
    assert ledger.read(path).sound == {"a"}
    ledger.append(path, {"event": ledger.SOUND, "id": "b"})
    assert ledger.read(path).sound == {"a", "b"} and Path(path).read_bytes().count(b"\n") == 2


def test_a_ledger_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_text('{"event": "sound", "id": "a"}\nnonsense\n')
    with pytest.raises(Exception, match="line 2 of the ledger"):
        ledger.read(str(path))
