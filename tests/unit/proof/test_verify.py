# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import subprocess

import pytest
from _core.agent import show
from _core.host.errors import UsageError
from _core.proof import checksums
from _core.repository.generation import Generation
from trees import (
    Quiet,
    awkward,
    back_up,
    job,
    needs_root,
    no_waiting_for_the_disk,  # noqa: F401
    tree,
    write,
)


@pytest.fixture
def directory(tmp_path):
    source = str(tmp_path / "source")
    os.makedirs(source + "/sub")
    write(source + "/table.ibd", b"x" * 100_000)
    write(source + "/sub/file")
    directory = job(tmp_path / "repository")
    back_up(directory, tree(source))
    return directory


def flip_one_bit(path: str, place: int = 4711) -> None:
    """Change one bit, as a disk does it: size and times stay."""
    status = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x10]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@needs_root
def test_an_untouched_generation_has_no_fault_and_is_not_changed_by_the_look(tmp_path):
    directory = job(tmp_path / "repository")
    generation = back_up(directory, tree(awkward(str(tmp_path / "source"))))
    before = subprocess.run(["find", generation.path, "-printf", "%p %i %C@ %T@\n"], stdout=subprocess.PIPE, check=True).stdout
    reporter = Quiet()
    verdict = checksums.verify(generation, reporter)
    assert verdict.ok and verdict.faults == () and reporter.warnings == []
    assert (verdict.files, verdict.bytes) == (generation.trees[0].files, generation.size_bytes)
    assert subprocess.run(["find", generation.path, "-printf", "%p %i %C@ %T@\n"], stdout=subprocess.PIPE, check=True).stdout == before


def test_one_flipped_bit_is_found_named_and_remembered(directory):
    generation = directory.find()
    flip_one_bit(generation.path + "/files/tree/table.ibd")
    verdict = checksums.verify(generation, Quiet())
    assert not verdict.ok
    assert [fault.path for fault in verdict.faults] == ["files/tree/table.ibd"]
    assert "contents changed" in verdict.faults[0].what
    later = directory.generations()[0]
    assert later.state == "bad"
    assert later.reason.startswith("1 faults were found on 20")
    assert later.verified["faults"] == [verdict.faults[0].text()]


def test_damage_is_that_of_every_generation_that_has_the_same_file(tmp_path, directory):
    one = directory.find()
    two = back_up(directory, tree(str(tmp_path / "source")), hours=1)
    write(str(tmp_path / "source/table.ibd"), b"another one")
    three = back_up(directory, tree(str(tmp_path / "source")), hours=2)
    checksums.record_proof(one, {"ok": True}, Quiet())
    flip_one_bit(two.path + "/files/tree/table.ibd")
    os.unlink(two.path + "/files/tree/sub/file")  # a name is that of one generation alone
    reporter = Quiet()
    verdict = checksums.verify(two, reporter)
    assert [each.state for each in (one, two, three)] == ["bad", "bad", "good"]
    assert reporter.warnings == ["%s is damaged too: it has the same file files/tree/table.ibd" % one.name]
    known = one.verified
    assert known["faults"] == [fault.text() for fault in verdict.faults if fault.path == "files/tree/table.ibd"]
    assert known["faults_total"] == 1 and known["time"] == verdict.time and one.proof == {"ok": True}
    assert os.readlink(directory.path + "/latest") == three.name


def test_damage_beyond_the_faults_that_are_listed_counts_for_other_generations_too(tmp_path, monkeypatch, directory):
    monkeypatch.setattr(checksums, "MOST_FAULTS", 1)
    one = directory.find()
    two = back_up(directory, tree(str(tmp_path / "source")), hours=1)
    os.unlink(two.path + "/files/tree/sub/file")
    flip_one_bit(two.path + "/files/tree/table.ibd")
    verdict = checksums.verify(two, Quiet())
    assert not any(fault.contents for fault in verdict.faults) and verdict.faults_total > 1
    assert one.state == "bad"


def test_a_flipped_bit_in_the_manifest_is_found_and_remembered(directory):
    generation = directory.find()
    flip_one_bit(generation.path + "/manifest.json", os.path.getsize(generation.path + "/manifest.json") - 200)
    assert generation.state == "good"
    verdict = checksums.verify(Generation(generation.path), Quiet())
    assert [fault.path for fault in verdict.faults] == ["manifest.json"]
    assert Generation(generation.path).state == "bad"


def test_a_missing_manifest_is_a_fault(directory):
    generation = directory.find()
    os.unlink(generation.path + "/manifest.json")
    assert Generation(generation.path).state == "bad"
    assert not checksums.verify(Generation(generation.path), Quiet()).ok


