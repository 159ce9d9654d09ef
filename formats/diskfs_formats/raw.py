"""Raw: the bytes of the disk and nothing else.

There is no specification and no signature, so raw is what an image is when nothing else claims it. Where the source
lies on a file system with holes, the map shows them as ZERO.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from diskfs_formats.driver import DiskImage, ImageInfo, Match, ProbeWindow, RelatedFiles
from diskfs_formats.extents import Extent, ExtentKind, Stored
from diskfs_formats.findings import Finding, Severity
from diskfs_formats.reading import ready_reader
from diskfs_formats.source import ByteSource, SparseSource, require_range

if TYPE_CHECKING:
    from diskfs_formats.writer import LaidOutFile, WriteOptions

SECTOR_SIZE = 512


class RawImage:
    """A source taken as a disk, as it is."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._info = ImageInfo("raw", "raw", source.size, findings=tuple(_findings(source)))
        # Bound once: these two are the hottest calls of a mounted raw image.
        self.read_at = source.read_at
        self.read_if_ready = ready_reader(source)

    @property
    def name(self) -> str:
        return self._source.name

    @property
    def size(self) -> int:
        return self._source.size

    @property
    def info(self) -> ImageInfo:
        return self._info

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        length = self.size - offset if length is None else length
        require_range(self, offset, length)
        if not length:
            return
        if not isinstance(self._source, SparseSource):
            yield Extent(offset, length, ExtentKind.DATA, Stored(self._source, offset, length))
            return
        for start, count, is_data in self._source.data_ranges(offset, length):
            if is_data:
                yield Extent(start, count, ExtentKind.DATA, Stored(self._source, start, count))
            else:
                yield Extent(start, count, ExtentKind.ZERO)

    def close(self) -> None:
        self._source.close()


class RawDriver:
    """Takes anything, after every other driver has said no."""

    name = "raw"

    def probe(self, window: ProbeWindow, /) -> Match:
        return Match.FALLBACK if window.size else Match.NO

    def open(self, source: ByteSource, related: RelatedFiles, /) -> RawImage:  # noqa: ARG002 - raw stands alone
        return RawImage(source)

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:  # noqa: ARG002 - the same
        return _findings(source)


class RawWriter:
    """Writes the bytes of the disk and nothing else; what is no data becomes holes where the target can have them."""

    name = "raw"
    variants = ("raw",)

    def layout(self, disk: DiskImage, options: "WriteOptions", /) -> "tuple[LaidOutFile, ...]":
        # Loaded here: raw is in every command's way, and few commands write.
        from diskfs_formats.layout import LaidOutImage, PaddedDisk  # noqa: PLC0415
        from diskfs_formats.writer import LaidOutFile  # noqa: PLC0415

        image = LaidOutImage(
            options.file_name,
            self.name,
            self.variants[0],
            [PaddedDisk(disk, disk.size)],
            compressed=disk.info.compressed,
        )
        return (LaidOutFile(options.file_name, image),)


def _findings(source: ByteSource) -> Iterator[Finding]:
    if source.size % SECTOR_SIZE:
        yield Finding(
            "raw-partial-sector",
            Severity.WARNING,
            f"{source.name}: {source.size} bytes are not a whole number of {SECTOR_SIZE}-byte sectors",
            "the file may have been cut short; compare its size with the original",
        )
