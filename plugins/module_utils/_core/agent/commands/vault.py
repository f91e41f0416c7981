# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `vault`: a machine that holds other hosts' copies."""

from __future__ import annotations

import argparse
import os
import time
from datetime import datetime, timezone
from typing import Any, Callable, Dict, List, Sequence, Tuple

from ...host.errors import NotNowError, StillpointError, UsageError
from ...host.text import age, human, iso, moment, table
from ...vault import accounts, hosts, keeper, metrics
from ...vault import ledger as ledgers
from ...vault import state as states
from ...vault.layout import HostDirectory, host_directory
from ...vault.layout import hosts as all_hosts
from ...vault.ledger import Copy
from ...vault.settings import Settings, load
from ..output import PROGRAM, complain, confirm, print_json, print_lines

TEXT = "look after the copies that other hosts send to this one"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    for name, (text, _run, wants_host) in _ACTIONS.items():
        action = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        action.add_argument("host", metavar="HOST", nargs=None if wants_host else "?")
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
        action.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        for option, words in _OPTIONS.get(name, {}).items():
            action.add_argument(option, **words)


def run(arguments: argparse.Namespace) -> int:
    return _ACTIONS[arguments.action][1](arguments, load())


def _init(arguments: argparse.Namespace, settings: Settings) -> int:
    _show_secrets(arguments, hosts.init(settings, arguments.host))
    return 0


def _rekey(arguments: argparse.Namespace, settings: Settings) -> int:
    directory = host_directory(settings, arguments.host)
    confirm(arguments, "take the passwords of %s away and make new ones" % directory.host)
    _show_secrets(arguments, hosts.rekey(directory))
    return 0


def _show_secrets(arguments: argparse.Namespace, secrets: hosts.Secrets) -> None:
    """Print what a host's secrets file has to hold, once."""
    if arguments.json:
        print_json(secrets.as_dict())
    else:
        print_lines(["%s=%s" % pair for pair in secrets.as_dict().items()])
        complain("These lines are the secrets of %s and are not shown again: they belong in a file of its own, of root, with mode 0600." % secrets.host)


