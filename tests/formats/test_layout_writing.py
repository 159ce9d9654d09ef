"""Every format that is laid out, of every kind of disk: other programs find the disk's bytes, and the file that is
written by the map is the one that is read at random.
"""

import json
import os
import re
import shutil
import subprocess
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs.sources.file import open_file
from diskfs.sources.locate import FolderFiles
from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.extents import Extent, ExtentKind, Stored, clipped
from diskfs_formats.raw import RawImage
from diskfs_formats.registry import WRITERS, driver_named, writable_variants, writer_entry, writer_for
from diskfs_formats.source import MemorySource, require_range
from diskfs_formats.writer import LayoutWriter
from tests.conformance.promises import (
    assert_both_sides,
    assert_past_the_end,
    assert_random_ranges,
    assert_range,
    assert_ready_bytes,
    assert_threads,
)
from tests.helpers import assert_same_bytes
from tests.samples.writing import DISKS, Written, files_of, write_by_map

pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed: run scripts/setup")

MIB = 1 << 20
TIB = 1 << 40
VARIANTS = [
    ("raw", "raw", "raw"),
    ("vhd", "fixed", "vpc"),
    ("vhd", "dynamic", "vpc"),
    ("vhdx", "fixed", "vhdx"),
    ("vhdx", "dynamic", "vhdx"),
    ("vmdk", "monolithicSparse", "vmdk"),
    ("vmdk", "monolithicFlat", "vmdk"),
]
"""Format, variant, and what QEMU calls the format."""
UNITS = (512, 65536, MIB, 2 * MIB, 2 * MIB + 512)
BOUNDARIES = 40
"""Boundaries of the map that are tried, from its beginning and from its end."""


@pytest.fixture(params=sorted(DISKS))
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Written]:
    """A disk of each kind."""
    made: Written = DISKS[request.param](tmp_path)
    yield made
    made.disk.close()


def sectors_of(written: Written, format_name: str) -> int:
    """Return the bytes of a sector, to which the disk is padded."""
    return {"raw": 1, "vhdx": written.disk.info.sector_size}.get(format_name, 512)


