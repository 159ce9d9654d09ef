"""Sources: memory, a window over another source, several as one."""

import random
from collections.abc import Callable, Iterator, Sequence

import pytest

from diskfs_formats.errors import OutOfRange
from diskfs_formats.source import (
    Buffer,
    ByteSource,
    ConcatenatedSource,
    MemorySource,
    SourceSlice,
    read_if_ready,
    read_ranges,
    require_range,
    takes_ranges,
)

DATA = random.Random(1).randbytes(1000)


class Recording(MemorySource):
    """Records what it is asked for; not ready unless told, and takes several ranges."""

    def __init__(self, data: bytes, *, ready: bool = True) -> None:
        super().__init__(data, "recording")
        self.ready = ready
        self.ranges: list[tuple[int, int]] = []
        self.closed = 0

    def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
        self.ranges += ranges
        return [self.read_at(offset, length) for offset, length in ranges]

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return super().read_if_ready(offset, length) if self.ready else None

    def close(self) -> None:
        self.closed += 1


class Sparse(MemorySource):
    """A hole in [100, 200)."""

    def data_ranges(self, offset: int, length: int, /) -> Iterator[tuple[int, int, bool]]:
        end = offset + length
        for start, stop, is_data in ((0, 100, True), (100, 200, False), (200, 1000, True)):
            first, last = max(start, offset), min(stop, end)
            if first < last:
                yield first, last - first, is_data


class Plain:
    """Only what every source must have."""

    name, size = "plain", 1000

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return DATA[offset : offset + length]

    def close(self) -> None:
        pass


def concatenated(*lengths: int) -> ConcatenatedSource:
    assert sum(lengths) == 1000
    pieces, at = [], 0
    for length in lengths:
        pieces.append(MemorySource(DATA[at : at + length]))
        at += length
    return ConcatenatedSource(pieces, "joined")


SOURCES: dict[str, Callable[[], ByteSource]] = {
    "memory": lambda: MemorySource(DATA, "m"),
    "slice": lambda: SourceSlice(MemorySource(b"x" * 7 + DATA + b"y" * 9), 7, 1000, "s"),
    "slice of a slice": lambda: SourceSlice(SourceSlice(MemorySource(b"xx" + DATA + b"y"), 1, 1002, "s"), 1, 1000, "t"),
    "slice of all": lambda: SourceSlice(MemorySource(DATA), 0, 1000, "s"),
    "slice of a plain source": lambda: SourceSlice(Plain(), 0, 1000, "s"),
    "one piece": lambda: concatenated(1000),
    "pieces": lambda: concatenated(1, 299, 300, 399, 1),
    "pieces, some empty": lambda: concatenated(0, 500, 0, 0, 500, 0),
}


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> ByteSource:
    return SOURCES[request.param]()


def test_every_range_is_right(source: ByteSource) -> None:
    assert source.size == 1000
    edges = (0, 1, 2, 299, 300, 301, 499, 500, 501, 599, 600, 601, 998, 999, 1000)
    for start in edges:
        for end in edges:
            if start <= end:
                assert source.read_at(start, end - start) == DATA[start:end]
                ready = read_if_ready(source, start, end - start)
                assert ready is None or ready == DATA[start:end]
    assert read_ranges(source, [(0, 10), (990, 10), (5, 0)]) == [DATA[:10], DATA[990:], b""]
    assert read_ranges(source, []) == []


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 1001), (1000, 1), (1001, 0), (-1, 1), (-1, 0), (5, -1), (2**63, 1), (0, 2**64)]
)
def test_past_the_end_is_refused(source: ByteSource, offset: int, length: int) -> None:
    with pytest.raises(OutOfRange, match=source.name):
        source.read_at(offset, length)
    with pytest.raises(OutOfRange):
        read_ranges(source, [(0, 1), (offset, length)])
    if not isinstance(source, Plain) and not isinstance(source, MemorySource):
        with pytest.raises(OutOfRange):
            read_if_ready(source, offset, length)


def test_closing_twice_is_harmless(source: ByteSource) -> None:
    source.close()
    source.close()


@pytest.mark.parametrize(("offset", "size"), [(0, 1001), (1, 1000), (1000, 1), (-1, 10), (5, -1)])
def test_a_slice_lies_inside_its_source(offset: int, size: int) -> None:
    with pytest.raises(OutOfRange):
        SourceSlice(MemorySource(DATA), offset, size, "s")
    assert SourceSlice(MemorySource(DATA), 1000, 0, "s").read_at(0, 0) == b""


