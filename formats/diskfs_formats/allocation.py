"""Which units of a disk (blocks, grains) a format has to store, and how many of them come before each.

A disk of 64 TiB has a thousand million grains of 64 KiB, so units are kept in pages: of a page that is all alike only
the count is kept, of a mixed one a bit per unit.
"""

import bisect
from array import array
from collections.abc import Iterable, Iterator

from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import ImageError
from diskfs_formats.extents import ExtentKind

UNITS_PER_PAGE = 4096


class AllocationMap:
    """Which of `count` units are allocated. The rank of an allocated unit is how many come before it. Immutable."""

    def __init__(self, count: int, masks: Iterable[int]) -> None:
        """Take a bit mask for each page, its lowest bit the page's first unit; pages that are missing are empty."""
        self.count = count
        self._mixed: dict[int, int] = {}
        self._ranks = array("Q", [0])
        rank = 0
        for page, mask in enumerate(masks):
            allocated = mask.bit_count()
            if 0 < allocated < self._page_size(page):
                self._mixed[page] = mask
            rank += allocated
            self._ranks.append(rank)
        self._ranks.extend([rank] * (-(-count // UNITS_PER_PAGE) + 1 - len(self._ranks)))
        self.allocated = rank

    @classmethod
    def of(cls, disk: DiskImage, unit_size: int) -> "AllocationMap":
        """Find the units in which the disk's map has DATA; reads none of the data.

        A unit whose map is damaged counts as allocated: reading it fails, and reading others does not. Raises
        SourceError if the image cannot be read.
        """
        count = -(-disk.size // unit_size)
        return cls(count, _masks(_data_runs(disk, unit_size)))

    @classmethod
    def full(cls, count: int) -> "AllocationMap":
        """Return a map of units that are all allocated."""
        return cls(count, _masks(iter([(0, count)])))

    def run_at(self, rank: int, wanted: int) -> tuple[int, int]:
        """Return the allocated unit of this rank, and how many from there on are allocated: at most `wanted`."""
        page = bisect.bisect_right(self._ranks, rank) - 1
        at = self._selected(page, rank - self._ranks[page])
        unit = page * UNITS_PER_PAGE + at
        run = _trailing_ones(self._mask(page) >> at)
        while run < wanted and unit + run < self.count and not (unit + run) % UNITS_PER_PAGE:
            more = _trailing_ones(self._mask((unit + run) // UNITS_PER_PAGE))
            if not more:
                break
            run += more
        return unit, min(run, wanted)

    def runs(self, first: int, count: int) -> Iterator[tuple[int, int, int | None]]:
        """Yield (unit, count, rank of its first unit or None) of the units from `first` on, page by page."""
        end = first + count
        while first < end:
            page, at = divmod(first, UNITS_PER_PAGE)
            stop = min(end - page * UNITS_PER_PAGE, self._page_size(page))
            mask = self._mask(page) >> at
            rank = self._ranks[page + 1] - mask.bit_count()
            while at < stop:
                found = min(_trailing_ones(mask), stop - at)
                if found:
                    yield first, found, rank
                    rank += found
                else:
                    found = min((mask & -mask).bit_length() - 1 if mask else stop - at, stop - at)
                    yield first, found, None
                mask >>= found
                at += found
                first += found

    def has_any(self, first: int, count: int) -> Iterator[tuple[int, int, bool]]:
        """Yield (unit, count, whether a unit of its page is allocated), in whole pages as far as they are inside."""
        end = first + count
        while first < end:
            page = first // UNITS_PER_PAGE
            stop = min((page + 1) * UNITS_PER_PAGE, end)
            has_data = self._ranks[page] < self._ranks[page + 1]
            yield first, stop - first, has_data
            first = stop

    def _page_size(self, page: int) -> int:
        return min(UNITS_PER_PAGE, self.count - page * UNITS_PER_PAGE)

    def _mask(self, page: int) -> int:
        if self._ranks[page] == self._ranks[page + 1]:
            return 0
        mask = self._mixed.get(page)
        return (1 << self._page_size(page)) - 1 if mask is None else mask

    def _selected(self, page: int, rank: int) -> int:
        """Return which unit of the page has this rank among the page's own."""
        mask = self._mixed.get(page)
        if mask is None:
            return rank
        low, high = 0, UNITS_PER_PAGE
        while high - low > 1:
            middle = (low + high) // 2
            if (mask & (1 << middle) - 1).bit_count() <= rank:
                low = middle
            else:
                high = middle
        return low


def _trailing_ones(mask: int) -> int:
    return (mask ^ mask + 1).bit_length() - 1


def _masks(runs: Iterable[tuple[int, int]]) -> Iterator[int]:
    """Turn ascending runs of units (first, end), which may overlap, into the masks of pages."""
    page = mask = 0
    for run_first, end in runs:
        first = run_first
        while first < end:
            number, at = divmod(first, UNITS_PER_PAGE)
            while page < number:
                yield mask
                mask = 0
                page += 1
            count = min(end - first, UNITS_PER_PAGE - at)
            mask |= (1 << count) - 1 << at
            first += count
    yield mask


def _data_runs(disk: DiskImage, unit_size: int) -> Iterator[tuple[int, int]]:
    """Yield the units (first, end) that hold DATA, ascending.

    The map is looked at in windows, which grow where little is stored; damage makes them small again, so that one
    damaged place is met a few times and not once for each unit before it.
    """
    page = window = UNITS_PER_PAGE * unit_size
    offset = 0
    while offset < disk.size:
        end = min(offset + window, disk.size)
        try:
            found = list(_runs_in(disk, unit_size, offset, end))
        except ImageError:
            if window > page:
                window = page
                continue
            for unit in range(offset // unit_size, -(-end // unit_size)):
                if _may_hold_data(disk, unit * unit_size, min((unit + 1) * unit_size, end)):
                    yield unit, unit + 1
        else:
            yield from found
            window = window * 2 if len(found) < UNITS_PER_PAGE else page
        offset = end


def _runs_in(disk: DiskImage, unit_size: int, offset: int, end: int) -> Iterator[tuple[int, int]]:
    while offset < end:
        for extent in disk.extents(offset, end - offset):
            offset = extent.end
            if extent.kind is ExtentKind.DATA:
                stop = -(-extent.end // unit_size)
                yield extent.offset // unit_size, stop
                if stop * unit_size > extent.end:
                    # The unit is decided: what else is in it need not be looked up.
                    offset = min(stop * unit_size, end)
                    break


def _may_hold_data(disk: DiskImage, offset: int, end: int) -> bool:
    try:
        return any(extent.kind is ExtentKind.DATA for extent in disk.extents(offset, end - offset))
    except ImageError:
        return True
