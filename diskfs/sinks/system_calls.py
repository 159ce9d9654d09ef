"""The system calls by which a file sink changes files and names, all of them: what is recorded, or made to fail, to see
what a power loss or an error leaves is replaced here alone.

Every function raises OSError and may be called by any thread.
"""

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from diskfs import writeback
from diskfs_formats.source import Buffer


def create(path: Path) -> int:
    """Create a file that was not there, and return its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def lock(descriptor: int) -> None:
    """Lock a file for as long as it is open; raises BlockingIOError if somebody else has."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write(descriptor: int, buffers: Sequence[Buffer], offset: int) -> int:
    """Write buffers, one after the other, and return how many bytes of them were written."""
    return os.pwritev(descriptor, buffers, offset)


def set_size(descriptor: int, size: int) -> None:
    """Give a file a size; what is added is a hole."""
    os.ftruncate(descriptor, size)


def begin_writeback(descriptor: int) -> None:
    """Have what was written on its way to the disk; promises nothing, and raises nothing after all."""
    writeback.begin_writeback(descriptor)


def sync(descriptor: int) -> None:
    """Return when the file's content survives a power loss."""
    os.fsync(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor."""
    os.close(descriptor)


def link(path: Path, new_path: Path) -> None:
    """Give a file a further name; raises FileExistsError if it is there."""
    os.link(path, new_path)


def rename(path: Path, new_path: Path) -> None:
    """Give a file another name, in the place of whatever has it."""
    path.rename(new_path)


def unlink(path: Path) -> None:
    """Remove a name."""
    path.unlink()


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems (FUSE, CIFS) cannot sync a folder, and have nothing to lose there.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
    finally:
        os.close(descriptor)
