# SPDX-License-Identifier: GPL-3.0-or-later
"""``python3 -m stillpoint``."""

from __future__ import annotations

import sys

from .agent.main import main

if __name__ == "__main__":
    sys.exit(main())  # pylint: disable=ansible-bad-function  # a program, not a module
