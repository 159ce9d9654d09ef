"""Which blocks of a disk the overlay has: the pages of an index file, a bounded number of them in memory."""

import threading
from collections.abc import Iterable, Iterator

from diskfs.disks.overlay.guards import PageGuards
from diskfs.disks.overlay.layout import (
    ABSENT_PAGE,
    BLOCKS_PER_PAGE,
    PAGE_SIZE,
    STATES,
    IndexHeader,
    checked_page,
    pack_page,
    page_offset,
    parse_page,
)
from diskfs.disks.overlay.storage import StoredFile

PAGES_KEPT = 8192
"""Pages in memory, of 2 KiB each: 16 MiB describe 60 GiB of the disk."""
SCAN_SIZE = 64 << 20
"""Bytes of an index that are checked when it is opened, which describe 960 GiB; the rest is checked when it is read."""
_CHUNK = 1 << 20


class Page:
    """The states of 1920 blocks, one byte each. `states` is replaced or changed under the map's lock alone."""

    __slots__ = ("states", "used")

    def __init__(self, states: bytes | bytearray) -> None:
        self.states = states
        self.used = True


class BlockMap:
    """The states of all blocks. Thread-safe. Raises OSError if reading or writing fails, DamagedOverlay."""

    def __init__(self, file: StoredFile, header: IndexHeader, name: str, pages_kept: int = PAGES_KEPT) -> None:
        self._file = file
        self._name = name
        self._id = header.overlay_id.bytes
        self._page_count = header.page_count
        self.guards = PageGuards(file, header, name)
        self._pages: dict[int, Page] = {}
        self.loaded = self._pages.get
        """Returns the page of a number if it is in memory, else None."""
        self._dirty: dict[int, Page] = {}
        self._writing: dict[int, Page] = {}
        self._kept = pages_kept
        self._reserved: set[int] = set()
        self.most_dirty = pages_kept // 4
        """Pages that may wait to be written; with more, a flush is due, asked for or not."""
        self._lock = threading.Lock()

    @property
    def dirty_pages(self) -> int:
        """How many pages wait to be written."""
        return len(self._dirty)

    def page(self, number: int) -> Page:
        """Return a page, from the file if it is not in memory."""
        page = self._pages.get(number)
        if page is not None:
            page.used = True
            return page
        with self._lock:
            return self._load(number)

    def _load(self, number: int) -> Page:
        page = self._pages.get(number)
        if page is None:
            sector = self._file.read_at(page_offset(number), PAGE_SIZE)
            if self.guards.has(number) and sector == ABSENT_PAGE:
                raise self.guards.lost(number)
            page = Page(parse_page(sector, self._id, number, self._name))
            if len(self._pages) >= self._kept:
                self._evict()
            self._pages[number] = page
        return page

    def _evict(self) -> None:
        """Drop a quarter of the pages, but none that waits to be written and, if that is enough, none used lately."""
        wanted = self._kept // 4 or 1
        for unused_only in (True, False):
            for number, page in list(self._pages.items()):
                if wanted == 0:
                    return
                if number in self._dirty or number in self._writing:
                    continue
                if unused_only and page.used:
                    page.used = False
                    continue
                del self._pages[number]
                wanted -= 1

    def reserve(self, number: int) -> None:
        """Take room for a page, so that a flush does not find the disk full; raises OSError."""
        group = number * PAGE_SIZE >> 16
        if group not in self._reserved:
            start = page_offset(group << 16 - 9)
            self._file.reserve(start, min(1 << 16, page_offset(self._page_count) - start))
            if len(self._reserved) > 1 << 16:
                self._reserved.clear()
            self._reserved.add(group)

    def is_reserved(self, number: int) -> bool:
        """Tell whether there is room for a page already."""
        return number * PAGE_SIZE >> 16 in self._reserved

    def mark(self, number: int, first: int, end: int, state: int) -> None:
        """Set the state of the blocks [first, end) of a page, counted within it."""
        with self._lock:
            page = self._load(number)
            if end - first == BLOCKS_PER_PAGE:
                page.states = STATES[state]
            else:
                states = page.states
                if isinstance(states, bytes):
                    states = page.states = bytearray(states)
                states[first:end] = STATES[state][: end - first]
            self._dirty[number] = page

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first, end, state) of the blocks in [first, end), ascending; neighbours may have one state."""
        while first < end:
            number, inside = divmod(first, BLOCKS_PER_PAGE)
            stop = min(end - first + inside, BLOCKS_PER_PAGE)
            # A copy: another thread may change the page while the caller looks at the runs.
            states = bytes(self.page(number).states[inside:stop])
            base = first
            while states:
                rest = states.lstrip(states[:1])
                length = len(states) - len(rest)
                yield base, base + length, states[0]
                base += length
                states = rest
            first = base

    def take_dirty(self) -> dict[int, bytes]:
        """Return the sectors of the pages that wait to be written; they stay in memory until `written` or `put_back`.

        One caller at a time may have taken pages.
        """
        with self._lock:
            assert not self._writing
            self._writing, self._dirty = self._dirty, {}
            return {number: pack_page(self._id, number, page.states) for number, page in self._writing.items()}

    def written(self) -> None:
        """Let go of the pages that were taken: they were written and synced."""
        with self._lock:
            self.guards.synced(self._writing)
            self._writing = {}

    def put_back(self) -> None:
        """Let the pages that were taken wait again."""
        with self._lock:
            self._dirty.update(self._writing)
            self._writing = {}

    def write(self, taken: dict[int, bytes]) -> None:
        """Write pages that were taken; raises OSError."""
        numbers = sorted(taken)
        first = 0
        while first < len(numbers):
            last = first + 1
            while last < len(numbers) and last - first < 2048 and numbers[last] == numbers[last - 1] + 1:
                last += 1
            run = numbers[first:last]
            self._file.write_at(page_offset(run[0]), b"".join([taken[number] for number in run]))
            first = last
        with self._lock:
            self.guards.write()

    def finish(self) -> None:
        """Guard what was synced last, so that its loss is noticed as well; raises OSError or DamagedOverlay."""
        with self._lock:
            written = self.guards.write()
        if written:
            self._file.sync()

    def sync(self) -> None:
        """Return when the pages that were written survive a power loss; raises OSError."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def stored_pages(self, ranges: Iterable[tuple[int, int]] | None = None) -> Iterator[tuple[int, bytes]]:
        """Yield (number, sector) of the pages that the file has, in `ranges` of it or in all that are no hole."""
        end = page_offset(self._page_count)
        for start, stop in self.stored_ranges() if ranges is None else ranges:
            # A hole ends where a block of the file system does, and no page lies across.
            offset = start - (start - page_offset(0)) % PAGE_SIZE
            while offset < stop:
                chunk = self._file.read_at(
                    offset, min(_CHUNK, end - offset, -(-(stop - offset) // PAGE_SIZE) * PAGE_SIZE)
                )
                if not chunk:
                    return
                for inside in range(0, len(chunk), PAGE_SIZE):
                    sector = chunk[inside : inside + PAGE_SIZE]
                    if sector != ABSENT_PAGE:
                        yield (offset + inside - page_offset(0)) // PAGE_SIZE, sector
                offset += len(chunk)

    def stored_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the (start, end) of where the file may have pages."""
        return self._file.data_ranges(page_offset(0), page_offset(self._page_count))

    def require_sound(self, limit: int = SCAN_SIZE) -> None:
        """Raise DamagedOverlay unless all pages are what they should be, as far as a bounded time allows.

        The file must have been synced.
        """
        ranges = []
        for start, stop in self.stored_ranges():
            ranges.append((start, min(stop, start + limit)))
            limit -= stop - start
            if limit <= 0:
                break
        seen = []
        for number, sector in self.stored_pages(ranges):
            checked_page(sector, self._id, number, self._name)
            seen.append(number)
        if limit > 0:
            self.guards.require_written(seen)
            self.guards.synced(seen)
