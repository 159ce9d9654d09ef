"""The header of a COWD extent, which ESX calls vmfsSparse: the delta of a snapshot.

Specification: VMware, Virtual Disk Format 5.0 (2011), "ESX Server Sparse Extents". Little-endian; offsets and sizes
count 512-byte sectors. Behind the header an extent is a hosted sparse one without compression, redundant tables or
zeroed grains.
"""

from construct import Bytes, Const, Int32ul, Padding, Struct

from diskfs_formats.binary import parse_structure
from diskfs_formats.errors import CorruptImage, UnsupportedFeature
from diskfs_formats.source import ByteSource
from diskfs_formats.vmdk.header import SparseHeader

COWD_MAGIC = b"COWD"
COWD_HEADER_SIZE = 2048
COWD_VERSION = 1
TABLE_ENTRIES = 4096
MAX_COWD_GRAIN_SECTORS = 2048
"""1 MiB, the specification's limit; ESX writes one sector."""

COWD_HEADER = Struct(
    "magicNumber" / Const(COWD_MAGIC),
    "version" / Int32ul,
    "flags" / Int32ul,
    "numSectors" / Int32ul,
    "grainSize" / Int32ul,
    "gdOffset" / Int32ul,
    "numGDEntries" / Int32ul,
    "freeSector" / Int32ul,
    "rootOrChild" / Bytes(1028),  # geometry, or the parent's file name; the descriptor says the same
    "generation" / Int32ul,
    "name" / Bytes(60),
    "description" / Bytes(512),
    "savedGeneration" / Int32ul,
    Padding(8),
    "uncleanShutdown" / Int32ul,
    Padding(396),
)
assert COWD_HEADER.sizeof() == COWD_HEADER_SIZE


def read_cowd_header(source: ByteSource) -> SparseHeader:
    """Read and check the header at the start of `source`; raises ImageError."""
    raw = parse_structure(COWD_HEADER, source, 0, "COWD header")
    where = f"{source.name}: COWD header at offset 0x0"
    if raw.version != COWD_VERSION:
        raise UnsupportedFeature(f"{where}: version {raw.version} is not known, {COWD_VERSION} is")
    if not 1 <= raw.grainSize <= MAX_COWD_GRAIN_SECTORS:
        raise CorruptImage(f"{where}: grainSize is {raw.grainSize} sectors, expected 1 to {MAX_COWD_GRAIN_SECTORS}")
    if raw.numSectors == 0:
        raise CorruptImage(f"{where}: numSectors is 0")
    header = SparseHeader(
        version=raw.version,
        flags=0,  # its flags are others than a hosted sparse extent's, and none of them changes where data lies
        capacity=raw.numSectors,
        grain_sectors=raw.grainSize,
        descriptor_offset=0,
        descriptor_size=0,
        table_entries=TABLE_ENTRIES,
        rgd_offset=0,
        gd_offset=raw.gdOffset,
        overhead=0,
        unclean_shutdown=raw.uncleanShutdown == 1,
        compressed=False,
        header_size=COWD_HEADER_SIZE,
    )
    if raw.numGDEntries < header.table_count:
        raise CorruptImage(
            f"{where}: numGDEntries is {raw.numGDEntries}, expected at least {header.table_count} for "
            f"{raw.numSectors} sectors in grains of {raw.grainSize}"
        )
    return header
