"""Writing VHDX: fixed and dynamic disks with an empty log.

Specification: [MS-VHDX] 8.0, sections 2.1 to 2.6. Little-endian; GUIDs in Microsoft's mixed order; offsets and lengths
in bytes. The order is Microsoft's own: header section, log, metadata, BAT, payload blocks.
"""

import struct
import sys
from array import array
from uuid import UUID

from diskfs_formats.allocation import AllocationMap
from diskfs_formats.binary import align_up
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.identity import new_uuid
from diskfs_formats.layout import AllocatedUnits, Header, LaidOutImage, Part, Table, Zeroes
from diskfs_formats.vhdx.bat import SECTORS_PER_BITMAP, State
from diskfs_formats.vhdx.checksum import structure_checksum
from diskfs_formats.vhdx.metadata import MAX_VIRTUAL_DISK_SIZE, SECTOR_SIZES
from diskfs_formats.vhdx.structures import (
    BAT_REGION,
    FILE_IDENTIFIER,
    FILE_PARAMETERS,
    FILE_PARAMETERS_ITEM,
    FLAG_IS_REQUIRED,
    FLAG_LEAVE_BLOCK_ALLOCATED,
    HEADER,
    HEADER_OFFSETS,
    HEADER_SECTION_SIZE,
    LOGICAL_SECTOR_SIZE_ITEM,
    METADATA_REGION,
    METADATA_TABLE_ENTRY,
    METADATA_TABLE_HEADER,
    METADATA_TABLE_SIZE,
    MIB,
    NO_GUID,
    PHYSICAL_SECTOR_SIZE_ITEM,
    REGION_TABLE_ENTRY,
    REGION_TABLE_HEADER,
    REGION_TABLE_OFFSETS,
    REGION_TABLE_SIZE,
    SIGNATURE,
    VIRTUAL_DISK_ID_ITEM,
    VIRTUAL_DISK_SIZE_ITEM,
)
from diskfs_formats.writer import LaidOutFile, WriteOptions

CREATOR = "diskfs"
MIN_BLOCK_SIZE = 2 * MIB
MAX_BLOCKS = 1 << 20
"""Payload blocks above which blocks become larger: a BAT of 8 MiB for 2 TiB in blocks of 2 MiB. Microsoft's default of
32 MiB makes files large whose data is scattered; for Linux guests it recommends 1 MiB."""
PHYSICAL_SECTOR_SIZE = 4096
"""What Hyper-V gives new disks."""
LOG_OFFSET = HEADER_SECTION_SIZE
LOG_LENGTH = MIB
METADATA_OFFSET = LOG_OFFSET + LOG_LENGTH
METADATA_LENGTH = MIB
BAT_OFFSET = METADATA_OFFSET + METADATA_LENGTH
FIRST_SEQUENCE_NUMBER = 1
FLAG_REQUIRED_REGION = 1
FLAG_IS_VIRTUAL_DISK = 1 << 1
_ENTRY_SIZE = 8


class VhdxWriter:
    """Writes VHDX. A disk that is no whole number of sectors is padded with zeroes to the next."""

    name = "vhdx"
    variants = ("dynamic", "fixed")

    def layout(self, disk: DiskImage, options: WriteOptions, /) -> tuple[LaidOutFile, ...]:
        _require_fits(disk)
        variant = options.variant or self.variants[0]
        parts = _parts(disk, variant, options)
        image = LaidOutImage(options.file_name, self.name, variant, parts, compressed=disk.info.compressed)
        return (LaidOutFile(options.file_name, image),)


def _require_fits(disk: DiskImage) -> None:
    if not disk.size:
        raise UnsupportedFeature(f"{disk.name}: the disk has 0 bytes, a VHDX has at least one sector")
    if disk.size > MAX_VIRTUAL_DISK_SIZE:
        raise UnsupportedFeature(
            f"{disk.name}: the disk has {disk.size} bytes, a VHDX at most {MAX_VIRTUAL_DISK_SIZE} (64 TiB)"
        )


def block_size_for(size: int) -> int:
    """Return the bytes of a payload block for a disk of this size."""
    block_size = MIN_BLOCK_SIZE
    while block_size * MAX_BLOCKS < size:
        block_size *= 2
    return block_size


