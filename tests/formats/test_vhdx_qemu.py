"""Disks that qemu made: every block size, fixed and dynamic, written in a shuffled order."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from diskfs.sources.file import open_file
from diskfs_formats.driver import NoRelatedFiles
from diskfs_formats.extents import ExtentKind
from diskfs_formats.source import MemorySource
from diskfs_formats.vhdx import VhdxDriver
from diskfs_formats.vhdx.image import VhdxImage
from tests.conformance.promises import (
    SparseReference,
    assert_both_sides,
    assert_map,
    assert_random_ranges,
    assert_range,
    assert_threads,
    assert_whole,
)
from tests.samples.vhdx_builder import MIB

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed: run scripts/setup")

PIECE = 64 * 1024


def create(path: Path, size: int, **options: object) -> None:
    """Make an empty VHDX."""
    joined = ",".join(f"{name}={value}" for name, value in options.items())
    command = ["qemu-img", "create", "-q", "-f", "vhdx", "-o", joined, str(path), str(size)]
    subprocess.run(command, check=True, capture_output=True)


def write(path: Path, pieces: list[tuple[int, int, int]]) -> None:
    """Write (offset, length, byte) in the order given."""
    commands = [word for offset, length, byte in pieces for word in ("-c", f"write -P {byte} {offset} {length}")]
    subprocess.run(["qemu-io", "-f", "vhdx", *commands, str(path)], check=True, capture_output=True)


def opened(path: Path) -> VhdxImage:
    return VhdxDriver().open(open_file(path), NoRelatedFiles())


@pytest.mark.parametrize("subformat", ["dynamic", "fixed"])
@pytest.mark.parametrize("block_size", [2**power * MIB for power in range(9)])
def test_every_block_size_is_read(block_size: int, subformat: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    size = 3 * block_size + 3 * MIB
    create(path, size, subformat=subformat, block_size=block_size)
    pieces = [
        (offset, PIECE, number)
        for number, offset in enumerate((0, block_size - PIECE, block_size, 3 * block_size - PIECE, size - PIECE), 1)
    ]
    random.Random(block_size).shuffle(pieces)
    write(path, pieces)
    image = opened(path)
    reference = SparseReference(size, {offset: bytes([number]) * PIECE for offset, _, number in pieces})
    assert (image.info.variant, image.size, image.info.unit_size) == (subformat, size, block_size)
    assert_both_sides(image, reference, [block_size])
    for offset, length, _ in pieces:
        start = max(offset - 512, 0)
        assert_range(image, reference, start, min(offset + length + 512, size) - start)
    kinds = {extent.kind for extent in image.extents()}
    # Small fixed disks get blocks in state ZERO, as the specification allows.
    assert ExtentKind.DATA in kinds
    assert ExtentKind.HOLE not in kinds or subformat == "dynamic"
    image.close()


@pytest.mark.parametrize("block_state_zero", ["on", "off"])
def test_blocks_written_in_a_shuffled_order_read_as_qemu_reads_them(block_state_zero: str, tmp_path: Path) -> None:
    path, raw = tmp_path / "disk.vhdx", tmp_path / "disk.raw"
    create(path, 24 * MIB + 512, subformat="dynamic", block_size=MIB, block_state_zero=block_state_zero)
    blocks = [block for block in range(25) if block % 5]
    random.Random(1).shuffle(blocks)
    write(path, [(block * MIB, 512 if block == 24 else MIB - 512 * block, block) for block in blocks])
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(path), str(raw)], check=True)
    image, reference = opened(path), MemorySource(raw.read_bytes())
    places = [image.lookup(block * MIB).stored for block in sorted(blocks)]
    offsets = [place.offset for place in places if place is not None]
    assert len(offsets) == 20
    assert offsets != sorted(offsets), "the blocks must lie out of order for this test to mean anything"
    assert_whole(image, reference)
    assert_both_sides(image, reference, [MIB, 512])
    assert_random_ranges(image, reference)
    assert_map(image, reference)
    assert_threads(image, reference)
    assert list(VhdxDriver().check(open_file(path), NoRelatedFiles())) == []
    image.close()


def test_an_unwritten_disk_of_many_chunks_is_one_run_of_zeros(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhdx"
    create(path, 1 << 40, subformat="dynamic", block_size=256 * MIB)
    write(path, [((1 << 40) - PIECE, PIECE, 7), (4 << 30, PIECE, 9)])
    image = opened(path)
    assert image.read_at((1 << 40) - PIECE, PIECE) == b"\x07" * PIECE
    assert image.read_at((4 << 30) - 512, 1024) == bytes(512) + b"\x09" * 512
    kinds = [(extent.offset, extent.kind is ExtentKind.DATA) for extent in image.extents()]
    assert kinds == [(0, False), (4 << 30, True), ((4 << 30) + 256 * MIB, False), ((1 << 40) - 256 * MIB, True)]
    image.close()
