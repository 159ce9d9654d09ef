"""Writable mounts: what a file of a disk answers, and that all files of a disk show the same bytes at once."""

import contextlib
import errno
import functools
import json
import mmap
import os
import random
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fuse.mounting import diskfs, mounted, run, sha256, status

pytestmark = [pytest.mark.fuse]

MIB = 1 << 20
SIZE = 24 * MIB
P1, P2 = MIB, 9 * MIB
"""Where the two partitions of 8 and 14 MiB begin."""


def make_disk(folder: Path) -> Path:
    """Make a raw disk with two partitions by sfdisk, and data in it that no block of zeroes interrupts."""
    raw = folder / "disk.img"
    raw.write_bytes(random.Random(1).randbytes(SIZE))
    with raw.open("r+b") as file:
        file.write(bytes(MIB))
    subprocess.run(["sfdisk", "-q", raw], input="start=2048, size=8MiB\nsize=14MiB\n", text=True, check=True)
    return raw


def make_stream(folder: Path) -> tuple[Path, Path]:
    """Make the same disk as a stream-optimized VMDK by qemu-img; returns both."""
    raw, vmdk = make_disk(folder), folder / "disk.vmdk"
    run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, vmdk)
    return raw, vmdk


@dataclass(frozen=True)
class Shared:
    """A mounted overlay that several tests write to, each of which keeps `expected` up to date."""

    mnt: Path
    expected: bytearray


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    raw, vmdk = make_stream(folder)
    with mounted(vmdk, folder / "mnt", "--overlay", folder / "overlay") as mnt:
        yield Shared(mnt, bytearray(raw.read_bytes()))


@contextlib.contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_files_of_one_disk_show_the_same_bytes_at_once(tmp_path: Path) -> None:
    raw, vmdk = make_stream(tmp_path)
    expected = bytearray(raw.read_bytes())
    before = sha256(vmdk), vmdk.stat().st_mtime_ns
    with mounted(vmdk, tmp_path / "mnt", "--overlay", tmp_path / "overlay") as mnt:
        with contextlib.ExitStack() as stack:
            disk, part, two = (stack.enter_context(opened(mnt / f"disk0{name}.raw")) for name in ("", "p1", "p2"))
            # Those who only read have pages in the kernel's cache.
            reading, of_part = (
                stack.enter_context(opened(mnt / f"disk0{name}.raw", os.O_RDONLY)) for name in ("", "p1")
            )
            # Both are read first, so that whatever keeps pages has them.
            assert os.pread(disk, MIB, P1) == os.pread(part, MIB, 0) == os.pread(reading, MIB, P1)
            assert os.pread(of_part, 8 * MIB, 0) == expected[P1:P2]
            for offset, data in (
                (0, b"first"),
                (511, b"across a sector"),
                (4095, b"across a block"),
                (7 * MIB, b"x" * MIB),
            ):
                assert os.pwrite(part, data, offset) == len(data)
                assert os.pread(disk, len(data), P1 + offset) == data
                assert os.pread(reading, len(data), P1 + offset) == data
                assert os.pread(of_part, len(data), offset) == data
                expected[P1 + offset : P1 + offset + len(data)] = data
            across = b"over the border of two partitions"
            assert os.pwrite(disk, across, P2 - 5) == len(across)
            assert os.pread(part, 100, 8 * MIB - 5) == os.pread(of_part, 100, 8 * MIB - 5) == across[:5]
            assert os.pread(two, len(across) - 5, 0) == across[5:]
            expected[P2 - 5 : P2 - 5 + len(across)] = across
        assert (mnt / "disk0.raw").read_bytes() == expected
        assert sha256(mnt / "source" / "disk.vmdk") == before[0]
        assert json.loads((mnt / "disk0.json").read_bytes())["format"] == "vmdk"
        assert not (mnt / "export").exists()
    assert (sha256(vmdk), vmdk.stat().st_mtime_ns) == before
    with mounted(vmdk, tmp_path / "mnt", "--overlay", tmp_path / "overlay") as mnt:
        assert (mnt / "disk0.raw").read_bytes() == expected


