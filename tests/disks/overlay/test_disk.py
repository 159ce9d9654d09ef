"""A disk of an overlay: what is written is read, the map tells it, and the disk below stays as it is."""

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs.disks.overlay import data_file, folder
from diskfs.disks.overlay.disk import OverlayDisk
from diskfs.disks.overlay.folder import create_files, open_disk
from diskfs.disks.overlay.layout import BLOCKS_PER_PAGE, IndexHeader, pack_page, parse_page
from diskfs.disks.overlay.storage import LocalStorage
from diskfs.errors import DamagedOverlay, OutOfSpace, OverlayWriteError, SourceError
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import CorruptImage, OutOfRange
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import Buffer, MemorySource
from scripts.overlaylib.model import memory_disk
from scripts.overlaylib.simulated import Node, Operation, SimulatedFile, SimulatedStorage
from tests.helpers import assert_same_bytes

BLOCK = 4096
SIZE = 6 * BLOCK + 700
BASE = bytes(1 + index % 255 for index in range(SIZE))
HEADER = IndexHeader(uuid.UUID(int=7), 0, BLOCK, SIZE)


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    made = LocalStorage(tmp_path / "overlay")
    made.make_folder()
    create_files(made, HEADER)
    return made


@pytest.fixture
def disk(storage: LocalStorage) -> Iterator[OverlayDisk]:
    opened = open_disk(storage, HEADER, "overlay", memory_disk(BASE))
    yield opened
    opened.abandon()


EDGES = sorted(
    {
        edge + delta
        for edge in (0, 512, BLOCK, 2 * BLOCK, 6 * BLOCK, SIZE)
        for delta in (-513, -512, -1, 0, 1, 512)
        if 0 <= edge + delta <= SIZE
    }
)


def test_a_write_between_any_two_edges_changes_these_bytes_alone(storage: LocalStorage) -> None:
    for start in EDGES:
        for end in EDGES:
            if start >= end:
                continue
            simulated = SimulatedStorage(recorded=False)
            simulated.make_folder()
            create_files(simulated, HEADER)
            disk = open_disk(simulated, HEADER, "overlay", memory_disk(BASE))
            disk.write_at(start, b"\xff" * (end - start))
            assert_same_bytes(disk.read_at(0, SIZE), BASE[:start] + b"\xff" * (end - start) + BASE[end:])


def test_a_discard_between_any_two_edges_zeroes_these_bytes_alone() -> None:
    for start in EDGES:
        for end in EDGES:
            if start >= end:
                continue
            simulated = SimulatedStorage(recorded=False)
            simulated.make_folder()
            create_files(simulated, HEADER)
            disk = open_disk(simulated, HEADER, "overlay", memory_disk(BASE))
            disk.write_at(BLOCK, b"\xee" * BLOCK)
            disk.discard(start, end - start)
            before = BASE[:BLOCK] + b"\xee" * BLOCK + BASE[2 * BLOCK :]
            assert_same_bytes(disk.read_at(0, SIZE), before[:start] + bytes(end - start) + before[end:])


def test_the_map_tells_what_was_written_what_was_discarded_and_what_is_below(disk: OverlayDisk) -> None:
    disk.write_at(BLOCK + 5, b"x")
    disk.discard(3 * BLOCK, SIZE - 3 * BLOCK)
    assert [(extent.offset, extent.length, extent.kind) for extent in disk.changes()] == [
        (0, BLOCK, ExtentKind.HOLE),
        (BLOCK, BLOCK, ExtentKind.DATA),
        (2 * BLOCK, BLOCK, ExtentKind.HOLE),
        (3 * BLOCK, SIZE - 3 * BLOCK, ExtentKind.ZERO),
    ]
    extents = list(disk.extents())
    assert [(extent.offset, extent.kind, extent.depth) for extent in extents] == [
        (0, ExtentKind.DATA, 1),
        (BLOCK, ExtentKind.DATA, 0),
        (2 * BLOCK, ExtentKind.DATA, 1),
        (3 * BLOCK, ExtentKind.ZERO, 0),
    ]
    for extent in extents:
        if extent.stored is not None:
            stored = extent.stored.source.read_at(extent.stored.offset, extent.stored.length)
            assert stored == disk.read_at(extent.offset, extent.length)


