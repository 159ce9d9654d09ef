"""Local files and block devices as byte sources."""

import errno
import os
import stat
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

from diskfs.errors import AccessDenied, SourceChanged, SourceError, SourceNotFound
from diskfs_formats.errors import UnsafeReference
from diskfs_formats.source import Buffer, require_range
from diskfs_formats.text import printable

# Linux 4.14 and later; absent from `os` where the C library is older than the interpreter's build expects.
_RWF_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)
_BLKSSZGET = 0x1268
_NEVER_READY = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})


class FileSource:
    """A local regular file or block device, pinned to the version that was opened.

    Reading uses `pread` alone, so threads share the descriptor freely. A regular file whose size or modification
    time changes afterwards raises SourceChanged on the next read: bytes of two versions are never mixed.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take over an open descriptor; use `open_file` to get one safely."""
        self._name = printable(str(path))
        self._path = path
        self._fd = descriptor
        status = os.fstat(descriptor)
        self._is_regular = stat.S_ISREG(status.st_mode)
        self._version = (status.st_size, status.st_mtime_ns)
        self._size = status.st_size if self._is_regular else os.lseek(descriptor, 0, os.SEEK_END)
        self._status = status
        self._device_sector_size = _sector_size(descriptor) if stat.S_ISBLK(status.st_mode) else None
        self._can_be_ready = bool(_RWF_NOWAIT) and self._is_regular
        _OPEN.add(self)

    @property
    def name(self) -> str:
        return self._name

    @property
    def path(self) -> Path:
        """Where the file was found."""
        return self._path

    @property
    def size(self) -> int:
        return self._size

    @property
    def status(self) -> os.stat_result:
        """The file's status when it was opened."""
        return self._status

    @property
    def device_sector_size(self) -> int | None:
        """Bytes of a block device's logical sector, in which its partition table counts; None for a file."""
        return self._device_sector_size

    def is_same_file(self, other: "FileSource") -> bool:
        """Tell whether two sources are one file, whatever its names."""
        return os.path.samestat(self._status, other.status)

    def read_at(self, offset: int, length: int, /) -> bytes:
        if offset < 0 or length < 0 or offset + length > self._size:
            require_range(self, offset, length)
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                # A signal, or the 2 GiB limit of one call; nothing at all means that the file has shrunk.
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise self._failed(error, offset, length) from error
        self._require_same_version()
        if len(data) != length:
            raise SourceChanged(
                f"{self._name}: {length} bytes at offset {offset:#x} were asked for, {len(data)} are there: the file "
                "was cut short since it was opened"
            )
        return data

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        if not self._can_be_ready:
            return None
        if offset < 0 or length < 0 or offset + length > self._size:
            require_range(self, offset, length)
        buffer = bytearray(length)
        try:
            count = os.preadv(self._fd, (buffer,), offset, _RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _NEVER_READY:
                self._can_be_ready = False
            return None
        if count != length:
            # Only part of it is in the page cache: the caller's thread waits for the rest.
            return None
        self._require_same_version()
        return buffer

    def data_ranges(self, offset: int, length: int, /) -> Iterator[tuple[int, int, bool]]:
        require_range(self, offset, length)
        end = offset + length
        while offset < end:
            start = self._next_data(offset, end)
            if start > offset:
                yield offset, start - offset, False
            if start == end:
                return
            stop = min(self._seek(start, os.SEEK_HOLE, end), end)
            yield start, stop - start, True
            offset = stop

    def _next_data(self, offset: int, end: int) -> int:
        return min(self._seek(offset, os.SEEK_DATA, end), end)

    def _seek(self, offset: int, whence: int, otherwise: int) -> int:
        """Seek for data or a hole. The descriptor's position is of no use to anybody, so threads may share it."""
        if not self._is_regular:
            return offset if whence == os.SEEK_DATA else otherwise
        try:
            return os.lseek(self._fd, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return otherwise
            if error.errno == errno.EINVAL:
                return offset if whence == os.SEEK_DATA else otherwise
            raise self._failed(error, offset, 0) from error

    def close(self) -> None:
        descriptor, self._fd = self._fd, -1
        self._can_be_ready = False
        _OPEN.discard(self)
        if descriptor >= 0:
            os.close(descriptor)

    def _require_same_version(self) -> None:
        if not self._is_regular:
            return
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != self._version:
            raise SourceChanged(
                f"{self._name}: the file was changed since it was opened (size {self._version[0]} then, "
                f"{status.st_size} now); open or mount it again"
            )

    def _failed(self, error: OSError, offset: int, length: int) -> SourceError:
        return SourceError(f"{self._name}: reading {length} bytes at offset {offset:#x}: {error.strerror}")


_OPEN: "weakref.WeakSet[FileSource]" = weakref.WeakSet()


def open_files() -> "list[FileSource]":
    """Return the files and devices that are open: images, their parents and their extents."""
    return list(_OPEN)


def open_file(path: Path) -> FileSource:
    """Open a file that the user named: a regular file or a block device, symbolic links followed.

    Raises SourceNotFound, AccessDenied, or SourceError for anything else (a FIFO, a directory), without waiting.
    """
    return _opened(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, allow_block_device=True)


def open_beside(folder: Path, file_name: str) -> FileSource:
    """Open a regular file that an image named: `file_name` is one path component, checked by the caller.

    Raises UnsafeReference for anything that is no regular file itself (a symbolic link, a device), else SourceError.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW
    return _opened(folder / file_name, flags, allow_block_device=False)


def _opened(path: Path, flags: int, *, allow_block_device: bool) -> FileSource:
    name = printable(str(path))
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as error:
        raise SourceNotFound(f"{name}: there is no such file") from error
    except PermissionError as error:
        raise AccessDenied(f"{name}: permission to read it is denied") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise UnsafeReference(f"{name}: it is a symbolic link, and an image may not lead through one") from error
        if isinstance(error, OSError) and error.errno in (errno.ENXIO, errno.ENODEV):
            refusal = SourceError if allow_block_device else UnsafeReference
            raise refusal(f"{name}: it is a socket or a device that is not there, expected a file") from error
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SourceError(f"{name}: it cannot be opened: {reason}") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(mode) or (allow_block_device and stat.S_ISBLK(mode))):
            refusal = SourceError if allow_block_device else UnsafeReference
            raise refusal(f"{name}: it is {_kind(mode)}, expected a file{' or a block device' * allow_block_device}")
        return FileSource(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise


def _sector_size(descriptor: int) -> int | None:
    import fcntl  # noqa: PLC0415 - for block devices alone

    answer = bytearray(4)
    try:
        fcntl.ioctl(descriptor, _BLKSSZGET, answer)
    except OSError:
        return None
    return int.from_bytes(answer, sys.byteorder)


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    )
    return next((kind for test, kind in kinds if test(mode)), "no regular file")
