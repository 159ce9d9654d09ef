"""Packs sparse VMDK files by hand, from the specification, with nothing of the code under test.

Specification: VMware, Virtual Disk Format 5.0 (2011). Sector numbers throughout, 512 bytes each, little-endian. What a
writer may choose is a field of `Layout`; what a test wants to damage is found through the sector numbers of `Built`.
"""

import random
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

SECTOR = 512
GD_AT_END = 0xFFFFFFFFFFFFFFFF
LINE_END_TEST = b"\x0a\x20\x0d\x0a"
NO_DESCRIPTOR = ""

_HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")
assert _HEADER.size == SECTOR
HEADER_FIELDS = {
    # name: (offset, struct code)
    "magicNumber": (0, "I"),
    "version": (4, "I"),
    "flags": (8, "I"),
    "capacity": (12, "Q"),
    "grainSize": (20, "Q"),
    "descriptorOffset": (28, "Q"),
    "descriptorSize": (36, "Q"),
    "numGTEsPerGT": (44, "I"),
    "rgdOffset": (48, "Q"),
    "gdOffset": (56, "Q"),
    "overHead": (64, "Q"),
    "uncleanShutdown": (72, "B"),
    "singleEndLineChar": (73, "B"),
    "nonEndLineChar": (74, "B"),
    "doubleEndLineChar1": (75, "B"),
    "doubleEndLineChar2": (76, "B"),
    "compressAlgorithm": (77, "H"),
}


@dataclass(frozen=True)
class Layout:
    """What a writer may choose."""

    grain: int = 128
    """Sectors of a grain."""
    entries: int = 512
    """Entries of a grain table."""
    compressed: bool = False
    footer: bool = False
    """Write the tables after the grains, and a footer that knows where (GD_AT_END)."""
    version: int = 1
    redundant: bool = False
    descriptor: str | None = None
    """Text, NO_DESCRIPTOR for a header without one, None for an ordinary one."""
    descriptor_sectors: int = 0
    """Sectors set aside for it; 0 for as many as it needs."""
    short_last: bool = False
    """Store the last grain only as far as the capacity reaches."""
    shuffle: int | None = None
    """Seed of the order in which grains are stored; None for ascending."""
    level: int = 6
    """zlib's compression level; 0 gives stored blocks."""
    zeroed: frozenset[int] = frozenset()
    """Grains whose table entry is 1."""
    stored: frozenset[int] = frozenset()
    """Grains that are stored although they are all zero."""
    all_tables: bool = False
    """Write also the grain tables that have no entry."""
    extent_sectors: int | None = None
    """What the extent line says; None for the capacity."""
    gap: int = 0
    """Unused sectors before each stored grain."""


@dataclass
class Built:
    """A packed file, and the sectors where its structures are."""

    data: bytearray
    layout: Layout
    capacity: int
    gd: int = 0
    rgd: int = 0
    footer: int = 0
    tables: dict[int, int] = field(default_factory=dict)
    """Grain table number -> sector."""
    grains: dict[int, int] = field(default_factory=dict)
    """Grain number -> sector (compressed: of its marker)."""
    sizes: dict[int, int] = field(default_factory=dict)
    """Grain number -> compressed bytes."""

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def copy(self) -> "Built":
        """Return a copy whose bytes may be damaged."""
        return replace(self, data=bytearray(self.data))

    def set_field(self, name: str, value: int, *, sector: int = 0) -> "Built":
        """Overwrite one header field, of the header or of the footer at `sector`."""
        offset, code = HEADER_FIELDS[name]
        struct.pack_into("<" + code, self.data, sector * SECTOR + offset, value)
        return self

    def entry_offset(self, grain: int) -> int:
        """Return the byte offset of a grain's table entry."""
        table, index = divmod(grain, self.layout.entries)
        return self.tables[table] * SECTOR + index * 4

    def set_entry(self, grain: int, sector: int) -> "Built":
        """Overwrite a grain table entry."""
        struct.pack_into("<I", self.data, self.entry_offset(grain), sector)
        return self

    def set_directory(self, table: int, sector: int) -> "Built":
        """Overwrite a grain directory entry."""
        struct.pack_into("<I", self.data, self.gd * SECTOR + table * 4, sector)
        return self

    def append_record(self, lba: int, payload: bytes, *, size: int | None = None) -> int:
        """Append a grain record where the file ends, and return its sector."""
        self.data += bytes(-len(self.data) % SECTOR)
        sector = len(self.data) // SECTOR
        self.data += record(lba, payload, size=size)
        return sector


