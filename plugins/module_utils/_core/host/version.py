# SPDX-License-Identifier: GPL-3.0-or-later
"""The version, in the one place that code reads it from (``galaxy.yml`` states it too, and a test holds them together)."""

from __future__ import annotations

VERSION = "0.1.0"
