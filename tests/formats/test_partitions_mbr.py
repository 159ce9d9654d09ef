"""MBR and EBR, byte by byte: what Linux accepts is accepted, and nothing in a sector can make reading run away."""

import struct
import time
from collections.abc import Sequence

import pytest

from diskfs_formats.errors import DiskfsError
from diskfs_formats.partitions import PartitionTable, read_partition_table
from diskfs_formats.source import MemorySource

SECTORS = 4096
Record = tuple[int, int, int, int]
"""Boot indicator, type, first LBA, sectors."""


def boot_record(records: Sequence[Record], signature: int = 0) -> bytes:
    """An MBR or EBR as UEFI 2.10 table 5-1 lays it out."""
    packed = b"".join(struct.pack("<B3xB3xII", *record) for record in records)
    return bytes(440) + struct.pack("<IH", signature, 0) + packed.ljust(64, b"\0") + b"\x55\xaa"


def disk_of(sectors: dict[int, bytes], size: int = SECTORS) -> MemorySource:
    data = bytearray(size * 512)
    for lba, sector in sectors.items():
        data[lba * 512 : lba * 512 + len(sector)] = sector
    return MemorySource(bytes(data), "disk")


def read_records(*records: Record, size: int = SECTORS) -> PartitionTable | None:
    return read_partition_table(disk_of({0: boot_record(records)}, size))


def read_table(sectors: dict[int, bytes]) -> PartitionTable:
    table = read_partition_table(disk_of(sectors))
    assert table is not None
    return table


def ranges(table: PartitionTable | None) -> list[tuple[int, int, int]]:
    assert table is not None
    return [(one.number, one.first_lba, one.last_lba) for one in table.partitions]


def rules(table: PartitionTable | None) -> list[str]:
    assert table is not None
    return [finding.rule for finding in table.findings]


@pytest.mark.parametrize("size", [0, 1, 511])
def test_disk_below_a_sector_has_no_table(size: int) -> None:
    assert read_partition_table(MemorySource(boot_record([(0, 0x83, 1, 1)])[:size])) is None


def test_disk_of_one_sector_is_read() -> None:
    assert read_partition_table(MemorySource(boot_record([], 0x12345678))) is not None


@pytest.mark.parametrize("signature", [b"\x55\xab", b"\xaa\x55", b"\0\0"])
def test_sector_without_signature_is_no_table(signature: bytes) -> None:
    assert read_partition_table(disk_of({0: boot_record([(0, 0x83, 1, 1)])[:510] + signature})) is None


@pytest.mark.parametrize("indicator", [0x01, 0x7F, 0x81, 0xFF])
@pytest.mark.parametrize("slot", range(4))
def test_other_boot_indicator_means_no_table(indicator: int, slot: int) -> None:
    records = [(0, 0x83, 10 + 10 * index, 10) for index in range(4)]
    assert len(ranges(read_records(*records))) == 4
    records[slot] = (indicator, *records[slot][1:])
    assert read_records(*records) is None


def test_active_flag_is_bootable() -> None:
    table = read_records((0x80, 0x83, 10, 10), (0, 0x83, 20, 10))
    assert table is not None
    assert [one.bootable for one in table.partitions] == [True, False]


def test_disk_signature_is_shown_with_eight_digits() -> None:
    assert read_table({0: boot_record([], 0xABC)}).disk_id == "0x00000abc"


def test_record_without_sectors_is_no_partition() -> None:
    assert ranges(read_records((0, 0x83, 10, 0), (0, 0x83, 10, 1))) == [(2, 10, 10)]


def test_type_zero_with_sectors_is_listed_as_linux_does() -> None:
    assert ranges(read_records((0, 0, 10, 5))) == [(1, 10, 14)]


def test_partition_up_to_the_last_sector_is_inside() -> None:
    assert rules(read_records((0, 0x83, 1, SECTORS - 1))) == []


def test_partition_one_sector_past_the_end_is_kept_and_found() -> None:
    table = read_records((0, 0x83, 1, SECTORS))
    assert ranges(table) == [(1, 1, SECTORS)]
    assert rules(table) == ["partition-past-end"]


