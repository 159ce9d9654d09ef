"""ext2, ext3, ext4, FAT and exFAT by The Sleuth Kit (pytsk3).

The superblocks are read here: the library keeps label, state and free space to itself. Layout of ext's superblock:
Linux, Documentation/filesystems/ext4/super.rst. FAT: Microsoft, FAT File System Specification 1.03; exFAT: exFAT file
system specification. All little-endian.
"""

import codecs
import collections
from typing import Any

import pytsk3

from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestEntry
from diskfs.guest.readers.device import Device
from diskfs.guest.readers.reader import MAX_TARGET, Reader, Superblock, hyphened, text

EXT_TYPES = {
    "ext2": pytsk3.TSK_FS_TYPE_EXT2,
    "ext3": pytsk3.TSK_FS_TYPE_EXT3,
    "ext4": pytsk3.TSK_FS_TYPE_EXT4,
}

# s_state of ext
EXT_CLEAN = 1
EXT_ERRORS = 2
INCOMPAT_RECOVER = 0x4
INCOMPAT_64BIT = 0x80
INCOMPAT_ENCRYPT = 0x10000

KINDS = {
    pytsk3.TSK_FS_META_TYPE_REG: FileKind.FILE,
    pytsk3.TSK_FS_META_TYPE_DIR: FileKind.FOLDER,
    pytsk3.TSK_FS_META_TYPE_LNK: FileKind.LINK,
}
VIRTUAL = frozenset({pytsk3.TSK_FS_NAME_TYPE_VIRT, pytsk3.TSK_FS_NAME_TYPE_VIRT_DIR})
"""Names that only the library has, such as `$OrphanFiles`."""

LABEL_SUFFIX = b"(Volume Label Entry)"
ALLOCATED = int(pytsk3.TSK_FS_NAME_FLAG_ALLOC)

MAX_FOLDERS = 16
"""Folders whose names are kept."""

codecs.lookup("cp437")  # loaded now: later the child opens no file


class SleuthImage(pytsk3.Img_Info):  # type: ignore[misc]  # the library has no types
    """A device as the library wants it."""

    def __init__(self, device: Device) -> None:
        self._device = device
        super().__init__(url="", type=pytsk3.TSK_IMG_TYPE_EXTERNAL)

    def read(self, offset: int, length: int) -> bytes:
        # An exception that crosses the library ends as one that says nothing; too few bytes are an error to it as well.
        try:
            return self._device.read_up_to(offset, length)
        except OSError:
            return b""

    def get_size(self) -> int:
        return self._device.size

    def close(self) -> None:
        pass


