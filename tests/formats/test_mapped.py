"""Disks that follow from their map: chains of them, ready bytes, and the tables they look things up in."""

import random
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from construct import Const, Int32ul, Struct

from diskfs_formats.binary import (
    ENTRIES_PER_PAGE,
    PAGES_KEPT,
    EntryTable,
    align_up,
    is_power_of_two,
    parse_bytes,
    parse_structure,
    read_entries,
)
from diskfs_formats.driver import DiskImage, ImageInfo
from diskfs_formats.errors import CorruptImage, OutOfRange, TruncatedImage
from diskfs_formats.extents import Extent, ExtentKind, Stored, clipped, coalesced, shifted
from diskfs_formats.findings import Severity
from diskfs_formats.mapped import READY_LIMIT, MappedImage
from diskfs_formats.raw import RawImage
from diskfs_formats.reading import ENGINE
from diskfs_formats.source import Buffer, MemorySource
from diskfs_formats.units import MAX_FINDINGS, STEP, check_units
from tests.conformance.promises import (
    assert_both_sides,
    assert_map,
    assert_past_the_end,
    assert_random_ranges,
    assert_ready_bytes,
    assert_threads,
    assert_whole,
)
from tests.helpers import assert_same_bytes

UNIT = 1000


class UnitImage(MappedImage):
    """A disk in units of 1000 bytes, written as text: one letter a unit.

    `-` hole, `0` zero, a capital letter stored as it is, a small one encoded (inverted), `!` an error on lookup,
    `?` an error on decoding.
    """

    def __init__(
        self, letters: str, *, size: int | None = None, parent: DiskImage | None = None, ready: bool = True
    ) -> None:
        self.letters = letters
        self.ready = ready
        self.decoded: list[int] = []
        self.source = MemorySource(
            b"".join(
                bytes([ord(letter.upper())]) * UNIT if letter.isupper() else inverted(letter) for letter in letters
            ),
            f"{letters}.img",
        )
        info = ImageInfo("test", "units", len(letters) * UNIT if size is None else size, unit_size=UNIT)
        super().__init__(self.source.name, info, [self.source], parent)

    def lookup(self, offset: int, /) -> Extent:
        number = offset // UNIT
        start, length = number * UNIT, min(UNIT, self.size - number * UNIT)
        letter = self.letters[number]
        if letter == "!":
            raise CorruptImage(f"{self.name}: unit {number}: bad entry")
        if letter in "-0":
            return Extent(start, length, ExtentKind.HOLE if letter == "-" else ExtentKind.ZERO)
        decode = None if letter.isupper() else self._decoding(number)
        return Extent(start, length, ExtentKind.DATA, Stored(self.source, start, UNIT if decode else length, decode))

    def lookup_if_ready(self, offset: int, /) -> Extent | None:
        return self.lookup(offset) if self.ready else None

    def _decoding(self, number: int) -> Callable[[Buffer], Buffer]:
        def decode(record: Buffer) -> Buffer:
            if self.letters[number] == "?":
                raise CorruptImage(f"{self.name}: unit {number}: bad record")
            self.decoded.append(number)
            return bytes(255 - byte for byte in bytes(record))

        return decode


def inverted(letter: str) -> bytes:
    return bytes([255 - ord(letter)]) * UNIT


def content(letters: str) -> bytes:
    """What the disk written so reads as, where it has no parent."""
    return b"".join((b"\0" if letter in "-0" else letter.encode()) * UNIT for letter in letters)


def over(child: str, parent: str) -> str:
    """Write down what a child over a parent reads as."""
    return "".join(
        own if own != "-" else parent[number] if number < len(parent) else "-" for number, own in enumerate(child)
    )


# ---- one layer ----


@pytest.mark.parametrize("letters", ["A", "a", "-", "0", "ABC", "abc", "A-0bB-a0-", "-A-", "aAaAaA0", "AAbbAA--00"])
@pytest.mark.parametrize("short", [0, 1, 999])
def test_a_disk_keeps_every_promise(letters: str, short: int) -> None:
    size = len(letters) * UNIT - short
    reference = MemorySource(content(letters)[:size])
    for ready in (True, False):
        disk = UnitImage(letters, size=size, ready=ready)
        assert_ready_bytes(disk, reference)
        assert_whole(disk, reference)
        assert_random_ranges(disk, reference)
        assert_both_sides(disk, reference, [UNIT])
        assert_map(disk, reference)
        assert_past_the_end(disk)
        assert_threads(disk, reference, reads=10)
        disk.close()


