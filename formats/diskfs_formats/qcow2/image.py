"""A qcow2 image as a disk: L1 table, L2 tables, clusters.

Specification: QEMU, docs/interop/qcow2.txt, "Cluster mapping".
"""

import bisect
import functools
import sys
import threading
from array import array
from collections import OrderedDict

from diskfs_formats.binary import EntryTable, read_entries
from diskfs_formats.driver import DiskImage, ImageInfo
from diskfs_formats.errors import CorruptImage, TruncatedImage
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.mapped import MappedImage
from diskfs_formats.qcow2.compression import DamagedCluster, decompress
from diskfs_formats.qcow2.entries import (
    COMPRESSED,
    L1_RESERVED,
    NOT_COPIED,
    OFFSET_MASK,
    BadEntry,
    EntryLayout,
)
from diskfs_formats.qcow2.header import Header
from diskfs_formats.source import Buffer, ByteSource

SLICE_ENTRIES = 4096
"""Entries of an L2 table that are read at once: 32 KiB map 256 MiB of 64 KiB clusters. A whole table may be 2 MiB."""
SLICES_KEPT = 8 << 20
"""Bytes of slices kept per disk: they map 64 GiB of 64 KiB clusters."""
MAX_SLICES = 4096
"""Slices kept however small they are."""
MAX_RUN = 256
"""Clusters that one lookup joins: 16 MiB of 64 KiB clusters, found in 20 microseconds, and once only."""


class L2Slice:
    """Part of an L2 table that begins at `table_offset`. `words` are the entries, one or two words each.

    `run_ends` has for each cluster the one before which the run ends that reaches the cluster's last byte, as far as it
    was looked for: 0 says that it was not. Threads that fill it in at once write the same.
    """

    __slots__ = ("is_empty", "run_ends", "table_offset", "words")

    def __init__(self, words: "array[int]", count: int, table_offset: int) -> None:
        self.words = words
        self.table_offset = table_offset
        self.is_empty = not any(words)
        self.run_ends = array("H", bytes(2 * count))


