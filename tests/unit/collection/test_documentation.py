# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said in more than one place is the same in all of them."""

from __future__ import annotations

import importlib
import os
from dataclasses import fields
from typing import Any, Dict

import pytest
import yaml
from _core.job import options as sections
from _core.job import reader
from _core.mysql.connection import Login
from _core.mysql.locks import LockOptions

ROOT = os.path.join(os.path.dirname(__file__), "..", "..", "..")
ROLE = os.path.join(ROOT, "roles", "backup_client")
COLLECTION = "ansible_collections.stillpoint.backup.plugins"


def read(*path: str) -> Any:
    with open(os.path.join(*path), encoding="utf-8") as file:
        return yaml.safe_load(file)


def role_options() -> Dict[str, Any]:
    return dict(read(ROLE, "meta", "argument_specs.yml")["argument_specs"]["main"]["options"])


def job_options() -> Dict[str, Any]:
    return dict(role_options()["backup_client_jobs"]["options"])


def test_the_role_documents_every_key_that_a_job_has() -> None:
    assert set(job_options()) == set(reader._JOB)
    assert set(job_options()["mysql"]["options"]) == set(reader._MYSQL)
    assert set(job_options()["keep"]["options"]) == set(sections.Keep._fields)
    assert set(job_options()["notify"]["options"]) == set(sections.Notify._fields)
    assert set(job_options()["verify"]["options"]) == set(sections.Verify._fields)
    assert set(job_options()["copies"]["options"]) == set(sections.Copy._fields)
    assert set(job_options()["copies"]["options"]["keep"]["options"]) == set(sections.Keep._fields)


def test_the_role_documents_the_defaults_that_a_job_has() -> None:
    made = sections.MysqlOptions()
    for name, option in job_options()["mysql"]["options"].items():
        assert option.get("default") == getattr(made, name), name


def test_the_role_documents_the_choices_that_a_job_has() -> None:
    options = job_options()["mysql"]["options"]
    assert tuple(options["method"]["choices"]) == sections.METHODS
    assert tuple(options["lock"]["choices"]) == sections.LOCKS
    assert tuple(options["long_query_action"]["choices"]) == sections.LONG_QUERY_ACTIONS


def test_the_role_documents_its_variables_and_their_defaults() -> None:
    defaults = read(ROLE, "defaults", "main.yml")
    options = role_options()
    assert {name for name, option in options.items() if "default" in option} <= set(defaults) <= set(options)
    for name, value in defaults.items():
        if "{{" not in str(value):
            assert options[name]["default"] == value, name


@pytest.mark.parametrize("fragment, family", [("mysql", "_argspec.connection"), ("locking", "_locking.locking"), ("storage", "_argspec.storage")])
def test_a_family_of_options_is_documented_as_it_is(fragment: str, family: str) -> None:
    pytest.importorskip("ansible")
    documented = yaml.safe_load(importlib.import_module("%s.doc_fragments.%s" % (COLLECTION, fragment)).ModuleDocFragment.DOCUMENTATION)["options"]
    file, name = family.split(".")
    options = getattr(importlib.import_module(COLLECTION + ".module_utils." + file), name)().options
    assert set(documented) == set(options)
    for name, option in options.items():
        assert documented[name]["type"] == option["type"], name
        assert documented[name].get("default") == option.get("default"), name


def test_the_quiesce_module_has_the_requests_fields_and_defaults() -> None:
    pytest.importorskip("ansible")
    module = importlib.import_module(COLLECTION + ".modules.mysql_quiesce_snapshot")
    locking = importlib.import_module(COLLECTION + ".module_utils._locking").locking()
    argspec = importlib.import_module(COLLECTION + ".module_utils._argspec")
    options = module.OWN.merge(argspec.connection()).merge(locking).merge(argspec.storage()).options
    known = module.QuiesceRequest.__dataclass_fields__
    assert set(options) - {"state", "run_id"} == set(known)
    for name, option in locking.options.items():
        assert option["default"] == known[name].default, name
    assert (options["lock"]["choices"], options["long_query_action"]["choices"]) == (list(sections.LOCKS), list(sections.LONG_QUERY_ACTIONS))


def test_a_job_has_the_options_of_logins_and_locks_with_their_defaults() -> None:
    of_a_job = sections.MysqlOptions._field_defaults
    for kind in (Login, LockOptions):
        for field in fields(kind):
            if field.name != "login_password":  # its place is the option file
                assert of_a_job[field.name] == field.default, field.name


def test_the_copy_module_has_the_requests_fields() -> None:
    pytest.importorskip("ansible")
    module = importlib.import_module(COLLECTION + ".modules.lvm_snapshot_rsync")
    argspec = importlib.import_module(COLLECTION + ".module_utils._argspec")
    assert set(module.OWN.merge(argspec.storage()).options) == set(module.CopyRequest.__dataclass_fields__)
