"""VHD files made to do harm: every field at its extremes with the checksums mended, parents that lead elsewhere.

Whatever a file says, opening, mapping, reading and verifying it end in a result or in one DiskfsError, within two
seconds and 64 MiB.
"""

import contextlib
import functools
import itertools
import random
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from diskfs.sources.file import open_file
from diskfs.sources.locate import FolderFiles, require_bare_name
from diskfs_formats.driver import DiskImage, NoRelatedFiles, ProbeWindow, RelatedFiles
from diskfs_formats.errors import CorruptImage, DiskfsError, ImageError, ParentUnavailable
from diskfs_formats.source import ByteSource, MemorySource
from diskfs_formats.vhd import VhdDriver
from tests.helpers import CorpusRow, assert_same_bytes, corpus_rows
from tests.samples import vhd_builder as vhd
from tests.samples.vhd_builder import MIB, TIB, VhdBuilder, chain, filled, fixed, pattern
from tests.samples.vhdx_builder import ParentFiles, SparseSource

SECONDS = 2.0
MEMORY = 64 * MIB
REQUESTS = 16
"""Requests for opening, whatever a file claims."""
MAX_MESSAGE = 1200
PARENT_ID = UUID(int=1)
EXTREMES = (0, 1, 2, 511, 513, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1)
BLOCK = 4096
SIZE = 24 * BLOCK + 512


def victim() -> VhdBuilder:
    """A child with whole and partial blocks and locators: a file with everything in it."""
    builder = VhdBuilder(SIZE, BLOCK, parent_id=PARENT_ID, parent_name="parent.vhd")
    builder.locators = [
        (b"W2ku", "C:\\parent.vhd".encode("utf-16-le")),
        (b"W2ru", ".\\parent.vhd".encode("utf-16-le")),
        (b"MacX", b"file:///parent.vhd"),
    ]
    for number in (5, 0, 24, 7):
        builder.put(number, pattern(number, BLOCK), None if number == 0 else range(number % 3, 8, 2))
    return builder


PARENT = filled(SIZE, BLOCK, unique_id=PARENT_ID)[0].build()
VICTIM = victim().build()
FOOTER, HEADER = VICTIM[:512], VICTIM[512:1536]


