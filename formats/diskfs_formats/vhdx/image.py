"""A VHDX as a disk: payload blocks by the BAT, sectors of partially present ones by the sector bitmap.

Specification: [MS-VHDX] 8.0, sections 2.4 and 2.5.
"""

import bisect
import threading
from collections import OrderedDict
from collections.abc import Iterable
from uuid import UUID

from diskfs_formats.driver import AbsentParent, ImageInfo
from diskfs_formats.errors import CorruptImage, TruncatedImage
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.findings import Finding
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import ByteSource
from diskfs_formats.vhdx.bat import (
    KIND_OF_STATE,
    SECTOR_BITMAP_SIZE,
    BlockAllocationTable,
    State,
    file_offset_of,
    state_of,
)
from diskfs_formats.vhdx.headers import Header
from diskfs_formats.vhdx.metadata import Metadata
from diskfs_formats.vhdx.regions import Regions

BITMAP_BYTES_KEPT = 4 << 20
"""Bytes of sector bitmaps kept per disk: those of 16 GiB of 512-byte sectors."""
BITMAP_WINDOW = 4096
"""Bytes of a sector bitmap in which the end of a run is looked for: 16 MiB of 512-byte sectors."""


class VhdxImage(MappedImage):
    """A fixed, dynamic or differencing VHDX. `file` is the source with its log replayed.

    A bad BAT entry or a block past the end of the file fails the reads that need it.
    """

    def __init__(
        self,
        file: ByteSource,
        header: Header,
        regions: Regions,
        metadata: Metadata,
        *,
        findings: Iterable[Finding] = (),
        parent: "VhdxImage | AbsentParent | None" = None,
    ) -> None:
        info = ImageInfo(
            format="vhdx",
            variant=metadata.variant,
            virtual_size=metadata.virtual_disk_size,
            sector_size=metadata.logical_sector_size,
            unit_size=metadata.block_size,
            has_parent=metadata.has_parent,
            findings=tuple(findings),
        )
        super().__init__(file.name, info, [file], parent)
        self._file = file
        self._data_write_guid = header.data_write_guid
        self._reserved = regions.reserved
        self._reserved_starts = [region.offset for region in regions.reserved]
        self._bat = BlockAllocationTable(file, regions.bat, metadata)
        self._block_size = metadata.block_size
        self._sector_size = metadata.logical_sector_size
        self._bitmap_length = metadata.block_size // metadata.logical_sector_size // 8
        self._bitmaps: OrderedDict[int, bytes] = OrderedDict()
        self._bitmaps_kept = max(16, BITMAP_BYTES_KEPT // self._bitmap_length)
        self._lock = threading.Lock()

    @property
    def data_write_guid(self) -> UUID:
        """The identity of the content, by which a child knows this disk as its parent."""
        return self._data_write_guid

    @property
    def bat(self) -> BlockAllocationTable:
        """The BAT, for checks."""
        return self._bat

    def lookup(self, offset: int, /) -> Extent:
        block = offset // self._block_size
        entry = self._bat[self._bat.index_of_payload(block)]
        if state_of(entry) is State.PARTIALLY_PRESENT:
            return self._sectors(offset, block, entry, self._bitmap(block))
        return self._blocks(offset, block, entry)

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        block = offset // self._block_size
        index = self._bat.index_of_payload(block)
        if not self._bat.is_ready(index):
            return None
        entry = self._bat[index]
        if state_of(entry) is not State.PARTIALLY_PRESENT:
            return self._blocks(offset, block, entry)
        bitmap = self._bitmaps.get(block)
        return None if bitmap is None else self._sectors(offset, block, entry, bitmap)

    def _blocks(self, offset: int, block: int, entry: int) -> Extent:
        """Return the run of whole blocks that begins with `block`."""
        state = state_of(entry)
        kind = KIND_OF_STATE[state]
        if kind is None:
            raise CorruptImage(f"{self._where(block)}: its state is {state.value}, which is reserved")
        count = self._bat.run_length(block)
        start = block * self._block_size
        if kind is not ExtentKind.DATA:
            return Extent(start, min(start + count * self._block_size, self._size) - start, kind)
        stored_at = file_offset_of(entry)
        free = self._free_length(stored_at, self._block_size, block, "it")
        end = start + min(count, free // self._block_size) * self._block_size
        return self._stored(offset, block, start, min(end, self._size), stored_at)

    def _sectors(self, offset: int, block: int, entry: int, bitmap: bytes) -> Extent:
        """Return the run of sectors of a partially present block that begins with the sector at `offset`."""
        stored_at = file_offset_of(entry)
        self._free_length(stored_at, self._block_size, block, "it")
        sector = offset % self._block_size // self._sector_size
        is_present, count = run_of_bits(bitmap, sector)
        start = block * self._block_size + sector * self._sector_size
        end = min(start + count * self._sector_size, self._size)
        if not is_present:
            return Extent(start, end - start, ExtentKind.HOLE)
        return self._stored(offset, block, start, end, stored_at + sector * self._sector_size)

    def _stored(self, offset: int, block: int, start: int, end: int, stored_at: int) -> Extent:
        """Return a DATA extent that holds `offset`, cut where the file ends."""
        stored_sector = stored_at + (offset - start) // self._sector_size * self._sector_size
        if stored_sector + self._sector_size > self._file.size:
            raise TruncatedImage(
                f"{self._where(block)}: byte {offset:#x} of the disk is stored at offset {stored_sector:#x}, the file "
                f"ends at {self._file.size:#x}: the file is incomplete"
            )
        available = (self._file.size - stored_at) // self._sector_size * self._sector_size
        end = min(end, start + available)
        return Extent(start, end - start, ExtentKind.DATA, Stored(self._file, stored_at, end - start))

    def _bitmap(self, block: int) -> bytes:
        """Return the part of the sector bitmap that describes one block."""
        with self._lock:
            bitmap = self._bitmaps.get(block)
            if bitmap is not None:
                self._bitmaps.move_to_end(block)
                return bitmap
        bitmap = self._read_bitmap(block)
        with self._lock:
            self._bitmaps[block] = bitmap
            while len(self._bitmaps) > self._bitmaps_kept:
                self._bitmaps.popitem(last=False)
        return bitmap

    def _read_bitmap(self, block: int) -> bytes:
        where = self._where(block)
        if not self._info.has_parent:
            raise CorruptImage(f"{where}: it is partially present, which needs a parent, and the disk has none")
        index = self._bat.index_of_bitmap(block)
        entry = self._bat[index] if index < self._bat.count else 0
        if state_of(entry) is not State.FULLY_PRESENT:
            raise CorruptImage(
                f"{where}: it is partially present, but the state of its sector bitmap (BAT entry {index}) is "
                f"{state_of(entry).value}, expected {State.FULLY_PRESENT.value}"
            )
        bitmap_at = file_offset_of(entry)
        self._free_length(bitmap_at, SECTOR_BITMAP_SIZE, block, f"its sector bitmap (BAT entry {index})")
        start = bitmap_at + block % self._bat.chunk_ratio * self._bitmap_length
        if start + self._bitmap_length > self._file.size:
            raise TruncatedImage(
                f"{where}: its sector bitmap at offset {start:#x} needs {self._bitmap_length} bytes, the file ends at "
                f"{self._file.size:#x}: the file is incomplete"
            )
        return self._file.read_at(start, self._bitmap_length)

    def _free_length(self, offset: int, length: int, block: int, what: str) -> int:
        """Return the bytes from `offset` to the next region; raises CorruptImage unless `length` of them are free.

        The message says that `what` of `block` is in the way.
        """
        index = bisect.bisect_right(self._reserved_starts, offset)
        region = self._reserved[index - 1]
        if region.end <= offset:
            if index == len(self._reserved):
                return max(length, self._file.size - offset)
            region = self._reserved[index]
            if region.offset - offset >= length:
                return region.offset - offset
        raise CorruptImage(f"{self._where(block)}: {what} is at offset {offset:#x}, where the {region.title} is")

    def _where(self, block: int) -> str:
        return f"{self._name}: payload block {block} (BAT entry {self._bat.index_of_payload(block)})"


def run_of_bits(bitmap: bytes, first: int) -> tuple[bool, int]:
    """Return bit `first` of a sector bitmap and how many bits from there on are equal, as far as BITMAP_WINDOW shows.

    Bit n is bit n % 8 of byte n // 8, the lowest first.
    """
    byte, bit = divmod(first, 8)
    window = bitmap[byte : byte + BITMAP_WINDOW]
    bits = int.from_bytes(window, "little") >> bit
    count = len(window) * 8 - bit
    is_set = bool(bits & 1)
    if is_set:
        bits ^= (1 << count) - 1
    return is_set, (bits & -bits).bit_length() - 1 if bits else count