def test_what_is_missing_and_what_is_new_is_found(directory):
    generation = directory.find()
    os.unlink(generation.path + "/files/tree/sub/file")
    write(generation.path + "/files/tree/new\nline")
    faults = {fault.text() for fault in checksums.verify(generation, Quiet()).faults}
    assert {"files/tree/sub/file: missing", "files/tree/new\\nline: not in the manifest"} <= faults


def test_a_generation_that_is_whole_again_is_good_again(directory):
    generation = directory.find()
    for expected in (False, True):
        flip_one_bit(generation.path + "/files/tree/table.ibd")
        assert checksums.verify(Generation(generation.path), Quiet()).ok is expected
    assert Generation(generation.path).state == "good"


def test_the_result_lies_beside_the_generation_and_goes_with_it(directory):
    generation = directory.find()
    checksums.verify(generation, Quiet())
    path = os.path.join(directory.path, ".%s.verified" % generation.name)
    with open(path, encoding="utf-8") as file:
        recorded = json.load(file)
    assert recorded["ok"] is True and recorded["files"] == 2 and recorded["faults"] == []
    with directory.lock():
        directory.remove(generation)
    assert os.listdir(directory.path) == [".lock"]


def test_progress_goes_up_to_the_size_of_the_generation(directory):
    generation = directory.find()
    reporter = Quiet()
    assert checksums.verify(generation, reporter).ok
    assert reporter.done[-1] == (generation.size_bytes, generation.size_bytes)
    assert {total for _done, total in reporter.done} == {generation.size_bytes}
    assert reporter.stages == ["verify"]


def test_everything_wrong_is_counted_and_the_first_faults_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "MOST_FAULTS", 3)
    source = str(tmp_path / "source")
    os.mkdir(source)
    for number in range(10):
        write("%s/%d" % (source, number))
    generation = back_up(job(tmp_path / "repository"), tree(source))
    for number in range(10):
        os.unlink("%s/files/tree/%d" % (generation.path, number))
    verdict = checksums.verify(generation, Quiet())
    assert (len(verdict.faults), verdict.faults_total) == (3, 11)  # and the directory's own time


def test_a_generation_that_is_gone_can_not_be_verified(directory):
    generation = directory.find()
    with directory.lock():
        directory.remove(generation)
    with pytest.raises(UsageError, match="can't be read: No such file or directory"):
        checksums.verify(generation, Quiet())


def test_a_generation_is_not_removed_while_it_is_read(directory):
    generation = directory.find()
    with directory.lock(), generation.hold():
        assert directory.remove(generation) is False
    assert os.path.isdir(generation.path)


# -- samples


@pytest.fixture
def many(tmp_path):
    """A job with a generation of a hundred files."""
    source = str(tmp_path / "source")
    os.mkdir(source)
    for number in range(100):
        write("%s/%02d" % (source, number), b"x" * 10_000)
    directory = job(tmp_path / "repository")
    back_up(directory, tree(source))
    return directory


def test_a_sample_reads_its_share_each_time_another_one_and_says_so(many):
    generation = many.find()
    verdicts = [checksums.verify(generation, Quiet(), 20.0) for _each in range(5)]
    assert all(0 < verdict.files < 60 and verdict.bytes == verdict.files * 10_000 for verdict in verdicts)
    assert len({verdict.files for verdict in verdicts}) > 1
    assert (verdicts[0].of_files, verdicts[0].of_bytes) == (100, 1_000_000)
    assert "the rest was not read" in show.verdict(verdicts[0].as_dict())
    assert checksums.verify(generation, Quiet(), 0.000001).files == 1


def test_a_sample_without_a_fault_never_counts_as_a_verification_nor_takes_back_what_one_found(many):
    generation = many.find()
    checksums.verify(generation, Quiet(), 20.0)
    assert generation.verified is None
    assert generation.recorded["sample"]["percent"] == 20.0
    flip_one_bit(generation.path + "/files/tree/07")
    assert not checksums.verify(generation, Quiet()).ok
    for _each in range(20):
        if checksums.verify(generation, Quiet(), 5.0).ok:
            break
    assert Generation(generation.path).state == "bad"
    assert generation.verified["faults"][0].startswith("files/tree/07: contents changed")


def test_a_bit_that_flipped_is_found_by_samples_sooner_or_later_and_remembered(many):
    generation = many.find()
    flip_one_bit(generation.path + "/files/tree/07")
    found = [checksums.verify(generation, Quiet(), 50.0).ok for _each in range(20)]
    assert False in found and True in found
    assert Generation(generation.path).state == "bad"


def test_what_a_file_is_called_and_whose_it_is_is_compared_of_all_in_a_sample_too(many):
    generation = many.find()
    os.unlink(generation.path + "/files/tree/07")
    os.chmod(generation.path + "/files/tree/08", 0o700)
    faults = {fault.path for fault in checksums.verify(generation, Quiet(), 1.0).faults}
    assert {"files/tree/07", "files/tree/08"} <= faults
