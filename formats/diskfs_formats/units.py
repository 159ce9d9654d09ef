"""Checking every stored unit of a disk, whatever its format."""

from collections.abc import Iterator

from diskfs_formats.bulk import without_file_holes
from diskfs_formats.errors import DiskfsError
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.mapped import MappedImage

STEP = 4 << 20
"""Bytes of the disk that are read at once: 64 grains of 64 KiB are enough for every core, and larger units come singly,
so that memory does not grow with them."""
MAX_FINDINGS = 1000
"""Damaged units or tables that are named; a disk with more is damaged as a whole."""


def check_units(image: MappedImage, rule: str) -> Iterator[Finding]:
    """Read and decode every stored unit of `image`; yield one finding for each that fails.

    Reads each stored byte once. Ends with a finding that says so after MAX_FINDINGS.
    """
    return limited(_damaged(image, rule), image.name, rule)


def limited(findings: Iterator[Finding], name: str, rule: str) -> Iterator[Finding]:
    """Yield at most MAX_FINDINGS, then one that says that there may be more."""
    for count, finding in enumerate(findings, 1):
        yield finding
        if count == MAX_FINDINGS:
            yield Finding(rule, Severity.ERROR, f"{name}: {MAX_FINDINGS} findings of this kind; stopped here")
            return


def _damaged(image: MappedImage, rule: str) -> Iterator[Finding]:
    batch: list[Extent] = []
    size = 0
    for extent in _walk(image, rule):
        if isinstance(extent, Finding):
            yield from _read(image, batch, rule)
            batch, size = [], 0
            yield extent
        elif extent.kind is ExtentKind.DATA and extent.stored is not None:
            if extent.stored.decode is None:
                yield from _plain(image, extent, rule)
                continue
            if batch and size + extent.length > STEP:
                yield from _read(image, batch, rule)
                batch, size = [], 0
            batch.append(extent)
            size += extent.length
    yield from _read(image, batch, rule)


def _walk(image: MappedImage, rule: str) -> Iterator[Extent | Finding]:
    """Yield the map; a part that cannot be looked up becomes a finding and is passed over unit by unit."""
    offset = 0
    step = image.info.unit_size or STEP
    while offset < image.size:
        try:
            extent = image.lookup(offset)
        except DiskfsError as error:
            yield Finding(rule, Severity.ERROR, str(error))
            offset += step - offset % step
            continue
        yield extent
        offset = extent.end


def _plain(image: MappedImage, extent: Extent, rule: str) -> Iterator[Finding]:
    """Read what is stored as it is, but for long holes of the file: there is nothing that could not be read."""
    try:
        parts = [part for part in without_file_holes((extent,)) if part.kind is ExtentKind.DATA]
    except DiskfsError:
        parts = [extent]
    for part in parts:
        for offset in range(part.offset, part.end, STEP):
            try:
                image.read_at(offset, min(STEP, part.end - offset))
            except DiskfsError as error:
                yield Finding(rule, Severity.ERROR, str(error))


def _read(image: MappedImage, batch: list[Extent], rule: str) -> Iterator[Finding]:
    """Read neighbouring units together; where that fails, one by one to name the damaged ones."""
    at = 0
    while at < len(batch):
        end = at + 1
        while end < len(batch) and batch[end].offset == batch[end - 1].end:
            end += 1
        first, last = batch[at], batch[end - 1]
        try:
            image.read_at(first.offset, last.end - first.offset)
        except DiskfsError:
            for extent in batch[at:end]:
                try:
                    image.read_at(extent.offset, extent.length)
                except DiskfsError as error:
                    yield Finding(rule, Severity.ERROR, str(error))
        at = end
