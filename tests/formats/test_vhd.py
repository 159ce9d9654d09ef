"""VHD: what the specification's bytes, qemu and the corpus say, at both sides of every boundary."""

import functools
import hashlib
import json
import random
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from diskfs.sources.file import open_file
from diskfs_formats.driver import DiskImage, Match, NoRelatedFiles, ProbeWindow
from diskfs_formats.errors import (
    ChecksumMismatch,
    CorruptImage,
    DiskfsError,
    ImageError,
    OutOfRange,
    ParentUnavailable,
    TruncatedImage,
    UnsupportedFeature,
)
from diskfs_formats.extents import ExtentKind
from diskfs_formats.findings import Severity
from diskfs_formats.raw import RawImage
from diskfs_formats.source import MemorySource
from diskfs_formats.vhd import VhdDriver, is_footer_at_end
from diskfs_formats.vhd.footer import checksum_of
from diskfs_formats.vhd.image import VhdImage
from tests.conformance import promises
from tests.helpers import CorpusRow, assert_same_bytes, corpus_rows, sha256_of
from tests.samples import vhd_builder as vhd
from tests.samples.vhd_builder import MIB, TIB, VhdBuilder, chain, filled, fixed, pattern
from tests.samples.vhdx_builder import ParentFiles, SparseSource

PARENT_ID = UUID(int=1)
CHILD_ID = UUID(int=2)


def opened(data: bytes, files: dict[str, bytes] | None = None) -> VhdImage:
    return VhdDriver().open(MemorySource(data, "disk.vhd"), beside(files or {}))


def beside(files: dict[str, bytes]) -> ParentFiles:
    return ParentFiles(VhdDriver(), {name: functools.partial(MemorySource, data, name) for name, data in files.items()})


def rules(data: bytes, files: dict[str, bytes] | None = None) -> list[str]:
    """Names of the findings of a check."""
    return [finding.rule for finding in VhdDriver().check(MemorySource(data, "disk.vhd"), beside(files or {}))]


def opening_rules(image: VhdImage) -> list[str]:
    return [finding.rule for finding in image.info.findings]


def refused(data: bytes, error: type[DiskfsError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        opened(data)
    assert type(caught.value) is error
    assert str(caught.value).startswith("disk.vhd: ")


def assert_disk(image: DiskImage, content: bytes, units: Sequence[int]) -> None:
    """Everything that a disk promises."""
    reference = MemorySource(content)
    promises.assert_whole(image, reference)
    promises.assert_both_sides(image, reference, units)
    promises.assert_map(image, reference)
    promises.assert_random_ranges(image, reference)
    promises.assert_ready_bytes(image, reference)
    promises.assert_threads(image, reference)
    promises.assert_past_the_end(image)


# ---- the specification's bytes ----


def test_the_checksum_is_the_complement_of_the_sum_of_all_other_bytes() -> None:
    # The header that qemu writes for any disk of six blocks of 2 MiB.
    header = bytes.fromhex("6378737061727365 ffffffffffffffff 0000000000000600 00010000 00000006 00200000 fffff471")
    assert checksum_of(header.ljust(1024, b"\0"), 36) == 0xFFFFF471


def test_a_disk_written_out_byte_by_byte_is_read() -> None:
    footer = bytearray(512)
    footer[:88] = bytes.fromhex(
        "636f6e6563746978 00000002 00010000 0000000000000200 2715ab0a 77696e20 000a0000 5769326b"
        "0000000000000600 0000000000000600 0001 01 03 00000003 00000000"
        "00112233445566778899aabbccddeeff 00 000000"
    )
    footer[64:68] = (0xFFFFFFFF - sum(footer)).to_bytes(4, "big")
    header = bytearray(1024)
    header[:40] = bytes.fromhex(
        "6378737061727365 ffffffffffffffff 0000000000000600 00010000 00000002 00000400 00000000"
    )
    header[36:40] = (0xFFFFFFFF - sum(header)).to_bytes(4, "big")
    bat = bytes.fromhex("ffffffff 00000004").ljust(512, b"\xff")
    block = b"\xc0".ljust(512, b"\0") + b"A" * 512 + b"B" * 512
    image = opened(bytes(footer + header + bat + block + footer))
    assert image.read_at(0, image.size) == bytes(1024) + b"A" * 512
    assert image.footer.unique_id == UUID("00112233-4455-6677-8899-aabbccddeeff")
    assert (image.info.format, image.info.variant, image.info.unit_size) == ("vhd", "dynamic", 1024)
    assert (image.info.sector_size, image.info.has_parent, image.info.findings) == (512, False, ())


# ---- detection ----


@pytest.mark.parametrize("footer_size", [512, 511])
def test_a_fixed_disk_is_known_by_its_footer_alone(footer_size: int) -> None:
    data = fixed(pattern(1, 8192), footer_size=footer_size)
    assert VhdDriver().probe(ProbeWindow.of(MemorySource(data))) is Match.SIGNATURE
    assert is_footer_at_end(data)


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 512, 1 << 20])
def test_a_footer_is_found_at_the_end_of_files_of_any_size(size: int) -> None:
    data = fixed(pattern(1, size - 512))
    assert VhdDriver().probe(ProbeWindow.of(MemorySource(data))) is Match.SIGNATURE


def test_a_dynamic_disk_is_known_by_either_footer() -> None:
    data = filled(64 << 10, 4096)[0].build()
    assert VhdDriver().probe(ProbeWindow.of(MemorySource(data[:-512]))) is Match.SIGNATURE
    assert VhdDriver().probe(ProbeWindow.of(MemorySource(bytes(512) + data[512:]))) is Match.SIGNATURE
    assert not is_footer_at_end(data[:-512])