def stamped(sectors: int, salt: int = 0) -> bytes:
    """Return content in which every sector says which one it is, so that a misplaced one is seen."""
    return b"".join(
        struct.pack("<QQ", sector, salt ^ (sector * 0x9E3779B97F4A7C15 % 2**64)) * 32 for sector in range(sectors)
    )


def with_zero_grains(content: bytes, grain: int, grains: Iterable[int]) -> bytes:
    """Return `content` with some grains all zero."""
    data = bytearray(content)
    size = grain * SECTOR
    for number in grains:
        part = data[number * size : (number + 1) * size]
        data[number * size : number * size + len(part)] = bytes(len(part))
    return bytes(data)


def header(
    layout: Layout,
    capacity: int,
    *,
    gd: int,
    rgd: int = 0,
    overhead: int = 1,
    descriptor: tuple[int, int] = (0, 0),
) -> bytes:
    """Pack a header or a footer."""
    flags = 1 | (layout.redundant << 1) | (bool(layout.zeroed) << 2) | (0x30000 if layout.compressed else 0)
    return _HEADER.pack(
        b"KDMV", layout.version, flags, capacity, layout.grain, *descriptor, layout.entries, rgd, gd, overhead, 0,
        LINE_END_TEST, int(layout.compressed),
    )  # fmt: skip


def marker(value: int, kind: int) -> bytes:
    """Pack a metadata marker."""
    return struct.pack("<QII496x", value, 0, kind)


def record(lba: int, payload: bytes, *, size: int | None = None) -> bytes:
    """Pack a grain record: marker, compressed bytes, padding to a sector."""
    packed = struct.pack("<QI", lba, len(payload) if size is None else size) + payload
    return packed + bytes(-len(packed) % SECTOR)


def descriptor_text(capacity: int, *, compressed: bool = False, extra: str = "") -> str:
    """Return an ordinary embedded descriptor."""
    kind = "streamOptimized" if compressed else "monolithicSparse"
    return (
        f'# Disk DescriptorFile\nversion=1\nCID=7d1c23ab\nparentCID=ffffffff\ncreateType="{kind}"\n\n'
        f'# Extent description\nRW {capacity} SPARSE "disk.vmdk"\n\n'
        f'# The Disk Data Base\n#DDB\nddb.adapterType = "lsilogic"\nddb.virtualHWVersion = "4"\n{extra}'
    )


