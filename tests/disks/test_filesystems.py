"""Signatures are told as blkid tells them, on file systems made by their own tools and on real images."""

import shutil
import struct
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from diskfs.guest.filesystems import identify_filesystem
from diskfs_formats.errors import DiskfsError
from diskfs_formats.source import MemorySource

MIB = 1 << 20


class CountingSource(MemorySource):
    """Memory that remembers what was read of it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.lengths: list[int] = []

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.lengths.append(length)
        return super().read_at(offset, length)


def identify(data: bytes) -> str | None:
    source = CountingSource(data)
    found = identify_filesystem(source)
    assert len(source.lengths) <= 3
    assert sum(source.lengths) <= 72 << 10
    return found


def blkid(path: Path) -> str | None:
    command = ["blkid", "--probe", "--output", "value", "--match-tag", "TYPE", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


needs_blkid = pytest.mark.skipif(shutil.which("blkid") is None, reason="blkid is not installed")

MADE = [
    ("ext2", 8, "mkfs.ext2 -q"),
    ("ext2", 8, "mke2fs -q -r 0"),
    ("ext2", 8, "mke2fs -q -b 1024"),
    ("ext3", 16, "mkfs.ext3 -q"),
    ("ext4", 16, "mkfs.ext4 -q"),
    ("ext4", 16, "mkfs.ext4 -q -O ^has_journal"),
    ("ext4", 16, "mkfs.ext4 -q -b 4096 -O 64bit,metadata_csum"),
    ("jbd", 8, "mke2fs -q -O journal_dev"),
    ("xfs", 320, "mkfs.xfs -q"),
    ("xfs", 320, "mkfs.xfs -q -s size=4096 -m crc=0,finobt=0,reflink=0"),
    ("btrfs", 128, "mkfs.btrfs -q"),
    ("vfat", 2, "mkfs.vfat -F 12"),
    ("vfat", 32, "mkfs.vfat -F 16"),
    ("vfat", 64, "mkfs.vfat -F 32"),
    ("vfat", 64, "mkfs.vfat -S 4096"),
    ("swap", 4, "mkswap"),
    ("swap", 4, "mkswap --pagesize 8192"),
    ("swap", 4, "mkswap --pagesize 65536"),
    ("exfat", 16, "mkfs.exfat"),
    ("ntfs", 16, "mkfs.ntfs -q -F"),
    ("f2fs", 64, "mkfs.f2fs -q"),
    ("jfs", 32, "mkfs.jfs -q"),
    ("reiserfs", 64, "mkfs.reiserfs -q -f"),
    ("udf", 16, "mkudffs"),
]


@needs_blkid
@pytest.mark.parametrize(("expected", "size", "command"), MADE, ids=[command for _, _, command in MADE])
def test_made_file_system_is_named_as_blkid_names_it(tmp_path: Path, expected: str, size: int, command: str) -> None:
    tool, *arguments = command.split()
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    path = tmp_path / "volume"
    with path.open("wb") as file:
        file.truncate(size * MIB)
    made = subprocess.run([tool, *arguments, str(path)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert blkid(path) == expected
    with path.open("rb") as file:
        data = file.read(MIB)
    # Nothing behind the first MiB of these is looked at but the places of RAID, which are empty.
    assert identify(data) == expected


@needs_blkid
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ext2", "ext2"),
        ("ext4", "ext4"),
        ("xfs", "xfs"),
        ("fat12", "vfat"),
        ("ntfs", "ntfs"),
        ("luks1", "crypto_LUKS"),
        ("lvm", "LVM2_member"),
        ("gpt", None),
        ("mbr", None),
    ],
)
def test_corpus_image_is_named_as_blkid_names_it(corpus: Path, name: str, expected: str | None) -> None:
    path = corpus / "dfvfs" / f"{name}.raw"
    assert blkid(path) == expected
    assert identify(path.read_bytes()) == expected


@dataclass(frozen=True)
class Volume:
    """Bytes at offsets, zeroes elsewhere."""

    pieces: tuple[tuple[int, bytes], ...]
    size: int

    def data(self) -> bytes:
        data = bytearray(self.size)
        for offset, piece in self.pieces:
            data[offset : offset + len(piece)] = piece
        return bytes(data)


def volume(*pieces: tuple[int, bytes], size: int = 2 * MIB) -> Volume:
    return Volume(pieces, size)


def md_superblock_1(offset: int) -> bytes:
    """What identifies mdp_superblock_1 of md_p.h, with the checksum over its 256 bytes."""
    data = bytearray(256)
    struct.pack_into("<II", data, 0, 0xA92B4EFC, 1)
    struct.pack_into("<Q", data, 144, offset // 512)
    struct.pack_into("<I", data, 216, md_checksum(struct.unpack("<64I", data)))
    return bytes(data)


def md_superblock_0(order: str) -> bytes:
    """What identifies mdp_superblock_s of md_p.h, with the checksum over its 4,096 bytes."""
    data = bytearray(4096)
    struct.pack_into(f"{order}III", data, 0, 0xA92B4EFC, 0, 90)
    struct.pack_into(f"{order}I", data, 152, md_checksum(struct.unpack(f"{order}1024I", data)))
    return bytes(data)


def md_checksum(words: Sequence[int]) -> int:
    total = sum(words)
    return ((total & 0xFFFFFFFF) + (total >> 32)) & 0xFFFFFFFF


def lvm_label(sector: int) -> bytes:
    """A physical volume's label; its CRC-32 begins with a value of LVM's own and is not inverted at the end."""
    summed = (struct.pack("<I", 32) + b"LVM2 001").ljust(492, b"\0")
    crc = zlib.crc32(summed, 0xF597A6CF ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
    return b"LABELONE" + struct.pack("<QI", sector, crc) + summed


NTFS_FIELDS = struct.pack("<HBH2xBHBH", 512, 8, 0, 0, 0, 0xF8, 0)
ISO = (32768, b"\1CD001\1")
UDF = ((34816, b"\0BEA01\1"), (36864, b"\0NSR03\1"), (38912, b"\0TEA01\1"))
SIZE = 2 * MIB

SIGNATURES = {
    "LUKS": ("crypto_LUKS", volume((0, b"LUKS\xba\xbe\0\2"))),
    "BitLocker": ("BitLocker", volume((0, b"\xeb\x58\x90-FVE-FS-"))),
    "BitLocker, Vista": ("BitLocker", volume((0, b"\xeb\x52\x90-FVE-FS-"))),
    "BitLocker To Go": (
        "BitLocker",
        volume((0, b"\xeb\x58\x90MSWIN4.1"), (424, bytes.fromhex("3bd66749292ed84a8399f6a339e3d001"))),
    ),
    "ntfs": ("ntfs", volume((0, b"\xeb\x52\x90NTFS    " + NTFS_FIELDS))),
    "exfat": ("exfat", volume((0, b"\xeb\x76\x90EXFAT   "))),
    "ReFS": ("ReFS", volume((0, b"\0\0\0ReFS\0\0\0\0"))),
    "squashfs": ("squashfs", volume((0, b"hsqs" + bytes(24) + struct.pack("<HH", 4, 0)))),
    "LVM, sector 0": ("LVM2_member", volume((0, lvm_label(0)))),
    "LVM, sector 1": ("LVM2_member", volume((512, lvm_label(1)))),
    "LVM, sector 2": ("LVM2_member", volume((1024, lvm_label(2)))),
    "LVM, sector 3": ("LVM2_member", volume((1536, lvm_label(3)))),
    "LVM label that was copied": (None, volume((1536, lvm_label(1)))),
    "LVM label in sector 4": (None, volume((2048, lvm_label(4)))),
    "f2fs": ("f2fs", volume((1024, b"\x10\x20\xf5\xf2"))),
    "hfsplus": ("hfsplus", volume((1024, b"H+\0\4" + bytes(36) + struct.pack(">I", 4096)))),
    "hfsx": ("hfsplus", volume((1024, b"HX\0\5" + bytes(36) + struct.pack(">I", 4096)))),
    "hibernated swap": ("swsuspend", volume((4086, b"S1SUSPEND\0"))),
    "jfs": ("jfs", volume((32768, b"JFS1"))),
    "iso9660": ("iso9660", volume(ISO)),
    "udf": ("udf", volume(*((offset - 2048, piece) for offset, piece in UDF))),
    "udf bridge": ("udf", volume(ISO, *UDF)),
    "udf's end without its beginning": ("iso9660", volume(ISO, *UDF[1:])),
    "reiserfs 3.5": ("reiserfs", volume((65588, b"ReIsErFs"))),
    "reiserfs 3.6": ("reiserfs", volume((65588, b"ReIsEr2Fs"))),
    "reiserfs, old place": ("reiserfs", volume((8244, b"ReIsErFs"))),
    "btrfs": ("btrfs", volume((65600, b"_BHRfS_M"))),
    "RAID 1.1": ("linux_raid_member", volume((0, md_superblock_1(0)))),
    "RAID 1.2": ("linux_raid_member", volume((4096, md_superblock_1(4096)))),
    "RAID 1.0": ("linux_raid_member", volume((SIZE - 8192, md_superblock_1(SIZE - 8192)))),
    "RAID 1.0, odd size": (
        "linux_raid_member",
        volume((SIZE - 8192, md_superblock_1(SIZE - 8192)), size=SIZE + 4095),
    ),
    "RAID 1.2 that was copied": (None, volume((4096, md_superblock_1(8192)))),
    "RAID 0.90": ("linux_raid_member", volume((SIZE - 65536, md_superblock_0("<")))),
    "RAID 0.90, big-endian": ("linux_raid_member", volume((SIZE - 65536, md_superblock_0(">")))),
    "RAID 0.90, odd size": (
        "linux_raid_member",
        volume((SIZE - 65536, md_superblock_0("<")), size=SIZE + 65535),
    ),
    "mirror of a file system": (
        "linux_raid_member",
        volume((1024, b"\x10\x20\xf5\xf2"), (SIZE - 8192, md_superblock_1(SIZE - 8192))),
    ),
    "zeroes": (None, volume()),
}


NEED_MORE_THAN_A_SIGNATURE = {
    *("BitLocker", "BitLocker To Go", "ntfs", "jfs", "udf", "udf bridge"),
    *("reiserfs 3.5", "reiserfs 3.6", "reiserfs, old place"),
}
"""What blkid follows further into the volume than is written here."""


@pytest.mark.parametrize(("expected", "made"), SIGNATURES.values(), ids=SIGNATURES.keys())
def test_signature_is_recognised_at_its_place(expected: str | None, made: Volume) -> None:
    assert identify(made.data()) == expected


@needs_blkid
@pytest.mark.parametrize("name", sorted(SIGNATURES.keys() - NEED_MORE_THAN_A_SIGNATURE))
def test_signature_is_recognised_by_blkid_too(tmp_path: Path, name: str) -> None:
    expected, made = SIGNATURES[name]
    (tmp_path / "volume").write_bytes(made.data())
    assert blkid(tmp_path / "volume") == expected


def test_raid_superblock_at_the_end_is_of_a_version_that_is_kept_there() -> None:
    assert identify(volume((SIZE - 65536, struct.pack("<II", 0xA92B4EFC, 2))).data()) is None


def fat(changes: dict[str, int], signature: bytes = b"\x55\xaa") -> bytes:
    fields = {"bytes": 512, "cluster": 4, "reserved": 1, "fats": 2, "root": 512, "total": 4000, "media": 0xF8, "fat": 4}
    values = {**fields, **changes}.values()
    return volume((0, b"\xeb\x3c\x90MSDOS5.0" + struct.pack("<HBHBHHBH", *values)), (510, signature)).data()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "vfat"),
        ({"bytes": 4096}, "vfat"),
        ({"media": 0xF0}, "vfat"),
        ({"fats": 1}, "vfat"),
        ({"bytes": 0}, None),
        ({"bytes": 256}, None),
        ({"bytes": 8192}, None),
        ({"bytes": 513}, None),
        ({"cluster": 0}, None),
        ({"cluster": 3}, None),
        ({"reserved": 0}, None),
        ({"fats": 0}, None),
        ({"media": 0xF7}, None),
        ({"media": 0}, None),
        ({"fat": 0}, None),
        ({"total": 1}, None),
        ({"total": 65535, "cluster": 1}, "vfat"),
    ],
)
def test_fat_is_judged_by_its_parameter_block(changes: dict[str, int], expected: str | None) -> None:
    assert identify(fat(changes)) == expected


@pytest.mark.parametrize(
    "size", [0, 1, 3, 511, 512, 1023, 1124, 1128, 4095, 4096, 4231, 4232, 8192, 65535, 65536, 69632]
)
def test_source_of_any_size_is_looked_at(size: int) -> None:
    assert identify(bytes(size)) is None
    assert identify(b"\xff" * size) is None


def test_every_signature_cut_short_is_survived() -> None:
    for _, made in SIGNATURES.values():
        data = made.data()
        for size in (1, 4, 12, 30, 100, 1026, 1100, 4090, 32770, 65590, 65604):
            identify(data[:size])


class FailingSource(MemorySource):
    """A source that cannot be read."""

    def read_at(self, offset: int, length: int, /) -> bytes:
        raise DiskfsError("no luck")


def test_unreadable_source_is_an_error() -> None:
    with pytest.raises(DiskfsError, match="no luck"):
        identify_filesystem(FailingSource(bytes(4096)))
