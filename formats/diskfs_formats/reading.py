"""From a map to bytes: neighbouring runs are read at once, encoded units are decoded side by side and kept.

One `ReadingEngine` serves a whole process, so its pool of decoder threads and its cache of decoded units are bounded
for all disks together.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.gathering import Records, Span, read_spans
from diskfs_formats.source import Buffer, ByteSource, ReadyReader, takes_ranges
from diskfs_formats.spread import Spread

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

T = TypeVar("T")

CACHE_SIZE = 64 << 20
"""Decoded bytes that are kept, for all disks together."""
MIN_PARALLEL = 4
"""Units from which decoding is spread over threads; below, the hand-over costs more than it brings."""
MIN_STREAMING = 6
"""Units of one request from which all but the first and the last are decoded past the cache."""

UnitKey: TypeAlias = tuple[ByteSource, int, int]
"""Source, stored offset, and the virtual offset of the unit's first byte: two units that share one record are
decoded apart, because each record says which unit it belongs to."""

_ZEROES = memoryview(bytes(1 << 20))


def zeroes(length: int) -> Iterator[memoryview]:
    """Yield `length` zero bytes in pieces that share one block of memory."""
    while length > 0:
        piece = _ZEROES[:length]
        yield piece
        length -= len(piece)


class PendingUnit:
    """A unit that some thread has claimed and is decoding; the others wait for what becomes of it."""

    __slots__ = ("_error", "_pending", "_unit", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        """Threads that wait, or have waited; for a test to know when they do."""
        # Held until it is settled. One is made for every unit that is decoded, and an Event costs twenty times as much.
        self._pending = threading.Lock()
        self._pending.acquire()
        self._unit: Buffer | None = None
        self._error: BaseException | None = None

    def settle(self, unit: Buffer | None, error: BaseException | None = None) -> None:
        """Say what became of it: the unit, an error, or neither if it was given up."""
        self._unit, self._error = unit, error
        self._pending.release()

    def result(self) -> Buffer | None:
        """Wait, and return the unit, or None if it was given up; raises the error that decoding it met."""
        self.waiting += 1
        with self._pending:
            pass
        if self._error is not None:
            raise self._error
        return self._unit


class UnitCache:
    """Decoded units by key, least recently used out first; a unit that is being decoded is waited for, not redone."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._units: OrderedDict[UnitKey, Buffer] = OrderedDict()
        self._pending: dict[UnitKey, PendingUnit] = {}
        self._lock = threading.Lock()

    def get(self, key: UnitKey) -> Buffer | None:
        """Return a decoded unit, or None."""
        with self._lock:
            unit = self._units.get(key)
            if unit is not None:
                self._units.move_to_end(key)
            return unit

    def claim(self, key: UnitKey) -> "Buffer | PendingUnit | None":
        """Return the unit, or what another thread's decoding will give, or None: then the caller must settle it, let it
        fail, or give it up.
        """
        with self._lock:
            unit = self._units.get(key)
            if unit is not None:
                self._units.move_to_end(key)
                return unit
            pending = self._pending.get(key)
            if pending is None:
                self._pending[key] = PendingUnit()
            return pending

    def settle(self, key: UnitKey, unit: Buffer) -> None:
        """Keep a unit, claimed or not, and hand it to those who wait."""
        with self._lock:
            pending = self._pending.pop(key, None)
            old = self._units.pop(key, None)
            if old is not None:
                self._size -= len(old)
            if len(unit) <= self._capacity:
                self._units[key] = unit
                self._size += len(unit)
            while self._size > self._capacity:
                self._size -= len(self._units.popitem(last=False)[1])
        if pending is not None:
            pending.settle(unit)

    def fail(self, key: UnitKey, error: BaseException) -> None:
        """Say that a claimed unit cannot be decoded; whoever waits gets the error, and the next reader tries anew."""
        with self._lock:
            pending = self._pending.pop(key, None)
        if pending is not None:
            pending.settle(None, error)

    def give_up(self, key: UnitKey) -> None:
        """Give a claimed unit up for a reason that is not the unit's; whoever waits gets None and sees for itself."""
        with self._lock:
            pending = self._pending.pop(key, None)
        if pending is not None:
            pending.settle(None)

    def forget(self, source: ByteSource) -> None:
        """Drop the units of one source, when it is closed."""
        with self._lock:
            for key in [key for key in self._units if key[0] is source]:
                self._size -= len(self._units.pop(key))


@dataclass(slots=True)
class _Piece:
    """One extent of a request: `parts` becomes its bytes."""

    extent: Extent
    parts: Iterable[Buffer] = ()