def test_a_reader_never_sees_less_than_what_was_acknowledged_before_he_asked(shared: Shared) -> None:
    mnt, expected = shared.mnt, shared.expected
    places = [P1 + number * 37_000 for number in range(16)]
    acknowledged = dict.fromkeys(places, 0)
    seen_late: list[tuple[int, int, int]] = []
    done = threading.Event()

    def write(mnt: Path, name: str, base: int, mine: list[int]) -> None:
        with opened(mnt / name) as descriptor:
            for turn in range(1, 60):
                for place in mine:
                    os.pwrite(descriptor, turn.to_bytes(8, "little"), place - base)
                    acknowledged[place] = turn

    def read(mnt: Path, name: str, base: int) -> None:
        chosen = random.Random(base)
        while not done.is_set():
            # Opened anew now and then: what the kernel kept from the last time counts as well.
            with opened(mnt / name, os.O_RDONLY) as descriptor:
                for _ in range(50):
                    place = chosen.choice(places)
                    least = acknowledged[place]
                    found = int.from_bytes(os.pread(descriptor, 8, place - base), "little")
                    if found < least:
                        seen_late.append((place, least, found))

    with opened(mnt / "disk0.raw") as descriptor:
        for place in places:
            os.pwrite(descriptor, bytes(8), place)
    files = (("disk0.raw", 0), ("disk0p1.raw", P1))
    readers = [threading.Thread(target=read, args=(mnt, *file)) for file in files]
    writers = [
        threading.Thread(target=write, args=(mnt, *file, places[number::2])) for number, file in enumerate(files)
    ]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not seen_late
    for place in places:
        expected[place : place + 8] = (59).to_bytes(8, "little")


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR], ids=["through the page cache", "past it"])
def test_a_stream_that_is_read_ahead_shows_what_is_written_before_it(shared: Shared, flags: int) -> None:
    mnt, expected = shared.mnt, shared.expected
    step, byte = 256 << 10, 0xA5 ^ flags
    with opened(mnt / "disk0.raw", flags) as reader, opened(mnt / "disk0p2.raw") as writer:
        for offset in range(0, SIZE, step):
            assert os.pread(reader, step, offset) == expected[offset : offset + step]
            # The next piece is being decoded by now: change its first and last byte, through another file.
            for place in (offset + step, offset + 2 * step - 1):
                if P2 <= place < P2 + 14 * MIB:
                    os.pwrite(writer, bytes([byte]), place - P2)
                    expected[place] = byte


def test_parallel_writers_of_parts_of_the_same_blocks_lose_nothing(shared: Shared) -> None:
    mnt, expected = shared.mnt, shared.expected
    writers, stride, rounds = 4, 700, 200

    def write(number: int) -> None:
        # Each has a file and a handle of its own; neighbours write into the same blocks and sectors.
        name, base = (("disk0.raw", P1), ("disk0p1.raw", 0))[number % 2]
        with opened(mnt / name) as descriptor:
            for turn in range(rounds):
                place = (turn * writers + number) * stride
                os.pwrite(descriptor, bytes([number + 1]) * stride, base + place)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for turn in range(rounds * writers):
        place = P1 + turn * stride
        expected[place : place + stride] = bytes([turn % writers + 1]) * stride
    assert (mnt / "disk0.raw").read_bytes() == expected


def test_a_file_has_the_size_of_a_device_whatever_is_asked_of_it(shared: Shared) -> None:
    mnt, expected = shared.mnt, shared.expected
    path = mnt / "disk0.raw"
    with opened(path, os.O_RDWR | os.O_TRUNC) as descriptor:
        os.ftruncate(descriptor, SIZE)
        for size in (0, SIZE - 512, SIZE + 512):
            assert errno_from(functools.partial(os.ftruncate, descriptor, size)) == errno.EINVAL
        assert errno_from(lambda: os.pwrite(descriptor, b"x", SIZE)) == errno.ENOSPC
        assert os.pwrite(descriptor, b"xyz", SIZE - 2) == 2
        assert os.fstat(descriptor).st_size == SIZE
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        assert errno_from(lambda: os.write(descriptor, b"x")) == errno.ENOSPC
    expected[-2:] = b"xy"
    assert path.read_bytes() == expected
    assert errno_from(lambda: os.chmod(path, 0o777)) == errno.EPERM
    assert errno_from(lambda: os.open(mnt / "disk0.json", os.O_RDWR)) == errno.EROFS
    assert errno_from(lambda: os.unlink(path)) == errno.EROFS
    assert path.stat().st_mtime > (mnt / "source" / "disk.vmdk").stat().st_mtime
    assert not path.stat().st_mode & 0o022


