"""What is written as a stream-optimized VMDK is read by other programs, and by a reader made from the specification."""

import json
import random
import struct
import subprocess
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from diskfs.sources.file import open_file
from diskfs_formats.deflating import deflate_zlib
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import CorruptImage, UnsupportedFeature
from diskfs_formats.registry import open_image
from diskfs_formats.source import MemorySource
from diskfs_formats.vmdk.stream_writing import MAX_STREAM, StreamOptimizedWriter
from diskfs_formats.writer import StreamWriter, WriteOptions, no_progress
from tests.helpers import assert_same_bytes
from tests.samples.writing import DISKS, Written

GRAIN = 65536
TABLE_SPAN = 512 * GRAIN


class MemorySink:
    """Keeps what is appended."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self.parts.append(bytes(data))

    def write_zeroes(self, length: int, /) -> None:
        self.parts.append(bytes(length))

    def commit(self) -> None:
        raise AssertionError("a writer does not commit")

    def abort(self) -> None:
        raise AssertionError("a writer does not abort")


def written(disk: DiskImage, **options: object) -> bytes:
    """Write a disk into memory."""
    sink = MemorySink()
    writer = StreamOptimizedWriter()
    assert isinstance(writer, StreamWriter)
    writer.write(disk, sink, WriteOptions(**{"file_name": "out.vmdk", **options}), no_progress)  # type: ignore[arg-type]  # values of several types
    return b"".join(sink.parts)


def raw_disk(content: bytes) -> DiskImage:
    return open_image(MemorySource(content, "disk.raw"), format_name="raw")


@dataclass
class Stream:
    """A stream as its markers describe it: nothing here comes from the code under test."""

    header: bytes
    descriptor: str
    grains: dict[int, tuple[int, bytes]]
    """First sector of the grain on the disk -> sector of its record in the file, and its inflated bytes."""
    tables: list[tuple[int, tuple[int, ...]]]
    directory: tuple[int, ...]
    directory_sector: int
    footer: bytes


def read_stream(data: bytes) -> Stream:
    """Read a stream front to back by markers alone (Virtual Disk Format 5.0, "Stream-Optimized Compressed...")."""
    assert data[:4] == b"KDMV"
    assert len(data) % 512 == 0
    overhead = struct.unpack_from("<Q", data, 64)[0]
    found = Stream(data[:512], data[512 : 21 * 512].split(b"\0", 1)[0].decode(), {}, [], (), 0, b"")
    at = overhead * 512
    last = -1
    while True:
        value, size = struct.unpack_from("<QI", data, at)
        if size:
            assert value > last, "grains come in ascending order"
            last = value
            inflater = zlib.decompressobj()
            grain = inflater.decompress(data[at + 12 : at + 12 + size])
            assert inflater.eof
            assert not inflater.unused_data
            assert len(grain) == GRAIN, "every grain is whole"
            assert 12 + size <= GRAIN + 512
            end = at + 12 + size
            padded = -(-end // 512) * 512
            assert data[end:padded] == bytes(padded - end)
            found.grains[value] = (at // 512, grain)
            at = padded
            continue
        kind = struct.unpack_from("<I", data, at + 12)[0]
        assert data[at + 16 : at + 512] == bytes(496)
        body = data[at + 512 : at + 512 + value * 512]
        if kind == 0:
            assert value == 0
            assert at + 512 == len(data), "nothing follows the end"
            return found
        if kind == 1:
            assert value == 4
            found.tables.append((at // 512 + 1, struct.unpack("<512I", body)))
        elif kind == 2:
            found.directory = struct.unpack(f"<{len(body) // 4}I", body)
            found.directory_sector = at // 512 + 1
        else:
            assert (kind, value) == (3, 1)
            found.footer = body
        at += 512 + len(body)


def header_fields(header: bytes) -> dict[str, object]:
    names = (
        "magic", "version", "flags", "capacity", "grain_size", "descriptor_offset", "descriptor_size", "entries", "rgd",
        "gd", "overhead", "unclean", "line_ends", "algorithm",
    )  # fmt: skip
    return dict(zip(names, struct.unpack_from("<4sIIQQQQIQQQB4sH", header), strict=True))


@pytest.fixture(params=sorted(DISKS))
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Written]:
    found = DISKS[request.param](tmp_path)
    yield found
    found.disk.close()


def test_qemu_finds_no_error_and_the_same_content(disk: Written, tmp_path: Path) -> None:
    image = tmp_path / "out.vmdk"
    image.write_bytes(written(disk.disk))
    subprocess.run(["qemu-img", "check", "-q", "-f", "vmdk", image], check=True)
    subprocess.run(["qemu-img", "compare", "-q", "-f", "vmdk", "-F", "raw", image, disk.raw], check=True)
    size = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", image]))["virtual-size"]
    assert size == -(-disk.disk.size // 512) * 512
    information = subprocess.run(["vmdkinfo", image], check=True, capture_output=True, text=True).stdout
    assert f"({size} bytes)" in information or f": {size} bytes" in information
    assert "Stream optimized" in information


def test_a_reader_of_markers_finds_every_byte_and_tables_that_agree(disk: Written) -> None:
    stream = read_stream(written(disk.disk))
    header, footer = header_fields(stream.header), header_fields(stream.footer)
    assert footer["gd"] == stream.directory_sector
    assert {**footer, "gd": 2**64 - 1} == header
    sectors = -(-disk.disk.size // 512)
    assert header["capacity"] == sectors
    table_at = dict(stream.tables)
    assert len(table_at) == len(stream.tables)
    seen = set()
    for number, table_sector in enumerate(stream.directory):
        if not table_sector:
            continue
        for index, record in enumerate(table_at.pop(table_sector)):
            if record:
                first = (number * 512 + index) * 128
                assert stream.grains[first][0] == record
                seen.add(first)
    assert not table_at, "the directory knows every table"
    assert seen == set(stream.grains), "the tables know every grain"
    tables = -(-sectors // 65536)
    assert len(stream.directory) == -(-tables // 128) * 128
    with disk.raw.open("rb") as raw:
        for first, (_, grain) in stream.grains.items():
            raw.seek(first * 512)
            assert_same_bytes(grain, raw.read(GRAIN).ljust(GRAIN, b"\0"))
            assert any(grain), "an all-zero grain is not stored"
        if disk.disk.size < 1 << 30:
            raw.seek(0)
            whole = raw.read().ljust(sectors * 512, b"\0")
            stored = {first * 512 for first in stream.grains}
            for offset in range(0, len(whole), GRAIN):
                assert offset in stored or not any(whole[offset : offset + GRAIN])


def test_header_and_descriptor_are_what_a_stream_of_ovftool_has(corpus: Path) -> None:
    theirs = header_fields((corpus / "forklift/fedora.vmdk").read_bytes()[:512])
    data = written(raw_disk(b"x" * GRAIN))
    ours = header_fields(data[:512])
    # The size of the descriptor follows its length; the rest is the format's.
    for name in ("capacity", "descriptor_size"):
        del ours[name], theirs[name]
    assert ours == theirs
    text = data[512 : 21 * 512].split(b"\0", 1)[0].decode()
    for line in ("version=1", "parentCID=ffffffff", 'createType="streamOptimized"', 'RW 128 SPARSE "out.vmdk"'):
        assert line in text.splitlines()
    # govmomi reads the extent line from the descriptor's first sector.
    assert text.index("SPARSE") < 512 - 20


def test_a_name_that_no_descriptor_holds_does_not_matter_in_a_stream() -> None:
    for name in ('a"b.vmdk', "x" * 250 + ".vmdk", "-", "\udcff.vmdk"):
        assert 'SPARSE "' in read_stream(written(raw_disk(b"x" * 512), file_name=name)).descriptor


@pytest.mark.parametrize("edge", [GRAIN, 4 * GRAIN, TABLE_SPAN])
@pytest.mark.parametrize("by", [-512, 0, 512])
def test_sizes_and_data_on_both_sides_of_every_boundary(edge: int, by: int, tmp_path: Path) -> None:
    raw, image = tmp_path / "disk.raw", tmp_path / "out.vmdk"
    with raw.open("wb") as file:
        for offset in (edge - 1024, edge - 512, edge):
            file.seek(offset)
            file.write(b"%512d" % offset)
        file.truncate(edge + by)
    with raw.open("rb") as file:
        source = open_file(raw)
        data = written(open_image(source, format_name="raw"))
        source.close()
        image.write_bytes(data)
        for first, (_, grain) in read_stream(data).grains.items():
            file.seek(first * 512)
            assert_same_bytes(grain, file.read(GRAIN).ljust(GRAIN, b"\0"))
    subprocess.run(["qemu-img", "compare", "-q", "-f", "vmdk", "-F", "raw", image, raw], check=True)


@pytest.mark.parametrize("level", [None, *range(1, 13)])
def test_what_does_not_compress_still_fits_other_readers_buffers(level: int | None) -> None:
    noise = random.Random(7).randbytes(3 * GRAIN)
    for _, grain in read_stream(written(raw_disk(noise), level=level)).grains.values():
        assert grain in (noise[:GRAIN], noise[GRAIN : 2 * GRAIN], noise[2 * GRAIN :])
    assert len(deflate_zlib(noise[:GRAIN], level or 2)) <= MAX_STREAM


def test_the_size_does_not_grow_with_the_level() -> None:
    text = Path(__file__).read_bytes() * 40
    sizes = [len(written(raw_disk(text), level=level)) for level in (1, 2, 3, 6, 9, 12)]
    assert sizes == sorted(sizes, reverse=True)


def compressed_source(folder: Path, content: bytes) -> Path:
    raw, image = folder / "source.raw", folder / "source.vmdk"
    raw.write_bytes(content)
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, image], check=True
    )
    return image


def streams_of(data: bytes) -> set[bytes]:
    """Every zlib stream that a record of the file begins with."""
    found = set()
    for at in range(0, len(data) - 512, 512):
        value, size = struct.unpack_from("<QI", data, at)
        if 0 < size < 2 * GRAIN and value % 128 == 0 and data[at + 12 : at + 13] == b"x":
            found.add(data[at + 12 : at + 12 + size])
    return found


def test_grains_compressed_in_the_source_are_taken_over_as_they_are(tmp_path: Path) -> None:
    content = b"".join(bytes([number]) * 3000 + random.Random(number).randbytes(62536) for number in range(20))
    image = compressed_source(tmp_path, content + b"tail" * 128)
    source = image.read_bytes()
    disk = open_image(open_file(image))
    taken, anew = written(disk), written(disk, level=2)
    # All but the last one, which qemu-img stores only as far as the disk goes.
    assert len(streams_of(source) & streams_of(taken)) == 20
    assert not streams_of(source) & streams_of(anew)
    for data in (taken, anew):
        grains = read_stream(data).grains.values()
        assert_same_bytes(b"".join(grain for _, grain in grains)[: len(content) + 512], content + b"tail" * 128)
    disk.close()


def test_a_damaged_grain_of_the_source_is_an_error_and_not_passed_on(tmp_path: Path) -> None:
    image = compressed_source(tmp_path, random.Random(1).randbytes(8 * GRAIN))
    data = bytearray(image.read_bytes())
    data[data.index(struct.pack("<Q", 3 * 128), 65536) + 30000] ^= 1
    with pytest.raises(CorruptImage, match="grain 3 "):
        written(open_image(MemorySource(bytes(data), "damaged.vmdk")))


def test_reproducible_output_is_the_same_twice_and_with_any_number_of_threads(tmp_path: Path) -> None:
    found = DISKS["shuffled vmdk"](tmp_path)
    one = written(found.disk, reproducible=True, threads=1)
    assert_same_bytes(written(found.disk, reproducible=True, threads=7), one)
    assert written(found.disk) != written(found.disk), "identifiers are fresh otherwise"
    found.disk.close()


def test_a_disk_without_a_sector_is_refused() -> None:
    with pytest.raises(UnsupportedFeature, match="0 bytes"):
        written(raw_disk(b""))
