"""The BAT: the state and place of each payload block and of each sector bitmap block.

Specification: [MS-VHDX] 8.0, section 2.5. After the entries of each chunk's payload blocks comes one for the chunk's
sector bitmap block, on disks without a parent too. A 64 TiB disk has a BAT of 512 MiB, so it is read page by page.
"""

import enum
import threading
from array import array
from collections import OrderedDict
from typing import Final

from diskfs_formats.binary import ENTRIES_PER_PAGE, PAGES_KEPT, EntryTable
from diskfs_formats.errors import CorruptImage, TruncatedImage
from diskfs_formats.extents import ExtentKind
from diskfs_formats.source import ByteSource
from diskfs_formats.vhdx.metadata import Metadata
from diskfs_formats.vhdx.regions import Region
from diskfs_formats.vhdx.structures import MIB

SECTORS_PER_BITMAP = 1 << 23
"""Logical sectors that one sector bitmap block describes: the bits of 1 MiB."""
SECTOR_BITMAP_SIZE = MIB
_ENTRY_SIZE = 8
_STATE_BITS = 0b111
_OFFSET_BITS = ~0xFFFFF
_ZEROES = bytes(ENTRIES_PER_PAGE * _ENTRY_SIZE)


class State(enum.IntEnum):
    """What a BAT entry says of its block. A sector bitmap block is NOT_PRESENT or FULLY_PRESENT (6)."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    RESERVED = 4
    UNMAPPED_0_95 = 5  # the number that UNMAPPED had in draft 0.95 of the specification
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


KIND_OF_STATE: Final[tuple[ExtentKind | None, ...]] = (
    ExtentKind.HOLE,  # NOT_PRESENT: the parent's content, zeros without one
    ExtentKind.ZERO,  # UNDEFINED: any content will do; what the block held before is nobody's business
    ExtentKind.ZERO,
    ExtentKind.ZERO,  # UNMAPPED: zeros or what was there before
    None,
    ExtentKind.ZERO,  # UNMAPPED_0_95
    ExtentKind.DATA,
    None,  # PARTIALLY_PRESENT: the sector bitmap knows
)
"""What a payload block is as a whole, None where its entry alone does not say."""
_STATES = tuple(State)  # calling an enum takes five times as long, and this is asked for every entry


def state_of(entry: int) -> State:
    """Return the state in a BAT entry."""
    return _STATES[entry & _STATE_BITS]


def file_offset_of(entry: int) -> int:
    """Return the file offset in a BAT entry, in bytes."""
    return entry & _OFFSET_BITS


def _used(entries: "array[int]") -> int:
    """Return how many entries there are up to the last that is not zero: by halves, since comparing memory is fast."""
    data = entries.tobytes()
    low, high = 0, len(entries)
    while low < high:
        middle = (low + high) // 2
        rest = data[middle * _ENTRY_SIZE :]
        if rest == _ZEROES[: len(rest)]:
            high = middle
        else:
            low = middle + 1
    return low


class BlockAllocationTable:
    """The BAT of one disk. Safe to share between threads; reads what it is asked for, and keeps a bounded part."""

    def __init__(self, file: ByteSource, region: Region, metadata: Metadata) -> None:
        """Check that the table fits its region and the file; raises ImageError."""
        self.chunk_ratio = SECTORS_PER_BITMAP * metadata.logical_sector_size // metadata.block_size
        payload_blocks = -(-metadata.virtual_disk_size // metadata.block_size)
        chunks = -(-payload_blocks // self.chunk_ratio)
        needed = self.index_of_payload(payload_blocks - 1) + 1
        # A differencing disk needs its last sector bitmap's entry too, but only where that is partially present.
        count = min(chunks * (self.chunk_ratio + 1), region.length // _ENTRY_SIZE) if metadata.has_parent else needed
        where = f"{file.name}: BAT at offset {region.offset:#x}"
        if region.length < needed * _ENTRY_SIZE:
            raise CorruptImage(
                f"{where}: its region has {region.length} bytes, a disk of {metadata.virtual_disk_size} bytes in "
                f"blocks of {metadata.block_size} needs {needed * _ENTRY_SIZE}"
            )
        if region.offset + count * _ENTRY_SIZE > file.size:
            raise TruncatedImage(
                f"{where}: it needs {count * _ENTRY_SIZE} bytes, the file ends at {file.size:#x}: the file is "
                "incomplete"
            )
        self.count = count
        self._block_size = metadata.block_size
        self._entries = EntryTable(file, region.offset, count, bits=64)
        self._run_ends: OrderedDict[int, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def index_of_payload(self, block: int) -> int:
        """Return the index of a payload block's entry."""
        return block + block // self.chunk_ratio

    def index_of_bitmap(self, block: int) -> int:
        """Return the index of the entry for the sector bitmap of a payload block's chunk."""
        return block // self.chunk_ratio * (self.chunk_ratio + 1) + self.chunk_ratio

    def is_bitmap(self, index: int) -> bool:
        """Tell whether the entry is a sector bitmap block's."""
        return index % (self.chunk_ratio + 1) == self.chunk_ratio

    def __getitem__(self, index: int) -> int:
        return self._entries[index]

    def is_ready(self, index: int) -> bool:
        """Tell whether the entry, and the run it belongs to, are known without reading the file."""
        return self._entries.is_ready(index)

    def run_length(self, block: int) -> int:
        """Return how many payload blocks from `block` on are one run: of one kind and, if stored, one after another.

        A run ends with the page of the table, so that finding its end reads nothing more.
        """
        index = self.index_of_payload(block)
        page, at = divmod(index, self._entries.entries_per_page)
        end = page * self._entries.entries_per_page + self._runs(page)[at]
        return end - end // (self.chunk_ratio + 1) - block

    def page(self, number: int) -> "array[int]":
        """Return a page of entries; the last one may be short. Callers must not change it."""
        return self._entries.page(number)

    @property
    def entries_per_page(self) -> int:
        """Entries of a full page."""
        return self._entries.entries_per_page

    def _runs(self, number: int) -> "array[int]":
        with self._lock:
            run_ends = self._run_ends.get(number)
            if run_ends is not None:
                self._run_ends.move_to_end(number)
                return run_ends
        run_ends = self._found_runs(number)
        with self._lock:
            self._run_ends[number] = run_ends
            while len(self._run_ends) > PAGES_KEPT:
                self._run_ends.popitem(last=False)
        return run_ends

    def _found_runs(self, number: int) -> "array[int]":
        """Return, for each entry of a page, where in the page the run that begins with it ends."""
        entries = self._entries.page(number)
        count = len(entries)
        # A table for a disk that may grow is mostly zero behind its last block: that is one HOLE.
        used = _used(entries)
        run_ends = array("H", range(1, used + 1)) + array("H", [count]) * (count - used)
        first = number * self._entries.entries_per_page
        period = self.chunk_ratio + 1
        kind_after, entry_after, end_after = (ExtentKind.HOLE, 0, count) if used < count else (None, 0, 0)
        for index in range(used - 1, -1, -1):
            if (first + index) % period == self.chunk_ratio:
                continue
            entry = entries[index]
            kind = KIND_OF_STATE[entry & _STATE_BITS]
            # Where the kind is DATA both states are FULLY_PRESENT, so the entries differ as their offsets do.
            follows = kind is not ExtentKind.DATA or entry_after - entry == self._block_size
            if kind is kind_after and kind is not None and follows:
                run_ends[index] = end_after
            kind_after, entry_after, end_after = kind, entry, run_ends[index]
        return run_ends
