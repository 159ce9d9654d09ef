"""Writing VHD: fixed and dynamic disks.

Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0 (2006). Big-endian; offsets and sizes in
bytes, BAT entries in 512-byte sectors.
"""

import sys
from array import array

from diskfs_formats.allocation import AllocationMap
from diskfs_formats.binary import align_up
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.identity import creation_time, new_uuid
from diskfs_formats.layout import AllocatedUnits, Header, LaidOutImage, PaddedDisk, Part, Table
from diskfs_formats.vhd.footer import COOKIE, FOOTER, FOOTER_SIZE, MAX_GEOMETRY, SECTOR, DiskType, checksum_of
from diskfs_formats.vhd.header import DYNAMIC_HEADER, HEADER_SIZE, LOCATOR_COUNT
from diskfs_formats.vhd.image import UNUSED
from diskfs_formats.writer import LaidOutFile, WriteOptions

BLOCK_SIZE = 2 << 20
"""What every program writes, and the only size that some read."""
MAX_SIZE = 2040 << 30
"""What the 32-bit sector numbers of a BAT reach, as Microsoft rounds it; Hyper-V and QEMU refuse larger fixed disks
too."""
MAX_AZURE_SIZE = 32 << 40
"""What Azure takes as a fixed disk."""
AZURE_UNIT = 1 << 20

EPOCH = 946684800
"""2000-01-01 in seconds since 1970, from which timestamps count."""
CREATOR = b"win "
"""The creator for which every version of QEMU goes by the current size, as Microsoft's own programs do: others make
it go by the geometry, which can only express some sizes."""
CREATOR_VERSION = 0x000A0000
CREATOR_HOST_OS = b"Wi2k"
VERSION = 0x00010000
RESERVED_FEATURE = 2
NO_OFFSET = 0xFFFFFFFFFFFFFFFF
TABLE_OFFSET = FOOTER_SIZE + HEADER_SIZE
_FOOTER_CHECKSUM = slice(64, 68)
_HEADER_CHECKSUM = slice(36, 40)
_NO_LOCATOR = {
    "platform_code": bytes(4),
    "platform_data_space": 0,
    "platform_data_length": 0,
    "platform_data_offset": 0,
}


class VhdWriter:
    """Writes VHD. A disk that is no whole number of sectors is padded with zeroes to the next, as qemu-img does."""

    name = "vhd"
    variants = ("dynamic", "fixed")

    def layout(self, disk: DiskImage, options: WriteOptions, /) -> tuple[LaidOutFile, ...]:
        _require_fits(disk, options)
        variant = options.variant or self.variants[0]
        parts = _fixed(disk, options) if variant == "fixed" else _dynamic(disk, options)
        image = LaidOutImage(options.file_name, self.name, variant, parts, compressed=disk.info.compressed)
        return (LaidOutFile(options.file_name, image),)


def _require_fits(disk: DiskImage, options: WriteOptions) -> None:
    size = _virtual_size(disk, options)
    if options.azure and options.variant != "fixed":
        raise UnsupportedFeature(f"{disk.name}: Azure takes fixed VHDs alone; write the variant fixed")
    if not size:
        raise UnsupportedFeature(f"{disk.name}: the disk has 0 bytes, a VHD has at least one sector")
    limit = MAX_AZURE_SIZE if options.azure else MAX_SIZE
    if size > limit:
        raise UnsupportedFeature(
            f"{disk.name}: the disk has {disk.size} bytes, a VHD at most {limit} ({limit >> 30} GiB); write vhdx"
        )


