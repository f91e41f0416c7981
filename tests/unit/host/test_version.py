# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os

import yaml
from _core.host.version import VERSION

ROOT = os.path.join(os.path.dirname(__file__), "..", "..", "..")


def test_the_collection_and_the_code_state_the_same_version() -> None:
    with open(os.path.join(ROOT, "galaxy.yml"), encoding="utf-8") as file:
        assert yaml.safe_load(file)["version"] == VERSION
