"""What a disk is to those who change it: a DiskImage that can also be written."""

from typing import Protocol

from diskfs_formats.driver import DiskImage
from diskfs_formats.source import Buffer


class WritableDisk(DiskImage, Protocol):
    """A disk whose bytes can be changed. Safe to share between threads.

    Until `flush` returns, a power loss leaves each 512-byte sector with its old bytes or with bytes that were written
    to it since, never with a mixture. What `write_at` and `discard` have done is seen by every later read.
    """

    def write_at(self, offset: int, data: Buffer, /) -> None:
        """Write `data` at any offset inside the disk, aligned or not.

        Raises OutOfRange past the end, OutOfSpace if there is no room (the range then holds old or new bytes, and
        writing may be tried again), and OverlayWriteError or SinkError if the storage fails.
        """
        ...

    def discard(self, offset: int, length: int, /) -> None:
        """Make a range read as zero; raises what `write_at` raises."""
        ...

    def flush(self) -> None:
        """Return when all that was written before the call survives a power loss.

        After a failure other than a lack of space that was met before anything was lost, every later call fails too,
        until the disk is opened again.
        """
        ...
