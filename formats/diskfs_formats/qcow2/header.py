"""The header of a qcow2 image and its extensions: all that the first cluster holds.

Specification: QEMU, docs/interop/qcow2.txt, "Header", "Feature name table" and "Header extensions".
"""

from collections.abc import Iterator
from dataclasses import dataclass

from construct import Const, Int32ub, Int64ub, Struct

from diskfs_formats.binary import align_up, parse_bytes, parse_structure
from diskfs_formats.errors import CorruptImage, TruncatedImage, UnsupportedFeature
from diskfs_formats.qcow2.compression import CompressionType
from diskfs_formats.source import ByteSource
from diskfs_formats.text import printable

MAGIC = b"QFI\xfb"
QCOW1 = 1
VERSIONS = (2, 3)

HEADER = Struct(
    "magic" / Const(MAGIC),
    "version" / Int32ub,
    "backing_file_offset" / Int64ub,
    "backing_file_size" / Int32ub,
    "cluster_bits" / Int32ub,
    "size" / Int64ub,
    "crypt_method" / Int32ub,
    "l1_size" / Int32ub,
    "l1_table_offset" / Int64ub,
    "refcount_table_offset" / Int64ub,
    "refcount_table_clusters" / Int32ub,
    "nb_snapshots" / Int32ub,
    "snapshots_offset" / Int64ub,
)
assert HEADER.sizeof() == 72

VERSION_3_FIELDS = Struct(
    "incompatible_features" / Int64ub,
    "compatible_features" / Int64ub,
    "autoclear_features" / Int64ub,
    "refcount_order" / Int32ub,
    "header_length" / Int32ub,
)
HEADER_3_LENGTH = 104
assert HEADER.sizeof() + VERSION_3_FIELDS.sizeof() == HEADER_3_LENGTH
COMPRESSION_TYPE_OFFSET = 104

DIRTY = 1 << 0
CORRUPT = 1 << 1
EXTERNAL_DATA_FILE = 1 << 2
COMPRESSION_TYPE = 1 << 3
EXTENDED_L2 = 1 << 4
KNOWN_INCOMPATIBLE = DIRTY | CORRUPT | EXTERNAL_DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2
ENCRYPTIONS = {1: "AES", 2: "LUKS"}

EXTENSION_END = 0
EXTENSION_BACKING_FORMAT = 0xE2792ACA
EXTENSION_FEATURE_NAMES = 0x6803F857
EXTENSION_EXTERNAL_DATA_FILE = 0x44415441
_EXTENSION_HEADER_SIZE = 8
_FEATURE_NAME_SIZE = 48
_INCOMPATIBLE_FEATURE = 0

