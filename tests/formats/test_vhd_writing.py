"""The fields of a written VHD: the specification's, QEMU's own, and those of disks that Microsoft's programs made."""

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.raw import RawImage
from diskfs_formats.source import MemorySource
from diskfs_formats.vhd.writing import geometry_of
from tests.helpers import assert_same_bytes
from tests.samples.vhd_builder import FOOTER_FIELDS, HEADER_FIELDS, checksum
from tests.samples.writing import files_of

MIB = 1 << 20
GIB = 1 << 30
DYNAMIC_HEADER = bytes.fromhex(
    "6378737061727365 ffffffffffffffff 0000000000000600 00010000 00000006 00200000 fffff471"
) + bytes(984)
"""What qemu-img 7.2 writes for six blocks of 2 MiB."""


class Holes(RawImage):
    """A disk of any size in which nothing is stored."""

    def __init__(self, size: int) -> None:
        super().__init__(MemorySource(b""))
        self._length = size

    @property
    def size(self) -> int:
        return self._length

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        yield Extent(offset, self._length - offset if length is None else length, ExtentKind.HOLE)


def bytes_of(disk: DiskImage, variant: str, **options: bool) -> bytes:
    [file] = files_of(disk, "vhd", variant, "out.vhd", **options)
    return file.content.read_at(0, file.content.size)


def tail_of(disk: DiskImage, variant: str, **options: bool) -> bytes:
    [file] = files_of(disk, "vhd", variant, "out.vhd", **options)
    return file.content.read_at(file.content.size - 512, 512)


def fields(data: bytes, places: dict[str, tuple[int, str]]) -> dict[str, object]:
    return {name: struct.unpack_from(">" + code, data, offset)[0] for name, (offset, code) in places.items()}


