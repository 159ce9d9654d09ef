"""The structures of a written VHDX: packed by hand from [MS-VHDX] 8.0, and those of disks that Windows made."""

import struct
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest

from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import UnsupportedFeature
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.raw import RawImage
from diskfs_formats.source import MemorySource
from diskfs_formats.vhdx.writing import block_size_for
from tests.samples.vhdx_builder import (
    BAT_GUID,
    FILE_PARAMETERS,
    GIB,
    KIB,
    LOGICAL_SECTOR_SIZE,
    METADATA_GUID,
    MIB,
    PHYSICAL_SECTOR_SIZE,
    TIB,
    VIRTUAL_DISK_ID,
    VIRTUAL_DISK_SIZE,
    VhdxBuilder,
    with_checksum,
)
from tests.samples.writing import files_of

PRESENT, ZERO = 6, 2


class Marked(RawImage):
    """A disk of any size with one byte of data at each of some offsets."""

    def __init__(self, size: int, *marks: int) -> None:
        super().__init__(MemorySource(b"", "disk.raw"))
        self._length = size
        self._marks = marks

    @property
    def size(self) -> int:
        return self._length

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        end = self._length if length is None else offset + length
        for mark in sorted(self._marks):
            if offset <= mark < end:
                if offset < mark:
                    yield Extent(offset, mark - offset, ExtentKind.HOLE)
                yield Extent(mark, 1, ExtentKind.DATA)
                offset = mark + 1
        if offset < end:
            yield Extent(offset, end - offset, ExtentKind.HOLE)


def read(disk: DiskImage, variant: str, offset: int, length: int, **options: bool) -> bytes:
    [file] = files_of(disk, "vhdx", variant, "out.vhdx", **options)
    return file.content.read_at(offset, length)


def metadata_items(region: bytes) -> dict[UUID, tuple[int, int, bytes]]:
    """Return flags, offset and bytes of each item of a metadata region."""
    assert region[:8] == b"metadata"
    items = {}
    for number in range(int.from_bytes(region[10:12], "little")):
        guid, offset, length, flags, _ = struct.unpack_from("<16sIIII", region, 32 + number * 32)
        items[UUID(bytes_le=guid)] = (flags, offset, region[offset : offset + length])
    return items


def bat(disk: DiskImage, variant: str, count: int) -> list[int]:
    return list(struct.unpack(f"<{count}Q", read(disk, variant, 3 * MIB, count * 8)))


@pytest.mark.parametrize("variant", ["dynamic", "fixed"])
def test_the_header_section(variant: str) -> None:
    section = read(Marked(10 * MIB, 0), variant, 0, MIB)
    assert section[:8] == b"vhdxfile"
    assert section[8:520].decode("utf-16-le").rstrip("\0") == "diskfs"
    headers = [section[at : at + 4096] for at in (64 * KIB, 128 * KIB)]
    for number, header in enumerate(headers, 1):
        assert header == with_checksum(header)
        signature, _, sequence, file_write, data_write, log_guid, log_version, version, log_length, log_offset = (
            struct.unpack_from("<4sIQ16s16s16sHHIQ", header)
        )
        assert (signature, sequence, log_version, version) == (b"head", number, 0, 1)
        assert log_guid == bytes(16)
        assert (log_length, log_offset) == (MIB, MIB)
        assert any(file_write)
        assert any(data_write)
        assert file_write != data_write
        assert not any(header[80:])
    assert headers[0][16:48] == headers[1][16:48]
    tables = [section[at : at + 64 * KIB] for at in (192 * KIB, 256 * KIB)]
    assert tables[0] == tables[1] == with_checksum(tables[0])
    assert struct.unpack_from("<4s4xII", tables[0]) == (b"regi", 2, 0)
    assert [struct.unpack_from("<16sQII", tables[0], 16 + at) for at in (0, 32)] == [
        (BAT_GUID.bytes_le, 3 * MIB, MIB, 1),
        (METADATA_GUID.bytes_le, 2 * MIB, MIB, 1),
    ]
    assert not any(tables[0][80:])
    assert not any(read(Marked(10 * MIB, 0), variant, MIB, MIB)), "the log is to be empty"


@pytest.mark.parametrize(("variant", "bits"), [("dynamic", 0), ("fixed", 1)])
def test_the_metadata(variant: str, bits: int) -> None:
    items = metadata_items(read(Marked(10 * MIB + 100, 0), variant, 2 * MIB, MIB))
    identity = items.pop(VIRTUAL_DISK_ID)
    assert identity[:2] == (6, 0x10018)
    assert any(identity[2])
    assert items == {
        FILE_PARAMETERS: (4, 0x10000, struct.pack("<II", 2 * MIB, bits)),
        VIRTUAL_DISK_SIZE: (6, 0x10008, struct.pack("<Q", 10 * MIB + 512)),
        LOGICAL_SECTOR_SIZE: (6, 0x10010, struct.pack("<I", 512)),
        PHYSICAL_SECTOR_SIZE: (6, 0x10014, struct.pack("<I", 4096)),
    }


