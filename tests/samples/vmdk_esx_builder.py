"""Packs what ESX writes, by hand: COWD (vmfsSparse) and seSparse extents, and the text descriptors that list extents.

Specification of COWD: VMware, Virtual Disk Format 5.0 (2011), "ESX Server Sparse Extents"; of seSparse there is none,
and qemu-img reads what is packed here. Little-endian, 512-byte sectors. Nothing of the code under test is used.
"""

import random
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SECTOR = 512
NO_PARENT = "ffffffff"


def descriptor(
    lines: Iterable[str],
    create_type: str = "custom",
    *,
    cid: str = "0badcafe",
    parent_cid: str = NO_PARENT,
    hint: str | None = None,
    extra: str = "",
) -> str:
    """Return a text descriptor with these extent lines."""
    parent = "" if hint is None else f'parentFileNameHint="{hint}"\n'
    return (
        f'# Disk DescriptorFile\nversion=1\nencoding="UTF-8"\nCID={cid}\nparentCID={parent_cid}\n'
        f'createType="{create_type}"\n{parent}\n# Extent description\n'
        + "".join(f"{line}\n" for line in lines)
        + f'\n# The Disk Data Base\n#DDB\n\nddb.adapterType = "lsilogic"\n{extra}'
    )


# ---- COWD ----

COWD_FIELDS = {
    "magicNumber": 0,
    "version": 4,
    "flags": 8,
    "numSectors": 12,
    "grainSize": 16,
    "gdOffset": 20,
    "numGDEntries": 24,
    "freeSector": 28,
    "generation": 1060,
    "savedGeneration": 1636,
    "uncleanShutdown": 1648,
}
"""Offsets of the 32-bit fields."""
COWD_ENTRIES = 4096


@dataclass
class Cowd:
    """A packed COWD extent, and where its structures are."""

    data: bytearray
    gd: int
    """Sector of the grain directory."""
    tables: dict[int, int] = field(default_factory=dict)
    """Grain table number -> sector."""
    grains: dict[int, int] = field(default_factory=dict)
    """Grain number -> sector."""

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def set_field(self, name: str, value: int) -> "Cowd":
        """Overwrite one header field."""
        struct.pack_into("<I", self.data, COWD_FIELDS[name], value)
        return self

    def set_entry(self, grain: int, sector: int) -> "Cowd":
        """Overwrite a grain table entry."""
        table, index = divmod(grain, COWD_ENTRIES)
        struct.pack_into("<I", self.data, self.tables[table] * SECTOR + index * 4, sector)
        return self

    def set_directory(self, table: int, sector: int) -> "Cowd":
        """Overwrite a grain directory entry."""
        struct.pack_into("<I", self.data, self.gd * SECTOR + table * 4, sector)
        return self


