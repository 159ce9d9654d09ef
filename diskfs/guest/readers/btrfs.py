"""Btrfs, read-only: one device, all of its subvolumes, plain and compressed extents.

Layout: Btrfs documentation, dev/On-disk-format.rst; Linux, include/uapi/linux/btrfs_tree.h. Little-endian; addresses
in trees are logical and lead through the chunks to the device. Read are the profiles single, DUP and one copy of
RAID1; the others are refused by name. A log tree is not replayed: it is told as a state.
"""

import bisect
import collections
import dataclasses
import itertools
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import TypeAlias

import google_crc32c

from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestEntry
from diskfs.guest.readers import lzo
from diskfs.guest.readers.device import Device
from diskfs.guest.readers.reader import MAX_TARGET, Reader, Superblock, hyphened, kind_of_mode, text

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SUPERBLOCK = 0x10000
MAGIC = b"_BHRfS_M"
CSUM_TYPE_CRC32C = 0

ROOT_TREE_DIR = 6
FS_TREE = 5
FIRST_FREE = 256
LAST_FREE = (1 << 64) - 256
FIRST_INODE = 256

INODE_ITEM = 1
DIR_ITEM = 84
DIR_INDEX = 96
EXTENT_DATA = 108
ROOT_ITEM = 132
ROOT_REF = 156
CHUNK_ITEM = 228

INLINE, PREALLOCATED = 0, 2
NO_COMPRESSION, ZLIB, LZO, ZSTD = range(4)
MAX_COMPRESSED = 128 << 10
"""Bytes that one compressed extent holds, packed or not."""

ZSTD_LIMITS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 17}
"""Frames are made with windows of at most 128 KiB."""

RAID_NAMES = {8: "RAID0", 0x40: "RAID10", 0x80: "RAID5", 0x100: "RAID6"}
INCOMPAT_EXTENT_TREE_V2 = 1 << 13
INCOMPAT_RAID_STRIPE_TREE = 1 << 14
INCOMPAT_REMAP_TREE = 1 << 17
INCOMPAT_KNOWN = 0x1FFF
"""Features that change nothing of what is read here, or are handled: up to ZONED."""

HEADER_SIZE = 0x65
KEY = struct.Struct("<QBQ")
ITEM = struct.Struct("<QBQII")
POINTER = struct.Struct("<QBQQQ")
CHUNK = struct.Struct("<QQQQIIIHH")
STRIPE = struct.Struct("<QQ16s")
EXTENT = struct.Struct("<QQBBHB")
EXTENT_PLACE = struct.Struct("<QQQQ")
DIRECTORY = struct.Struct("<QBQQHHB")

MAX_LEVEL = 8
MAX_NODES = 256
"""Tree nodes that are kept."""

MAX_CHUNKS = 65536
MAX_NAME = 255
MAX_ROOT_ITEMS = 1000
"""Items of the root tree that are looked at for a subvolume; those of one stand together."""
MAX_SUBVOLUMES = 64
"""Subvolumes of the top folder that are looked into for a system."""

SYSTEM_FILES = ("/etc/os-release", "/etc/fstab")
"""What makes a subvolume one that a machine may start from."""

Key: TypeAlias = tuple[int, int, int]
Node: TypeAlias = tuple[int, int]
"""A subvolume's number and an inode's in it."""


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


