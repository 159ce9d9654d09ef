"""Descriptors whose extents are hosted sparse files: what they hold together, and what qemu splits at 2 GiB."""

import contextlib
import itertools
import random
import tracemalloc
from pathlib import Path

import pytest

from diskfs_formats.driver import NoRelatedFiles
from diskfs_formats.errors import CorruptImage, ImageError, UnsafeReference
from diskfs_formats.extents import ExtentKind
from diskfs_formats.source import MemorySource
from diskfs_formats.vmdk import VmdkDriver
from diskfs_formats.vmdk.image import VmdkImage
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
from tests.helpers import assert_same_bytes
from tests.samples.vmdk_builder import NO_DESCRIPTOR, Built, Layout, build, build_grains, stamped, with_zero_grains
from tests.samples.vmdk_esx_builder import descriptor
from tests.samples.vmdk_files import Beside, opened, our_map, qemu_map, rules, run, runs, written

EMPTY_TEXT = "\0"
GIB = 1 << 30

PARTS = {
    "a-s001.vmdk": (120, Layout(grain=8, entries=4, descriptor=NO_DESCRIPTOR, shuffle=1)),
    "a-s002.vmdk": (77, Layout(grain=16, entries=16, descriptor=EMPTY_TEXT, descriptor_sectors=20, redundant=True)),
    "a-s003.vmdk": (
        100,
        Layout(grain=16, entries=2, compressed=True, footer=True, version=3, descriptor=NO_DESCRIPTOR),
    ),
    "a-s004.vmdk": (33, Layout(grain=8, version=2, zeroed=frozenset({1, 2}), descriptor=NO_DESCRIPTOR)),
}
"""File -> sectors and layout: capacities that are no whole number of grains, and grains of several sizes."""


def contents() -> dict[str, bytes]:
    found = {}
    for number, (name, (sectors, layout)) in enumerate(PARTS.items()):
        found[name] = with_zero_grains(stamped(sectors, number), layout.grain, {1, 2, 4} & {*range(sectors)})
    return found


def disk_of_all(folder: Path) -> tuple[Path, bytes]:
    """Write a disk of every kind of extent; return its descriptor and its bytes."""
    data = contents()
    lines = [
        'RW 120 SPARSE "a-s001.vmdk"',
        'RW 70 SPARSE "a-s002.vmdk"',
        "RW 9 ZERO",
        'RDONLY 100 SPARSE "a-s003.vmdk"',
        'RW 7 FLAT "a-flat.vmdk" 1',
        'RW 33 SPARSE "a-s004.vmdk"',
    ]
    files: dict[str, str | bytes] = {"a.vmdk": descriptor(lines, "twoGbMaxExtentSparse"), "a-flat.vmdk": stamped(8, 9)}
    for name, (_, layout) in PARTS.items():
        files[name] = bytes(build(data[name], layout))
    first, second, third, fourth = data.values()
    content = first + second[: 70 * 512] + bytes(9 * 512) + third + stamped(8, 9)[512:] + fourth
    return written(folder, files), content


def in_memory(lines: list[str], files: dict[str, bytes]) -> VmdkImage:
    return VmdkDriver().open(MemorySource(descriptor(lines).encode(), "disk.vmdk"), Beside(files))


def part(content: bytes, layout: Layout | None = None) -> Built:
    return build(content, layout or Layout(grain=8, entries=4, descriptor=NO_DESCRIPTOR))


def test_extents_of_every_kind_follow_each_other(tmp_path: Path) -> None:
    path, content = disk_of_all(tmp_path)
    reference = MemorySource(content)
    disk = opened(path)
    assert (disk.info.variant, disk.info.unit_size, disk.info.compressed) == ("twoGbMaxExtentSparse", 0, True)
    assert disk.info.findings == ()
    assert_ready_bytes(disk, reference)
    assert_whole(disk, reference)
    assert_both_sides(disk, reference, (512, 4096, 8192))
    assert_random_ranges(disk, reference, count=200)
    assert_map(disk, reference)
    assert_past_the_end(disk)
    assert_threads(opened(path), reference)
    edges = list(itertools.accumulate((120, 70, 9, 100, 7, 33)))
    for edge in edges[:-1]:
        for before, after in itertools.product((0, 1, 512, 3000, 20_000), repeat=2):
            start, end = max(edge * 512 - before, 0), min(edge * 512 + after, disk.size)
            assert_same_bytes(disk.read_at(start, end - start), content[start:end])
    disk.close()
    assert rules(path) == []


