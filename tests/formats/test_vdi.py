"""VDI: hand-packed images, what qemu-img and qemu-io write, differencing disks, and the corpus."""

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from diskfs.cli.map import joined, map_entries
from diskfs.sources.file import open_file
from diskfs_formats.driver import AbsentParent, DiskImage, Match, NoRelatedFiles, ProbeWindow
from diskfs_formats.errors import CorruptImage, ImageError, ParentUnavailable, TruncatedImage, UnsupportedFeature
from diskfs_formats.extents import ExtentKind
from diskfs_formats.findings import Severity
from diskfs_formats.raw import RawDriver
from diskfs_formats.source import ByteSource, MemorySource
from diskfs_formats.vdi import MAX_RUN, VdiDriver, VdiImage
from tests.conformance.promises import (
    SparseReference,
    assert_both_sides,
    assert_map,
    assert_past_the_end,
    assert_random_ranges,
    assert_ready_bytes,
    assert_threads,
    assert_whole,
)
from tests.helpers import CorpusRow, assert_same_bytes, corpus_rows
from tests.samples.vdi_builder import (
    DIFFERENCING,
    DYNAMIC,
    FIXED,
    FREE,
    HEADER_FIELDS,
    MIB,
    NO_UUID,
    SHUFFLED,
    UNDO,
    UUID_CREATE,
    UUID_MODIFY,
    ZERO,
    VdiBuilder,
    fixed_disk,
    make_fixed,
    make_shuffled,
    patched,
    stamped,
)

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed: run scripts/setup")

BLOCK = 4096
HOLE, ZEROED, DATA = ExtentKind.HOLE, ExtentKind.ZERO, ExtentKind.DATA
OTHER_UUID = UUID("99999999-8888-4777-8666-555555555555")


class Named:
    """RelatedFiles for tests: a chain that the user named, nearest first; remembers what was asked for."""

    def __init__(self, *images: bytes, driver: VdiDriver | RawDriver | None = None) -> None:
        self._images = images
        self._driver = driver or VdiDriver()
        self.asked: list[tuple[tuple[str, ...], str | None]] = []
        self.opened: list[DiskImage] = []

    def open(self, file_name: str, /) -> ByteSource:
        raise ParentUnavailable(f"{file_name!r} is not here")

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        self.asked.append((tuple(file_names), format_name))
        if not self._images:
            raise ParentUnavailable("no parent was named")
        source = MemorySource(self._images[0], "parent.vdi")
        self.opened.append(self._driver.open(source, Named(*self._images[1:])))
        return self.opened[-1]


def opened(data: bytes, related: Named | None = None) -> VdiImage:
    return VdiDriver().open(MemorySource(data, "disk.vdi"), related or NoRelatedFiles())


