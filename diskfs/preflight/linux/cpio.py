"""cpio archives in the form of an initramfs, read as a stream: names alone, without holding what the files have.

Specification: Linux, Documentation/driver-api/early-userspace/buffer-format.rst: newc (070701) and newc with checksum
(070702); every header and every file is padded to 4 bytes, `TRAILER!!!` ends an archive, zeros may follow.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diskfs.guest.errors import GuestError

HEADER_SIZE = 110
MAGICS = (b"070701", b"070702")
TRAILER = "TRAILER!!!"
MAX_NAME = 4096
MAX_MEMBERS = 200_000


@dataclass(frozen=True, slots=True)
class CpioMember:
    name: str
    mode: int
    size: int
    """Bytes."""


class Stream:
    """Bytes that come in pieces, taken in order. `pull` returns the next piece, empty at the end."""

    def __init__(self, pull: Callable[[], bytes], name: str) -> None:
        self._pull = pull
        self._held = memoryview(b"")
        self.name = name
        self.offset = 0
        """How many bytes were taken."""

    def peek(self, length: int) -> bytes:
        """Return the next `length` bytes, fewer at the end, without taking them."""
        while len(self._held) < length:
            piece = self._pull()
            if not piece:
                break
            self._held = memoryview(bytes(self._held) + piece)
        return bytes(self._held[:length])

    def take(self, length: int) -> bytes:
        """Take exactly `length` bytes; GuestError if the stream ends before."""
        data = self.peek(length)
        if len(data) < length:
            raise GuestError(
                f"{self.name}: it ends at byte {self.offset + len(data)}, {length - len(data)} bytes too early"
            )
        self._held = self._held[length:]
        self.offset += length
        return data

    def skip(self, length: int) -> None:
        """Take `length` bytes and forget them; GuestError if the stream ends before."""
        left = length
        while left:
            if not self._held:
                self._held = memoryview(self._pull())
                if not self._held:
                    raise GuestError(f"{self.name}: it ends {left} bytes too early, in the content of a file")
            step = min(left, len(self._held))
            self._held = self._held[step:]
            self.offset += step
            left -= step

    def skip_zeros(self) -> None:
        """Take the zeros that come next."""
        while self.peek(1) == b"\0":
            held = bytes(self._held)
            count = len(held) - len(held.lstrip(b"\0"))
            self._held = self._held[count:]
            self.offset += count

    def push_back(self, data: bytes) -> None:
        """Give back what was taken last."""
        self._held = memoryview(data + bytes(self._held))
        self.offset -= len(data)

    def rest(self) -> bytes:
        """Take what is held and not taken yet."""
        held, self._held = bytes(self._held), memoryview(b"")
        self.offset += len(held)
        return held


def read_cpio(stream: Stream) -> Iterator[CpioMember]:
    """Yield the members of one archive, up to and with its trailer; raises GuestError for what is no such archive."""
    start = stream.offset
    for _ in range(MAX_MEMBERS):
        at = stream.offset
        header = stream.take(HEADER_SIZE)
        if header[:6] not in MAGICS:
            raise GuestError(f"{stream.name}: byte {at}: {header[:6]!r} stands where a cpio header (070701) must")
        try:
            fields = [int(header[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
        except ValueError:
            raise GuestError(f"{stream.name}: byte {at}: a field of the cpio header is not hexadecimal") from None
        mode, size, name_size = fields[1], fields[6], fields[11]
        if not 0 < name_size <= MAX_NAME:
            raise GuestError(f"{stream.name}: byte {at}: a name of {name_size} bytes, expected 1 to {MAX_NAME}")
        name = stream.take(name_size)[:-1].decode("utf-8", "backslashreplace")
        stream.skip(-(stream.offset - start) % 4)
        if name == TRAILER:
            return
        yield CpioMember(name, mode, size)
        stream.skip(size)
        stream.skip(-(stream.offset - start) % 4)
    raise GuestError(f"{stream.name}: the archive has over {MAX_MEMBERS} files")
