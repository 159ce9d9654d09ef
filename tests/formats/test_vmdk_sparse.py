"""Sparse and stream-optimized VMDK: every layout a writer may choose, and what qemu-img reads and writes."""

import contextlib
import functools
import itertools
import json
import random
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs.cli.map import joined, map_entries
from diskfs.sources.file import open_file
from diskfs_formats.driver import DiskImage, Match, NoRelatedFiles, ProbeWindow
from diskfs_formats.errors import CorruptImage, ParentUnavailable, TruncatedImage, UnsupportedFeature
from diskfs_formats.extents import ExtentKind
from diskfs_formats.registry import open_image
from diskfs_formats.source import ByteSource, MemorySource
from diskfs_formats.vmdk import VmdkDriver
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
from tests.samples.vmdk_builder import (
    NO_DESCRIPTOR,
    SECTOR,
    Built,
    Layout,
    build,
    build_grains,
    descriptor_text,
    stamped,
    with_zero_grains,
)

GRAINS = (1, 8, 16, 128, 256, 2048)
ENTRIES = (1, 128, 256, 512, 1024, 4096)
QEMU_MAX_ENTRIES = 512


def opened(built: Built | bytes) -> DiskImage:
    return VmdkDriver().open(MemorySource(bytes(built), "disk.vmdk"), NoRelatedFiles())