def kinds(image: VdiImage) -> list[tuple[int, int, ExtentKind]]:
    return [(extent.offset // BLOCK, extent.length // BLOCK, extent.kind) for extent in image.extents()]


def rules(data: bytes) -> list[tuple[str, Severity]]:
    source = MemorySource(data, "disk.vdi")
    return [(found.rule, found.severity) for found in VdiDriver().check(source, NoRelatedFiles())]


def small(*blocks: int, size: int = 8 * BLOCK, **choices: Any) -> VdiBuilder:
    """A disk of 4 KiB blocks, some of them stored, in the order given."""
    builder = VdiBuilder(size, block_size=BLOCK, **choices)
    for block in blocks:
        builder.stored[block] = stamped(BLOCK, block)
    return builder


def with_entry(data: bytes, block: int, entry: int) -> bytes:
    at = 512 + block * 4
    return data[:at] + entry.to_bytes(4, "little") + data[at + 4 :]


# ---- packed by hand ----


@pytest.fixture(scope="module", params=[*SHUFFLED, "fixed"])
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    folder = tmp_path_factory.mktemp("sample")
    return make_fixed(folder) if request.param == "fixed" else make_shuffled(request.param, folder)


def test_every_layout_keeps_every_promise(sample: tuple[bytes, bytes]) -> None:
    data, content = sample
    reference = MemorySource(content)
    assert_ready_bytes(opened(data), reference)
    image = opened(data)
    assert_whole(image, reference)
    assert_both_sides(image, reference, [image.info.unit_size, 512], limit=100)
    assert_random_ranges(image, reference)
    assert_map(image, reference)
    assert_past_the_end(image)
    assert_threads(opened(data), reference)
    assert rules(data) == []


def test_a_file_cut_anywhere_fails_or_is_right(sample: tuple[bytes, bytes]) -> None:
    data, content = sample
    for length in sorted({*range(0, 600, 37), *(len(data) * part // 17 for part in range(17)), len(data) - 1}):
        try:
            image = opened(data[:length])
        except CorruptImage:
            continue
        for offset in range(0, image.size, image.info.unit_size):
            count = min(image.info.unit_size, image.size - offset)
            try:
                found = image.read_at(offset, count)
            except TruncatedImage:
                continue
            assert_same_bytes(found, content[offset : offset + count])


def test_what_it_says_of_itself() -> None:
    for kind, variant in ((DYNAMIC, "dynamic"), (FIXED, "fixed")):
        info = opened(small(0, type=kind).build()).info
        assert (info.format, info.variant, info.virtual_size, info.unit_size) == ("vdi", variant, 8 * BLOCK, BLOCK)
        assert (info.has_parent, info.findings) == (False, ())


def test_it_is_known_by_its_signature_whatever_the_text_before_it() -> None:
    for text in (b"<<< QEMU VM Virtual Disk Image >>>\n", b"<<< innotek VirtualBox Disk Image >>>\n", b""):
        data = small(0, text=text).build()
        assert VdiDriver().probe(ProbeWindow.of(MemorySource(data))) is Match.SIGNATURE
        assert_same_bytes(opened(data).read_at(0, BLOCK), stamped(BLOCK, 0))
    for other in (b"", data[:67], data[:64] + bytes(512), bytes(1) + data):
        assert VdiDriver().probe(ProbeWindow.of(MemorySource(other))) is Match.NO


def test_blocks_that_were_never_written_and_discarded_ones_are_told_apart() -> None:
    builder = small(4, 2, 3)
    builder.zeroed = {5, 6}
    image = opened(builder.build())
    assert kinds(image) == [(0, 2, HOLE), (2, 2, DATA), (4, 1, DATA), (5, 2, ZEROED), (7, 1, HOLE)]
    assert [extent.stored.offset for extent in image.extents() if extent.stored] == [
        builder.block_offset(1),
        builder.block_offset(0),
    ]


@pytest.mark.parametrize("count", [MAX_RUN - 1, MAX_RUN, MAX_RUN + 1, 3 * MAX_RUN])
def test_a_run_of_any_length_is_one_extent(count: int) -> None:
    builder = small(*range(1, count + 1), size=(count + 2) * BLOCK)
    image = opened(builder.build())
    assert kinds(image) == [(0, 1, HOLE), (1, count, DATA), (count + 1, 1, HOLE)]
    content = b"".join(stamped(BLOCK, number) for number in range(1, count + 1))
    assert_same_bytes(image.read_at(BLOCK, count * BLOCK), content)


def test_a_map_of_many_pages_is_read_across_their_border() -> None:
    builder = small(4096, 4095, 4097, size=10_000 * BLOCK)
    image = opened(builder.build())
    content = stamped(BLOCK, 4095) + stamped(BLOCK, 4096) + stamped(BLOCK, 4097)
    assert_same_bytes(image.read_at(4095 * BLOCK - 1, 3 * BLOCK + 2), b"\0" + content + b"\0")
    assert kinds(image) == [
        (0, 4095, HOLE),
        (4095, 1, DATA),
        (4096, 1, DATA),
        (4097, 1, DATA),
        (4098, 10_000 - 4098, HOLE),
    ]


def test_with_bytes_before_each_block_every_block_is_apart() -> None:
    image = opened(small(0, 1, 2, extra=512).build())
    places = [extent.stored.offset for extent in image.extents() if extent.stored]
    assert places == [1024 + 512, 1024 + 512 + BLOCK + 512, 1024 + 512 + 2 * (BLOCK + 512)]
    assert_same_bytes(image.read_at(0, 3 * BLOCK), b"".join(stamped(BLOCK, number) for number in range(3)))


@pytest.mark.parametrize(("size", "shown"), [(BLOCK + 1, BLOCK + 512), (BLOCK + 511, BLOCK + 512), (1, 512)])
def test_a_size_within_a_sector_is_rounded_up_as_qemu_does(size: int, shown: int) -> None:
    image = opened(small(0, 1, size=size).build() if size > BLOCK else small(0, size=size).build())
    assert image.size == shown
    assert_same_bytes(image.read_at(0, shown), (stamped(BLOCK, 0) + stamped(BLOCK, 1))[:shown])
    assert [finding.rule for finding in image.info.findings] == ["vdi-partial-sector"]


def test_an_empty_disk_has_an_empty_map() -> None:
    image = opened(small(size=0).build())
    assert image.size == 0
    assert list(image.extents()) == []


def test_the_last_block_needs_only_what_the_disk_has_of_it() -> None:
    builder = small(0, 1, size=BLOCK + 512)
    data, end = builder.build(), builder.block_offset(1) + 512
    assert_same_bytes(opened(data[:end]).read_at(BLOCK, 512), stamped(BLOCK, 1)[:512])
    image = opened(data[: end - 1])
    assert_same_bytes(image.read_at(0, BLOCK), stamped(BLOCK, 0))
    with pytest.raises(TruncatedImage, match="block 1: block map entry is 0x1: 512 bytes at offset 0x1400"):
        image.read_at(BLOCK, 1)


# ---- the header ----


CORRUPT_FIELDS: list[tuple[dict[str, int | UUID], str]] = [
    ({"u32Signature": 0xBEDA107E}, "VDI header at offset 0x40"),
    ({"u32Type": 0}, "u32Type is 0"),
    ({"u32Type": 5}, "u32Type is 5"),
    ({"u32Type": 2**32 - 1}, "u32Type is 4294967295"),
    ({"cbHeader": 0x17F}, "cbHeader is 383"),
    ({"cbHeader": 0}, "cbHeader is 0"),
    ({"cbHeader": 512 - 72 + 1}, "offBlocks is 0x200, the header ends at 0x201"),
    ({"offBlocks": 0}, "offBlocks is 0x0, the header ends"),
    ({"offBlocks": 513}, "offBlocks is 0x201, expected a multiple"),
    ({"offData": 1025}, "offData is 0x401, expected a multiple"),
    ({"offData": 512}, "offData is 0x200, the block map ends at 0x220"),
    ({"cbBlock": 0}, "cbBlock is 0"),
    ({"cbBlock": 2048}, "cbBlock is 2048"),
    ({"cbBlock": 4097}, "cbBlock is 4097"),
    ({"cbBlock": 1 << 31}, "cbBlock is 2147483648"),
    ({"cBlocks": 0x1FFFFF81}, "cBlocks is 536870785"),
    ({"cBlocks": 7}, "cbDisk is 32768, but 7 blocks of 4096 bytes have fewer bytes"),
    ({"cbDisk": 8 * BLOCK + 1}, "cbDisk is 32769"),
    ({"cbDisk": 2**64 - 1}, "cbDisk is 18446744073709551615"),
    ({"cBlocksAllocated": 9}, "cBlocksAllocated is 9"),
    ({"uuidLinkage": OTHER_UUID}, "a dynamic image that names a parent"),
    ({"uuidParentModify": OTHER_UUID}, "a dynamic image that names a parent"),
    ({"u32Type": DIFFERENCING}, "uuidLinkage is 0"),
]


@pytest.mark.parametrize(("fields", "message"), CORRUPT_FIELDS)
def test_a_header_that_contradicts_itself_is_refused(fields: dict[str, int | UUID], message: str) -> None:
    with pytest.raises(CorruptImage) as caught:
        opened(patched(small(0).build(), **fields))
    assert message in str(caught.value)
    assert str(caught.value).startswith("disk.vdi: ")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"u32Version": 1}, "version 0x00000001 is not read"),
        ({"u32Version": 0x00020000}, "version 0x00020000"),
        ({"u32Type": UNDO}, "an undo image"),
        ({"cbSector": 4096}, "sectors of 4096 bytes"),
        ({"cbSector": 0}, "sectors of 0 bytes"),
        ({"cbBlockExtra": 1}, "cbBlockExtra is 1"),
        ({"cbBlockExtra": 2**32 - 1}, "cbBlockExtra is 4294967295"),
    ],
)
def test_what_is_not_read_is_refused_by_name(fields: dict[str, int | UUID], message: str) -> None:
    with pytest.raises(UnsupportedFeature, match=message):
        opened(patched(small(0).build(), **fields))


def test_the_file_must_have_the_whole_map_and_may_end_with_it() -> None:
    data = small().build()
    assert opened(data[: 512 + 32]).read_at(0, 8 * BLOCK) == bytes(8 * BLOCK)
    with pytest.raises(TruncatedImage, match="block map at offset 0x200 needs 32 bytes, the file ends at 0x21f"):
        opened(data[: 512 + 31])


def test_the_flags_and_the_geometry_mean_nothing_to_a_reader() -> None:
    data = patched(small(0).build(), fFlags=2**32 - 1)
    data = data[:348] + b"\xff" * 12 + data[360:]
    assert_same_bytes(opened(data).read_at(0, BLOCK), stamped(BLOCK, 0))


# ---- damaged maps ----


@pytest.mark.parametrize("entry", [3, 4, 2**31, ZERO - 1])
def test_an_entry_past_the_allocated_blocks_fails_its_block_alone(entry: int) -> None:
    data = with_entry(small(0, 1, 2).build(), 1, entry)
    image = opened(data)
    with pytest.raises(CorruptImage, match=rf"block 1: block map entry is {entry:#x}, but only 3 blocks"):
        image.read_at(BLOCK, 1)
    for block in (0, 2):
        assert_same_bytes(image.read_at(block * BLOCK, BLOCK), stamped(BLOCK, block))
    assert ("vdi-block", Severity.ERROR) in rules(data)


def test_a_run_ends_with_the_allocated_blocks() -> None:
    data = patched(small(0, 1, 2, 3).build(), cBlocksAllocated=2)
    image = opened(data)
    assert_same_bytes(image.read_at(0, 2 * BLOCK), stamped(BLOCK, 0) + stamped(BLOCK, 1))
    with pytest.raises(CorruptImage, match="block 2: block map entry is 0x2, but only 2 blocks"):
        image.read_at(0, 3 * BLOCK)


def test_verify_names_blocks_that_are_used_twice() -> None:
    data = with_entry(small(0, 1, 2).build(), 5, 1)
    source = MemorySource(data, "disk.vdi")
    (found,) = VdiDriver().check(source, NoRelatedFiles())
    assert (found.rule, found.severity) == ("vdi-block-map", Severity.ERROR)
    assert "block 5: block map entry is 0x1, which another block uses too" in found.message


def test_verify_names_a_fixed_image_that_is_out_of_order() -> None:
    builder, content = fixed_disk(4 * BLOCK, block_size=BLOCK)
    builder.stored = {block: builder.stored[block] for block in (0, 2, 1, 3)}
    data = builder.build()
    assert_same_bytes(opened(data).read_at(0, 4 * BLOCK), content)
    assert rules(data) == [("vdi-fixed-order", Severity.WARNING)]


def test_a_fixed_image_may_have_free_blocks() -> None:
    image = opened(with_entry(fixed_disk(4 * BLOCK, block_size=BLOCK)[0].build(), 2, FREE))
    assert kinds(image) == [(0, 2, DATA), (2, 1, HOLE), (3, 1, DATA)]


# ---- differencing ----


def child(**choices: Any) -> VdiBuilder:
    """A child of `small(0, 1, 2, 3)` with block 1 its own and block 2 discarded."""
    choices = {"uuid_linkage": UUID_CREATE, "uuid_parent_modify": UUID_MODIFY} | choices
    builder = VdiBuilder(8 * BLOCK, type=DIFFERENCING, block_size=BLOCK, uuid_create=OTHER_UUID, **choices)
    builder.stored[1] = b"\x11" * BLOCK
    builder.zeroed = {2}
    return builder


def test_a_differencing_disk_has_what_it_lacks_from_its_parent() -> None:
    related = Named(small(3, 0, 1, 2).build())
    image = opened(child().build(), related)
    assert related.asked == [((), "vdi")]
    assert (image.info.variant, image.info.has_parent, image.parent) == ("differencing", True, related.opened[0])
    expected = stamped(BLOCK, 0) + b"\x11" * BLOCK + bytes(BLOCK) + stamped(BLOCK, 3) + bytes(4 * BLOCK)
    reference = MemorySource(expected)
    assert_whole(image, reference)
    assert_both_sides(image, reference, [BLOCK])
    assert_map(image, reference)
    assert_ready_bytes(image, reference)
    assert [(extent.kind, extent.depth) for extent in image.extents()] == [
        (DATA, 1),
        (DATA, 0),
        (ZEROED, 0),
        (DATA, 1),
        (HOLE, 1),
    ]


def test_a_chain_of_three_is_read() -> None:
    top = VdiBuilder(8 * BLOCK, type=DIFFERENCING, block_size=BLOCK, uuid_linkage=OTHER_UUID)
    top.stored[2] = b"\x22" * BLOCK
    image = opened(top.build(), Named(child().build(), small(0, 1, 2, 3).build()))
    expected = stamped(BLOCK, 0) + b"\x11" * BLOCK + b"\x22" * BLOCK + stamped(BLOCK, 3) + bytes(4 * BLOCK)
    assert_same_bytes(image.read_at(0, 8 * BLOCK), expected)


@pytest.mark.parametrize("parent_size", [BLOCK - 512, BLOCK, 3 * BLOCK + 512, 12 * BLOCK])
def test_a_parent_may_have_another_size(parent_size: int) -> None:
    parent = small(*range(-(-parent_size // BLOCK)), size=parent_size)
    image = opened(child().build(), Named(parent.build()))
    below = b"".join(stamped(BLOCK, block) for block in range(8))[:parent_size].ljust(8 * BLOCK, b"\0")
    expected = below[:BLOCK] + b"\x11" * BLOCK + bytes(BLOCK) + below[3 * BLOCK :]
    assert_whole(image, MemorySource(expected))
    assert_both_sides(image, MemorySource(expected), [BLOCK])


@pytest.mark.parametrize(
    ("parent", "message"),
    [
        ({"uuidCreate": OTHER_UUID}, "is not its parent: the UUID is 99999999-8888-4777-8666-555555555555, expected 0"),
        ({"uuidModify": OTHER_UUID}, "was changed since"),
        ({"uuidModify": NO_UUID}, "was changed since"),
    ],
)
def test_a_parent_of_another_identity_is_refused_and_closed(
    parent: dict[str, UUID], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []
    monkeypatch.setattr(MemorySource, "close", lambda self: closed.append(self.name))
    with pytest.raises(ParentUnavailable, match=message):
        opened(child().build(), Named(patched(small(0).build(), **parent)))
    assert closed == ["parent.vdi"]


def test_a_child_that_does_not_know_its_parent_s_state_takes_any() -> None:
    related = Named(patched(small(0).build(), uuidModify=OTHER_UUID))
    image = opened(child(uuid_parent_modify=NO_UUID).build(), related)
    assert_same_bytes(image.read_at(0, BLOCK), stamped(BLOCK, 0))


def test_a_parent_that_is_no_vdi_is_refused() -> None:
    with pytest.raises(ParentUnavailable, match=r"its parent parent\.vdi is no VDI"):
        opened(child().build(), Named(bytes(BLOCK), driver=RawDriver()))


def test_without_its_parent_a_differencing_disk_is_refused_never_zeros() -> None:
    with pytest.raises(ParentUnavailable):
        opened(child().build())


def test_a_parent_that_the_user_agreed_to_do_without_reads_as_zero() -> None:
    class Absent(Named):
        def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
            return AbsentParent()

    image = opened(child().build(), Absent())
    assert_same_bytes(image.read_at(0, 8 * BLOCK), bytes(BLOCK) + b"\x11" * BLOCK + bytes(6 * BLOCK))


def test_a_disk_that_is_its_own_parent_is_refused_before_anything_is_opened() -> None:
    related = Named()
    with pytest.raises(CorruptImage, match="names itself"):
        opened(child(uuid_linkage=OTHER_UUID).build(), related)
    assert related.asked == []


def test_verify_examines_a_child_whose_parent_is_not_there() -> None:
    data = with_entry(child().build(), 4, 7)
    assert rules(data) == [("vdi-parent", Severity.ERROR), ("vdi-block", Severity.ERROR)]


# ---- what qemu writes ----


def qemu_map(path: Path) -> list[dict[str, Any]]:
    """Return qemu's map without `present`: qemu has no parents for VDI, and calls what was never written present."""
    command = ["qemu-img", "map", "-f", "vdi", "--output=json", str(path)]
    entries = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [{key: value for key, value in entry.items() if key != "present"} for entry in entries]


@needs_qemu
@pytest.mark.parametrize("size", [5 * MIB, 11 * MIB + 512, 30 * MIB + 777 * 512])
def test_what_qemu_wrote_in_a_shuffled_order_reads_the_same_and_has_the_same_map(size: int, tmp_path: Path) -> None:
    path, raw = tmp_path / "disk.vdi", tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vdi", str(path), str(size)], check=True)
    content = bytearray(size)
    blocks = [block for block in range(-(-size // MIB)) if block % 4 != 1]
    random.Random(size).shuffle(blocks)
    commands = []
    for number, block in enumerate(blocks):
        offset = min(block * MIB + number % 3 * 512, size - 512)
        length, pattern = min(70_000 * (number + 1) // 512 * 512 % MIB + 512, size - offset), number + 1
        commands += ["-c", f"write -q -P {pattern} {offset} {length}"]
        content[offset : offset + length] = bytes([pattern]) * length
    subprocess.run(["qemu-io", "-f", "vdi", *commands, str(path)], check=True, capture_output=True)
    subprocess.run(["qemu-img", "convert", "-f", "vdi", "-O", "raw", str(path), str(raw)], check=True)
    assert_same_bytes(raw.read_bytes(), content)
    image, reference = VdiDriver().open(open_file(path), NoRelatedFiles()), MemorySource(bytes(content))
    assert image.info.variant == "dynamic"
    assert_whole(image, reference)
    assert_both_sides(image, reference, [MIB, 512], limit=60)
    assert_random_ranges(image, reference)
    assert_map(image, reference)
    assert_threads(image, reference)
    ours = [{key: entry[key] for key in entry if key not in {"present", "compressed"}} for entry in _map(image)]
    assert ours == qemu_map(path)
    assert list(VdiDriver().check(open_file(path), NoRelatedFiles())) == []
    image.close()


def _map(image: VdiImage) -> list[dict[str, Any]]:
    return list(joined(map_entries(image.extents())))


@needs_qemu
def test_a_fixed_image_of_qemu_is_one_run(tmp_path: Path) -> None:
    content = stamped(5 * MIB + 512, 4)
    (tmp_path / "disk.raw").write_bytes(content)
    command = ["qemu-img", "convert", "-f", "raw", "-O", "vdi", "-o", "static=on", "disk.raw", "disk.vdi"]
    subprocess.run(command, check=True, cwd=tmp_path)
    path = tmp_path / "disk.vdi"
    image = VdiDriver().open(open_file(path), NoRelatedFiles())
    assert image.info.variant == "fixed"
    assert_whole(image, MemorySource(content))
    assert [(entry["offset"], entry["length"]) for entry in _map(image)] == [(1024, len(content))]
    assert list(VdiDriver().check(open_file(path), NoRelatedFiles())) == []
    image.close()


@needs_qemu
def test_qemu_reads_the_same_from_what_is_packed_by_hand(tmp_path: Path) -> None:
    data, content = make_shuffled("dynamic, 1 MiB blocks", tmp_path)
    path, raw = tmp_path / "disk.vdi", tmp_path / "disk.raw"
    path.write_bytes(data)
    subprocess.run(["qemu-img", "convert", "-f", "vdi", "-O", "raw", str(path), str(raw)], check=True)
    assert_same_bytes(raw.read_bytes(), content)


@needs_qemu
def test_a_disk_of_many_terabytes_is_mapped_and_read(tmp_path: Path) -> None:
    path, size = tmp_path / "disk.vdi", 4 << 40
    subprocess.run(["qemu-img", "create", "-q", "-f", "vdi", str(path), str(size)], check=True)
    places = {0: 1, 1 << 40: 2, size - 4096: 3}
    commands = [word for offset, byte in places.items() for word in ("-c", f"write -q -P {byte} {offset} 4096")]
    subprocess.run(["qemu-io", "-f", "vdi", *commands, str(path)], check=True, capture_output=True)
    image = VdiDriver().open(open_file(path), NoRelatedFiles())
    reference = SparseReference(size, {offset: bytes([byte]) * 4096 for offset, byte in places.items()})
    for offset in places:
        start = max(offset - 512, 0)
        length = min(8192, size - start)
        assert_same_bytes(image.read_at(start, length), reference.read_at(start, length))
    assert [extent.offset for extent in image.extents() if extent.kind is DATA] == [0, 1 << 40, size - MIB]
    image.close()


# ---- the corpus ----

ROWS = [row for row in corpus_rows() if row.path.endswith(".vdi")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_hostile_images_of_the_corpus_are_refused(row: CorpusRow, corpus: Path) -> None:
    assert row.hostile
    with pytest.raises(ImageError):
        VdiDriver().open(open_file(corpus / row.path), NoRelatedFiles())


def test_the_fields_that_tests_patch_are_where_the_sheet_has_them() -> None:
    data = small(0, type=FIXED).build()
    for name, value in (("u32Type", 2), ("cbDisk", 8 * BLOCK), ("cbBlock", BLOCK), ("cBlocks", 8)):
        offset, code = HEADER_FIELDS[name]
        size = 8 if code == "Q" else 4
        assert int.from_bytes(data[offset : offset + size], "little") == value
