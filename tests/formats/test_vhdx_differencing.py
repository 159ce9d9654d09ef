"""Differencing disks packed by hand: sector bitmaps, block states over a parent, and which file is the parent."""

import random
from collections.abc import Callable
from uuid import UUID

import pytest

from diskfs_formats.driver import AbsentParent, DiskImage, NoRelatedFiles
from diskfs_formats.errors import CorruptImage, ImageError, ParentUnavailable, TruncatedImage, UnsupportedFeature
from diskfs_formats.extents import ExtentKind
from diskfs_formats.findings import Severity
from diskfs_formats.raw import RawImage
from diskfs_formats.source import MemorySource
from diskfs_formats.vhdx import VhdxDriver
from diskfs_formats.vhdx.image import VhdxImage, run_of_bits
from tests.conformance.promises import (
    SparseReference,
    assert_both_sides,
    assert_map,
    assert_past_the_end,
    assert_random_ranges,
    assert_range,
    assert_threads,
    assert_whole,
)
from tests.helpers import assert_same_bytes
from tests.samples import vhdx_builder as vhdx
from tests.samples.vhdx_builder import (
    KIB,
    MIB,
    Item,
    ParentFiles,
    SparseSource,
    VhdxBuilder,
    bat_entry,
    locator_for,
    pack_header,
    pack_locator,
    pack_log_entry,
    pattern,
)

PARENT_GUID = UUID("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee")
CHILD_GUID = UUID("12345678-bbbb-cccc-dddd-eeeeeeeeeeee")
OTHER_GUID = UUID("00000001-bbbb-cccc-dddd-eeeeeeeeeeee")


