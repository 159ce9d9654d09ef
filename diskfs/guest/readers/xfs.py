"""XFS by libfsxfs. The superblock is read here: the library keeps UUID, state and free space to itself.

Layout: XFS Algorithms & Data Structures, 3rd edition, `xfs_dsb`. Big-endian.
"""

import collections
import stat

import pyfsxfs

from diskfs.guest.errors import GuestError
from diskfs.guest.files import MAX_ENTRIES, FileKind, GuestEntry
from diskfs.guest.readers.device import Device, DeviceFile
from diskfs.guest.readers.reader import MAX_TARGET, Reader, Superblock, hyphened, kind_of_mode, text
from diskfs.guest.readers.xfs_log import needs_replay

INCOMPAT_NEEDSREPAIR = 0x10

BLOCK_SIZES = tuple(512 << shift for shift in range(8))
REMOTE_LINK_MAGIC = "XSLM"
REMOTE_LINK_HEADER = 56

MAX_FOLDERS = 16
"""Folders whose names are kept."""

MAX_ENTRIES_KEPT = 64
"""Inodes that the library keeps open."""


class XfsReader(Reader[int]):
    """XFS; a node is an inode number."""

    def __init__(self, device: Device) -> None:
        data = device.read_at(0, 512)
        block_size, blocks = int.from_bytes(data[4:8], "big"), int.from_bytes(data[8:16], "big")
        free = int.from_bytes(data[144:152], "big")
        if free > blocks or block_size not in BLOCK_SIZES:
            raise GuestError(f"superblock: {free} free blocks of {blocks}, each of {block_size} bytes")
        self._device = device
        self._block_size = block_size
        state = set()
        if (
            int.from_bytes(data[100:102], "big") & 0xF == 5
            and int.from_bytes(data[216:220], "big") & INCOMPAT_NEEDSREPAIR
        ):
            state.add("errors")
        if data[126]:
            state.add("unclean")  # sb_inprogress: mkfs did not end
        if needs_replay(device, *_log(data, block_size)):
            state.add("needs-journal-recovery")
        self._free = free * block_size
        self.superblock = Superblock(
            text(data[108:120].split(b"\0")[0]), hyphened(data[32:48]), blocks * block_size, frozenset(state)
        )
        self._volume = pyfsxfs.volume()
        self._volume.open_file_object(DeviceFile(device))
        self._root = int.from_bytes(data[56:64], "big")
        self._folders: collections.OrderedDict[int, dict[str, int]] = collections.OrderedDict()
        self._entries: collections.OrderedDict[int, pyfsxfs.file_entry] = collections.OrderedDict()

    def free(self) -> int:
        return self._free

    def root(self) -> int:
        return self._root

    def child(self, folder: int, name: str) -> int | None:
        names = self._folders.get(folder)
        if names is None:
            entry = self._entry(folder)
            if not stat.S_ISDIR(entry.file_mode):
                return None
            # Looking up one name in the library reads the inodes of all that are before it.
            names = dict(self.children(folder, MAX_ENTRIES + 1))
            if len(names) > MAX_ENTRIES:
                raise GuestError(f"the folder of {name} has over {MAX_ENTRIES} entries")
            self._folders[folder] = names
            if len(self._folders) > MAX_FOLDERS:
                self._folders.popitem(last=False)
        return names.get(name)

    def children(self, folder: int, limit: int) -> list[tuple[str, int]]:
        entry = self._entry(folder)
        children = map(entry.get_sub_file_entry, range(min(entry.number_of_sub_file_entries, limit)))
        return [(child.name, child.inode_number) for child in children]

    def describe(self, node: int, name: str) -> GuestEntry:
        entry = self._entry(node)
        kind = kind_of_mode(entry.file_mode)
        target = ""
        if kind is FileKind.LINK:
            if entry.size > MAX_TARGET:
                raise GuestError(f"{name}: the link's target has {entry.size} bytes, over the limit of {MAX_TARGET}")
            target = entry.symbolic_link_target
            if target.startswith(REMOTE_LINK_MAGIC):
                target = text(self._remote_target(entry))
        size = entry.size if kind in {FileKind.FILE, FileKind.LINK} else 0
        mtime = entry.get_modification_time_as_integer() // 1_000_000_000
        return GuestEntry(name, kind, size, entry.file_mode & 0o7777, target, mtime, entry.owner_identifier)

    def read_at(self, node: int, offset: int, length: int) -> bytes:
        return bytes(self._entry(node).read_buffer_at_offset(length, offset)) if length else b""

    def _remote_target(self, entry: "pyfsxfs.file_entry") -> bytes:
        """Return a target that has blocks of its own, each with a header, which the library takes for the target."""
        target = b""
        for index in range(min(entry.number_of_extents, MAX_TARGET // BLOCK_SIZES[0])):
            offset, size, _ = entry.get_extent(index)
            for at in range(0, min(size, 2 * MAX_TARGET), self._block_size):
                block = self._device.read_at(offset + at, self._block_size)
                count = int.from_bytes(block[8:12], "big")
                if block[:4] != REMOTE_LINK_MAGIC.encode() or len(target) >= entry.size:
                    return target
                target += block[REMOTE_LINK_HEADER : REMOTE_LINK_HEADER + count]
        return target[: entry.size]

    def _entry(self, inode: int) -> "pyfsxfs.file_entry":
        entry = self._entries.get(inode)
        if entry is None:
            entry = self._entries[inode] = self._volume.get_file_entry_by_inode(inode)
            if len(self._entries) > MAX_ENTRIES_KEPT:
                self._entries.popitem(last=False)
        return entry


def _log(superblock: bytes, block_size: int) -> tuple[int, int]:
    """Return place and size of the log, in bytes; none for one on another device."""
    start, blocks = int.from_bytes(superblock[48:56], "big"), int.from_bytes(superblock[96:100], "big")
    # A block's number has that of its allocation group above `sb_agblklog` bits.
    group, inside = start >> superblock[124], start & ((1 << superblock[124]) - 1)
    group_blocks = int.from_bytes(superblock[84:88], "big")
    return (group * group_blocks + inside) * block_size, blocks * block_size if start else 0


def open_reader(kind: str, device: Device, subvolume: int | None) -> Reader[int]:
    """Open a file system of this module's; raises as readers do."""
    del kind, subvolume
    return XfsReader(device)
