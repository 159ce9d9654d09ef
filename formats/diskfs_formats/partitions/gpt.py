"""GPT: the GUID partition table.

Specification: UEFI 2.10, section 5.3. Little-endian; addresses count sectors of the disk. The primary header is at
LBA 1, the backup at the last LBA; each has its own array of partition entries and a CRC-32 of itself and of the array.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID

from construct import Bytes, Int32ul, Int64ul, Struct

from diskfs_formats.binary import is_power_of_two
from diskfs_formats.errors import ChecksumMismatch, CorruptImage, DiskfsError, TruncatedImage
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.partitions.ends import DiskEnds
from diskfs_formats.partitions.table import Partition, PartitionTable, check_ranges, first_few

SIGNATURE = b"EFI PART"
PRIMARY_LBA = 1

GPT_HEADER = Struct(
    "Signature" / Bytes(8),
    "Revision" / Int32ul,
    "HeaderSize" / Int32ul,
    "HeaderCRC32" / Int32ul,
    "Reserved" / Int32ul,
    "MyLBA" / Int64ul,
    "AlternateLBA" / Int64ul,
    "FirstUsableLBA" / Int64ul,
    "LastUsableLBA" / Int64ul,
    "DiskGUID" / Bytes(16),
    "PartitionEntryLBA" / Int64ul,
    "NumberOfPartitionEntries" / Int32ul,
    "SizeOfPartitionEntry" / Int32ul,
    "PartitionEntryArrayCRC32" / Int32ul,
)
assert GPT_HEADER.sizeof() == 92
HEADER_SIZE = 92
HEADER_CRC = slice(16, 20)

# PartitionTypeGUID, UniquePartitionGUID, StartingLBA, EndingLBA, Attributes, PartitionName. Their number comes from
# the disk, so this is not a construct.
PARTITION_ENTRY = struct.Struct("<16s16sQQQ72s")
assert PARTITION_ENTRY.size == 128

MAX_ENTRIES = 1024
"""128 are usual; nothing is known that writes more than 1,024."""
MAX_ARRAY_SIZE = 1 << 20
"""Bytes of the array of partition entries: 16 KiB is usual."""
UNUSED = bytes(16)
LEGACY_BIOS_BOOTABLE = 1 << 2

_SGDISK = "repair it with gdisk, or write it anew with sgdisk -e"


class _NoHeader(CorruptImage):
    """There is no GPT header at that place, not even a damaged one."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """One of the two copies of the table, its checksums verified."""

    sector_size: int
    alternate_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: UUID
    entry_size: int
    array: bytes

    def partitions(self) -> Iterator[Partition]:
        """Yield the used entries in the table's order."""
        for index in range(len(self.array) // self.entry_size):
            at = index * self.entry_size
            if self.array[at : at + 16] == UNUSED:
                continue
            type_guid, guid, first_lba, last_lba, attributes, name = PARTITION_ENTRY.unpack_from(self.array, at)
            yield Partition(
                number=index + 1,
                first_lba=first_lba,
                last_lba=last_lba,
                type_id=UUID(bytes_le=type_guid),
                name=name.decode("utf-16-le", "replace").partition("\0")[0],
                bootable=bool(attributes & LEGACY_BIOS_BOOTABLE),
                unique_id=UUID(bytes_le=guid),
                sector_size=self.sector_size,
            )


def read_gpt(ends: DiskEnds, sector_sizes: Sequence[int]) -> PartitionTable:
    """Return the table of the first sector size that has a valid copy: any primary one, else any backup.

    Raises CorruptImage if there is none; damage to one copy, or to entries, becomes a finding.
    """
    problems: dict[int, DiskfsError] = {}
    for sector_size in sector_sizes:
        try:
            primary = _read_copy(ends, sector_size, PRIMARY_LBA, "primary")
        except DiskfsError as error:
            problems[sector_size] = error
        else:
            return _table(ends, primary, list(_check_backup(ends, primary)))
    backup_problems: list[DiskfsError] = []
    for sector_size in sector_sizes:
        try:
            backup = _read_copy(ends, sector_size, ends.size // sector_size - 1, "backup")
        except DiskfsError as error:
            backup_problems.append(error)
        else:
            return _table(
                ends,
                backup,
                [
                    Finding(
                        "gpt-backup-header-used",
                        Severity.WARNING,
                        f"{problems[sector_size]}; the backup at the end of the disk is used",
                        "repair the primary GPT with gdisk",
                    )
                ],
            )
    for problem in (*problems.values(), *backup_problems):
        if not isinstance(problem, _NoHeader):
            raise CorruptImage(f"{problem}; no other copy of the GPT is valid") from problem
    sizes = " or ".join(str(sector_size) for sector_size in sector_sizes)
    raise CorruptImage(
        f"{ends.name}: the MBR announces a GPT, but neither LBA 1 nor the last LBA holds a GPT header (sectors of "
        f"{sizes} bytes)"
    )


def has_signature(ends: DiskEnds, sector_sizes: Sequence[int]) -> bool:
    """Tell whether something that calls itself a GPT header is at LBA 1."""
    try:
        return any(
            ends.read(sector_size, len(SIGNATURE)) == SIGNATURE
            for sector_size in sector_sizes
            if sector_size + len(SIGNATURE) <= ends.size
        )
    except DiskfsError:
        return False


def _table(ends: DiskEnds, copy: _Copy, findings: list[Finding]) -> PartitionTable:
    partitions = tuple(copy.partitions())
    findings.extend(check_ranges(ends, partitions))
    findings.extend(_check_usable(ends, copy, partitions))
    return PartitionTable("gpt", copy.sector_size, partitions, tuple(findings), str(copy.disk_guid))


def _read_copy(ends: DiskEnds, sector_size: int, lba: int, which: Literal["primary", "backup"]) -> _Copy:
    """Read and verify a header and its array; raises CorruptImage and what the disk raises."""
    offset = lba * sector_size
    where = f"{ends.name}: {which} GPT header at LBA {lba} (offset {offset:#x})"
    if lba < PRIMARY_LBA or offset + sector_size > ends.size:
        raise _NoHeader(f"{where}: not a place for it on a disk of {ends.size} bytes")
    sector = ends.read(offset, sector_size)
    header = GPT_HEADER.parse(sector)
    if header.Signature != SIGNATURE:
        raise _NoHeader(f"{where}: the signature is missing")
    if not HEADER_SIZE <= header.HeaderSize <= sector_size:
        raise CorruptImage(f"{where}: HeaderSize is {header.HeaderSize}, expected {HEADER_SIZE} to {sector_size}")
    unsummed = bytearray(sector[: header.HeaderSize])
    unsummed[HEADER_CRC] = bytes(4)
    if (crc := zlib.crc32(unsummed)) != header.HeaderCRC32:
        raise ChecksumMismatch(f"{where}: CRC-32 {crc:#010x}, expected {header.HeaderCRC32:#010x}")
    if lba != header.MyLBA:
        raise CorruptImage(f"{where}: MyLBA is {header.MyLBA}")
    return _Copy(
        sector_size=sector_size,
        alternate_lba=header.AlternateLBA,
        first_usable_lba=header.FirstUsableLBA,
        last_usable_lba=header.LastUsableLBA,
        disk_guid=UUID(bytes_le=header.DiskGUID),
        entry_size=header.SizeOfPartitionEntry,
        array=_read_array(ends, sector_size, header, where),
    )


def _read_array(ends: DiskEnds, sector_size: int, header: Any, where: str) -> bytes:
    count, entry_size = header.NumberOfPartitionEntries, header.SizeOfPartitionEntry
    if entry_size % PARTITION_ENTRY.size or not is_power_of_two(entry_size // PARTITION_ENTRY.size):
        raise CorruptImage(f"{where}: SizeOfPartitionEntry is {entry_size}, expected 128 times a power of two")
    if not 1 <= count <= MAX_ENTRIES or count * entry_size > MAX_ARRAY_SIZE:
        raise CorruptImage(
            f"{where}: {count} partition entries of {entry_size} bytes, at most {MAX_ENTRIES} and {MAX_ARRAY_SIZE} "
            "bytes are expected"
        )
    offset, size = header.PartitionEntryLBA * sector_size, count * entry_size
    if header.PartitionEntryLBA <= PRIMARY_LBA:
        raise CorruptImage(f"{where}: PartitionEntryLBA is {header.PartitionEntryLBA}, expected 2 or more")
    if offset + size > ends.size:
        raise TruncatedImage(
            f"{where}: the partition entries need {size} bytes at offset {offset:#x}, the disk has {ends.size}"
        )
    array = ends.read(offset, size)
    if (crc := zlib.crc32(array)) != header.PartitionEntryArrayCRC32:
        raise ChecksumMismatch(
            f"{where}: the partition entries at offset {offset:#x} have CRC-32 {crc:#010x}, expected "
            f"{header.PartitionEntryArrayCRC32:#010x}"
        )
    return array


def _check_backup(ends: DiskEnds, primary: _Copy) -> Iterator[Finding]:
    last_lba = ends.size // primary.sector_size - 1
    if primary.alternate_lba > last_lba:
        yield Finding(
            "gpt-backup-past-end",
            Severity.ERROR,
            f"{ends.name}: the GPT's backup header is at LBA {primary.alternate_lba}, the disk ends at LBA {last_lba}",
            "the disk may have been cut short; compare its size with the original",
        )
        return
    if primary.alternate_lba < last_lba:
        yield Finding(
            "gpt-backup-not-at-end",
            Severity.WARNING,
            f"{ends.name}: the GPT's backup header is at LBA {primary.alternate_lba}, the disk ends at LBA {last_lba}: "
            "the disk was enlarged after it was partitioned",
            "move the backup with sgdisk -e",
        )
    try:
        backup = _read_copy(ends, primary.sector_size, primary.alternate_lba, "backup")
    except DiskfsError as error:
        yield Finding("gpt-backup-bad", Severity.WARNING, f"{error}; the primary GPT is used", _SGDISK)
        return
    if backup.array != primary.array or backup.disk_guid != primary.disk_guid:
        yield Finding(
            "gpt-backup-differs",
            Severity.WARNING,
            f"{ends.name}: the backup GPT at LBA {primary.alternate_lba} differs from the primary, which is used",
            _SGDISK,
        )


def _check_usable(ends: DiskEnds, copy: _Copy, partitions: tuple[Partition, ...]) -> Iterator[Finding]:
    first, last = copy.first_usable_lba, copy.last_usable_lba
    yield from first_few(
        "gpt-outside-usable",
        Severity.WARNING,
        (
            f"{ends.name}: {one} is not inside the range that the GPT header allows (LBA {first} to {last})"
            for one in partitions
            if one.size and (one.first_lba < first or one.last_lba > last)
        ),
    )
