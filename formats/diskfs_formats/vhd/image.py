"""The three kinds of VHD as disks.

Specification: Microsoft, Virtual Hard Disk Image Format Specification 1.0 (2006), "Block Allocation Table and Data
Blocks". BAT entries are 32-bit sector numbers; a block is its sector bitmap, most significant bit first, and its data.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator

from diskfs_formats.binary import EntryTable
from diskfs_formats.driver import AbsentParent, ImageInfo
from diskfs_formats.errors import CorruptImage, TruncatedImage
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.mapped import MappedImage
from diskfs_formats.reading import ready_reader
from diskfs_formats.source import Buffer, ByteSource, SparseSource, require_range
from diskfs_formats.vhd.footer import FOOTER_SIZE, SECTOR, Footer
from diskfs_formats.vhd.header import HEADER_SIZE, DynamicHeader

UNUSED = 0xFFFFFFFF
"""The BAT entry of a block that is not in the file."""
BITMAPS_KEPT = 4 << 20
"""Bytes of sector bitmaps kept per disk: 8192 bitmaps of 2 MiB blocks map 16 GiB."""
_BITMAP_WINDOW = 512
"""Bytes of a bitmap that are looked at for the end of a run: those of a 2 MiB block."""


class VhdImage(MappedImage):
    """What every VHD has: a footer, by whose unique id a child knows its parent."""

    def __init__(
        self, source: ByteSource, footer: Footer, info: ImageInfo, parent: "VhdImage | AbsentParent | None" = None
    ) -> None:
        super().__init__(source.name, info, [source], parent)
        self._source = source
        self._footer = footer

    @property
    def footer(self) -> Footer:
        """The footer that the disk was opened by."""
        return self._footer


class FixedImage(VhdImage):
    """A fixed disk: its bytes, then the footer. The file is long enough, as the caller has checked."""

    def __init__(self, source: ByteSource, footer: Footer, info: ImageInfo) -> None:
        super().__init__(source, footer, info)
        self._whole = Extent(0, self._size, ExtentKind.DATA, Stored(source, 0, self._size))
        self._source_if_ready = ready_reader(source)

    def lookup(self, offset: int, /) -> Extent:  # noqa: ARG002 - it is all one
        return self._whole

    def lookup_if_ready(self, offset: int, /) -> Extent | None:  # noqa: ARG002 - the same
        return self._whole

    # The map of a fixed disk decides nothing, so the two hottest calls go past it.
    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return self._source.read_at(offset, length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        return self._source_if_ready(offset, length)

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        """Yield the map; where the file lies on a file system with holes, they are ZERO."""
        for extent in super().extents(offset, length):
            if not isinstance(self._source, SparseSource):
                yield extent
                continue
            for start, count, is_data in self._source.data_ranges(extent.offset, extent.length):
                if is_data:
                    yield Extent(start, count, ExtentKind.DATA, Stored(self._source, start, count))
                else:
                    yield Extent(start, count, ExtentKind.ZERO)


class DynamicImage(VhdImage):
    """A dynamic disk: blocks that are in the file whole or not at all.

    Its sector bitmaps are not looked at: a sector marked as never written is read where it would be, as QEMU does,
    while VirtualBox shows zeros. The two differ in damaged files alone, and `verify` names those blocks.
    """

    def __init__(
        self,
        source: ByteSource,
        footer: Footer,
        header: DynamicHeader,
        info: ImageInfo,
        parent: VhdImage | AbsentParent | None = None,
    ) -> None:
        super().__init__(source, footer, info, parent)
        self._block_size = header.block_size
        self._bitmap_size = header.bitmap_size
        self._block_count = -(-self._size // header.block_size)
        self._table = EntryTable(source, header.table_offset, self._block_count, byteorder="big")
        self._metadata = (
            (0, FOOTER_SIZE, "copy of the footer"),
            (header.offset, header.offset + HEADER_SIZE, "dynamic header"),
            (header.table_offset, header.table_offset + header.table_size, "BAT"),
            (footer.offset, footer.offset + footer.size, "footer"),
        )

    @property
    def block_size(self) -> int:
        """Bytes of a block's data."""
        return self._block_size

    @property
    def bitmap_size(self) -> int:
        """Bytes of the sector bitmap before it."""
        return self._bitmap_size

    def lookup(self, offset: int, /) -> Extent:
        number = offset // self._block_size
        entry = self._table[number]
        if entry == UNUSED:
            return self._unused_blocks(number)
        return self._extent(offset, number, entry)

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        number = offset // self._block_size
        if not self._table.is_ready(number):
            return None
        entry = self._table[number]
        if entry == UNUSED:
            return self._unused_blocks(number)
        return self._extent_if_ready(offset, number, entry)

    def block_offset(self, number: int) -> int | None:
        """Return where block `number` begins in the file, as its BAT entry has it, unchecked; None if it is unused."""
        entry = self._table[number]
        return None if entry == UNUSED else entry * SECTOR

    def allocated_blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the number and the unchecked offset of every block that has a BAT entry."""
        per_page = self._table.entries_per_page
        for first in range(0, self._block_count, per_page):
            for number, entry in enumerate(self._table.page(first // per_page), first):
                if entry != UNUSED:
                    yield number, entry * SECTOR

    def place(self, number: int, entry: int) -> int:
        """Return where block `number` begins in the file, after checking that all of it that is needed lies inside.

        Raises TruncatedImage past the end of the file, CorruptImage where something else is.
        """
        offset = entry * SECTOR
        end = offset + self._bitmap_size + min(self._block_size, self._size - number * self._block_size)
        if end > self._source.size:
            raise TruncatedImage(
                f"{self._name}: block {number}: its BAT entry is sector {entry:#x}; {end - offset} bytes from offset "
                f"{offset:#x} are past the end of the file at {self._source.size:#x}: the file is incomplete or its "
                "BAT is damaged"
            )
        for start, stop, title in self._metadata:
            if offset < stop and end > start:
                raise CorruptImage(
                    f"{self._name}: block {number}: its BAT entry is sector {entry:#x}; the block would lie over the "
                    f"{title} at offset {start:#x}"
                )
        return offset

    def read_bitmap(self, number: int, offset: int) -> "SectorBitmap":
        """Read the sector bitmap of block `number`, which begins at `offset`."""
        sectors = self._block_size // SECTOR
        first = number * self._block_size
        inside = min(sectors, (self._size - first) // SECTOR)
        return SectorBitmap(self._source.read_at(offset, -(-sectors // 8)), inside)

    def _extent(self, offset: int, number: int, entry: int) -> Extent:  # noqa: ARG002 - a differencing disk needs it
        start = number * self._block_size
        length = min(self._block_size, self._size - start)
        stored = Stored(self._source, self.place(number, entry) + self._bitmap_size, length)
        return Extent(start, length, ExtentKind.DATA, stored)

    def _extent_if_ready(self, offset: int, number: int, entry: int) -> Extent | None:
        return self._extent(offset, number, entry)

    def _unused_blocks(self, number: int) -> Extent:
        """Return the hole from block `number` on, as far as the BAT's page shows it."""
        page, at = divmod(number, self._table.entries_per_page)
        rest = memoryview(self._table.page(page))[at:].tobytes()
        # Every byte of an unused entry is FF, whatever the byte order; bytes are compared faster than entries.
        count = (len(rest) - len(rest.lstrip(b"\xff"))) // 4
        start = number * self._block_size
        stop = min(start + count * self._block_size, self._size)
        return Extent(start, stop - start, ExtentKind.HOLE)


