"""Writing VMDK that is laid out beforehand: monolithicSparse and monolithicFlat.

Specification: VMware, Virtual Disk Format 5.0 (2011), "Hosted Sparse Extents" and "The Descriptor File".
Little-endian; offsets and sizes count 512-byte sectors where their names say so.
"""

import sys
from array import array
from collections.abc import Iterator

from diskfs_formats.allocation import AllocationMap
from diskfs_formats.binary import align_up
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.identity import new_identifier
from diskfs_formats.layout import AllocatedUnits, Header, LaidOutImage, PaddedDisk, Part, Table, Zeroes
from diskfs_formats.text import printable
from diskfs_formats.vmdk.descriptor import NO_PARENT
from diskfs_formats.vmdk.header import (
    FLAG_LINE_END_TEST,
    FLAG_REDUNDANT_GRAIN_TABLE,
    LINE_END_TEST,
    SECTOR,
    SPARSE_HEADER,
)
from diskfs_formats.writer import LaidOutFile, WriteOptions

GRAIN_SECTORS = 128
GRAIN_SIZE = GRAIN_SECTORS * SECTOR
"""64 KiB, which every program writes, and all that some read."""
TABLE_ENTRIES = 512
TABLE_SECTORS = TABLE_ENTRIES * 4 // SECTOR
DESCRIPTOR_SECTOR = 1
DESCRIPTOR_SECTORS = 20
MAX_GRAIN_SECTOR = 0xFFFFFFFF
"""What a grain table entry reaches: 2 TiB of the file."""
MAX_SIZE = 62 << 40
"""Bytes of the largest disk that VMware has, ESX's."""
HARDWARE_VERSION = 10
"""Of ESXi 5.5, which later versions take too."""
_HEADS, _SECTORS_PER_TRACK, _MAX_CYLINDERS = 255, 63, 65535
_UNUSABLE_CIDS = frozenset({0, NO_PARENT, NO_PARENT - 1})
"""ffffffff means "no parent" and fffffffe a disk that nothing was written to."""
_SUFFIX = ".vmdk"
_MAX_NAME = 255


class VmdkWriter:
    """Writes VMDK. A disk that is no whole number of sectors is padded with zeroes to the next, as qemu-img does."""

    name = "vmdk"
    variants = ("monolithicSparse", "monolithicFlat")

    def layout(self, disk: DiskImage, options: WriteOptions, /) -> tuple[LaidOutFile, ...]:
        require_fits(disk)
        name = require_file_name(options.file_name)
        if options.variant == "monolithicFlat":
            return _flat(disk, name, options)
        parts = _sparse(disk, name, options)
        image = LaidOutImage(name, self.name, self.variants[0], parts, compressed=disk.info.compressed)
        return (LaidOutFile(name, image),)


def require_fits(disk: DiskImage) -> None:
    """Raise UnsupportedFeature for a disk that no VMDK can hold."""
    if not disk.size:
        raise UnsupportedFeature(f"{disk.name}: the disk has 0 bytes, a VMDK has at least one sector")
    if disk.size > MAX_SIZE:
        raise UnsupportedFeature(
            f"{disk.name}: the disk has {disk.size} bytes, a VMDK at most {MAX_SIZE} ({MAX_SIZE >> 40} TiB); write vhdx"
        )


def require_file_name(name: str) -> str:
    """Return a file name that a descriptor can hold; raises UnsupportedFeature for any other."""
    is_short = 0 < len(name.encode("utf-8", "surrogateescape")) <= _MAX_NAME
    if not is_short or not name.isprintable() or set(name) & set('"/\\'):
        raise UnsupportedFeature(f"{printable(name, 80)!r}: a VMDK descriptor cannot name this file; choose another")
    return name


def descriptor_text(create_type: str, extent_line: str, size: int, sector_size: int, options: WriteOptions) -> bytes:
    """Return a descriptor: the header, its one extent line, and the disk database. `size` in bytes."""
    about = ("vmdk", create_type, size, sector_size)
    content_id = new_identifier(options, *about, "content")
    cid = int.from_bytes(content_id[-4:], "big")
    if cid in _UNUSABLE_CIDS:
        cid = 1
    cylinders = min(size // SECTOR // (_HEADS * _SECTORS_PER_TRACK), _MAX_CYLINDERS)
    uuid = new_identifier(options, *about, "disk").hex(" ")
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        'encoding="UTF-8"',
        f"CID={cid:08x}",
        f"parentCID={NO_PARENT:08x}",
        f'createType="{create_type}"',
        "",
        "# Extent description",
        extent_line,
        "",
        "# The Disk Data Base",
        "#DDB",
        "",
        'ddb.adapterType = "lsilogic"',
        f'ddb.geometry.cylinders = "{max(cylinders, 1)}"',
        f'ddb.geometry.heads = "{_HEADS}"',
        f'ddb.geometry.sectors = "{_SECTORS_PER_TRACK}"',
        f'ddb.longContentID = "{content_id[:12].hex()}{cid:08x}"',
        f'ddb.uuid = "{uuid[:23]}-{uuid[24:]}"',
        f'ddb.virtualHWVersion = "{HARDWARE_VERSION}"',
    ]
    if sector_size != SECTOR:
        lines.append(f'ddb.logicalSectorSize = "{sector_size}"')
    return ("\n".join(lines) + "\n").encode()


