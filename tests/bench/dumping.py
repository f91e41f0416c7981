# SPDX-License-Identifier: GPL-3.0-or-later
"""What a second dump costs: here, where it is a new file, and in a copy that finds parts again, with zstd as it is and as the agent calls it."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "plugins" / "module_utils")]

from _core.dump import stream  # noqa: E402
from bench import Results  # noqa: E402
from native import conditions  # noqa: E402

WAYS = {"zstd": ("zstd", "-q", "-c", "-3"), "ours": stream._ZSTD}
SHARE = 0.001  # of the rows


class Table:
    """Rows of about 140 bytes, half of which are words."""

    def __init__(self, rows: int) -> None:
        self._random = random.Random(3)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self._words = ["".join(self._random.choices(letters, k=self._random.randint(3, 9))) for _number in range(5000)]
        self.rows = [self.row(number) for number in range(rows)]

    def row(self, number: int) -> str:
        words = " ".join(self._random.choices(self._words, k=12))
        return "(%d,'%s','%032x',%d)" % (number, words, self._random.getrandbits(128), self._random.randrange(10_000))

    def changed(self, pattern: str) -> list[str]:
        """Return the rows with some others: at random, side by side, or behind the last one."""
        rows, there = list(self.rows), len(self.rows)
        number = int(there * SHARE)
        if pattern == "appended":
            return rows + [self.row(there + each) for each in range(number)]
        first = self._random.randrange(there - number)
        for each in self._random.sample(range(there), number) if pattern == "random" else range(first, first + number):
            rows[each] = self.row(each)
        return rows


def run(rows: int = 800_000, pairs: int = 3) -> None:
    """Measure a second dump of a table of this size, `pairs` times for each way that its rows change."""
    top = Path(tempfile.mkdtemp(prefix="stillpoint-bench-"))
    environment = {**os.environ, "RESTIC_PASSWORD": "bench", "XDG_CACHE_HOME": str(top / "cache"), "HOME": str(top)}
    try:
        table = Table(rows)
        results = Results("dumps", {**conditions(top), "rows": rows, "percent": 100 * SHARE}, [])
        for way in WAYS:
            subprocess.run(["restic", "-q", "-r", top / way, "init"], env=environment, check=True)
            dump(table.rows, way, top, environment)
        for pair in range(pairs):
            for pattern in ("random", "clustered", "appended"):
                changed = table.changed(pattern)
                for way in WAYS:
                    results.add(pair=pair, way=way, pattern=pattern, **dump(changed, way, top, environment))
    finally:
        shutil.rmtree(top)


def dump(rows: list[str], way: str, top: Path, environment: dict[str, str]) -> dict[str, float]:
    """Write rows as a dump does, compress that, send it to the way's repository; return its size, what zstd took and what the repository grew by."""
    text, dest = top / "text", top / "dump.sql.zst"
    with text.open("w") as file:
        for start in range(0, len(rows), 5000):
            file.write("INSERT INTO `orders` VALUES\n%s;\n" % ",\n".join(rows[start : start + 5000]))
    before, cpu = size(top / way), cpu_seconds()
    with text.open("rb") as source, dest.open("wb") as file:
        subprocess.run(WAYS[way], stdin=source, stdout=file, check=True)
    took = cpu_seconds() - cpu
    subprocess.run(["restic", "-q", "-r", top / way, "backup", dest], env=environment, check=True)
    return {"text": text.stat().st_size, "bytes": dest.stat().st_size, "sent": size(top / way) - before, "cpu_s": round(took, 2)}


def size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    run()