class _Units(MappedImage):
    """Units of a block and a half; those of `damaged` cannot be looked up."""

    UNIT = BLOCK + BLOCK // 2

    def __init__(self, damaged: tuple[int, ...]) -> None:
        self.source = MemorySource(BASE, "units")
        super().__init__("units", ImageInfo("test", "test", SIZE), (self.source,))
        self.damaged = damaged
        self.lookups_made = 0

    def lookup(self, offset: int, /) -> Extent:
        self.lookups_made += 1
        number = offset // self.UNIT
        if number in self.damaged:
            raise CorruptImage(f"units: unit {number} is damaged")
        start = number * self.UNIT
        length = min(self.UNIT, SIZE - start)
        stored = Stored(self.source, start, length, bytes)
        return Extent(start, length, ExtentKind.DATA, stored)


def test_a_unit_that_the_overlay_hides_in_part_is_mapped_in_parts(storage: LocalStorage) -> None:
    disk = open_disk(storage, HEADER, "overlay", _Units(()))
    for block in (1, 2, 4):
        disk.write_at(block * BLOCK, b"\xee" * BLOCK)
    found = []
    for extent in disk.extents():
        assert extent.stored is not None
        found.append((extent.offset, extent.length, extent.depth, extent.stored.offset, extent.stored.skip))
    unit = _Units.UNIT
    assert found == [
        (0, BLOCK, 1, 0, 0),
        (BLOCK, 2 * BLOCK, 0, BLOCK, 0),
        (3 * BLOCK, BLOCK, 1, 2 * unit, 0),
        (4 * BLOCK, BLOCK, 0, 4 * BLOCK, 0),
        (5 * BLOCK, 4 * unit - 5 * BLOCK, 1, 3 * unit, 5 * BLOCK - 3 * unit),
        (4 * unit, SIZE - 4 * unit, 1, 4 * unit, 0),
    ]
    disk.abandon()


@pytest.mark.parametrize("number", [0, 1, 2, 3, 4])
def test_a_damaged_unit_that_the_overlay_hides_is_not_looked_at(storage: LocalStorage, number: int) -> None:
    disk = open_disk(storage, HEADER, "overlay", _Units((number,)))
    start = number * _Units.UNIT
    end = min(start + _Units.UNIT, SIZE)
    hidden = start // BLOCK * BLOCK, min(-(-end // BLOCK) * BLOCK, SIZE)
    with pytest.raises(CorruptImage):
        list(disk.extents())
    disk.discard(hidden[0], hidden[1] - hidden[0])
    extents = list(disk.extents())
    assert sum(extent.length for extent in extents) == SIZE
    assert [extent for extent in extents if extent.kind is ExtentKind.ZERO] == [
        Extent(hidden[0], hidden[1] - hidden[0], ExtentKind.ZERO)
    ]
    disk.write_at(hidden[0], b"\xee" * (hidden[1] - hidden[0] - 1))
    assert sum(extent.length for extent in disk.extents()) == SIZE
    disk.abandon()


def test_damage_that_the_overlay_hides_is_not_come_to_again_for_each_gap(storage: LocalStorage) -> None:
    size = 4000 * BLOCK
    header = IndexHeader(uuid.UUID(int=8), 1, BLOCK, size)
    create_files(storage, header)
    base = _Zeroes(size)
    disk = open_disk(storage, header, "overlay", base)
    disk.discard(size - BLOCK, BLOCK)
    for block in range(0, 1000, 10):
        disk.write_at(block * BLOCK, b"\xee" * BLOCK)
    assert sum(extent.length for extent in disk.extents()) == size
    # Once to the damage, and once through the gaps.
    assert base.lookups_made < 3 * 4000
    disk.abandon()