class ReadingEngine:
    """Reads maps. Safe to share between threads; waits only for its sources and for other readers' decoding."""

    def __init__(self, *, workers: int | None = None, cache_size: int = CACHE_SIZE) -> None:
        self.cache = UnitCache(cache_size)
        self._workers = workers or max(1, len(os.sched_getaffinity(0)))
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._here = threading.local()
        self._asked = 0
        """Helpers that wait in the pool's queue."""

    def submit(self, work: Callable[[int, int], T], offset: int, length: int) -> "Future[T]":
        """Run a read on a thread of the pool, which decodes by itself: for several reads under way side by side."""
        return self._executor().submit(work, offset, length)

    def read(self, extents: Iterable[Extent]) -> bytes:
        """Return the bytes of contiguous extents, in order. Raises what sources and decoders raise."""
        pieces = [_Piece(extent) for extent in extents]
        encoded = []
        together = []
        known, is_remote = None, False
        for run in _plain_runs(pieces):
            first, last = run[0].extent.stored, run[-1].extent.stored
            assert first is not None
            assert last is not None
            if first.source is not known:
                known, is_remote = first.source, takes_ranges(first.source)
            if is_remote:
                together.append(run)
            else:
                run[0].parts = (first.source.read_at(first.offset, last.offset + last.length - first.offset),)
        for piece in pieces:
            if piece.extent.stored is None:
                piece.parts = zeroes(piece.extent.length)
            elif piece.extent.stored.decode is not None:
                encoded.append(piece)
        if encoded:
            self._read_encoded(encoded, together)
        elif together:
            _settle(together, read_spans([_span(run) for run in together]))
        return b"".join(part for piece in pieces for part in piece.parts)

    def unit_if_ready(self, extent: Extent) -> Buffer | None:
        """Return the bytes of one encoded extent, if its unit is kept."""
        stored = extent.stored
        assert stored is not None
        unit = self.cache.get(_key(extent, stored))
        return None if unit is None else memoryview(unit)[stored.skip : stored.skip + extent.length]

    def decode_if_ready(self, extent: Extent, ready: Callable[[int, int], Buffer | None]) -> Buffer | None:
        """Return the bytes of one encoded extent, decoded here and now if its record is at hand."""
        stored = extent.stored
        assert stored is not None
        assert stored.decode is not None
        key = _key(extent, stored)
        unit = self.cache.get(key)
        if unit is None:
            record = ready(stored.offset, stored.length)
            if record is None:
                return None
            unit = stored.decode(record)
            self.cache.settle(key, unit)
        return memoryview(unit)[stored.skip : stored.skip + extent.length]

    def _read_encoded(self, pieces: Sequence[_Piece], together: Sequence[list[_Piece]]) -> None:
        """Read and decode `pieces`; the plain runs in `together` are read along with the records."""
        mine: list[tuple[_Piece, UnitKey | None]] = []
        awaited: list[tuple[_Piece, PendingUnit]] = []
        open_claims: set[UnitKey] = set()
        try:
            for index, piece in enumerate(pieces):
                stored = piece.extent.stored
                assert stored is not None
                if _streams_by(pieces, index, stored):
                    mine.append((piece, None))
                    continue
                key = _key(piece.extent, stored)
                found = self.cache.claim(key)
                if found is None:
                    open_claims.add(key)
                    mine.append((piece, key))
                elif isinstance(found, PendingUnit):
                    awaited.append((piece, found))
                else:
                    piece.parts = (_part(piece.extent, stored, found),)
            records = Records([piece.extent.stored for piece, _ in mine if piece.extent.stored])
            read = read_spans([*map(_span, together), *records.spans])
            _settle(together, read)
            self._decode(mine, records.cut(read[len(together) :]), open_claims)
        finally:
            # Left open by an error in another unit or in reading: no reason for those who wait for this one to fail.
            for key in list(open_claims):
                self.cache.give_up(key)
        for piece, pending in awaited:
            unit = pending.result()
            if unit is None:
                unit = self._decode_alone(piece.extent)
            assert piece.extent.stored is not None
            piece.parts = (_part(piece.extent, piece.extent.stored, unit),)

    def _decode(
        self, pieces: Sequence[tuple[_Piece, UnitKey | None]], records: Sequence[Buffer], open_claims: set[UnitKey]
    ) -> None:
        """Decode pieces, taking each claimed one out of `open_claims` once it is settled or has failed."""

        def decode(index: int) -> None:
            piece, key = pieces[index]
            stored = piece.extent.stored
            assert stored is not None
            assert stored.decode is not None
            try:
                unit = stored.decode(records[index])
            except Exception as error:
                if key is not None:
                    self.cache.fail(key, error)
                    open_claims.discard(key)
                raise
            if key is not None:
                self.cache.settle(key, unit)
                open_claims.discard(key)
            piece.parts = (_part(piece.extent, stored, unit),)

        self._decode_all(decode, len(pieces))

    def _decode_all(self, decode: Callable[[int], None], count: int) -> None:
        if count < MIN_PARALLEL or self._workers == 1 or getattr(self._here, "is_worker", False):
            for index in range(count):
                decode(index)
        else:
            self._spread(decode, count)

    def _decode_alone(self, extent: Extent) -> Buffer:
        """Read and decode one unit without a claim, after the reader that had claimed it gave it up."""
        stored = extent.stored
        assert stored is not None
        assert stored.decode is not None
        unit = stored.decode(stored.source.read_at(stored.offset, stored.length))
        self.cache.settle(_key(extent, stored), unit)
        return unit

    def _spread(self, work: Callable[[int], None], count: int) -> None:
        """Run work(0..count-1) on this thread and the pool's; all are done, or have failed, when it returns."""
        spread = Spread(work, count)

        def help_out() -> None:
            with self._lock:
                self._asked -= 1
            spread.help_out()

        executor = self._executor()
        for _ in range(min(self._workers, count) - 1):
            with self._lock:
                # Threads that do not come to what waits for them already need not be asked for more.
                if self._asked >= self._workers:
                    break
                self._asked += 1
            try:
                executor.submit(help_out)
            except RuntimeError:
                # There can be no further thread, or the interpreter is ending. It may be in the queue all the same, and
                # counts until its turn comes.
                break
        spread.finish()

    def _executor(self) -> "ThreadPoolExecutor":
        with self._lock:
            if self._pool is None:
                from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - slow to load, and often not needed

                self._pool = ThreadPoolExecutor(self._workers, "diskfs-decode", initializer=self._mark_worker)
            return self._pool

    def _mark_worker(self) -> None:
        self._here.is_worker = True


