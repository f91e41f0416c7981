# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # What modules say that make snapshots; the same family in code is plugins/module_utils/_argspec.py:storage().
    DOCUMENTATION = r"""
options:
  snapshot_size:
    description:
      - How much of the volume may be rewritten while the snapshot exists. V(1g), V(512m), V(20%ORIGIN), V(50%FREE), or
        V(auto) for a tenth of the volume.
      - Never used for a thin volume, whose snapshots take their space from the pool.
      - A volume group that has less room than that is refused before anything is locked.
    type: str
    default: auto
requirements:
  - the LVM tools on the host (package C(lvm2))
"""