class _Zeroes(MappedImage):
    """Blocks that are zero, which a map joins, and a last one that cannot be looked up."""

    def __init__(self, size: int) -> None:
        super().__init__("zeroes", ImageInfo("test", "test", size), ())
        self.lookups_made = 0

    def lookup(self, offset: int, /) -> Extent:
        self.lookups_made += 1
        start = offset - offset % BLOCK
        if start == self.size - BLOCK:
            raise CorruptImage("zeroes: the last block is damaged")
        return Extent(start, BLOCK, ExtentKind.ZERO)


def test_zeroes_over_what_the_source_has_take_no_room(disk: OverlayDisk, tmp_path: Path) -> None:
    disk.write_at(0, bytes(3 * BLOCK))
    disk.flush()
    assert (tmp_path / "overlay" / "disk0.data").stat().st_blocks == 0
    assert disk.read_at(0, 3 * BLOCK + 1) == bytes(3 * BLOCK) + BASE[3 * BLOCK : 3 * BLOCK + 1]


def test_a_discard_frees_the_room(disk: OverlayDisk, tmp_path: Path) -> None:
    disk.write_at(0, os.urandom(4 * BLOCK))
    disk.flush()
    taken = (tmp_path / "overlay" / "disk0.data").stat().st_blocks
    disk.discard(0, 4 * BLOCK)
    disk.flush()
    assert (tmp_path / "overlay" / "disk0.data").stat().st_blocks < taken


def test_nothing_past_the_end_is_read_written_or_discarded(disk: OverlayDisk) -> None:
    for action in (
        lambda: disk.read_at(SIZE - 1, 2),
        lambda: disk.read_if_ready(SIZE - 1, 2),
        lambda: disk.write_at(SIZE - 1, b"xx"),
        lambda: disk.write_at(-1, b"x"),
        lambda: disk.discard(SIZE, 1),
        lambda: list(disk.extents(SIZE - 1, 2)),
    ):
        with pytest.raises(OutOfRange):
            action()
    disk.write_at(SIZE, b"")
    disk.discard(SIZE, 0)
    assert disk.read_at(SIZE, 0) == b""
    assert disk.read_at(0, SIZE) == BASE


def test_what_was_flushed_is_there_when_opened_again_and_closing_flushes(storage: LocalStorage) -> None:
    disk = open_disk(storage, HEADER, "overlay", memory_disk(BASE))
    disk.write_at(10, b"flushed")
    disk.flush()
    disk.abandon()
    disk = open_disk(storage, HEADER, "overlay", memory_disk(BASE))
    assert disk.read_at(10, 7) == b"flushed"
    disk.write_at(3 * BLOCK, b"closed")
    disk.close()
    disk.close()
    disk = open_disk(storage, HEADER, "overlay", memory_disk(BASE))
    assert disk.read_at(3 * BLOCK, 6) == b"closed"
    disk.abandon()