def test_greatest_numbers_are_kept_and_found() -> None:
    table = read_records((0, 0x83, 2**32 - 1, 2**32 - 1))
    assert ranges(table) == [(1, 2**32 - 1, 2**33 - 3)]
    assert rules(table) == ["partition-past-end"]


def test_partition_at_lba_0_is_found() -> None:
    assert rules(read_records((0, 0x17, 0, 100))) == ["partition-over-table"]


def test_neighbours_do_not_overlap() -> None:
    assert rules(read_records((0, 0x83, 20, 10), (0, 0x83, 10, 10))) == []


def test_one_common_sector_is_an_overlap() -> None:
    table = read_records((0, 0x83, 19, 10), (0, 0x83, 10, 10))
    assert table is not None
    (finding,) = table.findings
    assert finding.rule == "partition-overlap"
    assert "partition 1 (LBA 19 to 28) overlaps partition 2 (LBA 10 to 19)" in finding.message


def test_overlap_with_one_that_is_not_the_neighbour_is_found() -> None:
    table = read_records((0, 0x83, 10, 1000), (0, 0x83, 20, 10), (0, 0x83, 500, 10))
    assert rules(table) == ["partition-overlap"] * 2


def test_primary_inside_the_extended_partition_is_an_overlap() -> None:
    table = read_records((0, 0x05, 100, 1000), (0, 0x83, 200, 10))
    assert rules(table) == ["partition-overlap"]


@pytest.mark.parametrize("extended", [0x05, 0x0F, 0x85])
def test_logical_addresses_are_relative(extended: int) -> None:
    # The partition counts from its EBR, the link from the extended partition.
    table = read_table(
        {
            0: boot_record([(0, extended, 100, 1000)]),
            100: boot_record([(0, 0x83, 2, 50), (0, 0x05, 200, 100)]),
            300: boot_record([(0, 0x82, 3, 60)]),
        }
    )
    assert ranges(table) == [(1, 100, 1099), (5, 102, 151), (6, 303, 362)]
    assert rules(table) == []


def test_link_before_the_partition_is_followed() -> None:
    table = read_table(
        {
            0: boot_record([(0, 0x05, 100, 1000)]),
            100: boot_record([(0, 0x05, 200, 100), (0, 0x83, 2, 50)]),
            300: boot_record([(0, 0x83, 2, 50)]),
        }
    )
    assert ranges(table)[1:] == [(5, 102, 151), (6, 302, 351)]


def test_ebr_without_partition_takes_no_number() -> None:
    table = read_table(
        {
            0: boot_record([(0, 0x05, 100, 1000)]),
            100: boot_record([(0, 0, 0, 0), (0, 0x05, 200, 100)]),
            300: boot_record([(0, 0x83, 2, 50)]),
        }
    )
    assert ranges(table)[1:] == [(5, 302, 351)]


def test_third_record_of_an_ebr_counts_only_inside_its_range() -> None:
    ebr = [(0, 0x83, 2, 8), (0, 0x05, 500, 100), (0, 0x83, 10, 990), (0, 0x83, 10, 991)]
    table = read_table({0: boot_record([(0, 0x05, 100, 1000)]), 100: boot_record(ebr), 600: boot_record([])})
    assert ranges(table)[1:] == [(5, 102, 109), (6, 110, 1099)]


def test_numbers_go_on_over_two_extended_partitions() -> None:
    table = read_table(
        {
            0: boot_record([(0, 0x05, 100, 100), (0, 0x0F, 300, 100)]),
            100: boot_record([(0, 0x83, 2, 8)]),
            300: boot_record([(0, 0x83, 2, 8)]),
        }
    )
    assert ranges(table) == [(1, 100, 199), (2, 300, 399), (5, 102, 109), (6, 302, 309)]


def test_blank_first_ebr_is_an_empty_extended_partition() -> None:
    table = read_records((0, 0x05, 100, 1000))
    assert ranges(table) == [(1, 100, 1099)]
    assert rules(table) == []


def test_second_ebr_without_signature_is_found() -> None:
    table = read_table(
        {0: boot_record([(0, 0x05, 100, 1000)]), 100: boot_record([(0, 0x83, 2, 8), (0, 0x05, 200, 100)])}
    )
    assert ranges(table)[1:] == [(5, 102, 109)]
    assert rules(table) == ["mbr-ebr-no-signature"]


