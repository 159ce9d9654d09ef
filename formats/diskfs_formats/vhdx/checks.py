"""What `diskfs verify` examines in a VHDX beyond what opening does: every BAT entry, and every stored byte."""

from collections.abc import Iterator

from diskfs_formats.findings import Finding, Severity
from diskfs_formats.units import check_units, limited
from diskfs_formats.vhdx.bat import SECTOR_BITMAP_SIZE, State, file_offset_of, state_of
from diskfs_formats.vhdx.image import VhdxImage
from diskfs_formats.vhdx.structures import MIB

_PAGE = 1 << 10
"""MiB of the file that share one number in `_Usage`."""
MAX_PAGES = 1 << 17
"""Of `_Usage`: 128 TiB of the file, twice what the largest disk fills. It bounds the memory for scattered blocks."""


def check_blocks(image: VhdxImage) -> Iterator[Finding]:
    """Yield a finding for each block that shares its place with another, lies where it cannot, or cannot be read."""
    yield from limited(_misplaced(image), image.name, "vhdx-bat")
    yield from check_units(image, "vhdx-block")


def _misplaced(image: VhdxImage) -> Iterator[Finding]:
    bat, usage = image.bat, _Usage()
    for number in range(-(-bat.count // bat.entries_per_page)):
        entries = bat.page(number)
        for index, entry in enumerate(entries, number * bat.entries_per_page) if any(entries) else ():
            if not entry:
                continue
            state, is_bitmap = state_of(entry), bat.is_bitmap(index)
            if is_bitmap and state is not State.NOT_PRESENT:
                finding = _bitmap_finding(image, index, state)
                if finding is not None:
                    yield finding
                    continue
            if state not in (State.FULLY_PRESENT, State.PARTIALLY_PRESENT):
                continue
            offset = file_offset_of(entry)
            if not usage.take(offset, SECTOR_BITMAP_SIZE if is_bitmap else image.info.unit_size):
                yield Finding(
                    "vhdx-bat",
                    Severity.ERROR,
                    f"{image.name}: BAT entry {index}: its block at offset {offset:#x} overlaps another one",
                    "one of the two blocks holds the other's data; compare both with a copy of the disk",
                )
            if usage.is_full:
                yield Finding(
                    "vhdx-bat",
                    Severity.ERROR,
                    f"{image.name}: BAT entry {index}: the blocks so far are scattered over more of the file than the "
                    "largest disk fills; whether the others overlap was not examined",
                )
                return


def _bitmap_finding(image: VhdxImage, index: int, state: State) -> Finding | None:
    """Return what is wrong with a sector bitmap block's entry that is in use."""
    where = f"{image.name}: BAT entry {index}: a sector bitmap block in state {state.value}"
    if not image.info.has_parent:
        # Files with sector bitmaps left over from a merge exist; without a parent they are never looked at.
        return Finding("vhdx-bat", Severity.WARNING, f"{where} on a disk without a parent; it is not used")
    if state is not State.FULLY_PRESENT:
        return Finding("vhdx-bat", Severity.ERROR, f"{where}, expected 0 or {State.FULLY_PRESENT.value}")
    return None


class _Usage:
    """Which MiB of the file hold a block already. Memory follows the blocks there are, up to a bound."""

    def __init__(self) -> None:
        self._pages: dict[int, int] = {}

    @property
    def is_full(self) -> bool:
        """Whether no more should be taken."""
        return len(self._pages) > MAX_PAGES

    def take(self, offset: int, length: int) -> bool:
        """Mark a block's place; return whether all of it was free."""
        is_free = True
        at, end = offset // MIB, (offset + length) // MIB
        while at < end:
            page, bit = divmod(at, _PAGE)
            count = min(end - at, _PAGE - bit)
            wanted = (1 << count) - 1 << bit
            taken = self._pages.get(page, 0)
            is_free = is_free and not taken & wanted
            self._pages[page] = taken | wanted
            at += count
        return is_free