@pytest.mark.parametrize("data", [b"", b"c", bytes(511), bytes(4096), b"conectix".rjust(520, b"\0"), b" conectix"])
def test_what_has_no_cookie_in_its_place_is_no_vhd(data: bytes) -> None:
    assert VhdDriver().probe(ProbeWindow.of(MemorySource(data))) is Match.NO
    with pytest.raises(CorruptImage, match="no VHD footer"):
        opened(data)


# ---- fixed ----


@pytest.mark.parametrize("footer_size", [512, 511])
def test_a_fixed_disk_is_the_file_without_its_footer(footer_size: int) -> None:
    content = pattern(3, 300 * 512)
    image = opened(fixed(content, footer_size=footer_size))
    assert (image.info.variant, image.info.unit_size, image.info.findings) == ("fixed", 0, ())
    assert_disk(image, content, [512])
    assert [(extent.offset, extent.length, extent.kind) for extent in image.extents()] == [
        (0, len(content), ExtentKind.DATA)
    ]


def test_the_footer_is_never_part_of_a_fixed_disk() -> None:
    content = pattern(3, 8192)
    image = opened(fixed(content))
    assert image.read_if_ready(8191, 1) == content[-1:]
    for read in (image.read_at, image.read_if_ready):
        with pytest.raises(OutOfRange):
            read(8191, 2)