def cowd(grains: Mapping[int, bytes], sectors: int, *, grain: int = 1, seed: int | None = None) -> Cowd:
    """Pack a COWD extent of `sectors` sectors that stores `grains`; stored ascending, or shuffled with a seed."""
    count = -(-sectors // (COWD_ENTRIES * grain))
    gd = 4
    built = Cowd(bytearray(gd * SECTOR), gd)
    data = built.data
    data += bytes(-(-count * 4 // SECTOR) * SECTOR)
    order = sorted(grains)
    if seed is not None:
        random.Random(seed).shuffle(order)
    for number in order:
        # ESX makes a table when the first grain of it is written.
        table = number // COWD_ENTRIES
        if table not in built.tables:
            built.tables[table] = len(data) // SECTOR
            data += bytes(COWD_ENTRIES * 4)
        built.grains[number] = len(data) // SECTOR
        data += grains[number].ljust(grain * SECTOR, b"\0")
    header = struct.pack("<4sIIIIIII", b"COWD", 1, 3, sectors, grain, gd, count, len(data) // SECTOR)
    data[: len(header)] = header
    data[1064:1069] = b"disk\0"
    for table, sector in built.tables.items():
        built.set_directory(table, sector)
    for number, sector in built.grains.items():
        built.set_entry(number, sector)
    return built


# ---- seSparse ----

SESPARSE_FIELDS = (
    "magic", "version", "capacity", "grain_size", "grain_table_size", "flags", "reserved1", "reserved2", "reserved3",
    "reserved4", "volatile_header_offset", "volatile_header_size", "journal_header_offset", "journal_header_size",
    "journal_offset", "journal_size", "grain_dir_offset", "grain_dir_size", "grain_tables_offset", "grain_tables_size",
    "free_bitmap_offset", "free_bitmap_size", "backmap_offset", "backmap_size", "grains_offset", "grains_size",
)  # fmt: skip
"""The 64-bit fields of the constant header, in order."""
SESPARSE_GRAIN = 8
SESPARSE_ENTRIES = 4096
UNMAPPED, ZERO, ALLOCATED = 1 << 60, 2 << 60, 3 << 60


@dataclass
class SeSparse:
    """A packed seSparse extent, and where its structures are."""

    data: bytearray
    gd: int
    """Byte offset of the grain directory, as of the others."""
    tables: int
    grains: int
    volatile: int
    table_index: dict[int, int] = field(default_factory=dict)
    """Grain table number -> its index among those stored."""
    grain_index: dict[int, int] = field(default_factory=dict)
    """Grain number -> the index of its place."""

    def __bytes__(self) -> bytes:
        return bytes(self.data)

    def set_field(self, name: str, value: int) -> "SeSparse":
        """Overwrite one field of the constant header."""
        struct.pack_into("<Q", self.data, SESPARSE_FIELDS.index(name) * 8, value)
        return self

    def set_volatile(self, index: int, value: int) -> "SeSparse":
        """Overwrite one field of the volatile header: 0 magic, 1 free_gt_number, 2 next_txn_seq, 3 replay_journal."""
        struct.pack_into("<Q", self.data, self.volatile + index * 8, value)
        return self

    def set_entry(self, grain: int, entry: int) -> "SeSparse":
        """Overwrite a grain table entry."""
        table, index = divmod(grain, SESPARSE_ENTRIES)
        place = self.tables + self.table_index[table] * SESPARSE_ENTRIES * 8 + index * 8
        struct.pack_into("<Q", self.data, place, entry)
        return self

    def set_directory(self, table: int, entry: int) -> "SeSparse":
        """Overwrite a grain directory entry."""
        struct.pack_into("<Q", self.data, self.gd + table * 8, entry)
        return self


def sesparse_entry(index: int) -> int:
    """Return the entry of a stored grain: the 12 lowest bits of its index go above the others."""
    return ALLOCATED | (index & 0xFFF) << 48 | index >> 12


def sesparse(
    grains: Mapping[int, bytes],
    sectors: int,
    *,
    zero: Iterable[int] = (),
    unmapped: Iterable[int] = (),
    seed: int | None = None,
    first_index: int = 0,
) -> SeSparse:
    """Pack a seSparse extent that stores `grains`, with some others zero or unmapped.

    The first stored grain takes the place `first_index`: those before are left free.
    """
    count = -(-sectors // (SESPARSE_ENTRIES * SESPARSE_GRAIN))
    marked = {**dict.fromkeys(zero, ZERO), **dict.fromkeys(unmapped, UNMAPPED)}
    used = sorted({number // SESPARSE_ENTRIES for number in (*grains, *marked)})
    directory_sectors = -(-count * 8 // SECTOR)
    # Const header, volatile header, journal header, journal, directory, tables, bitmap, backmap, grains.
    regions = {"volatile_header": (1, 1), "journal_header": (2, 2), "journal": (4, 8)}
    regions["grain_dir"] = (12, directory_sectors)
    regions["grain_tables"] = (12 + directory_sectors, max(len(used), 1) * 64)
    end = sum(regions["grain_tables"])
    regions["free_bitmap"] = (end, 1)
    regions["backmap"] = (end + 1, 8)
    start = -(-(end + 9) // 8) * 8
    regions["grains"] = (start, (first_index + len(grains)) * SESPARSE_GRAIN)
    data = bytearray((start + (first_index + len(grains)) * SESPARSE_GRAIN) * SECTOR)
    built = SeSparse(data, 12 * SECTOR, regions["grain_tables"][0] * SECTOR, start * SECTOR, SECTOR)
    struct.pack_into("<10Q", data, 0, 0xCAFEBABE, 0x0000000200000001, sectors, SESPARSE_GRAIN, 64, 0, 0, 0, 0, 0)
    for name, (offset, size) in regions.items():
        built.set_field(f"{name}_offset", offset).set_field(f"{name}_size", size)
    built.set_volatile(0, 0xCAFECAFE).set_volatile(1, len(used)).set_volatile(2, 1)
    for index, table in enumerate(used):
        built.table_index[table] = index
        built.set_directory(table, 0x10000000 << 32 | index)
    order = sorted(grains)
    if seed is not None:
        random.Random(seed).shuffle(order)
    for index, number in enumerate(order, first_index):
        built.grain_index[number] = index
        built.set_entry(number, sesparse_entry(index))
        place = built.grains + index * SESPARSE_GRAIN * SECTOR
        data[place : place + len(grains[number])] = grains[number]
    for number, kind in marked.items():
        built.set_entry(number, kind)
    return built


def grains_of(content: bytes, grain: int) -> dict[int, bytes]:
    """Return the grains of `content` that are not all zero."""
    size = grain * SECTOR
    found = {number: content[number * size : (number + 1) * size] for number in range(-(-len(content) // size))}
    return {number: part for number, part in found.items() if part.strip(b"\0")}
