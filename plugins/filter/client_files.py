# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Sequence

DOCUMENTATION = r"""
name: client_files
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: The files and units that jobs have on a host
description:
  - Describes for M(stillpoint.backup.unit_files) the files that role P(stillpoint.backup.backup_client#role) puts on a host, and which of the units are
    enabled.
options:
  _input:
    description: Jobs, as the filter P(stillpoint.backup.jobs#filter) returns them.
    type: list
    elements: dict
    required: true
  job_directory:
    description: The directory of the jobs.
    type: path
    required: true
  unit_directory:
    description: The directory of systemd's units.
    type: path
    required: true
  udev_rules:
    description: The file of the rules for udev.
    type: path
    required: true
  agent:
    description: The agent.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Say which units would be enabled
  ansible.builtin.debug:
    msg: "{{ (jobs | stillpoint.backup.client_files(**paths)).units | map(attribute='name') }}"
  vars:
    jobs: [{name: etc, files: [/etc], repository: /backups, schedule: "02:00"}]
    paths:
      job_directory: /etc/stillpoint/jobs
      unit_directory: /etc/systemd/system
      udev_rules: /etc/udev/rules.d/10-stillpoint.rules
      agent: /usr/local/sbin/stillpoint
"""

RETURN = r"""
_value:
  description: The C(files) and C(units), as M(stillpoint.backup.unit_files) takes them.
  type: dict
"""

RUN = "stillpoint"
VERIFY = "stillpoint-verify"
ARCHIVE = "stillpoint-archive"
CLEAN = "stillpoint-clean"
COPY = "stillpoint-copy"
COPY_EVERY = "*:0/15"  # it catches up with what a run's own start could not send
SERVICES = (RUN + "@.service", VERIFY + "@.service", COPY + "@.service", ARCHIVE + "@.service", CLEAN + ".service")


def client_files(
    value: Sequence[Mapping[str, Any]], *, job_directory: str, unit_directory: str, udev_rules: str, agent: str
) -> Dict[str, List[Dict[str, Any]]]:
    """Return the files and units of jobs."""
    files: List[Dict[str, Any]] = [{"path": udev_rules, "src": "10-stillpoint.rules.j2"}]
    files += [{"path": "%s/%s" % (unit_directory, service), "src": service + ".j2"} for service in SERVICES]
    units: List[Dict[str, Any]] = [{"name": CLEAN + ".service", "state": "enabled"}]
    for job in value:
        name = job["name"]
        job_file = "%s/%s.yml" % (job_directory, name)
        # the address that is told how a run ended may be a secret
        files.append({"path": job_file, "src": "job.yml.j2", "mode": "0600", "secret": "notify" in job, "vars": {"backup_client_job": dict(job)}})
        copies = [COPY] if job.get("copies") else []
        schedules = [(RUN, job.get("schedule")), (VERIFY, job.get("verify", {}).get("schedule")), *((unit, COPY_EVERY) for unit in copies)]
        for unit, schedule in schedules:
            if schedule:
                timer = "%s@%s.timer" % (unit, name)
                described = {"backup_client_timer": {"name": name, "schedule": schedule}}
                files.append({"path": "%s/%s" % (unit_directory, timer), "src": unit + "@.timer.j2", "vars": described})
                units.append({"name": timer})
        archives = [ARCHIVE] if job.get("binlog", {}).get("archive") else []
        drop_ins = {unit: "%s/%s@%s.service.d/stillpoint.conf" % (unit_directory, unit, name) for unit in [RUN, VERIFY, *copies, *archives]}
        files += [_drop_in(path, job) for path in drop_ins.values()]
        for unit in archives:
            reads = [agent, job_file, "%s/%s@.service" % (unit_directory, unit), drop_ins[unit]]
            units.append({"name": "%s@%s.service" % (unit, name), "reads": reads})
    return {"files": files, "units": units}


def _drop_in(path: str, job: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the file that lets a service write where its job writes."""
    written = [job["repository"], *filter(None, [job.get("notify", {}).get("metrics")])]
    written += [copy["to"] for copy in job.get("copies", ()) if copy["to"].startswith("/")]
    described = {"backup_client_written_paths": [_quoted(each) for each in written]}
    return {"path": path, "src": "write.conf.j2", "read_only": written, "vars": described}


def _quoted(path: str) -> str:
    """Return a path as systemd's ReadWritePaths= takes it, which does not mind that it is missing."""
    return '"-%s"' % path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")


class FilterModule:
    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"client_files": client_files}