class DifferencingImage(DynamicImage):
    """A differencing disk: the bitmap of a block says which sectors are in this file; the others are the parent's."""

    def __init__(
        self,
        source: ByteSource,
        footer: Footer,
        header: DynamicHeader,
        info: ImageInfo,
        parent: VhdImage | AbsentParent | None,
    ) -> None:
        super().__init__(source, footer, header, info, parent)
        self._bitmaps: OrderedDict[int, SectorBitmap] = OrderedDict()
        self._bitmaps_kept = BITMAPS_KEPT // header.bitmap_size
        self._lock = threading.Lock()

    def _extent(self, offset: int, number: int, entry: int) -> Extent:
        place = self.place(number, entry)
        return self._run(offset, number, place, self._bitmap(number, place))

    def _extent_if_ready(self, offset: int, number: int, entry: int) -> Extent | None:
        bitmap = self._bitmaps.get(number)
        return None if bitmap is None else self._run(offset, number, self.place(number, entry), bitmap)

    def _run(self, offset: int, number: int, place: int, bitmap: "SectorBitmap") -> Extent:
        """Return the sectors from the one at `offset` on that come from the same file."""
        block_start = number * self._block_size
        sector = (offset - block_start) // SECTOR
        is_here, end = bitmap.run(sector)
        start, length = block_start + sector * SECTOR, (end - sector) * SECTOR
        if not is_here:
            return Extent(start, length, ExtentKind.HOLE)
        stored = Stored(self._source, place + self._bitmap_size + sector * SECTOR, length)
        return Extent(start, length, ExtentKind.DATA, stored)

    def _bitmap(self, number: int, place: int) -> "SectorBitmap":
        with self._lock:
            bitmap = self._bitmaps.get(number)
            if bitmap is not None:
                self._bitmaps.move_to_end(number)
                return bitmap
        bitmap = self.read_bitmap(number, place)
        with self._lock:
            self._bitmaps[number] = bitmap
            while len(self._bitmaps) > self._bitmaps_kept:
                self._bitmaps.popitem(last=False)
        return bitmap


class SectorBitmap:
    """One bit a sector, the most significant bit of a byte first."""

    __slots__ = ("_data", "count")

    def __init__(self, data: bytes, count: int) -> None:
        """Take the first `count` bits of `data`."""
        self._data = data
        self.count = count

    def run(self, sector: int) -> tuple[bool, int]:
        """Return the bit of `sector`, and the first sector after it whose bit differs or was not looked at."""
        first = sector // 8
        window = self._data[first : first + _BITMAP_WINDOW]
        end = (first + len(window)) * 8
        stop = min(end, self.count)
        ones = (1 << stop - sector) - 1
        bits = int.from_bytes(window, "big") >> end - stop & ones
        is_set = bool(bits >> stop - sector - 1)
        different = bits ^ ones if is_set else bits
        return is_set, stop - different.bit_length()