def raw(size: int) -> RawImage:
    return RawImage(MemorySource((b"\1" + bytes(511)) * (size // 512), "disk.raw"))


@pytest.mark.parametrize(
    ("size", "geometry"),
    [
        (MIB, (30, 4, 17)),
        (10 * MIB, (301, 4, 17)),
        (100 * MIB, (1003, 12, 17)),
        (512 * MIB, (1040, 16, 63)),
        (GIB, (2080, 16, 63)),
        (8 * GIB, (16644, 16, 63)),
        (32 * GIB, (16448, 16, 255)),
        (127 * GIB, (65278, 16, 255)),
        (128 * GIB, (65535, 16, 255)),
        (2040 * GIB, (65535, 16, 255)),
    ],
)
def test_the_geometry_is_the_one_that_the_specification_computes(size: int, geometry: tuple[int, int, int]) -> None:
    assert geometry_of(size) == geometry


@pytest.mark.parametrize("variant", ["fixed", "dynamic"])
def test_every_field_of_the_footer(variant: str) -> None:
    data = bytes_of(raw(10 * MIB + 1536), variant)
    footer = data[-512:]
    assert fields(footer, FOOTER_FIELDS) == {
        "cookie": b"conectix",
        "features": 2,
        "file_format_version": 0x00010000,
        "data_offset": 0xFFFFFFFFFFFFFFFF if variant == "fixed" else 512,
        "timestamp": fields(footer, FOOTER_FIELDS)["timestamp"],
        "creator_application": b"win ",
        "creator_version": 0x000A0000,
        "creator_host_os": b"Wi2k",
        "original_size": 10 * MIB + 1536,
        "current_size": 10 * MIB + 1536,
        "cylinders": 301,
        "heads": 4,
        "sectors_per_track": 17,
        "disk_type": 2 if variant == "fixed" else 3,
        "checksum": checksum(footer[:64] + bytes(4) + footer[68:]),
        "unique_id": footer[68:84],
        "saved_state": 0,
    }
    assert footer[85:] == bytes(427)
    assert any(footer[68:84])
    # 2024 to 2099, in seconds since 2000.
    assert 757382400 < int.from_bytes(footer[24:28], "big") < 3155760000
    if variant == "dynamic":
        assert data[:512] == footer
        assert data[512:1536] == DYNAMIC_HEADER
        assert data[1536:2048] == struct.pack(">6I", *range(4, 4 + 6 * 4097, 4097)) + b"\xff" * 488
        assert data[2048:2560] == b"\xff" * 512
        assert len(data) == 2048 + 6 * (512 + 2 * MIB) + 512


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed: run scripts/setup")
@pytest.mark.parametrize("variant", ["fixed", "dynamic"])
def test_only_what_must_differ_differs_from_a_file_of_qemu(variant: str, tmp_path: Path) -> None:
    disk = raw(10 * MIB + 1536)
    (tmp_path / "disk.raw").write_bytes(disk.read_at(0, disk.size))
    options = f"subformat={variant},force_size=on"
    command = ["qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", options, "disk.raw", "disk.vhd"]
    subprocess.run(command, check=True, cwd=tmp_path)
    theirs, ours = bytearray((tmp_path / "disk.vhd").read_bytes()), bytearray(bytes_of(disk, variant))
    assert len(theirs) == len(ours)
    copies = [len(ours) - 512, *([0] if variant == "dynamic" else [])]
    # QEMU's timestamp and creator, its geometry of the largest size for any size that is forced, checksum, identifier.
    for data in (theirs, ours):
        for at in copies:
            for start, end in ((24, 40), (56, 60), (64, 84)):
                data[at + start : at + end] = bytes(end - start)
    if variant == "dynamic":
        # Blocks are in the order of writing, and qemu-img convert writes with eight coroutines.
        tables = [sorted(struct.unpack(">6I", data[1536:1560])) for data in (theirs, ours)]
        assert tables[0] == tables[1]
        assert_same_bytes(ours[:1536] + ours[1560:2560], theirs[:1536] + theirs[1560:2560])
    else:
        assert_same_bytes(ours, theirs)


@pytest.mark.parametrize(
    ("path", "variant"), [("dfvfs/ntfs-fixed.vhd", "fixed"), ("dfvfs/ntfs-dynamic.vhd", "dynamic")]
)
def test_the_fields_are_those_of_a_disk_of_windows(path: str, variant: str, corpus: Path) -> None:
    theirs, ours = (corpus / path).read_bytes(), bytes_of(raw(4 * MIB), variant)
    own = {"timestamp", "checksum", "unique_id", "creator_version"}
    first, second = fields(theirs[-512:], FOOTER_FIELDS), fields(ours[-512:], FOOTER_FIELDS)
    assert {name: first[name] for name in first if name not in own} == {
        name: second[name] for name in second if name not in own
    }
    if variant == "dynamic":
        first, second = fields(theirs[512:1536], HEADER_FIELDS), fields(ours[512:1536], HEADER_FIELDS)
        changing = {"checksum", "max_table_entries"}
        assert {name: first[name] for name in first if name not in changing} == {
            name: second[name] for name in second if name not in changing
        }


def test_azure_gets_whole_mebibytes() -> None:
    footer = tail_of(raw(10 * MIB + 512), "fixed", azure=True)
    assert fields(footer, FOOTER_FIELDS)["current_size"] == 11 * MIB
    data = bytes_of(raw(10 * MIB + 512), "fixed", azure=True)
    assert len(data) == 11 * MIB + 512
    assert not any(data[10 * MIB + 512 : 11 * MIB])
    assert len(bytes_of(raw(11 * MIB), "fixed", azure=True)) == 11 * MIB + 512


def test_azure_takes_no_dynamic_disk() -> None:
    with pytest.raises(UnsupportedFeature, match="Azure takes fixed VHDs alone"):
        bytes_of(raw(MIB), "dynamic", azure=True)


@pytest.mark.parametrize("variant", ["fixed", "dynamic"])
def test_2040_gib_are_written_and_a_sector_more_is_not(variant: str) -> None:
    [file] = files_of(Holes(2040 * GIB), "vhd", variant, "out.vhd")
    assert fields(tail_of(Holes(2040 * GIB), variant), FOOTER_FIELDS)["current_size"] == 2040 * GIB
    if variant == "dynamic":
        assert file.content.read_at(1536, 2040 * 512 * 4) == b"\xff" * (2040 * 512 * 4)
    with pytest.raises(UnsupportedFeature, match=r"a VHD at most 2190433320960 \(2040 GiB\); write vhdx"):
        files_of(Holes(2040 * GIB + 1), "vhd", variant, "out.vhd")


def test_azure_takes_32_tib() -> None:
    files_of(Holes(32 << 40), "vhd", "fixed", "out.vhd", azure=True)
    with pytest.raises(UnsupportedFeature, match="32768 GiB"):
        files_of(Holes((32 << 40) + 1), "vhd", "fixed", "out.vhd", azure=True)
