"""MBR: the master boot record, and the chain of extended boot records (EBR) that lists logical partitions.

Specification: UEFI 2.10, section 5.2.1 (record layout); logical partitions, which no standard describes, are found
and numbered as Linux does. Little-endian; addresses and sizes count sectors of the disk. A record takes 512 bytes
whatever the sector size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from construct import Array, Bytes, Int8ul, Int16ul, Int32ul, Struct

from diskfs_formats.errors import DiskfsError
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.partitions.ends import DiskEnds
from diskfs_formats.partitions.table import EXTENDED_TYPES, Partition, PartitionTable, check_ranges, first_few

PARTITION_RECORD = Struct(
    "BootIndicator" / Int8ul,
    "StartingCHS" / Bytes(3),
    "OSType" / Int8ul,
    "EndingCHS" / Bytes(3),
    "StartingLBA" / Int32ul,
    "SizeInLBA" / Int32ul,
)
assert PARTITION_RECORD.sizeof() == 16

MASTER_BOOT_RECORD = Struct(
    "BootCode" / Bytes(440),
    "UniqueMBRDiskSignature" / Int32ul,
    "Unknown" / Int16ul,
    "PartitionRecord" / Array(4, PARTITION_RECORD),
    "Signature" / Bytes(2),
)
assert MASTER_BOOT_RECORD.sizeof() == 512
MBR_SIZE = 512

SIGNATURE = b"\x55\xaa"
BOOT_INDICATORS = frozenset({0x00, 0x80})
GPT_PROTECTIVE = 0xEE
FIRST_LOGICAL = 5
MAX_EBRS = 128
"""Records of all chains together. fdisk and sfdisk stop at 60 partitions, Linux after 100 empty records."""
MAX_LOGICAL = 128
"""No EBR is read after so many partitions: one EBR can hold several."""

JUMPS = frozenset({0xEB, 0xE9})
"""How the boot sector of a volume begins: a jump over its BIOS parameter block."""
NOT_FAT_NAMES = frozenset({b"NTFS    ", b"EXFAT   ", b"-FVE-FS-"})
"""OEM names of volumes whose parameter block is not FAT's."""


@dataclass(frozen=True, slots=True)
class MbrEntry:
    """A partition record. `first_lba` counts from LBA 0 in an MBR; in an EBR from what the record's use says."""

    boot_indicator: int
    type_id: int
    first_lba: int
    sectors: int

    @property
    def is_used(self) -> bool:
        """Tell whether the record describes a partition; Linux and sfdisk go by the size alone."""
        return self.sectors != 0

    @property
    def is_extended(self) -> bool:
        """Tell whether the record leads to an EBR."""
        return self.is_used and self.type_id in EXTENDED_TYPES


@dataclass(frozen=True, slots=True)
class Mbr:
    """A sector that ends in 55 AA: an MBR, an EBR, or the boot sector of a volume, which cannot be told by that."""

    disk_signature: int
    entries: tuple[MbrEntry, ...]
    is_volume_boot_sector: bool

    @property
    def is_protective(self) -> bool:
        """Tell whether one of the records announces a GPT."""
        return any(entry.type_id == GPT_PROTECTIVE for entry in self.entries)

    @property
    def is_hybrid(self) -> bool:
        """Tell whether records of other types stand beside the one that announces a GPT."""
        return self.is_protective and any(entry.type_id not in {0, GPT_PROTECTIVE} for entry in self.entries)

    def is_plausible(self, disk_sectors: int) -> bool:
        """Tell whether the records are a partition table rather than the code or text of a volume's boot sector."""
        if any(entry.boot_indicator not in BOOT_INDICATORS for entry in self.entries):
            return False
        if not self.is_volume_boot_sector:
            return True
        # Some USB sticks carry a parameter block and a partition table in one sector: then the ranges must be right.
        used = [entry for entry in self.entries if entry.is_used]
        return bool(used) and all(
            entry.type_id and entry.first_lba and entry.first_lba + entry.sectors <= disk_sectors for entry in used
        )


def parse_mbr(sector: bytes) -> Mbr | None:
    """Return what 512 bytes say as an MBR or EBR, or None if they do not end in 55 AA."""
    if sector[510:MBR_SIZE] != SIGNATURE:
        return None
    parsed = MASTER_BOOT_RECORD.parse(sector)
    entries = tuple(
        MbrEntry(record.BootIndicator, record.OSType, record.StartingLBA, record.SizeInLBA)
        for record in parsed.PartitionRecord
    )
    return Mbr(parsed.UniqueMBRDiskSignature, entries, _is_volume_boot_sector(sector))