def test_writers_of_one_block_at_once_lose_nothing() -> None:
    """Each thread writes its own bytes of the same blocks, none of which the overlay has yet."""
    size = 40 * BLOCK
    header = IndexHeader(uuid.UUID(int=8), 0, BLOCK, size)
    for _ in range(5):
        simulated = SimulatedStorage(recorded=False)
        simulated.make_folder()
        create_files(simulated, header)
        disk = open_disk(simulated, header, "overlay", memory_disk(bytes(size)), pages_kept=1)
        barrier = threading.Barrier(8)

        def write(number: int, disk: OverlayDisk = disk, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            for block in range(40):
                disk.write_at(block * BLOCK + number * 500, bytes([number + 1]) * 500)
                if block % 10 == number:
                    disk.flush()

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = b"".join(bytes([number + 1]) * 500 for number in range(8)) + bytes(96)
        assert_same_bytes(disk.read_at(0, size), expected * 40)


def test_a_disk_of_several_data_files_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The files end where file systems end them; here after two blocks."""
    monkeypatch.setattr(folder, "SEGMENT_SIZE", 2 * BLOCK)
    made = LocalStorage(tmp_path / "overlay")
    made.make_folder()
    create_files(made, HEADER)
    assert sorted(made.names()) == ["disk0.data", "disk0.data.1", "disk0.data.2", "disk0.data.3", "disk0.index"]
    disk = open_disk(made, HEADER, "overlay", memory_disk(BASE))
    disk.write_at(BLOCK + 1, b"\xff" * 4 * BLOCK)
    disk.discard(3 * BLOCK, 2 * BLOCK)
    expected = BASE[: BLOCK + 1] + b"\xff" * (2 * BLOCK - 1) + bytes(2 * BLOCK) + b"\xff" + BASE[5 * BLOCK + 1 :]
    assert_same_bytes(disk.read_at(0, SIZE), expected)
    disk.close()
    disk = open_disk(made, HEADER, "overlay", memory_disk(BASE))
    assert_same_bytes(disk.read_at(0, SIZE), expected)
    disk.abandon()
    assert data_file.segment_sizes(64 << 40) == [8 << 40] * 8


def test_a_disk_of_64_tib_costs_little_memory_and_room(tmp_path: Path) -> None:
    """The index of such a disk has 8,947,849 pages; writing at both ends and reading between takes a few."""
    size = 64 << 40
    header = IndexHeader(uuid.UUID(int=9), 0, BLOCK, size)
    assert header.file_size == 4096 + 8_947_849 * 512 + 2331 * 512
    simulated = _HugeStorage()
    simulated.make_folder()
    create_files(simulated, header)
    disk = open_disk(simulated, header, "overlay", _Endless(size))
    for offset in (0, 8 << 40, size - BLOCK, (16 << 40) - 100):
        disk.write_at(offset, b"\xaa" * BLOCK)
    disk.flush()
    for offset in range(0, size, size // 12_000):
        disk.read_at(offset // BLOCK * BLOCK, BLOCK)
    assert disk.read_at(size - BLOCK, BLOCK) == b"\xaa" * BLOCK
    assert len(disk._map._pages) <= 8192


class _HugeStorage(SimulatedStorage):
    """Keeps what is written by sector, since a byte array of this size is none."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, _HugeFile] = {}

    def open(self, name: str, /, *, create: bool = False, write: bool = True) -> "_HugeFile":
        return self.files.setdefault(name, _HugeFile(self))


class _HugeFile(SimulatedFile):
    def __init__(self, storage: SimulatedStorage) -> None:
        super().__init__(storage, Node(0))
        self.sectors: dict[int, bytes] = {}
        self.length = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        start = offset // 512
        sectors = [self.sectors.get(number, bytes(512)) for number in range(start, -(-(offset + length) // 512))]
        return b"".join(sectors)[offset % 512 :][:length]

    def write_at(self, offset: int, data: Buffer, /) -> None:
        assert offset % 512 == 0
        for start in range(0, len(data), 512):
            self.sectors[(offset + start) // 512] = bytes(data[start : start + 512])

    def truncate(self, size: int, /) -> None:
        self.length = size

    def size(self) -> int:
        return self.length

    def data_ranges(self, start: int, end: int, /) -> Iterator[tuple[int, int]]:
        yield from (
            (number * 512, number * 512 + 512) for number in sorted(self.sectors) if start <= number * 512 < end
        )


class _Endless:
    """A disk below of which every byte is 1."""

    name = "endless"

    def __init__(self, size: int) -> None:
        self.size = size
        self.info = memory_disk(b"1").info

    def read_at(self, offset: int, length: int, /) -> bytes:
        return b"\1" * length

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def _failing(number: int, *kinds: str) -> SimulatedStorage:
    """Return storage with a disk on it, the calls `kinds` of which fail once `armed` is in its names."""
    made = SimulatedStorage()
    made.make_folder()
    create_files(made, HEADER)

    def watch(kind: str, node: Node | None, operation: Operation | None) -> None:
        if kind in kinds and "armed" in made.synced:
            raise OSError(number, os.strerror(number))

    made.watcher = watch
    return made


def test_a_full_disk_is_reported_and_writing_goes_on_when_there_is_room() -> None:
    import errno

    storage = _failing(errno.ENOSPC, "write")
    disk = open_disk(storage, HEADER, "overlay", memory_disk(BASE))
    disk.write_at(0, b"before")
    disk.flush()
    storage.synced["armed"] = Node(99)
    with pytest.raises(
        OutOfSpace, match=r"overlay/disk0\.data: writing failed: No space left on device; free some room"
    ):
        disk.write_at(2 * BLOCK, b"no room")
    disk.flush()
    assert disk.read_at(0, SIZE) == b"before" + BASE[6:]
    del storage.synced["armed"]
    disk.write_at(2 * BLOCK, b"there is")
    disk.flush()
    assert disk.read_at(2 * BLOCK, 8) == b"there is"


def test_a_full_disk_met_while_flushing_is_reported_and_the_next_flush_makes_up_for_it() -> None:
    import errno

    storage = _failing(errno.ENOSPC, "write")
    disk = open_disk(storage, HEADER, "overlay", memory_disk(BASE))
    disk.write_at(0, b"written")
    storage.synced["armed"] = Node(99)
    for _ in range(2):
        with pytest.raises(OutOfSpace):
            disk.flush()
    del storage.synced["armed"]
    disk.flush()
    left = storage.after_power_loss
    storage.sync()
    disk = open_disk(left(), HEADER, "overlay", memory_disk(BASE))
    assert disk.read_at(0, 7) == b"written"


@pytest.mark.parametrize("kind", ["sync", "write", "hole"])
def test_a_failure_of_the_storage_stays_until_the_disk_is_opened_again(kind: str) -> None:
    import errno

    storage = _failing(errno.EIO, kind)
    disk = open_disk(storage, HEADER, "overlay", memory_disk(BASE))
    disk.write_at(0, b"first" * BLOCK)
    storage.synced["armed"] = Node(99)

    def fail() -> None:
        if kind == "hole":
            disk.discard(0, BLOCK)
        disk.write_at(0, b"again")
        disk.flush()

    with pytest.raises(OverlayWriteError, match="Input/output error; nothing is written until"):
        fail()
    del storage.synced["armed"]
    for action in (disk.flush, lambda: disk.write_at(0, b"more"), lambda: disk.discard(0, BLOCK), disk.close):
        with pytest.raises(OverlayWriteError, match="nothing is written until the overlay is opened again"):
            action()
    disk = open_disk(storage, HEADER, "overlay", memory_disk(BASE))
    disk.write_at(0, b"more")
    disk.flush()


def test_an_error_of_reading_names_the_file_and_the_place() -> None:
    import errno

    storage = _failing(errno.EIO, "read")
    disk = open_disk(storage, HEADER, "overlay", memory_disk(BASE))
    disk.write_at(0, b"x" * BLOCK)
    storage.synced["armed"] = Node(99)
    with pytest.raises(SourceError, match=r"overlay/disk0\.data: reading 4096 bytes at offset 0x0 failed: Input"):
        disk.read_at(0, BLOCK)
    assert disk.read_at(BLOCK, BLOCK) == BASE[BLOCK : 2 * BLOCK]


def test_a_page_is_packed_as_the_description_says() -> None:
    """docs/OVERLAY.md: block i of a page has the bits 2(i mod 4) and above of byte 32 + i div 4."""
    states = bytearray(BLOCKS_PER_PAGE)
    states[0], states[1], states[6], states[1919] = 1, 2, 1, 2
    page = pack_page(bytes(range(16)), 5, states)
    assert page[:4] == b"dfpg"
    assert page[8:32] == (5).to_bytes(8, "little") + bytes(range(16))
    assert (page[32], page[33], page[511], len(page)) == (0b1001, 0b010000, 0b10000000, 512)
    assert parse_page(page, bytes(range(16)), 5, "index") == bytes(states)
    for wrong in (page[:40] + b"\1" + page[41:], page[:4] + bytes(4) + page[8:], b"x" + page[1:], page[:-1]):
        with pytest.raises(DamagedOverlay, match=r"index: page 5 at 0x1a00: "):
            parse_page(wrong, bytes(range(16)), 5, "index")
    for number, owner in ((6, bytes(range(16))), (5, bytes(16))):
        with pytest.raises(DamagedOverlay, match="it has the number 5"):
            parse_page(page, owner, number, "index")