@functools.cache
def content(grain: int) -> bytes:
    """A disk of a few grains, not a whole number of them, some of them all zero."""
    # An odd number of sectors, and two tables of 128 entries where that stays small.
    sectors = min(max(5 * grain, 160 * grain if grain <= 16 else 0), 6 * 2048) + 1 + grain // 2
    grains = -(-sectors // grain)
    holes = random.Random(grain).sample(range(grains), grains // 4)
    return with_zero_grains(stamped(sectors, grain), grain, holes)


def layouts() -> Iterator[Layout]:
    for number, (grain, entries, compressed, footer) in enumerate(
        itertools.product(GRAINS, ENTRIES, (False, True), (False, True))
    ):
        yield Layout(
            grain=grain,
            entries=entries,
            compressed=compressed,
            footer=footer,
            version=1 + number % 3,
            redundant=number % 2 == 0 and not footer,
            descriptor=NO_DESCRIPTOR if number % 5 == 0 else None,
            short_last=number % 3 == 0,
            shuffle=number if number % 4 else None,
            level=0 if number % 7 == 0 else 1,
            gap=number % 2 if compressed else 0,
        )


def name_of(layout: Layout) -> str:
    kind = "deflate" if layout.compressed else "plain"
    return f"{layout.grain}x{layout.entries}-{kind}-{'footer' if layout.footer else 'header'}"


LAYOUTS = tuple(layouts())


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_every_layout_reads_right(layout: Layout) -> None:
    data = content(layout.grain)
    built = build(data, layout)
    reference = MemorySource(data)
    disk = opened(built)
    table = layout.grain * layout.entries * SECTOR
    assert_ready_bytes(disk, reference)
    assert_whole(disk, reference)
    assert_both_sides(disk, reference, (layout.grain * SECTOR, table), limit=6)
    assert_random_ranges(disk, reference, count=20)
    assert_map(disk, reference, samples=4)
    assert_past_the_end(disk)
    assert_threads(opened(built), reference, reads=3)
    disk.close()


@pytest.mark.parametrize(
    "layout",
    [layout for layout in LAYOUTS if layout.entries <= QEMU_MAX_ENTRIES and layout.entries != 256],
    ids=name_of,
)
def test_qemu_reads_the_same(layout: Layout, tmp_path: Path) -> None:
    data = content(layout.grain)
    if layout.descriptor == NO_DESCRIPTOR:
        # qemu does not open a file without a descriptor inside.
        layout = Layout(**{**vars(layout), "descriptor": None})
    (tmp_path / "disk.vmdk").write_bytes(bytes(build(data, layout)))
    (tmp_path / "disk.raw").write_bytes(data)
    command = ["qemu-img", "compare", "-f", "vmdk", "-F", "raw", "disk.vmdk", "disk.raw"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


FAR_LAYOUTS = [
    Layout(grain=grain, entries=entries, compressed=compressed, footer=compressed, version=3, shuffle=1, level=1)
    for grain, entries in ((128, 512), (8, 4096), (2048, 4096), (1, 512))
    for compressed in (False, True)
]


@pytest.mark.parametrize("layout", FAR_LAYOUTS, ids=name_of)
def test_grains_at_both_ends_of_far_apart_tables(layout: Layout) -> None:
    table = layout.entries
    capacity = (5 * table + 3) * layout.grain + layout.grain // 2 + 1
    numbers = (0, table - 1, table, table + 1, 3 * table - 1, 5 * table - 1, 5 * table, 5 * table + 3)
    size = layout.grain * SECTOR
    sample = {number: stamped(layout.grain, number) for number in numbers}
    last = 5 * table + 3
    chunks = {number * size: grain for number, grain in sample.items()}
    chunks[last * size] = chunks[last * size][: capacity * SECTOR - last * size]
    reference = SparseReference(capacity * SECTOR, chunks)
    disk = opened(build_grains(sample, capacity, layout))
    assert disk.size == capacity * SECTOR
    for number in numbers:
        start = number * size
        for at in (start - 1000, start - 512, start, start + size // 2, start + size - 512):
            at = min(max(at, 0), disk.size - 1)  # noqa: PLW2901 - clipped to the disk
            length = min(1500, disk.size - at)
            assert_same_bytes(disk.read_at(at, length), reference.read_at(at, length))
    assert_map(disk, reference)


def test_zeroed_grains_read_as_zero_and_are_no_holes() -> None:
    data = with_zero_grains(stamped(80), 8, (2, 3, 5, 9))
    disk = opened(build(data, Layout(grain=8, entries=4, version=2, zeroed=frozenset({2, 3, 9}))))
    assert_whole(disk, MemorySource(data))
    kinds = [(extent.offset // 4096, extent.length // 4096, extent.kind) for extent in disk.extents()]
    assert [run for run in kinds if run[2] is not ExtentKind.DATA] == [
        (2, 2, ExtentKind.ZERO),
        (5, 1, ExtentKind.HOLE),
        (9, 1, ExtentKind.ZERO),
    ]


@pytest.mark.parametrize(
    "layout",
    [
        Layout(grain=8, entries=4),
        Layout(grain=8, entries=4, descriptor=NO_DESCRIPTOR),
        # Nothing else lies in sector 1.
        Layout(grain=8, entries=4, descriptor=NO_DESCRIPTOR, footer=True),
        Layout(grain=8, entries=4, compressed=True),
    ],
)
def test_an_entry_of_one_without_the_flag_for_zeroed_grains_is_an_error(layout: Layout) -> None:
    disk = opened(build(stamped(80), layout).set_entry(3, 1))
    with pytest.raises(CorruptImage, match="grain 3: grain table entry is 1"):
        disk.read_at(3 * 4096, 1)
    assert_same_bytes(disk.read_at(0, 3 * 4096), stamped(80)[: 3 * 4096])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("entries", [1, 2, 16, 512, 4096])
def test_the_memory_of_grain_tables_is_bounded(entries: int, compressed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 20
    monkeypatch.setattr("diskfs_formats.vmdk.grains.TABLES_KEPT", limit)
    count = {512: 300, 4096: 50}.get(entries, 3000)
    built = build_grains({0: b"x" * 512}, count * entries, Layout(grain=1, entries=entries, compressed=compressed))
    # Every entry of the directory is the first table, which is full of different sectors.
    table = built.tables[0]
    built.data += bytes(count * 4 + entries * 4 + 1024)
    built.gd = len(built.data) // 512 - (count * 4 + 1023) // 512
    built.set_field("gdOffset", built.gd)
    for number in range(count):
        built.set_directory(number, table)
    place = table * 512
    built.data[place : place + entries * 4] = random.Random(entries).randbytes(entries * 4)
    disk = opened(built)
    with contextlib.suppress(CorruptImage):
        disk.read_at(0, 1)
    tracemalloc.start()
    for number in range(count):
        with contextlib.suppress(CorruptImage):
            disk.read_at(number * entries * 512, 1)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # At least 16 tables are kept, however large.
    assert grown < max(limit * 5 // 4, 20 * entries * 12)


def test_a_stored_grain_of_zeroes_is_data() -> None:
    disk = opened(build(bytes(16 * 512), Layout(grain=8, stored=frozenset({1}))))
    assert [extent.kind for extent in disk.extents()] == [ExtentKind.HOLE, ExtentKind.DATA]
    assert disk.read_at(0, disk.size) == bytes(disk.size)


@pytest.mark.parametrize("compressed", [False, True])
def test_an_empty_disk_is_one_hole(compressed: bool) -> None:
    layout = Layout(grain=8, entries=2, compressed=compressed, footer=compressed)
    disk = opened(build_grains({}, 8 * 2 * 10_000 + 5, layout))
    assert [(extent.offset, extent.length, extent.kind) for extent in disk.extents()] == [
        (0, disk.size, ExtentKind.HOLE)
    ]
    assert disk.read_at(disk.size - 5000, 5000) == bytes(5000)


def test_neighbouring_grains_are_one_run_of_the_map() -> None:
    data = stamped(8 * 40)
    disk = opened(build(data, Layout(grain=8, entries=16)))
    # One run, although three grain tables map it.
    assert [(extent.offset, extent.length) for extent in disk.extents()] == [(0, len(data))]


def test_compressed_grains_stay_apart_on_the_map() -> None:
    disk = opened(build(stamped(8 * 5), Layout(grain=8, compressed=True)))
    assert [extent.length for extent in disk.extents()] == [4096] * 5


@pytest.mark.parametrize(
    ("line", "size", "findings"),
    [
        (104, 104, []),
        (100, 100, []),
        (99, 99, []),
        (1, 1, []),
        (0, 104, ["vmdk-size-disagrees"]),
        (105, 104, ["vmdk-size-disagrees"]),
    ],
)
def test_the_extent_line_gives_the_size_within_the_capacity(line: int, size: int, findings: list[str]) -> None:
    data = stamped(104)
    disk = opened(build(data, Layout(grain=8, extent_sectors=line)))
    assert disk.size == size * 512
    assert_same_bytes(disk.read_at(0, disk.size), data[: disk.size])
    assert [finding.rule for finding in disk.info.findings] == findings
    assert_past_the_end(disk)


def test_a_file_without_a_descriptor_is_read_with_a_warning() -> None:
    disk = opened(build(stamped(8), Layout(grain=8, descriptor=NO_DESCRIPTOR)))
    assert [finding.rule for finding in disk.info.findings] == ["vmdk-no-descriptor"]
    assert disk.info.variant == "monolithicSparse"
    empty = opened(build(stamped(8), Layout(grain=8, descriptor="\0", descriptor_sectors=20)))
    assert [finding.rule for finding in empty.info.findings] == ["vmdk-no-descriptor"]


def test_an_unclean_shutdown_is_a_warning() -> None:
    built = build(stamped(8), Layout(grain=8)).set_field("uncleanShutdown", 1)
    assert [finding.rule for finding in opened(built).info.findings] == ["vmdk-unclean-shutdown"]


def test_what_the_image_says_of_itself() -> None:
    info = opened(build(stamped(100), Layout(grain=16, compressed=True, footer=True, version=3))).info
    assert (info.format, info.variant, info.virtual_size) == ("vmdk", "streamOptimized", 51200)
    assert (info.unit_size, info.sector_size, info.compressed, info.has_parent) == (8192, 512, True, False)


@pytest.mark.parametrize(
    "extra",
    [
        descriptor_text(8).replace("ffffffff", "12345678"),
        descriptor_text(8).replace("parentCID=ffffffff\n", 'parentFileNameHint="base.vmdk"\n'),
    ],
)
def test_a_delta_is_not_taken_for_a_whole_disk(extra: str) -> None:
    with pytest.raises(ParentUnavailable, match="needs its parent"):
        opened(build(stamped(8), Layout(grain=8, descriptor=extra)))


@pytest.mark.parametrize(
    "lines",
    ['RW 8 SPARSE "a"\nRW 8 SPARSE "b"', 'RW 8 FLAT "a"', "RW 8 ZERO", 'RW 8 SPARSE "a"\nRW 8 ZERO'],
)
def test_extents_other_than_the_file_itself_are_refused(lines: str) -> None:
    text = descriptor_text(8).replace('RW 8 SPARSE "disk.vmdk"', lines)
    with pytest.raises(UnsupportedFeature, match="extents other than this file"):
        opened(build(stamped(8), Layout(grain=8, descriptor=text)))


# ---- damage ----


def grain_runs(disk: DiskImage, reference: bytes, grain: int) -> dict[int, str]:
    """Read grain by grain; return which grains fail, with what."""
    failed = {}
    for number in range(-(-disk.size // grain)):
        offset = number * grain
        length = min(grain, disk.size - offset)
        try:
            assert_same_bytes(disk.read_at(offset, length), reference[offset : offset + length])
        except CorruptImage as error:
            failed[number] = str(error)
    return failed


@pytest.mark.parametrize("compressed", [False, True])
def test_a_table_past_the_end_fails_only_its_own_reads(compressed: bool) -> None:
    data = stamped(8 * 12)
    for sector, word in ((0xFFFFFFFF, "needs"), (0, ""), (1, "overlap")):
        disk = opened(build(data, Layout(grain=8, entries=4, compressed=compressed)).set_directory(1, sector))
        expected = data if sector else with_zero_grains(data, 8, range(4, 8))
        failed = grain_runs(disk, expected, 4096)
        assert sorted(failed) == ([4, 5, 6, 7] if sector else [])
        assert all(word in message and "disk.vmdk" in message for message in failed.values())


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("sector", [2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
def test_a_bad_table_entry_fails_only_its_own_reads(compressed: bool, sector: int) -> None:
    data = stamped(8 * 12)
    disk = opened(build(data, Layout(grain=8, entries=4, compressed=compressed)).set_entry(6, sector))
    failed = grain_runs(disk, data, 4096)
    assert list(failed) == [6]
    assert failed[6].startswith("disk.vmdk: grain 6")
    with pytest.raises(CorruptImage, match="grain 6"):
        disk.read_at(0, disk.size)


def test_a_table_that_runs_into_the_directory_is_refused() -> None:
    layout = Layout(grain=1, entries=512, descriptor=NO_DESCRIPTOR)
    built = build(stamped(2000), layout)
    built.data += bytes(8 * 512)
    # The directory moves to the end; the table before it would reach into it.
    place = len(built.data) // 512
    built.data += built.data[built.gd * 512 : built.gd * 512 + 512]
    built.gd = place
    built.set_field("gdOffset", place).set_directory(1, place - 3)
    disk = opened(built)
    assert_same_bytes(disk.read_at(0, 512 * 512), stamped(2000)[: 512 * 512])
    with pytest.raises(CorruptImage, match="overlap"):
        disk.read_at(512 * 512, 1)
    assert opened(built.set_directory(1, place - 4)).read_at(512 * 512, 1) is not None


def test_a_run_of_grains_ends_where_the_directory_begins() -> None:
    data = stamped(8 * 6)
    built = build(data, Layout(grain=8, descriptor=NO_DESCRIPTOR))
    end = len(built.data) // 512
    built.data += bytes(built.data[built.gd * 512 : built.gd * 512 + 512])
    built.set_field("gdOffset", end).set_entry(5, 0)
    first = built.grains[0]
    assert end == first + 48
    # Grains 0 to 5 would be one run; the last would be the directory itself.
    for number in range(6):
        built.set_entry(number, first + 8 + number * 8)
    disk = opened(built)
    assert sorted(grain_runs(disk, data[4096:] + bytes(4096), 4096)) == [5]
    assert [(extent.offset, extent.length) for extent in disk.extents(0, 5 * 4096)] == [(0, 5 * 4096)]
    with pytest.raises(CorruptImage, match="grain 5"):
        disk.read_at(0, disk.size)
    # And one that begins before it and reaches into it.
    built.set_entry(5, end - 1)
    with pytest.raises(CorruptImage, match=r"grain 5.*directory begins"):
        opened(built).read_at(5 * 4096, 1)


@pytest.mark.parametrize("short_last", [False, True])
def test_a_plain_file_cut_anywhere_fails_only_where_it_is_cut(short_last: bool) -> None:
    data = stamped(8 * 12 + 3)
    built = build(data, Layout(grain=8, entries=4, short_last=short_last, shuffle=3))
    first = min(built.grains.values()) * 512
    for length in {*range(first, len(built.data), 1024), *range(first, len(built.data), 4095)}:
        disk = opened(bytes(built)[:length])
        needed = {number: min(4096, len(data) - number * 4096) for number in built.grains}
        cut = sorted(number for number, sector in built.grains.items() if sector * 512 + needed[number] > length)
        failed = grain_runs(disk, data, 4096)
        assert sorted(failed) == cut
        assert all("incomplete" in message for message in failed.values())


def test_a_stream_cut_anywhere_is_incomplete_or_right() -> None:
    data = stamped(8 * 12 + 3)
    built = build(data, Layout(grain=8, entries=4, compressed=True, shuffle=3))
    first = min(built.grains.values()) * 512
    for length in {*range(first, len(built.data), 512), *range(first, len(built.data), 301)}:
        disk = opened(bytes(built)[:length])
        cut = sorted(
            number for number, sector in built.grains.items() if sector * 512 + 12 + built.sizes[number] > length
        )
        assert sorted(grain_runs(disk, data, 4096)) == cut


def test_a_header_larger_than_the_file_is_incomplete() -> None:
    built = build(stamped(8), Layout(grain=8))
    opened(built.copy().set_field("overHead", len(built.data) // 512))
    with pytest.raises(TruncatedImage, match="overHead"):
        opened(built.set_field("overHead", len(built.data) // 512 + 1))


@pytest.mark.parametrize(("field", "value"), [("gdOffset", 0), ("gdOffset", 2**63), ("gdOffset", 2**64 - 2)])
def test_a_directory_outside_the_file_is_refused(field: str, value: int) -> None:
    with pytest.raises(CorruptImage, match="grain directory"):
        opened(build(stamped(8), Layout(grain=8)).set_field(field, value))


def test_a_directory_must_fit_the_file_to_the_last_entry() -> None:
    built = build(stamped(8 * 5), Layout(grain=8, entries=1, descriptor=NO_DESCRIPTOR))
    end = len(built.data)
    built.data += built.data[built.gd * 512 : built.gd * 512 + 20]
    built.set_field("gdOffset", end // 512)
    assert_whole(opened(built), MemorySource(stamped(8 * 5)))
    with pytest.raises(TruncatedImage, match="grain directory"):
        opened(bytes(built)[:-1])


# ---- qemu-img and qemu-io ----


def qemu_written(folder: Path, options: str, *, shuffled: bool) -> bytes:
    """Have qemu write `disk.vmdk`, grains in shuffled order; return the bytes of the disk."""
    size = 4 * 65536 * 512 + 77 * 512 if "Optimized" not in options else 40 * 65536 + 77 * 512
    run = functools.partial(subprocess.run, cwd=folder, check=True, capture_output=True)
    if not shuffled:
        grains = with_zero_grains(stamped(size // 512), 128, (0, 3, 4, 17, 39))
        (folder / "disk.raw").write_bytes(grains)
        run(["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", options, "disk.raw", "disk.vmdk"])
        return grains
    run(["qemu-img", "create", "-q", "-f", "vmdk", "-o", options, "disk.vmdk", str(size)])
    places = [number * 65536 for number in (*range(0, 24, 3), *range(25, 40), 510, 511, 512, 513, 1024, 2047)]
    random.Random(7).shuffle(places)
    data = bytearray(size)
    commands: list[str] = []
    for number, place in enumerate(places):
        at, length, pattern = place + (number % 5) * 512, 512 * (1 + number % 100), number % 255 + 1
        commands += ["-c", f"write -q -P {pattern} {at} {length}"]
        data[at : at + length] = bytes([pattern]) * length
    for place in sorted(places)[4:7]:
        commands += ["-c", f"write -q -z {place} 65536"]
        data[place : place + 65536] = bytes(65536)
    run(["qemu-io", "-f", "vmdk", *commands, "disk.vmdk"])
    return bytes(data)


@pytest.mark.parametrize(
    ("options", "shuffled"),
    [
        ("subformat=monolithicSparse", True),
        ("subformat=monolithicSparse,zeroed_grain=on", True),
        ("subformat=streamOptimized", False),
    ],
)
def test_what_qemu_writes(options: str, shuffled: bool, tmp_path: Path) -> None:
    data = qemu_written(tmp_path, options, shuffled=shuffled)
    reference = MemorySource(data)
    disk = open_image(open_file(tmp_path / "disk.vmdk"))
    assert_whole(disk, reference)
    assert_both_sides(disk, reference, (65536, 65536 * 512))
    assert_map(disk, reference)
    assert_threads(disk, reference)
    result = subprocess.run(
        ["qemu-img", "map", "-f", "vmdk", "--output=json", "disk.vmdk"],
        cwd=tmp_path, check=True, capture_output=True, text=True,
    )  # fmt: skip
    expected = json.loads(result.stdout)
    found = list(joined(map_entries(disk.extents())))
    keys = found[0].keys() & expected[0].keys() - {"offset"}
    assert {"start", "length", "depth", "present", "zero", "data"} <= keys
    assert [{key: entry[key] for key in keys} for entry in found] == [
        {key: entry[key] for key in keys} for entry in expected
    ]
    if not disk.info.compressed:
        assert [entry.get("offset") for entry in found] == [entry.get("offset") for entry in expected]
    assert list(VmdkDriver().check(open_file(tmp_path / "disk.vmdk"), NoRelatedFiles())) == []
    disk.close()


# ---- the checker ----


def rules(built: Built | ByteSource) -> list[str]:
    source = MemorySource(bytes(built), "disk.vmdk") if isinstance(built, Built) else built
    return [finding.rule for finding in VmdkDriver().check(source, NoRelatedFiles())]


@pytest.mark.parametrize("compressed", [False, True])
def test_a_sound_image_has_no_findings(compressed: bool) -> None:
    data = with_zero_grains(stamped(8 * 20), 8, (3, 4))
    assert rules(build(data, Layout(grain=8, entries=4, compressed=compressed, redundant=True, version=3))) == []


@pytest.mark.parametrize("compressed", [False, True])
def test_each_damaged_grain_is_one_finding(compressed: bool) -> None:
    built = build(stamped(8 * 20), Layout(grain=8, entries=4, compressed=compressed))
    built.set_entry(2, 2).set_entry(9, 0x7FFFFFFF)
    messages = [finding.message for finding in VmdkDriver().check(MemorySource(bytes(built), "d"), NoRelatedFiles())]
    assert [message.split(":")[1].split(" at ")[0].strip() for message in messages] == ["grain 2", "grain 9"]


def test_a_damaged_grain_of_each_kind_is_found() -> None:
    built = build(stamped(8 * 20), Layout(grain=8, entries=4, compressed=True))
    built.data[built.grains[7] * 512 + 40] ^= 1
    assert rules(built) == ["vmdk-grain"]


def test_redundant_tables_that_differ_are_found_and_the_first_are_read() -> None:
    data = stamped(8 * 20)
    built = build(data, Layout(grain=8, entries=4, redundant=True))
    place = int.from_bytes(built.data[built.rgd * 512 + 4 : built.rgd * 512 + 8], "little") * 512
    built.data[place : place + 4] = b"\xff\xff\xff\x7f"
    assert rules(built) == ["vmdk-redundant-table"]
    assert_whole(opened(built), MemorySource(data))


@pytest.mark.parametrize("rgd", [0, 2**32, 2**64 - 1])
def test_a_redundant_directory_outside_the_file_is_found(rgd: int) -> None:
    built = build(stamped(8 * 20), Layout(grain=8, entries=4, redundant=True)).set_field("rgdOffset", rgd)
    assert rules(built) == ["vmdk-redundant-directory"]
    assert_whole(opened(built), MemorySource(stamped(8 * 20)))


def test_a_redundant_directory_without_its_flag_is_ignored() -> None:
    assert rules(build(stamped(8 * 20), Layout(grain=8)).set_field("rgdOffset", 2**64 - 1)) == []


def test_the_findings_of_a_wholly_damaged_image_are_bounded() -> None:
    built = build(stamped(5000), Layout(grain=1, entries=4, redundant=True))
    for number in range(5000):
        built.set_entry(number, 0x70000000)
    found = rules(built)
    assert found.count("vmdk-grain") == 1001
    assert found.count("vmdk-redundant-table") == 1001


# ---- recognising ----


@pytest.mark.parametrize(
    ("head", "match"),
    [
        (b"KDMV", Match.SIGNATURE),
        (b"kdmv", Match.SIGNATURE),
        (b"COWD", Match.SIGNATURE),
        (bytes.fromhex("bebafeca00000000"), Match.SIGNATURE),
        (b"# Disk DescriptorFile\nversion=1\n", Match.SIGNATURE),
        (b"KDM", Match.NO),
        (bytes.fromhex("bebafeca01000000"), Match.NO),
        (b"# Disk DescriptorFile\n", Match.NO),
        (b"", Match.NO),
        (bytes(512), Match.NO),
    ],
)
def test_recognised_by_content_alone(head: bytes, match: Match) -> None:
    assert VmdkDriver().probe(ProbeWindow.of(MemorySource(head))) is match


@pytest.mark.parametrize("head", [b"COWD" + bytes(2044), bytes.fromhex("bebafeca00000000") + bytes(504)])
def test_an_extent_without_its_descriptor_says_what_to_open(head: bytes) -> None:
    with pytest.raises(UnsupportedFeature, match=r"open the descriptor \(the \.vmdk without -"):
        opened(head)
