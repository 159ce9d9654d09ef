"""Random operations on a mounted overlay, through every file and kind of handle, against one array of bytes.

The source is a stream-optimized VMDK whose partitions do not lie on page borders, so that one block of the overlay and
one page of the kernel's cache never show the same range through two files.
"""

import ctypes
import json
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SECTOR = 512
SIZE = 17 * (1 << 20) + 3 * SECTOR
"""Over two pages of the overlay's index, which reach 7.5 MiB each."""
PARTITIONS = {"p1": (63 * SECTOR, 8 * (1 << 20) + SECTOR), "p2": (17001 * SECTOR, 6 * (1 << 20))}
LONGEST = 300_000
STEADY = 4096
"""Operations between two remounts, on average."""
_WAYS = {"write": os.O_RDWR, "read": os.O_RDONLY, "again": os.O_RDONLY}
_PUNCH_HOLE, _ZERO_RANGE, _KEEP_SIZE = 2, 16, 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Difference(Exception):
    """The mount shows other bytes than were written."""


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    offset: int
    size: int


def diskfs(*words: object) -> None:
    """Run the command; raises CalledProcessError."""
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'formats'}"}
    command = [sys.executable, "-m", "diskfs", *map(str, words)]
    subprocess.run(command, check=True, env=environment, stdin=subprocess.DEVNULL)


def make_source(folder: Path, seed: str) -> tuple[Path, bytearray]:
    """Make the image by sfdisk and qemu-img; returns it and the bytes of the disk."""
    chosen = random.Random(f"{seed} source")
    content = bytearray(SIZE)
    for _ in range(40):
        length = chosen.randrange(1, 400_000)
        offset = chosen.randrange(SECTOR, SIZE - length)
        content[offset : offset + length] = chosen.randbytes(length)
    raw, image = folder / "source.raw", folder / "source.vmdk"
    raw.write_bytes(content)
    table = "".join(f"start={offset // SECTOR}, size={size // SECTOR}\n" for offset, size in PARTITIONS.values())
    subprocess.run(["sfdisk", "-q", raw], input=table, text=True, check=True, capture_output=True)
    subprocess.run(
        ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, image], check=True
    )  # fmt: skip
    return image, bytearray(raw.read_bytes())


