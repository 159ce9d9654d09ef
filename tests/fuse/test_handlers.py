"""Promise 2: whatever happens in a handler, the request fails and the mount lives."""

import errno
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio

from diskfs.errors import AccessDenied, SourceChanged, SourceError, SourceNotFound
from diskfs.fuse.bridge import Reader
from diskfs.fuse.operations import DiskfsOperations, guarded
from diskfs.fuse.tree import File, Tree
from diskfs_formats.errors import CorruptImage
from diskfs_formats.source import MemorySource
from tests.fuse.mounting import environment

EXCEPTIONS: list[Callable[[], BaseException]] = [
    lambda: ValueError("injected"),
    lambda: OSError(errno.ENOSPC, "injected"),
    lambda: trio.TooSlowError("injected"),
    lambda: RuntimeError("injected"),
    lambda: MemoryError("injected"),
    lambda: RecursionError("injected"),
    lambda: CorruptImage("injected"),
    lambda: ExceptionGroup("injected", [KeyError("inner")]),
    lambda: SystemExit(1),
]
HANDLERS = {
    "lookup": (1, b"a", None),
    "getattr": (2, None),
    "access": (2, os.R_OK, None),
    "forget": ([(2, 1)],),
    "statfs": (None,),
    "opendir": (1, None),
    "readdir": (1, 0, None),
    "releasedir": (1,),
    "open": (2, os.O_RDONLY, None),
    "read": (2, 0, 1),
    "flush": (2,),
    "fsync": (2, False),
    "fsyncdir": (1, False),
    "release": (2,),
    "readlink": (2, None),
}
REFUSED = {"create", "link", "mkdir", "mknod", "removexattr", "rename", "rmdir", "setattr", "setxattr", "symlink",
           "unlink", "write"}  # fmt: skip
LEFT_TO_PYFUSE3 = {"poll", "getxattr", "listxattr", "init", "stacktrace"}


def operations() -> DiskfsOperations:
    tree = Tree.build([File("a", MemorySource(b"abc", "a"))])
    return DiskfsOperations(tree, Reader())


def test_every_handler_of_pyfuse3_is_accounted_for() -> None:
    handlers = {name for name, _ in inspect.getmembers(pyfuse3.Operations, inspect.isfunction) if name[0] != "_"}
    assert handlers - LEFT_TO_PYFUSE3 == set(HANDLERS) | REFUSED


@pytest.mark.expects_log("injected", "SystemExit")
@pytest.mark.parametrize("late", [False, True], ids=["before the first await", "after it"])
@pytest.mark.parametrize("name", sorted(HANDLERS))
def test_an_exception_in_a_handler_becomes_eio(name: str, late: bool) -> None:
    async def check() -> None:
        served = operations()
        for make in EXCEPTIONS:

            @guarded
            async def sabotaged(_self: DiskfsOperations, *_args: Any, make: Any = make) -> None:
                if late:
                    await trio.lowlevel.checkpoint()
                raise make()

            # The guard that the class itself uses, around a body that fails.
            assert hasattr(getattr(type(served), name), "__wrapped__"), f"{name} is not guarded"
            with pytest.raises(pyfuse3.FUSEError) as caught:
                await sabotaged(served, *HANDLERS[name])
            assert caught.value.errno == errno.EIO
        assert served.counters.errors == len(EXCEPTIONS)

    trio.run(check)


@pytest.mark.expects_log("read: x")
@pytest.mark.parametrize(
    ("error", "number"),
    [
        (SourceChanged("x"), errno.ESTALE),
        (SourceNotFound("x"), errno.ENOENT),
        (AccessDenied("x"), errno.EACCES),
        (SourceError("x"), errno.EIO),
        (CorruptImage("x"), errno.EIO),
    ],
)
def test_errors_of_sources_have_their_own_errno(error: Exception, number: int) -> None:
    class Failing(MemorySource):
        def read_if_ready(self, offset: int, length: int, /) -> bytes | None:
            return None

        def read_at(self, offset: int, length: int, /) -> bytes:
            raise error

    async def check() -> None:
        served = DiskfsOperations(Tree.build([File("a", Failing(b"abc", "a"))]), Reader())
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await served.read(pyfuse3.FileHandleT(2), 0, 3)
        assert caught.value.errno == number

    trio.run(check)


@pytest.mark.expects_log("bytes came for 3")
def test_a_short_or_long_answer_of_a_source_is_eio_and_never_padded() -> None:
    class Wrong(MemorySource):
        answer = b""

        def read_if_ready(self, offset: int, length: int, /) -> bytes | None:
            return self.answer

    async def check() -> None:
        source = Wrong(b"abc", "a")
        served = DiskfsOperations(Tree.build([File("a", source)]), Reader())
        for answer in (b"", b"ab", b"abcd"):
            source.answer = answer
            with pytest.raises(pyfuse3.FUSEError) as caught:
                await served.read(pyfuse3.FileHandleT(2), 0, 3)
            assert caught.value.errno == errno.EIO
        source.answer = b"abc"
        assert await served.read(pyfuse3.FileHandleT(2), 0, 3) == b"abc"

    trio.run(check)


def test_changing_requests_answer_erofs() -> None:
    async def check() -> None:
        served = operations()
        for name in REFUSED:
            handler: Callable[..., Awaitable[Any]] = getattr(served, name)
            with pytest.raises(pyfuse3.FUSEError) as caught:
                await handler()
            assert caught.value.errno == errno.EROFS
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            with pytest.raises(pyfuse3.FUSEError) as caught:
                await served.open(pyfuse3.InodeT(2), flags, None)  # type: ignore[arg-type]  # the context is unused
            assert caught.value.errno == errno.EROFS

    trio.run(check)


@pytest.mark.fuse
def test_a_real_mount_survives_every_exception_in_every_handler(tmp_path: Path) -> None:
    script = Path(__file__).parent / "sabotaged_mount.py"
    result = subprocess.run(
        [sys.executable, script, tmp_path], capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    # 9 exceptions, 2 moments, 9 requests that a program can make and see the answer of.
    assert outcome["tried"] == 9 * 2 * 9
    assert outcome["wrong"] == []
    assert outcome["errors_counted"] >= outcome["tried"]
