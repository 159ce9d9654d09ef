"""A VMDK as a disk: what every kind has in common, and the disk whose extents are files of their own."""

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from diskfs_formats.driver import AbsentParent, ImageInfo
from diskfs_formats.extents import Extent, ExtentKind, Stored, shifted
from diskfs_formats.mapped import MappedImage
from diskfs_formats.reading import ready_reader
from diskfs_formats.source import Buffer, ByteSource, SparseSource, require_range


class VmdkImage(MappedImage):
    """What every VMDK has: a content identifier (CID), by which a delta knows its parent."""

    def __init__(
        self,
        name: str,
        info: ImageInfo,
        sources: Iterable[ByteSource],
        *,
        parent: "VmdkImage | AbsentParent | None" = None,
        cid: int | None = None,
    ) -> None:
        super().__init__(name, info, sources, parent)
        self._cid = cid

    @property
    def cid(self) -> int | None:
        """The descriptor's content identifier; None if it has none, or there is no descriptor."""
        return self._cid


class Mapped(Protocol):
    """What a segment needs of the extent behind it: a map of its own, from 0."""

    def lookup(self, offset: int, /) -> Extent:
        """Return the extent that holds byte `offset`."""
        ...

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        """Return the same if no table has to be read for it, else None."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a disk that one extent line describes; offsets and lengths in bytes.

    `whole` is all there is to know of a flat or zero extent; a sparse one has its own map, `mapped`, instead.
    """

    start: int
    length: int
    whole: Extent | None = None
    mapped: Mapped | None = None
    ready: Callable[[int, int], Buffer | None] | None = None
    """Ready bytes of a flat extent's file."""

    @property
    def end(self) -> int:
        """The first byte after the segment."""
        return self.start + self.length

    @property
    def flat(self) -> Stored | None:
        """Where a flat extent lies."""
        return self.whole.stored if self.whole is not None else None


def flat_segment(start: int, length: int, source: ByteSource, offset: int) -> Segment:
    """Return a segment whose bytes lie at `offset` of `source` as they are."""
    whole = Extent(start, length, ExtentKind.DATA, Stored(source, offset, length))
    return Segment(start, length, whole, None, ready_reader(source))


def zero_segment(start: int, length: int) -> Segment:
    """Return a segment that reads as zero, whatever a parent has there."""
    return Segment(start, length, Extent(start, length, ExtentKind.ZERO))


def mapped_segment(start: int, length: int, mapped: Mapped) -> Segment:
    """Return a segment that is the first `length` bytes of an extent with its own map."""
    return Segment(start, length, None, mapped)


class SplitImage(VmdkImage):
    """A disk whose descriptor lists extents: they follow each other in the order of their lines.

    Only one of many is asked for any byte, so a disk of one flat file reads as fast as the file.
    """

    def __init__(
        self,
        name: str,
        info: ImageInfo,
        segments: Sequence[Segment],
        sources: Iterable[ByteSource],
        *,
        parent: VmdkImage | AbsentParent | None = None,
        cid: int | None = None,
    ) -> None:
        """Take over `sources`, which are those of the segments and the descriptor's own."""
        super().__init__(name, info, sources, parent=parent, cid=cid)
        assert sum(segment.length for segment in segments) == info.virtual_size
        self._segments = tuple(segments)
        self._starts = [segment.start for segment in segments]
        self._has_flat = any(segment.flat for segment in segments)

    def lookup(self, offset: int, /) -> Extent:
        segment = self._segment(offset)
        if segment.mapped is None:
            assert segment.whole is not None
            return segment.whole
        return shifted(segment.mapped.lookup(offset - segment.start), segment.start)

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        segment = self._segment(offset)
        if segment.mapped is None:
            return segment.whole
        extent = segment.mapped.lookup_if_ready(offset - segment.start)
        return None if extent is None else shifted(extent, segment.start)

    # The map of a flat extent decides nothing, so the two hottest calls go past it.
    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        segment = self._segment(offset)
        flat = segment.flat
        if flat is None or offset + length > segment.end:
            return super().read_at(offset, length)
        return flat.source.read_at(flat.offset + offset - segment.start, length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        segment = self._segment(offset)
        flat = segment.flat
        if flat is None or offset + length > segment.end:
            return super().read_if_ready(offset, length)
        assert segment.ready is not None
        return segment.ready(flat.offset + offset - segment.start, length)

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        """Yield the map; where a flat extent's file lies on a file system with holes, they are ZERO."""
        extents = super().extents(offset, length)
        return self._with_holes(extents) if self._has_flat else extents

    def _with_holes(self, extents: Iterable[Extent]) -> Iterator[Extent]:
        for extent in extents:
            # An extent of the parent has been through the parent's own method.
            stored = extent.stored if extent.depth == 0 and self._segment(extent.offset).flat else None
            if stored is None or not isinstance(stored.source, SparseSource):
                yield extent
                continue
            shift = extent.offset - stored.offset
            for start, count, is_data in stored.source.data_ranges(stored.offset, stored.length):
                if is_data:
                    yield Extent(start + shift, count, ExtentKind.DATA, Stored(stored.source, start, count))
                else:
                    yield Extent(start + shift, count, ExtentKind.ZERO)

    def _segment(self, offset: int) -> Segment:
        return self._segments[bisect.bisect_right(self._starts, offset) - 1]
