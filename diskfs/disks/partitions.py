"""Partitions as disks of their own: windows that shift the map as well as the bytes."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskfs_formats.driver import DiskImage, ImageInfo
from diskfs_formats.extents import Extent, shifted
from diskfs_formats.reading import ready_reader
from diskfs_formats.source import Buffer, require_range

if TYPE_CHECKING:
    from diskfs_formats.partitions import Partition, PartitionTable


class DiskSlice:
    """A DiskImage over `size` bytes of a disk from `offset`. Closing it leaves the disk open.

    Raises OutOfRange if the window does not lie inside the disk. As thread-safe as the disk.
    """

    def __init__(self, disk: DiskImage, offset: int, size: int, name: str) -> None:
        require_range(disk, offset, size)
        self._disk = disk
        self._offset = offset
        self._size = size
        self._name = name
        self._info = dataclasses.replace(disk.info, virtual_size=size)
        self._read_if_ready = ready_reader(disk)

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    @property
    def info(self) -> ImageInfo:
        """What the disk's image says, with the window's size."""
        return self._info

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return self._disk.read_at(self._offset + offset, length)

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        require_range(self, offset, length)
        return self._read_if_ready(self._offset + offset, length)

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self._size - offset if length is None else length
        require_range(self, offset, length)
        return (shifted(extent, -self._offset) for extent in self._disk.extents(self._offset + offset, length))

    def close(self) -> None:
        pass


def partition_slices(disk: DiskImage, table: "PartitionTable", prefix: str) -> "list[tuple[Partition, DiskSlice]]":
    """Return the partitions that have content, in the table's order, as disks named `<prefix>p<number>`.

    Left out are extended partitions, those without a sector, and those that begin past the end of the disk; one that
    runs past the end is cut there. The table's findings name all of these but the first.
    """
    slices = []
    for partition in table.partitions:
        size = min(partition.size, disk.size - partition.offset)
        if size > 0 and not partition.is_container:
            name = f"{prefix}p{partition.number}"
            slices.append((partition, DiskSlice(disk, partition.offset, size, name)))
    return slices