def _parts(disk: DiskImage, variant: str, options: WriteOptions) -> list[Part]:
    sector_size = disk.info.sector_size if disk.info.sector_size in SECTOR_SIZES else SECTOR_SIZES[0]
    size = align_up(disk.size, sector_size)
    block_size = block_size_for(size)
    is_fixed = variant == "fixed"
    units = AllocationMap.full(-(-size // block_size)) if is_fixed else AllocationMap.of(disk, block_size)
    chunk_ratio = SECTORS_PER_BITMAP * sector_size // block_size
    entry_count = units.count + (units.count - 1) // chunk_ratio
    bat_length = align_up(entry_count * _ENTRY_SIZE, MIB)
    first_block = BAT_OFFSET + bat_length

    def entries(first: int, count: int) -> bytes:
        found = array("Q")
        end = first + count
        while first < end:
            chunk, at = divmod(first, chunk_ratio + 1)
            length = min(chunk_ratio - at, end - first)
            for _, run, rank in units.runs(chunk * chunk_ratio + at, length):
                if rank is None:
                    found.extend(array("Q", [State.ZERO]) * run)
                else:
                    entry = first_block + rank * block_size | State.FULLY_PRESENT
                    found.extend(range(entry, entry + run * block_size, block_size))
            first += length
            if first < end:
                # The entry of the chunk's sector bitmap block, of which a disk without a parent has none.
                found.append(State.NOT_PRESENT)
                first += 1
        if sys.byteorder == "big":
            found.byteswap()
        return found.tobytes()

    table = Table("VHDX BAT", entry_count, _ENTRY_SIZE, entries)
    identity = (variant, size, sector_size)
    metadata = _metadata(
        (
            FILE_PARAMETERS_ITEM,
            FLAG_IS_REQUIRED,
            FILE_PARAMETERS.build({"BlockSize": block_size, "flags": FLAG_LEAVE_BLOCK_ALLOCATED if is_fixed else 0}),
        ),
        (VIRTUAL_DISK_SIZE_ITEM, FLAG_IS_REQUIRED | FLAG_IS_VIRTUAL_DISK, struct.pack("<Q", size)),
        (LOGICAL_SECTOR_SIZE_ITEM, FLAG_IS_REQUIRED | FLAG_IS_VIRTUAL_DISK, struct.pack("<I", sector_size)),
        (PHYSICAL_SECTOR_SIZE_ITEM, FLAG_IS_REQUIRED | FLAG_IS_VIRTUAL_DISK, struct.pack("<I", PHYSICAL_SECTOR_SIZE)),
        (
            VIRTUAL_DISK_ID_ITEM,
            FLAG_IS_REQUIRED | FLAG_IS_VIRTUAL_DISK,
            new_uuid(options, "vhdx disk", *identity).bytes_le,
        ),
    )
    header_section = Header(_header_section(bat_length, options, identity), "VHDX header section")
    return [
        header_section,
        Zeroes(METADATA_OFFSET - header_section.size),
        Header(metadata, "VHDX metadata"),
        Zeroes(METADATA_LENGTH - len(metadata)),
        table,
        Zeroes(bat_length - table.size),
        AllocatedUnits(disk, units, block_size),
    ]


def _header_section(bat_length: int, options: WriteOptions, identity: tuple[object, ...]) -> bytes:
    """Return the file from its beginning to the end of the second region table."""
    file_write = new_uuid(options, "vhdx file write", *identity)
    data_write = new_uuid(options, "vhdx data write", *identity)
    section = bytearray(REGION_TABLE_OFFSETS[-1] + REGION_TABLE_SIZE)
    creator = CREATOR.encode("utf-16-le").ljust(512, b"\0")
    _put(section, 0, FILE_IDENTIFIER.build({"Signature": SIGNATURE, "Creator": creator}))
    for number, offset in enumerate(HEADER_OFFSETS, FIRST_SEQUENCE_NUMBER):
        header = HEADER.build(
            {
                "Checksum": 0,
                "SequenceNumber": number,
                "FileWriteGuid": file_write.bytes_le,
                "DataWriteGuid": data_write.bytes_le,
                "LogGuid": NO_GUID.bytes_le,
                "LogVersion": 0,
                "Version": 1,
                "LogLength": LOG_LENGTH,
                "LogOffset": LOG_OFFSET,
            }
        )
        _put(section, offset, _with_checksum(header))
    entries = (
        REGION_TABLE_ENTRY.pack(BAT_REGION.bytes_le, BAT_OFFSET, bat_length, FLAG_REQUIRED_REGION),
        REGION_TABLE_ENTRY.pack(METADATA_REGION.bytes_le, METADATA_OFFSET, METADATA_LENGTH, FLAG_REQUIRED_REGION),
    )
    fields = {"Signature": b"regi", "Checksum": 0, "EntryCount": len(entries), "Reserved": 0}
    table = b"".join((REGION_TABLE_HEADER.build(fields), *entries)).ljust(REGION_TABLE_SIZE, b"\0")
    for offset in REGION_TABLE_OFFSETS:
        _put(section, offset, _with_checksum(table))
    return bytes(section)


def _metadata(*items: tuple[UUID, int, bytes]) -> bytes:
    """Return the metadata region up to the end of its last item; the items are (identity, flags, value)."""
    fields = {"Signature": b"metadata", "Reserved": 0, "EntryCount": len(items), "Reserved2": bytes(20)}
    table, values = METADATA_TABLE_HEADER.build(fields), b""
    for identity, flags, value in items:
        offset = METADATA_TABLE_SIZE + len(values)
        table += METADATA_TABLE_ENTRY.pack(identity.bytes_le, offset, len(value), flags, 0)
        values += value
    return table.ljust(METADATA_TABLE_SIZE, b"\0") + values


def _put(section: bytearray, offset: int, data: bytes) -> None:
    section[offset : offset + len(data)] = data


def _with_checksum(structure: bytes) -> bytes:
    return structure[:4] + structure_checksum(structure).to_bytes(4, "little") + structure[8:]
