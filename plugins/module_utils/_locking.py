# SPDX-License-Identifier: GPL-3.0-or-later
# Private to this collection: may change with any release.
"""The family of options that say how a server is locked. By itself, as only the module that locks carries it."""

from __future__ import annotations

from ._argspec import ArgumentSpec


def locking() -> ArgumentSpec:
    """Return how the server is locked (fragment ``locking``)."""
    return ArgumentSpec(
        {
            "lock": {"type": "str", "choices": ["auto", "backup_stage", "instance", "ftwrl", "none"], "default": "auto"},
            "lock_wait_timeout": {"type": "int", "default": 5},
            "long_query_threshold": {"type": "int", "default": 5},
            "long_query_timeout": {"type": "int", "default": 60},
            "long_query_action": {"type": "str", "choices": ["wait", "fail", "kill"], "default": "wait"},
            "stop_replica": {"type": "bool", "default": False},
            "desync": {"type": "bool", "default": False},
        }
    )
