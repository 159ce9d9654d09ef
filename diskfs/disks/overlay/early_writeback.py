"""Long writes to an overlay go on their way to the disk before somebody syncs them."""

import contextlib
import threading

from diskfs import writeback
from diskfs.disks.overlay.data_file import DataFile

LONG = 64 << 10
"""Bytes of a write that counts. Short ones are scattered, and often written again soon."""


class EarlyWriteback:
    """Has the kernel begin to write the data of a disk every `writeback.STEP` bytes, in a thread: a disk that is busy
    can make it wait. Calls may come from several threads.
    """

    def __init__(self, data: DataFile) -> None:
        self._data = data
        self._waiting = 0
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None

    def wrote(self, length: int) -> None:
        """Note a write. Waits for nothing."""
        if length < LONG:
            return
        # A count that threads lose is made up for by the writes that follow.
        self._waiting += length
        if self._waiting >= writeback.STEP and self._turn.acquire(blocking=False):
            try:
                if self._thread is None or not self._thread.is_alive():
                    self._waiting = 0
                    thread = threading.Thread(target=self._data.begin_writeback, name="diskfs-writeback", daemon=True)
                    with contextlib.suppress(RuntimeError):  # No thread is to be had; a sync does it.
                        thread.start()
                        self._thread = thread
            finally:
                self._turn.release()

    def end(self) -> None:
        """Wait until the files are no longer used here; nothing may be written afterwards."""
        with self._turn:
            if self._thread is not None:
                self._thread.join()
