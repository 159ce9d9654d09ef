"""The header section and the metadata: which copy counts, and what is refused."""

import struct
from collections.abc import Callable
from uuid import UUID

import pytest

from diskfs_formats.driver import Match, NoRelatedFiles, ProbeWindow
from diskfs_formats.errors import (
    ChecksumMismatch,
    CorruptImage,
    DiskfsError,
    ImageError,
    TruncatedImage,
    UnsupportedFeature,
)
from diskfs_formats.source import MemorySource
from diskfs_formats.vhdx import VhdxDriver
from diskfs_formats.vhdx.checksum import structure_checksum
from diskfs_formats.vhdx.image import VhdxImage
from tests.samples import vhdx_builder as vhdx
from tests.samples.vhdx_builder import KIB, MIB, TIB, Item, SparseSource, VhdxBuilder, pack_header, pack_region_table

OTHER = UUID("77777777-2222-3333-4444-555555555555")


def opened(builder: VhdxBuilder) -> VhdxImage:
    return VhdxDriver().open(builder.source(), NoRelatedFiles())


def small() -> VhdxBuilder:
    return VhdxBuilder(4 * MIB)


def rules(image: VhdxImage) -> list[str]:
    return [finding.rule for finding in image.info.findings]


def test_the_checksum_is_crc32c_with_its_own_field_as_zero() -> None:
    # "123456789" gives 0xE3069283; with bytes 4 to 8 blanked the value is that of the blanked text.
    assert structure_checksum(b"1234\0\0\0\09") == vhdx.crc32c(b"1234\0\0\0\09")
    assert structure_checksum(b"123456789") == vhdx.crc32c(b"1234\0\0\0\09")
    large = bytes(range(256)) * 3000
    assert structure_checksum(large) == vhdx.crc32c(large[:4] + bytes(4) + large[8:])


@pytest.mark.parametrize(
    ("head", "match"),
    [(b"vhdxfile", Match.SIGNATURE), (b"vhdxfil", Match.NO), (b"xvhdxfile", Match.NO), (b"", Match.NO)],
)
def test_a_vhdx_is_known_by_its_signature(head: bytes, match: Match) -> None:
    assert VhdxDriver().probe(ProbeWindow.of(MemorySource(head))) is match


def test_the_facts_of_an_image_are_those_of_its_metadata() -> None:
    builder = VhdxBuilder(9 * MIB, block_size=2 * MIB, sector_size=4096, parameter_bits=1)
    info = opened(builder).info
    assert (info.format, info.variant, info.virtual_size) == ("vhdx", "fixed", 9 * MIB)
    assert (info.sector_size, info.unit_size, info.has_parent, info.findings) == (4096, 2 * MIB, False, ())
    assert opened(VhdxBuilder(9 * MIB)).info.variant == "dynamic"


@pytest.mark.parametrize(("first", "second", "current"), [(1, 2, 1), (2, 1, 0), (0, 2**64 - 1, 1), (2**63, 2**62, 0)])
def test_the_header_with_the_larger_sequence_number_is_current(first: int, second: int, current: int) -> None:
    builder = small()
    guids = (vhdx.DATA_WRITE_GUID, OTHER)
    builder.headers = [
        pack_header(sequence_number=number, data_write_guid=guid)
        for number, guid in zip((first, second), guids, strict=True)
    ]
    image = opened(builder)
    assert image.data_write_guid == guids[current]
    assert rules(image) == []


@pytest.mark.parametrize("damaged", [0, 1])
def test_a_damaged_header_leaves_the_other_one_and_is_reported(damaged: int) -> None:
    builder = small()
    builder.headers[damaged] = builder.headers[damaged][:100] + b"\1" + builder.headers[damaged][101:]
    image = opened(builder)
    assert rules(image) == ["vhdx-header"]
    assert f"{(64 * KIB, 128 * KIB)[damaged]:#x}: CRC-32C" in image.info.findings[0].message


