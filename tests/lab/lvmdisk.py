#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a sparse disk image that is an LVM physical volume with one linear logical volume.

No device-mapper, loop device or privilege is needed, so nothing can be left attached, and the host's own LVM never sees
the volume group. The format is LVM2's text format as described in lvm2's lib/format_text/layout.h.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import zlib
from itertools import pairwise
from pathlib import Path

SECTOR = 512
EXTENT = 4 << 20
PE_START = 1 << 20
MDA_START = 4096
MDA_SIZE = PE_START - MDA_START
INITIAL_CRC = 0xF597A6CF


def crc(data: bytes) -> int:
    """Given bytes, return LVM's checksum of them: CRC-32 with its own start value and no final inversion."""
    return zlib.crc32(data, INITIAL_CRC ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def uuid(seed: str) -> str:
    """Given a seed, return an LVM UUID (6-4-4-4-4-4-6): the same for the same seed, so that images are reproducible."""
    text = hashlib.sha256(seed.encode()).hexdigest()[:32]
    cuts = (0, 6, 10, 14, 18, 22, 26, 32)
    return "-".join(text[a:b] for a, b in pairwise(cuts))


def metadata(vg: str, lv: str, disk_bytes: int, lv_extents: int) -> bytes:
    """Given names and sizes, return the volume group's description as the tools would write it."""
    pe_count = (disk_bytes - PE_START) // EXTENT
    return f"""{vg} {{
id = "{uuid(vg)}"
seqno = 1
format = "lvm2"
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = {EXTENT // SECTOR}
max_lv = 0
max_pv = 0
metadata_copies = 0
physical_volumes {{
pv0 {{
id = "{uuid(vg + "/pv0")}"
device = "unknown"
status = ["ALLOCATABLE"]
flags = []
dev_size = {disk_bytes // SECTOR}
pe_start = {PE_START // SECTOR}
pe_count = {pe_count}
}}
}}
logical_volumes {{
{lv} {{
id = "{uuid(vg + "/" + lv)}"
status = ["READ", "WRITE", "VISIBLE"]
flags = []
creation_time = 1700000000
creation_host = "etrial"
segment_count = 1
segment1 {{
start_extent = 0
extent_count = {lv_extents}
type = "striped"
stripe_count = 1
stripes = ["pv0", 0]
}}
}}
}}
}}
contents = "Text Format Volume Group"
version = 1
description = "made by the lab"
creation_host = "etrial"
creation_time = 1700000000
""".encode() + b"\0"


def label(vg: str, disk_bytes: int) -> bytes:
    """Given the group's name and the disk's size, return the physical volume's label sector."""
    pv_header = uuid(vg + "/pv0").replace("-", "").encode() + struct.pack(
        "<Q 4Q 4Q II 2Q",
        disk_bytes,
        *(PE_START, 0, 0, 0),  # data areas, ended by zeros
        *(MDA_START, MDA_SIZE, 0, 0),  # metadata areas, ended by zeros
        *(2, 1),  # extension: version, PV_EXT_USED
        *(0, 0),  # no boot loader area
    )
    checked = (struct.pack("<I8s", 32, b"LVM2 001") + pv_header).ljust(SECTOR - 20, b"\0")
    return struct.pack("<8sQI", b"LABELONE", 1, crc(checked)) + checked


def mda_header(text: bytes) -> bytes:
    """Given the metadata text, return the header of the metadata area that points at it."""
    checked = struct.pack(
        "<16sIQQ QQII", b" LVM2 x[5A%r0N*>", 1, MDA_START, MDA_SIZE, SECTOR, len(text), crc(text), 0
    ).ljust(SECTOR - 4, b"\0")
    return struct.pack("<I", crc(checked)) + checked


def main() -> None:
    parser = argparse.ArgumentParser(description="Prints the logical volume's offset in the image, in bytes.")
    parser.add_argument("image", type=Path)
    parser.add_argument("vg")
    parser.add_argument("lv")
    parser.add_argument("disk_gib", type=int)
    parser.add_argument("lv_gib", type=int)
    args = parser.parse_args()
    size = args.disk_gib << 30
    text = metadata(args.vg, args.lv, size, (args.lv_gib << 30) // EXTENT)
    with args.image.open("wb") as image:
        image.truncate(size)
        image.seek(SECTOR)
        image.write(label(args.vg, size))
        image.seek(MDA_START)
        image.write(mda_header(text))
        image.write(text)
    print(PE_START)


if __name__ == "__main__":
    main()
