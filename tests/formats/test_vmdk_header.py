"""The sparse header and footer against bytes of the specification and of other programs."""

import struct
import subprocess
from pathlib import Path

import pytest

from diskfs_formats.errors import CorruptImage, DiskfsError, TruncatedImage, UnsupportedFeature
from diskfs_formats.source import MemorySource
from diskfs_formats.vmdk.header import MARKER, SPARSE_HEADER, SparseHeader, read_footer, read_header
from tests.samples.vmdk_builder import GD_AT_END, HEADER_FIELDS, Built, Layout, build, header, marker, stamped

QEMU_MONOLITHIC = bytes.fromhex(
    "4b444d56 01000000 03000000 0350000000000000 8000000000000000 0100000000000000 1400000000000000 00020000"
    "1500000000000000 1a00000000000000 8000000000000000 00 0a200d0a 0000"
).ljust(512, b"\0")
"""What qemu-img writes for a monolithicSparse disk of 20483 sectors."""
OVFTOOL_STREAM = bytes.fromhex(
    "4b444d56 03000000 01000300 0000000200000000 8000000000000000 0100000000000000 0100000000000000 00020000"
    "0000000000000000 ffffffffffffffff 8000000000000000 00 0a200d0a 0100"
).ljust(512, b"\0")
"""What VMware's ovftool writes for a stream of 16 GiB."""


def parsed(data: bytes) -> SparseHeader:
    return read_header(MemorySource(data, "disk.vmdk"))


def changed(data: bytes, field: str, value: int) -> bytes:
    offset, code = HEADER_FIELDS[field]
    raw = bytearray(data)
    struct.pack_into("<" + code, raw, offset, value)
    return bytes(raw)


def test_header_of_a_monolithic_disk_written_by_qemu() -> None:
    assert parsed(QEMU_MONOLITHIC) == SparseHeader(
        version=1,
        flags=3,
        capacity=20483,
        grain_sectors=128,
        descriptor_offset=1,
        descriptor_size=20,
        table_entries=512,
        rgd_offset=21,
        gd_offset=26,
        overhead=128,
        unclean_shutdown=False,
        compressed=False,
    )


def test_header_of_a_stream_written_by_ovftool() -> None:
    found = parsed(OVFTOOL_STREAM)
    assert (found.version, found.flags, found.capacity) == (3, 0x30001, 0x2000000)
    assert (found.descriptor_offset, found.descriptor_size) == (1, 1)
    assert (found.rgd_offset, found.gd_offset, found.overhead) == (0, GD_AT_END, 128)
    assert found.compressed
    assert not found.has_redundant_tables
    assert found.table_count == 512


@pytest.mark.parametrize(("field", "place"), HEADER_FIELDS.items())
def test_every_field_is_where_the_specification_puts_it(field: str, place: tuple[int, str]) -> None:
    if field == "magicNumber":
        return
    offset, code = place
    raw = bytearray(512)
    raw[:4] = b"KDMV"
    value = int.from_bytes(bytes(range(0x11, 0x11 + struct.calcsize(code))), "little")
    struct.pack_into("<" + code, raw, offset, value)
    found = SPARSE_HEADER.parse(bytes(raw))
    ends = ("singleEndLineChar", "nonEndLineChar", "doubleEndLineChar1", "doubleEndLineChar2")
    if field in ends:
        assert found["lineEndTest"][ends.index(field)] == value
    else:
        assert found[field] == value


def test_header_and_marker_are_one_sector() -> None:
    assert SPARSE_HEADER.sizeof() == 512
    assert MARKER.sizeof() == 512
    fields = MARKER.parse(bytes.fromhex("0400000000000000 00000000 01000000").ljust(512, b"\0"))
    assert (fields.val, fields.size, fields.type) == (4, 0, 1)


