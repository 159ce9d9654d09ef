"""Decoding ahead of whoever reads a file from front to back.

The kernel asks for the next megabyte of such a file only when the last one is being consumed. Without this, the cores
that inflate grains would rest while the kernel and the reader copy, and the reader while they inflate.
"""

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import TypeAlias

from diskfs_formats.source import ByteSource

MIN_LENGTH = 128 << 10
"""Bytes of a request from which it may be part of a stream: the kernel's smallest readahead window."""
MIN_STREAK = 2
"""Requests in a row before anything is read ahead."""
AHEAD = 4
"""Requests that are read ahead of a stream."""
MAX_STREAMS = 8
"""Streams that are followed; with requests of at most 1 MiB they hold at most 32 MiB."""

Submit: TypeAlias = Callable[[Callable[[int, int], bytes], int, int], "Future[bytes]"]
"""Runs read_at(offset, length) on some thread."""


@dataclass(slots=True)
class _Stream:
    """One reader of one file: what it has in order to be read, from the offset at which it goes on."""

    source: ByteSource
    streak: int = 1
    pieces: "dict[int, tuple[int, Future[bytes]]]" = field(default_factory=dict)
    """By offset: the length, and the bytes to come."""
    ahead_to: int = 0
    """The first byte that nothing has been asked for yet."""

    def drop(self) -> None:
        """Give up what was read ahead."""
        for _, future in self.pieces.values():
            future.cancel()
        self.pieces.clear()


class Readahead:
    """Follows streams of encoded disks. For the event loop's thread only.

    A piece that was read ahead is handed out once. Errors are kept in the piece that met them, so that a damaged grain
    fails the read that needs it and no other.
    """

    def __init__(self, submit: Submit) -> None:
        self._submit = submit
        self._streams: OrderedDict[tuple[int, int], _Stream] = OrderedDict()
        self._running: set[Future[bytes]] = set()

    def next(self, source: ByteSource, offset: int, length: int) -> "Future[bytes] | None":
        """Note a request; return its bytes to come if they were read ahead, or are being read now."""
        if length < MIN_LENGTH:
            return None
        stream = self._streams.pop((id(source), offset), None)
        if stream is None:
            if not _is_encoded(source):
                return None
            stream = _Stream(source, ahead_to=offset)
        else:
            stream.streak += 1
        end = offset + length
        future = self._taken(stream, offset, length)
        if stream.streak >= MIN_STREAK:
            self._go_ahead(stream, end, length)
        self._streams[id(source), end] = stream
        while len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)[1].drop()
        return future

    def _taken(self, stream: _Stream, offset: int, length: int) -> "Future[bytes] | None":
        piece = stream.pieces.pop(offset, None)
        if piece is not None and piece[0] == length and not piece[1].cancelled():
            return piece[1]
        # The requests have another size than before, or this is the first: begin anew behind it.
        stream.drop()
        stream.ahead_to = offset + length
        if stream.streak < MIN_STREAK:
            return None
        return self._begin(stream.source, offset, length)

    def close(self) -> None:
        """Give up everything and wait for what has begun; afterwards the sources may be closed."""
        for stream in self._streams.values():
            stream.drop()
        self._streams.clear()
        wait([future for future in list(self._running) if not future.cancel()])

    def _begin(self, source: ByteSource, offset: int, length: int) -> "Future[bytes]":
        future = self._submit(source.read_at, offset, length)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def _go_ahead(self, stream: _Stream, end: int, length: int) -> None:
        while stream.ahead_to < min(end + AHEAD * length, stream.source.size):
            step = min(length, stream.source.size - stream.ahead_to)
            stream.pieces[stream.ahead_to] = (step, self._begin(stream.source, stream.ahead_to, step))
            stream.ahead_to += step


def _is_encoded(source: ByteSource) -> bool:
    """Tell whether reading costs time on a processor, so that doing it early brings something."""
    info = getattr(source, "info", None)
    return info is not None and info.compressed
