"""GPT, byte by byte: checksums decide which copy is read, and no number of a header is believed unchecked."""

import struct
import time
import uuid
import zlib
from collections.abc import Sequence

import pytest

from diskfs_formats.errors import DiskfsError
from diskfs_formats.partitions import PartitionTable, read_partition_table
from diskfs_formats.source import MemorySource

SECTORS = 2048
LINUX = uuid.UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
LINUX_BYTES = bytes.fromhex("af3dc60f838472478e793d69d8477de4")
DISK_GUID = uuid.UUID("e86e657a-d840-4c09-afe3-a1a5f665cf44")


def gpt_entry(first: int, last: int, name: bytes = b"", attributes: int = 0, size: int = 128) -> bytes:
    """A partition entry as UEFI 2.10 table 5-6 lays it out."""
    return struct.pack("<16s16sQQQ72s", LINUX_BYTES, bytes(range(16)), first, last, attributes, name).ljust(size, b"\0")


def header(
    array: bytes,
    lba: int,
    *,
    alternate: int,
    entry_lba: int,
    count: int | None = None,
    entry_size: int = 128,
    header_size: int = 92,
    my_lba: int | None = None,
    usable: tuple[int, int] = (34, SECTORS - 34),
    guid: uuid.UUID = DISK_GUID,
) -> bytes:
    """A header as UEFI 2.10 table 5-5 lays it out, with the checksums it should have."""
    count = len(array) // entry_size if count is None else count
    fields = (lba if my_lba is None else my_lba, alternate, *usable, guid.bytes_le, entry_lba, count, entry_size)
    rest = struct.pack("<QQQQ16sQIII", *fields, zlib.crc32(array))
    unsummed = struct.pack("<8sIIII", b"EFI PART", 0x10000, header_size, 0, 0) + rest
    crc = zlib.crc32(unsummed.ljust(header_size, b"\0")[:header_size])
    return unsummed[:16] + struct.pack("<I", crc) + unsummed[20:]


def protective_mbr(first: int = 1, type_id: int = 0xEE) -> bytes:
    return bytes(446) + struct.pack("<B3xB3xII", 0, type_id, first, SECTORS - 1) + bytes(48) + b"\x55\xaa"


PRIMARY = 512
BACKUP = (SECTORS - 1) * 512
PRIMARY_ENTRIES = 2 * 512
BACKUP_ENTRIES = (SECTORS - 33) * 512
ENTRIES = (gpt_entry(100, 199, "root".encode("utf-16-le")), gpt_entry(200, 200))


def gpt_disk(entries: Sequence[bytes] = ENTRIES, usable: tuple[int, int] = (34, SECTORS - 34)) -> bytearray:
    array = b"".join(entries).ljust(128 * 128, b"\0")
    data = bytearray(SECTORS * 512)
    data[:512] = protective_mbr()
    put(data, PRIMARY, header(array, 1, alternate=SECTORS - 1, entry_lba=2, usable=usable))
    put(data, PRIMARY_ENTRIES, array)
    put(data, BACKUP_ENTRIES, array)
    put(data, BACKUP, header(array, SECTORS - 1, alternate=1, entry_lba=SECTORS - 33, usable=usable))
    return data


def put(data: bytearray, offset: int, what: bytes) -> None:
    data[offset : offset + len(what)] = what


def find_table(data: bytes | bytearray, sector_size: int | None = None) -> PartitionTable | None:
    begin = time.process_time()
    table = read_partition_table(MemorySource(bytes(data), "disk"), sector_size=sector_size)
    assert time.process_time() - begin < 0.5  # a collection of what other tests left may fall into it
    return table


def read_table(data: bytes | bytearray, sector_size: int | None = None) -> PartitionTable:
    table = find_table(data, sector_size)
    assert table is not None
    return table


def rules(table: PartitionTable) -> list[str]:
    return [finding.rule for finding in table.findings]


def ranges(table: PartitionTable) -> list[tuple[int, int, int]]:
    return [(one.number, one.first_lba, one.last_lba) for one in table.partitions]