def test_holes_of_the_file_system_are_zero_in_the_map_of_a_fixed_disk(tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    content = bytearray(3 * MIB)
    content[MIB : MIB + 65536] = pattern(1, 65536)
    with path.open("wb") as file:
        file.seek(MIB)
        file.write(pattern(1, 65536))
        file.seek(3 * MIB)
        file.write(fixed(bytes(content))[-512:])
    image = VhdDriver().open(open_file(path), NoRelatedFiles())
    kinds = [extent.kind for extent in image.extents()]
    assert kinds == [ExtentKind.ZERO, ExtentKind.DATA, ExtentKind.ZERO]
    assert_disk(image, bytes(content), [MIB])
    image.close()


def test_a_fixed_disk_that_is_a_sector_short_is_refused() -> None:
    content = pattern(1, 4096)
    refused(fixed(content[:-512], current_size=4096), TruncatedImage, "4096 bytes, and its footer is at offset 0xe00")


def test_what_lies_between_a_fixed_disk_and_its_footer_is_left_out() -> None:
    content = pattern(1, 4096)
    image = opened(fixed(content, current_size=3584))
    assert image.read_at(0, image.size) == content[:3584]
    assert opening_rules(image) == ["vhd-size"]


def test_a_guest_cannot_change_the_format_of_its_fixed_disk() -> None:
    inner, _ = filled(64 << 10, 4096)
    content = inner.build().ljust(128 << 10, b"\0")
    image = opened(fixed(content))
    assert image.info.variant == "fixed"
    assert_same_bytes(image.read_at(0, image.size), content)
    assert opening_rules(image) == ["vhd-footer-in-disk"]


# ---- dynamic ----


@pytest.mark.parametrize(
    ("size", "block_size"),
    [
        (40 * 4096, 4096),
        (40 * 4096 + 512, 4096),
        (70 * 512, 512),
        (9 * 65536 + 65024, 65536),
        (3 * 2 * MIB - 512, 2 * MIB),
        (2 * 4 * MIB + 512, 4 * MIB),  # the bitmap takes two sectors
        (4 * MIB, 8 * MIB),
    ],
)
def test_a_dynamic_disk_holds_what_was_put_in_it(size: int, block_size: int) -> None:
    builder, content = filled(size, block_size, seed=4)
    image = opened(builder.build())
    assert image.info.findings == ()
    assert_disk(image, content, [block_size])


def test_an_unused_disk_is_one_hole() -> None:
    image = opened(VhdBuilder(10 * MIB).build())
    assert [(extent.kind, extent.length) for extent in image.extents()] == [(ExtentKind.HOLE, 10 * MIB)]


def test_holes_reach_as_far_as_the_page_of_the_table() -> None:
    # Pages of the BAT hold 4096 entries; the blocks lie on both sides of the first page's end and at the disk's.
    builder = VhdBuilder(10_000 * 512 - 512, 1024)
    for number in (0, 4094, 4097, 4999):
        builder.put(number, pattern(number, 1024))
    image = opened(builder.build())
    ends = [image.lookup(offset * 1024).end // 512 for offset in (0, 1, 2000, 4093, 4094, 4095, 4096, 4098, 4999)]
    assert ends == [2, 8188, 8188, 8188, 8190, 8192, 8194, 9998, 9999]
    assert [image.lookup(offset * 1024).offset // 1024 for offset in (1, 2000, 4095, 4096)] == [1, 2000, 4095, 4096]


def test_an_entry_whose_bytes_are_nearly_all_ones_is_no_hole() -> None:
    for entry in (0xFFFFFFFE, 0xFEFFFFFF, 0xFFFFFEFF, 0xFFFEFFFF):
        builder = VhdBuilder(4 * 4096)
        builder.bat[2] = entry
        image = opened(builder.build())
        assert image.lookup(0).end == 2 * 4096
        with pytest.raises(TruncatedImage, match=f"block 2: its BAT entry is sector {entry:#x}"):
            image.lookup(2 * 4096)


def test_entries_beyond_the_disk_are_ignored() -> None:
    builder, content = filled(40 * 4096, 4096, spare_entries=500)
    for number in range(40, 540):
        builder.bat[number] = 0
    image = opened(builder.build())
    assert_same_bytes(image.read_at(0, image.size), content)
    assert rules(builder.build()) == []


@pytest.mark.parametrize("block_size", [4096, 65536, 2 * MIB])
def test_qemu_reads_the_same_disk_and_ignores_the_bitmaps_as_well(block_size: int, tmp_path: Path) -> None:
    builder, content = filled(5 * block_size, block_size)
    for number, block in builder.blocks.items():
        builder.blocks[number] = bytes(builder.bitmap_size) + block[builder.bitmap_size :]
    data = builder.build()
    (tmp_path / "disk.vhd").write_bytes(data)
    command = ["qemu-img", "convert", "-f", "vpc", "-O", "raw", "disk.vhd", "disk.raw"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert_same_bytes((tmp_path / "disk.raw").read_bytes(), content)
    image = opened(data)
    assert_same_bytes(image.read_at(0, image.size), content)


def test_a_dynamic_disk_with_an_old_footer_is_read() -> None:
    builder, content = filled(64 << 10, 4096, footer_size=511)
    image = opened(builder.build())
    assert_same_bytes(image.read_at(0, image.size), content)
    assert opening_rules(image) == []


def test_what_was_read_once_needs_no_thread() -> None:
    builder, content = filled(64 << 10, 4096)
    image = opened(builder.build())
    assert image.read_if_ready(0, 65536) is None
    image.read_at(0, 1)
    assert image.read_if_ready(0, 65536) == content


# ---- the footers ----


def head_and_tail(head: bytes | None = None, tail: bytes | None = None) -> bytes:
    data = filled(64 << 10, 4096)[0].build()
    return (data[:512] if head is None else head) + data[512:-512] + (data[-512:] if tail is None else tail)


CONTENT = filled(64 << 10, 4096)[1]
FOOTER = head_and_tail()[-512:]
DAMAGED = FOOTER[:100] + b"\1" + FOOTER[101:]


@pytest.mark.parametrize(
    ("head", "tail", "found"),
    [
        (FOOTER, FOOTER, []),
        (FOOTER, b"", ["vhd-footer-at-start"]),
        (FOOTER, bytes(512), ["vhd-footer-at-start"]),
        (FOOTER, FOOTER + bytes(1), ["vhd-footer-at-start"]),
        (FOOTER, FOOTER[:510], ["vhd-footer-at-start"]),
        (FOOTER, DAMAGED, ["vhd-footer-at-start"]),
        (bytes(512), FOOTER, ["vhd-footer-copy"]),
        (DAMAGED, FOOTER, ["vhd-footer-copy"]),
        (vhd.resealed(FOOTER, vhd.FOOTER_FIELDS, timestamp=1), FOOTER, ["vhd-footer-copy"]),
        (vhd.resealed(FOOTER, vhd.FOOTER_FIELDS, unique_id=bytes(16)), FOOTER, ["vhd-footer-copy"]),
    ],
)
def test_one_good_footer_is_enough(head: bytes, tail: bytes, found: list[str]) -> None:
    image = opened(head_and_tail(head, tail))
    assert opening_rules(image) == found
    assert all(finding.severity is Severity.WARNING for finding in image.info.findings)
    assert_same_bytes(image.read_at(0, image.size), CONTENT)
    assert rules(head_and_tail(head, tail)) == found


def test_the_footer_at_the_end_goes_first() -> None:
    other = vhd.resealed(FOOTER, vhd.FOOTER_FIELDS, unique_id=bytes(range(16)))
    assert opened(head_and_tail(head=other)).footer.unique_id == vhd.UNIQUE_ID
    assert opened(head_and_tail(tail=other)).footer.unique_id == UUID(bytes=bytes(range(16)))


@pytest.mark.parametrize(
    "field", [{"disk_type": vhd.FIXED}, {"disk_type": vhd.DIFFERENCING}, {"current_size": 32768}, {"data_offset": 1024}]
)
def test_footers_that_describe_two_disks_are_refused(field: dict[str, int]) -> None:
    other = vhd.resealed(FOOTER, vhd.FOOTER_FIELDS, **field)
    refused(head_and_tail(head=other), CorruptImage, f"disagree: {next(iter(field))} is ")


def test_without_a_good_footer_the_last_one_is_blamed() -> None:
    refused(head_and_tail(DAMAGED, DAMAGED), ChecksumMismatch, r"footer at offset 0x[1-9a-f]\w+: checksum 0x")
    refused(head_and_tail(DAMAGED, b""), ChecksumMismatch, r"footer at offset 0x0: checksum 0x")
    refused(head_and_tail(bytes(512), DAMAGED), ChecksumMismatch, "checksum")
    refused(head_and_tail(bytes(512), bytes(512)), CorruptImage, "no VHD footer")


def test_a_fixed_disk_has_no_copy_of_its_footer() -> None:
    footer = fixed(bytes(4096))[-512:]
    refused(footer + bytes(4096), CorruptImage, "is missing, and the one at offset 0 is of a fixed disk")


@pytest.mark.parametrize("bit", range(0, 512 * 8, 97))
def test_every_bit_of_a_footer_is_under_its_checksum(bit: int) -> None:
    data = bytearray(fixed(bytes(4096)))
    data[4096 + bit // 8] ^= 1 << bit % 8
    with pytest.raises(CorruptImage):
        opened(bytes(data))


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"file_format_version": 0x00020000}, UnsupportedFeature, "file format version 0x00020000"),
        ({"file_format_version": 0}, UnsupportedFeature, "file format version 0x00000000"),
        ({"disk_type": 0}, UnsupportedFeature, "disk type 0"),
        ({"disk_type": 1}, UnsupportedFeature, "disk type 1"),
        ({"disk_type": 5}, UnsupportedFeature, "disk type 5"),
        ({"disk_type": 0xFFFFFFFF}, UnsupportedFeature, "disk type 4294967295"),
        ({"current_size": 0}, CorruptImage, "current size is 0"),
        ({"current_size": 511}, CorruptImage, "current size is 511"),
        ({"current_size": 4097 + 511}, TruncatedImage, "4608 bytes"),
        ({"current_size": 2**64 - 1}, TruncatedImage, "the file is incomplete"),
    ],
)
def test_a_footer_that_cannot_be_followed_is_refused(
    fields: dict[str, int], error: type[DiskfsError], match: str
) -> None:
    refused(fixed(pattern(1, 4096), **fields), error, match)


@pytest.mark.parametrize(
    ("fields", "found", "size"),
    [
        ({"file_format_version": 0x0001FFFF}, [], 4096),
        ({"features": 0xFFFFFFFF}, [], 4096),
        ({"current_size": 4096 + 511}, ["vhd-partial-sector"], 4096),
        ({"current_size": 512}, ["vhd-size"], 512),
        ({"saved_state": 1}, ["vhd-saved-state"], 4096),
        ({"data_offset": 0}, [], 4096),
    ],
)
def test_a_footer_that_is_only_unusual_is_read(fields: dict[str, int], found: list[str], size: int) -> None:
    data = fixed(pattern(1, 4096), **fields)
    image = opened(data)
    assert (opening_rules(image), image.size) == (found, size)
    assert rules(data) == found


@pytest.mark.parametrize(
    ("creator", "geometry", "found"),
    [
        (b"win ", (30, 4, 17), []),
        (b"qem2", (30, 4, 17), []),
        (b"vpc ", (30, 4, 17), ["vhd-geometry"]),
        (b"qemu", (30, 4, 17), ["vhd-geometry"]),
        (b"vbox", (30, 4, 17), ["vhd-geometry"]),
        (b"qemu", vhd.MAX_GEOMETRY, []),
        (b"qemu", (16, 8, 16), []),
    ],
)
def test_the_size_is_the_current_size_and_where_qemu_differs_is_said(
    creator: bytes, geometry: tuple[int, int, int], found: list[str], tmp_path: Path
) -> None:
    cylinders, heads, sectors = geometry
    data = fixed(
        pattern(1, MIB), creator_application=creator, cylinders=cylinders, heads=heads, sectors_per_track=sectors
    )
    image = opened(data)
    assert image.size == MIB
    assert opening_rules(image) == found
    if found:
        (tmp_path / "disk.vhd").write_bytes(data)
        command = ["qemu-img", "info", "-f", "vpc", "disk.vhd"]
        shown = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True).stdout
        assert "(1044480 bytes)" in shown  # 30 * 4 * 17 * 512
        assert "its geometry 1044480;" in image.info.findings[0].message