def expected_size(written: Written, format_name: str) -> int:
    sector = sectors_of(written, format_name)
    return -(-written.raw.stat().st_size // sector) * sector


def qemu_can_read(written: Written, format_name: str) -> bool:
    """Tell whether QEMU knows what was written: it takes no VHDX with 4096-byte sectors."""
    return format_name != "vhdx" or written.disk.info.sector_size == 512


@pytest.mark.parametrize(("format_name", "variant", "qemu_name"), VARIANTS)
def test_other_programs_find_the_bytes_of_the_disk(
    written: Written, format_name: str, variant: str, qemu_name: str, tmp_path: Path
) -> None:
    files = files_of(written.disk, format_name, variant, f"out.{format_name}", reproducible=True)
    path, *_ = [write_by_map(file, tmp_path) for file in files]
    size = expected_size(written, format_name)
    if qemu_can_read(written, format_name):
        info = json.loads(output("qemu-img", "info", "-f", qemu_name, "--output=json", path))
        assert info["virtual-size"] == -(-size // 512) * 512
        if size == TIB and (format_name == "vhdx" or variant == "monolithicSparse"):
            # QEMU looks at every byte of a VHDX and every grain of a VMDK, which takes minutes.
            assert_same_places(written, path, qemu_name, tmp_path)
        else:
            compared = output("qemu-img", "compare", "-f", "raw", "-F", qemu_name, written.raw, path)
            assert compared == "Images are identical.\n"
    if qemu_can_read(written, format_name) and (format_name == "vhdx" or variant == "monolithicSparse"):
        assert "No errors were found" in output("qemu-img", "check", "-f", qemu_name, path)
    if format_name in ("vhd", "vhdx"):
        if shutil.which("vhdiinfo") is None:
            pytest.skip("vhdiinfo is not installed: run scripts/setup")
        told = output("vhdiinfo", path)
        assert re.search(rf"Media size\s*:.*?\b{size}(?: bytes\)|\s*bytes)", told), told
        assert re.search(rf"Disk type\s*: {variant}\n", told, re.IGNORECASE)
    if format_name == "vmdk":
        told = output("vmdkinfo", path)
        assert re.search(rf"Media size:.*?\b{size} bytes", told), told
        kind = {"monolithicSparse": "Monolithic sparse", "monolithicFlat": "Monolithic flat"}[variant]
        assert re.search(rf"Disk type:\s*{kind}\n", told)


def assert_same_places(written: Written, path: Path, qemu_name: str, folder: Path) -> None:
    """QEMU reads the MiB around each place that has data as the raw file has it, and one without data as zeroes."""
    places = [extent.offset // MIB for extent in written.disk.extents() if extent.kind is ExtentKind.DATA]
    with written.raw.open("rb") as raw:
        for place in (*places, 12345):
            part = folder / "part"
            options = ("bs=1M", f"skip={place}", f"count={place + 1}")
            output("qemu-img", "dd", "-f", qemu_name, "-O", "raw", *options, f"if={path}", f"of={part}")
            raw.seek(place * MIB)
            assert_same_bytes(part.read_bytes(), raw.read(MIB))


@pytest.mark.parametrize(("format_name", "variant", "_qemu_name"), VARIANTS)
def test_our_reader_finds_the_bytes_and_no_fault(
    written: Written, format_name: str, variant: str, _qemu_name: str, tmp_path: Path
) -> None:
    files = files_of(written.disk, format_name, variant, f"out.{format_name}", reproducible=True)
    path, *_ = [write_by_map(file, tmp_path) for file in files]
    source = open_file(path)
    driver = driver_named(format_name)
    related = FolderFiles(tmp_path, [source])
    disk = driver.open(source, related)
    size = expected_size(written, format_name)
    assert disk.size == size
    assert (disk.info.format, disk.info.variant) == (format_name, variant)
    assert format_name == "raw" or not disk.info.findings
    if format_name == "vhdx":
        assert disk.info.sector_size == written.disk.info.sector_size
    if size < TIB:
        findings = list(driver.check(source, related))
        assert format_name == "raw" or not findings, findings
    with open_padded(written.raw, size) as reference:
        assert_both_sides(disk, reference, UNITS, limit=8)
        assert_random_ranges(disk, reference, count=20)
        for extent in written.disk.extents():
            if extent.kind is ExtentKind.DATA and extent.length <= 8 * MIB:
                assert_range(disk, reference, extent.offset, extent.length)
    disk.close()


@pytest.mark.parametrize(("format_name", "variant", "_qemu_name"), VARIANTS)
def test_the_file_is_the_same_read_at_random_and_written_by_its_map(
    written: Written, format_name: str, variant: str, _qemu_name: str, tmp_path: Path
) -> None:
    for file in files_of(written.disk, format_name, variant, f"out.{format_name}"):
        content = file.content
        reference = open_file(write_by_map(file, tmp_path))
        assert content.size == reference.size
        extents = list(content.extents())
        edges = [extent.offset for extent in extents] + [content.size]
        for edge in (*edges[:BOUNDARIES], *edges[-BOUNDARIES:]):
            for start, end in ((edge - 1, edge + 1), (edge - 512, edge), (edge, edge + 700), (edge - 3000, edge + 90)):
                start, end = max(start, 0), min(end, content.size)  # noqa: PLW2901 - clipped to the file
                assert_range(content, reference, start, end - start)
        assert_both_sides(content, reference, UNITS, limit=8)
        assert_random_ranges(content, reference, count=20)
        assert_threads(content, reference, reads=6)
        assert_ready_bytes(content, reference)
        assert_past_the_end(content)
        if content.size <= 64 * MIB:
            assert_same_bytes(content.read_at(0, content.size), reference.read_at(0, content.size))
        assert_parts_of_the_map(extents, content.size, file.content)
        reference.close()


@pytest.mark.fuse
@pytest.mark.parametrize("kind", ["odd size", "full", "compressed", "last unit partial", "zeroes in the map"])
@pytest.mark.parametrize(("format_name", "variant", "_qemu_name"), VARIANTS[1:6])
def test_the_libraries_of_libyal_mount_the_bytes(
    kind: str, format_name: str, variant: str, _qemu_name: str, tmp_path: Path
) -> None:
    # monolithicFlat is left out: vmdkmount calls VMware's own files of it "Unsupported disk type".
    program, inside = ("vmdkmount", "vmdk1") if format_name == "vmdk" else ("vhdimount", "vhdi1")
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: run scripts/setup")
    written = DISKS[kind](tmp_path)
    files = files_of(written.disk, format_name, variant, f"out.{format_name}")
    path, *_ = [write_by_map(file, tmp_path) for file in files]
    size = expected_size(written, format_name)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    output(program, path, mountpoint)
    try:
        found = (mountpoint / inside).read_bytes()
    finally:
        output("fusermount3", "-u", mountpoint)
    assert_same_bytes(found, written.raw.read_bytes().ljust(size, b"\0"))
    written.disk.close()


def assert_parts_of_the_map(whole: list[Extent], size: int, content: object) -> None:
    """The map of a range is the range of the map, whatever the range."""
    edges = sorted({0, size, *(edge for extent in whole[:20] for edge in (extent.offset + 1, extent.end))})
    for start, end in zip(edges, edges[2:], strict=False):
        part = list(content.extents(start, end - start))  # type: ignore[attr-defined]  # a DiskImage
        assert [extent.offset for extent in part] == [start, *(extent.end for extent in part[:-1])]
        assert part[-1].end == end
        for extent in part:
            middle = extent.offset + extent.length // 2
            around = next(other for other in whole if other.offset <= middle < other.end)
            assert extent.kind is around.kind


@pytest.mark.parametrize(("format_name", "variant", "_qemu_name"), VARIANTS)
def test_a_layout_tells_whether_its_data_is_compressed(
    format_name: str, variant: str, _qemu_name: str, tmp_path: Path
) -> None:
    for kind, expected in (("compressed", True), ("full", False)):
        folder = tmp_path / kind
        folder.mkdir()
        written = DISKS[kind](folder)
        *_, largest = sorted(files_of(written.disk, format_name, variant, "out"), key=lambda file: file.content.size)
        assert largest.content.info.compressed is expected
        written.disk.close()


@pytest.mark.parametrize(("format_name", "variant", "_qemu_name"), VARIANTS)
def test_what_is_no_data_stays_out_of_the_file(format_name: str, variant: str, _qemu_name: str, tmp_path: Path) -> None:
    written = DISKS["1 TiB, sparse"](tmp_path)
    for file in files_of(written.disk, format_name, variant, "out"):
        data = sum(extent.length for extent in file.content.extents() if extent.kind is ExtentKind.DATA)
        # 12 KiB of data; 2 MiB of BAT for a VHD, 4 MiB for a VHDX; some pages of grain tables and a directory.
        assert data < 6 * MIB
    written.disk.close()


@pytest.mark.parametrize(("format_name", "variant", "_qemu_name"), VARIANTS)
def test_reproducible_files_are_equal_and_others_are_not(
    format_name: str, variant: str, _qemu_name: str, tmp_path: Path
) -> None:
    written = DISKS["odd size"](tmp_path)

    def content(*, reproducible: bool) -> list[bytes]:
        files = files_of(written.disk, format_name, variant, "out", reproducible=reproducible)
        return [file.content.read_at(0, file.content.size) for file in files]

    assert content(reproducible=True) == content(reproducible=True)
    if format_name != "raw":
        assert content(reproducible=False)[0] != content(reproducible=False)[0]
    written.disk.close()


class ScatteredDisk:
    """A disk too large to be on any file system: 4096 bytes of data at each multiple of `step`."""

    def __init__(self, size: int, step: int) -> None:
        self.name = "scattered"
        self.size = size
        self.info = ImageInfo("raw", "raw", size)
        self._step = step
        self._source = MemorySource(b"\xa5" * 4096)

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self.size - offset if length is None else length
        require_range(self, offset, length)
        end = offset + length
        while offset < end:
            start = offset // self._step * self._step
            if offset - start < 4096:
                extent = Extent(start, min(4096, self.size - start), ExtentKind.DATA, Stored(self._source, 0, 4096))
            else:
                extent = Extent(start + 4096, min(start + self._step, self.size) - start - 4096, ExtentKind.HOLE)
            yield clipped(extent, offset, end)
            offset = extent.end

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return b"".join(
            b"\xa5" * extent.length if extent.kind is ExtentKind.DATA else bytes(extent.length)
            for extent in self.extents(offset, length)
        )

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("format_name", "variant", "size"),
    [
        ("vhd", "dynamic", 2040 << 30),
        ("vhdx", "dynamic", 64 * TIB),
        ("vhdx", "fixed", 64 * TIB),
        ("vmdk", "monolithicSparse", 62 * TIB),
    ],
)
def test_the_largest_disk_takes_little_memory(format_name: str, variant: str, size: int) -> None:
    disk = ScatteredDisk(size, 4096 * MIB)
    tracemalloc.start()
    try:
        [file] = files_of(disk, format_name, variant, "out")
        content = file.content
        for step in range(64):
            content.read_at(content.size // 64 * step, 1 << 16)
        for _, _extent in zip(range(20_000), content.extents(), strict=False):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * MIB
    assert content.read_at(content.size - 700, 700)


@pytest.mark.parametrize("entry", [entry for entry in WRITERS if entry.max_size], ids=lambda entry: entry.location)
def test_a_disk_of_the_largest_size_is_taken_and_one_more_byte_is_refused(entry: object) -> None:
    assert entry in WRITERS
    for found in WRITERS:
        if found != entry or found.max_size is None:
            continue
        for variant in found.variants:
            writer = found.load()
            if not isinstance(writer, LayoutWriter):
                continue
            assert found.fits(found.max_size)
            assert not found.fits(found.max_size + 1)
            assert not found.fits(0)
            files_of(ScatteredDisk(found.max_size, 64 << 30), found.name, variant, "out")
            for size in (found.max_size + 1, 0):
                with pytest.raises(UnsupportedFeature, match=r"scattered: the disk has \d+ bytes"):
                    files_of(ScatteredDisk(size, 64 << 30), found.name, variant, "out")


def test_writers_are_found_by_name_and_variant() -> None:
    for entry in WRITERS:
        for variant in entry.variants:
            assert writer_entry(entry.name, variant) is entry
    for format_name, variant, _ in VARIANTS:
        writer, found = writer_for(format_name, variant)
        assert (writer.name, found) == (format_name, variant)
        assert variant in writer.variants
        assert isinstance(writer, LayoutWriter)
    assert writer_for("vhd")[1] == writer_for("vhdx")[1] == "dynamic"
    assert set(writable_variants("vmdk")) >= {"monolithicSparse", "monolithicFlat"}
    with pytest.raises(UnsupportedFeature, match=r"format 'qed' is not written; these are: raw, vhd, vhdx, vmdk"):
        writer_for("qed")
    with pytest.raises(UnsupportedFeature, match=r"variant 'thick' of vhd is not written; these are: dynamic, fixed"):
        writer_for("vhd", "thick")


def output(*command: object) -> str:
    """Run a program that must succeed, and return what it printed."""
    result = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: exit {result.returncode}: {result.stderr}{result.stdout}"
    return result.stdout


class open_padded:  # noqa: N801 - used as a function
    """Open a raw file, made as long as the disk that it became; the file has its own length again afterwards."""

    def __init__(self, path: Path, size: int) -> None:
        self._path, self._size, self._was = path, size, path.stat().st_size

    def __enter__(self) -> RawImage:
        copy = self._path.with_suffix(".padded")
        if copy.exists():
            copy.unlink()
        if self._size == self._was:
            os.link(self._path, copy)
        else:
            shutil.copyfile(self._path, copy)
            os.truncate(copy, self._size)
        self._image = RawImage(open_file(copy))
        return self._image

    def __exit__(self, *_: object) -> None:
        self._image.close()
