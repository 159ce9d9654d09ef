"""Registry hives: what hivex wrote and libregf reads is what is read here, and hostile ones end in findings."""

import io
import random
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyregf  # type: ignore[import-not-found]  # compiled, without stubs
import pytest

from diskfs.guest.errors import GuestError
from diskfs.guest.registry import Hive, Key, Value, cells, open_hive
from diskfs.guest.registry.cells import MAX_STEPS
from diskfs.guest.registry.hive import MAX_DATA
from diskfs.guest.registry.log import LOG_HEADER_SIZE, marvin32
from diskfs_formats.errors import DiskfsError
from diskfs_formats.source import MemorySource
from tests.guest.hives import Keys, base_block, empty_hive, export_hive, make_hive

ROOT_CELL = 32
SERVICES: Keys = {f"Services\\svc{number}": {"Start": number, "ImagePath": f"C:\\{number}"} for number in range(300)}
MIXED: Keys = {
    "A": {"number": 7, "text": "héllo", "lines": ["one", "two"], "bytes": b"\1\2\3\4\5", "empty": b"", "": "default"},
    "A\\Grüße": {"x": "y"},
    **SERVICES,
}


@pytest.fixture(scope="module")
def mixed() -> bytes:
    return make_hive(MIXED)


def test_values_have_their_type_and_data(mixed: bytes) -> None:
    key = opened(mixed).key("a")

    assert key is not None
    assert value_of(key, "NUMBER").integer == 7
    assert value_of(key, "text").text == "héllo"
    assert value_of(key, "lines").texts == ("one", "two")
    assert value_of(key, "bytes").data == b"\1\2\3\4\5"
    assert value_of(key, "").text == "default"
    assert value_of(key, "text").integer is None
    assert value_of(key, "number").text is None
    assert value_of(key, "bytes").texts is None
    assert key.value("missing") is None
    assert opened(mixed).key("a\\missing\\more") is None
    assert opened(mixed).key("SERVICES\\SVC299") is not None


def test_all_of_a_hive_is_what_libregf_reads(mixed: bytes) -> None:
    file = pyregf.file()
    file.open_file_object(io.BytesIO(mixed))

    ours, theirs = list(walk(opened(mixed).root)), list(walk_libregf(file.get_root_key()))

    assert len(ours) == 304
    assert sorted(ours) == sorted(theirs)


def test_short_data_is_read_as_hivex_reads_it() -> None:
    # libregf 20260526 takes the last bytes of the field, of three.
    hive = make_hive({"A": {str(length): bytes(range(1, length + 1)) for length in range(1, 9)}})
    exported = dict(line.split("=hex(3):") for line in export_hive(hive, "A").splitlines() if "=hex(3):" in line)

    key = opened(hive).key("A")

    assert key is not None
    assert {f'"{value.name}"': value.data.hex(",") for value in key.values()} == exported
    assert len(exported) == 8


def test_a_key_is_found_without_reading_all_of_the_hive() -> None:
    hive = make_hive({f"K{number}": {"data": bytes(range(250))} for number in range(500)})
    source = CountingSource(hive)

    found = open_hive(source).key("K499")

    assert found is not None
    assert source.size > 256 << 10
    assert source.read < source.size // 2


def test_a_value_in_segments_is_read_as_libregf_reads_it() -> None:
    content = random.Random(1).randbytes(40000)  # over two segments of 16,344 bytes
    hive = with_big_value(content)
    file = pyregf.file()
    file.open_file_object(io.BytesIO(hive))

    assert value_of(opened(hive).root, "big").data == content
    assert file.get_root_key().get_value(0).data == content


