"""A mount whose handlers fail on demand, and the programs that use it; run by test_handlers.py in a process of its own.

Prints what was tried and what went wrong as JSON.
"""

import contextlib
import errno
import functools
import json
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from diskfs.fuse import operations as operations_module
from diskfs.fuse.bridge import Reader
from diskfs.fuse.operations import DiskfsOperations, guarded
from diskfs.fuse.session_gate import Session, fuse_descriptors
from diskfs.fuse.tree import File, Tree
from diskfs_formats.source import MemorySource
from tests.fuse.test_handlers import EXCEPTIONS, HANDLERS

CONTENT = bytes(range(256)) * 32


class Armed:
    """What fails next."""

    handler = ""
    make: Callable[[], BaseException] | None = None
    late = False


def sabotaged(name: str) -> Any:
    original = getattr(DiskfsOperations, name).__wrapped__

    @guarded
    @functools.wraps(original)
    async def handler(self: DiskfsOperations, *args: Any) -> Any:
        if Armed.handler == name and Armed.make is not None:
            if Armed.late:
                await trio.lowlevel.checkpoint()
            raise Armed.make()
        return await original(self, *args)

    return handler


Sabotaged = type("Sabotaged", (DiskfsOperations,), {name: sabotaged(name) for name in HANDLERS})


def read_directly(path: Path) -> bytes:
    """Read past the page cache, so that the daemon is asked."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, len(CONTENT)) as buffer:
            count = os.preadv(fd, [buffer], 0)
            return buffer[:count]
    finally:
        os.close(fd)


def with_open(path: Path, flags: int, use: Callable[[int], object]) -> None:
    fd = os.open(path, flags)
    try:
        use(fd)
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


def close(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY))


def requests(root: Path) -> dict[str, Callable[[], object]]:
    file = root / "file"
    return {
        "lookup": lambda: os.stat(root / "no such name"),
        "getattr": lambda: os.stat(file),
        "statfs": lambda: os.statvfs(root),
        "opendir": lambda: os.listdir(root),
        "readdir": lambda: os.listdir(root),
        "open": lambda: close(file),
        "read": lambda: read_directly(file),
        "flush": lambda: close(file),
        "fsync": lambda: with_open(file, os.O_RDONLY, os.fsync),
    }


def use_mount(root: Path, outcome: dict[str, Any]) -> None:
    for name, request in requests(root).items():
        for make in EXCEPTIONS:
            for late in (False, True):
                Armed.handler, Armed.make, Armed.late = name, make, late
                outcome["tried"] += 1
                found = 0
                try:
                    request()
                except OSError as error:
                    found = error.errno or 0
                Armed.make = None
                if found != errno.EIO or read_directly(root / "file") != CONTENT:
                    outcome["wrong"].append([name, repr(make()), late, found])


async def main(root: Path) -> None:
    # Nothing is cached, so that every request reaches its handler.
    operations_module._KEPT = 0.0
    served = Sabotaged(Tree.build([File("file", MemorySource(CONTENT, "file"))]), Reader())
    before = fuse_descriptors()
    pyfuse3.init(served, str(root), {"default_permissions", "ro", "fsname=sabotaged"})
    outcome: dict[str, Any] = {"tried": 0, "wrong": []}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Session(fuse_descriptors() - before).serve)
        await trio.to_thread.run_sync(use_mount, root, outcome)
        pyfuse3.terminate()
    pyfuse3.close(unmount=True)
    outcome["errors_counted"] = served.counters.errors
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