def parent_disk(size: int = 10 * MIB, **options: int) -> VhdxBuilder:
    """Every block holds its own pattern, from 100 on."""
    builder = VhdxBuilder(size, data_write_guid=PARENT_GUID, **options)  # type: ignore[arg-type]  # numbers only
    for block in range(-(-size // builder.block_size)):
        builder.put(block, pattern(100 + block, builder.block_size))
    return builder


def child_disk(
    size: int = 10 * MIB, locator: bytes | None = None, *, guid: UUID = CHILD_GUID, **options: int
) -> VhdxBuilder:
    locator = locator_for(PARENT_GUID, ".\\parent.vhdx") if locator is None else locator
    return VhdxBuilder(size, locator=locator, data_write_guid=guid, **options)  # type: ignore[arg-type]  # the same


def opened(child: VhdxBuilder, parent: VhdxBuilder | None = None) -> VhdxImage:
    parent = parent or parent_disk()
    files = ParentFiles(VhdxDriver(), {"parent.vhdx": lambda: parent.source("parent.vhdx")})
    return VhdxDriver().open(child.source("child.vhdx"), files)


def parent_bytes(size: int = 10 * MIB) -> bytearray:
    return bytearray(b"".join(pattern(100 + block) for block in range(-(-size // MIB)))[:size])


def test_the_facts_name_a_differencing_disk() -> None:
    image = opened(child_disk())
    assert (image.info.variant, image.info.has_parent) == ("differencing", True)
    assert image.parent is not None
    assert image.data_write_guid == CHILD_GUID


def test_a_child_that_holds_nothing_shows_its_parent() -> None:
    image = opened(child_disk())
    assert_same_bytes(image.read_at(0, image.size), parent_bytes())
    assert {extent.depth for extent in image.extents()} == {1}


@pytest.mark.parametrize("state", [0, 1, 2, 3, 5, 6])
def test_only_not_present_shows_the_parent_and_only_fully_present_the_child(state: int) -> None:
    child = child_disk()
    child.put(1, pattern(1), state)
    child.put_bitmap(0, [])  # fully present blocks are not looked up in it
    expected = parent_bytes()
    if state:
        expected[MIB : 2 * MIB] = pattern(1) if state == vhdx.FULLY_PRESENT else bytes(MIB)
    image = opened(child)
    assert_same_bytes(image.read_at(0, image.size), expected)
    kind = {0: ExtentKind.HOLE, 6: ExtentKind.DATA}.get(state, ExtentKind.ZERO)
    assert image.lookup(MIB).kind is kind


@pytest.mark.parametrize("bit", [0, 1, 7, 8, 9, 15, 16, 2046, 2047])
def test_bit_n_of_the_bitmap_is_sector_n_the_lowest_bit_first(bit: int) -> None:
    child = child_disk()
    child.put(0, pattern(1), vhdx.PARTIALLY_PRESENT)
    offset = child.put_bitmap(0, [])
    bitmap = bytearray(MIB)
    bitmap[bit // 8] = (0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80)[bit % 8]
    child.pieces[offset] = bytes(bitmap)
    expected = parent_bytes()
    expected[bit * 512 : bit * 512 + 512] = pattern(1)[bit * 512 : bit * 512 + 512]
    assert_same_bytes(opened(child).read_at(0, 10 * MIB), expected)


def scattered(sector_size: int, *, seed: int = 3) -> tuple[VhdxBuilder, VhdxBuilder, bytearray]:
    """A child with three partial blocks, whose present sectors are in runs of random length, and its content."""
    chance = random.Random(seed)
    size = 9 * MIB + 5 * 4096
    child, parent = child_disk(size, sector_size=sector_size), parent_disk(size, sector_size=sector_size)
    expected = parent_bytes(size)
    per_block = MIB // sector_size
    present: list[int] = []
    for block in (9, 4, 5):
        child.put(block, pattern(block), vhdx.PARTIALLY_PRESENT)
        sector = 0
        while sector < per_block:
            run = chance.choice((1, 1, 2, 7, 8, 9, 100))
            if chance.random() < 0.5:
                present += range(block * per_block + sector, block * per_block + min(sector + run, per_block))
            sector += run
    for sector in present:
        start = sector * sector_size
        data = pattern(start // MIB)[start % MIB : start % MIB + sector_size]
        if start < size:
            expected[start : start + sector_size] = data
    child.put(0, pattern(0))
    expected[:MIB] = pattern(0)
    child.set_state(7, vhdx.ZERO)
    expected[7 * MIB : 8 * MIB] = bytes(MIB)
    child.put_bitmap(0, present)
    return child, parent, expected


@pytest.mark.parametrize("sector_size", [512, 4096])
def test_partial_blocks_mix_the_child_s_sectors_with_the_parent_s(sector_size: int) -> None:
    child, parent, expected = scattered(sector_size)
    image, reference = opened(child, parent), MemorySource(bytes(expected))
    assert image.lookup(image.size - 1).end == image.size
    assert_whole(image, reference)
    assert_both_sides(image, reference, [MIB, sector_size])
    assert_random_ranges(image, reference)
    assert_map(image, reference)
    assert_past_the_end(image)


def test_both_sides_of_every_change_in_a_bitmap_are_right() -> None:
    child, parent, expected = scattered(512, seed=8)
    image, reference = opened(child, parent), MemorySource(bytes(expected))
    edges = [extent.offset for extent in image.extents() if extent.offset // MIB in (4, 5)]
    assert len(edges) > 100
    for edge in edges:
        for start, end in ((edge - 1, edge), (edge, edge + 1), (edge - 1, edge + 1), (edge - 600, edge + 600)):
            assert_range(image, reference, start, end - start)


def test_threads_share_a_chain() -> None:
    child, parent, expected = scattered(512)
    assert_threads(opened(child, parent), MemorySource(bytes(expected)))


def test_partial_blocks_are_ready_once_they_were_looked_up() -> None:
    child, parent, expected = scattered(512)
    image = opened(child, parent)
    assert image.lookup_if_ready(4 * MIB) is None
    image.lookup(4 * MIB)
    for offset in range(4 * MIB, 5 * MIB, 512):
        assert image.lookup_if_ready(offset) == image.lookup(offset)
    assert image.read_if_ready(4 * MIB, 512) == expected[4 * MIB : 4 * MIB + 512]


@pytest.mark.parametrize(("block_size", "sector_size"), [(256 * MIB, 512), (64 * MIB, 512), (256 * MIB, 4096)])
def test_each_chunk_has_its_own_bitmap(block_size: int, sector_size: int) -> None:
    chunk = (1 << 23) * sector_size
    ratio = chunk // block_size
    size = 2 * chunk + 2 * block_size
    child = child_disk(size, block_size=block_size, sector_size=sector_size)
    parent = VhdxBuilder(size, data_write_guid=PARENT_GUID, sector_size=sector_size, block_size=block_size)
    chunks: dict[int, bytes] = {}
    bits: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for block in (0, ratio - 1, ratio, ratio + 1, 2 * ratio + 1):
        offset = child.put(block, b"", vhdx.PARTIALLY_PRESENT)
        # Present are the block's second sector and its last one.
        for sector in (1, block_size // sector_size - 1):
            data = pattern(block + sector % 7, sector_size)
            child.pieces[offset + sector * sector_size] = data
            chunks[block * block_size + sector * sector_size] = data
            bits[block // ratio].append(block % ratio * (block_size // sector_size) + sector)
    for number, sectors in bits.items():
        child.put_bitmap(number, sectors)
    image, reference = opened(child, parent), SparseReference(size, chunks)
    for offset in chunks:
        for start in (offset - 8192, offset - sector_size, offset, offset + sector_size - 8192):
            start = max(min(start, size - 16384), 0)  # noqa: PLW2901 - inside the disk
            assert_range(image, reference, start, 16384)
    stored = [extent for extent in image.extents() if extent.kind is ExtentKind.DATA]
    assert sum(extent.length for extent in stored) == len(chunks) * sector_size


def test_a_bitmap_block_between_two_payload_blocks_is_never_read_as_one_of_them() -> None:
    # Block 15 ends the first chunk, and its chunk's bitmap lies where block 16 would follow it, which lies after that.
    block_size = 256 * MIB
    child = child_disk(18 * block_size, block_size=block_size)
    parent = VhdxBuilder(18 * block_size, data_write_guid=PARENT_GUID, block_size=block_size)
    places = [child.put(15, b""), child.allocate(block_size), child.put(16, b"")]
    assert places == [places[0] + number * block_size for number in range(3)]
    child.bat[child.bitmap_index(0)] = bat_entry(6, places[1])
    child.pieces.update({places[0]: b"block 15", places[1]: b"a bitmap", places[2]: b"block 16"})
    image = opened(child, parent)
    assert image.read_at(15 * block_size, 8) == b"block 15"
    assert image.read_at(16 * block_size - 4, 12) == b"\0\0\0\0block 16"


def test_a_run_longer_than_the_window_is_one_run() -> None:
    # 64 MiB are 131,072 sectors, whose bits fill 16 KiB; runs are looked for in pieces of 4 KiB.
    size = 64 * MIB
    child = child_disk(size, block_size=size)
    parent = VhdxBuilder(size, data_write_guid=PARENT_GUID)
    child.put(0, b"", vhdx.PARTIALLY_PRESENT)
    child.put_bitmap(0, range(5, 131070))
    kinds = [(extent.offset, extent.end, extent.kind) for extent in opened(child, parent).extents()]
    assert kinds == [
        (0, 5 * 512, ExtentKind.HOLE),
        (5 * 512, 131070 * 512, ExtentKind.DATA),
        (131070 * 512, size, ExtentKind.HOLE),
    ]


def test_runs_of_bits_are_as_counted_one_by_one() -> None:
    chance = random.Random(2)
    bits = [chance.random() < 0.5 for _ in range(64) for _ in range(chance.choice((1, 3, 8, 40)))]
    bits += [bits[-1]] * (-len(bits) % 8)
    bitmap = bytes(sum(bit << n for n, bit in enumerate(bits[at : at + 8])) for at in range(0, len(bits), 8))
    for first, bit in enumerate(bits):
        count = next((n for n, other in enumerate(bits[first:]) if other != bit), len(bits) - first)
        assert run_of_bits(bitmap, first) == (bit, count)


@pytest.mark.parametrize("size", [3 * MIB, 3 * MIB + 512, 10 * MIB, 12 * MIB])
def test_a_child_may_be_larger_or_smaller_than_its_parent(size: int) -> None:
    child = child_disk(size)
    child.put(1, pattern(1))
    image = opened(child, parent_disk(5 * MIB + 512))
    expected = parent_bytes(5 * MIB + 512).ljust(12 * MIB, b"\0")
    expected[MIB : 2 * MIB] = pattern(1)
    assert_same_bytes(image.read_at(0, size), expected[:size])
    assert_map(image, MemorySource(bytes(expected[:size])))


def test_a_parent_may_have_other_blocks_and_be_a_child_itself() -> None:
    top = child_disk(locator=locator_for(CHILD_GUID, "middle.vhdx"), guid=OTHER_GUID)
    top.put(2, pattern(2), vhdx.PARTIALLY_PRESENT)
    top.put_bitmap(0, range(2 * 2048 + 10, 2 * 2048 + 20))
    middle, bottom = child_disk(block_size=4 * MIB), parent_disk(block_size=2 * MIB)
    middle.put(0, pattern(50, 4 * MIB))
    files = ParentFiles(
        VhdxDriver(),
        {"middle.vhdx": lambda: middle.source("middle"), "parent.vhdx": lambda: bottom.source("bottom")},
    )
    image = VhdxDriver().open(top.source(), files)
    expected = bytearray(b"".join(pattern(100 + block, 2 * MIB) for block in range(5)))
    expected[: 4 * MIB] = pattern(50, 4 * MIB)
    expected[2 * MIB + 5120 : 2 * MIB + 10240] = pattern(2)[5120:10240]
    assert_same_bytes(image.read_at(0, image.size), expected)
    assert {extent.depth for extent in image.extents()} == {0, 1, 2}
    assert files.asked == [(("middle.vhdx",), "vhdx"), (("parent.vhdx",), "vhdx")]


def test_the_parent_s_log_is_replayed_first() -> None:
    parent = parent_disk()
    right = dict(parent.bat)
    parent.bat = {0: bat_entry(6, parent.next_free)}
    parent.headers = [
        pack_header(sequence_number=number, data_write_guid=PARENT_GUID, log_guid=vhdx.LOG_GUID) for number in (1, 2)
    ]
    parent.write_log((0, pack_log_entry([parent.bat_sector(right)], sequence_number=1, tail=0)))
    assert_same_bytes(opened(child_disk(), parent).read_at(0, 10 * MIB), parent_bytes())


def test_a_child_s_own_log_is_replayed() -> None:
    child = child_disk()
    offset = child.put(3, pattern(3))
    child.bat.clear()
    child.headers = [pack_header(sequence_number=number, log_guid=vhdx.LOG_GUID) for number in (1, 2)]
    update = child.bat_sector({3: bat_entry(6, offset)})
    child.write_log((0, pack_log_entry([update], sequence_number=1, tail=0)))
    expected = parent_bytes()
    expected[3 * MIB : 4 * MIB] = pattern(3)
    assert_same_bytes(opened(child).read_at(0, 10 * MIB), expected)


def _without_bitmap(child: VhdxBuilder) -> None:
    child.bat.pop(child.bitmap_index(0), None)


def _bitmap_entry(entry: int) -> Callable[[VhdxBuilder], None]:
    def change(child: VhdxBuilder) -> None:
        child.bat[child.bitmap_index(0)] = entry

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_without_bitmap, CorruptImage, r"the state of its sector bitmap \(BAT entry 4096\) is 0, expected 6"),
        (_bitmap_entry(bat_entry(7, 8 * MIB)), CorruptImage, "is 7, expected 6"),
        (_bitmap_entry(bat_entry(2, 8 * MIB)), CorruptImage, "is 2, expected 6"),
        (_bitmap_entry(bat_entry(6, 0)), CorruptImage, "its sector bitmap .* where the header section is"),
        (_bitmap_entry(bat_entry(6, 2 * MIB)), CorruptImage, "where the metadata region is"),
        (_bitmap_entry(bat_entry(6, 2**44 - MIB)), TruncatedImage, "its sector bitmap at offset 0xffffff00200"),
    ],
)
def test_a_partial_block_without_its_bitmap_fails_its_reads_only(
    change: Callable[[VhdxBuilder], None], error: type[ImageError], message: str
) -> None:
    child = child_disk()
    child.put(2, pattern(2), vhdx.PARTIALLY_PRESENT)
    child.put_bitmap(0, range(2 * 2048))
    change(child)
    image = opened(child)
    with pytest.raises(error, match=rf"payload block 2 \(BAT entry 2\).*{message}"):
        image.read_at(2 * MIB, 512)
    assert_same_bytes(image.read_at(0, 2 * MIB), parent_bytes()[: 2 * MIB])
    assert_same_bytes(image.read_at(3 * MIB, 7 * MIB), parent_bytes()[3 * MIB :])


def test_a_bat_that_ends_before_a_bitmap_s_entry_fails_the_blocks_that_need_it() -> None:
    # 131,072 entries fill 1 MiB of BAT; the last chunk's bitmap entry would be the first beyond.
    blocks = 131071 - 31
    child = child_disk(blocks * MIB)
    assert child.bitmap_index(31) == 131103
    child.regions[0] = (vhdx.BAT_GUID, child.bat_offset, MIB, 1)
    child.put(blocks - 1, b"last", vhdx.FULLY_PRESENT)
    child.put(blocks - 2, b"", vhdx.PARTIALLY_PRESENT)
    image = opened(child)
    assert image.read_at((blocks - 1) * MIB, 4) == b"last"
    with pytest.raises(CorruptImage, match=r"sector bitmap \(BAT entry 131103\) is 0"):
        image.read_at((blocks - 2) * MIB, 1)


@pytest.mark.parametrize(
    "linkages",
    [
        {"parent_linkage": f"{{{PARENT_GUID}}}"},
        {"parent_linkage": f"{{{PARENT_GUID}}}".upper()},
        {"parent_linkage": str(PARENT_GUID)},
        {"parent_linkage": f"{{{OTHER_GUID}}}", "parent_linkage2": f"{{{PARENT_GUID}}}"},
        {"parent_linkage2": f"{{{vhdx.ZERO_GUID}}}", "parent_linkage": f"{{{PARENT_GUID}}}"},
    ],
)
def test_the_parent_is_known_by_either_linkage(linkages: dict[str, str]) -> None:
    locator = pack_locator([*linkages.items(), ("relative_path", ".\\parent.vhdx")])
    assert_same_bytes(opened(child_disk(locator=locator)).read_at(0, MIB), parent_bytes()[:MIB])


@pytest.mark.parametrize(
    "linkages",
    [
        {"parent_linkage": f"{{{OTHER_GUID}}}"},
        {"parent_linkage": f"{{{OTHER_GUID}}}", "parent_linkage2": f"{{{OTHER_GUID}}}"},
    ],
)
def test_another_disk_is_refused_as_the_parent_and_closed(linkages: dict[str, str]) -> None:
    locator = pack_locator([*linkages.items(), ("relative_path", ".\\parent.vhdx")])
    source = parent_disk().source("parent.vhdx")
    files = ParentFiles(VhdxDriver(), {"parent.vhdx": lambda: source})
    expected = f"parent.vhdx is not its parent.*DataWriteGuid is {PARENT_GUID}, expected {OTHER_GUID}"
    with pytest.raises(ParentUnavailable, match=expected):
        VhdxDriver().open(child_disk(locator=locator).source(), files)
    assert source.is_closed


def test_a_zeroed_second_linkage_matches_no_parent() -> None:
    parent = VhdxBuilder(10 * MIB, data_write_guid=vhdx.ZERO_GUID)
    linkages = [("parent_linkage", str(PARENT_GUID)), ("parent_linkage2", str(vhdx.ZERO_GUID))]
    child = child_disk(locator=pack_locator([*linkages, ("relative_path", "parent.vhdx")]))
    with pytest.raises(ParentUnavailable, match="is not its parent"):
        opened(child, parent)


def test_the_parent_s_current_header_says_who_it_is() -> None:
    parent = parent_disk()
    parent.headers = [
        pack_header(sequence_number=5, data_write_guid=PARENT_GUID),
        pack_header(sequence_number=4, data_write_guid=CHILD_GUID),
    ]
    assert opened(child_disk(), parent).size == 10 * MIB
    parent.headers.reverse()
    assert opened(child_disk(), parent).size == 10 * MIB
    parent.headers[0] = pack_header(sequence_number=6, data_write_guid=CHILD_GUID)
    with pytest.raises(ParentUnavailable):
        opened(child_disk(), parent)


def test_a_parent_with_other_sectors_is_refused() -> None:
    with pytest.raises(ParentUnavailable, match=r"512 bytes, those of its parent parent\.vhdx have 4096"):
        opened(child_disk(), parent_disk(sector_size=4096))


def test_a_parent_of_another_format_is_refused() -> None:
    class Raw(ParentFiles):
        def open_parent(self, *_: object) -> DiskImage:
            return RawImage(MemorySource(bytes(10 * MIB), "parent.raw"))

    with pytest.raises(ParentUnavailable, match=r"parent\.raw is no VHDX"):
        VhdxDriver().open(child_disk().source(), Raw(VhdxDriver(), {}))


def test_without_its_parent_a_child_is_refused() -> None:
    with pytest.raises(ParentUnavailable, match=r"parent\.vhdx"):
        VhdxDriver().open(child_disk().source(), NoRelatedFiles())


@pytest.mark.parametrize(
    ("paths", "asked"),
    [
        ({"relative_path": ".\\p.vhdx"}, ("p.vhdx",)),
        ({"relative_path": "..\\..\\base\\p.vhdx"}, ("p.vhdx",)),
        ({"relative_path": "../base/p.vhdx"}, ("p.vhdx",)),
        ({"absolute_win32_path": "\\\\?\\C:\\a b\\p.vhdx"}, ("p.vhdx",)),
        ({"volume_path": "\\\\?\\Volume{26A21BDA}\\q.vhdx", "relative_path": "p.vhdx"}, ("p.vhdx", "q.vhdx")),
        (
            {"absolute_win32_path": "C:\\r.vhdx", "volume_path": "v\\q.vhdx", "relative_path": ".\\p.vhdx"},
            ("p.vhdx", "q.vhdx", "r.vhdx"),
        ),
        ({"relative_path": "p.vhdx", "volume_path": "x\\p.vhdx"}, ("p.vhdx",)),
        ({"relative_path": "..\\..\\..\\etc\\passwd"}, ("passwd",)),
        ({"relative_path": "/etc/passwd"}, ("passwd",)),
        ({"relative_path": "\\\\server\\share\\.."}, ()),
        ({"relative_path": "folder\\"}, ()),
        ({"relative_path": "C:p.vhdx", "volume_path": "a\\C:"}, ("p.vhdx",)),
        ({"relative_path": "a\nb\\p\0.vhdx", "volume_path": "x\\q.vhdx"}, ("q.vhdx",)),
        ({"relative_path": "n" * 256, "volume_path": "n" * 255}, ("n" * 255,)),
        ({"relative_path": "\u00e9" * 128, "volume_path": "\u00e9" * 127}, ("\u00e9" * 127,)),
        ({"other_key": "p.vhdx"}, ()),
        ({}, ()),
    ],
)
def test_the_parent_is_looked_for_by_its_name_alone_in_the_specification_s_order(
    paths: dict[str, str], asked: tuple[str, ...]
) -> None:
    child = child_disk(locator=pack_locator([("parent_linkage", str(PARENT_GUID)), *paths.items()]))
    files = ParentFiles(VhdxDriver(), {})
    with pytest.raises(ParentUnavailable):
        VhdxDriver().open(child.source(), files)
    assert files.asked == [(asked, "vhdx")]


_GOOD = [("parent_linkage", f"{{{PARENT_GUID}}}"), ("relative_path", "parent.vhdx")]


def _patched(at: int, data: bytes) -> bytes:
    locator = bytearray(pack_locator(_GOOD))
    locator[at : at + len(data)] = data
    return bytes(locator)


@pytest.mark.parametrize(
    ("locator", "error", "message"),
    [
        (pack_locator(_GOOD, kind=UUID(int=5)), UnsupportedFeature, "only VHDX parents"),
        (b"short", TruncatedImage, "VHDX parent locator"),
        (pack_locator(_GOOD, count=257), CorruptImage, "257 keys, at most 256"),
        (pack_locator(_GOOD, count=256), CorruptImage, "256 keys need more than its"),
        (pack_locator(_GOOD[1:]), CorruptImage, "it has no parent_linkage"),
        (pack_locator([*_GOOD, _GOOD[0]]), CorruptImage, "'parent_linkage' is there twice"),
        (pack_locator([("parent_linkage", "{xyz}")]), CorruptImage, "parent_linkage is '{xyz}', expected a GUID"),
        (pack_locator([("parent_linkage", "\x1b]0;x")]), CorruptImage, r"x1b\]0;x', expected a GUID"),
        (pack_locator([("parent_linkage", "{" + "0" * 32 + "}")]), CorruptImage, "expected a GUID"),
        (pack_locator([("Parent_Linkage", f"{{{PARENT_GUID}}}")]), CorruptImage, "it has no parent_linkage"),
        (pack_locator([*_GOOD, ("x", "\ud800")]), CorruptImage, "is not UTF-16"),
        (_patched(20, bytes(4)), CorruptImage, "28 bytes at 0x0"),
        (_patched(24, bytes(4)), CorruptImage, "at 0x0"),
        (_patched(28, bytes(2)), CorruptImage, "of 0 bytes"),
        (_patched(30, b"\x03\0"), CorruptImage, "of 3 bytes"),
        (_patched(24, b"\xff\xff\xff\xff"), CorruptImage, "at 0xffffffff"),
        (_patched(30, b"\xfe\xff"), CorruptImage, "of 65534 bytes"),
    ],
)
def test_a_locator_that_makes_no_sense_is_refused(locator: bytes, error: type[ImageError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        opened(child_disk(locator=locator))
    assert str(caught.value).isprintable()


def test_an_empty_locator_is_refused() -> None:
    child = child_disk()
    child.items[-1] = Item(vhdx.PARENT_LOCATOR, b"", offset=0)
    with pytest.raises(TruncatedImage, match="parent locator"):
        opened(child)


def test_closing_a_child_closes_its_parent() -> None:
    child, parent = child_disk().source(), parent_disk().source()
    VhdxDriver().open(child, ParentFiles(VhdxDriver(), {"parent.vhdx": lambda: parent})).close()
    assert child.is_closed
    assert parent.is_closed


def test_verify_examines_the_child_and_closes_its_parent() -> None:
    child, parent = child_disk(), parent_disk().source()
    child.put(0, pattern(0), vhdx.PARTIALLY_PRESENT)
    bitmap = child.put_bitmap(0, [1])
    files = ParentFiles(VhdxDriver(), {"parent.vhdx": lambda: parent})
    assert list(VhdxDriver().check(child.source(), files)) == []
    assert parent.is_closed
    child.set_state(1, vhdx.FULLY_PRESENT, bitmap)
    (finding,) = list(VhdxDriver().check(child.source(), files))
    assert "BAT entry 4096: its block" in finding.message
    child.set_state(1, vhdx.NOT_PRESENT)
    child.bat[child.bitmap_index(0)] = bat_entry(5, bitmap)
    rules = [finding.rule for finding in VhdxDriver().check(child.source(), files)]
    assert rules == ["vhdx-bat", "vhdx-block"]


def test_verify_examines_a_child_without_its_parent_and_says_so() -> None:
    child = child_disk()
    child.put(0, pattern(0), vhdx.PARTIALLY_PRESENT)
    child.put_bitmap(0, range(3))
    child.set_state(1, 4)
    findings = list(VhdxDriver().check(child.source(), NoRelatedFiles()))
    assert [(finding.rule, finding.severity) for finding in findings] == [
        ("vhdx-parent", Severity.ERROR),
        ("vhdx-block", Severity.ERROR),
    ]


def test_an_absent_parent_that_the_user_agreed_to_reads_as_zeros() -> None:
    class Agreed(ParentFiles):
        def open_parent(self, *_: object) -> DiskImage:
            return AbsentParent()

    child = child_disk()
    child.put(1, pattern(1), vhdx.PARTIALLY_PRESENT)
    child.put_bitmap(0, [2048 + 3])
    expected = bytearray(10 * MIB)
    expected[MIB + 1536 : MIB + 2048] = pattern(1)[1536:2048]
    image = VhdxDriver().open(child.source(), Agreed(VhdxDriver(), {}))
    assert image.info.has_parent
    assert_same_bytes(image.read_at(0, image.size), expected)
    assert_map(image, MemorySource(bytes(expected)))


def test_a_disk_that_is_its_own_parent_is_refused() -> None:
    child = child_disk(locator=locator_for(CHILD_GUID, "parent.vhdx"))
    with pytest.raises(CorruptImage, match="it names itself"):
        opened(child)


def test_a_child_that_cannot_be_opened_closes_its_parent() -> None:
    child, parent = child_disk(), parent_disk().source()
    child.regions[0] = (vhdx.BAT_GUID, 1 << 40, MIB, 1)
    with pytest.raises(TruncatedImage):
        VhdxDriver().open(child.source(), ParentFiles(VhdxDriver(), {"parent.vhdx": lambda: parent}))
    assert parent.is_closed


def test_reading_a_child_reads_little_of_its_parent() -> None:
    child, source = child_disk(), parent_disk().source()
    for block in range(10):
        child.put(block, pattern(block))
    image = VhdxDriver().open(child.source(), ParentFiles(VhdxDriver(), {"parent.vhdx": lambda: source}))
    assert isinstance(source, SparseSource)
    before = source.requests
    image.read_at(0, 10 * MIB)
    assert source.requests == before
    assert source.bytes_read < 512 * KIB