MIN_CLUSTER_BITS, MAX_CLUSTER_BITS = 9, 21
"""512 bytes to 2 MiB. The specification has no upper limit, qemu has this one; a cluster is decoded whole."""
MIN_EXTENDED_CLUSTER_BITS = 14
"""With 32 subclusters of at least 512 bytes."""
MAX_BACKING_FILE_SIZE = 1023
MAX_BACKING_FORMAT_SIZE = 15
"""qemu's limits of the backing file's name and format, in bytes."""
MAX_L1_TABLE_SIZE = 32 << 20
MAX_REFCOUNT_TABLE_SIZE = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_REFCOUNT_ORDER = 6
"""qemu's limits; the first two in bytes."""


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. Offsets and sizes in bytes; `l1_size` counts entries, as in the file."""

    version: int
    cluster_bits: int
    size: int
    l1_size: int
    l1_table_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    nb_snapshots: int
    snapshots_offset: int
    incompatible_features: int
    compression_type: CompressionType
    backing_file: str | None
    backing_format: str | None

    @property
    def cluster_size(self) -> int:
        """Bytes of a cluster."""
        return 1 << self.cluster_bits

    @property
    def has_extended_l2(self) -> bool:
        """Whether L2 entries have a second half, the bitmaps of 32 subclusters."""
        return bool(self.incompatible_features & EXTENDED_L2)

    @property
    def l2_entry_size(self) -> int:
        """Bytes."""
        return 16 if self.has_extended_l2 else 8

    @property
    def l2_entries(self) -> int:
        """Entries of an L2 table, which fills a cluster."""
        return self.cluster_size // self.l2_entry_size

    @property
    def l1_entries(self) -> int:
        """Entries of the L1 table that cover the disk; the table may have more."""
        return -(-self.size // (self.l2_entries * self.cluster_size))

    @property
    def clusters(self) -> int:
        """Clusters that cover the disk."""
        return -(-self.size // self.cluster_size)

    @property
    def metadata(self) -> list[tuple[int, int]]:
        """The byte ranges (start, end) in which neither an L2 table nor a data cluster can lie, ascending."""
        ranges = [(0, self.cluster_size)]
        if self.l1_size:
            end = align_up(self.l1_table_offset + self.l1_size * 8, self.cluster_size)
            ranges.append((self.l1_table_offset, end))
        if self.refcount_table_clusters:
            size = self.refcount_table_clusters * self.cluster_size
            ranges.append((self.refcount_table_offset, self.refcount_table_offset + size))
        if self.nb_snapshots:
            # The table's size is in its entries, which are not read; it has at least this cluster.
            ranges.append((self.snapshots_offset, self.snapshots_offset + self.cluster_size))
        return sorted(ranges)


def read_header(source: ByteSource) -> Header:
    """Read and check the header and its extensions; raises ImageError.

    Nothing is read past the first cluster, and nothing is allocated by a number that was not checked.
    """
    where = f"{source.name}: qcow2 header"
    _require_version(source)
    raw = parse_structure(HEADER, source, 0, "qcow2 header")
    if raw.cluster_bits < MIN_CLUSTER_BITS:
        raise CorruptImage(f"{where}: cluster_bits is {raw.cluster_bits}, at least {MIN_CLUSTER_BITS} is possible")
    if raw.cluster_bits > MAX_CLUSTER_BITS:
        raise UnsupportedFeature(
            f"{where}: cluster_bits is {raw.cluster_bits}: clusters of over {1 << MAX_CLUSTER_BITS} bytes are not read"
        )
    if raw.crypt_method:
        method = ENCRYPTIONS.get(raw.crypt_method, f"unknown method {raw.crypt_method}")
        raise UnsupportedFeature(f"{where}: the disk is encrypted ({method}); encrypted images are not read")
    cluster_size = 1 << raw.cluster_bits
    incompatible, refcount_order, header_length = 0, 4, HEADER.sizeof()
    if raw.version >= 3:
        data = _read(source, HEADER.sizeof(), VERSION_3_FIELDS.sizeof(), "qcow2 version 3 header")
        more = parse_bytes(VERSION_3_FIELDS, data, source, HEADER.sizeof(), "qcow2 version 3 header")
        incompatible, refcount_order = more.incompatible_features, more.refcount_order
        header_length = more.header_length
        if header_length < HEADER_3_LENGTH or header_length % 8 or header_length > cluster_size:
            raise CorruptImage(
                f"{where}: header_length is {header_length}, expected a multiple of 8 from {HEADER_3_LENGTH} to the "
                f"cluster size, {cluster_size}"
            )
    if refcount_order > MAX_REFCOUNT_ORDER:
        raise CorruptImage(f"{where}: refcount_order is {refcount_order}, at most {MAX_REFCOUNT_ORDER} is possible")
    _require_aligned(where, cluster_size, "l1_table_offset", raw.l1_table_offset)
    _require_aligned(where, cluster_size, "refcount_table_offset", raw.refcount_table_offset)
    _require_aligned(where, cluster_size, "snapshots_offset", raw.snapshots_offset)
    if raw.refcount_table_clusters * cluster_size > MAX_REFCOUNT_TABLE_SIZE:
        raise CorruptImage(
            f"{where}: refcount_table_clusters is {raw.refcount_table_clusters}: a table of over "
            f"{MAX_REFCOUNT_TABLE_SIZE} bytes"
        )
    if raw.nb_snapshots > MAX_SNAPSHOTS:
        raise CorruptImage(f"{where}: nb_snapshots is {raw.nb_snapshots}, at most {MAX_SNAPSHOTS} are possible")
    extensions_end = cluster_size
    if raw.backing_file_offset:
        _require_backing_name(where, raw.backing_file_offset, raw.backing_file_size, header_length, cluster_size)
        extensions_end = raw.backing_file_offset
    extensions = dict(_extensions(source, where, header_length, extensions_end))
    _require_known_features(where, incompatible, extensions)
    if incompatible & EXTENDED_L2 and raw.cluster_bits < MIN_EXTENDED_CLUSTER_BITS:
        raise CorruptImage(
            f"{where}: cluster_bits is {raw.cluster_bits}, extended L2 entries need at least "
            f"{MIN_EXTENDED_CLUSTER_BITS}"
        )
    header = Header(
        version=raw.version,
        cluster_bits=raw.cluster_bits,
        size=raw.size,
        l1_size=raw.l1_size,
        l1_table_offset=raw.l1_table_offset,
        refcount_table_offset=raw.refcount_table_offset,
        refcount_table_clusters=raw.refcount_table_clusters,
        nb_snapshots=raw.nb_snapshots,
        snapshots_offset=raw.snapshots_offset,
        incompatible_features=incompatible,
        compression_type=_compression_type(source, where, incompatible, header_length),
        backing_file=_backing_file(source, raw.backing_file_offset, raw.backing_file_size),
        backing_format=_backing_format(where, extensions),
    )
    _require_l1_table(source, where, header)
    return header


def _require_version(source: ByteSource) -> None:
    start = source.read_at(0, min(8, source.size))
    if start[:4] != MAGIC:
        raise CorruptImage(f"{source.name}: qcow2 header: the magic is {start[:4].hex(' ')}, expected {MAGIC.hex(' ')}")
    version = int.from_bytes(start[4:], "big")
    if len(start) == 8 and version == QCOW1:
        raise UnsupportedFeature(
            f"{source.name}: it is a qcow image of version 1 (QCOW1), which is not read; convert it with "
            "qemu-img convert -f qcow -O qcow2"
        )
    if len(start) == 8 and version not in VERSIONS:
        raise UnsupportedFeature(f"{source.name}: qcow2 header: version {version} is not known, 2 and 3 are")


def _require_aligned(where: str, cluster_size: int, field: str, offset: int) -> None:
    if offset % cluster_size:
        raise CorruptImage(f"{where}: {field} is {offset:#x}, expected a multiple of the cluster size, {cluster_size}")


def _require_backing_name(where: str, offset: int, size: int, header_length: int, cluster_size: int) -> None:
    if not 0 < size <= MAX_BACKING_FILE_SIZE:
        raise CorruptImage(f"{where}: backing_file_size is {size}, expected 1 to {MAX_BACKING_FILE_SIZE} bytes")
    if offset < header_length or offset + size > cluster_size:
        raise CorruptImage(
            f"{where}: the backing file's name is at {offset:#x} and {size} bytes long, expected after the header "
            f"({header_length:#x}) and within the first cluster ({cluster_size:#x})"
        )


def _extensions(source: ByteSource, where: str, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield (type, data) of each header extension before `end`; a file may end where only zeros would follow."""
    area = source.read_at(start, min(end, source.size) - start) if start < source.size else b""
    at = 0
    while at + _EXTENSION_HEADER_SIZE <= len(area):
        kind = int.from_bytes(area[at : at + 4], "big")
        length = int.from_bytes(area[at + 4 : at + 8], "big")
        if kind == EXTENSION_END:
            return
        at += _EXTENSION_HEADER_SIZE
        if length > end - start - at:
            raise CorruptImage(
                f"{where}: extension {kind:#010x} at {start + at - _EXTENSION_HEADER_SIZE:#x} has {length} bytes, "
                f"{end - start - at} are left"
            )
        if length > len(area) - at:
            raise TruncatedImage(f"{where}: extension {kind:#010x} goes on past the end of the file, {source.size:#x}")
        yield kind, area[at : at + length]
        at += align_up(length, 8)