# ---- the dynamic header ----


def with_header(size: int = 64 << 10, **values: Any) -> bytes:
    builder = VhdBuilder(size)
    builder.header = values
    return builder.build()


@pytest.mark.parametrize(
    ("values", "error", "match"),
    [
        ({"cookie": b"cxsparsf"}, CorruptImage, "cxsparse"),
        ({"header_version": 0x00020000}, UnsupportedFeature, "header version 0x00020000"),
        ({"checksum": 0}, ChecksumMismatch, "dynamic header at offset 0x200: checksum 0x00000000"),
        ({"block_size": 0}, CorruptImage, "block size is 0"),
        ({"block_size": 256}, CorruptImage, "block size is 256"),
        ({"block_size": 4096 + 512}, CorruptImage, "block size is 4608"),
        ({"block_size": 512 * MIB}, CorruptImage, "block size is 536870912"),
        ({"max_table_entries": 15}, CorruptImage, "max table entries is 15; 65536 bytes in blocks of 4096 need 16"),
        ({"max_table_entries": 0}, CorruptImage, "max table entries is 0"),
        ({"max_table_entries": 2**32 - 1}, TruncatedImage, "4294967295 entries"),
        ({"table_offset": 2**64 - 1}, TruncatedImage, "BAT at offset 0xffffffffffffffff"),
    ],
)
def test_a_header_that_cannot_be_followed_is_refused(
    values: dict[str, Any], error: type[DiskfsError], match: str
) -> None:
    refused(with_header(**values), error, match)


@pytest.mark.parametrize(
    "values",
    [
        {"header_version": 0x00010001},
        {"block_size": 256 * MIB},
        {"max_table_entries": 17},
        {"data_offset": 0xFFFFFFFF},
        {"reserved": 1},
        {"parent_unicode_name": b"\xd8" * 512},
    ],
)
def test_a_header_that_is_only_unusual_is_read(values: dict[str, Any]) -> None:
    assert rules(with_header(**values)) == []


def test_the_header_and_the_table_must_end_inside_the_file() -> None:
    # With the footer at the end taken away, the header or the table is what the file ends with.
    builder = VhdBuilder(4 * 4096)
    data = builder.build()
    header, bat = data[512:1536], data[1536:1552]
    footer = builder.pack_footer(data_offset=1024)
    moved = vhd.resealed(header, vhd.HEADER_FIELDS, table_offset=512)
    at_end = footer + bat.ljust(512, b"\xff") + moved
    assert opened(at_end).read_at(0, 4 * 4096) == bytes(4 * 4096)
    refused(at_end[:-1], TruncatedImage, "dynamic header at offset 0x400: it needs 1024 bytes")
    footer = builder.pack_footer()
    assert opened(footer + header + bat).read_at(0, 4 * 4096) == bytes(4 * 4096)
    refused(footer + header + bat[:-1], TruncatedImage, "the BAT at offset 0x600 has 4 entries")


