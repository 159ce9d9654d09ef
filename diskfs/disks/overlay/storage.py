"""The system calls of the overlay store, all of them: what is simulated or made to fail is replaced here alone.

The store assumes of its storage what disks and file systems promise: a write of one aligned 512-byte sector happens
wholly or not at all; writes that were not synced may be lost, in part and in any order; what was there before a sync
returned stays. A name in a folder stays once the folder was synced.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from diskfs.errors import DamagedOverlay
from diskfs.writeback import begin_writeback
from diskfs_formats.source import Buffer
from diskfs_formats.text import printable

SECTOR = 512
"""Bytes that are written wholly or not at all."""
_FALLOC_KEEP_SIZE = 1
_FALLOC_PUNCH_HOLE = 2
_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})
"""A link, a folder, or a socket in the place of a file."""
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV})
_LIBC = ctypes.CDLL(None, use_errno=True)
_RWF_NOWAIT: int = getattr(os, "RWF_NOWAIT", 0)


class StoredFile(Protocol):
    """An open file. Every method raises OSError; safe to share between threads."""

    def read_at(self, offset: int, length: int, /) -> bytes:
        """Return up to `length` bytes: fewer only at the end of the file."""
        ...

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        """Return exactly `length` bytes if they are in memory, else None."""
        ...

    def write_at(self, offset: int, data: Buffer, /) -> None:
        """Write all of `data`; after an error any part of it may have been written."""
        ...

    def punch(self, offset: int, length: int, /) -> bool:
        """Free a range, which then reads as zero; False if the file system cannot."""
        ...

    def reserve(self, offset: int, length: int, /) -> None:
        """Take the room for a range without changing what it reads as, where the file system can."""
        ...

    def data_ranges(self, start: int, end: int, /) -> Iterator[tuple[int, int]]:
        """Yield the (start, end) of ranges that are no holes; all of it where the file system cannot tell."""
        ...

    def truncate(self, size: int, /) -> None:
        """Set the size; what is added reads as zero."""
        ...

    def size(self) -> int:
        """Return the size in bytes."""
        ...

    def begin_writeback(self) -> None:
        """Have what was written on its way to the disk; promises and raises nothing."""
        ...

    def sync(self) -> None:
        """Return when the content survives a power loss."""
        ...

    def forget_clean_pages(self) -> None:
        """Let later reads come from the disk, where memory could hold what a failed sync has left unwritten."""
        ...

    def owner(self) -> tuple[int, int]:
        """Return the user that the file belongs to, and its mode."""
        ...

    def lock(self) -> bool:
        """Lock the file until it is closed, or its process ends; False if somebody else has it locked."""
        ...

    def close(self) -> None:
        """Close the file; twice is harmless."""
        ...


class Storage(Protocol):
    """A folder. Every method raises OSError."""

    def make_folder(self) -> None:
        """Create the folder unless it is there, so that it survives a power loss."""
        ...

    def owner(self) -> int:
        """Return the user that the folder belongs to."""
        ...

    def names(self) -> list[str]:
        """Return the names in the folder; raises FileNotFoundError if it is missing."""
        ...

    def open(self, name: str, /, *, create: bool = False, write: bool = True) -> StoredFile:
        """Open a regular file, never through a symbolic link; raises DamagedOverlay for anything else of that name."""
        ...

    def rename(self, name: str, new_name: str, /) -> None:
        """Put a file in the place of another."""
        ...

    def unlink(self, name: str, /) -> None:
        """Remove a file."""
        ...

    def is_current(self, name: str, file: StoredFile, /) -> bool:
        """Tell whether `name` is still the file that was opened."""
        ...

    def sync(self) -> None:
        """Return when the names survive a power loss."""
        ...

    def remove_folder(self) -> None:
        """Remove the empty folder."""
        ...


class LocalFile:
    """A file of a local file system."""

    def __init__(self, descriptor: int) -> None:
        self._fd = descriptor
        self._can_be_ready = bool(_RWF_NOWAIT)

    def read_at(self, offset: int, length: int, /) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        if not self._can_be_ready:
            return None
        buffer = bytearray(length)
        try:
            count = os.preadv(self._fd, (buffer,), offset, _RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                self._can_be_ready = False
            return None
        return buffer if count == length else None

    def write_at(self, offset: int, data: Buffer, /) -> None:
        count = os.pwrite(self._fd, data, offset)
        if count == len(data):
            return
        # A full disk writes what fits, and says so only to the next call.
        rest = memoryview(data)[count:]
        while rest:
            offset += count
            count = os.pwrite(self._fd, rest, offset)
            if not count:
                raise OSError(errno.EIO, "nothing was written")
            rest = rest[count:]

    def punch(self, offset: int, length: int, /) -> bool:
        return self._fallocate(_FALLOC_PUNCH_HOLE | _FALLOC_KEEP_SIZE, offset, length)

    def reserve(self, offset: int, length: int, /) -> None:
        self._fallocate(_FALLOC_KEEP_SIZE, offset, length)

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        while _LIBC.fallocate64(self._fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            number = ctypes.get_errno()
            if number == errno.EINTR:
                continue
            if number in _UNSUPPORTED:
                return False
            raise OSError(number, os.strerror(number))
        return True

    def data_ranges(self, start: int, end: int, /) -> Iterator[tuple[int, int]]:
        while start < end:
            try:
                start = os.lseek(self._fd, start, os.SEEK_DATA)
                stop = min(os.lseek(self._fd, start, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                if error.errno not in _UNSUPPORTED:
                    raise
                stop = end
            if start >= end:
                return
            yield start, stop
            start = stop

    def truncate(self, size: int, /) -> None:
        os.ftruncate(self._fd, size)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def begin_writeback(self) -> None:
        begin_writeback(self._fd)

    def sync(self) -> None:
        os.fdatasync(self._fd)

    def forget_clean_pages(self) -> None:
        with contextlib.suppress(OSError):
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def owner(self) -> tuple[int, int]:
        status = os.fstat(self._fd)
        return status.st_uid, status.st_mode

    def lock(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        if self._fd >= 0:
            descriptor, self._fd = self._fd, -1
            os.close(descriptor)

    @property
    def descriptor(self) -> int:
        """The open descriptor."""
        return self._fd


class LocalStorage:
    """A folder of a local file system."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def make_folder(self) -> None:
        try:
            self._folder.mkdir(mode=0o700)
        except FileExistsError:
            if not self._folder.is_dir():
                raise
            return
        _sync_folder(self._folder.absolute().parent)

    def owner(self) -> int:
        return self._folder.stat().st_uid

    def names(self) -> list[str]:
        return os.listdir(self._folder)  # noqa: PTH208 - bare names are what is asked for

    def open(self, name: str, /, *, create: bool = False, write: bool = True) -> LocalFile:
        flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_RDWR if write else os.O_RDONLY)
        path = self._folder / name
        try:
            descriptor = os.open(path, flags | (os.O_CREAT if create else 0), 0o600)
        except OSError as error:
            if error.errno in _NO_FILE:
                raise _no_regular_file(path) from error
            raise
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise _no_regular_file(path)
        return LocalFile(descriptor)

    def rename(self, name: str, new_name: str, /) -> None:
        (self._folder / name).rename(self._folder / new_name)

    def unlink(self, name: str, /) -> None:
        (self._folder / name).unlink()

    def is_current(self, name: str, file: StoredFile, /) -> bool:
        assert isinstance(file, LocalFile)
        try:
            return os.path.samestat(os.fstat(file.descriptor), (self._folder / name).lstat())
        except FileNotFoundError:
            return False

    def sync(self) -> None:
        _sync_folder(self._folder)

    def remove_folder(self) -> None:
        self._folder.rmdir()


def _no_regular_file(path: Path) -> DamagedOverlay:
    return DamagedOverlay(f"{printable(str(path))}: it is no regular file: something else was put in its place")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
