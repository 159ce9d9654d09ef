"""VHDX files made to do harm: every field at its extremes with the checksums mended, forged logs, cut files.

Whatever a file says, opening, mapping, reading and verifying it end in a result or in one DiskfsError, within two
seconds and 64 MiB.
"""

import contextlib
import itertools
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import google_crc32c
import pytest

from diskfs_formats.errors import CorruptImage, DiskfsError, UnsupportedFeature
from diskfs_formats.vhdx import VhdxDriver
from diskfs_formats.vhdx.image import VhdxImage
from tests.samples import vhdx_builder as vhdx
from tests.samples.vhdx_builder import (
    KIB,
    LOG_GUID,
    MIB,
    ParentFiles,
    SparseSource,
    VhdxBuilder,
    Zeros,
    bat_entry,
    locator_for,
    pack_header,
    pack_log_entry,
    pattern,
    with_checksum,
)

SECONDS = 2.0
MEMORY = 64 * MIB
REQUESTS = 16
"""Requests for opening, whatever a file claims."""
PARENT_GUID = UUID("aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee")
LOG, METADATA, BAT = MIB, 2 * MIB, 3 * MIB
EXTREMES = (0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)


def victim() -> VhdxBuilder:
    """A child with a partial block and a log of two entries: a file with everything in it."""
    builder = VhdxBuilder(6 * MIB, locator=locator_for(PARENT_GUID, ".\\p.vhdx", "v\\q.vhdx"), log_guid=LOG_GUID)
    builder.put(0, pattern(0))
    builder.put(1, pattern(1), vhdx.PARTIALLY_PRESENT)
    builder.put_bitmap(0, range(2048, 3000))
    late = builder.put(3, pattern(3))
    update = builder.bat_sector({})
    del builder.bat[3]
    assert (builder.metadata_offset, builder.bat_offset) == (METADATA, BAT)
    builder.write_log(
        (0, pack_log_entry([update, Zeros(late + MIB - 4096, 4096)], sequence_number=1, tail=0)),
        (8192, pack_log_entry([update], sequence_number=2, tail=0)),
    )
    return builder


PIECES, SIZE = victim().all_pieces()
PIECES |= {LOG + at: PIECES[LOG][at : at + 8192] for at in (0, 8192)}
CHECKED = {64 * KIB, 128 * KIB, 192 * KIB, LOG, LOG + 8192}
"""The pieces that carry a checksum, besides the second region table, which stays the first one's copy."""


