"""A damaged partition table is a table with findings, or none: never another exception, never a long wait."""

import random
import struct
import subprocess
import time
import zlib
from pathlib import Path

import pytest

from diskfs_formats.errors import DiskfsError
from diskfs_formats.partitions import read_partition_table
from diskfs_formats.source import MemorySource

SIZE = 4 << 20
GPT = "label: gpt\nsize=1MiB, name=one\nsize=1MiB, name=two\n"
MBR = "label: dos\nstart=2, size=1000\nstart=1010, size=6000, type=5\n5: start=1012, size=20\n6: start=1040, size=20\n"
LIMIT = 0.05
"""Seconds of processor time."""


def make_image(path: Path, script: str) -> bytes:
    path.write_bytes(bytes(SIZE))
    try:
        subprocess.run(["sfdisk", "--quiet", str(path)], input=script, text=True, check=True)
    except FileNotFoundError:
        pytest.skip("sfdisk is not installed")
    return path.read_bytes()


@pytest.fixture(params=[GPT, MBR], ids=["gpt", "mbr"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> bytes:
    return make_image(tmp_path / "disk", request.param)


def survive(data: bytes, sector_size: int | None = None) -> None:
    begin = time.process_time()
    try:
        table = read_partition_table(MemorySource(data, "disk"), sector_size=sector_size)
    except DiskfsError:
        table = None
    assert time.process_time() - begin < LIMIT
    if table is not None:
        for partition in table.partitions:
            assert partition.size >= 0
            assert partition.offset >= 0
        assert all(finding.message.startswith("disk: ") for finding in table.findings)


def table_bytes(data: bytes) -> list[int]:
    """The offsets where a flip can matter: everything that is not zero, and the structures around it."""
    sectors = {offset // 512 for offset in range(0, len(data), 512) if any(data[offset : offset + 512])}
    return [sector * 512 + offset for sector in sorted(sectors) for offset in range(512)]


def test_flipped_byte_is_survived(image: bytes) -> None:
    choice = random.Random(20)
    offsets = table_bytes(image)
    for _ in range(200):
        data = bytearray(image)
        data[choice.choice(offsets)] ^= choice.randrange(1, 256)
        survive(bytes(data))


def test_wrong_bytes_with_right_checksums_are_survived(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk", GPT)
    choice = random.Random(21)
    for _ in range(200):
        data = bytearray(image)
        for _ in range(choice.randrange(1, 4)):
            data[choice.choice([*range(512 + 20, 512 + 88), *range(1024, 1024 + 256)])] = choice.randrange(256)
        fix_checksums(data)
        survive(bytes(data))


def fix_checksums(data: bytearray) -> None:
    data[512 + 88 : 512 + 92] = struct.pack("<I", zlib.crc32(data[1024 : 1024 + 128 * 128]))
    data[512 + 16 : 512 + 20] = bytes(4)
    data[512 + 16 : 512 + 20] = struct.pack("<I", zlib.crc32(data[512 : 512 + 92]))


def test_disk_cut_anywhere_is_survived(image: bytes) -> None:
    for size in (
        *range(0, 4097, 128),
        16384,
        17407,
        17408,
        17409,
        24575,
        24576,
        24577,
        SIZE // 2,
        SIZE - 512,
        SIZE - 1,
    ):
        for sector_size in (None, 512, 4096):
            survive(image[:size], sector_size)


def test_random_sectors_are_survived() -> None:
    choice = random.Random(22)
    for _ in range(200):
        data = bytearray(choice.randbytes(64 * 512))
        data[510:512] = b"\x55\xaa"
        for slot in range(4):
            data[446 + 16 * slot] = 0
            data[450 + 16 * slot] = choice.choice([0, 0x05, 0x0F, 0x83, 0x85, 0xEE])
            # Near addresses, so that chains of extended records do begin.
            data[454 + 16 * slot : 462 + 16 * slot] = struct.pack(
                "<II", choice.randrange(64), choice.randrange(1 << 32)
            )
        for sector in range(1, 64):
            data[sector * 512 + 510 : sector * 512 + 512] = b"\x55\xaa"
        survive(bytes(data))
