"""A VMDK sparse extent: grain directory, grain tables, grains, compressed or not.

Specification: VMware, Virtual Disk Format 5.0 (2011), "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse
Extents". Directory and table entries are 32-bit sector numbers.
"""

import bisect
import functools
import struct
import sys
import threading
from array import array
from collections import OrderedDict

from diskfs_formats.binary import EntryTable, align_up, read_entries
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import CorruptImage, TruncatedImage
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.inflate import InflateError, inflate_zlib
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import Buffer, ByteSource
from diskfs_formats.vmdk.header import FLAG_ZEROED_GRAIN, GD_AT_END, SECTOR, SparseHeader

TABLES_KEPT = 12 << 20
"""Memory of the grain tables kept per disk: 2200 tables of 512 entries map 70 GiB of 64 KiB grains."""
_TABLE_OVERHEAD = 512
_ENTRY_COST = 10
"""Memory of a table (measured) and of each of its entries: the entry, the end of its run, its place in the order."""
_UNALLOCATED = 0
_ZEROED = 1
_GRAIN_MARKER = struct.Struct("<QI")
"""The used part of a grain's marker: first sector on the disk, compressed bytes."""


class GrainTable:
    """The entries of one table, and for each the end of the run that begins there."""

    __slots__ = ("entries", "ordered", "run_ends")

    def __init__(self, entries: "array[int]", header: SparseHeader) -> None:
        self.entries = entries
        count = len(entries)
        step = header.grain_sectors
        zeroed = _ZEROED if header.has_zeroed_grains else _UNALLOCATED
        run_ends = array("H", range(1, count + 1))
        for index in range(count - 2, -1, -1):
            entry, following = entries[index], entries[index + 1]
            if entry in (_UNALLOCATED, zeroed):
                joins = following == entry
            else:
                joins = not header.compressed and following == entry + step
            if joins:
                run_ends[index] = run_ends[index + 1]
        self.run_ends = run_ends
        self.ordered = array("I", sorted(set(entries)) if header.compressed else ())

    def following(self, entry: int) -> int | None:
        """Return the lowest entry above `entry`: the next record, if this table knows one."""
        at = bisect.bisect_right(self.ordered, entry)
        return self.ordered[at] if at < len(self.ordered) else None


