"""The structures of written VMDKs: QEMU's own, the specification's, and those of disks that VMware's programs made."""

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diskfs_formats.driver import ImageInfo
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.raw import RawImage
from diskfs_formats.source import MemorySource
from diskfs_formats.vmdk import writing
from diskfs_formats.vmdk.descriptor import parse_descriptor
from tests.helpers import assert_same_bytes
from tests.samples.writing import files_of

MIB = 1 << 20
TIB = 1 << 40
HEADER = bytes.fromhex(
    "4b444d56 01000000 03000000 0350000000000000 8000000000000000 0100000000000000 1400000000000000 00020000"
    "1500000000000000 1a00000000000000 8000000000000000 00 0a200d0a 0000"
) + bytes(433)
"""What qemu-img 7.2 writes for 20483 sectors."""


class Sized(RawImage):
    """A disk of any size that is one kind throughout."""

    def __init__(self, size: int, kind: ExtentKind, sector_size: int = 512) -> None:
        super().__init__(MemorySource(b"", "disk.raw"))
        self._length = size
        self._kind = kind
        self._sized_info = ImageInfo("raw", "raw", size, sector_size)

    @property
    def size(self) -> int:
        return self._length

    @property
    def info(self) -> ImageInfo:
        return self._sized_info

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self._length - offset if length is None else length
        if length:
            yield Extent(offset, length, self._kind)


def raw(sectors: int) -> RawImage:
    return RawImage(MemorySource(b"".join(bytes([1 + number % 255]) * 512 for number in range(sectors)), "disk.raw"))


def sparse(disk: RawImage, name: str = "out.vmdk", **options: bool) -> bytes:
    [file] = files_of(disk, "vmdk", "monolithicSparse", name, **options)
    return file.content.read_at(0, file.content.size)


def test_the_header_is_the_one_that_qemu_writes() -> None:
    assert_same_bytes(sparse(raw(20483))[:512], HEADER)


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed: run scripts/setup")
def test_tables_and_grains_are_where_qemu_has_them(tmp_path: Path) -> None:
    disk = raw(20483)
    (tmp_path / "disk.raw").write_bytes(disk.read_at(0, disk.size))
    # One request at a time, so that grains are in order.
    command = ["qemu-img", "convert", "-m", "1", "-f", "raw", "-O", "vmdk", "disk.raw", "disk.vmdk"]
    subprocess.run(command, check=True, cwd=tmp_path)
    theirs, ours = (tmp_path / "disk.vmdk").read_bytes(), sparse(disk)
    assert_same_bytes(ours[:512], theirs[:512])
    assert_same_bytes(ours[21 * 512 : 128 * 512], theirs[21 * 512 : 128 * 512])
    # QEMU writes the last grain as far as there is data, or whole.
    assert_same_bytes(ours[128 * 512 : 128 * 512 + disk.size], theirs[128 * 512 : 128 * 512 + disk.size])
    assert len(ours) == (128 + 161 * 128) * 512
    assert not any(ours[128 * 512 + disk.size :])


def test_every_grain_table_exists_twice_and_says_the_same() -> None:
    sectors = 3 * 512 * 128 + 5
    data = bytearray(sectors * 512)
    places = (0, 511, 512, 513, 1535, 1536)
    for grain in places:
        data[grain * 65536] = grain % 255 + 1

    class Grains(RawImage):
        def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
            end = self.size if length is None else offset + length
            while offset < end:
                grain = offset // 65536
                stop = min((grain + 1) * 65536, end)
                for extent in super().extents(offset, stop - offset):
                    yield extent if grain in places else Extent(offset, stop - offset, ExtentKind.HOLE)
                offset = stop

    ours = sparse(Grains(MemorySource(bytes(data), "disk.raw")))
    fields = struct.unpack_from("<4sIIQQQQIQQQB4sH", ours)
    assert fields[:8] == (b"KDMV", 1, 3, sectors, 128, 1, 20, 512)
    rgd, gd, overhead = fields[8:11]
    assert (rgd, gd, overhead) == (21, 38, 128)

    def entries(directory: int) -> list[int]:
        found: list[int] = []
        tables = struct.unpack_from("<4I", ours, directory * 512)
        assert tables == tuple(directory + 1 + 4 * number for number in range(4))
        for table in tables:
            found += struct.unpack_from("<512I", ours, table * 512)
        return found

    assert entries(rgd) == entries(gd)
    expected = [0] * 2048
    for rank, grain in enumerate(places):
        expected[grain] = overhead + rank * 128
    assert entries(gd) == expected
    for rank, grain in enumerate(places):
        assert ours[(overhead + rank * 128) * 512] == grain % 255 + 1
    assert len(ours) == (overhead + 128 * len(places)) * 512


def test_the_descriptor_says_what_the_specification_asks_for() -> None:
    data = sparse(raw(20483), "my disk.vmdk")
    text = data[512 : 21 * 512].rstrip(b"\0").decode()
    expected = r"""# Disk DescriptorFile
version=1
encoding="UTF-8"
CID=[0-9a-f]{8}
parentCID=ffffffff
createType="monolithicSparse"

# Extent description
RW 20483 SPARSE "my disk\.vmdk"

# The Disk Data Base
#DDB

ddb\.adapterType = "lsilogic"
ddb\.geometry\.cylinders = "1"
ddb\.geometry\.heads = "255"
ddb\.geometry\.sectors = "63"
ddb\.longContentID = "[0-9a-f]{32}"
ddb\.uuid = "([0-9a-f]{2} ){7}[0-9a-f]{2}-([0-9a-f]{2} ){7}[0-9a-f]{2}"
ddb\.virtualHWVersion = "10"
"""
    assert re.fullmatch(expected, text), text


