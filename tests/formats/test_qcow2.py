"""qcow2: hand-packed images of every layout, what qemu-img and qemu-io write, and the corpus."""

import functools
import json
import random
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from diskfs.cli.map import MapEntry, joined, map_entries
from diskfs.sources.file import open_file
from diskfs_formats.driver import AbsentParent, DiskImage, FormatDriver, Match, NoRelatedFiles, ProbeWindow
from diskfs_formats.errors import (
    CorruptImage,
    DiskfsError,
    ParentUnavailable,
    TruncatedImage,
    UnsafeReference,
    UnsupportedFeature,
)
from diskfs_formats.extents import ExtentKind
from diskfs_formats.findings import Severity
from diskfs_formats.qcow2 import Qcow2Driver
from diskfs_formats.qcow2.image import MAX_RUN, Qcow2Image
from diskfs_formats.raw import RawDriver
from diskfs_formats.source import ByteSource, MemorySource
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
from tests.helpers import CorpusRow, assert_same_bytes, corpus_rows, sha256_of
from tests.samples.qcow2_builder import (
    ALL,
    COMPRESSED,
    COPIED,
    CORRUPT,
    DIRTY,
    EXTENDED_L2,
    EXTERNAL_DATA,
    MIXTURES,
    ZERO,
    ZSTD,
    Built,
    Cluster,
    Qcow2Builder,
    deflated,
    feature_name,
    make_mixture,
    pack_extension,
    patched,
    stamped,
    zstd_frame,
)

needs_qemu = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed: run scripts/setup")

KIB = 1 << 10
MIB = 1 << 20
CLUSTER = 4096
HOLE, ZEROED, DATA = ExtentKind.HOLE, ExtentKind.ZERO, ExtentKind.DATA


class Beside:
    """RelatedFiles for tests: files by name, or those of a folder; remembers what was asked for."""

    def __init__(self, files: dict[str, bytes] | Path) -> None:
        self._files = files
        self.asked: list[tuple[tuple[str, ...], str | None]] = []
        self.opened: list[DiskImage] = []

    def open(self, file_name: str, /) -> ByteSource:
        if isinstance(self._files, Path) and (self._files / file_name).exists():
            return open_file(self._files / file_name)
        if isinstance(self._files, Path) or file_name not in self._files:
            raise ParentUnavailable(f"{file_name!r} is not here")
        return MemorySource(self._files[file_name], file_name)

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        self.asked.append((tuple(file_names), format_name))
        driver: FormatDriver = Qcow2Driver() if format_name == "qcow2" else RawDriver()
        self.opened.append(driver.open(self.open(file_names[0]), self))
        return self.opened[-1]


def opened(image: Built | bytes, related: Beside | None = None) -> Qcow2Image:
    return Qcow2Driver().open(MemorySource(bytes(image), "disk.qcow2"), related or NoRelatedFiles())


def kinds(image: Qcow2Image) -> list[tuple[int, int, ExtentKind]]:
    return [(extent.offset, extent.length, extent.kind) for extent in image.extents()]


def rules(image: Built | bytes, related: Beside | None = None) -> list[tuple[str, Severity]]:
    source = MemorySource(bytes(image), "disk.qcow2")
    return [(found.rule, found.severity) for found in Qcow2Driver().check(source, related or NoRelatedFiles())]


def qemu_content(path: Path) -> bytes:
    raw = path.with_suffix(".as-qemu-reads-it")
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(path), str(raw)], check=True)
    content = raw.read_bytes()
    raw.unlink()
    return content


def small(*clusters: int, size: int = 8 * CLUSTER, **choices: Any) -> Qcow2Builder:
    """A disk of 4 KiB clusters, some of them stored."""
    builder = Qcow2Builder(size, cluster_bits=12, **choices)
    for cluster in clusters:
        builder.put(cluster, stamped(CLUSTER, cluster + 1))
    return builder


# ---- packed by hand ----


@pytest.fixture(scope="module", params=MIXTURES)
def mixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    return make_mixture(request.param, tmp_path_factory.mktemp("mixture"))