GOOD = [(1, 100, 199), (2, 200, 200)]


def test_entry_fields_are_where_the_specification_puts_them() -> None:
    table = read_table(gpt_disk([bytes(128), gpt_entry(100, 199, "dé😀".encode("utf-16-le"), attributes=1 << 2)]))
    (partition,) = table.partitions
    assert (partition.number, partition.first_lba, partition.last_lba) == (2, 100, 199)
    assert partition.type_id == LINUX
    assert partition.unique_id == uuid.UUID("03020100-0504-0706-0809-0a0b0c0d0e0f")
    assert partition.name == "dé😀"
    assert partition.bootable
    assert (partition.offset, partition.size) == (100 * 512, 100 * 512)
    assert not partition.is_container
    assert (table.scheme, table.sector_size, table.disk_id) == ("gpt", 512, str(DISK_GUID))
    assert rules(table) == []


def test_other_attributes_do_not_make_a_partition_bootable() -> None:
    (partition,) = read_table(gpt_disk([gpt_entry(100, 199, attributes=2**64 - 1 - (1 << 2))])).partitions
    assert not partition.bootable


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (b"", ""),
        ("a\0b".encode("utf-16-le"), "a"),
        (("n" * 36).encode("utf-16-le"), "n" * 36),
        (b"\x00\xd8a\x00", "\ufffda"),
        (b"a\x00\x00\xdc", "a\ufffd"),
    ],
)
def test_name_ends_at_nul_and_holds_no_half_character(stored: bytes, shown: str) -> None:
    (partition,) = read_table(gpt_disk([gpt_entry(100, 199, stored)])).partitions
    assert partition.name == shown


@pytest.mark.parametrize("entry_size", [128, 256, 512, 4096, 8192])
def test_larger_entries_are_stepped_over(entry_size: int) -> None:
    array = gpt_entry(100, 199, size=entry_size) + gpt_entry(200, 200, size=entry_size)
    data = gpt_disk()
    put(data, PRIMARY_ENTRIES, array)
    put(data, PRIMARY, header(array, 1, alternate=SECTORS - 1, entry_lba=2, entry_size=entry_size))
    assert ranges(read_table(data)) == GOOD


def test_header_longer_than_its_fields_is_summed_whole() -> None:
    data = gpt_disk()
    array = bytes(data[PRIMARY_ENTRIES : PRIMARY_ENTRIES + 128 * 128])
    put(data, PRIMARY, header(array, 1, alternate=SECTORS - 1, entry_lba=2, header_size=512))
    assert rules(read_table(data)) == []
    data[PRIMARY + 511] = 1
    assert rules(read_table(data)) == ["gpt-backup-header-used"]


@pytest.mark.parametrize(
    "offset", [PRIMARY, PRIMARY + 16, PRIMARY + 91, PRIMARY_ENTRIES, PRIMARY_ENTRIES + 128 * 128 - 1]
)
def test_damaged_primary_copy_gives_way_to_the_backup(offset: int) -> None:
    data = gpt_disk()
    data[offset] ^= 0x40
    table = read_table(data)
    assert ranges(table) == GOOD
    assert rules(table) == ["gpt-backup-header-used"]
    assert "LBA 1 " in table.findings[0].message


@pytest.mark.parametrize("offset", [BACKUP, BACKUP + 16, BACKUP + 91, BACKUP_ENTRIES, BACKUP_ENTRIES + 128 * 128 - 1])
def test_damaged_backup_is_found(offset: int) -> None:
    data = gpt_disk()
    data[offset] ^= 0x40
    table = read_table(data)
    assert ranges(table) == GOOD
    assert rules(table) == ["gpt-backup-bad"]


def test_bytes_outside_both_copies_do_not_matter() -> None:
    data = gpt_disk()
    for offset in (PRIMARY + 92, PRIMARY_ENTRIES + 128 * 128, BACKUP_ENTRIES - 1, BACKUP + 92, BACKUP + 511):
        data[offset] = 0xFF
    assert rules(read_table(data)) == []


