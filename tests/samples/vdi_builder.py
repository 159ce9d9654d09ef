"""Packs VDI files by hand, from the layout of VirtualBox's VDICore.h, with nothing of the code under test.

Little-endian. `VdiBuilder` describes a disk block by block; `build()` appends the blocks in the order in which they
were put.
"""

import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

MIB = 1 << 20
FREE = 0xFFFFFFFF
ZERO = 0xFFFFFFFE
DYNAMIC, FIXED, UNDO, DIFFERENCING = 1, 2, 3, 4
NO_UUID = UUID(int=0)
UUID_CREATE = UUID("01234567-89ab-4cde-8f01-23456789abcd")
UUID_MODIFY = UUID("11111111-2222-4333-8444-555555555555")

HEADER_FIELDS = {
    # name: (offset, struct code)
    "u32Signature": (64, "I"),
    "u32Version": (68, "I"),
    "cbHeader": (72, "I"),
    "u32Type": (76, "I"),
    "fFlags": (80, "I"),
    "offBlocks": (340, "I"),
    "offData": (344, "I"),
    "cbSector": (360, "I"),
    "cbDisk": (368, "Q"),
    "cbBlock": (376, "I"),
    "cbBlockExtra": (380, "I"),
    "cBlocks": (384, "I"),
    "cBlocksAllocated": (388, "I"),
}
UUID_OFFSETS = {"uuidCreate": 392, "uuidModify": 408, "uuidLinkage": 424, "uuidParentModify": 440}


def patched(data: bytes, **fields: int | UUID) -> bytes:
    """Return an image with fields of its header changed."""
    changed = bytearray(data)
    for name, value in fields.items():
        if isinstance(value, UUID):
            changed[UUID_OFFSETS[name] : UUID_OFFSETS[name] + 16] = value.bytes_le
        else:
            offset, code = HEADER_FIELDS[name]
            struct.pack_into(f"<{code}", changed, offset, value)
    return bytes(changed)


@dataclass
class VdiBuilder:
    """A VDI to be."""

    size: int
    type: int = DYNAMIC
    block_size: int = MIB
    extra: int = 0
    """Bytes before each block."""
    header_size: int = 0x190
    uuid_create: UUID = UUID_CREATE
    uuid_modify: UUID = UUID_MODIFY
    uuid_linkage: UUID = NO_UUID
    uuid_parent_modify: UUID = NO_UUID
    data_align: int = 512
    text: bytes = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
    stored: dict[int, bytes] = field(default_factory=dict)
    """Block -> bytes, in the order in which they are appended."""
    zeroed: set[int] = field(default_factory=set)

    @property
    def blocks(self) -> int:
        """Blocks that cover the disk."""
        return -(-self.size // self.block_size)

    @property
    def map_offset(self) -> int:
        """Where the block map is."""
        return 512

    @property
    def data_offset(self) -> int:
        """Where the first block is."""
        end = self.map_offset + self.blocks * 4
        return -(-end // self.data_align) * self.data_align

    def block_offset(self, index: int) -> int:
        """Where the bytes of the block with a number in the file are."""
        return self.data_offset + index * (self.extra + self.block_size) + self.extra

    def build(self) -> bytes:
        """Pack the file."""
        entries = [ZERO if block in self.zeroed else FREE for block in range(self.blocks)]
        body = b""
        for index, (block, data) in enumerate(self.stored.items()):
            entries[block] = index
            body += b"\xdd" * self.extra + data.ljust(self.block_size, b"\0")
        head = self.text.ljust(64, b"\0") + struct.pack(
            "<4sIIII256sII4IIQIIII",
            b"\x7f\x10\xda\xbe",
            0x00010001,
            self.header_size,
            self.type,
            0,
            b"a comment",
            self.map_offset,
            self.data_offset,
            0,
            0,
            0,
            512,
            0,
            self.size,
            self.block_size,
            self.extra,
            self.blocks,
            len(self.stored),
        )
        assert len(head) == 392
        for uuid in (self.uuid_create, self.uuid_modify, self.uuid_linkage, self.uuid_parent_modify):
            head += uuid.bytes_le
        assert len(head) == 456
        table = struct.pack(f"<{len(entries)}I", *entries)
        return (head.ljust(self.map_offset, b"\0") + table).ljust(self.data_offset, b"\0") + body


def stamped(size: int, seed: int) -> bytes:
    """Random bytes, none of them zero."""
    return random.Random(seed).randbytes(size).replace(b"\0", b"\1")


def shuffled_disk(size: int, *, seed: int = 0, **choices: object) -> tuple[VdiBuilder, bytes]:
    """A dynamic disk whose blocks were written in a random order, some never, some discarded; and its bytes."""
    builder = VdiBuilder(size, **choices)  # type: ignore[arg-type]  # a plain table of keywords
    chance = random.Random(seed)
    order = list(range(builder.blocks))
    chance.shuffle(order)
    content = bytearray(size)
    quarter = len(order) // 4
    builder.zeroed = set(order[:quarter])
    written = [*order[2 * quarter :], *(block for block in (0, 1, 2) if block in order[quarter : 2 * quarter])]
    for block in written:
        data = stamped(builder.block_size, seed + block)
        builder.stored[block] = data
        start = block * builder.block_size
        content[start : start + builder.block_size] = data[: size - start]
    return builder, bytes(content)


def fixed_disk(size: int, *, seed: int = 0, **choices: object) -> tuple[VdiBuilder, bytes]:
    """A fixed disk, and its bytes."""
    builder = VdiBuilder(size, type=FIXED, **choices)  # type: ignore[arg-type]  # a plain table of keywords
    content = stamped(size, seed)
    for block in range(builder.blocks):
        builder.stored[block] = content[block * builder.block_size : (block + 1) * builder.block_size]
    return builder, content


SHUFFLED: Mapping[str, tuple[int, dict[str, object]]] = {
    "dynamic, 1 MiB blocks": (9 * MIB + 70 * 512, {"data_align": MIB}),
    "dynamic, 4 KiB blocks": (90 * 4096 + 512, {"block_size": 4096, "header_size": 0x180}),
    "dynamic, 64 KiB blocks, extra bytes": (20 * 65536 + 1024, {"block_size": 65536, "extra": 512}),
}


def make_shuffled(name: str, folder: Path) -> tuple[bytes, bytes]:
    """Return an image of SHUFFLED and the bytes of its disk."""
    size, choices = SHUFFLED[name]
    builder, content = shuffled_disk(size, seed=len(name), **choices)
    return builder.build(), content


def make_fixed(folder: Path) -> tuple[bytes, bytes]:
    """Return a fixed image and the bytes of its disk."""
    builder, content = fixed_disk(3 * MIB + 1536, seed=3)
    return builder.build(), content
