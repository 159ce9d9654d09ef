"""A disk of an overlay as it is read from front to back, once: for a commit."""

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from diskfs.disks.overlay.disk import OverlayDisk
from diskfs.disks.overlay.layout import ABSENT, ZERO
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import DiskfsError
from diskfs_formats.extents import Extent, ExtentKind, Stored, clipped
from diskfs_formats.source import Buffer, ByteSource, require_range

Run: TypeAlias = tuple[int, int, int]
"""Start and end in bytes, and the state of the blocks there."""
LONG_RUN = 1 << 20
"""Bytes that the overlay has in a row from which the map below is not looked at for them."""
EXACT_SPAN = 8 << 20
"""Bytes behind a place that cannot be looked up below that are mapped block by block: the overlay may hide it."""


class MergedDisk:
    """The bytes of `disk`, with a map of fewer extents: a compressed unit in which blocks were changed is one extent
    still, whose blocks are put in their places when it is decoded. A block changed here and there would cost two more
    extents otherwise, each of which costs more than its bytes.

    The `depth` of an extent says nothing here. Closing it leaves `disk` open. Thread-safe.
    """

    def __init__(self, disk: OverlayDisk) -> None:
        self._disk = disk

    @property
    def name(self) -> str:
        return self._disk.name

    @property
    def size(self) -> int:
        return self._disk.size

    @property
    def info(self) -> ImageInfo:
        """What the image below says of itself."""
        return self._disk.info

    def read_at(self, offset: int, length: int, /) -> bytes:
        return self._disk.read_at(offset, length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        return self._disk.read_if_ready(offset, length)

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self.size - offset if length is None else length
        require_range(self, offset, length)
        return self._walk(offset, offset + length) if length else iter(())

    def close(self) -> None:
        pass

    def _walk(self, position: int, end: int) -> Iterator[Extent]:
        below: Iterator[Extent] | None = None
        runs = self._disk.runs(position, end)
        run = next(runs)
        unit: _Patched | None = None
        while position < end:
            while run[1] <= position:
                run = next(runs)
            if run[2] != ABSENT and run[1] - position >= LONG_RUN:
                yield self._disk.own(position, run[1], run[2])
                position, below = run[1], None
                continue
            try:
                below = below or self._disk.base.extents(position, end - position)
                extent = next(below)
            except DiskfsError:
                # Perhaps where the overlay hides it, which the map below does not know.
                stop = min(position + EXACT_SPAN, end)
                yield from self._disk.extents(position, stop - position)
                position, below = stop, None
                continue
            position = extent.end
            stored = extent.stored
            is_encoded = stored is not None and stored.decode is not None
            if is_encoded and unit is not None and not unit.is_of(extent):
                unit = None
            if run[2] == ABSENT and run[1] >= position:
                yield unit.part(extent) if is_encoded and unit is not None else extent
            elif not is_encoded:
                while run[1] < position:
                    yield self._part(extent, run)
                    run = next(runs)
                yield self._part(extent, run)
            else:
                # At most as many as the unit has blocks.
                inside = [run]
                while run[1] < position:
                    run = next(runs)
                    inside.append(run)
                if all(state != ABSENT for _, _, state in inside):
                    for one in inside:
                        yield self._part(extent, one)
                    continue
                if unit is None:
                    unit = _Patched(extent, self._disk.data)
                unit.change(extent, inside)
                yield unit.part(extent)

    def _part(self, extent: Extent, run: Run) -> Extent:
        """Return what a run leaves of an extent, or puts over it."""
        first, stop, state = run
        if state == ABSENT:
            return clipped(extent, first, stop)
        return self._disk.own(max(first, extent.offset), min(stop, extent.end), state)


class _Patched:
    """Decodes a unit and puts what was changed over it.

    A map may have a unit in several extents, with others between them. They share this, so that it is decoded once.
    More changes may come while another thread decodes; they are of extents that are read later.
    """

    __slots__ = ("_changed", "_data", "_decode", "_offset", "_source", "_unit")

    def __init__(self, extent: Extent, data: ByteSource) -> None:
        stored = extent.stored
        assert stored is not None
        assert stored.decode is not None
        self._source = stored.source
        self._offset = stored.offset
        self._decode = stored.decode
        self._data = data
        self._unit = extent.offset - stored.skip
        self._changed: list[Run] = []

    def is_of(self, extent: Extent) -> bool:
        """Tell whether an encoded extent is of this unit."""
        stored = extent.stored
        return (
            stored is not None
            and stored.source is self._source
            and stored.offset == self._offset
            and extent.offset - stored.skip == self._unit
        )

    def change(self, extent: Extent, runs: Iterable[Run]) -> None:
        """Add what runs put over an extent of the unit."""
        for first, stop, state in runs:
            if state != ABSENT:
                self._changed.append((max(first, extent.offset), min(stop, extent.end), state))

    def part(self, extent: Extent) -> Extent:
        """Return an extent of the unit with what was changed in it."""
        stored = extent.stored
        assert stored is not None
        record = Stored(stored.source, stored.offset, stored.length, self, stored.skip)
        return Extent(extent.offset, extent.length, ExtentKind.DATA, record)

    def __call__(self, record: Buffer, /) -> Buffer:
        unit = self._unit
        decoded = bytearray(self._decode(record))
        view = memoryview(decoded)
        for start, stop, state in self._changed:
            if stop - unit > len(decoded):
                continue  # It is too short for that extent, which is for whoever reads it to say.
            length = stop - start
            view[start - unit : stop - unit] = bytes(length) if state == ZERO else self._data.read_at(start, length)
        return decoded
