"""Blocks of remote objects, kept in bounded memory, fetched in sizes that fit how they are read.

What decides the speed of a remote disk is how many requests are made and how large they are (measured with 20 ms a
request: 168 requests of the usual readers take 4.3 s for what 12 bring in 0.9 s). So a place that is read for the first
time brings little, a stream brings more and more, ahead of its reader, and near ranges are asked for at once.
"""

import functools
import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diskfs.retrying import Deadline
from diskfs.sources.fetching import FETCHERS, Fetchers
from diskfs.sources.remote import PIECE, SPARE, Piece, RemoteObject
from diskfs.sources.statistics import STATISTICS
from diskfs_formats.source import Buffer, require_range

if TYPE_CHECKING:
    from diskfs.sources.stored_cache import StoredCache

BLOCK = PIECE
"""Bytes that are kept or dropped together, and the least that is fetched."""
MEMORY = 128 << 20
"""Bytes that all sources of a process keep together."""
OPENING_MISSES = 16
"""Misses at places of their own that fetch one block each: opening an image looks at a few hundred bytes in many
places, and should cost little. Later ones fetch RANDOM."""
RANDOM = (1 << 20) // BLOCK
"""Blocks that a read at a place of its own fetches: below a megabyte, a request costs more than its bytes."""
LARGEST = (8 << 20) // BLOCK
"""Blocks of one request at most."""
FURTHEST = (48 << 20) // BLOCK
"""Blocks that are read ahead of all streams together at most: six of the largest requests side by side, and less than
the part of the memory that they stay in until they are read."""
ACTIVE_FOR = 3.0
"""Seconds after a read for which a stream counts as one that goes on."""
SLACK = (1 << 20) // BLOCK
"""Blocks that a stream may skip."""
BEHIND = (4 << 20) // BLOCK
"""Blocks that a stream may come back: threads, and the kernel's own reading ahead, overtake each other."""
GAP = 1
"""Blocks between two that are needed which are fetched along, rather than asking twice."""
EAGERNESS = 4
"""How many times what a stream has had is read ahead of it: requests grow to LARGEST within a few megabytes."""
MAX_STREAMS = 8
MAX_AHEAD = 64 << 20
"""Bytes under way for all streams together that nobody has asked for yet."""


class BlockMemory:
    """Blocks by source and number. What streams by drives out what streamed by before; what was read at places of its
    own (headers, tables) has the other half for itself. Not locked: its user is.
    """

    def __init__(self, capacity: int = MEMORY) -> None:
        self._halves: tuple[OrderedDict[tuple[int, int], Piece], ...] = (OrderedDict(), OrderedDict())
        self._sizes = [0, 0]
        self._capacity = capacity // 2

    def get(self, key: tuple[int, int]) -> Piece | None:
        """Return a block; note its use, unless it streams by: what was read of a stream goes before what was not."""
        single, streamed = self._halves
        block = single.get(key)
        if block is None:
            return streamed.get(key)
        single.move_to_end(key)
        return block

    def __contains__(self, key: object) -> bool:
        return any(key in half for half in self._halves)

    def put(self, key: tuple[int, int], block: Piece, *, streamed: bool) -> None:
        """Keep a block. Those of a stream come and go with the others of their buffer; any other gets its own, so that
        no more is kept than is counted.
        """
        if key in self:
            return
        if not streamed and len(block) < len(block.buffer):
            block = Piece.of(bytes(block.view))
        index = 1 if streamed else 0
        half = self._halves[index]
        half[key] = block
        self._sizes[index] += len(block)
        while self._sizes[index] > self._capacity:
            self._sizes[index] -= len(half.popitem(last=False)[1])

    def forget(self, owner: int) -> None:
        """Drop the blocks of one source."""
        for index, half in enumerate(self._halves):
            for key in [key for key in half if key[0] == owner]:
                self._sizes[index] -= len(half.pop(key))


