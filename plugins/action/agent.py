# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import hashlib
import os
import shlex
import tempfile
from typing import Any, Dict, List, Optional

from ansible import constants as C
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.stillpoint.backup.plugins.module_utils._core import bundle
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host.version import VERSION

ARGUMENT_SPEC: Dict[str, Dict[str, Any]] = {
    "path": {"type": "path", "default": "/usr/local/sbin/stillpoint"},
    "interpreter": {"type": "path", "default": bundle.INTERPRETER},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}
MODE = "0755"


class ActionModule(ActionBase):
    """Builds the agent here and has ansible.builtin.copy put it on the host."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: Optional[str] = None, task_vars: Optional[Dict[str, Any]] = None) -> Dict[str, Any]:
        result: Dict[str, Any] = super().run(tmp, task_vars)
        _validation, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        path = options["path"]
        before = self._execute_remote_stat(path, all_vars=task_vars, follow=False)
        if before.get("isdir"):
            raise AnsibleActionFail("%s is a directory on the host: the agent is one file, name its path" % path)
        if options["state"] == "absent":
            result.update(self._remove(path, before, task_vars))
        else:
            result.update(self._put(path, bundle.build(options["interpreter"]), options["interpreter"], before, task_vars))
        return result

    def _put(
        self, path: str, content: bytes, interpreter: str, before: Dict[str, Any], task_vars: Optional[Dict[str, Any]]
    ) -> Dict[str, Any]:
        """Have the file on the host; return the action's result."""
        checksum = hashlib.sha1(content, usedforsecurity=False).hexdigest()  # as Ansible's stat counts it
        descriptor, local = tempfile.mkstemp(dir=C.DEFAULT_LOCAL_TMP, prefix="stillpoint-agent-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            copied = self._copy(local, path, interpreter, task_vars)
        finally:
            os.unlink(local)
        if copied.get("failed"):
            return failure(copied, interpreter)
        result = {"changed": bool(copied.get("changed")), "path": path, "version": VERSION, "checksum": checksum, "size": len(content)}
        if self._task.diff:
            after = described({"exists": True, "checksum": checksum, "pw_name": "root", "gr_name": "root", "mode": MODE})
            if checksum != before.get("checksum"):
                after.insert(0, "version %s" % VERSION)
            result["diff"] = difference(path, described(before), after if result["changed"] else described(before))
        return result

    def _copy(self, local: str, path: str, interpreter: str, task_vars: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        """Run ansible.builtin.copy as a task of its own would; return its result."""
        task = self._task.copy()
        task.diff = False  # its own would be one of binary files
        task.args = {
            "src": local,
            "dest": path,
            "owner": "root",
            "group": "root",
            "mode": MODE,
            "validate": "%s -I %%s version" % shlex.quote(interpreter),
        }
        copy = self._shared_loader_obj.action_loader.get(
            "ansible.legacy.copy",
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        copied: Dict[str, Any] = copy.run(task_vars=task_vars)
        return copied

    def _remove(self, path: str, before: Dict[str, Any], task_vars: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        """Have no file on the host; return the action's result."""
        removed = self._execute_module(
            module_name="ansible.legacy.file", module_args={"path": path, "state": "absent"}, task_vars=task_vars
        )
        if removed.get("failed"):
            return dict(removed)
        result: Dict[str, Any] = {"changed": bool(removed.get("changed")), "path": path}
        if self._task.diff:
            result["diff"] = difference(path, described(before), [])
        return result


def failure(copied: Dict[str, Any], interpreter: str) -> Dict[str, Any]:
    """Return the action's result for a copy that failed."""
    said = str(copied.get("stderr") or "").strip().splitlines()
    if "validate" in str(copied.get("msg")):
        return {
            "failed": True,
            "msg": "the agent does not start on the host with %s and was not put in place: %s"
            % (interpreter, said[-1] if said else "it says nothing"),
            "rc": copied.get("exit_status"),
            "stderr": copied.get("stderr", ""),
        }
    return {key: value for key, value in copied.items() if key not in ("diff", "invocation")}


def described(stat: Dict[str, Any]) -> List[str]:
    """Return what there is at a path, as lines for a diff."""
    if not stat.get("exists"):
        return []
    owner = "owner %s:%s" % (stat.get("pw_name", stat.get("uid")), stat.get("gr_name", stat.get("gid")))
    return ["sha1 %s" % stat.get("checksum"), owner, "mode %s" % stat.get("mode")]


def difference(path: str, before: List[str], after: List[str]) -> Dict[str, str]:
    """Return the ``diff`` of a file that is described by lines."""
    return {
        "before_header": path,
        "after_header": path,
        "before": "".join("%s\n" % line for line in before),
        "after": "".join("%s\n" % line for line in after),
    }