@pytest.mark.parametrize("size", [2 * TIB, 2 * TIB + 512])
def test_a_disk_in_blocks_has_at_most_two_tebibytes(size: int) -> None:
    builder = VhdBuilder(size, 2 * MIB)
    footer = builder.pack_footer()
    header = vhd.pack_header(max_table_entries=builder.block_count, block_size=2 * MIB)
    bat = b"\xff" * builder.table_size
    source = SparseSource({0: footer, 512: header, 1536: bat, 1536 + len(bat): footer}, 2048 + len(bat), "disk.vhd")
    if size > 2 * TIB:
        with pytest.raises(CorruptImage, match="at most 2199023255552"):
            VhdDriver().open(source, NoRelatedFiles())
        return
    image = VhdDriver().open(source, NoRelatedFiles())
    assert sum(extent.length for extent in image.extents()) == size
    assert source.requests <= 16 + (1 << 20) // 4096


# ---- BAT entries ----


@pytest.mark.parametrize(
    ("sector", "error", "match"),
    [
        (0, CorruptImage, "over the copy of the footer at offset 0x0"),
        (1, CorruptImage, "over the dynamic header at offset 0x200"),
        (2, CorruptImage, "over the dynamic header at offset 0x200"),
        (3, CorruptImage, "over the BAT at offset 0x600"),
        (4, None, ""),
        (13, None, ""),
        (14, CorruptImage, "over the footer at offset 0x2c00"),
        (15, TruncatedImage, "4608 bytes from offset 0x1e00 are past the end of the file at 0x2e00"),
        (0x7FFFFFFF, TruncatedImage, "past the end"),
        (0xFFFFFFFE, TruncatedImage, "past the end"),
    ],
)
def test_a_block_lies_between_the_table_and_the_footer(
    sector: int, error: type[DiskfsError] | None, match: str
) -> None:
    builder = VhdBuilder(4 * 4096)
    builder.put(0, pattern(1, 4096))  # sectors 4 to 12
    builder.put(1, pattern(2, 4096))  # sectors 13 to 21; sector 22 is the footer
    builder.bat[2] = sector
    data = builder.build()
    image = opened(data)
    assert image.read_at(0, 2 * 4096) == pattern(1, 4096) + pattern(2, 4096)
    assert image.read_at(3 * 4096, 4096) == bytes(4096)
    if error is None:
        start = sector * 512 + 512
        assert image.read_at(2 * 4096, 4096) == data[start : start + 4096]
        assert rules(data) == ["vhd-block-overlap"]
        return
    for read in (image.read_at, image.read_if_ready):
        with pytest.raises(error, match=match) as caught:
            read(2 * 4096 - 1, 2)
        assert str(caught.value).startswith(f"disk.vhd: block 2: its BAT entry is sector {sector:#x}; ")
    assert rules(data).count("vhd-block") == 1


def cut_last_block(missing: int) -> bytes:
    """A disk that ends with three sectors of its last block, cut that many bytes before that block's end."""
    builder = VhdBuilder(4 * 4096 + 3 * 512)
    builder.put(4, pattern(1, 4096))
    return builder.build()[: -512 - missing]


def test_of_the_last_block_only_what_is_on_the_disk_is_needed() -> None:
    image = opened(cut_last_block(5 * 512))
    assert image.read_at(4 * 4096, 3 * 512) == pattern(1, 3 * 512)
    with pytest.raises(TruncatedImage, match="block 4"):
        opened(cut_last_block(5 * 512 + 1)).read_at(4 * 4096, 1)
    at_start = "vhd-footer-at-start"
    assert rules(cut_last_block(0)) == [at_start]
    assert rules(cut_last_block(1)) == [at_start, "vhd-last-block"]
    assert rules(cut_last_block(5 * 512)) == [at_start, "vhd-last-block"]
    assert rules(cut_last_block(5 * 512 + 1)) == [at_start, "vhd-block"]


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [(4, 4, True), (4, 12, True), (4, 13, False), (12, 4, True), (13, 4, False), (5, 13, True), (30, 22, True)],
)
def test_blocks_that_share_a_sector_are_found(first: int, second: int, *, overlap: bool) -> None:
    builder = VhdBuilder(8 * 4096)
    builder.put(7, bytes(4096))
    builder.first_block = 64 * 512
    builder.bat = {1: first, 5: second}
    assert rules(builder.build()) == ["vhd-block-overlap"] * overlap


def test_sectors_that_their_bitmap_denies_are_read_and_found() -> None:
    builder = VhdBuilder(3 * 65536 + 512, 65536)
    builder.put(0, pattern(1, 1024) + bytes(512) + pattern(1, 512), [0, 1, 3])
    builder.put(1, bytes(40 * 512) + pattern(1, 512), range(40))
    builder.put(2, pattern(1, 65536), [])
    builder.put(3, pattern(1, 512) + pattern(2, 65024), [0])  # the denied sectors are past the disk's end
    data = builder.build()
    image = opened(data)
    assert image.read_at(65536 + 40 * 512, 512) == pattern(1, 512)
    findings = list(VhdDriver().check(MemorySource(data, "disk.vhd"), NoRelatedFiles()))
    assert [(finding.rule, finding.severity) for finding in findings] == [
        ("vhd-sector-bitmap", Severity.WARNING),
        ("vhd-sector-bitmap", Severity.WARNING),
    ]
    assert ["block 1 at" in findings[0].message, "sector 40 holds data" in findings[0].message] == [True, True]
    assert ["block 2 at" in findings[1].message, "sector 0 holds data" in findings[1].message] == [True, True]


def test_a_check_names_at_most_a_thousand_bad_blocks() -> None:
    builder = VhdBuilder(3000 * 512, 512)
    builder.bat = dict.fromkeys(range(3000), 0)
    found = rules(builder.build())
    assert found == ["vhd-block"] * 1001 + ["vhd-block-overlap"] * 1001


# ---- differencing ----


