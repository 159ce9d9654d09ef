"""The engine: a map in, the same bytes in a target. What is zero is neither read nor written."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from diskfs.sinks.positioned import GatheringSink, ObjectSink, PositionedSink
from diskfs_formats.bulk import PIECE, Piece, cost_of, data_pieces, read_extents, read_piece
from diskfs_formats.driver import DiskImage
from diskfs_formats.layout import Table
from diskfs_formats.parallel import for_each, in_order
from diskfs_formats.source import Buffer
from diskfs_formats.writer import Progress, Sink

ZERO_BLOCK = 4096
"""Bytes of the blocks that are looked at for zeroes, and left out where all of one is zero: a file system's block."""
_ZEROES = bytes(ZERO_BLOCK)
_MOST_TOGETHER = 64
"""Small pieces and gaps that one thread takes at once."""


@dataclass(slots=True)
class Copied:
    """What a copy has done, in bytes: of the disk, read as data; of the target, written."""

    read: int = 0
    written: int = 0


def copy_disk(content: DiskImage, sink: Sink, progress: Progress, *, threads: int | None = None) -> Copied:
    """Write the bytes of `content` to `sink`, from which nothing is committed here.

    Data goes by several threads, in any order where the target takes it so. Zeroes inside data become holes, too,
    where the target has holes. Memory is bounded whatever the size of the disk and the number of threads. Raises what
    the disk and the sink raise.
    """
    if isinstance(sink, PositionedSink):
        return _copy_positioned(content, sink, progress, threads)
    return _copy_appending(content, sink, progress, threads)


def _copy_appending(content: DiskImage, sink: Sink, progress: Progress, threads: int | None) -> Copied:
    copied = Copied()
    position = 0
    if isinstance(sink, ObjectSink):
        sink.expect(content.size, exact=True)

    def one_by_one(buffers: Sequence[Buffer], /) -> None:
        for buffer in buffers:
            sink.write(buffer)

    write_all = sink.write_all if isinstance(sink, GatheringSink) else one_by_one
    for piece, buffers in in_order(data_pieces(content.extents()), _read, _cost, threads):
        if piece.offset > position:
            sink.write_zeroes(piece.offset - position)
        write_all(buffers)
        copied.read += _from_disk(piece)
        copied.written += piece.length
        progress(piece.end - position)
        position = piece.end
    if content.size > position:
        sink.write_zeroes(content.size - position)
        progress(content.size - position)
    return copied


def _copy_positioned(content: DiskImage, sink: PositionedSink, progress: Progress, threads: int | None) -> Copied:
    copied = Copied()
    lock = threading.Lock()
    sink.set_size(content.size)

    def copy_all(batch: Sequence[Piece | range]) -> None:
        found = iter(read_extents([extent for piece in batch if isinstance(piece, Piece) for extent in piece.extents]))
        for piece in batch:
            if isinstance(piece, range):
                sink.write_zeroes_at(piece.start, len(piece))
                progress(len(piece))
            else:
                copy(piece, [data for _, data in islice(found, len(piece.extents))])

    def copy(piece: Piece, buffers: Sequence[Buffer]) -> None:
        written = 0
        if sink.keeps_old_bytes:
            sink.write_at(piece.offset, buffers)
            written = piece.length
        else:
            for offset, some in _without_zeroes(piece.offset, buffers):
                sink.write_at(offset, some)
                written += sum(map(len, some))
        with lock:
            copied.read += _from_disk(piece)
            copied.written += written
        progress(piece.length)

    for_each(_batches(_with_gaps(content)), copy_all, _cost_of_all, threads)
    return copied


def _cost_of_all(batch: Sequence[Piece | range]) -> int:
    return cost_of(piece for piece in batch if isinstance(piece, Piece))


def _batches(pieces: Iterable[Piece | range]) -> Iterator[list[Piece | range]]:
    """Yield neighbours together that are as much work as one whole piece: taking work costs threads time, too.

    What a batch needs is read at once, so that one source is not waited for again and again.
    """
    batch: list[Piece | range] = []
    length = 0
    for piece in pieces:
        batch.append(piece)
        length += 0 if isinstance(piece, range) else piece.length
        if length >= PIECE or len(batch) >= _MOST_TOGETHER:
            yield batch
            batch = []
            length = 0
    if batch:
        yield batch


def _with_gaps(content: DiskImage) -> Iterator[Piece | range]:
    """Yield the pieces of data and, between them, the ranges that are zero."""
    position = 0
    for piece in data_pieces(content.extents()):
        if piece.offset > position:
            yield range(position, piece.offset)
        yield piece
        position = piece.end
    if content.size > position:
        yield range(position, content.size)


def _from_disk(piece: Piece) -> int:
    """Return how many bytes of a piece are the disk's own, and not headers and tables that are made for it."""
    return sum(
        extent.length for extent in piece.extents if extent.stored and not isinstance(extent.stored.source, Table)
    )


def _read(piece: Piece) -> tuple[Piece, list[Buffer]]:
    return piece, read_piece(piece)


def _cost(piece: Piece) -> int:
    return piece.cost


def _without_zeroes(offset: int, buffers: Sequence[Buffer]) -> Iterator[tuple[int, list[Buffer]]]:
    """Yield what is left of the buffers without the blocks that are zero, with its offset.

    Blocks are counted from each buffer's start, which is a unit's; a shorter one at the end is looked at too.
    """
    kept: list[Buffer] = []
    start = offset
    for buffer in buffers:
        size = len(buffer)
        at = 0
        for begin, end in _zero_runs(buffer, size):
            if begin > at:
                if not kept:
                    start = offset + at
                kept.append(memoryview(buffer)[at:begin])
            if kept:
                yield start, kept
                kept = []
            at = end
        if at < size:
            if not kept:
                start = offset + at
            kept.append(memoryview(buffer)[at:] if at else buffer)
        offset += size
    if kept:
        yield start, kept


def _zero_runs(buffer: Buffer, size: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of zero blocks in a buffer. Data is told by a block's first byte, nearly always."""
    if isinstance(buffer, memoryview):
        buffer = bytes(buffer)
    begin = -1
    for at in range(0, size, ZERO_BLOCK):
        if buffer[at] == 0 and buffer.startswith(_ZEROES[: size - at], at):
            if begin < 0:
                begin = at
        elif begin >= 0:
            yield begin, at
            begin = -1
    if begin >= 0:
        yield begin, size
