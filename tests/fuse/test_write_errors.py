"""Promises 1 and 3 when storing fails: an error is reported, and stays until the file is opened again."""

import errno
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from diskfs.errors import OutOfSpace, OverlayWriteError
from diskfs.fuse import fallocate
from diskfs.fuse.bridge import Reader
from diskfs.fuse.tree import File, Tree
from diskfs.fuse.writing import WritableOperations
from diskfs.fuse.written import FlushRounds, WrittenDisk
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import CorruptImage, DiskfsError
from diskfs_formats.extents import Extent
from diskfs_formats.source import Buffer
from tests.fuse.mounting import diskfs, mounted, run, status

MIB = 1 << 20
SIZE = 65536
DISK, PART = 2, 3
"""The inodes of the files of the tree: the disk, and what lies from 4096 on."""


class FailingDisk:
    """A disk in memory whose calls fail as they are told to."""

    name = "failing"
    size = SIZE
    info = ImageInfo("raw", "raw", SIZE)

    def __init__(self) -> None:
        self.content = bytearray(SIZE)
        self.fails: dict[str, DiskfsError] = {}

    def read_at(self, offset: int, length: int, /) -> bytes:
        return bytes(self.content[offset : offset + length])

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        return iter(())

    def write_at(self, offset: int, data: Buffer, /) -> None:
        self._fail("write")
        self.content[offset : offset + len(data)] = data

    def discard(self, offset: int, length: int, /) -> None:
        self.write_at(offset, bytes(length))

    def flush(self) -> None:
        self._fail("flush")

    def _fail(self, call: str) -> None:
        if call in self.fails:
            raise self.fails[call]

    def close(self) -> None:
        pass


class Part(FailingDisk):
    size = 4096


def served(disk: FailingDisk) -> WritableOperations:
    written = WrittenDisk(disk)
    part = Part()
    tree = Tree.build(
        [File("disk", disk, window=written.window(disk, 0)), File("part", part, window=written.window(part, 4096))]
    )
    return WritableOperations(tree, Reader())


async def open_file(operations: WritableOperations, inode: int) -> Any:
    return (await operations.open(pyfuse3.InodeT(inode), os.O_RDWR, None)).fh  # type: ignore[arg-type]  # unused


async def failure(call: Awaitable[object]) -> int:
    """Return the errno of a request, 0 if it did not fail."""
    try:
        await call
    except pyfuse3.FUSEError as error:
        return error.errno
    return 0


@pytest.mark.expects_log("injected")
@pytest.mark.parametrize("call", ["write", "flush"])
def test_a_failure_of_storage_stays_with_every_open_file_of_the_disk(call: str) -> None:
    async def check() -> None:
        disk = FailingDisk()
        operations = served(disk)
        first, other = await open_file(operations, DISK), await open_file(operations, PART)
        disk.fails[call] = OverlayWriteError("injected")
        request = operations.write(first, 0, b"x") if call == "write" else operations.fsync(first, False)
        assert await failure(request) == errno.EIO
        # Storage works again; what was lost meanwhile is not reported by that.
        disk.fails.clear()
        for handle in (first, other):
            assert await failure(operations.fsync(handle, False)) == errno.EIO
            assert await failure(operations.write(handle, 0, b"x")) == errno.EIO
            assert await failure(operations.flush(handle)) == errno.EIO
        again = await open_file(operations, PART)
        assert await failure(operations.write(again, 5, b"x")) == 0
        assert await failure(operations.fsync(again, False)) == 0
        assert disk.content[4101] == ord("x")

    trio.run(check)


@pytest.mark.expects_log("injected")
@pytest.mark.parametrize(
    ("error", "number"), [(OutOfSpace("injected"), errno.ENOSPC), (CorruptImage("injected"), errno.EIO)]
)
def test_a_full_disk_and_a_damaged_block_fail_one_write_alone(error: DiskfsError, number: int) -> None:
    async def check() -> None:
        disk = FailingDisk()
        operations = served(disk)
        handle = await open_file(operations, DISK)
        disk.fails["write"] = error
        assert await failure(operations.write(handle, 0, b"x")) == number
        disk.fails.clear()
        assert await failure(operations.write(handle, 0, b"y")) == 0
        assert await failure(operations.fsync(handle, False)) == 0
        assert disk.content[0] == ord("y")

    trio.run(check)


