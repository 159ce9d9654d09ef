"""A new regular file: written under a temporary name beside the target, renamed when it is complete.

A run that is killed leaves its temporary file behind. It is locked (flock) as long as its writer lives, so the next run
that writes into the folder can tell and removes it.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from diskfs import writeback
from diskfs.errors import SinkError
from diskfs.sinks import system_calls
from diskfs.sinks.positioned import sink_error, write_gathered
from diskfs_formats.source import Buffer
from diskfs_formats.text import printable

PARTIAL_SUFFIX = ".diskfs-part"
_PARTIAL_NAME = re.compile(r"\..*\.[0-9a-f]{16}\.diskfs-part", re.DOTALL)
_KEPT_OF_NAME = 180
"""Bytes of the target's name that its temporary name repeats, so that it stays within 255."""
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.ENOTSUP})


class FileSink:
    """Writes one file, sparse where nothing is written. A PositionedSink.

    An old file at `path` stays as it is until `commit` and is replaced then, with its permissions kept; without
    `replace` it is refused, also one that appears meanwhile. Raises SinkError, OutOfSpace.
    """

    keeps_old_bytes = False

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        self._path = _target(path)
        self._name = printable(str(path))
        self._replace = replace
        self._position = 0
        self._size = 0
        self._committed = False
        self._waiting = 0
        try:
            old: os.stat_result | None = self._path.lstat()
        except FileNotFoundError:
            old = None
        except (OSError, ValueError) as error:
            raise SinkError(f"{self._name}: it cannot be written: {getattr(error, 'strerror', error)}") from error
        if old is not None:
            if not stat.S_ISREG(old.st_mode):
                raise SinkError(f"{self._name}: it is there already and is no regular file")
            if not replace:
                raise self._exists()
        remove_stale(self._path.parent)
        self._fd, self._partial = self._create()
        if old is not None:
            with contextlib.suppress(OSError):
                os.fchown(self._fd, old.st_uid, old.st_gid)
            with contextlib.suppress(OSError):
                os.fchmod(self._fd, stat.S_IMODE(old.st_mode))

    @property
    def name(self) -> str:
        """The target, for messages."""
        return self._name

    @property
    def path(self) -> Path:
        """The target, links followed."""
        return self._path

    @property
    def committed(self) -> bool:
        """Whether the file has its name."""
        return self._committed

    @property
    def partial(self) -> Path:
        """Where the bytes are until `commit`."""
        return self._partial

    def write(self, data: Buffer, /) -> None:
        self.write_at(self._position, (data,))
        self._position += len(data)

    def write_zeroes(self, length: int, /) -> None:
        # The file is new, so what is skipped is a hole.
        self._position += length
        self._size = max(self._size, self._position)

    def set_size(self, size: int, /) -> None:
        try:
            system_calls.set_size(self._fd, size)
        except OSError as error:
            raise sink_error(error, self._name, f"making room for {size} bytes") from error
        self._size = size

    def write_at(self, offset: int, buffers: Sequence[Buffer], /) -> None:
        write_gathered(self._fd, offset, buffers, self._name)
        # Threads may lose a count here; it is only about when.
        self._waiting += sum(map(len, buffers))
        if self._waiting >= writeback.STEP:
            self._waiting = 0
            system_calls.begin_writeback(self._fd)

    def write_zeroes_at(self, offset: int, length: int, /) -> None:
        # Nothing to do: each range of a new file is written once, and what is not written is a hole.
        pass

    def flush(self) -> None:
        """Have everything on the disk, the file at its full size."""
        try:
            if os.fstat(self._fd).st_size < self._size:
                system_calls.set_size(self._fd, self._size)
            system_calls.sync(self._fd)
        except OSError as error:
            raise sink_error(error, self._name, "writing the last bytes to the disk") from error

    def commit(self) -> None:
        self.flush()
        try:
            self._publish()
        except OSError as error:
            raise sink_error(error, self._name, "renaming the complete file") from error
        try:
            system_calls.sync_folder(self._path.parent)
        except OSError as error:
            doing = "it is complete and in its place, but making its name survive a power loss failed"
            raise sink_error(error, self._name, doing) from error
        self._close()

    def abort(self) -> None:
        if not self._committed and self._fd >= 0:
            # The name goes before the lock does: no other run needs to look at it.
            with contextlib.suppress(OSError):
                system_calls.unlink(self._partial)
        self._close()

    def withdraw(self) -> None:
        """Remove the file if it was committed; an older one is not brought back. Raises nothing."""
        if self._committed:
            with contextlib.suppress(OSError):
                system_calls.unlink(self._path)

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1
        if descriptor >= 0:
            # What matters was synced, and its errors were raised.
            with contextlib.suppress(OSError):
                system_calls.close(descriptor)

    def _create(self) -> tuple[int, Path]:
        kept = os.fsencode(self._path.name)[:_KEPT_OF_NAME].decode("utf-8", "ignore")
        while True:
            partial = self._path.parent / f".{kept}.{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
            try:
                descriptor = system_calls.create(partial)
            except OSError as error:
                raise sink_error(error, self._name, "creating a file beside it") from error
            try:
                system_calls.lock(descriptor)
                # Between those two lines another run may have taken it for a stale one.
                if os.fstat(descriptor).st_nlink:
                    return descriptor, partial
            except OSError as error:
                # A file system without locks: nobody can tell a stale file there, and nobody removes one.
                if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                    return descriptor, partial
            system_calls.close(descriptor)

    def _publish(self) -> None:
        if not self._replace:
            try:
                system_calls.link(self._partial, self._path)
            except FileExistsError as error:
                raise self._exists() from error
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                if self._path.exists():
                    raise self._exists() from error
            else:
                self._committed = True
                # It is a second name of the target now, and if it stays the next run removes it.
                with contextlib.suppress(OSError):
                    system_calls.unlink(self._partial)
                return
        system_calls.rename(self._partial, self._path)
        self._committed = True

    def _exists(self) -> SinkError:
        return SinkError(f"{self._name}: it exists already; use --force to replace it")


def remove_stale(folder: Path) -> None:
    """Remove the temporary files that killed runs have left in a folder; those of living runs are locked."""
    try:
        names = [path.name for path in folder.iterdir() if _PARTIAL_NAME.fullmatch(path.name)]
    except OSError:
        return
    for name in names:
        path = folder / name
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if stat.S_ISREG(os.fstat(descriptor).st_mode):
                    system_calls.lock(descriptor)
                    system_calls.unlink(path)
            finally:
                os.close(descriptor)


def _target(path: Path) -> Path:
    """Follow the links of a target, as cp does: the link stays, what it leads to is written."""
    if not path.is_symlink():
        return path.absolute()
    followed = Path(os.path.realpath(path))
    if not followed.exists():
        raise SinkError(f"{printable(str(path))}: it is a symbolic link that leads nowhere")
    return followed
