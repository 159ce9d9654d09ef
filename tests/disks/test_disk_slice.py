"""A partition of a disk is a disk: the same bytes, the same map, shifted."""

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs.disks.partitions import DiskSlice, partition_slices
from diskfs_formats.driver import DiskImage, ImageInfo, NoRelatedFiles
from diskfs_formats.errors import OutOfRange
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.mapped import MappedImage
from diskfs_formats.partitions import Partition, PartitionTable, read_partition_table
from diskfs_formats.raw import RawImage
from diskfs_formats.source import MemorySource
from diskfs_formats.vmdk import VmdkDriver

SECTOR = 512
UNIT = 4 * SECTOR
UNITS = 16
KINDS = (ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.DATA, ExtentKind.HOLE)
STORED = bytes(1 + index % 251 for index in range(UNITS * UNIT))


class UnitDisk(MappedImage):
    """A disk whose units are, in turn, stored, zero, stored and absent."""

    def __init__(self, stored: MemorySource) -> None:
        super().__init__("disk", ImageInfo("test", "units", UNITS * UNIT, unit_size=UNIT), [stored])
        self.closed = 0

    def lookup(self, offset: int, /) -> Extent:
        unit = offset // UNIT
        kind = KINDS[unit % 4]
        stored = Stored(self._sources[0], unit * UNIT, UNIT) if kind is ExtentKind.DATA else None
        return Extent(unit * UNIT, UNIT, kind, stored)

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        return self.lookup(offset)

    def close(self) -> None:
        self.closed += 1


REFERENCE = b"".join(
    STORED[unit * UNIT : (unit + 1) * UNIT] if KINDS[unit % 4] is ExtentKind.DATA else bytes(UNIT)
    for unit in range(UNITS)
)
OFFSET, SIZE = UNIT + SECTOR, 9 * UNIT + SECTOR
EDGES = sorted(
    {
        edge + delta
        for edge in (0, SIZE, *range(UNIT - SECTOR, SIZE, UNIT))
        for delta in (-SECTOR, -1, 0, 1, SECTOR)
        if 0 <= edge + delta <= SIZE
    }
)


@pytest.fixture
def disk() -> UnitDisk:
    return UnitDisk(MemorySource(STORED))


@pytest.fixture
def part(disk: UnitDisk) -> DiskSlice:
    return DiskSlice(disk, OFFSET, SIZE, "disk0p1")


def test_any_range_equals_the_disk(part: DiskSlice) -> None:
    for begin in EDGES:
        for end in EDGES:
            if begin <= end:
                expected = REFERENCE[OFFSET + begin : OFFSET + end]
                assert part.read_at(begin, end - begin) == expected
                assert bytes(part.read_if_ready(begin, end - begin) or b"") == expected


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, SIZE + 1), (SIZE, 1), (SIZE + 1, 0), (1, -1), (2**63, 1)])
def test_nothing_outside_the_partition_is_read(part: DiskSlice, offset: int, length: int) -> None:
    for read in (part.read_at, part.read_if_ready, part.extents):
        with pytest.raises(OutOfRange, match="disk0p1"):
            read(offset, length)


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (0, UNITS * UNIT + 1), (UNITS * UNIT, 1), (1, -1)])
def test_window_outside_the_disk_is_refused(disk: UnitDisk, offset: int, size: int) -> None:
    with pytest.raises(OutOfRange):
        DiskSlice(disk, offset, size, "disk0p1")


def test_map_ascends_and_covers_any_range(part: DiskSlice) -> None:
    for begin in EDGES:
        for end in EDGES:
            if begin < end:
                at = begin
                for extent in part.extents(begin, end - begin):
                    assert extent.offset == at
                    assert extent.length > 0
                    at = extent.end
                assert at == end


def test_map_is_the_disks_map_from_the_partition_on(part: DiskSlice) -> None:
    first, second, third = list(part.extents())[:3]
    # The partition begins one sector into a ZERO unit.
    assert (first.offset, first.length, first.kind) == (0, UNIT - SECTOR, ExtentKind.ZERO)
    assert (second.offset, second.length, second.kind) == (UNIT - SECTOR, UNIT, ExtentKind.DATA)
    assert second.stored is not None
    assert (second.stored.offset, second.stored.length) == (2 * UNIT, UNIT)
    assert (third.offset, third.kind) == (2 * UNIT - SECTOR, ExtentKind.HOLE)


def test_extents_without_length_run_to_the_end_of_the_partition(part: DiskSlice) -> None:
    assert list(part.extents())[-1].end == SIZE
    assert [extent.length for extent in part.extents(SIZE - 5)] == [5]


def test_stored_bytes_of_the_map_are_the_bytes_that_are_read(part: DiskSlice) -> None:
    for extent in part.extents():
        expected = extent.stored.source.read_at(extent.stored.offset, extent.length) if extent.stored else None
        assert part.read_at(extent.offset, extent.length) == (expected or bytes(extent.length))


def test_info_is_the_disks_with_the_partitions_size(disk: UnitDisk, part: DiskSlice) -> None:
    assert part.info == ImageInfo("test", "units", SIZE, unit_size=UNIT)
    assert (part.name, part.size) == ("disk0p1", SIZE)
    assert disk.info.virtual_size == UNITS * UNIT