def test_a_large_value_is_read_and_one_over_the_limit_is_refused() -> None:
    assert value_of(opened(with_large_value(MAX_DATA)).root, "large").data == b"db" * (MAX_DATA // 2)
    with pytest.raises(GuestError, match=rf"'large' has {MAX_DATA + 1} bytes, over the limit of {MAX_DATA}"):
        opened(with_large_value(MAX_DATA + 1)).root.value("large")


# Hostile hives


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda hive: b"regF" + hive[4:], "offset 0: signature b'regF', expected b'regf'"),
        (lambda hive: hive[:4096], "4096 bytes are too few for a registry hive"),
        (lambda hive: rebased(hive, hive_bins_size=len(hive)), "offset 0x28: the hive bins have 8192 bytes"),
        (lambda hive: rebased(hive, root_cell=33), "offset 0x1021: the root key is said to be here"),
        (lambda hive: rebased(hive, root_cell=0xFFFFFFF8), "the root key is said to be here, outside the hive's 4096"),
        (lambda hive: rebased(hive, root_cell=0), "the root key is in a free cell"),
        (lambda hive: put(hive, 4096 + 32, struct.pack("<i", -8192)), "the cell of the root key has 8192 bytes"),
        (lambda hive: put(hive, 4096 + 32, struct.pack("<i", -4)), "the cell of the root key has 4 bytes"),
        (lambda hive: put(hive, 4096 + 36, b"xx"), "the root key: signature b'xx', expected b'nk'"),
        (lambda hive: put(hive, 24, b"\7"), None),
        (lambda hive: put(hive, 20, b"\2"), "offset 0x14: version 2.3"),
    ],
)
def test_a_damaged_hive_is_refused_by_name(change: Callable[[bytes], bytes], message: str | None) -> None:
    hive = change(empty_hive())
    if message is None:
        assert "the checksum is" in opened(hive).unclean
        return
    with pytest.raises(GuestError) as caught:
        opened(hive)
    assert "hive: " in str(caught.value)
    assert message in str(caught.value)


def test_keys_in_a_circle_end(mixed: bytes) -> None:
    hive = with_lists([ROOT_CELL])  # the root is its own subkey

    key = opened(hive).root
    for _ in range(100):
        (key,) = key.subkeys()
    assert opened(hive).key("ROOT\\ROOT\\ROOT") is not None


def test_lists_that_share_each_other_are_given_up_in_time() -> None:
    hive = with_lists([ROOT_CELL] * 60000, index=60000)  # 3,600,000,000 keys in 720 KB
    begin = time.process_time()

    with pytest.raises(GuestError, match=rf"over {MAX_STEPS} keys, values and list elements"):
        opened(hive).root.subkey("missing")

    assert time.process_time() - begin < 10


@pytest.mark.parametrize(("lists", "elements"), [(1000, 10000), (60000, 0), (0, 60000)])
def test_every_walk_has_a_budget(lists: int, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "MAX_STEPS", 20000)
    root = opened(with_lists([ROOT_CELL] * elements, index=lists)).root

    with pytest.raises(GuestError, match="over 20000 keys"):
        for _ in root.subkeys():
            pass


def test_values_that_share_their_data_are_given_up_in_time() -> None:
    second = Bin()
    data = second.add(bytes(MAX_DATA))
    value = second.add(struct.pack("<2sHIIIHH", b"vk", 5, MAX_DATA, data, 3, 1, 0) + b"large")
    values = second.add(struct.pack("<I", value) * 16000)  # 16 GB in 1 MB
    begin = time.process_time()

    with pytest.raises(GuestError, match=rf"over {MAX_STEPS} keys"):
        for _ in opened(second.hive(root_key(values=16000, value_list=values))).root.values():
            pass

    assert time.process_time() - begin < 10


def test_a_list_of_lists_of_lists_is_refused() -> None:
    hive = with_lists([ROOT_CELL], index=1, nested=True)

    with pytest.raises(GuestError, match=r"signature b'ri', expected li, lf, lh or one ri"):
        list(opened(hive).root.subkeys())


def test_huge_counts_are_refused(mixed: bytes) -> None:
    root = 4096 + ROOT_CELL + 4
    hive = put(empty_hive(), root + 36, struct.pack("<II", 0x7FFFFFFF, ROOT_CELL))
    with pytest.raises(GuestError, match=r"counts 2147483647 values, over 16384"):
        list(opened(hive).root.values())
    hive = put(empty_hive(), root + 36, struct.pack("<II", 16384, ROOT_CELL))
    with pytest.raises(GuestError, match=r"counts 16384 values; the cell of their list has"):
        list(opened(hive).root.values())
    hive = with_lists([ROOT_CELL], count=0xFFFF)
    with pytest.raises(GuestError, match=r"counts 65535; its cell has"):
        list(opened(hive).root.subkeys())


