"""What a partition table says, whichever scheme wrote it, and what is wrong with the ranges it lists."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from diskfs_formats.findings import Finding, Severity
from diskfs_formats.partitions.ends import DiskEnds

MAX_FINDINGS_PER_RULE = 8
"""A table of nonsense would otherwise give a finding for every entry."""

EXTENDED_TYPES = frozenset({0x05, 0x0F, 0x85})
"""MBR types of a partition that holds logical partitions: CHS, LBA, Linux."""


@dataclass(frozen=True, slots=True)
class Partition:
    """One entry, as it is in the table: nothing is clamped to the disk, and `last_lba` is inclusive.

    `number` is the one Linux gives it: the entry's place in the table from 1, logical partitions of an MBR from 5.
    `type_id` is the type byte of an MBR or the type GUID of a GPT. `bootable` is the active flag of an MBR or the
    legacy BIOS bootable attribute of a GPT. `name` is untrusted.
    """

    number: int
    first_lba: int
    last_lba: int
    type_id: int | UUID
    name: str = ""
    bootable: bool = False
    unique_id: UUID | None = None
    sector_size: int = 512

    @property
    def offset(self) -> int:
        """The first byte on the disk; may lie past the disk's end."""
        return self.first_lba * self.sector_size

    @property
    def size(self) -> int:
        """Bytes; 0 if the entry ends before it begins."""
        return max(self.last_lba - self.first_lba + 1, 0) * self.sector_size

    @property
    def is_container(self) -> bool:
        """Tell whether this is an extended partition: a frame around logical ones, without content of its own."""
        return self.type_id in EXTENDED_TYPES

    def __str__(self) -> str:
        return f"partition {self.number} (LBA {self.first_lba} to {self.last_lba})"

    @property
    def type_text(self) -> str:
        """The type for people and JSON: `0x83`, or a GUID in lower case."""
        return f"{self.type_id:#04x}" if isinstance(self.type_id, int) else str(self.type_id)


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """A disk's partitions, ascending by number. `disk_id` is the disk GUID, or an MBR's signature such as 0x53f5a6ee.

    Extended partitions are listed, as sfdisk does; Linux gives them a device of two sectors so that nobody takes them
    for a file system, and `Partition.is_container` is how a consumer leaves them out.
    """

    scheme: Literal["mbr", "gpt"]
    sector_size: int
    partitions: tuple[Partition, ...]
    findings: tuple[Finding, ...] = ()
    disk_id: str = ""


def check_ranges(ends: DiskEnds, partitions: Iterable[Partition]) -> Iterator[Finding]:
    """Yield findings for partitions that cannot be where the table says: inverted, past the end, overlapping."""
    partitions = list(partitions)
    yield from first_few(
        "partition-inverted",
        Severity.ERROR,
        (f"{ends.name}: {one} ends before it begins" for one in partitions if one.last_lba < one.first_lba),
    )
    yield from first_few(
        "partition-past-end",
        Severity.ERROR,
        (
            f"{ends.name}: {one} runs past the end of the disk, which has {ends.size // one.sector_size} sectors of "
            f"{one.sector_size} bytes"
            for one in partitions
            if one.size and one.offset + one.size > ends.size
        ),
        "the disk may have been cut short; compare its size with the original",
    )
    yield from first_few(
        "partition-over-table",
        Severity.WARNING,
        (f"{ends.name}: {one} begins where the partition table is" for one in partitions if one.first_lba == 0),
    )
    yield from first_few(
        "partition-overlap",
        Severity.WARNING,
        (f"{ends.name}: {two} overlaps {one}" for one, two in _overlapping(partitions)),
    )


def first_few(rule: str, severity: Severity, messages: Iterable[str], remedy: str = "") -> Iterator[Finding]:
    """Yield a finding per message; from MAX_FINDINGS_PER_RULE on, the last one counts the rest."""
    found = list(messages)
    more = len(found) - MAX_FINDINGS_PER_RULE
    for index, message in enumerate(found[:MAX_FINDINGS_PER_RULE], 1):
        rest = f" (and {more} more like this)" if more > 0 and index == MAX_FINDINGS_PER_RULE else ""
        yield Finding(rule, severity, message + rest, remedy)


def _overlapping(partitions: list[Partition]) -> Iterable[tuple[Partition, Partition]]:
    """Return every partition that begins inside an earlier one, with that one.

    A logical partition overlaps its container by design, so containers are compared with the primary ones alone.
    """
    groups = [[one for one in partitions if not one.is_container]]
    if len(groups[0]) < len(partitions):
        groups.append([one for one in partitions if one.number <= 4])
    pairs: dict[tuple[Partition, Partition], None] = {}
    for group in groups:
        furthest: Partition | None = None
        for one in sorted((one for one in group if one.size), key=lambda one: (one.first_lba, one.number)):
            if furthest is not None and one.first_lba <= furthest.last_lba:
                pairs[furthest, one] = None
            if furthest is None or one.last_lba > furthest.last_lba:
                furthest = one
    return pairs
