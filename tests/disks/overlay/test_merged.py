"""A disk of an overlay as a commit reads it: compressed units with changes in them, and what of them is looked at."""

import random
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs.disks.opening import open_source
from diskfs.disks.overlay import MergedDisk, OverlayDisk, OverlayFolder
from diskfs.disks.overlay.folder import create_files, open_disk
from diskfs.disks.overlay.layout import IndexHeader
from diskfs.disks.overlay.merged import EXACT_SPAN
from diskfs_formats.bulk import data_pieces, read_piece
from diskfs_formats.driver import DiskImage, ImageInfo
from diskfs_formats.errors import CorruptImage
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.mapped import MappedImage
from diskfs_formats.source import Buffer, MemorySource
from scripts.overlaylib.simulated import SimulatedStorage
from tests.convert.commands import diskfs
from tests.helpers import assert_same_bytes

BLOCK = 4096
UNIT = 4 * BLOCK
COUNT = 8
SIZE = COUNT * UNIT - 700
CONTENT = random.Random(5).randbytes(SIZE)
MIB = 1 << 20


class Units(MappedImage):
    """A disk of units that count how often they are decoded. Those of `unmapped` cannot be looked up, those of
    `damaged` not be decoded, and those of `short` lack their last byte.
    """

    def __init__(
        self, *, unmapped: tuple[int, ...] = (), damaged: tuple[int, ...] = (), short: tuple[int, ...] = ()
    ) -> None:
        self.source = MemorySource(CONTENT, "units")
        super().__init__("units", ImageInfo("test", "test", SIZE), (self.source,))
        self.unmapped = unmapped
        self.damaged = damaged
        self.short = short
        self.decoded: list[int] = []

    def lookup(self, offset: int, /) -> Extent:
        number = offset // UNIT
        if number in self.unmapped:
            raise CorruptImage(f"units: unit {number} cannot be looked up")
        start = number * UNIT
        length = min(UNIT, SIZE - start)

        def decode(record: Buffer, /) -> Buffer:
            self.decoded.append(number)
            if number in self.damaged:
                raise CorruptImage(f"units: unit {number} is damaged")
            return record[:-1] if number in self.short else record

        return Extent(start, length, ExtentKind.DATA, Stored(self.source, start, length, decode))


class Quarters(Units):
    """The same units, each known in four extents, as a child with smaller units leaves them of its parent's."""

    def lookup(self, offset: int, /) -> Extent:
        whole = super().lookup(offset)
        stored = whole.stored
        assert stored is not None
        start = offset - offset % BLOCK
        length = min(BLOCK, SIZE - start)
        part = Stored(stored.source, stored.offset, stored.length, stored.decode, start - whole.offset)
        return Extent(start, length, ExtentKind.DATA, part)


class Hidden(MappedImage):
    """A disk that says what is wrong with it before its map is begun."""

    def __init__(self, size: int) -> None:
        super().__init__("hidden", ImageInfo("test", "test", size), ())

    def lookup(self, offset: int, /) -> Extent:
        raise CorruptImage(f"hidden: {offset:#x} was looked up")

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        raise CorruptImage(f"hidden: the map from {offset:#x} on was asked for")


def overlay_of(base: DiskImage, block_size: int = BLOCK) -> OverlayDisk:
    storage = SimulatedStorage(recorded=False)
    storage.make_folder()
    header = IndexHeader(uuid.UUID(int=9), 0, block_size, base.size)
    create_files(storage, header)
    return open_disk(storage, header, "overlay", base)


def read_whole(image: DiskImage) -> bytes:
    found = bytearray(image.size)
    for piece in data_pieces(image.extents()):
        found[piece.offset : piece.end] = b"".join(read_piece(piece))
    return bytes(found)


