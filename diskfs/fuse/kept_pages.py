"""The pages that the kernel keeps of files of a changeable disk, and that it must forget when the disk is changed."""

import errno
import threading
from dataclasses import dataclass

import pyfuse3
from pyfuse3 import InodeT


@dataclass(slots=True)
class _Readers:
    """Who reads a file through the kernel's page cache."""

    open: int = 0
    opened_ever: int = 0


_NO_PAGES = frozenset({errno.ENOENT, errno.ENOTCONN, errno.ENODEV})
"""The kernel knows the file no longer, or the mount is gone."""


class KeptPages:
    """Of which files of a disk the kernel may keep pages: those that somebody has opened to read only.

    Such a reader holds no page locked but while a read is under way, and reads wait for nothing that waits for this: so
    dropping pages ends. It would not, were the pages of writers kept too: two that write to two files of one disk could
    wait for each other.
    """

    def __init__(self) -> None:
        self._readers: dict[int, _Readers] = {}
        self._lock = threading.Lock()

    @property
    def are_any(self) -> bool:
        """Whether there may be any pages to drop."""
        return bool(self._readers)

    def opened(self, inode: int) -> None:
        """Note a reader."""
        with self._lock:
            readers = self._readers.setdefault(inode, _Readers())
            readers.open += 1
            readers.opened_ever += 1

    def closed(self, inode: int) -> None:
        """Note that a reader has gone; his pages stay until they are dropped."""
        with self._lock:
            self._readers[inode].open -= 1

    def drop(self) -> None:
        """Have the kernel forget all pages, after the disk was changed. For a thread, as it waits for reads to end.

        Pages that are read later show the change.
        """
        if not self._readers:
            return
        with self._lock:
            found = [(inode, readers, readers.open, readers.opened_ever) for inode, readers in self._readers.items()]
        for inode, readers, were_open, opened_ever in found:
            try:
                pyfuse3.invalidate_inode(InodeT(inode))
            except OSError as error:
                if error.errno not in _NO_PAGES:
                    raise
            if were_open:
                continue
            with self._lock:
                # Nobody could read while the pages were dropped, and nobody has begun to since: there are none.
                if readers.opened_ever == opened_ever and self._readers.get(inode) is readers:
                    del self._readers[inode]
