"""Random operations on a disk of an overlay, compared with a byte array that gets the same.

Offsets and lengths favour the borders of sectors, blocks and pages of the index, and the end of the disk, from both
sides. What differs is reported with the seed and the number of the operation, which is enough to see it again.
"""

import bisect
import functools
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from diskfs.disks.overlay.disk import OverlayDisk
from diskfs.disks.overlay.folder import create_files, open_disk
from diskfs.disks.overlay.layout import BLOCKS_PER_PAGE, IndexHeader
from diskfs.disks.overlay.merged import MergedDisk
from diskfs.disks.overlay.storage import LocalStorage, Storage
from diskfs_formats.bulk import data_pieces, read_piece
from diskfs_formats.driver import DiskImage, ImageInfo, NoRelatedFiles
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.mapped import MappedImage
from diskfs_formats.registry import driver_named
from diskfs_formats.source import Buffer, MemorySource
from scripts.overlaylib.simulated import SimulatedStorage

BATCH = 50_000
"""Operations on one disk before a new one is made."""
PAGES_KEPT = (2, 8192, 5)
"""Of a disk's index: fewer than it has, so that pages come and go, and are written unasked; or all."""
POOL = 1 << 20


@dataclass(frozen=True, slots=True)
class Geometry:
    """A disk to try: sizes in bytes."""

    block_size: int
    size: int


GEOMETRIES = (
    Geometry(512, 2 * 512 * BLOCKS_PER_PAGE + 5 * 512 + 100),
    Geometry(4096, 4096 * BLOCKS_PER_PAGE + 3 * 4096 + 512),
    Geometry(512, 3 * 512 * BLOCKS_PER_PAGE),
    Geometry(65536, 9 * 65536 + 1),
    Geometry(512, 777),
)


class Difference(Exception):
    """The disk is not what the byte array says."""


def memory_disk(content: bytes) -> DiskImage:
    """Return a raw disk in memory."""
    return driver_named("raw").open(MemorySource(content, "base"), NoRelatedFiles())


class UnitsDisk(MappedImage):
    """A disk of units of all lengths: stored as they are, encoded, encoded and known in two halves, or zero."""

    def __init__(self, rng: random.Random, size: int) -> None:
        content = bytearray(rng.randbytes(size))
        self._starts = [0]
        self._kinds: list[str] = []
        while self._starts[-1] < size:
            start = self._starts[-1]
            end = start + rng.choice((512, 4096, 65536, rng.randrange(1, 100_000)))
            if rng.random() < 0.7:
                end -= end % 4096 if end % 4096 < end - start else 0  # A border of blocks and of units at once.
            end = min(end, size)
            kind = rng.choice(("plain", "encoded", "halves", "zero"))
            if kind == "zero":
                content[start:end] = bytes(end - start)
            self._starts.append(end)
            self._kinds.append(kind)
        self.content = bytes(content)
        self._plain = MemorySource(self.content, "plain")
        self._encoded = MemorySource(_inverted(self.content), "encoded")
        super().__init__("units", ImageInfo("test", "test", size), (self._plain, self._encoded))

    def lookup(self, offset: int, /) -> Extent:
        number = bisect.bisect_right(self._starts, offset) - 1
        start, end = self._starts[number : number + 2]
        kind = self._kinds[number]
        if kind == "zero":
            return Extent(start, end - start, ExtentKind.HOLE)
        if kind == "plain":
            return Extent(start, end - start, ExtentKind.DATA, Stored(self._plain, start, end - start))
        record = Stored(self._encoded, start, end - start, functools.partial(self._decode, start))
        middle = (start + end) // 2
        if kind == "encoded" or middle == start:
            return Extent(start, end - start, ExtentKind.DATA, record)
        if offset < middle:
            return Extent(start, middle - start, ExtentKind.DATA, record)
        record = Stored(self._encoded, start, end - start, record.decode, middle - start)
        return Extent(middle, end - middle, ExtentKind.DATA, record)

    def _decode(self, start: int, record: Buffer) -> Buffer:
        data = _inverted(bytes(record))
        assert data == self.content[start : start + len(data)]
        return data


def _inverted(data: bytes) -> bytes:
    return data.translate(bytes(range(255, -1, -1)))


def run(runs: int, seed: str, folder: Path | None = None) -> Iterator[tuple[int, int]]:
    """Try `runs` operations, in memory or on real files in `folder`; yields (done, reads compared) now and then.

    Raises Difference, and whatever the disk raises.
    """
    done = compared = 0
    batch = 0
    while done < runs:
        count = min(BATCH, runs - done)
        compared += _batch(f"{seed}/{batch}", GEOMETRIES[batch % len(GEOMETRIES)], count, folder, PAGES_KEPT[batch % 3])
        done += count
        batch += 1
        yield done, compared