def read_mbr(ends: DiskEnds, mbr: Mbr, sector_size: int) -> PartitionTable:
    """Return the primary and logical partitions. Damage anywhere behind LBA 0 becomes a finding."""
    primary = [
        _partition(number, 0, entry, sector_size) for number, entry in enumerate(mbr.entries, 1) if entry.is_used
    ]
    logical = _LogicalPartitions(ends)
    for partition in primary:
        if partition.is_container:
            logical.follow(partition)
    partitions = (*primary, *logical.partitions)
    findings = (*logical.findings, *check_ranges(ends, partitions))
    return PartitionTable("mbr", sector_size, partitions, findings, f"{mbr.disk_signature:#010x}")


class _LogicalPartitions:
    """What the chains of extended boot records list, for all extended partitions of a disk together."""

    def __init__(self, ends: DiskEnds) -> None:
        self.partitions: list[Partition] = []
        self.findings: list[Finding] = []
        self._ends = ends
        self._visited: set[int] = set()

    def follow(self, container: Partition) -> None:
        """Add the partitions of the chain that begins in the extended partition's first sector."""
        begin = len(self.partitions)
        first, end = container.first_lba, container.last_lba + 1
        ebr_lba, ebr_end = first, end
        while (ebr := self._read(ebr_lba, container)) is not None:
            for slot, entry in enumerate(ebr.entries):
                if not entry.is_used or entry.is_extended:
                    continue
                # An EBR has two records. Linux takes the other two as well, unless they are garbage by their range.
                entry_end = ebr_lba + entry.first_lba + entry.sectors
                if slot < 2 or entry_end <= min(ebr_end, end):
                    number = FIRST_LOGICAL + len(self.partitions)
                    self.partitions.append(_partition(number, ebr_lba, entry, container.sector_size))
            link = next((entry for entry in ebr.entries if entry.is_extended), None)
            if link is None:
                break
            ebr_lba, ebr_end = first + link.first_lba, first + link.first_lba + link.sectors
            if ebr_lba >= end:
                self._stop("mbr-ebr-outside", f"leads to LBA {ebr_lba}, outside of {container}")
                break
        self.findings.extend(_check_inside(self._ends, container, self.partitions[begin:]))

    def _read(self, lba: int, container: Partition) -> Mbr | None:
        """Return the EBR at `lba`, or None, with a finding, if the chain cannot be followed there."""
        if lba in self._visited:
            self._stop("mbr-ebr-loop", f"leads to the EBR at LBA {lba} a second time")
            return None
        if len(self._visited) == MAX_EBRS or len(self.partitions) >= MAX_LOGICAL:
            self._stop("mbr-ebr-too-many", f"goes on at LBA {lba} after {len(self._visited)} EBRs")
            return None
        self._visited.add(lba)
        try:
            sector = self._ends.read(lba * container.sector_size, MBR_SIZE)
        except DiskfsError as error:
            self._stop("mbr-ebr-unreadable", f"leads to an EBR at LBA {lba} that cannot be read ({error})")
            return None
        ebr = parse_mbr(sector)
        # Partitioning tools may leave the sector blank until the first logical partition is made.
        if ebr is None and (lba != container.first_lba or any(sector)):
            found, expected = sector[510:].hex(" "), SIGNATURE.hex(" ")
            self._stop(
                "mbr-ebr-no-signature", f"leads to LBA {lba}, where no EBR is: it ends in {found}, not {expected}"
            )
        return ebr

    def _stop(self, rule: str, problem: str) -> None:
        self.findings.append(
            Finding(
                rule,
                Severity.ERROR,
                f"{self._ends.name}: the chain of logical partitions {problem}",
                "logical partitions behind this point are not listed; repair the table with fdisk or testdisk",
            )
        )


def _check_inside(ends: DiskEnds, container: Partition, logical: list[Partition]) -> Iterator[Finding]:
    yield from first_few(
        "mbr-logical-outside",
        Severity.WARNING,
        (
            f"{ends.name}: logical {one} is not inside the extended {container}"
            for one in logical
            if one.last_lba > container.last_lba
        ),
    )


def _partition(number: int, base_lba: int, entry: MbrEntry, sector_size: int) -> Partition:
    first_lba = base_lba + entry.first_lba
    return Partition(
        number=number,
        first_lba=first_lba,
        last_lba=first_lba + entry.sectors - 1,
        type_id=entry.type_id,
        bootable=entry.boot_indicator == 0x80,
        sector_size=sector_size,
    )


def _is_volume_boot_sector(sector: bytes) -> bool:
    """Tell whether the sector begins as the boot sector of a FAT, exFAT, NTFS or BitLocker volume does."""
    if sector[0] not in JUMPS:
        return False
    if sector[3:11] in NOT_FAT_NAMES:
        return True
    reserved_sectors = int.from_bytes(sector[14:16], "little")
    fats, media = sector[16], sector[21]
    return reserved_sectors > 0 and fats > 0 and (media == 0xF0 or media >= 0xF8)
