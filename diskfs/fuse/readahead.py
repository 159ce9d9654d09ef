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
MIN_STREAK = 3
"""Requests of one size in a row before anything is read ahead."""
AHEAD = 4
"""Requests that are read ahead of a stream that goes on; a young one gets fewer."""
MAX_STREAMS = 8
"""Streams that are followed; with requests of at most 1 MiB they hold at most 32 MiB."""

Submit: TypeAlias = Callable[[Callable[[int, int], bytes], int, int], "Future[bytes]"]
"""Runs read_at(offset, length) on some thread."""


@dataclass(slots=True)
class _Stream:
    """One reader of one file: what it has in order to be read, from the offset at which it goes on."""

    source: ByteSource
    length: int
    """Of its requests."""
    streak: int = 1
    pieces: "dict[int, Future[bytes]]" = field(default_factory=dict)
    """The bytes to come, by offset; each as long as the requests, the last one perhaps shorter."""

    def drop(self) -> None:
        """Give up what was read ahead."""
        for future in self.pieces.values():
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
        end = offset + length
        stream = self._streams.pop((id(source), offset), None)
        if stream is None:
            if not _is_encoded(source):
                return None
            stream = _Stream(source, length)
        elif length == stream.length or (length < stream.length and end == source.size):
            stream.streak += 1
        else:
            # Requests of changing sizes are answered as they come: pieces that fit none of them would be read twice.
            stream.drop()
            stream = _Stream(source, length)
        future = stream.pieces.pop(offset, None)
        if stream.streak >= MIN_STREAK:
            try:
                future = future or self._begin(source, offset, length)
                self._go_ahead(stream, end)
            except RuntimeError:
                stream.drop()  # No thread can be started just now; what there is will do.
        self._keep((id(source), end), stream)
        return future

    def forget(self, source: ByteSource, offset: int, length: int) -> None:
        """Give up what was read ahead of a range, whose bytes have been changed by now."""
        for stream in self._streams.values():
            if stream.source is source:
                for start in [start for start in stream.pieces if offset - stream.length < start < offset + length]:
                    stream.pieces.pop(start).cancel()

    def _keep(self, key: tuple[int, int], stream: _Stream) -> None:
        other = self._streams.pop(key, None)
        if other is not None:
            # Two readers at one place: one of them goes on as a new stream.
            longer, shorter = (other, stream) if other.streak > stream.streak else (stream, other)
            shorter.drop()
            stream = longer
        self._streams[key] = stream
        while len(self._streams) > MAX_STREAMS:
            self._streams.popitem(last=False)[1].drop()

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

    def _go_ahead(self, stream: _Stream, end: int) -> None:
        size = stream.source.size
        for offset in range(end, min(end + min(AHEAD, stream.streak - 1) * stream.length, size), stream.length):
            if offset not in stream.pieces:
                stream.pieces[offset] = self._begin(stream.source, offset, min(stream.length, size - offset))


def _is_encoded(source: ByteSource) -> bool:
    """Tell whether reading costs time on a processor, so that doing it early brings something."""
    info = getattr(source, "info", None)
    return info is not None and info.compressed