def test_closing_leaves_the_disk_open(disk: UnitDisk, part: DiskSlice) -> None:
    part.close()
    part.close()
    assert disk.closed == 0
    assert part.read_at(0, SIZE) == REFERENCE[OFFSET : OFFSET + SIZE]


def test_slice_of_a_slice_adds_up(part: DiskSlice) -> None:
    inner = DiskSlice(part, SECTOR, UNIT, "inner")
    assert inner.read_at(0, UNIT) == REFERENCE[OFFSET + SECTOR : OFFSET + SECTOR + UNIT]
    assert next(inner.extents()).offset == 0


class NeverReady:
    """A disk without a ready-bytes path."""

    name = "slow"
    size = 4096
    info = ImageInfo("test", "slow", 4096)

    def read_at(self, offset: int, length: int, /) -> bytes:
        return bytes(length)

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        yield Extent(offset, 4096 - offset if length is None else length, ExtentKind.ZERO)

    def close(self) -> None: ...


def test_disk_without_ready_bytes_has_none_in_its_partition() -> None:
    assert DiskSlice(NeverReady(), 512, 1024, "slowp1").read_if_ready(0, 10) is None


def table_of(*partitions: Partition) -> PartitionTable:
    return PartitionTable("mbr", SECTOR, partitions)


LAST = UNITS * UNIT // SECTOR - 1


def spans(disk: DiskImage, *partitions: Partition) -> list[tuple[str, int]]:
    return [(part.name, part.size) for _, part in partition_slices(disk, table_of(*partitions), "disk3")]


@pytest.mark.parametrize(
    ("first", "last", "size"),
    [
        (0, 0, SECTOR),
        (1, LAST, LAST * SECTOR),
        (LAST, LAST, SECTOR),
        (LAST, LAST + 1, SECTOR),
        (1, 2**64 - 1, LAST * SECTOR),
    ],
)
def test_partition_is_cut_at_the_end_of_the_disk(disk: UnitDisk, first: int, last: int, size: int) -> None:
    assert spans(disk, Partition(7, first, last, 0x83)) == [("disk3p7", size)]


@pytest.mark.parametrize(("first", "last"), [(LAST + 1, LAST + 1), (2**64 - 1, 2**64 - 1), (5, 4), (2**64 - 1, 0)])
def test_partition_without_a_sector_on_the_disk_is_left_out(disk: UnitDisk, first: int, last: int) -> None:
    assert spans(disk, Partition(1, first, last, 0x83), Partition(2, 1, 1, 0x83)) == [("disk3p2", SECTOR)]


@pytest.mark.parametrize("extended", [0x05, 0x0F, 0x85])
def test_extended_partition_is_left_out_and_its_logical_ones_are_not(disk: UnitDisk, extended: int) -> None:
    assert spans(disk, Partition(1, 1, 20, extended), Partition(5, 2, 3, 0x83)) == [("disk3p5", 2 * SECTOR)]


def test_sector_size_of_the_table_counts(disk: UnitDisk) -> None:
    ((_, part),) = partition_slices(disk, table_of(Partition(1, 2, 2, 0x83, sector_size=4096)), "disk0")
    assert part.read_at(0, part.size) == REFERENCE[8192 : 8192 + 4096]


def test_table_read_from_a_disk_gives_its_slices() -> None:
    mbr = bytes(446) + struct.pack("<B3xB3xII", 0, 0x83, 1, 3).ljust(64, b"\0") + b"\x55\xaa"
    disk = RawImage(MemorySource(mbr + bytes([1]) * SECTOR + bytes([2]) * SECTOR, "raw"))
    table = read_partition_table(disk)
    assert table is not None
    assert [finding.rule for finding in table.findings] == ["partition-past-end"]
    ((partition, part),) = partition_slices(disk, table, "disk0")
    assert (partition.number, part.name) == (1, "disk0p1")
    assert part.read_at(0, part.size) == bytes([1]) * SECTOR + bytes([2]) * SECTOR


def test_partition_of_a_compressed_image_equals_the_raw_disk(tmp_path: Path) -> None:
    for tool in ("qemu-img", "sfdisk"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    raw = tmp_path / "raw"
    with raw.open("wb") as file:
        file.truncate(4 << 20)
        file.seek(1 << 20)
        file.write(STORED * 4)
        file.seek(3 << 20)
        file.write(STORED)
    # Neither begins nor ends at a grain's boundary.
    script = "label: dos\nstart=2049, size=100\nstart=2200, size=4001\n"
    subprocess.run(["sfdisk", "--quiet", str(raw)], input=script, text=True, check=True)
    vmdk = tmp_path / "disk.vmdk"
    convert = ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", str(raw), str(vmdk)]
    subprocess.run(convert, check=True)
    data = raw.read_bytes()
    disk = VmdkDriver().open(MemorySource(vmdk.read_bytes(), "vmdk"), NoRelatedFiles())
    table = read_partition_table(disk)
    assert table is not None
    slices = partition_slices(disk, table, "disk0")
    assert [(part.name, part.size) for _, part in slices] == [("disk0p1", 100 * SECTOR), ("disk0p2", 4001 * SECTOR)]
    for partition, part in slices:
        assert part.read_at(0, part.size) == data[partition.offset : partition.offset + part.size]
        for extent in part.extents():
            if extent.kind is not ExtentKind.DATA:
                assert not any(data[partition.offset + extent.offset : partition.offset + extent.end])
    disk.close()
