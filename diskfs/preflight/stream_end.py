"""Whether the file of a stream-optimized VMDK whose grain tables come first reaches to its last grain.

Such a file (qemu-img writes them) has no footer that a cut would take away, so the tables have to tell. They are some
0.006 % of the disk's size. Virtual Disk Format 5.0, "Grain Directory and Grain Tables", "Markers".
"""

from diskfs_formats.errors import TruncatedImage
from diskfs_formats.source import ByteSource
from diskfs_formats.vmdk.header import SECTOR, read_header
from diskfs_formats.vmdk.sparse import open_directory, read_table

MAX_TABLES = 1 << 14
"""Tables that are looked at: 512 GiB in grains of 64 KiB, 32 MiB of tables. Of a larger disk, the last ones."""
_MARKER_SIZE = 12
"""Bytes of a grain marker before its data: u64 lba, u32 size."""


def check_last_grain(source: ByteSource) -> None:
    """Raise TruncatedImage if the file ends before its last grain does, and another ImageError for damaged tables."""
    header = read_header(source)
    directory = open_directory(source, header, header.gd_offset, "grain directory")
    last = 0
    for number in range(max(0, header.table_count - MAX_TABLES), header.table_count):
        entry = directory[number]
        if entry:
            last = max(last, max(read_table(source, header, number, entry * SECTOR), default=0))
    offset = last * SECTOR
    if not offset:
        return
    size = _MARKER_SIZE
    if offset + size <= source.size:
        size += int.from_bytes(source.read_at(offset + 8, 4), "little")
    if offset + size > source.size:
        raise TruncatedImage(
            f"the last grain, at offset {offset:#x}, needs {size} bytes, and the file ends at {source.size:#x}: it is "
            "incomplete"
        )