def geometry_of(size: int) -> tuple[int, int, int]:
    """Return cylinders, heads and sectors per track for a size in bytes, as the specification's appendix computes."""
    cylinders, heads, sectors = MAX_GEOMETRY
    total = min(size // SECTOR, cylinders * heads * sectors)
    if total >= 65535 * 16 * 63:
        tracks = total // sectors
    else:
        sectors = 17
        tracks = total // sectors
        heads = max(4, -(-tracks // 1024))
        if tracks >= heads * 1024 or heads > 16:
            sectors, heads = 31, 16
            tracks = total // sectors
        if tracks >= heads * 1024:
            sectors, heads = 63, 16
            tracks = total // sectors
    return tracks // heads, heads, sectors


def _virtual_size(disk: DiskImage, options: WriteOptions) -> int:
    return align_up(disk.size, AZURE_UNIT if options.azure else SECTOR)


def _fixed(disk: DiskImage, options: WriteOptions) -> list[Part]:
    size = _virtual_size(disk, options)
    return [PaddedDisk(disk, size), Header(_footer(size, DiskType.FIXED, options), "VHD footer")]


def _dynamic(disk: DiskImage, options: WriteOptions) -> list[Part]:
    size = _virtual_size(disk, options)
    units = AllocationMap.of(disk, BLOCK_SIZE)
    # All sectors of a block count as written, because all of them are in the file.
    bitmap = b"\xff" * (BLOCK_SIZE // SECTOR // 8)
    first_block = align_up(TABLE_OFFSET + units.count * 4, SECTOR)
    stride = (len(bitmap) + BLOCK_SIZE) // SECTOR

    def entries(first: int, count: int) -> bytes:
        found = array("I")
        for _, length, rank in units.runs(first, count):
            if rank is None:
                found.extend(array("I", [UNUSED]) * length)
            else:
                start = first_block // SECTOR + rank * stride
                found.extend(range(start, start + length * stride, stride))
        if sys.byteorder == "little":
            found.byteswap()
        return found.tobytes()

    footer = _footer(size, DiskType.DYNAMIC, options)
    table = Table("VHD BAT", units.count, 4, entries)
    return [
        Header(footer + _dynamic_header(units.count), "VHD headers"),
        table,
        Header(b"\xff" * (first_block - TABLE_OFFSET - table.size)),
        AllocatedUnits(disk, units, BLOCK_SIZE, head=bitmap),
        Header(footer, "VHD footer"),
    ]


def _footer(size: int, disk_type: DiskType, options: WriteOptions) -> bytes:
    cylinders, heads, sectors = geometry_of(size)
    time = creation_time(options)
    data = FOOTER.build(
        {
            "cookie": COOKIE,
            "features": RESERVED_FEATURE,
            "file_format_version": VERSION,
            "data_offset": NO_OFFSET if disk_type is DiskType.FIXED else FOOTER_SIZE,
            "timestamp": 0 if time is None else time - EPOCH,
            "creator_application": CREATOR,
            "creator_version": CREATOR_VERSION,
            "creator_host_os": CREATOR_HOST_OS,
            "original_size": size,
            "current_size": size,
            "cylinders": cylinders,
            "heads": heads,
            "sectors_per_track": sectors,
            "disk_type": disk_type,
            "checksum": 0,
            "unique_id": new_uuid(options, "vhd", disk_type.name, size).bytes,
            "saved_state": 0,
        }
    )
    return _with_checksum(data, _FOOTER_CHECKSUM)


def _dynamic_header(block_count: int) -> bytes:
    data = DYNAMIC_HEADER.build(
        {
            "data_offset": NO_OFFSET,
            "table_offset": TABLE_OFFSET,
            "header_version": VERSION,
            "max_table_entries": block_count,
            "block_size": BLOCK_SIZE,
            "checksum": 0,
            "parent_unique_id": bytes(16),
            "parent_timestamp": 0,
            "parent_unicode_name": bytes(512),
            "parent_locators": [_NO_LOCATOR] * LOCATOR_COUNT,
        }
    )
    return _with_checksum(data, _HEADER_CHECKSUM)


def _with_checksum(data: bytes, place: slice) -> bytes:
    return data[: place.start] + checksum_of(data, place.start).to_bytes(4, "big") + data[place.stop :]