@pytest.mark.parametrize(
    ("path", "variant"), [("dfvfs/ntfs-fixed.vhdx", "fixed"), ("dfvfs/ntfs-dynamic.vhdx", "dynamic")]
)
def test_regions_and_metadata_are_those_of_a_disk_of_windows(path: str, variant: str, corpus: Path) -> None:
    theirs = (corpus / path).read_bytes()
    ours = read(Marked(4 * MIB, 0), variant, 0, 4 * MIB)

    def regions(data: bytes) -> dict[bytes, tuple[int, int, int]]:
        count = int.from_bytes(data[192 * KIB + 8 : 192 * KIB + 12], "little")
        entries = [struct.unpack_from("<16sQII", data, 192 * KIB + 16 + 32 * number) for number in range(count)]
        return {guid: (offset, length, flags) for guid, offset, length, flags in entries}

    assert regions(ours) == regions(theirs)
    assert ours[192 * KIB : 256 * KIB] == ours[256 * KIB : 320 * KIB]
    theirs_at = regions(theirs)[METADATA_GUID.bytes_le][0]
    found, expected = metadata_items(ours[2 * MIB : 3 * MIB]), metadata_items(theirs[theirs_at : theirs_at + MIB])
    assert {guid: item[:2] for guid, item in found.items()} == {guid: item[:2] for guid, item in expected.items()}
    for guid in (VIRTUAL_DISK_SIZE, LOGICAL_SECTOR_SIZE, PHYSICAL_SECTOR_SIZE):
        assert found[guid] == expected[guid]
    assert found[FILE_PARAMETERS][2][4:] == expected[FILE_PARAMETERS][2][4:]
    header = 64 * KIB
    assert ours[header + 64 : header + 4096] == theirs[header + 64 : header + 4096], "from LogVersion on"


def test_blocks_with_data_are_present_and_all_others_zero() -> None:
    disk = Marked(11 * MIB, 9 * MIB, 2 * MIB)
    assert bat(disk, "dynamic", 6) == [ZERO, 4 * MIB | PRESENT, ZERO, ZERO, 6 * MIB | PRESENT, ZERO]
    [file] = files_of(disk, "vhdx", "dynamic", "out.vhdx")
    assert file.content.size == 8 * MIB
    assert not any(read(disk, "dynamic", 3 * MIB + 6 * 8, MIB - 6 * 8))


def test_all_blocks_of_a_fixed_disk_are_present() -> None:
    disk = Marked(11 * MIB)
    assert bat(disk, "fixed", 6) == [(4 + 2 * block) * MIB | PRESENT for block in range(6)]
    [file] = files_of(disk, "vhdx", "fixed", "out.vhdx")
    assert file.content.size == 16 * MIB


@pytest.mark.parametrize("variant", ["dynamic", "fixed"])
def test_an_entry_for_the_sector_bitmap_follows_each_chunk(variant: str) -> None:
    ratio = 2048  # blocks of 2 MiB and sectors of 512 bytes
    marks = (0, (ratio - 1) * 2 * MIB, ratio * 2 * MIB, 2 * ratio * 2 * MIB)
    disk = Marked(9 * GIB, *marks)
    entries = bat(disk, variant, 4608 + 2)
    rank = {0: 0, ratio - 1: 1, ratio: 2, 2 * ratio: 3} if variant == "dynamic" else {n: n for n in range(4608)}
    expected = []
    for block in range(4608):
        if block and block % ratio == 0:
            expected.append(0)
        expected.append((4 + 2 * rank[block]) * MIB | PRESENT if block in rank else ZERO)
    assert entries == expected
    assert not any(read(disk, variant, 3 * MIB + 8 * 4610, MIB - 8 * 4610))


def test_the_sectors_keep_their_size() -> None:
    builder = VhdxBuilder(9 * MIB + 4096, sector_size=4096)
    from diskfs_formats.registry import open_image

    disk = open_image(builder.source())
    items = metadata_items(read(disk, "dynamic", 2 * MIB, MIB))
    assert items[LOGICAL_SECTOR_SIZE][2] == struct.pack("<I", 4096)
    assert items[VIRTUAL_DISK_SIZE][2] == struct.pack("<Q", 9 * MIB + 4096)
    disk.close()


@pytest.mark.parametrize(
    ("size", "block_size"),
    [
        (512, 2 * MIB),
        (2 * TIB, 2 * MIB),
        (2 * TIB + 1, 4 * MIB),
        (4 * TIB, 4 * MIB),
        (33 * TIB, 64 * MIB),
        (64 * TIB, 64 * MIB),
    ],
)
def test_blocks_grow_with_the_disk(size: int, block_size: int) -> None:
    assert block_size_for(size) == block_size
    [file] = files_of(Marked(size), "vhdx", "dynamic", "out.vhdx")
    items = metadata_items(file.content.read_at(2 * MIB, MIB))
    assert items[FILE_PARAMETERS][2][:4] == struct.pack("<I", block_size)
    # One MiB of BAT holds 131,072 entries.
    count = -(-size // block_size)
    count += (count - 1) // (2**23 * 512 // block_size)
    assert file.content.size == 3 * MIB + -(-count * 8 // MIB) * MIB


def test_64_tib_are_written_and_a_byte_more_is_not() -> None:
    [file] = files_of(Marked(64 * TIB, 64 * TIB - 1), "vhdx", "dynamic", "out.vhdx")
    count = 2**20 + (2**20 - 1) // 64
    assert file.content.read_at(3 * MIB + (count - 1) * 8, 8) == struct.pack("<Q", 12 * MIB | PRESENT)
    with pytest.raises(UnsupportedFeature, match=r"a VHDX at most 70368744177664 \(64 TiB\)"):
        files_of(Marked(64 * TIB + 1), "vhdx", "dynamic", "out.vhdx")
