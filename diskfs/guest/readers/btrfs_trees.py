"""The chunks and trees of Btrfs: from logical addresses to the device, from keys to items.

Layout: Btrfs documentation, dev/On-disk-format.rst; Linux, include/uapi/linux/btrfs_tree.h. Little-endian. Read are the
profiles single, DUP and one copy of RAID1; the others are refused by name.
"""

import bisect
import collections
import struct
from collections.abc import Iterator
from typing import TypeAlias

import google_crc32c

from diskfs.guest.errors import GuestError
from diskfs.guest.readers.device import Device

CSUM_TYPE_CRC32C = 0
CHUNK_ITEM = 228

RAID_NAMES = {8: "RAID0", 0x40: "RAID10", 0x80: "RAID5", 0x100: "RAID6"}
INCOMPAT_KNOWN = 0x1FFF
"""Features that change nothing of what is read here, or are handled: up to ZONED."""

HEADER_SIZE = 0x65
KEY = struct.Struct("<QBQ")
ITEM = struct.Struct("<QBQII")
POINTER = struct.Struct("<QBQQQ")
CHUNK = struct.Struct("<QQQQIIIHH")
STRIPE = struct.Struct("<QQ16s")

MAX_LEVEL = 8
MAX_NODES = 256
"""Tree nodes that are kept."""

MAX_CHUNKS = 65536

Key: TypeAlias = tuple[int, int, int]


class TreeNode:
    """A node of a tree: its level, its keys, and items or pointers."""

    __slots__ = ("data", "keys", "level", "places")

    def __init__(self, data: bytes, logical: int, level: int) -> None:
        count, found_level = int.from_bytes(data[0x60:0x64], "little"), data[0x64]
        layout = POINTER if level else ITEM
        if int.from_bytes(data[0x30:0x38], "little") != logical or found_level != level:
            raise GuestError(f"tree node at {logical:#x}: level {found_level} of another place; expected level {level}")
        if count > (len(data) - HEADER_SIZE) // layout.size:
            raise GuestError(f"tree node at {logical:#x}: {count} items do not fit into {len(data)} bytes")
        self.data = data
        self.level = level
        self.keys: list[Key] = []
        self.places: list[tuple[int, int]] = []
        for values in layout.iter_unpack(data[HEADER_SIZE : HEADER_SIZE + count * layout.size]):
            self.keys.append(values[:3])
            self.places.append(values[3:])

    def item(self, index: int) -> bytes:
        """Return an item's bytes, none if they lie outside the node."""
        offset, size = self.places[index]
        return self.data[HEADER_SIZE + offset : HEADER_SIZE + offset + size]