def _list(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.host:
        directory = host_directory(settings, arguments.host)
        ledger = ledgers.read(directory.ledger)
        copies = [_facts_of_copy(each, ledger) for each in reversed(ledger.present())]
        if arguments.json:
            print_json(copies)
        else:
            rows = [(each["arrived"], each["job"], each["generation"], each["state"], human(each["bytes"]), each["sound"], each["id"][:8]) for each in copies]
            print_lines([table(("ARRIVED", "JOB", "GENERATION", "STATE", "SIZE", "SOUND", "ID"), rows, right=(4,))])
        return 0
    _print_hosts(arguments, [_facts(each) for each in all_hosts(settings)])
    return 0


def _status(arguments: argparse.Namespace, settings: Settings) -> int:
    found = [_facts(each) for each in _asked(arguments, settings)]
    _print_hosts(arguments, found)
    if not arguments.json:
        print_lines(["%s: %s" % (each["host"], alarm) for each in found for alarm in each["alarms"]])
    return StillpointError.exit_code if any(each["alarms"] for each in found) else 0


def _check(arguments: argparse.Namespace, settings: Settings) -> int:
    options = {"accept": arguments.accept, "reject": arguments.reject, "read_data": arguments.read_data}
    if (arguments.accept or arguments.reject) and not arguments.host:
        raise UsageError("--accept and --reject are for one host: name it")
    return _rounds(arguments, settings, lambda directory: keeper.check(directory, **options))


def _prune(arguments: argparse.Namespace, settings: Settings) -> int:
    return _rounds(arguments, settings, lambda directory: keeper.prune(directory, dry_run=arguments.dry_run))


def _rounds(arguments: argparse.Namespace, settings: Settings, of_host: Callable[[HostDirectory], keeper.Round]) -> int:
    """Have the keeper look after each host that is asked for; one that fails does not keep it from the others."""
    done: List[keeper.Round] = []
    worst = 0
    for directory in _asked(arguments, settings):
        try:
            done.append(of_host(directory))
        except NotNowError as error:
            complain("%s: %s" % (PROGRAM, error))
            worst = worst or error.exit_code if arguments.host else worst
        except (StillpointError, OSError) as error:
            complain("%s: %s: %s" % (PROGRAM, directory.host, error))
            worst = getattr(error, "exit_code", 1)
    metrics.write(settings, all_hosts(settings))
    if arguments.json:
        print_json([_round_facts(each) for each in done])
    else:
        print_lines([line for each in done for line in _round_lines(arguments, each)])
    return StillpointError.exit_code if any(each.alarms for each in done) else worst


def _round_facts(done: keeper.Round) -> Dict[str, Any]:
    return {"host": done.host, "removed": list(done.removed), "put_off": done.put_off, "alarms": [each.text for each in done.alarms]}


def _round_lines(arguments: argparse.Namespace, done: keeper.Round) -> List[str]:
    word = "would be removed" if getattr(arguments, "dry_run", False) else "removed"
    count = len(done.ledger.present())
    lines = ["%s: %d copies, %s%s" % (done.host, count, human(done.bytes), "; %d %s" % (len(done.removed), word) if done.removed else "")]
    if done.put_off:
        lines.append("%s: nothing was removed: %s; the next round tries again" % (done.host, done.put_off))
    return lines + ["%s: ALARM: %s" % (done.host, each.text) for each in done.alarms]


def _freeze(arguments: argparse.Namespace, settings: Settings) -> int:
    directory = host_directory(settings, arguments.host)
    hosts.freeze(directory)
    print_lines(["%s is frozen: its client can neither read nor send until `%s vault thaw %s`" % (directory.host, PROGRAM, directory.host)])
    return 0


def _thaw(arguments: argparse.Namespace, settings: Settings) -> int:
    directory = host_directory(settings, arguments.host)
    hosts.thaw(directory)
    print_lines(["%s is served" % directory.host])
    return 0


def _retire(arguments: argparse.Namespace, settings: Settings) -> int:
    directory = host_directory(settings, arguments.host)
    before = None
    if arguments.before:
        try:
            before = moment(arguments.before).timestamp()
        except ValueError as error:
            raise UsageError("--before is %s, expected a UTC time such as 2026-11-22T02:00:00Z" % arguments.before) from error
    confirm(arguments, "take the account and the key of %s away, for good" % directory.host)
    done = hosts.retire(directory, before)
    if arguments.json:
        print_json({"path": done.path, "last_sound": [each.__dict__ for each in done.last]})
        return 0
    print_lines(["%s is retired: nothing was removed; its copies lie in %s" % (directory.host, done.path)])
    when = "before %s" % arguments.before if arguments.before else "of all"
    print_lines(["the last sound one of the job %s %s: %s, snapshot %s" % (each.job, when, each.generation, each.id[:8]) for each in done.last])
    return 0


def _asked(arguments: argparse.Namespace, settings: Settings) -> List[HostDirectory]:
    return [host_directory(settings, arguments.host)] if arguments.host else all_hosts(settings)


def _facts(directory: HostDirectory) -> Dict[str, Any]:
    """Return how a host stands, from what the last round wrote down."""
    state = states.read(directory)
    ledger = ledgers.read(directory.ledger)
    present, sound = ledger.present(), ledger.newest_sound()
    newest = max((each.arrived for each in sound), default=None)
    return {
        "host": directory.host,
        "state": "frozen by %s" % (state.frozen_by or "keeper") if directory.is_frozen else "served",
        "account": accounts.has_account(directory.settings, directory.host),
        "copies": len(present),
        "newest": _iso(present[-1].arrived) if present else None,
        "newest_sound": _iso(newest) if newest is not None else None,
        "checked": _iso(state.checked) if state.checked else None,
        "pruned": _iso(state.pruned) if state.pruned else None,
        "alarms": [each.text for each in state.alarms],
        "path": os.path.abspath(directory.path),
    }


def _facts_of_copy(copy: Copy, ledger: ledgers.Ledger) -> Dict[str, Any]:
    verdict = "yes" if copy.id in ledger.sound else "NO" if copy.id in ledger.unsound else "-"
    return {**copy.__dict__, "arrived": _iso(copy.arrived), "claimed": _iso(copy.claimed), "sound": verdict, "why": ledger.unsound.get(copy.id, "")}


def _iso(seconds: float) -> str:
    return iso(datetime.fromtimestamp(seconds, timezone.utc))


def _print_hosts(arguments: argparse.Namespace, found: Sequence[Dict[str, Any]]) -> None:
    if arguments.json:
        print_json(list(found))
        return
    if not found:
        print_lines(["the vault has no host yet: `%s vault init HOST` makes a repository for one" % PROGRAM])
        return
    now = time.time()
    rows: List[Tuple[str, ...]] = []
    for each in found:
        ages = [age(now - moment(each[key]).timestamp()) if each[key] else "-" for key in ("newest", "newest_sound", "checked")]
        rows.append((each["host"], each["state"], str(each["copies"]), *ages, str(len(each["alarms"])) if each["alarms"] else "-"))
    print_lines([table(("HOST", "STATE", "COPIES", "NEWEST", "SOUND", "CHECKED", "ALARMS"), rows, right=(2,))])


_Action = Tuple[str, Callable[[argparse.Namespace, Settings], int], bool]
_YES = {"action": "store_true", "help": "do not ask"}
_ACTIONS: Dict[str, _Action] = {
    "init": ("make a repository and an account for a host, and print its secrets once", _init, True),
    "list": ("list the hosts, or what of one host has arrived and when", _list, False),
    "status": ("show how each host stands, with its alarms; fail where there is one", _status, False),
    "check": ("look at what has arrived, compare it with its manifests, and say what is wrong", _check, False),
    "prune": ("check, and remove what the vault no longer keeps; nothing where there is an alarm", _prune, False),
    "freeze": ("take a repository out of its client's reach", _freeze, True),
    "thaw": ("let a client reach its repository again", _thaw, True),
    "rekey": ("give a host new passwords and print them once", _rekey, True),
    "retire": ("take a host's account and key away, and remove nothing", _retire, True),
}
_OPTIONS: Dict[str, Dict[str, Dict[str, Any]]] = {
    "check": {
        "--accept": {"action": "store_true", "help": "the alarms that may have their reason are known: do not raise these again"},
        "--reject": {"action": "store_true", "help": "move what is not sound aside, where restic does not see it"},
        "--read-data": {"action": "store_true", "help": "read a part of all data again now, against bit rot (default: each week)"},
    },
    "prune": {"--dry-run": {"action": "store_true", "help": "show what would be removed; remove nothing"}},
    "rekey": {"--yes": _YES},
    "retire": {"--yes": _YES, "--before": {"metavar": "TIME", "help": "name the last sound copy that arrived before this time, such as 2026-11-22T02:00:00Z"}},
}
