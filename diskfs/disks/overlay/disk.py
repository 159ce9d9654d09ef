"""A disk of an overlay: what was written over a disk that is never modified.

Block k of the disk is block k of the data file, so nothing is allocated; the index says which blocks count. Order makes
it safe: a block is named present only by a flush that has synced its data first. See docs/OVERLAY.md.
"""

import errno
import threading
from collections.abc import Iterator
from contextlib import ExitStack

from diskfs.disks.overlay.block_map import BlockMap
from diskfs.disks.overlay.data_file import DataFile
from diskfs.disks.overlay.early_writeback import EarlyWriteback
from diskfs.disks.overlay.layout import ABSENT, BLOCKS_PER_PAGE, PRESENT, ZERO
from diskfs.disks.overlay.storage import SECTOR
from diskfs.errors import OutOfSpace, OverlayWriteError, SourceError
from diskfs_formats.driver import DiskImage, ImageInfo
from diskfs_formats.errors import DiskfsError
from diskfs_formats.extents import Extent, ExtentKind, Stored, clipped
from diskfs_formats.mapped import READY_LIMIT
from diskfs_formats.reading import ready_reader, zeroes
from diskfs_formats.source import Buffer, require_range

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
STRIPES = 64
"""Locks of a disk: writers of one page of the index, 7.5 MiB of the disk, wait for each other."""
_ZEROES = bytes(1 << 20)
_PRESENT = bytes((PRESENT,)) * BLOCKS_PER_PAGE
_KINDS = {ABSENT: ExtentKind.HOLE, PRESENT: ExtentKind.DATA, ZERO: ExtentKind.ZERO}


