"""A hosted sparse extent, compressed or not, and a COWD one: grain tables of 32-bit sector numbers.

Specification: VMware, Virtual Disk Format 5.0 (2011), "Hosted Sparse Extents", "ESX Server Sparse Extents" and
"Stream-Optimized Compressed Sparse Extents".
"""

import functools
import struct
import sys
from array import array
from collections.abc import Iterator

from diskfs_formats.binary import ENTRIES_PER_PAGE, EntryTable, align_up, read_entries
from diskfs_formats.driver import AbsentParent, ImageInfo
from diskfs_formats.errors import CorruptImage, TruncatedImage
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.inflate import InflateError, inflate_zlib
from diskfs_formats.source import Buffer, ByteSource
from diskfs_formats.vmdk.grains import UNALLOCATED, GrainExtent, GrainTable, TableCache, TableShape
from diskfs_formats.vmdk.header import FLAG_ZEROED_GRAIN, GD_AT_END, SECTOR, SparseHeader
from diskfs_formats.vmdk.image import VmdkImage

_ZEROED = 1
_GRAIN_MARKER = struct.Struct("<QI")
"""The used part of a grain's marker: first sector on the disk, compressed bytes."""


class SparseExtent(GrainExtent):
    """One sparse extent as a disk of its own. `header` is the one that knows the grain directory.

    `virtual_size` may be less than the capacity, never more. Raises ImageError while opening if the grain directory
    does not fit the file; a bad table or grain fails the reads that need it.
    """

    def __init__(
        self,
        source: ByteSource,
        header: SparseHeader,
        info: ImageInfo,
        *,
        parent: VmdkImage | AbsentParent | None = None,
        cid: int | None = None,
        tables: TableCache | None = None,
        directory_page: int = ENTRIES_PER_PAGE,
    ) -> None:
        assert info.virtual_size <= header.capacity * SECTOR
        directory = open_directory(source, header, header.gd_offset, "grain directory", directory_page)
        metadata = _metadata_ranges(header)
        shape = _shape(header)
        super().__init__(source, info, directory, shape, metadata, tables=tables, parent=parent, cid=cid)
        self._header = header
        self._compressed = header.compressed
        self._grain_sectors = header.grain_sectors
        self._max_record = align_up(_GRAIN_MARKER.size + 2 * header.grain_size, SECTOR)

    @property
    def header(self) -> SparseHeader:
        """The header, or the footer where the grain directory is at the end."""
        return self._header

    def table_offset(self, number: int, entry: int) -> int:
        offset = entry * SECTOR
        if self._is_metadata(offset, self.table_length(number)):
            raise CorruptImage(
                f"{self._name}: grain directory entry {number} is sector {entry:#x}, where a table would overlap the "
                "header, the descriptor or a directory"
            )
        return offset

    def read_table(self, number: int, entry: int) -> GrainTable:
        entries = read_table(self._source, self._header, number, self.table_offset(number, entry))
        count = len(entries)
        step = self._header.grain_sectors
        compressed = self._header.compressed
        zeroed = _ZEROED if self._header.has_zeroed_grains else UNALLOCATED
        run_ends = array("H", range(1, count + 1))
        for index in range(count - 2, -1, -1):
            this, following = entries[index], entries[index + 1]
            expected = this if this in (UNALLOCATED, zeroed) else this + step
            if following == expected and not (compressed and expected != this):
                run_ends[index] = run_ends[index + 1]
        return GrainTable(entries, run_ends, array("I", sorted(set(entries)) if compressed else ()))

    def stored_grains(self, number: int, table: GrainTable) -> Iterator[tuple[int, int]]:
        if self._header.compressed:
            return
        first = number * self._table_entries
        for index, entry in enumerate(table.entries):
            if entry > _ZEROED and not self._is_metadata(entry * SECTOR):
                yield first + index, entry * SECTOR

    def _extent(self, offset: int, number: int, table: GrainTable) -> Extent:
        first, start, end = self._run(offset, number, table)
        entry = table.entries[first - number * self._table_entries]
        if entry == UNALLOCATED:
            return Extent(start, end - start, ExtentKind.HOLE)
        if entry == _ZEROED and self._header.has_zeroed_grains:
            return Extent(start, end - start, ExtentKind.ZERO)
        stored_at = entry * SECTOR
        if self._compressed and entry > _ZEROED and not self._is_metadata(stored_at):
            return Extent(start, end - start, ExtentKind.DATA, self._record(first, entry, table))
        # Sector 1 of a COWD extent is part of its header, and no flag could say otherwise.
        if entry == _ZEROED and stored_at >= self._header.header_size:
            raise CorruptImage(
                f"{self._name}: grain {first}: grain table entry is 1, which only header flag {FLAG_ZEROED_GRAIN:#x} "
                f"would make a zeroed grain; the flags are {self._header.flags:#010x}"
            )
        if self._is_metadata(stored_at):
            raise CorruptImage(
                f"{self._name}: grain {first}: grain table entry is sector {entry:#x}, which holds the header, the "
                "descriptor or a directory"
            )
        return self._plain(start, end, first, stored_at)

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
        sector, size = _GRAIN_MARKER.unpack_from(record)
        first_sector = grain * self._grain_sectors
        end = _GRAIN_MARKER.size + size
        if sector != first_sector or not 0 < size <= 2 * self._grain_size or end > len(record):
            raise self._bad_marker(grain, offset, record)
        try:
            data = inflate_zlib(memoryview(record)[_GRAIN_MARKER.size : end], self._grain_size)
        except InflateError as error:
            raise CorruptImage(f"{self._grain_at(grain, offset)}: {error}") from error
        # The last grain may be stored whole or only as far as the capacity reaches; writers differ.
        if len(data) < self._grain_size:
            needed = min(self._grain_size, (self._header.capacity - first_sector) * SECTOR)
            if len(data) < needed:
                raise CorruptImage(
                    f"{self._grain_at(grain, offset)}: it inflates to {len(data)} bytes, expected {needed}"
                )
        return data

    def _bad_marker(self, grain: int, offset: int, record: Buffer) -> CorruptImage:
        """Say what is wrong with a marker; put together here, since a grain is read ten thousand times a second."""
        where = self._grain_at(grain, offset)
        sector, size = _GRAIN_MARKER.unpack_from(record)
        expected = grain * self._grain_sectors
        if sector != expected:
            return CorruptImage(f"{where}: its marker says sector {sector:#x}, expected {expected:#x}")
        if not 0 < size <= 2 * self._grain_size:
            return CorruptImage(
                f"{where}: its marker says {size} compressed bytes, expected 1 to {2 * self._grain_size}"
            )
        if offset + _GRAIN_MARKER.size + size > self._source.size:
            return TruncatedImage(f"{where}: {size} compressed bytes, but the file ends before them: it is incomplete")
        return CorruptImage(f"{where}: {size} compressed bytes, but the next grain begins before them")

    def _grain_at(self, grain: int, offset: int) -> str:
        return f"{self._name}: grain {grain} at offset {offset:#x}"


