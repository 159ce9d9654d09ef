"""The base of every driver's disk: reading and mapping follow from `lookup`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator

from diskfs_formats.driver import DiskImage, ImageInfo
from diskfs_formats.extents import Extent, ExtentKind, clipped, coalesced
from diskfs_formats.reading import ENGINE, ready_reader, zeroes
from diskfs_formats.source import Buffer, ByteSource, require_range

READY_LIMIT = 1 << 20
"""Bytes that are answered, and stored bytes that are decoded, at once; more goes to a thread whatever is at hand."""


class MappedImage(ABC):
    """A disk that knows where each of its bytes is. Thread-safe if `lookup` is.

    What this layer does not have (a HOLE) comes from `parent`, at the same offset; past the parent's end it stays a
    HOLE. Closing the disk closes its sources and its parent.
    """

    def __init__(
        self, name: str, info: ImageInfo, sources: Iterable[ByteSource], parent: DiskImage | None = None
    ) -> None:
        self._name = name
        self._info = info
        self._size = info.virtual_size
        self._sources = tuple(sources)
        self._parent = parent
        self._parent_ready = ready_reader(parent) if parent is not None else None
        self._ready = {id(source): ready_reader(source) for source in self._sources}

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    @property
    def info(self) -> ImageInfo:
        return self._info

    @property
    def sources(self) -> tuple[ByteSource, ...]:
        """The files of this layer, as far as they are open."""
        return self._sources

    @property
    def parent(self) -> DiskImage | None:
        """The disk below this one in a chain."""
        return self._parent

    @abstractmethod
    def lookup(self, offset: int, /) -> Extent:
        """Return the extent of this layer that holds byte `offset`, as long as is cheap to find.

        It may begin before `offset`; it holds at least that byte. May read tables.
        """

    def lookups(self, offset: int, end: int, /) -> Iterator[Extent]:
        """Yield what `lookup` returns for `offset` and for each extent's end, up to `end`.

        For drivers to override whose units are small and whose tables hold many: a table is then found once.
        """
        while offset < end:
            extent = self.lookup(offset)
            yield extent
            offset = extent.end

    def lookup_if_ready(self, offset: int, /) -> Extent | None:  # noqa: ARG002 - for drivers to override
        """Return what `lookup` returns if no table has to be read for it, else None."""
        return None

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self._size - offset if length is None else length
        require_range(self, offset, length)
        return coalesced(self._walk(offset, offset + length))

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return ENGINE.read(self._walk(offset, offset + length))

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        if length > READY_LIMIT:
            return None
        parts: list[Buffer] = []
        end = offset + length
        decoded = 0
        while offset < end:
            extent = self.lookup_if_ready(offset)
            if extent is None:
                return None
            extent = clipped(extent, offset, end)
            stored = extent.stored
            if stored is None:
                if extent.kind is ExtentKind.ZERO or self._parent is None:
                    parts.extend(zeroes(extent.length))
                else:
                    below = self._parent_if_ready(extent)
                    if below is None:
                        return None
                    parts.extend(below)
            elif stored.decode is None:
                data = self._ready_of(stored.source)(stored.offset, extent.length)
                if data is None:
                    return None
                parts.append(data)
            else:
                unit = ENGINE.unit_if_ready(extent)
                if unit is None:
                    # One unit costs about as much as handing the request to a thread; several are worth the thread.
                    if decoded or length > extent.length or stored.length > READY_LIMIT:
                        return None
                    unit = ENGINE.decode_if_ready(extent, self._ready_of(stored.source))
                    decoded += 1
                    if unit is None:
                        return None
                parts.append(unit)
            offset = extent.end
        return b"".join(parts)

    def _parent_if_ready(self, hole: Extent) -> list[Buffer] | None:
        assert self._parent is not None
        assert self._parent_ready is not None
        inside = min(hole.end, self._parent.size) - hole.offset
        if inside <= 0:
            return list(zeroes(hole.length))
        data = self._parent_ready(hole.offset, inside)
        return None if data is None else [data, *zeroes(hole.length - inside)]

    def _ready_of(self, source: ByteSource) -> Callable[[int, int], Buffer | None]:
        return self._ready.get(id(source)) or ready_reader(source)

    def _walk(self, offset: int, end: int) -> Iterator[Extent]:
        for found in self.lookups(offset, end):
            extent = clipped(found, offset, end)
            if extent.kind is ExtentKind.HOLE and self._parent is not None:
                yield from self._below(extent)
            else:
                yield extent

    def _below(self, hole: Extent) -> Iterator[Extent]:
        """Yield what the parent has where this layer has nothing."""
        assert self._parent is not None
        inside = min(hole.end, self._parent.size) - hole.offset
        if inside > 0:
            for extent in self._parent.extents(hole.offset, inside):
                yield Extent(extent.offset, extent.length, extent.kind, extent.stored, extent.depth + 1)
        if inside < hole.length:
            start = hole.offset + max(inside, 0)
            yield Extent(start, hole.end - start, ExtentKind.HOLE, None, hole.depth)

    def close(self) -> None:
        for source in self._sources:
            ENGINE.cache.forget(source)
            source.close()
        if self._parent is not None:
            self._parent.close()
