"""What all sparse extents share: a grain directory, grain tables read on demand and kept, runs of stored grains."""

import bisect
import threading
from abc import abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diskfs_formats.binary import EntryTable
from diskfs_formats.driver import AbsentParent, ImageInfo
from diskfs_formats.errors import CorruptImage, TruncatedImage
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.source import ByteSource
from diskfs_formats.vmdk.image import VmdkImage

TABLES_KEPT = 12 << 20
"""Memory of the grain tables kept per disk, all its extents together: 2200 tables of 512 entries map 70 GiB of 64 KiB
grains."""
MIN_TABLES_KEPT = 16
_TABLE_OVERHEAD = 512
"""Memory of a table, measured, besides that of its entries."""
UNALLOCATED = 0
"""The directory entry of a table, and the table entry of a grain, that are not there."""


@dataclass(frozen=True, slots=True)
class TableShape:
    """How the tables of an extent are cut: `grains` in all, `entries` of `entry_size` bytes in each table."""

    grains: int
    entries: int
    entry_size: int

    def length(self, number: int) -> int:
        """Return how many entries of grain table `number` lie within the capacity."""
        return min(self.entries, self.grains - number * self.entries)


class GrainTable:
    """The entries of one table, and for each the end of the run that begins there.

    `ordered` are the places of compressed grains, to know where the record after one begins.
    """

    __slots__ = ("entries", "ordered", "run_ends")

    def __init__(self, entries: "array[int]", run_ends: "array[int]", ordered: "array[int]") -> None:
        self.entries = entries
        self.run_ends = run_ends
        self.ordered = ordered

    @property
    def cost(self) -> int:
        """Bytes of memory, about."""
        parts = (self.entries, self.run_ends, self.ordered)
        return _TABLE_OVERHEAD + sum(len(part) * part.itemsize for part in parts)

    def following(self, entry: int) -> int | None:
        """Return the lowest entry above `entry`: the next record, if this table knows one."""
        at = bisect.bisect_right(self.ordered, entry)
        return self.ordered[at] if at < len(self.ordered) else None


class TableCache:
    """The grain tables of one disk that were used last. Shared between threads, and between the disk's extents."""

    def __init__(self) -> None:
        self._tables: OrderedDict[tuple[object, int], GrainTable] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def peek(self, key: tuple[object, int]) -> GrainTable | None:
        """Return a table that is kept, without noting that it was used: the fast way."""
        return self._tables.get(key)

    def get(self, key: tuple[object, int]) -> GrainTable | None:
        """Return a table that is kept, and keep it longer."""
        with self._lock:
            table = self._tables.get(key)
            if table is not None:
                self._tables.move_to_end(key)
            return table

    def put(self, key: tuple[object, int], table: GrainTable) -> None:
        """Keep a table, at the cost of those not used for longest."""
        with self._lock:
            old = self._tables.pop(key, None)
            self._tables[key] = table
            self._size += table.cost - (old.cost if old is not None else 0)
            while self._size > TABLES_KEPT and len(self._tables) > MIN_TABLES_KEPT:
                self._size -= self._tables.popitem(last=False)[1].cost


