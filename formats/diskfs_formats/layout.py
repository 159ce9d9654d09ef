"""A file that is laid out before it exists: its parts in order, each of them bytes, a table, zeroes, or the disk's own.

A laid-out file is a source with a map, so it can be streamed to a target and read at random alike, and takes no space.
What it holds in memory are headers; tables of entries are computed for the range that is asked for. Offsets and
lengths in bytes. Everything here may be shared between threads.
"""

import bisect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from diskfs_formats.allocation import AllocationMap
from diskfs_formats.driver import DiskImage, ImageInfo
from diskfs_formats.extents import Extent, ExtentKind, Stored, coalesced, shifted
from diskfs_formats.reading import ready_reader, zeroes
from diskfs_formats.source import Buffer, require_range

READY_TABLE_SIZE = 128 << 10
"""Bytes of a table that are computed at once; more goes to a thread: 32,768 entries take about a millisecond."""


class Part(Protocol):
    """One part of a laid-out file. Offsets count from its beginning; callers stay inside it."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        """Yield the map of the range: ascending, contiguous, covering it exactly."""
        ...

    def read_at(self, offset: int, length: int, /) -> Buffer:
        """Return exactly `length` bytes; raises what the disk raises."""
        ...

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        """Return the bytes if no waiting is needed, else None."""
        ...


class Zeroes:
    """A run of zeroes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        if length:
            yield Extent(offset, length, ExtentKind.ZERO)

    def read_at(self, offset: int, length: int, /) -> Buffer:  # noqa: ARG002 - it is the same everywhere
        return bytes(length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return self.read_at(offset, length)


class Table:
    """Bytes that are computed: `count` entries of `width` bytes, of which `entries(first, count)` gives some.

    `runs(first, count)`, if given, tells which of them are zero: (first, count, is_data), ascending and contiguous.
    It is the source of its own extents.
    """

    def __init__(
        self,
        name: str,
        count: int,
        width: int,
        entries: Callable[[int, int], bytes],
        runs: Callable[[int, int], Iterator[tuple[int, int, bool]]] | None = None,
    ) -> None:
        self.name = name
        self.size = count * width
        self._width = width
        self._entries = entries
        self._runs = runs

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        if not length:
            return
        end = offset + length
        first, stop = self._entries_of(offset, end)
        runs = self._runs(first, stop - first) if self._runs else iter([(first, stop - first, True)])
        for start, count, is_data in runs:
            begin = max(start * self._width, offset)
            size = min((start + count) * self._width, end) - begin
            if is_data:
                yield Extent(begin, size, ExtentKind.DATA, Stored(self, begin, size))
            else:
                yield Extent(begin, size, ExtentKind.ZERO)

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        first, stop = self._entries_of(offset, offset + length)
        before = offset - first * self._width
        return self._entries(first, stop - first)[before : before + length]

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return self.read_at(offset, length) if length <= READY_TABLE_SIZE else None

    def close(self) -> None:
        pass

    def _entries_of(self, offset: int, end: int) -> tuple[int, int]:
        return offset // self._width, -(-end // self._width)


class Header(Table):
    """Bytes in memory."""

    def __init__(self, data: bytes, name: str = "header") -> None:
        super().__init__(name, len(data), 1, lambda first, count: data[first : first + count])


class PaddedDisk:
    """The disk's bytes from its beginning, with zeroes after its end up to `size`."""

    def __init__(self, disk: DiskImage, size: int) -> None:
        self.size = size
        self._disk = disk
        self._ready = ready_reader(disk)

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        inside = self._inside(offset, length)
        if inside:
            yield from self._disk.extents(offset, inside)
        if inside < length:
            yield Extent(offset + inside, length - inside, ExtentKind.ZERO)

    def read_at(self, offset: int, length: int, /) -> Buffer:
        inside = self._inside(offset, length)
        if inside == length:
            return self._disk.read_at(offset, length)
        return b"".join((self._disk.read_at(offset, inside) if inside else b"", *zeroes(length - inside)))

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        inside = self._inside(offset, length)
        data = self._ready(offset, inside) if inside else b""
        if inside == length or data is None:
            return data
        return b"".join((data, *zeroes(length - inside)))

    def _inside(self, offset: int, length: int) -> int:
        return max(0, min(length, self._disk.size - offset))


class _Composite(ABC):
    """What is made of pieces of parts."""

    @abstractmethod
    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Part, int, int]]:
        """Yield (part, offset in it, length) of what the range consists of, in order."""

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        for part, start, count in self._pieces(offset, length):
            for extent in part.extents(start, count):
                yield shifted(extent, offset - start)
            offset += count

    def _read(self, offset: int, length: int) -> Buffer:
        parts = [part.read_at(start, count) for part, start, count in self._pieces(offset, length)]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_if_ready(self, offset: int, length: int) -> Buffer | None:
        parts: list[Buffer] = []
        for part, start, count in self._pieces(offset, length):
            data = part.read_if_ready(start, count)
            if data is None:
                return None
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class AllocatedUnits(_Composite):
    """The allocated units of a disk one after another, each of them after `head`, which may be empty."""

    def __init__(self, disk: DiskImage, units: AllocationMap, unit_size: int, head: bytes = b"") -> None:
        self._disk = PaddedDisk(disk, units.count * unit_size)
        self._units = units
        self._unit_size = unit_size
        self._head = Header(head)
        self._stride = len(head) + unit_size
        self.size = units.allocated * self._stride

    def extents(self, offset: int, length: int, /) -> Iterator[Extent]:
        return self._extents(offset, length)

    def read_at(self, offset: int, length: int, /) -> Buffer:
        return self._read(offset, length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return self._read_if_ready(offset, length)

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Part, int, int]]:
        head_size = self._head.size
        while length:
            rank, within = divmod(offset, self._stride)
            if within < head_size:
                count = min(length, head_size - within)
                yield self._head, within, count
            else:
                within -= head_size
                wanted = 1 if head_size else -(-(within + length) // self._unit_size)
                unit, run = self._units.run_at(rank, wanted)
                count = min(length, run * self._unit_size - within)
                yield self._disk, unit * self._unit_size + within, count
            offset += count
            length -= count


class LaidOutImage(_Composite):
    """A file made of parts, in order. Closing it leaves the disk open.

    `variant` is what the file is written as; its virtual size is the size of the file. `compressed` says that reading
    it decodes parts of the disk, as reading the disk does.
    """

    def __init__(
        self, name: str, format_name: str, variant: str, parts: Sequence[Part], *, compressed: bool = False
    ) -> None:
        self._name = name
        self._parts = [part for part in parts if part.size]
        self._starts: list[int] = []
        size = 0
        for part in self._parts:
            self._starts.append(size)
            size += part.size
        self._size = size
        self._info = ImageInfo(format_name, variant, size, compressed=compressed)

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    @property
    def info(self) -> ImageInfo:
        return self._info

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self._size - offset if length is None else length
        require_range(self, offset, length)
        return coalesced(self._extents(offset, length))

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        data = self._read(offset, length)
        return data if isinstance(data, bytes) else bytes(data)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        return self._read_if_ready(offset, length)

    def close(self) -> None:
        pass

    def _pieces(self, offset: int, length: int) -> Iterator[tuple[Part, int, int]]:
        index = bisect.bisect_right(self._starts, offset) - 1
        while length:
            part = self._parts[index]
            start = offset - self._starts[index]
            count = min(length, part.size - start)
            yield part, start, count
            offset += count
            length -= count
            index += 1