def _require_known_features(where: str, incompatible: int, extensions: dict[int, bytes]) -> None:
    """Refuse what changes the meaning of the image in a way that is not read."""
    unknown = incompatible & ~KNOWN_INCOMPATIBLE
    if unknown:
        names = _feature_names(extensions.get(EXTENSION_FEATURE_NAMES, b""))
        bits = [bit for bit in range(64) if unknown >> bit & 1]
        shown = ", ".join(f"bit {bit}" + (f" ({names[bit]})" if bit in names else "") for bit in bits)
        raise UnsupportedFeature(f"{where}: incompatible features that are not known: {shown}")
    if incompatible & CORRUPT:
        raise CorruptImage(
            f"{where}: the image is marked as corrupt (incompatible feature bit 1) by the program that found its "
            "tables damaged; repair a copy with qemu-img check -r all"
        )
    if incompatible & EXTERNAL_DATA_FILE:
        name = extensions.get(EXTENSION_EXTERNAL_DATA_FILE, b"").decode("utf-8", "surrogateescape")
        raise UnsupportedFeature(
            f"{where}: the disk's data is in another file ({printable(name)!r}): images with an external data file are "
            "not read; convert it with qemu-img convert"
        )


def _feature_names(table: bytes) -> dict[int, str]:
    """Return the names of incompatible features that the image brings along, by bit."""
    names = {}
    for at in range(0, len(table) - _FEATURE_NAME_SIZE + 1, _FEATURE_NAME_SIZE):
        kind, bit = table[at], table[at + 1]
        if kind == _INCOMPATIBLE_FEATURE:
            name = table[at + 2 : at + _FEATURE_NAME_SIZE].split(b"\0", 1)[0]
            names[bit] = printable(name.decode("utf-8", "surrogateescape"))
    return names