def test_backup_that_says_something_else_is_found() -> None:
    for array, guid in (((ENTRIES[0]).ljust(128 * 128, b"\0"), DISK_GUID), (b"".join(ENTRIES), uuid.UUID(int=1))):
        data = gpt_disk()
        padded = array.ljust(128 * 128, b"\0")
        put(data, BACKUP_ENTRIES, padded)
        put(data, BACKUP, header(padded, SECTORS - 1, alternate=1, entry_lba=SECTORS - 33, guid=guid))
        table = read_table(data)
        assert ranges(table) == GOOD
        assert rules(table) == ["gpt-backup-differs"]


def test_both_copies_damaged_leave_a_table_without_partitions() -> None:
    data = gpt_disk()
    data[PRIMARY + 20] = data[BACKUP + 20] = 1
    table = read_table(data)
    assert (table.scheme, table.partitions) == ("gpt", ())
    (finding,) = table.findings
    assert finding.rule == "gpt-no-valid-header"
    assert "disk: primary GPT header at LBA 1 (offset 0x200): CRC-32 0x" in finding.message


def test_protective_mbr_without_any_gpt_is_found() -> None:
    table = read_table(protective_mbr() + bytes(SECTORS * 512 - 512))
    assert (table.scheme, table.partitions, rules(table)) == ("gpt", (), ["gpt-no-valid-header"])


@pytest.mark.parametrize("size", [512, 513, 1024, 1535, 4096, 8192])
def test_disk_too_small_for_a_gpt_is_survived(size: int) -> None:
    table = read_table(gpt_disk()[:size])
    assert (table.partitions, rules(table)) == ((), ["gpt-no-valid-header"])


def test_type_ee_in_boot_code_is_not_a_gpt() -> None:
    data = bytearray(protective_mbr() + bytes(SECTORS * 512 - 512))
    data[446 + 16] = 0x33
    assert find_table(data) is None


def test_gpt_without_protective_mbr_is_left_alone() -> None:
    data = gpt_disk()
    put(data, 0, bytes(512))
    assert find_table(data) is None


def test_mbr_wins_over_a_gpt_it_does_not_announce() -> None:
    data = gpt_disk()
    put(data, 0, protective_mbr(type_id=0x83))
    table = read_table(data)
    assert (table.scheme, ranges(table), rules(table)) == ("mbr", [(1, 1, SECTORS - 1)], ["gpt-stale"])


def test_protective_entry_in_any_record_announces_a_gpt() -> None:
    for slot in range(4):
        data = gpt_disk()
        put(data, 0, bytes(446) + bytes(16 * slot) + protective_mbr()[446:462])
        put(data, 462 + 16 * slot, bytes(48 - 16 * slot) + b"\x55\xaa")
        assert ranges(read_table(data)) == GOOD


def test_protective_entry_elsewhere_is_found() -> None:
    data = gpt_disk()
    put(data, 0, protective_mbr(first=2))
    table = read_table(data)
    assert ranges(table) == GOOD
    assert rules(table) == ["gpt-protective-entry"]


@pytest.mark.parametrize(
    ("count", "entry_size"),
    [
        (0, 128),
        (1025, 128),
        (2**32 - 1, 128),
        (257, 4096),
        (128, 0),
        (128, 1),
        (128, 64),
        (128, 127),
        (2, 384),
        (1, 2**21),
        (1, 2**31),
        (2**31, 2**31),
    ],
)
def test_impossible_number_or_size_of_entries_gives_way_to_the_backup(count: int, entry_size: int) -> None:
    data = gpt_disk()
    array = bytes(data[PRIMARY_ENTRIES:][: count * entry_size])
    put(data, PRIMARY, header(array, 1, alternate=SECTORS - 1, entry_lba=2, count=count, entry_size=entry_size))
    table = read_table(data)
    assert ranges(table) == GOOD
    assert rules(table) == ["gpt-backup-header-used"]