def test_two_damaged_headers_are_refused() -> None:
    builder = small()
    builder.headers = [header[:20] + b"\1" + header[21:] for header in builder.headers]
    with pytest.raises(ChecksumMismatch, match=r"header at offset 0x10000: CRC-32C 0x.{8}, expected 0x.{8}"):
        opened(builder)


def test_identical_headers_as_disk2vhd_writes_them_are_taken() -> None:
    builder = small()
    builder.headers[1] = builder.headers[0]
    assert opened(builder).size == 4 * MIB


def test_different_headers_with_one_sequence_number_are_refused() -> None:
    builder = small()
    builder.headers = [pack_header(sequence_number=3), pack_header(sequence_number=3, reserved=b"\1")]
    with pytest.raises(CorruptImage, match="same sequence number, 3: neither is current"):
        opened(builder)


@pytest.mark.parametrize("damaged", [192 * KIB, 256 * KIB])
def test_a_damaged_region_table_leaves_the_other_one_and_is_reported(damaged: int) -> None:
    builder = small()
    table = pack_region_table(builder.regions)
    builder.pieces[damaged] = table[:40] + b"\xff" + table[41:]
    image = opened(builder)
    assert rules(image) == ["vhdx-region-table"]
    assert f"region table at offset {damaged:#x}: CRC-32C" in image.info.findings[0].message


def test_two_damaged_region_tables_are_refused() -> None:
    builder = small()
    builder.pieces[192 * KIB] = builder.pieces[256 * KIB] = b"regi"
    with pytest.raises(ChecksumMismatch, match="region table at offset 0x30000"):
        opened(builder)


def test_whole_region_tables_that_differ_are_refused() -> None:
    builder = small()
    moved = [(vhdx.BAT_GUID, 9 * MIB, MIB, 1), builder.regions[1]]
    builder.pieces[256 * KIB] = pack_region_table(moved)
    with pytest.raises(CorruptImage, match="both whole and differ"):
        opened(builder)


def test_region_tables_may_list_the_same_regions_in_any_order() -> None:
    builder = small()
    builder.pieces[256 * KIB] = pack_region_table(builder.regions[::-1])
    assert opened(builder).size == 4 * MIB


def test_regions_that_qemu_does_not_mark_as_required_are_taken() -> None:
    builder = small()
    builder.regions = [(guid, offset, length, 0) for guid, offset, length, _ in builder.regions]
    assert opened(builder).size == 4 * MIB


def test_an_unknown_region_is_passed_over_unless_it_is_required() -> None:
    builder = small()
    builder.regions.append((vhdx.UNKNOWN_GUID, 64 * MIB, MIB, 0))
    assert opened(builder).size == 4 * MIB
    builder.regions[-1] = (vhdx.UNKNOWN_GUID, 64 * MIB, MIB, 1)
    with pytest.raises(UnsupportedFeature, match=f"region {vhdx.UNKNOWN_GUID} is marked as required"):
        opened(builder)


def test_a_region_table_is_full_at_2047_entries() -> None:
    builder = small()
    builder.regions += [(UUID(int=number), (100 + number) * MIB, MIB, 0) for number in range(1, 2046)]
    assert len(builder.regions) == 2047
    assert opened(builder).size == 4 * MIB
    builder.regions.append((UUID(int=5000), 9000 * MIB, MIB, 0))
    with pytest.raises(CorruptImage, match="2048 entries, at most 2047"):
        opened(builder)


def _region(index: int, offset: int, length: int) -> Callable[[VhdxBuilder], None]:
    def change(builder: VhdxBuilder) -> None:
        guid, *_ = builder.regions[index]
        builder.regions[index] = (guid, offset, length, 1)

    return change


def _without_region(index: int) -> Callable[[VhdxBuilder], None]:
    def change(builder: VhdxBuilder) -> None:
        del builder.regions[index]

    return change


def _headers(**fields: int) -> Callable[[VhdxBuilder], None]:
    def change(builder: VhdxBuilder) -> None:
        builder.headers = [pack_header(sequence_number=8, **fields), builder.headers[0]]  # type: ignore[arg-type]  # numbers only

    return change


