"""vmfsSparse (COWD) extents, packed from the specification and read by qemu-img as well."""

import random
from pathlib import Path

import pytest

from diskfs_formats.driver import NoRelatedFiles
from diskfs_formats.errors import CorruptImage, ImageError, TruncatedImage, UnsupportedFeature
from diskfs_formats.extents import ExtentKind
from diskfs_formats.source import MemorySource
from diskfs_formats.vmdk import VmdkDriver
from tests.conformance.promises import (
    assert_both_sides,
    assert_map,
    assert_past_the_end,
    assert_random_ranges,
    assert_ready_bytes,
    assert_threads,
    assert_whole,
)
from tests.helpers import assert_same_bytes
from tests.samples.vmdk_builder import stamped, with_zero_grains
from tests.samples.vmdk_esx_builder import COWD_FIELDS, Cowd, cowd, descriptor, grains_of
from tests.samples.vmdk_files import (
    assert_qemu_agrees,
    bytes_or_message,
    findings,
    opened,
    our_map,
    qemu_map,
    rules,
    runs,
    survivor,
    written,
)

SHAPES = [(1, 3 * 4096 + 5), (1, 1), (8, 8 * 40 + 3), (8, 2 * 8 * 4096 + 100), (3, 3 * 50 + 1), (128, 128 * 5)]
"""Sectors of a grain, and of the disk."""


