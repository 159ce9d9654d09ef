"""What is inside a disk, as everything that looks into it sees it: volumes, file systems and their files.

Paths are absolute, `/`-separated, inside one file system; nothing leads out of its root, and no link does. Names that
are not UTF-8 carry their odd bytes as surrogate escapes.
"""

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from diskfs.guest.errors import GuestError
from diskfs_formats.source import ByteSource

MAX_ENTRIES = 65536
"""Entries of one folder that are listed; a folder that has more is refused by name."""

MAX_LINKS = 40
"""Links followed on the way to one file, as many as Linux follows."""

MAX_PATH = 4096
"""Bytes of a path, links filled in, as many as Linux takes."""


class FileKind(enum.Enum):
    """What a name in a folder stands for."""

    FILE = "file"
    FOLDER = "folder"
    LINK = "link"
    OTHER = "other"
    """Devices, pipes, sockets."""


@dataclass(frozen=True, slots=True)
class GuestEntry:
    """One name in a folder. `size` is in bytes; `mode` has the permission bits, 0 where the file system has none."""

    name: str
    kind: FileKind
    size: int
    mode: int
    target: str = ""
    """Where a link leads, as it is written in it."""
    mtime: int = 0
    """Seconds since 1970, UTC; 0 if unknown."""
    uid: int = 0


class GuestFiles(Protocol):
    """One file system, read-only. Calls may come from several threads and are answered one at a time.

    Every method raises GuestError for what is damaged, too large, too slow or not read, and what the disk raises if
    its bytes cannot be had. File names are matched as the file system matches them: NTFS and FAT ignore case.
    """

    @property
    def kind(self) -> str:
        """`ext4`, `xfs`, `btrfs`, `ntfs`, `vfat` ... as `diskfs.guest.filesystems` names them."""
        ...

    @property
    def label(self) -> str:
        """The volume's name, or nothing."""
        ...

    @property
    def uuid(self) -> str:
        """As blkid writes it: lower case with hyphens, `1234-ABCD` for FAT, 16 hexadecimal digits for NTFS."""
        ...

    @property
    def size(self) -> int:
        """Bytes, by the file system's own word."""
        ...

    @property
    def free(self) -> int | None:
        """Bytes that are free, or None if the file system does not tell cheaply."""
        ...

    @property
    def volume(self) -> str:
        """Where it lies: `disk0p1`, `disk0` (no partition table), `disk0p2:vg/lv`."""
        ...

    @property
    def state(self) -> frozenset[str]:
        """Remarks, such as `needs-journal-recovery`, `unclean`, `errors`, `hibernated`."""
        ...

    def entry(self, path: str, *, follow: bool = True) -> GuestEntry | None:
        """Describe what is at `path`; None if there is nothing.

        Links on the way are followed inside this root, the last one only with `follow`; a link that leads nowhere is
        None, links in a circle are a GuestError.
        """
        ...

    def entries(self, path: str) -> tuple[GuestEntry, ...]:
        """List a folder by name, without `.` and `..`; GuestError if it is none or has over `MAX_ENTRIES`."""
        ...

    def read(self, path: str, *, limit: int) -> bytes:
        """Return a whole file; GuestError if there is none or it is longer than `limit` bytes."""
        ...

    def open(self, path: str) -> ByteSource:
        """Return a file to be read in places: only what is touched is read. Closing it is not needed."""
        ...


@dataclass(frozen=True, slots=True)
class Volume:
    """A part of a disk that can hold a file system, and what it holds."""

    name: str
    """`disk0p1`, `disk0` for a disk without partition table, `disk0p2:vg/lv` for a logical volume."""
    disk_index: int
    partition: int | None
    """The partition's number in its table; for a logical volume that of its first physical volume."""
    offset: int
    """Bytes from the start of the disk; of a logical volume, the place of its first piece."""
    size: int
    """Bytes."""
    filesystem: str | None
    """What is there by the name that `diskfs.guest.filesystems` gives it, None if nothing is known."""
    files: GuestFiles | None = None
    """The files, where the file system is one that is read and could be opened."""
    problem: str = ""
    """Why there are no files: encrypted, damaged, not read; nothing for swap, empty space and the like."""


def normalised(path: str) -> tuple[str, ...]:
    """Return the names of an absolute path, without empty ones and `.`; raises GuestError for a path that is none."""
    if not path.startswith("/"):
        raise GuestError(f"{path!r} is not an absolute path")
    return split_path(path)


def split_path(path: str) -> tuple[str, ...]:
    """Return the names of a path, without empty ones and `.`; raises GuestError where it is too long."""
    if len(path) > MAX_PATH:
        raise GuestError(f"a path of {len(path)} characters is over the limit of {MAX_PATH}: {path[:60]!r}...")
    return tuple(name for name in path.split("/") if name not in {"", "."})


def find(path: str, volumes: Iterable[Volume]) -> list[GuestFiles]:
    """Return the file systems among `volumes` that have something at `path`; those that fail are left out."""
    found = []
    for volume in volumes:
        if volume.files is None:
            continue
        try:
            if volume.files.entry(path) is not None:
                found.append(volume.files)
        except GuestError:
            continue
    return found
