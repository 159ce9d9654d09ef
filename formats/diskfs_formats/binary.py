"""From construct declarations and tables to typed values, with our errors.

construct is used for fixed-size headers only. Tables whose length comes from the file are read in bounded pages, so
that memory follows what is looked at and not what the file claims.
"""

import sys
import threading
from array import array
from collections import OrderedDict
from typing import Any, Literal

from construct import Construct, ConstructError

from diskfs_formats.errors import CorruptImage, TruncatedImage
from diskfs_formats.source import ByteSource

ENTRIES_PER_PAGE = 4096
"""Entries of a table that are read at once: one request fetches 16 KiB of a 32-bit table."""
PAGES_KEPT = 512
"""Pages a table keeps: at most 16 MiB of 64-bit entries."""


def parse_structure(
    structure: "Construct[Any, Any]", source: ByteSource, offset: int, title: str, size: int | None = None
) -> Any:
    """Read and parse a fixed-size structure; `title` names it in messages.

    Raises TruncatedImage if the source ends before it, CorruptImage if a constant differs from the specification.
    """
    size = structure.sizeof() if size is None else size
    if offset < 0 or offset + size > source.size:
        raise TruncatedImage(
            f"{source.name}: {title} at offset {offset:#x} needs {size} bytes, the file ends at {source.size:#x}: "
            "the file is incomplete"
        )
    return parse_bytes(structure, source.read_at(offset, size), source, offset, title)


def parse_bytes(structure: "Construct[Any, Any]", data: bytes, source: ByteSource, offset: int, title: str) -> Any:
    """Parse bytes that were read already; raises CorruptImage with the place."""
    try:
        return structure.parse(data)
    except ConstructError as error:
        detail = " ".join(str(error).split())
        raise CorruptImage(f"{source.name}: {title} at offset {offset:#x}: {detail}") from error


def is_power_of_two(value: int) -> bool:
    """Tell whether `value` is 1, 2, 4, ..."""
    return value > 0 and value & (value - 1) == 0


def align_up(value: int, to: int) -> int:
    """Return the smallest multiple of `to` that is at least `value`."""
    return -(-value // to) * to


class EntryTable:
    """A table of unsigned integers in a file (a BAT, a grain directory), read page by page and shared between threads.

    `bits` is 32 or 64. The caller has checked that the table lies inside the source.
    """

    def __init__(
        self,
        source: ByteSource,
        offset: int,
        count: int,
        *,
        bits: Literal[32, 64] = 32,
        byteorder: Literal["little", "big"] = "little",
        entries_per_page: int = ENTRIES_PER_PAGE,
    ) -> None:
        self.count = count
        self._source = source
        self._offset = offset
        self._width = bits // 8
        self._typecode = "I" if bits == 32 else "Q"
        self._swap = byteorder != sys.byteorder
        self._per_page = entries_per_page
        self._pages: OrderedDict[int, array[int]] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> int:
        page, at = divmod(index, self._per_page)
        return self.page(page)[at]

    def page(self, number: int) -> "array[int]":
        """Return page `number`; the last one may be short. Callers must not change it."""
        with self._lock:
            page = self._pages.get(number)
            if page is not None:
                self._pages.move_to_end(number)
                return page
        first = number * self._per_page
        count = min(self._per_page, self.count - first)
        if number < 0 or count <= 0:
            raise IndexError(number)
        page = read_entries(self._source, self._offset + first * self._width, count, self._typecode, swap=self._swap)
        with self._lock:
            self._pages[number] = page
            while len(self._pages) > PAGES_KEPT:
                self._pages.popitem(last=False)
        return page

    def is_ready(self, index: int) -> bool:
        """Tell whether entry `index` can be looked up without reading the source."""
        return index // self._per_page in self._pages

    @property
    def entries_per_page(self) -> int:
        """Entries of a full page."""
        return self._per_page


def read_entries(source: ByteSource, offset: int, count: int, typecode: str, *, swap: bool) -> "array[int]":
    """Read `count` unsigned integers ('I' 32-bit, 'Q' 64-bit) in one go; raises TruncatedImage past the end."""
    entries = array(typecode)
    size = count * entries.itemsize
    if offset < 0 or offset + size > source.size:
        raise TruncatedImage(
            f"{source.name}: table at offset {offset:#x} needs {size} bytes, the file ends at {source.size:#x}: "
            "the file is incomplete"
        )
    entries.frombytes(source.read_at(offset, size))
    if swap:
        entries.byteswap()
    return entries
