"""What a disk format is to the rest of diskfs: detection, opening, checking, and the disk that comes out."""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from diskfs_formats.errors import ParentUnavailable
from diskfs_formats.extents import Extent
from diskfs_formats.findings import Finding
from diskfs_formats.source import ByteSource, require_range
from diskfs_formats.text import printable

HEAD_SIZE = 65536
"""Bytes from the start that detection sees: enough for every signature and for a text descriptor's first lines."""
TAIL_SIZE = 4096
"""Bytes from the end that detection sees: VHD and VMDK footers lie within the last 1,536."""


class Match(enum.IntEnum):
    """How sure a driver is that an image is its own."""

    NO = 0
    FALLBACK = 1
    """Nothing speaks against it; any driver that finds a signature goes first."""
    SIGNATURE = 2


@dataclass(frozen=True, slots=True)
class ProbeWindow:
    """The ends of an image, read once for all drivers."""

    head: bytes
    tail: bytes
    size: int

    @classmethod
    def of(cls, source: ByteSource) -> "ProbeWindow":
        """Read both ends of `source`; a small source costs one read."""
        head = source.read_at(0, min(HEAD_SIZE, source.size))
        if source.size <= len(head):
            return cls(head, head[-TAIL_SIZE:], source.size)
        tail_size = min(TAIL_SIZE, source.size)
        return cls(head, source.read_at(source.size - tail_size, tail_size), source.size)


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image says of itself. Sizes in bytes; `unit_size` is a grain, block or cluster, 0 where there is none."""

    format: str
    variant: str
    virtual_size: int
    sector_size: int = 512
    unit_size: int = 0
    compressed: bool = False
    has_parent: bool = False
    findings: tuple[Finding, ...] = field(default=())


class DiskImage(ByteSource, Protocol):
    """A disk as its guest would see it. It is a source, so layers stack."""

    @property
    def info(self) -> ImageInfo:
        """What the image says of itself."""
        ...

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        """Yield the map of the range: ascending, contiguous, covering it exactly, parents resolved."""
        ...


class RelatedFiles(Protocol):
    """The files beside an image: same folder, key prefix or appliance, and bare names only."""

    def open(self, file_name: str, /) -> ByteSource:
        """Open the file; raises UnsafeReference for anything but a bare name, ParentUnavailable if it is missing."""
        ...

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:
        """Open the parent disk: the file that the user named for it, else the first of `file_names` that is there.

        `format_name` is the parent's format, None to detect it. Raises ParentUnavailable with the places that were
        looked at, UnsafeReference for anything but bare names, CorruptImage for a chain that is too long or closes
        on itself. The caller checks that the parent is the right one, unless it is an AbsentParent.
        """
        ...


class AbsentParent:
    """Stands for a parent that is missing and that the user has agreed to do without: a disk of no bytes.

    What only the parent has then reads as zero. A driver does not check its identity; it has none.
    """

    name = "absent parent"
    size = 0
    info = ImageInfo("absent", "absent", 0)

    def read_at(self, offset: int, length: int, /) -> bytes:
        require_range(self, offset, length)
        return b""

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        require_range(self, offset, length or 0)
        return iter(())

    def close(self) -> None:
        pass


class NoRelatedFiles:
    """For images that must stand alone."""

    def open(self, file_name: str, /) -> ByteSource:
        raise ParentUnavailable(f"the image refers to {printable(file_name)!r}, and no other file may be opened here")

    def open_parent(self, file_names: Sequence[str], format_name: str | None, /) -> DiskImage:  # noqa: ARG002
        wanted = " or ".join(repr(printable(name)) for name in file_names) or "a file that it does not name"
        raise ParentUnavailable(f"the image needs its parent, {wanted}, and no other file may be opened here")


class FormatDriver(Protocol):
    """One disk format."""

    @property
    def name(self) -> str:
        """The name that `--format` takes."""
        ...

    def probe(self, window: ProbeWindow, /) -> Match:
        """Tell whether the image is this format, from its content alone; never raises."""
        ...

    def open(self, source: ByteSource, related: RelatedFiles, /) -> DiskImage:
        """Open the image; raises ImageError, and what the source raises. The disk owns `source` from then on."""
        ...

    def check(self, source: ByteSource, related: RelatedFiles, /) -> Iterator[Finding]:
        """Examine every structure of the image, each stored unit included, without stopping at the first damage."""
        ...