def test_everything_read_once_is_ready(tmp_path: Path) -> None:
    path, content = disk_of_all(tmp_path)
    disk = opened(path)
    disk.read_at(0, disk.size)
    for offset in range(0, disk.size, 512):
        found = disk.read_if_ready(offset, 512)  # type: ignore[attr-defined]  # every MappedImage has it
        assert found is not None, offset
        assert_same_bytes(found, content[offset : offset + 512])


def test_the_map_of_sparse_and_zero_extents() -> None:
    content = with_zero_grains(stamped(32), 8, (1, 3))
    disk = in_memory(
        ['RW 32 SPARSE "a"', "RW 8 ZERO", 'RW 25 SPARSE "b"'], {"a": bytes(part(content)), "b": bytes(part(content))}
    )
    kinds = [(extent.offset // 512, extent.length // 512, extent.kind) for extent in disk.extents()]
    assert kinds == [
        (0, 8, ExtentKind.DATA), (8, 8, ExtentKind.HOLE), (16, 8, ExtentKind.DATA), (24, 8, ExtentKind.HOLE),
        (32, 8, ExtentKind.ZERO), (40, 8, ExtentKind.DATA), (48, 8, ExtentKind.HOLE), (56, 8, ExtentKind.DATA),
        (64, 1, ExtentKind.HOLE),
    ]  # fmt: skip
    assert disk.info.unit_size == 4096


# ---- qemu ----


@pytest.mark.parametrize("kind", ["Sparse", "Flat"])
def test_what_qemu_splits(kind: str, tmp_path: Path) -> None:
    size = 4 * GIB + (1 << 20) + 512
    run(
        "qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat=twoGbMaxExtent{kind}", "disk.vmdk", size,
        cwd=tmp_path,
    )  # fmt: skip
    assert len(list(tmp_path.iterdir())) == 4
    places = [0, 65536, 2 * GIB - 65536, 2 * GIB - 700, 2 * GIB + 65536, 4 * GIB - 512, 4 * GIB + 512, size - 512]
    order = list(enumerate(places, 1))
    random.Random(2).shuffle(order)
    chunks: dict[int, bytes] = {}
    commands: list[str] = []
    for number, place in order:
        length = min(1024 + 512 * (number % 3), size - place)
        chunks[place] = bytes([number]) * length
    for place, chunk in chunks.items():
        commands += ["-c", f"write -q -P {chunk[0]} {place} {len(chunk)}"]
    run("qemu-io", "-f", "vmdk", *commands, "disk.vmdk", cwd=tmp_path)
    reference = SparseReference(size, chunks)
    disk = opened(tmp_path / "disk.vmdk")
    assert disk.size == size
    for place, chunk in chunks.items():
        for before, length in ((0, len(chunk)), (5000, 10_000), (65536, 70_000), (1, 2)):
            start = max(place - before, 0)
            count = min(length, size - start)
            assert_same_bytes(disk.read_at(start, count), reference.read_at(start, count))
    assert_both_sides(disk, reference, (2 * GIB,))
    # qemu-img says "data" of a hole inside a flat extent, and "zero" as well.
    keys = ("depth", "present", "zero") if kind == "Flat" else ("depth", "present", "zero", "data")
    assert runs(our_map(disk), keys) == runs(qemu_map(tmp_path / "disk.vmdk"), keys)
    if kind == "Sparse":
        places_of = [entry["offset"] for entry in our_map(disk) if "offset" in entry]
        assert places_of == [entry["offset"] for entry in qemu_map(tmp_path / "disk.vmdk") if "offset" in entry]
        assert_map(disk, reference, samples=4)
    disk.close()
    assert rules(tmp_path / "disk.vmdk") == []


# ---- lines and headers that disagree ----


def test_a_line_is_never_longer_than_its_header_says() -> None:
    built = bytes(part(stamped(20)))
    for sectors in (1, 19, 20):
        disk = in_memory([f'RW {sectors} SPARSE "a"', "RW 1 ZERO"], {"a": built})
        assert_whole(disk, MemorySource(stamped(20)[: sectors * 512] + bytes(512)))
    with pytest.raises(
        CorruptImage, match="extent 1 of the descriptor is 21 sectors long, and the header of a says 20"
    ):
        in_memory(['RW 21 SPARSE "a"'], {"a": built})


def test_a_file_whose_own_descriptor_lists_extents_is_no_extent() -> None:
    disk = bytes(build(stamped(8), Layout(grain=8)))
    with pytest.raises(CorruptImage, match="a has a descriptor of its own"):
        in_memory(['RW 8 SPARSE "a"'], {"a": disk})
    wrapped = bytes(build(b"", Layout(descriptor=descriptor(['RW 8 FLAT "b"']))))
    with pytest.raises(CorruptImage, match="a has a descriptor of its own"):
        in_memory(['RW 8 SPARSE "a"'], {"a": wrapped, "b": stamped(8)})


@pytest.mark.parametrize("second", ['RW 8 SPARSE "a"', 'RW 8 FLAT "a"', 'RW 8 VMFSSPARSE "a"', 'RW 8 SESPARSE "a"'])
def test_a_sparse_file_is_one_extent_only(second: str) -> None:
    for lines in (['RW 8 SPARSE "a"', second], [second, 'RW 8 SPARSE "a"']):
        with pytest.raises(CorruptImage, match="extent 2 of the descriptor is 'a' again"):
            in_memory(lines, {"a": bytes(part(stamped(8)))})


@pytest.mark.parametrize("data", [b"", b"KDM", b"kdmv" + bytes(600), bytes(4096), b"conectix" + bytes(600)])
def test_what_is_no_sparse_extent_is_refused_by_name(data: bytes) -> None:
    for kind in ("SPARSE", "VMFSSPARSE", "SESPARSE"):
        with pytest.raises(CorruptImage, match="b-s002"):
            in_memory(['RW 8 SPARSE "a"', f'RW 8 {kind} "b-s002"'], {"a": bytes(part(stamped(8))), "b-s002": data})


def test_a_header_without_capacity_does_not_back_itself() -> None:
    text = descriptor(['RW 8 SPARSE "disk.vmdk"'])
    data = bytes(build(b"", Layout(descriptor=text)))
    with pytest.raises(UnsafeReference, match="the descriptor itself"):
        VmdkDriver().open(MemorySource(data, "disk.vmdk"), Beside({"disk.vmdk": data}))


def test_a_warning_of_any_extent_is_one_of_the_disk() -> None:
    built = part(stamped(8)).set_field("uncleanShutdown", 1)
    disk = in_memory(['RW 8 SPARSE "a"', 'RW 8 SPARSE "b"'], {"a": bytes(part(stamped(8))), "b": bytes(built)})
    assert [(finding.rule, finding.message.split(":")[0]) for finding in disk.info.findings] == [
        ("vmdk-unclean-shutdown", "b")
    ]


# ---- damage ----


def test_a_bad_grain_fails_only_its_own_reads_and_names_its_file(tmp_path: Path) -> None:
    content = stamped(64)
    damaged = part(content).set_entry(3, 0x7FFFFFFF)
    path = written(
        tmp_path,
        {
            "a.vmdk": descriptor(['RW 64 SPARSE "a-s001"', 'RW 64 SPARSE "a-s002"']),
            "a-s001": bytes(part(content)),
            "a-s002": bytes(damaged),
        },
    )
    disk = opened(path)
    failed = []
    for grain in range(16):
        try:
            assert_same_bytes(disk.read_at(grain * 4096, 4096), (content * 2)[grain * 4096 : (grain + 1) * 4096])
        except CorruptImage as error:
            failed.append((grain, "a-s002: grain 3 " in str(error)))
    assert failed == [(11, True)]
    disk.close()
    assert rules(path) == ["vmdk-grain"]


def test_a_part_cut_anywhere_fails_only_where_it_is_cut() -> None:
    content = stamped(64)
    built = bytes(part(content))
    lines = ["RW 8 ZERO", 'RW 64 SPARSE "a"', 'RW 64 SPARSE "b"']
    for length in range(0, len(built), 509):
        try:
            disk = in_memory(lines, {"a": built[:length], "b": built})
        except ImageError:
            continue
        for offset in range(0, disk.size, 4096):
            with contextlib.suppress(ImageError):
                expected = (bytes(4096) + content * 2)[offset : offset + 4096]
                assert_same_bytes(disk.read_at(offset, 4096), expected)


def test_grains_and_tables_that_share_their_places_are_found() -> None:
    def found(built: Built) -> list[tuple[str, str]]:
        source = MemorySource(bytes(built), "d")
        return [(each.rule, each.message) for each in VmdkDriver().check(source, NoRelatedFiles())]

    layout = Layout(grain=8, entries=4)
    base = build(stamped(160), layout)
    assert found(base) == []
    twice = base.copy().set_entry(5, base.grains[9])
    assert [rule for rule, _ in found(twice)] == ["vmdk-grain-overlap"]
    assert f"at offset {base.grains[9] * 512:#x} lies over another grain" in found(twice)[0][1]
    for shift in (-7, -1, 1, 7):
        # Neighbours of grain 9 are stored beside it, so every shift reaches into one of them.
        overlapping = found(base.copy().set_entry(9, base.grains[9] + shift))
        assert {rule for rule, _ in overlapping} == {"vmdk-grain-overlap"}, shift
    over_table = base.copy().set_entry(5, base.tables[2])
    overlapping = found(over_table)
    assert {rule for rule, _ in overlapping} == {"vmdk-grain-overlap"}
    assert sum("lies over grain table" in message for _, message in overlapping) == 3
    assert f"lies over grain table 2 at {base.tables[2] * 512:#x}" in overlapping[-3][1]
    one_table = base.copy().set_directory(3, base.tables[1])
    rules_found = found(one_table)
    assert [rule for rule, _ in rules_found] == ["vmdk-table-overlap", "vmdk-table-overlap"]
    assert "grain tables 1 and 3 lie over each other" in rules_found[0][1]
    assert "not examined" in rules_found[1][1]


def test_a_table_that_stands_for_a_whole_disk_is_checked_at_once() -> None:
    count = 4096
    built = build_grains({0: b"x" * 512}, count * 512 * 128, Layout(entries=512, descriptor=NO_DESCRIPTOR))
    table, grain = built.tables[0], built.grains[0]
    built.data[table * 512 : table * 512 + 2048] = grain.to_bytes(4, "little") * 512
    built.data[built.gd * 512 : built.gd * 512 + count * 4] = table.to_bytes(4, "little") * count
    found = list(VmdkDriver().check(MemorySource(bytes(built), "d"), NoRelatedFiles()))
    assert {each.rule for each in found} == {"vmdk-no-descriptor", "vmdk-table-overlap"}
    assert len(found) < 1010


# ---- memory ----


def test_the_tables_of_all_extents_share_one_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 19
    monkeypatch.setattr("diskfs_formats.vmdk.grains.TABLES_KEPT", limit)
    layout = Layout(grain=1, entries=4096, descriptor=NO_DESCRIPTOR)
    files = {}
    for number in range(20):
        built = build_grains({0: b"x" * 512}, 4096 * 20, layout)
        place = built.tables[0] * 512
        built.data[place : place + 4096 * 4] = random.Random(number).randbytes(4096 * 4)
        for table in range(20):
            built.set_directory(table, built.tables[0])
        files[f"f{number}"] = bytes(built)
    disk = in_memory([f'RW {4096 * 20} SPARSE "{name}"' for name in files], files)
    tracemalloc.start()
    for number in range(0, 400, 8):
        with contextlib.suppress(CorruptImage):
            disk.read_at(number * 4096 * 512, 1)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < limit * 5 // 4