def build(content: bytes, layout: Layout) -> Built:
    """Pack a disk whose bytes are `content`; its length is the capacity, not necessarily a multiple of the grain.

    All-zero grains are holes unless `layout` says otherwise.
    """
    assert len(content) % SECTOR == 0
    size = layout.grain * SECTOR
    grains = {}
    for number in range(-(-len(content) // size)):
        grain = content[number * size : (number + 1) * size]
        if number in layout.stored or (number not in layout.zeroed and grain.strip(b"\0")):
            grains[number] = grain
    return build_grains(grains, len(content) // SECTOR, layout)


def build_grains(grains: Mapping[int, bytes], capacity: int, layout: Layout) -> Built:
    """Pack a disk of `capacity` sectors from the grains that it stores; every other grain is a hole or zeroed."""
    built = Built(bytearray(SECTOR), layout, capacity)
    data = built.data
    place = (0, 0)
    text = layout.descriptor
    if text is None:
        sectors = capacity if layout.extent_sectors is None else layout.extent_sectors
        text = descriptor_text(sectors, compressed=layout.compressed)
    if text != NO_DESCRIPTOR:
        encoded = text.encode("utf-8", "surrogateescape")
        place = (1, layout.descriptor_sectors or -(-len(encoded) // SECTOR))
        data += encoded.ljust(place[1] * SECTOR, b"\0")

    table_count = -(-capacity // (layout.entries * layout.grain))
    used = {number // layout.entries for number in (*grains, *layout.zeroed)}
    if layout.all_tables or layout.redundant:
        used = set(range(table_count))
    copies: list[dict[int, int]] = []
    if not layout.footer:
        if layout.redundant:
            built.rgd, table = _reserve_tables(data, layout, table_count, used)
            copies.append(table)
        built.gd, built.tables = _reserve_tables(data, layout, table_count, used)
        copies.append(built.tables)
    if not layout.compressed:
        _pad(data, layout.grain)
    if len(data) == SECTOR:
        # A table entry of 1 may mean a zeroed grain, so no grain lies in sector 1.
        data += bytes(SECTOR)
    overhead = len(data) // SECTOR

    order = sorted(grains)
    if layout.shuffle is not None:
        random.Random(layout.shuffle).shuffle(order)
    _store_grains(built, grains, order)

    entries: dict[int, list[int]] = {number: [0] * layout.entries for number in used}
    for number, sector in (*built.grains.items(), *((number, 1) for number in layout.zeroed)):
        entries[number // layout.entries][number % layout.entries] = sector
    packed = {number: struct.pack(f"<{layout.entries}I", *table) for number, table in entries.items()}

    if layout.footer:
        _append_tables(built, packed, table_count)
        data[:SECTOR] = header(layout, capacity, gd=GD_AT_END, overhead=overhead, descriptor=place)
        data += marker(1, 3)
        built.footer = len(data) // SECTOR
        data += header(layout, capacity, gd=built.gd, overhead=overhead, descriptor=place)
        data += marker(0, 0)
        return built
    for table in copies:
        for number, sector in table.items():
            data[sector * SECTOR : sector * SECTOR + len(packed[number])] = packed[number]
    data[:SECTOR] = header(layout, capacity, gd=built.gd, rgd=built.rgd, overhead=overhead, descriptor=place)
    if layout.compressed:
        data += marker(0, 0)
    return built


def _store_grains(built: Built, grains: Mapping[int, bytes], order: list[int]) -> None:
    layout, data = built.layout, built.data
    size = layout.grain * SECTOR
    last = (built.capacity - 1) // layout.grain
    for place, number in enumerate(order):
        data += bytes(layout.gap * SECTOR)
        grain = grains[number]
        keep_short = layout.short_last and number == last
        grain = grain[: (built.capacity - last * layout.grain) * SECTOR] if keep_short else grain.ljust(size, b"\x00")
        built.grains[number] = len(data) // SECTOR
        if layout.compressed:
            payload = zlib.compress(grain, layout.level)
            built.sizes[number] = len(payload)
            data += record(number * layout.grain, payload)
        else:
            data += grain
            if keep_short and place < len(order) - 1:
                _pad(data, layout.grain)


def _append_tables(built: Built, packed: Mapping[int, bytes], table_count: int) -> None:
    """Write the tables after the grains, each behind its marker as streams have it."""
    data = built.data
    data += bytes(-len(data) % SECTOR)
    for number, table in sorted(packed.items()):
        data += marker(-(-len(table) // SECTOR), 1)
        built.tables[number] = len(data) // SECTOR
        data += table + bytes(-len(table) % SECTOR)
    directory = struct.pack(f"<{table_count}I", *(built.tables.get(number, 0) for number in range(table_count)))
    data += marker(-(-len(directory) // SECTOR), 2)
    built.gd = len(data) // SECTOR
    data += directory + bytes(-len(directory) % SECTOR)


def _reserve_tables(data: bytearray, layout: Layout, count: int, used: set[int]) -> tuple[int, dict[int, int]]:
    """Write a grain directory and leave room for its tables behind it; return both places."""
    place = len(data) // SECTOR
    directory_sectors = -(-count * 4 // SECTOR)
    table_sectors = -(-layout.entries * 4 // SECTOR)
    tables = {number: place + directory_sectors + at * table_sectors for at, number in enumerate(sorted(used))}
    directory = struct.pack(f"<{count}I", *(tables.get(number, 0) for number in range(count)))
    data += directory.ljust(directory_sectors * SECTOR, b"\0") + bytes(len(tables) * table_sectors * SECTOR)
    return place, tables


def _pad(data: bytearray, grain: int) -> None:
    """Align to the grain, as hosted writers do; not to grains so large that the file would be mostly padding."""
    data += bytes(-len(data) % (min(grain, 2048) * SECTOR))