def test_a_unit_with_changes_is_one_extent_and_decoded_once() -> None:
    base = Units()
    disk = overlay_of(base)
    expected = bytearray(CONTENT)
    for block in (1, 3, 4 * 3, SIZE // BLOCK):
        data = random.Random(block).randbytes(min(BLOCK, SIZE - block * BLOCK))
        disk.write_at(block * BLOCK, data)
        expected[block * BLOCK : block * BLOCK + len(data)] = data
    disk.discard(2 * BLOCK, BLOCK)
    expected[2 * BLOCK : 3 * BLOCK] = bytes(BLOCK)
    merged = MergedDisk(disk)
    assert [(extent.offset, extent.length) for extent in merged.extents()] == [
        (number * UNIT, min(UNIT, SIZE - number * UNIT)) for number in range(COUNT)
    ]
    assert_same_bytes(read_whole(merged), expected)
    assert base.decoded == list(range(COUNT))
    assert_same_bytes(merged.read_at(0, SIZE), expected)


def test_parts_of_a_unit_share_what_is_decoded() -> None:
    small = 512
    base = Quarters()
    disk = overlay_of(base, block_size=small)
    expected = bytearray(CONTENT)
    for block in range(0, SIZE // BLOCK, 2):
        disk.write_at(block * BLOCK + small, b"\xee" * small)
        expected[block * BLOCK + small : block * BLOCK + 2 * small] = b"\xee" * small
    assert_same_bytes(read_whole(MergedDisk(disk)), expected)
    assert base.decoded == list(range(COUNT))


def test_what_the_overlay_hides_for_long_is_not_looked_up() -> None:
    size = 40 * MIB + 700
    disk = overlay_of(Hidden(size))
    merged = MergedDisk(disk)
    with pytest.raises(CorruptImage):
        list(merged.extents())
    disk.discard(0, size)
    assert list(merged.extents()) == [Extent(0, size, ExtentKind.ZERO)]
    disk.write_at(20 * MIB, b"\xee" * BLOCK)
    assert [(extent.offset, extent.kind) for extent in merged.extents()] == [
        (0, ExtentKind.ZERO),
        (20 * MIB, ExtentKind.DATA),
        (20 * MIB + BLOCK, ExtentKind.ZERO),
        (20 * MIB + EXACT_SPAN, ExtentKind.ZERO),
    ]


@pytest.mark.parametrize("start", [0, 1, BLOCK, BLOCK + 1, UNIT - 1])
@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, UNIT, 2 * UNIT + 5])
def test_any_part_of_the_map_is_that_part_of_the_disk(start: int, length: int) -> None:
    disk = overlay_of(Units())
    expected = bytearray(CONTENT)
    for block in range(1, SIZE // BLOCK, 3):
        disk.write_at(block * BLOCK + 7, b"changed")
        expected[block * BLOCK + 7 : block * BLOCK + 14] = b"changed"
    found = bytearray()
    for extent in MergedDisk(disk).extents(start, length):
        assert extent.offset == start + len(found)
        for piece in data_pieces([extent]):
            found += b"".join(read_piece(piece))
    assert_same_bytes(found, expected[start : start + length])


@pytest.mark.parametrize("kind", ["unmapped", "damaged", "short"])
@pytest.mark.parametrize("number", [0, 3, COUNT - 1])
def test_damage_counts_as_far_as_the_overlay_leaves_it_to_be_seen(kind: str, number: int) -> None:
    disk = overlay_of(Units(**{kind: (number,)}))
    merged = MergedDisk(disk)
    start, end = number * UNIT, min((number + 1) * UNIT, SIZE)
    with pytest.raises(CorruptImage):
        read_whole(merged)
    disk.write_at(start, b"\xee" * BLOCK)
    with pytest.raises(CorruptImage):
        read_whole(merged)
    disk.write_at(start, b"\xee" * (end - start))
    assert_same_bytes(read_whole(merged), CONTENT[:start] + b"\xee" * (end - start) + CONTENT[end:])


def test_a_stored_grain_with_a_change_is_not_passed_on_as_it_was(tmp_path: Path) -> None:
    """Each kind of compressed source that other programs write, committed to the format that takes grains over."""
    content = bytearray(random.Random(1).randbytes(2 * MIB) + b"\1" * MIB + bytes(MIB))
    plain = tmp_path / "plain.raw"
    plain.write_bytes(content)
    rng = random.Random(2)
    changes = [(rng.randrange(len(content) - 5000), rng.randbytes(rng.randrange(1, 5000))) for _ in range(40)]
    for offset, data in changes:
        content[offset : offset + len(data)] = data
    expected = tmp_path / "expected.raw"
    expected.write_bytes(content)
    for options in (["-O", "vmdk", "-o", "subformat=streamOptimized"], ["-c", "-O", "qcow2"]):
        image = tmp_path / "image"
        subprocess.run(["qemu-img", "convert", *options, plain, image], check=True)
        folder = tmp_path / f"overlay of {options[-1]}"
        with open_source(str(image)) as source, OverlayFolder.open(folder, source) as overlay:
            for offset, data in changes:
                overlay.disk(0).write_at(offset, data)
        for name in ("new.vmdk", "new.raw", "new.vhdx"):
            target = tmp_path / name
            diskfs("commit", folder, target, "--force", "--verify")
            subprocess.run(["qemu-img", "compare", "-F", "raw", target, expected], check=True)


def test_a_child_with_smaller_clusters_than_its_compressed_parent(tmp_path: Path) -> None:
    """Each cluster of 2 MiB is seen in 128 parts, and changes lie in many of them."""
    content = bytearray(random.Random(1).randbytes(2 * MIB) + b"\1" * MIB + bytes(MIB) + b"\2" * 2 * MIB)
    plain, parent, child = tmp_path / "plain.raw", tmp_path / "parent.qcow2", tmp_path / "child.qcow2"
    plain.write_bytes(content)
    options = ["-c", "-O", "qcow2", "-o", "cluster_size=2M"]
    subprocess.run(["qemu-img", "convert", *options, plain, parent], check=True)
    backing = ["-b", parent.name, "-F", "qcow2"]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", *backing, child], check=True)
    writes = [argument for offset in range(0, 6 * MIB, 16384) for argument in ("-c", f"write -q -P 7 {offset} 4k")]
    subprocess.run(["qemu-io", *writes, child], check=True)
    for offset in range(0, 6 * MIB, 16384):
        content[offset : offset + 4096] = b"\7" * 4096
    with open_source(str(child)) as source, OverlayFolder.open(tmp_path / "overlay", source) as overlay:
        for offset in range(8192, 6 * MIB, 16384):
            overlay.disk(0).write_at(offset, b"\xee" * 4096)
            content[offset : offset + 4096] = b"\xee" * 4096
        stored = [extent.stored for extent in MergedDisk(overlay.disk(0)).extents() if extent.stored is not None]
        # Two clusters are compressed, the first one does not get smaller.
        assert len({id(one.decode) for one in stored if one.decode is not None}) == 2
    expected = tmp_path / "expected.raw"
    expected.write_bytes(content)
    for name in ("new.vmdk", "new.raw"):
        diskfs("commit", tmp_path / "overlay", tmp_path / name)
        subprocess.run(["qemu-img", "compare", "-F", "raw", tmp_path / name, expected], check=True)
