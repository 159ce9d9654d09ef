"""A disk of an overlay as it is read from front to back, once: for a commit."""

from collections.abc import Iterator
from typing import TypeAlias

from diskfs.disks.overlay.disk import OverlayDisk
from diskfs.disks.overlay.layout import ABSENT, ZERO
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import DiskfsError
from diskfs_formats.extents import Decoder, Extent, ExtentKind, Stored, clipped
from diskfs_formats.source import Buffer, ByteSource, require_range

Run: TypeAlias = tuple[int, int, int]
"""Start and end in bytes, and the state of the blocks there."""


class MergedDisk:
    """The bytes of `disk`, with a map of fewer extents: a compressed unit in which blocks were changed is one extent
    still, whose blocks are put in their places when it is decoded. A block changed here and there would cost two more
    extents otherwise, each of which costs more than its bytes.

    The depths of the map are those of the disk below, and 0 for what was changed. Closing it leaves `disk` open.
    Thread-safe.
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
        below = self._disk.base.extents(position, end - position)
        runs = self._disk.runs(position, end)
        run = next(runs)
        while position < end:
            try:
                extent = next(below)
            except DiskfsError:
                # Perhaps where the overlay hides it, which this walk along the map below cannot tell.
                yield from self._disk.extents(position, end - position)
                return
            position = extent.end
            if run[1] <= extent.offset:
                run = next(runs)
            if run[2] == ABSENT and run[1] >= position:
                yield extent
                continue
            if extent.stored is None or extent.stored.decode is None:
                while run[1] < position:
                    yield self._part(extent, run)
                    run = next(runs)
                yield self._part(extent, run)
                continue
            # A unit has so many blocks and no more.
            inside = [run]
            while run[1] < position:
                run = next(runs)
                inside.append(run)
            if all(state != ABSENT for _, _, state in inside):
                for one in inside:
                    yield self._part(extent, one)
            else:
                yield self._patched(extent, extent.stored, extent.stored.decode, inside)

    def _part(self, extent: Extent, run: Run) -> Extent:
        """Return what a run leaves of an extent, or puts over it."""
        first, stop, state = run
        if state == ABSENT:
            return clipped(extent, first, stop)
        return self._disk.own(max(first, extent.offset), min(stop, extent.end), state)

    def _patched(self, extent: Extent, stored: Stored, decode: Decoder, runs: list[Run]) -> Extent:
        changed = [
            (max(first, extent.offset), min(stop, extent.end), state) for first, stop, state in runs if state != ABSENT
        ]
        decode = _Patched(decode, self._disk.data, extent.offset - stored.skip, extent.end, changed)
        record = Stored(stored.source, stored.offset, stored.length, decode, stored.skip)
        return Extent(extent.offset, extent.length, ExtentKind.DATA, record, extent.depth)


class _Patched:
    """Decodes the unit that begins at `unit` of the disk and puts what was changed up to `end` over it."""

    __slots__ = ("_changed", "_data", "_decode", "_end", "_unit")

    def __init__(self, decode: Decoder, data: ByteSource, unit: int, end: int, changed: list[Run]) -> None:
        self._decode = decode
        self._data = data
        self._unit = unit
        self._end = end
        self._changed = changed

    def __call__(self, record: Buffer, /) -> Buffer:
        unit = self._unit
        decoded = bytearray(self._decode(record))
        if len(decoded) < self._end - unit:
            return decoded  # too short, which is for the caller to say
        view = memoryview(decoded)
        for start, stop, state in self._changed:
            length = stop - start
            view[start - unit : stop - unit] = bytes(length) if state == ZERO else self._data.read_at(start, length)
        return decoded
