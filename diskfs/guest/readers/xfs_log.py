"""Whether the log of an XFS still holds changes that its files do not show yet.

Layout: XFS Algorithms & Data Structures, 3rd edition, "Journaling Log". Big-endian; the log is a ring of 512-byte
blocks. Unmounting writes a last record with an unmount operation, so its absence means that the log must be replayed.
"""

from diskfs.guest.readers.device import Device

BLOCK = 512
RECORD_MAGIC = b"\xfe\xed\xba\xbe"
UNMOUNT = 0x20
"""XLOG_UNMOUNT_TRANS, in the flags of an operation's header."""

CYCLE_SIZE = 32 << 10
"""Bytes of a record for which one block of its header keeps the cycles."""

MAX_RECORD_BLOCKS = 2 * (256 << 10) // BLOCK
"""How far before the end of the log its last record can begin: a record has 256 KiB at most."""

VERSION_2 = 2


def needs_replay(device: Device, offset: int, size: int) -> bool:
    """Tell whether the log at `offset` was left without an unmount record. Costs some twenty reads of a block.

    Raises OSError for a log outside the device.
    """
    blocks = size // BLOCK
    if blocks < 2:
        return False
    first = _cycle(device, offset, 0)
    if not first:
        return False  # never written
    # The cycle is the same up to the end of what was written last, and smaller behind it.
    low, high = 0, blocks
    while high - low > 1:
        middle = (low + high) // 2
        if _cycle(device, offset, middle) == first:
            low = middle
        else:
            high = middle
    # Where the ring has just been filled to its end, all is of one cycle, and the last record is before the end.
    for back in range(1, min(MAX_RECORD_BLOCKS, blocks) + 1):
        header = device.read_at(offset + (high - back) % blocks * BLOCK, BLOCK)
        if header[:4] == RECORD_MAGIC:
            return not _is_unmount(device, offset, blocks, (high - back) % blocks, header)
    return True


def _is_unmount(device: Device, offset: int, blocks: int, place: int, header: bytes) -> bool:
    version, h_size = int.from_bytes(header[8:12], "big"), int.from_bytes(header[320:324], "big")
    header_blocks = max(1, -(-min(h_size, 256 << 10) // CYCLE_SIZE)) if version == VERSION_2 else 1
    count = int.from_bytes(header[40:44], "big")
    operation = device.read_at(offset + (place + header_blocks) % blocks * BLOCK, 16)
    return count == 1 and bool(operation[9] & UNMOUNT)


def _cycle(device: Device, offset: int, block: int) -> int:
    """Return the cycle in which a block was written: its first word, or behind the magic of a record."""
    data = device.read_at(offset + block * BLOCK, 8)
    return int.from_bytes(data[4:8] if data[:4] == RECORD_MAGIC else data[:4], "big")