def test_every_layout_keeps_every_promise(mixture: tuple[bytes, bytes]) -> None:
    data, content = mixture
    reference = MemorySource(content)
    assert_ready_bytes(opened(data), reference)
    image = opened(data)
    units = (image.info.unit_size, image.info.unit_size // 32, 512)
    assert_whole(image, reference)
    assert_both_sides(image, reference, [unit for unit in units if unit >= 512], limit=200)
    assert_random_ranges(image, reference)
    assert_map(image, reference)
    assert_past_the_end(image)
    assert_threads(opened(data), reference)


def test_a_sound_image_has_no_findings(mixture: tuple[bytes, bytes]) -> None:
    assert rules(mixture[0]) == []


@needs_qemu
def test_qemu_reads_the_same_from_what_is_packed_by_hand(mixture: tuple[bytes, bytes], tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    path.write_bytes(mixture[0])
    assert_same_bytes(qemu_content(path), mixture[1])


def test_what_it_says_of_itself() -> None:
    info = opened(small(1, version=2).build()).info
    assert (info.format, info.variant, info.virtual_size, info.unit_size) == ("qcow2", "v2", 8 * CLUSTER, CLUSTER)
    assert not info.has_parent
    assert opened(small(1).build()).info.variant == "v3"


def test_it_is_known_by_its_magic_alone() -> None:
    data = bytes(small(1).build())
    assert Qcow2Driver().probe(ProbeWindow.of(MemorySource(data))) is Match.SIGNATURE
    for other in (b"", b"QFI", b"QFI\xfa" + data[4:], bytes(512)):
        assert Qcow2Driver().probe(ProbeWindow.of(MemorySource(other))) is Match.NO


def test_an_empty_disk_has_an_empty_map() -> None:
    image = opened(Qcow2Builder(0, cluster_bits=12).build())
    assert image.size == 0
    assert image.read_at(0, 0) == b""
    assert list(image.extents()) == []


def test_a_disk_of_one_byte() -> None:
    builder = small(size=1)
    builder.put(0, b"\x5a")
    assert opened(builder.build()).read_at(0, 1) == b"\x5a"


@pytest.mark.parametrize("count", [MAX_RUN - 1, MAX_RUN, MAX_RUN + 1, MAX_RUN + 2, 3 * MAX_RUN])
def test_a_run_of_any_length_is_one_extent(count: int) -> None:
    builder = small(*range(1, count + 1), size=(count + 2) * CLUSTER)
    image = opened(builder.build())
    assert kinds(image) == [
        (0, CLUSTER, HOLE),
        (CLUSTER, count * CLUSTER, DATA),
        ((count + 1) * CLUSTER, CLUSTER, HOLE),
    ]
    assert_same_bytes(
        image.read_at(CLUSTER, count * CLUSTER), b"".join(stamped(CLUSTER, number + 2) for number in range(count))
    )


def test_a_run_goes_on_over_two_l2_tables_and_over_unallocated_ones() -> None:
    span = CLUSTER // 8 * CLUSTER
    builder = small(0, CLUSTER // 8 - 1, CLUSTER // 8, size=4 * span)
    image = opened(builder.build())
    assert_same_bytes(image.read_at(span - 8, 16), stamped(CLUSTER, CLUSTER // 8)[-8:] + stamped(CLUSTER, 513)[:8])
    assert kinds(image) == [
        (0, CLUSTER, DATA),
        (CLUSTER, span - 2 * CLUSTER, HOLE),
        (span - CLUSTER, 2 * CLUSTER, DATA),
        (span + CLUSTER, 3 * span - CLUSTER, HOLE),
    ]


def test_the_copied_flag_means_nothing_to_a_reader() -> None:
    built = small(1, 2, 3, size=5 * CLUSTER).build()
    built.set_word(built.entry_offsets[2], built.offsets[2])
    built.set_word(built.l1_offset, built.l2_offsets[0])
    image = opened(built)
    assert kinds(image) == [(0, CLUSTER, HOLE), (CLUSTER, 3 * CLUSTER, DATA), (4 * CLUSTER, CLUSTER, HOLE)]


def test_a_long_l1_table_of_nothing_is_one_hole() -> None:
    image = opened(small(size=40_000 * CLUSTER * CLUSTER // 8).build())
    assert kinds(image) == [(0, image.size, HOLE)]


# ---- subclusters ----


def kinds_of_bitmap(bitmap: int) -> str:
    builder = Qcow2Builder(16 * KIB, cluster_bits=14, extended=True)
    builder.put(0, stamped(16 * KIB), bitmap)
    found = ""
    for _, length, kind in kinds(opened(builder.build())):
        found += {HOLE: "-", ZEROED: "0", DATA: "d"}[kind] * (length // 512)
    return found


@pytest.mark.parametrize(
    ("bitmap", "expected"),
    [
        (0, "-" * 32),
        (ALL, "d" * 32),
        (ALL << 32, "0" * 32),
        (1, "d" + "-" * 31),
        (1 << 31, "-" * 31 + "d"),
        (1 << 63, "-" * 31 + "0"),
        (1 << 32, "0" + "-" * 31),
        (0b1010, "-d-d" + "-" * 28),
        (0x0000_00F0_0000_000F, "dddd0000" + "-" * 24),
        (0xFFFF_0000_0000_FFFF, "d" * 16 + "0" * 16),
        (0x5555_5555_AAAA_AAAA, "0d" * 16),
    ],
)
def test_each_bit_of_the_bitmaps_is_one_subcluster(bitmap: int, expected: str) -> None:
    assert kinds_of_bitmap(bitmap) == expected


def test_runs_of_subclusters_go_on_into_the_next_cluster() -> None:
    size = 16 * KIB
    builder = Qcow2Builder(4 * size, cluster_bits=14, extended=True)
    builder.put(0, stamped(size, 1), 0xFFFF0000)
    builder.put(1, stamped(size, 2))
    builder.put(2, stamped(size, 3), 0x0000_0000_0000_00FF | 0xFFFF_FF00 << 32)
    builder.put_zero(3)
    image = opened(builder.build())
    assert kinds(image) == [
        (0, size // 2, HOLE),
        (size // 2, size * 7 // 4, DATA),
        (size * 9 // 4, size * 7 // 4, ZEROED),
    ]
    assert image.read_at(size - 1, 2) == stamped(size, 1)[-1:] + stamped(size, 2)[:1]


@pytest.mark.parametrize(
    ("entry", "bitmap", "message"),
    [
        (None, 1 << 32 | 1, "allocated and zero at once"),
        (0, 1, "have no place"),
        (ZERO, 0, "reserved bits"),
        (COMPRESSED | 0x8000, 1, "expected 0 for a compressed cluster"),
    ],
)
def test_an_extended_entry_that_contradicts_itself_fails_its_cluster(
    entry: int | None, bitmap: int, message: str
) -> None:
    builder = Qcow2Builder(3 * 16 * KIB, cluster_bits=14, extended=True)
    for number in range(3):
        builder.put(number, stamped(16 * KIB, number))
    builder.clusters[1].entry, builder.clusters[1].bitmap = entry, bitmap
    image = opened(builder.build())
    with pytest.raises(CorruptImage, match=rf"disk\.qcow2: cluster 1: L2 entry .*{message}"):
        image.read_at(16 * KIB, 1)
    assert_same_bytes(image.read_at(32 * KIB, 16 * KIB), stamped(16 * KIB, 2))


def test_a_file_may_end_behind_the_last_subcluster_that_is_there() -> None:
    builder = Qcow2Builder(16 * KIB, cluster_bits=14, extended=True)
    builder.put(0, stamped(16 * KIB), 0b111)
    built = builder.build()
    image = opened(bytes(built)[: built.offsets[0] + 3 * 512])
    assert_same_bytes(image.read_at(0, 16 * KIB), stamped(16 * KIB)[: 3 * 512].ljust(16 * KIB, b"\0"))
    image = opened(bytes(built)[: built.offsets[0] + 3 * 512 - 1])
    assert_same_bytes(image.read_at(0, 1024), stamped(16 * KIB)[:1024])
    with pytest.raises(TruncatedImage):
        image.read_at(1024, 1)


# ---- the header ----


def test_a_version_2_header_has_no_features() -> None:
    # Where version 3 has its features, version 2 may have anything, here an extension that nobody knows.
    builder = small(1, version=2, extensions=pack_extension(0xFFFF_FFFF, b"\xff" * 24))
    image = opened(builder.build())
    assert_same_bytes(image.read_at(CLUSTER, CLUSTER), stamped(CLUSTER, 2))
    assert image.info.findings == ()


CORRUPT_FIELDS: list[tuple[dict[str, int], str]] = [
    ({"cluster_bits": 8}, "cluster_bits is 8"),
    ({"cluster_bits": 0}, "cluster_bits is 0"),
    ({"header_length": 103}, "header_length is 103"),
    ({"header_length": 105}, "header_length is 105"),
    ({"header_length": 96}, "header_length is 96"),
    ({"header_length": CLUSTER + 8}, "header_length is 4104"),
    ({"header_length": 2**32 - 8}, "header_length is 4294967288"),
    ({"refcount_order": 7}, "refcount_order is 7"),
    ({"l1_table_offset": 2 * CLUSTER + 8}, "l1_table_offset is 0x2008"),
    ({"l1_table_offset": 0}, "where the header is"),
    ({"l1_size": 0}, "l1_size is 0, a disk of 32768 bytes needs 1"),
    ({"l1_size": (4 << 20) + 1}, "table of over 33554432 bytes"),
    ({"size": 512 * CLUSTER + 1}, "l1_size is 1, a disk of 2097153 bytes needs 2"),
    ({"size": 2**64 - 1}, "needs"),
    ({"refcount_table_offset": CLUSTER + 512}, "refcount_table_offset is 0x1200"),
    ({"refcount_table_clusters": 2049}, "refcount_table_clusters is 2049"),
    ({"nb_snapshots": 65537}, "nb_snapshots is 65537"),
    ({"snapshots_offset": 1}, "snapshots_offset is 0x1"),
    ({"backing_file_offset": 200, "backing_file_size": 1024}, "backing_file_size is 1024"),
    ({"backing_file_offset": 200, "backing_file_size": 0}, "backing_file_size is 0"),
    ({"backing_file_offset": 111, "backing_file_size": 4}, "name is at 0x6f"),
    ({"backing_file_offset": CLUSTER - 3, "backing_file_size": 4}, "name is at 0xffd"),
    ({"backing_file_offset": 2**63, "backing_file_size": 4}, "name is at 0x8000000000000000"),
    ({"incompatible_features": CORRUPT}, "marked as corrupt"),
    ({"incompatible_features": EXTENDED_L2}, "extended L2 entries need at least 14"),
    ({"compression_type": 1}, "compression_type is 1 and incompatible feature bit 3"),
    ({"incompatible_features": 8}, "compression_type is 0 and incompatible feature bit 3"),
    ({"magic": 0x514649FA}, "the magic is 51 46 49 fa"),
]


@pytest.mark.parametrize(("fields", "message"), CORRUPT_FIELDS)
def test_a_header_outside_the_specification_is_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(CorruptImage) as caught:
        opened(patched(bytes(small(1).build()), **fields))
    assert message in str(caught.value)
    assert str(caught.value).startswith("disk.qcow2: ")


UNSUPPORTED_FIELDS: list[tuple[dict[str, int], str]] = [
    ({"version": 1}, "version 1 \\(QCOW1\\)"),
    ({"version": 0}, "version 0 is not known"),
    ({"version": 4}, "version 4 is not known"),
    ({"cluster_bits": 22}, "clusters of over 2097152 bytes"),
    ({"cluster_bits": 2**32 - 1}, "cluster_bits is 4294967295"),
    ({"crypt_method": 1}, "encrypted \\(AES\\)"),
    ({"crypt_method": 2}, "encrypted \\(LUKS\\)"),
    ({"crypt_method": 3}, "encrypted \\(unknown method 3\\)"),
    ({"incompatible_features": EXTERNAL_DATA}, "external data file"),
    ({"incompatible_features": 1 << 5}, "not known: bit 5$"),
    ({"incompatible_features": 1 << 63 | 1 << 6}, "not known: bit 6, bit 63$"),
    ({"incompatible_features": 8, "compression_type": 2}, "compression_type 2 is not known"),
]


@pytest.mark.parametrize(("fields", "message"), UNSUPPORTED_FIELDS)
def test_what_is_not_read_is_refused_by_name(fields: dict[str, int], message: str) -> None:
    with pytest.raises(UnsupportedFeature, match=message):
        opened(patched(bytes(small(1).build()), **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"cluster_bits": 9, "version": 2},
        {"cluster_bits": 21},
        {"refcount_order": 0},
        {"refcount_order": 6},
        {"refcount_table_clusters": 2048},
        {"nb_snapshots": 65536},
        {"compatible_features": 2**64 - 1},
        {"autoclear_features": 2**64 - 1},
    ],
)
def test_the_limits_themselves_are_allowed(fields: dict[str, int]) -> None:
    bits = fields.get("cluster_bits", 12)
    builder = Qcow2Builder(8 * KIB, cluster_bits=bits, version=fields.get("version", 3))
    opened(patched(bytes(builder.build()), **fields))


def test_the_backing_name_may_end_with_the_first_cluster() -> None:
    data = bytearray(bytes(small(1).build()))
    data[CLUSTER - 4 : CLUSTER] = b"base"
    related = Beside({"base": bytes(CLUSTER)})
    opened(patched(bytes(data), backing_file_offset=CLUSTER - 4, backing_file_size=4), related)
    assert related.asked == [(("base",), "raw")]


def test_an_unknown_feature_is_named_as_the_image_names_it() -> None:
    names = feature_name(0, 5, b"fancy\x1b[2J") + feature_name(1, 6, b"harmless") + feature_name(0, 7, b"x" * 46)
    builder = small(1, incompatible=0b1110_0000, extensions=pack_extension(0x6803F857, names))
    with pytest.raises(UnsupportedFeature) as caught:
        opened(builder.build())
    assert f"bit 5 (fancy\\x1b[2J), bit 6, bit 7 ({'x' * 46})" in str(caught.value)


def test_the_external_data_file_is_named_and_not_opened() -> None:
    extension = pack_extension(0x44415441, b"/etc/shadow\n")
    related = Beside({})
    with pytest.raises(UnsupportedFeature, match="/etc/shadow"):
        opened(small(1, incompatible=EXTERNAL_DATA, extensions=extension).build(), related)
    assert related.asked == []


@pytest.mark.parametrize("length", [CLUSTER, 2**31 - 1, 2**32 - 1, CLUSTER - 112 - 8 + 1])
def test_an_extension_that_leaves_the_first_cluster_is_refused(length: int) -> None:
    with pytest.raises(CorruptImage, match="extension 0x12345678 at 0x70 has"):
        opened(small(1, extensions=pack_extension(0x12345678, b"", length)).build())


def test_extensions_may_fill_the_first_cluster_without_an_end_mark() -> None:
    data = bytearray(bytes(small(1).build()))
    data[112:CLUSTER] = pack_extension(0x12345678, b"\xff" * (CLUSTER - 120))
    assert opened(bytes(data)).size == 8 * CLUSTER


def test_an_extension_may_not_reach_into_the_backing_name() -> None:
    built = bytearray(bytes(small(1, backing_file=b"base", extensions=pack_extension(0x12345678, bytes(8))).build()))
    built[112 + 7] = 16
    assert opened(bytes(built), Beside({"base": bytes(1)})).size == 8 * CLUSTER
    built[112 + 7] = 17
    with pytest.raises(CorruptImage, match="extension 0x12345678 at 0x70 has 17 bytes, 16 are left"):
        opened(bytes(built))


def test_a_header_longer_than_the_specification_knows_is_read() -> None:
    assert_same_bytes(opened(small(1, header_length=256).build()).read_at(CLUSTER, CLUSTER), stamped(CLUSTER, 2))


def test_a_file_cut_anywhere_fails_or_is_right(mixture: tuple[bytes, bytes]) -> None:
    data, content = mixture
    for length in sorted({*range(0, 130, 9), *(len(data) * part // 23 for part in range(23)), len(data) - 1}):
        try:
            image = opened(data[:length])
        except CorruptImage:
            continue
        for offset in range(0, image.size, image.info.unit_size):
            count = min(image.info.unit_size, image.size - offset)
            try:
                found = image.read_at(offset, count)
            except CorruptImage:
                continue
            assert_same_bytes(found, content[offset : offset + count])


def test_the_file_must_have_the_whole_l1_table_and_may_end_with_it() -> None:
    built = Qcow2Builder(8 * KIB, cluster_bits=9).build()
    assert opened(bytes(built)[: built.l1_offset + 8]).read_at(0, 8 * KIB) == bytes(8 * KIB)
    with pytest.raises(TruncatedImage, match="L1 table at offset 0x400 needs 8 bytes"):
        opened(bytes(built)[: built.l1_offset + 7])


# ---- what the header says that a user should know ----


def test_an_image_that_was_not_closed_is_read_and_said_so() -> None:
    image = opened(small(1, incompatible=DIRTY).build())
    assert [(found.rule, found.severity) for found in image.info.findings] == [("qcow2-dirty", Severity.WARNING)]
    assert_same_bytes(image.read_at(CLUSTER, CLUSTER), stamped(CLUSTER, 2))


def test_internal_snapshots_are_not_shown_and_that_is_said() -> None:
    found = opened(patched(bytes(small(1).build()), nb_snapshots=3)).info.findings
    assert [(finding.rule, finding.severity) for finding in found] == [("qcow2-snapshots", Severity.INFO)]
    assert "3 internal snapshots" in found[0].message


def test_a_size_within_a_sector_is_kept_and_said() -> None:
    image = opened(small(0, size=1000).build())
    assert image.size == 1000
    assert [finding.rule for finding in image.info.findings] == ["qcow2-partial-sector"]
    assert_same_bytes(image.read_at(0, 1000), stamped(CLUSTER, 1)[:1000])


# ---- damaged tables ----


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (COPIED | 2 * CLUSTER, CorruptImage, "L2 table is at 0x2000, where the header or another table is"),
        (COPIED | CLUSTER, CorruptImage, "L2 table is at 0x1000, where"),
        (COPIED | 3 * CLUSTER + 512, CorruptImage, "expected a multiple of the cluster size"),
        (COPIED | 3 * CLUSTER | 1, CorruptImage, "reserved bits 0x0000000000000001 are set"),
        (COPIED | 3 * CLUSTER | 1 << 62, CorruptImage, "reserved bits 0x4000000000000000 are set"),
        (1, CorruptImage, "reserved bits 0x0000000000000001 are set"),
        (0x00FF_FFFF_FFFF_F000, TruncatedImage, "the file ends at"),
        (1 << 40, TruncatedImage, "the file ends at"),
    ],
)
def test_an_l1_entry_that_leads_nowhere_fails_what_it_maps(entry: int, error: type[DiskfsError], message: str) -> None:
    entries = CLUSTER // 8
    built = small(0, entries, size=2 * entries * CLUSTER).build()
    built.set_word(built.l1_offset, entry)
    image = opened(built)
    with pytest.raises(error, match="L1 entry 0") as caught:
        image.read_at(0, 1)
    assert message in str(caught.value)
    assert_same_bytes(image.read_at(entries * CLUSTER, CLUSTER), stamped(CLUSTER, entries + 1))
    assert rules(built) != []


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (0x1200, CorruptImage, "host offset is 0x1200, expected a multiple"),
        (0x5000 | 1 << 8, CorruptImage, "reserved bits 0x0000000000000100"),
        (0x5000 | 1 << 56, CorruptImage, "reserved bits 0x0100000000000000"),
        (0x5000 | 1 << 61, CorruptImage, "reserved bits 0x2000000000000000"),
        (ZERO | 0x5200, CorruptImage, "host offset is 0x5200"),
        (ZERO | 2, CorruptImage, "reserved bits 0x0000000000000002"),
        (0x1000, CorruptImage, "at host offset 0x1000, where the header or a table is"),
        (0x2000, CorruptImage, "at host offset 0x2000, where the header or a table is"),
        (0x3000, CorruptImage, "at host offset 0x3000, where the header or a table is"),
        (1 << 50, TruncatedImage, "needs 4096 bytes, the file ends at"),
        (COMPRESSED | 100, CorruptImage, "compressed at host offset 0x64, where the header or a table is"),
        (COMPRESSED | 0x7000, TruncatedImage, "compressed at host offset 0x7000, the file ends at 0x7000"),
        (COMPRESSED | 1 << 40, TruncatedImage, "compressed at host offset 0x10000000000, the file ends at"),
    ],
)
def test_an_l2_entry_that_means_nothing_fails_its_cluster_alone(
    entry: int, error: type[DiskfsError], message: str
) -> None:
    built = small(0, 1, 2).build()
    assert built.l2_offsets[0] == 0x3000
    built.set_word(built.entry_offsets[1], entry)
    image = opened(built)
    for _ in range(2):
        with pytest.raises(error, match=r"disk\.qcow2: cluster 1") as caught:
            image.read_at(CLUSTER, 1)
        assert message in str(caught.value)
        for cluster in (0, 2):
            assert_same_bytes(image.read_at(cluster * CLUSTER, CLUSTER), stamped(CLUSTER, cluster + 1))
    assert ("qcow2-cluster", Severity.ERROR) in rules(built)


def test_version_2_has_no_zero_flag() -> None:
    built = small(0, version=2).build()
    built.set_word(built.entry_offsets[0], ZERO)
    with pytest.raises(CorruptImage, match="cluster 0: L2 entry 0x0000000000000001: its reserved bits"):
        opened(built).read_at(0, 1)


@pytest.mark.parametrize(("first", "error"), [(0x3000, CorruptImage), (0x6000, CorruptImage), (0xE000, TruncatedImage)])
def test_a_run_ends_before_a_table_or_the_end_that_lies_in_its_way(first: int, error: type[DiskfsError]) -> None:
    # Four clusters said to be stored one after the other; the third would be the L1 table at 0x5000, the L2 table at
    # 0x8000, or past the end of the file at 0x10000.
    file = Built(bytearray(stamped(16 * CLUSTER)), 0x5000, {0: 0x8000}, {}, {})
    file.data[:CLUSTER] = patched(bytes(small().build())[:CLUSTER], l1_table_offset=0x5000)
    file.data[0x8000:0x9000] = bytes(CLUSTER)
    file.set_word(0x5000, 0x8000)
    for number in range(4):
        file.set_word(0x8000 + number * 8, first + number * CLUSTER)
    image = opened(file)
    assert_same_bytes(image.read_at(0, 2 * CLUSTER), file.data[first : first + 2 * CLUSTER])
    for offset, length in ((2 * CLUSTER, 1), (0, 3 * CLUSTER)):
        with pytest.raises(error, match="cluster 2"):
            image.read_at(offset, length)


def test_an_l2_table_that_maps_itself_ends_in_an_error() -> None:
    built = small(0).build()
    built.set_word(built.entry_offsets[0], built.l2_offsets[0] | COPIED)
    with pytest.raises(CorruptImage, match="cluster 0 is at host offset 0x3000, where the header or a table is"):
        opened(built).read_at(0, 1)


def test_the_last_cluster_needs_only_what_the_disk_has_of_it() -> None:
    built = small(0, 1, size=CLUSTER + 100).build()
    end = built.offsets[1] + 100
    assert_same_bytes(opened(bytes(built)[:end]).read_at(CLUSTER, 100), stamped(CLUSTER, 2)[:100])
    image = opened(bytes(built)[: end - 1])
    assert_same_bytes(image.read_at(0, CLUSTER), stamped(CLUSTER, 1))
    with pytest.raises(TruncatedImage, match="cluster 1 at host offset 0x5000 needs 100 bytes"):
        image.read_at(CLUSTER, 1)


def test_a_snapshot_table_is_no_place_for_data() -> None:
    built = patched(bytes(small(0, 1).build()), nb_snapshots=1, snapshots_offset=5 * CLUSTER)
    image = opened(built)
    assert_same_bytes(image.read_at(0, CLUSTER), stamped(CLUSTER, 1))
    with pytest.raises(CorruptImage, match="cluster 1 is at host offset 0x5000"):
        image.read_at(CLUSTER, 1)


def test_verify_names_what_is_used_twice() -> None:
    built = small(0, 1, 2, 3).build()
    built.set_word(built.entry_offsets[2], built.offsets[0] | COPIED)
    built.set_word(built.entry_offsets[3], built.l2_offsets[0])
    found = list(Qcow2Driver().check(MemorySource(bytes(built)), NoRelatedFiles()))
    assert [(finding.rule, finding.severity) for finding in found] == [
        ("qcow2-overlap", Severity.ERROR),
        ("qcow2-overlap", Severity.ERROR),
        ("qcow2-cluster", Severity.ERROR),
    ]
    assert "cluster 2 is at host offset 0x4000" in found[0].message
    assert "cluster 3 is at host offset 0x3000" in found[1].message


def test_verify_names_a_compressed_cluster_that_is_used_twice() -> None:
    builder = small()
    builder.put_compressed(0, b"a")
    builder.put_compressed(1, b"b")
    built = builder.build()
    assert rules(built) == []
    built.set_word(built.entry_offsets[1], built.word(built.entry_offsets[0]))
    assert rules(built) == [("qcow2-overlap", Severity.ERROR)]


def test_verify_does_not_read_tables_that_are_shared() -> None:
    entries = CLUSTER // 8
    built = small(0, entries, size=2 * entries * CLUSTER).build()
    built.set_word(built.l1_offset + 8, built.l2_offsets[0])
    assert rules(built) == [("qcow2-overlap", Severity.ERROR), ("qcow2-cluster", Severity.ERROR)]


def test_verify_names_every_damaged_cluster() -> None:
    builder = small(0, 1)
    for number in (3, 5, 6):
        builder.put_compressed(number, stamped(CLUSTER, number))
    built = builder.build()
    for number in (3, 6):
        built.data[built.offsets[number] : built.offsets[number] + 30] = b"\xff" * 30
    found = list(Qcow2Driver().check(MemorySource(bytes(built)), NoRelatedFiles()))
    assert [finding.rule for finding in found] == ["qcow2-cluster"] * 2
    assert "cluster 3" in found[0].message
    assert "cluster 6" in found[1].message


# ---- compressed clusters ----


def with_record(record: bytes, *, sectors: int | None = None, compression_type: int = 0, tail: bytes = b"") -> bytes:
    """A disk of two 4 KiB clusters, the first of which is the record."""
    builder = small(1, size=2 * CLUSTER, compression_type=compression_type)
    builder.clusters[0] = Cluster(record=record, sectors=sectors)
    built = builder.build()
    at = built.offsets[0] + len(record)
    built.data[at : at + len(tail)] = tail
    return bytes(built)


PACKERS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "deflate": (0, deflated),
    "zstd": (ZSTD, zstd_frame),
    "zstd with a checksum": (ZSTD, functools.partial(zstd_frame, checksum=True)),
    "zstd without a size": (ZSTD, functools.partial(zstd_frame, content_size=False)),
}


@pytest.fixture(params=PACKERS)
def packer(request: pytest.FixtureRequest) -> tuple[int, Callable[[bytes], bytes]]:
    return PACKERS[request.param]


def test_other_bytes_may_follow_a_compressed_cluster(packer: tuple[int, Callable[[bytes], bytes]]) -> None:
    kind, pack = packer
    content = stamped(CLUSTER, 9)
    data = with_record(pack(content), compression_type=kind, tail=b"\xa5" * 77)
    assert_same_bytes(opened(data).read_at(0, CLUSTER), content)
    data = with_record(pack(content), compression_type=kind, sectors=15)
    assert_same_bytes(opened(data).read_at(0, CLUSTER), content)


@pytest.mark.parametrize("length", [0, 1, CLUSTER - 1, CLUSTER + 1, 2 * CLUSTER, 64 * MIB])
def test_a_compressed_cluster_has_exactly_the_size_of_one(
    length: int, packer: tuple[int, Callable[[bytes], bytes]]
) -> None:
    kind, pack = packer
    record = pack(bytes(length))[: 2 * CLUSTER]
    image = opened(with_record(record, compression_type=kind, sectors=15))
    with pytest.raises(CorruptImage, match=r"disk\.qcow2: cluster 0, compressed at host offset 0x5000: "):
        image.read_at(0, 1)
    assert_same_bytes(image.read_at(CLUSTER, CLUSTER), stamped(CLUSTER, 2))


def test_a_compressed_cluster_that_is_cut_short_is_an_error(packer: tuple[int, Callable[[bytes], bytes]]) -> None:
    kind, pack = packer
    record = pack(stamped(CLUSTER, 9))
    assert len(record) > 1024
    for sectors in range(-(-len(record) // 512) - 1):
        with pytest.raises(CorruptImage):
            opened(with_record(record, compression_type=kind, sectors=sectors)).read_at(0, 1)
    data = with_record(record, compression_type=kind)
    end = len(data) - CLUSTER + len(record)
    assert_same_bytes(opened(data[:end]).read_at(0, CLUSTER), stamped(CLUSTER, 9))
    with pytest.raises(TruncatedImage, match="the file ends before its last sector does"):
        opened(data[: end - 1]).read_at(0, CLUSTER)


def test_the_checksum_of_a_zstd_frame_is_verified() -> None:
    record = bytearray(PACKERS["zstd with a checksum"][1](stamped(CLUSTER, 9)))
    record[-1] ^= 1
    with pytest.raises(CorruptImage, match="zstd frame is damaged"):
        opened(with_record(bytes(record), compression_type=ZSTD)).read_at(0, 1)


def test_a_zlib_stream_is_no_raw_deflate() -> None:
    with pytest.raises(CorruptImage):
        opened(with_record(zlib.compress(stamped(CLUSTER, 9)))).read_at(0, 1)


def test_the_last_block_of_a_zstd_frame_may_be_empty() -> None:
    # As a streaming writer ends a frame (RFC 8878): one raw block that is not the last, then one of no bytes.
    content = stamped(CLUSTER, 9)
    block = (CLUSTER << 3).to_bytes(3, "little") + content
    frame = b"\x28\xb5\x2f\xfd\x00\x10" + block + b"\x01\0\0"
    assert_same_bytes(opened(with_record(frame, compression_type=ZSTD)).read_at(0, CLUSTER), content)


def test_a_zstd_frame_may_ask_for_a_window_of_8_mib_and_no_more() -> None:
    # Frame header (RFC 8878): descriptor 0, then the window's exponent (over 2^10) in the upper five bits of a byte;
    # one raw block, the last, with its size times 8.
    content = stamped(CLUSTER, 9)
    block = (CLUSTER << 3 | 1).to_bytes(3, "little") + content
    for log, is_allowed in ((12, True), (23, True), (24, False), (31, False), (41, False)):
        frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(log - 10) << 3]) + block
        image = opened(with_record(frame, compression_type=ZSTD))
        if is_allowed:
            assert_same_bytes(image.read_at(0, CLUSTER), content)
        else:
            with pytest.raises(CorruptImage, match="zstd frame is damaged"):
                image.read_at(0, 1)


@pytest.mark.parametrize("cluster_bits", range(9, 22))
def test_the_place_of_a_compressed_cluster_is_split_at_every_cluster_size(cluster_bits: int) -> None:
    size = 1 << cluster_bits
    builder = Qcow2Builder(3 * size, cluster_bits=cluster_bits, gap=13)
    chance = random.Random(cluster_bits)
    contents = [chance.randbytes(size), bytes(size), chance.randbytes(size // 2) + bytes(size // 2)]
    for number, content in enumerate(contents):
        builder.put_compressed(number, content)
    # Random bytes do not get smaller: the record needs more sectors than a cluster has.
    image = opened(builder.build())
    for number, content in enumerate(contents):
        assert_same_bytes(image.read_at(number * size, size), content)


# ---- backing files ----


def test_a_zero_cluster_hides_the_backing_file_and_a_hole_does_not() -> None:
    base = stamped(8 * CLUSTER, 99)
    builder = small(1, backing_file=b"base.raw", backing_format=b"raw")
    builder.put_zero(2)
    builder.put_zero(3, data=b"\xee" * CLUSTER)
    builder.put_compressed(4, stamped(CLUSTER, 4))
    image = opened(builder.build(), Beside({"base.raw": base}))
    expected = base[:CLUSTER] + stamped(CLUSTER, 2) + bytes(2 * CLUSTER) + stamped(CLUSTER, 4) + base[5 * CLUSTER :]
    reference = MemorySource(expected)
    assert image.info.has_parent
    assert_whole(image, reference)
    assert_both_sides(image, reference, [CLUSTER])
    assert_map(image, reference)
    assert_ready_bytes(image, reference)
    assert [(extent.kind, extent.depth, extent.length // CLUSTER) for extent in image.extents()] == [
        (DATA, 1, 1),
        (DATA, 0, 1),
        (ZEROED, 0, 2),
        (DATA, 0, 1),
        (DATA, 1, 3),
    ]


def test_subclusters_that_are_not_there_come_from_the_backing_file() -> None:
    size = 16 * KIB
    base = stamped(2 * size, 99)
    builder = Qcow2Builder(2 * size, cluster_bits=14, extended=True, backing_file=b"base", backing_format=b"raw")
    builder.put(0, stamped(size, 1), 0x0000_0F00_0000_00FF)
    image = opened(builder.build(), Beside({"base": base}))
    expected = stamped(size, 1)[:4096] + bytes(2048) + base[6144:]
    assert_same_bytes(image.read_at(0, 2 * size), expected)
    assert_both_sides(image, MemorySource(expected), [512], limit=64)


@pytest.mark.parametrize("base_size", [0, 1, CLUSTER - 1, CLUSTER, CLUSTER + 1, 8 * CLUSTER, 9 * CLUSTER])
def test_past_the_end_of_a_shorter_backing_file_there_are_zeros(base_size: int) -> None:
    base = stamped(base_size, 3)
    builder = small(5, backing_file=b"base", backing_format=b"raw")
    image = opened(builder.build(), Beside({"base": base}))
    expected = bytearray(base[: 8 * CLUSTER].ljust(8 * CLUSTER, b"\0"))
    expected[5 * CLUSTER : 6 * CLUSTER] = stamped(CLUSTER, 6)
    assert_whole(image, MemorySource(bytes(expected)))
    assert_both_sides(image, MemorySource(bytes(expected)), [CLUSTER])
    assert_ready_bytes(image, MemorySource(bytes(expected)))


def test_a_chain_of_three_is_read_and_closed() -> None:
    base = small(0, 1, 2).build()
    middle = small(backing_file=b"base.qcow2", backing_format=b"qcow2")
    middle.put(1, b"\x11" * CLUSTER)
    top = small(backing_file=b"middle.qcow2", backing_format=b"qcow2")
    top.put(2, b"\x22" * CLUSTER)
    files = Beside({"base.qcow2": bytes(base), "middle.qcow2": bytes(middle.build())})
    image = opened(top.build(), files)
    assert files.asked == [(("middle.qcow2",), "qcow2"), (("base.qcow2",), "qcow2")]
    expected = stamped(CLUSTER, 1) + b"\x11" * CLUSTER + b"\x22" * CLUSTER + bytes(5 * CLUSTER)
    assert_whole(image, MemorySource(expected))
    assert [extent.depth for extent in image.extents()] == [2, 1, 0, 2]
    image.close()


def test_without_a_stated_format_the_backing_file_is_raw_whatever_it_looks_like() -> None:
    base = bytes(small(0).build())
    assert base[:4] == b"QFI\xfb"
    related = Beside({"base": base})
    image = opened(small(1, backing_file=b"base").build(), related)
    assert related.asked == [(("base",), "raw")]
    assert_same_bytes(image.read_at(0, CLUSTER), base[:CLUSTER])
    assert [finding.rule for finding in image.info.findings] == ["qcow2-backing-format"]


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(b"raw", "raw"), (b"qcow2", "qcow2"), (b"vpc", "vhd"), (b"vmdk", "vmdk"), (b"raw\0\0", "raw"), (b"", "raw")],
)
def test_the_backing_format_is_the_one_that_is_stated(stored: bytes, expected: str) -> None:
    related = Beside({"base": bytes(small(0).build())})
    opened(small(1, backing_file=b"base", backing_format=stored).build(), related)
    assert related.asked == [(("base",), expected)]


def test_a_backing_format_of_16_bytes_is_refused() -> None:
    related = Beside({"base": bytes(CLUSTER)})
    opened(small(1, backing_file=b"base", backing_format=b"x" * 15).build(), related)
    with pytest.raises(CorruptImage, match="format is 16 bytes long"):
        opened(small(1, backing_file=b"base", backing_format=b"x" * 16).build(), related)


@pytest.mark.parametrize(
    "name",
    [
        b"/etc/passwd",
        b"../base.qcow2",
        b"./base.qcow2",
        b"folder/base.qcow2",
        b"..",
        b".",
        b"\\\\server\\share\\base",
        b"C:\\base.qcow2",
        b"C:base.qcow2",
        b"json:{}",
        b'json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}',
        b'json:{"file.driver":"nbd"}',
        b"nbd:localhost:10809",
        b"nbd://localhost/x",
        b"https://example.org/disk",
        b"file:base.qcow2",
        b"fat:rw:folder",
        b"base\n",
        b"base\0",
        b"\x1b]0;x\x07",
        b"/dev/zero",
    ],
)
def test_a_backing_file_that_is_no_bare_name_is_refused_before_anything_is_opened(name: bytes) -> None:
    related = Beside({})
    with pytest.raises(UnsafeReference) as caught:
        opened(small(1, backing_file=name, backing_format=b"raw").build(), related)
    assert related.asked == []
    assert str(caught.value).isprintable()


def test_a_backing_file_that_is_not_there_is_never_zeros() -> None:
    with pytest.raises(ParentUnavailable, match="base"):
        opened(small(1, backing_file=b"base.qcow2", backing_format=b"qcow2").build())


def test_a_backing_file_that_the_user_agreed_to_do_without_reads_as_zero() -> None:
    class Absent(Beside):
        def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
            return AbsentParent()

    image = opened(small(1, backing_file=b"base", backing_format=b"raw").build(), Absent({}))
    assert_same_bytes(image.read_at(0, 3 * CLUSTER), bytes(CLUSTER) + stamped(CLUSTER, 2) + bytes(CLUSTER))


@pytest.mark.parametrize("name", [b"base.qcow2", b"/etc/passwd"])
def test_verify_examines_an_image_whose_backing_file_cannot_be_had(name: bytes) -> None:
    built = small(1, backing_file=name, backing_format=b"qcow2").build()
    built.set_word(built.entry_offsets[1], 1 << 50)
    assert rules(built) == [("qcow2-parent", Severity.ERROR), ("qcow2-cluster", Severity.ERROR)]


def test_a_name_of_1023_bytes_is_taken_and_one_that_is_not_utf_8_as_well() -> None:
    for name in (b"x" * 1023, b"b\xe9se"):
        shown = name.decode("utf-8", "surrogateescape")
        related = Beside({shown: bytes(CLUSTER)})
        opened(small(1, backing_file=name, backing_format=b"raw").build(), related)
        assert related.asked == [((shown,), "raw")]


def test_verify_closes_the_backing_file_and_leaves_the_image_open(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    monkeypatch.setattr(MemorySource, "close", lambda self: closed.append(self.name))
    assert rules(small(1, backing_file=b"base", backing_format=b"raw").build(), Beside({"base": bytes(99)})) == []
    assert closed == ["base"]


# ---- what qemu writes ----


class QemuDisk:
    """A qcow2 that qemu-io writes, and beside it the bytes that it must have."""

    def __init__(self, path: Path, size: int, options: str = "", *, backing: tuple[str, str] | None = None) -> None:
        self.path = path
        self.content = bytearray(size)
        self._commands: list[str] = []
        command = ["qemu-img", "create", "-q", "-f", "qcow2"]
        command += ["-o", options] if options else []
        command += ["-b", backing[0], "-F", backing[1]] if backing else []
        subprocess.run([*command, path.name, str(size)], check=True, cwd=path.parent)

    def fill(self, offset: int, data: bytes) -> None:
        """Note what a backing file has."""
        self.content[offset : offset + len(data)] = data

    def write(self, offset: int, length: int, pattern: int, flags: str = "") -> None:
        self._commands += ["-c", f"write -q {flags} -P {pattern} {offset} {length}"]
        self.content[offset : offset + length] = bytes([pattern]) * length

    def write_zeroes(self, offset: int, length: int, flags: str = "") -> None:
        self._commands += ["-c", f"write -q -z {flags} {offset} {length}"]
        self.content[offset : offset + length] = bytes(length)

    def discard(self, offset: int, length: int) -> None:
        """Discard whole clusters; qemu makes them read as zero, over a backing file too, from version 3 on."""
        self._commands += ["-c", f"discard -q {offset} {length}"]
        self.content[offset : offset + length] = bytes(length)

    def done(self) -> Qcow2Image:
        subprocess.run(
            ["qemu-io", "-d", "unmap", "-f", "qcow2", *self._commands, self.path.name],
            check=True,
            capture_output=True,
            cwd=self.path.parent,
        )
        self._commands = []
        return self.open()

    def open(self) -> Qcow2Image:
        return Qcow2Driver().open(open_file(self.path), Beside(self.path.parent))


def qemu_map(path: Path) -> list[dict[str, Any]]:
    """Return qemu's map. It gives zeros that keep a place that place, which is no property of the disk's content."""
    output = subprocess.run(
        ["qemu-img", "map", "--output=json", path.name], check=True, capture_output=True, cwd=path.parent
    ).stdout
    entries: list[dict[str, Any]] = json.loads(output)
    for entry in entries:
        entry.setdefault("compressed", "offset" not in entry and entry["data"])
        if not entry["data"]:
            entry.pop("offset", None)
    return list(joined(map(MapEntry, entries)))


def assert_as_qemu(disk: QemuDisk, image: Qcow2Image) -> None:
    """The bytes are those that were written, and those that qemu reads; the map is qemu's."""
    reference = MemorySource(bytes(disk.content))
    assert_whole(image, reference)
    assert_same_bytes(qemu_content(disk.path), disk.content)
    assert list(joined(map_entries(image.extents()))) == qemu_map(disk.path)
    unit = image.info.unit_size
    assert_both_sides(image, reference, [unit, 512], limit=60)
    assert_random_ranges(image, reference, count=30)
    assert_map(image, reference)
    assert_threads(disk.open(), reference)
    assert list(Qcow2Driver().check(open_file(disk.path), Beside(disk.path.parent))) == []


VARIANTS: dict[str, tuple[int, str]] = {
    "version 2": (64 * KIB, "compat=0.10"),
    "version 2, 512": (512, "compat=0.10,cluster_size=512"),
    "512": (512, "cluster_size=512"),
    "1K, 64 bit refcounts": (KIB, "cluster_size=1k,refcount_bits=64"),
    "4K, 1 bit refcounts": (4 * KIB, "cluster_size=4k,refcount_bits=1"),
    "64K": (64 * KIB, ""),
    "64K, lazy refcounts": (64 * KIB, "lazy_refcounts=on"),
    "64K, zstd": (64 * KIB, "compression_type=zstd"),
    "64K, metadata preallocated": (64 * KIB, "preallocation=metadata"),
    "2M": (2 * MIB, "cluster_size=2M"),
    "2M, zstd": (2 * MIB, "cluster_size=2M,compression_type=zstd"),
    "16K, subclusters of 512": (16 * KIB, "cluster_size=16k,extended_l2=on"),
    "64K, subclusters, zstd": (64 * KIB, "extended_l2=on,compression_type=zstd"),
    "2M, subclusters": (2 * MIB, "cluster_size=2M,extended_l2=on"),
}


@needs_qemu
@pytest.mark.parametrize("name", VARIANTS)
def test_what_qemu_wrote_in_a_shuffled_order_reads_the_same_and_has_the_same_map(name: str, tmp_path: Path) -> None:
    cluster, options = VARIANTS[name]
    clusters = 150 if cluster <= 4 * KIB else 40 if cluster < MIB else 5
    disk = QemuDisk(tmp_path / "disk.qcow2", clusters * cluster + max(cluster // 8, 512), options)
    chance = random.Random(name)
    order = list(range(clusters))
    chance.shuffle(order)
    for number, index in enumerate(order):
        offset, pattern = index * cluster, number % 255 + 1
        action = number % 8
        if action < 3:
            disk.write(offset, cluster, pattern)
        elif action == 3:
            start = chance.randrange(0, cluster, 512)
            disk.write(offset + start, chance.randrange(start, cluster, 512) - start + 512, pattern)
        elif action == 4:
            # What is allocated cannot be written compressed.
            disk.write(offset, cluster, pattern, "" if "metadata" in options else "-c")
        elif action == 5:
            disk.write(offset, cluster, pattern)
            disk.write_zeroes(offset, cluster, "-u" if number % 16 < 8 else "")
        elif action == 6:
            disk.write_zeroes(offset, max(cluster // 4, 512))
    disk.write(clusters * cluster, 512, 77)
    image = disk.done()
    if "metadata" in options:
        # All is allocated, and qemu looks for the holes of the file instead; its map is that of the file system.
        assert_same_bytes(image.read_at(0, image.size), disk.content)
        assert_same_bytes(qemu_content(disk.path), disk.content)
        return
    assert_as_qemu(disk, image)


@needs_qemu
@pytest.mark.parametrize("options", ["", "extended_l2=on", "cluster_size=4k"])
def test_what_was_discarded_is_zero(options: str, tmp_path: Path) -> None:
    disk = QemuDisk(tmp_path / "disk.qcow2", 40 * 64 * KIB, options)
    disk.write(0, 40 * 64 * KIB, 5)
    disk.done()
    for index in (0, 3, 4, 17, 39):
        disk.discard(index * 64 * KIB, 64 * KIB)
    image = disk.done()
    assert_same_bytes(image.read_at(0, image.size), disk.content)
    assert sum(extent.length for extent in image.extents() if extent.kind is not DATA) == 5 * 64 * KIB


@needs_qemu
@pytest.mark.parametrize("compression", ["zlib", "zstd"])
@pytest.mark.parametrize("cluster_size", [512, 4 * KIB, 64 * KIB, 2 * MIB])
def test_what_qemu_img_compressed_reads_the_same(compression: str, cluster_size: int, tmp_path: Path) -> None:
    size = 5 * MIB + 1536 if cluster_size > 4 * KIB else 300 * KIB + 512
    content = bytearray(stamped(size, cluster_size))
    content[size // 3 : size // 2] = bytes(size // 2 - size // 3)
    (tmp_path / "disk.raw").write_bytes(content)
    options = f"compression_type={compression},cluster_size={cluster_size}"
    subprocess.run(
        ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, "disk.raw", "disk.qcow2"],
        check=True,
        cwd=tmp_path,
    )
    path = tmp_path / "disk.qcow2"
    image, reference = Qcow2Driver().open(open_file(path), NoRelatedFiles()), MemorySource(bytes(content))
    assert_whole(image, reference)
    assert_both_sides(image, reference, [cluster_size], limit=60)
    assert_threads(Qcow2Driver().open(open_file(path), NoRelatedFiles()), reference)
    assert list(joined(map_entries(image.extents()))) == qemu_map(path)
    assert any(entry["compressed"] for entry in map_entries(image.extents()))
    assert list(Qcow2Driver().check(open_file(path), NoRelatedFiles())) == []


@needs_qemu
@pytest.mark.parametrize("options", ["", "extended_l2=on", "cluster_size=4k", "compat=0.10"])
def test_a_chain_that_qemu_made_reads_and_maps_as_qemu_has_it(options: str, tmp_path: Path) -> None:
    unit = 64 * KIB
    # The raw base is shorter than the middle, and the middle shorter than the top.
    base = stamped(10 * unit + 512, 8)
    (tmp_path / "base.raw").write_bytes(base)
    middle = QemuDisk(tmp_path / "middle.qcow2", 20 * unit, options, backing=("base.raw", "raw"))
    middle.fill(0, base)
    middle.write(unit, unit, 1)
    middle.write(3 * unit + 4096, 512, 2)
    middle.write(12 * unit, unit, 3)
    middle.write(5 * unit, unit, 4, "-c")
    middle.write_zeroes(7 * unit, unit)
    middle.done()
    top = QemuDisk(tmp_path / "top.qcow2", 25 * unit + 512, options, backing=("middle.qcow2", "qcow2"))
    top.fill(0, bytes(middle.content))
    top.write(2 * unit, unit, 5)
    top.write_zeroes(5 * unit, unit)
    top.write(12 * unit + 512, 512, 6)
    top.write(22 * unit, unit, 7, "-c")
    top.write(25 * unit, 512, 8)
    image = top.done()
    assert {extent.depth for extent in image.extents()} == {0, 1, 2}
    assert_as_qemu(top, image)
    image.close()


@needs_qemu
def test_snapshots_inside_the_image_do_not_change_the_active_disk(tmp_path: Path) -> None:
    disk = QemuDisk(tmp_path / "disk.qcow2", MIB)
    disk.write(0, 512 * KIB, 1)
    disk.done()
    subprocess.run(["qemu-img", "snapshot", "-c", "before", str(disk.path)], check=True)
    disk.write(256 * KIB, 512 * KIB, 2)
    image = disk.done()
    assert_same_bytes(image.read_at(0, MIB), disk.content)
    assert [finding.rule for finding in image.info.findings] == ["qcow2-snapshots"]
    found = list(Qcow2Driver().check(open_file(disk.path), NoRelatedFiles()))
    assert [finding.severity for finding in found] == [Severity.INFO]


@needs_qemu
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("encrypt.format=aes,encrypt.key-secret=s", "encrypted \\(AES\\)"),
        ("data_file=data.raw", "external data file"),
    ],
)
def test_what_qemu_can_make_and_we_do_not_read_is_refused_by_name(options: str, message: str, tmp_path: Path) -> None:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=abc", "-o", options]
    subprocess.run([*command, "disk.qcow2", "1M"], check=True, cwd=tmp_path)
    with pytest.raises(UnsupportedFeature, match=message):
        Qcow2Driver().open(open_file(tmp_path / "disk.qcow2"), Beside(tmp_path))


@needs_qemu
def test_a_qcow1_of_qemu_is_known_and_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow", str(path), "1M"], check=True)
    source = open_file(path)
    assert Qcow2Driver().probe(ProbeWindow.of(source)) is Match.SIGNATURE
    with pytest.raises(UnsupportedFeature, match="QCOW1"):
        Qcow2Driver().open(source, NoRelatedFiles())


@needs_qemu
def test_a_disk_of_many_terabytes_is_mapped_at_once(tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    size = 60 << 40
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", str(disk), str(size)], check=True
    )
    places = {0: 1, 1 << 40: 2, size - 4096: 3}
    commands = [word for offset, byte in places.items() for word in ("-c", f"write -q -P {byte} {offset} 4096")]
    subprocess.run(["qemu-io", "-f", "qcow2", *commands, str(disk)], check=True, capture_output=True)
    image = Qcow2Driver().open(open_file(disk), NoRelatedFiles())
    reference = SparseReference(size, {offset: bytes([byte]) * 4096 for offset, byte in places.items()})
    for offset in places:
        start = max(offset - 512, 0)
        length = min(8192, size - start)
        assert_same_bytes(image.read_at(start, length), reference.read_at(start, length))
    assert [extent.offset for extent in image.extents() if extent.kind is DATA] == [
        0,
        1 << 40,
        size - 2 * MIB,
    ]


# ---- the corpus ----

ROWS = [row for row in corpus_rows() if row.path.endswith((".qcow2", ".qcow"))]
MAX_HASHED = 64 * MIB


def pieces(image: DiskImage) -> Iterator[bytes]:
    """Yield the disk; zeros that are known to be are not read."""
    for extent in image.extents():
        for at in range(extent.offset, extent.end, MIB):
            length = min(MIB, extent.end - at)
            yield bytes(length) if extent.kind is not DATA else image.read_at(at, length)


@pytest.mark.parametrize("row", [row for row in ROWS if row.sha256_content], ids=lambda row: row.path)
def test_the_corpus_has_its_content(row: CorpusRow, corpus: Path) -> None:
    image = Qcow2Driver().open(open_file(corpus / row.path), NoRelatedFiles())
    assert image.size == row.virtual_size
    assert sha256_of(pieces(image)) == row.sha256_content
    assert list(Qcow2Driver().check(open_file(corpus / row.path), NoRelatedFiles())) == []


@pytest.mark.parametrize(
    ("path", "missing"),
    [("cdi/cirros-snapshot1.qcow2", "cirros.raw"), ("cdi/cirros-snapshot2.qcow2", "cirros.raw")],
)
def test_a_chain_of_the_corpus_without_its_base_is_refused(path: str, missing: str, corpus: Path) -> None:
    with pytest.raises(ParentUnavailable, match=missing):
        Qcow2Driver().open(open_file(corpus / path), Beside((corpus / path).parent))


@pytest.mark.parametrize("row", [row for row in ROWS if row.hostile], ids=lambda row: row.path)
def test_hostile_images_of_the_corpus_are_refused(row: CorpusRow, corpus: Path) -> None:
    related = Beside({})
    with pytest.raises((CorruptImage, UnsupportedFeature, UnsafeReference)) as caught:
        Qcow2Driver().open(open_file(corpus / row.path), related)
    assert related.asked == []
    if "qcow1" in row.path:
        assert "QCOW1" in str(caught.value)
    if "passwd" in row.path:
        assert caught.type is UnsafeReference


def test_the_corpus_is_not_passed_over(manifest: list[CorpusRow]) -> None:
    assert sum(bool(row.sha256_content) and row.has_data for row in ROWS) >= 6
    assert sum(row.hostile for row in ROWS) >= 10
