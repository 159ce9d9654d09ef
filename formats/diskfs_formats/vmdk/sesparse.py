"""A seSparse extent, the space-efficient delta of ESX since 5.1: 64-bit tables whose entries say what a grain is.

VMware has published no specification; this is what QEMU and dissect agree on. Little-endian; offsets and sizes count
512-byte sectors. Read only when its journal is clean: the journal's form is unknown.
"""

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from construct import Bytes, Const, Int64ul, Padding, Struct

from diskfs_formats.binary import ENTRIES_PER_PAGE, EntryTable, parse_structure, read_entries
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import CorruptImage, TruncatedImage, UnsupportedFeature
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.source import ByteSource
from diskfs_formats.vmdk.grains import GrainExtent, GrainTable, TableCache, TableShape
from diskfs_formats.vmdk.header import MAX_CAPACITY, SECTOR

SESPARSE_MAGIC = (0xCAFEBABE).to_bytes(8, "little")
VOLATILE_MAGIC = (0xCAFECAFE).to_bytes(8, "little")
SESPARSE_VERSION = 0x0000000200000001
GRAIN_SECTORS = 8
TABLE_SECTORS = 64
TABLE_ENTRIES = TABLE_SECTORS * SECTOR // 8

CONST_HEADER = Struct(
    "magic" / Const(SESPARSE_MAGIC),
    "version" / Int64ul,
    "capacity" / Int64ul,
    "grain_size" / Int64ul,
    "grain_table_size" / Int64ul,
    "flags" / Int64ul,
    "reserved" / Bytes(32),
    "volatile_header_offset" / Int64ul,
    "volatile_header_size" / Int64ul,
    "journal_header_offset" / Int64ul,
    "journal_header_size" / Int64ul,
    "journal_offset" / Int64ul,
    "journal_size" / Int64ul,
    "grain_dir_offset" / Int64ul,
    "grain_dir_size" / Int64ul,
    "grain_tables_offset" / Int64ul,
    "grain_tables_size" / Int64ul,
    "free_bitmap_offset" / Int64ul,
    "free_bitmap_size" / Int64ul,
    "backmap_offset" / Int64ul,
    "backmap_size" / Int64ul,
    "grains_offset" / Int64ul,
    "grains_size" / Int64ul,
    "pad" / Bytes(304),
)
assert CONST_HEADER.sizeof() == SECTOR

VOLATILE_HEADER = Struct(
    "magic" / Const(VOLATILE_MAGIC),
    "free_gt_number" / Int64ul,
    "next_txn_seq_number" / Int64ul,
    "replay_journal" / Int64ul,
    Padding(480),
)
assert VOLATILE_HEADER.sizeof() == SECTOR

_TABLE_MARK = 0x10000000
"""The upper half of a grain directory entry that is not 0."""
_UNALLOCATED, _UNMAPPED, _ZERO, _ALLOCATED = range(4)
"""What the highest four bits of a grain table entry say. QEMU reads an unmapped grain as zeroes even over a parent."""


