"""The answers to the kernel's requests: translation only."""

import errno
import functools
import json
import logging
import os
import stat
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

import pyfuse3
import trio
from pyfuse3 import FileHandleT, InodeT, ReaddirToken, RequestContext

from diskfs.fuse.bridge import Reader
from diskfs.fuse.errno_map import errno_of
from diskfs.fuse.tree import ROOT_INODE, Directory, File, Node, Tree
from diskfs.mountpoints import STATUS_NAME
from diskfs.sources.statistics import STATISTICS
from diskfs_formats.errors import DiskfsError
from diskfs_formats.source import Buffer

log = logging.getLogger("diskfs.fuse")

_STATUS_INODE = (1 << 63) - 1
_STATUS_SIZE = 4096
_KEPT = 1.0
"""Seconds for which the kernel may keep names and attributes. Nothing of the tree ever changes, but what the kernel
answers by itself hides that the daemon has died; that must show soon, and for folders at once."""
_BLOCK_SIZE = 4096
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_APPEND | os.O_CREAT
_LOG_AGAIN_AFTER = 60.0
_LOGGED_AT_MOST = 1000

Handler = TypeVar("Handler", bound=Callable[..., Awaitable[Any]])


@dataclass(slots=True)
class Counters:
    """What a mount has done, for its status file."""

    reads: int = 0
    bytes_read: int = 0
    errors: int = 0
    last_error: str = ""
    started: float = field(default_factory=time.time)

    def shown(self) -> dict[str, Any]:
        """Return what a mount of this kind counts besides."""
        return {}


