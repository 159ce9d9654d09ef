"""The only bridge between blocking reads and the event loop."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import trio

from diskfs.fuse.readahead import Readahead
from diskfs_formats.reading import ENGINE, ready_reader
from diskfs_formats.source import Buffer, ByteSource

MAX_WRITERS = 16
"""Writes under way at once; the kernel sends one at a time for each file, but any number of discards."""
MAX_FLUSHES = 8
"""Disks of one mount that are flushed at once."""

T = TypeVar("T")


class Reader:
    """Runs reads: at once where the bytes are ready, else in a thread, `limit` of them at a time.

    A thread hop costs about as much as a whole FUSE round trip, so it is made only for reads that may wait. Threads
    are not abandoned when a request is cancelled: unmounting waits for the reads that are under way.

    `decode_ahead` is for sources that do not make a reader wait long. The decoders' pool has one thread for each core;
    fetches that hang would take them all, and with them every other stream of the mount.
    """

    def __init__(self, limit: int = 32, *, decode_ahead: bool = True) -> None:
        self._limiter = trio.CapacityLimiter(limit)
        self._slow = trio.CapacityLimiter(2)
        self._writing = trio.CapacityLimiter(MAX_WRITERS)
        self._flushing = trio.CapacityLimiter(MAX_FLUSHES)
        self._ready: dict[int, Callable[[int, int], Buffer | None]] = {}
        self._readahead = Readahead(ENGINE.submit) if decode_ahead else None

    async def read_at(self, source: ByteSource, offset: int, length: int) -> Buffer:
        """Return exactly `length` bytes; raises what the source raises."""
        ahead = self._readahead.next(source, offset, length) if self._readahead is not None else None
        if ahead is not None:
            return ahead.result() if ahead.done() else await _result(ahead)
        ready = self._ready.get(id(source))
        if ready is None:
            # Sources of a tree live as long as the mount, so their identities are not reused.
            ready = self._ready[id(source)] = ready_reader(source)
        data = ready(offset, length)
        if data is not None:
            return data
        return await trio.to_thread.run_sync(source.read_at, offset, length, limiter=self._limiter)

    async def write(self, work: Callable[[], None]) -> None:
        """Run something that changes a disk."""
        await trio.to_thread.run_sync(work, limiter=self._writing)

    async def flush(self, work: Callable[[], None]) -> None:
        """Run something that waits for a disk to have written everything, apart from reads and writes."""
        await trio.to_thread.run_sync(work, limiter=self._flushing)

    def forget(self, source: ByteSource, offset: int, length: int) -> None:
        """Drop what was read ahead of a range that has been changed."""
        if self._readahead is not None:
            self._readahead.forget(source, offset, length)

    def close(self) -> None:
        """Wait for what is being read ahead; afterwards the sources may be closed."""
        if self._readahead is not None:
            self._readahead.close()

    async def run(self, work: Callable[[], T]) -> T:
        """Run something that takes a while and is no read, apart from the reads."""
        return await trio.to_thread.run_sync(work, limiter=self._slow)


async def _result(future: "Future[bytes]") -> bytes:
    """Wait for a thread of the decoders' pool."""
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def wake(_future: "Future[bytes]") -> None:
        # Where the mount has ended meanwhile, nobody waits any more.
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(done.set)

    future.add_done_callback(wake)
    await done.wait()
    return future.result()