@dataclass(frozen=True, slots=True)
class SeSparseHeader:
    """A checked header. All offsets and sizes in sectors, as in the file."""

    capacity: int
    grain_dir_offset: int
    grain_tables_offset: int
    grain_tables_size: int
    grains_offset: int
    volatile_header_offset: int

    @property
    def table_count(self) -> int:
        """Entries of the grain directory: grain tables that cover the capacity."""
        return -(-self.capacity // (TABLE_ENTRIES * GRAIN_SECTORS))


def read_sesparse_header(source: ByteSource) -> SeSparseHeader:
    """Read and check both headers; raises ImageError, and UnsupportedFeature if the journal has to be replayed."""
    raw = parse_structure(CONST_HEADER, source, 0, "seSparse header")
    where = f"{source.name}: seSparse header at offset 0x0"
    if raw.version != SESPARSE_VERSION:
        raise UnsupportedFeature(f"{where}: version {raw.version:#x} is not known, {SESPARSE_VERSION:#x} is")
    if raw.flags or any(raw.reserved) or any(raw.pad):
        raise UnsupportedFeature(f"{where}: flags ({raw.flags:#x}) or reserved fields are not 0: not known")
    if (raw.grain_size, raw.grain_table_size) != (GRAIN_SECTORS, TABLE_SECTORS):
        raise UnsupportedFeature(
            f"{where}: grain_size {raw.grain_size} and grain_table_size {raw.grain_table_size} are not known, "
            f"{GRAIN_SECTORS} and {TABLE_SECTORS} are"
        )
    if not 1 <= raw.capacity <= MAX_CAPACITY:
        raise CorruptImage(f"{where}: capacity is {raw.capacity} sectors, expected 1 to {MAX_CAPACITY}")
    header = SeSparseHeader(
        capacity=raw.capacity,
        grain_dir_offset=raw.grain_dir_offset,
        grain_tables_offset=raw.grain_tables_offset,
        grain_tables_size=raw.grain_tables_size,
        grains_offset=raw.grains_offset,
        volatile_header_offset=raw.volatile_header_offset,
    )
    for field in ("volatile_header", "grain_dir", "grain_tables", "grains"):
        if not getattr(header, f"{field}_offset"):
            raise CorruptImage(f"{where}: {field}_offset is 0, which is no place for it")
    size = header.table_count * 8
    if size > raw.grain_dir_size * SECTOR:
        raise CorruptImage(
            f"{where}: grain_dir_size is {raw.grain_dir_size} sectors, expected at least {-(-size // SECTOR)} for a "
            f"capacity of {raw.capacity} sectors"
        )
    if raw.grain_dir_offset * SECTOR + size > source.size:
        raise TruncatedImage(
            f"{source.name}: the grain directory at offset {raw.grain_dir_offset * SECTOR:#x} needs {size} bytes, the "
            f"file ends at {source.size:#x}: the file is incomplete or its header is damaged"
        )
    _require_clean_journal(source, raw.volatile_header_offset * SECTOR)
    return header


def _require_clean_journal(source: ByteSource, offset: int) -> None:
    raw = parse_structure(VOLATILE_HEADER, source, offset, "seSparse volatile header")
    if raw.replay_journal:
        raise UnsupportedFeature(
            f"{source.name}: seSparse volatile header at offset {offset:#x}: replay_journal is {raw.replay_journal}: "
            "the journal holds changes that only ESX can replay; start and stop the machine there, or copy the disk "
            "with vmkfstools"
        )


class SeSparseExtent(GrainExtent):
    """A seSparse extent as a disk of its own; `virtual_size` is at most the capacity."""

    def __init__(
        self,
        source: ByteSource,
        header: SeSparseHeader,
        info: ImageInfo,
        *,
        tables: TableCache | None = None,
        directory_page: int = ENTRIES_PER_PAGE,
    ) -> None:
        assert info.virtual_size <= header.capacity * SECTOR
        directory_offset = header.grain_dir_offset * SECTOR
        tables_offset = header.grain_tables_offset * SECTOR
        volatile_offset = header.volatile_header_offset * SECTOR
        directory = EntryTable(source, directory_offset, header.table_count, bits=64, entries_per_page=directory_page)
        self._tables_offset = tables_offset
        self._tables_end = tables_offset + header.grain_tables_size * SECTOR
        self._grains_offset = header.grains_offset * SECTOR
        metadata = (
            (0, SECTOR),
            (volatile_offset, volatile_offset + SECTOR),
            (directory_offset, directory_offset + header.table_count * 8),
        )
        shape = TableShape(-(-header.capacity // GRAIN_SECTORS), TABLE_ENTRIES, 8)
        super().__init__(source, info, directory, shape, metadata, tables=tables)

    def table_offset(self, number: int, entry: int) -> int:
        mark, index = entry >> 32, entry & 0xFFFFFFFF
        if mark != _TABLE_MARK:
            raise CorruptImage(
                f"{self._name}: grain directory entry {number} is {entry:#018x}, expected 0 or {_TABLE_MARK:#x} in its "
                "upper half"
            )
        offset = self._tables_offset + index * TABLE_SECTORS * SECTOR
        length = self.table_length(number)
        if offset + length > self._tables_end or self._is_metadata(offset, length):
            raise CorruptImage(
                f"{self._name}: grain directory entry {number} is grain table {index} at offset {offset:#x}, outside "
                f"the grain tables, which end at {self._tables_end:#x}, or over another structure"
            )
        return offset

    def read_table(self, number: int, entry: int) -> GrainTable:
        offset, count = self.table_offset(number, entry), self._shape.length(number)
        entries = read_entries(self._source, offset, count, "Q", swap=sys.byteorder != "little")
        # Grains of one run have one key: that of a kind of zeroes, or where the grain 0 of the table would lie.
        keys = [_run_key(entry, index) for index, entry in enumerate(entries)]
        run_ends = array("H", range(1, len(keys) + 1))
        for index in range(len(keys) - 2, -1, -1):
            if keys[index] == keys[index + 1]:
                run_ends[index] = run_ends[index + 1]
        return GrainTable(entries, run_ends, array("I"))

    def stored_grains(self, number: int, table: GrainTable) -> Iterator[tuple[int, int]]:
        first = number * self._table_entries
        for index, entry in enumerate(table.entries):
            if entry >> 60 == _ALLOCATED and not self._is_metadata(self._place(entry)):
                yield first + index, self._place(entry)

    def _extent(self, offset: int, number: int, table: GrainTable) -> Extent:
        first, start, end = self._run(offset, number, table)
        entry = table.entries[first - number * self._table_entries]
        if entry == 0:
            return Extent(start, end - start, ExtentKind.HOLE)
        kind = entry >> 60
        if kind in (_UNMAPPED, _ZERO):
            return Extent(start, end - start, ExtentKind.ZERO)
        if kind != _ALLOCATED:
            raise CorruptImage(
                f"{self._name}: grain {first}: grain table entry is {entry:#018x}, whose type {kind} is not known"
            )
        stored_at = self._place(entry)
        if self._is_metadata(stored_at):
            raise CorruptImage(
                f"{self._name}: grain {first}: grain table entry {entry:#018x} leads to offset {stored_at:#x}, which "
                "holds a header or the directory"
            )
        return self._plain(start, end, first, stored_at)

    def _place(self, entry: int) -> int:
        return self._grains_offset + _grain_index(entry) * GRAIN_SECTORS * SECTOR


def _grain_index(entry: int) -> int:
    """Return which of the stored grains an entry means: its bits 0 to 11 are the entry's bits 48 to 59."""
    return (entry >> 48 & 0xFFF) | (entry & 0xFFFFFFFFFFFF) << 12


def _run_key(entry: int, index: int) -> tuple[int, int]:
    kind = entry >> 60
    if kind == _ALLOCATED:
        return kind, _grain_index(entry) - index
    if entry == 0:
        return _UNALLOCATED, 0
    if kind in (_UNMAPPED, _ZERO):
        return _ZERO, 0
    return kind, -1 - index
