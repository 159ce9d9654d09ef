"""The process that reads file systems: what it may do, and what becomes of it when it fails."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diskfs.disks.opening import OpenedDisk, OpenedSource, open_source
from diskfs.errors import SourceError
from diskfs.guest import child as child_module
from diskfs.guest.child import ReadingChild
from diskfs.guest.errors import GuestError
from diskfs.guest.files import GuestFiles
from diskfs.guest.volumes import Volumes, volumes
from diskfs_formats.raw import RawImage
from diskfs_formats.source import MemorySource
from tests.guest import file_systems as make
from tests.helpers import ROOT


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two partitions with a file system each."""
    folder = tmp_path_factory.mktemp("image")
    (folder / "tree").mkdir()
    (folder / "tree/file").write_bytes(os.urandom(3 << 20))
    part = make.make_ext(folder / "part.img", folder / "tree", "ext2", size="8M")
    disk = folder / "disk.img"
    with disk.open("wb") as file:
        file.truncate(20 << 20)
    make.run("sfdisk", "-q", str(disk), stdin="label: dos\nstart=2048, size=16384\nstart=18432, size=16384\n")
    with disk.open("r+b") as file:
        for start in (2048, 18432):
            file.seek(start * 512)
            file.write(part.read_bytes())
    return disk


class Opened:
    """An image with a child whose limits the test sets."""

    def __init__(self, image: Path, **limits: float) -> None:
        self.source = open_source(str(image), format_name="raw")
        self.child = ReadingChild([disk.image for disk in self.source.disks], **limits)
        self.volumes = volumes(self.source, child=self.child)

    def files(self, index: int) -> GuestFiles:
        files = self.volumes[index].files
        assert files is not None
        return files

    def close(self) -> None:
        self.volumes.close()
        self.source.close()


@pytest.fixture
def open_limited(image: Path) -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def opening(**limits: float) -> Opened:
        opened.append(Opened(image, **limits))
        return opened[-1]

    yield opening
    for one in opened:
        one.close()


def test_one_child_serves_all_volumes(open_limited: Callable[..., Opened]) -> None:
    opened = open_limited()
    assert [len(files.read("/file", limit=4 << 20)) for files in opened.volumes.files] == [3 << 20] * 2
    assert opened.child.starts == 1


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGXCPU])
def test_a_crash_is_an_error_of_that_volume_alone(number: signal.Signals, open_limited: Callable[..., Opened]) -> None:
    opened = open_limited()
    assert opened.child.pid is not None
    os.kill(opened.child.pid, number)
    with pytest.raises(
        GuestError, match=rf"disk0p1: /file: the process that reads it ended \(signal \d+, {number.name}\)"
    ):
        opened.files(0).read("/file", limit=4 << 20)
    # It would crash again: that volume is given up, without another child.
    with pytest.raises(GuestError, match="disk0p1"):
        opened.files(0).entries("/")
    assert opened.child.starts == 1
    assert [entry.name for entry in opened.files(1).entries("/")] == ["file", "lost+found"]
    assert opened.child.starts == 2


def test_a_hang_is_an_error_after_the_limit(open_limited: Callable[..., Opened]) -> None:
    opened = open_limited(request_time_limit=0.5)
    pid = opened.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(GuestError, match=r"disk0p2: /file: reading it was given up after 0\.5 s"):
        opened.files(1).entry("/file")
    assert 0.4 < time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert opened.files(0).entry("/file") is not None


def test_the_time_of_all_volumes_together_is_limited(open_limited: Callable[..., Opened]) -> None:
    opened = open_limited(time_limit=1.0, request_time_limit=5.0)
    assert opened.child.pid is not None
    os.kill(opened.child.pid, signal.SIGSTOP)
    with pytest.raises(GuestError, match="given up"):
        opened.files(0).entry("/file")
    with pytest.raises(GuestError, match=r"the 1 s that may be spent .* are used up"):
        opened.files(1).entry("/file")


def test_waiting_for_bytes_does_not_count(image: Path) -> None:
    with open_source(str(image), format_name="raw") as source:
        disk = Slow(source.disks[0].image.read_at(0, 20 << 20))
        child = ReadingChild([disk], request_time_limit=0.4)
        with _volumes_of(disk, child) as found:
            files = found[0].files
            assert files is not None
            disk.seconds = 0.6
            assert len(files.read("/file", limit=4 << 20)) == 3 << 20


def test_what_the_disk_raises_is_raised(image: Path) -> None:
    with open_source(str(image), format_name="raw") as source:
        disk = Slow(source.disks[0].image.read_at(0, 20 << 20))
        with _volumes_of(disk, ReadingChild([disk])) as found:
            files = found[0].files
            assert files is not None
            disk.fails = True
            with pytest.raises(SourceError, match="the network is gone"):
                files.read("/file", limit=4 << 20)
            disk.fails = False
            assert len(files.read("/file", limit=4 << 20)) == 3 << 20


