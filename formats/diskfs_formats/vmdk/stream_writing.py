"""Writing VMDK, streamOptimized: the form in which ESX, ovftool and VM Import take disks.

Specification: VMware, Virtual Disk Format 5.0 (2011), "Stream-Optimized Compressed Sparse Extents"; the layout is that
of the streams ovftool writes: header with GD_AT_END, descriptor, then for each grain table its grains and the table,
the grain directory, the footer, the end-of-stream marker. Offsets and sizes count 512-byte sectors where their names
say so.
"""

import functools
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from diskfs_formats.binary import align_up
from diskfs_formats.bulk import read_extents, without_file_holes
from diskfs_formats.deflating import DEFAULT_LEVEL, deflate_zlib
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.extents import Extent, ExtentKind, Stored, clipped
from diskfs_formats.parallel import in_order
from diskfs_formats.source import Buffer
from diskfs_formats.vmdk.header import (
    COMPRESSION_DEFLATE,
    FLAG_COMPRESSED,
    FLAG_LINE_END_TEST,
    FLAG_MARKERS,
    GD_AT_END,
    LINE_END_TEST,
    MARKER,
    MARKER_END_OF_STREAM,
    MARKER_FOOTER,
    SECTOR,
    SPARSE_HEADER,
)
from diskfs_formats.vmdk.sparse import SparseExtent
from diskfs_formats.vmdk.writing import (
    DESCRIPTOR_SECTOR,
    DESCRIPTOR_SECTORS,
    GRAIN_SECTORS,
    GRAIN_SIZE,
    MAX_GRAIN_SECTOR,
    TABLE_ENTRIES,
    TABLE_SECTORS,
    descriptor_text,
    require_file_name,
    require_fits,
)
from diskfs_formats.writer import Progress, Sink, WriteOptions

MARKER_GRAIN_TABLE = 1
MARKER_GRAIN_DIRECTORY = 2
VERSION = 3
OVERHEAD_SECTORS = 128
WINDOW = 256 << 10
"""Bytes of the disk that one thread reads and compresses at a time, at least; always whole grains of one table."""
MAX_WINDOW = 16 << 20
MAX_STREAM = GRAIN_SIZE + SECTOR - 12
"""Bytes of a grain's zlib stream: readers of VMware and VirtualBox have room for one sector more than the grain."""
STREAM_NAME = "disk.vmdk"
"""The extent line's name where the file's own would not do; in a stream it means the file itself, whatever it says."""
_MAX_LINE_NAME = 100
"""Bytes; govmomi reads the extent line from the first sector of the descriptor alone."""

_GRAIN_MARKER = struct.Struct("<QI")
_ZERO_GRAIN = bytes(GRAIN_SIZE)
_PADDING = bytes(SECTOR)


class StreamOptimizedWriter:
    """Writes stream-optimized VMDK. A disk that is no whole number of sectors is padded with zeroes to the next.

    Grains that are all zero are left out. Without a level, grains that are compressed in the source in this form are
    taken over, after they were decoded to see that they are sound; with one, everything is compressed anew.
    """

    name = "vmdk"
    variants = ("streamOptimized",)

    def write(self, disk: DiskImage, sink: Sink, options: WriteOptions, progress: Progress, /) -> None:
        require_fits(disk)
        stream = _Stream(disk, sink, options)
        stream.begin()
        position = 0
        windows = _windows(disk)
        compress = _Compressor(options.level)
        for written in in_order(windows, compress, _cost, options.threads):
            stream.add(written)
            progress(written.end - position)
            position = written.end
        stream.finish()
        progress(disk.size - position)


@dataclass(frozen=True, slots=True)
class _Window:
    """A range of the disk with data in it; `extents` are those of its data, not joined."""

    offset: int
    end: int
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class _Written:
    """What became of a window: the numbers of its grains that are stored, the sectors that each takes, all records."""

    end: int
    grains: tuple[int, ...]
    sectors: tuple[int, ...]
    records: bytes


def _windows(disk: DiskImage) -> Iterator[_Window]:
    """Cut the disk's map into windows, those without data left out. No encoded unit is decoded for two of them, as long
    as it is no larger than MAX_WINDOW.
    """
    size = WINDOW
    while size < min(disk.info.unit_size, MAX_WINDOW):
        size *= 2
    held: list[Extent] = []
    start = 0
    for part in _cut(disk.extents(), size):
        if held and part.offset >= start + size:
            yield _Window(start, min(start + size, disk.size), tuple(held))
            held = []
        if not held:
            start = part.offset - part.offset % size
        held.append(part)
    if held:
        yield _Window(start, min(start + size, disk.size), tuple(held))


