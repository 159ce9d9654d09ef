"""What `diskfs verify` examines in a dynamic or differencing VHD: every block, and what the bitmaps hide."""

from array import array
from collections.abc import Iterator

from diskfs_formats.errors import DiskfsError
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.units import STEP, check_units, limited
from diskfs_formats.vhd.footer import SECTOR
from diskfs_formats.vhd.image import UNUSED, DifferencingImage, DynamicImage

MAX_SLOTS = 1 << 22
"""Blocks that a file may have room for if they are to be compared with each other: 8 TiB in blocks of 2 MiB."""


def check_blocks(image: DynamicImage, file_size: int) -> Iterator[Finding]:
    """Yield a finding for every block that cannot be read, shares its place, or holds data that its bitmap denies."""
    yield from check_units(image, "vhd-block")
    yield from limited(_overlaps(image, file_size), image.name, "vhd-block-overlap")
    yield from _cut_block(image, file_size)
    if not isinstance(image, DifferencingImage):
        yield from limited(_denied_data(image), image.name, "vhd-sector-bitmap")


def _overlaps(image: DynamicImage, file_size: int) -> Iterator[Finding]:
    """Compare the places of all blocks in one pass.

    The file is divided into slots of a block's length. Two blocks that begin in one slot overlap, and a block can
    overlap none but those of the slots beside its own.
    """
    length = image.bitmap_size + image.block_size
    slots = -(-file_size // length)
    if slots > MAX_SLOTS:
        yield Finding(
            "vhd-block-overlap",
            Severity.INFO,
            f"{image.name}: there is room for over {MAX_SLOTS} blocks; whether any of them overlap was not examined",
        )
        return
    first_sector = array("I", [UNUSED]) * slots
    holder = array("I", [0]) * slots
    for number, offset in image.allocated_blocks():
        slot = offset // length
        if slot >= slots:
            continue  # past the end of the file, and so found already
        for near in range(max(slot - 1, 0), min(slot + 2, slots)):
            taken = first_sector[near]
            if taken != UNUSED and abs(taken * SECTOR - offset) < length:
                yield Finding(
                    "vhd-block-overlap",
                    Severity.ERROR,
                    f"{image.name}: blocks {holder[near]} and {number} lie over each other, at offsets "
                    f"{taken * SECTOR:#x} and {offset:#x}",
                    "at most one of them has its own data",
                )
                break
        if first_sector[slot] == UNUSED:
            first_sector[slot], holder[slot] = offset // SECTOR, number


def _cut_block(image: DynamicImage, file_size: int) -> Iterator[Finding]:
    """Find a last block that is stored only as far as the disk reaches: it can be read, but QEMU refuses the file."""
    number = (image.size - 1) // image.block_size
    offset = image.block_offset(number)
    if offset is None:
        return
    data_offset = offset + image.bitmap_size
    end = data_offset + image.block_size
    if end > file_size >= data_offset + image.size - number * image.block_size:
        yield Finding(
            "vhd-last-block",
            Severity.WARNING,
            f"{image.name}: block {number}, the last, ends at {end:#x}, past the end of the file at {file_size:#x}; "
            "the disk's part of it is there",
        )


def _denied_data(image: DynamicImage) -> Iterator[Finding]:
    """Find data in sectors of a dynamic disk that their bitmap says were never written."""
    for number, offset in image.allocated_blocks():
        try:
            place = image.place(number, offset // SECTOR)
            sector = _denied_sector(image, number, place)
        except DiskfsError:
            continue  # found already, by reading it
        if sector is not None:
            yield Finding(
                "vhd-sector-bitmap",
                Severity.WARNING,
                f"{image.name}: block {number} at offset {place:#x}: sector {sector} holds data, and the block's "
                "bitmap says that it was never written; it is read, while some programs show zeros",
            )


def _denied_sector(image: DynamicImage, number: int, place: int) -> int | None:
    """Return the first sector of the block that its bitmap denies and that, with those around it, is not zero."""
    bitmap = image.read_bitmap(number, place)
    start = number * image.block_size
    sector = 0
    while sector < bitmap.count:
        is_written, end = bitmap.run(sector)
        while not is_written and sector < end:
            count = min(end - sector, STEP // SECTOR)
            data = image.read_at(start + sector * SECTOR, count * SECTOR)
            zeros = len(data) - len(data.lstrip(b"\0"))
            if zeros < len(data):
                return sector + zeros // SECTOR
            sector += count
        sector = end
    return None