@pytest.mark.parametrize(
    ("entry_lba", "my_lba"), [(lba, 1) for lba in (0, 1, SECTORS - 31, 2**64 - 1)] + [(2, 2**64 - 1)]
)
def test_impossible_place_gives_way_to_the_backup(entry_lba: int, my_lba: int) -> None:
    data = gpt_disk()
    array = bytes(data[entry_lba * 512 :][: 128 * 128])
    put(data, PRIMARY, header(array, 1, alternate=SECTORS - 1, entry_lba=entry_lba, my_lba=my_lba, count=128))
    table = read_table(data)
    assert ranges(table) == GOOD
    assert rules(table) == ["gpt-backup-header-used"]


@pytest.mark.parametrize("header_size", [0, 16, 91, 513, 1024, 2**31, 2**32 - 1])
def test_impossible_header_size_gives_way_to_the_backup(header_size: int) -> None:
    data = gpt_disk()
    data[PRIMARY + 12 : PRIMARY + 20] = struct.pack("<II", header_size, 0)
    data[PRIMARY + 16 : PRIMARY + 20] = struct.pack("<I", zlib.crc32(data[PRIMARY:][:header_size]))
    table = read_table(data)
    assert ranges(table) == GOOD
    assert rules(table) == ["gpt-backup-header-used"]
    assert f"HeaderSize is {header_size}" in table.findings[0].message


def test_most_and_largest_entries_allowed_are_read() -> None:
    for count, entry_size in ((1024, 128), (1024, 1024), (1, 1 << 20)):
        array = gpt_entry(40, 41, size=entry_size).ljust(count * entry_size, b"\0")
        data = gpt_disk()
        data += bytes(len(array))
        put(data, SECTORS * 512, array)
        put(
            data,
            PRIMARY,
            header(array, 1, alternate=SECTORS - 1, entry_lba=SECTORS, count=count, entry_size=entry_size),
        )
        table = read_table(data)
        assert ranges(table) == [(1, 40, 41)]


def test_partition_that_ends_before_it_begins_has_no_size() -> None:
    table = read_table(gpt_disk([gpt_entry(100, 99), gpt_entry(2**64 - 1, 0)]))
    assert [one.size for one in table.partitions] == [0, 0]
    assert rules(table) == ["partition-inverted"] * 2


def test_partition_up_to_the_end_of_the_numbers_is_kept_and_found() -> None:
    table = read_table(gpt_disk([gpt_entry(100, 2**64 - 1), gpt_entry(0, 2**64 - 1)]))
    assert ranges(table) == [(1, 100, 2**64 - 1), (2, 0, 2**64 - 1)]
    assert set(rules(table)) == {
        "partition-past-end",
        "partition-over-table",
        "partition-overlap",
        "gpt-outside-usable",
    }


@pytest.mark.parametrize(("last", "expected"), [(199, []), (200, ["partition-overlap"])])
def test_overlap_begins_with_one_common_sector(last: int, expected: list[str]) -> None:
    assert rules(read_table(gpt_disk([gpt_entry(100, last), gpt_entry(200, 200)]))) == expected


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (34, SECTORS - 34, []),
        (33, SECTORS - 34, ["gpt-outside-usable"]),
        (34, SECTORS - 33, ["gpt-outside-usable"]),
        (34, SECTORS - 1, ["gpt-outside-usable"]),
        (34, SECTORS, ["partition-past-end", "gpt-outside-usable"]),
    ],
)
def test_partition_stays_in_the_usable_range(first: int, last: int, expected: list[str]) -> None:
    assert rules(read_table(gpt_disk([gpt_entry(first, last)]))) == expected


def test_thousand_bad_entries_are_listed_and_summed_up() -> None:
    array = gpt_entry(0, 2**64 - 1) * 1024
    data = gpt_disk() + bytearray(len(array))
    put(data, SECTORS * 512, array)
    put(data, PRIMARY, header(array, 1, alternate=SECTORS - 1, entry_lba=SECTORS))
    table = read_table(data)
    assert len(table.partitions) == 1024
    assert len(table.findings) < 50
    assert any("and 1016 more" in finding.message for finding in table.findings)


