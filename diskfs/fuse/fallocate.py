"""Receiving `fallocate` from the kernel, for which pyfuse3 has no handler.

Discards of a loop device, `fstrim`, `blkdiscard` and `fallocate --punch-hole` arrive as that request. libfuse asks a
table of functions that pyfuse3 fills in and leaves this place empty; here it is filled in. The table is found in the
session's memory, which is read through /proc/self/mem: whatever lies there, nothing can fault. It counts as found only
where all of its places are full or empty exactly as pyfuse3 leaves them, and all that are full point into pyfuse3's own
code; otherwise nothing is touched, and the kernel is told that the request is not supported.
See docs/decisions/0018-writing-through-the-mount.md.
"""

import ctypes
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyfuse3

log = logging.getLogger("diskfs.fuse")

PUNCH_HOLE = 0x02
ZERO_RANGE = 0x10
KEEP_SIZE = 0x01

_TABLE = """
    init destroy lookup forget getattr setattr readlink mknod mkdir unlink rmdir symlink rename link open read write
    flush release fsync opendir readdir releasedir fsyncdir statfs setxattr getxattr listxattr removexattr access
    create getlk setlk bmap ioctl poll write_buf retrieve_reply forget_multi flock fallocate readdirplus
    copy_file_range lseek
""".split()  # noqa: SIM905 - fifty short words
"""`struct fuse_lowlevel_ops` of libfuse 3, whose order is part of its binary interface."""
_EMPTY = frozenset(
    {"destroy", "readdir", "getlk", "setlk", "bmap", "ioctl", "retrieve_reply", "flock", "fallocate", "copy_file_range",
     "lseek"}
)  # fmt: skip
"""The places that pyfuse3 3.5 leaves empty."""
_WORD = struct.calcsize("P")
_SESSION_SEARCHED = 512
"""Bytes of a session in which its table must begin; it begins after 48."""
_ENTRANCES = ("fuse_getattr_async", "fuse_lookup_async", "fuse_statfs_async", "fuse_access_async", "fuse_opendir_async")
"""The functions of pyfuse3 that the first requests of a mount go through; each is given the request."""

Begin = Callable[[int, int, int, int, Callable[[int], None]], None]
"""Begins a request: inode, mode, offset, length, and what takes its errno (0: done), from the event loop's thread."""

_Handler = ctypes.PYFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
)


class Fallocate:
    """Hands `fallocate` requests to `begin` once the first request of the mount has come. One for each process.

    Must be made before the mount serves, and live as long as it does.
    """

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._handler = _Handler(self._handle)
        self._reply: Any = None
        self._originals: dict[str, Any] = {}
        self.is_supported = False

    def install_at_first_request(self) -> None:
        """Wait for a request, whose memory leads to the session."""
        for name in _ENTRANCES:
            original = self._originals[name] = getattr(pyfuse3, name, None)
            if original is not None:
                setattr(pyfuse3, name, self._entrance(original))

    def _entrance(self, original: Any) -> Any:
        def enter(container: Any, *arguments: Any) -> Any:
            if self._originals:
                self._install(container)
            return original(container, *arguments)

        return enter

    def _install(self, container: Any) -> None:
        for name, original in self._originals.items():
            if original is not None:
                setattr(pyfuse3, name, original)
        self._originals.clear()
        try:
            self._reply = ctypes.CDLL("libfuse3.so.3").fuse_reply_err
            self._reply.argtypes = (ctypes.c_void_p, ctypes.c_int)
            self.is_supported = _fill_in(container, self._handler)
        except (OSError, AttributeError, ValueError) as error:
            log.debug("fallocate: %s", error)
        if not self.is_supported:
            log.warning("this build of pyfuse3 or libfuse is not known: the mount answers no discards (fstrim)")

    def _handle(self, request: int, inode: int, mode: int, offset: int, length: int, _file: int) -> None:
        answered = False

        def reply(number: int) -> None:
            nonlocal answered
            if not answered:
                answered = True
                self._reply(request, number)

        self._begin(inode, mode, offset, length, reply)


def _fill_in(container: Any, handler: Any) -> bool:
    """Put the handler into the session's table; False if the table cannot be told for sure."""
    code = _code_of(Path(pyfuse3.__file__))
    size = type(container).__basicsize__
    with open("/proc/self/mem", "r+b", buffering=0) as memory:  # noqa: PTH123 - as for any file of /proc
        tables = set()
        for request in _words(ctypes.string_at(id(container), size)):
            # The first word of a request is its session.
            for session in _words(_read(memory.fileno(), request, _WORD)):
                found = _table_in(_read(memory.fileno(), session, _SESSION_SEARCHED + len(_TABLE) * _WORD), code)
                if found is not None:
                    tables.add(session + found)
        if len(tables) != 1:
            return False
        place = tables.pop() + _TABLE.index("fallocate") * _WORD
        address = ctypes.cast(handler, ctypes.c_void_p).value
        return os.pwrite(memory.fileno(), struct.pack("P", address), place) == _WORD


def _table_in(session: bytes, code: list[range]) -> int | None:
    words = _words(session)
    for start in range(_SESSION_SEARCHED // _WORD):
        table = words[start : start + len(_TABLE)]
        if len(table) == len(_TABLE) and all(
            word == 0 if name in _EMPTY else any(word in part for part in code)
            for name, word in zip(_TABLE, table, strict=True)
        ):
            return start * _WORD
    return None


def _words(data: bytes) -> tuple[int, ...]:
    return struct.unpack(f"{len(data) // _WORD}P", data[: len(data) // _WORD * _WORD])


def _read(memory: int, address: int, length: int) -> bytes:
    """Read what there is at an address, which may be none."""
    if not 4096 <= address < 1 << 63:
        return b""
    try:
        return os.pread(memory, length, address)
    except OSError:
        return b""


def _code_of(library: Path) -> list[range]:
    """Return where the code of a library lies in memory."""
    found = []
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "x" in fields[1] and fields[5] == str(library.resolve()):
            start, _, end = fields[0].partition("-")
            found.append(range(int(start, 16), int(end, 16)))
    return found
