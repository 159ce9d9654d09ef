"""A raw image that is changed in place, as the user asked for by `mount --read-write`: the only format for it.

Everywhere else a change goes to an overlay. A raw image has no structure of its own that half a change could break:
what a power loss does to it, it does to a disk.
"""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from diskfs.disks.overlay.storage import LocalFile
from diskfs.errors import AccessDenied, SinkError, SourceError, SourceNotFound
from diskfs.sinks.positioned import sink_error
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.reading import zeroes
from diskfs_formats.source import Buffer, require_range
from diskfs_formats.text import printable

_PAGE = 4096
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
"""`struct flock` for a write lock from the first byte to whatever the end will be."""


class WritableRawImage:
    """A WritableDisk on a regular file or block device, locked against others as long as it is open.

    Reading raises SourceError, writing SinkError or OutOfSpace. After a sync has failed every later `flush` fails too:
    the kernel may have dropped what it could not write. Safe to share between threads.
    """

    def __init__(self, path: Path) -> None:
        """Open and lock the file; raises AccessDenied, SourceNotFound, or SinkError if somebody else has it."""
        self._name = printable(str(path))
        self._failure: SinkError | None = None
        descriptor = self._opened(path)
        try:
            status = os.fstat(descriptor)
            self._is_regular = stat.S_ISREG(status.st_mode)
            if not self._is_regular and not stat.S_ISBLK(status.st_mode):
                raise UnsupportedFeature(f"{self._name}: it is no file and no block device, and cannot be changed")
            self._lock(descriptor)
            if self._is_regular and (device := _loop_device_of(status)):
                raise SinkError(
                    f"{self._name}: {device} shows it, and has a cache of its own that would not see what is written; "
                    f"detach it first (losetup -d {device}), or mount {device} itself"
                )
            self._size = status.st_size if self._is_regular else os.lseek(descriptor, 0, os.SEEK_END)
        except BaseException:
            os.close(descriptor)
            raise
        self._file = LocalFile(descriptor)
        self._info = ImageInfo("raw", "raw", self._size)

    def _opened(self, path: Path) -> int:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            # O_EXCL keeps others, and their mounts, off a block device.
            return os.open(path, flags | (os.O_EXCL if path.is_block_device() else 0))
        except FileNotFoundError as error:
            raise SourceNotFound(f"{self._name}: there is no such file") from error
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise SinkError(f"{self._name}: the device is in use (mounted, or part of another one)") from error
            raise AccessDenied(f"{self._name}: it cannot be opened for writing: {error.strerror}") from error

    def _lock(self, descriptor: int) -> None:
        try:
            # The first keeps off other mounts of ours; the second programs that lock what they open, such as qemu.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_regular:
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise SinkError(f"{self._name}: it cannot be locked: {error.strerror}") from error
            raise SinkError(
                f"{self._name}: another program has it open and locked; two that write to one image destroy it: end "
                "that one first (lsof shows it)"
            ) from error

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def is_same_file(self, status: os.stat_result) -> bool:
        """Tell whether a status is that of this file."""
        return os.path.samestat(os.fstat(self._file.descriptor), status)

    @property
    def info(self) -> ImageInfo:
        return self._info

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        try:
            data = self._file.read_at(offset, length)
        except OSError as error:
            raise SourceError(
                f"{self._name}: reading {length} bytes at offset {offset:#x}: {error.strerror}"
            ) from error
        if len(data) != length:
            raise SourceError(f"{self._name}: the file was cut short while it was mounted; expected {self._size} bytes")
        return data

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        return self._file.read_if_ready(offset, length) if self._is_regular else None

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self._size - offset if length is None else length
        require_range(self, offset, length)
        end = offset + length
        ranges = self._file.data_ranges(offset, end) if self._is_regular else iter([(offset, end)] if length else [])
        for start, stop in ranges:
            if start > offset:
                yield Extent(offset, start - offset, ExtentKind.ZERO)
            yield Extent(start, stop - start, ExtentKind.DATA, Stored(self, start, stop - start))
            offset = stop
        if offset < end:
            yield Extent(offset, end - offset, ExtentKind.ZERO)

    def write_at(self, offset: int, data: Buffer, /) -> None:
        require_range(self, offset, len(data))
        try:
            self._file.write_at(offset, data)
        except OSError as error:
            raise sink_error(error, self._name, f"writing {len(data)} bytes at offset {offset:#x}") from error

    def write_if_quick(self, offset: int, data: Buffer, /) -> bool:
        """Write if no more is needed than a copy into memory, whole pages; else do nothing and return False."""
        if not self._is_regular or offset % _PAGE or len(data) % _PAGE or offset + len(data) > self._size:
            return False
        self.write_at(offset, data)
        return True

    def discard(self, offset: int, length: int, /) -> None:
        require_range(self, offset, length)
        if not length:
            return
        try:
            if self._is_regular and self._file.punch(offset, length):
                return
        except OSError as error:
            raise sink_error(error, self._name, f"freeing {length} bytes at offset {offset:#x}") from error
        for piece in zeroes(length):
            self.write_at(offset, piece)
            offset += len(piece)

    def flush(self) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            self._file.sync()
        except OSError as error:
            self._failure = sink_error(error, self._name, "writing to the disk (fsync)")
            raise self._failure from error

    def close(self) -> None:
        self._file.close()


def _loop_device_of(status: os.stat_result) -> str | None:
    """Return a loop device whose file this is, as far as we may see."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            file = backing.read_text(errors="surrogateescape").removesuffix("\n")
            if os.path.samestat(Path(file).stat(), status):
                return f"/dev/{backing.parts[-3]}"
    return None