def files() -> ParentFiles:
    parent = VhdxBuilder(6 * MIB, data_write_guid=PARENT_GUID)
    parent.put(2, pattern(2))
    return ParentFiles(VhdxDriver(), {"p.vhdx": lambda: parent.source("p.vhdx")})


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail if what is done within takes too long, or lets the process grow too much at any moment."""
    # The kernel's high-water mark starts anew: it costs nothing, where tracing each allocation would.
    Path("/proc/self/clear_refs").write_text("5")
    before, start = _peak_memory(), time.process_time()
    yield
    seconds, grown = time.process_time() - start, _peak_memory() - before
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert grown < MEMORY, f"{grown / MIB:.0f} MiB"


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * KIB for line in status.splitlines() if line.startswith("VmHWM:"))


def exercise(source: SparseSource, *, verify: bool = True) -> str:
    """Open, map, read and verify; return the error of opening, or nothing. Only DiskfsError may come out."""
    with bounded():
        try:
            image = VhdxDriver().open(source, files())
        except DiskfsError as error:
            assert source.requests <= REQUESTS
            message = str(error)
            assert message.isprintable(), message
            return message
        assert source.requests <= REQUESTS
        for use in (mapped, read, ready, verified) if verify else (mapped, read, ready):
            with contextlib.suppress(DiskfsError):
                use(image, source)
    return ""


def mapped(image: VhdxImage, _: SparseSource) -> None:
    end = 0
    for extent in itertools.islice(image.extents(), 1000):
        assert extent.offset == end
        assert extent.length > 0
        end = extent.end


def read(image: VhdxImage, _: SparseSource) -> None:
    for offset in (0, MIB - 512, MIB, 2 * MIB - 512, 3 * MIB, image.size // 2, image.size - 1):
        with contextlib.suppress(DiskfsError):
            length = min(4096, image.size - offset)
            assert len(image.read_at(offset, length)) == length


def ready(image: VhdxImage, _: SparseSource) -> None:
    for offset in (0, MIB, image.size - 1):
        with contextlib.suppress(DiskfsError):
            image.read_if_ready(offset, 1)


def verified(_: VhdxImage, source: SparseSource) -> None:
    assert len(list(itertools.islice(VhdxDriver().check(source, files()), 3000))) < 3000


def patched(*patches: tuple[int, bytes], size: int = SIZE) -> SparseSource:
    """The victim with some bytes replaced and every checksum that covers them put right."""
    pieces = dict(PIECES)
    for offset, new in patches:
        start = max(start for start in pieces if start <= offset)
        data = bytearray(pieces[start])
        data[offset - start : offset - start + len(new)] = new
        pieces[start] = bytes(data)
    for start in CHECKED:
        if pieces[start] is not PIECES[start]:
            pieces[start] = mended(pieces[start])
    pieces[256 * KIB] = pieces[192 * KIB]
    return SparseSource(pieces, size)


def mended(data: bytes) -> bytes:
    """A structure with its checksum put right, as `with_checksum` does, and quick for megabytes."""
    crc = google_crc32c.value(data[:4] + bytes(4) + data[8:])
    return data[:4] + struct.pack("<I", crc) + data[8:]


def test_both_ways_of_mending_agree() -> None:
    assert mended(PIECES[64 * KIB]) == with_checksum(PIECES[64 * KIB]) == PIECES[64 * KIB]


def test_the_victim_itself_is_sound() -> None:
    image = VhdxDriver().open(patched(), files())
    assert image.read_at(3 * MIB, 512) == pattern(3)[:512]
    assert image.read_at(4 * MIB - 4096, 4096) == bytes(4096)
    assert image.read_at(MIB, 512) == pattern(1)[:512]
    assert image.read_at(2 * MIB - 512, 512) == bytes(512)
    assert image.read_at(2 * MIB, 512) == pattern(2)[:512]
    assert exercise(patched()) == ""


HEADER_FIELDS = {
    "SequenceNumber": (8, 8),
    "DataWriteGuid": (32, 8),
    "LogGuid": (48, 8),
    "LogVersion": (64, 2),
    "Version": (66, 2),
    "LogLength": (68, 4),
    "LogOffset": (72, 8),
}
REGION_FIELDS = {"EntryCount": (8, 4)} | {
    f"{entry}.{name}": (16 + 32 * entry + at, width)
    for entry in (0, 1)
    for name, at, width in (("Guid", 0, 8), ("FileOffset", 16, 8), ("Length", 24, 4), ("Required", 28, 4))
}
METADATA_FIELDS = {"EntryCount": (10, 2)} | {
    f"{entry}.{name}": (32 + 32 * entry + at, width)
    for entry in range(6)
    for name, at, width in (("ItemID", 0, 8), ("Offset", 16, 4), ("Length", 20, 4), ("flags", 24, 4))
}
ITEM_FIELDS = {
    "BlockSize": (0, 4),
    "bits": (4, 4),
    "VirtualDiskSize": (8, 8),
    "LogicalSectorSize": (16, 4),
    "PhysicalSectorSize": (20, 4),
    "VirtualDiskId": (24, 8),
    "LocatorType": (40, 8),
    "KeyValueCount": (58, 2),
} | {
    f"key {key}.{name}": (60 + 12 * key + at, width)
    for key in range(3)
    for name, at, width in (("KeyOffset", 0, 4), ("ValueOffset", 4, 4), ("KeyLength", 8, 2), ("ValueLength", 10, 2))
}
LOG_FIELDS = {
    "EntryLength": (8, 4),
    "Tail": (12, 4),
    "SequenceNumber": (16, 8),
    "DescriptorCount": (24, 4),
    "LogGuid": (32, 8),
    "FlushedFileOffset": (48, 8),
    "LastFileOffset": (56, 8),
    "0.Signature": (64, 4),
    "0.FileOffset": (80, 8),
    "0.SequenceNumber": (88, 8),
    "1.ZeroLength": (104, 8),
    "1.FileOffset": (112, 8),
    "data.Signature": (4096, 4),
    "data.SequenceHigh": (4100, 4),
    "data.SequenceLow": (8188, 4),
}
BAT_FIELDS = {str(index): (index * 8, 8) for index in (1, 5, 4096)}
STRUCTURES = {
    "header": (128 * KIB, HEADER_FIELDS),
    "region": (192 * KIB, REGION_FIELDS),
    "metadata": (METADATA, METADATA_FIELDS),
    "item": (METADATA + 64 * KIB, ITEM_FIELDS),
    "log": (LOG, LOG_FIELDS),
    "second log entry": (LOG + 8192, LOG_FIELDS),
    "bat": (BAT, BAT_FIELDS),
}
CASES = [(name, field) for name, (_, fields) in STRUCTURES.items() for field in fields]


@pytest.mark.parametrize(("structure", "field"), CASES, ids=[f"{name}:{field}" for name, field in CASES])
def test_every_field_at_its_extremes_is_survived(structure: str, field: str) -> None:
    base, fields = STRUCTURES[structure]
    at, width = fields[field]
    values = {value & (1 << 8 * width) - 1 for value in EXTREMES} | {1 << 20, (1 << 8 * width) - (1 << 12)}
    if structure == "bat":
        values |= {offset | state for state in range(8) for offset in (0, MIB, 2 * MIB, 4 * MIB, 2**63, 2**64 - MIB)}
    for value in values:
        data = (value & (1 << 8 * width) - 1).to_bytes(width, "little")
        exercise(patched((base + at, data)))


@pytest.mark.parametrize("seed", range(60))
def test_a_forged_log_is_survived(seed: int) -> None:
    chance = random.Random(seed)
    patches = []
    for _ in range(chance.choice((1, 1, 2, 5))):
        entry = LOG + chance.choice((0, 8192))
        at, width = chance.choice(list(LOG_FIELDS.values()))
        value = chance.choice((*EXTREMES, chance.randrange(2**64), 4096 * chance.randrange(2**16), MIB * 7))
        patches.append((entry + at, (value & (1 << 8 * width) - 1).to_bytes(width, "little")))
    exercise(patched(*patches))


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_behind_right_checksums_is_survived(seed: int) -> None:
    chance = random.Random(seed)
    areas = [(64 * KIB, 128), (128 * KIB, 128), (192 * KIB, 128), (METADATA, 256), (METADATA + 64 * KIB, 400)]
    areas += [(LOG, 192), (LOG + 8192, 128), (BAT, 64), (BAT + 4096 * 8, 8)]
    for _ in range(5):
        patches = []
        for _ in range(chance.choice((1, 2, 4))):
            start, length = chance.choice(areas)
            patches.append((start + chance.randrange(length), bytes([chance.randrange(256)])))
        exercise(patched(*patches))


@pytest.mark.parametrize("seed", range(4))
def test_a_file_cut_anywhere_is_survived(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(25):
        exercise(patched(size=chance.randrange(SIZE)))
    for power in range(8, 23):
        exercise(patched(size=(1 << power) - 1))


def log_source(ring: bytes, *, size: int | None = None) -> SparseSource:
    """A disk whose log is `ring`."""
    builder = VhdxBuilder(6 * MIB, log_guid=LOG_GUID, log_length=len(ring))
    builder.pieces[LOG] = ring
    builder.file_size = size
    return builder.source()


def one_sector_entry(number: int, tail: int, *, length: int = 4096, flushed: int = 0) -> bytes:
    """An entry without descriptors."""
    fields = (b"loge", 0, length, tail, number, 0, 0, LOG_GUID.bytes_le, flushed, 0)
    return mended(struct.pack("<4sIIIQII16sQQ", *fields).ljust(4096, b"\0"))


def opened(source: SparseSource) -> VhdxImage:
    with bounded():
        return VhdxDriver().open(source, files())


def test_entries_that_contain_each_other_are_refused() -> None:
    ring = bytearray(MIB)
    for offset in range(MIB - 4096, -1, -4096):
        ring[offset : offset + 4096] = one_sector_entry(offset // 4096 + 1, 0, length=MIB - offset)
        ring[offset:] = mended(bytes(ring[offset:]))
    with pytest.raises(CorruptImage, match="its entries lie on top of each other"):
        opened(log_source(bytes(ring)))


def test_entries_that_claim_the_whole_ring_are_refused() -> None:
    head = one_sector_entry(1, 0, length=16 * MIB)
    with pytest.raises(CorruptImage, match="its entries lie on top of each other"):
        opened(log_source(head * 4096))


@pytest.mark.parametrize("tail", [lambda _: 0, lambda n: n * 4096, lambda n: (n + 1) % 4096 * 4096])
def test_a_long_chain_of_entries_is_followed_quickly(tail: Callable[[int], int]) -> None:
    # 4,096 entries of one sector each fill 16 MiB and follow one another.
    source = log_source(b"".join(one_sector_entry(n + 1, tail(n)) for n in range(4096)))
    with contextlib.suppress(DiskfsError), bounded():
        VhdxDriver().open(source, files())


def test_entries_whose_numbers_never_follow_are_heads_each_and_the_newest_counts() -> None:
    heads = (one_sector_entry(2 * n + 1, n * 4096, flushed=2**40 + n) for n in range(4096))
    with pytest.raises(CorruptImage, match="had 0x10000000fff bytes"):
        opened(log_source(b"".join(heads)))


@pytest.mark.parametrize(("count", "is_taken"), [(32766, True), (32768, True), (32769, False)])
def test_descriptors_without_end_are_refused(count: int, is_taken: bool) -> None:
    # Ranges that touch nowhere, so that none can be joined to another.
    descriptors = b"".join(struct.pack("<4sIQQQ", b"zero", 0, 4096, 8 * MIB + n * 8192, 1) for n in range(count))
    head = bytearray(pack_log_entry([], sequence_number=1, tail=0, last=2**40))
    sectors = -(-(count + 2) // 128)
    struct.pack_into("<I", head, 8, sectors * 4096)
    struct.pack_into("<I", head, 24, count)
    entry = (bytes(head[:64]) + descriptors).ljust(sectors * 4096, b"\0")
    source = log_source(mended(entry).ljust(2 * MIB, b"\0"))
    if is_taken:
        assert opened(source).read_at(0, 6 * MIB) == bytes(6 * MIB)
    else:
        with pytest.raises(UnsupportedFeature, match="over 32768 descriptors"):
            opened(source)


def test_a_log_of_the_largest_size_full_of_data_is_replayed_within_bounds() -> None:
    # One entry of 4,063 sectors: as much content as 16 MiB can carry.
    count = 4063
    builder = VhdxBuilder(6 * MIB, log_guid=LOG_GUID, log_length=16 * MIB)
    place = builder.allocate(17 * MIB)
    sectors = [vhdx.Sector(place + 4096 * n, pattern(7, 4096)) for n in range(count)]
    descriptors = b"".join(struct.pack("<4s4s8sQQ", b"desc", s.data[4092:], s.data[:8], s.offset, 1) for s in sectors)
    described = -(-(count + 2) // 128) * 4096
    head = bytearray(pack_log_entry([], sequence_number=1, tail=0)[:64])
    struct.pack_into("<I", head, 8, described + count * 4096)
    struct.pack_into("<I", head, 24, count)
    data = struct.pack("<4sI", b"data", 0) + pattern(7, 4096)[8:4092] + struct.pack("<I", 1)
    entry = (bytes(head) + descriptors).ljust(described, b"\0") + data * count
    builder.pieces[LOG] = mended(entry).ljust(16 * MIB, b"\0")
    for block in range(6):
        builder.set_state(block, vhdx.FULLY_PRESENT, place + block * MIB)
    image = opened(builder.source())
    assert image.read_at(0, 6 * MIB) == pattern(7, 4096) * 1536


@pytest.mark.parametrize("length", [2**63, 2**64 - 4096, 2**50 - 64 * MIB])
def test_zeros_without_end_are_refused_or_cost_nothing(length: int) -> None:
    entry = pack_log_entry([Zeros(64 * MIB, length)], sequence_number=1, tail=0, last=2**50)
    source = log_source(entry.ljust(MIB, b"\0"))
    if length < 2**50:
        assert opened(source).read_at(0, 4096) == bytes(4096)
    else:
        with pytest.raises(CorruptImage, match="would write 0x4000000 to"):
            opened(source)


def test_a_log_of_4_gib_in_a_sparse_file_is_refused_without_reading_it() -> None:
    builder = VhdxBuilder(6 * MIB)
    header = pack_header(sequence_number=9, log_guid=LOG_GUID, log_length=2**32 - MIB, log_offset=8 * MIB)
    builder.headers = [header, builder.headers[0]]
    builder.file_size = 2**34
    source = builder.source()
    with pytest.raises(UnsupportedFeature, match="4293918720 bytes are to be replayed"):
        opened(source)
    assert source.bytes_read < MIB


@pytest.mark.parametrize("size", [2**41, 2**46, 2**63, 2**64 - 512])
@pytest.mark.parametrize("file_size", [MIB, 4 * MIB, 2**62])
def test_a_small_file_that_claims_a_huge_disk_costs_little(size: int, file_size: int) -> None:
    builder = VhdxBuilder(6 * MIB)
    builder.item(vhdx.VIRTUAL_DISK_SIZE).data = struct.pack("<Q", size)
    builder.regions[0] = (vhdx.BAT_GUID, 3 * MIB, 2**32 - MIB, 1)
    builder.file_size = file_size
    message = exercise(builder.source(), verify=False)
    assert (message == "") == (size <= 2**46 and file_size == 2**62)


def test_a_bat_in_which_every_block_is_the_same_is_verified_within_bounds() -> None:
    builder = VhdxBuilder(2000 * MIB)
    offset = builder.put(0, b"")
    entries = struct.pack("<Q", bat_entry(6, offset)) * 2000
    builder.bat.clear()
    builder.pieces[builder.bat_offset] = entries
    source = builder.source()
    with bounded():
        findings = list(itertools.islice(VhdxDriver().check(source, files()), 1200))
    assert len(findings) > 1000
    assert all(finding.rule == "vhdx-bat" for finding in findings[:1001])


def test_blocks_scattered_without_end_are_verified_within_bounds() -> None:
    builder = VhdxBuilder(160_000 * MIB)
    entries = [bat_entry(6, (n << 36) + 2**35) for n in range(160_039)]
    builder.pieces[builder.bat_offset] = struct.pack("<160039Q", *entries)
    builder.file_size = 2**62
    source = builder.source()
    with bounded():
        found = VhdxDriver().check(source, files())
        messages = itertools.takewhile(lambda message: "scattered" not in message, (each.message for each in found))
        # 32 entries that should be sector bitmaps, and then it is enough: reading the blocks is not part of this.
        assert len(list(messages)) == 32


def test_a_bitmap_that_changes_with_every_sector_is_mapped_and_read_within_bounds() -> None:
    builder = VhdxBuilder(64 * MIB, block_size=64 * MIB, locator=locator_for(PARENT_GUID, "p.vhdx"))
    builder.put(0, b"", vhdx.PARTIALLY_PRESENT)
    offset = builder.put_bitmap(0, [])
    builder.pieces[offset] = b"\xaa" * MIB
    image = VhdxDriver().open(builder.source(), files())
    with bounded():
        assert sum(1 for _ in itertools.islice(image.extents(), 20000)) == 20000
        assert image.read_at(0, 4 * MIB)[:512] == bytes(512)
