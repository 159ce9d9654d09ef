"""What every disk promises, as assertions against a reference that holds the same bytes."""

import random
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import OutOfRange
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.source import ByteSource, ReadyReader, require_range
from tests.helpers import assert_same_bytes

PIECE = 1 << 20
THREADS = 8


class SparseReference:
    """A reference too large to hold: zeroes, but for some chunks."""

    name = "reference"

    def __init__(self, size: int, chunks: Mapping[int, bytes]) -> None:
        self.size = size
        self._chunks = {offset: chunk for offset, chunk in chunks.items() if chunk.strip(b"\0")}

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        data = bytearray(length)
        for at, chunk in self._chunks.items():
            start, end = max(at, offset), min(at + len(chunk), offset + length)
            if start < end:
                data[start - offset : end - offset] = chunk[start - at : end - at]
        return bytes(data)

    def is_zero(self, offset: int, length: int) -> bool:
        """Tell whether a range, however long, holds only zeroes."""
        return not any(
            chunk[max(offset - at, 0) : max(offset + length - at, 0)].strip(b"\0") for at, chunk in self._chunks.items()
        )

    def close(self) -> None:
        pass


def assert_whole(disk: DiskImage, reference: ByteSource) -> None:
    """One read of everything, and sequential reads, give the reference's bytes."""
    assert disk.size == reference.size
    assert_same_bytes(disk.read_at(0, disk.size), reference.read_at(0, disk.size))


def assert_random_ranges(disk: DiskImage, reference: ByteSource, *, seed: int = 0, count: int = 60) -> None:
    """Ranges at any offset and of any length give the reference's bytes."""
    chance = random.Random(seed)
    for _ in range(count):
        offset = chance.randrange(disk.size)
        length = min(chance.choice((0, 1, 2, 511, 512, 513, 4096, 65536, 300_000)), disk.size - offset)
        assert_range(disk, reference, offset, length)


def assert_range(disk: DiskImage, reference: ByteSource, offset: int, length: int) -> None:
    """One range gives the reference's bytes, read and, if it is ready, at once."""
    try:
        expected = reference.read_at(offset, length)
        assert_same_bytes(disk.read_at(offset, length), expected)
        if isinstance(disk, ReadyReader) and (ready := disk.read_if_ready(offset, length)) is not None:
            assert_same_bytes(ready, expected)
    except AssertionError as error:
        raise AssertionError(f"{length} bytes at {offset:#x} of {disk.size:#x}: {error}") from error


def boundaries(size: int, units: Iterable[int], *, limit: int = 48) -> list[int]:
    """Return the ends of units inside a disk: the first and last ones, and some between."""
    found: set[int] = {0, size}
    for unit in units:
        count = size // unit if unit else 0
        near = {*range(1, 5), *range(count - 3, count + 1)}
        spread = random.Random(unit).sample(range(1, count + 1), min(limit, count)) if count else []
        found.update(number * unit for number in (*near, *spread) if 0 < number <= count)
    return sorted(found)


def assert_both_sides(disk: DiskImage, reference: ByteSource, units: Iterable[int], *, limit: int = 48) -> None:
    """On both sides of each boundary, and across it, the bytes are the reference's."""
    for boundary in boundaries(disk.size, units, limit=limit):
        for start, end in (
            (boundary - 1, boundary),
            (boundary, boundary + 1),
            (boundary - 1, boundary + 1),
            (boundary - 512, boundary),
            (boundary, boundary + 512),
            (boundary - 700, boundary + 700),
        ):
            start, end = max(start, 0), min(end, disk.size)  # noqa: PLW2901 - clipped to the disk
            if start < end:
                assert_range(disk, reference, start, end - start)


def assert_map(disk: DiskImage, reference: ByteSource, *, samples: int = 12) -> None:
    """The map ascends, covers exactly, and non-DATA reads as zero; part of the map is the map of the part."""
    whole = list(disk.extents())
    _assert_covers(whole, 0, disk.size)
    for extent in whole:
        if extent.kind is ExtentKind.DATA:
            _assert_stored(extent, reference)
        else:
            assert extent.stored is None
            assert _is_zero(reference, extent.offset, extent.length), f"the map says {extent}, the disk has data"
    chance = random.Random(disk.size)
    for _ in range(samples):
        start = chance.randrange(disk.size)
        length = chance.randrange(disk.size - start + 1)
        part = list(disk.extents(start, length))
        _assert_covers(part, start, start + length)
        assert _kinds(part) == _kinds(_cut(whole, start, start + length))
    assert list(disk.extents(disk.size, 0)) == []