def test_a_damaged_unit_fails_only_the_reads_that_touch_it() -> None:
    disk = UnitImage("Aa!Aa?aA")
    for start in range(8):
        for end in range(start + 1, 9):
            letters = "Aa!Aa?aA"[start:end]
            if set(letters) & {"!", "?"}:
                with pytest.raises(CorruptImage, match=r"unit [25]"):
                    disk.read_at(start * UNIT, (end - start) * UNIT)
            else:
                assert_same_bytes(disk.read_at(start * UNIT, (end - start) * UNIT), content(letters))
    assert disk.read_at(2 * UNIT - 1, 1) == b"a"
    assert disk.read_at(3 * UNIT, 1) == b"A"


def test_the_map_up_to_a_damaged_unit_is_given() -> None:
    extents = UnitImage("A!").extents()
    with pytest.raises(CorruptImage, match="unit 1"):
        list(extents)


# ---- ready bytes ----


def test_one_unit_is_decoded_at_once_and_several_are_left_to_a_thread() -> None:
    disk = UnitImage("abA-0")
    assert disk.read_if_ready(10, 20) == b"a" * 20
    assert disk.decoded == [0]
    assert disk.read_if_ready(0, 2 * UNIT) is None
    assert disk.decoded == [0]
    disk.read_at(0, 2 * UNIT)
    assert disk.read_if_ready(0, 5 * UNIT) == content("abA-0")


