"""Reading a disk from end to end, ahead of whoever consumes it."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from diskfs_formats.source import ByteSource

PIECE = 1 << 20
"""Bytes read at once: 16 grains of 64 KiB, and small enough to stay in a core's cache on its way out."""


def read_ahead(
    source: ByteSource, offset: int, length: int, *, piece: int = PIECE, workers: int | None = None
) -> Iterator[bytes]:
    """Yield the bytes of a range in order, in pieces of at most `piece`, while threads read the next ones.

    At most twice `workers` pieces (default: one per core) are held. Raises what the source raises, in its place.
    """
    count = workers or len(os.sched_getaffinity(0))
    end = offset + length
    pool = ThreadPoolExecutor(count, thread_name_prefix="diskfs-read")
    waiting: deque[Future[bytes]] = deque()
    try:
        while offset < end or waiting:
            while offset < end and len(waiting) < 2 * count:
                # Pieces end at multiples of their size, so that no unit of the image is read for two of them.
                step = min(piece - offset % piece, end - offset)
                waiting.append(pool.submit(source.read_at, offset, step))
                offset += step
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown()
