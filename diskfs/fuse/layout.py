"""What the mount shows: the same names for every source, so that scripts need not look first."""

import itertools
import json
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any

from diskfs.disks.opening import OpenedDisk, OpenedSource
from diskfs.disks.partitions import partition_slices
from diskfs.fuse.tree import Directory, Entry, File, Tree
from diskfs.guest.description import describe_disk
from diskfs_formats.driver import DiskImage
from diskfs_formats.extents import ExtentKind
from diskfs_formats.source import ByteSource, MemorySource
from diskfs_formats.text import printable

EXTENTS_COUNTED = 250_000
"""Extents of the map that are looked at for a file's allocated size, about a second's worth; the rest counts as
allocated as far as it goes on."""


def build_tree(opened: OpenedSource) -> Tree:
    """Return the tree of a source: its disks, their partitions and descriptions, and `source/`."""
    entries: list[Entry] = []
    for disk in opened.disks:
        entries.extend(_disk_entries(opened, disk))
    entries.append(Directory("source", _folders(opened.members)))
    return Tree.build(entries)


def allocated_bytes(image: DiskImage) -> int:
    """Return how many bytes of the disk are stored as data, by its map; looks at a bounded part of it."""
    total = 0
    end = 0
    for extent in itertools.islice(image.extents(), EXTENTS_COUNTED):
        end = extent.end
        if extent.kind is ExtentKind.DATA:
            total += extent.length
    return total + image.size - end


def _disk_entries(opened: OpenedSource, disk: OpenedDisk) -> Iterable[Entry]:
    name = f"disk{disk.index}"
    description: dict[str, Any] = {"source": opened.name, "container": opened.container, **describe_disk(disk)}
    text = json.dumps(description, indent=2, ensure_ascii=True) + "\n"
    if disk.opened is not None:
        yield _file(f"{name}.raw", disk.opened)
        table, _ = disk.partitions
        if table is not None:
            for partition, part in partition_slices(disk.opened, table, name):
                yield _file(f"{name}p{partition.number}.raw", part)
    yield File(f"{name}.json", MemorySource(text.encode(), f"{name}.json"))


def _file(name: str, image: DiskImage) -> File:
    return File(name, image, lambda: allocated_bytes(image))


def _folders(members: Iterable[tuple[str, ByteSource]]) -> tuple[Entry, ...]:
    """Arrange members by the folders in their names; control characters in names are shown escaped."""
    root: dict[str, Any] = {}
    for name, content in members:
        *folders, last = (printable(part, 200) for part in PurePosixPath(name).parts)
        place = root
        for folder in folders:
            inner = place.setdefault(folder, {})
            place = inner if isinstance(inner, dict) else place
        place.setdefault(last, File(last, content))
    return _entries(root)


def _entries(place: dict[str, Any]) -> tuple[Entry, ...]:
    return tuple(
        Directory(name, _entries(inner)) if isinstance(inner, dict) else inner for name, inner in place.items()
    )
