"""Whether two disks have the same content: what both have as zero is not read."""

from collections.abc import Iterator
from dataclasses import dataclass

from diskfs_formats.bulk import without_file_holes
from diskfs_formats.driver import DiskImage
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.parallel import in_order
from diskfs_formats.reading import zeroes
from diskfs_formats.source import Buffer
from diskfs_formats.writer import Progress

STEP = 1 << 20
"""Bytes that are read of both and compared at once."""


@dataclass(frozen=True, slots=True)
class _Span:
    """A range of which both disks have one kind; a disk that has ended is zero."""

    offset: int
    length: int
    in_one: bool
    in_other: bool


def first_difference(one: DiskImage, other: DiskImage, progress: Progress, *, threads: int | None = None) -> int | None:
    """Return the offset of the first byte that differs, or None.

    Of disks of different sizes, the longer one must go on with zeroes to be the same, as qemu-img compare has it. What
    both maps have as zero, and what both have stored in one place, is not read. `progress` is told of every byte of the
    longer disk. Raises what the disks raise.
    """

    def compare(span: _Span) -> tuple[_Span, int | None]:
        ours = one.read_at(span.offset, span.length) if span.in_one else None
        theirs = other.read_at(span.offset, span.length) if span.in_other else None
        return span, _difference(span.length, ours, theirs)

    for span, found in in_order(_spans(one, other), compare, _cost, threads):
        if found is not None:
            return span.offset + found
        progress(span.length)
    return None


def _cost(span: _Span) -> int:
    return 2 * span.length * (span.in_one + span.in_other)


def _spans(one: DiskImage, other: DiskImage) -> Iterator[_Span]:
    """Yield the ranges to read, and those to pass over as spans that are in neither disk."""
    end = max(one.size, other.size)
    ours, theirs = _to_end(one, end), _to_end(other, end)
    a, b = next(ours, None), next(theirs, None)
    offset = 0
    while a is not None and b is not None:
        stop = min(a.end, b.end)
        if _is_same(a, b):
            yield _Span(offset, stop - offset, in_one=False, in_other=False)
        else:
            in_one, in_other = a.kind is ExtentKind.DATA, b.kind is ExtentKind.DATA
            while offset < stop:
                # Steps end at multiples of their size, so that no unit is decoded for two of them.
                length = min(STEP - offset % STEP, stop - offset)
                yield _Span(offset, length, in_one, in_other)
                offset += length
        offset = stop
        if a.end == stop:
            a = next(ours, None)
        if b.end == stop:
            b = next(theirs, None)


def _to_end(disk: DiskImage, end: int) -> Iterator[Extent]:
    """Yield a disk's map with neighbours of one kind joined, and as zero what is missing up to `end`.

    Data that is stored as it is stays apart, so that two disks that share it can be told.
    """
    held: Extent | None = None
    for extent in without_file_holes(disk.extents()):
        joined = _joined(held, extent) if held is not None else extent
        if joined is None:
            assert held is not None
            yield held
            held = extent
        else:
            held = joined
    if held is not None:
        yield held
    if disk.size < end:
        yield Extent(disk.size, end - disk.size, ExtentKind.HOLE)


def _joined(one: Extent, two: Extent) -> Extent | None:
    if _has_place(one) or _has_place(two) or (one.kind is ExtentKind.DATA) != (two.kind is ExtentKind.DATA):
        return None
    return Extent(one.offset, one.length + two.length, one.kind)


def _has_place(extent: Extent) -> bool:
    return extent.stored is not None and extent.stored.decode is None


def _is_same(a: Extent, b: Extent) -> bool:
    """Tell without reading that two extents agree wherever they overlap."""
    if a.kind is not ExtentKind.DATA and b.kind is not ExtentKind.DATA:
        return True
    if a.stored is None or b.stored is None or not _has_place(a) or not _has_place(b):
        return False
    return a.stored.source is b.stored.source and a.stored.offset - a.offset == b.stored.offset - b.offset


def _difference(length: int, ours: Buffer | None, theirs: Buffer | None) -> int | None:
    if ours is None and theirs is None:
        return None
    ours = b"".join(zeroes(length)) if ours is None else ours
    theirs = b"".join(zeroes(length)) if theirs is None else theirs
    if ours == theirs:
        return None
    same, differing = 0, length
    while differing - same > 1:
        middle = (same + differing) // 2
        if ours[same:middle] == theirs[same:middle]:
            same = middle
        else:
            differing = middle
    return same
