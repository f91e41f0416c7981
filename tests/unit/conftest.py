# SPDX-License-Identifier: GPL-3.0-or-later
"""The core is tested as what it is, a package without Ansible: ``from _core import job``."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "plugins", "module_utils"))
