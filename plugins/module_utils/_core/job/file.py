# SPDX-License-Identifier: GPL-3.0-or-later
"""A job's file: found, trusted and read."""

from __future__ import annotations

import os
import stat
import sys
from typing import Any, Dict

from ..host.errors import StillpointError, UsageError
from .names import SUFFIX, job_names, jobs_directory
from .options import Job
from .reader import nearest, parse, shown

# Only who reads a job's file needs YAML.
# pylint: disable=import-outside-toplevel


def load(name_or_path: str) -> Job:
    """Return the Job of this name (``/etc/stillpoint/jobs/NAME.yml``) or in this file.

    :raises UsageError: there is no such job, the file is not safe to trust, or something in it is wrong
    """
    path = name_or_path if "/" in name_or_path else os.path.join(jobs_directory(), name_or_path + SUFFIX)
    job = parse(_read_yaml(path, name_or_path), path)
    stem = os.path.splitext(os.path.basename(path))[0]
    if stem != job.name:
        raise UsageError("%s: name is %r, but the file is called %s: make them the same" % (path, job.name, os.path.basename(path)))
    return job


def _read_yaml(path: str, asked: str) -> Any:
    """Return what a job file says.

    :raises UsageError: it is missing, may be written by others, or is not YAML
    """
    try:
        import yaml
    except ImportError as error:
        raise StillpointError("the Python module yaml is missing for %s: install the package python3-yaml" % sys.executable) from error

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice, where YAML would quietly take the last, and tells where a value stands that it can't read."""

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, TypeError, AttributeError) as error:  # what PyYAML lets out for 2026-02-30, 0x_, !!int x
                what = shown(node.value) if isinstance(node, yaml.ScalarNode) else "what begins here"
                raise UsageError(
                    "%s: line %d: %s can't be read (%s): put it in quotes if it is meant as text" % (path, node.start_mark.line + 1, what, error)
                ) from error

    def construct_mapping(loader: Any, node: Any) -> Dict[Any, Any]:
        seen = set()
        for key_node, _value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):  # {{ name }} without quotes is one, too
                raise UsageError("%s: line %d: a mapping or a list can't be a key: put a value that begins with { or [ in quotes" % (path, line))
            if key_node.value in seen:
                raise UsageError("%s: line %d: the key %s is given twice" % (path, line, key_node.value))
            seen.add(key_node.value)
        loader.flatten_mapping(node)
        mapping: Dict[Any, Any] = loader.construct_mapping(node, deep=True)
        return mapping

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct_mapping)
    try:
        with open(path, encoding="utf-8") as file:
            _check_trust(path, os.fstat(file.fileno()))
            return yaml.load(file, Loader)  # a SafeLoader
    except FileNotFoundError as error:
        raise UsageError(_no_such_job(path, asked)) from error
    except OSError as error:
        raise UsageError("the job file %s can't be read: %s" % (path, error.strerror)) from error
    except UnicodeDecodeError as error:
        raise UsageError("%s: not a text file in UTF-8" % path) from error
    except yaml.MarkedYAMLError as error:
        line = "line %d: " % (error.problem_mark.line + 1) if error.problem_mark else ""
        raise UsageError("%s: %snot YAML: %s" % (path, line, error.problem or "it can't be read")) from error
    except yaml.YAMLError as error:
        raise UsageError("%s: not YAML: %s" % (path, " ".join(str(error).split()))) from error
    except RecursionError as error:
        raise UsageError("%s: not a job: lists or mappings lie in each other too deep" % path) from error


def _check_trust(path: str, info: os.stat_result) -> None:
    """Raise UsageError when somebody other than root may have written a job: it names paths to read and a command to run as root."""
    if not stat.S_ISREG(info.st_mode):
        raise UsageError("the job file %s is not a file" % path)
    if info.st_uid not in (0, os.geteuid()):
        raise UsageError("the job file %s belongs to user %d and runs as root: chown root it" % (path, info.st_uid))
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            "the job file %s can be written by others than its owner (mode %04o) and runs as root: chmod go-w it"
            % (path, stat.S_IMODE(info.st_mode))
        )


def _no_such_job(path: str, asked: str) -> str:
    if "/" in asked:
        return "there is no job file %s" % path
    known = job_names()
    near = nearest(asked, known)
    hint = "did you mean %s?" % near if near else "there are %s" % ", ".join(known) if known else "there are no jobs at all"
    return "there is no job %s in %s; %s" % (asked, jobs_directory(), hint)
