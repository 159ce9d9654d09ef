"""Fixed and dynamic disks packed by hand: block states, the BAT with its interleaved entries, and the file's end."""

import random
import time
import tracemalloc

import pytest

from diskfs_formats.driver import NoRelatedFiles
from diskfs_formats.errors import CorruptImage, DiskfsError, TruncatedImage
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.findings import Severity
from diskfs_formats.vhdx import VhdxDriver
from diskfs_formats.vhdx.image import VhdxImage
from tests.conformance.promises import (
    SparseReference,
    assert_both_sides,
    assert_map,
    assert_past_the_end,
    assert_random_ranges,
    assert_range,
    assert_ready_bytes,
    assert_threads,
    assert_whole,
)
from tests.helpers import assert_same_bytes
from tests.samples import vhdx_builder as vhdx
from tests.samples.vhdx_builder import GIB, MIB, TIB, SparseSource, VhdxBuilder, bat_entry, pattern


def opened(builder: VhdxBuilder) -> VhdxImage:
    return VhdxDriver().open(builder.source(), NoRelatedFiles())


def kinds(image: VhdxImage) -> list[tuple[int, int, ExtentKind]]:
    return [(extent.offset, extent.length, extent.kind) for extent in image.extents()]


def shuffled_disk() -> tuple[VhdxBuilder, SparseReference]:
    """A dynamic disk of 1 MiB blocks that were written in a random order, the last one cut, some never written."""
    size = 12 * MIB + 4608
    builder = VhdxBuilder(size)
    written = [0, 1, 2, 4, 5, 9, 12]
    random.Random(5).shuffle(written)
    for block in written:
        builder.put(block, pattern(block))
    return builder, SparseReference(size, {block * MIB: pattern(block)[: size - block * MIB] for block in written})


def test_blocks_stored_in_any_order_are_read_in_the_disk_s_order() -> None:
    builder, reference = shuffled_disk()
    image = opened(builder)
    assert_whole(image, reference)
    assert_both_sides(image, reference, [MIB, 512])
    assert_random_ranges(image, reference)
    assert_map(image, reference)
    assert_ready_bytes(opened(builder), reference)
    assert_past_the_end(image)


def test_threads_share_a_disk() -> None:
    builder, reference = shuffled_disk()
    assert_threads(opened(builder), reference)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (0, ExtentKind.HOLE),
        (1, ExtentKind.ZERO),
        (2, ExtentKind.ZERO),
        (3, ExtentKind.ZERO),
        (5, ExtentKind.ZERO),
        (6, ExtentKind.DATA),
    ],
)
@pytest.mark.parametrize("bits", [0, 1], ids=["dynamic", "fixed"])
def test_only_a_fully_present_block_shows_what_is_stored(state: int, kind: ExtentKind, bits: int) -> None:
    builder = VhdxBuilder(3 * MIB, parameter_bits=bits)
    builder.put(0, pattern(1))
    builder.put(1, pattern(2), state)  # the offset stays set, as it may in every state
    image = opened(builder)
    expected = pattern(2) if kind is ExtentKind.DATA else bytes(MIB)
    assert_same_bytes(image.read_at(0, 3 * MIB), pattern(1) + expected + bytes(MIB))
    assert image.lookup(MIB).kind is kind


@pytest.mark.parametrize("state", [4, 7])
def test_a_state_that_means_nothing_here_fails_the_reads_of_its_block_only(state: int) -> None:
    builder = VhdxBuilder(3 * MIB)
    builder.put(0, pattern(1))
    builder.put(1, pattern(2), state)
    builder.put(2, pattern(3))
    image = opened(builder)
    with pytest.raises(CorruptImage, match=r"payload block 1 \(BAT entry 1\)"):
        image.read_at(2 * MIB - 1, 1)
    with pytest.raises(CorruptImage):
        image.read_at(0, 3 * MIB)
    assert_same_bytes(image.read_at(0, MIB), pattern(1))
    assert_same_bytes(image.read_at(2 * MIB, MIB), pattern(3))


