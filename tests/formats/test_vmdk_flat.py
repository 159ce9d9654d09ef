"""Descriptors whose extents are flat files: what the lines say, what files they may name, and what is refused."""

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from diskfs.sources.locate import FolderFiles
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import (
    CorruptImage,
    ImageError,
    ParentUnavailable,
    TruncatedImage,
    UnsafeReference,
    UnsupportedFeature,
)
from diskfs_formats.extents import ExtentKind
from diskfs_formats.registry import open_image
from diskfs_formats.source import MemorySource
from diskfs_formats.vmdk import VmdkDriver
from diskfs_formats.vmdk.descriptor import MAX_DESCRIPTOR_SIZE, MAX_EXTENT_LINES
from diskfs_formats.vmdk.extents import MAX_EXTENT_FILES
from diskfs_formats.vmdk.image import VmdkImage
from tests.conformance.promises import (
    assert_both_sides,
    assert_map,
    assert_past_the_end,
    assert_random_ranges,
    assert_ready_bytes,
    assert_threads,
    assert_whole,
)
from tests.helpers import CorpusRow, assert_same_bytes, corpus_rows, sha256_of
from tests.samples.vmdk_builder import Layout, build, stamped
from tests.samples.vmdk_esx_builder import descriptor
from tests.samples.vmdk_files import (
    Beside,
    CountedSource,
    assert_qemu_agrees,
    findings,
    opened,
    our_map,
    qemu_map,
    rules,
    run,
    runs,
    written,
)

KIB = 1024


def from_lines(lines: Sequence[str], files: dict[str, bytes], **more: str) -> VmdkImage:
    return from_text(descriptor(lines, **more), files)


def from_text(text: str | bytes, files: dict[str, bytes] | None = None) -> VmdkImage:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return VmdkDriver().open(MemorySource(data, "disk.vmdk"), Beside(files or {}))


# ---- the corpus ----

ROWS = [row for row in corpus_rows() if row.format.startswith("vmdk-descriptor") and not row.hostile]


@pytest.mark.parametrize("row", [row for row in ROWS if row.sha256_content], ids=lambda row: row.path)
def test_content_of_the_corpus(row: CorpusRow, corpus: Path) -> None:
    path = corpus / row.path
    disk = opened(path)
    assert disk.size == row.virtual_size
    assert disk.info.variant in row.format
    assert sha256_of([disk.read_at(0, disk.size)]) == row.sha256_content
    assert sha256_of(disk.read_at(at, min(4096, disk.size - at)) for at in range(0, disk.size, 4096)) == (
        row.sha256_content
    )
    disk.close()
    assert findings(path) == []


@pytest.mark.parametrize("row", [row for row in ROWS if not row.sha256_content], ids=lambda row: row.path)
def test_an_extent_that_the_corpus_lacks_is_named(row: CorpusRow, corpus: Path) -> None:
    wanted = "-delta.vmdk" if "vmfsSparse" in row.format else "-s001.vmdk"
    with pytest.raises(ParentUnavailable, match=f"{Path(row.path).stem}.vmdk.*{Path(row.path).stem}{wanted}"):
        opened(corpus / row.path)


def test_the_corpus_is_not_passed_over(manifest: list[CorpusRow]) -> None:
    assert len(manifest) > 100
    assert len([row for row in ROWS if row.sha256_content]) >= 7
    assert len([row for row in ROWS if not row.sha256_content]) >= 2
    assert sum(row.has_data for row in ROWS) >= 4


# ---- qemu ----


def test_what_qemu_writes_as_monolithic_flat(tmp_path: Path) -> None:
    size = 8 * 65536 + 512
    run("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", "disk.vmdk", size, cwd=tmp_path)
    content = bytearray(size)
    places = [number * 32768 for number in range(0, 17, 2)]
    random.Random(3).shuffle(places)
    commands: list[str] = []
    for number, place in enumerate(places, 1):
        length = min(4096 * (1 + number % 3), size - place)
        commands += ["-c", f"write -q -P {number} {place} {length}"]
        content[place : place + length] = bytes([number]) * length
    run("qemu-io", "-f", "vmdk", *commands, "disk.vmdk", cwd=tmp_path)
    disk = opened(tmp_path / "disk.vmdk")
    reference = MemorySource(bytes(content))
    assert (disk.info.variant, disk.info.unit_size, disk.info.has_parent) == ("monolithicFlat", 0, False)
    assert_whole(disk, reference)
    assert_both_sides(disk, reference, (512, 4096, 65536), limit=8)
    assert_map(disk, reference)
    assert_qemu_agrees(tmp_path / "disk.vmdk", bytes(content))
    # qemu-img says "data" of a hole inside a flat extent, and "zero" as well.
    keys = ("depth", "present", "zero")
    assert runs(our_map(disk), keys) == runs(qemu_map(tmp_path / "disk.vmdk"), keys)
    assert any(entry["zero"] for entry in our_map(disk))
    disk.close()
    assert rules(tmp_path / "disk.vmdk") == []


