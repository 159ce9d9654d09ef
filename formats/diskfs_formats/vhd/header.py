"""The dynamic disk header: where the block allocation table (BAT) is, and who the parent is.

Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0 (2006), "Dynamic Disk Header Format".
Big-endian; offsets and sizes in bytes.
"""

from dataclasses import dataclass
from uuid import UUID

from construct import Bytes, Const, Int32ub, Int64ub, Padding, Struct

from diskfs_formats.binary import is_power_of_two, parse_bytes
from diskfs_formats.errors import ChecksumMismatch, CorruptImage, TruncatedImage, UnsupportedFeature
from diskfs_formats.source import ByteSource
from diskfs_formats.vhd.footer import MAJOR_VERSION, SECTOR, Footer, checksum_of

HEADER_SIZE = 1024
LOCATOR_COUNT = 8

PARENT_LOCATOR = Struct(
    "platform_code" / Bytes(4),
    "platform_data_space" / Int32ub,
    "platform_data_length" / Int32ub,
    Padding(4),
    "platform_data_offset" / Int64ub,
)
assert PARENT_LOCATOR.sizeof() == 24

DYNAMIC_HEADER = Struct(
    "cookie" / Const(b"cxsparse"),
    "data_offset" / Int64ub,
    "table_offset" / Int64ub,
    "header_version" / Int32ub,
    "max_table_entries" / Int32ub,
    "block_size" / Int32ub,
    "checksum" / Int32ub,
    "parent_unique_id" / Bytes(16),
    "parent_timestamp" / Int32ub,
    Padding(4),
    "parent_unicode_name" / Bytes(512),
    "parent_locators" / PARENT_LOCATOR[LOCATOR_COUNT],
    Padding(256),
)
assert DYNAMIC_HEADER.sizeof() == HEADER_SIZE
_CHECKSUM_AT = 36

MAX_BLOCK_SIZE = 256 << 20
"""Bytes; programs write 2 MiB, some 512 KiB. Bounds a sector bitmap to 64 KiB."""


@dataclass(frozen=True, slots=True)
class ParentLocator:
    """Where the parent's name on one platform is; the place may be anywhere. A data length of 0 is an unused one."""

    platform_code: bytes
    data_length: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class DynamicHeader:
    """A checked header: its BAT lies inside the file and has an entry for each block of the disk."""

    offset: int
    table_offset: int
    max_table_entries: int
    block_size: int
    parent_unique_id: UUID
    parent_timestamp: int
    parent_unicode_name: bytes
    parent_locators: tuple[ParentLocator, ...]

    @property
    def table_size(self) -> int:
        """Bytes of the BAT."""
        return self.max_table_entries * 4

    @property
    def bitmap_size(self) -> int:
        """Bytes of the sector bitmap before each block's data: one bit a sector, in whole sectors."""
        bits_per_sector = SECTOR * 8
        return -(-self.block_size // SECTOR // bits_per_sector) * SECTOR


def read_dynamic_header(source: ByteSource, footer: Footer) -> DynamicHeader:
    """Read and check the header that `footer` leads to; raises ImageError."""
    offset = footer.data_offset
    where = f"{source.name}: VHD dynamic header at offset {offset:#x}"
    if offset + HEADER_SIZE > source.size:
        raise TruncatedImage(
            f"{where}: it needs {HEADER_SIZE} bytes, the file ends at {source.size:#x}: the file is incomplete or its "
            "footer is damaged"
        )
    data = source.read_at(offset, HEADER_SIZE)
    raw = parse_bytes(DYNAMIC_HEADER, data, source, offset, "VHD dynamic header")
    computed = checksum_of(data, _CHECKSUM_AT)
    if raw.checksum != computed:
        raise ChecksumMismatch(
            f"{where}: checksum {raw.checksum:#010x}, the bytes give {computed:#010x}: the file is damaged; "
            "copy it again"
        )
    if raw.header_version >> 16 != MAJOR_VERSION:
        raise UnsupportedFeature(f"{where}: header version {raw.header_version:#010x} is not known, 0x00010000 is")
    if not is_power_of_two(raw.block_size) or not SECTOR <= raw.block_size <= MAX_BLOCK_SIZE:
        raise CorruptImage(
            f"{where}: block size is {raw.block_size}, expected a power of two from {SECTOR} to {MAX_BLOCK_SIZE}"
        )
    # More entries than needed are in order: some programs leave room to grow.
    needed = -(-footer.virtual_size // raw.block_size)
    if raw.max_table_entries < needed:
        raise CorruptImage(
            f"{where}: max table entries is {raw.max_table_entries}; {footer.virtual_size} bytes in blocks of "
            f"{raw.block_size} need {needed}"
        )
    if raw.table_offset + raw.max_table_entries * 4 > source.size:
        raise TruncatedImage(
            f"{where}: the BAT at offset {raw.table_offset:#x} has {raw.max_table_entries} entries of 4 bytes, the "
            f"file ends at {source.size:#x}: the file is incomplete or the header is damaged"
        )
    return DynamicHeader(
        offset=offset,
        table_offset=raw.table_offset,
        max_table_entries=raw.max_table_entries,
        block_size=raw.block_size,
        parent_unique_id=UUID(bytes=raw.parent_unique_id),
        parent_timestamp=raw.parent_timestamp,
        parent_unicode_name=raw.parent_unicode_name,
        parent_locators=tuple(
            ParentLocator(locator.platform_code, locator.platform_data_length, locator.platform_data_offset)
            for locator in raw.parent_locators
        ),
    )
