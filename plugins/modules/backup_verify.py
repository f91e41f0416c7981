#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_verify
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Read the backups of a host again and compare every file with its checksum
description:
  - Verifies backups with the agent that role P(stillpoint.backup.backup_client#role) has put on the host, and fails where one is damaged.
    What was found is recorded beside the backup; a damaged one is V(bad) from then on, and never chosen by a restore.
  - While it runs, a line for each host says now and then how far it is. It does not depend on the connection.
options:
  job:
    description: The job whose backups are verified. Default is all jobs of the host, one after the other.
    type: str
  generation:
    description: Which backup. Default is the newest that is not bad. Needs O(job) where the host has more than one.
    type: str
  all:
    description: Verify every backup, and not one alone.
    type: bool
    default: false
  sample:
    description: Read the contents of this share of the files alone, drawn at random, as V(5%). Names, sizes and owners are compared of all.
    type: str
  server:
    description: Besides, start a server on a copy of the backup; it has to recover and to find all its tables well.
    type: bool
    default: false
  timeout:
    description: Seconds after which a verification that is still running is told to end.
    type: int
    default: 86400
  poll_interval:
    description: Seconds between two looks at how far it is.
    type: int
    default: 3
  reconnect_timeout:
    description: Seconds for which a host that can't be reached any more is tried again before the module gives up following.
    type: int
    default: 600
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.attributes.action
  - stillpoint.backup.failures
attributes:
  check_mode:
    support: full
    details: Says which backups would be read, and how much of them.
  diff_mode:
    support: none
  async:
    support: none
    details: It is started asynchronously anyway.
seealso:
  - module: stillpoint.backup.backup_info
  - module: stillpoint.backup.backup_run
"""

EXAMPLES = r"""
- name: Read the newest backup of each job
  stillpoint.backup.backup_verify:

- name: Have a server started on a copy of the newest backup
  stillpoint.backup.backup_verify:
    job: etrial
    server: true
"""

RETURN = r"""
verifications:
  description: What was found, one for each backup.
  type: list
  elements: dict
  returned: always, but not in check mode
  contains:
    job:
      description: The job.
      type: str
      sample: etrial
    generation:
      description: The backup.
      type: str
      sample: 2026-11-22T02-00-05Z
    path:
      description: Its directory.
      type: str
      sample: /backups/etrial.example.com/etrial/2026-11-22T02-00-05Z
    ok:
      description: Whether no fault was found.
      type: bool
    files:
      description: How many files were read.
      type: int
    bytes:
      description: How many bytes were read.
      type: int
    percent:
      description: Of a sample, the share that was asked for.
      type: float
    faults:
      description: What is wrong, the first hundred.
      type: list
      elements: str
    faults_total:
      description: How many faults there are.
      type: int
    proof:
      description: What a server on a copy has proven.
      type: dict
    proof_error:
      description: Why that could not be done, or empty.
      type: str
report:
  description: What became of each backup, for people. In check mode what would be read.
  type: list
  elements: str
  returned: always
  sample: ["db1: etrial 2026-11-22T02-00-05Z: 5,124 files, 1.4 GiB read in 8.1 s: every checksum is right"]
failures:
  description: The jobs with a damaged backup, or that could not be verified, each with C(job), C(msg) and C(exit_code).
  type: list
  elements: dict
  returned: when there was one
"""

from typing import Any, Dict, List

from ansible_collections.stillpoint.backup.plugins.module_utils import _agent
from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.stillpoint.backup.plugins.module_utils._core.agent import show
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host import text
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host.errors import StillpointError
from ansible_collections.stillpoint.backup.plugins.module_utils._module import door, failure

OWN = ArgumentSpec(
    {
        "job": {"type": "str"},
        "generation": {"type": "str"},
        "all": {"type": "bool", "default": False},
        "sample": {"type": "str"},
        "server": {"type": "bool", "default": False},
        "timeout": {"type": "int", "default": 86400},
        "poll_interval": {"type": "int", "default": 3},
        "reconnect_timeout": {"type": "int", "default": 600},
    },
    mutually_exclusive=[("generation", "all")],
)


def arguments(params: Dict[str, Any], job: str) -> List[str]:
    """Return the arguments of `stillpoint verify` for the module's options."""
    words = [job] + ([params["generation"]] if params["generation"] else [])
    words += ["--all"] if params["all"] else []
    words += ["--sample", params["sample"]] if params["sample"] else []
    return words + (["--server"] if params["server"] else [])


def plan(params: Dict[str, Any], jobs: List[str]) -> Dict[str, Any]:
    """Return what would be read."""
    report = []
    for job in jobs:
        if params["generation"]:
            found = [_agent.ask("show", job, params["generation"])]
        else:
            known = _agent.ask("list", job)  # newest first
            found = known if params["all"] else [each for each in known if each["state"] != "bad"][:1]
            if not found:
                raise StillpointError("there is no backup of %s that is not bad" % job)
        share = "%s of the files of " % params["sample"] if params["sample"] else ""
        also = ", and a server would be started on a copy" if params["server"] else ""
        report += ["%s %s: %s%s would be read%s" % (job, each["generation"], share, text.size(each["size_bytes"]), also) for each in found]
    return {"changed": False, "report": report}


def perform(params: Dict[str, Any], jobs: List[str]) -> Dict[str, Any]:
    """Verify the jobs' backups one after the other; return what was found."""
    found: List[Dict[str, Any]] = []
    failures: List[Dict[str, Any]] = []
    for job in jobs:
        try:
            answer = _agent.ask("verify", *arguments(params, job), timeout=params["timeout"])
        except _agent.AgentError as error:
            failures.append({"job": job, **failure(error)})
            answer = error.answer
        verdicts = answer if isinstance(answer, list) else [answer]
        found += [{"job": job, **verdict} for verdict in verdicts if isinstance(verdict, dict) and "generation" in verdict]
    report = [line for each in found for line in lines(each)] + ["%(job)s: %(msg)s" % each for each in failures]
    result = {"changed": False, "verifications": found, "report": report}
    if not failures:
        return result
    msg = failures[0]["msg"] if len(jobs) == 1 else "; ".join("%(job)s: %(msg)s" % each for each in failures)
    return {**result, **failures[0], "failed": True, "failures": failures, "msg": msg}


def lines(found: Dict[str, Any]) -> List[str]:
    """Return what was found of a backup for people."""
    read = "%s files, %s read in %s" % (text.count(found["files"]), text.size(found["bytes"]), text.duration(found["duration_s"]))
    said = ["%s %s: %s: %s" % (found["job"], found["generation"], read, show.verdict(found))]
    return said + ["%s %s: proof %s" % (found["job"], found["generation"], line) for line in (show.proof(found["proof"])[:1] if found["proof"] else [])]


def main() -> None:
    module = OWN.module()
    with door(module):
        asked = module.params["job"]
        jobs = [_agent.only_job(asked)] if module.params["generation"] else _agent.jobs(asked)
        result = plan(module.params, jobs) if module.check_mode else perform(module.params, jobs)
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