@pytest.mark.parametrize("alternate", [0, 1, 2, SECTORS - 2, SECTORS, 2**64 - 1])
def test_wrong_place_of_the_backup_is_found(alternate: int) -> None:
    data = gpt_disk()
    array = bytes(data[PRIMARY_ENTRIES : PRIMARY_ENTRIES + 128 * 128])
    put(data, PRIMARY, header(array, 1, alternate=alternate, entry_lba=2))
    table = read_table(data)
    assert ranges(table) == GOOD
    assert rules(table)[0] == ("gpt-backup-past-end" if alternate >= SECTORS else "gpt-backup-not-at-end")


def test_odd_bytes_behind_the_last_sector_do_not_hide_the_backup() -> None:
    data = gpt_disk() + b"tail"
    assert rules(read_table(data)) == []
    data[PRIMARY] = 0
    assert rules(read_table(data)) == ["gpt-backup-header-used"]


def gpt_disk_of_4096() -> bytearray:
    array = b"".join(ENTRIES).ljust(128 * 128, b"\0")
    data = bytearray(SECTORS * 4096)
    put(data, 0, protective_mbr())
    usable = (6, SECTORS - 6)
    put(data, 4096, header(array, 1, alternate=SECTORS - 1, entry_lba=2, usable=usable))
    put(data, 2 * 4096, array)
    put(data, (SECTORS - 5) * 4096, array)
    put(data, (SECTORS - 1) * 4096, header(array, SECTORS - 1, alternate=1, entry_lba=SECTORS - 5, usable=usable))
    return data


def test_4096_byte_sectors_are_found_from_either_copy() -> None:
    data = gpt_disk_of_4096()
    table = read_table(data)
    assert (table.sector_size, ranges(table), rules(table)) == (4096, GOOD, [])
    assert table.partitions[0].offset == 100 * 4096
    data[4096] = 0
    table = read_table(data)
    assert (table.sector_size, ranges(table), rules(table)) == (4096, GOOD, ["gpt-backup-header-used"])


def test_stated_sector_size_is_not_guessed_around() -> None:
    assert ranges(read_table(gpt_disk_of_4096(), 4096)) == GOOD
    assert rules(read_table(gpt_disk_of_4096(), 512)) == ["gpt-no-valid-header"]
    assert rules(read_table(gpt_disk(), 4096)) == ["gpt-no-valid-header"]


def test_damaged_header_of_4096_byte_sectors_is_named() -> None:
    data = gpt_disk_of_4096()
    data[4096 + 20] = data[-4096 + 20] = 1
    (finding,) = read_table(data).findings
    assert "offset 0x1000" in finding.message


class BadRange(MemorySource):
    """A disk of which a range of bytes cannot be read."""

    def __init__(self, data: bytes, begin: int, end: int) -> None:
        super().__init__(data, "disk")
        self._begin, self._end = begin, end

    def read_at(self, offset: int, length: int, /) -> bytes:
        if offset < self._end and self._begin < offset + length:
            raise DiskfsError(f"disk: {offset:#x} cannot be read")
        return super().read_at(offset, length)


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (PRIMARY, PRIMARY + 1, ["gpt-backup-header-used"]),
        (PRIMARY_ENTRIES + 1000, PRIMARY_ENTRIES + 1001, ["gpt-backup-header-used"]),
        (PRIMARY_ENTRIES + 128 * 128, 100 * 512, []),
        (BACKUP_ENTRIES - 1, BACKUP_ENTRIES, []),
        (BACKUP_ENTRIES, BACKUP_ENTRIES + 1, ["gpt-backup-bad"]),
        (BACKUP, BACKUP + 1, ["gpt-backup-bad"]),
        (512, SECTORS * 512, ["gpt-no-valid-header"]),
    ],
)
def test_unreadable_part_of_a_gpt_is_a_finding(begin: int, end: int, expected: list[str]) -> None:
    table = read_partition_table(BadRange(bytes(gpt_disk()), begin, end))
    assert table is not None
    assert rules(table) == expected
    assert ranges(table) == ([] if expected == ["gpt-no-valid-header"] else GOOD)