def test_first_ebr_with_other_bytes_is_found() -> None:
    table = read_table({0: boot_record([(0, 0x05, 100, 1000)]), 100: b"\1"})
    assert rules(table) == ["mbr-ebr-no-signature"]


@pytest.mark.parametrize(
    ("link", "expected"), [(999, []), (1000, ["mbr-ebr-outside"]), (2**32 - 1, ["mbr-ebr-outside"])]
)
def test_chain_stays_inside_the_extended_partition(link: int, expected: list[str]) -> None:
    table = read_table(
        {
            0: boot_record([(0, 0x05, 100, 1000)]),
            100: boot_record([(0, 0x83, 2, 8), (0, 0x05, link, 1)]),
            1099: boot_record([]),
            1100: boot_record([(0, 0x83, 1, 1)]),
        }
    )
    assert ranges(table)[1:] == [(5, 102, 109)]
    assert rules(table) == expected


def test_logical_partition_past_the_extended_one_is_found() -> None:
    table = read_table({0: boot_record([(0, 0x05, 100, 1000)]), 100: boot_record([(0, 0x83, 1, 1000)])})
    assert ranges(table)[1:] == [(5, 101, 1100)]
    assert rules(table) == ["mbr-logical-outside"]


@pytest.mark.parametrize("link", [0, 100])
def test_loop_of_ebrs_ends(link: int) -> None:
    table = read_table(
        {
            0: boot_record([(0, 0x05, 100, 1000)]),
            100: boot_record([(0, 0x83, 2, 8), (0, 0x05, 100, 100)]),
            200: boot_record([(0, 0x83, 2, 8), (0, 0x05, link, 100)]),
        }
    )
    assert ranges(table)[1:] == [(5, 102, 109), (6, 202, 209)]
    assert rules(table) == ["mbr-ebr-loop"]


def test_two_extended_partitions_over_one_chain_end() -> None:
    table = read_table(
        {0: boot_record([(0, 0x05, 100, 1000), (0, 0x05, 100, 1000)]), 100: boot_record([(0, 0x83, 2, 8)])}
    )
    assert [one.number for one in table.partitions] == [1, 2, 5]
    assert rules(table) == ["mbr-ebr-loop", "partition-overlap"]


@pytest.mark.parametrize(("count", "expected"), [(128, []), (129, ["mbr-ebr-too-many"]), (10000, ["mbr-ebr-too-many"])])
def test_chain_is_followed_for_128_ebrs(count: int, expected: list[str]) -> None:
    sectors = {0: boot_record([(0, 0x05, 1, 2 * count)])}
    for index in range(count):
        link = [(0, 0x05, 2 * (index + 1), 2)] if index + 1 < count else []
        sectors[1 + 2 * index] = boot_record([(0, 0x83, 1, 1), *link])
    disk = disk_of(sectors, 2 * count + 1)
    begin = time.process_time()
    table = read_partition_table(disk)
    assert time.process_time() - begin < 0.5  # a collection of what other tests left may fall into it
    assert table is not None
    assert [one.number for one in table.partitions] == [1, *range(5, 5 + min(count, 128))]
    assert rules(table) == expected


def test_partitions_are_counted_as_well_as_ebrs() -> None:
    sectors = {0: boot_record([(0, 0x05, 1, 3000)])}
    data = [(0, 0x83, 1, 1), (0, 0x83, 2, 1), (0, 0x83, 3, 1)]
    sectors.update({1 + 5 * index: boot_record([*data, (0, 0x05, 5 * index + 5, 5)]) for index in range(100)})
    table = read_table(sectors)
    assert len(table.partitions) == 1 + 43 * 3
    assert rules(table) == ["mbr-ebr-too-many"]


def test_empty_ebrs_are_counted_too() -> None:
    sectors = {0: boot_record([(0, 0x05, 1, 3000)])}
    sectors.update({1 + index: boot_record([(0, 0x05, index + 1, 1)]) for index in range(2000)})
    assert rules(read_table(sectors)) == ["mbr-ebr-too-many"]


