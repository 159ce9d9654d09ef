"""The log: which entries are replayed, what they change, and that the file itself is left alone.

`dirty_disk` is a disk of 600 blocks whose BAT on disk is out of date: what it should say is in the log.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

import pytest

from diskfs.sources.file import open_file
from diskfs_formats.driver import NoRelatedFiles
from diskfs_formats.errors import CorruptImage, DiskfsError, TruncatedImage, UnsupportedFeature
from diskfs_formats.findings import Severity
from diskfs_formats.source import MemorySource, read_if_ready, read_ranges
from diskfs_formats.vhdx import VhdxDriver
from diskfs_formats.vhdx.image import VhdxImage
from diskfs_formats.vhdx.replayed import Change, Changes, ReplayedSource
from tests.conformance.promises import SparseReference, assert_random_ranges, assert_threads
from tests.helpers import assert_same_bytes
from tests.samples.vhdx_builder import (
    KIB,
    LOG_GUID,
    MIB,
    Sector,
    VhdxBuilder,
    Zeros,
    bat_entry,
    pack_header,
    pack_log_entry,
    pack_region_table,
    pattern,
    with_checksum,
)

BLOCKS = 600
"""Over one 4 KiB sector of the BAT (512 entries), so that its first and last entries both mean something."""
RING = MIB


def dirty_disk(log_length: int = RING) -> VhdxBuilder:
    """A disk with content for blocks 0 to 4 in the file, and none of it in the BAT."""
    builder = VhdxBuilder(BLOCKS * MIB, log_guid=LOG_GUID, log_length=log_length)
    for block in range(5):
        builder.put(block, pattern(block, 4096))
    builder.bat.clear()
    return builder


def place(builder: VhdxBuilder, number: int) -> int:
    """Where the content called `number` is stored."""
    return builder.bat_offset + builder.bat_length + number * MIB


def update(builder: VhdxBuilder, blocks: dict[int, int]) -> Sector:
    """The BAT's first sector with each block at one of the five contents."""
    return builder.bat_sector({block: bat_entry(6, place(builder, number)) for block, number in blocks.items()})


def entry(builder: VhdxBuilder, blocks: dict[int, int], *, number: int, tail: int, guid: UUID = LOG_GUID) -> bytes:
    return pack_log_entry([update(builder, blocks)], sequence_number=number, tail=tail, log_guid=guid)


def opened(builder: VhdxBuilder) -> VhdxImage:
    return VhdxDriver().open(builder.source(), NoRelatedFiles())


def content(image: VhdxImage, blocks: int = 512) -> dict[int, int]:
    """Which of the five contents each block shows; blocks of zeros are left out."""
    contents = {pattern(number, 512)[:16]: number for number in range(5)}
    shown = {block: image.read_at(block * MIB, 16) for block in range(blocks)}
    return {block: contents[data] for block, data in shown.items() if any(data)}


def test_an_entry_is_replayed_and_its_first_and_last_bytes_are_put_back() -> None:
    builder = dirty_disk()
    # Block 0's entry is the sector's first 8 bytes and block 511's ends with its last 4: both are in the descriptor.
    builder.write_log((0, entry(builder, {0: 1, 1: 2, 511: 3}, number=1, tail=0)))
    image = opened(builder)
    assert content(image) == {0: 1, 1: 2, 511: 3}
    (finding,) = image.info.findings
    assert (finding.rule, finding.severity) == ("vhdx-log", Severity.INFO)
    assert "replayed in memory" in finding.message


def test_a_log_is_not_replayed_when_the_header_says_that_it_is_empty() -> None:
    builder = dirty_disk()
    builder.write_log((0, entry(builder, {0: 1}, number=1, tail=0)))
    builder.headers = [pack_header(sequence_number=9), builder.headers[0]]
    image = opened(builder)
    assert content(image) == {}
    assert image.info.findings == ()


def test_entries_are_replayed_in_order_from_the_tail_to_the_head() -> None:
    builder = dirty_disk()
    builder.write_log(
        (0, entry(builder, {0: 1}, number=7, tail=0)),
        (8192, entry(builder, {0: 2, 1: 1}, number=8, tail=0)),
        (16384, entry(builder, {0: 3, 2: 1}, number=9, tail=0)),
    )
    assert content(opened(builder)) == {0: 3, 2: 1}


