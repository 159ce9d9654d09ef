"""The cells of a hive: where everything but its base block lies, each with its length before it.

A budget of cells and list elements bounds all work on one hive, because lists of a hostile one may share each other
and name billions of keys in a few kilobytes.
"""

import struct
from collections import OrderedDict
from collections.abc import Mapping

from diskfs.guest.errors import GuestError
from diskfs_formats.source import ByteSource

BASE_BLOCK_SIZE = 4096
PAGE_SIZE = 4096
NO_CELL = 0xFFFFFFFF
MAX_CELL = 1 << 20
"""Bytes of one cell that are read: the largest list that Windows writes has 4 KiB, the largest piece of data 16 KiB."""
MAX_STEPS = 200_000
"""Cells and list elements that are looked at in one hive: several times what all rules need of a real one."""
BYTES_A_STEP = 1024
"""Long cells cost more: values may share their data."""
WINDOW_SIZE = 64 << 10
MAX_WINDOWS = 256
"""Windows of a hive kept in memory: 16 MiB."""


class Cells:
    """The cells of one hive. Not for several threads."""

    def __init__(self, source: ByteSource, length: int, pages: Mapping[int, bytes], *, big_data: bool) -> None:
        """Read cells of the `length` bytes of hive bins; `pages`, by their offset there, hide what the file has.

        `big_data`: long values are cut into segments, as version 1.4 and later do it.
        """
        self.name = source.name
        self.big_data = big_data
        self._source = source
        self._length = length
        self._pages = pages
        self._windows: OrderedDict[int, bytes] = OrderedDict()
        self._steps = 0

    def spend(self, steps: int = 1) -> None:
        """Take from the budget; raises GuestError when it is used up."""
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise GuestError(
                f"{self.name}: over {MAX_STEPS} keys, values and list elements were looked at; the hive is damaged, "
                "or made to keep its reader busy"
            )

    def read(self, offset: int, what: str, *, limit: int = MAX_CELL) -> bytes:
        """Return the content of the cell at `offset`, at most `limit` bytes of it; `what` is for messages."""
        self.spend()
        if offset % 8 or not 0 <= offset <= self._length - 8:
            raise self.damaged(offset, f"{what} is said to be here, outside the hive's {self._length} bytes")
        (size,) = struct.unpack("<i", self._bytes(offset, 4))
        if size >= 0:
            raise self.damaged(offset, f"{what} is in a free cell (size {size}); expected one in use")
        if -size > self._length - offset or size > -8:
            raise self.damaged(offset, f"the cell of {what} has {-size} bytes; the hive ends after {self._length}")
        length = min(-size - 4, limit)
        self.spend(length // BYTES_A_STEP)
        return self._bytes(offset + 4, length)

    def damaged(self, offset: int, what: str) -> GuestError:
        """Return the error for the cell at `offset`."""
        return GuestError(f"{self.name}: offset {BASE_BLOCK_SIZE + offset:#x}: {what}")

    def _bytes(self, offset: int, length: int) -> bytes:
        """Return bytes of the hive bins; the caller has checked the range."""
        pieces = []
        while length:
            start = offset // WINDOW_SIZE * WINDOW_SIZE
            piece = self._window(start)[offset - start : offset - start + length]
            if not piece:
                raise self.damaged(offset, "the file ends before the hive does")
            pieces.append(piece)
            offset += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _window(self, start: int) -> bytes:
        window = self._windows.get(start)
        if window is not None:
            self._windows.move_to_end(start)
            return window
        length = min(WINDOW_SIZE, self._length - start)
        stored = max(0, min(length, self._source.size - BASE_BLOCK_SIZE - start))
        content = bytearray(self._source.read_at(BASE_BLOCK_SIZE + start, stored)) if stored else bytearray()
        for page in range(start, start + length, PAGE_SIZE):
            logged = self._pages.get(page)
            if logged is not None:
                content.extend(bytes(max(0, page - start - len(content))))
                content[page - start : page - start + len(logged)] = logged
        if len(self._windows) >= MAX_WINDOWS:
            self._windows.popitem(last=False)
        self._windows[start] = window = bytes(content[:length])
        return window