# ---- lines ----


@pytest.mark.parametrize(
    "create_type",
    ["monolithicFlat", "vmfs", "vmfsThin", "vmfsEagerZeroedThick", "vmfsPreallocated", "vmfsThick", "custom", "new"],
)
@pytest.mark.parametrize("kind", ["FLAT", "VMFS"])
def test_every_type_goes_by_its_lines(create_type: str, kind: str) -> None:
    data = stamped(40)
    disk = from_lines([f'RW 40 {kind} "a-flat.vmdk"'], {"a-flat.vmdk": data}, create_type=create_type)
    assert disk.info.variant == create_type
    assert_whole(disk, MemorySource(data))
    assert from_lines(['RW 40 FLAT "a"'], {"a": data}, create_type="").info.variant == "custom"


def test_zero_and_read_only_extents_keep_their_places() -> None:
    """QEMU leaves both out, and gives everything behind them too low."""
    a, b, c = stamped(2048, 1), stamped(96, 2), stamped(2048, 3)
    files = {"a-flat.vmdk": a, "b-flat.vmdk": b, "c-flat.vmdk": c}
    lines = [
        'RW 2048 FLAT "a-flat.vmdk" 0',
        "RW 2048 ZERO",
        'RDONLY 96 FLAT "b-flat.vmdk" 0',
        "RDONLY 1 ZERO",
        'RW 2048 FLAT "c-flat.vmdk" 0',
    ]
    reference = MemorySource(a + bytes(2048 * 512) + b + bytes(512) + c)
    disk = from_lines(lines, files)
    assert_ready_bytes(disk, reference)
    assert_whole(disk, reference)
    assert_random_ranges(disk, reference)
    assert_map(disk, reference)
    assert_past_the_end(disk)
    assert_threads(disk, reference, reads=8)
    for edge in (0, 2048, 4096, 4192, 4193, 6241):
        for before, after in ((1, 0), (0, 1), (1, 1), (700, 700), (512, 0), (0, 512), (2000 * 512, 2000 * 512)):
            start, end = max(edge * 512 - before, 0), min(edge * 512 + after, disk.size)
            assert_same_bytes(disk.read_at(start, end - start), reference.read_at(start, end - start))
    kinds = [(extent.offset // 512, extent.length // 512, extent.kind) for extent in disk.extents()]
    assert kinds == [
        (0, 2048, ExtentKind.DATA),
        (2048, 2048, ExtentKind.ZERO),
        (4096, 96, ExtentKind.DATA),
        (4192, 1, ExtentKind.ZERO),
        (4193, 2048, ExtentKind.DATA),
    ]


def test_lines_may_share_a_file_at_different_offsets_and_in_any_order() -> None:
    data = stamped(100)
    related = Beside({"a": data})
    lines = ['RW 10 FLAT "a" 90', 'RW 20 FLAT "a"', 'RW 20 FLAT "a" 20', 'RW 1 FLAT "a" 99', "RW 3 ZERO"]
    source = MemorySource(descriptor(lines).encode(), "disk.vmdk")
    disk = VmdkDriver().open(source, related)
    expected = data[90 * 512 :] + data[: 40 * 512] + data[99 * 512 :] + bytes(3 * 512)
    assert_whole(disk, MemorySource(expected))
    assert_both_sides(disk, MemorySource(expected), (512,))
    # Two lines whose bytes follow each other are one run.
    assert [extent.length // 512 for extent in disk.extents()] == [10, 40, 1, 3]
    assert [each.name for each in related.opened] == ["a"]
    assert [finding.rule for finding in VmdkDriver().check(source, related)] == ["vmdk-extent-overlap"]


def test_many_lines_of_one_file_open_it_once() -> None:
    data = stamped(MAX_EXTENT_LINES)
    related = Beside({"a": data})
    order = list(range(MAX_EXTENT_LINES))
    random.Random(1).shuffle(order)
    text = descriptor([f'RW 1 FLAT "a" {number}' for number in order])
    disk = VmdkDriver().open(MemorySource(text.encode(), "disk.vmdk"), related)
    assert_same_bytes(disk.read_at(0, disk.size), b"".join(data[number * 512 : number * 512 + 512] for number in order))
    assert len(related.opened) == 1
    assert list(VmdkDriver().check(MemorySource(text.encode(), "disk.vmdk"), related)) == []


def test_the_number_of_files_is_bounded() -> None:
    files = {f"f{number:04}": bytes([number % 256]) * 512 for number in range(MAX_EXTENT_FILES + 1)}
    lines = [f'RW 1 FLAT "{name}"' for name in files]
    disk = from_lines(lines[:MAX_EXTENT_FILES], files)
    assert_same_bytes(disk.read_at(0, disk.size), b"".join(list(files.values())[:MAX_EXTENT_FILES]))
    related = Beside(files)
    with pytest.raises(UnsupportedFeature, match=f"over {MAX_EXTENT_FILES} files"):
        VmdkDriver().open(MemorySource(descriptor(lines).encode(), "disk.vmdk"), related)
    assert related.opened == []


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ('NOACCESS 8 FLAT "a"', UnsupportedFeature, "NOACCESS"),
        ("NOACCESS 8 ZERO", UnsupportedFeature, "NOACCESS"),
        ('RW 8 VMFSRDM "a"', UnsupportedFeature, "VMFSRDM.*raw device map"),
        ('RW 8 VMFSRDMP "a"', UnsupportedFeature, "VMFSRDMP.*raw device map"),
        ('RW 8 VMFSRAW "a"', UnsupportedFeature, "VMFSRAW.*raw device map"),
        ('RW 8 HOLOGRAM "a"', UnsupportedFeature, "'HOLOGRAM'.*not known"),
        ('RW 0 FLAT "a"', CorruptImage, "0 sectors"),
        ("RW 0 ZERO", CorruptImage, "0 sectors"),
        ("RW 8 FLAT", CorruptImage, "names no file"),
        ("RW 8 SPARSE", CorruptImage, "names no file"),
        ('RW 8 VMFS "a" 1', CorruptImage, "offset 1"),
        ('RW 8 SPARSE "b" 8', CorruptImage, "offset 8"),
        ('RW 8 FLAT "a" 1', TruncatedImage, "a, which ends at 0x1000"),
        ('RW 9 FLAT "a" 0', TruncatedImage, "a, which ends at 0x1000"),
        ('RW 1 FLAT "a" 8', TruncatedImage, "a, which ends at 0x1000"),
        ('RW 1 FLAT "a" 9999999999999999999', TruncatedImage, "a, which ends at"),
        ('RW 18014398509481983 FLAT "a"', CorruptImage, "sectors long, at most"),
        ('RW 8 FLAT "c"', ParentUnavailable, "disk.vmdk: extent 2 of the descriptor: 'c' is not here"),
        ('RW 8 SPARSE "a"', CorruptImage, "'a' again"),
    ],
)
def test_a_line_that_is_not_read_is_refused(line: str, error: type[ImageError], words: str) -> None:
    files = {"a": stamped(8), "b": stamped(8)}
    with pytest.raises(error, match=words) as raised:
        from_lines(['RW 8 FLAT "a"', line], files)
    assert str(raised.value).startswith("disk.vmdk: extent 2 of the descriptor")
    for good in ('RW 8 FLAT "a"', 'RW 7 FLAT "a" 1', 'RW 1 FLAT "a" 7', 'RW 8 VMFS "a" 0', "rdonly 8 zero"):
        assert from_lines([good], files).size == int(good.split()[1]) * 512


@pytest.mark.parametrize(
    "create_type",
    ["vmfsRDM", "vmfsRDMP", "vmfsRawDeviceMap", "vmfsPassthroughRawDeviceMap", "vmfsRaw", "fullDevice",
     "partitionedDevice", "VMFSRDM"],
)  # fmt: skip
def test_a_disk_that_is_a_device_is_refused_by_name(create_type: str) -> None:
    related = Beside({"a": stamped(8)})
    text = descriptor(['RW 8 FLAT "a"'], create_type)
    with pytest.raises(UnsupportedFeature, match=f"of type {create_type} is a physical device"):
        VmdkDriver().open(MemorySource(text.encode(), "disk.vmdk"), related)
    assert related.opened == []


def test_an_encrypted_disk_is_refused() -> None:
    text = descriptor(['RW 8 FLAT "a"'], extra='encryption.keySafe = "vmware:key/list/(x)"\n')
    with pytest.raises(UnsupportedFeature, match="encrypted"):
        from_text(text, {"a": stamped(8)})
    inside = descriptor(['RW 8 SPARSE "disk.vmdk"'], extra='encryption.keySafe = "vmware:key/list/(x)"\n')
    with pytest.raises(UnsupportedFeature, match="encrypted"):
        from_text(bytes(build(stamped(8), Layout(grain=8, descriptor=inside))))


def test_a_descriptor_without_extents_is_refused() -> None:
    with pytest.raises(CorruptImage, match="no extent line"):
        from_lines([], {})


def test_the_sum_of_all_extents_is_bounded() -> None:
    most = (1 << 54) - 1
    disk = from_lines([f"RW {most - 8} ZERO", 'RW 8 FLAT "a"'], {"a": stamped(8)})
    assert disk.size == most * 512
    assert_same_bytes(disk.read_at(disk.size - 4608, 4608), bytes(512) + stamped(8))
    with pytest.raises(CorruptImage, match=r"extent 2 .* makes the disk"):
        from_lines([f"RW {most - 7} ZERO", 'RW 8 FLAT "a"'], {"a": stamped(8)})


@pytest.mark.parametrize("size", [MAX_DESCRIPTOR_SIZE, MAX_DESCRIPTOR_SIZE + 1])
def test_a_descriptor_over_a_mebibyte_is_an_error_and_not_cut(size: int) -> None:
    text = descriptor(['RW 8 FLAT "a"']).encode().ljust(size - 17, b"#") + b'\nRW 8 FLAT "a" 8\n'
    files = {"a": stamped(16)}
    if size <= MAX_DESCRIPTOR_SIZE:
        assert_same_bytes(from_text(text, files).read_at(0, 8192), stamped(16))
    else:
        with pytest.raises(CorruptImage, match=f"too long: {size} bytes"):
            from_text(text, files)


def test_a_descriptor_inside_a_header_without_capacity_lists_files() -> None:
    data = stamped(24)
    text = descriptor(['RW 16 FLAT "a-flat.vmdk" 8', "RW 8 ZERO", 'RW 8 FLAT "a-flat.vmdk"'], "monolithicFlat")
    built = build(b"", Layout(descriptor=text)).set_field("overHead", 2**63)
    disk = VmdkDriver().open(MemorySource(bytes(built), "disk.vmdk"), Beside({"a-flat.vmdk": data}))
    assert disk.info.variant == "monolithicFlat"
    assert_whole(disk, MemorySource(data[8 * 512 :] + bytes(4096) + data[:4096]))
    with pytest.raises(CorruptImage, match=r"capacity is 0, and no descriptor"):
        from_text(bytes(build(b"", Layout(descriptor="\0"))), {})


# ---- files ----


DISGUISES = {
    "descriptor": descriptor(['RW 1 FLAT "/etc/passwd"']).encode(),
    "sparse": bytes(build(stamped(8), Layout(grain=8))),
    "qcow2": b"QFI\xfb" + bytes(508),
    "unfinished": b"kdmv",
    "COWD": b"COWD",
}


@pytest.mark.parametrize("name", DISGUISES)
def test_a_flat_file_is_raw_whatever_a_guest_wrote_into_it(name: str) -> None:
    data = DISGUISES[name].ljust(100 * 512, b"\0")
    for kind in ("FLAT", "VMFS"):
        assert_whole(from_lines([f'RW 100 {kind} "a"'], {"a": data}), MemorySource(data))


@pytest.mark.parametrize("kind", ["FLAT", "SPARSE", "SESPARSE", "VMFS"])
def test_a_descriptor_does_not_back_itself(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, {"disk.vmdk": descriptor([f'RW 1 {kind} "disk.vmdk"']).ljust(1024)})
    with pytest.raises(UnsafeReference, match="the descriptor itself"):
        opened(path)
    os.link(path, tmp_path / "other.vmdk")
    written(tmp_path, {"disk.vmdk": descriptor([f'RW 1 {kind} "other.vmdk"']).ljust(1024)})
    with pytest.raises(UnsafeReference, match="the descriptor itself"):
        opened(path)


def test_another_descriptor_is_no_sparse_extent() -> None:
    for kind in ("SPARSE", "VMFSSPARSE", "SESPARSE"):
        with pytest.raises(CorruptImage, match=r"extent 1 .*: b\.vmdk is no"):
            from_lines([f'RW 1 {kind} "b.vmdk"'], {"b.vmdk": descriptor(["RW 1 ZERO"]).encode()})


def test_a_file_that_is_longer_than_its_line_is_read_as_far_as_the_line_says() -> None:
    disk = from_lines(['RW 5 FLAT "a"'], {"a": stamped(8) + b"x"})
    assert_whole(disk, MemorySource(stamped(5)))


def test_a_file_cut_by_one_byte_is_named() -> None:
    with pytest.raises(TruncatedImage, match=r"extent 1 of the descriptor is 4096 bytes .* of a-flat, which ends"):
        from_lines(['RW 8 FLAT "a-flat"'], {"a-flat": stamped(8)[:-1]})


def test_names_may_be_in_the_declared_encoding(tmp_path: Path) -> None:
    text = 'version=1\nencoding="GBK"\nCID=1\nparentCID=ffffffff\nRW 8 FLAT "磁盘-flat.vmdk" 0\n'
    path = written(tmp_path, {"disk.vmdk": text.encode("gbk"), "磁盘-flat.vmdk": stamped(8)})
    assert_whole(opened(path), MemorySource(stamped(8)))


def test_ready_bytes_come_straight_from_the_file() -> None:
    related = Beside({"a": stamped(4096), "b": stamped(8)})
    lines = ['RW 4096 FLAT "a"', 'RW 8 FLAT "b"']
    disk = VmdkDriver().open(MemorySource(descriptor(lines).encode(), "disk.vmdk"), related)
    first, second = related.opened
    before = first.reads
    found = disk.read_if_ready(0, 4096 * 512)
    assert found is not None
    assert_same_bytes(found, stamped(4096))
    assert disk.read_if_ready(4096 * 512 - 5, 10) == stamped(4096)[-5:] + stamped(8)[:5]
    assert first.reads == before
    second.is_ready = False
    assert disk.read_if_ready(4096 * 512 - 5, 5) == stamped(4096)[-5:]
    assert disk.read_if_ready(4096 * 512 - 5, 6) is None
    assert disk.read_if_ready(4096 * 512, 1) is None


def test_holes_of_a_flat_file_are_zero_on_the_map(tmp_path: Path) -> None:
    size = 3 << 20
    path = written(tmp_path, {"disk.vmdk": descriptor(['RW 4096 FLAT "a" 1024', 'RW 1024 FLAT "a"', "RW 8 ZERO"])})
    content = bytearray(size)
    with (tmp_path / "a").open("wb") as file:
        file.truncate(size)
        for offset in (0, 1 << 20, 2 << 20):
            file.seek(offset)
            file.write(stamped(128, offset))
            content[offset : offset + 65536] = stamped(128, offset)
    disk = opened(path)
    reference = MemorySource(bytes(content[1024 * 512 : 5120 * 512] + content[: 1024 * 512] + bytes(4096)))
    assert_whole(disk, reference)
    assert_map(disk, reference)
    assert sum(extent.length for extent in disk.extents() if extent.kind is ExtentKind.DATA) == 3 * 65536


@pytest.mark.parametrize(
    "close", [lambda disk: disk.close(), lambda disk: (disk.close(), disk.close())], ids=["once", "twice"]
)
def test_closing_the_disk_closes_every_file(close: Callable[[DiskImage], object]) -> None:
    related = Beside({"a": stamped(8), "b": stamped(8)})
    source = CountedSource(descriptor(['RW 8 FLAT "a"', 'RW 8 FLAT "b"']).encode(), "disk.vmdk")
    disk = VmdkDriver().open(source, related)
    assert not any(each.closed for each in (source, *related.opened))
    close(disk)
    assert all(each.closed for each in (source, *related.opened))


def test_a_disk_that_does_not_come_about_closes_what_was_opened_for_it() -> None:
    for last in ('RW 9 FLAT "b"', 'RW 8 SPARSE "b"', 'RW 8 FLAT "missing"'):
        related = Beside({"a": stamped(8), "b": stamped(8)})
        with pytest.raises(ImageError):
            VmdkDriver().open(MemorySource(descriptor(['RW 8 FLAT "a"', last]).encode(), "disk.vmdk"), related)
        assert related.opened
        assert all(each.closed for each in related.opened)


def test_checking_closes_the_extents_and_not_the_descriptor() -> None:
    related = Beside({"a": stamped(8)})
    source = CountedSource(descriptor(['RW 8 FLAT "a"']).encode(), "disk.vmdk")
    assert list(VmdkDriver().check(source, related)) == []
    assert [each.closed for each in related.opened] == [True]
    assert not source.closed


def test_a_descriptor_is_recognised_and_opened_without_being_told(tmp_path: Path) -> None:
    path = written(tmp_path, {"disk.vmdk": descriptor(['RW 8 FLAT "a"']), "a": stamped(8)})
    disk = open_image(MemorySource(path.read_bytes(), "disk.vmdk"), FolderFiles(tmp_path))
    assert isinstance(disk, VmdkImage)
    assert disk.cid == 0x0BADCAFE
    assert_whole(disk, MemorySource(stamped(8)))