def _item(guid: UUID, data: bytes) -> Callable[[VhdxBuilder], None]:
    def change(builder: VhdxBuilder) -> None:
        builder.item(guid).data = data

    return change


def _added(item: Item) -> Callable[[VhdxBuilder], None]:
    return lambda builder: builder.items.append(item)


def _removed(guid: UUID) -> Callable[[VhdxBuilder], None]:
    return lambda builder: builder.items.remove(builder.item(guid))


def _placed(guid: UUID, offset: int | None, length: int | None) -> Callable[[VhdxBuilder], None]:
    def change(builder: VhdxBuilder) -> None:
        builder.item(guid).offset, builder.item(guid).length = offset, length

    return change


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _u64(value: int) -> bytes:
    return struct.pack("<Q", value)


REFUSED: list[tuple[str, Callable[[VhdxBuilder], None], type[ImageError], str]] = [
    ("header version", _headers(version=2), UnsupportedFeature, "version 2 is not known"),
    ("log at no MiB", _headers(log_offset=MIB + 4096), CorruptImage, "multiples of 1 MiB"),
    ("log in the header section", _headers(log_offset=0), CorruptImage, "from 1 MiB on"),
    ("log of no MiB", _headers(log_length=4096), CorruptImage, "multiples of 1 MiB"),
    ("BAT missing", _without_region(0), CorruptImage, "no entry for the BAT"),
    ("metadata missing", _without_region(1), CorruptImage, "no entry for the metadata region"),
    (
        "BAT twice",
        lambda b: b.regions.append((vhdx.BAT_GUID, 9 * MIB, MIB, 1)),
        CorruptImage,
        "two entries for the BAT",
    ),
    ("BAT at no MiB", _region(0, 3 * MIB + 1, MIB), CorruptImage, "multiples of 1 MiB"),
    ("BAT in the header section", _region(0, 0, MIB), CorruptImage, "from 1 MiB on"),
    ("BAT of no MiB", _region(0, 3 * MIB, MIB + 8), CorruptImage, "multiples of 1 MiB"),
    ("BAT over the log", _region(0, MIB, MIB), CorruptImage, "the BAT .* and the log .* overlap"),
    ("BAT over the metadata", _region(0, 2 * MIB, MIB), CorruptImage, "overlap"),
    ("metadata into the BAT", _region(1, 2 * MIB, 2 * MIB), CorruptImage, "metadata region .* and the BAT .* overlap"),
    ("BAT past the end", _region(0, 2**63, MIB), TruncatedImage, "BAT at offset 0x8000000000000000"),
    (
        "metadata past the end",
        _region(1, 2**64 - MIB, MIB),
        TruncatedImage,
        "metadata region at offset 0xfffffffffff00000",
    ),
    ("BAT of nothing", _region(0, 3 * MIB, 0), CorruptImage, "its region has 0 bytes"),
    ("metadata of nothing", _region(1, 2 * MIB, 0), CorruptImage, "its length is 0"),
    ("no metadata", lambda b: b.pieces.update({b.metadata_offset: b""}), CorruptImage, "VHDX metadata table"),
    (
        "metadata table too full",
        lambda b: b.pieces.update({b.metadata_offset: vhdx.pack_metadata(b.items, count=2048)}),
        CorruptImage,
        "2048 entries, at most 2047",
    ),
    (
        "unknown required",
        _added(Item(vhdx.UNKNOWN_GUID, b"1234")),
        UnsupportedFeature,
        f"system item {vhdx.UNKNOWN_GUID}",
    ),
    (
        "required of the user under a known name",
        _added(Item(vhdx.VIRTUAL_DISK_SIZE, _u64(MIB), 5)),
        UnsupportedFeature,
        f"user item {vhdx.VIRTUAL_DISK_SIZE}",
    ),
    (
        "required of the user",
        _added(Item(vhdx.UNKNOWN_GUID, b"1", 5)),
        UnsupportedFeature,
        f"user item {vhdx.UNKNOWN_GUID}",
    ),
    (
        "size twice",
        _added(Item(vhdx.VIRTUAL_DISK_SIZE, _u64(MIB), 6)),
        CorruptImage,
        "two entries for the virtual disk size",
    ),
    ("no parameters", _removed(vhdx.FILE_PARAMETERS), CorruptImage, "no file parameters"),
    ("no size", _removed(vhdx.VIRTUAL_DISK_SIZE), CorruptImage, "no virtual disk size"),
    ("no id", _removed(vhdx.VIRTUAL_DISK_ID), CorruptImage, "no virtual disk ID"),
    ("no logical sector size", _removed(vhdx.LOGICAL_SECTOR_SIZE), CorruptImage, "no logical sector size"),
    ("no physical sector size", _removed(vhdx.PHYSICAL_SECTOR_SIZE), CorruptImage, "no physical sector size"),
    (
        "a short size",
        _item(vhdx.VIRTUAL_DISK_SIZE, _u32(MIB)),
        CorruptImage,
        "virtual disk size has 4 bytes, expected 8",
    ),
    ("a size of 0", _item(vhdx.VIRTUAL_DISK_SIZE, _u64(0)), CorruptImage, "virtual disk size is 0"),
    ("an odd size", _item(vhdx.VIRTUAL_DISK_SIZE, _u64(MIB + 511)), CorruptImage, "multiple of 512"),
    ("a size over 64 TiB", _item(vhdx.VIRTUAL_DISK_SIZE, _u64(64 * TIB + 512)), CorruptImage, "virtual disk size is"),
    ("blocks of 0", _item(vhdx.FILE_PARAMETERS, _u64(0)), CorruptImage, "block size is 0"),
    ("blocks of 512 KiB", _item(vhdx.FILE_PARAMETERS, _u64(MIB // 2)), CorruptImage, "block size is 524288"),
    ("blocks of 512 MiB", _item(vhdx.FILE_PARAMETERS, _u64(512 * MIB)), CorruptImage, "block size is 536870912"),
    ("blocks of 3 MiB", _item(vhdx.FILE_PARAMETERS, _u64(3 * MIB)), CorruptImage, "expected a power of two"),
    ("sectors of 0", _item(vhdx.LOGICAL_SECTOR_SIZE, _u32(0)), CorruptImage, "logical sector size is 0"),
    ("sectors of 1024", _item(vhdx.LOGICAL_SECTOR_SIZE, _u32(1024)), CorruptImage, "expected 512 or 4096"),
    ("physical sectors of 0", _item(vhdx.PHYSICAL_SECTOR_SIZE, _u32(0)), CorruptImage, "physical sector size is 0"),
    (
        "an item in the table",
        _placed(vhdx.VIRTUAL_DISK_SIZE, 65528, 8),
        CorruptImage,
        "the virtual disk size has 8 bytes at 0xfff8",
    ),
    (
        "an item past its region",
        _placed(vhdx.VIRTUAL_DISK_SIZE, MIB - 4, 8),
        CorruptImage,
        "between 0x10000 and 0x100000",
    ),
    (
        "an item of 2 MiB",
        _added(Item(vhdx.UNKNOWN_GUID, b"", 0, 70000, 2 * MIB)),
        CorruptImage,
        "expected 1 to 1048576",
    ),
    (
        "an item of nothing somewhere",
        _added(Item(vhdx.UNKNOWN_GUID, b"", 0, 70000, 0)),
        CorruptImage,
        "has 0 bytes at 0x11170",
    ),
    ("an item over another", _placed(vhdx.VIRTUAL_DISK_SIZE, 65536 + 4, 8), CorruptImage, "overlap"),
    (
        "a parent and no locator",
        _item(vhdx.FILE_PARAMETERS, struct.pack("<II", MIB, 2)),
        CorruptImage,
        "there is no parent locator",
    ),
    (
        "a locator and no parent",
        _added(Item(vhdx.PARENT_LOCATOR, b"x" * 40)),
        CorruptImage,
        "there is a parent locator",
    ),
    (
        "a BAT too short for the disk",
        lambda b: setattr(b.item(vhdx.VIRTUAL_DISK_SIZE), "data", _u64(64 * TIB)),
        CorruptImage,
        "its region has 1048576 bytes, a disk of 70368744177664 bytes in blocks of 1048576 needs",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_contradicts_the_specification_is_refused_by_name(
    change: Callable[[VhdxBuilder], None], error: type[ImageError], message: str
) -> None:
    builder = small()
    change(builder)
    with pytest.raises(error, match=message) as caught:
        opened(builder)
    assert type(caught.value) is error
    assert str(caught.value).startswith("sparse.vhdx: ")
    assert "\n" not in str(caught.value)


def test_a_log_that_is_not_there_at_all_is_no_matter_when_there_is_nothing_to_replay() -> None:
    builder = small()
    _headers(log_offset=0, log_length=0)(builder)
    assert opened(builder).size == 4 * MIB


def test_an_unknown_log_version_matters_only_when_there_is_a_log_to_replay() -> None:
    builder = small()
    _headers(log_version=1)(builder)
    assert opened(builder).size == 4 * MIB
    builder.headers[0] = pack_header(sequence_number=8, log_version=1, log_guid=vhdx.LOG_GUID)
    with pytest.raises(UnsupportedFeature, match="log of version 1"):
        opened(builder)


def test_metadata_items_may_be_in_any_order_and_unknown_ones_are_passed_over() -> None:
    builder = small()
    user_size = Item(vhdx.VIRTUAL_DISK_SIZE, b"the user's own", vhdx.IS_USER)
    empty = Item(UUID(int=5), b"", 0, 0, 0)
    builder.items = [Item(vhdx.UNKNOWN_GUID, b"?" * 100, 0), empty, *builder.items[::-1], user_size]
    assert opened(builder).size == 4 * MIB


@pytest.mark.parametrize(("user_items", "is_taken"), [(1024, True), (1025, False)])
def test_at_most_1024_items_are_the_user_s(user_items: int, is_taken: bool) -> None:
    builder = small()
    builder.items += [Item(UUID(int=number), b"u", vhdx.IS_USER) for number in range(1, user_items + 1)]
    if is_taken:
        assert opened(builder).size == 4 * MIB
    else:
        with pytest.raises(CorruptImage, match="over 1024 user items"):
            opened(builder)


@pytest.mark.parametrize("size", [512, MIB - 512, MIB, MIB + 512, 64 * TIB])
def test_the_smallest_and_the_largest_disk_are_taken(size: int) -> None:
    builder = VhdxBuilder(size, block_size=256 * MIB)
    assert opened(builder).size == size


def test_opening_asks_for_little() -> None:
    source = small().source()
    VhdxDriver().open(source, NoRelatedFiles())
    assert source.requests <= 16
    assert source.bytes_read < 512 * KIB


CUTS = (0, 7, 8, 519, 520, 64 * KIB, 68 * KIB, 132 * KIB - 1, 192 * KIB, 256 * KIB - 1, 256 * KIB, 320 * KIB, MIB)
CUTS_IN_REGIONS = (2 * MIB, 2 * MIB + 64 * KIB, 2 * MIB + 64 * KIB + 39, 3 * MIB, 3 * MIB + 31)


@pytest.mark.parametrize("length", CUTS + CUTS_IN_REGIONS)
def test_a_file_that_is_cut_short_is_refused(length: int) -> None:
    builder = small()
    builder.put(0, b"x" * MIB)
    builder.file_size = length
    with pytest.raises(DiskfsError, match="sparse"):
        opened(builder)


def test_a_file_that_ends_with_the_used_part_of_its_bat_is_whole() -> None:
    builder = small()
    builder.file_size = 3 * MIB + 32
    assert opened(builder).read_at(0, 4 * MIB) == bytes(4 * MIB)


def test_closing_the_disk_closes_its_file() -> None:
    source = small().source()
    VhdxDriver().open(source, NoRelatedFiles()).close()
    assert source.is_closed


def test_the_first_bytes_decide_and_a_foreign_file_is_refused() -> None:
    with pytest.raises(CorruptImage, match="file identifier"):
        VhdxDriver().open(SparseSource({0: b"conectix"}, 4 * MIB), NoRelatedFiles())