class SleuthReader(Reader[int]):
    """A file system by the library; a node is an inode's number."""

    ignore_case = False

    def __init__(self, device: Device, type_id: object) -> None:
        self._image = SleuthImage(device)
        self._fs = pytsk3.FS_Info(self._image, 0, type_id)
        self._root = int(self._fs.info.root_inum)
        self._folders: collections.OrderedDict[int, dict[str, int]] = collections.OrderedDict()

    def root(self) -> int:
        return self._root

    def child(self, folder: int, name: str) -> int | None:
        names = self._folders.get(folder)
        if names is None:
            if self._meta(folder).type != pytsk3.TSK_FS_META_TYPE_DIR:
                return None
            names = {self._key(name): inode for name, inode in self._listed(folder, None)}
            self._folders[folder] = names
            if len(self._folders) > MAX_FOLDERS:
                self._folders.popitem(last=False)
        return names.get(self._key(name))

    def children(self, folder: int, limit: int) -> list[tuple[str, int]]:
        return self._listed(folder, limit)

    def describe(self, node: int, name: str) -> GuestEntry:
        meta = self._meta(node)
        kind = KINDS.get(meta.type, FileKind.OTHER)
        target = ""
        if kind is FileKind.LINK:
            if meta.size > MAX_TARGET:
                raise GuestError(f"{name}: the link's target has {meta.size} bytes, over the limit of {MAX_TARGET}")
            # The library keeps the targets that are in the inode; longer ones are contents like those of a file.
            target = text(meta.link or self.read_at(node, 0, int(meta.size)))
        size = int(meta.size) if kind in {FileKind.FILE, FileKind.LINK} else 0
        return GuestEntry(name, kind, size, self._mode(meta), target, max(0, int(meta.mtime)), int(meta.uid))

    def read_at(self, node: int, offset: int, length: int) -> bytes:
        if not length:
            return b""
        data = self._fs.open_meta(inode=node).read_random(offset, length)
        return bytes(data)

    def _key(self, name: str) -> str:
        return name.casefold() if self.ignore_case else name

    def _mode(self, meta: Any) -> int:
        return int(meta.mode) & 0o7777

    def _meta(self, node: int) -> Any:
        meta = self._fs.open_meta(inode=node).info.meta
        if meta is None:
            raise GuestError(f"inode {node} cannot be read")
        return meta

    def _listed(self, folder: int, limit: int | None) -> list[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        for entry in self._fs.open_dir(inode=folder):
            name = entry.info.name
            if name is None or name.type in VIRTUAL or not int(name.flags) & ALLOCATED:
                continue
            if name.name in {b".", b".."} or not name.name or self._is_special(name):
                continue
            found.append((text(name.name), int(name.meta_addr)))
            if limit is not None and len(found) >= limit:
                break
        return found

    def _is_special(self, name: Any) -> bool:
        del name
        return False

    def _volume_label(self) -> str:
        """Return the name in the root folder of FAT and exFAT, which the library lists as if it were a file."""
        for entry in self._fs.open_dir(inode=self._root):
            name = entry.info.name
            if name is not None and name.name.endswith(LABEL_SUFFIX) and int(name.flags) & ALLOCATED:
                return text(name.name.removesuffix(LABEL_SUFFIX).rstrip())
        return ""


class ExtReader(SleuthReader):
    """ext2, ext3 and ext4. The journal is not replayed: what it holds is told as a state."""

    def __init__(self, device: Device, kind: str) -> None:
        data = device.read_at(1024, 1024)
        incompat = _u32(data, 0x60)
        if incompat & INCOMPAT_ENCRYPT:
            # Only folders that have a key are encrypted; names and contents of others are plain.
            pass
        block_size = 1024 << min(_u32(data, 0x18), 6)
        blocks, free = _u32(data, 0x04), _u32(data, 0x0C)
        if incompat & INCOMPAT_64BIT:
            blocks |= _u32(data, 0x150) << 32
            free |= _u32(data, 0x158) << 32
        if not blocks or free > blocks:
            raise GuestError(f"superblock at 0x400: {free} free blocks of {blocks}")
        state = set()
        if incompat & INCOMPAT_RECOVER:
            state.add("needs-journal-recovery")
        flags = int.from_bytes(data[0x3A:0x3C], "little")
        if not flags & EXT_CLEAN:
            state.add("unclean")
        if flags & EXT_ERRORS:
            state.add("errors")
        self._free = free * block_size
        self.superblock = Superblock(
            text(data[0x78:0x88].split(b"\0")[0]), hyphened(data[0x68:0x78]), blocks * block_size, frozenset(state)
        )
        super().__init__(device, EXT_TYPES[kind])

    def free(self) -> int:
        return self._free


class FatReader(SleuthReader):
    """FAT12, FAT16 and FAT32. Case is ignored; there are no modes and no links."""

    ignore_case = True

    def __init__(self, device: Device) -> None:
        boot = device.read_at(0, 512)
        sector_size = int.from_bytes(boot[11:13], "little")
        sectors = int.from_bytes(boot[19:21], "little") or _u32(boot, 32)
        fat_sectors = int.from_bytes(boot[22:24], "little")
        is_fat32 = not fat_sectors
        fat_sectors = fat_sectors or _u32(boot, 36)
        reserved, fats, per_cluster = int.from_bytes(boot[14:16], "little"), boot[16], boot[13]
        root_sectors = -(-int.from_bytes(boot[17:19], "little") * 32 // max(sector_size, 1))
        clusters = (sectors - reserved - fats * fat_sectors - root_sectors) // max(per_cluster, 1)
        if sector_size not in {512, 1024, 2048, 4096} or not per_cluster or clusters < 0:
            raise GuestError(
                f"boot sector: {sectors} sectors of {sector_size} bytes, {per_cluster} to a cluster, hold no FAT"
            )
        tail = 0x40 if is_fat32 else 0x24
        serial, label = boot[tail + 3 : tail + 7][::-1].hex().upper(), boot[tail + 7 : tail + 18]
        self._device = device
        self._fat = (reserved * sector_size, fat_sectors * sector_size, clusters, per_cluster * sector_size)
        self._bits = 32 if is_fat32 else 12 if clusters < 4085 else 16
        types = {12: pytsk3.TSK_FS_TYPE_FAT12, 16: pytsk3.TSK_FS_TYPE_FAT16, 32: pytsk3.TSK_FS_TYPE_FAT32}
        super().__init__(device, types[self._bits])
        # The boot sector's name is only a copy from when the file system was made.
        name = self._volume_label() or label.rstrip().decode("cp437")
        self.superblock = Superblock(
            "" if name == "NO NAME" else name, f"{serial[:4]}-{serial[4:]}", sectors * sector_size
        )

    def free(self) -> int | None:
        """Count the free entries of the first FAT, which the number in FSInfo only repeats when all is well."""
        start, size, clusters, cluster_size = self._fat
        if self._bits == 12 or (clusters + 2) * self._bits // 8 > min(size, MAX_COUNTED):
            return None
        table = self._device.read_at(start, (clusters + 2) * self._bits // 8)
        if self._bits == 16:
            return sum(1 for entry in memoryview(table).cast("H")[2:] if not entry) * cluster_size
        return sum(1 for entry in memoryview(table).cast("I")[2:] if not entry & 0x0FFFFFFF) * cluster_size

    def _mode(self, meta: Any) -> int:
        del meta
        return 0

    def _is_special(self, name: Any) -> bool:
        return bool(name.name.endswith(LABEL_SUFFIX))


MAX_COUNTED = 8 << 20
"""Bytes of a FAT that are read to count what is free: 64 GiB at 32 KiB to a cluster."""


class ExfatReader(SleuthReader):
    """exFAT: case is ignored; there are no modes and no links."""

    ignore_case = True

    def __init__(self, device: Device) -> None:
        boot = device.read_at(0, 512)
        if not 9 <= boot[108] <= 12:
            raise GuestError(f"boot sector: BytesPerSectorShift is {boot[108]}, expected 9 to 12")
        serial = boot[100:104][::-1].hex().upper()
        super().__init__(device, pytsk3.TSK_FS_TYPE_EXFAT)
        size = int.from_bytes(boot[72:80], "little") << boot[108]
        self.superblock = Superblock(self._volume_label(), f"{serial[:4]}-{serial[4:]}", size)

    def _mode(self, meta: Any) -> int:
        del meta
        return 0

    def _is_special(self, name: Any) -> bool:
        return bool(name.name.startswith(b"$") or name.name.endswith(LABEL_SUFFIX))


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def open_reader(kind: str, device: Device, subvolume: int | None) -> Reader[int]:
    """Open a file system of this module's; raises as readers do."""
    del subvolume
    if kind == "vfat":
        return FatReader(device)
    return ExfatReader(device) if kind == "exfat" else ExtReader(device, kind)
