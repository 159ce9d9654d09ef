"""Which pages of an index are in the file for good, so that one that became zeroes is not taken for one never written.

A bit is set by a later sync than the one that made its page durable: a power loss never leaves a bit without its page.
"""

from collections.abc import Iterable, Iterator

from diskfs.disks.overlay.layout import PAGE_SIZE, PAGES_PER_GUARD, IndexHeader, pack_guard, page_offset, parse_guard
from diskfs.disks.overlay.storage import StoredFile
from diskfs.errors import DamagedOverlay


class PageGuards:
    """The guards of an index; at most 2,331 of 480 bytes, for a disk of 64 TiB. The caller has a lock."""

    def __init__(self, file: StoredFile, header: IndexHeader, name: str) -> None:
        self._file = file
        self._name = name
        self._id = header.overlay_id.bytes
        self._count = header.guard_count
        self._offset = header.guards_offset
        self._bits: dict[int, bytearray] = {}
        self._due: set[int] = set()

    def _guard(self, number: int) -> bytearray:
        bits = self._bits.get(number)
        if bits is None:
            where = self._offset + number * PAGE_SIZE
            sector = self._file.read_at(where, PAGE_SIZE)
            bits = bytearray(parse_guard(sector, self._id, number, f"{self._name}: guard {number} at {where:#x}"))
            self._bits[number] = bits
        return bits

    def has(self, page: int) -> bool:
        """Tell whether a page must be in the file; raises OSError or DamagedOverlay when its guard is first needed."""
        guard, bit = divmod(page, PAGES_PER_GUARD)
        return bool(self._guard(guard)[bit >> 3] >> (bit & 7) & 1)

    def lost(self, page: int) -> DamagedOverlay:
        """Return the error for a page that is all zeroes and was once written."""
        return DamagedOverlay(
            f"{self._name}: page {page} at {page_offset(page):#x}: it is all zeroes, and it was written before"
        )

    def all_pages(self) -> Iterator[int]:
        """Yield the pages that must be in the file; raises OSError or DamagedOverlay."""
        end = self._offset + self._count * PAGE_SIZE
        for start, stop in self._file.data_ranges(self._offset, end):
            first = max(start - self._offset, 0) // PAGE_SIZE
            for guard in range(first, -(-(stop - self._offset) // PAGE_SIZE)):
                for index, byte in enumerate(self._guard(guard)):
                    for bit in range(8) if byte else ():
                        if byte >> bit & 1:
                            yield guard * PAGES_PER_GUARD + index * 8 + bit

    def require_written(self, pages: Iterable[int]) -> None:
        """Raise DamagedOverlay unless `pages` has all that must be in the file."""
        there = set(pages)
        for page in self.all_pages():
            if page not in there:
                raise self.lost(page)

    def synced(self, pages: Iterable[int]) -> None:
        """Note pages that a sync has made durable; their bits are due with the next write."""
        self._due.update(page for page in pages if not self.has(page))

    def write(self) -> bool:
        """Write the bits that are due; tells whether there were any. Raises OSError."""
        changed = set()
        for page in self._due:
            guard, bit = divmod(page, PAGES_PER_GUARD)
            self._guard(guard)[bit >> 3] |= 1 << (bit & 7)
            changed.add(guard)
        for number in sorted(changed):
            self._file.write_at(self._offset + number * PAGE_SIZE, pack_guard(self._id, number, self._bits[number]))
        self._due.clear()
        return bool(changed)
