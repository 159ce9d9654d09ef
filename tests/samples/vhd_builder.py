"""Packs VHD files by hand from Microsoft's specification 1.0, independently of the driver, so that any field can be
any value.

A `VhdBuilder` lays a file out as Virtual PC does: copy of the footer, dynamic header, BAT, parent locators, blocks in
the order in which they were put, footer. What it packs can be changed in its attributes before `build()`.
"""

import random
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

SECTOR = 512
MIB = 1 << 20
TIB = 1 << 40
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
UNUSED = 0xFFFFFFFF
NO_OFFSET = 0xFFFFFFFFFFFFFFFF
UNIQUE_ID = UUID("7a3f1c52-9b04-4d6e-8e11-0c5d2b7f9a63")
MAX_GEOMETRY = (65535, 16, 255)

FOOTER_FIELDS = {
    "cookie": (0, "8s"),
    "features": (8, "I"),
    "file_format_version": (12, "I"),
    "data_offset": (16, "Q"),
    "timestamp": (24, "I"),
    "creator_application": (28, "4s"),
    "creator_version": (32, "I"),
    "creator_host_os": (36, "4s"),
    "original_size": (40, "Q"),
    "current_size": (48, "Q"),
    "cylinders": (56, "H"),
    "heads": (58, "B"),
    "sectors_per_track": (59, "B"),
    "disk_type": (60, "I"),
    "checksum": (64, "I"),
    "unique_id": (68, "16s"),
    "saved_state": (84, "B"),
}
"""Offset and struct code of every field of the footer."""
HEADER_FIELDS = {
    "cookie": (0, "8s"),
    "data_offset": (8, "Q"),
    "table_offset": (16, "Q"),
    "header_version": (24, "I"),
    "max_table_entries": (28, "I"),
    "block_size": (32, "I"),
    "checksum": (36, "I"),
    "parent_unique_id": (40, "16s"),
    "parent_timestamp": (56, "I"),
    "reserved": (60, "I"),
    "parent_unicode_name": (64, "512s"),
}
LOCATOR_FIELDS = {
    "platform_code": (0, "4s"),
    "platform_data_space": (4, "I"),
    "platform_data_length": (8, "I"),
    "reserved": (12, "I"),
    "platform_data_offset": (16, "Q"),
}
LOCATORS_AT = 576
HEADER_AT = 512


def checksum(data: bytes) -> int:
    """The complement of the sum of all bytes, as 32 bits."""
    total = 0
    for byte in data:
        total = (total + byte) & 0xFFFFFFFF
    return total ^ 0xFFFFFFFF


def with_checksum(data: bytes, at: int) -> bytes:
    """Return a structure with its checksum, at offset `at`, put right."""
    blank = data[:at] + bytes(4) + data[at + 4 :]
    return data[:at] + struct.pack(">I", checksum(blank)) + data[at + 4 :]


def resealed(structure: bytes, fields: Mapping[str, tuple[int, str]], **values: Any) -> bytes:
    """Return a footer or header with some fields changed and its checksum right, unless that is one of the fields."""
    data = bytearray(structure)
    for name, value in values.items():
        offset, code = fields[name]
        struct.pack_into(">" + code, data, offset, value)
    return bytes(data) if "checksum" in values else with_checksum(bytes(data), fields["checksum"][0])


def pack_footer(**values: Any) -> bytes:
    """Return a footer; what is not given is as Hyper-V writes it."""
    usual = {
        "cookie": b"conectix",
        "features": 2,
        "file_format_version": 0x00010000,
        "data_offset": HEADER_AT,
        "timestamp": 0x2715AB0A,
        "creator_application": b"win ",
        "creator_version": 0x000A0000,
        "creator_host_os": b"Wi2k",
        "cylinders": MAX_GEOMETRY[0],
        "heads": MAX_GEOMETRY[1],
        "sectors_per_track": MAX_GEOMETRY[2],
        "disk_type": DYNAMIC,
        "unique_id": UNIQUE_ID.bytes,
    }
    return resealed(bytes(512), FOOTER_FIELDS, **(usual | values))