@pytest.mark.parametrize("subformat", ["monolithicSparse", "streamOptimized"])
@pytest.mark.parametrize("sectors", [1, 127, 128, 129, 65535, 65536, 65537])
def test_header_written_by_qemu_now(tmp_path: Path, subformat: str, sectors: int) -> None:
    path = tmp_path / "disk.vmdk"
    command = ["qemu-img", "create", "-q", "-f", "vmdk", "-o", f"subformat={subformat}", str(path), str(sectors * 512)]
    subprocess.run(command, check=True)
    data = path.read_bytes()
    _, version, flags, capacity, grain, *_ = struct.unpack_from("<4sIIQQ", data)
    found = parsed(data)
    assert (found.version, found.flags, found.capacity, found.grain_sectors) == (version, flags, capacity, grain)
    assert found.capacity == sectors
    assert found.compressed == (subformat == "streamOptimized")
    # One grain table covers 512 grains of 128 sectors.
    assert found.table_count == (sectors + 65535) // 65536


@pytest.mark.parametrize("version", [1, 2, 3])
def test_known_versions_are_read(version: int) -> None:
    assert parsed(changed(QEMU_MONOLITHIC, "version", version)).version == version


@pytest.mark.parametrize(
    ("field", "good", "bad", "error", "names"),
    [
        ("version", 3, 4, UnsupportedFeature, "version 4"),
        ("version", 1, 0, UnsupportedFeature, "version 0"),
        ("version", 1, 0xFFFFFFFF, UnsupportedFeature, "version 4294967295"),
        ("flags", 3, 0x40003, UnsupportedFeature, "0x00040000"),
        ("flags", 0xFFFB, 0x80000000, UnsupportedFeature, "0x80000000"),
        ("flags", 7, 0x20003, UnsupportedFeature, "markers"),
        ("flags", 7, 0x30003, CorruptImage, "compress"),
        ("compressAlgorithm", 0, 1, CorruptImage, "compressAlgorithm 1"),
        ("compressAlgorithm", 0, 2, UnsupportedFeature, "compressAlgorithm 2"),
        ("grainSize", 1, 0, CorruptImage, "grainSize is 0"),
        ("grainSize", 1 << 21, 1 << 22, CorruptImage, "grainSize is 4194304"),
        ("grainSize", 128, 127, CorruptImage, "grainSize is 127"),
        ("grainSize", 128, 2**64 - 1, CorruptImage, "grainSize"),
        ("numGTEsPerGT", 1, 0, CorruptImage, "numGTEsPerGT is 0"),
        ("numGTEsPerGT", 4096, 8192, CorruptImage, "numGTEsPerGT is 8192"),
        ("numGTEsPerGT", 512, 506, CorruptImage, "numGTEsPerGT is 506"),
        ("capacity", (1 << 54) - 1, 1 << 54, CorruptImage, "capacity"),
        ("capacity", 0, 2**64 - 1, CorruptImage, "capacity"),
        ("descriptorSize", 1, 0, CorruptImage, "descriptorSize is 0"),
        ("singleEndLineChar", 0x0A, 0x0D, CorruptImage, "text-mode transfer"),
        ("doubleEndLineChar2", 0x0A, 0x20, CorruptImage, "text-mode transfer"),
    ],
)
def test_both_sides_of_each_bound(field: str, good: int, bad: int, error: type[DiskfsError], names: str) -> None:
    parsed(changed(QEMU_MONOLITHIC, field, good))
    with pytest.raises(error, match=names) as raised:
        parsed(changed(QEMU_MONOLITHIC, field, bad))
    assert type(raised.value) is error
    assert str(raised.value).startswith("disk.vmdk: ")


def test_line_end_bytes_are_ignored_without_their_flag() -> None:
    assert parsed(changed(changed(QEMU_MONOLITHIC, "flags", 2), "singleEndLineChar", 0xFF)).flags == 2


@pytest.mark.parametrize(("grain", "error"), [(1 << 15, None), (1 << 16, UnsupportedFeature)])
def test_a_compressed_grain_is_bounded(grain: int, error: type[DiskfsError] | None) -> None:
    data = changed(OVFTOOL_STREAM, "grainSize", grain)
    if error is None:
        assert parsed(data).grain_sectors == grain
    else:
        with pytest.raises(error, match="compressed grains of 65536 sectors"):
            parsed(data)


