# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job can say: its sections and their defaults, as values."""

from __future__ import annotations

ALL, CHANGED, NONE = "all", "changed", "none"

MODES = (ALL, CHANGED, NONE)
