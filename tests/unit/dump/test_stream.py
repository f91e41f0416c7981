# SPDX-License-Identifier: GPL-3.0-or-later
"""The compressed file of a dump, by the real zstd."""

from __future__ import annotations

import hashlib
import random
import subprocess
from pathlib import Path

from _core.dump.stream import Compressed


def dumped(path: Path, text: bytes) -> bytes:
    """Compress a text as a dump is, and return what lies there then."""
    file = Compressed(str(path))
    for start in range(0, len(text), 1 << 18):
        file.write(text[start : start + (1 << 18)])
    file.finish()
    assert file.checksum == hashlib.md5(path.read_bytes()).hexdigest()
    assert subprocess.run(["zstd", "-dcq", path], check=True, stdout=subprocess.PIPE).stdout == text
    return path.read_bytes()


def test_a_row_more_leaves_most_of_what_follows_as_it_was(tmp_path: Path) -> None:
    """Or every copy on another machine would take the whole of every dump."""
    some = random.Random(5)
    rows = [b"(%d,'%x')," % (number, some.getrandbits(400)) for number in range(80_000)]
    first = dumped(tmp_path / "first", b"".join(rows))
    second = dumped(tmp_path / "second", b"".join([*rows[:8000], b"(1,'a row more'),", *rows[8000:]]))
    half = len(first) // 2
    assert first[-half:-4] == second[-half:-4]  # but for the checksum at the end of a frame
