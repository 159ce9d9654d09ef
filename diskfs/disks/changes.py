"""What an overlay changes: ranges of a disk, told apart by the partition that they lie in."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from diskfs.disks.opening import OpenedDisk
from diskfs.disks.overlay import OverlayDisk
from diskfs.disks.partitions import partition_slices
from diskfs_formats.extents import ExtentKind

WRITTEN, DISCARDED = "written", "discarded"


@dataclass(frozen=True, slots=True)
class ChangedRange:
    """Bytes of the disk from `offset`, `kind` written or discarded, inside one partition or outside of all (None)."""

    offset: int
    length: int
    kind: str
    partition: int | None
    partition_offset: int | None
    """Where the range begins in the partition."""


@dataclass(slots=True)
class Changed:
    """How many bytes of an area were written and discarded."""

    written: int = 0
    discarded: int = 0

    def add(self, change: ChangedRange) -> None:
        """Count a range."""
        if change.kind == WRITTEN:
            self.written += change.length
        else:
            self.discarded += change.length


@dataclass(frozen=True, slots=True)
class Area:
    """A partition as the table has it now, or with `number` None what belongs to no partition."""

    number: int | None
    offset: int = 0
    size: int = 0
    changed: Changed = field(default_factory=Changed)


def areas_of(disk: OpenedDisk) -> list[Area]:
    """Return the partitions of a disk with its changes, by offset. Where two overlap, the first has the bytes."""
    table, _ = disk.partitions
    if table is None or disk.opened is None:
        return []
    slices = partition_slices(disk.opened, table, "")
    return sorted(
        (Area(partition.number, partition.offset, part.size) for partition, part in slices),
        key=lambda area: (area.offset, area.size),
    )


def changed_ranges(disk: OverlayDisk, areas: list[Area]) -> Iterator[ChangedRange]:
    """Yield what the overlay holds, ascending, cut at the borders of partitions.

    An overlay keeps whole blocks: a range may begin before and end after the bytes that were written, by less than one.
    """
    for extent in disk.changes():
        if extent.kind is ExtentKind.HOLE:
            continue
        kind = WRITTEN if extent.kind is ExtentKind.DATA else DISCARDED
        offset, end = extent.offset, extent.offset + extent.length
        for area in areas:
            if area.offset + area.size <= offset:
                continue
            if area.offset >= end:
                break
            if area.offset > offset:
                yield ChangedRange(offset, area.offset - offset, kind, None, None)
                offset = area.offset
            stop = min(end, area.offset + area.size)
            yield ChangedRange(offset, stop - offset, kind, area.number, offset - area.offset)
            offset = stop
        if offset < end:
            yield ChangedRange(offset, end - offset, kind, None, None)
