#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take a quiesced snapshot with the installed agent, as the module mysql_quiesce_snapshot does, and remove it; print what
the lock was like as JSON. usage: quiesce.py LOCK"""

from __future__ import annotations

import json
import sys

sys.path.insert(0, "/usr/local/sbin/stillpoint")

from stillpoint.backup.quiesced import QuiesceRequest, quiesce_snapshot  # noqa: E402
from stillpoint.host.reporter import Silent  # noqa: E402
from stillpoint.lvm import ownership  # noqa: E402

taken = quiesce_snapshot(QuiesceRequest(lock=sys.argv[1], volumes=("/opt/processmaker",)), Silent())
print(json.dumps(taken["lock"]))
ownership.clean(run_id=taken["run_id"], kept=True)