def sample(grain: int, sectors: int) -> bytes:
    """A disk with two of three grains all zero, but at both ends of every table."""
    count = -(-sectors // grain)
    keep = {number for table in range(0, count + 4096, 4096) for number in (table - 1, table)}
    chance = random.Random(grain)
    return with_zero_grains(
        stamped(sectors), grain, {n for n in range(count) if n not in keep and chance.random() < 0.7}
    )


def disk_of(folder: Path, built: Cowd, sectors: int) -> Path:
    text = descriptor([f'RW {sectors} VMFSSPARSE "disk-delta.vmdk"'], "vmfsSparse")
    return written(folder, {"disk.vmdk": text, "disk-delta.vmdk": bytes(built)})


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize(("grain", "sectors"), SHAPES)
def test_every_shape_reads_right_and_as_qemu_reads_it(
    grain: int, sectors: int, seed: int | None, tmp_path: Path
) -> None:
    content = sample(grain, sectors)
    path = disk_of(tmp_path, cowd(grains_of(content, grain), sectors, grain=grain, seed=seed), sectors)
    reference = MemorySource(content)
    disk = opened(path)
    assert (disk.info.variant, disk.info.unit_size, disk.info.has_parent) == ("vmfsSparse", grain * 512, False)
    assert_ready_bytes(disk, reference)
    assert_whole(disk, reference)
    assert_both_sides(disk, reference, (grain * 512, grain * 512 * 4096), limit=8)
    assert_random_ranges(disk, reference, count=20)
    assert_past_the_end(disk)
    if seed is None:
        assert_threads(opened(path), reference, reads=3)
    else:
        assert_map(disk, reference, samples=3)
    assert_qemu_agrees(path, content)
    assert runs(our_map(disk)) == runs(qemu_map(path))
    disk.close()
    assert rules(path) == []


def test_what_was_read_is_ready(tmp_path: Path) -> None:
    content = stamped(100)
    disk = opened(disk_of(tmp_path, cowd(grains_of(content, 1), 100, seed=3), 100))
    disk.read_at(0, 1)
    found = disk.read_if_ready(0, disk.size)  # type: ignore[attr-defined]  # every MappedImage has it
    assert found is not None
    assert_same_bytes(found, content)


def test_no_descriptor_no_disk() -> None:
    built = bytes(cowd(grains_of(stamped(8), 1), 8))
    with pytest.raises(UnsupportedFeature, match=r"x-delta: it is a vmfsSparse \(COWD\) extent.*open the descriptor"):
        VmdkDriver().open(MemorySource(built, "x-delta"), NoRelatedFiles())


def test_grains_in_a_row_are_one_run_of_the_map(tmp_path: Path) -> None:
    disk = opened(disk_of(tmp_path, cowd(grains_of(stamped(64, 1), 1), 64), 64))
    assert [(extent.offset, extent.length, extent.kind) for extent in disk.extents()] == [
        (0, 64 * 512, ExtentKind.DATA)
    ]


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("version", 0, UnsupportedFeature), ("version", 2, UnsupportedFeature), ("grainSize", 0, CorruptImage),
        ("grainSize", 2049, CorruptImage), ("grainSize", 2**32 - 1, CorruptImage), ("numSectors", 0, CorruptImage),
        ("numSectors", 99, CorruptImage), ("numGDEntries", 0, CorruptImage), ("gdOffset", 0, CorruptImage),
        ("gdOffset", 2**32 - 1, TruncatedImage), ("numSectors", 4097, CorruptImage),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_is_refused(name: str, value: int, error: type[ImageError], tmp_path: Path) -> None:
    built = cowd(grains_of(stamped(100), 1), 100).set_field(name, value)
    with pytest.raises(error, match=r"disk-delta\.vmdk"):
        opened(disk_of(tmp_path, built, 100))


@pytest.mark.parametrize("name", COWD_FIELDS)
@pytest.mark.parametrize("value", [0, 1, 2, 2**16, 2**31, 2**32 - 1])
def test_every_field_at_its_extremes(name: str, value: int, tmp_path: Path) -> None:
    content = stamped(100)
    built = cowd(grains_of(content, 1), 100).set_field(name, value)
    path = disk_of(tmp_path, built, 100)
    disk, message = survivor(path)
    assert disk is not None or "disk-delta.vmdk" in message
    if disk is None:
        return
    data, message = bytes_or_message(disk, 0, disk.size)
    assert data is not None or "disk-delta.vmdk" in message
    if data is not None and name not in {"grainSize", "gdOffset"}:
        assert_same_bytes(data, content)
    disk.close()
    findings(path)


def test_more_directory_entries_than_needed_are_no_harm(tmp_path: Path) -> None:
    built = cowd(grains_of(stamped(100), 1), 100).set_field("numGDEntries", 128)
    assert_whole(opened(disk_of(tmp_path, built, 100)), MemorySource(stamped(100)))


def test_an_unclean_shutdown_is_a_warning(tmp_path: Path) -> None:
    built = cowd(grains_of(stamped(8), 1), 8).set_field("uncleanShutdown", 1)
    disk = opened(disk_of(tmp_path, built, 8))
    assert [finding.rule for finding in disk.info.findings] == ["vmdk-unclean-shutdown"]


def test_a_bad_entry_fails_only_its_own_reads(tmp_path: Path) -> None:
    content = stamped(50)
    for sector in (1, 2, 3, 4, 2**31, 2**32 - 1):
        built = cowd(grains_of(content, 1), 50).set_entry(7, sector)
        path = disk_of(tmp_path, built, 50)
        disk = opened(path)
        for number in range(50):
            if number == 7:
                with pytest.raises(CorruptImage, match=r"disk-delta\.vmdk: grain 7"):
                    disk.read_at(7 * 512, 512)
            else:
                assert_same_bytes(disk.read_at(number * 512, 512), content[number * 512 : number * 512 + 512])
        disk.close()
        assert rules(path) == ["vmdk-grain"]


@pytest.mark.parametrize("sector", [1, 3, 4, 2**31, 2**32 - 1])
def test_a_bad_directory_entry_fails_only_its_own_reads(sector: int, tmp_path: Path) -> None:
    content = stamped(4096 + 10)
    built = cowd(grains_of(content, 1), 4096 + 10).set_directory(1, sector)
    disk = opened(disk_of(tmp_path, built, 4096 + 10))
    assert_same_bytes(disk.read_at(0, 4096 * 512), content[: 4096 * 512])
    with pytest.raises(CorruptImage, match=r"disk-delta\.vmdk"):
        disk.read_at(4096 * 512, 1)


def test_shared_grains_and_tables_are_found(tmp_path: Path) -> None:
    content = stamped(4096 + 10)
    built = cowd(grains_of(content, 1), 4096 + 10)
    built.set_entry(9, built.grains[10])
    path = disk_of(tmp_path, built, 4096 + 10)
    assert rules(path) == ["vmdk-grain-overlap"]
    built.set_directory(1, built.tables[0])
    written(tmp_path, {"disk-delta.vmdk": bytes(built)})
    assert rules(path) == ["vmdk-table-overlap", "vmdk-table-overlap"]


def test_a_file_cut_anywhere_fails_or_is_right(tmp_path: Path) -> None:
    content = stamped(60)
    built = bytes(cowd(grains_of(content, 1), 60, seed=2))
    for length in [*range(0, 4096, 401), *range(4096, len(built), 1021)]:
        path = disk_of(tmp_path, Cowd(bytearray(built[:length]), 4), 60)
        try:
            disk = opened(path)
        except ImageError:
            continue
        for number in range(60):
            try:
                data = disk.read_at(number * 512, 512)
            except ImageError:
                continue
            assert_same_bytes(data, content[number * 512 : number * 512 + 512])
        disk.close()
