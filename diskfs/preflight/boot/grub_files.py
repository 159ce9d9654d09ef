"""Every grub.cfg, grub.conf and menu.lst on the disks: the import compares those of one name."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diskfs.guest.errors import GuestError
from diskfs.guest.files import FileKind, GuestFiles, Volume
from diskfs.preflight.linux.grub_menu import is_stub

NAMES = ("grub.cfg", "grub.conf", "menu.lst")
START_FOLDERS = ("/boot", "/grub", "/grub2", "/EFI", "/efi", "/etc")
SUBVOLUMES = ("/@", "/@rootfs", "/root")
SKIPPED = frozenset({"fonts", "locale", "themes", "i386-pc", "x86_64-efi", "i386-efi", "entries"})
MAX_DEPTH = 5
MAX_FOLDERS = 200
MAX_FILES = 32
"""Configurations of one file system that are compared."""
MAX_SIZE = 4 << 20


@dataclass(frozen=True, slots=True)
class GrubFile:
    """One configuration; `digest` tells equal ones. A stub only leads to another configuration."""

    name: str
    path: str
    volume: str
    size: int
    digest: str
    is_stub: bool

    def __str__(self) -> str:
        return f"{self.path} on {self.volume}"


def find_grub_files(volumes: Sequence[Volume]) -> list[GrubFile]:
    """Return the configurations on all file systems, links left out; file systems that fail are left out."""
    found = []
    for volume in volumes:
        if volume.files is None or volume.filesystem == "ntfs":
            continue
        try:
            for path in itertools.islice(_paths(volume.files), MAX_FILES):
                source = volume.files.open(path)
                data = source.read_at(0, min(source.size, MAX_SIZE))
                name = path.rpartition("/")[2]
                found.append(
                    GrubFile(name, path, volume.name, source.size, hashlib.sha256(data).hexdigest(), is_stub(data))
                )
        except GuestError:
            continue
    return found


def _paths(files: GuestFiles) -> Iterator[str]:
    prefixes = ["", *(SUBVOLUMES if files.kind == "btrfs" else ())]
    todo = [(f"{prefix}{folder}", 0) for prefix in prefixes for folder in START_FOLDERS]
    seen: set[str] = set()
    while todo and len(seen) < MAX_FOLDERS:
        folder, depth = todo.pop(0)
        key = folder.lower() if files.kind == "vfat" else folder
        entry = files.entry(folder, follow=False)
        if key in seen or entry is None or entry.kind is not FileKind.FOLDER:
            continue
        seen.add(key)
        for inner in files.entries(folder):
            path = f"{folder}/{inner.name}"
            if inner.kind is FileKind.FILE and inner.name.lower() in NAMES:
                yield path
            # Of /etc only the folder itself: the configuration that is made there is a link to /boot.
            elif (
                inner.kind is FileKind.FOLDER
                and depth < MAX_DEPTH
                and inner.name not in SKIPPED
                and "/etc" not in folder
            ):
                todo.append((path, depth + 1))
