# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # What every module of this collection says about itself.
    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and return what would happen, with nothing changed.
  diff_mode:
    description: Returns what it changed, or in check mode would change, when in diff mode.
  platform:
    description: Operating systems on which the module runs.
    platforms: Linux
    support: full
"""

    # For modules that come with an action plugin of the same name.
    ACTION = r"""
options: {}
attributes:
  action:
    description: Has an action plugin of the same name, so that a part of it runs on the controller.
    support: full
  async:
    description: Can be used with the C(async) keyword.
"""
