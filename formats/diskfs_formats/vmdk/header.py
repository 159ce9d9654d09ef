"""The header of a VMDK sparse extent, and the footer that is a second copy of it.

Specification: VMware, Virtual Disk Format 5.0 (2011), "Hosted Sparse Extent Header" and "Stream-Optimized Compressed
Sparse Extents". Little-endian; offsets and sizes count 512-byte sectors.
"""

from dataclasses import dataclass
from typing import Any

from construct import Bytes, Const, Int8ul, Int16ul, Int32ul, Int64ul, Padding, Struct

from diskfs_formats.binary import is_power_of_two, parse_bytes, parse_structure
from diskfs_formats.errors import CorruptImage, TruncatedImage, UnsupportedFeature
from diskfs_formats.source import ByteSource

SECTOR = 512
MAGIC = b"KDMV"
UNFINISHED_MAGIC = b"kdmv"
"""VMware's open-vmdk writes the magic in lower case until the file is complete."""

SPARSE_HEADER = Struct(
    "magicNumber" / Const(MAGIC),
    "version" / Int32ul,
    "flags" / Int32ul,
    "capacity" / Int64ul,
    "grainSize" / Int64ul,
    "descriptorOffset" / Int64ul,
    "descriptorSize" / Int64ul,
    "numGTEsPerGT" / Int32ul,
    "rgdOffset" / Int64ul,
    "gdOffset" / Int64ul,
    "overHead" / Int64ul,
    "uncleanShutdown" / Int8ul,
    "lineEndTest" / Bytes(4),  # singleEndLineChar, nonEndLineChar, doubleEndLineChar1, doubleEndLineChar2
    "compressAlgorithm" / Int16ul,
    Padding(433),
)
assert SPARSE_HEADER.sizeof() == SECTOR

MARKER = Struct(
    "val" / Int64ul,  # grain: its first sector on the disk; metadata: sectors that follow
    "size" / Int32ul,  # grain: compressed bytes, from offset 12; metadata: 0
    "type" / Int32ul,
    Padding(496),
)
assert MARKER.sizeof() == SECTOR
MARKER_END_OF_STREAM = 0
MARKER_FOOTER = 3

FLAG_LINE_END_TEST = 1 << 0
FLAG_REDUNDANT_GRAIN_TABLE = 1 << 1
FLAG_ZEROED_GRAIN = 1 << 2
FLAG_COMPRESSED = 1 << 16
FLAG_MARKERS = 1 << 17
INCOMPATIBLE_FLAGS = 0xFFFF0000
KNOWN_INCOMPATIBLE_FLAGS = FLAG_COMPRESSED | FLAG_MARKERS
LINE_END_TEST = b"\n \r\n"
COMPRESSION_DEFLATE = 1
GD_AT_END = 0xFFFFFFFFFFFFFFFF
MAX_VERSION = 3

MAX_GRAIN_SECTORS = 1 << 21
"""1 GiB, qemu's limit; VMware writes 128 sectors."""
MAX_COMPRESSED_GRAIN_SECTORS = 1 << 15
"""16 MiB: a compressed grain is inflated whole, so its size bounds the memory of one read."""
MAX_TABLE_ENTRIES = 4096
"""Entries of a grain table; 512 in every file seen, qemu takes at most 512, VirtualBox any power of two from 128."""
MAX_CAPACITY = (1 << 54) - 1
"""Sectors; keeps the size in bytes, and so every offset, below 2**63."""
FOOTER_SEARCH = 1 << 20
"""Bytes before the end in which a footer that is not exactly at the end is looked for (trailing padding)."""

_SAME_IN_FOOTER = (
    "version",
    "flags",
    "capacity",
    "grain_sectors",
    "table_entries",
    "descriptor_offset",
    "descriptor_size",
    "compressed",
)


