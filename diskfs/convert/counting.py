"""Counting what goes from a disk to a target of which only the writer knows how much it takes."""

from collections.abc import Iterator

from diskfs_formats.driver import DiskImage, ImageInfo
from diskfs_formats.extents import Extent, ExtentKind
from diskfs_formats.writer import Sink


class CountedDisk:
    """A disk that counts how many bytes of data the map that it gives out has; one reader at a time."""

    def __init__(self, disk: DiskImage) -> None:
        self._disk = disk
        self.data = 0

    @property
    def name(self) -> str:
        return self._disk.name

    @property
    def size(self) -> int:
        return self._disk.size

    @property
    def info(self) -> ImageInfo:
        return self._disk.info

    def read_at(self, offset: int, length: int, /) -> bytes:
        return self._disk.read_at(offset, length)

    def extents(self, offset: int = 0, length: int | None = None, /) -> Iterator[Extent]:
        for extent in self._disk.extents(offset, length):
            if extent.kind is ExtentKind.DATA:
                self.data += extent.length
            yield extent

    def close(self) -> None:
        self._disk.close()


class CountingSink:
    """Counts what is appended to another sink."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.written = 0
        self.size = 0

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self._sink.write(data)
        self.written += len(data)
        self.size += len(data)

    def write_zeroes(self, length: int, /) -> None:
        self._sink.write_zeroes(length)
        self.size += length

    def commit(self) -> None:
        self._sink.commit()

    def abort(self) -> None:
        self._sink.abort()
