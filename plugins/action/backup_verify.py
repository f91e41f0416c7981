# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from ansible_collections.stillpoint.backup.plugins.plugin_utils._live import LiveAction


class ActionModule(LiveAction):
    """Runs stillpoint.backup.backup_verify so that it outlives the connection, with a line now and then that says how far it is."""