def files() -> ParentFiles:
    return ParentFiles(VhdDriver(), {"parent.vhd": lambda: MemorySource(PARENT, "parent.vhd")})


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Fail if what is done within takes too long, or lets the process grow too much at any moment."""
    Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark starts anew
    before, start = _peak_memory(), time.process_time()
    yield
    seconds, grown = time.process_time() - start, _peak_memory() - before
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert grown < MEMORY, f"{grown / MIB:.0f} MiB"


def _peak_memory() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))


def use(source: ByteSource, related: RelatedFiles, messages: list[str]) -> DiskImage | None:
    """Do everything that can be done with an image; keep the texts of errors and findings."""
    driver = VhdDriver()
    driver.probe(ProbeWindow.of(source))
    try:
        image = driver.open(source, related)
    except DiskfsError as error:
        messages.append(str(error))
        return None
    messages.extend(finding.message for finding in image.info.findings)
    chance = random.Random(image.size)
    offsets = [0, image.size - 1, *(chance.randrange(image.size) for _ in range(10))]
    for offset in offsets:
        length = min(3 * BLOCK, image.size - offset)
        for read in (image.read_if_ready, image.read_at):
            try:
                data = read(offset, length)
            except DiskfsError as error:
                messages.append(str(error))
            else:
                assert data is None or len(data) == length
    try:
        assert all(extent.length > 0 for extent in itertools.islice(image.extents(0, min(image.size, 64 * MIB)), 2000))
    except DiskfsError as error:
        messages.append(str(error))
    messages.extend(finding.message for finding in itertools.islice(driver.check(source, related), 30))
    return image


def survives(data: bytes | ByteSource, related: RelatedFiles | None = None) -> DiskImage | None:
    """Use an image within the bounds, and see that what is said of it fits one line of a terminal."""
    messages: list[str] = []
    source = MemorySource(data, "hostile.vhd") if isinstance(data, bytes) else data
    with bounded():
        image = use(source, related or files(), messages)
    for message in messages:
        assert message.isprintable(), message
        assert len(message) < MAX_MESSAGE
    return image


def with_footer(place: str, **values: Any) -> bytes:
    changed = vhd.resealed(FOOTER, vhd.FOOTER_FIELDS, **values)
    head = changed if place in {"head", "both"} else FOOTER
    tail = changed if place in {"tail", "both"} else FOOTER
    return head + VICTIM[512:-512] + tail


def with_header(**values: Any) -> bytes:
    return VICTIM[:512] + vhd.resealed(HEADER, vhd.HEADER_FIELDS, **values) + VICTIM[1536:]


def values_of(fields: Mapping[str, tuple[int, str]], name: str) -> list[Any]:
    """The extremes that fit a field."""
    size = struct.calcsize(">" + fields[name][1])
    if fields[name][1].endswith("s"):
        return [bytes(size), b"\xff" * size, bytes(range(1, min(size, 255) + 1))]
    return [value for value in EXTREMES if value < 1 << 8 * size]


def test_the_victim_is_a_good_file() -> None:
    messages: list[str] = []
    image = use(MemorySource(VICTIM, "hostile.vhd"), files(), messages)
    assert image is not None
    assert messages == []


@pytest.mark.parametrize("place", ["head", "tail", "both"])
@pytest.mark.parametrize("name", vhd.FOOTER_FIELDS)
def test_any_field_of_the_footer_may_be_anything(name: str, place: str) -> None:
    for value in values_of(vhd.FOOTER_FIELDS, name):
        survives(with_footer(place, **{name: value}))
        survives(with_footer(place, **{name: value, "disk_type": vhd.DYNAMIC}))


@pytest.mark.parametrize("name", vhd.HEADER_FIELDS)
def test_any_field_of_the_dynamic_header_may_be_anything(name: str) -> None:
    for value in values_of(vhd.HEADER_FIELDS, name):
        survives(with_header(**{name: value}))


@pytest.mark.parametrize("name", vhd.LOCATOR_FIELDS)
@pytest.mark.parametrize("number", [0, 7])
def test_any_field_of_a_locator_may_be_anything(name: str, number: int) -> None:
    offset, code = vhd.LOCATOR_FIELDS[name]
    values = values_of(vhd.LOCATOR_FIELDS, name)
    for value in [*values, *([b"W2ru", b"\x1b]0;"] if code == "4s" else [])]:
        header = bytearray(HEADER)
        struct.pack_into(">" + code, header, vhd.LOCATORS_AT + 24 * number + offset, value)
        if name != "platform_code":
            header[vhd.LOCATORS_AT + 24 * number :][:4] = b"W2ru"
        survives(VICTIM[:512] + vhd.with_checksum(bytes(header), 36) + VICTIM[1536:])


PAIRS = (
    ("current_size", "block_size"),
    ("current_size", "max_table_entries"),
    ("data_offset", "table_offset"),
    ("block_size", "max_table_entries"),
    ("table_offset", "max_table_entries"),
)
FOOTER_PAIRED = {"current_size", "data_offset"}
"""Of these, the fields of the footer."""
PAIR_VALUES = (0, 1, 512, 4096, 256 * MIB, 512 * MIB, 2**31, 2**32 - 1, 2 * TIB, 2**63, 2**64 - 1)


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_two_fields_may_be_anything_together(one: str, two: str) -> None:
    for first, second in itertools.product(PAIR_VALUES, PAIR_VALUES):
        fields = {one: first, two: second}
        if any(value >> 32 and name in {"block_size", "max_table_entries"} for name, value in fields.items()):
            continue
        in_footer = {name: value for name, value in fields.items() if name in FOOTER_PAIRED}
        in_header = {name: value for name, value in fields.items() if name not in FOOTER_PAIRED}
        footer = vhd.resealed(FOOTER, vhd.FOOTER_FIELDS, **in_footer)
        header = vhd.resealed(HEADER, vhd.HEADER_FIELDS, **in_header)
        survives(footer + header + VICTIM[1536:-512] + footer)


@pytest.mark.parametrize("entry", [0, 1, 3, 4, 5, 2**31 - 1, 2**31, 2**32 - 2])
def test_any_entry_of_the_table_may_be_anything(entry: int) -> None:
    for numbers in ([0], [5], [24], range(25)):
        builder = victim()
        builder.bat = dict.fromkeys(numbers, entry)
        survives(builder.build())


def test_a_file_with_a_few_bytes_changed_is_survived() -> None:
    places = [*range(1536 + 100), *range(2048, 4096), *range(len(VICTIM) - 512, len(VICTIM))]
    for seed in range(400):
        chance = random.Random(seed)
        data = bytearray(VICTIM)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.choice(places)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        if chance.random() < 0.7:
            data[:512] = vhd.with_checksum(bytes(data[:512]), 64)
            data[512:1536] = vhd.with_checksum(bytes(data[512:1536]), 36)
            data[-512:] = data[:512] if chance.random() < 0.5 else vhd.with_checksum(bytes(data[-512:]), 64)
        survives(bytes(data))


@pytest.mark.parametrize("size", [0, 1, 8, 510, 511, 512, 513, 1023, 1024, 1535, 1536, 1537, 2047, 2048])
def test_a_file_of_little_more_than_a_footer_is_survived(size: int) -> None:
    survives(VICTIM[:size])
    survives(VICTIM[-size:] if size else b"")


# ---- claims ----


def claim(size: int, block_size: int, file_size: int) -> SparseSource:
    """A file of little more than 1 KiB of structures, and zeros for the rest."""
    builder = VhdBuilder(size, block_size)
    footer = builder.pack_footer()
    header = vhd.pack_header(max_table_entries=min(builder.block_count, 2**32 - 1), block_size=block_size)
    return SparseSource({0: footer, 512: header, file_size - 512: footer}, file_size, "claim.vhd")


@pytest.mark.parametrize("size", [2 * TIB - 512, 2 * TIB, 64 * TIB, 2**63, 2**64 - 1])
@pytest.mark.parametrize("block_size", [512, 4096, 2 * MIB, 256 * MIB])
@pytest.mark.parametrize("file_size", [4096, MIB, 17 << 30])
def test_a_claim_costs_nothing(size: int, block_size: int, file_size: int) -> None:
    source = claim(size, block_size, file_size)
    with bounded(), contextlib.suppress(ImageError):
        VhdDriver().open(source, NoRelatedFiles())
    assert source.requests <= REQUESTS
    assert source.bytes_read < MIB


def test_a_table_of_sixteen_gibibytes_is_read_only_where_it_is_needed() -> None:
    source = claim(2 * TIB - 512, 512, 17 << 30)
    with bounded():
        image = VhdDriver().open(source, NoRelatedFiles())
        for offset in range(0, image.size, image.size // 100):
            with pytest.raises(CorruptImage, match="copy of the footer"):
                image.read_at(offset, 1)
    assert source.bytes_read < 4 * MIB


def test_a_check_of_a_table_of_sixteen_gibibytes_ends() -> None:
    source = claim(2 * TIB - 512, 512, 17 << 30)
    with bounded():
        found = [finding.rule for finding in itertools.islice(VhdDriver().check(source, NoRelatedFiles()), 1002)]
    assert found == ["vhd-block"] * 1001 + ["vhd-block-overlap"]


def test_sectors_from_both_files_by_turns_are_read_in_time() -> None:
    block_size = 256 * MIB
    builder = VhdBuilder(block_size, block_size, parent_id=PARENT_ID)
    footer = builder.pack_footer()
    header = vhd.pack_header(max_table_entries=1, block_size=block_size, parent_unique_id=PARENT_ID.bytes)
    pieces = {0: footer, 512: header, 1536: struct.pack(">I", 4), 2048: b"\xaa" * 65536}
    pieces[2048 + 65536 + 128 * MIB] = pattern(2, MIB)
    source = SparseSource(pieces, 2048 + 65536 + block_size, "turns.vhd")
    parent = fixed(pattern(1, MIB), unique_id=PARENT_ID.bytes)
    with bounded():
        image = VhdDriver().open(source, _Parent(parent))
        found = image.read_at(128 * MIB, MIB)
        assert len(list(itertools.islice(image.extents(), 2000))) == 2000
    expected = bytearray(pattern(2, MIB))
    for sector in range(1, 2048, 2):
        expected[sector * 512 : sector * 512 + 512] = bytes(512)
    assert_same_bytes(found, expected)


# ---- parents ----


class _Parent:
    """Gives one parent whatever it is called."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self, file_name: str, /) -> ByteSource:
        raise ParentUnavailable(file_name)

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        return VhdDriver().open(MemorySource(self._data, "parent.vhd"), NoRelatedFiles())


