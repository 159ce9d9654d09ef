"""The parts of a multipart upload: how large they are, and their bytes until the server has them.

Amazon S3 takes at most 10,000 parts of 5 MiB to 5 GiB; the last may be smaller (User Guide, "Amazon S3 multipart upload
limits"). Sizes are in bytes.
"""

import base64
import functools
import io
import os
import tempfile
import threading
from collections.abc import Iterator
from typing import IO, NamedTuple

import google_crc32c

from diskfs.errors import SinkError
from diskfs.sinks.positioned import sink_error
from diskfs_formats.source import Buffer

MIB = 1 << 20
SMALLEST = 8 * MIB
"""Large enough that a request's overhead is small, small enough that what does not fit into one goes by several."""
LARGEST = 4096 * MIB
MAX_PARTS = 10_000
DOUBLED_AFTER = 700
"""Parts of one size where the whole is not known: 10,000 of them then hold 17 TiB."""
EVEN_UP_TO = 16 * MIB
"""A bound of the size is met with parts of one size if they need not be larger than this."""
IN_MEMORY = 32 * MIB
"""Larger parts are kept in a temporary file."""
_PIECE = MIB


class Place(NamedTuple):
    """Where a part lies: its number, from 0, its offset in the object, and its size."""

    number: int
    offset: int
    size: int


class PartSizes:
    """How an object is cut into parts. Each multiple of 1 MiB, so that no block of a disk's image is cut."""

    def __init__(self, expected: int | None = None, *, exact: bool = False) -> None:
        """`expected` is the object's size, if `exact`, or what it is not larger than; None if nothing is known."""
        even = -(-(expected or 0) // MAX_PARTS)
        even = max(SMALLEST, -(-even // MIB) * MIB)
        self._even = even if expected is not None and (exact or even <= EVEN_UP_TO) else None

    def at(self, offset: int) -> Place:
        """Return the part that the byte at `offset` belongs to. Raises OverflowError for one that none can hold."""
        number, start, size = 0, 0, self._even or SMALLEST
        while self._even is None and size < LARGEST and offset >= start + DOUBLED_AFTER * size:
            start += DOUBLED_AFTER * size
            number += DOUBLED_AFTER
            size *= 2
        number += (offset - start) // size
        if number >= MAX_PARTS or size > LARGEST:
            raise OverflowError(number)
        return Place(number, start + (offset - start) // size * size, size)


class Part:
    """Bytes of a part; what was not written is zero, and takes no memory where nothing was.

    One thread writes it; then several may read it.
    """

    def __init__(self, place: Place, name: str) -> None:
        self.place = place
        self.size = place.size
        self.filled = 0
        self._name = name
        self._memory: bytearray | None = None
        self._file: IO[bytes] | None = None

    @property
    def number(self) -> int:
        """As S3 counts, from 1."""
        return self.place.number + 1

    @property
    def memory(self) -> int:
        """Bytes of memory that it takes."""
        return len(self._memory) if self._memory is not None else 0

    @property
    def is_spooled(self) -> bool:
        """Whether it is kept in a temporary file."""
        return self._file is not None

    def write(self, at: int, data: Buffer) -> None:
        """Put bytes at a position of the part. Raises SinkError, OutOfSpace if the temporary file cannot take them."""
        self.filled += len(data)
        if self.size > IN_MEMORY:
            self._write_file(at, data)
            return
        if self._memory is None:
            # Cleared by the system when it is touched: the zeroes of a part cost nothing.
            self._memory = bytearray(self.size)
        self._memory[at : at + len(data)] = data

    def _write_file(self, at: int, data: Buffer) -> None:
        try:
            if self._file is None:
                folder = os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108 - large: /tmp is often in memory
                self._file = tempfile.TemporaryFile(dir=folder, prefix="diskfs-")  # noqa: SIM115 - closed by drop
                os.truncate(self._file.fileno(), self.size)
            left = memoryview(data)
            while left:
                count = os.pwrite(self._file.fileno(), left, at)
                left, at = left[count:], at + count
        except OSError as error:
            raise sink_error(error, self._name, "keeping a part in a temporary file until it is sent") from error

    def write_zeroes(self, length: int) -> None:
        """Note that so many bytes are to stay zero."""
        self.filled += length

    def end_at(self, size: int) -> None:
        """Make it the last part, which may be smaller."""
        self.size = size

    def read(self, at: int, length: int) -> bytes:
        """Return bytes of it."""
        length = max(0, min(length, self.size - at))
        if self._memory is not None:
            return bytes(memoryview(self._memory)[at : at + length])
        if self._file is not None:
            return os.pread(self._file.fileno(), length, at)
        return _ZEROES[:length] if length <= _PIECE else bytes(length)

    def pieces(self) -> Iterator[bytes]:
        """Yield all of it."""
        for at in range(0, self.size, _PIECE):
            yield self.read(at, _PIECE)

    def checksum(self) -> bytes:
        """Return its CRC-32C, big-endian, as S3 has it."""
        if self._memory is None and self._file is None:
            return _zero_checksum(self.size)
        return _checksum(self.pieces())

    def drop(self) -> None:
        """Give its memory back."""
        self._memory = None
        if self._file is not None:
            self._file.close()
            self._file = None


_ZEROES = bytes(_PIECE)


def _checksum(pieces: Iterator[bytes]) -> bytes:
    checksum = 0
    for piece in pieces:
        checksum = google_crc32c.extend(checksum, piece)
    return checksum.to_bytes(4, "big")


@functools.lru_cache(maxsize=16)
def _zero_checksum(size: int) -> bytes:
    return _checksum(_ZEROES[: min(_PIECE, size - at)] for at in range(0, size, _PIECE))


def encoded(checksum: bytes) -> str:
    """Return a checksum as it stands in headers and documents."""
    return base64.b64encode(checksum).decode()


class PartBody(io.RawIOBase):
    """A part as a file that is read while it is sent: in small pieces, so that a slow line is no timeout, and so that
    giving up is noticed in the middle.
    """

    def __init__(self, part: Part, stopping: threading.Event) -> None:
        super().__init__()
        self._part = part
        self._stopping = stopping
        self._position = 0

    def read(self, size: int | None = -1, /) -> bytes:
        if self._stopping.is_set():
            raise OSError("sending was given up")
        left = self._part.size - self._position
        data = self._part.read(self._position, left if size is None or size < 0 else min(size, left))
        self._position += len(data)
        return data

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._part.size}[whence]
        self._position = max(0, min(start + offset, self._part.size))
        return self._position

    def tell(self) -> int:
        return self._position


def too_large(name: str, offset: int) -> SinkError:
    """Return the error for an object that has no parts left."""
    return SinkError(f"{name}: an object in S3 has at most {MAX_PARTS} parts, and {offset} bytes do not fit into them")