def errno_from(call: Callable[[], object]) -> int:
    """Return the errno that a call fails with, 0 if it does not fail."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def test_o_direct_and_private_mappings_work_and_shared_ones_are_refused(shared: Shared) -> None:
    mnt, expected = shared.mnt, shared.expected
    with opened(mnt / "disk0.raw", os.O_RDWR | os.O_DIRECT) as direct, opened(mnt / "disk0p1.raw") as part:
        buffer = mmap.mmap(-1, 8192)
        buffer.write(b"d" * 8192)
        assert os.pwritev(direct, [buffer], P1) == 8192
        assert os.pread(part, 8192, 0) == b"d" * 8192
        with mmap.mmap(part, 8192, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as view:
            assert view[:] == b"d" * 8192
        # The kernel would keep pages of it, and another file of the same disk others.
        assert errno_from(lambda: mmap.mmap(part, 8192, flags=mmap.MAP_SHARED)) == errno.ENODEV
        with opened(mnt / "disk0p1.raw", os.O_RDONLY) as reading:
            with mmap.mmap(reading, 8192, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ) as view:
                assert view[:] == b"d" * 8192
                buffer[:512] = b"e" * 512
                assert os.pwritev(direct, [buffer], P1) == 8192
                assert view[:513] == b"e" * 512 + b"d"
    expected[P1 : P1 + 8192] = buffer[:]


@pytest.mark.parametrize("option", ["--punch-hole", "--zero-range"])
def test_discarded_ranges_read_as_zero_and_only_they(shared: Shared, option: str) -> None:
    mnt, expected = shared.mnt, shared.expected
    before = status(mnt)["discards"]
    with opened(mnt / "disk0p1.raw") as part:
        data = random.Random(2).randbytes(4 * MIB)
        assert os.pwrite(part, data, 0) == len(data)
        expected[P1 : P1 + len(data)] = data
    for offset, length in ((0, 4096), (4097, 4096), (65536, 3 * MIB), (8 * MIB - 511, 511), (100, 1)):
        run("fallocate", option, "-o", offset, "-l", length, mnt / "disk0p1.raw")
        expected[P1 + offset : P1 + offset + length] = bytes(length)
        assert (mnt / "disk0.raw").read_bytes() == expected
    run("fallocate", "--punch-hole", "-o", 8 * MIB - 512, "-l", 4096, mnt / "disk0p1.raw")
    expected[P2 - 512 : P2] = bytes(512)
    assert (mnt / "disk0.raw").read_bytes() == expected
    result = subprocess.run(["fallocate", "-l", "4096", mnt / "disk0p1.raw"], capture_output=True, check=False)
    assert b"not supported" in result.stderr
    assert status(mnt)["discards"] == before + 6


@pytest.mark.parametrize("by_signal", [True, False], ids=["SIGTERM", "fusermount3"])
def test_a_mount_that_ends_keeps_what_was_written(tmp_path: Path, by_signal: bool) -> None:
    raw = make_disk(tmp_path)
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    diskfs("mount", "--overlay", tmp_path / "overlay", raw, mnt)
    pid = status(mnt)["pid"]
    with opened(mnt / "disk0p1.raw") as part:
        os.pwrite(part, b"written", 0)
    handle = os.pidfd_open(pid)
    try:
        if by_signal:
            os.kill(pid, signal.SIGTERM)
        else:
            run("fusermount3", "-u", mnt)
        assert select.select([handle], [], [], 30)[0]
    finally:
        os.close(handle)
    assert str(mnt) not in Path("/proc/self/mountinfo").read_text()
    with mounted(raw, mnt, "--overlay", tmp_path / "overlay"):
        assert (mnt / "disk0p1.raw").read_bytes()[:7] == b"written"


def test_a_changed_table_shows_in_the_partition_files_of_the_next_mount(tmp_path: Path) -> None:
    raw = make_disk(tmp_path)
    data = raw.read_bytes()
    with mounted(raw, tmp_path / "mnt", "--overlay", tmp_path / "overlay") as mnt:
        table = "label: gpt\nstart=4096, size=4MiB\nsize=2MiB\nsize=2MiB\n"
        subprocess.run(["sfdisk", "-q", mnt / "disk0.raw"], input=table, text=True, check=True, capture_output=True)
        assert sorted(path.name for path in mnt.glob("disk0p*")) == ["disk0p1.raw", "disk0p2.raw"]
        assert (mnt / "disk0p1.raw").read_bytes() == data[P1:P2]
    with mounted(raw, tmp_path / "mnt", "--overlay", tmp_path / "overlay") as mnt:
        assert sorted(path.name for path in mnt.glob("disk0p*")) == ["disk0p1.raw", "disk0p2.raw", "disk0p3.raw"]
        assert (mnt / "disk0p1.raw").read_bytes() == data[2 * MIB : 6 * MIB]


def test_a_raw_image_is_changed_in_place_only_when_asked_and_only_by_one(tmp_path: Path) -> None:
    raw = make_disk(tmp_path)
    expected = bytearray(raw.read_bytes())
    (tmp_path / "mnt").mkdir()
    told = diskfs("mount", "--read-write", "--quiet", raw, tmp_path / "mnt").stderr
    assert "the image itself is written to" in told
    try:
        with opened(tmp_path / "mnt" / "disk0p1.raw") as part:
            os.pwrite(part, b"in place", 4093)
            run("fallocate", "--punch-hole", "-o", 65536, "-l", 65536, tmp_path / "mnt" / "disk0p1.raw")
            os.fsync(part)
        expected[P1 + 4093 : P1 + 4101] = b"in place"
        expected[P1 + 65536 : P1 + 131072] = bytes(65536)
        assert raw.read_bytes() == expected
        assert (tmp_path / "mnt" / "disk0.raw").read_bytes() == expected
        (tmp_path / "other").mkdir()
        message = diskfs("mount", "--read-write", raw, tmp_path / "other", expect=1).stderr
        assert "another program has it open and locked" in message
        # Programs that lock what they open are kept off too.
        assert (
            "lock"
            in subprocess.run(
                ["qemu-io", "-f", "raw", "-c", "read 0 512", str(raw)], capture_output=True, text=True, check=False
            ).stderr
        )
    finally:
        diskfs("umount", tmp_path / "mnt")
    assert raw.read_bytes() == expected


@pytest.mark.root
def test_an_image_under_a_loop_device_is_not_changed_in_place(tmp_path: Path) -> None:
    raw = make_disk(tmp_path)
    (tmp_path / "mnt").mkdir()
    device = run("losetup", "--find", "--show", raw).strip()
    try:
        message = diskfs("mount", "--read-write", raw, tmp_path / "mnt", expect=1).stderr
        assert f"{device} shows it" in message
    finally:
        run("losetup", "--detach", device)
    with mounted(raw, tmp_path / "mnt", "--read-write"):
        pass


def test_an_image_that_an_overlay_needs_unchanged_is_not_changed_in_place(tmp_path: Path) -> None:
    raw = make_disk(tmp_path)
    (tmp_path / "other").mkdir()
    with mounted(raw, tmp_path / "mnt", "--overlay", tmp_path / "overlay"):
        message = diskfs("mount", "--read-write", raw, tmp_path / "other", expect=1).stderr
        assert "another program has it open and locked" in message
    with mounted(raw, tmp_path / "other", "--read-write"):
        pass


def test_nothing_but_a_local_raw_image_is_changed_in_place(tmp_path: Path) -> None:
    _, vmdk = make_stream(tmp_path)
    (tmp_path / "mnt").mkdir()
    message = diskfs("mount", "--read-write", vmdk, tmp_path / "mnt", expect=1).stderr
    assert "only raw images are changed in place, and this is vmdk; mount it with --overlay DIR" in message
    diskfs("mount", "--read-write", "--overlay", tmp_path / "o", vmdk, tmp_path / "mnt", expect=2)


def test_an_overlay_at_links_in_a_circle_is_refused(tmp_path: Path) -> None:
    raw = make_disk(tmp_path)
    (tmp_path / "mnt").mkdir()
    (tmp_path / "circle").symlink_to("circle")
    message = diskfs("mount", "--overlay", tmp_path / "circle", raw, tmp_path / "mnt", expect=1).stderr
    assert "circle: " in message
    assert "RuntimeError" not in message


def test_an_overlay_under_the_mountpoint_is_refused(tmp_path: Path) -> None:
    raw = make_disk(tmp_path)
    (tmp_path / "mnt").mkdir()
    message = diskfs("mount", "--overlay", tmp_path / "mnt" / "overlay", raw, tmp_path / "mnt", expect=1).stderr
    assert "the overlay lies under the mountpoint" in message
    assert not os.listdir(tmp_path / "mnt")
