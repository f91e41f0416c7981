# SPDX-License-Identifier: GPL-3.0-or-later
"""How large a thick snapshot is made: what the user wrote, and what `auto` comes to."""

from __future__ import annotations

import re
from typing import NamedTuple, Union

from ..host.errors import StillpointError, UsageError
from ..host.text import human

MIB = 1024 * 1024
_UNITS = {"b": 1, "k": 1024, "m": MIB, "g": 1024 * MIB, "t": 1024 * 1024 * MIB}
_ABSOLUTE = r"(\d+(?:\.\d+)?)(?:([bkmgt])(?:i?b)?)?"
_PERCENT = r"(\d+(?:\.\d+)?)%(ORIGIN|FREE)"

# dm-snapshot keeps 16 bytes for each 4 KiB chunk that it holds, in whole chunks: the most that a snapshot can ever use
# is the origin's size and this share of it (kernel, Documentation/admin-guide/device-mapper/snapshot.rst; LVM's own
# cow_max_extents comes to the same).
_METADATA_SHARE = 1 / 128

# A thin pool that fills up stops every volume in it. Percent: what data may come to while the copy lasts, and the metadata
# before it begins.
POOL_DATA_LIMIT = 90.0
POOL_METADATA_LIMIT = 80.0

AUTO_SHARE = 0.10  # of the origin: what users may rewrite while the copy lasts, before the first extension
AUTO_LEAST = 256 * MIB


class Size(NamedTuple):
    """A snapshot's size as asked for: ``auto``, a number of bytes, or a percentage of the origin or of the free space."""

    text: str
    kind: str  # "auto", "bytes", "ORIGIN", "FREE"
    amount: float = 0


def parse(text: Union[str, int]) -> Size:
    """Return the Size for ``auto``, ``1g``, ``512m``, ``20%ORIGIN`` or ``50%FREE``; a bare number is one of MiB, as lvcreate has it.

    :raises UsageError: it is none of these
    """
    word = str(text).strip()
    if word.lower() == "auto":
        return Size("auto", "auto")
    match = re.fullmatch(_ABSOLUTE, word, re.IGNORECASE)
    if match and float(match.group(1)) > 0:
        return Size(word, "bytes", float(match.group(1)) * _UNITS[(match.group(2) or "m").lower()])
    match = re.fullmatch(_PERCENT, word, re.IGNORECASE)
    if match and 0 < float(match.group(1)) <= 100:
        return Size(word, match.group(2).upper(), float(match.group(1)))
    raise UsageError("snapshot_size %r is not a size: write auto, 1g, 512m, 20%%ORIGIN or 50%%FREE" % word)


def whole_extents(size: float, extent: int) -> int:
    """Return a size in bytes rounded up to whole extents."""
    return int(-(-int(size) // extent) * extent)


def largest_useful(origin_size: int, extent: int) -> int:
    """Return the size in bytes beyond which a snapshot of an origin of this size gains nothing."""
    return whole_extents(origin_size * (1 + _METADATA_SHARE), extent) + extent


def snapshot_size(asked: Size, *, name: str, origin_size: int, free: int, extent: int, own_writes: int = 0) -> int:
    """Return the size in bytes, in whole extents, for a snapshot of a volume.

    :param name: the origin, for the sentence
    :param free: unallocated bytes of the volume group
    :param own_writes: bytes that the copy itself will write to the origin, where the repository lies on it
    :raises StillpointError: the volume group has less room than that
    """
    most = largest_useful(origin_size, extent)
    if asked.kind == "auto":
        wanted = max(origin_size * AUTO_SHARE, AUTO_LEAST) + own_writes * (1 + _METADATA_SHARE)
    elif asked.kind == "bytes":
        wanted = asked.amount
    else:
        wanted = (origin_size if asked.kind == "ORIGIN" else free) * asked.amount / 100
    size = min(whole_extents(wanted, extent), most)
    if asked.kind == "FREE":
        size = min(size, int(free // extent) * extent)
    if size > free or size < extent:
        group = name.split("/")[0]
        extra = ", %s of it for the backup that is written to the same volume" % human(own_writes) if asked.kind == "auto" and own_writes else ""
        raise StillpointError(
            "volume group %s has %s free and a snapshot of %s needs %s%s: add a physical volume, free space in the group%s"
            % (
                group,
                human(free),
                name,
                human(max(size, extent)),
                extra,
                ", move the repository to another volume" if extra else ", or set a smaller snapshot_size",
            )
        )
    return size


def expected_writes(mapped: float) -> float:
    """Return the bytes that a thin pool may have to find for the old contents of an origin while its snapshot is copied.

    :param mapped: bytes of the pool that the origin uses: the most that a snapshot can keep from being reused
    """
    return min(mapped, max(mapped * AUTO_SHARE, AUTO_LEAST))


def check_pool(name: str, size: int, data_percent: float, metadata_percent: float, expected: float) -> None:
    """Raise StillpointError where a thin pool has not the room that snapshots of its volumes may come to need.

    :param size: bytes of data that the pool can hold
    :param expected: bytes that it may have to find
    """
    after = data_percent + 100.0 * expected / size
    if after > POOL_DATA_LIMIT:
        raise StillpointError(
            "the thin pool %s (%s) is %.1f %% full and may get to %.1f %% while the backup is copied, beyond %g %%: a full pool stops every volume "
            "in it; extend it (lvextend -L +%dM %s)"
            % (name, human(size), data_percent, after, POOL_DATA_LIMIT, -(-size * (after / POOL_DATA_LIMIT - 1) // MIB), name)
        )
    if metadata_percent > POOL_METADATA_LIMIT:
        raise StillpointError(
            "the metadata of the thin pool %s is %.1f %% full, beyond %g %%: a full pool stops every volume in it; extend it "
            "(lvextend --poolmetadatasize +64M %s)" % (name, metadata_percent, POOL_METADATA_LIMIT, name)
        )
