"""What writing a format is to the rest of diskfs: sinks, options, laid-out files, and the two kinds of writers.

A *layout writer* knows where every byte of its files goes before the first data byte is read: the files it returns are
sources with a map, made of the disk's own extents and of headers in memory. The same layout is streamed by `convert`
and served, uncopied, by a mount. A *stream writer* learns where things go while it writes (compressed grains); it
only appends.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

from diskfs_formats.driver import DiskImage
from diskfs_formats.source import Buffer

Progress: TypeAlias = Callable[[int], None]
"""Called with the bytes of the virtual disk that are done since the last call; from any thread."""


def no_progress(_done: int, /) -> None:
    """Report to nobody."""


class Sink(Protocol):
    """Where an image goes: append-only, one thread at a time. Raises SinkError subclasses of DiskfsError."""

    def write(self, data: Buffer, /) -> None:
        """Append bytes."""
        ...

    def write_zeroes(self, length: int, /) -> None:
        """Append zeroes: a hole where the target can have one."""
        ...

    def commit(self) -> None:
        """Publish what was written; until then the target is what it was before."""
        ...

    def abort(self) -> None:
        """Leave nothing behind. Harmless after `commit` and when called twice."""
        ...


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How to write an image. Options that a writer has no use for are refused by the command, not ignored here."""

    variant: str = ""
    """One of the writer's variants; the first of them if empty."""
    file_name: str = "disk"
    """The bare name of the main file, which descriptors and the names of further files are made from."""
    flat_ending: str = "-flat"
    """What the name of a flat VMDK's data file has after the main file's stem. Another one lets a new image be written
    beside the data of an old one that it will replace."""
    level: int | None = None
    """Compression level, None for the writer's default."""
    threads: int | None = None
    """Threads that compress, None for one per core."""
    reproducible: bool = False
    """Identifiers and times are derived from the disk's size and the options alone, so that two runs agree."""
    azure: bool = False
    """VHD: the virtual size is a whole number of MiB, as Azure asks."""


@dataclass(frozen=True, slots=True)
class LaidOutFile:
    """One file of a laid-out image: `content` is its bytes and their map; closing it leaves the disk open."""

    name: str
    content: DiskImage


@runtime_checkable
class LayoutWriter(Protocol):
    """Writes a format whose layout follows from the disk's map. Thread-safe."""

    @property
    def name(self) -> str:
        """The name that `-O` takes."""
        ...

    @property
    def variants(self) -> Sequence[str]:
        """What `--variant` takes, the default first."""
        ...

    def layout(self, disk: DiskImage, options: WriteOptions, /) -> tuple[LaidOutFile, ...]:
        """Return the image's files, the main one first; reads the disk's map and none of its data.

        Raises UnsupportedFeature for a disk that the format cannot hold. Memory is bounded whatever the disk's size.
        """
        ...


@runtime_checkable
class StreamWriter(Protocol):
    """Writes a format front to back. Thread-safe."""

    @property
    def name(self) -> str:
        """The name that `-O` takes."""
        ...

    @property
    def variants(self) -> Sequence[str]:
        """What `--variant` takes, the default first."""
        ...

    def write(self, disk: DiskImage, sink: Sink, options: WriteOptions, progress: Progress, /) -> None:
        """Append the whole image to `sink`; neither commits nor aborts. Raises what the disk and the sink raise."""
        ...
