"""A gzip file read as what is in it, at any offset, without a temporary copy.

Specification: RFC 1952, GZIP file format 4.3; RFC 1951, DEFLATE. Little-endian. One or more members, then nothing or
zero padding.

A deflate stream can only be read from its start. One pass over the file therefore comes first: it gives the size
(the stored ISIZE is the size modulo 2**32, of one member), verifies every checksum, and leaves behind copies of the
decompressor's state, from which later reads go on.
"""

import bisect
import threading
import zlib
from dataclasses import dataclass
from typing import Any, TypeAlias

from construct import Const, Construct, Int8ul, Int32ul, Struct

from diskfs_formats.binary import parse_bytes
from diskfs_formats.errors import ChecksumMismatch, CorruptImage, ImageError, TruncatedImage
from diskfs_formats.reading import UnitCache
from diskfs_formats.source import ByteSource, require_range

MAGIC = b"\x1f\x8b"
METHOD_DEFLATE = 8

MEMBER_HEADER = Struct(
    "ID" / Const(MAGIC),
    "CM" / Int8ul,
    "FLG" / Int8ul,
    "MTIME" / Int32ul,
    "XFL" / Int8ul,
    "OS" / Int8ul,
)
assert MEMBER_HEADER.sizeof() == 10

MEMBER_TRAILER = Struct(
    "CRC32" / Int32ul,
    "ISIZE" / Int32ul,  # modulo 2**32
)
assert MEMBER_TRAILER.sizeof() == 8

FLAG_HEADER_CRC = 1 << 1
FLAG_EXTRA = 1 << 2
FLAG_NAME = 1 << 3
FLAG_COMMENT = 1 << 4
RESERVED_FLAGS = 0xE0

USUAL_HEADER_SIZE = 1 << 10
MAX_HEADER_SIZE = 128 << 10
"""Bytes of a member's header with its extra field (at most 64 KiB), name and comment."""
MAX_RATIO = 1032
"""Bytes out for a byte in: what deflate can reach (RFC 1951: 258 bytes from two bits)."""
MAX_SIZE = 64 << 40
"""Bytes; the largest disk of any format."""

INPUT_SIZE = 256 << 10
"""Bytes that are read from the file at once."""
FED_AT_ONCE = 16 << 10
"""Bytes handed to the decompressor at once. A state is kept only where they are used up, so that it holds no input."""
BLOCK_SIZE = 256 << 10
"""Bytes that are decompressed for one request and kept: neighbouring small reads find them."""
CACHE_SIZE = 16 << 20
"""Decompressed bytes that are kept for one file."""
CHECKPOINT_SPACING = 1 << 20
"""Decompressed bytes between two kept states, at least."""
MAX_CHECKPOINTS = 1024
"""States that are kept: 38 KB each (measured, zlib 1.2.13), 38 MiB together."""
MAX_STREAMS = 4
"""Open decompressors that wait where a read ended, so that reading on costs nothing twice."""

# The type that zlib.decompressobj returns has no public name.
Inflater: TypeAlias = Any


def is_gzip(head: bytes) -> bool:
    """Tell whether a file that begins so is gzip: the signature, the one method there is, no reserved flag."""
    return len(head) >= 4 and head[:2] == MAGIC and head[2] == METHOD_DEFLATE and not head[3] & RESERVED_FLAGS


