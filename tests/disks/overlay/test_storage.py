"""The system calls of the store: what Linux answers that is no success, and what the store makes of it."""

import ctypes
import errno
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from diskfs import writeback
from diskfs.disks.overlay import storage
from diskfs.disks.overlay.early_writeback import LONG, EarlyWriteback
from diskfs.disks.overlay.folder import create_files, open_disk
from diskfs.disks.overlay.layout import IndexHeader
from diskfs.disks.overlay.storage import LocalFile, LocalStorage
from scripts.overlaylib.model import memory_disk


@pytest.fixture
def file(tmp_path: Path) -> Iterator[LocalFile]:
    opened = LocalStorage(tmp_path).open("file", create=True)
    opened.truncate(1 << 20)
    yield opened
    opened.close()
    opened.close()


def test_a_write_that_the_system_cuts_goes_on(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: write(descriptor, data[:3], offset))
    file.write_at(5, b"0123456789")
    assert file.read_at(4, 12) == b"\x000123456789\x00"


def test_a_write_of_nothing_is_an_error_and_no_endless_loop(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: 0)
    with pytest.raises(OSError, match="nothing was written"):
        file.write_at(0, b"x")


def test_a_read_that_the_system_cuts_goes_on_to_the_end_of_the_file(
    file: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_at(0, b"abcdefgh")
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: read(descriptor, min(length, 3), offset))
    assert file.read_at(0, 8) == b"abcdefgh"
    assert file.read_at((1 << 20) - 2, 8) == b"\0\0"


def test_a_hole_is_zero_and_frees_room(file: LocalFile) -> None:
    file.write_at(0, b"x" * 65536)
    file.sync()
    before = os.fstat(file.descriptor).st_blocks
    assert file.punch(0, 32768)
    assert file.read_at(0, 65536) == bytes(32768) + b"x" * 32768
    assert os.fstat(file.descriptor).st_blocks < before
    assert list(file.data_ranges(0, 1 << 20)) == [(32768, 65536)]
    assert file.size() == 1 << 20


def test_room_that_is_reserved_changes_no_byte_and_no_size(file: LocalFile) -> None:
    file.reserve(0, 65536)
    assert os.fstat(file.descriptor).st_blocks >= 128
    assert file.read_at(0, 65536) == bytes(65536)
    file.reserve(1 << 20, 65536)
    assert file.size() == 1 << 20


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_holes_is_told_from_a_failure(
    number: int, file: LocalFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([errno.EINTR, number, errno.EIO])

    class Libc:
        @staticmethod
        def fallocate64(*_: object) -> int:
            ctypes.set_errno(next(answers))
            return -1

    monkeypatch.setattr(storage, "_LIBC", Libc)
    assert not file.punch(0, 4096)
    with pytest.raises(OSError, match="Input/output error"):
        file.punch(0, 4096)


def test_a_file_system_that_cannot_tell_its_holes_has_none(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(os, "lseek", refuse)
    assert list(file.data_ranges(4096, 1 << 20)) == [(4096, 1 << 20)]


def test_bytes_that_need_waiting_are_not_ready(file: LocalFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_at(0, b"ready")
    outcomes: Iterator[int | OSError] = iter(
        [BlockingIOError(), 2, OSError(errno.EIO, "bad"), OSError(errno.EOPNOTSUPP, "no")]
    )

    def preadv(*_: object) -> int:
        outcome = next(outcomes)
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(os, "preadv", preadv)
    assert [file.read_if_ready(0, 5) for _ in range(5)] == [None] * 5
    assert next(outcomes, None) is None


def test_one_lock_at_a_time_and_it_goes_with_the_file(tmp_path: Path) -> None:
    folder = LocalStorage(tmp_path)
    one, two = folder.open("lock", create=True), folder.open("lock")
    assert (one.lock(), two.lock()) == (True, False)
    assert folder.is_current("lock", one)
    one.close()
    assert two.lock()
    folder.unlink("lock")
    assert not folder.is_current("lock", two)
    folder.open("lock", create=True).close()
    assert not folder.is_current("lock", two)
    two.close()


class _Slow:
    """A data file whose disk takes its time."""

    def __init__(self) -> None:
        self.begun = 0
        self.entered = threading.Event()
        self.released = threading.Event()

    def begin_writeback(self) -> None:
        self.begun += 1
        self.entered.set()
        assert self.released.wait(30)


def test_long_writes_are_sent_on_by_one_thread_for_which_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "STEP", 4 * LONG)
    slow = _Slow()
    early = EarlyWriteback(slow)  # type: ignore[arg-type]  # all of it that is used
    for _ in range(100):
        early.wrote(LONG - 1)  # Short ones do not count.
    for _ in range(3):
        early.wrote(LONG)
    assert slow.begun == 0
    early.wrote(LONG)
    assert slow.entered.wait(30)
    for _ in range(100):
        early.wrote(LONG)
    assert slow.begun == 1
    slow.released.set()
    early.end()
    early.wrote(LONG)
    early.end()
    assert slow.begun == 2


def test_a_long_write_through_an_overlay_ends_up_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "STEP", 1 << 20)
    size = 64 << 20
    header = IndexHeader(uuid.UUID(int=9), 0, 4096, size)
    made = LocalStorage(tmp_path / "overlay")
    made.make_folder()
    create_files(made, header)
    disk = open_disk(made, header, "overlay", memory_disk(bytes(size)))
    data = os.urandom(size)
    for offset in range(0, size, 1 << 20):
        disk.write_at(offset, memoryview(data)[offset : offset + (1 << 20)])
    disk.close()
    with closing(open_disk(made, header, "overlay", memory_disk(bytes(size)))) as again:
        assert again.read_at(0, size) == data
