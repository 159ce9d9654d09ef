"""The answers to requests that change a disk: what a block device would answer, for a file of fixed size.

Every write goes to the disk before it is acknowledged; nothing is kept back in the kernel or here. The same bytes lie
in two files (`disk0.raw`, `disk0p1.raw`), of which the kernel would keep two copies: who may write is served past its
page cache, and who only reads has his pages dropped before a write is acknowledged.
See docs/decisions/0018-writing-through-the-mount.md.
"""

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyfuse3
from pyfuse3 import FileHandleT, InodeT, RequestContext

from diskfs.errors import OutOfSpace, OverlayWriteError, SinkError
from diskfs.fuse import fallocate
from diskfs.fuse.errno_map import errno_of
from diskfs.fuse.operations import Counters, DiskfsOperations, guarded
from diskfs.fuse.tree import File, Node
from diskfs.fuse.written import Window
from diskfs_formats.source import Buffer

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_FIRST_HANDLE = 1 << 48
"""Handles of open disks: above every inode, below the snapshots of the status."""
_DISCARDS = fallocate.PUNCH_HOLE | fallocate.ZERO_RANGE


@dataclass(slots=True)
class WriteCounters(Counters):
    """What a writable mount has done."""

    writes: int = 0
    bytes_written: int = 0
    discards: int = 0
    flushes: int = 0

    def shown(self) -> dict[str, Any]:
        return {
            "writes": self.writes,
            "bytes_written": self.bytes_written,
            "discards": self.discards,
            "flushes": self.flushes,
        }


@dataclass(slots=True)
class _Handle:
    """An open file of a disk."""

    node: Node
    window: Window
    failures: int
    """Of the disk, when it was opened."""
    is_cached: bool
    """Whether the kernel may keep pages of what is read."""


