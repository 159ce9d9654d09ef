"""The map of a disk: what is stored where."""

import enum
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from diskfs_formats.source import Buffer, ByteSource
from diskfs_formats.values import value

Decoder: TypeAlias = Callable[[Buffer], Buffer]
"""Turns a stored record into the bytes of its unit; raises DiskfsError."""


class ExtentKind(enum.Enum):
    """What a run of the disk is. A ZERO hides the parent, a HOLE does not."""

    DATA = "data"
    ZERO = "zero"
    HOLE = "hole"


@value
class Stored:
    """Where the bytes of a DATA extent are.

    `length` counts stored bytes. For an encoded extent it is an upper bound that holds the whole record, and
    `decode` turns that record into the unit's bytes, `skip` of which come before the extent.
    """

    source: ByteSource
    offset: int
    length: int
    decode: Decoder | None = None
    skip: int = 0


@value
class Extent:
    """A run of the virtual disk of one kind; offsets and lengths in bytes.

    `depth` is the file of the chain that decides it: 0 the image itself, 1 its parent, ...
    """

    offset: int
    length: int
    kind: ExtentKind
    stored: Stored | None = None
    depth: int = 0

    @property
    def end(self) -> int:
        """The first byte after the extent."""
        return self.offset + self.length


def clipped(extent: Extent, start: int, end: int) -> Extent:
    """Return the part of `extent` inside [start, end); the two must overlap."""
    start = max(start, extent.offset)
    end = min(end, extent.end)
    if start == extent.offset and end == extent.end:
        return extent
    stored = extent.stored
    if stored is not None:
        before = start - extent.offset
        if stored.decode is None:
            stored = Stored(stored.source, stored.offset + before, end - start)
        else:
            stored = Stored(stored.source, stored.offset, stored.length, stored.decode, stored.skip + before)
    return Extent(start, end - start, extent.kind, stored, extent.depth)


def shifted(extent: Extent, by: int) -> Extent:
    """Return `extent` moved by `by` bytes on the virtual disk; where it is stored does not change."""
    return Extent(extent.offset + by, extent.length, extent.kind, extent.stored, extent.depth)


def coalesced(extents: Iterable[Extent]) -> Iterator[Extent]:
    """Join neighbours that are one run: of the same kind and depth and, for plain DATA, stored contiguously.

    Encoded extents stay apart, because each is its own record.
    """
    last: Extent | None = None
    for extent in extents:
        if last is None:
            last = extent
            continue
        joined = _joined(last, extent)
        if joined is None:
            yield last
            last = extent
        else:
            last = joined
    if last is not None:
        yield last


def _joined(one: Extent, two: Extent) -> Extent | None:
    if one.kind is not two.kind or one.depth != two.depth:
        return None
    a, b = one.stored, two.stored
    if a is None and b is None:
        return Extent(one.offset, one.length + two.length, one.kind, None, one.depth)
    if a is None or b is None or a.decode or b.decode or a.source is not b.source or a.offset + a.length != b.offset:
        return None
    stored = Stored(a.source, a.offset, a.length + b.length)
    return Extent(one.offset, one.length + two.length, one.kind, stored, one.depth)