def test_the_size_in_bytes_fits_a_signed_64_bit_number() -> None:
    assert parsed(changed(QEMU_MONOLITHIC, "capacity", (1 << 54) - 1)).capacity * 512 < 1 << 63


@pytest.mark.parametrize("length", [0, 1, 3, 4, 511])
def test_a_header_cut_short(length: int) -> None:
    with pytest.raises(TruncatedImage, match="incomplete"):
        parsed(QEMU_MONOLITHIC[:length])


def test_an_unfinished_file_is_called_so() -> None:
    with pytest.raises(CorruptImage, match="did not finish"):
        parsed(b"kdmv" + QEMU_MONOLITHIC[4:])


def test_another_magic_is_named_with_its_place() -> None:
    with pytest.raises(CorruptImage, match=r"offset 0x0.*magicNumber"):
        parsed(b"KDMX" + QEMU_MONOLITHIC[4:])


# ---- footer ----


def stream() -> Built:
    return build(stamped(400), Layout(grain=8, entries=16, compressed=True, footer=True, version=3))


def footer_of(data: bytes) -> SparseHeader:
    source = MemorySource(data, "disk.vmdk")
    return read_footer(source, read_header(source))


def test_the_footer_knows_the_directory() -> None:
    built = stream()
    assert footer_of(bytes(built)).gd_offset == built.gd
    assert len(built.data) == (built.footer + 2) * 512


@pytest.mark.parametrize("padding", [b"", b"\0", b"x" * 511, bytes(512), b"x" * 512, bytes((1 << 20) - 1536)])
def test_the_footer_is_found_before_padding(padding: bytes) -> None:
    built = stream()
    assert footer_of(bytes(built) + padding).gd_offset == built.gd


def test_the_search_for_a_footer_is_bounded() -> None:
    with pytest.raises(TruncatedImage, match="no footer was found in the last 1048576 bytes"):
        footer_of(bytes(stream()) + bytes(1 << 20))


def test_a_missing_end_of_stream_marker_is_forgiven() -> None:
    built = stream()
    assert footer_of(bytes(built)[:-512]).gd_offset == built.gd


@pytest.mark.parametrize("missing", [513, 1024, 1025, 1536, 4096])
def test_a_file_cut_before_the_footer_ends_is_incomplete(missing: int) -> None:
    with pytest.raises(TruncatedImage, match="incomplete"):
        footer_of(bytes(stream())[:-missing])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 2),
        ("flags", 0x30003),
        ("capacity", 401),
        ("capacity", 399),
        ("grainSize", 16),
        ("descriptorOffset", 2),
        ("descriptorSize", 7),
        ("numGTEsPerGT", 32),
    ],
)
def test_a_footer_that_disagrees_is_refused(field: str, value: int) -> None:
    built = stream()
    built.set_field(field, value, sector=built.footer)
    with pytest.raises(CorruptImage, match=r"header and footer .* disagree"):
        footer_of(bytes(built))


def test_a_footer_that_points_to_a_footer_is_refused() -> None:
    built = stream()
    built.set_field("gdOffset", GD_AT_END, sector=built.footer)
    with pytest.raises(CorruptImage, match="GD_AT_END again"):
        footer_of(bytes(built))


@pytest.mark.parametrize(
    "wrong", [marker(2, 3), marker(1, 2), marker(0, 3), b"\x01".ljust(8, b"\0") + b"\x01\0\0\0\x03"]
)
def test_a_footer_without_its_marker_is_none(wrong: bytes) -> None:
    built = stream()
    place = (built.footer - 1) * 512
    built.data[place : place + 512] = wrong.ljust(512, b"\0")
    with pytest.raises(TruncatedImage, match="no footer"):
        footer_of(bytes(built))


def test_a_file_that_is_only_a_header_has_no_footer() -> None:
    for sectors in range(5):
        with pytest.raises(TruncatedImage, match="no footer"):
            footer_of(header(Layout(compressed=True), 400, gd=GD_AT_END) + bytes(sectors * 512))
