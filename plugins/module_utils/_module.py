# SPDX-License-Identifier: GPL-3.0-or-later
# Private to this collection: may change with any release.
"""The door of a module: what goes wrong behind it becomes one ``fail_json``, here and nowhere else."""

from __future__ import annotations

import importlib.util
import signal
import traceback
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, probe_interpreters_for_module, respawn_module

from ._core.host.errors import CommandError, StillpointError, Stopped
from ._core.host.reporter import Silent

# Where distributions put the Python that their packages of libraries are for: Debian and Red Hat, Red Hat 8.
_PYTHONS = ("/usr/bin/python3", "/usr/libexec/platform-python")

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _stop(number: int, frame: Any) -> None:
    """Raise Stopped for the first signal; those that follow must not cut the clean-up short. Not SIG_IGN: the programs
    that the clean-up starts would inherit it, and could not be told to end."""
    for each in _SIGNALS:
        signal.signal(each, lambda _number, _frame: None)
    raise Stopped(signal.Signals(number).name)


def failure(error: BaseException) -> Dict[str, Any]:
    """Return the arguments of ``fail_json`` for what was raised."""
    if isinstance(error, CommandError):
        return {"msg": str(error), "exit_code": error.exit_code, "cmd": error.cmd, "rc": error.rc, "stderr": error.stderr}
    if isinstance(error, StillpointError):
        return {"msg": str(error), "exit_code": error.exit_code}
    if isinstance(error, Stopped):
        return {"msg": "; ".join(filter(None, (str(error), "what had been opened was closed", error.outcome))), "exit_code": 1}
    return {
        "msg": "unexpected %s: %s (a fault in stillpoint.backup: please report it with the traceback that -vvv shows)" % (type(error).__name__, error),
        "exit_code": 1,
        "exception": traceback.format_exc(),
    }


@contextmanager
def door(module: AnsibleModule) -> Iterator[None]:
    """Turn whatever is raised inside into ``fail_json``, and SIGTERM, SIGINT and SIGHUP into a clean-up and a failure."""
    for each in _SIGNALS:
        signal.signal(each, _stop)
    try:
        yield
    except (Stopped, Exception) as error:  # pylint: disable=broad-exception-caught
        module.fail_json(**failure(error))


def have_libraries(*names: str) -> None:
    """Go on under a Python of the host's own where this one lacks a library of these and that has them all. Ansible's may be a venv's.

    Where none has them, whoever needs one says so.
    """
    if has_respawned() or all(map(importlib.util.find_spec, names)):
        return
    others = [each for each in _PYTHONS if all(probe_interpreters_for_module([each], name) for name in names)]
    if others:
        respawn_module(others[0])


class Telling(Silent):
    """Hands warnings to Ansible, which shows them when the module has ended; it has no way to show anything else."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__()
        self._module = module

    def warn(self, text: str) -> None:
        self._module.warn(text)


def difference(header: str, before: List[str], after: List[str]) -> Dict[str, str]:
    """Return the ``diff`` of a module whose work is a list of things that are there or not, one to a line."""
    return {
        "before_header": header,
        "after_header": header,
        "before": "".join("%s\n" % line for line in before),
        "after": "".join("%s\n" % line for line in after),
    }
