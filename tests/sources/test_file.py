"""Local files as sources: exact reads, pinned to one version (promise 8), and nothing but files (T1, T7)."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from diskfs.errors import AccessDenied, SourceChanged, SourceError, SourceNotFound
from diskfs.sources.file import FileSource, open_beside, open_file
from diskfs.sources.locate import MAX_NAME, FolderFiles, require_bare_name
from diskfs_formats.errors import OutOfRange, ParentUnavailable, UnsafeReference

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "disk.raw"
    found.write_bytes(os.urandom(MIB + 7))
    return found


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, 1), (1, 4096), (MIB, 7), (MIB + 6, 1), (MIB + 7, 0)])
def test_reads_are_exact(path: Path, offset: int, length: int) -> None:
    source = open_file(path)
    expected = path.read_bytes()[offset : offset + length]
    assert source.read_at(offset, length) == expected
    ready = source.read_if_ready(offset, length)
    assert ready is None or bytes(ready) == expected
    source.close()


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (MIB + 7, 1), (0, MIB + 8), (1 << 63, 1)])
def test_reads_past_the_end_are_refused(path: Path, offset: int, length: int) -> None:
    source = open_file(path)
    with pytest.raises(OutOfRange):
        source.read_at(offset, length)
    with pytest.raises(OutOfRange):
        source.read_if_ready(offset, length)
    source.close()


def test_closing_twice_is_harmless_and_a_closed_source_reads_nothing(path: Path) -> None:
    source = open_file(path)
    source.close()
    source.close()
    with pytest.raises(SourceError):
        source.read_at(0, 1)


@pytest.mark.parametrize("change", ["cut", "grow", "rewrite", "touch"])
def test_a_changed_file_is_never_read_as_if_it_were_the_same(path: Path, change: str) -> None:
    source = open_file(path)
    assert source.read_at(0, 16)
    if change == "cut":
        os.truncate(path, 100)
    elif change == "grow":
        os.truncate(path, 2 * MIB)
    elif change == "rewrite":
        with path.open("r+b") as file:
            file.write(b"new")
    else:
        os.utime(path, ns=(0, 0))
    for read in (source.read_at, source.read_if_ready):
        with pytest.raises(SourceChanged, match=r"disk\.raw: "):
            read(0, 16)
    source.close()


def test_a_file_that_is_replaced_or_removed_is_read_as_it_was_opened(path: Path) -> None:
    source = open_file(path)
    before = path.read_bytes()
    path.unlink()
    path.write_bytes(bytes(10))
    assert source.read_at(0, len(before)) == before
    source.close()


def test_reading_does_not_change_the_file(path: Path) -> None:
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    source = open_file(path)
    source.read_at(0, source.size)
    source.close()
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_holes_are_told_from_data(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(4 * MIB)
        file.write(b"x" * MIB)
        file.truncate(16 * MIB)
    source = open_file(path)
    ranges = list(source.data_ranges(0, source.size))
    assert ranges[0][0] == 0
    assert sum(length for _, length, _ in ranges) == 16 * MIB
    for offset, length, is_data in ranges:
        assert is_data or not source.read_at(offset, length).strip(b"\0")
    assert sum(length for _, length, is_data in ranges if is_data) < 16 * MIB
    assert list(source.data_ranges(4 * MIB, 4096)) == [(4 * MIB, 4096, True)]
    assert list(source.data_ranges(0, 0)) == []
    source.close()


def test_eight_threads_share_one_source(path: Path) -> None:
    source = open_file(path)
    expected = path.read_bytes()
    wrong: list[int] = []

    def read(start: int) -> None:
        offsets = range(start, MIB, 8 * 4096)
        wrong.extend(at for at in offsets if source.read_at(at, 4096) != expected[at : at + 4096])

    threads = [threading.Thread(target=read, args=(number * 4096,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    source.close()


def test_special_files_are_refused_at_once_and_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    (tmp_path / "folder").mkdir()
    began = time.monotonic()
    for name, kind in (("fifo", "a FIFO"), ("folder", "a directory"), ("/dev/zero", "a character device")):
        with pytest.raises(SourceError, match=kind):
            open_file(tmp_path / name)
    with pytest.raises(SourceError):
        open_file(tmp_path / "socket")
    with pytest.raises(SourceNotFound):
        open_file(tmp_path / "missing")
    with pytest.raises(SourceError):
        open_file(tmp_path / "nul\0inside")
    listening.close()
    assert time.monotonic() - began < 1


def test_a_file_that_may_not_be_read_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:

        def refuse(*_: object, **__: object) -> int:
            raise PermissionError(13, "Permission denied")

        # root may read everything; the system's answer to others is put in its place.
        monkeypatch.setattr("diskfs.sources.file.os.open", refuse)
    else:
        path.chmod(0)
    with pytest.raises(AccessDenied, match=r"disk\.raw"):
        open_file(path)


UNSAFE = [
    "", ".", "..", "/etc/passwd", "../canary", "a/../../canary", "folder/file", "\\\\server\\share", "..\\canary",
    "C:\\canary", "c:canary", "http://host/canary", "file:///etc/passwd", "nul\0inside", "line\nbreak", "\x1b]0;x\x07",
    "x" * (MAX_NAME + 1), "é" * 128, "./canary", "canary/", "//canary", "nbd://canary/", "json:{\"a/b\": 1}", "/", "//",
]  # fmt: skip


@pytest.mark.parametrize("name", UNSAFE)
def test_a_name_that_is_no_bare_name_opens_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("secret")
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "folder").mkdir()
    related = FolderFiles(folder)
    with pytest.raises(UnsafeReference) as caught:
        related.open(name)
    assert not [character for character in str(caught.value) if ord(character) < 32]
    with pytest.raises(UnsafeReference):
        related.open_parent([name], None)


@pytest.mark.parametrize("kind", ["symlink", "fifo", "folder", "device"])
def test_a_bare_name_that_is_no_regular_file_is_not_opened(kind: str, tmp_path: Path) -> None:
    (tmp_path / "canary").write_text("secret")
    folder = tmp_path / "images"
    folder.mkdir()
    name = folder / "parent.vmdk"
    if kind == "symlink":
        name.symlink_to(tmp_path / "canary")
    elif kind == "fifo":
        os.mkfifo(name)
    elif kind == "folder":
        name.mkdir()
    elif os.geteuid() == 0:
        os.mknod(name, 0o600 | 0o020000, os.makedev(1, 5))
    else:
        pytest.skip("making a device needs root")
    with pytest.raises(UnsafeReference):
        FolderFiles(folder).open("parent.vmdk")


def test_a_file_beside_the_image_is_opened_and_a_missing_one_named(path: Path) -> None:
    related = FolderFiles(path.parent)
    source = related.open("disk.raw")
    assert isinstance(source, FileSource)
    assert source.size == MIB + 7
    source.close()
    with pytest.raises(ParentUnavailable, match=r"'other\.raw'.*is not in"):
        related.open("other.raw")


def test_ordinary_names_are_bare_names() -> None:
    for name in ("disk.vmdk", "disk one.vmdk", "disque-é.vhd", "a:b"[:1], "...", "disk-s001.vmdk", "x" * MAX_NAME):
        require_bare_name(name)


def test_open_beside_does_not_follow_a_link_even_to_a_file_beside_it(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to(path.name)
    with pytest.raises(UnsafeReference, match="symbolic link"):
        open_beside(path.parent, "link")