class BtrfsReader(Reader[Node]):
    """Btrfs. The root is the default subvolume, as mounting without an option has it, or the one that is asked for."""

    def __init__(self, device: Device, subvolume: int | None = None) -> None:
        data = device.read_at(SUPERBLOCK, 4096)
        if data[0x40:0x48] != MAGIC:
            raise GuestError(f"superblock at {SUPERBLOCK:#x}: its signature is missing")
        if int.from_bytes(data[0xC4:0xC6], "little") == CSUM_TYPE_CRC32C:
            found, stored = google_crc32c.value(data[32:]), int.from_bytes(data[:4], "little")
            if found != stored:
                raise GuestError(
                    f"superblock at {SUPERBLOCK:#x}: its CRC-32C is {stored:#010x}, expected {found:#010x}"
                )
        total, used = struct.unpack_from("<QQ", data, 0x70)
        devices = int.from_bytes(data[0x88:0x90], "little")
        state = set()
        if any(data[0x60:0x68]):
            state.add("needs-journal-recovery")
        if devices != 1:
            state.add("several-devices")
        self._free: int = max(0, total - used)
        self.superblock = Superblock(
            text(data[0x12B : 0x12B + 256].split(b"\0")[0]), hyphened(data[0x20:0x30]), total, frozenset(state)
        )
        self._trees = Trees(device, data)
        self._root_tree = (int.from_bytes(data[0x50:0x58], "little"), data[0xC6])
        self._roots: dict[int, tuple[int, int]] = {}
        self._subvolume = self._default() if subvolume is None else subvolume
        self._tree(self._subvolume)
        if self._has_subvolumes():
            self.superblock = dataclasses.replace(self.superblock, state=frozenset({*state, "subvolumes"}))

    def _has_subvolumes(self) -> bool:
        """Tell whether there is a tree of files besides the top level's."""
        items = self._trees.walk(self._root_tree, (FIRST_INODE, ROOT_ITEM, 0))
        for (number, kind, _), _ in itertools.islice(items, MAX_ROOT_ITEMS):
            # Trees of the file system's own have negative numbers.
            if kind == ROOT_ITEM and FIRST_INODE <= number < 1 << 63:
                return True
        return False

    def free(self) -> int:
        return self._free

    def systems(self) -> list[tuple[int, str]]:
        """Return number and path of the subvolumes in the top folder that hold a system and are not the root here."""
        top = BtrfsReader.__new__(BtrfsReader)
        top.__dict__ = self.__dict__ | {"_subvolume": FS_TREE}
        found = []
        if self._subvolume != FS_TREE and _holds_system(top):
            found.append((FS_TREE, ""))
        count = 0
        for _, item in self._trees.items(self._tree(FS_TREE), FIRST_INODE, DIR_INDEX):
            for (number, kind, _), name, _ in _directory(item):
                if kind != ROOT_ITEM or number == self._subvolume:
                    continue
                count += 1
                if count > MAX_SUBVOLUMES:
                    return found
                inside = BtrfsReader.__new__(BtrfsReader)
                inside.__dict__ = self.__dict__ | {"_subvolume": number}
                if _holds_system(inside):
                    found.append((number, name))
        return found

    def root(self) -> Node:
        return self._subvolume, FIRST_INODE

    def child(self, folder: Node, name: str) -> Node | None:
        subvolume, inode = folder
        digest = _hash(name)
        item = self._trees.item(self._tree(subvolume), (inode, DIR_ITEM, digest))
        for location, found, _ in _directory(item or b""):
            if found == name:
                return self._at(subvolume, location)
        return None

    def children(self, folder: Node, limit: int) -> list[tuple[str, Node]]:
        subvolume, inode = folder
        found: list[tuple[str, Node]] = []
        for _, item in self._trees.items(self._tree(subvolume), inode, DIR_INDEX):
            found += [(name, self._at(subvolume, location)) for location, name, _ in _directory(item)]
            if len(found) >= limit:
                break
        return found

    def describe(self, node: Node, name: str) -> GuestEntry:
        item = self._trees.item(self._tree(node[0]), (node[1], INODE_ITEM, 0))
        if item is None or len(item) < 160:
            raise GuestError(f"{name}: inode {node[1]} of subvolume {node[0]} is not there")
        size = int.from_bytes(item[16:24], "little")
        uid, _, mode = struct.unpack_from("<III", item, 44)
        kind = kind_of_mode(mode)
        target = ""
        if kind is FileKind.LINK:
            if size > MAX_TARGET:
                raise GuestError(f"{name}: the link's target has {size} bytes, over the limit of {MAX_TARGET}")
            target = text(self.read_at(node, 0, size))
        if kind not in {FileKind.FILE, FileKind.LINK}:
            size = 0
        return GuestEntry(name, kind, size, mode & 0o7777, target, int.from_bytes(item[136:144], "little"), uid)

    def read_at(self, node: Node, offset: int, length: int) -> bytes:
        out = bytearray(length)
        end = offset + length
        for key, item in self._trees.walk(self._tree(node[0]), (node[1], EXTENT_DATA, offset)):
            if key[:2] < (node[1], EXTENT_DATA):
                continue
            if key[:2] > (node[1], EXTENT_DATA) or key[2] >= end:
                break
            start, data = self._extent(key[2], item, offset, end)
            if data:
                out[start - offset : start - offset + len(data)] = data
        return bytes(out)

    def _extent(self, start: int, item: bytes, first: int, end: int) -> tuple[int, bytes]:
        """Return the part of an extent between `first` and `end`, and where it begins; nothing for a hole."""
        _, ram_bytes, compression, encryption, other, kind = EXTENT.unpack_from(item)
        if encryption or other or compression > ZSTD:
            raise GuestError(
                f"extent of a file at {start:#x}: compression {compression}, encoding {encryption}, {other}"
            )
        if compression and ram_bytes > MAX_COMPRESSED:
            raise GuestError(f"extent of a file at {start:#x}: {ram_bytes} compressed bytes, over {MAX_COMPRESSED}")
        if kind == INLINE:
            data = self._unpacked(compression, item[EXTENT.size :], ram_bytes)[:ram_bytes]
            return max(start, first), data[max(first - start, 0) : max(end - start, 0)]
        place, stored, skip, count = EXTENT_PLACE.unpack_from(item, EXTENT.size)
        low, high = max(start, first), min(start + count, end)
        if kind == PREALLOCATED or not place or low >= high:
            return low, b""
        inside = skip + low - start
        if compression:
            if stored > MAX_COMPRESSED:
                raise GuestError(f"extent of a file at {start:#x}: {stored} bytes stored, over {MAX_COMPRESSED}")
            data = self._unpacked(compression, self._trees.read(place, stored), ram_bytes)
            return low, data[inside : inside + high - low].ljust(high - low, b"\0")
        if skip + count > stored:
            raise GuestError(f"extent of a file at {start:#x}: {count} bytes from {skip} of {stored}")
        return low, self._trees.read(place + inside, high - low)

    def _unpacked(self, compression: int, data: bytes, size: int) -> bytes:
        try:
            if compression == ZLIB:
                return zlib.decompressobj().decompress(data, size)
            if compression == ZSTD:
                return bytes(zstd.ZstdDecompressor(options=ZSTD_LIMITS).decompress(data, size))
        except (zlib.error, zstd.ZstdError) as error:
            raise GuestError(f"a compressed extent is damaged: {error}") from error
        return self._unpacked_lzo(data, size) if compression == LZO else data

    def _unpacked_lzo(self, data: bytes, size: int) -> bytes:
        """Unpack segments, each of a sector; a length never crosses the end of a sector."""
        total = min(int.from_bytes(data[:4], "little"), len(data))
        out = bytearray()
        at = 4
        while at + 4 <= total and len(out) < size:
            if -at % self._trees.sector_size < 4 and at % self._trees.sector_size:
                at += -at % self._trees.sector_size
            length = int.from_bytes(data[at : at + 4], "little")
            at += 4
            if not length or at + length > total:
                raise GuestError(f"a compressed extent is damaged: a segment of {length} bytes at {at} of {total}")
            out += lzo.decompress(data[at : at + length], self._trees.sector_size)
            at += length
        return bytes(out)

    def _at(self, subvolume: int, location: Key) -> Node:
        number, kind, _ = location
        return (number, FIRST_INODE) if kind == ROOT_ITEM else (subvolume, number)

    def _default(self) -> int:
        item = self._trees.item(self._root_tree, (ROOT_TREE_DIR, DIR_ITEM, _hash("default")))
        for location, name, _ in _directory(item or b""):
            if name == "default" and location[1] == ROOT_ITEM:
                return int(location[0])
        return FS_TREE

    def _tree(self, subvolume: int) -> tuple[int, int]:
        """Return place and level of a subvolume's tree."""
        root = self._roots.get(subvolume)
        if root is None:
            for _, item in self._trees.items(self._root_tree, subvolume, ROOT_ITEM):
                if len(item) < 239 or (subvolume != FS_TREE and not FIRST_FREE <= subvolume <= LAST_FREE):
                    raise GuestError(f"subvolume {subvolume}: its root item has {len(item)} bytes")
                root = int.from_bytes(item[176:184], "little"), item[238]
            if root is None:
                raise GuestError(f"subvolume {subvolume} is not there")
            self._roots[subvolume] = root
        return root


def _hash(name: str) -> int:
    """Return the hash of a name: CRC-32C from 1's complement, without the usual inversions."""
    return ~int(google_crc32c.extend(1, name.encode("utf-8", "surrogateescape"))) & 0xFFFFFFFF


def _directory(item: bytes) -> Iterator[tuple[Key, str, int]]:
    """Yield the entries of one directory item: location, name, type."""
    at = 0
    while at + DIRECTORY.size <= len(item):
        objectid, kind, offset, _, data_length, name_length, file_type = DIRECTORY.unpack_from(item, at)
        at += DIRECTORY.size
        if not 0 < name_length <= MAX_NAME or at + name_length > len(item):
            raise GuestError(f"a directory item has a name of {name_length} bytes in {len(item)}")
        yield (objectid, kind, offset), text(item[at : at + name_length]), file_type
        at += name_length + data_length


def _holds_system(reader: BtrfsReader) -> bool:
    return any(reader.find(path, follow=False) is not None for path in SYSTEM_FILES)


def open_reader(kind: str, device: Device, subvolume: int | None) -> Reader[Node]:
    """Open a file system of this module's; raises as readers do."""
    del kind
    return BtrfsReader(device, subvolume)
