# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # What every module says about failing.
    DOCUMENTATION = r"""
options: {}
notes:
  - A failure is one sentence in RV(ignore:msg) that names the thing at fault and the way out. Where a program failed,
    RV(ignore:cmd), RV(ignore:rc) and RV(ignore:stderr) say which one and what it said; RV(ignore:exit_code) is what the agent
    would exit with (V(1) failed, V(2) a wrong option, V(3) another run holds the job, V(75) not now, nothing happened, try later).
"""