def test_a_long_request_is_left_to_a_thread() -> None:
    disk = UnitImage("A" * (READY_LIMIT // UNIT + 2))
    assert disk.read_if_ready(0, READY_LIMIT) == b"A" * READY_LIMIT
    assert disk.read_if_ready(0, READY_LIMIT + 1) is None


@pytest.mark.parametrize("size", [READY_LIMIT, READY_LIMIT + 1])
def test_a_large_record_is_left_to_a_thread(size: int) -> None:
    class OneUnit(UnitImage):
        def lookup(self, offset: int, /) -> Extent:
            return Extent(0, 512, ExtentKind.DATA, Stored(big, 0, size, lambda record: bytes(record[:512])))

    big = MemorySource(bytes(size))
    assert (OneUnit("A", size=512).read_if_ready(0, 512) is None) == (size > READY_LIMIT)


def test_nothing_is_ready_where_the_table_or_the_source_is_not() -> None:
    assert UnitImage("A", ready=False).read_if_ready(0, 1) is None

    class SlowSource:
        name, size = "slow", 4 * UNIT

        def read_at(self, offset: int, length: int, /) -> bytes:
            return content("AAAA")[offset : offset + length]

        def close(self) -> None:
            pass

    class Slow(UnitImage):
        def lookup(self, offset: int, /) -> Extent:
            return Extent(0, 4 * UNIT, ExtentKind.DATA, Stored(SlowSource(), 0, 4 * UNIT))

    assert Slow("AAAA").read_if_ready(0, 1) is None
    assert Slow("AAAA").read_at(0, 1) == b"A"


# ---- chains ----


@pytest.mark.parametrize(
    ("child", "parent"),
    [
        ("----", "AbC0"),
        ("A-b-", "-cD-"),
        ("0-0-", "AAAA"),
        ("------", "Ab"),
        ("A-----", "A-b"),
        ("--", "AbCdEf"),
        ("a-", "AbCdEf"),
        ("a--b--c", "ABCDEFG"),
        ("-", "-"),
    ],
)
@pytest.mark.parametrize("short", [0, 300])
def test_a_child_reads_what_it_lacks_from_its_parent(child: str, parent: str, short: int) -> None:
    for below in (UnitImage(parent), UnitImage(parent, ready=False)):
        disk = UnitImage(child, size=len(child) * UNIT - short, parent=below)
        reference = MemorySource(content(over(child, parent))[: disk.size])
        assert_ready_bytes(disk, reference)
        assert_whole(disk, reference)
        assert_both_sides(disk, reference, [UNIT])
        assert_map(disk, reference)
        assert_threads(disk, reference, reads=6)
        assert_past_the_end(disk)
        disk.close()


def test_a_parent_that_ends_within_a_unit_of_the_child() -> None:
    disk = UnitImage("---", parent=UnitImage("AB", size=1500))
    assert_same_bytes(disk.read_at(0, 3000), b"A" * 1000 + b"B" * 500 + bytes(1500))
    kinds = [(extent.offset, extent.length, extent.kind, extent.depth) for extent in disk.extents()]
    assert kinds == [(0, 1500, ExtentKind.DATA, 1), (1500, 1500, ExtentKind.HOLE, 0)]


def test_the_map_says_which_layer_decides() -> None:
    chain = UnitImage("A---", parent=UnitImage("-B--", parent=UnitImage("--c-", parent=UnitImage("0000"))))
    assert [(extent.offset // UNIT, extent.depth, extent.kind) for extent in chain.extents()] == [
        (0, 0, ExtentKind.DATA),
        (1, 1, ExtentKind.DATA),
        (2, 2, ExtentKind.DATA),
        (3, 3, ExtentKind.ZERO),
    ]
    assert chain.read_at(0, 4 * UNIT) == content("ABc0")


def test_runs_of_different_layers_stay_apart_on_the_map() -> None:
    chain = UnitImage("--", parent=UnitImage("0-", parent=UnitImage("-0")))
    assert [(extent.length, extent.depth) for extent in chain.extents()] == [(UNIT, 1), (UNIT, 2)]


def test_a_chain_of_sixteen() -> None:
    letters = "ABCDEFGHIJKLMNOP"
    disk = UnitImage("-" * 16)
    for number, letter in enumerate(letters):
        disk = UnitImage("".join(letter if at == number else "-" for at in range(16)), parent=disk)
    assert disk.read_at(0, 16 * UNIT) == content(letters)
    assert disk.read_if_ready(0, 16 * UNIT) == content(letters)


def test_a_raw_parent() -> None:
    disk = UnitImage("-A-", parent=RawImage(MemorySource(content("XYZ"))))
    assert_whole(disk, MemorySource(content("XAZ")))
    assert_map(disk, MemorySource(content("XAZ")))


def test_an_error_in_the_parent_fails_only_the_reads_that_need_it() -> None:
    disk = UnitImage("A-A", parent=UnitImage("!!!"))
    assert disk.read_at(0, UNIT) == content("A")
    with pytest.raises(CorruptImage, match="unit 1"):
        disk.read_at(0, UNIT + 1)


def test_one_unit_of_the_parent_between_units_of_the_child_is_decoded_once() -> None:
    class WideUnit(UnitImage):
        def lookup(self, offset: int, /) -> Extent:
            return Extent(0, 4 * UNIT, ExtentKind.DATA, Stored(self.source, 0, 4 * UNIT, self._decoding(0)))

    parent = WideUnit("abcd")
    disk = UnitImage("-X-X", parent=parent)
    assert disk.read_at(0, 4 * UNIT) == content("aXcX")
    assert parent.decoded == [0]


def test_closing_closes_the_chain_and_forgets_its_units() -> None:
    closed: list[str] = []

    class Closing(UnitImage):
        def __init__(self, letters: str, parent: DiskImage | None = None) -> None:
            super().__init__(letters, parent=parent)
            self.source.close = lambda: closed.append(letters)  # type: ignore[method-assign]  # watched

    disk = Closing("-b", Closing("a-"))
    assert disk.read_at(0, 2 * UNIT) == content("ab")
    disk.close()
    assert sorted(closed) == ["-b", "a-"]
    assert not [key for key in ENGINE.cache._units if key[0].name in {"-b.img", "a-.img"}]


# ---- extents ----


def test_clipping_moves_the_place_of_plain_data_and_the_skip_of_encoded() -> None:
    source = MemorySource(bytes(10_000))
    plain = Extent(1000, 500, ExtentKind.DATA, Stored(source, 5000, 500), 2)
    assert clipped(plain, 1100, 1200) == Extent(1100, 100, ExtentKind.DATA, Stored(source, 5100, 100), 2)
    assert clipped(plain, 0, 9999) is plain

    def decode(record: Buffer) -> Buffer:
        return record

    encoded = Extent(1000, 500, ExtentKind.DATA, Stored(source, 5000, 77, decode, 12))
    assert clipped(encoded, 1100, 1200).stored == Stored(source, 5000, 77, decode, 112)
    assert clipped(Extent(0, 10, ExtentKind.ZERO), 3, 5) == Extent(3, 2, ExtentKind.ZERO)


def test_shifting_leaves_the_place() -> None:
    source = MemorySource(bytes(10))
    extent = Extent(5, 5, ExtentKind.DATA, Stored(source, 1, 5), 3)
    assert shifted(extent, -5) == Extent(0, 5, ExtentKind.DATA, Stored(source, 1, 5), 3)


def test_joining_neighbours() -> None:
    one, two = MemorySource(bytes(100)), MemorySource(bytes(100))

    def data(offset: int, source: MemorySource, at: int, depth: int = 0) -> Extent:
        return Extent(offset, 10, ExtentKind.DATA, Stored(source, at, 10), depth)

    joined = coalesced(
        [
            data(0, one, 0), data(10, one, 10), data(20, one, 30), data(30, two, 40), data(40, two, 50, 1),
            Extent(50, 10, ExtentKind.HOLE), Extent(60, 10, ExtentKind.HOLE), Extent(70, 10, ExtentKind.ZERO),
        ]
    )  # fmt: skip
    assert [(extent.offset, extent.length) for extent in joined] == [
        (0, 20), (20, 10), (30, 10), (40, 10), (50, 20), (70, 10),
    ]  # fmt: skip
    assert list(coalesced([])) == []


# ---- checking every unit ----


def test_each_damaged_unit_is_named_once() -> None:
    found = list(check_units(UnitImage("Aa!?a-0?A!"), "test-unit"))
    assert [finding.message.split(": ", 1)[1] for finding in found] == [
        "unit 2: bad entry", "unit 3: bad record", "unit 7: bad record", "unit 9: bad entry",
    ]  # fmt: skip
    assert {(finding.rule, finding.severity) for finding in found} == {("test-unit", Severity.ERROR)}


def test_a_sound_disk_has_no_findings_and_each_unit_is_decoded_once() -> None:
    disk = UnitImage("aAb-c0" * 30)
    assert list(check_units(disk, "test-unit")) == []
    assert sorted(disk.decoded) == [number for number, letter in enumerate(disk.letters) if letter.islower()]


def test_the_count_of_findings_is_bounded() -> None:
    found = list(check_units(UnitImage("?" * (MAX_FINDINGS + 5)), "test-unit"))
    assert len(found) == MAX_FINDINGS + 1
    assert "stopped here" in found[-1].message
    assert len(list(check_units(UnitImage("!" * (MAX_FINDINGS - 1)), "test-unit"))) == MAX_FINDINGS - 1


def test_large_units_are_checked_in_bounded_pieces() -> None:
    most, now, lock = [0], [0], threading.Lock()

    class Large(MappedImage):
        def lookup(self, offset: int, /) -> Extent:
            number = offset // size
            return Extent(number * size, size, ExtentKind.DATA, Stored(source, number, 1, decode))

        def read_at(self, offset: int, length: int, /) -> bytes:
            now[0] = 0
            return super().read_at(offset, length)

    def decode(record: Buffer) -> Buffer:
        with lock:
            now[0] += size
            most[0] = max(most[0], now[0])
        return bytes(size)

    size = 3 << 20
    source = MemorySource(bytes(40))
    image = Large("large", ImageInfo("test", "large", 40 * size, unit_size=size), [source])
    assert list(check_units(image, "test-unit")) == []
    assert most[0] <= max(STEP, size)
    image.close()


# ---- tables and structures ----


class CountingSource(MemorySource):
    def __init__(self, data: bytes) -> None:
        super().__init__(data, "table")
        self.reads: list[tuple[int, int]] = []

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.reads.append((offset, length))
        return super().read_at(offset, length)


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_entries_are_read_page_by_page(bits: Any, byteorder: Any) -> None:
    count = 2 * ENTRIES_PER_PAGE + 7
    values = [random.Random(number).getrandbits(bits) for number in range(count)]
    code = ("<" if byteorder == "little" else ">") + ("I" if bits == 32 else "Q") * count
    source = CountingSource(bytes(100) + struct.pack(code, *values))
    table = EntryTable(source, 100, count, bits=bits, byteorder=byteorder)
    edges = (0, 1, ENTRIES_PER_PAGE - 1, ENTRIES_PER_PAGE, 2 * ENTRIES_PER_PAGE - 1, 2 * ENTRIES_PER_PAGE, count - 1)
    assert [table[index] for index in edges] == [values[index] for index in edges]
    width = bits // 8
    page = ENTRIES_PER_PAGE * width
    assert source.reads == [(100, page), (100 + page, page), (100 + 2 * page, 7 * width)]
    for index in (count, count + ENTRIES_PER_PAGE, -1):
        with pytest.raises(IndexError):
            table[index]


def test_a_table_keeps_a_bounded_number_of_pages() -> None:
    source = CountingSource(bytes(4 * 4 * (PAGES_KEPT + 10)))
    table = EntryTable(source, 0, 4 * (PAGES_KEPT + 10), entries_per_page=4)
    for index in range(table.count):
        assert table[index] == 0
        assert len(table._pages) <= PAGES_KEPT
    assert len(source.reads) == PAGES_KEPT + 10
    assert table.is_ready(table.count - 1)
    assert not table.is_ready(0)
    assert table[0] == 0
    assert len(source.reads) == PAGES_KEPT + 11


def test_threads_share_a_table() -> None:
    values = list(range(1000))
    table = EntryTable(MemorySource(struct.pack("<1000I", *values)), 0, 1000, entries_per_page=3)

    def look(seed: int) -> bool:
        order = random.Random(seed).sample(values, 1000)
        return all(table[index] == index for index in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look, range(16)))


def test_entries_past_the_end_are_refused_before_anything_is_read() -> None:
    source = CountingSource(bytes(40))
    assert list(read_entries(source, 0, 10, "I", swap=False)) == [0] * 10
    source.reads.clear()
    for offset, count in ((0, 11), (4, 10), (40, 1), (-4, 1), (2**63, 1), (0, 2**62)):
        with pytest.raises(TruncatedImage, match="table at offset"):
            read_entries(source, offset, count, "I", swap=False)
    assert source.reads == []


def test_a_structure_past_the_end_is_refused() -> None:
    structure = Struct("cookie" / Const(b"abcd"), "value" / Int32ul)
    source = MemorySource(b"..abcd\x01\0\0\0", "file.img")
    assert parse_structure(structure, source, 2, "thing").value == 1
    for offset in (3, 2**63, -1):
        with pytest.raises(TruncatedImage, match=r"file\.img: thing at offset -?0x[0-9a-f]+ needs 8 bytes"):
            parse_structure(structure, source, offset, "thing")


def test_a_wrong_constant_is_one_line_with_its_place() -> None:
    structure = Struct("cookie" / Const(b"abcd"))
    with pytest.raises(CorruptImage, match=r"^file\.img: thing at offset 0x200: .*cookie") as raised:
        parse_bytes(structure, b"a\x1b\n\0", MemorySource(b"", "file.img"), 512, "thing")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, False), (1, True), (2, True), (3, False), (2**64, True), (2**64 - 1, False), (-2, False)],
)
def test_powers_of_two(value: int, expected: bool) -> None:
    assert is_power_of_two(value) is expected


def test_aligning() -> None:
    assert [align_up(value, 512) for value in (0, 1, 511, 512, 513)] == [0, 512, 512, 512, 1024]


def test_a_range_that_is_not_inside_is_refused_before_the_map_is_looked_at() -> None:
    disk = UnitImage("!!")
    with pytest.raises(OutOfRange):
        disk.extents(0, 2001)
    assert disk.read_at(2000, 0) == b""
