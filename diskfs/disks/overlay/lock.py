"""Who has an overlay open, and whether the last one who had closed it: the file `lock`."""

import contextlib
import os
import re
import socket
import time
from pathlib import Path

from diskfs.disks.overlay.names import LOCK
from diskfs.disks.overlay.storage import Storage, StoredFile
from diskfs.errors import OverlayInUse
from diskfs_formats.text import printable

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Another one each time that the system starts; see random(4)."""
_HOLDER_SIZE = 512
_HOLDER = re.compile(r"process (\d{1,10}) on (\S+)")
_HOLDER_TRIES = 20
_HOLDER_WAIT = 0.02


class FolderLock:
    """The file `lock`, locked. Its text is for messages, and says whether the last one to use the folder closed it.

    All that the page cache holds of an overlay that was closed is on the disk. That is said of the page cache of this
    machine since it was started, and of no other one that may share the folder.
    """

    def __init__(self, file: StoredFile) -> None:
        """Take over a file that is locked; use `lock_folder`."""
        self._file = file
        closed = _closed_text()
        self.was_closed = bool(closed) and file.read_at(0, len(closed) + 1) == closed
        self._write(f"process {os.getpid()} on {socket.gethostname()}\n".encode()[:_HOLDER_SIZE])
        if self.was_closed:
            # Or it could come back from the disk if this process is killed, and writing its name fails as well.
            file.sync()

    def _write(self, text: bytes) -> None:
        self._file.write_at(0, text)
        self._file.truncate(len(text))

    def release(self, *, closed: bool = False) -> None:
        """Let go of the folder. `closed` says that all that was written to it was synced, with success."""
        text = _closed_text()
        if closed and text:
            with contextlib.suppress(OSError):
                self._write(text)
        self._file.close()


def _closed_text() -> bytes:
    """Return what the lock of a closed overlay says, b"" if that cannot be told."""
    try:
        return b"closed since start " + _BOOT_ID.read_bytes()
    except OSError:
        return b""


def lock_folder(storage: Storage, name: str) -> FolderLock:
    """Lock the folder for this process; raises OverlayInUse, which says by whom it is locked, or OSError."""
    while True:
        lock = storage.open(LOCK, create=True)
        try:
            if not lock.lock():
                raise OverlayInUse(
                    f"{name}: the overlay is in use by {_holder(lock)}; unmount it there, or use another folder"
                )
            # Whoever removes an overlay holds the lock of a file that is then no longer there.
            if storage.is_current(LOCK, lock):
                return FolderLock(lock)
        except BaseException:
            lock.close()
            raise
        lock.close()


def _holder(lock: StoredFile) -> str:
    """Say who has the lock. It writes its name a moment after it has it, where an earlier one may have left its own."""
    for _ in range(_HOLDER_TRIES):
        text = lock.read_at(0, _HOLDER_SIZE).decode("ascii", "replace").strip()
        stated = _HOLDER.fullmatch(text)
        if stated and (stated[2] != socket.gethostname() or Path(f"/proc/{stated[1]}").exists()):
            return printable(text)
        time.sleep(_HOLDER_WAIT)
    return "another process"