def test_who_reads_while_the_kernel_forgets_its_pages_gets_nothing_that_was_read_ahead_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    piece = 128 << 10

    class Encoded(FailingDisk):
        size = 8 * piece
        info = ImageInfo("vmdk", "streamOptimized", size, compressed=True)

        def __init__(self) -> None:
            super().__init__()
            self.content = bytearray(self.size)

    async def check() -> None:
        disk = Encoded()
        operations = WritableOperations(
            Tree.build([File("disk", disk, window=WrittenDisk(disk).window(disk, 0))]), Reader()
        )
        reading = (await operations.open(pyfuse3.InodeT(DISK), os.O_RDONLY, None)).fh  # type: ignore[arg-type]
        assert reading is not None
        for number in range(4):
            await operations.read(reading, number * piece, piece)
        seen: list[bytes] = []

        def forget_pages(_inode: int) -> None:
            data = trio.from_thread.run(operations.read, reading, 4 * piece, piece)
            seen.append(bytes(data[:1]))

        monkeypatch.setattr(pyfuse3, "invalidate_inode", forget_pages)
        assert await operations.write(await open_file(operations, DISK), 4 * piece, b"x") == 1
        assert seen == [b"x"]

    trio.run(check)


@pytest.mark.expects_log("injected")
def test_a_discard_that_fails_is_answered_once_with_its_errno() -> None:
    async def check() -> None:
        disk = FailingDisk()
        operations = served(disk)
        answers: list[int] = []
        mode = fallocate.PUNCH_HOLE | fallocate.KEEP_SIZE
        for error in (None, OutOfSpace("injected"), OverlayWriteError("injected")):
            disk.fails = {"write": error} if error else {}
            await operations.fallocate(DISK, mode, 0, 512, answers.append)
        await operations.fallocate(DISK, 0, 0, 512, answers.append)
        await operations.fallocate(99, mode, 0, 512, answers.append)
        assert answers == [0, errno.ENOSPC, errno.EIO, errno.EOPNOTSUPP, errno.ENOENT]

    trio.run(check)


def test_flushes_that_are_asked_for_during_one_share_the_next() -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    count = 0

    def flush() -> None:
        nonlocal count
        count += 1
        begun.release()
        go_on.acquire()

    async def run_in_thread(work: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(work)

    async def check() -> None:
        rounds = FlushRounds(flush)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rounds.flush, run_in_thread)
            await trio.to_thread.run_sync(begun.acquire)
            for _ in range(5):
                nursery.start_soon(rounds.flush, run_in_thread)
            await trio.testing.wait_all_tasks_blocked()
            assert count == 1
            go_on.release(2)

    trio.run(check)
    assert count == 2


def test_where_the_session_is_not_found_nothing_is_touched() -> None:
    # A container as pyfuse3 hands it out, without a request in it; and memory that is no session.
    assert not fallocate._fill_in(pyfuse3._Container(), fallocate._Handler(lambda *_: None))  # type: ignore[attr-defined]
    assert fallocate._table_in(bytes(4096), [range(1, 2)]) is None
    assert fallocate._table_in(b"\x01" * 4096, [range(1 << 63)]) is None


@pytest.mark.fuse
@pytest.mark.root
def test_an_overlay_on_a_full_disk_takes_no_more_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    raw, small = tmp_path / "disk.img", tmp_path / "small"
    raw.touch()
    os.truncate(raw, 32 * MIB)
    small.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=4m", "none", small)
    try:
        ballast = small / "ballast"
        ballast.write_bytes(bytes(MIB))
        with mounted(raw, tmp_path / "mnt", "--overlay", small / "overlay") as mnt:
            descriptor = os.open(mnt / "disk0.raw", os.O_RDWR)
            try:
                done, failed = 0, None
                while failed is None and done < 32 * MIB:
                    try:
                        os.pwrite(descriptor, bytes([done >> 16 & 0xFF | 1]) * 65536, done)
                        done += 65536
                    except OSError as error:
                        failed = error.errno
                assert failed == errno.ENOSPC
                assert done > MIB
                ballast.unlink()
                os.fsync(descriptor)
                os.pwrite(descriptor, b"z" * 65536, done)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            assert status(mnt)["errors"] == 1
        diskfs("overlay-check", small / "overlay")
        with mounted(raw, tmp_path / "mnt", "--overlay", small / "overlay") as mnt:
            content = (mnt / "disk0.raw").read_bytes()
            for offset in range(0, done, 65536):
                assert content[offset : offset + 65536] == bytes([offset >> 16 & 0xFF | 1]) * 65536
            assert content[done : done + 65536] == b"z" * 65536
            assert not any(content[done + 65536 :])
    finally:
        run("umount", small)