def utf16(path: str) -> bytes:
    return path.encode("utf-16-le")


def parent_at(path: str) -> VhdBuilder:
    builder = victim()
    builder.parent_name = path
    builder.locators = [(b"W2ru", utf16(path)), (b"W2ku", utf16(path)), (b"MacX", path.encode())]
    return builder


def unterminated() -> VhdBuilder:
    builder = victim()
    builder.parent_name = "/etc/" + "passwd/" * 35 + "passwd"
    assert len(builder.parent_name) == 256
    builder.locators = []
    return builder


def disagreeing() -> VhdBuilder:
    builder = victim()
    builder.locators = [
        (b"W2ru", utf16("..\\..\\etc\\shadow")),
        (b"W2ku", utf16("C:\\Windows\\System32\\config\\SAM")),
        (b"Wi2r", b"..\\group"),
        (b"Wi2k", b"\\\\server\\c$\\hosts"),
        (b"Mac ", b"/etc/fstab"),
        (b"MacX", b"file:///etc/%2e%2e/etc%2Fissue"),
        (b"W2ru", utf16("/proc/self/environ")),
        (b"\x1b]0;", utf16("/dev/zero")),
    ]
    return builder


HOSTILE_PARENTS: dict[str, tuple[Callable[[], VhdBuilder], list[str]]] = {
    "absolute": (lambda: parent_at("/etc/passwd"), ["passwd"]),
    "dotdot": (lambda: parent_at("..\\../..\\etc/passwd"), ["passwd"]),
    "UNC": (lambda: parent_at("\\\\10.0.0.1\\share\\passwd"), ["passwd"]),
    "URL": (lambda: parent_at("http://169.254.169.254/latest/meta-data"), ["meta-data"]),
    "unterminated": (unterminated, ["passwd"]),
    "disagreeing": (
        disagreeing,
        ["shadow", "environ", "SAM", "group", "hosts", "issue", "parent.vhd"],
    ),
}

