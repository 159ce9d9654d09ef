"""Which disk or partition of a source a command works on."""

from diskfs.disks.opening import OpenedSource
from diskfs.disks.partitions import partition_slices
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import UnknownFormat


def select(opened: OpenedSource, disk_index: int, partition_number: int | None) -> DiskImage:
    """Return a disk, or one of its partitions; raises DiskfsError if there is no such one."""
    disk = opened.disk(disk_index)
    image = disk.image
    if partition_number is None:
        return image
    table = disk.partition_table
    if table is None:
        raise UnknownFormat(f"{image.name}: the disk has no partition table")
    for partition, part in partition_slices(image, table, f"disk{disk_index}"):
        if partition.number == partition_number:
            return part
    numbers = ", ".join(str(partition.number) for partition in table.partitions) or "none"
    raise UnknownFormat(f"{image.name}: there is no partition {partition_number} to read; the table has {numbers}")