@dataclass(frozen=True, slots=True)
class SparseHeader:
    """A checked header. All offsets and sizes in sectors, as in the file, but for its own size, which is in bytes."""

    version: int
    flags: int
    capacity: int
    grain_sectors: int
    descriptor_offset: int
    descriptor_size: int
    table_entries: int
    rgd_offset: int
    gd_offset: int
    overhead: int
    unclean_shutdown: bool
    compressed: bool
    header_size: int = SECTOR

    @property
    def grain_size(self) -> int:
        """Bytes."""
        return self.grain_sectors * SECTOR

    @property
    def table_count(self) -> int:
        """Entries of the grain directory: grain tables that cover the capacity."""
        return -(-self.capacity // (self.table_entries * self.grain_sectors))

    @property
    def has_redundant_tables(self) -> bool:
        """Whether `rgd_offset` means anything."""
        return bool(self.flags & FLAG_REDUNDANT_GRAIN_TABLE)

    @property
    def has_zeroed_grains(self) -> bool:
        """Whether grain table entry 1 means "reads as zero"."""
        return bool(self.flags & FLAG_ZEROED_GRAIN)


def read_header(source: ByteSource) -> SparseHeader:
    """Read and check the header at the start of `source`; raises ImageError."""
    if source.size >= len(UNFINISHED_MAGIC) and source.read_at(0, len(UNFINISHED_MAGIC)) == UNFINISHED_MAGIC:
        raise CorruptImage(
            f"{source.name}: the sparse header's magic is 'kdmv': the program that wrote this file did not finish; "
            "create or copy it again"
        )
    raw = parse_structure(SPARSE_HEADER, source, 0, "VMDK sparse header")
    return _checked(raw, source, 0, "sparse header")


def read_footer(source: ByteSource, header: SparseHeader) -> SparseHeader:
    """Find and check the footer that a header with GD_AT_END points to; raises ImageError."""
    end = source.size // SECTOR * SECTOR
    offset = _exact_footer(source, end) if end >= 4 * SECTOR else None
    if offset is None:
        offset = _searched_footer(source, end)
    if offset is None:
        raise TruncatedImage(
            f"{source.name}: the header says that the grain directory is at the end (GD_AT_END), but no footer was "
            f"found in the last {min(end, FOOTER_SEARCH)} bytes: the file is incomplete; copy or download it again"
        )
    footer = _checked(parse_structure(SPARSE_HEADER, source, offset, "VMDK footer"), source, offset, "footer")
    for name in _SAME_IN_FOOTER:
        first, second = getattr(header, name), getattr(footer, name)
        if first != second:
            raise CorruptImage(
                f"{source.name}: header and footer (offset {offset:#x}) disagree: {name} is {first} and {second}"
            )
    if footer.gd_offset == GD_AT_END:
        raise CorruptImage(f"{source.name}: footer at offset {offset:#x}: gdOffset is GD_AT_END again")
    return footer


def _exact_footer(source: ByteSource, end: int) -> int | None:
    """Return the footer's offset if footer marker and footer stand where only the end-of-stream marker follows."""
    tail = source.read_at(end - 3 * SECTOR, 3 * SECTOR)
    return end - 2 * SECTOR if _is_footer_marker(tail[:SECTOR], tail[SECTOR:]) else None


def _searched_footer(source: ByteSource, end: int) -> int | None:
    start = max(SECTOR, end - FOOTER_SEARCH)
    if end - start < 2 * SECTOR:
        return None
    window = source.read_at(start, end - start)
    for at in range(len(window) - 2 * SECTOR, -1, -SECTOR):
        if window[at + SECTOR : at + SECTOR + 4] == MAGIC and _is_footer_marker(
            window[at : at + SECTOR], window[at + SECTOR :]
        ):
            return start + at + SECTOR
    return None


def _is_footer_marker(marker: bytes, following: bytes) -> bool:
    fields = MARKER.parse(marker)
    return (fields.val, fields.size, fields.type) == (1, 0, MARKER_FOOTER) and following[:4] == MAGIC


def _checked(raw: Any, source: ByteSource, offset: int, title: str) -> SparseHeader:
    """Turn a parsed header into a checked one; every number is compared before anything is computed from it."""
    where = f"{source.name}: VMDK {title} at offset {offset:#x}"
    if not 1 <= raw.version <= MAX_VERSION:
        raise UnsupportedFeature(f"{where}: version {raw.version} is not known, 1 to {MAX_VERSION} are")
    unknown = raw.flags & INCOMPATIBLE_FLAGS & ~KNOWN_INCOMPATIBLE_FLAGS
    if unknown:
        raise UnsupportedFeature(f"{where}: flags {raw.flags:#010x} hold unknown incompatible bits {unknown:#010x}")
    if raw.flags & FLAG_LINE_END_TEST and raw.lineEndTest != LINE_END_TEST:
        raise CorruptImage(
            f"{where}: the line-end test bytes are {raw.lineEndTest.hex(' ')}, expected {LINE_END_TEST.hex(' ')}: "
            "the file went through a text-mode transfer; copy it again in binary mode"
        )
    if raw.compressAlgorithm > COMPRESSION_DEFLATE:
        raise UnsupportedFeature(f"{where}: compressAlgorithm {raw.compressAlgorithm} is not known, 0 and 1 are")
    compressed = bool(raw.flags & FLAG_COMPRESSED)
    if compressed != (raw.compressAlgorithm == COMPRESSION_DEFLATE):
        raise CorruptImage(
            f"{where}: flags {raw.flags:#010x} and compressAlgorithm {raw.compressAlgorithm} disagree on whether "
            "grains are compressed"
        )
    if compressed != bool(raw.flags & FLAG_MARKERS):
        raise UnsupportedFeature(
            f"{where}: flags {raw.flags:#010x}: compressed grains and markers go together; one without the other is "
            "not read, because its writers disagree on the layout"
        )
    if not is_power_of_two(raw.grainSize) or raw.grainSize > MAX_GRAIN_SECTORS:
        raise CorruptImage(
            f"{where}: grainSize is {raw.grainSize} sectors, expected a power of two up to {MAX_GRAIN_SECTORS}"
        )
    if compressed and raw.grainSize > MAX_COMPRESSED_GRAIN_SECTORS:
        raise UnsupportedFeature(
            f"{where}: compressed grains of {raw.grainSize} sectors are not read, at most "
            f"{MAX_COMPRESSED_GRAIN_SECTORS} are"
        )
    if not is_power_of_two(raw.numGTEsPerGT) or raw.numGTEsPerGT > MAX_TABLE_ENTRIES:
        raise CorruptImage(
            f"{where}: numGTEsPerGT is {raw.numGTEsPerGT}, expected a power of two up to {MAX_TABLE_ENTRIES}"
        )
    if raw.capacity > MAX_CAPACITY:
        raise CorruptImage(f"{where}: capacity is {raw.capacity} sectors, at most {MAX_CAPACITY} are possible")
    if raw.descriptorOffset and not raw.descriptorSize:
        raise CorruptImage(f"{where}: descriptorOffset is {raw.descriptorOffset} and descriptorSize is 0")
    return SparseHeader(
        version=raw.version,
        flags=raw.flags,
        capacity=raw.capacity,
        grain_sectors=raw.grainSize,
        descriptor_offset=raw.descriptorOffset,
        descriptor_size=raw.descriptorSize,
        table_entries=raw.numGTEsPerGT,
        rgd_offset=raw.rgdOffset,
        gd_offset=raw.gdOffset,
        overhead=raw.overHead,
        unclean_shutdown=raw.uncleanShutdown == 1,
        compressed=compressed,
    )


def parse_marker(data: bytes, source: ByteSource, offset: int) -> Any:
    """Parse one 512-byte marker."""
    return parse_bytes(MARKER, data, source, offset, "VMDK marker")