class MountedModel:
    """The mount and the bytes that it has to show."""

    def __init__(self, folder: Path, seed: str) -> None:
        self._random = random.Random(f"{seed} operations")
        self._folder = folder
        self._seed = seed
        self._image, self._model = make_source(folder, seed)
        self._mountpoint = folder / "mnt"
        self._mountpoint.mkdir()
        self._files = [_File("disk0", 0, SIZE)]
        self._files.extend(_File(f"disk0{name}", *place) for name, place in PARTITIONS.items())
        self._handles: dict[tuple[str, str], int] = {}
        self._maps: dict[str, mmap.mmap] = {}
        self._readers_stay = True
        self.compared = 0
        self.doing = ""

    def run(self, count: int) -> Iterator[int]:
        """Do `count` operations; yields how many are done now and then. Raises Difference, OSError."""
        self._mount()
        try:
            for number in range(count):
                self._one(number)
                if number % 1000 == 999:
                    yield number + 1
            self._remount()
            yield count
        finally:
            self._close()
            subprocess.run(["fusermount3", "-u", "-z", self._mountpoint], check=False, capture_output=True)

    def _one(self, number: int) -> None:
        file = self._random.choice(self._files)
        what = self._random.choices(
            ("read", "write", "discard", "map", "fsync", "reopen", "remount"), (400, 350, 80, 60, 30, 40, 1000 / STEADY)
        )[0]
        offset, length = self._range(file)
        if what in ("write", "discard") and file.offset + offset < SECTOR:
            # The partition table stays: the next mount shows the partitions by it.
            offset, length = SECTOR, min(length, file.size - SECTOR)
        self.doing = f"seed {self._seed}, operation {number}: {what} {file.name} at {offset:#x}, {length} bytes"
        if what == "write":
            self._write(file, offset, length)
        elif what == "discard":
            self._discard(file, offset, length)
        elif what == "read":
            self._read(file, offset, length, self._random.choice(tuple(_WAYS)))
        elif what == "map" and self._readers_stay:
            self._compare(file, offset, self._maps[file.name][offset : offset + length], length)
        elif what == "fsync":
            os.fsync(self._random.choice(list(self._handles.values())))
        elif what == "reopen":
            self._open(file, self._random.choice(self._ways()))
        elif what == "remount":
            self._remount()

    def _ways(self) -> tuple[str, ...]:
        """Return which handles of a file stay open."""
        return tuple(_WAYS) if self._readers_stay else ("write",)

    def _read(self, file: _File, offset: int, length: int, way: str) -> None:
        descriptor = self._handles.get((file.name, way))
        passing = descriptor is None
        if descriptor is None:
            descriptor = os.open(self._mountpoint / f"{file.name}.raw", os.O_RDONLY)
        try:
            self._compare(file, offset, os.pread(descriptor, length, offset), length)
        finally:
            if passing:
                os.close(descriptor)

    def _range(self, file: _File) -> tuple[int, int]:
        """Return a range, as often as not one that begins or ends at a border, or just beside it."""
        chosen = self._random
        length = chosen.choice((1, 511, 512, 513, 4095, 4096, 4097, 8192, 65536, chosen.randrange(1, LONGEST)))
        if chosen.random() < 0.3:
            length = chosen.randrange(1, 20_000)
        borders = (
            0,
            file.size,
            *(place - file.offset for offset, size in PARTITIONS.values() for place in (offset, offset + size)),
        )
        unit = chosen.choice((512, 4096, 65536, 480 * 4096 * 4))
        border = chosen.choice((*borders, chosen.randrange(file.size) // unit * unit, chosen.randrange(file.size)))
        offset = border + chosen.choice((0, 0, -1, 1, -length, 512, -512, -length // 2))
        offset = min(max(offset, 0), file.size - 1)
        return offset, min(length, file.size - offset)

    def _write(self, file: _File, offset: int, length: int) -> None:
        data = bytes(length) if self._random.random() < 0.1 else self._random.randbytes(length)
        done = os.pwrite(self._handles[file.name, "write"], data, offset)
        if done != length:
            raise Difference(f"{self.doing}: {done} bytes were written")
        self._model[file.offset + offset : file.offset + offset + length] = data

    def _discard(self, file: _File, offset: int, length: int) -> None:
        mode = self._random.choice((_PUNCH_HOLE, _ZERO_RANGE)) | _KEEP_SIZE
        descriptor = self._handles[file.name, "write"]
        if _LIBC.fallocate64(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._model[file.offset + offset : file.offset + offset + length] = bytes(length)

    def _compare(self, file: _File, offset: int, found: bytes, length: int) -> None:
        expected = self._model[file.offset + offset : file.offset + offset + length]
        self.compared += 1
        if found != expected:
            place = next(
                (place for place, (one, two) in enumerate(zip(found, expected, strict=False)) if one != two), len(found)
            )
            raise Difference(f"{self.doing}: the first difference is at {offset + place:#x} of {file.name}")

    def _mount(self) -> None:
        diskfs("mount", "--overlay", self._folder / "overlay", self._image, self._mountpoint)
        # With readers the kernel has pages to drop at every write; without, whole blocks are written at once.
        self._readers_stay = self._random.random() < 0.5
        for file in self._files:
            for way in self._ways():
                self._open(file, way)

    def _open(self, file: _File, way: str) -> None:
        old = self._handles.pop((file.name, way), None)
        if old is not None:
            os.close(old)
        descriptor = os.open(self._mountpoint / f"{file.name}.raw", _WAYS[way])
        self._handles[file.name, way] = descriptor
        if way == "again":
            # One of the two readers is read ahead of by the kernel, the other is not.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        if way == "read":
            if file.name in self._maps:
                self._maps.pop(file.name).close()
            view = self._maps[file.name] = mmap.mmap(descriptor, file.size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            view.madvise(mmap.MADV_RANDOM)

    def _close(self) -> None:
        for view in self._maps.values():
            view.close()
        self._maps.clear()
        for descriptor in self._handles.values():
            os.close(descriptor)
        self._handles.clear()

    def _remount(self) -> None:
        """Unmount, mount again, and compare everything."""
        with open(self._mountpoint / ".diskfs.json", "rb") as status:  # noqa: PTH123 - its name is not listed
            errors = json.load(status)["errors"]
        if errors:
            raise Difference(f"{self.doing}: the mount counted {errors} errors")
        self._close()
        diskfs("umount", self._mountpoint)
        self._mount()
        for file in self._files:
            self._read(file, 0, file.size, "again")
