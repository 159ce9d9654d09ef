"""Btrfs, read-only: one device, all of its subvolumes, plain and compressed extents.

Layout: Btrfs documentation, dev/On-disk-format.rst; Linux, include/uapi/linux/btrfs_tree.h. Little-endian; addresses
in trees are logical and lead through the chunks to the device. Read are the profiles single, DUP and one copy of
RAID1; the others are refused by name. A log tree is not replayed: it is told as a state.
"""

import dataclasses
import itertools
import struct
from collections.abc import Iterator
from typing import TypeAlias

import google_crc32c

from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestEntry
from diskfs.guest.readers.btrfs_compression import MAX_COMPRESSED, ZSTD, unpacked
from diskfs.guest.readers.btrfs_trees import CSUM_TYPE_CRC32C, Key, Trees
from diskfs.guest.readers.device import Device
from diskfs.guest.readers.reader import MAX_TARGET, Reader, Superblock, hyphened, kind_of_mode, text

SUPERBLOCK = 0x10000
MAGIC = b"_BHRfS_M"

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

INLINE, PREALLOCATED = 0, 2
EXTENT = struct.Struct("<QQBBHB")
EXTENT_PLACE = struct.Struct("<QQQQ")
DIRECTORY = struct.Struct("<QBQQHHB")

MAX_NAME = 255
MAX_ROOT_ITEMS = 1000
"""Items of the root tree that are looked at for a subvolume; those of one stand together."""
MAX_SUBVOLUMES = 64
"""Subvolumes of the top folder that are looked into for a system."""

SYSTEM_FILES = ("/etc/os-release", "/etc/fstab")
"""What makes a subvolume one that a machine may start from."""

Node: TypeAlias = tuple[int, int]
"""A subvolume's number and an inode's in it."""


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
            data = unpacked(compression, item[EXTENT.size :], ram_bytes, self._trees.sector_size)[:ram_bytes]
            return max(start, first), data[max(first - start, 0) : max(end - start, 0)]
        place, stored, skip, count = EXTENT_PLACE.unpack_from(item, EXTENT.size)
        low, high = max(start, first), min(start + count, end)
        if kind == PREALLOCATED or not place or low >= high:
            return low, b""
        inside = skip + low - start
        if compression:
            if stored > MAX_COMPRESSED:
                raise GuestError(f"extent of a file at {start:#x}: {stored} bytes stored, over {MAX_COMPRESSED}")
            data = unpacked(compression, self._trees.read(place, stored), ram_bytes, self._trees.sector_size)
            return low, data[inside : inside + high - low].ljust(high - low, b"\0")
        if skip + count > stored:
            raise GuestError(f"extent of a file at {start:#x}: {count} bytes from {skip} of {stored}")
        return low, self._trees.read(place + inside, high - low)

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