class Trees:
    """The chunks and the trees of one file system."""

    def __init__(self, device: Device, superblock: bytes) -> None:
        self._device = device
        self._nodes: collections.OrderedDict[int, TreeNode] = collections.OrderedDict()
        self.sector_size, self._node_size = struct.unpack_from("<II", superblock, 0x90)
        if not 4096 <= self._node_size <= 65536 or self._node_size & (self._node_size - 1):
            raise GuestError(f"superblock: nodes of {self._node_size} bytes")
        if not 512 <= self.sector_size <= 65536 or self.sector_size & (self.sector_size - 1):
            raise GuestError(f"superblock: sectors of {self.sector_size} bytes")
        incompat = int.from_bytes(superblock[0xBC:0xC4], "little")
        if incompat & ~INCOMPAT_KNOWN:
            raise GuestError(f"superblock: features {incompat & ~INCOMPAT_KNOWN:#x} are not read")
        self._checks = int.from_bytes(superblock[0xC4:0xC6], "little") == CSUM_TYPE_CRC32C
        self._device_id = int.from_bytes(superblock[0xC9:0xD1], "little")
        # (logical start, length, places on this device, profile)
        self._chunks: list[tuple[int, int, list[int], int]] = []
        self._read_system_chunks(superblock)
        root, level = int.from_bytes(superblock[0x58:0x60], "little"), superblock[0xC7]
        for key, item in self.walk((root, level), (256, CHUNK_ITEM, 0)):
            if key[1] == CHUNK_ITEM:
                self._add_chunk(key[2], item)

    def _read_system_chunks(self, superblock: bytes) -> None:
        size = int.from_bytes(superblock[0xA0:0xA4], "little")
        data = superblock[0x32B : 0x32B + min(size, 2048)]
        at = 0
        while at + KEY.size + CHUNK.size <= len(data):
            _, kind, logical = KEY.unpack_from(data, at)
            if kind != CHUNK_ITEM:
                raise GuestError(f"superblock: an item of type {kind} among the system chunks")
            at += KEY.size
            at += self._add_chunk(logical, data[at:])

    def _add_chunk(self, logical: int, data: bytes) -> int:
        length, _, _, profile, _, _, _, count, _ = CHUNK.unpack_from(data)
        size: int = CHUNK.size + count * STRIPE.size
        if size > len(data) or len(self._chunks) >= MAX_CHUNKS:
            raise GuestError(f"chunk at {logical:#x}: {count} stripes do not fit, or it is one of over {MAX_CHUNKS}")
        stripes = (STRIPE.unpack_from(data, CHUNK.size + index * STRIPE.size) for index in range(count))
        places = [offset for device, offset, _ in stripes if device == self._device_id]
        entry = (logical, length, places, profile)
        at = bisect.bisect_left(self._chunks, (logical,))
        if at < len(self._chunks) and self._chunks[at][0] == logical:
            self._chunks[at] = entry
        else:
            self._chunks.insert(at, entry)
        return size

    def read(self, logical: int, length: int, copy: int = 0) -> bytes:
        """Return bytes at a logical address; raises LookupError if there is no such copy."""
        parts = []
        while length:
            at = bisect.bisect_right(self._chunks, (logical, 1 << 65)) - 1
            start, size, places, profile = self._chunks[at] if at >= 0 else (0, 0, [], 0)
            if not start <= logical < start + size:
                raise GuestError(f"logical address {logical:#x} is in no chunk")
            for bit, name in RAID_NAMES.items():
                if profile & bit:
                    raise GuestError(f"the chunk at {start:#x} has the profile {name}, which is not read")
            if not places:
                raise GuestError(f"the chunk at {start:#x} is on another device")
            count = min(length, start + size - logical)
            parts.append(self._device.read_at(places[copy] + logical - start, count))
            logical += count
            length -= count
        return b"".join(parts)

    def node(self, logical: int, level: int) -> TreeNode:
        """Return a tree node; one whose checksum is wrong is read from its other copy."""
        node = self._nodes.get(logical)
        if node is not None and node.level == level:
            self._nodes.move_to_end(logical)
            return node
        copy = 0
        while True:
            try:
                data = self.read(logical, self._node_size, copy)
            except IndexError:
                raise GuestError(f"tree node at {logical:#x}: the checksum of every copy is wrong") from None
            if not self._checks or google_crc32c.value(data[32:]) == int.from_bytes(data[:4], "little"):
                break
            copy += 1
        node = self._nodes[logical] = TreeNode(data, logical, level)
        if len(self._nodes) > MAX_NODES:
            self._nodes.popitem(last=False)
        return node

    def walk(self, root: tuple[int, int], key: Key) -> Iterator[tuple[Key, bytes]]:
        """Yield the items of a tree from the last one that is not behind `key`, or from the first."""
        logical, level = root
        if level > MAX_LEVEL:
            raise GuestError(f"tree at {logical:#x}: it has {level} levels, over the limit of {MAX_LEVEL}")
        yield from self._walk(logical, level, key, (-1, 0, 0))

    def _walk(self, logical: int, level: int, key: Key, least: Key) -> Iterator[tuple[Key, bytes]]:
        node = self.node(logical, level)
        first = max(bisect.bisect_right(node.keys, key) - 1, 0)
        for index in range(first, len(node.keys)):
            # Keys that do not ascend would let the same nodes be walked again and again.
            if node.keys[index] < least or (index > first and node.keys[index] <= node.keys[index - 1]):
                raise GuestError(f"tree node at {logical:#x}: its keys do not ascend")
            least = node.keys[index]
            if not level:
                yield least, node.item(index)
                continue
            yield from self._walk(node.places[index][0], level - 1, key, least)

    def item(self, root: tuple[int, int], key: Key) -> bytes | None:
        """Return the item of exactly this key, None if there is none."""
        for found, item in self.walk(root, key):
            if found == key:
                return item
            if found > key:
                break
        return None

    def items(self, root: tuple[int, int], objectid: int, kind: int) -> Iterator[tuple[int, bytes]]:
        """Yield offset and bytes of all items of one kind of an object."""
        for key, item in self.walk(root, (objectid, kind, 0)):
            if key[:2] > (objectid, kind):
                return
            if key[:2] == (objectid, kind):
                yield key[2], item
