# SPDX-License-Identifier: GPL-3.0-or-later
# Private to this collection: may change with any release.
"""Families of module options, each documented by the fragment of the same name in plugins/doc_fragments."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Dict, List, Type, TypeVar

from ansible.module_utils.basic import AnsibleModule

_Request = TypeVar("_Request")


@dataclass
class ArgumentSpec:
    """What an AnsibleModule is made from; families are added up with :meth:`merge`."""

    options: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    required_together: List[List[str]] = field(default_factory=list)
    required_one_of: List[List[str]] = field(default_factory=list)
    mutually_exclusive: List[List[str]] = field(default_factory=list)
    required_if: List[List[Any]] = field(default_factory=list)

    def merge(self, other: "ArgumentSpec") -> "ArgumentSpec":
        """Return an ArgumentSpec with the options and rules of both."""
        return ArgumentSpec(
            {**self.options, **other.options},
            self.required_together + other.required_together,
            self.required_one_of + other.required_one_of,
            self.mutually_exclusive + other.mutually_exclusive,
            self.required_if + other.required_if,
        )

    def module(self) -> AnsibleModule:
        """Return the AnsibleModule of these options. Every module of this collection knows check mode."""
        return AnsibleModule(
            argument_spec=self.options,
            required_together=self.required_together,
            required_one_of=self.required_one_of,
            mutually_exclusive=self.mutually_exclusive,
            required_if=self.required_if,
            supports_check_mode=True,
        )


def connection() -> ArgumentSpec:
    """Return how to log in to the server (fragment ``mysql``)."""
    return ArgumentSpec(
        {
            "login_user": {"type": "str"},
            "login_password": {"type": "str", "no_log": True},
            "login_host": {"type": "str"},
            "login_port": {"type": "int"},
            "login_unix_socket": {"type": "path"},
            "config_file": {"type": "path"},
            "ca_cert": {"type": "path", "aliases": ["ssl_ca"]},
            "client_cert": {"type": "path", "aliases": ["ssl_cert"]},
            "client_key": {"type": "path", "aliases": ["ssl_key"], "no_log": False},  # a path
            "check_hostname": {"type": "bool"},
            "connect_timeout": {"type": "int", "default": 10},
        },
        required_together=[["client_cert", "client_key"]],
    )


def storage() -> ArgumentSpec:
    """Return how large snapshots are made (fragment ``storage``)."""
    return ArgumentSpec({"snapshot_size": {"type": "str", "default": "auto"}})


def request(kind: Type[_Request], params: Dict[str, Any]) -> _Request:
    """Return the request dataclass filled from module parameters: what the module's user left out keeps its default there,
    and a list becomes a tuple, since requests are frozen."""
    names = {each.name for each in fields(kind)}  # type: ignore[arg-type]
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in params.items() if key in names and value is not None}
    return kind(**given)