class GrainExtent(VmdkImage):
    """A sparse extent as a disk of its own, also where it is one of several.

    `metadata` are the byte ranges in which no grain and no table can lie. The caller has checked that the directory
    lies inside the file; a bad table or grain fails the reads that need it.
    """

    def __init__(
        self,
        source: ByteSource,
        info: ImageInfo,
        directory: EntryTable,
        shape: TableShape,
        metadata: Sequence[tuple[int, int]],
        *,
        tables: TableCache | None = None,
        parent: VmdkImage | AbsentParent | None = None,
        cid: int | None = None,
    ) -> None:
        super().__init__(source.name, info, [source], parent=parent, cid=cid)
        self._source = source
        self._grain_size = info.unit_size
        self._shape = shape
        self._table_entries = shape.entries
        self._table_span = shape.entries * info.unit_size
        self._metadata = [(start, end) for start, end in metadata if start < min(end, source.size)]
        self._limits = sorted([*(start for start, _ in self._metadata), source.size])
        self._directory = directory
        self._tables = tables or TableCache()

    @abstractmethod
    def read_table(self, number: int, entry: int) -> GrainTable:
        """Read grain table `number`, whose directory entry is `entry`; raises CorruptImage for a bad entry."""

    @abstractmethod
    def table_offset(self, number: int, entry: int) -> int:
        """Return where a grain table lies in the file; raises CorruptImage for a bad entry."""

    @abstractmethod
    def stored_grains(self, number: int, table: GrainTable) -> Iterator[tuple[int, int]]:
        """Yield number and file offset of each grain of a table that is stored as it is, also past the end of the file,
        but not over a header or a directory.
        """

    @abstractmethod
    def _extent(self, offset: int, number: int, table: GrainTable) -> Extent:
        """Return the extent that holds byte `offset`, which grain table `number` maps."""

    def lookup(self, offset: int, /) -> Extent:
        number = offset // self._table_span
        entry = self._directory[number]
        if entry == UNALLOCATED:
            return self._unallocated_tables(number)
        return self._extent(offset, number, self.table(number, entry))

    def lookups(self, offset: int, end: int, /) -> Iterator[Extent]:
        while offset < end:
            number = offset // self._table_span
            entry = self._directory[number]
            if entry == UNALLOCATED:
                extent = self._unallocated_tables(number)
                yield extent
                offset = extent.end
                continue
            table = self.table(number, entry)
            stop = min(end, (number + 1) * self._table_span)
            while offset < stop:
                extent = self._extent(offset, number, table)
                yield extent
                offset = extent.end

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        number = offset // self._table_span
        table = self._tables.peek((self, number))
        if table is not None:
            return self._extent(offset, number, table)
        if self._directory.is_ready(number) and self._directory[number] == UNALLOCATED:
            return self._unallocated_tables(number)
        return None

    @property
    def source(self) -> ByteSource:
        """The extent's file."""
        return self._source

    def table_length(self, number: int) -> int:
        """Return how many bytes of grain table `number` have a meaning."""
        return self._shape.length(number) * self._shape.entry_size

    def allocated_tables(self) -> Iterator[tuple[int, int]]:
        """Yield number and directory entry of each grain table that there is."""
        per_page = self._directory.entries_per_page
        for first in range(0, self._directory.count, per_page):
            for number, entry in enumerate(self._directory.page(first // per_page), first):
                if entry != UNALLOCATED:
                    yield number, entry

    def table(self, number: int, entry: int) -> GrainTable:
        """Return grain table `number`, kept or read; raises what `read_table` raises."""
        key = (self, number)
        table = self._tables.get(key)
        if table is None:
            table = self.read_table(number, entry)
            self._tables.put(key, table)
        return table

    def _unallocated_tables(self, number: int) -> Extent:
        """Return the hole of the tables that do not exist, as far as the directory's page shows it."""
        per_page = self._directory.entries_per_page
        page, at = divmod(number, per_page)
        entries = self._directory.page(page)
        end = at + 1
        while end < len(entries) and entries[end] == UNALLOCATED:
            end += 1
        start = number * self._table_span
        stop = min((page * per_page + end) * self._table_span, self._size)
        return Extent(start, stop - start, ExtentKind.HOLE)

    def _run(self, offset: int, number: int, table: GrainTable) -> tuple[int, int, int]:
        """Return the number of the grain that holds `offset`, and start and end of the run from it on."""
        index = offset % self._table_span // self._grain_size
        first = number * self._table_entries + index
        start = first * self._grain_size
        return first, start, min(start + (table.run_ends[index] - index) * self._grain_size, self._size)

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

    def _is_metadata(self, offset: int, length: int = 1) -> bool:
        # A loop, not any(): it is asked for every grain that is read.
        for start, end in self._metadata:  # noqa: SIM110
            if start < offset + length and offset < end:
                return True
        return False
