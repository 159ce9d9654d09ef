"""Partition tables: MBR with logical partitions, and GPT.

`table.py` is what a table says, `mbr.py` and `gpt.py` are the two schemes, `detection.py` tells them apart.
"""

from typing import TYPE_CHECKING

from diskfs_formats.partitions.ends import DiskEnds
from diskfs_formats.source import ByteSource

if TYPE_CHECKING:
    from diskfs_formats.partitions.table import Partition, PartitionTable

__all__ = ["Partition", "PartitionTable", "read_partition_table"]

_BOOT_SIGNATURE = b"\x55\xaa"
_BOOT_SIGNATURE_OFFSET = 510


def read_partition_table(disk: ByteSource, *, sector_size: int | None = None) -> "PartitionTable | None":
    """Return the disk's partition table, or None if it has none (a blank disk, a file system on the bare disk).

    Without `sector_size`, a GPT tells it by its place, and an MBR alone means 512. Raises what the disk raises if
    LBA 0 cannot be read; everything else that is damaged or cannot be read becomes a finding. Costs one read for an
    MBR and one for each EBR, two for a GPT of the usual size.
    """
    if disk.size < _BOOT_SIGNATURE_OFFSET + len(_BOOT_SIGNATURE):
        return None
    ends = DiskEnds(disk)
    if ends.read(_BOOT_SIGNATURE_OFFSET, len(_BOOT_SIGNATURE)) != _BOOT_SIGNATURE and sector_size is None:
        return None
    # Both schemes begin with that signature. What follows is slow to load, and many a disk has no table.
    from diskfs_formats.partitions.detection import detect_partition_table  # noqa: PLC0415

    return detect_partition_table(ends, sector_size)


def __getattr__(name: str) -> object:
    if name in {"Partition", "PartitionTable"}:
        from diskfs_formats.partitions import table  # noqa: PLC0415 - as above

        return getattr(table, name)
    raise AttributeError(name)
