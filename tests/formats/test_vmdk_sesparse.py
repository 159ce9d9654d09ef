"""seSparse extents, packed by hand and read by qemu-img as well."""

import random
from pathlib import Path

import pytest

from diskfs_formats.driver import NoRelatedFiles
from diskfs_formats.errors import CorruptImage, ImageError, UnsupportedFeature
from diskfs_formats.extents import ExtentKind
from diskfs_formats.source import MemorySource
from diskfs_formats.vmdk import VmdkDriver
from tests.conformance.promises import (
    SparseReference,
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
from tests.samples.vmdk_esx_builder import (
    ALLOCATED,
    SESPARSE_FIELDS,
    UNMAPPED,
    ZERO,
    SeSparse,
    descriptor,
    grains_of,
    sesparse,
    sesparse_entry,
)
from tests.samples.vmdk_files import (
    assert_qemu_agrees,
    bytes_or_message,
    findings,
    opened,
    our_map,
    qemu_map,
    rules,
    run,
    runs,
    survivor,
    written,
)

SECTORS = 8 * 300 + 5
ZEROES = {3, 4, 5, 100, 200, 201, 299}
CONTENT = with_zero_grains(stamped(SECTORS), 8, ZEROES | {7, 8, 250})


def sample(*, seed: int | None = 1, first_index: int = 0) -> SeSparse:
    return sesparse(
        grains_of(CONTENT, 8), SECTORS, zero={3, 5, 200, 299}, unmapped={4, 100, 201}, seed=seed,
        first_index=first_index,
    )  # fmt: skip


def disk_of(folder: Path, built: SeSparse | bytes, sectors: int = SECTORS) -> Path:
    text = descriptor([f'RW {sectors} SESPARSE "disk-sesparse.vmdk"'], "seSparse")
    return written(folder, {"disk.vmdk": text, "disk-sesparse.vmdk": bytes(built)})


@pytest.mark.parametrize("seed", [None, 1])
def test_every_kind_of_grain_reads_right_and_as_qemu_reads_it(seed: int | None, tmp_path: Path) -> None:
    path = disk_of(tmp_path, sample(seed=seed))
    reference = MemorySource(CONTENT)
    disk = opened(path)
    assert (disk.info.variant, disk.info.unit_size, disk.info.has_parent) == ("seSparse", 4096, False)
    assert_ready_bytes(disk, reference)
    assert_whole(disk, reference)
    assert_both_sides(disk, reference, (512, 4096))
    assert_random_ranges(disk, reference)
    assert_map(disk, reference)
    assert_past_the_end(disk)
    assert_threads(opened(path), reference, reads=6)
    assert_qemu_agrees(path, CONTENT)
    assert runs(our_map(disk)) == runs(qemu_map(path))
    places = [entry["offset"] for entry in our_map(disk) if "offset" in entry]
    assert places == [entry["offset"] for entry in qemu_map(path) if "offset" in entry]
    disk.close()
    assert rules(path) == []


def test_zero_and_unmapped_grains_are_no_holes(tmp_path: Path) -> None:
    disk = opened(disk_of(tmp_path, sample()))
    kinds = {extent.offset // 4096: extent.kind for extent in disk.extents() if extent.kind is not ExtentKind.DATA}
    assert kinds == {
        3: ExtentKind.ZERO, 7: ExtentKind.HOLE, 100: ExtentKind.ZERO, 200: ExtentKind.ZERO, 250: ExtentKind.HOLE,
        299: ExtentKind.ZERO,
    }  # fmt: skip


@pytest.mark.parametrize("first_index", [1, 4000, 4095, 4096, 8191])
def test_grain_indexes_beyond_twelve_bits(first_index: int, tmp_path: Path) -> None:
    path = disk_of(tmp_path, sample(seed=None, first_index=first_index))
    disk = opened(path)
    assert_whole(disk, MemorySource(CONTENT))
    assert_qemu_agrees(path, CONTENT)
    assert len(list(disk.extents())) == 13
    assert rules(path) == []


def test_grains_at_both_ends_of_far_apart_tables(tmp_path: Path) -> None:
    sectors = 5 * 4096 * 8 + 3
    numbers = (0, 4095, 4096, 3 * 4096 - 1, 5 * 4096 - 1, 5 * 4096)
    grains = {number: stamped(8, number) for number in numbers}
    path = disk_of(tmp_path, sesparse(grains, sectors, zero={4097}, seed=4), sectors)
    chunks = {number * 4096: grain for number, grain in grains.items()}
    chunks[5 * 4096 * 4096] = chunks[5 * 4096 * 4096][: 3 * 512]
    reference = SparseReference(sectors * 512, chunks)
    disk = opened(path)
    assert_both_sides(disk, reference, (4096, 4096 * 4096), limit=20)
    assert_map(disk, reference)
    assert runs(our_map(disk)) == runs(qemu_map(path))


def test_what_was_read_is_ready(tmp_path: Path) -> None:
    disk = opened(disk_of(tmp_path, sample()))
    disk.read_at(0, 1)
    for offset in range(0, disk.size, 5000):
        found = disk.read_if_ready(offset, min(5000, disk.size - offset))  # type: ignore[attr-defined]  # MappedImage
        assert found is not None
        assert_same_bytes(found, CONTENT[offset : offset + 5000])


def test_no_descriptor_no_disk() -> None:
    with pytest.raises(UnsupportedFeature, match=r"x-sesparse: it is a seSparse extent.*open the descriptor"):
        VmdkDriver().open(MemorySource(bytes(sample()), "x-sesparse"), NoRelatedFiles())


@pytest.mark.parametrize("value", [1, 2**63])
def test_a_journal_to_be_replayed_is_refused_by_name(value: int, tmp_path: Path) -> None:
    path = disk_of(tmp_path, sample().set_volatile(3, value))
    with pytest.raises(UnsupportedFeature, match=r"disk-sesparse\.vmdk.*journal"):
        opened(path)
    with pytest.raises(AssertionError, match="journal"):
        run("qemu-img", "map", "-f", "vmdk", path.name, cwd=tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("version", 1, UnsupportedFeature), ("version", 0x0000000200000002, UnsupportedFeature),
        ("flags", 1, UnsupportedFeature), ("reserved1", 1, UnsupportedFeature), ("reserved4", 1, UnsupportedFeature),
        ("grain_size", 16, UnsupportedFeature), ("grain_size", 0, UnsupportedFeature),
        ("grain_table_size", 32, UnsupportedFeature), ("capacity", 0, CorruptImage),
        ("capacity", 2**64 - 1, CorruptImage),
        ("capacity", SECTORS - 1, CorruptImage), ("capacity", 2**40, CorruptImage), ("grain_dir_size", 0, CorruptImage),
        ("grain_dir_offset", 0, CorruptImage), ("grain_dir_offset", 2**63, CorruptImage),
        ("grain_tables_offset", 0, CorruptImage), ("grains_offset", 0, CorruptImage),
        ("volatile_header_offset", 0, CorruptImage), ("volatile_header_offset", 2**63, CorruptImage),
        ("volatile_header_offset", 2, CorruptImage), ("magic", 0xCAFECAFE, CorruptImage),
    ],
)  # fmt: skip
def test_a_header_that_cannot_be_is_refused(name: str, value: int, error: type[ImageError], tmp_path: Path) -> None:
    with pytest.raises(error, match=r"disk-sesparse\.vmdk"):
        opened(disk_of(tmp_path, sample().set_field(name, value)))


def test_padding_that_is_not_zero_is_refused(tmp_path: Path) -> None:
    built = sample()
    built.data[511] = 1
    with pytest.raises(UnsupportedFeature, match="reserved"):
        opened(disk_of(tmp_path, built))


def test_a_volatile_header_without_its_magic_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptImage, match="volatile header"):
        opened(disk_of(tmp_path, sample().set_volatile(0, 0xCAFEBABE)))