class SparseExtent(MappedImage):
    """One sparse extent as a disk of its own. `header` is the one that knows the grain directory.

    `virtual_size` may be less than the capacity, never more. Raises ImageError while opening if the grain directory
    does not fit the file; a bad table or grain fails the reads that need it.
    """

    def __init__(self, source: ByteSource, header: SparseHeader, info: ImageInfo) -> None:
        super().__init__(source.name, info, [source])
        assert info.virtual_size <= header.capacity * SECTOR
        self._source = source
        self._header = header
        self._grain_size = header.grain_size
        self._table_span = header.table_entries * header.grain_size
        self._max_record = align_up(_GRAIN_MARKER.size + 2 * header.grain_size, SECTOR)
        self._metadata = _metadata_ranges(source, header)
        self._limits = sorted([*(start for start, _ in self._metadata), source.size])
        self._directory = open_directory(source, header, header.gd_offset, "grain directory")
        self._tables: OrderedDict[int, GrainTable] = OrderedDict()
        self._tables_kept = max(16, TABLES_KEPT // (_TABLE_OVERHEAD + header.table_entries * _ENTRY_COST))
        self._lock = threading.Lock()

    def lookup(self, offset: int, /) -> Extent:
        number = offset // self._table_span
        table_sector = self._directory[number]
        if table_sector == _UNALLOCATED:
            return self._unallocated_tables(number)
        return self._extent(offset, number, self._table(number, table_sector))

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        number = offset // self._table_span
        table = self._tables.get(number)
        if table is not None:
            return self._extent(offset, number, table)
        if self._directory.is_ready(number) and self._directory[number] == _UNALLOCATED:
            return self._unallocated_tables(number)
        return None

    @property
    def header(self) -> SparseHeader:
        """The header, or the footer where the grain directory is at the end."""
        return self._header

    def _unallocated_tables(self, number: int) -> Extent:
        """Return the hole of the tables that do not exist, as far as the directory's page shows it."""
        per_page = self._directory.entries_per_page
        page, at = divmod(number, per_page)
        entries = self._directory.page(page)
        end = at + 1
        while end < len(entries) and entries[end] == _UNALLOCATED:
            end += 1
        start = number * self._table_span
        stop = min((page * per_page + end) * self._table_span, self._size)
        return Extent(start, stop - start, ExtentKind.HOLE)

    def _table(self, number: int, sector: int) -> GrainTable:
        with self._lock:
            table = self._tables.get(number)
            if table is not None:
                self._tables.move_to_end(number)
                return table
        offset = sector * SECTOR
        if self._is_metadata(offset, table_length(self._header, number) * 4):
            raise CorruptImage(
                f"{self._name}: grain directory entry {number} is sector {sector:#x}, where a table would overlap the "
                "header, the descriptor or a directory"
            )
        table = GrainTable(read_table(self._source, self._header, number, offset), self._header)
        with self._lock:
            self._tables[number] = table
            while len(self._tables) > self._tables_kept:
                self._tables.popitem(last=False)
        return table

    def _extent(self, offset: int, number: int, table: GrainTable) -> Extent:
        index = offset % self._table_span // self._grain_size
        entry = table.entries[index]
        first = number * self._header.table_entries + index
        start = first * self._grain_size
        end = min(start + (table.run_ends[index] - index) * self._grain_size, self._size)
        if entry == _UNALLOCATED:
            return Extent(start, end - start, ExtentKind.HOLE)
        if entry == _ZEROED and self._header.has_zeroed_grains:
            return Extent(start, end - start, ExtentKind.ZERO)
        stored_at = entry * SECTOR
        if entry == _ZEROED:
            raise CorruptImage(
                f"{self._name}: grain {first}: grain table entry is 1, which only header flag {FLAG_ZEROED_GRAIN:#x} "
                f"would make a zeroed grain; the flags are {self._header.flags:#010x}"
            )
        if self._is_metadata(stored_at):
            raise CorruptImage(
                f"{self._name}: grain {first}: grain table entry is sector {entry:#x}, which holds the header, the "
                "descriptor or a directory"
            )
        if self._header.compressed:
            return Extent(start, end - start, ExtentKind.DATA, self._record(first, entry, table))
        return self._plain(start, end, first, stored_at)

    def _plain(self, start: int, end: int, first: int, stored_at: int) -> Extent:
        """Return a run of grains stored as they are; only its part before the file's end or the next metadata."""
        at = bisect.bisect_right(self._limits, stored_at)
        limit = self._limits[at] if at < len(self._limits) else self._source.size
        if limit - stored_at < end - start:
            # A run is cut at the grain that goes too far, so that only the reads of that grain fail.
            whole = max(limit - stored_at, 0) // self._grain_size * self._grain_size
            if whole == 0:
                needed = min(self._grain_size, end - start)
                problem = f"{self._name}: grain {first} at offset {stored_at:#x} needs {needed} bytes, "
                if limit < self._source.size:
                    raise CorruptImage(f"{problem}and the descriptor or a directory begins at {limit:#x}")
                raise TruncatedImage(f"{problem}the file ends at {self._source.size:#x}: the file is incomplete")
            end = start + whole
        return Extent(start, end - start, ExtentKind.DATA, Stored(self._source, stored_at, end - start))

    def _record(self, grain: int, entry: int, table: GrainTable) -> Stored:
        offset = entry * SECTOR
        end = min(offset + self._max_record, self._source.size)
        following = table.following(entry)
        if following is not None:
            end = min(end, following * SECTOR)
        if end - offset <= _GRAIN_MARKER.size:
            raise TruncatedImage(
                f"{self._name}: grain {grain}: its marker at offset {offset:#x} is past the end of the file "
                f"({self._source.size:#x}): the file is incomplete"
            )
        return Stored(self._source, offset, end - offset, functools.partial(self._decode_grain, grain, offset))

    def _decode_grain(self, grain: int, offset: int, record: Buffer) -> Buffer:
        """Check the marker of a grain's record and inflate it."""
        where = f"{self._name}: grain {grain} at offset {offset:#x}"
        sector, size = _GRAIN_MARKER.unpack_from(record)
        expected = grain * self._header.grain_sectors
        if sector != expected:
            raise CorruptImage(f"{where}: its marker says sector {sector:#x}, expected {expected:#x}")
        if not 0 < size <= 2 * self._grain_size:
            raise CorruptImage(
                f"{where}: its marker says {size} compressed bytes, expected 1 to {2 * self._grain_size}"
            )
        if _GRAIN_MARKER.size + size > len(record):
            at_end = offset + _GRAIN_MARKER.size + size > self._source.size
            problem = "the file ends before them: it is incomplete" if at_end else "the next grain begins before them"
            raise (TruncatedImage if at_end else CorruptImage)(f"{where}: {size} compressed bytes, but {problem}")
        try:
            data = inflate_zlib(memoryview(record)[_GRAIN_MARKER.size : _GRAIN_MARKER.size + size], self._grain_size)
        except InflateError as error:
            raise CorruptImage(f"{where}: {error}") from error
        # The last grain may be stored whole or only as far as the capacity reaches; writers differ.
        needed = min(self._grain_size, (self._header.capacity - expected) * SECTOR)
        if len(data) < needed:
            raise CorruptImage(f"{where}: it inflates to {len(data)} bytes, expected {needed}")
        return data

    def _is_metadata(self, offset: int, length: int = 1) -> bool:
        return any(start < offset + length and offset < end for start, end in self._metadata)


def open_directory(source: ByteSource, header: SparseHeader, gd_offset: int, title: str) -> EntryTable:
    """Return a grain directory after checking that it lies inside the file; raises ImageError."""
    if gd_offset in (0, GD_AT_END):
        raise CorruptImage(f"{source.name}: the {title} is at sector {gd_offset:#x}, which is no place for it")
    size = header.table_count * 4
    if gd_offset * SECTOR + size > source.size:
        raise TruncatedImage(
            f"{source.name}: the {title} at offset {gd_offset * SECTOR:#x} needs {size} bytes for a capacity of "
            f"{header.capacity} sectors, the file ends at {source.size:#x}: the file is incomplete or its header is "
            "damaged"
        )
    return EntryTable(source, gd_offset * SECTOR, header.table_count)


def table_length(header: SparseHeader, number: int) -> int:
    """Return how many entries of grain table `number` lie within the capacity."""
    return min(header.table_entries, -(-header.capacity // header.grain_sectors) - number * header.table_entries)


def read_table(source: ByteSource, header: SparseHeader, number: int, offset: int) -> "array[int]":
    """Return the entries of grain table `number` at `offset` that lie within the capacity."""
    return read_entries(source, offset, table_length(header, number), "I", swap=sys.byteorder != "little")


def _metadata_ranges(source: ByteSource, header: SparseHeader) -> list[tuple[int, int]]:
    """Return the byte ranges in which no grain and no grain table can lie."""
    directory = header.table_count * 4
    ranges = [(0, SECTOR)]
    if header.descriptor_offset:
        ranges.append((header.descriptor_offset, header.descriptor_offset + header.descriptor_size))
        ranges[-1] = (ranges[-1][0] * SECTOR, ranges[-1][1] * SECTOR)
    ranges.append((header.gd_offset * SECTOR, header.gd_offset * SECTOR + directory))
    if header.has_redundant_tables and header.rgd_offset:
        ranges.append((header.rgd_offset * SECTOR, header.rgd_offset * SECTOR + directory))
    return [(start, end) for start, end in ranges if start < source.size]