class _Shared:
    """What all sources of the process share."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.memory = BlockMemory()
        self.ahead = 0
        self.numbers = itertools.count()


_SHARED = _Shared()


@dataclass(slots=True, eq=False)
class _Fetch:
    """Blocks that are under way; several readers may wait for them."""

    blocks: range
    is_urgent: bool
    future: "Future[list[Piece]]" = field(default_factory=Future)


@dataclass(slots=True, eq=False)
class _Stream:
    """One reader going forward: the block it will want next, how many it has had since its first read, up to where
    blocks were asked for.
    """

    position: int
    consumed: int
    asked_to: int
    used: float = 0.0


class CachedSource:
    """A remote object as a ByteSource. Safe to share between threads."""

    def __init__(
        self,
        remote: RemoteObject,
        *,
        stored: "StoredCache | None" = None,
        fetchers: Fetchers = FETCHERS,
        shared: _Shared = _SHARED,
    ) -> None:
        self._remote = remote
        self._stored = stored
        self._fetchers = fetchers
        self._shared = shared
        with shared.lock:
            self._number = next(shared.numbers)
        self._blocks = -(-remote.size // BLOCK)
        self._under_way: dict[int, _Fetch] = {}
        self._streams: list[_Stream] = []
        self._misses = 0
        self._closed = False

    @property
    def name(self) -> str:
        return self._remote.name

    @property
    def size(self) -> int:
        return self._remote.size

    @property
    def remote(self) -> RemoteObject:
        """The object itself, with its version."""
        return self._remote

    def read_at(self, offset: int, length: int, /) -> bytes:
        return self.read_ranges([(offset, length)])[0]

    def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
        wanted: list[int] = []
        for offset, length in ranges:
            require_range(self, offset, length)
            if length:
                wanted.extend(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
        found = self._obtain(sorted(set(wanted)))
        return [bytes(_cut(found, offset, length)) for offset, length in ranges]

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        if not length:
            return b""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        memory = self._shared.memory
        with self._shared.lock:
            if first == last:
                block = memory.get((self._number, first))
                if block is None:
                    return None
                found = {first: block}
            else:
                found = {}
                for number in range(first, last + 1):
                    block = memory.get((self._number, number))
                    if block is None:
                        return None
                    found[number] = block
            fetches = self._plan([self._ahead(first, last)])
        STATISTICS.add(cache_hits=len(found))
        self._start(fetches)
        return _cut(found, offset, length)

    def _obtain(self, wanted: Sequence[int]) -> dict[int, Piece]:
        """Return blocks: from memory, from what is under way, or fetched now. Raises what fetching raises."""
        found: dict[int, Piece] = {}
        awaited: dict[int, _Fetch] = {}
        missing: list[int] = []
        with self._shared.lock:
            for number in wanted:
                block = self._shared.memory.get((self._number, number))
                if block is not None:
                    found[number] = block
                elif number in self._under_way:
                    awaited[number] = self._under_way[number]
                else:
                    missing.append(number)
            spans = [self._widened(first, last + 1) for first, last in _runs(missing, GAP)]
            spans.extend(self._ahead(first, last) for first, last in _runs(wanted, GAP))
            fetches = self._plan(spans, missing)
            for fetch in fetches:
                awaited.update((number, fetch) for number in missing if number in fetch.blocks)
        STATISTICS.add(cache_hits=len(found))
        self._start(fetches)
        for number, fetch in awaited.items():
            found[number] = fetch.future.result()[number - fetch.blocks.start]
        return found

    # Called with the lock held.

    def _widened(self, start: int, end: int) -> tuple[int, int]:
        """Return what to fetch for missing blocks: first and end."""
        for stream in self._streams:
            distance = start - stream.position
            if 0 <= distance <= SLACK:
                return start, end
            if 0 < distance <= min(FURTHEST, EAGERNESS * stream.consumed):
                # A table that lies ahead of a stream: what is around it is wanted soon.
                return start - start % LARGEST, max(end, start - start % LARGEST + LARGEST)
        if end - start > RANDOM:
            return start, end
        self._misses += 1
        if self._misses <= OPENING_MISSES:
            return start, end
        # The megabyte that the block lies in: what is before it is wanted next as often as what follows.
        return start - start % RANDOM, max(end, start - start % RANDOM + RANDOM)

    def _ahead(self, first: int, last: int) -> tuple[int, int]:
        """Note that blocks are read; return first and end of what the same reader will want soon, if it is time."""
        now = time.monotonic()
        stream = next((one for one in self._streams if one.position - BEHIND <= first <= one.position + SLACK), None)
        if stream is None:
            self._streams.insert(0, _Stream(last + 1, 0, last + 1, now))
            del self._streams[MAX_STREAMS:]
            return 0, 0
        if stream is not self._streams[0]:
            self._streams.remove(stream)
            self._streams.insert(0, stream)
        if last < stream.position:
            return 0, 0
        stream.used = now
        stream.consumed += last + 1 - max(first, stream.position)
        stream.position = last + 1
        stream.asked_to = max(stream.asked_to, stream.position)
        active = sum(one.consumed > RANDOM and now - one.used < ACTIVE_FOR for one in self._streams)
        ahead = min(EAGERNESS * stream.consumed, FURTHEST // max(1, active))
        target = stream.position + ahead
        if ahead >= LARGEST:
            target -= target % LARGEST
        if target + RANDOM >= self._blocks:
            target = self._blocks
        step = target - stream.asked_to
        # In large steps: half of what is kept ahead, or the largest request.
        enough = step >= min(ahead // 2, LARGEST) or target == self._blocks
        if step <= 0 or not enough or self._shared.ahead + step * BLOCK > MAX_AHEAD:
            return 0, 0
        begin, stream.asked_to = stream.asked_to, target
        return begin, target

    def _plan(self, spans: Sequence[tuple[int, int]], missing: Sequence[int] = ()) -> list[_Fetch]:
        """Return fetches, noted as under way, for those blocks of spans that are neither there nor under way."""
        free = sorted(
            {
                number
                for first, end in spans
                for number in range(first, min(end, self._blocks))
                if number not in self._under_way and (self._number, number) not in self._shared.memory
            }
        )
        fetches = []
        for start, last in _runs(free):
            begin = start
            while begin <= last:
                # What is left over is no request of its own if it is little.
                end = last + 1 if last + 1 - begin <= LARGEST + RANDOM else begin + LARGEST
                blocks = range(begin, end)
                begin = end
                fetch = _Fetch(blocks, is_urgent=any(number in blocks for number in missing))
                fetches.append(fetch)
                self._under_way.update(dict.fromkeys(blocks, fetch))
                if not fetch.is_urgent:
                    self._shared.ahead += len(blocks) * BLOCK
        return fetches

    # Called without the lock from here on.

    def _start(self, fetches: Sequence[_Fetch]) -> None:
        for fetch in fetches:
            work = self._fetchers.submit(
                functools.partial(self._bring, fetch.blocks, self._remote.deadline()), urgent=fetch.is_urgent
            )
            work.add_done_callback(functools.partial(self._settle, fetch))

    def _bring(self, blocks: range, deadline: Deadline) -> list[Piece]:
        """Return blocks, those from the cache's folder that it has."""
        if self._stored is None:
            return self._request(blocks.start, len(blocks), deadline)
        stored: dict[int, Piece] = {}
        for number in blocks:
            data = self._stored.load(self._remote.key, number, self._length(number))
            if data is not None:
                stored[number] = Piece.of(data)
        STATISTICS.add(stored_hits=len(stored))
        for first, last in _runs([number for number in blocks if number not in stored]):
            for number, block in enumerate(self._request(first, last + 1 - first, deadline), first):
                stored[number] = block
                self._stored.store(self._remote.key, number, bytes(block.view))
        return [stored[number] for number in blocks]

    def _request(self, first: int, count: int, deadline: Deadline) -> list[Piece]:
        offset = first * BLOCK
        return self._remote.fetch(offset, min(count * BLOCK, self.size - offset), deadline)

    def _length(self, number: int) -> int:
        return min(BLOCK, self.size - number * BLOCK)

    def _settle(self, fetch: _Fetch, done: "Future[list[Piece]]") -> None:
        """Keep what came, and let the next reader try again what did not."""
        error = done.exception()
        with self._shared.lock:
            for number in fetch.blocks:
                del self._under_way[number]
            if not fetch.is_urgent:
                self._shared.ahead -= len(fetch.blocks) * BLOCK
            if error is None and not self._closed:
                streamed = len(fetch.blocks) > RANDOM
                for number, block in zip(fetch.blocks, done.result(), strict=True):
                    self._shared.memory.put((self._number, number), block, streamed=streamed)
        if error is not None:
            fetch.future.set_exception(error)
        else:
            fetch.future.set_result(done.result())

    def close(self) -> None:
        with self._shared.lock:
            self._closed = True
            self._shared.memory.forget(self._number)
        SPARE.clear()
        self._remote.close()


def _cut(found: dict[int, Piece], offset: int, length: int) -> Buffer:
    """Return a range of the blocks that it lies in: a view where one buffer has them all, else a copy."""
    if not length:
        return b""
    first, last = offset // BLOCK, (offset + length - 1) // BLOCK
    skipped = offset - first * BLOCK
    begin = found[first]
    if all(found[number].buffer is begin.buffer for number in range(first + 1, last + 1)):
        return begin.buffer[begin.start + skipped : begin.start + skipped + length]
    views = [found[number].view for number in range(first, last + 1)]
    views[0] = views[0][skipped:]
    views[-1] = views[-1][: offset + length - last * BLOCK]
    return b"".join(views)


def _runs(numbers: Sequence[int], gap: int = 0) -> list[tuple[int, int]]:
    """Group ascending numbers to runs, (first, last) each; runs that are `gap` numbers apart or nearer are one."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number <= runs[-1][1] + 1 + gap:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