def test_entries_before_the_tail_are_not_replayed() -> None:
    builder = dirty_disk()
    builder.bat[3] = bat_entry(6, place(builder, 4))
    second = builder.bat_offset + 4096
    builder.bat[515] = bat_entry(6, place(builder, 4))
    builder.write_log(
        (0, pack_log_entry([Zeros(second, 4096)], sequence_number=1, tail=0)),
        (4096, entry(builder, {0: 1}, number=2, tail=4096)),
        (4096 + 8192, entry(builder, {0: 2}, number=3, tail=4096)),
    )
    image = opened(builder)
    assert content(image, BLOCKS) == {0: 2, 3: 4, 515: 4}


@pytest.mark.parametrize("start", [RING - 4096, RING - 8192, RING - 12288, 4096])
def test_the_ring_goes_on_at_its_beginning(start: int) -> None:
    builder = dirty_disk()
    # Each entry has 8 KiB, so the first, the second or none of them lies around the end.
    places = [(start + number * 8192) % RING for number in range(3)]
    builder.write_log(
        *((at, entry(builder, {0: 1 + n, n: 1}, number=1 + n, tail=start)) for n, at in enumerate(places))
    )
    assert content(opened(builder)) == {0: 3, 2: 1}


@pytest.mark.parametrize("places", [(0, 65536), (65536, 0)])
def test_of_two_sequences_the_newer_one_is_replayed(places: tuple[int, int]) -> None:
    older, newer = places
    builder = dirty_disk()
    builder.write_log(
        (older, entry(builder, {0: 1}, number=5, tail=older)),
        (newer, entry(builder, {0: 2}, number=40, tail=newer)),
    )
    assert content(opened(builder)) == {0: 2}


def test_only_entries_of_the_header_s_log_count() -> None:
    # As in a log that qemu left: seven whole entries, of which the last alone belongs to the current log.
    builder = dirty_disk()
    other = UUID(int=99)
    builder.write_log(
        *((n * 8192, entry(builder, {n: 1}, number=1 + n, tail=0, guid=other)) for n in range(6)),
        (0xC000, entry(builder, {0: 2}, number=7, tail=0xC000)),
    )
    assert content(opened(builder)) == {0: 2}


def test_a_torn_last_entry_is_left_out() -> None:
    builder = dirty_disk()
    torn = entry(builder, {0: 3}, number=3, tail=0)[:-4096] + bytes(4096)
    builder.write_log(
        (0, entry(builder, {0: 1}, number=1, tail=0)),
        (8192, entry(builder, {0: 2}, number=2, tail=0)),
        (16384, torn),
    )
    assert content(opened(builder)) == {0: 2}


@pytest.mark.parametrize("damage", range(4))
def test_a_data_sector_of_another_entry_makes_an_entry_invalid_though_its_checksum_is_right(damage: int) -> None:
    builder = dirty_disk()
    data = bytearray(entry(builder, {0: 3}, number=2**32 + 2, tail=0))
    data[{0: 4096, 1: 4100, 2: 8188, 3: 64 + 24}[damage]] ^= 1  # signature, high half, low half, descriptor's number
    builder.write_log(
        (0, entry(builder, {0: 1}, number=2**32 + 1, tail=0)),
        (8192, with_checksum(bytes(data))),
    )
    assert content(opened(builder)) == {0: 1}


def test_a_sequence_whose_tail_is_lost_is_not_replayed() -> None:
    builder = dirty_disk()
    builder.write_log(
        (0, entry(builder, {0: 1}, number=1, tail=0)),
        (65536, entry(builder, {0: 2}, number=12, tail=32768)),
        (65536 + 8192, entry(builder, {0: 3}, number=13, tail=32768)),
    )
    assert content(opened(builder)) == {0: 1}


def test_a_gap_in_the_sequence_numbers_ends_a_sequence() -> None:
    builder = dirty_disk()
    builder.write_log(
        (0, entry(builder, {0: 1}, number=1, tail=0)),
        (8192, entry(builder, {0: 2}, number=3, tail=0)),
    )
    assert content(opened(builder)) == {0: 1}


