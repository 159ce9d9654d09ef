"""The region tables: where the BAT and the metadata are.

Specification: [MS-VHDX] 8.0, section 2.2.3. The two tables are copies of each other.
"""

import itertools
from dataclasses import dataclass
from uuid import UUID

from diskfs_formats.binary import parse_bytes
from diskfs_formats.errors import ChecksumMismatch, CorruptImage, TruncatedImage, UnsupportedFeature
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.vhdx.checksum import structure_checksum
from diskfs_formats.vhdx.headers import Header
from diskfs_formats.vhdx.structures import (
    BAT_REGION,
    HEADER_SECTION_SIZE,
    MAX_ENTRIES,
    METADATA_REGION,
    MIB,
    REGION_TABLE_ENTRY,
    REGION_TABLE_HEADER,
    REGION_TABLE_OFFSETS,
    REGION_TABLE_SIZE,
    guid,
)

_KNOWN = {BAT_REGION: "BAT", METADATA_REGION: "metadata region"}


@dataclass(frozen=True, slots=True, order=True)
class Region:
    """A part of the file that is not a block. Offset and length in bytes."""

    offset: int
    length: int
    title: str

    @property
    def end(self) -> int:
        """The first byte after the region."""
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Regions:
    """Where everything but the blocks is; `reserved` is all of it, ascending and without overlaps."""

    bat: Region
    metadata: Region
    reserved: tuple[Region, ...]


def read_regions(file: ByteSource, header: Header, findings: list[Finding]) -> Regions:
    """Read both region tables of a file whose log is replayed; raises ImageError.

    One damaged table becomes a finding. Two whole ones that differ are refused: nothing tells which one is right.
    """
    tables: list[tuple[int, list[tuple[UUID, Region, bool]]]] = []
    problems: list[CorruptImage] = []
    for offset in REGION_TABLE_OFFSETS:
        try:
            tables.append((offset, _read_table(file, offset)))
        except CorruptImage as error:
            problems.append(error)
    if not tables:
        raise problems[0]
    findings.extend(
        Finding("vhdx-region-table", Severity.WARNING, str(problem), "the other region table is whole, and is used")
        for problem in problems
    )
    if len(tables) == 2 and _set_of(tables[0][1]) != _set_of(tables[1][1]):
        raise CorruptImage(
            f"{file.name}: the region tables at offsets {tables[0][0]:#x} and {tables[1][0]:#x} are both whole and "
            "differ: nothing tells which one is right; take the image from a copy"
        )
    offset, entries = tables[0]
    return _checked(entries, header, f"{file.name}: region table at offset {offset:#x}")


def _read_table(file: ByteSource, offset: int) -> list[tuple[UUID, Region, bool]]:
    """Return identity, place and necessity of each region in one table whose checksum is right."""
    if offset + REGION_TABLE_SIZE > file.size:
        raise TruncatedImage(
            f"{file.name}: the region table at offset {offset:#x} needs {REGION_TABLE_SIZE} bytes, the file ends at "
            f"{file.size:#x}: the file is incomplete"
        )
    data = file.read_at(offset, REGION_TABLE_SIZE)
    raw = parse_bytes(REGION_TABLE_HEADER, data, file, offset, "VHDX region table")
    where = f"{file.name}: region table at offset {offset:#x}"
    computed = structure_checksum(data)
    if raw.Checksum != computed:
        raise ChecksumMismatch(f"{where}: CRC-32C {raw.Checksum:#010x}, expected {computed:#010x}")
    if raw.EntryCount > MAX_ENTRIES:
        raise CorruptImage(f"{where}: {raw.EntryCount} entries, at most {MAX_ENTRIES} are possible")
    start = REGION_TABLE_HEADER.sizeof()
    entries = memoryview(data)[start : start + raw.EntryCount * REGION_TABLE_ENTRY.size]
    return [
        (identity, Region(file_offset, length, _KNOWN.get(identity, f"region {identity}")), bool(flags & 1))
        for stored, file_offset, length, flags in REGION_TABLE_ENTRY.iter_unpack(entries)
        for identity in (guid(stored),)
    ]


def _set_of(entries: list[tuple[UUID, Region, bool]]) -> set[tuple[UUID, int, int]]:
    return {(identity, region.offset, region.length) for identity, region, _ in entries}


def _checked(entries: list[tuple[UUID, Region, bool]], header: Header, where: str) -> Regions:
    by_identity: dict[UUID, Region] = {}
    for identity, region, required in entries:
        if identity in by_identity:
            raise CorruptImage(f"{where}: two entries for the {region.title}, expected one")
        if region.offset % MIB or region.length % MIB or region.offset < MIB:
            raise CorruptImage(
                f"{where}: the {region.title} has {region.length:#x} bytes at offset {region.offset:#x}, expected "
                "multiples of 1 MiB from 1 MiB on"
            )
        # qemu leaves the flag of the two known regions clear, so it is no reason to refuse one of them.
        if required and identity not in _KNOWN:
            raise UnsupportedFeature(f"{where}: region {identity} is marked as required, and is not known")
        by_identity[identity] = region
    for identity, title in _KNOWN.items():
        if identity not in by_identity:
            raise CorruptImage(f"{where}: it has no entry for the {title} ({identity})")
    log = Region(header.log_offset, header.log_length, "log")
    reserved = [Region(0, HEADER_SECTION_SIZE, "header section"), log, *by_identity.values()]
    reserved = sorted(region for region in reserved if region.length)
    for one, two in itertools.pairwise(reserved):
        if one.end > two.offset:
            raise CorruptImage(
                f"{where}: the {one.title} ({one.offset:#x} to {one.end:#x}) and the {two.title} ({two.offset:#x} to "
                f"{two.end:#x}) overlap"
            )
    return Regions(by_identity[BAT_REGION], by_identity[METADATA_REGION], tuple(reserved))