def guarded(handler: Handler) -> Handler:
    """Make a handler answer an errno whatever happens in it: an exception that escaped would end the mount."""

    @functools.wraps(handler)
    async def answer(self: "DiskfsOperations", *args: Any) -> Any:
        try:
            return await handler(self, *args)
        except (pyfuse3.FUSEError, trio.Cancelled, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            self.note_failure(handler.__name__, error)
            raise pyfuse3.FUSEError(errno_of(error)) from error

    return answer  # type: ignore[return-value]  # the same signature, seen through functools.wraps


class DiskfsOperations(pyfuse3.Operations):
    """Serves a tree read-only.

    Files carry the times of the image file and its read permissions, and belong to whoever mounts. Between two
    awaits a handler is atomic.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(
        self, tree: Tree, reader: Reader, *, status: os.stat_result | None = None, about: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self._tree = tree
        self._reader = reader
        self._about = about or {}
        self._mode = 0o400 | (status.st_mode & 0o044 if status else 0)
        self._times = (status.st_atime_ns, status.st_mtime_ns) if status else (time.time_ns(),) * 2
        self._allocated: dict[int, int] = {}
        self._snapshots: dict[int, bytes] = {}
        self._last_snapshot = _STATUS_INODE
        self._logged: dict[str, float] = {}
        self.counters = Counters()

    # Names and attributes

    @guarded
    async def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> pyfuse3.EntryAttributes:  # noqa: ARG002
        if parent_inode == ROOT_INODE and name == STATUS_NAME.encode():
            return self._status_attributes()
        node = self._tree.child(parent_inode, os.fsdecode(name))
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self._attributes(node)

    @guarded
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.EntryAttributes:  # noqa: ARG002
        if inode == _STATUS_INODE:
            return self._status_attributes()
        return await self._attributes(self._node(inode))

    @guarded
    async def access(self, inode: InodeT, mode: int, ctx: RequestContext) -> bool:  # noqa: ARG002 - the kernel checks
        self._node(inode)
        return not mode & os.W_OK

    @guarded
    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        pass

    @guarded
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:  # noqa: ARG002
        data = pyfuse3.StatvfsData()
        files = [node.entry for node in self._tree if isinstance(node.entry, File)]
        total = sum(file.content.size for file in files if not file.deferred)
        data.f_bsize = data.f_frsize = _BLOCK_SIZE
        data.f_blocks = -(-total // _BLOCK_SIZE)
        data.f_bfree = data.f_bavail = 0
        data.f_files = len(self._tree)
        data.f_ffree = data.f_favail = 0
        data.f_namemax = 255
        return data

    # Folders

    @guarded
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:  # noqa: ARG002
        if not isinstance(self._node(inode).entry, Directory):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        return FileHandleT(inode)

    @guarded
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        folder = self._node(InodeT(fh))
        listed = [(".", folder), ("..", self._node(InodeT(folder.parent))), *folder.children.items()]
        for position, (name, node) in enumerate(listed[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, os.fsencode(name), await self._listed_attributes(node), position):
                return

    @guarded
    async def releasedir(self, fh: FileHandleT) -> None:
        pass

    # Files

    @guarded
    async def open(self, inode: InodeT, flags: int, ctx: RequestContext) -> pyfuse3.FileInfo:  # noqa: ARG002
        if flags & _WRITING:
            raise pyfuse3.FUSEError(errno.EROFS)
        if inode == _STATUS_INODE:
            self._last_snapshot += 1
            self._snapshots[self._last_snapshot] = self._status()
            return pyfuse3.FileInfo(fh=FileHandleT(self._last_snapshot), direct_io=True)
        if not isinstance(self._node(inode).entry, File):
            raise pyfuse3.FUSEError(errno.EISDIR)
        return pyfuse3.FileInfo(fh=FileHandleT(inode), keep_cache=True)

    @guarded
    async def read(self, fh: FileHandleT, off: int, size: int) -> Buffer:  # type: ignore[override]  # any buffer will do
        if fh in self._snapshots:
            return self._snapshots[fh][off : off + size]
        node = self._tree.node(fh)
        if node is None or not isinstance(node.entry, File):
            raise pyfuse3.FUSEError(errno.EBADF)
        content = node.entry.content
        length = min(size, content.size - off)
        if length <= 0:
            return b""
        data = await self._reader.read_at(content, off, length)
        if len(data) != length:
            raise DiskfsError(f"{node.name}: {len(data)} bytes came for {length} at offset {off:#x}")
        self.counters.reads += 1
        self.counters.bytes_read += length
        return data

    @guarded
    async def flush(self, fh: FileHandleT) -> None:
        pass

    @guarded
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        pass

    @guarded
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        pass

    @guarded
    async def release(self, fh: FileHandleT) -> None:
        self._snapshots.pop(fh, None)

    @guarded
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> NoReturn:  # noqa: ARG002
        raise pyfuse3.FUSEError(errno.EINVAL)

    # Helpers

    def note_failure(self, request: str, error: BaseException) -> None:
        """Count an error and log it: one line for an error that we expect, a traceback for any other.

        The same line is logged once a minute at most; a guest that reads a bad block for ever fills no disk.
        """
        expected = isinstance(error, DiskfsError)
        line = str(error) if expected else f"{type(error).__name__}: {error}"
        self.counters.errors += 1
        self.counters.last_error = line
        now = time.monotonic()
        if now - self._logged.get(line, -_LOG_AGAIN_AFTER) < _LOG_AGAIN_AFTER:
            return
        if len(self._logged) >= _LOGGED_AT_MOST:
            self._logged.clear()
        self._logged[line] = now
        log.error("%s: %s", request, line, exc_info=None if expected else error)

    def _node(self, inode: int) -> Node:
        node = self._tree.node(inode)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return node

    async def _attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = node.entry
        if isinstance(entry, Directory):
            # A folder may be entered by whoever may read it.
            return self._make_attributes(node.inode, stat.S_IFDIR | self._mode | self._mode >> 2, 0, 0)
        if node.inode not in self._allocated:
            if entry.deferred:
                await self._reader.run(lambda: entry.content.size)
            allocated = entry.content.size
            if entry.allocated is not None:
                try:
                    allocated = await self._reader.run(entry.allocated)
                except DiskfsError as error:
                    # A damaged table makes the map unknown, not the file: its size is the honest upper bound.
                    self.note_failure("getattr", error)
            self._allocated[node.inode] = allocated
        return self._make_attributes(
            node.inode, stat.S_IFREG | self._mode, entry.content.size, self._allocated[node.inode]
        )

    async def _listed_attributes(self, node: Node) -> pyfuse3.EntryAttributes:
        """Return what a listing says of an entry: of one that fails, what makes the kernel ask for it alone again."""
        try:
            return await self._attributes(node)
        except DiskfsError as error:
            self.note_failure("readdir", error)
            attributes = self._make_attributes(node.inode, stat.S_IFREG | self._mode, 0, 0)
            attributes.entry_timeout = attributes.attr_timeout = 0.0
            return attributes

    def _make_attributes(self, inode: int, mode: int, size: int, allocated: int) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = InodeT(inode)
        attributes.generation = 0
        attributes.entry_timeout = attributes.attr_timeout = 0.0 if stat.S_ISDIR(mode) else _KEPT
        attributes.st_mode = pyfuse3.ModeT(mode)
        attributes.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attributes.st_uid = os.getuid()
        attributes.st_gid = os.getgid()
        attributes.st_rdev = 0
        attributes.st_size = size
        attributes.st_blksize = _BLOCK_SIZE
        attributes.st_blocks = -(-allocated // 512)
        attributes.st_atime_ns, attributes.st_mtime_ns = self._times
        attributes.st_ctime_ns = self._times[1]
        return attributes

    def _status_attributes(self) -> pyfuse3.EntryAttributes:
        return self._make_attributes(_STATUS_INODE, stat.S_IFREG | 0o400, _STATUS_SIZE, 0)

    def _status(self) -> bytes:
        counters = self.counters
        return json.dumps(
            {
                **self._about,
                "pid": os.getpid(),
                "started": counters.started,
                "reads": counters.reads,
                "bytes_read": counters.bytes_read,
                "errors": counters.errors,
                "last_error": counters.last_error,
                **counters.shown(),
                **STATISTICS.shown(),
            }
        ).encode()


def _refuse_changes() -> None:
    """Give the class a handler that answers EROFS for every request that would change something."""

    async def refuse(_self: DiskfsOperations, *_args: Any) -> NoReturn:
        raise pyfuse3.FUSEError(errno.EROFS)

    for name in (
        "create", "link", "mkdir", "mknod", "removexattr", "rename", "rmdir", "setattr", "setxattr", "symlink",
        "unlink", "write",
    ):  # fmt: skip
        setattr(DiskfsOperations, name, refuse)


_refuse_changes()
