# SPDX-License-Identifier: GPL-3.0-or-later
"""What the next generation of a changed table costs, on file systems that share blocks and on one that does not, beside the usual tools; and thirty of them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

sys.dont_write_bytecode = True
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "plugins" / "module_utils")]

from _core.host.process import LOW_PRIORITY  # noqa: E402
from _core.repository.job_directory import JobDirectory  # noqa: E402
from _core.repository.partial import Partial  # noqa: E402
from _core.trees import Tree  # noqa: E402
from bench import Record, Results  # noqa: E402
from native import conditions  # noqa: E402

PAGE = 16384
MIB = 1 << 20
FILE_SYSTEMS = ("xfs", "btrfs", "ext4")
SHARES = (0.1, 1, 5)  # percent of the pages
GENERATIONS = 30
TABLE = "orders.ibd"
PLAIN = ("rsync", "-aHAXXS", "--numeric-ids", "--modify-window=-1")


def run(kinds: Sequence[str] = FILE_SYSTEMS, size: int = 256 * MIB, pairs: int = 3, days: int = 128 * MIB) -> None:
    """Measure second backups of a table of this size, and thirty generations of one that is smaller. Records of other file systems are kept."""
    top = Path(tempfile.mkdtemp(prefix="stillpoint-bench-"))
    try:
        second = Results("sharing", {**conditions(top), "size_mib": size // MIB, "tools": versions()}, of_others("sharing", kinds))
        thirty = Results("generations", {**conditions(top), "size_mib": days // MIB, "generations": GENERATIONS}, of_others("generations", kinds))
        for kind in kinds:
            with mounted(kind, top, 20 * size + 1024 * MIB) as disk:
                second_backups(second, Disk(kind, disk, top / "image"), Source(top / "source", size), pairs)
            for whole in (False, True) if kind != "ext4" else (True,):
                with mounted(kind, top, (GENERATIONS + 3) * days + 1024 * MIB) as disk:
                    thirty_generations(thirty, Disk(kind, disk, top / "image"), Source(top / "source", days), top / "restored", whole)
    finally:
        shutil.rmtree(top)


def of_others(name: str, kinds: Sequence[str]) -> list[Record]:
    """Return the records of an earlier run that are of none of these file systems."""
    earlier = Results.read(name)
    return [record for record in earlier.records if record["file_system"] not in kinds] if earlier else []


def versions() -> Record:
    """Return the versions of the tools compared with."""
    commands = {"restic": ["restic", "version"], "borg": ["borg", "--version"], "rsync": ["rsync", "--version"]}
    said = {name: subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() for name, command in commands.items()}
    return {"restic": said["restic"][1], "borg": said["borg"][1], "rsync": said["rsync"][2]}


# -- a disk and a table


class Disk:
    """A file system on a file of its own."""

    def __init__(self, kind: str, path: Path, image: Path) -> None:
        self.kind, self.path, self._image = kind, path, image

    def used(self) -> int:
        """Return the bytes that are in use, once all is written and the file system has given back what it had set aside."""
        subprocess.run(["umount", self.path], check=True)
        mount(self._image, self.path)
        os.listdir(self.path)  # btrfs ends what it was removing when somebody looks
        subprocess.run(["sync", "-f", self.path], check=True)
        figures = os.statvfs(self.path)
        return (figures.f_blocks - figures.f_bfree) * figures.f_frsize


    def settle(self) -> None:
        """Return when what was removed is given back: btrfs does that in the background."""
        before = -1
        while before != (before := self.used()):
            time.sleep(1)


@contextmanager
def mounted(kind: str, top: Path, size: int) -> Iterator[Path]:
    """Make a file system and mount it, for as long as the block lasts."""
    image, point = top / "image", top / "disk"
    point.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs." + kind, "-q", image], check=True)
    mount(image, point)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True)
        image.unlink()


def mount(image: Path, point: Path) -> None:
    subprocess.run(["mount", "-o", "loop", image, point], check=True)


class Source:
    """A table of random bytes that changes."""

    def __init__(self, path: Path, size: int) -> None:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        self.path, self.size, self.table = path, size, path / TABLE
        self._random = random.Random(7)
        with self.table.open("wb") as file:
            for _number in range(size // MIB):
                file.write(self._random.randbytes(MIB))

    def pages(self, pattern: str, share: float) -> Sequence[int]:
        """Return the numbers of the pages that change: this percentage, at random, side by side, or behind the last one."""
        there = self.size // PAGE
        number = round(there * share / 100)
        if pattern == "random":
            return self._random.sample(range(there), number)
        first = self._random.randrange(there - number) if pattern == "clustered" else there
        return range(first, first + number)

    def write(self, pages: Sequence[int]) -> dict[int, bytes]:
        """Give pages new contents and return the old ones."""
        old = {}
        with self.table.open("r+b") as file:
            for page in pages:
                file.seek(page * PAGE)
                old[page] = file.read(PAGE)
                file.seek(page * PAGE)
                file.write(self._random.randbytes(PAGE))
        return old

    def put_back(self, old: dict[int, bytes]) -> None:
        with self.table.open("r+b") as file:
            for page, contents in old.items():
                file.seek(page * PAGE)
                file.write(contents)
            file.truncate(self.size)


def forget(*places: Path) -> None:
    """Have files read from the disk the next time."""
    subprocess.run(["sync"], check=True)
    for place in places:
        for path in [place, *place.rglob("*")]:
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)


def timed(disk: Path, command: Sequence[object], **environment: str) -> Record:
    """Run a command until what it wrote is on the disk; return its time and the processor's."""
    began = time.monotonic()
    argv = ["nice", "-n", str(LOW_PRIORITY), *(str(each) for each in command)]  # as the agent's own copies are
    process = subprocess.Popen(argv, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = process.stderr.read()  # type: ignore[union-attr]
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}: {said.decode()}")
    subprocess.run(["sync", "-f", disk], check=True)
    return {"seconds": round(time.monotonic() - began, 2), "cpu_s": round(usage.ru_utime + usage.ru_stime, 2)}