def _flat(disk: DiskImage, name: str, options: WriteOptions) -> tuple[LaidOutFile, ...]:
    stem = name[: -len(_SUFFIX)] if name.lower().endswith(_SUFFIX) else name
    flat_name = require_file_name(f"{stem}{options.flat_ending}{_SUFFIX}")
    size = align_up(disk.size, SECTOR)
    line = f'RW {size // SECTOR} FLAT "{flat_name}" 0'
    text = descriptor_text("monolithicFlat", line, size, disk.info.sector_size, options)
    header = Header(text, "VMDK descriptor")
    flat = LaidOutImage(flat_name, "raw", "monolithicFlat", [PaddedDisk(disk, size)], compressed=disk.info.compressed)
    return (
        LaidOutFile(name, LaidOutImage(name, "vmdk", "monolithicFlat", [header])),
        LaidOutFile(flat_name, flat),
    )


class _SparseTables:
    """Where the directories and tables of a monolithicSparse VMDK lie, in sectors, and what is in them.

    Every grain table exists from the beginning, and everything exists twice: first the redundant copies.
    """

    def __init__(self, grains: AllocationMap) -> None:
        self._grains = grains
        self.count = -(-grains.count // TABLE_ENTRIES)
        directory_size = align_up(self.count * 4, SECTOR)
        self.directory_padding = directory_size - self.count * 4
        directory_sectors = directory_size // SECTOR
        self.rgd_sector = DESCRIPTOR_SECTOR + DESCRIPTOR_SECTORS
        self.first_rgt_sector = self.rgd_sector + directory_sectors
        self.gd_sector = self.first_rgt_sector + self.count * TABLE_SECTORS
        self.first_gt_sector = self.gd_sector + directory_sectors
        self.end_sector = self.first_gt_sector + self.count * TABLE_SECTORS
        self.overhead_sectors = align_up(self.end_sector, GRAIN_SECTORS)

    def directory(self, first_table_sector: int, title: str) -> Table:
        """Return the directory of the tables that begin at a sector."""

        def entries(first: int, count: int) -> bytes:
            start = first_table_sector + first * TABLE_SECTORS
            return _little(array("I", range(start, start + count * TABLE_SECTORS, TABLE_SECTORS)))

        return Table(title, self.count, 4, entries)

    def tables(self, title: str) -> Table:
        """Return all grain tables, one after another."""
        return Table(title, self.count * TABLE_ENTRIES, 4, self._entries, self._runs)

    def _entries(self, first: int, count: int) -> bytes:
        found = array("I")
        inside = self._inside(first, count)
        for _, run, rank in self._grains.runs(first, inside):
            if rank is None:
                found.extend(array("I", [0]) * run)
            else:
                sector = self.overhead_sectors + rank * GRAIN_SECTORS
                found.extend(range(sector, sector + run * GRAIN_SECTORS, GRAIN_SECTORS))
        found.extend(array("I", [0]) * (count - inside))
        return _little(found)

    def _runs(self, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        inside = self._inside(first, count)
        yield from self._grains.has_any(first, inside)
        if inside < count:
            yield first + inside, count - inside, False

    def _inside(self, first: int, count: int) -> int:
        """Return how many of the entries belong to a grain: the last table may have more than there are."""
        return max(0, min(count, self._grains.count - first))


def _sparse(disk: DiskImage, name: str, options: WriteOptions) -> list[Part]:
    size = align_up(disk.size, SECTOR)
    capacity_sectors = size // SECTOR
    grains = AllocationMap.of(disk, GRAIN_SIZE)
    tables = _SparseTables(grains)
    if tables.overhead_sectors + grains.allocated * GRAIN_SECTORS > MAX_GRAIN_SECTOR:
        raise UnsupportedFeature(
            f"{disk.name}: {grains.allocated * GRAIN_SIZE} bytes of data are more than a monolithicSparse VMDK can "
            "hold, whose file ends at 2 TiB; write monolithicFlat or vhdx"
        )
    header = SPARSE_HEADER.build(
        {
            "version": 1,
            "flags": FLAG_LINE_END_TEST | FLAG_REDUNDANT_GRAIN_TABLE,
            "capacity": capacity_sectors,
            "grainSize": GRAIN_SECTORS,
            "descriptorOffset": DESCRIPTOR_SECTOR,
            "descriptorSize": DESCRIPTOR_SECTORS,
            "numGTEsPerGT": TABLE_ENTRIES,
            "rgdOffset": tables.rgd_sector,
            "gdOffset": tables.gd_sector,
            "overHead": tables.overhead_sectors,
            "uncleanShutdown": 0,
            "lineEndTest": LINE_END_TEST,
            "compressAlgorithm": 0,
        }
    )
    line = f'RW {capacity_sectors} SPARSE "{name}"'
    text = descriptor_text("monolithicSparse", line, size, disk.info.sector_size, options)
    return [
        Header(header + text.ljust(DESCRIPTOR_SECTORS * SECTOR, b"\0"), "VMDK header"),
        tables.directory(tables.first_rgt_sector, "VMDK redundant grain directory"),
        Zeroes(tables.directory_padding),
        tables.tables("VMDK redundant grain tables"),
        tables.directory(tables.first_gt_sector, "VMDK grain directory"),
        Zeroes(tables.directory_padding),
        tables.tables("VMDK grain tables"),
        Zeroes((tables.overhead_sectors - tables.end_sector) * SECTOR),
        AllocatedUnits(disk, grains, GRAIN_SIZE),
    ]


def _little(entries: "array[int]") -> bytes:
    if sys.byteorder == "big":
        entries.byteswap()
    return entries.tobytes()