def test_reserved_bits_of_a_bat_entry_are_not_part_of_the_offset() -> None:
    builder = VhdxBuilder(MIB)
    offset = builder.put(0, pattern(1))
    builder.bat[0] = bat_entry(6, offset) | 0xFFFF8
    assert_same_bytes(opened(builder).read_at(0, MIB), pattern(1))


def test_neighbours_stored_one_after_the_other_are_one_extent() -> None:
    builder = VhdxBuilder(8 * MIB)
    for block in (0, 1, 2, 5, 6):
        builder.put(block, pattern(block))
    builder.set_state(3, vhdx.ZERO)
    builder.set_state(4, vhdx.UNMAPPED)
    assert kinds(opened(builder)) == [
        (0, 3 * MIB, ExtentKind.DATA),
        (3 * MIB, 2 * MIB, ExtentKind.ZERO),
        (5 * MIB, 2 * MIB, ExtentKind.DATA),
        (7 * MIB, MIB, ExtentKind.HOLE),
    ]


@pytest.mark.parametrize(("block_size", "sector_size"), [(256 * MIB, 512), (128 * MIB, 512), (256 * MIB, 4096)])
def test_each_chunk_s_bitmap_entry_is_passed_over(block_size: int, sector_size: int) -> None:
    # 2^23 sectors per chunk: 16 blocks of 256 MiB with 512-byte sectors, 128 with 4096-byte ones.
    chunk_ratio = {(256 * MIB, 512): 16, (128 * MIB, 512): 32, (256 * MIB, 4096): 128}[block_size, sector_size]
    blocks = 2 * chunk_ratio + 3
    builder = VhdxBuilder(blocks * block_size, block_size=block_size, sector_size=sector_size)
    chunks = {}
    for block in (0, chunk_ratio - 1, chunk_ratio, 2 * chunk_ratio - 1, 2 * chunk_ratio, blocks - 1):
        offset = builder.put(block, b"")
        head, tail = pattern(block, 8192), pattern(block + 1000, 8192)
        builder.pieces.update({offset: head, offset + block_size - 8192: tail})
        chunks.update({block * block_size: head, (block + 1) * block_size - 8192: tail})
    # The entries that hold these blocks, by the specification: one more for each chunk before them.
    assert builder.bat.keys() == {
        0,
        chunk_ratio - 1,
        chunk_ratio + 1,
        2 * chunk_ratio,
        2 * chunk_ratio + 2,
        blocks + 1,
    }
    image = opened(builder)
    reference = SparseReference(builder.virtual_size, chunks)
    for boundary in range(0, builder.virtual_size, block_size):
        start = max(boundary - 4096, 0)
        assert_range(image, reference, start, boundary + 4096 - start)
    assert_range(image, reference, image.size - 4096, 4096)
    stored = [(extent.offset, extent.length) for extent in image.extents() if extent.kind is ExtentKind.DATA]
    assert stored == [
        (0, block_size),
        ((chunk_ratio - 1) * block_size, 2 * block_size),  # one run although an entry lies between the two
        ((2 * chunk_ratio - 1) * block_size, 2 * block_size),
        ((blocks - 1) * block_size, block_size),
    ]


