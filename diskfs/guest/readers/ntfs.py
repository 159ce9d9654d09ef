"""NTFS by libfsntfs. Names are matched without regard to case; system files ($MFT ...) are not listed.

Boot sector and $Volume are read here as well: MS-FSCC and the layout in the Linux kernel's fs/ntfs3/ntfs.h.
Little-endian.
"""

import collections

import pyfsntfs

from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestEntry
from diskfs.guest.readers.device import Device, DeviceFile
from diskfs.guest.readers.reader import MAX_TARGET, Reader, Superblock

ATTRIBUTE_REPARSE_POINT = 0x400
EPOCH = 11_644_473_600
"""Seconds from 1601 to 1970."""

MAX_BITMAP = 64 << 20
"""Bytes of $Bitmap that are read to count what is free: 2 TiB at 4 KiB to a cluster."""

FIRST_USER_RECORD = 16
"""File records before this one are the system's own."""

MAX_ENTRIES_KEPT = 64
"""File records that the library keeps open."""

VOLUME_RECORD = 3
VOLUME_INFORMATION = 0x70
IS_DIRTY = 0x0001


class NtfsReader(Reader[str]):
    """NTFS; a node is a path without links, with backslashes."""

    def __init__(self, device: Device) -> None:
        boot = device.read_at(0, 512)
        sector_size = int.from_bytes(boot[11:13], "little")
        self._volume = pyfsntfs.volume()
        self._volume.open_file_object(DeviceFile(device))
        self._cluster_size = int(self._volume.get_cluster_block_size())
        self._entries: collections.OrderedDict[str, pyfsntfs.file_entry] = collections.OrderedDict()
        state = set()
        if _volume_flags(device, boot) & IS_DIRTY:
            state.add("unclean")
        if self.child("\\", "hiberfil.sys"):
            entry = self._entry("\\hiberfil.sys")
            if entry.size >= 4 and entry.read_buffer_at_offset(4, 0).lower() == b"hibr":
                state.add("hibernated")
        self.superblock = Superblock(
            self._volume.get_name() or "",
            f"{int.from_bytes(boot[72:80], 'little'):016X}",
            int.from_bytes(boot[40:48], "little") * sector_size,
            frozenset(state),
        )

    def free(self) -> int | None:
        entry = self._volume.get_file_entry_by_path("\\$Bitmap")
        if entry is None or entry.size > MAX_BITMAP:
            return None
        clusters = self.superblock.size // self._cluster_size
        free = 0
        for offset in range(0, min(entry.size, -(-clusters // 8)), 1 << 20):
            data = entry.read_buffer_at_offset(min(1 << 20, entry.size - offset), offset)
            bits = int.from_bytes(data, "little")
            count = min(len(data) * 8, clusters - offset * 8)
            free += count - (bits & ((1 << count) - 1)).bit_count()
        return free * self._cluster_size

    def root(self) -> str:
        return "\\"

    def child(self, folder: str, name: str) -> str | None:
        # Below a file the library finds an index that is none.
        if "\\" in name or not self._entry(folder).has_directory_entries_index():
            return None
        path = f"{folder.rstrip(chr(92))}\\{name}"
        return path if self._volume.get_file_entry_by_path(path) is not None else None

    def children(self, folder: str, limit: int) -> list[tuple[str, str]]:
        entry = self._entry(folder)
        found: list[tuple[str, str]] = []
        for index in range(entry.number_of_sub_file_entries):
            child = entry.get_sub_file_entry(index)
            name = child.name
            if name in {None, ".", ".."} or (
                folder == "\\" and child.file_reference & 0xFFFFFFFFFFFF < FIRST_USER_RECORD
            ):
                continue
            found.append((name, f"{folder.rstrip(chr(92))}\\{name}"))
            if len(found) >= limit:
                break
        return found

    def describe(self, node: str, name: str) -> GuestEntry:
        entry = self._entry(node)
        kind, target = FileKind.FILE, ""
        leads = entry.symbolic_link_target if entry.file_attribute_flags & ATTRIBUTE_REPARSE_POINT else None
        if leads is not None:
            if len(leads) > MAX_TARGET:
                raise GuestError(f"{node}: the link's target has {len(leads)} characters, over {MAX_TARGET}")
            kind, target = FileKind.LINK, _unix_target(leads)
        elif entry.has_directory_entries_index():
            kind = FileKind.FOLDER
        size = entry.size if kind is FileKind.FILE else 0
        mtime = max(0, entry.get_modification_time_as_integer() // 10_000_000 - EPOCH)
        return GuestEntry(entry.name or name, kind, size, 0, target, mtime)

    def read_at(self, node: str, offset: int, length: int) -> bytes:
        return bytes(self._entry(node).read_buffer_at_offset(length, offset)) if length else b""

    def _entry(self, path: str) -> "pyfsntfs.file_entry":
        entry = self._entries.get(path)
        if entry is None:
            entry = self._volume.get_file_entry_by_path(path)
            if entry is None:
                raise GuestError(f"{path}: it cannot be found again")
            self._entries[path] = entry
            if len(self._entries) > MAX_ENTRIES_KEPT:
                self._entries.popitem(last=False)
        return entry


def _unix_target(target: str) -> str:
    r"""Turn `\??\C:\Users` into `/Users`: whatever its letter, the drive is taken for this one."""
    target = target.removeprefix("\\??\\")
    if target[1:2] == ":":
        target = "\\" + target[2:].lstrip("\\")
    return target.replace("\\", "/")


def _volume_flags(device: Device, boot: bytes) -> int:
    """Return the flags in $VOLUME_INFORMATION of $Volume; 0 where its record is not as expected."""
    sector_size, per_cluster = int.from_bytes(boot[11:13], "little"), boot[13]
    cluster_size = sector_size * (per_cluster if per_cluster <= 128 else 1 << (256 - per_cluster))
    size = boot[64] * cluster_size if boot[64] < 128 else 1 << (256 - boot[64])
    if not 512 <= size <= 65536:
        return 0
    offset = int.from_bytes(boot[48:56], "little") * cluster_size + VOLUME_RECORD * size
    record = device.read_up_to(offset, size)
    at = int.from_bytes(record[20:22], "little")
    while at + 24 <= len(record):
        kind, length = int.from_bytes(record[at : at + 4], "little"), int.from_bytes(record[at + 4 : at + 8], "little")
        if kind == VOLUME_INFORMATION and not record[at + 8]:
            content = at + int.from_bytes(record[at + 20 : at + 22], "little")
            return int.from_bytes(record[content + 10 : content + 12], "little")
        if kind == 0xFFFFFFFF or length < 16:
            break
        at += length
    return 0


def open_reader(kind: str, device: Device, subvolume: int | None) -> Reader[str]:
    """Open a file system of this module's; raises as readers do."""
    del kind, subvolume
    return NtfsReader(device)