@pytest.mark.parametrize("number", [1, 2**32 - 1, 2**32, 2**64 - 1])
def test_sequence_numbers_are_64_bits_wide(number: int) -> None:
    builder = dirty_disk()
    builder.write_log((0, entry(builder, {0: 1}, number=number, tail=0)))
    assert content(opened(builder)) == {0: 1}


@pytest.mark.parametrize("count", [0, 1, 126, 127, 254, 255])
def test_descriptors_fill_as_many_sectors_as_they_need(count: int) -> None:
    # 126 fit the entry's first sector, 128 each further one.
    builder = dirty_disk()
    zeros = [Zeros(place(builder, 0) + 4096 * n, 4096) for n in range(count)]
    data = pack_log_entry([*zeros, update(builder, {0: 1, 1: 0})], sequence_number=1, tail=0)
    assert len(data) == 4096 * (1 + -(-(count + 3) // 128))
    builder.write_log((0, data))
    # Content 0 is in the range that is zeroed as soon as there is a zero descriptor.
    assert content(opened(builder)) == ({0: 1} if count else {0: 1, 1: 0})


@pytest.mark.parametrize("count", [126, 127, 200])
def test_data_sectors_belong_to_their_descriptors_in_order(count: int) -> None:
    builder = dirty_disk()
    base = builder.allocate(MIB)
    sectors = [Sector(base + 4096 * n, pattern(n, 4096)) for n in range(count)]
    updates = [*sectors, builder.bat_sector({0: bat_entry(6, base)})]
    builder.write_log((0, pack_log_entry(updates, sequence_number=1, tail=0)))
    image = opened(builder)
    assert_same_bytes(image.read_at(0, 4096 * count), b"".join(pattern(n, 4096) for n in range(count)))


def test_an_entry_without_descriptors_is_an_entry() -> None:
    builder = dirty_disk()
    builder.write_log(
        (0, entry(builder, {0: 1}, number=1, tail=0)), (8192, pack_log_entry([], sequence_number=2, tail=0))
    )
    assert content(opened(builder)) == {0: 1}


def test_an_entry_may_be_longer_than_it_needs() -> None:
    builder = dirty_disk()
    builder.write_log(
        (0, pack_log_entry([update(builder, {0: 1})], sequence_number=1, tail=0, padding=8192)),
        (16384, entry(builder, {0: 2}, number=2, tail=0)),
    )
    assert content(opened(builder)) == {0: 2}


@pytest.mark.parametrize("zeros_first", [True, False])
def test_of_two_updates_of_one_place_the_later_one_stays(zeros_first: bool) -> None:
    builder = dirty_disk()
    builder.bat[512] = bat_entry(6, place(builder, 4))
    updates: list[Zeros | Sector] = [Zeros(builder.bat_offset, 8192), update(builder, {0: 1})]
    if not zeros_first:
        updates.reverse()
    builder.write_log((0, pack_log_entry(updates, sequence_number=1, tail=0)))
    assert content(opened(builder), BLOCKS) == ({0: 1} if zeros_first else {})


def test_region_tables_and_metadata_are_those_of_the_log() -> None:
    builder = dirty_disk()
    pieces, _ = builder.all_pieces()
    table = pack_region_table(builder.regions)
    metadata = pieces[builder.metadata_offset].ljust(68 * KIB, b"\0")
    good = [Sector(at, table[:4096]) for at in (192 * KIB, 256 * KIB)]
    good += [Sector(builder.metadata_offset + at, metadata[at : at + 4096].ljust(4096, b"\0")) for at in (0, 64 * KIB)]
    good.append(update(builder, {2: 2}))
    # What is on disk was only half written when the power went.
    builder.pieces.update({192 * KIB: b"torn" * 1024, 256 * KIB: bytes(8192), builder.metadata_offset: b"x" * 68 * KIB})
    builder.write_log((0, pack_log_entry(good, sequence_number=1, tail=0)))
    image = opened(builder)
    assert image.size == BLOCKS * MIB
    assert content(image) == {2: 2}
    assert [finding.rule for finding in image.info.findings] == ["vhdx-log"]


def test_the_file_grows_to_its_last_offset_with_zeros() -> None:
    builder = dirty_disk()
    end = builder.next_free
    entries = {0: bat_entry(6, place(builder, 1)), 1: bat_entry(6, end), 2: bat_entry(6, end + MIB)}
    log = pack_log_entry([builder.bat_sector(entries)], sequence_number=1, tail=0, last=end + 2 * MIB)
    builder.write_log((0, log))
    builder.file_size = end
    image = opened(builder)
    assert image.read_at(MIB, 2 * MIB) == bytes(2 * MIB)
    # Without the growth the same blocks are past the end.
    builder.write_log((0, pack_log_entry([builder.bat_sector(entries)], sequence_number=1, tail=0, last=end)))
    with pytest.raises(TruncatedImage):
        opened(builder).read_at(MIB, 1)


def test_an_update_past_the_end_of_the_file_extends_it() -> None:
    builder = dirty_disk()
    end = builder.next_free
    log = pack_log_entry(
        [Sector(end + MIB, pattern(3, 4096)), builder.bat_sector({0: bat_entry(6, end + MIB)})],
        sequence_number=1,
        tail=0,
        last=end + 2 * MIB,
    )
    builder.write_log((0, log))
    builder.file_size = end
    assert_same_bytes(opened(builder).read_at(0, 8192), pattern(3, 4096) + bytes(4096))


@pytest.mark.parametrize("shortfall", [0, 1, MIB])
def test_a_file_shorter_than_its_log_says_is_refused(shortfall: int) -> None:
    builder = dirty_disk()
    builder.file_size = builder.next_free
    flushed = builder.next_free + shortfall
    builder.write_log((0, pack_log_entry([], sequence_number=1, tail=0, flushed=flushed, last=flushed)))
    if shortfall:
        with pytest.raises(TruncatedImage, match=f"the file had {flushed:#x} bytes when the log was written"):
            opened(builder)
    else:
        opened(builder)


def _no_entries(builder: VhdxBuilder) -> None:
    builder.write_log()


def _other_guid(builder: VhdxBuilder) -> None:
    builder.write_log((0, entry(builder, {0: 1}, number=1, tail=0, guid=UUID(int=3))))


def _bad_checksum(builder: VhdxBuilder) -> None:
    data = bytearray(entry(builder, {0: 1}, number=1, tail=0))
    data[5000] ^= 1
    builder.write_log((0, bytes(data)))


def _tail_elsewhere(builder: VhdxBuilder) -> None:
    builder.write_log((0, entry(builder, {0: 1}, number=1, tail=4096)))


def _sequence_number_0(builder: VhdxBuilder) -> None:
    builder.write_log((0, entry(builder, {0: 1}, number=0, tail=0)))


def _at_no_sector(builder: VhdxBuilder) -> None:
    builder.write_log((512, entry(builder, {0: 1}, number=1, tail=512)))


@pytest.mark.parametrize(
    "prepare", [_no_entries, _other_guid, _bad_checksum, _tail_elsewhere, _sequence_number_0, _at_no_sector]
)
def test_a_log_without_a_complete_sequence_is_refused(prepare: Callable[[VhdxBuilder], None]) -> None:
    builder = dirty_disk()
    prepare(builder)
    with pytest.raises(CorruptImage, match="holds no complete sequence of entries"):
        opened(builder)


_TARGETS: list[tuple[str, Callable[[VhdxBuilder], Sequence[Zeros | Sector]], str]] = [
    ("the file identifier", lambda b: [Sector(0, bytes(4096))], "the headers are there"),
    ("header 1", lambda b: [Sector(64 * KIB, bytes(4096))], "the headers are there"),
    ("header 2", lambda b: [Zeros(128 * KIB, 4096)], "the headers are there"),
    ("header 2 to the region table", lambda b: [Zeros(192 * KIB - 4096, 8192)], "the headers are there"),
    ("after the region tables", lambda b: [Zeros(320 * KIB - 4096, 8192)], "the headers are there"),
    ("the log itself", lambda b: [Sector(MIB, bytes(4096))], "the log itself is there"),
    ("the end of the log", lambda b: [Zeros(2 * MIB - 4096, 4096)], "the log itself is there"),
    ("across the log", lambda b: [Zeros(320 * KIB, 8 * MIB)], "the headers are there"),
    ("past the end", lambda b: [Sector(b.next_free, bytes(4096))], "the file has"),
    ("to past the end", lambda b: [Zeros(b.bat_offset, b.next_free)], "the file has"),
    ("everything", lambda b: [Zeros(b.bat_offset, 2**63)], "the file has"),
    ("the end of the world", lambda b: [Zeros(2**64 - 4096, 2**64 - 4096)], "the file has"),
]


@pytest.mark.parametrize(("make", "message"), [row[1:] for row in _TARGETS], ids=[row[0] for row in _TARGETS])
def test_a_log_that_would_write_where_no_log_may_is_refused(
    make: Callable[[VhdxBuilder], Sequence[Zeros | Sector]], message: str
) -> None:
    builder = dirty_disk()
    builder.write_log((0, pack_log_entry(make(builder), sequence_number=1, tail=0)))
    with pytest.raises(CorruptImage, match=f"the entry at 0x0 would write .* but {message}"):
        opened(builder)


@pytest.mark.parametrize("last", [2**50 + MIB, 2**63, 2**64 - MIB])
def test_a_log_that_grows_the_file_beyond_reason_is_refused(last: int) -> None:
    builder = dirty_disk()
    builder.write_log((0, pack_log_entry([Zeros(2**49, 2**48)], sequence_number=1, tail=0, last=last)))
    with pytest.raises(CorruptImage, match="at most 0x4000000000000 are possible"):
        opened(builder)


def test_zeros_of_any_length_cost_nothing() -> None:
    builder = dirty_disk()
    updates: list[Zeros | Sector] = [Zeros(builder.bat_offset, 2**49), update(builder, {0: 1, 1: 4})]
    log = pack_log_entry(updates, sequence_number=1, tail=0, last=2**50)
    builder.write_log((0, log))
    # The blocks' contents are zeroed too: they lie after the BAT.
    assert opened(builder).read_at(0, 2 * MIB) == bytes(2 * MIB)


@pytest.mark.parametrize(("log_length", "is_taken"), [(2 * MIB, True), (16 * MIB, True), (17 * MIB, False)])
def test_a_log_is_read_up_to_16_mib(log_length: int, is_taken: bool) -> None:
    builder = dirty_disk(log_length)
    at = log_length - 4096
    builder.write_log((at, entry(builder, {0: 1}, number=1, tail=at)))
    if is_taken:
        assert content(opened(builder)) == {0: 1}
    else:
        with pytest.raises(UnsupportedFeature, match="17825792 bytes are to be replayed, at most 16777216"):
            opened(builder)


def test_a_log_that_is_not_in_the_file_is_refused() -> None:
    builder = dirty_disk()
    header = pack_header(sequence_number=9, log_guid=LOG_GUID, log_offset=4096 * MIB)
    builder.headers = [header, builder.headers[0]]
    with pytest.raises(TruncatedImage, match=r"log at offset 0x100000000: .* the file ends at"):
        opened(builder)
    builder.headers[0] = pack_header(sequence_number=9, log_guid=LOG_GUID, log_length=0)
    with pytest.raises(CorruptImage, match="0 bytes"):
        opened(builder)


def replayable() -> dict[str, VhdxBuilder]:
    """Disks whose logs qemu replays as well."""
    single, several, around, two = dirty_disk(), dirty_disk(), dirty_disk(), dirty_disk()
    single.write_log((0, entry(single, {0: 1, 511: 2}, number=1, tail=0)))
    several.write_log(*((n * 8192, entry(several, {n: n, 9: n}, number=4 + n, tail=8192)) for n in range(4)))
    around.write_log(
        (RING - 4096, entry(around, {0: 3}, number=1, tail=RING - 4096)),
        (4096, entry(around, {1: 3}, number=2, tail=RING - 4096)),
    )
    two.write_log((0, entry(two, {0: 2}, number=9, tail=0)), (32768, entry(two, {0: 1}, number=3, tail=32768)))
    return {"single": single, "several": several, "around": around, "two": two}


@pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed: run scripts/setup")
@pytest.mark.parametrize("name", ["single", "several", "around", "two"])
def test_qemu_replays_a_log_to_the_same_disk(name: str, tmp_path: Path) -> None:
    builder = replayable()[name]
    copy, raw = tmp_path / "copy.vhdx", tmp_path / "disk.raw"
    copy.write_bytes(builder.build())
    for command in (
        ["qemu-img", "check", "-q", "-r", "all", str(copy)],
        ["qemu-img", "convert", "-O", "raw", str(copy), str(raw)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    image = opened(builder)
    assert content(image) != {}
    with raw.open("rb") as file:
        for block in range(BLOCKS):
            file.seek(block * MIB)
            assert_same_bytes(image.read_at(block * MIB, 8192), file.read(8192))


def test_the_file_is_not_touched(tmp_path: Path) -> None:
    builder = dirty_disk()
    builder.write_log((0, entry(builder, {0: 1, 1: 2}, number=1, tail=0)))
    path = tmp_path / "dirty.vhdx"
    path.write_bytes(builder.build())
    path.chmod(0o444)
    os.utime(path, ns=(1_600_000_000_000_000_000, 1_600_000_000_000_000_000))
    before = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns, path.stat().st_ctime_ns
    image = VhdxDriver().open(open_file(path), NoRelatedFiles())
    assert content(image) == {0: 1, 1: 2}
    assert list(VhdxDriver().check(open_file(path), NoRelatedFiles())) != []
    image.close()
    after = hashlib.sha256(path.read_bytes()).digest(), path.stat().st_mtime_ns, path.stat().st_ctime_ns
    assert after == before
    assert list(tmp_path.iterdir()) == [path]


def test_threads_share_a_replayed_disk() -> None:
    builder = dirty_disk()
    builder.write_log((0, entry(builder, {0: 1, 3: 2, 1: 0}, number=1, tail=0)))
    chunks = {block * MIB: pattern(number, 4096) for block, number in {0: 1, 3: 2, 1: 0}.items()}
    image = opened(builder)
    reference = SparseReference(BLOCKS * MIB, chunks)
    assert_threads(image, reference)
    assert_random_ranges(image, reference)


def test_a_replayed_file_is_the_old_one_with_the_changes_over_it() -> None:
    base = bytes(range(256)) * 256
    changes = Changes()
    changes.add(8192, 12288, b"n" * 4096)  # the newest first
    changes.add(4096, 16384)
    changes.add(12288, 20480, b"o" * 8192)
    changes.add(65536, 70000)
    expected = bytearray(base[:65536].ljust(70000, b"\0"))
    expected[4096:16384] = bytes(12288)
    expected[16384:20480] = b"o" * 4096
    expected[8192:12288] = b"n" * 4096
    source = ReplayedSource(MemorySource(base), changes.ascending(), 70000)
    assert source.size == 70000
    edges = [0, 4096, 8192, 12288, 16384, 20480, 65536, 70000]
    for edge in edges:
        for start, end in ((edge - 1, edge), (edge, edge + 1), (edge - 1, edge + 1), (edge - 5000, edge + 5000)):
            low, high = max(start, 0), min(end, 70000)
            if low < high:
                assert_same_bytes(source.read_at(low, high - low), expected[low:high])
                ready = read_if_ready(source, low, high - low)
                assert ready is not None
                assert_same_bytes(ready, expected[low:high])
    assert_same_bytes(source.read_at(0, 70000), expected)
    ranges = [(0, 100), (4000, 200), (60000, 10000)]
    assert read_ranges(source, ranges) == [bytes(expected[at : at + length]) for at, length in ranges]
    assert read_ranges(source, [(0, 100), (30000, 5)]) == [bytes(expected[:100]), bytes(expected[30000:30005])]
    for offset, length in ((70000, 1), (-1, 1), (0, 70001)):
        with pytest.raises(DiskfsError):
            source.read_at(offset, length)
        with pytest.raises(DiskfsError):
            source.read_if_ready(offset, length)


def test_a_change_is_a_range_and_its_bytes() -> None:
    changes = Changes()
    changes.add(10, 10)
    changes.add(4, 8, b"abcd")
    changes.add(0, 12, b"0123456789xy")
    assert changes.ascending() == [Change(0, 4, b"0123"), Change(4, 8, b"abcd"), Change(8, 12, b"89xy")]
