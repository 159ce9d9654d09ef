"""Blocks of remote objects in a folder, kept between runs and shared between processes.

Each block is a file of its own, named by digests alone: `KK/KEY-NUMBER`, KEY being the digest of the object and its
version, KK its first two digits. A file holds a header and the block; it appears by renaming, so that another process,
or the next one after a crash, sees all of it or nothing. What is read is checked, and what is damaged is fetched anew.
The cache is best effort: a full disk or a lost permission ends its use, never a read.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import stat
import struct
import threading
import time
from pathlib import Path

from google_crc32c import extend

from diskfs.errors import SourceError
from diskfs_formats.text import printable

log = logging.getLogger("diskfs.sources")

_HEADER = struct.Struct("<8s32sQII")
"""Magic, key, block number, length, CRC-32C of the rest of the header and of the block."""
_MAGIC = b"diskfsB1"
_CHECKED = struct.Struct("<8s32sQI")
TRIM_EVERY = 1 / 32
"""Part of the permitted size that one process writes before it looks at the size of the folder again."""
TRIM_TO = 7 / 8
"""Part of the permitted size that trimming leaves."""
TOUCH_AFTER = 600.0
"""Seconds after which a use of a block is noted on its file again."""
ABANDONED_AFTER = 3600.0
"""Seconds after which an unfinished file belongs to nobody any more."""


class StoredCache:
    """A folder of blocks, at most `size` bytes of them; least recently used goes first. Shared by threads."""

    def __init__(self, folder: Path, size: int) -> None:
        """Make the folder, for its owner alone; raises SourceError if it cannot be used at all."""
        self._folder = folder
        self._size = size
        self._since_trim = size
        self._disabled = False
        self._lock = threading.Lock()
        self._number = 0
        # Not the process's number: in containers that share a folder, all may have the same.
        self._mark = secrets.token_hex(8)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _require_own(folder)
            self._lock_file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SourceError(f"{printable(str(folder))}: it cannot be used as a cache: {error.strerror}") from error

    def load(self, key: str, number: int, length: int) -> bytes | None:
        """Return a block of `length` bytes if it is there and whole."""
        path = self._path(key, number)
        try:
            with path.open("rb", buffering=0) as file:
                data = file.read(_HEADER.size + length + 1)
                used = os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        if len(data) != _HEADER.size + length or not _is_right(data, key, number, length):
            log.info("%s: a damaged block is fetched anew", path.name)
            with contextlib.suppress(OSError):
                path.unlink()
            return None
        if time.time() - used > TOUCH_AFTER:
            with contextlib.suppress(OSError):
                os.utime(path)
        return data[_HEADER.size :]

    def store(self, key: str, number: int, block: bytes) -> None:
        """Keep a block, as far as that is possible."""
        if self._disabled or len(block) + _HEADER.size > self._size:
            return
        checked = _CHECKED.pack(_MAGIC, bytes.fromhex(key), number, len(block))
        header = checked + struct.pack("<I", extend(extend(0, checked), block))
        path = self._path(key, number)
        with self._lock:
            self._number += 1
            temporary = path.with_name(f"new-{self._mark}-{self._number}")
            self._since_trim += len(header) + len(block)
            due = self._since_trim >= self._size * TRIM_EVERY
            if due:
                self._since_trim = 0
        try:
            if due:
                self._trim()
            path.parent.mkdir(mode=0o700, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                with os.fdopen(descriptor, "wb", buffering=0) as file:
                    if file.write(header + block) != len(header) + len(block):
                        return
                temporary.rename(path)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
        except OSError as error:
            self._disabled = True
            log.warning(
                "%s: nothing more is kept in the cache: %s", printable(str(self._folder)), error.strerror or error
            )

    def _path(self, key: str, number: int) -> Path:
        return self._folder / key[:2] / f"{key}-{number:x}"

    def _trim(self) -> None:
        """Drop the least recently used blocks above the permitted size, unless another process is about it."""
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        try:
            found = []
            total = 0
            now = time.time()
            for folder in self._folder.iterdir():
                if len(folder.name) != 2 or not folder.is_dir():
                    continue
                for entry in os.scandir(folder):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        used = status.st_mtime
                        if entry.name.startswith("new-"):
                            if now - used > ABANDONED_AFTER:
                                os.unlink(entry.path)  # noqa: PTH108 - scandir gives strings
                            continue
                        found.append((used, status.st_size, entry.path))
                        total += status.st_size
            # What this process writes until it looks again must fit as well.
            if total + self._size * TRIM_EVERY <= self._size:
                return
            for _, size, path in sorted(found):
                if total <= self._size * TRIM_TO:
                    break
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108 - as above
                total -= size
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)


def _require_own(folder: Path) -> None:
    """Raise SourceError for a folder that others may write: blocks are checked for damage, which anyone can avoid."""
    status = folder.stat()
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & stat.S_IWOTH:
        raise SourceError(
            f"{printable(str(folder))}: other users may put files there, so it is no cache to be trusted; "
            "name a folder of your own, which only you may write to"
        )


def _is_right(data: bytes, key: str, number: int, length: int) -> bool:
    magic, stored_key, stored_number, stored_length, crc = _HEADER.unpack_from(data)
    if (magic, stored_key, stored_number, stored_length) != (_MAGIC, bytes.fromhex(key), number, length):
        return False
    found: int = extend(extend(0, data[: _CHECKED.size]), data[_HEADER.size :])
    return found == int(crc)
