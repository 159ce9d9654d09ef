"""What `diskfs verify` examines in a VMDK: every table and grain of every extent, what lies over what, and the
redundant tables.
"""

from array import array
from collections.abc import Iterator

from diskfs_formats.binary import EntryTable
from diskfs_formats.errors import DiskfsError
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable
from diskfs_formats.units import check_units, limited
from diskfs_formats.vmdk.extents import ExtentFiles
from diskfs_formats.vmdk.grains import GrainExtent
from diskfs_formats.vmdk.header import SECTOR, SparseHeader
from diskfs_formats.vmdk.sparse import SparseExtent, open_directory, read_table

MAX_TABLES = 1 << 18
"""Grain tables of a file that are compared with each other, in some 12 MiB of memory: 8 TiB in grains of 64 KiB."""
MAX_SLOTS = 1 << 23
"""Grains that a file may have room for if they are to be compared with each other: 512 GiB in grains of 64 KiB."""


def check_extents(files: ExtentFiles) -> Iterator[Finding]:
    """Yield what is wrong with the extents of a descriptor, each by the name of its own file."""
    yield from limited(_shared_bytes(files), files.source.name, "vmdk-extent-overlap")
    for extent in files.grain_extents:
        yield from check_grains(extent)


def check_grains(extent: GrainExtent) -> Iterator[Finding]:
    """Yield a finding for every table and grain that cannot be read or that shares its place with another, and for
    redundant tables that differ.
    """
    if isinstance(extent, SparseExtent) and extent.header.has_redundant_tables:
        redundant = _compare_redundant(extent.source, extent.header)
        yield from limited(redundant, extent.name, "vmdk-redundant-table")
    shared = 0
    for finding in limited(_table_overlaps(extent), extent.name, "vmdk-table-overlap"):
        shared += finding.severity is Severity.ERROR
        yield finding
    if shared:
        # A few tables can be made to stand for a disk without end, so reading it all is not tried.
        yield Finding(
            "vmdk-table-overlap",
            Severity.ERROR,
            f"{extent.name}: its grains were not examined, because grain tables share their places",
        )
        return
    yield from check_units(extent, "vmdk-grain")
    yield from limited(_grain_overlaps(extent), extent.name, "vmdk-grain-overlap")


def _shared_bytes(files: ExtentFiles) -> Iterator[Finding]:
    """Find flat extents of one file that have bytes in common."""
    for name, ranges in files.flat_ranges.items():
        end, holder = 0, 0
        for offset, length, number in sorted(ranges):
            if offset < end:
                yield Finding(
                    "vmdk-extent-overlap",
                    Severity.ERROR,
                    f"{files.source.name}: extents {holder} and {number} of the descriptor share bytes of "
                    f"{printable(name)!r} from offset {offset:#x} on",
                    "at most one of them has its own data",
                )
            if offset + length > end:
                end, holder = offset + length, number


def _table_overlaps(extent: GrainExtent) -> Iterator[Finding]:
    """Find grain tables that lie over each other; two directory entries may name the same one."""
    places: list[int] = []
    for number, entry in extent.allocated_tables():
        if len(places) == MAX_TABLES:
            yield Finding(
                "vmdk-table-overlap",
                Severity.INFO,
                f"{extent.name}: it has over {MAX_TABLES} grain tables; whether any of them overlap was not examined",
            )
            return
        try:
            offset = extent.table_offset(number, entry)
        except DiskfsError:
            continue  # found by reading its grains
        if offset < extent.source.size:
            places.append(offset << 64 | number)
    places.sort()
    end, holder = 0, 0
    for place in places:
        offset, number = place >> 64, place & 0xFFFFFFFFFFFFFFFF
        if offset < end:
            yield Finding(
                "vmdk-table-overlap",
                Severity.ERROR,
                f"{extent.name}: grain tables {holder} and {number} lie over each other, the second at offset "
                f"{offset:#x}",
                "at most one of them is right",
            )
        if offset + extent.table_length(number) > end:
            end, holder = offset + extent.table_length(number), number


def _grain_overlaps(extent: GrainExtent) -> Iterator[Finding]:
    """Find stored grains that lie over each other or over a grain table, in one pass.

    The file is divided into slots of a grain's length; of each, the sector is noted in which a grain begins, from 1.
    A grain can overlap none but those of its own slot and of the two beside it. Compressed grains say themselves
    where they belong, and the last grain of a disk may be stored only as far as the disk reaches.
    """
    length = extent.info.unit_size
    slots = -(-extent.source.size // length)
    if slots > MAX_SLOTS:
        yield Finding(
            "vmdk-grain-overlap",
            Severity.INFO,
            f"{extent.name}: there is room for over {MAX_SLOTS} grains; whether any of them overlap was not examined",
        )
        return
    begins = array("I", [0]) * (slots + 1)
    for number, entry in extent.allocated_tables():
        try:
            table = extent.table(number, entry)
        except DiskfsError:
            continue  # found by reading its grains
        for grain, offset in extent.stored_grains(number, table):
            slot = offset // length
            if slot >= slots or (grain + 1) * length > extent.size:
                continue
            sector = offset % length // SECTOR + 1
            if begins[slot] or (slot and begins[slot - 1] > sector) or 0 < begins[slot + 1] < sector:
                yield Finding(
                    "vmdk-grain-overlap",
                    Severity.ERROR,
                    f"{extent.name}: grain {grain} at offset {offset:#x} lies over another grain",
                    "at most one of them has its own data",
                )
            begins[slot] = begins[slot] or sector
    for number, entry in extent.allocated_tables():
        try:
            first = extent.table_offset(number, entry)
        except DiskfsError:
            continue
        end = min(first + extent.table_length(number), extent.source.size)
        for slot in range(max(first // length - 1, 0), -(-end // length)):
            offset = slot * length + (begins[slot] - 1) * SECTOR
            if begins[slot] and offset < end and offset + length > first:
                yield Finding(
                    "vmdk-grain-overlap",
                    Severity.ERROR,
                    f"{extent.name}: the grain at offset {offset:#x} lies over grain table {number} at {first:#x}",
                    "the table, or the entry of the grain, is damaged",
                )


def _compare_redundant(source: ByteSource, header: SparseHeader) -> Iterator[Finding]:
    try:
        first = open_directory(source, header, header.gd_offset, "grain directory")
        second = open_directory(source, header, header.rgd_offset, "redundant grain directory")
    except DiskfsError as error:
        yield Finding("vmdk-redundant-directory", Severity.ERROR, str(error))
        return
    for number in range(header.table_count):
        try:
            if _table_bytes(source, header, first, number) != _table_bytes(source, header, second, number):
                yield Finding(
                    "vmdk-redundant-table",
                    Severity.ERROR,
                    f"{source.name}: grain table {number} and its redundant copy differ: sectors "
                    f"{first[number]:#x} and {second[number]:#x}",
                    "one of the two is damaged; the first is the one that is read",
                )
        except DiskfsError as error:
            yield Finding("vmdk-redundant-table", Severity.ERROR, str(error))


def _table_bytes(source: ByteSource, header: SparseHeader, directory: EntryTable, number: int) -> bytes:
    sector = directory[number]
    return read_table(source, header, number, sector * SECTOR).tobytes() if sector else b""
