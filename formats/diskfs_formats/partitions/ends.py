"""The ends of a disk, where partition tables live."""

from diskfs_formats.errors import DiskfsError
from diskfs_formats.source import ByteSource

LBA0_SIZE = 512
"""Bytes of LBA 0 that any scheme uses, whatever the sector size."""
END_SIZE = 6 * 4096
"""Bytes of either end that are read in one go: a protective MBR, a GPT header and the usual 16 KiB of partition
entries, for 512-byte and for 4096-byte sectors."""


class DiskEnds:
    """Small reads of a disk; what lies near its ends, where partition tables live, costs one read per end.

    Raises what the disk raises if LBA 0 cannot be read. Not shared between threads.
    """

    def __init__(self, disk: ByteSource) -> None:
        self.name = disk.name
        self.size = disk.size
        self._disk = disk
        try:
            self._head = disk.read_at(0, min(END_SIZE, disk.size))
        except DiskfsError:
            self._head = disk.read_at(0, min(LBA0_SIZE, disk.size))
        self._tail: bytes | None = None

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset`; raises what the disk raises."""
        if offset + length <= len(self._head):
            return self._head[offset : offset + length]
        tail_offset = max(self.size - END_SIZE, 0)
        if offset >= tail_offset and offset + length <= self.size:
            if self._tail is None:
                self._tail = self._read_tail(tail_offset)
            if self._tail:
                return self._tail[offset - tail_offset : offset - tail_offset + length]
        return self._disk.read_at(offset, length)

    def _read_tail(self, offset: int) -> bytes:
        try:
            return self._disk.read_at(offset, self.size - offset)
        except DiskfsError:
            # What is asked for may still be readable by itself.
            return b""