@pytest.mark.parametrize("block_size", [2**power * MIB for power in range(9)])
def test_a_hole_ends_where_the_first_block_of_the_next_chunk_begins(block_size: int) -> None:
    chunk = (1 << 23) * 512
    builder = VhdxBuilder(2 * chunk, block_size=block_size)
    offset = builder.put(chunk // block_size, b"")
    builder.pieces[offset] = b"first"
    image = opened(builder)
    assert kinds(image) == [
        (0, chunk, ExtentKind.HOLE),
        (chunk, block_size, ExtentKind.DATA),
        (chunk + block_size, chunk - block_size, ExtentKind.HOLE),
    ]
    assert image.read_at(chunk - 3, 8) == b"\0\0\0first"


def test_runs_go_on_across_pages_of_the_bat() -> None:
    blocks = 9000  # over two pages of 4096 entries; a chunk of 4096 blocks ends near the end of the first
    builder = VhdxBuilder(blocks * MIB, parameter_bits=1)
    for block in range(blocks):
        builder.put(block, b"")
    builder.pieces.update(
        {builder.bat_offset + builder.bat_length + block * MIB: b"%08d" % block for block in range(0, blocks, 7)}
    )
    image = opened(builder)
    assert kinds(image) == [(0, blocks * MIB, ExtentKind.DATA)]
    for block in (0, 4095 - 4095 % 7, 4096 + 6, 8190, 8197):
        number = block - block % 7
        assert image.read_at(number * MIB, 8) == b"%08d" % number


def test_an_extent_is_found_without_reading_once_its_page_was_read() -> None:
    builder, reference = shuffled_disk()
    source = builder.source()
    image = VhdxDriver().open(source, NoRelatedFiles())
    assert image.lookup_if_ready(0) is None
    image.lookup(0)
    before = source.requests
    for offset in range(0, image.size, MIB):
        assert image.lookup_if_ready(offset) == image.lookup(offset)
    assert source.requests == before
    assert image.read_if_ready(0, 4096) == reference.read_at(0, 4096)


def test_a_64_tib_disk_is_opened_and_read_a_page_at_a_time() -> None:
    # Its BAT has 512 MiB: 2^26 blocks of 1 MiB and their sector bitmap entries.
    builder = VhdxBuilder(64 * TIB)
    assert builder.bat_length == 513 * MIB
    last = builder.put(2**26 - 1, b"")
    builder.pieces[last + MIB - 4] = b"last"
    source = builder.source()
    tracemalloc.start()
    start = time.process_time()
    image = VhdxDriver().open(source, NoRelatedFiles())
    assert image.read_at(64 * TIB - 8, 8) == b"\0\0\0\0last"
    assert image.read_at(32 * TIB, 16) == bytes(16)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.requests <= 16
    assert source.bytes_read < 2 * MIB
    assert peak < 8 * MIB
    assert seconds < 2


@pytest.mark.parametrize(("blocks", "is_taken"), [(131041, True), (131042, False)])
def test_a_bat_must_fit_its_region(blocks: int, is_taken: bool) -> None:
    # 131,041 blocks and the 31 bitmap entries before the last of them are the 131,072 entries of 1 MiB.
    builder = VhdxBuilder(blocks * MIB)
    builder.regions[0] = (vhdx.BAT_GUID, builder.bat_offset, MIB, 1)
    if is_taken:
        builder.put(blocks - 1, b"last")
        assert opened(builder).read_at((blocks - 1) * MIB, 4) == b"last"
    else:
        with pytest.raises(CorruptImage, match=r"its region has 1048576 bytes, .* needs 1048584"):
            opened(builder)


def test_memory_stays_bounded_however_much_of_a_bat_is_looked_at() -> None:
    builder = VhdxBuilder(64 * TIB)
    image = opened(builder)
    tracemalloc.start()
    for page in range(0, 2**26, 4096 * 16):
        image.lookup(page * MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 48 * MIB


@pytest.mark.parametrize(
    ("offset", "what"),
    [(0, "header section"), (MIB, "log"), (2 * MIB, "metadata region"), (3 * MIB, "BAT")],
)
def test_a_block_where_a_region_is_fails_its_reads(offset: int, what: str) -> None:
    builder = VhdxBuilder(3 * MIB)
    builder.put(0, pattern(0))
    builder.set_state(1, vhdx.FULLY_PRESENT, offset)
    image = opened(builder)
    with pytest.raises(
        CorruptImage, match=rf"payload block 1 \(BAT entry 1\): it is at offset {offset:#x}, where the {what} is"
    ):
        image.read_at(MIB, 1)
    assert_same_bytes(image.read_at(0, MIB), pattern(0))


def test_a_block_that_reaches_into_a_region_fails_its_reads() -> None:
    builder = VhdxBuilder(8 * MIB, block_size=2 * MIB)
    builder.regions.append((vhdx.UNKNOWN_GUID, 9 * MIB, MIB, 0))
    builder.file_size = 20 * MIB
    builder.set_state(0, vhdx.FULLY_PRESENT, 5 * MIB)
    builder.set_state(1, vhdx.FULLY_PRESENT, 7 * MIB)
    builder.set_state(2, vhdx.FULLY_PRESENT, 9 * MIB)
    builder.set_state(3, vhdx.FULLY_PRESENT, 10 * MIB)
    image = opened(builder)
    # Blocks 0 to 2 follow one another, and the run ends before the one that would hold a region.
    assert image.lookup(0) == Extent(0, 4 * MIB, ExtentKind.DATA, image.lookup(0).stored)
    with pytest.raises(CorruptImage, match="where the region deadbeef"):
        image.read_at(4 * MIB, 1)
    assert image.read_at(6 * MIB, MIB) == bytes(MIB)
    builder.set_state(1, vhdx.FULLY_PRESENT, 8 * MIB)
    with pytest.raises(CorruptImage, match=r"payload block 1 .* at offset 0x800000"):
        opened(builder).read_at(2 * MIB, 1)


def test_a_block_past_the_end_of_the_file_fails_its_reads_only() -> None:
    builder = VhdxBuilder(4 * MIB)
    for block in range(3):
        builder.put(block, pattern(block))
    builder.set_state(3, vhdx.FULLY_PRESENT, 2**44 - MIB)
    image = opened(builder)
    assert_same_bytes(image.read_at(0, 3 * MIB), pattern(0) + pattern(1) + pattern(2))
    with pytest.raises(TruncatedImage, match="payload block 3"):
        image.read_at(3 * MIB, 1)


@pytest.mark.parametrize("missing", [1, 511, 512, 513, MIB - 512, MIB - 1, MIB])
def test_a_cut_last_block_shows_its_whole_sectors_and_fails_after_them(missing: int) -> None:
    builder = VhdxBuilder(4 * MIB)
    for block in range(2):
        builder.put(block, pattern(block))
    builder.file_size = builder.next_free - missing
    there = 2 * MIB - -(-missing // 512) * 512
    image = opened(builder)
    assert_same_bytes(image.read_at(0, there), (pattern(0) + pattern(1))[:there])
    if there > MIB:
        stored = image.lookup(MIB).stored
        assert stored is not None
        assert stored.offset + stored.length <= builder.file_size
    with pytest.raises(TruncatedImage, match=r"payload block 1 \(BAT entry 1\): byte .* the file ends at"):
        image.read_at(there, 1)
    assert image.read_at(2 * MIB, 2 * MIB) == bytes(2 * MIB)


def test_a_disk_smaller_than_its_block_needs_only_its_own_bytes() -> None:
    builder = VhdxBuilder(MIB + 512, block_size=32 * MIB)
    offset = builder.put(0, pattern(0) + b"z" * 512)
    builder.file_size = offset + MIB + 512
    image = opened(builder)
    assert_same_bytes(image.read_at(0, image.size), pattern(0) + b"z" * 512)
    assert kinds(image) == [(0, MIB + 512, ExtentKind.DATA)]


def test_sectors_of_4096_bytes_change_the_chunks_and_nothing_else() -> None:
    builder = VhdxBuilder(5 * MIB, sector_size=4096, physical_sector_size=4096)
    assert builder.chunk_ratio == 32768
    for block in (3, 0, 4):
        builder.put(block, pattern(block))
    image = opened(builder)
    reference = SparseReference(5 * MIB, {block * MIB: pattern(block) for block in (0, 3, 4)})
    assert image.info.sector_size == 4096
    assert_whole(image, reference)
    assert_both_sides(image, reference, [MIB, 4096])


def test_verify_finds_nothing_in_a_sound_disk() -> None:
    builder, _ = shuffled_disk()
    assert list(VhdxDriver().check(builder.source(), NoRelatedFiles())) == []


def test_verify_names_blocks_that_share_a_place() -> None:
    builder = VhdxBuilder(8 * MIB, block_size=2 * MIB)
    offset = builder.put(0, b"")
    builder.put(1, b"")
    builder.put(2, b"")
    builder.set_state(3, vhdx.FULLY_PRESENT, offset + MIB)
    findings = list(VhdxDriver().check(builder.source(), NoRelatedFiles()))
    assert [(finding.rule, finding.severity) for finding in findings] == [("vhdx-bat", Severity.ERROR)]
    assert f"BAT entry 3: its block at offset {offset + MIB:#x} overlaps" in findings[0].message


def test_verify_names_each_block_that_cannot_be_read() -> None:
    builder = VhdxBuilder(6 * MIB)
    builder.put(0, pattern(0))
    builder.set_state(1, 4)
    builder.set_state(2, 7)
    builder.set_state(3, vhdx.FULLY_PRESENT, MIB)
    builder.set_state(4, vhdx.FULLY_PRESENT, 1000 * MIB)
    findings = list(VhdxDriver().check(builder.source(), NoRelatedFiles()))
    assert [finding.rule for finding in findings] == ["vhdx-block"] * 4
    assert [f"payload block {block} " in finding.message for block, finding in enumerate(findings, 1)] == [True] * 4


def test_a_sector_bitmap_left_over_on_a_disk_without_a_parent_is_tolerated_and_reported() -> None:
    builder = VhdxBuilder(17 * 256 * MIB, block_size=256 * MIB)
    builder.put_bitmap(0, [1, 2, 3])
    offset = builder.put(16, b"")
    builder.pieces[offset] = b"beyond the bitmap's entry"
    image = opened(builder)
    assert image.read_at(16 * 256 * MIB, 6) == b"beyond"
    findings = list(VhdxDriver().check(builder.source(), NoRelatedFiles()))
    assert [(finding.rule, finding.severity) for finding in findings] == [("vhdx-bat", Severity.WARNING)]


def test_verify_passes_over_the_empty_part_of_a_large_bat() -> None:
    builder = VhdxBuilder(2 * TIB)
    start = time.process_time()
    assert list(VhdxDriver().check(builder.source(), NoRelatedFiles())) == []
    assert time.process_time() - start < 10


def test_a_failing_file_fails_the_read_with_its_own_error() -> None:
    class Failing(SparseSource):
        fails = False

        def read_at(self, offset: int, length: int, /) -> bytes:
            if self.fails:
                raise DiskfsError("the disk is on fire")
            return super().read_at(offset, length)

    builder, _ = shuffled_disk()
    pieces, size = builder.all_pieces()
    source = Failing(pieces, size)
    image = VhdxDriver().open(source, NoRelatedFiles())
    source.fails = True
    for _ in range(2):
        with pytest.raises(DiskfsError, match="on fire"):
            image.read_at(0, 512)
    source.fails = False
    assert_same_bytes(image.read_at(0, MIB), pattern(0))


def test_a_disk_of_many_small_runs_is_mapped_quickly() -> None:
    builder = VhdxBuilder(4 * GIB)
    for block in range(0, 4096, 2):
        builder.set_state(block, vhdx.FULLY_PRESENT, builder.allocate(MIB))
    image = opened(builder)
    start = time.process_time()
    assert len(kinds(image)) == 4096
    assert time.process_time() - start < 2
