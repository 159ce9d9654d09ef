"""A file seen as it will be once its log is replayed, without a byte of it being written."""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diskfs_formats.reading import ready_reader
from diskfs_formats.source import Buffer, ByteSource, read_ranges, require_range, takes_ranges


@dataclass(frozen=True, slots=True)
class Change:
    """A range of the file that is replaced: by `data`, or by zeros if that is None."""

    start: int
    end: int
    data: bytes | None = None


class Changes:
    """Collects changes, the newest first, so that each range is decided once: what is covered already stays."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        # The covered ranges, ascending, neither overlapping nor touching.
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int, data: bytes | None = None) -> None:
        """Replace what no newer change replaces in [start, end)."""
        for free_start, free_end in self._covering(start, end):
            piece = None if data is None else data[free_start - start : free_end - start]
            self._changes.append(Change(free_start, free_end, piece))

    def ascending(self) -> list[Change]:
        """Return the changes by their place; no two overlap."""
        return sorted(self._changes, key=lambda change: change.start)

    def _covering(self, start: int, end: int) -> list[tuple[int, int]]:
        """Cover [start, end), and return the parts of it that were not covered before."""
        if start >= end:
            return []
        first = bisect.bisect_left(self._ends, start)
        last = bisect.bisect_right(self._starts, end)
        free = []
        at = start
        for covered_start, covered_end in zip(self._starts[first:last], self._ends[first:last], strict=True):
            if covered_start > at:
                free.append((at, covered_start))
            at = max(at, covered_end)
        if at < end:
            free.append((at, end))
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        return free


class ReplayedSource:
    """`source` with some ranges replaced, and possibly longer. Thread-safe if `source` is; closing it closes that.

    `changes` ascend without overlaps, and cover everything from the end of `source` to `size`.
    """

    def __init__(self, source: ByteSource, changes: Sequence[Change], size: int) -> None:
        self._source = source
        self._ready = ready_reader(source)
        self.takes_ranges = takes_ranges(source)
        self._changes = tuple(changes)
        self._ends = [change.end for change in changes]
        self._size = size

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        if not self._is_changed(offset, length):
            return self._source.read_at(offset, length)
        return b"".join(
            self._source.read_at(start, count) if change is None else _replacement(change, start, count)
            for start, count, change in self._pieces(offset, length)
        )

    def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
        for offset, length in ranges:
            require_range(self, offset, length)
        changed = [self._is_changed(offset, length) for offset, length in ranges]
        own = iter(
            read_ranges(
                self._source, [wanted for wanted, is_changed in zip(ranges, changed, strict=True) if not is_changed]
            )
        )
        return [
            self.read_at(*wanted) if is_changed else next(own)
            for wanted, is_changed in zip(ranges, changed, strict=True)
        ]

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        if not self._is_changed(offset, length):
            return self._ready(offset, length)
        parts: list[Buffer] = []
        for start, count, change in self._pieces(offset, length):
            part = self._ready(start, count) if change is None else _replacement(change, start, count)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        self._source.close()

    def _is_changed(self, offset: int, length: int) -> bool:
        index = bisect.bisect_right(self._ends, offset)
        return index < len(self._changes) and self._changes[index].start < offset + length

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[int, int, Change | None]]:
        """Yield (offset, length, change) of each stretch; None where the bytes are the file's own."""
        end = offset + length
        index = bisect.bisect_right(self._ends, offset)
        while offset < end:
            change = self._changes[index] if index < len(self._changes) else None
            if change is None or change.start >= end:
                yield offset, end - offset, None
                return
            if change.start > offset:
                yield offset, change.start - offset, None
                offset = change.start
            count = min(change.end, end) - offset
            yield offset, count, change
            offset += count
            index += 1


def _replacement(change: Change, offset: int, length: int) -> bytes:
    if change.data is None:
        return bytes(length)
    return change.data[offset - change.start : offset - change.start + length]