# -- the ways


class Ways:
    """What a second backup is made by, each with a repository of its own on one disk."""

    def __init__(self, disk: Disk, source: Source, top: Path) -> None:
        self.disk, self.source, self.top = disk, source, top
        home = {"HOME": str(top), "XDG_CACHE_HOME": str(top / "cache")}
        self._restic = {**home, "RESTIC_PASSWORD": "bench", "RESTIC_REPOSITORY": str(disk.path / "restic")}
        self._borg = {**home, "BORG_BASE_DIR": str(top), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        self._number = 0

    def all(self) -> dict[str, Callable[[], Record]]:
        """Return what backs the source up, by way."""
        return {"rsync": self.rsync, "ours": self.ours, "restic": self.restic, "borg": self.borg, "borg fixed": self.borg_fixed}

    def prepare(self) -> None:
        """Take the first backup by each."""
        timed(self.disk.path, ["restic", "init"], **self._restic)
        for name in ("borg", "borg-fixed"):
            timed(self.disk.path, ["borg", "init", "--encryption", "none", self.disk.path / name], **self._borg)
        for way in self.all().values():
            way()

    def rsync(self) -> Record:
        first, dest = self.disk.path / "rsync-first", self.disk.path / "rsync"
        there = first.exists()
        return timed(self.disk.path, [*PLAIN, *([f"--link-dest={first}"] if there else []), f"{self.source.path}/", f"{dest if there else first}/"])

    def ours(self) -> Record:
        return timed(self.disk.path, [sys.executable, __file__, "--make", self.disk.path / "ours", self.source.path])

    def restic(self) -> Record:
        return timed(self.disk.path, ["restic", "--quiet", "backup", self.source.path], **self._restic)

    def borg(self) -> Record:
        return self._create("borg")

    def borg_fixed(self) -> Record:
        return self._create("borg-fixed", f"--chunker-params=fixed,{PAGE}")

    def _create(self, name: str, *options: str) -> Record:
        self._number += 1
        return timed(self.disk.path, ["borg", "create", *options, f"{self.disk.path / name}::{self._number}", self.source.path], **self._borg)

    def remove_second(self) -> None:
        """Remove the second generations, so that the next ones are second ones too."""
        shutil.rmtree(self.disk.path / "rsync")
        for each in sorted(path for path in (self.disk.path / "ours").iterdir() if path.name[0].isdigit())[1:]:
            shutil.rmtree(each)
        self.disk.settle()


def second_backups(results: Results, disk: Disk, source: Source, pairs: int) -> None:
    """Measure a second backup by each way: pages changed at random, clustered and appended. Restic and borg keep what they have, once for each."""
    ways = Ways(disk, source, source.path.parent)
    ways.prepare()
    for pattern in ("random", "clustered", "appended"):
        for share in SHARES:
            pages = source.pages(pattern, share)
            old = source.write(pages)
            for pair in range(pairs):
                for way, backup in ways.all().items():
                    if pair and way not in ("rsync", "ours"):
                        continue
                    before = disk.used()
                    forget(source.path, disk.path)
                    took = backup()
                    stored = disk.used() - before
                    changed = len(pages) * PAGE
                    results.add(pair=pair, file_system=disk.kind, pattern=pattern, share=share, way=way, changed=changed, stored=stored, **took)
                ways.remove_second()
            source.put_back({page: contents for page, contents in old.items() if contents})


def thirty_generations(results: Results, disk: Disk, source: Source, dest: Path, whole: bool) -> None:
    """Measure generations of which each changed one percent of the pages at random: all of them, the removal of the oldest, and how long the newest and
    the oldest take to be copied elsewhere."""
    seconds, empty = 0.0, disk.used()
    for number in range(GENERATIONS):
        if number:
            source.write(source.pages("random", 1))
        options = ["--whole-file"] if whole else []
        seconds += timed(disk.path, [sys.executable, __file__, "--make", disk.path / "ours", source.path, *options])["seconds"]
    made = sorted(path for path in (disk.path / "ours").iterdir() if path.name[0].isdigit())
    full = disk.used()
    record: Record = {"pair": 0, "file_system": disk.kind, "whole": whole, "stored": full - empty, "backups_s": round(seconds, 1)}
    for name, path in (("oldest", made[0]), ("newest", made[-1])):
        forget(path)
        record[f"restore_{name}_s"] = timed(dest.parent, [*PLAIN, f"{path}/", f"{dest}/"])["seconds"]
        shutil.rmtree(dest)
        said = subprocess.run(["filefrag", path / "files" / TABLE.removesuffix(".ibd") / TABLE], capture_output=True, text=True, check=True).stdout
        record[f"extents_{name}"] = int(said.rsplit(": ", 1)[1].split()[0])
    record["prune_s"] = timed(disk.path, ["rm", "-rf", made[0]])["seconds"]
    disk.settle()
    results.add(**record, freed=full - disk.used())


def back_up(dest: str, source: str, options: Sequence[str]) -> None:
    """Make a generation: what a run does between its snapshot and its proof."""
    directory = JobDirectory(dest)
    os.makedirs(dest, mode=0o700, exist_ok=True)
    now = datetime.now(timezone.utc)
    with directory.lock(), Partial(directory, "bench") as partial:
        partial.add(Tree("files/" + TABLE.removesuffix(".ibd"), source, source), options=options)
        partial.publish(now, {"job": "bench", "time": now.isoformat(), "warnings": [], "proof": None})


if __name__ == "__main__":
    if "--make" in sys.argv:
        back_up(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        run(sys.argv[1:] or FILE_SYSTEMS)
