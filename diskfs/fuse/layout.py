"""What the mount shows: the same names for every source, so that scripts need not look first."""

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from diskfs.disks.opening import OpenedDisk, OpenedSource
from diskfs.disks.partitions import partition_slices
from diskfs.fuse.export import export_folder
from diskfs.fuse.sizing import Sizing
from diskfs.fuse.tree import Directory, Entry, File, Tree
from diskfs.fuse.written import WrittenDisk
from diskfs.guest.description import FilesystemLooks, describe_disk
from diskfs.sources.locations import is_url
from diskfs.sources.statistics import STATISTICS
from diskfs_formats.driver import DiskImage
from diskfs_formats.source import ByteSource, MemorySource
from diskfs_formats.text import printable

MAX_DEPTH = 32
"""Folders in each other that `source/` shows; a tar may hold any number."""
MAX_NAME = 240
"""Bytes of a name in `source/`, with room left to tell two names apart."""


def build_tree(
    opened: OpenedSource, written: Mapping[int, WrittenDisk] | None = None, *, in_place: bool = False
) -> Tree:
    """Return the tree of a source: its disks, their partitions and descriptions, `source/` and `export/`.

    `written` are the disks that can be changed, by index. With any, there is no `export/`: what it lays out over the
    map would change under its readers. An image that is changed `in_place` is not shown in `source/` either: it is its
    own disk.
    """
    entries: list[Entry] = []
    # How much of a disk is allocated is in tables all over the image: too dear to be read from afar for an `ls`.
    sizing = None if is_url(opened.location) else Sizing()
    looks = FilesystemLooks()
    for disk in opened.disks:
        entries.extend(_disk_entries(opened, disk, sizing, looks, (written or {}).get(disk.index)))
    entries.append(Directory("source", _folders([] if in_place else opened.members)))
    if written:
        return Tree.build(entries)
    disks = {f"disk{disk.index}": disk.opened for disk in opened.disks if disk.opened is not None}
    entries.append(export_folder(disks, sizing))
    return Tree.build(entries)


def _disk_entries(
    opened: OpenedSource,
    disk: OpenedDisk,
    sizing: Sizing | None,
    looks: FilesystemLooks,
    written: WrittenDisk | None,
) -> Iterable[Entry]:
    name = f"disk{disk.index}"
    description: dict[str, Any] = {"source": opened.name, "container": opened.container, **describe_disk(disk, looks)}
    # What opening has cost so far; the mount's status has what reading costs.
    description.update(STATISTICS.shown())
    text = json.dumps(description, indent=2, ensure_ascii=True) + "\n"
    if disk.opened is not None:
        yield _file(f"{name}.raw", disk.opened, sizing, written)
        table, _ = disk.partitions
        if table is not None:
            for partition, part in partition_slices(disk.opened, table, name):
                yield _file(f"{name}p{partition.number}.raw", part, sizing, written, partition.offset)
    yield File(f"{name}.json", MemorySource(text.encode(), f"{name}.json"))


def _file(name: str, image: DiskImage, sizing: Sizing | None, written: WrittenDisk | None, offset: int = 0) -> File:
    allocated = None if sizing is None else lambda: sizing.allocated(image)
    return File(name, image, allocated, window=None if written is None else written.window(image, offset))


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
