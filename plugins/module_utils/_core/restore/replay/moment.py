# SPDX-License-Identifier: GPL-3.0-or-later
"""Up to where a recovery shall go: a time, a GTID or a place in the server's binary logs, as people write them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Dict, Optional

from ...binlog import gtid
from ...binlog.gtid import Gtid
from ...binlog.place import Place
from ...host.errors import UsageError

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d) ?(Z|UTC|[+-]\d\d:?\d\d)?")
_POSITION = re.compile(r"([^:/]+\.\d{6,}):(\d+)")


@dataclass(frozen=True)
class Moment:
    """Up to where to recover; one of the three is given.

    :ivar text: as it was asked for
    :ivar time: seconds since the epoch
    :ivar before: stop in front of the GTID, not behind it
    """

    text: str
    time: Optional[float] = None
    gtid: Optional[Gtid] = None
    before: bool = False
    position: Optional[Place] = None

    @property
    def option(self) -> Dict[str, str]:
        """The option that asks for it and its value, the same for whatever way a time was written."""
        if self.time is not None:
            return {"--until": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.time))}
        if self.position is not None:
            return {"--until-position": "%s:%d" % self.position}
        return {"--before-gtid" if self.before else "--until-gtid": str(self.gtid)}


def seconds(text: str) -> float:
    """Return the seconds since the epoch of a time: ``2026-11-22 14:03:07Z``, ``… +02:00``, or bare, in this host's own zone.

    :raises UsageError: it is no such time, or one that the host's clock showed twice or never
    """
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise UsageError(
            "%r is not a time: write 2026-11-22 14:03:07Z (UTC), 2026-11-22 14:03:07+02:00, or 2026-11-22 14:03:07 in this host's own time zone" % text
        )
    date, clock, zone = match.groups()
    try:
        when = datetime.strptime("%s %s" % (date, clock), "%Y-%m-%d %H:%M:%S")
    except ValueError as error:
        raise UsageError("%r is not a time: there is no such day or hour" % text) from error
    if zone:
        return when.replace(tzinfo=_zone(zone)).timestamp()
    first, second = when.timestamp(), when.replace(fold=1).timestamp()
    if first != second:
        raise UsageError(
            "%s is not one moment in the time zone of this host (%s): the clock was changed then; say it in UTC, with a Z at the end"
            % (text, "/".join(time.tzname))
        )
    return first


def _zone(text: str) -> timezone:
    if text in ("Z", "UTC"):
        return timezone.utc
    sign = -1 if text[0] == "-" else 1
    digits = text[1:].replace(":", "")
    return timezone(sign * timedelta(hours=int(digits[:2]), minutes=int(digits[2:])))


def asked(
    until: Optional[str] = None, until_gtid: Optional[str] = None, before_gtid: Optional[str] = None, until_position: Optional[str] = None
) -> Optional[Moment]:
    """Return the Moment that options describe; None when none is given.

    :raises UsageError: more than one is given, or one is not understood
    """
    given = [each for each in (until, until_gtid, before_gtid, until_position) if each is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UsageError("say only one of --until, --until-gtid, --before-gtid and --until-position")
    if until is not None:
        return Moment(until, time=seconds(until))
    if until_position is not None:
        match = _POSITION.fullmatch(until_position)
        if not match:
            raise UsageError("%r is not a position: it looks like mysql-bin.000042:1234" % until_position)
        return Moment(until_position, position=Place(match.group(1), int(match.group(2))))
    return Moment(given[0], gtid=gtid.parse(given[0]), before=before_gtid is not None)