def test_extended_partition_past_the_end_of_the_disk_is_found() -> None:
    table = read_records((0, 0x83, 1, 9), (0, 0x05, SECTORS, 1000))
    assert ranges(table) == [(1, 1, 9), (2, SECTORS, SECTORS + 999)]
    assert rules(table) == ["mbr-ebr-unreadable", "partition-past-end"]


class BadSectors(MemorySource):
    """A disk of which some sectors cannot be read."""

    def __init__(self, disk: MemorySource, bad: set[int]) -> None:
        super().__init__(disk.read_at(0, disk.size), disk.name)
        self._bad = bad

    def read_at(self, offset: int, length: int, /) -> bytes:
        for lba in self._bad:
            if lba * 512 < offset + length and offset < (lba + 1) * 512:
                raise DiskfsError(f"{self.name}: bad sector {lba}")
        return super().read_at(offset, length)


def test_unreadable_ebr_is_found_and_what_was_read_is_kept() -> None:
    sectors = {
        0: boot_record([(0, 0x05, 100, 1000)]),
        100: boot_record([(0, 0x83, 2, 8), (0, 0x05, 200, 100)]),
        300: boot_record([(0, 0x83, 2, 8)]),
    }
    table = read_partition_table(BadSectors(disk_of(sectors), {300}))
    assert ranges(table)[1:] == [(5, 102, 109)]
    assert rules(table) == ["mbr-ebr-unreadable"]


def test_bad_sector_behind_the_mbr_does_not_matter() -> None:
    disk = disk_of({0: boot_record([(0, 0x83, 100, 100)])})
    assert ranges(read_partition_table(BadSectors(disk, {1, 2, SECTORS - 1}))) == [(1, 100, 199)]


def test_unreadable_mbr_is_an_error() -> None:
    with pytest.raises(DiskfsError, match="bad sector 0"):
        read_partition_table(BadSectors(disk_of({0: boot_record([])}), {0}))


@pytest.mark.parametrize("sector_size", [0, 1, 256, 511, 513, 1000, -512])
def test_impossible_sector_size_is_refused(sector_size: int) -> None:
    with pytest.raises(ValueError, match="sector_size"):
        read_partition_table(disk_of({0: boot_record([])}), sector_size=sector_size)


def fat_boot_sector(records: Sequence[Record]) -> bytes:
    """The start of a FAT volume (fatgen103), with partition records where a boot sector has code."""
    head = b"\xeb\x3c\x90" + b"MSDOS5.0" + struct.pack("<HBHBHHBHHHII", 512, 4, 1, 2, 512, 4000, 0xF8, 4, 63, 16, 0, 0)
    return head + boot_record(records)[len(head) :]


@pytest.mark.parametrize(
    ("record", "is_table"),
    [
        ((0, 0, 0, 0), False),
        ((0x80, 0x0C, 64, SECTORS - 64), True),
        ((0x80, 0x0C, 64, SECTORS - 63), False),
        ((0, 0x0C, 0, 100), False),
        ((0, 0, 64, 100), False),
        ((0x74, 0x0C, 64, 100), False),
    ],
)
def test_records_in_a_fat_boot_sector_must_be_exact(record: Record, is_table: bool) -> None:
    table = read_partition_table(disk_of({0: fat_boot_sector([record])}))
    assert (table is not None) is is_table


@pytest.mark.parametrize("oem_name", [b"NTFS    ", b"EXFAT   ", b"-FVE-FS-"])
def test_volume_boot_sector_is_no_table(oem_name: bytes) -> None:
    sector = b"\xeb\x52\x90" + oem_name + boot_record([])[11:]
    assert read_partition_table(disk_of({0: sector})) is None


def test_many_findings_of_a_kind_are_cut_with_their_number() -> None:
    sectors = {0: boot_record([(0, 0x05, 1, 100)])}
    for index in range(30):
        link = [(0, 0x05, 2 * (index + 1), 2)] if index < 29 else []
        sectors[1 + 2 * index] = boot_record([(0, 0x83, 1, 2**31), *link])
    table = read_table(sectors)
    for rule in ("partition-past-end", "partition-overlap", "mbr-logical-outside"):
        found = [finding.message for finding in table.findings if finding.rule == rule]
        assert len(found) == 8
        assert " more like this)" in found[-1]