def open_directory(
    source: ByteSource, header: SparseHeader, gd_offset: int, title: str, entries_per_page: int = ENTRIES_PER_PAGE
) -> EntryTable:
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
    return EntryTable(source, gd_offset * SECTOR, header.table_count, entries_per_page=entries_per_page)


def read_table(source: ByteSource, header: SparseHeader, number: int, offset: int) -> "array[int]":
    """Return the entries of grain table `number` at `offset` that lie within the capacity."""
    return read_entries(source, offset, _shape(header).length(number), "I", swap=sys.byteorder != "little")


def _shape(header: SparseHeader) -> TableShape:
    return TableShape(-(-header.capacity // header.grain_sectors), header.table_entries, 4)


def _metadata_ranges(header: SparseHeader) -> list[tuple[int, int]]:
    """Return the byte ranges in which no grain and no grain table can lie."""
    directory = header.table_count * 4
    ranges = [(0, header.header_size)]
    if header.descriptor_offset:
        ranges.append((header.descriptor_offset, header.descriptor_offset + header.descriptor_size))
        ranges[-1] = (ranges[-1][0] * SECTOR, ranges[-1][1] * SECTOR)
    ranges.append((header.gd_offset * SECTOR, header.gd_offset * SECTOR + directory))
    if header.has_redundant_tables and header.rgd_offset:
        ranges.append((header.rgd_offset * SECTOR, header.rgd_offset * SECTOR + directory))
    return ranges