def test_fuzzed_hives_end_in_findings(mixed: bytes) -> None:
    chance = random.Random(20261127)
    small = make_hive(dict(list(MIXED.items())[:30]))
    begin, refused = time.process_time(), 0
    for _ in range(400):
        hive = bytearray(small)
        if chance.random() < 0.2:
            del hive[chance.randrange(len(hive)) :]
        for _ in range(chance.randint(1, 8) if hive else 0):
            # Most of a hive's structures are near its start.
            place = chance.randrange(len(hive)) if chance.random() < 0.7 else chance.randrange(min(8192, len(hive)))
            hive[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        try:
            for _ in walk(opened(bytes(hive)).root, depth=6):
                pass
        except DiskfsError:
            refused += 1
    assert refused > 20
    assert time.process_time() - begin < 10


# Transaction logs


@pytest.mark.parametrize(
    ("seed", "data", "expected"),
    [
        # .NET's test vectors of Marvin32: src/libraries/Common/tests/Tests/System/MarvinTests.cs
        (0x004FB61A001BDBCC, "", 0x30ED35C100CD3C7D),
        (0x004FB61A001BDBCC, "af", 0x48E73FC77D75DDC1),
        (0x004FB61A001BDBCC, "e70f", 0xB5F6E1FC485DBFF8),
        (0x004FB61A001BDBCC, "37f495", 0xF0B07C789B8CF7E8),
        (0x004FB61A001BDBCC, "8642dc59", 0x7008F2E87E9CF556),
        (0x004FB61A001BDBCC, "153fb79826", 0xE6C08C6DA2AFA997),
        (0x004FB61A001BDBCC, "ab427ea8d10fc7", 0xE11847E4F0678C41),
        (0x804FB61A801BDBCC, "00ff00ff", 0x24EAA279D9A529CA),
        (0x804FB61A801BDBCC, "ff00ff00", 0xD3BEC7726B057943),
    ],
)
def test_the_hash_of_log_entries(seed: int, data: str, expected: int) -> None:
    assert marvin32(bytes.fromhex(data), seed) == expected


def test_changes_in_a_log_are_seen() -> None:
    before, after = make_hive({"A": {"x": 1}}), make_hive({"A": {"x": 2}, "B": {"y": 3}})
    log = log_of(changes(before, after, sequence=5))

    hive = open_hive(MemorySource(dirty(before, 5)), [MemorySource(log)])

    assert hive.replayed
    assert "sequence numbers 6 and 5 differ" in hive.unclean
    assert number_at(hive, "A", "x") == 2
    assert number_at(hive, "B", "y") == 3


def test_entries_of_both_logs_are_taken_in_order() -> None:
    states = [make_hive({"A": {"x": number}}) for number in range(4)]
    first = log_of(changes(states[0], states[1], sequence=5), changes(states[1], states[2], sequence=6))
    second = log_of(changes(states[2], states[3], sequence=7))

    hive = open_hive(MemorySource(dirty(states[0], 5)), [MemorySource(second), MemorySource(first)])

    assert number_at(hive, "A", "x") == 3


@pytest.mark.parametrize(
    "spoil",
    [
        lambda log: put(log, LOG_HEADER_SIZE + 100, b"\xff"),  # the body's hash is wrong
        lambda log: put(log, LOG_HEADER_SIZE + 12, struct.pack("<I", 4)),  # the header's hash is wrong
        lambda log: log[:-512],
        lambda log: put(log, 0, b"DIRT"),
        lambda log: log[:LOG_HEADER_SIZE] + b"DIRT" + log[LOG_HEADER_SIZE + 4 :],
        lambda log: b"",
        lambda log: log_of(changes(make_hive({}), make_hive({"A": {"x": 2}}), sequence=4)),  # before the hive's last
    ],
)
def test_a_log_that_is_not_whole_or_old_changes_nothing(spoil: Callable[[bytes], bytes]) -> None:
    before, after = make_hive({"A": {"x": 1}}), make_hive({"A": {"x": 2}})
    log = spoil(log_of(changes(before, after, sequence=5)))

    hive = open_hive(MemorySource(dirty(before, 5)), [MemorySource(log)])

    assert not hive.replayed
    assert hive.unclean
    assert number_at(hive, "A", "x") == 1


def test_the_log_of_a_clean_hive_is_not_looked_at() -> None:
    before, after = make_hive({"A": {"x": 1}}), make_hive({"A": {"x": 2}})
    log = CountingSource(log_of(changes(before, after, sequence=1)))

    hive = open_hive(MemorySource(before), [log])

    assert (hive.unclean, number_at(hive, "A", "x"), log.read) == ("", 1, 0)


@pytest.mark.parametrize("pages", [[(4096, 4096 * 100)], [(1 << 30, 4096)], [(5, 4096)], [(0, 4096)] * 100])
def test_pages_outside_the_hive_or_the_entry_change_nothing(pages: list[tuple[int, int]]) -> None:
    before = make_hive({"A": {"x": 1}})
    log = log_of(entry(5, len(before) - 4096, pages, bytes(4096)))

    hive = open_hive(MemorySource(dirty(before, 5)), [MemorySource(log)])

    assert (hive.replayed, number_at(hive, "A", "x")) == (False, 1)


def test_only_so_much_of_a_log_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diskfs.guest.registry.log.MAX_LOG", 64 << 10)
    before = make_hive({"A": {"x": 1}})
    source = CountingSource(log_of(*[entry(5 + number, 8192, [], bytes(16 << 10)) for number in range(10)]))

    open_hive(MemorySource(dirty(before, 5)), [source])

    assert source.read <= 64 << 10


# Helpers


class CountingSource(MemorySource):
    """Counts the bytes that are read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data, "hive")
        self.read = 0

    def read_at(self, offset: int, length: int, /) -> bytes:
        self.read += length
        return super().read_at(offset, length)


def opened(hive: bytes) -> Hive:
    return open_hive(MemorySource(hive, "hive"))


def value_of(key: Key, name: str) -> Value:
    value = key.value(name)
    assert value is not None
    return value


def number_at(hive: Hive, path: str, name: str) -> int | None:
    key = hive.key(path)
    assert key is not None
    return value_of(key, name).integer


def walk(key: Key, path: str = "", depth: int = 16) -> Iterator[tuple[str, list[tuple[str, int, bytes]]]]:
    path += "\\" + key.name
    yield path, sorted((value.name, value.type, value.data) for value in key.values())
    for subkey in key.subkeys() if depth else ():
        yield from walk(subkey, path, depth - 1)


def walk_libregf(key: Any, path: str = "") -> Iterator[tuple[str, list[tuple[str, int, bytes]]]]:
    path += "\\" + key.name
    values = [key.get_value(number) for number in range(key.number_of_values)]
    yield path, sorted((value.name or "", value.type, value.data or b"") for value in values)
    for number in range(key.number_of_sub_keys):
        yield from walk_libregf(key.get_sub_key(number), path)


def put(data: bytes, offset: int, content: bytes) -> bytes:
    return data[:offset] + content + data[offset + len(content) :]


def rebased(hive: bytes, *, hive_bins_size: int | None = None, root_cell: int = ROOT_CELL) -> bytes:
    size = len(hive) - 4096 if hive_bins_size is None else hive_bins_size
    return base_block(size, root_cell=root_cell) + hive[4096:]


class Bin:
    """A second bin behind the empty hive's, with cells of the specification's structures."""

    start = 4096

    def __init__(self) -> None:
        self.cells = bytearray()

    def add(self, content: bytes) -> int:
        offset = self.start + 32 + len(self.cells)
        size = (4 + len(content) + 7) // 8 * 8
        self.cells += (struct.pack("<i", -size) + content).ljust(size, b"\0")
        return offset

    def hive(self, root: bytes) -> bytes:
        used = 32 + len(self.cells)
        size = (used + 8 + 4095) // 4096 * 4096
        content = struct.pack("<4sII20x", b"hbin", self.start, size) + self.cells + struct.pack("<i", size - used)
        first = put(empty_hive()[4096:], ROOT_CELL + 4, root)
        return base_block(4096 + size) + first + content.ljust(size, b"\0")


def root_key(**fields: int) -> bytes:
    places = {"subkeys": 20, "subkey_list": 28, "values": 36, "value_list": 40}
    root = empty_hive()[4096 + ROOT_CELL + 4 : 4096 + ROOT_CELL + 80]
    for name, number in fields.items():
        root = put(root, places[name], struct.pack("<I", number))
    return root


def with_lists(elements: list[int], *, index: int = 0, nested: bool = False, count: int | None = None) -> bytes:
    """Return a hive whose root has a list of subkeys, `index` times in an index root."""
    second = Bin()
    body = b"".join(struct.pack("<I4s", offset, b"ROOT") for offset in elements)
    top = second.add(b"lf" + struct.pack("<H", len(elements) if count is None else count) + body)
    if index:
        top = second.add(b"ri" + struct.pack("<H", index) + struct.pack("<I", top) * index)
    if nested:
        top = second.add(b"ri" + struct.pack("<HI", 1, top))
    return second.hive(root_key(subkeys=1, subkey_list=top))


def with_big_value(content: bytes) -> bytes:
    """Return a hive whose root has a value `big` in a `db` record of segments."""
    second = Bin()
    segments = [second.add(content[place : place + 16344]) for place in range(0, len(content), 16344)]
    table = second.add(struct.pack(f"<{len(segments)}I", *segments))
    record = second.add(struct.pack("<2sHI", b"db", len(segments), table))
    value = second.add(struct.pack("<2sHIIIHH", b"vk", 3, len(content), record, 3, 1, 0) + b"big")
    values = second.add(struct.pack("<I", value))
    hive = second.hive(root_key(values=1, value_list=values))
    return base_block(len(hive) - 4096, minor=5) + hive[4096:]


def with_large_value(size: int) -> bytes:
    """Return a hive of version 1.3, whose values are in one cell however long they are."""
    second = Bin()
    data = second.add(b"db" * (size // 2) + b"d" * (size % 2))
    value = second.add(struct.pack("<2sHIIIHH", b"vk", 5, size, data, 3, 1, 0) + b"large")
    return second.hive(root_key(values=1, value_list=second.add(struct.pack("<I", value))))


def dirty(hive: bytes, secondary: int) -> bytes:
    """Return a hive whose first sequence number is one ahead of its second."""
    return base_block(len(hive) - 4096, primary=secondary + 1, secondary=secondary) + hive[4096:]


def entry(sequence: int, size: int, pages: list[tuple[int, int]], content: bytes) -> bytes:
    """Return a log entry (HvLE) of whole pages, by the specification."""
    body = b"".join(struct.pack("<II", *page) for page in pages) + content
    body = body.ljust((40 + len(body) + 511) // 512 * 512 - 40, b"\0")
    header = struct.pack("<4sIIIII", b"HvLE", 40 + len(body), 0, sequence, size, len(pages))
    header += struct.pack("<Q", marvin32(body))
    return header + struct.pack("<Q", marvin32(header)) + body


def changes(before: bytes, after: bytes, *, sequence: int) -> bytes:
    """Return the log entry with the pages in which two hives differ."""
    old, new = before[4096:], after[4096:]
    places = [place for place in range(0, len(new), 4096) if old[place : place + 4096] != new[place : place + 4096]]
    content = b"".join(new[place : place + 4096] for place in places)
    return entry(sequence, len(new), [(place, 4096) for place in places], content)


def log_of(*entries: bytes) -> bytes:
    return base_block(0)[:LOG_HEADER_SIZE] + b"".join(entries)
