"""Which units are allocated: against a list of all of them, for every kind of page, and in little memory."""

import random
import tracemalloc
from collections.abc import Iterator

import pytest

from diskfs_formats.allocation import UNITS_PER_PAGE, AllocationMap
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import CorruptImage, DiskfsError
from diskfs_formats.extents import Extent, ExtentKind, Stored, clipped
from diskfs_formats.source import MemorySource, require_range

UNIT = 4


class ListedDisk:
    """A disk whose map is a list; a part of it may be damaged."""

    def __init__(
        self, runs: list[tuple[int, ExtentKind]], damaged: range = range(0), error: type = CorruptImage
    ) -> None:
        self.name = "listed"
        self.size = sum(length for length, _ in runs)
        self.info = ImageInfo("listed", "listed", self.size)
        self._damaged = damaged
        self._error = error
        self._extents: list[Extent] = []
        source = MemorySource(bytes(self.size))
        offset = 0
        for length, kind in runs:
            stored = Stored(source, offset, length) if kind is ExtentKind.DATA else None
            self._extents.append(Extent(offset, length, kind, stored))
            offset += length

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self.size - offset if length is None else length
        require_range(self, offset, length)
        end = offset + length
        for extent in self._extents:
            if extent.end > offset and extent.offset < end:
                part = clipped(extent, offset, end)
                if part.offset < self._damaged.stop and part.end > self._damaged.start:
                    raise self._error("a damaged table")
                yield part

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return bytes(length)

    def close(self) -> None:
        pass


def bits(units: AllocationMap) -> list[bool]:
    return [rank is not None for _, count, rank in units.runs(0, units.count) for _ in range(count)]


def patterns() -> dict[str, list[bool]]:
    chance = random.Random(1)
    page = UNITS_PER_PAGE
    return {
        "none": [False] * (2 * page + 3),
        "all": [True] * (3 * page),
        "all, last page partial": [True] * (2 * page + 5),
        "one unit": [True],
        "alternating": [bool(number % 2) for number in range(page + 7)],
        "random": [chance.random() < 0.3 for _ in range(3 * page - 1)],
        "pages of each kind": [
            *([False] * page), *([True] * page), *(chance.random() < 0.9 for _ in range(page)), *([True] * page),
            *([True] * (page - 1)), False, *([False] * page), True, *([False] * 9), True,
        ],
        "first and last of pages": [number % page in (0, page - 1) for number in range(4 * page)],
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(patterns()))
def test_ranks_and_runs_are_those_of_the_list(name: str) -> None:
    wanted = patterns()[name]
    masks = [
        sum(1 << at for at, bit in enumerate(wanted[start : start + UNITS_PER_PAGE]) if bit)
        for start in range(0, len(wanted), UNITS_PER_PAGE)
    ]
    units = AllocationMap(len(wanted), masks)
    allocated = [unit for unit, bit in enumerate(wanted) if bit]
    assert units.allocated == len(allocated)
    assert bits(units) == wanted
    chance = random.Random(2)
    for rank in {*range(min(9, len(allocated))), *chance.sample(range(len(allocated)), min(200, len(allocated)))}:
        for most in (1, 2, 100, 3 * UNITS_PER_PAGE):
            unit, run = units.run_at(rank, most)
            assert unit == allocated[rank]
            following = 0
            while following < most and unit + following < len(wanted) and wanted[unit + following]:
                following += 1
            assert run == following
    ranks = {unit: rank for rank, unit in enumerate(allocated)}
    for _ in range(60):
        first = chance.randrange(len(wanted))
        count = chance.randrange(len(wanted) - first + 1)
        at = first
        for start, length, rank in units.runs(first, count):
            assert start == at
            assert length > 0
            at += length
            for number in range(length):
                assert ranks.get(start + number) == (None if rank is None else rank + number)
        assert at == first + count
        at = first
        for start, length, has_any in units.has_any(first, count):
            assert start == at
            at += length
            page = start // UNITS_PER_PAGE * UNITS_PER_PAGE
            assert has_any == any(wanted[page : page + UNITS_PER_PAGE])
        assert at == first + count


def test_a_unit_is_allocated_if_any_byte_of_it_is_data() -> None:
    kinds = [ExtentKind.DATA, ExtentKind.ZERO, ExtentKind.HOLE]
    for seed in range(30):
        chance = random.Random(seed)
        runs = [(chance.choice((1, 2, 3, 4, 5, 8, 64)), chance.choice(kinds)) for _ in range(400)]
        disk = ListedDisk(runs)
        flat = [kind is ExtentKind.DATA for length, kind in runs for _ in range(length)]
        wanted = [any(flat[start : start + UNIT]) for start in range(0, len(flat), UNIT)]
        assert bits(AllocationMap.of(disk, UNIT)) == wanted


def test_units_on_both_sides_of_a_window_are_found() -> None:
    window = UNITS_PER_PAGE * UNIT
    disk = ListedDisk(
        [(window - 1, ExtentKind.HOLE), (2, ExtentKind.DATA), (window - 2, ExtentKind.ZERO), (1, ExtentKind.DATA)]
    )
    units = AllocationMap.of(disk, UNIT)
    assert [unit for unit, bit in enumerate(bits(units)) if bit] == [
        UNITS_PER_PAGE - 1, UNITS_PER_PAGE, 2 * UNITS_PER_PAGE - 1,
    ]  # fmt: skip


def test_a_damaged_part_of_the_map_counts_as_allocated_and_the_rest_as_it_is() -> None:
    runs = [
        (4, ExtentKind.HOLE),
        (4, ExtentKind.DATA),
        (4, ExtentKind.ZERO),
        (4, ExtentKind.DATA),
        (8, ExtentKind.HOLE),
    ]
    assert bits(AllocationMap.of(ListedDisk(runs, range(8, 12)), UNIT)) == [False, True, True, True, False, False]
    assert bits(AllocationMap.of(ListedDisk(runs, range(20, 24)), UNIT)) == [False, True, False, True, False, True]


def test_a_source_that_fails_ends_the_search() -> None:
    class Broken(DiskfsError):
        pass

    with pytest.raises(Broken):
        AllocationMap.of(ListedDisk([(8, ExtentKind.DATA)], range(1), Broken), UNIT)


def test_a_unit_of_each_page_of_64_tib_takes_little_memory() -> None:
    pages = (64 << 40) // (UNITS_PER_PAGE * 65536)
    tracemalloc.start()
    try:
        units = AllocationMap(pages * UNITS_PER_PAGE, (1 << page % UNITS_PER_PAGE for page in range(pages)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 160 << 20
    assert units.allocated == pages
    assert units.run_at(pages - 1, 9) == ((pages - 1) * UNITS_PER_PAGE + (pages - 1) % UNITS_PER_PAGE, 1)
