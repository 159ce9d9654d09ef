"""Which source, disk or partition a command works on."""

import argparse

from diskfs.cli.options import remote_options
from diskfs.disks.opening import OpenedSource, open_source
from diskfs.disks.partitions import partition_slices
from diskfs_formats.driver import DiskImage
from diskfs_formats.errors import UnknownFormat


def open_from(options: argparse.Namespace) -> OpenedSource:
    """Open the source that the options of `add_source` name; raises DiskfsError."""
    return open_source(
        options.source,
        format_name=options.format,
        parents=options.parent,
        allow_missing_parent=options.allow_missing_parent,
        remote=remote_options(options),
    )


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