_watching: list[list[str]] = []
"""Lists that take down what this process opens or connects to."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"open", "os.listdir", "os.scandir"} or event.startswith(("socket.", "subprocess.")):
        for opened in _watching:
            opened.append(f"{event} {arguments[:1]}")


@pytest.fixture(scope="module")
def hook() -> None:
    """Watch this process from here on; a hook cannot be taken away again."""
    "".encode("cp1252")  # the codec is a file that is opened when it is first used
    sys.addaudithook(_audit)


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    opened: list[str] = []
    _watching.append(opened)
    try:
        yield opened
    finally:
        _watching.remove(opened)


class _Refusing(NoRelatedFiles):
    """Has no parent, and remembers the names under which it was asked for one."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        self.names.extend(file_names)
        return super().open_parent(file_names, format_name)


@pytest.mark.parametrize("case", HOSTILE_PARENTS)
def test_a_parent_elsewhere_is_asked_for_by_its_bare_name_and_never_opened(case: str, hook: None) -> None:
    builder, names = HOSTILE_PARENTS[case]
    data = builder().build()
    related = _Refusing()
    with watched() as opened, pytest.raises(ParentUnavailable):
        VhdDriver().open(MemorySource(data, "hostile.vhd"), related)
    assert opened == []
    assert related.names == names
    for name in names:
        require_bare_name(name)
    survives(data, _Refusing())


@pytest.mark.parametrize("case", HOSTILE_PARENTS)
def test_a_parent_elsewhere_is_not_opened_from_a_folder_either(case: str, hook: None, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "hostile.vhd"
    path.parent.mkdir()
    path.write_bytes(HOSTILE_PARENTS[case][0]().build())
    source = open_file(path)
    with watched() as opened, pytest.raises(DiskfsError):
        VhdDriver().open(source, FolderFiles(path.parent))
    assert [event for event in opened if str(path.parent) not in event] == []
    source.close()


def test_names_cannot_act_on_a_terminal() -> None:
    builder = parent_at("\x1b]0;owned\x07\r\n\u202egnp.exe")
    survives(builder.build(), NoRelatedFiles())
    builder = parent_at("\u202egnp\u2028.vhd")
    survives(builder.build(), NoRelatedFiles())


def test_a_chain_of_sixteen_files_is_read_in_time() -> None:
    layers, content = chain(16, 200 * 4096, 4096, seed=3)
    related = ParentFiles(VhdDriver(), {name: functools.partial(MemorySource, data, name) for name, data in layers})
    with bounded():
        image = VhdDriver().open(MemorySource(layers[0][1]), related)
        assert_same_bytes(image.read_at(0, image.size), content)


# ---- the corpus ----

ROWS = [
    row for row in corpus_rows() if row.hostile and not row.is_member and "vhd" in row.path and "vhdx" not in row.path
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_a_hostile_file_of_the_corpus_is_survived(row: CorpusRow, corpus: Path) -> None:
    image = survives((corpus / row.path).read_bytes(), NoRelatedFiles())
    if "recipes" not in row.path:
        assert image is None