def _assert_covers(extents: list[Extent], start: int, end: int) -> None:
    at = start
    for extent in extents:
        assert extent.offset == at, f"the map has a gap or an overlap at {at:#x}: {extent}"
        assert extent.length > 0
        at = extent.end
    assert at == end


def _assert_stored(extent: Extent, reference: ByteSource) -> None:
    stored = extent.stored
    assert stored is not None, f"a DATA extent without a place: {extent}"
    assert 0 <= stored.offset <= stored.offset + stored.length <= stored.source.size
    if stored.decode is None:
        assert stored.length == extent.length
        for at in range(0, extent.length, PIECE):
            count = min(PIECE, extent.length - at)
            assert_same_bytes(
                stored.source.read_at(stored.offset + at, count), reference.read_at(extent.offset + at, count)
            )
    else:
        unit = stored.decode(stored.source.read_at(stored.offset, stored.length))
        part = memoryview(unit)[stored.skip : stored.skip + extent.length]
        assert_same_bytes(part, reference.read_at(extent.offset, extent.length))


def _is_zero(reference: ByteSource, offset: int, length: int) -> bool:
    if isinstance(reference, SparseReference):
        return reference.is_zero(offset, length)
    pieces = ((at, min(PIECE, offset + length - at)) for at in range(offset, offset + length, PIECE))
    return not any(reference.read_at(*piece).strip(b"\0") for piece in pieces)


def _cut(extents: list[Extent], start: int, end: int) -> list[Extent]:
    return [
        Extent(max(extent.offset, start), min(extent.end, end) - max(extent.offset, start), extent.kind)
        for extent in extents
        if max(extent.offset, start) < min(extent.end, end)
    ]


def _kinds(extents: list[Extent]) -> list[tuple[int, int, ExtentKind]]:
    """Return the runs of one kind, however the map divides them."""
    runs: list[tuple[int, int, ExtentKind]] = []
    for extent in extents:
        if runs and runs[-1][2] is extent.kind:
            runs[-1] = (runs[-1][0], extent.end, extent.kind)
        else:
            runs.append((extent.offset, extent.end, extent.kind))
    return runs


def assert_threads(disk: DiskImage, reference: ByteSource, *, seed: int = 0, reads: int = 24) -> None:
    """Threads that read at once, each its own ranges, all get the reference's bytes."""

    def read(thread: int) -> None:
        # Every other thread shares its ranges with its neighbour, so that units are asked for at the same moment.
        assert_random_ranges(disk, reference, seed=seed * 100 + thread // 2, count=reads)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(read, range(THREADS)))


def assert_past_the_end(disk: DiskImage) -> None:
    """What is not wholly inside the disk is refused; nothing at the very end is inside."""
    assert disk.read_at(disk.size, 0) == b""
    for offset, length in (
        (disk.size, 1),
        (disk.size - 1, 2),
        (disk.size + 1, 0),
        (-1, 1),
        (0, -1),
        (0, disk.size + 1),
    ):
        with pytest.raises(OutOfRange):
            disk.read_at(offset, length)
        with pytest.raises(OutOfRange):
            list(disk.extents(offset, length))
        if isinstance(disk, ReadyReader):
            with pytest.raises(OutOfRange):
                disk.read_if_ready(offset, length)


def assert_ready_bytes(disk: DiskImage, reference: ByteSource) -> None:
    """What is ready before anything was read, and after, is right or not there."""
    if not isinstance(disk, ReadyReader):
        return
    chance = random.Random(disk.size)
    for _ in range(40):
        offset = chance.randrange(disk.size)
        length = min(chance.choice((1, 512, 4096, 131072)), disk.size - offset)
        expected = reference.read_at(offset, length)
        for _ in range(2):
            found = disk.read_if_ready(offset, length)
            if found is not None:
                assert_same_bytes(found, expected)
        disk.read_at(offset, length)