class OverlayDisk:
    """A WritableDisk over `base`, which stays as it is and stays open when this is closed.

    Safe to share between threads. Several blocks written by one call appear one after the other.
    """

    def __init__(self, base: DiskImage, data: DataFile, block_map: BlockMap, block_size: int) -> None:
        self._base = base
        self._base_ready = ready_reader(base)
        self._data = data
        self._map = block_map
        self._early = EarlyWriteback(data)
        self._data_ready = data.ready_reader()
        self._loaded = block_map.loaded
        self._block_size = block_size
        self._page_span = block_size * BLOCKS_PER_PAGE
        self._size = base.size
        self._failure: str | None = None
        self._closed = False
        self.is_synced = False
        """Closed, and all that was ever written here is on the disk."""
        self._unsynced = False
        self._flushing = threading.Lock()
        self._stripes = tuple(threading.Lock() for _ in range(STRIPES))

    @property
    def name(self) -> str:
        return self._base.name

    @property
    def size(self) -> int:
        return self._size

    @property
    def info(self) -> ImageInfo:
        """What the image below says of itself."""
        return self._base.info

    @property
    def base(self) -> DiskImage:
        """The disk below."""
        return self._base

    @property
    def data(self) -> DataFile:
        """What was written: the block at an offset here is the block at that offset of the disk, if it is present."""
        return self._data

    # Reading takes no lock: a block that is being written is seen before or after, and what a page says has happened.

    def read_at(self, offset: int, length: int, /) -> bytes:
        if offset < 0 or length < 0 or offset + length > self._size:
            require_range(self, offset, length)
        state = self._one_state(offset, length)
        if state == ABSENT:
            return self._base.read_at(offset, length)
        if state == PRESENT:
            return self._data.read_at(offset, length)
        parts: list[Buffer] = []
        for start, end, state in self.runs(offset, offset + length):
            if state == ABSENT:
                parts.append(self._base.read_at(start, end - start))
            elif state == PRESENT:
                parts.append(self._data.read_at(start, end - start))
            else:
                parts.extend(zeroes(end - start))
        return b"".join(parts)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        if offset < 0 or length < 0 or offset + length > self._size:
            require_range(self, offset, length)
        state = self._one_state(offset, length)
        if state == ABSENT:
            return self._base_ready(offset, length)
        if state == PRESENT:
            return self._data_ready(offset, length)
        if length > READY_LIMIT:
            return None
        for number in range(offset // self._page_span, (offset + length - 1) // self._page_span + 1):
            if self._loaded(number) is None:
                return None
        parts: list[Buffer] = []
        for start, end, state in self.runs(offset, offset + length):
            if state == ZERO:
                parts.extend(zeroes(end - start))
                continue
            part = (self._base_ready if state == ABSENT else self._data_ready)(start, end - start)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def _one_state(self, offset: int, length: int) -> int | None:
        """Return the state that all blocks of a range have, if that is easy to see, else None."""
        number, inside = divmod(offset, self._page_span)
        page = self._loaded(number)
        if page is None:
            return None
        page.used = True
        first = inside // self._block_size
        end = (inside + length - 1) // self._block_size + 1
        if end > BLOCKS_PER_PAGE or end <= first:
            return None
        states = page.states
        state = states[first]
        return state if end - first == 1 or states.count(state, first, end) == end - first else None

    def runs(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (start, end, state) in bytes of the range, ascending, neighbours of different states."""
        if start >= end:
            return
        block = self._block_size
        try:
            pending: tuple[int, int] | None = None
            for first, stop, state in self._map.runs(start // block, -(-end // block)):
                if pending is not None and pending[1] != state:
                    yield max(pending[0], start), first * block, pending[1]
                    pending = None
                if pending is None:
                    pending = first * block, state
                last = stop
            assert pending is not None
            yield max(pending[0], start), min(last * block, end), pending[1]
        except OSError as error:
            raise self._unreadable(error) from error

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self._size - offset if length is None else length
        require_range(self, offset, length)
        return self._walk(offset, offset + length)

    def _walk(self, start: int, end: int) -> Iterator[Extent]:
        below = _Below(self._base, end)
        for first, stop, state in self.runs(start, end):
            if state == ABSENT:
                yield from below.between(first, stop)
            else:
                yield self.own(first, stop, state)

    def changes(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        """Yield the map of the overlay alone: DATA was written, ZERO discarded, a HOLE is as it is below."""
        length = self._size - offset if length is None else length
        require_range(self, offset, length)
        return (self.own(*run) for run in self.runs(offset, offset + length))

    def own(self, first: int, stop: int, state: int) -> Extent:
        """Return the extent of a run that is the overlay's."""
        stored = Stored(self._data, first, stop - first) if state == PRESENT else None
        return Extent(first, stop - first, _KINDS[state], stored)

    def write_at(self, offset: int, data: Buffer, /) -> None:
        length = len(data)
        if offset < 0 or offset + length > self._size:
            require_range(self, offset, length)
        if self._failure is not None:
            raise self._failed()
        if self._map.dirty_pages > self._map.most_dirty:
            self.flush()
        number = offset // self._page_span
        page_end = (number + 1) * self._page_span
        if offset + length <= page_end:
            if length:
                self._write_part(number, offset, data)
            return
        view = memoryview(data)
        while view:
            count = min(page_end - offset, len(view))
            self._write_part(number, offset, view[:count])
            view = view[count:]
            offset += count
            number += 1
            page_end += self._page_span

    def write_if_quick(self, offset: int, data: Buffer, /) -> bool:
        """Write if no more is needed than a copy into memory; else do nothing and return False.

        That is: whole blocks, of one page of the index, which is loaded and has its room, while nobody else writes
        there or flushes. The kernel may still make the caller wait, where much is not on the disk yet.
        """
        end = offset + len(data)
        number = offset // self._page_span
        if (
            self._failure is not None
            or offset % self._block_size
            or end % self._block_size
            or not offset < end <= min((number + 1) * self._page_span, self._size)
            or self._map.dirty_pages >= self._map.most_dirty
            or self._flushing.locked()
            or self._stripes[number % STRIPES].locked()
            or not self._map.is_reserved(number)
            or self._loaded(number) is None
        ):
            return False
        self._write_part(number, offset, data)
        return True

    def _write_part(self, number: int, offset: int, data: Buffer) -> None:
        """Write what lies in one page of the index."""
        block = self._block_size
        end = offset + len(data)
        first = offset // block
        last = (end - 1) // block
        head = offset - first * block
        tail = min((last + 1) * block, self._size) - end
        one = first - number * BLOCKS_PER_PAGE
        two = last - number * BLOCKS_PER_PAGE + 1
        # The disk below never changes, so what a block needs of it is read before the lock is taken.
        before = self._below(number, one, offset - head, head) if head else b""
        after = self._below(number, two - 1, end, tail) if tail else b""
        with self._stripes[number % STRIPES]:
            try:
                states = self._map.page(number).states
                if head:
                    state = states[one]
                    if state == PRESENT:
                        before = self._rest_of_sector(offset - offset % SECTOR, offset)
                    elif state == ZERO:
                        before = _ZEROES[:head]
                    offset -= len(before)
                if tail:
                    state = states[two - 1]
                    if state == PRESENT:
                        after = self._rest_of_sector(end, min(-(-end // SECTOR) * SECTOR, self._size))
                    elif state == ZERO:
                        after = _ZEROES[:tail]
                if before or after:
                    data = b"".join((before, data, after))
                now = states[one:two]
                if now == _PRESENT[: two - one]:
                    self._data.write_at(offset, data)
                    self._early.wrote(len(data))
                    return
                self._map.reserve(number)
                if data[0] == 0 and PRESENT not in now and not bytes(data).strip(b"\0"):
                    # Zeroes need no room. Where the data file has the block, they are written over it as anything is.
                    if ABSENT in now:
                        self._map.mark(number, one, two, ZERO)
                    return
                self._data.write_at(offset, data)
                self._map.mark(number, one, two, PRESENT)
                self._early.wrote(len(data))
            except OSError as error:
                raise self._unwritten(error, "writing") from error
            finally:
                self._unsynced = True

    def _rest_of_sector(self, start: int, end: int) -> bytes:
        """Return bytes of the data file that complete a sector: the storage knows no smaller write than that."""
        return self._data.read_at(start, end - start) if start < end else b""

    def _below(self, number: int, block: int, offset: int, length: int) -> bytes:
        """Return bytes of the disk below that complete a block, if it is not in the overlay yet."""
        try:
            state = self._map.page(number).states[block]
        except OSError as error:
            raise self._unreadable(error) from error
        return self._base.read_at(offset, length) if state == ABSENT else b""

    def discard(self, offset: int, length: int, /) -> None:
        require_range(self, offset, length)
        if self._failure is not None:
            raise self._failed()
        block = self._block_size
        end = offset + length
        first = -(-offset // block)
        # The last block of the disk may be cut short, and is whole all the same.
        last = -(-end // block) if end == self._size else end // block
        if first >= last:
            self._write_zeroes(offset, end)
            return
        self._write_zeroes(offset, first * block)
        self._write_zeroes(min(last * block, end), end)
        while first < last:
            number = first // BLOCKS_PER_PAGE
            stop = min(last, (number + 1) * BLOCKS_PER_PAGE)
            if self._map.dirty_pages > self._map.most_dirty:
                self.flush()
            self._discard_part(number, first - number * BLOCKS_PER_PAGE, stop - number * BLOCKS_PER_PAGE)
            first = stop

    def _write_zeroes(self, offset: int, end: int) -> None:
        if offset < end:
            self.write_at(offset, _ZEROES[: end - offset])

    def _discard_part(self, number: int, one: int, two: int) -> None:
        start = number * self._page_span + one * self._block_size
        end = min(number * self._page_span + two * self._block_size, self._size)
        with self._stripes[number % STRIPES]:
            try:
                states = self._map.page(number).states[one:two]
                if states.count(ZERO) == len(states):
                    return
                self._map.reserve(number)
                if PRESENT in states:
                    # Before the index says so: if only this survives a power loss, the range reads as zero already.
                    self._data.punch(start, end - start)
                self._map.mark(number, one, two, ZERO)
            except OSError as error:
                raise self._unwritten(error, "discarding") from error
            finally:
                self._unsynced = True

    def flush(self) -> None:
        with self._flushing:
            if self._failure is not None:
                raise self._failed()
            if not self._unsynced and not self._map.dirty_pages:
                return
            self._flush()

    def _flush(self) -> None:
        # The states taken here are of writes that have ended, so the sync that follows covers their data.
        with ExitStack() as undo:
            undo.callback(self._map.put_back)
            pages = self._map.take_dirty()
            try:
                self._unsynced = False
                self._data.sync()
            except OSError as error:
                # What was not written may be forgotten by now, so trying again proves nothing.
                raise self._broken(error, "syncing the data") from error
            except BaseException:
                self._unsynced = True
                raise
            if not pages:
                return
            try:
                self._map.write(pages)
            except OSError as error:
                raise self._unwritten(error, "writing the index") from error
            try:
                self._map.sync()
            except OSError as error:
                raise self._broken(error, "syncing the index") from error
            undo.pop_all()
            self._map.written()

    def _unwritten(self, error: OSError, doing: str) -> DiskfsError:
        if error.errno in NO_ROOM:
            return OutOfSpace(
                f"{self._data.name}: {doing} failed: {error.strerror}; free some room there, what was written before "
                "is safe"
            )
        return self._broken(error, doing)

    def _broken(self, error: OSError, doing: str) -> DiskfsError:
        self._failure = self._failure or f"{self._data.name}: {doing} failed: {error.strerror or error}"
        return self._failed()

    def _failed(self) -> DiskfsError:
        return OverlayWriteError(
            f"{self._failure}; nothing is written until the overlay is opened again, and what was written since the "
            "last flush may be lost"
        )

    def _unreadable(self, error: OSError) -> DiskfsError:
        return SourceError(f"{self._data.name}: reading the index failed: {error.strerror or error}")

    def close(self) -> None:
        """Flush and close the files of the overlay; the disk below stays open. Raises what `flush` raises."""
        if self._closed:
            return
        try:
            self.flush()
            try:
                self._map.finish()
            except OSError as error:
                raise self._unwritten(error, "writing the index") from error
            self.is_synced = self._failure is None and not self._unsynced and not self._map.dirty_pages
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the files as if the process had ended: what was written since the last flush may be lost."""
        self._closed = True
        self._early.end()
        self._data.close()
        self._map.close()


class _Below:
    """The map of the disk below, in the gaps of an overlay: one extent often goes on behind what hides part of it."""

    def __init__(self, base: DiskImage, end: int) -> None:
        self._base = base
        self._end = end
        self._found: Iterator[Extent] = iter(())
        self._extent: Extent | None = None
        self._is_strict = False

    def between(self, start: int, stop: int) -> Iterator[Extent]:
        """Yield the extents of [start, stop); ranges are asked for ascending. Raises what that part of the map does."""
        if self._is_strict:
            yield from map(_deeper, self._base.extents(start, stop - start))
            return
        if self._extent is None or self._extent.end <= start:
            self._found = self._base.extents(start, self._end - start)
            self._extent = None
        while start < stop:
            extent = self._extent
            if extent is None:
                try:
                    extent = self._extent = next(self._found)
                except DiskfsError:
                    # Perhaps behind `stop`, where the overlay hides it. From now on gaps alone are looked at: to walk
                    # up to the damage again for each of them could take for ever.
                    self._is_strict = True
                    yield from self.between(start, stop)
                    return
            end = min(extent.end, stop)
            yield _deeper(clipped(extent, start, end))
            start = end
            if start == extent.end:
                self._extent = None


def _deeper(extent: Extent) -> Extent:
    return Extent(extent.offset, extent.length, extent.kind, extent.stored, extent.depth + 1)