@pytest.mark.parametrize("name", SESPARSE_FIELDS)
@pytest.mark.parametrize("value", [0, 1, 2, 2**31, 2**32, 2**54, 2**63, 2**64 - 1])
def test_every_field_at_its_extremes(name: str, value: int, tmp_path: Path) -> None:
    path = disk_of(tmp_path, sample().set_field(name, value))
    disk, message = survivor(path)
    assert disk is not None or "disk-sesparse.vmdk" in message
    if disk is None:
        return
    for offset in (0, 100 * 4096, disk.size - 512):
        data, message = bytes_or_message(disk, offset, 512)
        assert data is not None or "disk-sesparse.vmdk" in message
        if data is not None and name not in {"grain_dir_offset", "grain_tables_offset", "grains_offset"}:
            assert_same_bytes(data, CONTENT[offset : offset + 512])
    disk.close()
    findings(path)


@pytest.mark.parametrize(
    "entry",
    [1, 4 << 60, 7 << 60, 15 << 60, 2**64 - 1, 1 << 59, ALLOCATED | 0x0FFFFFFFFFFFFFFF, sesparse_entry(1 << 20)],
)
def test_a_bad_entry_fails_only_its_own_reads(entry: int, tmp_path: Path) -> None:
    path = disk_of(tmp_path, sample(seed=None).set_entry(20, entry))
    disk = opened(path)
    assert_same_bytes(disk.read_at(0, 20 * 4096), CONTENT[: 20 * 4096])
    with pytest.raises(CorruptImage, match=r"disk-sesparse\.vmdk: grain 20"):
        disk.read_at(20 * 4096 + 100, 1)
    assert_same_bytes(disk.read_at(21 * 4096, disk.size - 21 * 4096), CONTENT[21 * 4096 :])
    disk.close()
    assert rules(path) == ["vmdk-grain"]


