# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping, Optional

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

KEYS = {"path", "src", "vars", "mode", "secret", "read_only"}
MODE = "0644"


class ActionModule(ActionBase):
    """Fills in the templates here and runs the module of the same name with all of them as one text, which is a secret as a whole."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result: Dict[str, Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        arguments["files"] = json.dumps([self._filled_in(each, task_vars or {}) for each in arguments.get("files") or []])
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        return result

    def _filled_in(self, each: Any, task_vars: Dict[str, Any]) -> Dict[str, Any]:
        """Return a file as the module takes it."""
        if not isinstance(each, Mapping) or not {"path", "src"} <= set(each) <= KEYS:
            raise AnsibleActionFail("each of the files has path and src, and may have %s" % ", ".join(sorted(KEYS - {"path", "src"})))
        return {
            "path": str(each["path"]),
            "content": self._template(str(each["src"]), dict(each.get("vars") or {}), task_vars),
            "mode": str(each.get("mode") or MODE),
            "secret": bool(each.get("secret")),
            "read_only": [str(path) for path in each.get("read_only") or ()],
        }

    def _template(self, src: str, variables: Dict[str, Any], task_vars: Dict[str, Any]) -> str:
        """Return the text of a template, found and filled in as the lookup of that name does it."""
        lookup = self._shared_loader_obj.lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        texts: List[str] = lookup.run([src], task_vars, template_vars=variables)
        return str(texts[0])