def _compression_type(source: ByteSource, where: str, incompatible: int, header_length: int) -> CompressionType:
    number = 0
    if header_length > COMPRESSION_TYPE_OFFSET:
        number = _read(source, COMPRESSION_TYPE_OFFSET, 1, "compression_type of the qcow2 header")[0]
    if bool(number) != bool(incompatible & COMPRESSION_TYPE):
        raise CorruptImage(
            f"{where}: compression_type is {number} and incompatible feature bit 3, which says whether it is other "
            f"than 0, is {int(not number)}"
        )
    try:
        return CompressionType(number)
    except ValueError as error:
        raise UnsupportedFeature(
            f"{where}: compression_type {number} is not known, 0 (deflate) and 1 (zstd) are"
        ) from error


def _backing_file(source: ByteSource, offset: int, size: int) -> str | None:
    if not offset:
        return None
    return _read(source, offset, size, "name of the backing file").decode("utf-8", "surrogateescape")


def _backing_format(where: str, extensions: dict[int, bytes]) -> str | None:
    stored = extensions.get(EXTENSION_BACKING_FORMAT)
    if stored is None:
        return None
    if len(stored) > MAX_BACKING_FORMAT_SIZE:
        raise CorruptImage(
            f"{where}: the backing file's format is {len(stored)} bytes long, at most {MAX_BACKING_FORMAT_SIZE} are "
            "expected"
        )
    return stored.split(b"\0", 1)[0].decode("utf-8", "surrogateescape") or None


def _require_l1_table(source: ByteSource, where: str, header: Header) -> None:
    size = header.l1_size * 8
    if size > MAX_L1_TABLE_SIZE:
        raise CorruptImage(f"{where}: l1_size is {header.l1_size}: a table of over {MAX_L1_TABLE_SIZE} bytes")
    if header.l1_size < header.l1_entries:
        raise CorruptImage(
            f"{where}: l1_size is {header.l1_size}, a disk of {header.size} bytes needs {header.l1_entries} entries"
        )
    if not size:
        return
    if header.l1_table_offset < header.cluster_size:
        raise CorruptImage(f"{where}: l1_table_offset is {header.l1_table_offset:#x}, where the header is")
    if header.l1_table_offset + size > source.size:
        raise TruncatedImage(
            f"{source.name}: the L1 table at offset {header.l1_table_offset:#x} needs {size} bytes, the file ends at "
            f"{source.size:#x}: the file is incomplete or its header is damaged"
        )


def _read(source: ByteSource, offset: int, size: int, title: str) -> bytes:
    if offset + size > source.size:
        raise TruncatedImage(
            f"{source.name}: {title} at offset {offset:#x} needs {size} bytes, the file ends at {source.size:#x}: the "
            "file is incomplete"
        )
    return source.read_at(offset, size)