class WritableOperations(DiskfsOperations):
    """Serves a tree some of whose files can be written: those with a window. Their sizes are fixed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.counters: WriteCounters = WriteCounters()
        self._handles: dict[int, _Handle] = {}
        self._last_handle = _FIRST_HANDLE

    # Names and attributes

    @guarded
    async def access(self, inode: InodeT, mode: int, ctx: RequestContext) -> bool:  # noqa: ARG002 - the kernel checks
        return not mode & os.W_OK or self._window(self._node(inode)) is not None

    @guarded
    async def setattr(
        self,
        inode: InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: FileHandleT | None,  # noqa: ARG002
        ctx: RequestContext,  # noqa: ARG002
    ) -> pyfuse3.EntryAttributes:
        node = self._node(inode)
        window = self._window(node)
        if window is None:
            raise pyfuse3.FUSEError(errno.EROFS)
        if fields.update_size and attr.st_size != window.content.size:
            raise pyfuse3.FUSEError(errno.EINVAL)
        if fields.update_mode or fields.update_uid or fields.update_gid:
            raise pyfuse3.FUSEError(errno.EPERM)
        if fields.update_mtime:
            window.written.modified_ns = attr.st_mtime_ns
        return await self._attributes(node)

    async def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        attributes = await super()._attributes(node)
        window = self._window(node)
        if window is not None:
            attributes.st_mode = pyfuse3.ModeT(attributes.st_mode | 0o200)
            if window.written.modified_ns is not None:
                attributes.st_mtime_ns = attributes.st_ctime_ns = window.written.modified_ns
        return attributes

    # Files

    @guarded
    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> pyfuse3.FileInfo:
        node = self._tree.node(inode)
        window = None if node is None else self._window(node)
        if node is None or window is None:
            return await super().open(inode, flags, ctx)
        # O_TRUNC and O_APPEND mean to a disk what they mean to a block device: nothing.
        is_cached = not flags & _WRITING
        if is_cached:
            window.written.pages.opened(inode)
        self._last_handle += 1
        self._handles[self._last_handle] = _Handle(node, window, window.written.failures, is_cached)
        return pyfuse3.FileInfo(fh=FileHandleT(self._last_handle), direct_io=not is_cached, keep_cache=is_cached)

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> Buffer:  # type: ignore[override]  # any buffer will do
        handle = self._handles.get(fh)
        return await super().read(FileHandleT(handle.node.inode) if handle else fh, off, size)

    @guarded
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        window = self._sound(fh)
        length = min(len(buf), window.content.size - off)
        if length <= 0:
            if not buf:
                return 0
            raise pyfuse3.FUSEError(errno.ENOSPC)
        data = buf if length == len(buf) else buf[:length]
        offset = window.offset + off
        await self._change(
            window, offset, length, lambda: window.written.disk.write_at(offset, data),
            lambda: window.written.write_if_quick(offset, data),
        )  # fmt: skip
        self.counters.writes += 1
        self.counters.bytes_written += length
        return length

    @guarded
    async def flush(self, fh: FileHandleT) -> None:
        # Whoever closes a file learns here that what he wrote was lost; a close makes nothing durable.
        if fh in self._handles:
            self._sound(fh)

    @guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:  # noqa: ARG002 - a disk has no other state
        if fh not in self._handles:
            return
        written = self._sound(fh).written
        try:
            await written.flushes.flush(self._reader.flush)
        except BaseException as error:
            if not isinstance(error, OutOfSpace):
                written.failures += 1
            raise
        self.counters.flushes += 1
        self._sound(fh)

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        handle = self._handles.pop(fh, None)
        if handle is None:
            await super().release(fh)
        elif handle.is_cached:
            handle.window.written.pages.closed(handle.node.inode)

    async def fallocate(self, inode: int, mode: int, offset: int, length: int, reply: Callable[[int], None]) -> None:
        """Discard a range, and give `reply` the errno, 0 if it went well. Never raises."""
        number = errno.EIO
        try:
            await self._discard(inode, mode, offset, length)
            number = 0
        except pyfuse3.FUSEError as error:
            number = error.errno
        except Exception as error:  # noqa: BLE001 - as for every other handler
            self.note_failure("fallocate", error)
            number = errno_of(error)
        finally:
            reply(number)

    async def _discard(self, inode: int, mode: int, offset: int, length: int) -> None:
        node = self._node(inode)
        window = self._window(node)
        if window is None:
            raise pyfuse3.FUSEError(errno.EROFS)
        if not mode & _DISCARDS or mode & ~(_DISCARDS | fallocate.KEEP_SIZE):
            # There is no room to be reserved on a disk, and nothing to be inserted.
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        if offset + length > window.content.size and not mode & fallocate.KEEP_SIZE:
            raise pyfuse3.FUSEError(errno.ENOSPC)
        length = min(length, window.content.size - offset)
        if length > 0:
            start = window.offset + offset
            await self._change(window, start, length, lambda: window.written.disk.discard(start, length))
            self.counters.discards += 1

    # Helpers

    async def _change(
        self,
        window: Window,
        offset: int,
        length: int,
        work: Callable[[], None],
        at_once: Callable[[], bool] = lambda: False,
    ) -> None:
        """Change a range of the disk; what was read ahead of it, here or in the kernel, is forgotten then."""
        written = window.written
        try:
            try:
                if not at_once():
                    await self._reader.write(work)
            finally:
                # Also after an error: the range may hold new bytes. What was read ahead goes first; else a reader who
                # comes while the kernel forgets its pages would put old bytes there again, for good.
                for other in written.windows:
                    self._reader.forget(other.content, offset - other.offset, length)
                written.modified_ns = time.time_ns()
                if written.pages.are_any:
                    await self._reader.write(written.pages.drop)
        except (SinkError, OverlayWriteError) as error:
            if not isinstance(error, OutOfSpace):
                written.failures += 1
            raise

    def _sound(self, fh: int) -> Window:
        """Return the window of an open file; fails if storing anything of its disk has failed since it was opened."""
        handle = self._handles.get(fh)
        if handle is None:
            raise pyfuse3.FUSEError(errno.EBADF)
        if handle.failures != handle.window.written.failures:
            raise pyfuse3.FUSEError(errno.EIO)
        return handle.window

    def _window(self, node: Node) -> Window | None:
        return node.entry.window if isinstance(node.entry, File) else None
