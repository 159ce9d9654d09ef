"""A gzip file as a source: against what gzip and Python write, at every boundary, from many threads, damaged."""

import gzip
import itertools
import random
import struct
import subprocess
import tarfile
import threading
import tracemalloc
import zlib
from pathlib import Path

import pytest

from diskfs_formats import gzipped
from diskfs_formats.errors import (
    ChecksumMismatch,
    CorruptImage,
    DiskfsError,
    ImageError,
    OutOfRange,
    TruncatedImage,
)
from diskfs_formats.gzipped import BLOCK_SIZE, GzipSource, is_gzip
from diskfs_formats.source import MemorySource
from tests.helpers import assert_same_bytes, sha256_of

MIB = 1 << 20


class CountingSource(MemorySource):
    """Counts the bytes that are read; fails as often as it is told to."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "disk.vmdk.gz")
        self.bytes_read = 0
        self.failures = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        if self.failures:
            self.failures -= 1
            raise OutOfRange("the network is down")
        self.bytes_read += length
        return super().read_at(offset, length)


def opened(data: bytes) -> GzipSource:
    return GzipSource(MemorySource(data, "disk.vmdk.gz"), "disk.vmdk")


def content(data: bytes) -> bytes:
    source = opened(data)
    return source.read_at(0, source.size)


@pytest.fixture(scope="module")
def plain() -> bytes:
    """5 MiB and a bit: stretches that compress to nothing, stretches that do not compress, text."""
    chance = random.Random(7)
    data = bytearray()
    while len(data) < 5 * MIB + 12345:
        length = chance.randrange(1, 300_000)
        kinds = (bytes(length), chance.randbytes(length), b"the same words again " * (length // 21))
        data += chance.choice(kinds)
    return bytes(data[: 5 * MIB + 12345])


@pytest.fixture(scope="module")
def packed(plain: bytes) -> bytes:
    return gzip.compress(plain, 6)


@pytest.mark.parametrize("options", [["-1"], ["-6"], ["-9"], ["--rsyncable"], ["-n"]])
def test_files_of_gzip_give_what_went_in(options: list[str], plain: bytes, tmp_path: Path) -> None:
    (tmp_path / "disk.vmdk").write_bytes(plain)
    subprocess.run(["gzip", *options, "disk.vmdk"], cwd=tmp_path, check=True)
    assert_same_bytes(content((tmp_path / "disk.vmdk.gz").read_bytes()), plain)


@pytest.mark.parametrize("size", [0, 1, 255, 65535, 65536, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_sizes_around_the_block_size(size: int, level: int) -> None:
    data = random.Random(size).randbytes(size)
    assert opened(gzip.compress(data, level)).size == size
    assert_same_bytes(content(gzip.compress(data, level)), data)


def test_disks_of_a_real_appliance(corpus: Path) -> None:
    with tarfile.open(corpus / "appliances/gz-disks.ova") as packed_disks:
        compressed = {name: packed_disks.extractfile(name).read() for name in ("a.vmdk.gz", "b.vmdk.gz")}  # type: ignore[union-attr] # they are files
    with tarfile.open(corpus / "appliances/two-disks.ova") as plain_disks:
        listed = plain_disks.extractfile("vm.mf").read().decode()  # type: ignore[union-attr] # it is a file
    for name, plain_name in (("a.vmdk.gz", "vm-disk1.vmdk"), ("b.vmdk.gz", "vm-disk2.vmdk")):
        expected = subprocess.run(["gzip", "-dc"], input=compressed[name], capture_output=True, check=True).stdout
        assert_same_bytes(content(compressed[name]), expected)
        assert f"SHA256({plain_name})= {sha256_of([content(compressed[name])])}" in listed


def test_members_follow_each_other(plain: bytes) -> None:
    cuts = [0, 1, 1, 100_000, 3 * MIB, len(plain)]
    pieces = [plain[start:end] for start, end in itertools.pairwise(cuts)]
    assert_same_bytes(content(b"".join(gzip.compress(piece) for piece in [b"", *pieces, b""])), plain)


def test_many_small_members_cost_no_more_than_one_pass(plain: bytes) -> None:
    data = b"".join(gzip.compress(plain[at : at + 65536], 1) for at in range(0, len(plain), 65536))
    source = CountingSource(data)
    assert_same_bytes(GzipSource(source, "disk").read_at(0, len(plain)), plain)
    assert source.bytes_read < 2.2 * len(data)


def member(
    data: bytes,
    *,
    extra: bytes | None = None,
    name: bytes | None = None,
    comment: bytes | None = None,
    crc: bool = False,
) -> bytes:
    """A member as RFC 1952, section 2.3, lays it out."""
    flags = (crc << 1) | ((extra is not None) << 2) | ((name is not None) << 3) | ((comment is not None) << 4)
    head = b"\x1f\x8b\x08" + bytes([flags]) + bytes(4) + b"\0\xff"
    if extra is not None:
        head += struct.pack("<H", len(extra)) + extra
    for text in (name, comment):
        if text is not None:
            head += text + b"\0"
    if crc:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    deflate = zlib.compressobj(wbits=-15)
    body = deflate.compress(data) + deflate.flush()
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


@pytest.mark.parametrize("extra", [None, b"", b"abcd", bytes(65535)])
@pytest.mark.parametrize("name", [None, b"", b"disk.vmdk", b"n" * 1024, b"n" * 60_000])
@pytest.mark.parametrize("comment", [None, b"", b"c" * 1000])
@pytest.mark.parametrize("crc", [False, True])
def test_every_header_field_is_passed_over(
    extra: bytes | None, name: bytes | None, comment: bytes | None, crc: bool
) -> None:
    data = member(b"content", extra=extra, name=name, comment=comment, crc=crc)
    assert gzip.decompress(data) == b"content"
    assert content(data + data) == b"contentcontent"


def test_both_sides_of_the_header_limit() -> None:
    room = gzipped.MAX_HEADER_SIZE - 10 - 1
    assert content(member(b"content", name=b"n" * room) + bytes(1000)) == b"content"
    with pytest.raises(CorruptImage, match="over 131072 bytes"):
        content(member(b"content", name=b"n" * (room + 1)) + bytes(1000))


def test_any_range_is_the_same_as_of_the_whole(plain: bytes, packed: bytes) -> None:
    source = opened(packed)
    chance = random.Random(11)
    for _ in range(150):
        offset = chance.randrange(len(plain) + 1)
        length = min(chance.choice([0, 1, 512, 70_000, MIB]), len(plain) - offset)
        assert_same_bytes(source.read_at(offset, length), plain[offset : offset + length])


@pytest.mark.parametrize("step", [BLOCK_SIZE, MIB])
def test_both_sides_of_every_boundary(step: int, plain: bytes, packed: bytes) -> None:
    source = opened(packed)
    boundaries = [*range(step, len(plain), step), len(plain)]
    for boundary in reversed(boundaries):
        for start in (boundary - 513, boundary - 1, boundary, boundary + 1):
            for end in (boundary - 1, boundary, boundary + 1, boundary + 512):
                if start <= end <= len(plain):
                    assert_same_bytes(source.read_at(start, end - start), plain[start:end])


def test_both_sides_of_every_kept_state(plain: bytes, packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    # A small spacing puts a state into nearly every input piece; a cache of one block makes every read use them.
    monkeypatch.setattr(gzipped, "CHECKPOINT_SPACING", 20_000)
    monkeypatch.setattr(gzipped, "CACHE_SIZE", BLOCK_SIZE)
    monkeypatch.setattr(gzipped, "MAX_STREAMS", 0)
    source = opened(packed)
    assert source.size == len(plain)
    index = source._index
    assert index is not None
    assert len(index) > 30
    positions = [index.before(offset).position for offset in range(0, len(plain), 10_000)]
    for position in random.Random(3).sample(positions, 30):
        for start in (max(position - 1, 0), position, position + 1):
            assert_same_bytes(source.read_at(start, 3), plain[start : start + 3])


def test_states_thin_out_and_reads_stay_right(plain: bytes, packed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzipped, "CHECKPOINT_SPACING", 10_000)
    monkeypatch.setattr(gzipped, "MAX_CHECKPOINTS", 8)
    source = opened(packed)
    assert source.size == len(plain)
    index = source._index
    assert index is not None
    assert 4 <= len(index) <= 8
    for offset in range(len(plain) - 100, 0, -700_001):
        assert_same_bytes(source.read_at(offset, 100), plain[offset : offset + 100])


def test_content_that_compresses_a_thousandfold() -> None:
    # The decompressor then stops for its output limit, in the middle of what it was fed, and at the stream's end.
    data = bytes(40 * MIB) + b"end"
    source = opened(gzip.compress(data, 9))
    assert source.size == len(data)
    assert source.read_at(20 * MIB, 10) == bytes(10)
    assert source.read_at(len(data) - 5, 5) == b"\0\0end"


def test_reading_on_costs_one_pass(plain: bytes, packed: bytes) -> None:
    source = CountingSource(packed)
    disk = GzipSource(source, "disk")
    assert disk.size == len(plain)
    assert source.bytes_read <= len(packed) + 64
    source.bytes_read = 0
    for offset in range(0, len(plain), 65536):
        disk.read_at(offset, min(65536, len(plain) - offset))
    assert source.bytes_read <= len(packed) + 64


def test_two_readers_that_take_turns_cost_one_pass_each(plain: bytes, packed: bytes) -> None:
    source = CountingSource(packed)
    disk = GzipSource(source, "disk")
    half = disk.size // 2
    source.bytes_read = 0
    for offset in range(0, half - 65536, 65536):
        for start in (offset, half + offset):
            assert_same_bytes(disk.read_at(start, 65536), plain[start : start + 65536])
    assert source.bytes_read < 2 * len(packed)


def test_a_small_read_decompresses_little(packed: bytes, plain: bytes) -> None:
    source = CountingSource(packed)
    disk = GzipSource(source, "disk")
    assert disk.size == len(plain)
    source.bytes_read = 0
    disk.read_at(4 * MIB, 100)
    assert source.bytes_read < 2 * MIB


def test_eight_threads_at_once_get_the_right_bytes(plain: bytes, packed: bytes) -> None:
    source = opened(packed)
    wrong: list[int] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(30):
            offset = chance.randrange(len(plain))
            length = min(chance.randrange(600_000), len(plain) - offset)
            if source.read_at(offset, length) != plain[offset : offset + length]:
                wrong.append(offset)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_is_bounded_with_every_state_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzipped, "CHECKPOINT_SPACING", 20_000)
    data = gzip.compress(random.Random(5).randbytes(MIB) * 30, 1)
    source = opened(data)
    tracemalloc.start()
    try:
        size = source.size
        for offset in range(0, size - 1000, 1_234_567):
            source.read_at(offset, 1000)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    index = source._index
    assert index is not None
    assert len(index) > 900
    assert kept < 64 * MIB
    assert peak < 64 * MIB


def test_bytes_are_ready_once_they_were_read(plain: bytes, packed: bytes) -> None:
    source = opened(packed)
    assert source.read_if_ready(0, 10) is None
    assert source.read_at(300_000, 10) == plain[300_000:300_010]
    assert source.read_if_ready(300_000, 10) == plain[300_000:300_010]
    assert source.read_if_ready(4 * MIB, 10) is None
    with pytest.raises(OutOfRange):
        source.read_if_ready(len(plain), 1)


def test_reads_past_the_end_are_refused(plain: bytes, packed: bytes) -> None:
    source = opened(packed)
    assert source.read_at(len(plain), 0) == b""
    for offset, length in ((len(plain), 1), (len(plain) - 1, 2), (-1, 1), (0, -1)):
        with pytest.raises(OutOfRange):
            source.read_at(offset, length)


def test_closing_twice_is_harmless(packed: bytes) -> None:
    source = opened(packed)
    source.read_at(0, 1)
    source.close()
    source.close()


# Damage


SMALL = gzip.compress(b"content" * 1000)


@pytest.mark.parametrize("padding", [1, 511, 512, 1 << 20])
def test_zero_padding_is_passed_over(padding: int) -> None:
    assert content(SMALL + bytes(padding)) == b"content" * 1000


@pytest.mark.parametrize(
    "after",
    [b"x", b"\x1f", bytes(1000) + b"x", bytes(1 << 20) + b"x", bytes(1) + SMALL],
    ids=["x", "half a signature", "x after zeroes", "x after many zeroes", "a member after a zero"],
)
def test_anything_else_after_the_end_is_an_error(after: bytes) -> None:
    with pytest.raises(CorruptImage, match=f"after the end of the gzip data at {len(SMALL):#x}"):
        content(SMALL + after)


def test_a_second_member_is_never_left_out_without_a_word() -> None:
    for position in range(4):
        second = bytearray(SMALL)
        second[position] ^= 0xFF
        with pytest.raises(CorruptImage):
            content(SMALL + bytes(second))


def test_a_file_that_is_cut_anywhere_is_incomplete() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(TruncatedImage):
            content(SMALL[:length])


def test_a_second_member_that_is_cut_is_incomplete() -> None:
    for length in range(2, len(SMALL)):
        with pytest.raises(TruncatedImage):
            content(SMALL + SMALL[:length])


def test_a_wrong_checksum_shows_both_values() -> None:
    data = SMALL[:-8] + struct.pack("<II", 0x12345678, 7000)
    with pytest.raises(ChecksumMismatch) as caught:
        content(data)
    expected = f"CRC-32 {zlib.crc32(b'content' * 1000):#010x}, expected 0x12345678"
    assert f"disk.vmdk.gz: gzip trailer at offset {len(SMALL) - 8:#x}: {expected}" in str(caught.value)


def test_a_wrong_size_shows_both_values() -> None:
    data = SMALL[:-4] + struct.pack("<I", 6999)
    with pytest.raises(CorruptImage, match="ISIZE 6999, but the member holds 7000 bytes"):
        content(data)


def test_a_wrong_header_checksum_is_found() -> None:
    data = bytearray(member(b"content", name=b"disk.vmdk", crc=True))
    data[12] ^= 1
    with pytest.raises(ChecksumMismatch, match="CRC-16"):
        content(bytes(data))


@pytest.mark.parametrize(("position", "value", "text"), [(0, 0, "ID"), (2, 7, "method 7"), (3, 0x20, "reserved")])
def test_headers_that_are_none(position: int, value: int, text: str) -> None:
    data = bytearray(SMALL)
    data[position] = value
    with pytest.raises(CorruptImage, match=text):
        content(bytes(data))
    assert not is_gzip(bytes(data))


def test_is_gzip_needs_the_first_four_bytes() -> None:
    assert is_gzip(SMALL[:4])
    assert not is_gzip(SMALL[:3])


def test_damaged_data_is_named_with_its_offset() -> None:
    data = SMALL[:10] + b"\xff" * 100
    with pytest.raises(CorruptImage, match=r"disk\.vmdk\.gz: gzip data at offset 0xa: "):
        content(data)


def test_no_flipped_byte_gives_other_content() -> None:
    for position in range(len(SMALL)):
        data = bytearray(SMALL)
        data[position] ^= 0x41
        try:
            assert content(bytes(data)) == b"content" * 1000
        except ImageError:
            continue


def test_both_sides_of_the_size_limit() -> None:
    assert GzipSource(MemorySource(SMALL, "x"), "x", max_size=7000).size == 7000
    with pytest.raises(CorruptImage, match="holds over 6999 bytes"):
        _ = GzipSource(MemorySource(SMALL, "x"), "x", max_size=6999).size


def test_damage_is_found_once_and_told_every_time() -> None:
    source = CountingSource(SMALL[:-1])
    disk = GzipSource(source, "disk")
    messages = set()
    for _ in range(3):
        with pytest.raises(TruncatedImage) as caught:
            disk.read_at(0, 1)
        messages.add(str(caught.value))
    assert len(messages) == 1
    assert source.bytes_read <= len(SMALL)


def test_a_failing_source_is_asked_again() -> None:
    source = CountingSource(SMALL)
    disk = GzipSource(source, "disk")
    source.failures = 1
    with pytest.raises(DiskfsError, match="the network is down"):
        disk.read_at(0, 1)
    assert disk.read_at(0, 7) == b"content"