def _key(extent: Extent, stored: Stored) -> UnitKey:
    return stored.source, stored.offset, extent.offset - stored.skip


def _streams_by(pieces: Sequence[_Piece], index: int, stored: Stored) -> bool:
    """Tell whether a unit is read whole in the midst of a large request, and so is decoded past the cache.

    What streams by would drive out what is read at random; and memory that is used again at once stays in the
    processor's cache. Only the first and the last unit can be parts of what another request wants, too.
    """
    if len(pieces) < MIN_STREAMING or stored.skip or not 0 < index < len(pieces) - 1:
        return False
    following = pieces[index + 1].extent.stored
    return following is None or following.offset != stored.offset or following.source is not stored.source


def _part(extent: Extent, stored: Stored, unit: Buffer) -> Buffer:
    if stored.skip == 0 and extent.length == len(unit):
        return unit
    return memoryview(unit)[stored.skip : stored.skip + extent.length]


def _plain_runs(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Group neighbouring pieces that are stored as they are, one after the other in one source."""
    run: list[_Piece] = []
    for piece in pieces:
        stored = piece.extent.stored
        plain = stored is not None and stored.decode is None
        if run:
            last = run[-1].extent.stored
            assert last is not None
            if plain and stored and stored.source is last.source and stored.offset == last.offset + last.length:
                run.append(piece)
                continue
            yield run
            run = []
        if plain:
            run.append(piece)
    if run:
        yield run


def _span(run: Sequence[_Piece]) -> Span:
    first, last = run[0].extent.stored, run[-1].extent.stored
    assert first is not None
    assert last is not None
    return first.source, first.offset, last.offset + last.length - first.offset


def _settle(runs: Sequence[list[_Piece]], found: Iterable[Buffer]) -> None:
    """Give each run its bytes, which are those of its first piece; more may be found."""
    for run, data in zip(runs, found, strict=False):
        run[0].parts = (data,)


ENGINE = ReadingEngine()
"""The engine of this process."""


def ready_reader(source: ByteSource) -> Callable[[int, int], Buffer | None]:
    """Return the source's ready-bytes path, or one that never has any."""
    return source.read_if_ready if isinstance(source, ReadyReader) else _never_ready


def _never_ready(_offset: int, _length: int, /) -> Buffer | None:
    return None


def is_plain_data(extent: Extent) -> bool:
    """Tell whether the extent's bytes are stored as they are."""
    return extent.kind is ExtentKind.DATA and extent.stored is not None and extent.stored.decode is None
