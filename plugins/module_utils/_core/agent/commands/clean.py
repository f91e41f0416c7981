# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `clean`."""

from __future__ import annotations

import argparse
import os
from typing import List

from ...host.errors import BusyError, StillpointError
from ...job import file as jobs
from ...job.names import job_names
from ...lvm import ownership
from ...mysql import topology
from ..output import PROGRAM, complain, job_directory, print_json, print_lines

TEXT = "remove what killed runs left behind: snapshots, mount points, unfinished copies"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kept", action="store_true", help="also the snapshots that a playbook was given and has not removed")


def run(arguments: argparse.Namespace) -> int:
    unfinished, put_back = [], []
    troubles: List[StillpointError] = []
    snapshots = ownership.clean(kept=arguments.kept, on_trouble=troubles.append)
    try:
        put_back = topology.put_back_leftovers()
    except StillpointError as error:
        troubles.append(error)
    for name in job_names():
        try:
            directory = job_directory(jobs.load(name), None)
            if os.path.isdir(directory.path):
                with directory.lock():
                    unfinished += [os.path.join(directory.path, each) for each in directory.clean(troubles.append)]
        except BusyError:
            continue  # it is being written by a run that lives
        except StillpointError as error:
            troubles.append(error)
    if arguments.json:
        print_json({"snapshots": snapshots, "unfinished": unfinished, "put_back": put_back})
    else:
        lines = ["removed the snapshot %s/%s of the run %s" % (each["vg"], each["name"], each["run_id"]) for each in snapshots]
        lines += ["removed %s" % path for path in unfinished] + put_back
        print_lines(lines or ([] if troubles else ["nothing was left behind"]))
    for trouble in troubles:
        complain("%s: %s" % (PROGRAM, trouble))
    return StillpointError.exit_code if troubles else 0