@pytest.mark.parametrize(
    ("path", "variant"), [("vmdk-rs/monolithicFlat.vmdk", "monolithicFlat"), ("vmdk-rs/monolithicSparse.vmdk", "")]
)
def test_keys_and_fields_are_those_of_a_disk_of_vmware(path: str, variant: str, corpus: Path) -> None:
    theirs = (corpus / path).read_bytes()
    disk = Sized(10 * MIB, ExtentKind.HOLE)
    ours = files_of(disk, "vmdk", variant or "monolithicSparse", Path(path).name)[0].content
    if variant:
        found, expected = ours.read_at(0, ours.size), theirs
    else:
        same = slice(4, 64), slice(72, 512)
        for part in same:
            assert ours.read_at(0, 512)[part] == theirs[:512][part]
        found, expected = ours.read_at(512, 20 * 512), theirs[512 : 21 * 512]
    first, second = parse_descriptor(found, "ours"), parse_descriptor(expected, "theirs")
    assert first.create_type == second.create_type
    assert first.extents == second.extents
    changing = {"cid", "ddb.uuid", "ddb.longcontentid", "ddb.virtualhwversion", "encoding"}
    theirs_only = set(second.values) - set(first.values)
    assert theirs_only <= {
        "isnativesnapshot",
        "ddb.deletable",
        "ddb.encoding",
        "ddb.toolsversion",
        "ddb.toolsinstalltype",
    }
    for key in set(first.values) & set(second.values) - changing:
        if key.startswith("ddb.geometry") or key == "ddb.adaptertype":
            continue  # an IDE disk's, or a SCSI disk's
        assert first.values[key] == second.values[key]


def test_a_flat_disk_is_a_descriptor_and_the_bytes() -> None:
    disk = raw(2049)
    descriptor, flat = files_of(disk, "vmdk", "monolithicFlat", "out.vmdk")
    assert (descriptor.name, flat.name) == ("out.vmdk", "out-flat.vmdk")
    text = descriptor.content.read_at(0, descriptor.content.size).decode()
    assert 'createType="monolithicFlat"\n' in text
    assert '\nRW 2049 FLAT "out-flat.vmdk" 0\n' in text
    assert_same_bytes(flat.content.read_at(0, flat.content.size), disk.read_at(0, disk.size))


@pytest.mark.parametrize(
    ("name", "flat_name"), [("a", "a-flat.vmdk"), ("B.VMDK", "B-flat.vmdk"), ("é x", "é x-flat.vmdk")]
)
def test_the_flat_file_is_named_after_the_descriptor(name: str, flat_name: str) -> None:
    descriptor, flat = files_of(raw(1), "vmdk", "monolithicFlat", name)
    assert (descriptor.name, flat.name) == (name, flat_name)
    assert f'"{flat_name}"'.encode() in descriptor.content.read_at(0, descriptor.content.size)


@pytest.mark.parametrize("name", ["", 'a".vmdk', "a\nRW 1 ZERO", "a/b", "a\\b", "\udcff", "a\0", "x" * 256, "x" * 250])
def test_a_name_that_no_descriptor_can_hold_is_refused(name: str) -> None:
    variant = "monolithicFlat" if name == "x" * 250 else "monolithicSparse"
    with pytest.raises(UnsupportedFeature, match="cannot name this file"):
        files_of(raw(1), "vmdk", variant, name)


@pytest.mark.parametrize("last", [b"\xff\xff\xff\xff", b"\xff\xff\xff\xfe", bytes(4)])
def test_content_identifiers_that_mean_something_else_are_not_used(
    last: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "new_identifier", lambda *_: bytes(range(12)) + last)
    text = sparse(raw(1))[512 : 21 * 512].decode()
    assert "CID=00000001\nparentCID=ffffffff\n" in text
    assert 'longContentID = "000102030405060708090a0b00000001"' in text


def test_the_size_of_sectors_that_are_not_512_bytes_is_told() -> None:
    assert b'ddb.logicalSectorSize = "4096"\n' in sparse(Sized(8 * MIB, ExtentKind.HOLE, 4096))
    assert b"ogicalSectorSize" not in sparse(Sized(8 * MIB, ExtentKind.HOLE))


def test_a_sparse_file_ends_at_2_tib() -> None:
    tables = 2 * (2 * TIB // 32 // MIB) * 2048
    fits = Sized(2 * TIB - tables - 64 * MIB, ExtentKind.DATA)
    [file] = files_of(fits, "vmdk", "monolithicSparse", "out.vmdk")
    assert 2 * TIB - 100 * MIB < file.content.size < 2 * TIB
    with pytest.raises(UnsupportedFeature, match="whose file ends at 2 TiB; write monolithicFlat or vhdx"):
        files_of(Sized(2 * TIB, ExtentKind.DATA), "vmdk", "monolithicSparse", "out.vmdk")
    # An empty disk may well be larger: its tables are all there is.
    [file] = files_of(Sized(16 * TIB, ExtentKind.HOLE), "vmdk", "monolithicSparse", "out.vmdk")
    assert file.content.size < 3 << 30
