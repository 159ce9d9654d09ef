"""The examination behind `diskfs overlay-check`: every structure of an overlay, without the source."""

from collections.abc import Iterator
from contextlib import ExitStack

from diskfs.disks.overlay.block_map import BlockMap
from diskfs.disks.overlay.data_file import segment_sizes
from diskfs.disks.overlay.layout import (
    ABSENT,
    BLOCKS_PER_PAGE,
    HEADER_SIZE,
    IndexHeader,
    parse_header,
    parse_page,
)
from diskfs.disks.overlay.names import data_name, index_name
from diskfs.disks.overlay.storage import Storage, StoredFile
from diskfs.errors import DamagedOverlay, NewerOverlay, NotAnOverlay
from diskfs_formats.findings import Finding, Severity

MAX_FINDINGS = 1000
"""Of one disk: what is wrong all over is not listed in full."""
_RESTORE = "restore the overlay's folder from a copy, or drop the changes with diskfs rollback"


def check_disk(storage: Storage, header: IndexHeader, name: str) -> Iterator[Finding]:
    """Examine the files of one disk; raises OSError if they cannot be read."""
    with ExitStack() as closing:
        index: StoredFile | None = None
        place = f"{name}/{index_name(header.disk)}"
        try:
            index = storage.open(index_name(header.disk), write=False)
            closing.callback(index.close)
            yield from _check_header(index, header, place)
        except FileNotFoundError:
            yield _damage("overlay-index-missing", f"{place}: it is missing")
        sizes = segment_sizes(header.virtual_size)
        missing = 0
        for number, size in enumerate(sizes):
            data_place = f"{name}/{data_name(header.disk, number)}"
            try:
                file = storage.open(data_name(header.disk, number), write=False)
            except FileNotFoundError:
                yield _damage("overlay-data-missing", f"{data_place}: it is missing")
                missing += 1
                if missing >= MAX_FINDINGS:
                    break
                continue
            found = file.size()
            file.close()
            if found != size:
                yield _damage("overlay-data-size", f"{data_place}: it has {found} bytes, expected {size}")
        if index is not None and index.size() == header.file_size:
            yield from _check_pages(index, header, place)


def _check_header(index: StoredFile, header: IndexHeader, place: str) -> Iterator[Finding]:
    if (found_size := index.size()) != header.file_size:
        yield _damage("overlay-index-size", f"{place}: it has {found_size} bytes, expected {header.file_size}")
    try:
        found = parse_header(index.read_at(0, HEADER_SIZE), place)
    except (DamagedOverlay, NotAnOverlay, NewerOverlay) as error:
        yield _damage("overlay-index-header", str(error))
        return
    if found != header:
        yield _damage(
            "overlay-index-foreign",
            f"{place}: it is of disk {found.disk} of overlay {found.overlay_id}, expected disk {header.disk} of "
            f"{header.overlay_id}, or of other sizes",
        )


def _check_pages(index: StoredFile, header: IndexHeader, place: str) -> Iterator[Finding]:
    block_map = BlockMap(index, header, place)
    seen = set()
    damaged = 0
    past = header.block_count - (header.page_count - 1) * BLOCKS_PER_PAGE
    for number, sector in block_map.stored_pages():
        seen.add(number)
        try:
            states = parse_page(sector, header.overlay_id.bytes, number, place)
            if number == header.page_count - 1 and states[past:].count(ABSENT) != BLOCKS_PER_PAGE - past:
                raise DamagedOverlay(f"{place}: page {number}: a block past the end of the disk has a state")
        except DamagedOverlay as error:
            yield _damage("overlay-index-page", str(error))
            damaged += 1
    try:
        for number in block_map.guards.all_pages():
            if number not in seen:
                yield _damage("overlay-index-page", str(block_map.guards.lost(number)))
                damaged += 1
            if damaged >= MAX_FINDINGS:
                return
    except DamagedOverlay as error:
        yield _damage("overlay-index-guard", str(error))


def _damage(rule: str, message: str) -> Finding:
    return Finding(rule, Severity.ERROR, message, _RESTORE)