@pytest.mark.parametrize("rest", [0, 1, 0x0FFFFFFFFFFFFFFF])
@pytest.mark.parametrize("kind", [UNMAPPED, ZERO])
def test_zeroes_are_told_by_the_highest_bits_alone(kind: int, rest: int, tmp_path: Path) -> None:
    path = disk_of(tmp_path, sample().set_entry(20, kind | rest))
    expected = with_zero_grains(CONTENT, 8, {20})
    assert_whole(opened(path), MemorySource(expected))
    assert_qemu_agrees(path, expected)


@pytest.mark.parametrize(
    "entry", [1, 0x20000000 << 32, 0x10000001 << 32, 0xFFFFFFFFFFFFFFFF, 0x10000000 << 32 | 1, 0x10000000FFFFFFFF]
)
def test_a_bad_directory_entry_fails_its_reads(entry: int, tmp_path: Path) -> None:
    path = disk_of(tmp_path, sample().set_directory(0, entry))
    disk = opened(path)
    with pytest.raises(CorruptImage, match=r"disk-sesparse\.vmdk: grain directory entry 0"):
        disk.read_at(0, 1)


def test_shared_grains_and_tables_are_found(tmp_path: Path) -> None:
    built = sample()
    built.set_entry(9, sesparse_entry(built.grain_index[10]))
    assert rules(disk_of(tmp_path, built)) == ["vmdk-grain-overlap"]
    grains = {0: stamped(8), 4096: stamped(8)}
    two = sesparse(grains, 2 * 4096 * 8).set_directory(1, 0x10000000 << 32)
    assert rules(disk_of(tmp_path, two, 2 * 4096 * 8)) == ["vmdk-table-overlap", "vmdk-table-overlap"]


def test_a_line_may_be_shorter_than_the_capacity_and_never_longer(tmp_path: Path) -> None:
    for sectors in (1, 20, SECTORS):
        disk = opened(disk_of(tmp_path, sample(), sectors))
        assert_whole(disk, MemorySource(CONTENT[: sectors * 512]))
        disk.close()
    with pytest.raises(CorruptImage, match=f"{SECTORS + 1} sectors long"):
        opened(disk_of(tmp_path, sample(), SECTORS + 1))


def test_a_file_cut_anywhere_fails_or_is_right(tmp_path: Path) -> None:
    built = bytes(sample())
    chance = random.Random(1)
    for length in (0, 7, 8, 511, 512, 1023, 1024, *(chance.randrange(len(built)) for _ in range(40))):
        try:
            disk = opened(disk_of(tmp_path, built[:length]))
        except ImageError:
            continue
        for offset in range(0, disk.size, 4096):
            count = min(4096, disk.size - offset)
            try:
                data = disk.read_at(offset, count)
            except ImageError:
                continue
            assert_same_bytes(data, CONTENT[offset : offset + count])
        disk.close()