def _cut(extents: Iterable[Extent], size: int) -> Iterator[Extent]:
    for extent in without_file_holes(extents):
        if extent.kind is not ExtentKind.DATA:
            continue
        offset = extent.offset
        if extent.end <= offset - offset % size + size:
            yield extent
            continue
        while offset < extent.end:
            end = min(offset - offset % size + size, extent.end)
            yield clipped(extent, offset, end)
            offset = end


def _cost(window: _Window) -> int:
    # What is stored, what is decoded, that put together, and the result.
    stored = sum(extent.stored.length for extent in window.extents if extent.stored)
    return stored + 3 * (window.end - window.offset)


class _Compressor:
    """Turns a window into records. Has no state, so threads share it."""

    def __init__(self, level: int | None) -> None:
        self._level = DEFAULT_LEVEL if level is None else level
        self._takes_over = level is None

    def __call__(self, window: _Window) -> _Written:
        grains: list[int] = []
        sectors: list[int] = []
        parts: list[Buffer] = []
        for number, stream in self._streams(window):
            length = _GRAIN_MARKER.size + len(stream)
            padded = align_up(length, SECTOR)
            parts.append(_GRAIN_MARKER.pack(number * GRAIN_SECTORS, len(stream)))
            parts.append(stream)
            parts.append(_PADDING[: padded - length])
            grains.append(number)
            sectors.append(padded // SECTOR)
        return _Written(window.end, tuple(grains), tuple(sectors), b"".join(parts))

    def _streams(self, window: _Window) -> Iterator[tuple[int, Buffer]]:
        """Yield number and zlib stream of each grain that is not all zero."""
        found = read_extents(window.extents)
        pieces = [(extent, record, data) for extent, (record, data) in zip(window.extents, found, strict=True)]
        if len(pieces) == 1 and not window.offset - pieces[0][0].offset and isinstance(pieces[0][2], bytes):
            yield from self._of_plain(window.offset, pieces[0][2])
            return
        at = 0
        first = window.offset // GRAIN_SIZE
        for number in range(first, -(-window.end // GRAIN_SIZE)):
            start, end = number * GRAIN_SIZE, (number + 1) * GRAIN_SIZE
            while at < len(pieces) and pieces[at][0].end <= start:
                at += 1
            here = at
            parts: list[Buffer] = []
            position = start
            while here < len(pieces) and pieces[here][0].offset < end:
                extent, record, data = pieces[here]
                taken = self._taken_over(extent, record, data, start)
                if taken is not None:
                    yield number, taken
                    position = -1
                    break
                begin, stop = max(extent.offset, start), min(extent.end, end)
                parts.append(bytes(begin - position))
                parts.append(memoryview(data)[begin - extent.offset : stop - extent.offset])
                position = stop
                here += 1
            if position > start:
                parts.append(bytes(end - position))
                yield from self._compressed(number, b"".join(parts))

    def _of_plain(self, offset: int, data: bytes) -> Iterator[tuple[int, Buffer]]:
        """Yield the grains of a window that is one run of bytes from its beginning; the last one is filled up."""
        view = memoryview(data)
        for at in range(0, len(data), GRAIN_SIZE):
            if len(data) - at < GRAIN_SIZE:
                yield from self._compressed((offset + at) // GRAIN_SIZE, data[at:].ljust(GRAIN_SIZE, b"\0"))
            elif data[at] or not data.startswith(_ZERO_GRAIN, at):
                yield (offset + at) // GRAIN_SIZE, deflate_zlib(view[at : at + GRAIN_SIZE], self._level)

    def _compressed(self, number: int, grain: bytes) -> Iterator[tuple[int, Buffer]]:
        if grain != _ZERO_GRAIN:
            yield number, deflate_zlib(grain, self._level)

    def _taken_over(self, extent: Extent, record: Buffer, data: Buffer, start: int) -> Buffer | None:
        """Return the zlib stream of a grain that is one, whole, in the source too."""
        stored = extent.stored
        is_whole = extent.offset == start and extent.length == GRAIN_SIZE and stored is not None and not stored.skip
        if not self._takes_over or not is_whole or isinstance(data, memoryview):
            return None
        assert stored is not None
        stream = _zlib_stream(stored, record)
        if stream is None or len(stream) > MAX_STREAM or data == _ZERO_GRAIN:
            return None
        return stream


class _Stream:
    """The file as far as it is written: where the next record goes, and what the tables have to say."""

    def __init__(self, disk: DiskImage, sink: Sink, options: WriteOptions) -> None:
        self._disk = disk
        self._sink = sink
        self._options = options
        self._size = align_up(disk.size, SECTOR)
        grains = -(-self._size // GRAIN_SIZE)
        self._directory = array("I", bytes(4 * -(-grains // TABLE_ENTRIES)))
        self._table = array("I", bytes(4 * TABLE_ENTRIES))
        self._table_number = 0
        self._sector = 0

    def begin(self) -> None:
        """Write header and descriptor."""
        text = descriptor_text(
            "streamOptimized", self._extent_line(), self._size, self._disk.info.sector_size, self._options
        )
        self._write(self._header(GD_AT_END))
        self._write(text.ljust(DESCRIPTOR_SECTORS * SECTOR, b"\0"))
        self._write(bytes((OVERHEAD_SECTORS - self._sector) * SECTOR))

    def add(self, written: _Written) -> None:
        """Write the records of a window, which lies behind the last one."""
        if not written.grains:
            return
        number = written.grains[0] // TABLE_ENTRIES
        if number != self._table_number:
            self._end_table()
            self._table_number = number
        sector = self._sector
        for grain, sectors in zip(written.grains, written.sectors, strict=True):
            self._table[grain % TABLE_ENTRIES] = sector
            sector += sectors
            if sector > MAX_GRAIN_SECTOR:
                raise UnsupportedFeature(
                    f"{self._disk.name}: compressed, its data is more than a streamOptimized VMDK can hold, whose file "
                    "ends at 2 TiB; write raw or vhdx"
                )
        self._write(written.records)

    def finish(self) -> None:
        """Write the last table, the directory, the footer and the end."""
        self._end_table()
        directory = _little(self._directory)
        directory_sectors = align_up(len(directory), SECTOR) // SECTOR
        self._marker(MARKER_GRAIN_DIRECTORY, directory_sectors)
        gd_sector = self._sector
        self._write(directory.ljust(directory_sectors * SECTOR, b"\0"))
        self._marker(MARKER_FOOTER, 1)
        self._write(self._header(gd_sector))
        self._marker(MARKER_END_OF_STREAM, 0)

    def _end_table(self) -> None:
        """Write the grain table if a grain was stored in it; without one, its directory entry stays 0."""
        if not any(self._table):
            return
        self._marker(MARKER_GRAIN_TABLE, TABLE_SECTORS)
        self._directory[self._table_number] = self._sector
        self._write(_little(self._table))
        self._table = array("I", bytes(4 * TABLE_ENTRIES))

    def _marker(self, kind: int, sectors: int) -> None:
        self._write(MARKER.build({"val": sectors, "size": 0, "type": kind}))

    def _write(self, data: Buffer) -> None:
        self._sink.write(data)
        self._sector += len(data) // SECTOR

    def _extent_line(self) -> str:
        try:
            name = require_file_name(self._options.file_name)
        except UnsupportedFeature:
            name = STREAM_NAME
        if len(name.encode()) > _MAX_LINE_NAME:
            name = STREAM_NAME
        return f'RW {self._size // SECTOR} SPARSE "{name}"'

    def _header(self, gd_sector: int) -> bytes:
        return SPARSE_HEADER.build(
            {
                "version": VERSION,
                "flags": FLAG_LINE_END_TEST | FLAG_COMPRESSED | FLAG_MARKERS,
                "capacity": self._size // SECTOR,
                "grainSize": GRAIN_SECTORS,
                "descriptorOffset": DESCRIPTOR_SECTOR,
                "descriptorSize": DESCRIPTOR_SECTORS,
                "numGTEsPerGT": TABLE_ENTRIES,
                "rgdOffset": 0,
                "gdOffset": gd_sector,
                "overHead": OVERHEAD_SECTORS,
                "uncleanShutdown": 0,
                "lineEndTest": LINE_END_TEST,
                "compressAlgorithm": COMPRESSION_DEFLATE,
            }
        )


def _zlib_stream(stored: Stored, record: Buffer) -> memoryview | None:
    """Return the zlib stream in the record of a compressed grain that was decoded without an error; None if what is
    stored there is anything else.
    """
    decode = stored.decode
    if not isinstance(decode, functools.partial):
        return None
    if getattr(decode.func, "__func__", None) is not SparseExtent._decode_grain:
        return None
    size = _GRAIN_MARKER.unpack_from(record)[1]
    return memoryview(record)[_GRAIN_MARKER.size : _GRAIN_MARKER.size + size]


def _little(entries: "array[int]") -> bytes:
    if sys.byteorder == "big":
        entries = entries[:]
        entries.byteswap()
    return entries.tobytes()