class Qcow2Image(MappedImage):
    """The active disk of a qcow2 image.

    A bad L1 or L2 entry, a damaged compressed cluster, or a cluster past the end of the file fails the reads that need
    it.
    """

    def __init__(self, source: ByteSource, header: Header, info: ImageInfo, parent: DiskImage | None = None) -> None:
        super().__init__(source.name, info, [source], parent)
        self._source = source
        self._header = header
        self._layout = EntryLayout(header)
        self._cluster_size = header.cluster_size
        self._metadata = header.metadata
        self._limits = sorted(start for start, _ in self._metadata)
        self._l1 = EntryTable(source, header.l1_table_offset, header.l1_entries, bits=64, byteorder="big")
        self._slice_entries = min(header.l2_entries, SLICE_ENTRIES)
        self._slices_per_table = header.l2_entries // self._slice_entries
        self._slices: OrderedDict[int, L2Slice] = OrderedDict()
        slice_size = self._slice_entries * header.l2_entry_size
        self._slices_kept = min(MAX_SLICES, SLICES_KEPT // slice_size)
        self._lock = threading.Lock()

    @property
    def header(self) -> Header:
        """The header."""
        return self._header

    @property
    def layout(self) -> EntryLayout:
        """How L2 entries are read, for checks."""
        return self._layout

    @property
    def l1(self) -> EntryTable:
        """The L1 table, as far as it covers the disk; for checks."""
        return self._l1

    @property
    def file_size(self) -> int:
        """Bytes of the file."""
        return self._source.size

    @property
    def slice_entries(self) -> int:
        """Entries of a slice."""
        return self._slice_entries

    @property
    def slices_per_table(self) -> int:
        """Slices of an L2 table."""
        return self._slices_per_table

    def lookup(self, offset: int, /) -> Extent:
        cluster = offset // self._cluster_size
        number = cluster // self._slice_entries
        table = number // self._slices_per_table
        if not self._l1[table] & NOT_COPIED:
            return self._unallocated_tables(table)
        return self._extent(offset, cluster, self.l2_slice(number))

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        cluster = offset // self._cluster_size
        number = cluster // self._slice_entries
        found = self._slices.get(number)
        if found is not None:
            return self._extent(offset, cluster, found)
        table = number // self._slices_per_table
        if self._l1.is_ready(table) and not self._l1[table] & NOT_COPIED:
            return self._unallocated_tables(table)
        return None

    def l2_slice(self, number: int) -> L2Slice:
        """Return the slice that maps the clusters from `number` * `slice_entries` on; its L1 entry is not 0.

        Raises CorruptImage for an L1 entry that leads nowhere, TruncatedImage where the file ends.
        """
        with self._lock:
            found = self._slices.get(number)
            if found is not None:
                self._slices.move_to_end(number)
                return found
        found = self._read_slice(number)
        with self._lock:
            self._slices[number] = found
            while len(self._slices) > self._slices_kept:
                self._slices.popitem(last=False)
        return found

    def _read_slice(self, number: int) -> L2Slice:
        table, part = divmod(number, self._slices_per_table)
        where = f"{self._name}: L1 entry {table}"
        entry = self._l1[table]
        if entry & L1_RESERVED:
            raise CorruptImage(f"{where} is {entry:#018x}: its reserved bits {entry & L1_RESERVED:#018x} are set")
        table_offset = entry & OFFSET_MASK
        if table_offset % self._cluster_size:
            raise CorruptImage(
                f"{where}: the L2 table is at {table_offset:#x}, expected a multiple of the cluster size"
            )
        if self._is_metadata(table_offset):
            raise CorruptImage(f"{where}: the L2 table is at {table_offset:#x}, where the header or another table is")
        count = min(self._slice_entries, self._header.clusters - number * self._slice_entries)
        size = count * self._header.l2_entry_size
        offset = table_offset + part * self._slice_entries * self._header.l2_entry_size
        if offset + size > self._source.size:
            raise TruncatedImage(
                f"{where}: the L2 table at {table_offset:#x} is needed up to {offset + size:#x}, the file ends at "
                f"{self._source.size:#x}: the file is incomplete"
            )
        words = read_entries(self._source, offset, size // 8, "Q", swap=sys.byteorder != "big")
        return L2Slice(words, count, table_offset)

    def _unallocated_tables(self, number: int) -> Extent:
        """Return the hole of the L2 tables that do not exist, as far as the L1 table's page shows it."""
        per_page = self._l1.entries_per_page
        page, at = divmod(number, per_page)
        entries = self._l1.page(page)
        end = at + 1
        while end < len(entries) and not entries[end] & NOT_COPIED:
            end += 1
        span = self._header.l2_entries * self._cluster_size
        start = number * span
        stop = min((page * per_page + end) * span, self._size)
        return Extent(start, stop - start, ExtentKind.HOLE)

    def _extent(self, offset: int, cluster: int, table: L2Slice) -> Extent:
        layout = self._layout
        index = cluster % self._slice_entries
        start = cluster * self._cluster_size
        if table.is_empty:
            end = start + (len(table.run_ends) - index) * self._cluster_size
            return Extent(start, min(end, self._size) - start, ExtentKind.HOLE)
        entry = table.words[index * layout.words]
        bitmap = table.words[index * layout.words + 1] if layout.is_extended else 0
        try:
            if entry & COMPRESSED:
                return self._compressed(start, cluster, *layout.compressed(entry, bitmap))
            kind, host_offset, first, count = layout.run(entry, bitmap, (offset - start) // layout.unit_size)
        except BadEntry as error:
            raise CorruptImage(f"{self._where(cluster)}: L2 entry {entry:#018x}: {error}") from error
        end = start + (first + count) * layout.unit_size
        if first + count == layout.units:
            following = (table.run_ends[index] or self._find_run_end(table, index, kind)) - index - 1
            end += following * self._cluster_size
        start += first * layout.unit_size
        end = min(end, self._size)
        if kind is not ExtentKind.DATA:
            return Extent(start, end - start, kind)
        if host_offset == table.table_offset or self._is_metadata(host_offset):
            raise CorruptImage(
                f"{self._where(cluster)} is at host offset {host_offset:#x}, where the header or a table is"
            )
        return self._plain(start, end, cluster, host_offset + first * layout.unit_size, table.table_offset)

    def _find_run_end(self, table: L2Slice, index: int, kind: ExtentKind) -> int:
        """Return, and note, which cluster of a slice is the first that does not continue the run that ends `index`."""
        words, width = table.words, self._layout.words
        bitmap = self._layout.uniform_bitmap(kind)
        expected = words[index * width] & NOT_COPIED
        # What is stored goes on in the next host cluster; what is not stored has no place that could go on.
        step = self._cluster_size if expected & OFFSET_MASK else 0
        end = index + 1
        limit = min(index + MAX_RUN, len(table.run_ends))
        while end < limit and words[end * width] & NOT_COPIED == expected + step:
            if width == 2 and words[end * 2 + 1] != bitmap:
                break
            expected += step
            end += 1
        table.run_ends[index:end] = array("H", (end,)) * (end - index)
        return end

    def _plain(self, start: int, end: int, cluster: int, stored_at: int, table_offset: int) -> Extent:
        """Return a run of clusters stored as they are; only its part before the file's end or the next table."""
        at = bisect.bisect_right(self._limits, stored_at)
        limit = min(self._limits[at], self._source.size) if at < len(self._limits) else self._source.size
        if stored_at < table_offset:
            limit = min(limit, table_offset)
        if limit - stored_at < end - start:
            # A run is cut at the unit that goes too far, so that only the reads of that unit fail. Tables are aligned,
            # so it is only the end of the file that can lie within a unit.
            whole = max(limit - stored_at, 0) // self._layout.unit_size * self._layout.unit_size
            if whole == 0:
                needed = min(self._layout.unit_size, end - start)
                raise TruncatedImage(
                    f"{self._where(cluster)} at host offset {stored_at:#x} needs {needed} bytes, the file ends at "
                    f"{self._source.size:#x}: the file is incomplete"
                )
            end = start + whole
        return Extent(start, end - start, ExtentKind.DATA, Stored(self._source, stored_at, end - start))

    def _compressed(self, start: int, cluster: int, offset: int, length: int) -> Extent:
        if self._is_metadata(offset):
            raise CorruptImage(
                f"{self._where(cluster)} is compressed at host offset {offset:#x}, where the header or a table is"
            )
        if offset >= self._source.size:
            raise TruncatedImage(
                f"{self._where(cluster)} is compressed at host offset {offset:#x}, the file ends at "
                f"{self._source.size:#x}: the file is incomplete"
            )
        # The length is an upper bound, so the end of the file may well lie before it.
        available = min(length, self._source.size - offset)
        decode = functools.partial(self._decode, cluster, offset, available < length)
        end = min(start + self._cluster_size, self._size)
        return Extent(start, end - start, ExtentKind.DATA, Stored(self._source, offset, available, decode))

    def _decode(self, cluster: int, offset: int, is_cut: bool, record: Buffer) -> Buffer:
        try:
            return decompress(self._header.compression_type, record, self._cluster_size)
        except DamagedCluster as error:
            where = f"{self._where(cluster)}, compressed at host offset {offset:#x}"
            if is_cut:
                raise TruncatedImage(f"{where}: {error}; the file ends before its last sector does") from error
            raise CorruptImage(f"{where}: {error}") from error

    def _is_metadata(self, offset: int) -> bool:
        return any(start <= offset < end for start, end in self._metadata)

    def _where(self, cluster: int) -> str:
        return f"{self._name}: cluster {cluster}"