def _batch(seed: str, geometry: Geometry, count: int, folder: Path | None, kept: int) -> int:
    rng = random.Random(seed)
    pool = rng.randbytes(POOL)
    size = geometry.size
    below = UnitsDisk(rng, size)
    base = below.content
    expected = bytearray(base)
    flushed = bytearray(base)
    header = IndexHeader(uuid.UUID(int=rng.getrandbits(128)), 0, geometry.block_size, size)
    borders = _borders(geometry)
    compared = 0
    with _storage(folder) as storage:
        create_files(storage, header)
        disk = _opened(storage, header, below, kept)
        try:
            for number in range(count):
                choice = rng.random()
                if choice < 0.99:
                    offset = rng.choice(borders) + rng.randrange(-3, 4) if choice < 0.7 else rng.randrange(size)
                    offset = min(max(offset, 0), size)
                    length = min(_length(rng, geometry), size - offset)
                    kind = rng.random()
                    if kind < 0.45:
                        start = rng.randrange(POOL - length)
                        data = pool[start : start + length] if kind < 0.4 else bytes(length)
                        if kind > 0.2 or not disk.write_if_quick(offset, data):
                            disk.write_at(offset, data)
                        expected[offset : offset + length] = data
                    elif kind < 0.55:
                        disk.discard(offset, length)
                        expected[offset : offset + length] = bytes(length)
                    else:
                        read = disk.read_at if kind < 0.9 else _ready(disk)
                        if read(offset, length) != expected[offset : offset + length]:
                            raise Difference(f"seed {seed}, operation {number}: {length} bytes at {offset:#x} differ")
                        compared += 1
                elif choice < 0.9995:
                    disk.flush()
                    flushed[:] = expected
                else:
                    if rng.random() < 0.5:
                        disk.close()
                        disk = _opened(storage, header, below, kept)
                    else:
                        disk.abandon()
                        disk = _opened(storage, header, below, kept)
                        # What an unasked flush has kept is known to the power losses, and not here.
                        strict = kept == max(PAGES_KEPT)
                        _take_what_is_left(disk, expected, flushed, f"seed {seed}, operation {number}", strict)
                    flushed[:] = expected
                    _compare_all(disk, expected, base, f"seed {seed}, operation {number}")
            _compare_all(disk, expected, base, f"seed {seed}, operation {count}")
        finally:
            disk.close()
    return compared


def _ready(disk: OverlayDisk):  # type: ignore[no-untyped-def]  # a helper of the loop above
    return lambda offset, length: (
        disk.read_at(offset, length) if (data := disk.read_if_ready(offset, length)) is None else data
    )


def _opened(storage: Storage, header: IndexHeader, below: DiskImage, kept: int) -> OverlayDisk:
    return open_disk(storage, header, "overlay", below, pages_kept=kept)


def _borders(geometry: Geometry) -> list[int]:
    page = geometry.block_size * BLOCKS_PER_PAGE
    near = [0, geometry.size, geometry.size // 512 * 512]
    for unit in (512, geometry.block_size, page):
        for start in (0, page, geometry.size // page * page):
            near += [start + unit * step for step in range(-3, 4)]
    return [offset for offset in near if 0 <= offset <= geometry.size]


def _length(rng: random.Random, geometry: Geometry) -> int:
    choice = rng.random()
    if choice < 0.4:
        return rng.randrange(1, 1025)
    if choice < 0.9:
        units = rng.choice((512, geometry.block_size)) if geometry.block_size <= 4096 or choice < 0.5 else 512
        return max(units * rng.randrange(1, 5) + rng.choice((0, 0, 0, -1, 1)), 0)
    return rng.randrange(0, 40_000) if choice < 0.999 else rng.randrange(0, POOL)


def _take_what_is_left(disk: OverlayDisk, expected: bytearray, flushed: bytearray, where: str, strict: bool) -> None:
    """Compare each sector with what it was at the last flush and with the last that was written to it."""
    found = disk.read_at(0, disk.size)
    for start in range(0, disk.size, 512):
        end = start + 512
        if found[start:end] != expected[start:end]:
            if strict and found[start:end] != flushed[start:end]:
                raise Difference(f"{where}: after the end of the process the sector at {start:#x} is neither")
            expected[start:end] = found[start:end]


def _compare_all(disk: OverlayDisk, expected: bytearray, base: bytes, where: str) -> None:
    if disk.read_at(0, disk.size) != expected:
        raise Difference(f"{where}: the disk as a whole differs")
    position = 0
    for extent in disk.changes():
        if extent.offset != position or (extent.kind is ExtentKind.ZERO and any(expected[position : extent.end])):
            raise Difference(f"{where}: the map at {position:#x}")
        position = extent.end
        if extent.kind is ExtentKind.HOLE and expected[extent.offset : position] != base[extent.offset : position]:
            raise Difference(f"{where}: the map calls {extent.offset:#x} unchanged, and it is not")
    if position != disk.size:
        raise Difference(f"{where}: the map ends at {position:#x}")
    for image in (disk, MergedDisk(disk)):
        _compare_pieces(image, expected, where)


def _compare_pieces(image: DiskImage, expected: bytearray, where: str) -> None:
    """Read a disk as a copy does, along its map."""
    position = 0
    for extent in image.extents():
        if extent.offset != position or not extent.length:
            raise Difference(f"{where}: the map of {type(image).__name__} at {position:#x}")
        position = extent.end
    found = bytearray(len(expected))
    for piece in data_pieces(image.extents()):
        found[piece.offset : piece.end] = b"".join(read_piece(piece))
    if position != len(expected) or found != expected:
        raise Difference(f"{where}: the pieces of {type(image).__name__}")


@contextmanager
def _storage(folder: Path | None) -> Iterator[Storage]:
    if folder is None:
        simulated = SimulatedStorage(recorded=False)
        simulated.make_folder()
        yield simulated
        return
    storage = LocalStorage(folder / f"model-{uuid.uuid4()}")
    storage.make_folder()
    try:
        yield storage
    finally:
        for name in storage.names():
            storage.unlink(name)
        storage.remove_folder()
