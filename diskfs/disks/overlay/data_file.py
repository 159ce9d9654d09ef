"""The data of a disk in an overlay: sparse files in which each block has the offset that it has on the disk.

A disk of more than 8 TiB has several, because the file systems in use end a file at 16 TiB.
"""

from collections.abc import Callable, Iterator, Sequence

from diskfs.disks.overlay.storage import StoredFile
from diskfs.errors import DamagedOverlay, SourceError
from diskfs_formats.source import Buffer

SEGMENT_SIZE = 8 << 40
"""Bytes of the disk that one file holds."""


def segment_sizes(virtual_size: int, segment_size: int = SEGMENT_SIZE) -> list[int]:
    """Return the sizes of the files for a disk; there is at least one."""
    return [min(segment_size, virtual_size - start) for start in range(0, virtual_size or 1, segment_size)]


class DataFile:
    """The files of a disk as one, as a ByteSource that can be written.

    Writing raises OSError. Safe to share between threads.
    """

    def __init__(self, files: Sequence[StoredFile], name: str, size: int, segment_size: int = SEGMENT_SIZE) -> None:
        self._files = tuple(files)
        self._only = files[0] if len(files) == 1 else None
        self._name = name
        self._size = size
        self._segment_size = segment_size

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def _parts(self, offset: int, length: int) -> Iterator[tuple[StoredFile, int, int]]:
        while length:
            number, inside = divmod(offset, self._segment_size)
            count = min(length, self._segment_size - inside)
            yield self._files[number], inside, count
            offset += count
            length -= count

    def read_at(self, offset: int, length: int, /) -> bytes:
        """Return the bytes of a range; raises SourceError or DamagedOverlay."""
        try:
            if self._only is not None:
                data = self._only.read_at(offset, length)
            else:
                data = b"".join([file.read_at(start, count) for file, start, count in self._parts(offset, length)])
        except OSError as error:
            raise SourceError(
                f"{self._name}: reading {length} bytes at offset {offset:#x} failed: {error.strerror or error}"
            ) from error
        if len(data) != length:
            raise DamagedOverlay(
                f"{self._name}: {length} bytes at offset {offset:#x} were asked for, {len(data)} are there: the file "
                "was cut short"
            )
        return data

    def ready_reader(self) -> Callable[[int, int], Buffer | None]:
        """Return the shortest way to `read_if_ready`."""
        return self.read_if_ready if self._only is None else self._only.read_if_ready

    def read_if_ready(self, offset: int, length: int, /) -> Buffer | None:
        """Return the bytes of a range if they are in memory, else None."""
        if self._only is not None:
            return self._only.read_if_ready(offset, length)
        parts = []
        for file, start, count in self._parts(offset, length):
            part = file.read_if_ready(start, count)
            if part is None:
                return None
            parts.append(part)
        return b"".join(parts)

    def write_at(self, offset: int, data: Buffer, /) -> None:
        """Write a range; raises OSError."""
        if self._only is not None:
            self._only.write_at(offset, data)
            return
        view = memoryview(data)
        for file, start, count in self._parts(offset, len(data)):
            file.write_at(start, view[:count])
            view = view[count:]

    def punch(self, offset: int, length: int, /) -> None:
        """Free a range where the file system can; raises OSError."""
        for file, start, count in self._parts(offset, length):
            file.punch(start, count)

    def begin_writeback(self) -> None:
        """Have what was written on its way to the disk; promises and raises nothing."""
        for file in self._files:
            file.begin_writeback()

    def sync(self) -> None:
        """Return when what was written survives a power loss; raises OSError."""
        for file in self._files:
            file.sync()

    def close(self) -> None:
        for file in self._files:
            file.close()