class Slow(MemorySource):
    """A disk that can be slow, and can fail."""

    seconds = 0.0
    fails = False

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self.fails:
            raise SourceError("the network is gone")
        time.sleep(self.seconds)
        self.seconds = 0
        return super().read_at(offset, length)


def _volumes_of(disk: Slow, child: ReadingChild) -> Volumes:
    opened = OpenedDisk(0, "", "disk", disk.size)
    opened.opened = RawImage(disk)
    return volumes(OpenedSource("disk", disk, [opened], None), child=child)  # type: ignore[arg-type]  # no status is read


def test_close_ends_the_child_and_twice_is_harmless(open_limited: Callable[..., Opened]) -> None:
    opened = open_limited()
    pid = opened.child.pid
    assert pid is not None
    files = opened.files(0)
    opened.volumes.close()
    opened.volumes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(GuestError, match=r"disk0p1: /: the source is closed"):
        files.entries("/")


def test_threads_wait_for_each_other(open_limited: Callable[..., Opened]) -> None:
    opened = open_limited()
    results: list[int] = []

    def reading(index: int) -> None:
        files = opened.files(index % 2)
        results.extend(len(files.read("/file", limit=4 << 20)) for _ in range(5))

    threads = [threading.Thread(target=reading, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [3 << 20] * 20
    assert opened.child.starts == 1


def test_the_child_ends_with_its_parent(image: Path) -> None:
    program = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "formats")!r}]
from diskfs.disks.opening import open_source
from diskfs.guest.volumes import volumes
source = open_source({str(image)!r}, format_name="raw")
found = volumes(source)
print(found._child.pid, flush=True)
os._exit(0)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    pid = int(result.stdout)
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the child lives on")


LIMITED = """
import sys
sys.path[:0] = {roots!r}
from diskfs.guest.serving import limit
import os, socket, errno
limit(60)
{action}
"""


@pytest.mark.parametrize(
    ("action", "error"),
    [
        ("bytearray(1 << 30)", "MemoryError"),
        ("open('/etc/passwd')", "Too many open files"),
        ("open('/tmp/diskfs-may-not-write', 'w')", "Too many open files"),
        ("socket.socket()", "Too many open files"),
        ("os.dup(0)", "Too many open files|Invalid argument"),
        ("os.pipe()", "Too many open files"),
    ],
)
def test_the_child_has_given_up_its_rights(action: str, error: str) -> None:
    program = LIMITED.format(roots=[str(ROOT), str(ROOT / "formats")], action=action)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode != 0
    assert re.search(error, result.stderr)


LYING = """
import socket, sys, time, os
sys.path[:0] = sys.argv[4:]
from diskfs.guest import messages
connection = socket.socket(fileno=int(sys.argv[1]))
messages.send(connection, {{"ready": True}})
messages.receive(connection)
{what}
time.sleep(30)
"""


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ('messages.send(connection, {"read": [1, 0, 10]})', "the process that reads it ended"),
        ('messages.send(connection, {"read": [-1, 0, 10]})', "the process that reads it ended"),
        ('messages.send(connection, {"read": [0, 0, 1 << 40]})', "the process that reads it ended"),
        ('messages.send(connection, {"read": [0, 0, True]})', "the process that reads it ended"),
        ('messages.send(connection, {"read": "all"})', "the process that reads it ended"),
        ('messages.send(connection, {"label": 1, "uuid": [], "size": "x", "state": 7})', "makes no sense"),
        ('messages.send(connection, {})', "makes no sense"),
        ('messages.send(connection, {"error": "e" * 9 + "\\x1b[31m"})', r"eee\\x1b"),
        ('connection.sendall(b"\\xff" * 8)', "the process that reads it ended"),
        ('connection.sendall(b"\\x02\\0\\0\\0\\0\\0\\0\\0[]")', "the process that reads it ended"),
        ('connection.sendall(b"\\x02\\0\\0\\0\\0\\0\\0\\0{[")', "the process that reads it ended"),
        ('[(connection.sendall(b"\\0"), time.sleep(0.2)) for _ in range(7)]', "given up after 1 s"),
        ('[(messages.send(connection, {"read": [0, 0, 4 << 20]}), messages.receive(connection)) for _ in range(100)]',
         "given up"),
        ("os._exit(3)", r"exit status 3"),
    ],
)  # fmt: skip
def test_a_child_that_lies_is_not_believed(what: str, error: str, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "_PROGRAM", LYING.format(what=what))
    with open_source(str(image), format_name="raw") as source:
        child = ReadingChild([disk.image for disk in source.disks], request_time_limit=1.0)
        with volumes(source, child=child) as found:
            assert found[0].files is None
            assert re.search(error, found[0].problem), found[0].problem
