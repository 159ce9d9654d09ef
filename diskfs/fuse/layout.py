"""What the mount shows: the same names for every source, so that scripts need not look first."""

import itertools
import json
import time
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from diskfs.disks.opening import OpenedDisk, OpenedSource
from diskfs.disks.partitions import partition_slices
from diskfs.fuse.tree import Directory, Entry, File, Tree
from diskfs.guest.description import FilesystemLooks, describe_disk
from diskfs_formats.driver import DiskImage
from diskfs_formats.extents import ExtentKind
from diskfs_formats.source import ByteSource, MemorySource
from diskfs_formats.text import printable

SIZING_SECONDS = 1.0
"""What finding out the allocated sizes of all files of a mount may take; whoever lists a folder waits for it."""
_FIRST_WINDOW = 4 << 20
_SHORT, _LONG = 0.002, 0.02
MAX_DEPTH = 32
"""Folders in each other that `source/` shows; a tar may hold any number."""
MAX_NAME = 240
"""Bytes of a name in `source/`, with room left to tell two names apart."""


class Sizing:
    """Counts allocated bytes by the maps, within one budget of time for all files of a mount.

    What is not looked at in time counts as allocated: an upper bound, which is what an honest guess is.
    """

    def __init__(self, seconds: float = SIZING_SECONDS) -> None:
        self._left = seconds

    def allocated(self, image: DiskImage) -> int:
        """Return how many bytes of the disk are stored as data, as far as the budget reaches."""
        total = offset = 0
        window = _FIRST_WINDOW
        while offset < image.size and self._left > 0:
            # In windows, because the map joins what belongs together before it gives anything out.
            length = min(window, image.size - offset)
            began = time.monotonic()
            total += sum(extent.length for extent in image.extents(offset, length) if extent.kind is ExtentKind.DATA)
            took = time.monotonic() - began
            self._left -= took
            offset += length
            window = window * 2 if took < _SHORT else max(window // 2, _FIRST_WINDOW) if took > _LONG else window
        return total + image.size - offset


def build_tree(opened: OpenedSource) -> Tree:
    """Return the tree of a source: its disks, their partitions and descriptions, and `source/`."""
    entries: list[Entry] = []
    sizing = Sizing()
    looks = FilesystemLooks()
    for disk in opened.disks:
        entries.extend(_disk_entries(opened, disk, sizing, looks))
    entries.append(Directory("source", _folders(opened.members)))
    return Tree.build(entries)


def _disk_entries(opened: OpenedSource, disk: OpenedDisk, sizing: Sizing, looks: FilesystemLooks) -> Iterable[Entry]:
    name = f"disk{disk.index}"
    description: dict[str, Any] = {"source": opened.name, "container": opened.container, **describe_disk(disk, looks)}
    text = json.dumps(description, indent=2, ensure_ascii=True) + "\n"
    if disk.opened is not None:
        yield _file(f"{name}.raw", disk.opened, sizing)
        table, _ = disk.partitions
        if table is not None:
            for partition, part in partition_slices(disk.opened, table, name):
                yield _file(f"{name}p{partition.number}.raw", part, sizing)
    yield File(f"{name}.json", MemorySource(text.encode(), f"{name}.json"))


def _file(name: str, image: DiskImage, sizing: Sizing) -> File:
    return File(name, image, lambda: sizing.allocated(image))


class _Folder:
    """A folder of `source/` while it is put together; every entry gets a name of its own, and none is lost."""

    def __init__(self) -> None:
        self.files: list[tuple[str, ByteSource]] = []
        self.folders: dict[str, _Folder] = {}

    def entries(self) -> tuple[Entry, ...]:
        taken: set[str] = set()
        found: list[Entry] = [File(_shown(name, taken), content) for name, content in self.files]
        found.extend(Directory(_shown(name, taken), folder.entries()) for name, folder in self.folders.items())
        return tuple(found)


def _folders(members: Iterable[tuple[str, ByteSource]]) -> tuple[Entry, ...]:
    """Arrange members by the folders in their names."""
    root = _Folder()
    for name, content in members:
        *folders, last = PurePosixPath(name).parts or (name,)
        place = root
        for folder in folders[:MAX_DEPTH]:
            place = place.folders.setdefault(folder, _Folder())
        place.files.append((last, content))
    return root.entries()


def _shown(name: str, taken: set[str]) -> str:
    """Return a name that shows control characters escaped, is not too long, and is not taken; and take it."""
    shown = printable(name).encode("utf-8", "surrogateescape")[:MAX_NAME].decode("utf-8", "ignore") or "_"
    unique = shown
    for number in itertools.count(1):
        if unique not in taken:
            break
        unique = f"{shown}~{number}"
    taken.add(unique)
    return unique
