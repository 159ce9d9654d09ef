"""The reading engine: what is read together, what is decoded once, and what an error reaches."""

import gc
import random
import threading
import time
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from diskfs_formats.bulk import Piece, read_piece
from diskfs_formats.errors import CorruptImage
from diskfs_formats.extents import Extent, ExtentKind, Stored, clipped
from diskfs_formats.gathering import MAX_MERGED, MERGE_GAP
from diskfs_formats.reading import ReadingEngine, UnitCache, is_plain_data, zeroes
from diskfs_formats.source import Buffer, ByteSource, MemorySource, SourceSlice
from diskfs_formats.spread import Spread

UNIT = 1000
PATIENCE = 30
"""Seconds after which a test that should never wait is stuck."""


class CountingSource(MemorySource):
    """Counts reads."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "counting")
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads.append((offset, length))
        return super().read_at(offset, length)


class RangeSource(CountingSource):
    """Takes several ranges at once, as remote sources do."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.requests: list[list[tuple[int, int]]] = []

    def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
        self.requests.append(list(ranges))
        return [MemorySource.read_at(self, offset, length) for offset, length in ranges]


class Decoder:
    """Units whose bytes are their record's, inverted; counts, waits and fails on demand."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.errors: dict[int, Exception] = {}
        self.gates: dict[int, threading.Event] = {}
        self.entered: dict[int, threading.Event] = {}

    def extent(self, source: MemorySource, number: int, *, skip: int = 0, length: int = UNIT) -> Extent:
        stored = Stored(source, number * UNIT, UNIT, self._decoding(number), skip)
        return Extent(number * UNIT + skip, length, ExtentKind.DATA, stored)

    def _decoding(self, number: int) -> Callable[[Buffer], Buffer]:
        def decode(record: Buffer) -> Buffer:
            self.counts[number] += 1
            if number in self.entered:
                self.entered[number].set()
            if number in self.gates:
                assert self.gates[number].wait(PATIENCE)
            if number in self.errors:
                raise self.errors[number]
            return inverted(bytes(record))

        return decode


def inverted(data: bytes) -> bytes:
    return bytes(255 - byte for byte in data)


def sample(units: int = 64) -> bytes:
    return random.Random(units).randbytes(units * UNIT)


def plain(source: ByteSource, offset: int, stored_at: int, length: int) -> Extent:
    return Extent(offset, length, ExtentKind.DATA, Stored(source, stored_at, length))


# ---- plain data ----


def test_neighbouring_runs_are_one_read() -> None:
    source = CountingSource(sample())
    extents = [plain(source, at, 500 + at, 100) for at in range(0, 1000, 100)]
    assert ReadingEngine().read(extents) == source.read_at(500, 1000)
    assert source.reads[:-1] == [(500, 1000)]


def test_runs_that_do_not_touch_are_read_apart_and_in_order() -> None:
    source = CountingSource(sample())
    extents = [plain(source, 0, 300, 100), plain(source, 100, 100, 100), plain(source, 200, 201, 99)]
    data = sample()
    assert ReadingEngine().read(extents) == data[300:400] + data[100:200] + data[201:300]
    assert source.reads == [(300, 100), (100, 100), (201, 99)]


def test_neighbours_in_two_sources_are_not_joined() -> None:
    one, two = CountingSource(b"a" * 200), CountingSource(b"b" * 200)
    assert ReadingEngine().read([plain(one, 0, 0, 100), plain(two, 100, 100, 100)]) == b"a" * 100 + b"b" * 100
    assert (one.reads, two.reads) == ([(0, 100)], [(100, 100)])


def test_zeroes_between_runs_cost_no_read() -> None:
    source = CountingSource(b"a" * 200)
    extents = [
        plain(source, 0, 0, 100),
        Extent(100, 50, ExtentKind.ZERO),
        Extent(150, 3 << 20, ExtentKind.HOLE),
        plain(source, 150 + (3 << 20), 100, 100),
    ]
    assert ReadingEngine().read(extents) == b"a" * 100 + bytes(50 + (3 << 20)) + b"a" * 100
    assert len(source.reads) == 2


def test_a_source_that_takes_ranges_gets_all_plain_runs_at_once() -> None:
    source, data = RangeSource(sample()), sample()
    extents = [
        plain(source, 0, 3000, 100),
        plain(source, 100, 1000, 100),
        plain(source, 200, 1100, 50),
        Extent(250, 10, ExtentKind.ZERO),
        plain(source, 260, 1150, 50),
    ]
    expected = data[3000:3100] + data[1000:1150] + bytes(10) + data[1150:1200]
    assert ReadingEngine().read(extents) == expected
    assert source.requests == [[(3000, 100), (1000, 150), (1150, 50)]]
    assert source.reads == []


def test_each_of_two_sources_is_asked_once_for_all_its_runs() -> None:
    one, two = RangeSource(b"a" * 1000), RangeSource(b"b" * 1000)
    local = CountingSource(b"c" * 1000)
    sources = [one, two, local, one, local, two]
    extents = [plain(source, 10 * at, 100 * at, 10) for at, source in enumerate(sources)]
    assert ReadingEngine().read(extents) == b"".join(letter * 10 for letter in (b"a", b"b", b"c", b"a", b"c", b"b"))
    assert one.requests == [[(0, 10), (300, 10)]]
    assert two.requests == [[(100, 10), (500, 10)]]
    assert local.reads == [(200, 10), (400, 10)]


def test_a_slice_of_a_local_file_is_read_as_the_file_is() -> None:
    source = CountingSource(sample())
    part = SourceSlice(source, 100, 5000, "slice")
    assert ReadingEngine().read([plain(part, 0, 300, 10), plain(part, 10, 100, 10)]) == (
        sample()[400:410] + sample()[200:210]
    )
    assert source.reads == [(400, 10), (200, 10)]


def test_a_copy_asks_for_all_that_a_piece_needs_at_once() -> None:
    source, decoder = RangeSource(sample()), Decoder()
    far = plain(source, 2 * UNIT, 50 * UNIT, UNIT)
    extents = (decoder.extent(source, 0), decoder.extent(source, 1), far, decoder.extent(source, 3))
    found = b"".join(read_piece(Piece(0, 4 * UNIT, extents)))
    assert found == inverted(sample()[: 2 * UNIT]) + sample()[50 * UNIT : 51 * UNIT] + inverted(sample()[3000:4000])
    # The third unit lies between two that are wanted, and is read along.
    assert source.requests == [[(0, 4 * UNIT), (50 * UNIT, UNIT)]]


def test_requests_that_a_busy_pool_had_no_time_for_leave_nothing_behind() -> None:
    # Found by the fuzzer at the lowest priority: each request stayed in the queue of the pool with all its buffers.
    size = 64 << 10
    source = MemorySource(bytes(8 * size), "units")
    engine = ReadingEngine(workers=2)
    released = threading.Event()

    def wait(_offset: int, _length: int) -> None:
        assert released.wait(PATIENCE)

    busy = [engine.submit(wait, 0, 0) for _ in range(2)]

    def unit(number: int) -> Extent:
        stored = Stored(source, number * size, size, lambda record: bytes(bytearray(record)))
        return Extent(number * size, size, ExtentKind.DATA, stored)

    def read() -> None:
        engine.cache.forget(source)
        assert len(engine.read(unit(number) for number in range(8))) == 8 * size

    read()
    tracemalloc.start()
    try:
        for _ in range(100):
            read()
        assert tracemalloc.get_traced_memory()[0] < 2 << 20
    finally:
        tracemalloc.stop()
        released.set()
    for future in busy:
        future.result(PATIENCE)
    # The pool helps again.
    seen: set[int] = set()
    both = threading.Barrier(2, timeout=PATIENCE)

    def decode(record: Buffer) -> bytes:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            if len(seen) <= 2:
                both.wait()
        return bytes(record)

    extents = [Extent(n * size, size, ExtentKind.DATA, Stored(source, n * size, size, decode)) for n in range(8)]
    engine.cache.forget(source)
    assert engine.read(extents) == bytes(8 * size)
    assert len(seen) >= 2


def test_helpers_of_an_interrupted_request_end_and_begin_nothing_more() -> None:
    begun: list[int] = []
    entered, released = threading.Event(), threading.Event()

    def work(index: int) -> None:
        begun.append(index)
        if threading.current_thread() is helper:
            entered.set()
            assert released.wait(PATIENCE)
        else:
            assert entered.wait(PATIENCE)
            raise ValueError(index)

    class Interrupted(threading.Condition):
        def wait(self, timeout: float | None = None) -> bool:
            raise KeyboardInterrupt

    spread = Spread(work, 100)
    spread._changed = Interrupted(threading.Lock())
    helper = threading.Thread(target=spread.help_out)
    helper.start()
    assert entered.wait(PATIENCE)
    with pytest.raises(KeyboardInterrupt):
        spread.finish()
    released.set()
    helper.join(PATIENCE)
    assert not helper.is_alive()
    assert len(begun) == 2
    spread.help_out()
    assert len(begun) == 2


def test_a_helper_that_cannot_go_on_is_an_error_of_the_request() -> None:
    taken = threading.Event()

    class Turn:
        """Numbers that run out of memory for one thread."""

        def __init__(self) -> None:
            self.numbers = iter(range(100))

        def __next__(self) -> int:
            if threading.current_thread() is helper:
                taken.set()
                raise MemoryError
            assert taken.wait(PATIENCE)
            return next(self.numbers)

    spread = Spread(lambda _index: None, 100)
    spread._turn = Turn()  # type: ignore[assignment]
    failed: list[BaseException] = []

    def help_out() -> None:
        try:
            spread.help_out()
        except MemoryError as error:
            failed.append(error)

    helper = threading.Thread(target=help_out)
    helper.start()
    with pytest.raises(MemoryError, match="could not go on"):
        spread.finish()
    helper.join(PATIENCE)
    assert len(failed) == 1


def test_nothing_is_read_for_an_empty_request() -> None:
    assert ReadingEngine().read([]) == b""


@pytest.mark.parametrize("length", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5 << 20])
def test_zeroes_are_as_many_as_asked(length: int) -> None:
    assert b"".join(zeroes(length)) == bytes(length)


def test_what_is_plain_data() -> None:
    source = MemorySource(bytes(2000))
    assert is_plain_data(plain(source, 0, 0, 1))
    assert not is_plain_data(Extent(0, 1, ExtentKind.ZERO))
    assert not is_plain_data(Decoder().extent(source, 0))


# ---- encoded units ----


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 3, 4, 5, 64])
def test_units_come_in_order_however_many_threads_decode(workers: int, count: int) -> None:
    source, decoder = CountingSource(sample()), Decoder()
    engine = ReadingEngine(workers=workers)
    assert engine.read(decoder.extent(source, number) for number in range(count)) == inverted(sample())[: count * UNIT]
    assert source.reads == [(0, count * UNIT)]
    assert set(decoder.counts.values()) == {1}


def test_part_of_a_unit() -> None:
    source, decoder, engine = MemorySource(sample()), Decoder(), ReadingEngine()
    for skip, length in ((0, 1), (1, 998), (999, 1), (500, 500), (0, 1000)):
        expected = inverted(sample())[3 * UNIT + skip : 3 * UNIT + skip + length]
        assert engine.read([decoder.extent(source, 3, skip=skip, length=length)]) == expected
    assert decoder.counts[3] == 1


def test_two_parts_of_one_unit_in_one_request() -> None:
    # A child's own data between two parts of one compressed unit of its parent.
    source, decoder, engine = CountingSource(sample()), Decoder(), ReadingEngine()
    own = MemorySource(b"x" * 100)
    extents = [
        decoder.extent(source, 3, length=400),
        plain(own, 3400, 0, 100),
        decoder.extent(source, 3, skip=500, length=500),
    ]
    unit = inverted(sample())[3000:4000]
    assert engine.read(extents) == unit[:400] + b"x" * 100 + unit[500:]
    assert decoder.counts[3] == 1
    assert source.reads == [(3000, 1000)]


def test_records_near_each_other_are_read_at_once_and_far_ones_apart() -> None:
    data = sample(1) + bytes(MERGE_GAP) + sample(1) + bytes(MERGE_GAP + 1) + sample(1)
    source, decoder = CountingSource(data), Decoder()
    places = [0, UNIT + MERGE_GAP, 3 * UNIT + 2 * MERGE_GAP + 1 - UNIT]
    extents = [
        Extent(number * UNIT, UNIT, ExtentKind.DATA, Stored(source, place, UNIT, decoder._decoding(number)))
        for number, place in enumerate(places)
    ]
    assert ReadingEngine().read(reversed(extents)) == inverted(sample(1)) * 3
    assert sorted(source.reads) == [(0, 2 * UNIT + MERGE_GAP), (places[2], UNIT)]


def test_one_merged_read_is_bounded() -> None:
    count = MAX_MERGED // (1 << 20) + 3
    source = CountingSource(bytes(count << 20))
    extents = [
        Extent(at << 20, 1 << 20, ExtentKind.DATA, Stored(source, at << 20, 1 << 20, lambda record: record))
        for at in range(count)
    ]
    ReadingEngine(cache_size=0).read(extents)
    assert sorted(source.reads) == [(0, MAX_MERGED), (MAX_MERGED, 3 << 20)]


def test_a_source_that_takes_ranges_gets_all_at_once() -> None:
    data = sample() + bytes(100_000)
    source, decoder = RangeSource(data * 3), Decoder()
    step = len(data)
    extents = [
        Extent(number * UNIT, UNIT, ExtentKind.DATA, Stored(source, place, UNIT, decoder._decoding(number)))
        for number, place in enumerate((2 * step, 0, step))
    ]
    assert ReadingEngine().read(extents) == inverted(sample())[:UNIT] * 3
    assert source.requests == [[(0, UNIT), (step, UNIT), (2 * step, UNIT)]]


def test_plain_runs_and_records_are_asked_for_together() -> None:
    data = sample()
    source, decoder, engine = RangeSource(data), Decoder(), ReadingEngine()
    extents = [
        decoder.extent(source, 0),
        plain(source, UNIT, 40 * UNIT, UNIT),
        decoder.extent(source, 2),
        decoder.extent(source, 60),
        plain(source, 61 * UNIT, 20 * UNIT, UNIT),
    ]
    expected = b"".join(
        data[number * UNIT : (number + 1) * UNIT] if number in (40, 20) else inverted(data[number * UNIT :][:UNIT])
        for number in (0, 40, 2, 60, 20)
    )
    assert engine.read(extents) == expected
    # Records that lie near each other come with what is between them.
    assert source.requests == [[(40 * UNIT, UNIT), (20 * UNIT, UNIT), (0, 3 * UNIT), (60 * UNIT, UNIT)]]
    # The plain ones alone, once the units are kept.
    assert engine.read(extents) == expected
    assert source.requests[1:] == [[(40 * UNIT, UNIT), (20 * UNIT, UNIT)]]


def test_units_are_given_up_if_plain_runs_beside_them_cannot_be_read() -> None:
    class Failing(RangeSource):
        def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
            if len(self.requests) == 0:
                self.requests.append(list(ranges))
                raise CorruptImage("no")
            return super().read_ranges(ranges)

    source, decoder, engine = Failing(sample()), Decoder(), ReadingEngine()
    extents = [decoder.extent(source, 0), plain(source, UNIT, 40 * UNIT, UNIT)]
    with pytest.raises(CorruptImage):
        engine.read(extents)
    assert not engine.cache._pending
    assert engine.read(extents) == inverted(sample()[:UNIT]) + sample()[40 * UNIT : 41 * UNIT]


def test_units_of_two_sources_in_one_request() -> None:
    decoder = Decoder()
    sources = [CountingSource(sample()), CountingSource(inverted(sample()))]
    extents = [decoder.extent(sources[number % 2], number) for number in range(8)]
    expected = b"".join(
        (sample() if number % 2 else inverted(sample()))[number * UNIT : (number + 1) * UNIT] for number in range(8)
    )
    assert ReadingEngine(workers=2).read(extents) == expected


# ---- the cache ----


def test_the_cache_stays_within_its_bound() -> None:
    source, decoder = MemorySource(sample()), Decoder()
    engine = ReadingEngine(workers=2, cache_size=10 * UNIT)
    for start in range(0, 64, 8):
        engine.read(decoder.extent(source, number) for number in range(start, start + 8))
        assert engine.cache._size == sum(len(unit) for unit in engine.cache._units.values()) <= 10 * UNIT
    assert len(engine.cache._units) == 10
    engine.read([decoder.extent(source, 63)])
    assert decoder.counts[63] == 1
    engine.read([decoder.extent(source, 0)])
    assert decoder.counts[0] == 2


def test_the_least_recently_used_unit_goes_first() -> None:
    source, cache = MemorySource(b""), UnitCache(3)
    for number in (1, 2, 3):
        cache.settle((source, number, 0), b"x")
    assert cache.get((source, 1, 0)) == b"x"
    cache.settle((source, 4, 0), b"x")
    assert cache.get((source, 2, 0)) is None
    assert cache.get((source, 1, 0)) == b"x"


def test_a_unit_larger_than_the_cache_is_not_kept_and_drives_nothing_out() -> None:
    source, cache = MemorySource(b""), UnitCache(3)
    cache.settle((source, 1, 0), b"x")
    cache.settle((source, 2, 0), b"1234")
    assert cache.get((source, 1, 0)) == b"x"
    assert cache.get((source, 2, 0)) is None


def test_a_unit_kept_twice_is_counted_once() -> None:
    source, cache = MemorySource(b""), UnitCache(10)
    for unit in (b"12345", b"123", b"1234"):
        cache.settle((source, 1, 0), unit)
    assert cache._size == 4


def test_closing_a_source_forgets_its_units_only() -> None:
    one, two, decoder, engine = MemorySource(sample()), MemorySource(sample()), Decoder(), ReadingEngine()
    for source in (one, two):
        engine.read([decoder.extent(source, 1), decoder.extent(source, 2)])
    engine.cache.forget(one)
    assert {key[0] for key in engine.cache._units} == {two}
    assert engine.cache._size == 2 * UNIT


def test_one_record_that_two_units_share_is_decoded_for_each() -> None:
    source, engine = MemorySource(sample()), ReadingEngine()
    decoded: list[int] = []

    def decoding(number: int) -> Callable[[Buffer], Buffer]:
        def decode(record: Buffer) -> Buffer:
            decoded.append(number)
            return bytes(record)

        return decode

    for number in (5, 6, 5):
        engine.read([Extent(number * UNIT, UNIT, ExtentKind.DATA, Stored(source, 0, UNIT, decoding(number)))])
    assert decoded == [5, 6]


# ---- ready bytes ----


def test_a_kept_unit_is_ready() -> None:
    source, decoder, engine = MemorySource(sample()), Decoder(), ReadingEngine()
    part = decoder.extent(source, 4, skip=10, length=20)
    assert engine.unit_if_ready(part) is None
    engine.read([decoder.extent(source, 4)])
    assert engine.unit_if_ready(part) == inverted(sample())[4010:4030]


def test_a_record_at_hand_is_decoded_here_and_kept() -> None:
    source, decoder, engine = CountingSource(sample()), Decoder(), ReadingEngine()
    part = decoder.extent(source, 4, skip=10, length=20)
    assert engine.decode_if_ready(part, lambda offset, length: None) is None
    for _ in range(2):
        assert engine.decode_if_ready(part, source.read_if_ready) == inverted(sample())[4010:4030]
    assert decoder.counts[4] == 1


# ---- threads ----


def test_readers_of_one_unit_decode_it_once() -> None:
    source, decoder, engine = CountingSource(sample()), Decoder(), ReadingEngine(workers=2)
    decoder.gates[3], decoder.entered[3] = threading.Event(), threading.Event()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(engine.read, [decoder.extent(source, 3)])
        assert decoder.entered[3].wait(PATIENCE)
        others = [pool.submit(engine.read, [decoder.extent(source, 3, skip=skip, length=1)]) for skip in range(7)]
        wait_until(lambda: waiters(engine) == 7)
        decoder.gates[3].set()
        assert first.result(PATIENCE) == inverted(sample())[3000:4000]
        assert [other.result(PATIENCE) for other in others] == [
            inverted(sample())[3000 + skip : 3001 + skip] for skip in range(7)
        ]
    assert decoder.counts[3] == 1
    assert len(source.reads) == 1


def test_an_error_reaches_every_reader_of_the_unit_and_is_not_kept() -> None:
    source, decoder, engine = CountingSource(sample()), Decoder(), ReadingEngine(workers=2)
    decoder.gates[3], decoder.entered[3] = threading.Event(), threading.Event()
    decoder.errors[3] = CorruptImage("grain 3")
    with ThreadPoolExecutor(8) as pool:
        readers = [pool.submit(engine.read, [decoder.extent(source, 3)])]
        assert decoder.entered[3].wait(PATIENCE)
        readers += [pool.submit(engine.read, [decoder.extent(source, 3)]) for _ in range(7)]
        wait_until(lambda: waiters(engine) == 7)
        decoder.gates[3].set()
        for reader in readers:
            with pytest.raises(CorruptImage, match="grain 3"):
                reader.result(PATIENCE)
    assert decoder.counts[3] == 1
    del decoder.errors[3]
    assert engine.read([decoder.extent(source, 3)]) == inverted(sample())[3000:4000]


@pytest.mark.parametrize("units", [2, 8])
def test_a_damaged_unit_does_not_fail_those_who_wait_for_its_neighbour(units: int) -> None:
    # One reader wants units 0 to 7, of which 0 is damaged; another wants only the last, and finds it claimed.
    source, decoder, engine = CountingSource(sample()), Decoder(), ReadingEngine(workers=1)
    decoder.gates[0], decoder.entered[0] = threading.Event(), threading.Event()
    decoder.errors[0] = CorruptImage("grain 0")
    with ThreadPoolExecutor(2) as pool:
        both = pool.submit(engine.read, [decoder.extent(source, number) for number in range(units)])
        assert decoder.entered[0].wait(PATIENCE)
        other = pool.submit(engine.read, [decoder.extent(source, units - 1)])
        wait_until(lambda: waiters(engine) == 1)
        decoder.gates[0].set()
        with pytest.raises(CorruptImage, match="grain 0"):
            both.result(PATIENCE)
        assert other.result(PATIENCE) == inverted(sample())[(units - 1) * UNIT : units * UNIT]
    assert not engine.cache._pending


def test_a_failed_read_does_not_fail_those_who_wait() -> None:
    class FailingOnce(CountingSource):
        def __init__(self, data: bytes) -> None:
            super().__init__(data)
            self.entered = threading.Event()
            self.gate = threading.Event()

        def read_at(self, offset: int, length: int, /) -> bytes:
            data = super().read_at(offset, length)
            if len(self.reads) == 1:
                self.entered.set()
                assert self.gate.wait(PATIENCE)
                raise CorruptImage("a bad sector")
            return data

    source, decoder, engine = FailingOnce(sample()), Decoder(), ReadingEngine()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.read, [decoder.extent(source, 0), decoder.extent(source, 1)])
        assert source.entered.wait(PATIENCE)
        second = pool.submit(engine.read, [decoder.extent(source, 1)])
        wait_until(lambda: waiters(engine) == 1)
        source.gate.set()
        with pytest.raises(CorruptImage, match="bad sector"):
            first.result(PATIENCE)
        assert second.result(PATIENCE) == inverted(sample())[UNIT : 2 * UNIT]
    assert not engine.cache._pending


@pytest.mark.parametrize("count", [2, 16])
def test_an_error_leaves_no_claim_behind(count: int) -> None:
    source, decoder, engine = MemorySource(sample()), Decoder(), ReadingEngine(workers=4)
    for number in range(0, count, 2):
        decoder.errors[number] = CorruptImage(f"grain {number}")
    with pytest.raises(CorruptImage):
        engine.read(decoder.extent(source, number) for number in range(count))
    assert not engine.cache._pending


def test_an_error_keeps_no_buffers_once_it_is_gone() -> None:
    source, decoder, engine = MemorySource(sample()), Decoder(), ReadingEngine(workers=2)
    decoder.errors[5] = CorruptImage("planted")
    gc.disable()
    try:
        with pytest.raises(CorruptImage) as caught:
            engine.read(decoder.extent(source, number) for number in range(16))
        gone = weakref.ref(caught.value)
        decoder.errors.clear()
        del caught
        assert gone() is None
    finally:
        gc.enable()


def test_an_interruption_is_not_handed_to_other_readers() -> None:
    source, engine = MemorySource(sample()), ReadingEngine()
    calls = []

    def decode(record: Buffer) -> Buffer:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return bytes(record)

    extent = Extent(0, UNIT, ExtentKind.DATA, Stored(source, 0, UNIT, decode))
    with pytest.raises(KeyboardInterrupt):
        engine.read([extent])
    assert not engine.cache._pending
    assert engine.read([extent]) == sample()[:UNIT]


def test_many_readers_few_workers_and_a_tiny_cache_never_wait_for_each_other_for_ever() -> None:
    source, decoder = MemorySource(sample()), Decoder()
    engine = ReadingEngine(workers=2, cache_size=3 * UNIT)
    decoder.errors = {number: CorruptImage(f"grain {number}") for number in (13, 50)}
    expected = inverted(sample())
    deadline = time.monotonic() + 1.5

    def read(seed: int) -> int:
        chance, reads = random.Random(seed), 0
        while time.monotonic() < deadline:
            start = chance.randrange(64)
            end = min(64, start + chance.choice((1, 2, 5, 16, 40)))
            numbers = list(range(start, end))
            if seed % 3 == 0:
                numbers.reverse()
            try:
                found = engine.read(decoder.extent(source, number) for number in numbers)
            except CorruptImage as error:
                assert any(str(error) == f"grain {number}" for number in numbers)  # noqa: PT017 - which one is checked
            else:
                assert not {13, 50} & set(numbers)
                assert found == b"".join(expected[number * UNIT : (number + 1) * UNIT] for number in numbers)
            reads += 1
        return reads

    with ThreadPoolExecutor(32) as pool:
        readers: list[Future[int]] = [pool.submit(read, seed) for seed in range(32)]
        assert all(reader.result(PATIENCE) for reader in readers)
    assert not engine.cache._pending
    assert engine.cache._size <= 3 * UNIT


def waiters(engine: ReadingEngine) -> int:
    """Return how many threads wait for another's decoding."""
    return sum(pending.waiting for pending in list(engine.cache._pending.values()))


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_copy_decodes_a_unit_once_though_an_overlay_hides_parts_of_it() -> None:
    source, decoder = RangeSource(sample()), Decoder()
    over = CountingSource(b"o" * 1000)
    whole = decoder.extent(source, 0)
    first, last = clipped(whole, 0, 200), clipped(whole, 300, UNIT)
    found = b"".join(read_piece(Piece(0, UNIT, (first, plain(over, 200, 0, 100), last))))
    unit = inverted(sample()[:UNIT])
    assert found == unit[:200] + b"o" * 100 + unit[300:]
    # Whoever takes over a record as it is must see that this is not all of its unit.
    for part in (first, last, clipped(whole, 0, 10)):
        assert isinstance(read_piece(Piece(part.offset, part.length, (part,)))[0], memoryview)
    assert decoder.counts == {0: 4}


def test_a_record_that_two_units_share_is_decoded_for_each_of_them() -> None:
    # A record may say which unit it is, so that it is right for one of them alone.
    source = RangeSource(sample())
    seen: list[int] = []

    def unit_at(offset: int) -> Extent:
        def decode(record: Buffer) -> bytes:
            seen.append(offset)
            return bytes(record)

        return Extent(offset, UNIT, ExtentKind.DATA, Stored(source, 0, UNIT, decode))

    assert b"".join(read_piece(Piece(0, 2 * UNIT, (unit_at(0), unit_at(UNIT))))) == 2 * sample()[:UNIT]
    assert seen == [0, UNIT]