def pack_header(locators: Sequence[bytes] = (), **values: Any) -> bytes:
    """Return a dynamic header; what is not given is as Hyper-V writes it."""
    usual = {
        "cookie": b"cxsparse",
        "data_offset": NO_OFFSET,
        "table_offset": 1536,
        "header_version": 0x00010000,
        "block_size": 2 * MIB,
    }
    table = b"".join(locators).ljust(8 * 24, b"\0")
    assert len(table) == 8 * 24
    blank = bytes(LOCATORS_AT) + table + bytes(256)
    return resealed(blank, HEADER_FIELDS, **(usual | values))


def pack_locator(code: bytes, length: int, offset: int, space: int = 512) -> bytes:
    """Return one entry of the header's locator table."""
    return struct.pack(">4sIIIQ", code, space, length, 0, offset)


def bitmap_of(sectors: Iterable[int], count: int) -> bytes:
    """Return a sector bitmap with these bits set, the most significant bit of a byte first, in whole sectors."""
    data = bytearray(-(-count // 4096) * 512)
    for sector in sectors:
        data[sector // 8] |= 0x80 >> sector % 8
    return bytes(data)


def pattern(seed: int, length: int) -> bytes:
    """Bytes that tell where they are from: a sector holds its seed and number, and is never zero."""
    sectors = (
        struct.pack(">HI", seed, number) + bytes([seed % 255 + 1]) * 506 for number in range(-(-length // SECTOR))
    )
    return b"".join(sectors)[:length]


@dataclass
class VhdBuilder:
    """A dynamic or differencing disk to be; `fixed` makes the third kind."""

    size: int
    block_size: int = 4096
    parent_id: UUID | None = None
    unique_id: UUID = UNIQUE_ID
    spare_entries: int = 0
    """BAT entries beyond the disk's end."""
    footer_size: int = 512
    """511 as before Virtual PC 2004."""
    footer: dict[str, Any] = field(default_factory=dict)
    """Fields of the footer and its copy that differ from the usual."""
    header: dict[str, Any] = field(default_factory=dict)
    parent_name: str = ""
    locators: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Platform code and data; the data is put after the BAT."""
    blocks: dict[int, bytes] = field(default_factory=dict)
    bat: dict[int, int] = field(default_factory=dict)
    """BAT entries that differ from where the blocks are."""
    first_block: int | None = None
    """Offset of the first block, if not right after what comes before."""

    @property
    def block_count(self) -> int:
        return -(-self.size // self.block_size)

    @property
    def bitmap_size(self) -> int:
        return -(-self.block_size // SECTOR // 4096) * 512

    @property
    def sectors_per_block(self) -> int:
        return self.block_size // SECTOR

    def put(self, number: int, data: bytes, sectors: Iterable[int] | None = None) -> None:
        """Store a block; `sectors` are the bits of its bitmap, all if not given."""
        sectors = range(self.sectors_per_block) if sectors is None else sectors
        bitmap = bitmap_of(sectors, self.sectors_per_block)
        self.blocks[number] = bitmap + data.ljust(self.block_size, b"\0")

    @property
    def table_size(self) -> int:
        """Bytes of the BAT, padded."""
        return -(-(self.block_count + self.spare_entries) * 4 // 512) * 512

    def build(self) -> bytes:
        """Pack everything."""
        offset = HEADER_AT + 1024 + self.table_size
        locator_table, locator_data = [], b""
        for code, data in self.locators:
            padded = data.ljust(-(-len(data) // 512) * 512, b"\0")
            locator_table.append(pack_locator(code, len(data), offset, len(padded)))
            locator_data += padded
            offset += len(padded)
        gap = 0 if self.first_block is None else self.first_block - offset
        offset += gap
        entries = [UNUSED] * (self.table_size // 4)
        pieces = []
        for number, block in self.blocks.items():
            entries[number] = offset // SECTOR
            pieces.append(block)
            offset += len(block)
        for number, entry in self.bat.items():
            entries[number] = entry
        self.footer_at = offset
        header = pack_header(
            locator_table,
            **{
                "max_table_entries": self.block_count + self.spare_entries,
                "block_size": self.block_size,
                "parent_unique_id": self.parent_id.bytes if self.parent_id else bytes(16),
                "parent_unicode_name": self.parent_name.encode("utf-16-be"),
            }
            | self.header,
        )
        footer = self.pack_footer()
        table = struct.pack(f">{len(entries)}I", *entries)
        return b"".join(
            [footer, header, table, locator_data, bytes(gap), *pieces, footer[: self.footer_size]],
        )

    def pack_footer(self, **values: Any) -> bytes:
        """Return this disk's footer."""
        usual = {
            "original_size": self.size,
            "current_size": self.size,
            "disk_type": DIFFERENCING if self.parent_id else DYNAMIC,
            "unique_id": self.unique_id.bytes,
        }
        return pack_footer(**(usual | self.footer | values))


def fixed(content: bytes, *, footer_size: int = 512, **footer: Any) -> bytes:
    """Return a fixed disk."""
    usual = {
        "data_offset": NO_OFFSET,
        "disk_type": FIXED,
        "original_size": len(content),
        "current_size": len(content),
    }
    return content + pack_footer(**(usual | footer))[:footer_size]


def filled(size: int, block_size: int, *, seed: int = 1, **options: Any) -> tuple[VhdBuilder, bytes]:
    """Return a dynamic disk whose blocks, two thirds of all, lie in the file in shuffled order; and its content."""
    builder = VhdBuilder(size, block_size, **options)
    chance = random.Random(seed)
    numbers = chance.sample(range(builder.block_count), -(-builder.block_count * 2 // 3))
    content = bytearray(builder.block_count * block_size)
    for number in numbers:
        data = pattern(100 * seed + number, block_size)
        builder.put(number, data)
        content[number * block_size : (number + 1) * block_size] = data
    return builder, bytes(content[:size])


def chain(
    depth: int, size: int, block_size: int, *, seed: int = 1, base: bytes | None = None
) -> tuple[list[tuple[str, bytes]], bytes]:
    """Return the files of a chain, child first, and the content of the child.

    Every layer but the last is differencing; its blocks hold random sectors of theirs, in runs of random length, and
    garbage where the parent's sectors are. The last layer is dynamic, or fixed with the content `base`.
    """
    chance = random.Random(seed)
    files = []
    if base is None:
        builder, content = filled(size, block_size, seed=seed, unique_id=UUID(int=1))
        files.append(("layer1.vhd", builder.build()))
    else:
        content = base
        files.append(("layer1.vhd", fixed(base, unique_id=UUID(int=1).bytes)))
    current = bytearray(content.ljust(size, b"\0"))
    for layer in range(2, depth + 1):
        builder = VhdBuilder(size, block_size, parent_id=UUID(int=layer - 1), unique_id=UUID(int=layer))
        builder.locators = [(b"W2ru", f".\\layer{layer - 1}.vhd".encode("utf-16-le"))]
        for number in chance.sample(range(builder.block_count), -(-builder.block_count // 2)):
            data = pattern(1000 * layer + number, block_size)
            here = random_runs(chance, builder.sectors_per_block)
            builder.put(number, data, here)
            for sector in here:
                at = number * block_size + sector * SECTOR
                if at < size:
                    current[at : at + SECTOR] = data[sector * SECTOR : (sector + 1) * SECTOR]
        files.insert(0, (f"layer{layer}.vhd", builder.build()))
    return files, bytes(current)


def random_runs(chance: random.Random, count: int) -> list[int]:
    """Return about half of `count` sectors, in runs of random length."""
    sectors: list[int] = []
    at = chance.choice((0, 1, 3))
    while at < count:
        length = chance.choice((1, 2, 7, 8, 9, max(count // 5, 1)))
        sectors.extend(range(at, min(at + length, count)))
        at += length + chance.choice((1, 2, 7, 8, 9, max(count // 5, 1)))
    return sectors


def write_chain(folder: Path, files: Iterable[tuple[str, bytes]]) -> None:
    """Put the files of a chain into a folder."""
    for name, data in files:
        (folder / name).write_bytes(data)