@pytest.mark.parametrize("sector", [0, 1, 6, 7, 8, 9, 4094, 4095, 4096, 4097, 8191])
def test_bit_n_of_a_bitmap_is_sector_n_the_highest_bit_first(sector: int) -> None:
    below, above = pattern(1, 4 * MIB), pattern(2, 4 * MIB)
    builder = VhdBuilder(4 * MIB, 4 * MIB, parent_id=PARENT_ID, parent_name="parent.vhd")
    builder.put(0, above, [])
    data = bytearray(builder.build())
    data[2048 + sector // 8] = (0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01)[sector % 8]
    image = opened(bytes(data), {"parent.vhd": fixed(below, unique_id=PARENT_ID.bytes)})
    at = sector * 512
    expected = below[:at] + above[at : at + 512] + below[at + 512 :]
    assert_same_bytes(image.read_at(0, image.size), expected)


@pytest.mark.parametrize(
    ("size", "block_size", "is_fixed"),
    [
        (9 * 4096 + 512, 4096, False),
        (12 * 65536 + 13 * 512, 65536, True),
        (2 * 4 * MIB + 77 * 512, 4 * MIB, False),
        (64 * 512, 512, True),
    ],
)
def test_a_chain_of_three_shows_each_sector_of_its_own_file(size: int, block_size: int, *, is_fixed: bool) -> None:
    base = pattern(9, size) if is_fixed else None
    files, content = chain(3, size, block_size, seed=5, base=base)
    image = opened(files[0][1], dict(files))
    assert (image.info.variant, image.info.has_parent) == ("differencing", True)
    assert image.parent is not None
    assert image.parent.info.has_parent
    assert_disk(image, content, [block_size, 512 * 7])
    reference = MemorySource(content)
    for extent in list(image.extents())[:200]:  # the ends of all runs, whoever has them
        for start in {max(extent.offset - 1, 0), extent.offset, extent.end - 1}:
            promises.assert_range(image, reference, start, min(2, size - start))
    assert {extent.depth for extent in image.extents()} == {0, 1, 2}
    assert rules(files[0][1], dict(files)) == []


def test_a_run_of_sectors_is_one_extent() -> None:
    builder = VhdBuilder(3 * 65536, 65536, parent_id=PARENT_ID, parent_name="parent.vhd")
    here = [*range(3, 9), *range(16, 24), 127]
    builder.put(1, pattern(2, 65536), here)
    image = opened(builder.build(), {"parent.vhd": fixed(pattern(1, 3 * 65536), unique_id=PARENT_ID.bytes)})
    runs = [(extent.offset // 512, extent.length // 512, extent.depth) for extent in image.extents()]
    assert runs == [(0, 131, 1), (131, 6, 0), (137, 7, 1), (144, 8, 0), (152, 103, 1), (255, 1, 0), (256, 128, 1)]


def child(**options: Any) -> VhdBuilder:
    builder = VhdBuilder(16 * 4096, parent_id=PARENT_ID, unique_id=CHILD_ID, parent_name="parent.vhd", **options)
    builder.put(3, pattern(3, 4096), [1, 2])
    return builder


def with_child(below: bytes) -> bytes:
    content = bytearray(below.ljust(16 * 4096, b"\0")[: 16 * 4096])
    content[3 * 4096 + 512 : 3 * 4096 + 1536] = pattern(3, 4096)[512:1536]
    return bytes(content)


@pytest.mark.parametrize("size", [512, 3 * 4096 + 1024, 5 * 4096 - 512, 16 * 4096, 17 * 4096])
def test_a_parent_may_be_shorter_or_longer(size: int) -> None:
    below = pattern(1, size)
    image = opened(child().build(), {"parent.vhd": fixed(below, unique_id=PARENT_ID.bytes)})
    assert_disk(image, with_child(below), [4096, 512])


def test_a_missing_parent_is_named() -> None:
    with pytest.raises(ParentUnavailable, match=r"parent\.vhd"):
        VhdDriver().open(MemorySource(child().build()), NoRelatedFiles())


class OneParent(ParentFiles):
    """Gives the same disk as any parent."""

    def __init__(self, disk: DiskImage) -> None:
        super().__init__(VhdDriver(), {})
        self._disk = disk

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        return self._disk


def test_another_disk_in_the_parents_place_is_refused_and_closed() -> None:
    source = SparseSource({0: fixed(bytes(4096), unique_id=CHILD_ID.bytes[::-1])}, 4608, "parent.vhd")
    parent = VhdDriver().open(source, NoRelatedFiles())
    with pytest.raises(ParentUnavailable, match=f"the unique id is .*, expected {PARENT_ID}"):
        VhdDriver().open(MemorySource(child().build()), OneParent(parent))
    assert source.is_closed


def test_a_parent_that_is_no_vhd_is_refused_and_closed() -> None:
    source = SparseSource({}, 4096, "parent.raw")
    with pytest.raises(ParentUnavailable, match=r"parent\.raw is no VHD"):
        VhdDriver().open(MemorySource(child().build()), OneParent(RawImage(source)))
    assert source.is_closed


def test_a_disk_that_is_its_own_parent_is_refused_unopened() -> None:
    builder = child()
    builder.unique_id = PARENT_ID
    files = beside({"parent.vhd": builder.build()})
    with pytest.raises(CorruptImage, match="names itself"):
        VhdDriver().open(MemorySource(builder.build()), files)
    assert files.asked == []


def test_closing_a_child_closes_the_whole_chain() -> None:
    files, _ = chain(3, 16 * 4096, 4096)
    sources = {name: SparseSource({0: data}, len(data), name) for name, data in files}
    related = ParentFiles(VhdDriver(), {name: functools.partial(sources.__getitem__, name) for name in sources})
    VhdDriver().open(sources["layer3.vhd"], related).close()
    assert [source.is_closed for source in sources.values()] == [True, True, True]


def test_a_check_of_a_child_needs_no_parent_and_leaves_the_file_open() -> None:
    source = SparseSource({0: child().build()}, len(child().build()), "child.vhd")
    findings = list(VhdDriver().check(source, NoRelatedFiles()))
    assert [(finding.rule, finding.severity) for finding in findings] == [("vhd-parent", Severity.ERROR)]
    assert not source.is_closed


@pytest.mark.parametrize(("recorded", "changed"), [(0, False), (999, True), (1000, False), (1001, False)])
def test_a_parent_that_is_younger_than_its_child_is_noted(recorded: int, *, changed: bool) -> None:
    builder = child()
    builder.header = {"parent_timestamp": recorded}
    files = {"parent.vhd": fixed(bytes(4096), unique_id=PARENT_ID.bytes, timestamp=1000)}
    image = opened(builder.build(), files)
    assert opening_rules(image) == ["vhd-parent-changed"] * changed
    if changed:
        assert "2000-01-01 00:16:39 UTC" in image.info.findings[0].message


# ---- the names of a parent ----


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le")


def asked_names(builder: VhdBuilder) -> tuple[list[str], list[str]]:
    """The names under which a parent is looked for, and the findings of the locators."""
    related = beside({})
    with pytest.raises(ParentUnavailable):
        VhdDriver().open(MemorySource(builder.build(), "child.vhd"), related)
    found = [finding.rule for finding in VhdDriver().check(MemorySource(builder.build()), related)]
    assert found[-1] == "vhd-parent"
    assert {format_name for _, format_name in related.asked} == {"vhd"}
    return list(related.asked[0][0]), found[:-1]


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (".\\base.vhd", ["base.vhd"]),
        ("base.vhd", ["base.vhd"]),
        ("C:\\Disks\\base.vhd", ["base.vhd"]),
        ("C:base.vhd", ["base.vhd"]),
        ("\\\\server\\share\\base.vhd", ["base.vhd"]),
        ("\\\\?\\C:\\base.vhd", ["base.vhd"]),
        ("../../../etc/passwd", ["passwd"]),
        ("..\\../mixed\\base.vhd", ["base.vhd"]),
        ("http://host/base.vhd", ["base.vhd"]),
        ("base.vhd:stream", ["base.vhd:stream"]),
        ("Grüße 日本 🦊.vhd", ["Grüße 日本 🦊.vhd"]),
        ("base.vhd\0garbage", ["base.vhd"]),
        ("", []),
        (".", []),
        ("..", []),
        ("folder\\", []),
        ("folder\\..", []),
        ("C:", []),
        ("C:D:..", []),
        ("new\nline.vhd", []),
        ("n" * 255, ["n" * 255]),
        ("n" * 256, []),
        ("ü" * 127, ["ü" * 127]),
        ("ü" * 128, []),
    ],
)
def test_a_path_is_reduced_to_a_file_name(path: str, names: list[str]) -> None:
    builder = child()
    builder.parent_name = ""
    builder.locators = [(b"W2ru", utf16(path) or b"\0\0")]
    assert asked_names(builder) == (names, [])


def test_the_likeliest_names_come_first_and_each_once() -> None:
    builder = child()
    builder.parent_name = "C:\\unicode.vhd"
    builder.locators = [
        (b"MacX", b"file:///Users/me/Old%20%C3%BC%2Fmac%5Cmac.vhd"),
        (b"Mac ", b"alias.vhd"),
        (b"Wi2k", b"C:\\old absolute.vhd"),
        (b"Wi2r", b".\\old \xfc.vhd"),
        (b"W2ku", utf16("C:\\absolute.vhd")),
        (b"W2ru", utf16(".\\relative.vhd")),
        (b"W2ku", utf16("D:\\other\\relative.vhd")),
        (b"ZZZZ", utf16("unknown.vhd")),
    ]
    names = ["relative.vhd", "absolute.vhd", "old ü.vhd", "old absolute.vhd", "mac.vhd", "unicode.vhd"]
    assert asked_names(builder) == (names, [])


def test_the_name_in_the_header_is_enough_and_needs_no_terminator() -> None:
    builder = child()
    for name in ("base.vhd", "C:\\base.vhd", "\\".join(["x" * 63] * 4) + "y"):
        builder.parent_name = name
        assert asked_names(builder) == ([name.split("\\")[-1]], [])


@pytest.mark.parametrize(
    ("code", "data"),
    [
        (b"W2ru", b"\x00\xd8a\0"),
        (b"W2ku", b"\x00\xdc"),
        (b"Wi2r", b"a\x81"),
        (b"MacX", b"\xff"),
        (b"MacX", b"file:///%FF.vhd"),
    ],
)
def test_a_path_that_is_no_text_is_left_out(code: bytes, data: bytes) -> None:
    builder = child()
    builder.locators = [(code, data)]
    assert asked_names(builder) == (["parent.vhd"], ["vhd-parent-locator"])


def test_a_name_in_the_header_that_is_no_text_is_left_out() -> None:
    builder = child()
    builder.header = {"parent_unicode_name": b"\xdc\x00"}
    assert asked_names(builder) == ([], ["vhd-parent-locator"])


def test_half_a_character_at_the_end_of_a_path_is_left_out() -> None:
    builder = child()
    builder.locators = [(b"W2ru", utf16("base.vhd") + b"x")]
    assert asked_names(builder) == (["base.vhd", "parent.vhd"], [])


@pytest.mark.parametrize(
    ("length", "beyond", "is_used"),
    [(0, 0, False), (2, 0, True), (65536, 0, True), (65537, 0, False), (2**32 - 1, 0, False), (16, 1, False)],
)
def test_a_locator_is_read_only_if_it_is_short_and_inside_the_file(length: int, beyond: int, *, is_used: bool) -> None:
    builder = child()
    builder.locators = [(b"W2ru", utf16("b" * 32768))]
    data = bytearray(builder.build())
    at = 512 + vhd.LOCATORS_AT
    offset = len(data) - length + beyond if length == 16 else 2048
    data[at : at + 24] = vhd.pack_locator(b"W2ru", length, offset)
    data[512:1536] = vhd.with_checksum(bytes(data[512:1536]), 36)
    found = rules(bytes(data))
    assert found == ["vhd-parent-locator"] * (not is_used) + ["vhd-parent"]
    with pytest.raises(ParentUnavailable):
        opened(bytes(data))


# ---- bitmaps in memory ----


def test_bitmaps_are_read_once_and_then_need_no_thread() -> None:
    files, content = chain(2, 64 * 4096, 4096)
    source = SparseSource({0: files[0][1]}, len(files[0][1]), "child.vhd")
    image = VhdDriver().open(source, beside(dict(files)))
    assert image.read_if_ready(0, len(content)) is None
    assert_same_bytes(image.read_at(0, len(content)), content)
    before = source.requests
    ready = image.read_if_ready(0, len(content))
    assert ready is not None
    assert_same_bytes(ready, content)
    stored = [extent for extent in image.extents() if extent.depth == 0 and extent.stored]
    assert source.requests - before == len(stored)  # the data alone


def test_only_some_bitmaps_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskfs_formats.vhd.image.BITMAPS_KEPT", 4 * 512)
    files, content = chain(2, 64 * 4096, 4096)
    image = opened(files[0][1], dict(files))
    assert_disk(image, content, [4096])
    assert len(image._bitmaps) == 4  # type: ignore[attr-defined]  # that of a differencing disk


def test_eight_threads_read_a_chain_of_three_at_once() -> None:
    files, content = chain(3, 300 * 4096, 4096, seed=8)
    image = opened(files[0][1], dict(files))

    def read(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(100):
            offset = chance.randrange(len(content))
            length = chance.randrange(1, 20000)
            assert_same_bytes(
                image.read_at(offset, min(length, len(content) - offset)), content[offset : offset + length]
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


# ---- other programs' images ----


@pytest.mark.parametrize(
    "options",
    ["subformat=dynamic", "subformat=dynamic,force_size=on", "subformat=fixed", "subformat=fixed,force_size=on"],
)
def test_what_qemu_wrote_in_shuffled_order_is_read(options: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.vhd"
    subprocess.run(["qemu-img", "create", "-q", "-f", "vpc", "-o", options, str(path), "9M"], check=True)
    command = ["qemu-img", "info", "-f", "vpc", "--output=json", str(path)]
    size = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["virtual-size"]
    assert (size == 9 * MIB) == ("force_size" in options)
    content = bytearray(size)
    blocks = [0, 1, 2, 4]
    random.Random(6).shuffle(blocks)
    commands = []
    for number, block in enumerate(blocks, 1):
        offset, length = block * 2 * MIB + number * 512, 2 * MIB - number * 1024 if block < 4 else 65536
        commands += ["-c", f"write -q -P {number} {offset} {length}"]
        content[offset : offset + length] = bytes([number]) * length
    subprocess.run(["qemu-io", "-f", "vpc", *commands, str(path)], check=True, capture_output=True)
    image = VhdDriver().open(open_file(path), NoRelatedFiles())
    assert image.info.findings == ()
    assert_disk(image, bytes(content), [2 * MIB])
    assert list(VhdDriver().check(open_file(path), NoRelatedFiles())) == []
    image.close()


ROWS = [row for row in corpus_rows() if row.path.endswith(".vhd") and row.sha256_content]


def content_of(disk: DiskImage) -> Iterator[bytes]:
    for offset in range(0, disk.size, 4 * MIB):
        yield disk.read_at(offset, min(4 * MIB, disk.size - offset))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_the_content_is_what_other_programs_read(row: CorpusRow, corpus: Path) -> None:
    path = corpus / row.path
    files = {other.name: functools.partial(open_file, other) for other in path.parent.glob("*.vhd")}
    related = ParentFiles(VhdDriver(), files)
    source = open_file(path)
    assert VhdDriver().probe(ProbeWindow.of(source)) is Match.SIGNATURE
    image = VhdDriver().open(source, related)
    assert image.size == row.virtual_size
    assert image.info.variant in row.format
    assert sha256_of(content_of(image)) == row.sha256_content
    assert list(VhdDriver().check(source, related)) == []
    image.close()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row.sha256_file


def test_a_real_differencing_disk_asks_for_its_parent_by_name_alone(corpus: Path) -> None:
    folder = corpus / "dfvfs"
    related = ParentFiles(VhdDriver(), {"ntfs-parent.vhd": lambda: open_file(folder / "ntfs-parent.vhd")})
    image = VhdDriver().open(open_file(folder / "ntfs-differential.vhd"), related)
    assert related.asked == [(("ntfs-parent.vhd",), "vhd")]
    assert {extent.depth for extent in image.extents()} == {0, 1}
    image.close()


def test_a_file_cut_anywhere_ends_in_one_of_our_errors() -> None:
    files, content = chain(2, 16 * 4096, 4096)
    data = files[0][1]
    for size in [*range(0, 4096, 61), *range(4096, len(data), 509)]:
        try:
            image = opened(data[:size], dict(files))
        except ImageError:
            continue
        for offset in range(0, len(content), 4096):
            try:
                assert image.read_at(offset, 4096) == content[offset : offset + 4096]
            except TruncatedImage as error:
                assert "block" in str(error)  # noqa: PT017 - reading may also succeed
