# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from typing import Any, Dict, Optional

from ansible.plugins.action import ActionBase
from ansible_collections.stillpoint.backup.plugins.module_utils._core import bundle

MODULE = "stillpoint.backup.agent"


class ActionModule(ActionBase):
    """Builds the sources of the agent here and brings them to a host whose agent is made of others."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result: Dict[str, Any] = super().run(tmp, task_vars)
        sources = bundle.build(str(self._task.args.get("interpreter", bundle.INTERPRETER)))
        options = {**self._task.args, "_checksum": bundle.checksum(sources)}
        done = self._execute_module(module_name=MODULE, module_args=options, task_vars=task_vars)
        if done.get("sources_needed"):
            done = self._install(sources, options, task_vars)
        return {**result, **done}

    def _install(self, sources: bytes, options: Dict[str, Any], task_vars: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        """Bring the sources to the host and have the module install them; return its result."""
        shell = self._connection._shell
        self._make_tmp_path()
        try:
            remote = shell.join_path(shell.tmpdir, "stillpoint")
            self._transfer_data(remote, sources)
            self._fixup_perms2((shell.tmpdir, remote))
            done: Dict[str, Any] = self._execute_module(module_name=MODULE, module_args={**options, "_sources": remote}, task_vars=task_vars)
        finally:
            self._remove_tmp_path(shell.tmpdir)
        return done