def test_a_slice_asks_for_all_ranges_at_once() -> None:
    inner = Recording(DATA)
    part = SourceSlice(inner, 100, 500, "s")
    assert read_ranges(part, [(0, 10), (400, 100)]) == [DATA[100:110], DATA[500:600]]
    assert inner.ranges == [(100, 10), (500, 100)]
    # The source has these bytes, the slice does not.
    with pytest.raises(OutOfRange):
        read_ranges(part, [(0, 1), (450, 51)])


def test_each_of_several_pieces_is_asked_for_all_its_ranges_at_once() -> None:
    one, two = Recording(DATA[:500]), Recording(DATA[500:])
    joined = ConcatenatedSource([one, MemorySource(b""), two], "j")
    ranges = [(600, 10), (490, 20), (0, 0), (0, 10), (499, 1), (500, 1), (990, 10)]
    assert read_ranges(joined, ranges) == [DATA[offset : offset + length] for offset, length in ranges]
    assert one.ranges == [(490, 10), (0, 10), (499, 1)]
    assert two.ranges == [(100, 10), (0, 10), (0, 1), (490, 10)]
    with pytest.raises(OutOfRange):
        read_ranges(joined, [(0, 1), (999, 2)])


def test_what_wraps_a_source_takes_ranges_if_that_does() -> None:
    remote, local = Recording(DATA), MemorySource(DATA)
    assert takes_ranges(remote)
    assert takes_ranges(SourceSlice(SourceSlice(remote, 1, 99, "s"), 1, 9, "t"))
    assert takes_ranges(ConcatenatedSource([local, remote], "j"))
    assert not takes_ranges(local)
    assert not takes_ranges(SourceSlice(SourceSlice(local, 1, 99, "s"), 1, 9, "t"))
    assert not takes_ranges(ConcatenatedSource([local, local], "j"))


def test_one_range_is_an_ordinary_read() -> None:
    inner = Recording(DATA)
    assert read_ranges(inner, [(3, 4)]) == [DATA[3:7]]
    assert inner.ranges == []


def test_a_slice_is_ready_when_its_source_is() -> None:
    inner = Recording(DATA, ready=False)
    part = SourceSlice(inner, 100, 500, "s")
    assert part.read_if_ready(0, 10) is None
    inner.ready = True
    assert part.read_if_ready(0, 10) == DATA[100:110]
    assert SourceSlice(Plain(), 0, 10, "s").read_if_ready(0, 1) is None
    assert read_if_ready(Plain(), 0, 1) is None


def test_pieces_are_ready_when_all_that_are_needed_are() -> None:
    one, two = Recording(DATA[:500]), Recording(DATA[500:], ready=False)
    joined = ConcatenatedSource([one, two], "j")
    assert joined.read_if_ready(400, 100) == DATA[400:500]
    assert joined.read_if_ready(400, 101) is None
    two.ready = True
    assert joined.read_if_ready(400, 101) == DATA[400:501]


def test_a_slice_shows_the_holes_of_its_source() -> None:
    part = SourceSlice(Sparse(DATA), 50, 500, "s")
    assert list(part.data_ranges(0, 500)) == [(0, 50, True), (50, 100, False), (150, 350, True)]
    assert list(part.data_ranges(60, 10)) == [(60, 10, False)]
    assert list(SourceSlice(Plain(), 50, 500, "s").data_ranges(10, 20)) == [(10, 20, True)]
    with pytest.raises(OutOfRange):
        list(part.data_ranges(0, 501))


def test_closing_pieces_closes_all_and_closing_a_slice_none() -> None:
    pieces = [Recording(DATA), Recording(b""), Recording(DATA)]
    ConcatenatedSource(pieces, "j").close()
    assert [piece.closed for piece in pieces] == [1, 1, 1]
    inner = Recording(DATA)
    SourceSlice(inner, 0, 10, "s").close()
    assert inner.closed == 0


def test_nothing_concatenated_is_an_empty_source() -> None:
    empty = ConcatenatedSource([], "nothing")
    assert empty.size == 0
    assert empty.read_at(0, 0) == b""
    with pytest.raises(OutOfRange):
        empty.read_at(0, 1)


def test_a_message_says_what_was_asked_for_and_what_is_there() -> None:
    with pytest.raises(OutOfRange, match=r"^disk\.img: 10 bytes at offset 0x3e7 .* 1000 bytes$"):
        MemorySource(DATA, "disk.img").read_at(999, 10)
