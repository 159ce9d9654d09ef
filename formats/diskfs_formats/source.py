"""Where bytes come from, as the formats see it.

A source is read-only, has a fixed size and no position, and may be shared between threads.
"""

import bisect
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias, cast, runtime_checkable

from diskfs_formats.errors import OutOfRange

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Bytes that are only looked at: what needs no copy need not be `bytes`."""


class ByteSource(Protocol):
    """Read-only bytes of a fixed size, shareable between threads."""

    @property
    def name(self) -> str:
        """Path or URL without credentials, for messages."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read_at(self, offset: int, length: int, /) -> bytes:
        """Return exactly `length` bytes from `offset`; raises OutOfRange past the end, SourceError if reading fails."""
        ...

    def close(self) -> None:
        """Release what the source holds; closing twice is harmless."""
        ...


class RangeReader(Protocol):
    """Optional capability of remote sources: several ranges fetched side by side.

    What wraps another source has it as well, and says by an attribute `takes_ranges` whether that brings anything.
    """

    def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
        """Return the bytes of each (offset, length), in the order asked."""
        ...


@runtime_checkable
class ReadyReader(Protocol):
    """Optional capability: bytes that are at hand, without waiting for a disk, a network or a lock held for long."""

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        """Return the bytes if no waiting is needed, else None; raises what read_at raises."""
        ...


@runtime_checkable
class SparseSource(Protocol):
    """Optional capability: which ranges of the source are holes of the file system it lies on."""

    def data_ranges(self, offset: int, length: int, /) -> Iterator[tuple[int, int, bool]]:
        """Yield (offset, length, is_data), ascending, contiguous, covering the range exactly."""
        ...


def require_range(source: ByteSource, offset: int, length: int) -> None:
    """Raise OutOfRange unless [offset, offset + length) lies inside the source."""
    if offset < 0 or length < 0 or offset + length > source.size:
        raise OutOfRange(
            f"{source.name}: {length} bytes at offset {offset:#x} were asked for, the source has {source.size} bytes"
        )


def takes_ranges(source: ByteSource) -> bool:
    """Tell whether several ranges of a source are had sooner if they are asked for at once."""
    return hasattr(source, "read_ranges") and getattr(source, "takes_ranges", True)


def read_ranges(source: ByteSource, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Read several ranges, all at once where the source can."""
    # Not isinstance: to ask whether a class fits a protocol takes longer than to read from the page cache.
    if len(ranges) > 1 and hasattr(source, "read_ranges"):
        return cast("RangeReader", source).read_ranges(ranges)
    return [source.read_at(offset, length) for offset, length in ranges]


def read_if_ready(source: ByteSource, offset: int, length: int) -> Buffer | None:
    """Return bytes of `source` that need no waiting, or None, also where the source cannot tell."""
    return source.read_if_ready(offset, length) if isinstance(source, ReadyReader) else None


class MemorySource:
    """Bytes held in memory: the smallest correct source."""

    def __init__(self, data: bytes, name: str = "memory") -> None:
        self._data = data
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return len(self._data)

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return self._data[offset : offset + length]

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return self.read_at(offset, length)

    def close(self) -> None:
        pass


class SourceSlice:
    """A window over another source, such as a member of a tar archive. Closing it leaves the other open."""

    def __init__(self, source: ByteSource, offset: int, size: int, name: str) -> None:
        require_range(source, offset, size)
        self._source = source
        self._offset = offset
        self._size = size
        self._name = name
        self._ready = source.read_if_ready if isinstance(source, ReadyReader) else None
        self.takes_ranges = takes_ranges(source)

    @property
    def below(self) -> tuple[ByteSource, ...]:
        """The source that this is a window over."""
        return (self._source,)

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return self._source.read_at(self._offset + offset, length)

    def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
        for offset, length in ranges:
            require_range(self, offset, length)
        return read_ranges(self._source, [(self._offset + offset, length) for offset, length in ranges])

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        return self._ready(self._offset + offset, length) if self._ready else None

    def data_ranges(self, offset: int, length: int, /) -> Iterator[tuple[int, int, bool]]:
        require_range(self, offset, length)
        if not isinstance(self._source, SparseSource):
            yield offset, length, True
            return
        for start, count, is_data in self._source.data_ranges(self._offset + offset, length):
            yield start - self._offset, count, is_data

    def close(self) -> None:
        pass


class ConcatenatedSource:
    """Several sources read as one, in order; pieces may have any size. Closing it closes the pieces."""

    def __init__(self, pieces: Sequence[ByteSource], name: str) -> None:
        self._owned = tuple(pieces)
        self._pieces = [piece for piece in pieces if piece.size]
        self._name = name
        self._starts: list[int] = []
        self._size = 0
        for piece in self._pieces:
            self._starts.append(self._size)
            self._size += piece.size
        self.takes_ranges = any(takes_ranges(piece) for piece in self._pieces)

    @property
    def below(self) -> tuple[ByteSource, ...]:
        """The pieces, empty ones included."""
        return self._owned

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return b"".join(piece.read_at(start, count) for piece, start, count in self._spans(offset, length))

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        parts = []
        for piece, start, count in self._spans(offset, length):
            part = read_if_ready(piece, start, count)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def read_ranges(self, ranges: Sequence[tuple[int, int]], /) -> list[bytes]:
        """Each piece is asked for all that is wanted of it at once."""
        parts: list[list[bytes]] = []
        by_piece: dict[int, list[tuple[int, int, int, int]]] = {}
        for number, (offset, length) in enumerate(ranges):
            require_range(self, offset, length)
            spans = list(self._spans(offset, length))
            parts.append([b""] * len(spans))
            for place, (piece, start, count) in enumerate(spans):
                by_piece.setdefault(id(piece), []).append((number, place, start, count))
        for piece in self._pieces:
            wanted = by_piece.pop(id(piece), [])
            found = read_ranges(piece, [(start, count) for _, _, start, count in wanted])
            for (number, place, _, _), data in zip(wanted, found, strict=True):
                parts[number][place] = data
        return [b"".join(part) for part in parts]

    def _spans(self, offset: int, length: int) -> Iterator[tuple[ByteSource, int, int]]:
        index = bisect.bisect_right(self._starts, offset) - 1
        while length:
            piece = self._pieces[index]
            start = offset - self._starts[index]
            count = min(length, piece.size - start)
            yield piece, start, count
            offset += count
            length -= count
            index += 1

    def close(self) -> None:
        for piece in self._owned:
            piece.close()
