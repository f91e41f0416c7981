# SPDX-License-Identifier: GPL-3.0-or-later
# Private to this collection: may change with any release.
"""Actions that last: the module is started on the host so that it does not need us, and followed from here."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from dataclasses import dataclass
from typing import Any, Dict, Iterator, Optional, Tuple

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.stillpoint.backup.plugins.module_utils._core.agent.progress import figures

# A stage's begin is said at once; how far it is, no more often than this (seconds).
SAY_EVERY = 5.0

# Of a host that can't be reached (seconds between two tries).
RETRY_EVERY = 5.0

# Besides its own limit a module needs time to clean up (seconds).
CLEAN_UP = 900

_BOOT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

display = Display()


@dataclass(frozen=True)
class Look:
    """What one look at the host has shown.

    :ivar boot: identity of the host's boot; "" when the answer did not arrive in full
    :ivar ended: the module has written its result
    :ivar progress: ``(job, {stage, done, total, time})`` of what runs there
    """

    boot: str
    ended: bool
    progress: Tuple[Tuple[str, Dict[str, Any]], ...]


def look_command(results_file: str, job: Optional[str]) -> str:
    """Return the shell command that prints the boot's identity, the module's result file, and a line for each progress file.

    One command, and no Python on the host: a look costs it next to nothing.
    """
    files = "/run/stillpoint/%s.progress" % (shlex.quote(job) if job else "*")
    return (
        "cat /proc/sys/kernel/random/boot_id; cat %s 2>/dev/null; echo; "
        'for f in %s; do test -e "$f" && echo "${f##*/} $(cat "$f" 2>/dev/null)"; done; true' % (shlex.quote(results_file), files)
    )


def seen(output: str) -> Look:
    """Return the Look in what the command printed; with a terminal in between, something else may come first."""
    found = _BOOT_ID.search(output)
    boot = found.group() if found else ""
    _end_of_line, result, *rest = ((output[found.end() :] if found else "") + "\n\n").split("\n")
    try:
        ended = "started" not in json.loads(result)  # what stands there until the module ends has that key
    except ValueError:
        ended = False
    progress = []
    for each in rest:
        name, _separator, text = each.partition(".progress ")
        try:
            state = json.loads(text)
        except ValueError:
            continue  # gone between the test and the cat, or an empty line
        progress.append((name, state))
    return Look(boot, ended, tuple(progress))


def lines(look: Look) -> Iterator[Tuple[str, str]]:
    """Give for each job that runs its stage, as ``job: stage``, and how far that is."""
    for job, state in look.progress:
        yield "%s: %s" % (job, state.get("stage", "")), ", ".join(part.strip() for part in figures(state.get("done") or 0, state.get("total"), 0))


class LiveAction(ActionBase):
    """Runs the module of the same name asynchronously and shows how far it is.

    In check mode the module only plans, which is quick: it runs as any other does.
    """

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result: Dict[str, Any] = super().run(tmp, task_vars)
        host = str((task_vars or {}).get("inventory_hostname", ""))
        if self._task.check_mode:
            result.update(self._execute_module(task_vars=task_vars))
        else:
            started = self._start(task_vars)
            result.update(self._follow(started, host, task_vars) if "ansible_job_id" in started else started)
        result["report"] = ["%s: %s" % (host, line) for line in result.get("report") or [result.get("msg", "failed")]]
        if not self._task.check_mode:
            for line in result["report"]:
                display.display(line)
        return result

    def _start(self, task_vars: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        """Start the module on the host, detached from the connection."""
        self._task.async_val = self._limit()
        try:
            started: Dict[str, Any] = self._execute_module(task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = 0  # or Ansible itself would begin to poll
        return started

    def _limit(self) -> int:
        """Return the seconds after which the module can't be running any more."""
        return int(self._task.args.get("timeout") or 86400) + CLEAN_UP

    def _follow(self, started: Dict[str, Any], host: str, task_vars: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        """Show how far it is until it has ended; return the module's result."""
        results_file = started["results_file"]
        command = look_command(results_file, self._task.args.get("job"))
        interval = max(int(self._task.args.get("poll_interval") or 3), 1)
        boot, stage, said, said_at = "", "", "", 0.0
        deadline = time.monotonic() + self._limit()
        while True:
            look = self._look(command, host)
            if look.ended:
                break
            if time.monotonic() > deadline:
                return {"failed": True, "msg": "what was started on the host did not end within %d s and does not say why" % self._limit()}
            boot = boot or look.boot
            if look.boot != boot:
                return {"failed": True, "msg": "the host was restarted while this ran there, so it did not end: the next run removes what it left behind"}
            for now_stage, figure in lines(look):
                text = "%s: %s%s" % (host, now_stage, " " + figure if figure else "")
                if text != said and (now_stage != stage or time.monotonic() - said_at >= SAY_EVERY):
                    display.display(text)
                    stage, said, said_at = now_stage, text, time.monotonic()
            time.sleep(interval)
        arguments = {"jid": started["ansible_job_id"], "mode": "status", "_async_dir": os.path.dirname(results_file)}
        result: Dict[str, Any] = self._execute_module(module_name="ansible.legacy.async_status", module_args=arguments, task_vars=task_vars)
        self._low_level_execute_command("rm -f %s" % shlex.quote(results_file))
        for key in ("ansible_job_id", "results_file", "started", "finished", "stdout", "stdout_lines"):
            result.pop(key, None)
        return result

    def _look(self, command: str, host: str) -> Look:
        """Look once; a host that can't be reached, or does not answer in full, is tried again for the time that the task allows.

        :raises AnsibleConnectionFailure: it did not answer for all that time
        """
        patience = int(self._task.args.get("reconnect_timeout") or 600)
        lost = None
        while True:
            trouble = "no answer"
            try:
                answer = self._low_level_execute_command(command)
                look = seen(answer["stdout"])
                if look.boot:
                    return look
                trouble = answer.get("stderr") or trouble
            except AnsibleConnectionFailure as error:
                trouble = str(error)
            if lost is None:
                lost = time.monotonic()
                display.display("%s: the connection is lost (%s); what was started goes on there, trying again" % (host, trouble.strip()))
            if time.monotonic() - lost > patience:
                text = "the connection was lost and did not come back within %d s; what was started goes on at the host: %s"
                raise AnsibleConnectionFailure(text % (patience, trouble))
            time.sleep(RETRY_EVERY)
            try:
                self._connection.reset()
            except (AnsibleConnectionFailure, AttributeError):
                pass  # a transport without reset connects anew by itself