class GzipSource:
    """The decompressed content of a gzip file. Owns the file's source. Safe to share between threads.

    The first call that needs the size makes the pass described above, over the whole file; it raises TruncatedImage,
    CorruptImage or ChecksumMismatch if anything in the file is damaged, and so does every call after it.
    """

    def __init__(self, source: ByteSource, name: str, *, max_size: int = MAX_SIZE) -> None:
        self._source = source
        self._name = name
        self._max_size = min(max_size, source.size * MAX_RATIO)
        self._lock = threading.Lock()
        self._index: _Index | None = None
        self._error: ImageError | None = None
        self._streams: list[_Stream] = []
        self._blocks = UnitCache(CACHE_SIZE)

    @property
    def below(self) -> tuple[ByteSource, ...]:
        """The compressed file."""
        return (self._source,)

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._indexed().size

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        parts = []
        end = offset + length
        while offset < end:
            number, skip = divmod(offset, BLOCK_SIZE)
            part = memoryview(self._block(number))[skip : skip + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def read_if_ready(self, offset: int, length: int, /) -> bytes | None:
        if self._index is None:
            return None
        require_range(self, offset, length)
        parts = []
        end = offset + length
        while offset < end:
            number, skip = divmod(offset, BLOCK_SIZE)
            block = self._blocks.get((self._source, number, 0))
            if block is None:
                return None
            part = memoryview(block)[skip : skip + end - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        with self._lock:
            self._streams.clear()
            self._blocks.forget(self._source)
        self._source.close()

    def _indexed(self) -> "_Index":
        index = self._index
        if index is None:
            with self._lock:
                if self._error is not None:
                    raise type(self._error)(*self._error.args)
                if self._index is None:
                    try:
                        self._index = _make_index(self._source, self._max_size)
                    except ImageError as error:
                        # The file will not get better; what the source itself raises may.
                        self._error = error
                        raise
                index = self._index
        return index

    def _block(self, number: int) -> bytes:
        """Return a block. Blocks are decompressed one at a time: readers of one disk mostly follow each other."""
        key = (self._source, number, 0)
        block = self._blocks.get(key)
        if block is None:
            index = self._indexed()
            with self._lock:
                block = self._blocks.get(key)
                if block is None:
                    start = number * BLOCK_SIZE
                    stream = self._stream_before(start, index)
                    stream.skip_to(start)
                    block = stream.read_exactly(min(BLOCK_SIZE, index.size - start))
                    self._blocks.settle(key, block)
                    self._streams.append(stream)
                    if len(self._streams) > MAX_STREAMS:
                        self._streams.pop(0)
        return bytes(block)

    def _stream_before(self, position: int, index: "_Index") -> "_Stream":
        """Take the open stream, or start one from the kept state, that is nearest before `position`."""
        checkpoint = index.before(position)
        nearest = max(
            (stream for stream in self._streams if checkpoint.position <= stream.position <= position),
            key=lambda stream: stream.position,
            default=None,
        )
        if nearest is None:
            return _Stream(self._source, checkpoint)
        self._streams.remove(nearest)
        return nearest


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Where decompression can go on. `inflater` is None before a member's header."""

    position: int
    """Bytes of the content before it."""
    offset: int
    """Bytes of the file before it."""
    inflater: Inflater = None


class _Index:
    """The kept states of a file, at most MAX_CHECKPOINTS: when full, every second goes and the spacing doubles."""

    def __init__(self) -> None:
        self.size = 0
        self._spacing = CHECKPOINT_SPACING
        self._checkpoints = [_Checkpoint(0, 0)]

    def wants(self, position: int) -> bool:
        """Tell whether a state at `position` would be far enough from the last one."""
        return position - self._checkpoints[-1].position >= self._spacing

    def add(self, checkpoint: _Checkpoint) -> None:
        """Keep a state; positions ascend."""
        self._checkpoints.append(checkpoint)
        if len(self._checkpoints) > MAX_CHECKPOINTS:
            self._checkpoints = self._checkpoints[::2]
            self._spacing *= 2

    def before(self, position: int) -> _Checkpoint:
        """Return the last state that is not after `position`."""
        return self._checkpoints[bisect.bisect_right(self._checkpoints, position, key=lambda c: c.position) - 1]

    def __len__(self) -> int:
        return len(self._checkpoints)


def _make_index(source: ByteSource, max_size: int) -> _Index:
    """Decompress the whole file once, keeping nothing but states."""
    index = _Index()
    stream = _Stream(source, _Checkpoint(0, 0), verify=True)
    while data := stream.read(BLOCK_SIZE):
        index.size += len(data)
        if index.size > max_size:
            raise CorruptImage(
                f"{source.name}: the gzip file of {source.size} bytes holds over {max_size} bytes: more than is read"
            )
        if stream.is_between_inputs and index.wants(stream.position):
            index.add(stream.checkpoint())
    return index


class _Stream:
    """The content from one place on, in order. Not shared between threads."""

    def __init__(self, source: ByteSource, start: _Checkpoint, *, verify: bool = False) -> None:
        self._source = source
        self._offset = start.offset
        self._inflater: Inflater = start.inflater.copy() if start.inflater is not None else None
        self._verify = verify
        self._crc = 0
        self._member_start = start.position
        self._input = memoryview(b"")
        self._input_offset = start.offset
        self.position = start.position

    @property
    def is_between_inputs(self) -> bool:
        """Whether the decompressor has used up all that it was fed, so that a copy of it holds no input."""
        return self._inflater is None or not self._inflater.unconsumed_tail

    def checkpoint(self) -> _Checkpoint:
        """Return the present state."""
        return _Checkpoint(self.position, self._offset, None if self._inflater is None else self._inflater.copy())

    def read(self, limit: int) -> bytes:
        """Return the next bytes, up to `limit`; none only at the end."""
        while True:
            if self._inflater is None and not self._begin_member():
                return b""
            data = self._inflate(limit)
            if self._inflater.eof:
                self._end_member()
            if data:
                return data

    def read_exactly(self, length: int) -> bytes:
        """Return the next `length` bytes, which the index says are there."""
        parts = []
        while length:
            data = self.read(length)
            if not data:
                raise CorruptImage(
                    f"{self._source.name}: the gzip file ended at {self.position} bytes of content, and there were "
                    f"{length} more before: it has changed"
                )
            parts.append(data)
            length -= len(data)
        return b"".join(parts)

    def skip_to(self, position: int) -> None:
        """Go forward to `position`."""
        while self.position < position:
            self.read_exactly(min(BLOCK_SIZE, position - self.position))

    def _inflate(self, limit: int) -> bytes:
        piece = self._fed()
        if not piece:
            raise TruncatedImage(
                f"{self._source.name}: the gzip file ends at {self._offset:#x} in the middle of its data: it is "
                "incomplete; copy or download it again"
            )
        try:
            data: bytes = self._inflater.decompress(piece, limit)
        except zlib.error as error:
            raise CorruptImage(f"{self._source.name}: gzip data at offset {self._offset:#x}: {error}") from error
        # At the end of the stream CPython may leave the same bytes in unconsumed_tail as well.
        left = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
        self._offset += len(piece) - len(left)
        self.position += len(data)
        if self._verify:
            self._crc = zlib.crc32(data, self._crc)
        return data

    def _fed(self) -> memoryview:
        """Return the next bytes for the decompressor, empty at the end of the file."""
        return self._ahead(1)[:FED_AT_ONCE]

    def _ahead(self, length: int) -> memoryview:
        """Return what was read of the file from here on: at least `length` bytes, or all that there are."""
        at = self._offset - self._input_offset
        left = self._source.size - self._offset
        if not 0 <= at <= len(self._input) - min(length, left):
            self._input = memoryview(self._source.read_at(self._offset, max(0, min(INPUT_SIZE, left))))
            self._input_offset = self._offset
            at = 0
        return self._input[at:]

    def _begin_member(self) -> bool:
        """Take in a member's header, or return False at the end of the file."""
        if self._offset and self._is_end():
            return False
        data = self._structure(MEMBER_HEADER, "gzip header")
        header = parse_bytes(MEMBER_HEADER, data, self._source, self._offset, "gzip header")
        where = f"{self._source.name}: gzip header at offset {self._offset:#x}"
        if header.CM != METHOD_DEFLATE:
            raise CorruptImage(f"{where}: compression method {header.CM}, expected {METHOD_DEFLATE}")
        if header.FLG & RESERVED_FLAGS:
            raise CorruptImage(f"{where}: flags {header.FLG:#04x} hold reserved bits")
        size = _header_size(self._ahead(USUAL_HEADER_SIZE)[:USUAL_HEADER_SIZE], header.FLG, where)
        if size is None:
            size = _header_size(self._ahead(MAX_HEADER_SIZE)[:MAX_HEADER_SIZE], header.FLG, where)
        if size is None and self._source.size - self._offset < MAX_HEADER_SIZE:
            raise TruncatedImage(f"{where}: the file ends in the middle of it; copy or download it again")
        if size is None:
            raise CorruptImage(f"{where}: it is over {MAX_HEADER_SIZE} bytes long")
        self._offset += size
        self._inflater = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
        self._crc = 0
        self._member_start = self.position
        return True

    def _end_member(self) -> None:
        """Take in a member's trailer, and compare it with what was decompressed."""
        self._inflater = None
        offset = self._offset
        data = self._structure(MEMBER_TRAILER, "gzip trailer")
        self._offset += len(data)
        if not self._verify:
            return
        trailer = parse_bytes(MEMBER_TRAILER, data, self._source, offset, "gzip trailer")
        where = f"{self._source.name}: gzip trailer at offset {offset:#x}"
        if self._crc != trailer.CRC32:
            raise ChecksumMismatch(f"{where}: CRC-32 {self._crc:#010x}, expected {trailer.CRC32:#010x}")
        size = self.position - self._member_start
        if size & 0xFFFFFFFF != trailer.ISIZE:
            raise CorruptImage(f"{where}: ISIZE {trailer.ISIZE}, but the member holds {size} bytes")

    def _structure(self, structure: "Construct[Any, Any]", title: str) -> bytes:
        size = structure.sizeof()
        data = bytes(self._ahead(size)[:size])
        if len(data) < size:
            raise TruncatedImage(
                f"{self._source.name}: {title} at offset {self._offset:#x} needs {size} bytes, the file ends at "
                f"{self._source.size:#x}: the file is incomplete; copy or download it again"
            )
        return data

    def _is_end(self) -> bool:
        """Tell whether the file ends here, or goes on with zeros to its end, as tapes and block devices leave them.

        Anything but another member is an error: a member whose header is damaged would look the same, and its part of
        the disk would be missing without a word.
        """
        if self._ahead(len(MAGIC))[: len(MAGIC)] == MAGIC:
            return False
        for offset in range(self._offset, self._source.size, INPUT_SIZE):
            if any(self._source.read_at(offset, min(INPUT_SIZE, self._source.size - offset))):
                raise CorruptImage(
                    f"{self._source.name}: after the end of the gzip data at {self._offset:#x} there is neither "
                    "another member nor zero padding: the file is damaged, or something was appended to it"
                )
        return True


def _header_size(data: memoryview, flags: int, where: str) -> int | None:
    """Return the size of a header with its optional fields, or None if it does not end in `data`."""
    at = MEMBER_HEADER.sizeof()
    if flags & FLAG_EXTRA:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for flag in (FLAG_NAME, FLAG_COMMENT):
        if flags & flag:
            at = bytes(data).find(b"\0", at) + 1
            if at == 0:
                return None
    if flags & FLAG_HEADER_CRC:
        stored = int.from_bytes(data[at : at + 2], "little")
        crc = zlib.crc32(data[:at]) & 0xFFFF
        at += 2
        if at <= len(data) and crc != stored:
            raise ChecksumMismatch(f"{where}: CRC-16 {crc:#06x}, expected {stored:#06x}")
    return at if at <= len(data) else None
